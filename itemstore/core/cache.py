"""The cache: id → entry, plain or packed. What it answers is always the newest accepted state.

What walks through all of it does so in parts, for a million entries take a tenth of a second.

Invariants, by the numbers of docs/architecture.md:

  6. A load installs only where it finds the place as it was when the load began: never over a
     write, never over a delete. Every change and every commit of a change marks its id in each
     load under way (``touch``), and an installation leaves marked ids alone. What is pinned is
     never evicted: PostgreSQL does not have it yet, or somebody waits for it.
  7. ``absent`` holds only ids that PostgreSQL did not have when asked and that nobody has
     written since. The first eviction ends ``hydrated``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from itertools import islice
from typing import Final

from itemstore.core.eviction import Eviction
from itemstore.core.item import version_of
from itemstore.core.packing import dictionary_of
from itemstore.core.shards import Shard, Shards
from itemstore.core.table import Slots, Table

ABSENT_MAX: Final = 10_000  # ids; at 512 bytes each, 6 MB at most
ABSENT_SHARE: Final = 4_096  # and no more than one in so many bytes of the bound
NOTE_BYTES: Final = 160  # of an id noted in a dict or a set
NEARLY_FULL: Final = 7 / 8  # of the bound: from here on uses are counted
LOOKS: Final = 500  # at items in one step of evicting: a millisecond at most
LOOKS_OF_PUT: Final = 50  # many times what one item needs
WALK_ITEMS: Final = 500  # looked at in one part of a walk

Row = tuple[str, bytes]

_NEVER: Final = 2**63  # beyond all versions


class Load:
    """A read of PostgreSQL that is under way: remembers what changed since it began."""

    __slots__ = ("floor", "touched")

    def __init__(self) -> None:
        self.touched: set[str] = set()
        #: Items older than this were truncated since.
        self.floor = 0


class Cache:
    """Not aware of who asks or why. Counts its bytes, and is unbounded until ``bound``.

    ``packs``: somebody packs what is put into it, and asks for it (``unpacked``). Then it takes as
    little memory as it can; else as little time.
    """

    def __init__(self, *, packs: bool = False) -> None:
        self._table: Shards | Table = Table() if packs else Shards()
        #: The entry as it is kept; ``core.item`` reads it, up to when something is awaited.
        self.get: Callable[[str], bytes | None] = self._table.get
        #: Whether it holds every item, so that a miss needs no query.
        self.hydrated = False
        #: Whether it is to hold every item: a preload is under way, or has been.
        self.fills = False
        #: Whether it has come to its bound: it holds what is used, and a preload is of no use.
        self.overflows = False
        self.evictions = 0  #: items
        self._eviction: Eviction | None = None
        self.bytes_max = self._room = sys.maxsize
        self._excess = 0
        self._absent_max = ABSENT_MAX
        self._absent: dict[str, None] = {}
        self._loads: set[Load] = set()
        self.packs = packs
        self._unpacked: dict[str, None] = {}
        self.packed = 0  #: entries

    def begin_packing(self) -> None:
        """From now on; nothing is cached yet."""
        assert not len(self), "what is there is kept otherwise"  # noqa: S101 - our own error
        self._table = Table()
        self.get = self._table.get
        self.packs = True

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, item_id: str) -> bool:
        return self._table.get(item_id) is not None

    @property
    def bytes_used(self) -> int:
        """Bytes of memory it takes, estimated."""
        return self.item_bytes + self._beside

    @property
    def item_bytes(self) -> int:
        """The items' part of it."""
        return self._table.bytes_used

    @property
    def _beside(self) -> int:
        notes = len(self._unpacked) + len(self._absent)
        notes += sum(len(load.touched) for load in self._loads)
        return NOTE_BYTES * notes + (self._eviction.bytes_used if self._eviction else 0)

    # --- the bound

    def bound(
        self, bytes_max: int, pinned: Callable[[str], bool], on_over: Callable[[], None]
    ) -> None:
        """From now on it is to take no more memory than that.

        ``pinned`` tells of an id whether it must stay. ``on_over`` is called when it is nearly
        full, and when a step has not evicted enough: ``evict`` is to be called for the rest.
        """
        self.bytes_max, self._pinned, self._on_over = bytes_max, pinned, on_over
        self._absent_max = min(ABSENT_MAX, bytes_max // ABSENT_SHARE)
        self._room = int(NEARLY_FULL * bytes_max)

    def exceed(self, excess: int) -> None:
        """It takes so many bytes more than it counts, and is to make up for them."""
        self._excess = excess
        self._room = self.bytes_max - excess - self._beside

    def evict(self, looks: int = LOOKS) -> bool:
        """Evicts what is used least, in a bounded step; whether it still holds too much."""
        if self.item_bytes <= self._room:
            return False
        if self._eviction is None:
            self._eviction = Eviction(self._table, self.bytes_max)
            self.get = self._eviction.get
            self._on_over()
        self.exceed(self._excess)
        for _ in range(looks):
            if self.item_bytes <= self._room:
                return False
            item_id = self._eviction.next(self._pinned)
            if item_id is not None:
                self.evict_one(item_id)
                self.exceed(self._excess)
        return self.item_bytes > self._room

    def evict_one(self, item_id: str) -> None:
        """Evicts this one, if it is cached; it must not be pinned."""
        if self._drop(item_id):
            self.evictions += 1
            self.overflows, self.hydrated, self.fills = True, False, False

    def _make_room(self, looks: int) -> None:
        if self._table.bytes_used > self._room and self.evict(looks):
            self._on_over()

    def _drop(self, item_id: str) -> bool:
        old = self._table.pop(item_id)
        if old is None:
            return False
        if dictionary_of(old):
            self.packed -= 1
        self._unpacked.pop(item_id, None)
        return True

    # --- items

    def items(self) -> Iterator[Row]:
        """All of them, in no order."""
        bare = self._table.bare
        for shard in self._table.shards():
            yield from ((item_id, bare(record)) for item_id, record in shard)

    def is_absent(self, item_id: str) -> bool:
        """Whether it is certain, without a query, that PostgreSQL has no such item.

        The caller knows already that it is neither cached nor being deleted.
        """
        return self.hydrated or item_id in self._absent

    def put(self, item_id: str, entry: bytes) -> None:
        """Keeps a plain entry."""
        self._make_room(LOOKS_OF_PUT)
        old = self._table.put(item_id, entry)
        if old is None:
            if self._eviction is not None:
                self._eviction.arrived(item_id)
        elif dictionary_of(old):
            self.packed -= 1
        if self.packs:
            self._unpacked[item_id] = None
        self._absent.pop(item_id, None)
        self.touch((item_id,))

    def refresh(self, item_id: str, entry: bytes) -> None:
        """PostgreSQL has a newer state: kept if the item is cached, or all items are to be."""
        if self.fills or item_id in self:
            self.put(item_id, entry)
        else:
            self._absent.pop(item_id, None)
            self.touch((item_id,))

    def clear(self) -> list[Slots] | list[Shard]:
        """Forgets everything; loads under way bring nothing any more.

        Returns what it held: to free all at once would take a tenth of a second a million.
        """
        old = self._table.clear()
        self._absent.clear()
        self._unpacked = {}
        self.packed = 0
        self.hydrated = self.fills = self.overflows = False
        self._eviction, self.get = None, self._table.get
        self._room = int(NEARLY_FULL * self.bytes_max)
        for load in self._loads:
            load.floor = _NEVER
        return old

    def remove(self, item_id: str) -> None:
        self._drop(item_id)
        self.touch((item_id,))

    def touch(self, item_ids: Iterable[str]) -> None:
        """These ids changed, here or in PostgreSQL: loads under way must not install them."""
        if self._loads:
            item_ids = tuple(item_ids)
            for load in self._loads:
                load.touched.update(item_ids)

    def truncate(self, version: int, keep: Container[str]) -> Iterator[None]:
        """Every item older than the version is gone, but for those to ``keep``.

        A walk: it is done when the iterator ends, and others may have their turn at each step.
        Loads are told at once.
        """
        for load in self._loads:
            load.floor = max(load.floor, version)
        return self._walk_truncated(version, keep)

    def _walk_truncated(self, version: int, keep: Container[str]) -> Iterator[None]:
        seen = 0
        for shard in self._table.shards():
            for item_id, _ in shard:
                record = self._table.get(item_id)
                if record and version_of(record) < version and item_id not in keep:
                    self.remove(item_id)
                seen += 1
                if seen % WALK_ITEMS == 0:
                    yield

    def begin_load(self) -> Load:
        """To be called before the query is sent."""
        load = Load()
        self._loads.add(load)
        return load

    def end_load(self, load: Load) -> None:
        self._loads.discard(load)

    def install(self, load: Load, rows: Iterable[Row], pending: Container[str]) -> int:
        """Keeps the rows a load brought, plain or packed; returns how many were new.

        Left alone are ids that are cached in the same or a newer version, that were touched since
        the load began, and those ``pending``: with a change still on its way to PostgreSQL, which
        may be a delete accepted before the load began.
        """
        table, touched, before = self._table, load.touched, len(self)
        if load.floor:
            rows = [row for row in rows if version_of(row[1]) >= load.floor]
        for item_id, entry in rows:
            if item_id in touched or item_id in pending:
                continue
            old = table.setdefault(item_id, entry)
            if old is None:
                if self._eviction is not None:
                    self._eviction.arrived(item_id)
            else:
                if version_of(old) >= version_of(entry):
                    continue
                table.put(item_id, entry)  # another instance was here
                if dictionary_of(old):
                    self.packed -= 1
            if dictionary_of(entry):
                self.packed += 1
            elif self.packs:
                self._unpacked[item_id] = None
        new = len(self) - before
        self._make_room(LOOKS)
        return new

    def unpacked(self, limit: int, pending: Container[str]) -> list[Row]:
        """Some of what was kept plain since it was last asked; at most so many are looked at.

        Those ``pending`` come later: the write queue has them too, so that packing saves nothing.
        """
        some = list(islice(self._unpacked, limit))
        for item_id in some:
            del self._unpacked[item_id]
        rows = []
        for item_id in some:
            record = self._table.get(item_id)
            if record is None:
                continue
            if item_id in pending:
                self._unpacked[item_id] = None
            else:
                rows.append((item_id, self._table.bare(record)))
        return rows

    def leave(self, rows: Iterable[Row]) -> None:
        """``unpacked`` is to tell of these again."""
        for item_id, _ in rows:
            if item_id in self:
                self._unpacked[item_id] = None

    @property
    def unpacked_items(self) -> int:
        """How many ``unpacked`` has yet to tell of."""
        return len(self._unpacked)

    def pack(self, rows: Iterable[Row], packed: Iterable[bytes]) -> None:
        """Keeps the packed form of these entries, where they are kept still."""
        for (item_id, entry), form in zip(rows, packed, strict=True):
            kept = self._table.get(item_id)
            if kept is None or version_of(kept) != version_of(entry) or form is entry:
                continue
            if dictionary_of(kept) is None:
                self._table.put(item_id, form)
                self.packed += 1

    def note_absent(self, load: Load, item_ids: Collection[str]) -> None:
        """PostgreSQL does not have these; forgets the oldest such notes beyond the bound.

        Another load may have read one of them before another hand deleted it: it must not bring
        back what a reader was told is gone.
        """
        for item_id in item_ids:
            if item_id not in load.touched and item_id not in self:
                self._absent[item_id] = None
        self.touch(item_ids)
        while len(self._absent) > self._absent_max:
            del self._absent[next(iter(self._absent))]

    def forget_absent(self) -> None:
        """Others may create items from now on."""
        self._absent.clear()

    def set_hydrated(self) -> None:
        self.hydrated = True
        self._absent.clear()
