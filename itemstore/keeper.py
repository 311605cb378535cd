"""The keeper: sees to it that the cache takes no more memory than it may.

What is written or loaded makes room for itself, in short steps. The keeper does the rest: when a
step was not enough, because large items came or many were dirty, and when the process takes more
memory than the cache counts. That is so where items of other sizes have left: the allocators keep
what they cannot fill. Then the cache grows no further, and gives back what it grew last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Final

from itemstore import memory
from itemstore.core.cache import Cache
from itemstore.core.queue import WriteQueue
from itemstore.core.recent import Recent

MEASURE_INTERVAL_S: Final = 1.0
TURNS: Final = 1_000  # of evicting at once; then the items that must stay have time to be committed
PAUSE_S: Final = 0.05
TOLERANCE: Final = 20  # the process may take one in so many parts of the bound more than is counted
EXCESS_MAX: Final = 2  # at most one in so many parts of the bound is given up for that


class Keeper:
    """``run`` is its life."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        recent: Recent,
        awaited: Container[str],
        bytes_max: int,
        *,
        resident: Callable[[], int] = memory.resident_bytes,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._recent = recent
        #: The ids of items that somebody waits for.
        self._awaited = awaited
        self._bytes_max = bytes_max
        self._resident = resident
        self._woken = asyncio.Event()
        self._empty = resident()
        self._taken = 0
        cache.bound(bytes_max, self.must_stay, self._woken.set)

    def must_stay(self, item_id: str) -> bool:
        """Whether it must not be evicted: PostgreSQL does not have it yet, or it is waited for."""
        return item_id in self._queue or item_id in self._awaited

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._woken.wait()
        while True:
            self._woken.clear()
            self.measure()
            for _ in range(TURNS):
                if not self._cache.evict():
                    break
                await asyncio.sleep(0)
            await asyncio.sleep(PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(MEASURE_INTERVAL_S):
                    await self._woken.wait()

    def measure(self) -> None:
        """Holds what the cache counts against what the process has taken since it was empty."""
        beside = self._queue.bytes_used + self._recent.bytes_used
        before, self._taken = self._taken, self._resident() - self._empty - beside
        left = self._bytes_max + self._bytes_max // TOLERANCE - self._taken
        if left < 0:
            left = min(0, before - self._taken)
        excess = self._bytes_max - self._cache.bytes_used - left
        self._cache.exceed(min(max(excess, 0), self._bytes_max // EXCESS_MAX))
