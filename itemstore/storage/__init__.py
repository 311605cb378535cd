"""Talks to disks and servers. Nothing here decides what an item becomes; every SQL statement
of the store stands in ``statements.py``.

``Storage`` is the seam between the engine and PostgreSQL. It has two bodies: ``postgres.Postgres``
and the scripted one of the simulation (``tests/simulation``); one suite of tests checks the
promises below on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from itemstore.core.audit import AuditQuery, AuditRow
from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.index import Index
from itemstore.core.listing import ListQuery as ListQuery
from itemstore.core.queue import Change
from itemstore.core.record import Record
from itemstore.core.usage import Usage

LOAD_CONNECTIONS: Final = 3  # for ``load`` alone; more calls at once wait for each other


class StorageError(Exception):
    """PostgreSQL did not do what was asked."""

    #: One word for logs and metrics.
    kind = "unknown"


class StorageAway(StorageError):
    """Not reachable, restarting, out of connections, in deadlock …: the same again may succeed.

    It is not known whether the statement took effect.
    """

    kind = "away"


class StorageDown(StorageAway):
    """The server itself says that it lets nobody in: it is starting or stopping, or not there."""

    kind = "down"


class StorageSlow(StorageAway):
    """The statement ran into a time limit or a lock: less of it may succeed."""

    kind = "slow"


class StorageTimeLimit(StorageSlow):
    """The statement itself took longer than it was allowed to."""


class StorageRefused(StorageError):
    """The data was refused; without the bad rows the rest would pass."""

    kind = "refused"


class StorageBroken(StorageError):
    """Neither time nor other data will help: a missing table, a missing right, a wrong password."""

    kind = "broken"


def as_failure(error: Exception) -> StorageError:
    """An error nobody foresaw must not end a task that nothing replaces."""
    return error if isinstance(error, StorageError) else StorageBroken(f"unexpected: {error!r}")


@dataclass(frozen=True, slots=True)
class Parked:
    """A change in quarantine: accepted, but PostgreSQL refused it."""

    change: Change
    reason: str
    at_us: int  #: when it was put there, in microseconds since 1970


@dataclass(frozen=True, slots=True)
class Found:
    """What a store's database holds when it is opened."""

    store_id: UUID
    newest_version: int  #: no version up to this one may be given out again
    purged_before: int  #: deletes older than this version may be forgotten
    parked: tuple[Parked, ...]
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
class Claim:
    """What a batch or a heartbeat says of who sends it; recorded if the lease is still its own."""

    holder: str
    epoch: int  #: 0 for an instance that does not hold the lease
    lease_s: float  #: how long the lease lasts from now on
    clock: int  #: no version beyond this one has been given out
    settled: int  #: everything accepted up to this version is committed
    high_water: int  #: grows with every batch


@dataclass(frozen=True, slots=True)
class Standing:
    """What PostgreSQL says of a claim; ``epoch`` and ``high_water`` as they were before it."""

    is_held: bool
    is_wanted: bool  #: another instance asks for the lease
    epoch: int
    high_water: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease as it stands; ``is_free`` if nobody has it or its time is over."""

    epoch: int
    holder: str | None
    process: str | None
    is_free: bool
    settled: int
    now_us: int  #: PostgreSQL's clock


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease is ours, under this epoch; versions begin beyond ``clock``."""

    epoch: int
    clock: int
    high_water: int


@dataclass(frozen=True, slots=True)
class Server:
    """What a PostgreSQL server says of itself."""

    version: str
    fsync: str  #: on or off, as the two below
    full_page_writes: str
    synchronous_commit: str
    max_connections: int
    connections: int  #: to all its databases
    in_recovery: bool  #: it is a read-only standby
    database_bytes: int
    now_us: int  #: its clock


#: What a list can be sorted by. The id breaks ties, so that every order is total.
LIST_ORDERS = ("created", "updated", "id")


