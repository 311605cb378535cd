"""Lists: the cursor leads on from where a page ended, and nothing but a cursor is one."""

from __future__ import annotations

import json
import string
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from itemstore.core import listing
from itemstore.core.cache import Row
from itemstore.core.item import ID_MAX_BYTES, pack
from itemstore.core.listing import LIMIT_MAX, ORDERS, PAGE_BYTES_MAX, Position, decode, encode, page
from itemstore.errors import InvalidCursor, InvalidId, InvalidParameter
from tests.strategies import IDS

YEAR_1_US, YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000
KEYS = st.integers(YEAR_1_US, YEAR_10000_US - 1)
POSITIONS = st.tuples(KEYS, IDS)
PREFIXES = st.just("") | IDS
CURSOR_CHARS = string.ascii_letters + string.digits + "-_"

#: Any JSON value, to be signed off as a cursor by somebody who knows how they are made.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def forged(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


# --- cursors


@given(st.sampled_from(ORDERS), PREFIXES, POSITIONS)
def test_a_cursor_brings_its_position_back(order: str, prefix: str, after: Position) -> None:
    """A cursor of any order, prefix and position is URL-safe text and decodes to that position."""
    cursor = encode(order, prefix, after)
    assert set(cursor) <= set(CURSOR_CHARS)
    assert decode(cursor, order=order, prefix=prefix) == after


def test_the_longest_cursor_is_accepted() -> None:
    """Two ids of the longest kind, each character of them escaped, fit in a cursor."""
    quotes = '"' * ID_MAX_BYTES
    after = (YEAR_1_US, quotes)
    assert decode(encode("-created", quotes, after), order="-created", prefix=quotes) == after


@given(st.sampled_from(ORDERS), st.sampled_from(ORDERS), PREFIXES, PREFIXES, POSITIONS)
def test_a_cursor_belongs_to_its_list(
    order: str, other_order: str, prefix: str, other_prefix: str, after: Position
) -> None:
    """A cursor of a list with another order or prefix is refused."""
    assume((order, prefix) != (other_order, other_prefix))
    with pytest.raises(InvalidCursor, match="another order or prefix"):
        decode(encode(order, prefix, after), order=other_order, prefix=other_prefix)


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "id",
        "abcd",
        [],
        {},
        ["id", "", 0],
        ["id", "", 0, "a", 1],
        ["id", "", "0", "a"],
        ["id", "", 0.0, "a"],
        ["id", "", True, "a"],
        ["id", "", None, "a"],
        ["id", "", YEAR_1_US - 1, "a"],
        ["id", "", YEAR_10000_US, "a"],
        ["id", "", 2**64, "a"],
        ["id", "", 0, ""],
        ["id", "", 0, None],
        ["id", "", 0, 1],
        ["id", "", 0, ["a"]],
        ["id", "", 0, "a\x00b"],
        ["id", "", 0, "."],
        ["id", "", 0, "x" * (ID_MAX_BYTES + 1)],
        ["id", None, 0, "a"],
        [None, "", 0, "a"],
        [["id"], "", 0, "a"],
        {"id": 1, "": 2, "0": 3, "a": 4},
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_forged_cursor_is_refused(value: Any) -> None:
    """Well-made base64 of anything but a cursor's four members is refused, never an SQL error."""
    with pytest.raises(InvalidCursor) as refusal:
        decode(forged(value), order="id", prefix="")
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "=",
        "A",
        "AA",
        "!",
        "null",
        " ",
        "\x00",
        "\u00e9",
        "\ud800",
        "W10=",
        "W10==",
        "WyJp\nZCIs",
        urlsafe_b64encode(b"\xff\xfe").decode(),
        urlsafe_b64encode(b"[" * 2_000).decode(),
        forged(["id", "", 0, "a"]) + "A" * 8_193,
        urlsafe_b64encode(b'["id","",0,"a"' + b" " * 8_192 + b"]").decode(),
        "A" * 1_000_000,
    ],
    ids=lambda cursor: ascii(cursor)[:20],
)
def test_a_garbled_cursor_is_refused(cursor: str) -> None:
    """What is no base64, no JSON, or too long is refused."""
    with pytest.raises(InvalidCursor):
        decode(cursor, order="id", prefix="")


