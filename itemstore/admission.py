"""Admission: keeps the write queue within its bounds without dropping anything.

Below three quarters of the bounds a write passes at once; above, it waits its turn for room; at
the bounds, or when its patience ends, it is refused before it was applied.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from itemstore.core.queue import WriteQueue
from itemstore.errors import ItemStoreError, Overloaded
from itemstore.options import Options

SOFT: Final = 0.75
WAITING_MAX: Final = 10_000  # writers


class Admission:
    """The queue's door: one waiting line, first come, first served."""

    def __init__(self, queue: WriteQueue, options: Options) -> None:
        self._queue = queue
        self._items_max = options.queue_items_max
        self._bytes_max = options.queue_bytes_max
        self._items_soft = max(1, int(options.queue_items_max * SOFT))
        self._bytes_soft = int(options.queue_bytes_max * SOFT)
        self._wait_s = options.queue_wait_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.refused = 0

    @property
    def is_open(self) -> bool:
        """Whether there is room for one more write, and nobody was here before."""
        return not self._waiting and self._room() > 0

    async def enter(self) -> None:
        """Returns when there is room for one more write. Raises Overloaded."""
        if self.is_open:
            return
        if self._is_full() or len(self._waiting) >= WAITING_MAX:
            raise self._overloaded()
        try:
            async with asyncio.timeout(self._wait_s):
                await self._turn(self._waiting.append)
                while self._room() <= 0:  # others were quicker: first in line again
                    await self._turn(self._waiting.appendleft)
        except TimeoutError:
            raise self._overloaded() from None
        finally:
            # Whoever had a turn may leave room, or the turn itself, unused: it is the next one's.
            asyncio.get_running_loop().call_soon(self.let_in)

    async def _turn(self, line_up: Callable[[asyncio.Future[None]], None]) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line_up(turn)
        try:
            await turn
        finally:
            if turn.cancelled():
                with suppress(ValueError):  # let_in may have met it first
                    self._waiting.remove(turn)

    def let_in(self) -> None:
        """The first in line takes its turn if there is room; when it has, the next. Never raises.

        Only one at a time: how many bytes its change takes is not known before.
        """
        while self._waiting and self._room() > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # else its writer has just given up
                turn.set_result(None)
                return

    def close(self, reason: ItemStoreError) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(reason)

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
