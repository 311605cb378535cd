"""The table: id → entry, in one object an item and without a pause.

A dict would keep a key object beside each entry, which takes more memory than many an entry that is
packed, and would be copied at once when it grows. Here an item is one record, its entry and its id:

    entry + 0xFF + id in UTF-8, where no byte is 0xFF

The records lie in many small hash tables with open addressing, each of which grows by itself:

    looked for from the place its hash gives, downwards, up to the first place that is free
    removed: those behind it move up, so that nothing is left that must be looked past
        (Knuth, The Art of Computer Programming 3, section 6.4, algorithm R)
    full, and then made anew: when half to three quarters are taken, in each shard at another
    number, so that they do not all grow at the same time
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Final

END: Final = b"\xff"  # of an entry, in a record

Slots = list[bytes | None]

_SHARD_BITS: Final = 10  # of ten million items, a shard has ten thousand and grows in 5 ms
_SHARDS: Final = 1 << _SHARD_BITS
_MASK: Final = _SHARDS - 1
_SLOTS_MIN: Final = 8

#: Of CPython's C API, for lists of bytes alone: the garbage collector would look at every item in
#: them, 50 ms a million, to find that none can be part of a cycle.
_untrack: Final = ctypes.pythonapi.PyObject_GC_UnTrack
_untrack.argtypes, _untrack.restype = [ctypes.py_object], None


class Table:
    """What it gives out are records: entries that are followed by more."""

    #: Of a record, measured on CPython 3.11: the bytes object, its place, and what growing leaves.
    OVERHEAD_BYTES: Final = 72
    SHARDS: Final = _SHARDS

    __slots__ = ("_items", "_shards", "_taken", "bytes_used")

    def __init__(self) -> None:
        self._shards = [_slots(_SLOTS_MIN) for _ in range(_SHARDS)]
        self._taken = [0] * _SHARDS
        self._items = 0
        self.bytes_used = 0  #: of the records, and what they lie in

    def __len__(self) -> int:
        return self._items

    def get(self, item_id: str) -> bytes | None:
        """The record, or None; None also for what can be no id."""
        try:
            end = END + item_id.encode()
        except (AttributeError, UnicodeEncodeError):
            return None
        place = hash(item_id)
        slots = self._shards[place & _MASK]
        place = (place >> _SHARD_BITS) & (len(slots) - 1)
        while (record := slots[place]) is not None:
            if record.endswith(end):
                return record
            place -= 1  # below zero it is counted from the end
        return None

    def put(self, item_id: str, entry: bytes) -> bytes | None:
        """Keeps the entry; returns the record it replaces."""
        end = END + item_id.encode()
        shard, place = self._seek(item_id, end)
        record = self._shards[shard][place]
        self._set(shard, place, entry + end)
        return record

    def setdefault(self, item_id: str, entry: bytes) -> bytes | None:
        """Keeps the entry, unless there is a record: then returns it."""
        end = END + item_id.encode()
        place = hash(item_id)
        shard = place & _MASK
        slots = self._shards[shard]
        place = (place >> _SHARD_BITS) & (len(slots) - 1)
        while (record := slots[place]) is not None:
            if record.endswith(end):
                return record
            place -= 1
        slots[place] = record = entry + end
        self._take(shard, record)
        return None

    def pop(self, item_id: str) -> bytes | None:
        """Removes the record and returns it, if there is one."""
        shard, place = self._seek(item_id, END + item_id.encode())
        record = self._shards[shard][place]
        if record is not None:
            self._free(shard, place)
            self._items -= 1
            self.bytes_used -= len(record) + self.OVERHEAD_BYTES
        return record

    def _free(self, shard: int, free: int) -> None:
        """Fills the place with a record that was kept away from it, and so on with that one's."""
        slots = self._shards[shard]
        last = len(slots) - 1
        place = free
        while (record := slots[place := (place - 1) & last]) is not None:
            home = hash(_id(record)) >> _SHARD_BITS
            if (home - free) & last < (home - place) & last:
                slots[free] = record
                free = place
        slots[free] = None
        self._taken[shard] -= 1

    def _seek(self, item_id: str, end: bytes) -> tuple[int, int]:
        """The shard and the place where the record is, or would be."""
        place = hash(item_id)
        shard = place & _MASK
        slots = self._shards[shard]
        place = (place >> _SHARD_BITS) & (len(slots) - 1)
        while (record := slots[place]) is not None and not record.endswith(end):
            place -= 1
        return shard, place

    def _set(self, shard: int, place: int, record: bytes) -> None:
        slots = self._shards[shard]
        old = slots[place]
        slots[place] = record
        if old is None:
            self._take(shard, record)
        else:
            self.bytes_used += len(record) - len(old)

    def _take(self, shard: int, record: bytes) -> None:
        """One more place of the shard is taken."""
        self._items += 1
        self.bytes_used += len(record) + self.OVERHEAD_BYTES
        self._taken[shard] = taken = self._taken[shard] + 1
        if 4 * _SHARDS * taken > (2 * _SHARDS + shard) * len(self._shards[shard]):
            self._grow(shard)

    def _grow(self, shard: int) -> None:
        old = self._shards[shard]
        size = 2 * len(old)
        slots = _slots(size)
        for record in filter(None, old):
            place = (hash(_id(record)) >> _SHARD_BITS) & (size - 1)
            while slots[place] is not None:
                place -= 1
            slots[place] = record
        self._shards[shard] = slots

    def ids(self, shard: int) -> list[str]:
        """Of one of the ``SHARDS``, in no order that means anything."""
        return [_id(record) for record in self._shards[shard] if record]

    def shards(self) -> Iterator[list[tuple[str, bytes]]]:
        """All ids with their records, shard by shard; between two it may be changed."""
        for shard in range(_SHARDS):
            yield [(_id(record), record) for record in self._shards[shard] if record]

    @staticmethod
    def bare(record: bytes) -> bytes:
        """The entry alone."""
        return record[: record.rindex(END)]

    def clear(self) -> list[Slots]:
        """Forgets everything; returns it, for to free all at once takes long."""
        old = self._shards
        self._shards = [_slots(_SLOTS_MIN) for _ in range(_SHARDS)]
        self._taken = [0] * _SHARDS
        self._items = self.bytes_used = 0
        return old


def _slots(size: int) -> Slots:
    slots: Slots = [None] * size
    _untrack(slots)
    return slots


def _id(record: bytes) -> str:
    return record[record.rindex(END) + 1 :].decode()
