"""Admission: keeps the write queue within its bounds without dropping anything.

Below three quarters of the bounds a write passes at once; above, it waits its turn for room; at
the bounds, or when its patience ends, it is refused before it was applied.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from itemstore.core.queue import WriteQueue
from itemstore.errors import ItemStoreError, Overloaded
from itemstore.options import Options

SOFT: Final = 0.75
WAITING_MAX: Final = 10_000  # writers


class Admission:
    def __init__(self, queue: WriteQueue, options: Options) -> None:
        self._queue = queue
        self._items_max = options.queue_items_max
        self._bytes_max = options.queue_bytes_max
        self._items_soft = max(1, int(options.queue_items_max * SOFT))
        self._bytes_soft = int(options.queue_bytes_max * SOFT)
        self._wait_s = options.queue_wait_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.refused = 0

    async def enter(self) -> None:
        """Returns when there is room for one more write. Raises Overloaded."""
        if not self._waiting and self._room() > 0:
            return
        if self._is_full() or len(self._waiting) >= WAITING_MAX:
            raise self._overloaded()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except TimeoutError:
            raise self._overloaded() from None
        finally:
            if not turn.done() or turn.cancelled():
                self._waiting.remove(turn)

    def let_in(self) -> None:
        """Some changes left the queue: as many writers as there is room for take their turn."""
        room = self._room()
        while self._waiting and room > 0:
            self._waiting.popleft().set_result(None)
            room -= 1

    def close(self, reason: ItemStoreError) -> None:
        while self._waiting:
            self._waiting.popleft().set_exception(reason)

    def _room(self) -> int:
        if self._queue.bytes_used >= self._bytes_soft:
            return 0
        return self._items_soft - len(self._queue)

    def _is_full(self) -> bool:
        return len(self._queue) >= self._items_max or self._queue.bytes_used >= self._bytes_max

    def _overloaded(self) -> Overloaded:
        self.refused += 1
        return Overloaded(
            f"The write queue is full ({len(self._queue):,} items, {self._queue.bytes_used:,} "
            "bytes): PostgreSQL is slower than the writes. Nothing was changed; repeat later."
        )
