"""Lists: the cursor leads on from where a page ended, and nothing but a cursor is one."""

from __future__ import annotations

import json
import string
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from itemstore.core import listing
from itemstore.core.cache import Row
from itemstore.core.field import KEY_TEXT_LENGTH, MISSING, Field, Key, key_of
from itemstore.core.item import ID_MAX_BYTES, pack
from itemstore.core.listing import (
    LIMIT_MAX,
    ORDERS,
    PAGE_BYTES_MAX,
    Position,
    decode,
    encode,
    page,
    understand,
)
from itemstore.core.query import Filters
from itemstore.errors import InvalidCursor, InvalidId, InvalidParameter
from tests.strategies import IDS, STORABLE_TEXT

YEAR_1_US, YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000
KEYS = st.one_of(
    st.integers(YEAR_1_US, YEAR_10000_US - 1),
    st.one_of(st.none(), st.booleans(), STORABLE_TEXT, st.just(MISSING)).map(key_of),
    st.floats(allow_nan=False, allow_infinity=False).map(key_of),
)
POSITIONS = st.tuples(KEYS, IDS)
PREFIXES = st.just("") | IDS
LISTS = st.fixed_dictionaries(
    {"order": st.sampled_from(ORDERS), "prefix": PREFIXES},
    optional={
        "filters": st.sampled_from([{}, {"data.a": "eq.1"}, {"data.a": "eq.2"}, {"id": "gt.1"}]),
        "fields": st.sampled_from([None, ["id"], ["data.a"]]),
    },
)
CURSOR_CHARS = string.ascii_letters + string.digits + "-_"

#: Any JSON value, to be signed off as a cursor by somebody who knows how they are made.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def identity(
    order: str,
    prefix: str = "",
    filters: Filters | None = None,
    fields: Sequence[str] | None = None,
) -> str:
    return listing.identify(order, prefix, filters or {}, fields)


ID_LIST = identity("id")


def forged(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


# --- cursors


@given(LISTS, POSITIONS)
def test_a_cursor_brings_its_position_back(asked: dict[str, Any], after: Position) -> None:
    """A cursor of any list and position is URL-safe text and decodes to that position."""
    cursor = encode(identity(**asked), after)
    assert set(cursor) <= set(CURSOR_CHARS)
    assert decode(cursor, identity(**asked), by_field=isinstance(after[0], Key)) == after


def test_the_longest_cursor_is_accepted() -> None:
    """A key and an id of the longest kind, each character of them escaped, fit in a cursor."""
    key = Key(Decimal("-1e308"), 0, "\x01" * KEY_TEXT_LENGTH)
    after = (key, '"' * ID_MAX_BYTES)
    assert decode(encode(ID_LIST, after), ID_LIST, by_field=True) == after


@given(LISTS, LISTS, POSITIONS)
def test_a_cursor_belongs_to_its_list(
    asked: dict[str, Any], other: dict[str, Any], after: Position
) -> None:
    """A cursor of a list with another order or prefix, other filters or fields is refused."""
    assume(identity(**asked) != identity(**other))
    with pytest.raises(InvalidCursor, match="another order or prefix"):
        decode(encode(identity(**asked), after), identity(**other))


def test_filters_in_another_order_are_the_same_list() -> None:
    """What makes the list counts, not how it is written down."""
    one = listing.identify("id", "", {"data.a": ["gt.1", "lt.2"], "id": "neq.a"}, None)
    assert one == listing.identify("id", "", {"id": ["neq.a"], "data.a": ["lt.2", "gt.1"]}, None)


def test_a_time_is_no_place_in_an_order_by_a_field() -> None:
    """A cursor whose key is of the other form is refused."""
    key = Key(Decimal(1), 0, "")
    for after, by_field in (((0, "a"), True), ((key, "a"), False)):
        with pytest.raises(InvalidCursor, match="not one this store gave"):
            decode(encode(ID_LIST, after), ID_LIST, by_field=by_field)


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "id",
        "abc",
        [],
        {},
        [ID_LIST, 0],
        [ID_LIST, 0, "a", 1],
        [ID_LIST, "0", "a"],
        [ID_LIST, 0.0, "a"],
        [ID_LIST, True, "a"],
        [ID_LIST, None, "a"],
        [ID_LIST, YEAR_1_US - 1, "a"],
        [ID_LIST, YEAR_10000_US, "a"],
        [ID_LIST, 2**64, "a"],
        [ID_LIST, 0, ""],
        [ID_LIST, 0, None],
        [ID_LIST, 0, 1],
        [ID_LIST, 0, ["a"]],
        [ID_LIST, 0, "a\x00b"],
        [ID_LIST, 0, "."],
        [ID_LIST, 0, "x" * (ID_MAX_BYTES + 1)],
        [ID_LIST, [None, 0, ""], "a"],
        [None, 0, "a"],
        [[ID_LIST], 0, "a"],
        {ID_LIST: 1, "0": 3, "a": 4},
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_forged_cursor_is_refused(value: Any) -> None:
    """Well-made base64 of anything but a cursor's four members is refused, never an SQL error."""
    with pytest.raises(InvalidCursor) as refusal:
        decode(forged(value), ID_LIST)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "key",
    [
        None,
        0,
        "a",
        [],
        {},
        ["1", 0],
        ["1", 0, "", ""],
        [1, 0, ""],
        ["1e99999", 0, ""],
        ["NaN", 0, ""],
        ["Infinity", 0, ""],
        ["1; --", 0, ""],
        ["1" * 600, 0, ""],
        [None, -1, ""],
        [None, 6, ""],
        [None, 1.0, ""],
        [None, True, ""],
        [None, "0", ""],
        [None, 0, None],
        [None, 0, "a\x00"],
        [None, 0, "x" * 502],
        [None, 0, ["x"]],
    ],
    ids=lambda key: str(key)[:30],
)
def test_a_forged_key_is_refused(key: Any) -> None:
    """Nothing but a key of a field of data is a place in an order by one."""
    with pytest.raises(InvalidCursor):
        decode(forged([ID_LIST, key, "a"]), ID_LIST, by_field=True)


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
        forged([ID_LIST, 0, "a"]) + "A" * 8_193,
        urlsafe_b64encode(b'["id",0,"a"' + b" " * 8_192 + b"]").decode(),
        "A" * 1_000_000,
    ],
    ids=lambda cursor: ascii(cursor)[:20],
)
def test_a_garbled_cursor_is_refused(cursor: str) -> None:
    """What is no base64, no JSON, or too long is refused."""
    with pytest.raises(InvalidCursor):
        decode(cursor, ID_LIST)


