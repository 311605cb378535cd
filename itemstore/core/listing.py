"""Lists: their order, and the cursor that leads from page to page.

A cursor names the last item of a page by its sort key and id, never an offset: what is inserted
or deleted before it changes nothing after it. Over ``created`` and ``id``, which never change, an
item that exists throughout a walk is seen exactly once; over ``updated`` an item that changes
during the walk moves: forwards it is seen again, backwards it may be missed.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from itemstore.core.cache import Row
from itemstore.core.item import (
    TIME_END_US,
    TIME_MIN_US,
    Item,
    check_id,
    created_us_of,
    version_of,
)
from itemstore.errors import InvalidCursor, InvalidId, InvalidParameter

LIMIT_MAX: Final = 1_000  # items
LIMIT_DEFAULT: Final = 100  # items
PAGE_BYTES_MAX: Final = 8 * 1024 * 1024  # a page ends with the item that passes this
ORDERS: Final = ("created", "-created", "updated", "-updated", "id", "-id")
_CURSOR_LENGTH_MAX: Final = 8_192  # characters: two ids of 512 bytes, escaped, and some

#: Where a page ends: the sort key (µs since 1970, version, or 0 for the order by id) and the id.
Position = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in order; ``next`` is the cursor of the page after it, None at the end."""

    items: list[Item]
    next: str | None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page of a list. ``order`` is created, updated or id; ``after`` the last page's end."""

    limit: int
    bytes_max: int  #: the page ends with the item that passes this
    order: str = "created"
    descending: bool = False
    prefix: str = ""
    after: tuple[int, str] | None = None  #: sort key (µs since 1970, version, or 0) and id
    count: bool = False


def query(limit: int, order: str, cursor: str | None, prefix: str, *, count: bool) -> ListQuery:
    """What is asked for. Raises InvalidParameter, InvalidId, InvalidCursor."""
    check_limit(limit)
    column, descending = check_order(order)
    check_prefix(prefix)
    return ListQuery(
        limit=limit + 1,
        bytes_max=PAGE_BYTES_MAX,
        order=column,
        descending=descending,
        prefix=prefix,
        after=None if cursor is None else decode(cursor, order=order, prefix=prefix),
        count=count,
    )


def encode(order: str, prefix: str, after: Position) -> str:
    """The cursor of what comes after this position."""
    raw = orjson.dumps([order, prefix, *after])
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(cursor: str, *, order: str, prefix: str) -> Position:
    """The position. Raises InvalidCursor unless it was given for this order and prefix."""
    try:
        given_order, given_prefix, key, item_id = _unpack(cursor)
        if type(key) is not int or not TIME_MIN_US <= key < TIME_END_US:
            raise ValueError("no sort key")
        check_id(item_id)
    except (ValueError, TypeError, InvalidId):
        raise InvalidCursor(
            "The cursor is not one this store gave. Use 'next' of a page as it is, "
            "or leave it out to begin."
        ) from None
    if (given_order, given_prefix) != (order, prefix):
        raise InvalidCursor(
            "The cursor belongs to a list with another order or prefix. "
            "Repeat the parameters of the page it came from."
        )
    return key, item_id


def _unpack(cursor: str) -> Any:
    if len(cursor) > _CURSOR_LENGTH_MAX:
        raise ValueError("too long")
    return orjson.loads(b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))


def check_order(order: str) -> tuple[str, bool]:
    """The column and whether it descends. Raises InvalidParameter."""
    if order not in ORDERS:
        raise InvalidParameter(f"order is one of {', '.join(ORDERS)}, not {order!r}.")
    return order.removeprefix("-"), order.startswith("-")


def check_limit(limit: int) -> int:
    """The limit itself. Raises InvalidParameter unless it is 1 to 1,000 items."""
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidParameter(f"limit is a number from 1 to {LIMIT_MAX}, not {limit}.")
    return limit


def check_prefix(prefix: str) -> None:
    """Raises InvalidId if no id can begin with it."""
    if prefix not in {"", ".", ".."}:
        check_id(prefix)


def page(rows: Sequence[Row], *, limit: int, order: str, prefix: str, count: int | None) -> Page:
    """The page of these rows: one more than ``limit`` proves that there is a next page."""
    is_cut = sum(len(entry) for _, entry in rows) >= PAGE_BYTES_MAX
    following = None
    if len(rows) > limit or is_cut:
        rows = rows[:limit]
        following = encode(order, prefix, _position(order, rows[-1]))
    return Page([Item(item_id, entry) for item_id, entry in rows], following, count)


def _position(order: str, row: Row) -> Position:
    item_id, entry = row
    match order.removeprefix("-"):
        case "created":
            return created_us_of(entry), item_id
        case "updated":
            return version_of(entry), item_id
        case _:
            return 0, item_id
