"""Shards: id → entry in many dicts, for entries that are kept plain.

The fastest there is to look into, and to fill; ``core.table`` takes less memory. One dict would be
copied at once when it grows: 80 ms for a million entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_SHARDS: Final = 512
_MASK: Final = _SHARDS - 1

Shard = dict[str, bytes]


class Shards:
    """What ``core.table.Table`` promises, but that what it gives out are bare entries."""

    #: Of an item beside its entry and its id, measured on CPython 3.11.
    OVERHEAD_BYTES: Final = 160
    SHARDS: Final = _SHARDS

    __slots__ = ("_items", "_shards", "bytes_used")

    def __init__(self) -> None:
        self._shards: list[Shard] = [{} for _ in range(_SHARDS)]
        self._items = 0
        self.bytes_used = 0  #: of ids and entries, and what they lie in

    def __len__(self) -> int:
        return self._items

    def get(self, item_id: str) -> bytes | None:
        """The entry, or None; None also for what can be no id."""
        try:
            return self._shards[hash(item_id) & _MASK].get(item_id)
        except TypeError:
            return None

    def put(self, item_id: str, entry: bytes) -> bytes | None:
        """Keeps the entry; returns the one it replaces."""
        shard = self._shards[hash(item_id) & _MASK]
        old = shard.get(item_id)
        shard[item_id] = entry
        if old is None:
            self._items += 1
            self.bytes_used += len(entry) + len(item_id) + self.OVERHEAD_BYTES
        else:
            self.bytes_used += len(entry) - len(old)
        return old

    def setdefault(self, item_id: str, entry: bytes) -> bytes | None:
        """Keeps the entry, unless there is one: then returns it."""
        shard = self._shards[hash(item_id) & _MASK]
        old = shard.get(item_id)
        if old is None:
            shard[item_id] = entry
            self._items += 1
            self.bytes_used += len(entry) + len(item_id) + self.OVERHEAD_BYTES
        return old

    def pop(self, item_id: str) -> bytes | None:
        """Removes the entry and returns it, if there is one."""
        old = self._shards[hash(item_id) & _MASK].pop(item_id, None)
        if old is not None:
            self._items -= 1
            self.bytes_used -= len(old) + len(item_id) + self.OVERHEAD_BYTES
        return old

    def ids(self, shard: int) -> list[str]:
        """Of one of the ``SHARDS``, in no order that means anything."""
        return list(self._shards[shard])

    def shards(self) -> Iterator[list[tuple[str, bytes]]]:
        """All items, shard by shard; between two it may be changed."""
        for shard in self._shards:
            yield list(shard.items())

    @staticmethod
    def bare(entry: bytes) -> bytes:
        """The entry alone: as it is."""
        return entry

    def clear(self) -> list[Shard]:
        """Forgets everything; returns it, for to free all at once takes long."""
        old, self._shards = self._shards, [{} for _ in range(_SHARDS)]
        self._items = self.bytes_used = 0
        return old
