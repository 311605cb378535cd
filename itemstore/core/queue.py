"""The write queue: what PostgreSQL has yet to be told, at most one change per id.

    accepted ──put──► queued ──take──► in flight ──settle──► committed (forgotten here)
                        ▲                  │  ├─────park───► parked (quarantined, kept)
                        │                  │  └────fence───► refused: never acknowledged
                        └── a newer change of the same id joins or waits its turn

Invariants, by the numbers of docs/architecture.md:

  3. Nothing that was acknowledged leaves but by ``settle`` or ``park``.
  5. At most one batch is in flight; one change per id in it, sorted by id. Settling a batch leaves
     a newer change of the same id queued.
  9. Queued changes are ordered by when their id first became dirty, never by the last update, so
     that an item written without pause is written out all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import Final

from itemstore.core.item import HEADER_BYTES, created_us_of, version_of

CHANGE_OVERHEAD_BYTES: Final = 400  # the Change, its place in the queue and its part of a batch
RECORD_OVERHEAD_BYTES: Final = 60  # beside its text
#: Of writes of one item that were replaced before they were written: what one statement can take.
RECORDS_MAX: Final = 10_000

#: Of most changes; never added to.
_NONE: Final[list[bytes]] = []

#: Called once: with None when the change or a newer one of its item is committed, else why not.
Settled = Callable[[Exception | None], None]


class Change:
    """The newest accepted state of one item on its way to PostgreSQL."""

    __slots__ = (
        "deleted",
        "dirty_since",
        "earlier",
        "entry",
        "first_version",
        "id",
        "is_acked",
        "record",
        "settled",
        "size",
        "version",
    )

    def __init__(
        self,
        item_id: str,
        version: int,
        entry: bytes,
        *,
        deleted: bool,
        now_s: float,
        is_acked: bool = True,
        record: bytes | None = None,
    ) -> None:
        self.id = item_id
        self.version = version
        #: The packed entry; of a deleted item the one with its last created_at and no data.
        self.entry = entry
        self.deleted = deleted
        #: Whether an OK was given before the commit, for this or an older change it replaced.
        self.is_acked = is_acked
        #: The version that first made this id dirty, and when: what the order goes by.
        self.first_version = version
        self.dirty_since = now_s
        self.settled: tuple[Settled, ...] = ()
        #: What is kept of this write (core/record.py), and of those it replaced in the queue.
        self.record: bytes | None = None
        self.earlier: list[bytes] = _NONE
        #: Bytes of memory it pins.
        self.size = size_of(item_id, entry)
        if record is not None:
            self.keep(record)

    def keep(self, record: bytes) -> None:
        """Takes the record of this write along, before the change joins the queue."""
        self.record = record
        self.size += len(record) + RECORD_OVERHEAD_BYTES

    def keep_earlier(self, records: list[bytes]) -> None:
        """Takes the records of older writes of the item along; the list is its own from now on."""
        self.earlier = records
        self.size += sum(map(len, records)) + RECORD_OVERHEAD_BYTES * len(records)

    @property
    def records(self) -> list[bytes]:
        """What goes into PostgreSQL with it, oldest first."""
        return self.earlier if self.record is None else [*self.earlier, self.record]

    @property
    def data(self) -> bytes | None:
        """The JSON text, or None for a delete."""
        return None if self.deleted else self.entry[HEADER_BYTES:]

    @property
    def created_us(self) -> int:
        return created_us_of(self.entry)

    def __repr__(self) -> str:
        kind = "delete" if self.deleted else "upsert"
        return f"Change({kind} {self.id!r} version={self.version})"


def trace(item_id: str, version: int, record: bytes) -> Change:
    """What is left of a write that a newer one replaced: its record."""
    return Change(item_id, version, b"", deleted=False, now_s=0.0, record=record)


def size_of(item_id: str, entry: bytes) -> int:
    """Bytes of memory that a change with this entry pins, without records."""
    return CHANGE_OVERHEAD_BYTES + len(item_id) + len(entry)


def newer(loaded: bytes | None, change: Change) -> bytes | None:
    """Of what PostgreSQL has in its table and a change that is not there (yet)."""
    if loaded is not None and version_of(loaded) >= change.version:
        return loaded
    return None if change.deleted else change.entry


class WriteQueue:
    """The dirty items, coalesced an id, in the order in which they became dirty."""

    def __init__(self) -> None:
        self._queued: dict[str, Change] = {}
        self._in_flight: dict[str, Change] = {}
        self._parked: dict[str, Change] = {}
        self._bytes = 0
        self._barriers: deque[tuple[int, Settled]] = deque()
        #: Changes accepted, and those of them replaced by a newer one before they were written.
        self.accepted = 0
        self.coalesced = 0
        #: Changes that were not written because the lease was lost; none was acknowledged.
        self.fenced = 0

    def __len__(self) -> int:
        """Dirty items: queued and in flight."""
        return len(self._queued) + len(self._in_flight)

    @property
    def bytes_used(self) -> int:
        """Bytes of memory pinned by what is queued and in flight."""
        return self._bytes

    @property
    def has_queued(self) -> bool:
        return bool(self._queued)

    @property
    def parked(self) -> dict[str, Change]:
        """The quarantined changes by id; not to be changed from outside."""
        return self._parked

    def get(self, item_id: str) -> Change | None:
        """The newest change of this id that is not committed, or None."""
        return (
            self._queued.get(item_id) or self._in_flight.get(item_id) or self._parked.get(item_id)
        )

    def promised(self, item_id: str) -> Change | None:
        """The newest change of this id that was acknowledged and is on its way to PostgreSQL."""
        for changes in (self._queued, self._in_flight):
            change = changes.get(item_id)
            if change is not None and change.is_acked:
                return change
        return None

    def bearing(self, item_id: str, version: int) -> Change | None:
        """The change with which this version, or a newer one, has yet to get to PostgreSQL."""
        for changes in (self._in_flight, self._queued, self._parked):
            change = changes.get(item_id)
            if change is not None and change.version >= version:
                return change
        return None

    def has_room_for_record(self, item_id: str) -> bool:
        """Whether the item's next write may leave a record before the last ones are written."""
        queued = self._queued.get(item_id)
        return queued is None or len(queued.earlier) < RECORDS_MAX

    def dirty_ids(self) -> frozenset[str]:
        return frozenset(self._queued.keys() | self._in_flight.keys())

    def dirty(self) -> list[Change]:
        """What is queued and in flight, in no order."""
        return [*self._in_flight.values(), *self._queued.values()]

    def __contains__(self, item_id: object) -> bool:
        """Whether the id's newest state is not in PostgreSQL."""
        return item_id in self._queued or item_id in self._in_flight or item_id in self._parked

    def pending_ids(self) -> Container[str]:
        """The ids whose newest state is not in PostgreSQL, now and as they change."""
        return self if self._queued or self._in_flight or self._parked else ()

    def dirty_since(self) -> float | None:
        """When the oldest dirty item became so, by the caller's clock; None if all is clean."""
        oldest = min(self._in_flight.values(), key=_first_version, default=None)
        if oldest is None and self._queued:
            oldest = next(iter(self._queued.values()))
        return oldest.dirty_since if oldest else None

    def put(self, change: Change) -> None:
        """Joins a queued change of the same id, keeping its place; else goes to the end."""
        self.accepted += 1
        old = self._queued.get(change.id)
        if old is not None:
            self.coalesced += 1
            self._bytes -= old.size
            change.first_version = old.first_version
            change.dirty_since = old.dirty_since
            change.settled = old.settled + change.settled
            change.is_acked = change.is_acked or old.is_acked
            if old.record is not None or old.earlier:
                _hand_on(old, change)
        self._queued[change.id] = change
        self._bytes += change.size

    def take(self, items_max: int, bytes_max: int) -> list[Change]:
        """The next batch, oldest dirty first up to the limits (at least one), sorted by id.

        Sorted, because two statements that lock the same rows in different orders deadlock.
        """
        assert not self._in_flight, "one batch at a time"  # noqa: S101 - our own error, not a caller's
        size = 0
        for change in self._queued.values():
            size += change.size
            if self._in_flight and (len(self._in_flight) >= items_max or size > bytes_max):
                break
            self._in_flight[change.id] = change
        for item_id in self._in_flight:
            del self._queued[item_id]
        return sorted(self._in_flight.values(), key=_id)

    def settle(self, changes: Iterable[Change], doubt: Exception | None = None) -> None:
        """These are committed. A parked older change of the same id is thereby superseded.

        ``doubt``: they were written under a lease that was lost, so that no commit is confirmed.
        """
        for change in changes:
            self._land(change)
            parked = self._parked.get(change.id)
            if parked is not None and parked.version <= change.version:
                del self._parked[change.id]
            _tell(change, doubt)
        self._pass_barriers()

    def park(self, change: Change, reason: Exception) -> None:
        """PostgreSQL refused this one: it is kept and served, and its writers are told."""
        self._land(change)
        self._parked[change.id] = change
        _tell(change, reason)
        self._pass_barriers()

    def fence(self, changes: Iterable[Change], reason: Exception) -> None:
        """These were not written, for the lease is another's; nobody has been told OK."""
        for change in changes:
            assert not change.is_acked, "nothing acknowledged is dropped"  # noqa: S101 - our own error
            self._land(change)
            self.fenced += 1
            _tell(change, reason)
        self._pass_barriers()

    def restore_parked(self, changes: Iterable[Change]) -> None:
        """What quarantine holds, in place of what was known of it."""
        self._parked = {change.id: change for change in changes}

    def adopt_parked(self, change: Change) -> None:
        """Quarantine holds this one as well."""
        self._parked[change.id] = change

    def unpark(self, item_id: str) -> Change | None:
        """Forgets what is parked of this id; returns it."""
        return self._parked.pop(item_id, None)

    def when_settled(self, version: int, settled: Settled) -> None:
        """Calls back when every change accepted up to this version is committed or parked.

        Versions must not decrease from call to call.
        """
        if self.settled_version(version) >= version:
            settled(None)
        else:
            self._barriers.append((version, settled))

    def settled_version(self, newest: int) -> int:
        """Everything up to this version is committed or parked; ``newest`` if nothing is dirty."""
        firsts = [change.first_version for change in self._in_flight.values()]
        if self._queued:
            firsts.append(next(iter(self._queued.values())).first_version)
        return min(firsts) - 1 if firsts else newest

    def _land(self, change: Change) -> None:
        del self._in_flight[change.id]
        self._bytes -= change.size

    def _pass_barriers(self) -> None:
        while self._barriers:
            version, settled = self._barriers[0]
            if self.settled_version(version) < version:
                return
            self._barriers.popleft()
            settled(None)


def _hand_on(old: Change, change: Change) -> None:
    """The records, in time that does not grow with how many they are: the old one is done with."""
    records = old.earlier or []
    if old.record is not None:
        records.append(old.record)
    change.earlier = records
    change.size += old.size - size_of(old.id, old.entry)


def _tell(change: Change, outcome: Exception | None) -> None:
    waiting, change.settled = change.settled, ()
    for settled in waiting:
        settled(outcome)


def _id(change: Change) -> str:
    return change.id


def _first_version(change: Change) -> int:
    return change.first_version