class Storage(Protocol):
    """Each call raises StorageError; cancelling one never breaks the next."""

    async def open(self, *, audit_s: float | None = None) -> Found:
        """Connects and makes the tables where they are missing. To be called once, first.

        ``audit_s`` is how long the audit is kept; None: changes by other hands are not audited.
        """

    async def close(self) -> None:
        """Ends all connections."""

    async def write(self, changes: Sequence[Change], claim: Claim) -> Standing:
        """Commits all of them or none, and their records with them.

        Repeating it changes nothing: a version only grows, and of a record there is one.

        Unless the claim holds, only those that were acknowledged are written, and they are noted as
        foreign changes for the holder. Never called twice at once.
        """

    async def renew(self, claim: Claim) -> Standing:
        """A heartbeat: the lease lasts on if the claim holds."""

    async def lease(self) -> Lease:
        """Who holds the lease."""

    async def acquire(self, claim: Claim, process: str, gone: str | None) -> Grant | None:
        """The lease under a new epoch, if it is to be had, or if ``gone`` is who holds it.

        ``claim.epoch`` is the last epoch that was ours: the lease is ours again if it is older.
        """

    async def want(self, holder: str, *, wanted: bool = True) -> None:
        """Asks the holder for the lease; to be repeated while it is wanted."""

    async def let_go(self, claim: Claim) -> None:
        """Gives the lease back if it is held under this claim."""

    async def changes(self, after_version: int) -> tuple[list[State], int | None]:
        """Some of what changed after the version, oldest first, and after which to go on.

        None at the end. An item that was deleted comes without an entry.
        """

    async def parked(self) -> tuple[Parked, ...]:
        """What is in quarantine."""

    async def quarantine(self, change: Change, reason: str) -> None:
        """Keeps a change that ``write`` refused, in place of an older one of the same id.

        Its records are kept as ``write`` would have done.
        """

    async def release(self, ids: Sequence[str]) -> None:
        """Newer changes of these ids are committed: forgets what was quarantined of them."""

    async def discard(self, item_id: str) -> None:
        """Forgets what was quarantined of the item, for good. May be called at any time."""

    async def purge(self, before_version: int) -> int:
        """Forgets some of the tombstones older than this; returns how many, 0 when none is left."""

    async def purge_records(self, before_version: int) -> int:
        """Forgets some requests with a key older than this, and audit rows as old as they may get.

        Returns how many, 0 when none is left.
        """

    async def repetitions(self, scopes: Sequence[tuple[str, str]], since: int) -> list[Record]:
        """The records of requests under these keys, each with its caller, from a version on."""

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Rows of the audit, newest first. Raises StorageTimeLimit."""

    async def load(self, ids: Sequence[str]) -> tuple[list[Row], int]:
        """Some of those of the ids that exist, one at least, and how many exist.

        Those are all unless they are so large that they would take too much memory at once.
        """

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        """Some items, and the position after them; None at the end.

        Following the positions from 0 to the end brings every item that exists at the end, unless
        this store changed it meanwhile. An item may come twice; then the newer state comes last.
        """

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        """A page, and the number of items that match if ``query.count`` asks for it.

        Both are of one moment. Items whose data PostgreSQL cannot read as jsonb, which only other
        hands can have stored, match no filter on data. Raises StorageTimeLimit.
        """

    async def usage(self, prefix: str, changed: Callable[[], Sequence[str]]) -> Usage:
        """How many items there are under the prefix, and how many bytes their data take.

        All of one moment, and without the ids that ``changed`` names, which is called after it. A
        repetition calls it once more.
        """

    async def unserved(self, query: ListQuery) -> tuple[Sequence[Index], int]:
        """The indexes that would serve the query and are not there.

        And about how many items have to be read one by one without them.
        """

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        """A block of numbers nobody else gets, and which of its ids exist as items already."""

    async def foreign_changes(self) -> list[ForeignChange]:
        """The oldest changes by other hands that were not forgotten yet."""

    async def foreign_changes_since(self, since_us: int, after_seq: int) -> list[ForeignChange]:
        """For a standby: those not forgotten, or forgotten since then; a page, in order of seq."""

    async def states(self, ids: Sequence[str]) -> list[State]:
        """The newest state of each of the ids."""

    async def forget_foreign_changes(self, seqs: Sequence[int], epoch: int) -> None:
        """These are taken over, if the lease has still this epoch.

        A standby may ask for them for another hour.
        """

    async def await_foreign_changes(self, time_limit_s: float) -> None:
        """Returns when there may be new ones, or after the time limit."""
