"""Succession: what taking, losing and passing on the writer lease means for what is in memory.

The cache is exact only under the lease. Before an instance acts as holder it takes over what others
committed since its cache was filled; when it has lost the lease it forgets the cache and fills it
anew; having handed it over it keeps the cache and follows the new holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore import memory
from itemstore.allocator import Allocator
from itemstore.core.cache import Cache
from itemstore.core.item import VersionClock
from itemstore.core.queue import WriteQueue
from itemstore.core.shards import Shard
from itemstore.core.table import Slots
from itemstore.loader import Loader
from itemstore.options import Options, Preload
from itemstore.storage import Found, Grant, Lease, Storage
from itemstore.tasks import end
from itemstore.watcher import Watcher

PACK_SHARE: Final = 0.5  # of what the cache may take; beyond it items are compressed


class Succession:
    """The lease's ``Owner``; it also decides whether and when the cache is filled."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        clock: VersionClock,
        storage: Storage,
        options: Options,
        log: FilteringBoundLogger,
        *,
        cache_bytes: int,
        loader: Loader,
        watcher: Watcher,
        ids: Allocator,
        heal: Callable[[], None],
        on_foreign: Callable[[str], None],
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._clock = clock
        self._storage = storage
        self._options = options
        self._cache_bytes = cache_bytes
        self._log = log
        self._loader = loader
        self._watcher = watcher
        self._ids = ids
        #: Writes again what PostgreSQL has lost.
        self.heal = heal
        #: Told, without an id, that any item may have changed.
        self._on_foreign = on_foreign
        self._fills = False
        self._estimate = 0
        self._preloading: asyncio.Task[None] | None = None
        self._freeing: asyncio.Task[None] | None = None

    def begin(self, found: Found) -> None:
        """Decides whether the cache is to hold everything, and in which form."""
        needed = memory.estimate(found.items_estimate, found.bytes_estimate)
        if self._options.cache_compression is None and needed > PACK_SHARE * self._cache_bytes:
            self._cache.begin_packing()
        self._fills = self._should_fill(found, needed)
        self._estimate = found.items_estimate
        self._queue.restore_parked(each.change for each in found.parked)

    async def close(self) -> None:
        await end([self._preloading, self._freeing])

    # --- what the lease asks

    def version_clock(self) -> int:
        return self._clock.now()

    def settled_version(self) -> int:
        return self._queue.settled_version(self._clock.newest)

    def has_dirty(self) -> bool:
        return len(self._queue) > 0

    def is_warm(self) -> bool:
        return self._cache.hydrated or self._cache.overflows or not self._fills

    async def take(self, grant: Grant) -> None:
        self._clock.saw(grant.clock)
        await self._watcher.catch_up()
        parked = await self._storage.parked()
        self._queue.restore_parked(each.change for each in parked)
        for each in parked:  # served as they were accepted
            if each.change.deleted:
                self._cache.remove(each.change.id)
            else:
                self._cache.put(each.change.id, each.change.entry)
        self._on_foreign("")
        self._ids.forget()  # others may have used them as ids of their own
        self._watcher.since = None
        if self._preloading is not None and self._preloading.cancelling():
            await end([self._preloading])
        self._fill()

    def lose(self) -> None:
        if self._preloading is not None:
            self._preloading.cancel()
        self._freeing = asyncio.create_task(_free(self._cache.clear()), name="free")
        self._watcher.since = None

    def hand_over(self) -> None:
        self._cache.forget_absent()
        self._watcher.stand_by(self._clock.newest, 0)

    async def follow(self, lease: Lease) -> None:
        parked = await self._storage.parked()
        if not self.has_dirty():  # else the persister is about to park or release something
            self._queue.restore_parked(each.change for each in parked)
        if self._watcher.since is not None:
            await self._watcher.follow(lease)
        elif not (self.has_dirty() or self._is_filling()):
            self._watcher.stand_by(lease.settled, lease.now_us)
            self._fill()

    # --- filling the cache

    def _fill(self) -> None:
        """Begins to, unless it is full or being filled already."""
        if not self.is_warm() and not self._is_filling():
            self._preloading = asyncio.create_task(
                self._loader.preload(self._estimate), name="preload"
            )

    def _is_filling(self) -> bool:
        return self._preloading is not None and not self._preloading.done()

    def _should_fill(self, found: Found, needed: int) -> bool:
        if self._options.skip_items_preload is not Preload.AUTO:
            return self._options.skip_items_preload is Preload.PRELOAD
        self._log.info(
            "preload_decided",
            preload=needed <= self._cache_bytes,
            items=found.items_estimate,
            needed_bytes=needed,
            budget_bytes=self._cache_bytes,
            packs=self._cache.packs,
        )
        return needed <= self._cache_bytes


async def _free(shards: list[Slots] | list[Shard]) -> None:
    """Lets go of what was cached, a part at a time."""
    while shards:
        if any(shards.pop()):
            await asyncio.sleep(0)
