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

    __slots__ = ("_shards", "bytes_used")

    def __init__(self) -> None:
        self._shards: list[Shard] = [{} for _ in range(_SHARDS)]
        self.bytes_used = 0  #: of ids and entries

    def __len__(self) -> int:
        return sum(map(len, self._shards))

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
        self.bytes_used += len(entry) - (len(old) if old is not None else -len(item_id))
        return old

    def setdefault(self, item_id: str, entry: bytes) -> bytes | None:
        """Keeps the entry, unless there is one: then returns it."""
        shard = self._shards[hash(item_id) & _MASK]
        old = shard.get(item_id)
        if old is None:
            shard[item_id] = entry
            self.bytes_used += len(entry) + len(item_id)
        return old

    def pop(self, item_id: str) -> bytes | None:
        """Removes the entry and returns it, if there is one."""
        old = self._shards[hash(item_id) & _MASK].pop(item_id, None)
        if old is not None:
            self.bytes_used -= len(old) + len(item_id)
        return old

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
        self.bytes_used = 0
        return old
