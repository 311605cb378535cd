"""Quotas: has PostgreSQL count what is there, for whoever may not have more than so much.

A prefix is counted when the first write of a caller with a quota needs it, once for all who wait.
``core/usage.py`` says how a count is exact while writes go on.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from itemstore.core.caller import Caller
from itemstore.core.queue import WriteQueue
from itemstore.core.usage import Counting, Usages
from itemstore.errors import DatabaseUnavailable
from itemstore.storage import Storage, StorageError
from itemstore.tasks import end

COUNTS_MAX: Final = 2  # at a time: each reads all items of its prefix


class Quotas:
    """Those of one store. ``usages`` is what is known."""

    def __init__(self, queue: WriteQueue, storage: Storage, *, wait_s: float) -> None:
        self.usages = Usages()
        self._queue = queue
        self._storage = storage
        self._wait_s = wait_s
        self._turns = asyncio.Semaphore(COUNTS_MAX)
        self._counts: dict[str, asyncio.Task[None]] = {}

    def lacks(self, caller: Caller) -> bool:
        """Whether ``know`` must be awaited before what the caller writes can be checked."""
        return caller.has_quota and self.usages.of(caller.prefix) is None

    async def know(self, caller: Caller) -> None:
        """Has it counted what there is under the caller's prefix.

        It may be forgotten again by the time this returns. Raises DatabaseUnavailable.
        """
        prefix = caller.prefix
        count = self._counts.get(prefix)
        if count is None:
            count = self._counts[prefix] = asyncio.create_task(self._count(prefix), name="count")
            count.add_done_callback(partial(self._counted, prefix))
        try:
            async with asyncio.timeout(self._wait_s):
                await asyncio.shield(count)
        except TimeoutError:
            raise DatabaseUnavailable(
                f"What {caller.name} has is still being counted after {self._wait_s:g} s. Nothing "
                "was changed; repeat later."
            ) from None
        except StorageError as error:
            raise DatabaseUnavailable(
                f"What {caller.name} has is not counted yet, and PostgreSQL does not answer "
                f"({error.kind}). Nothing was changed; repeat later."
            ) from error

    def _counted(self, prefix: str, count: asyncio.Task[None]) -> None:
        del self._counts[prefix]
        if not count.cancelled():
            count.exception()  # nobody may be waiting any more; that is no news

    async def _count(self, prefix: str) -> None:
        async with self._turns:
            pending = (*self._queue.parked.values(), *self._queue.dirty())
            counting = Counting(
                (change.id, change.data) for change in pending if change.id.startswith(prefix)
            )
            self.usages.begin(prefix, counting)
            try:
                others = await self._storage.usage(prefix, counting.changed)
                self.usages.finish(prefix, counting, others)
            finally:
                if self.usages.tracked.get(prefix) is counting:
                    del self.usages.tracked[prefix]

    async def close(self) -> None:
        """Ends what is under way."""
        await end(list(self._counts.values()))