@given(st.one_of(st.text(), st.text(CURSOR_CHARS, max_size=60), JSON.map(forged)))
def test_anything_else_is_refused(cursor: str) -> None:
    """Text, base64 and JSON at random are refused, always as an InvalidCursor."""
    with pytest.raises(InvalidCursor):
        decode(cursor, order="-created", prefix="a")


@given(POSITIONS, st.data())
def test_a_changed_cursor_is_refused_or_a_position(after: Position, data: st.DataObject) -> None:
    """A cursor with characters changed is refused or leads to some valid position, nothing else."""
    cursor = list(encode("id", "", after))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(cursor) - 1))
        cursor[place] = data.draw(st.sampled_from([*CURSOR_CHARS, "", "=", "\u00e9"]))
    try:
        found = decode("".join(cursor), order="id", prefix="")
    except InvalidCursor:
        return
    assert decode(encode("id", "", found), order="id", prefix="") == found


# --- pages


def rows(count: int, *, size: int = 2) -> list[Row]:
    return [(f"i{n:03}", pack(100 + n, 10 + n, b"x" * size)) for n in range(count)]


def test_a_page_that_is_not_full_is_the_last() -> None:
    """Up to the limit all rows are on the page, and there is no next one."""
    for count in (0, 1, 3):
        result = page(rows(count), limit=3, order="id", prefix="", count=7)
        assert [item.id for item in result.items] == [row[0] for row in rows(count)]
        assert (result.next, result.count) == (None, 7)


@pytest.mark.parametrize(
    ("order", "after"),
    [
        ("created", (12, "i002")),
        ("-created", (12, "i002")),
        ("updated", (102, "i002")),
        ("-updated", (102, "i002")),
        ("id", (0, "i002")),
        ("-id", (0, "i002")),
    ],
)
def test_one_row_more_than_the_limit_means_a_next_page(order: str, after: Position) -> None:
    """The row beyond the limit is left out, and the cursor names the last one that is not."""
    result = page(rows(4), limit=3, order=order, prefix="i", count=None)
    assert [item.id for item in result.items] == ["i000", "i001", "i002"]
    assert result.next is not None
    assert decode(result.next, order=order, prefix="i") == after
    assert result.count is None


def test_a_page_cut_by_size_has_a_next_page() -> None:
    """A page that reached its bytes goes on, though it has fewer items than the limit."""
    result = page(rows(2, size=PAGE_BYTES_MAX // 2), limit=10, order="id", prefix="", count=None)
    assert len(result.items) == 2
    assert result.next is not None
    assert decode(result.next, order="id", prefix="") == (0, "i001")


# --- parameters


@pytest.mark.parametrize(
    ("order", "column", "descending"),
    [
        ("created", "created", False),
        ("-created", "created", True),
        ("updated", "updated", False),
        ("-updated", "updated", True),
        ("id", "id", False),
        ("-id", "id", True),
    ],
)
def test_an_order_is_a_column_and_a_direction(order: str, column: str, descending: bool) -> None:
    """Each of the six orders is understood."""
    assert listing.check_order(order) == (column, descending)


@pytest.mark.parametrize("order", ["", "-", "--id", "ID", "data", "id; --", " id", "+id"])
def test_another_order_is_refused(order: str) -> None:
    """Nothing but the six orders reaches the storage."""
    with pytest.raises(InvalidParameter):
        listing.check_order(order)


def test_a_limit_is_from_1_to_1000() -> None:
    """A limit within its bounds is given back, others are refused."""
    for limit in (1, 2, LIMIT_MAX):
        assert listing.check_limit(limit) == limit
    for limit in (-(10**30), -1, 0, LIMIT_MAX + 1, 10**30):
        with pytest.raises(InvalidParameter):
            listing.check_limit(limit)


def test_a_prefix_is_what_an_id_can_begin_with() -> None:
    """Nothing, dots and the beginnings of ids are prefixes; what no id can hold is not."""
    for prefix in ("", ".", "..", "...", "a/", "\u00e9", "x" * ID_MAX_BYTES):
        listing.check_prefix(prefix)
    for prefix in ("\x00", "a\n", "\ud800", "x" * (ID_MAX_BYTES + 1)):
        with pytest.raises(InvalidId):
            listing.check_prefix(prefix)
