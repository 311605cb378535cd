"""Lists: what is asked for, their order, and the cursor that leads from page to page.

A cursor names the last item of a page by its sort key and id, never an offset: what is inserted
or deleted before it changes nothing after it. Over ``created`` and ``id``, which never change, an
item that exists throughout a walk is seen exactly once; over ``updated``, or a field of data, an
item that changes during the walk moves: it is seen again if it moves on, and may be missed if it
moves back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from itemstore.core.cache import Row
from itemstore.core.cursor import packed, unpacked
from itemstore.core.field import ABSENT, INFINITY, KEY_TEXT_LENGTH, Field, Key, key_in, parse_field
from itemstore.core.item import (
    TIME_END_US,
    TIME_MIN_US,
    Item,
    check_id,
    created_us_of,
    data_of,
    version_of,
)
from itemstore.core.query import Filter, Filters, parse_filters, read_number
from itemstore.core.selection import Selection, parse_fields
from itemstore.errors import InvalidCursor, InvalidId, InvalidParameter

LIMIT_MAX: Final = 1_000  # items
LIMIT_DEFAULT: Final = 100  # items
PAGE_BYTES_MAX: Final = 8 * 1024 * 1024  # a page ends with the item that passes this
ORDERS: Final = ("created", "-created", "updated", "-updated", "id", "-id")
COUNTS: Final = ("none", "exact", "estimated")
#: The same by the names of the fields.
_ALIASES: Final = {"created_at": "created", "updated_at": "updated"}
_CURSOR_LENGTH_MAX: Final = 8_192  # characters: two ids of 512 bytes, escaped, and some

#: Where a page ends: the sort key (µs since 1970, version, 0 for the order by id, or the key of a
#: field of data) and the id.
Position = tuple[int | Key, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in order; ``next`` is the cursor of the page after it, None at the end."""

    items: list[Item]
    next: str | None
    count: int | None = None
    #: The commands that make the indexes this list would have needed.
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page of a list. ``order`` is created, updated, id or a field of data."""

    limit: int
    bytes_max: int  #: the page ends with the item that passes this
    order: str | Field = "created"
    descending: bool = False
    prefix: str = ""
    after: Position | None = None  #: the last page's end
    count: str = "none"  #: one of COUNTS
    filters: tuple[Filter, ...] = ()
    time_limit_s: float = 10.0  #: for PostgreSQL, each for the page and the count


@dataclass(frozen=True, slots=True)
class Listing:
    """A list as it was asked for, and understood."""

    query: ListQuery
    selection: Selection | None
    identity: str  #: stands in each of its cursors, and in no other list's


def understand(
    limit: int = LIMIT_DEFAULT,
    order: str = "created",
    cursor: str | None = None,
    prefix: str = "",
    count: str = "none",
    filters: Filters | None = None,
    fields: Sequence[str] | None = None,
    time_limit_s: float = 10.0,
) -> Listing:
    """What ``ItemStore.list`` is asked for. Raises InvalidParameter, InvalidId, InvalidCursor."""
    check_limit(limit)
    column, descending = check_order(order)
    check_prefix(prefix)
    if count not in COUNTS:
        raise InvalidParameter(f"count is one of {', '.join(COUNTS)}, not {count[:40]!r}.")
    conditions = parse_filters(filters or {})
    selection = None if fields is None else parse_fields(fields)
    identity = identify(f"{'-' if descending else ''}{column}", prefix, filters or {}, fields)
    query = ListQuery(
        limit=limit + 1,
        bytes_max=PAGE_BYTES_MAX,
        order=column,
        descending=descending,
        prefix=prefix,
        after=None
        if cursor is None
        else decode(cursor, identity, by_field=isinstance(column, Field)),
        count=count,
        filters=conditions,
        time_limit_s=time_limit_s,
    )
    return Listing(query, selection, identity)


def identify(order: str, prefix: str, filters: Filters, fields: Sequence[str] | None) -> str:
    """The same for the same list, in whatever order its filters are given."""
    conditions = sorted(
        (name, sorted([some] if isinstance(some, str) else some)) for name, some in filters.items()
    )
    return blake2b(orjson.dumps([order, prefix, conditions, fields]), digest_size=9).hexdigest()


def encode(identity: str, after: Position) -> str:
    """The cursor of what comes after this position."""
    key, item_id = after
    if isinstance(key, Key):
        number = None if key.number == INFINITY else str(key.number)
        return packed([identity, [number, key.kind, key.text], item_id])
    return packed([identity, key, item_id])


def decode(cursor: str, identity: str, *, by_field: bool = False) -> Position:
    """The position. Raises InvalidCursor unless it was given for this list."""
    try:
        given, key, item_id = unpacked(cursor, _CURSOR_LENGTH_MAX)
        if given == identity:
            return (_field_key(key) if by_field else _key(key)), check_id(item_id)
    except (ValueError, TypeError, InvalidId):
        given = None
    if given is None:
        raise InvalidCursor(
            "The cursor is not one this store gave. Use 'next' of a page as it is, "
            "or leave it out to begin."
        )
    raise InvalidCursor(
        "The cursor belongs to a list with another order or prefix, other filters or fields. "
        "Repeat the parameters of the page it came from."
    )


def _key(key: Any) -> int:
    if type(key) is not int or not TIME_MIN_US <= key < TIME_END_US:
        raise ValueError("no sort key")
    return key


def _field_key(key: Any) -> Key:
    number, kind, text = key
    is_key = type(kind) is int and 0 <= kind <= ABSENT and type(text) is str
    if not is_key or len(text) > KEY_TEXT_LENGTH or "\0" in text:
        raise ValueError("no sort key")
    return Key(INFINITY if number is None else read_number(number), kind, text)


def check_order(order: str) -> tuple[str | Field, bool]:
    """What it goes by, and whether it descends. Raises InvalidParameter."""
    name = order.removeprefix("-")
    descending = name != order
    name = _ALIASES.get(name, name)
    if name in ORDERS and not name.startswith("-"):
        return name, descending
    if name.startswith("data."):
        return parse_field(name), descending
    raise InvalidParameter(
        f"order is one of {', '.join(ORDERS)}, or a field such as data.price or -data.price, "
        f"not {order[:40]!r}."
    )


def check_limit(limit: int) -> int:
    """The limit itself. Raises InvalidParameter unless it is 1 to 1,000 items."""
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidParameter(f"limit is a number from 1 to {LIMIT_MAX}, not {limit}.")
    return limit


def check_prefix(prefix: str) -> None:
    """Raises InvalidId if no id can begin with it."""
    if prefix not in {"", ".", ".."}:
        check_id(prefix)


def page(listing: Listing, rows: Sequence[Row], count: int | None) -> Page:
    """The page of these rows: one more than its limit proves that there is a next page."""
    query = listing.query
    is_cut = sum(len(entry) for _, entry in rows) >= query.bytes_max
    following = None
    if len(rows) >= query.limit or is_cut:
        rows = rows[: query.limit - 1]
        following = encode(listing.identity, position(query.order, rows[-1]))
    elif query.count == "estimated" and query.after is None:
        count = len(rows)  # all that there are
    return Page([Item(item_id, entry) for item_id, entry in rows], following, count)


def position(order: str | Field, row: Row) -> Position:
    """Where the row stands in a list."""
    item_id, entry = row
    match order:
        case "created":
            return created_us_of(entry), item_id
        case "updated":
            return version_of(entry), item_id
        case Field(path=path):
            return key_in(data_of(entry), path), item_id
        case _:
            return 0, item_id
