"""The loader: brings items from PostgreSQL into the cache, all of them or one by one.

Read-through, for a miss while not every item is cached:

    1. reader A misses "x"      → x is wanted; the query goes out at the end of this loop turn
    2. reader B misses "x", "y" → x is wanted already; y joins the same query
    3. the query is under way; a writer deletes "x" → the load is marked: x is not installed
    4. the answer arrives; y is installed, A and B are woken and look again
    5. A and B find x being deleted, and y cached

Of large items a query brings some, and is repeated for the others.

The holder of the lease hands nobody what the query brought: whoever waited looks into the cache
again, where a newer write or delete may stand by now. A standby answers what the query brought and
keeps none of it, for the holder may change it meanwhile. The query is a task of its own, so that
a reader who gives up takes nobody else's answer with him.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore.core.cache import Cache, Load, Row
from itemstore.core.queue import WriteQueue, newer
from itemstore.errors import DatabaseUnavailable, Overloaded
from itemstore.packer import Packer
from itemstore.storage import LOAD_CONNECTIONS, Storage, StorageError
from itemstore.tasks import end

LOAD_IDS_MAX: Final = 1_000  # ids in one query
LOADS_MAX: Final = LOAD_CONNECTIONS  # queries under way
WANTED_MAX: Final = 20_000  # ids waiting; beyond that a miss is refused
INSTALL_ITEMS: Final = 250  # then requests get their turn
RETRY_MAX_S: Final = 2.0
PROGRESS_INTERVAL_S: Final = 2.0


class Loader:
    """Fills the cache: by ``preload`` all of it, by ``load`` what somebody waits for."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        storage: Storage,
        log: FilteringBoundLogger,
        packer: Packer,
        *,
        epoch: Callable[[], int] = lambda: 1,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._cache = cache
        self._queue = queue
        #: Of the lease; 0 while this instance does not hold it.
        self._epoch = epoch
        self._storage = storage
        self._log = log
        self._packer = packer
        self._monotonic = monotonic
        self._sleep = sleep
        self._chance = chance or random.Random()  # noqa: S311 - jitter, not a secret
        self._wanted: dict[str, asyncio.Future[bytes | None]] = {}
        self._loading: dict[str, asyncio.Future[bytes | None]] = {}
        #: By id, how many wait for it; it is not evicted before they have looked into the cache.
        self.awaited: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_scheduled = False
        #: Items the preload has brought so far, and how many it expects.
        self.preloaded = 0
        self.estimate = 0
        self.is_preloading = False
        self.queries = 0  #: of the read-through
        self.loaded = 0  #: items they brought

    async def load(self, item_id: str) -> bytes | None:
        """What PostgreSQL has of it; the holder looks into the cache again.

        Raises DatabaseUnavailable if it did not answer, Overloaded if too many are waiting.
        """
        # One under way may be older than this call; only the holder's cache makes up for that.
        future = self._loading.get(item_id) if self._epoch() else None
        future = future or self._wanted.get(item_id)
        if future is None:
            if len(self._wanted) >= WANTED_MAX:
                raise Overloaded("Too many items are being loaded. Repeat in a moment.")
            future = self._wanted[item_id] = asyncio.get_running_loop().create_future()
            self._schedule()
        self.awaited[item_id] += 1
        try:
            return await asyncio.shield(future)
        finally:
            self.awaited[item_id] -= 1
            if not self.awaited[item_id]:
                del self.awaited[item_id]

    async def newest(self, item_id: str) -> bytes | None:
        """The newest there is of it, for who answers from no cache. Raises as ``load`` does.

        That is what PostgreSQL has, unless something newer was acknowledged here.
        """
        promised = self._queue.promised(item_id)  # it may be committed during the load
        loaded = await self.load(item_id)
        promised = self._queue.promised(item_id) or promised
        if promised is None:
            return loaded
        if loaded is None and await self._version(item_id) >= promised.version:
            return None
        return newer(loaded, promised)

    async def _version(self, item_id: str) -> int:
        """PostgreSQL's, also of an item that was deleted."""
        try:
            [state] = await self._storage.states([item_id])
        except StorageError as error:
            raise _away(error) from error
        return state.version

    def _schedule(self) -> None:
        """One query for all that is wanted until the end of this turn of the loop."""
        if not self._is_scheduled and self._wanted and len(self._tasks) < LOADS_MAX:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_scheduled = False
        ids = list(self._wanted)[:LOAD_IDS_MAX]
        batch = {item_id: self._wanted.pop(item_id) for item_id in ids}
        self._loading.update(batch)
        task = asyncio.get_running_loop().create_task(self._fetch(batch))
        self._tasks.add(task)
        task.add_done_callback(self._fetched)
        self._schedule()

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._schedule()  # what waited for its place

    async def _fetch(self, batch: dict[str, asyncio.Future[bytes | None]]) -> None:
        load, epoch = self._cache.begin_load(), self._epoch()
        # What a query that close() cancels leaves: else who waits for it would begin another.
        failure: Exception | None = DatabaseUnavailable("The store is closing.")
        try:
            is_whole = False
            while not is_whole:
                self.queries += 1
                rows, total = await self._storage.load(list(batch))
                is_whole, is_ours = len(rows) == total, epoch and epoch == self._epoch()
                if is_ours:
                    self.loaded += self._cache.install(load, rows, self._queue.pending_ids())
                for item_id, entry in rows:
                    self._settle(item_id, batch.pop(item_id), entry, None)
            if is_ours:
                self._cache.note_absent(load, batch)
            failure = None
        except StorageError as error:
            failure = _away(error)
        except Exception as error:  # a reader must never wait for ever for a bug of ours
            failure = error
        finally:
            self._cache.end_load(load)
            for item_id, future in batch.items():
                self._settle(item_id, future, None, failure)

    def _settle(
        self,
        item_id: str,
        future: asyncio.Future[bytes | None],
        entry: bytes | None,
        failure: Exception | None,
    ) -> None:
        if self._loading.get(item_id) is future:
            del self._loading[item_id]
        _resolve(future, entry, failure)

    async def preload(self, estimate: int) -> None:
        """Fills the cache page by page, and then calls it hydrated; or stops at its bound.

        The next page is read while this page's rows are packed and installed. A page that cannot be
        read is asked for again until it can.
        """
        self.estimate, self.preloaded = estimate, 0
        self.is_preloading = True
        self._cache.fills = True
        started = told = self._monotonic()
        load = self._cache.begin_load()
        page = asyncio.create_task(self._page(0))
        try:
            while True:
                rows, position = await page
                if position is not None:
                    page = asyncio.create_task(self._page(position))
                await self._install(load, await self._packer.packed(rows))
                if position is None or self._cache.overflows:
                    break
                if self._monotonic() - told > PROGRESS_INTERVAL_S:
                    told = self._monotonic()
                    self._log.info("preload", loaded=self.preloaded, estimate=estimate)
            if not self._cache.overflows:
                self._cache.set_hydrated()
        finally:
            self.is_preloading = False
            self._cache.end_load(load)
            page.cancel()
            with suppress(asyncio.CancelledError, StorageError):
                await page
        items, s = len(self._cache), round(self._monotonic() - started, 3)
        if self._cache.hydrated:
            self._log.info("hydrated", items=items, s=s)
        else:
            used = self._cache.bytes_used
            self._log.info("cache_full", items=items, estimate=estimate, bytes=used, s=s)

    async def _install(self, load: Load, rows: list[Row]) -> None:
        for start in range(0, len(rows), INSTALL_ITEMS):
            await asyncio.sleep(0)
            if self._cache.overflows:
                return  # what is there by now is worth more than what was read first
            part = rows[start : start + INSTALL_ITEMS]
            self.preloaded += self._cache.install(load, part, self._queue.pending_ids())

    async def _page(self, position: int) -> tuple[list[Row], int | None]:
        attempt = 0
        while True:
            try:
                return await self._storage.page(position)
            except StorageError as error:
                delay = min(0.05 * 2 ** min(attempt, 16), RETRY_MAX_S)
                delay *= self._chance.uniform(0.5, 1.0)
                self._log.warning("preload_retry", reason=str(error), retry_s=round(delay, 3))
                await self._sleep(delay)
                attempt += 1

    async def close(self) -> None:
        await end(self._tasks)
        # Also of a task that was cancelled before its first step, and so never ran at all.
        for future in (*self._loading.values(), *self._wanted.values()):
            _resolve(future, None, DatabaseUnavailable("The store is closing."))


def _away(error: StorageError) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"The item is not in memory and PostgreSQL does not answer ({error.kind}). Repeat later."
    )


def _resolve(
    future: asyncio.Future[bytes | None], entry: bytes | None, failure: Exception | None
) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(entry)
    else:
        future.set_exception(failure)
        future.exception()  # nobody may be waiting any more; that is no news
