"""Eviction: which item is worth least, once not all of them fit.

S3-FIFO (Yang et al. 2023, https://dl.acm.org/doi/10.1145/3600006.3613147), with less to keep:

    newcomer ──used──► one of the main part ──not used for some rounds of the hand──► evicted
        │                     ▲
        └──not used──► evicted, its ghost kept ──asked for again──┘

Newcomers are a tenth of the items, first in, first out. So a reader of everything, who asks for
each item once, passes through them, and the main part stays as it is. There a hand goes round
through the table itself, which needs no queue of ids: it takes one from each item's uses, and
evicts an item that has none left. Uses, up to three, are counted in an array, in the place an id's
hash gives. Ids that share a place share the count: one of them stays longer, and that is all.
Ghosts lie in such an array too, sixteen bits of the hash each; a new one replaces what is there.

docs/decisions/0012-bounded-cache.md has the comparison with other policies.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import Final

from itemstore.core.shards import Shards
from itemstore.core.table import Table

NEWCOMERS: Final = 10  # one item in so many
USES_MAX: Final = 3
USES_SHARE: Final = 32  # bytes of the bound to a place for uses, of one byte
GHOST_SHARE: Final = 128  # bytes of the bound to a ghost, of two
NEWCOMER_BYTES: Final = 140  # an id, and its places in the queue and in the dict
PLACES_MIN: Final = 1_024
_TAG_SHIFT: Final = 40  # the ghost's sixteen bits: others than those that give its place
_TAG_MASK: Final = 0xFFFF


class Eviction:
    """Over one table, from the moment it is nearly full; what is in it by then is the main part."""

    def __init__(self, table: Shards | Table, bytes_max: int) -> None:
        self._table = table
        self._uses = bytearray(_power_of_two(bytes_max // USES_SHARE))
        self._ghosts = array("H", bytes(2 * _power_of_two(bytes_max // GHOST_SHARE)))
        self._queue: deque[str] = deque()  # newcomers, and what has left them since
        self._newcomers: dict[str, None] = {}  # a set of as many takes twice the memory
        self._shard = 0
        self._hand: list[str] = []  # still to be looked at in this shard
        #: The table's ``get``, which counts as a use.
        self.get = self._counting()

    @property
    def bytes_used(self) -> int:
        """Bytes of memory, estimated."""
        return len(self._uses) + 2 * len(self._ghosts) + NEWCOMER_BYTES * len(self._queue)

    def _counting(self) -> Callable[[str], bytes | None]:
        look_up, leave = self._table.get, self._newcomers.pop
        uses, mask = self._uses, len(self._uses) - 1

        def get(item_id: str) -> bytes | None:
            entry = look_up(item_id)
            if entry is not None:
                leave(item_id, None)
                place = hash(item_id) & mask
                if uses[place] < USES_MAX:
                    uses[place] += 1
            return entry

        return get

    def arrived(self, item_id: str) -> None:
        """It was not in the table, and is now."""
        place, tag = self._ghost(item_id)
        if self._ghosts[place] == tag:
            self._ghosts[place] = 0
            return
        self._queue.append(item_id)
        self._newcomers[item_id] = None
        if len(self._queue) > len(self._table):  # ids that left otherwise are among them
            self._newcomers.pop(self._queue.popleft(), None)

    def next(self, pinned: Callable[[str], bool]) -> str | None:
        """Looks at one item. Its id if it is to be evicted, which may be gone already."""
        if NEWCOMERS * len(self._queue) > len(self._table):
            return self._next_newcomer(pinned)
        if not self._hand:
            self._shard = (self._shard + 1) % self._table.SHARDS
            self._hand = self._table.ids(self._shard)
            return None
        item_id = self._hand.pop()
        if item_id in self._newcomers or pinned(item_id):
            return None
        place = hash(item_id) & len(self._uses) - 1
        if self._uses[place]:
            self._uses[place] -= 1
            return None
        return item_id

    def _next_newcomer(self, pinned: Callable[[str], bool]) -> str | None:
        item_id = self._queue.popleft()
        if item_id not in self._newcomers:
            return None  # it was used
        if pinned(item_id):
            self._queue.append(item_id)
            return None
        del self._newcomers[item_id]
        place, tag = self._ghost(item_id)
        self._ghosts[place] = tag
        return item_id

    def _ghost(self, item_id: str) -> tuple[int, int]:
        digest = hash(item_id)
        return digest & len(self._ghosts) - 1, (digest >> _TAG_SHIFT & _TAG_MASK) or 1


def _power_of_two(at_most: int) -> int:
    return 1 << max(at_most, PLACES_MIN).bit_length() - 1
