"""The audit as it is read: what is asked for, its rows, and the cursor from page to page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from itemstore.core.cursor import packed, unpacked
from itemstore.core.item import check_id
from itemstore.core.listing import check_limit, check_prefix
from itemstore.core.record import LEGIBLE_LENGTH_MAX
from itemstore.errors import InvalidCursor, InvalidId, InvalidParameter

LIMIT_DEFAULT: Final = 100  # rows
_CURSOR_LENGTH_MAX: Final = 2_048  # characters: an id of 512 bytes, escaped
_VERSION_END: Final = 2**63


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """A page of the audit, newest first; None and an empty prefix: whatever it is."""

    limit: int = LIMIT_DEFAULT
    id: str | None = None
    prefix: str = ""  #: of ids
    caller: str | None = None
    since_us: int | None = None  #: microseconds since 1970; from then on
    until_us: int | None = None  #: before then
    after: tuple[int, str] | None = None  #: the version and id that ended the last page
    time_limit_s: float = 10.0  #: for PostgreSQL


class AuditRow(NamedTuple):
    """Who changed what. The id is empty for a TRUNCATE, which means all items."""

    version: int
    id: str
    at_us: int  #: microseconds since 1970
    what: str
    caller: str
    request_id: str | None
    address: str | None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some rows; ``next`` is the cursor of the page after it, None at the end."""

    rows: Sequence[AuditRow] = field(default_factory=list)
    next: str | None = None


def understand(
    *,
    limit: int = LIMIT_DEFAULT,
    item_id: str | None = None,
    prefix: str = "",
    caller: str | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
    cursor: str | None = None,
    time_limit_s: float = 10.0,
) -> AuditQuery:
    """What is asked of PostgreSQL: a row more, which proves that there is a next page.

    Raises InvalidParameter, InvalidId, InvalidCursor.
    """
    check_limit(limit)
    check_prefix(prefix)
    if item_id is not None:
        check_id(item_id)
    if caller is not None and not (len(caller) <= LEGIBLE_LENGTH_MAX and caller.isprintable()):
        raise InvalidParameter("There is no such caller: a name is printable, and not that long.")
    after = None if cursor is None else _decoded(cursor)
    return AuditQuery(limit + 1, item_id, prefix, caller, since_us, until_us, after, time_limit_s)


def page(query: AuditQuery, rows: Sequence[AuditRow]) -> AuditPage:
    """The page of these rows."""
    if len(rows) < query.limit:
        return AuditPage(rows)
    last = rows[query.limit - 2]
    return AuditPage(rows[: query.limit - 1], packed((last.version, last.id)))


def _decoded(cursor: str) -> tuple[int, str]:
    try:
        version, item_id = unpacked(cursor, _CURSOR_LENGTH_MAX)
        if type(version) is int and 0 <= version < _VERSION_END and type(item_id) is str:
            return version, check_id(item_id) if item_id else ""
    except (ValueError, TypeError, InvalidId):
        pass
    raise InvalidCursor(
        "The cursor is not one the audit gave. Use 'next' of a page as it is, with the parameters "
        "of that page, or leave it out to begin."
    )
