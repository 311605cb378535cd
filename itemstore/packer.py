"""The packer: makes the cached entries small, behind everybody's back.

Nothing is packed when it is written: an item that is written often would be packed as often, and
while it is dirty the write queue has its plain entry anyway. The preload has its pages packed
before they are installed, for memory that was once in use stays with the process.

The work is done in a thread, and zstd lets the event loop run meanwhile:

    1. a batch of plain entries is taken from the cache
    2. they are packed in a thread; a writer replaces one of them
    3. the packed forms are exchanged for the entries they were made of: not for the new one
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from itemstore.core.cache import Cache, Row
from itemstore.core.packing import SAMPLE_ITEMS, SAMPLE_ITEMS_MIN, Trainer, retrain
from itemstore.core.queue import WriteQueue

PACK_ITEMS: Final = 2_000  # in one batch: 1 ms of the event loop's time
PACK_INTERVAL_S: Final = 0.25

#: Calls a function with its arguments where it does not hold up the event loop.
InThread = Callable[..., Awaitable[Any]]


class Packer:
    """``run`` is its life; ``packed`` is for the preload."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        log: FilteringBoundLogger,
        *,
        in_thread: InThread = asyncio.to_thread,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._log = log
        self._in_thread = in_thread
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self.trainer = Trainer()

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._cache.packs:
            await self._sleep(PACK_INTERVAL_S)
            try:
                while await self.step():
                    pass
            except Exception as error:
                self._log.error("pack_failed", reason=repr(error))

    async def step(self) -> bool:
        """Packs a batch of what the cache has plain; whether there was one."""
        async with self._turn:
            trainer = self.trainer
            if trainer.dictionary is None and self._cache.unpacked_items < SAMPLE_ITEMS:
                return False
            rows = self._cache.unpacked(PACK_ITEMS, self._queue.pending_ids())
            entries = [entry for _, entry in rows]
            if trainer.dictionary is None:
                if len(rows) < SAMPLE_ITEMS_MIN:
                    self._cache.leave(rows)
                    return False
                trainer.saw(entries, entries)
            if trainer.is_due:
                await self._train()
            self._cache.pack(rows, await self._pack(entries))
            return bool(rows)

    async def packed(self, rows: list[Row]) -> list[Row]:
        """The rows with their entries packed, once there is something to train on."""
        if not self._cache.packs:
            return rows
        try:
            if self.trainer.dictionary is None:
                await self.step()
            entries = await self._pack([entry for _, entry in rows])
        except Exception as error:
            self._log.error("pack_failed", reason=repr(error))
            return rows
        return [(item_id, entry) for (item_id, _), entry in zip(rows, entries, strict=True)]

    async def _pack(self, entries: list[bytes]) -> list[bytes]:
        dictionary = self.trainer.dictionary
        if dictionary is None or not entries:
            return entries
        packed: list[bytes] = await self._in_thread(dictionary.pack, entries)
        self.trainer.saw(entries, packed)
        return packed

    async def _train(self) -> None:
        trainer = self.trainer
        training = await self._in_thread(retrain, trainer.sample(), trainer.dictionary)
        trainer.adopt(training)
        self._log.info("dictionary_trained", ratio=round(training.ratio, 3))
