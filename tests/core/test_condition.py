"""If-Match and If-None-Match, as RFC 9110 (sections 8.8.3 and 13.1) has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.condition import ALWAYS, Condition, etag
from itemstore.core.item import pack
from itemstore.errors import InvalidETag, PreconditionFailed

FIVE = pack(5, 1, b"{}")

#: The header's value, and whether it lists version 5: compared strongly, compared weakly.
LISTS = [
    ("*", True, True),
    (" * ", True, True),
    ('"5"', True, True),
    ('  "5"\t', True, True),
    ('W/"5"', False, True),
    ('"4"', False, False),
    ('W/"4"', False, False),
    ('"4", "5"', True, True),
    ('"4","5","6"', True, True),
    ('"4" ,\t"5"', True, True),
    ('W/"5", "4"', False, True),
    ('W/"4", "5"', True, True),
    ('"4", "6"', False, False),
    # Empty elements of a list are to be ignored: section 5.6.1.2.
    ('"5",', True, True),
    ('"5", ', True, True),
    (',"5"', True, True),
    ('"4",,"5"', True, True),
    ('"4", ,\t, "5" , ,', True, True),
    # Tags of others are well-formed but name no version of this store.
    ('"05"', False, False),
    ('"+5"', False, False),
    ('" 5"', None, None),  # a space is not allowed in a tag
    ('""', False, False),
    ('"abc"', False, False),
    ('"5-gzip"', False, False),
    ('"a,b", "5"', True, True),
    ('"a\\"', False, False),
    ('"\u00e9", "5"', True, True),
    ('"\u20ac", "5"', True, True),  # three bytes of obs-text, as aiohttp decodes them
    ('"\udcff", "5"', True, True),  # one byte that is no UTF-8, as aiohttp decodes it
    ('"\u0665"', False, False),  # a digit, but not of ASCII
    ('"5' + "0" * 30 + '"', False, False),
    ('"' + "9" * 5_000 + '"', False, False),
    # Malformed.
    ("", None, None),
    ("   ", None, None),
    (",", None, None),
    (", ,", None, None),
    ("5", None, None),
    ("'5'", None, None),
    ('"5', None, None),
    ('5"', None, None),
    ('"5""6"', None, None),
    ('"5" "6"', None, None),
    ('"5"; "6"', None, None),
    ('*, "5"', None, None),
    ('"5", *', None, None),
    ("**", None, None),
    ('w/"5"', None, None),
    ("W/5", None, None),
    ('W /"5"', None, None),
    ('W/ "5"', None, None),
    ('"a b"', None, None),
    ('"a\tb"', None, None),
    ('"5\x7f"', None, None),
    ('"5"x', None, None),
]
WELL_FORMED = [(value, strong, weak) for value, strong, weak in LISTS if strong is not None]
MALFORMED = [value for value, strong, _ in LISTS if strong is None]


def holds(condition: Condition, entry: bytes | None) -> bool:
    try:
        condition.check(entry)
    except PreconditionFailed:
        return False
    return True


@pytest.mark.parametrize(("value", "strong", "weak"), WELL_FORMED, ids=lambda v: ascii(v)[:24])
def test_if_match_compares_strongly(value: str, strong: bool, weak: bool) -> None:
    """If-Match holds if the item exists and its version is listed by a strong tag, or by *."""
    condition = Condition.parse(value, None)
    assert holds(condition, FIVE) == strong
    assert not holds(condition, None)
    assert not condition.is_unmodified(FIVE)


@pytest.mark.parametrize(("value", "strong", "weak"), WELL_FORMED, ids=lambda v: ascii(v)[:24])
def test_if_none_match_compares_weakly(value: str, strong: bool, weak: bool) -> None:
    """If-None-Match holds unless the item exists and its version is listed by any tag, or by *."""
    condition = Condition.parse(None, value)
    assert holds(condition, FIVE) == (not weak)
    assert holds(condition, None)
    assert condition.is_unmodified(FIVE) == weak


@pytest.mark.parametrize("value", MALFORMED, ids=lambda v: ascii(v)[:24])
def test_a_malformed_header_is_refused(value: str) -> None:
    """What is no list of entity tags is refused and said to be; it never counts as no condition."""
    with pytest.raises(InvalidETag, match=r"^If-Match "):
        Condition.parse(value, None)
    with pytest.raises(InvalidETag, match=r"^If-None-Match "):
        Condition.parse(None, value)


@given(st.text(max_size=30) | st.text(' ,*W/"5\t', max_size=12))
def test_any_header_is_understood_or_refused(value: str) -> None:
    """Whatever a header holds, it is a condition or an InvalidETag."""
    try:
        condition = Condition.parse(value, value)
    except InvalidETag:
        return
    assert not holds(condition, FIVE) or not condition.is_unmodified(FIVE)


def test_a_long_malformed_header_is_refused_at_once() -> None:
    """The time a header takes grows with its length, not with the square of it."""
    for value in ('"5"' + "," * 100_000 + "x", " " * 100_000 + "x", '"5" ' * 50_000):
        with pytest.raises(InvalidETag):
            Condition.parse(value, None)


def test_no_header_is_no_condition() -> None:
    """Without headers everything may be done."""
    assert Condition.parse(None, None) is ALWAYS
    assert holds(ALWAYS, FIVE)
    assert holds(ALWAYS, None)
    assert not ALWAYS.is_unmodified(FIVE)


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "of_five", "of_absent"),
    [
        ('"5"', '"4"', True, False),
        ('"5"', '"5"', False, False),
        ('"4"', '"4"', False, False),
        ("*", '"4"', True, False),
        ('"5"', "*", False, False),
        ("*", "*", False, False),
    ],
)
def test_both_conditions_must_hold(
    if_match: str, if_none_match: str, of_five: bool, of_absent: bool
) -> None:
    """With both headers each of the two must hold."""
    condition = Condition.parse(if_match, if_none_match)
    assert holds(condition, FIVE) == of_five
    assert holds(condition, None) == of_absent


@pytest.mark.parametrize(
    ("condition", "of_five", "of_six", "of_absent"),
    [
        (Condition.version(5), True, False, False),
        (Condition.version(4, 5), True, False, False),
        (Condition.version(), False, False, False),
        (Condition.exists(), True, True, False),
        (Condition.absent(), False, False, True),
    ],
)
def test_the_library_has_names_for_them(
    condition: Condition, of_five: bool, of_six: bool, of_absent: bool
) -> None:
    """The named conditions demand what their names say."""
    assert holds(condition, FIVE) == of_five
    assert holds(condition, pack(6, 1, b"{}")) == of_six
    assert holds(condition, None) == of_absent


def test_if_match_can_be_asked_alone() -> None:
    """For a read only If-Match can fail; If-None-Match asks whether the item has changed."""
    condition = Condition.parse('"5"', '"5"')
    condition.check_match(FIVE)
    assert condition.is_unmodified(FIVE)
    with pytest.raises(PreconditionFailed):
        condition.check_match(pack(6, 1, b"{}"))


def test_the_refusal_tells_the_state() -> None:
    """A failed precondition says which header failed and which version the item has."""
    with pytest.raises(PreconditionFailed, match=r"^If-Match .* version 5") as refusal:
        Condition.version(4).check(FIVE)
    assert refusal.value.status == 412
    with pytest.raises(PreconditionFailed, match=r"^If-Match .* does not exist"):
        Condition.exists().check(None)
    with pytest.raises(PreconditionFailed, match=r"^If-None-Match .* version 5"):
        Condition.absent().check(FIVE)


@given(st.integers(0, 2**53))
def test_the_stores_own_tag_comes_back(version: int) -> None:
    """The tag of a version names that version, strongly and weakly, and no other."""
    entry, later = pack(version, 1, b"{}"), pack(version + 1, 1, b"{}")
    assert holds(Condition.parse(etag(version), None), entry)
    assert not holds(Condition.parse(etag(version), None), later)
    assert Condition.parse(None, "W/" + etag(version)).is_unmodified(entry)
    assert not Condition.parse(None, "W/" + etag(version)).is_unmodified(later)