@given(st.one_of(st.text(), st.text(CURSOR_CHARS, max_size=60), JSON.map(forged)))
def test_anything_else_is_refused(cursor: str) -> None:
    """Text, base64 and JSON at random are refused, always as an InvalidCursor."""
    with pytest.raises(InvalidCursor):
        decode(cursor, identity("-created", "a"))


@given(POSITIONS, st.data())
def test_a_changed_cursor_is_refused_or_a_position(after: Position, data: st.DataObject) -> None:
    """A cursor with characters changed is refused or leads to some valid position, nothing else."""
    by_field = isinstance(after[0], Key)
    cursor = list(encode(ID_LIST, after))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(cursor) - 1))
        cursor[place] = data.draw(st.sampled_from([*CURSOR_CHARS, "", "=", "\u00e9"]))
    try:
        found = decode("".join(cursor), ID_LIST, by_field=by_field)
    except InvalidCursor:
        return
    assert decode(encode(ID_LIST, found), ID_LIST, by_field=by_field) == found


# --- pages


def rows(count: int, *, size: int = 0) -> list[Row]:
    return [
        (f"i{n:03}", pack(100 + n, 10 + n, b'{"n":%d}' % n + b" " * size)) for n in range(count)
    ]


def test_a_page_that_is_not_full_is_the_last() -> None:
    """Up to the limit all rows are on the page, and there is no next one."""
    for count in (0, 1, 3):
        result = page(understand(limit=3, order="id"), rows(count), 7)
        assert [item.id for item in result.items] == [row[0] for row in rows(count)]
        assert (result.next, result.count) == (None, 7)


def test_a_whole_list_is_no_estimate() -> None:
    """Where all there is stands on the first page, its number is known."""
    assert page(understand(limit=3, count="estimated"), rows(3), 7).count == 3
    assert page(understand(limit=3, count="estimated"), rows(4), 7).count == 7


@pytest.mark.parametrize(
    ("order", "after"),
    [
        ("created", (12, "i002")),
        ("-created_at", (12, "i002")),
        ("updated_at", (102, "i002")),
        ("-updated", (102, "i002")),
        ("id", (0, "i002")),
        ("-id", (0, "i002")),
        ("data.n", (Key(Decimal(2), 0, ""), "i002")),
        ("-data.none", (key_of(MISSING), "i002")),
    ],
)
def test_one_row_more_than_the_limit_means_a_next_page(order: str, after: Position) -> None:
    """The row beyond the limit is left out, and the cursor names the last one that is not."""
    asked = understand(limit=3, order=order, prefix="i")
    result = page(asked, rows(4), None)
    assert [item.id for item in result.items] == ["i000", "i001", "i002"]
    assert result.next is not None
    assert understand(order=order, prefix="i", cursor=result.next).query.after == after
    assert result.count is None


def test_a_page_cut_by_size_has_a_next_page() -> None:
    """A page that reached its bytes goes on, though it has fewer items than the limit."""
    asked = understand(limit=10, order="id")
    result = page(asked, rows(2, size=PAGE_BYTES_MAX // 2), None)
    assert len(result.items) == 2
    assert result.next is not None
    assert decode(result.next, asked.identity) == (0, "i001")


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
        ("created_at", "created", False),
        ("-updated_at", "updated", True),
        ("data.a.b", Field("data", ("a", "b")), False),
        ('-data."-"', Field("data", ("-",)), True),
    ],
)
def test_an_order_is_a_column_and_a_direction(
    order: str, column: str | Field, descending: bool
) -> None:
    """Each order is understood."""
    assert listing.check_order(order) == (column, descending)


@pytest.mark.parametrize(
    "order",
    ["", "-", "--id", "ID", "data", "data.", "--created_at", "-data", "id; --", " id", "+id"],
)
def test_another_order_is_refused(order: str) -> None:
    """Nothing else reaches the storage."""
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
