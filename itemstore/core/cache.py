"""The cache: id → packed entry. What it answers is always the newest accepted state.

Invariants, by the numbers of docs/architecture.md:

  6. A load installs only where it finds the place as it was when the load began: never over a
     write, never over a delete. Every change and every commit of a change marks its id in each
     load under way (``touch``), and an installation leaves marked ids alone.
  7. ``absent`` holds only ids that PostgreSQL did not have when asked and that nobody has
     written since.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from typing import Final

from itemstore.core.item import version_of

ABSENT_MAX: Final = 10_000  # ids; at 512 bytes each, 5 MB at most
ENTRY_OVERHEAD_BYTES: Final = (
    160  # dict slot, key object and bytes object, measured on CPython 3.11
)

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
    """Not aware of who asks or why; bounded by nothing yet, but counts its bytes."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        #: Whether it holds every item, so that a miss needs no query.
        self.hydrated = False
        #: Whether it is to hold every item: a preload is under way, or has been.
        self.fills = False
        self._entry_bytes = 0
        self._absent: dict[str, None] = {}
        self._loads: set[Load] = set()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes_used(self) -> int:
        """Bytes of memory the entries take, estimated."""
        return self._entry_bytes + len(self.entries) * ENTRY_OVERHEAD_BYTES

    def get(self, item_id: str) -> bytes | None:
        return self.entries.get(item_id)

    def is_absent(self, item_id: str) -> bool:
        """Whether it is certain, without a query, that PostgreSQL has no such item.

        The caller knows already that it is neither cached nor being deleted.
        """
        return self.hydrated or item_id in self._absent

    def put(self, item_id: str, entry: bytes) -> None:
        old = self.entries.get(item_id)
        self.entries[item_id] = entry
        self._entry_bytes += len(entry) - (len(old) if old is not None else -len(item_id))
        self._absent.pop(item_id, None)
        self.touch((item_id,))

    def refresh(self, item_id: str, entry: bytes) -> None:
        """PostgreSQL has a newer state: kept if the item is cached, or all items are to be."""
        if self.fills or item_id in self.entries:
            self.put(item_id, entry)
        else:
            self._absent.pop(item_id, None)
            self.touch((item_id,))

    def clear(self) -> None:
        """Forgets everything; loads under way bring nothing any more."""
        self.entries = {}
        self._entry_bytes = 0
        self._absent.clear()
        self.hydrated = self.fills = False
        for load in self._loads:
            load.floor = _NEVER

    def remove(self, item_id: str) -> None:
        old = self.entries.pop(item_id, None)
        if old is not None:
            self._entry_bytes -= len(old) + len(item_id)
        self.touch((item_id,))

    def touch(self, item_ids: Iterable[str]) -> None:
        """These ids changed, here or in PostgreSQL: loads under way must not install them."""
        if self._loads:
            item_ids = tuple(item_ids)
            for load in self._loads:
                load.touched.update(item_ids)

    def truncate(self, version: int, keep: Container[str]) -> None:
        """Every item older than the version is gone, but for those to ``keep``."""
        old = [
            item_id
            for item_id, entry in self.entries.items()
            if version_of(entry) < version and item_id not in keep
        ]
        for item_id in old:
            self.remove(item_id)
        for load in self._loads:
            load.floor = max(load.floor, version)

    def begin_load(self) -> Load:
        """To be called before the query is sent."""
        load = Load()
        self._loads.add(load)
        return load

    def end_load(self, load: Load) -> None:
        self._loads.discard(load)

    def install(self, load: Load, rows: Iterable[Row], pending: Container[str]) -> int:
        """Keeps the rows a load brought; returns how many were new.

        Left alone are ids that are cached in the same or a newer version, that were touched since
        the load began, and those ``pending``: with a change still on its way to PostgreSQL, which
        may be a delete accepted before the load began.
        """
        entries, touched = self.entries, load.touched
        before, size = len(entries), 0
        if load.floor:
            rows = [row for row in rows if version_of(row[1]) >= load.floor]
        for item_id, entry in rows:
            if item_id in touched or item_id in pending:
                continue
            old = entries.get(item_id)
            if old is None:
                size += len(entry) + len(item_id)
            elif version_of(old) < version_of(entry):  # another instance was here
                size += len(entry) - len(old)
            else:
                continue
            entries[item_id] = entry
        self._entry_bytes += size
        return len(entries) - before

    def note_absent(self, load: Load, item_ids: Collection[str]) -> None:
        """PostgreSQL does not have these; forgets the oldest such notes beyond the bound.

        Another load may have read one of them before another hand deleted it: it must not bring
        back what a reader was told is gone.
        """
        for item_id in item_ids:
            if item_id not in load.touched and item_id not in self.entries:
                self._absent[item_id] = None
        self.touch(item_ids)
        while len(self._absent) > ABSENT_MAX:
            del self._absent[next(iter(self._absent))]

    def forget_absent(self) -> None:
        """Others may create items from now on."""
        self._absent.clear()

    def set_hydrated(self) -> None:
        self.hydrated = True
        self._absent.clear()
