"""The allocator: generated ids, leased from PostgreSQL in blocks ahead of their need."""

from __future__ import annotations

import asyncio
from typing import Final

from itemstore.core.cache import Cache
from itemstore.core.ids import IdPool
from itemstore.core.queue import WriteQueue
from itemstore.errors import DatabaseUnavailable
from itemstore.storage import Storage, StorageError
from itemstore.tasks import end

ID_BLOCK: Final = 1_024  # ids leased at a time
ID_LOW: Final = ID_BLOCK // 2  # when the next block is leased, in the background


class Allocator:
    """Gives out ids that no item has."""

    def __init__(self, storage: Storage, cache: Cache, queue: WriteQueue) -> None:
        self._storage = storage
        self._cache = cache
        self._queue = queue
        self._pool = IdPool()
        self._blocks_forgotten = 0
        self._leasing: asyncio.Task[None] | None = None

    def take(self) -> str | None:
        """An id, or None if ``refill`` must be waited for."""
        return self._pool.take()

    def claim(self, item_id: str) -> None:
        """An item was created under this id: it is not given out any more."""
        self._pool.claim(item_id)
        if 0 < len(self._pool) < ID_LOW:
            self._lease()  # if it fails, who needs one will ask again

    def forget(self) -> None:
        """Another instance may have created items under the ids leased, or under way."""
        self._pool = IdPool()
        self._blocks_forgotten += 1

    async def refill(self) -> None:
        """Returns when there are ids, or the allocator was closed. Raises DatabaseUnavailable."""
        if len(self._pool):
            return
        leasing = self._lease()
        await asyncio.wait([leasing])  # goes on if whoever waits gives up
        if leasing.cancelled():
            return
        try:
            leasing.result()
        except StorageError as error:
            raise DatabaseUnavailable(
                f"A generated id needs PostgreSQL, which does not answer ({error.kind}). "
                "Repeat later, or choose an id and PUT the item."
            ) from error

    async def close(self) -> None:
        """Ends a lease under way."""
        await end([self._leasing])

    def _lease(self) -> asyncio.Task[None]:
        if self._leasing is None or self._leasing.done():
            self._leasing = asyncio.create_task(self._lease_block(), name="lease_ids")
            self._leasing.add_done_callback(_look_at_failure)
        return self._leasing

    async def _lease_block(self) -> None:
        """The ids PostgreSQL has items for are left out, and so are those written since.

        An item of such an id may be gone from the cache again. But it is queued, or its commit
        has marked the load, or else it was committed before PostgreSQL was asked.
        """
        forgotten, load = self._blocks_forgotten, self._cache.begin_load()
        try:
            block, taken = await self._storage.lease_ids(ID_BLOCK)
        finally:
            self._cache.end_load(load)
        if forgotten != self._blocks_forgotten:
            return  # who needs one will ask again
        self._pool.refill(
            item_id
            for item_id in block.ids()
            if not (item_id in taken or item_id in load.touched or item_id in self._queue)
        )


def _look_at_failure(leasing: asyncio.Task[None]) -> None:
    """Nobody may be waiting for it; asyncio would complain."""
    if not leasing.cancelled():
        leasing.exception()
