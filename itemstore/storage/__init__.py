"""Talks to disks and servers. Nothing here decides what an item becomes; every SQL statement
of the store stands in ``statements.py``.

``Storage`` is the seam between the engine and PostgreSQL. It has two bodies: ``postgres.Postgres``
and the scripted one of the simulation (``tests/simulation``); one suite of tests checks the
promises below on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.queue import Change


class StorageError(Exception):
    """PostgreSQL did not do what was asked."""

    #: One word for logs and metrics.
    kind = "unknown"


class StorageAway(StorageError):
    """Not reachable, restarting, out of connections, in deadlock …: the same again may succeed.

    It is not known whether the statement took effect.
    """

    kind = "away"


class StorageSlow(StorageAway):
    """The statement ran into a time limit or a lock: less of it may succeed."""

    kind = "slow"


class StorageRefused(StorageError):
    """The data was refused; without the bad rows the rest would pass."""

    kind = "refused"


class StorageBroken(StorageError):
    """Neither time nor other data will help: a missing table, a missing right, a wrong password."""

    kind = "broken"


@dataclass(frozen=True, slots=True)
class Found:
    """What a store's database holds when it is opened."""

    newest_version: int  #: no version up to this one may be given out again
    parked: tuple[Change, ...]  #: what is in quarantine
    items_estimate: int
    bytes_estimate: int  #: of the items' data


@dataclass(frozen=True, slots=True)
class ForeignChange:
    """A row that another hand than the store's has changed."""

    seq: int
    id: str  #: empty for a TRUNCATE: every item older than the version is gone
    version: int


@dataclass(frozen=True, slots=True)
class State:
    """What PostgreSQL holds of an id: the packed entry, or None and the version of its deletion."""

    id: str
    entry: bytes | None
    version: int  #: 0 if nothing is known of it


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page of a list. ``order`` is one of ``LIST_ORDERS``; ``after`` the last page's end."""

    limit: int
    bytes_max: int  #: the page ends with the item that passes this
    order: str = "created"
    descending: bool = False
    prefix: str = ""
    after: tuple[int, str] | None = None  #: sort key (µs since 1970, version, or 0) and id
    count: bool = False


#: What a list can be sorted by. The id breaks ties, so that every order is total.
LIST_ORDERS = ("created", "updated", "id")


class Storage(Protocol):
    """Each call raises StorageError; cancelling one never breaks the next."""

    async def open(self) -> Found:
        """Connects and makes the tables where they are missing. To be called once, first."""

    async def close(self) -> None:
        """Ends all connections."""

    async def write(self, changes: Sequence[Change]) -> None:
        """Commits all of them or none. Repeating it changes nothing: a version only grows.

        Never called twice at once.
        """

    async def quarantine(self, change: Change, reason: str) -> None:
        """Keeps a change that ``write`` refused, in place of an older one of the same id."""

    async def release(self, ids: Sequence[str]) -> None:
        """Newer changes of these ids are committed: forgets what was quarantined of them."""

    async def purge(self, before_version: int) -> int:
        """Forgets some of the tombstones older than this; returns how many, 0 when none is left."""

    async def load(self, ids: Sequence[str]) -> list[Row]:
        """Those of the ids that exist."""

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        """Some items, and the position after them; None at the end.

        Following the positions from 0 to the end brings every item that exists at the end, unless
        this store changed it meanwhile. An item may come twice; then the newer state comes last.
        """

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        """A page, and the number of items that match when ``query.count``."""

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        """A block of numbers nobody else gets, and which of its ids exist as items already."""

    async def foreign_changes(self) -> list[ForeignChange]:
        """The oldest changes by other hands that were not forgotten yet."""

    async def states(self, ids: Sequence[str]) -> list[State]:
        """The newest state of each of the ids."""

    async def forget_foreign_changes(self, seqs: Sequence[int]) -> None:
        """These are taken over."""

    async def await_foreign_changes(self, time_limit_s: float) -> None:
        """Returns when there may be new ones, or after the time limit."""
