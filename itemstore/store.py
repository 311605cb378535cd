"""ItemStore: the one object the outside knows.

A write reads the old item, decides, changes the cache and joins the write queue in one plain
``def``, so nothing can come between (invariant 1). What may wait stands before it (room in the
queue, an item that is not cached) or after it (the durability asked for).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from structlog.typing import FilteringBoundLogger

from itemstore import memory
from itemstore.admission import Admission
from itemstore.allocator import Allocator
from itemstore.core import listing
from itemstore.core.cache import Cache
from itemstore.core.condition import ALWAYS, Condition
from itemstore.core.data import Encoded
from itemstore.core.item import Item, check_id, created_us_of, next_version, pack
from itemstore.core.operation import Create, Delete, Get, Operation, Patch, Put, Write
from itemstore.core.queue import Change, WriteQueue
from itemstore.errors import (
    CommitUnconfirmed,
    DatabaseUnavailable,
    DurabilityUnavailable,
    InvalidDurability,
    ItemNotFound,
    ItemStoreError,
    Starting,
    StartupError,
    Stopping,
)
from itemstore.loader import Loader
from itemstore.log import library_logger
from itemstore.options import Durability, Options, Preload
from itemstore.persister import Persister
from itemstore.storage import Found, ListQuery, Storage, StorageAway, StorageError
from itemstore.tasks import end
from itemstore.watcher import Watcher

CONNECT_RETRY_MAX_S: Final = 2.0
#: After PostgreSQL has failed for so long, what needs it is refused at once instead of waiting.
AWAY_MAX_S: Final = 5.0


T = TypeVar("T")


class _Unknown(Enum):
    UNKNOWN = 0


#: What is known of an item that is neither cached nor surely absent.
UNKNOWN: Final = _Unknown.UNKNOWN


class _Accepted(NamedTuple):
    """A write that is in the cache and in the queue; ``done`` when its commit is waited for."""

    change: Change
    done: asyncio.Future[None] | None


def _now_us() -> int:
    return time.time_ns() // 1_000


class ItemStore:
    """Items in memory, persisted to PostgreSQL. Made by ``ItemStore.open``."""

    def __init__(
        self,
        storage: Storage,
        options: Options | None = None,
        *,
        log: FilteringBoundLogger | None = None,
        now_us: Callable[[], int] = _now_us,
        monotonic: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.options = options or Options()
        self.log = log or library_logger()
        self.cache = Cache()
        self.queue = WriteQueue()
        self.admission = Admission(self.queue, self.options)
        self.persister = Persister(
            self.queue,
            storage,
            self.options,
            self.log,
            on_settled=self._on_settled,
            now_us=now_us,
            monotonic=monotonic,
            chance=chance,
        )
        self.loader = Loader(
            self.cache, self.queue, storage, self.log, monotonic=monotonic, chance=chance
        )
        self.watcher = Watcher(self.cache, self.queue, storage, self.log, on_version=self._saw)
        self._storage = storage
        self._now_us = now_us
        self._monotonic = monotonic
        self._version = 0
        self._ids = Allocator(storage, self._is_used)
        self._persisting: asyncio.Task[None] | None = None
        self._preloading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closed_by: type[Starting | Stopping] | None = Starting

    # --- opening and closing

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str | None = None,
        options: Options | None = None,
        *,
        connect_timeout_s: float = 30.0,
    ) -> AsyncIterator[ItemStore]:
        """A running store over the database ``dsn`` names; without one, over an embedded server.

        Makes the tables where they are missing. On leaving, everything accepted is written.
        Raises StartupError if PostgreSQL cannot be used, or does not answer within
        ``connect_timeout_s``.
        """
        # Here, not above: a simulation of the store needs no driver.
        from itemstore.database import database
        from itemstore.storage.postgres import Postgres

        async with database(dsn) as url:
            try:
                storage = Postgres(url)
            except StorageError as error:
                raise StartupError(str(error)) from error
            store = cls(storage, options)
            try:
                await store.start(connect_timeout_s)
                yield store
            finally:
                await store.close()

    async def start(self, connect_timeout_s: float | None = None) -> None:
        """Connects, then accepts requests and begins to preload.

        Waits for a database that does not answer yet: for ever, or ``connect_timeout_s``.
        Raises StartupError if waiting does not help.
        """
        try:
            async with asyncio.timeout(connect_timeout_s):
                found = await self._open_storage()
        except TimeoutError:
            raise StartupError(
                f"PostgreSQL did not answer within {connect_timeout_s:g} s. Is it running, "
                "and does DATABASE_URL name the right host and port?"
            ) from None
        self._version = max(found.newest_version, self._now_us())
        self._restore(found.parked)
        self._persisting = asyncio.create_task(self.persister.run(), name="persister")
        self._watching = asyncio.create_task(self.watcher.run(), name="watcher")
        if self._should_preload(found):
            self._preloading = asyncio.create_task(
                self.loader.preload(found.items_estimate), name="preload"
            )
        self._closed_by = None

    async def _open_storage(self) -> Found:
        delay = 0.1
        while True:
            try:
                return await self._storage.open()
            except StorageAway as error:
                self.log.warning("database_away", reason=str(error), retry_s=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, CONNECT_RETRY_MAX_S)
            except StorageError as error:
                raise StartupError(f"PostgreSQL cannot be used: {error}") from error

    def _restore(self, parked: Iterable[Change]) -> None:
        """Quarantined items are served again, as they were accepted."""
        for change in parked:
            self.queue.restore_parked(change)
            if not change.deleted:
                self.cache.put(change.id, change.entry)

    def _should_preload(self, found: Found) -> bool:
        if self.options.skip_items_preload is not Preload.AUTO:
            return self.options.skip_items_preload is Preload.PRELOAD
        budget = self.options.cache_bytes_max or memory.default_cache_bytes()
        needed = memory.estimate(found.items_estimate, found.bytes_estimate)
        self.log.info(
            "preload_decided",
            preload=needed <= budget,
            items=found.items_estimate,
            needed_bytes=needed,
            budget_bytes=budget,
        )
        return needed <= budget

    async def close(self, time_limit_s: float | None = None) -> list[str]:
        """Refuses new requests, empties the write queue and closes the connections.

        Returns the ids of accepted items that could not be written within the time limit (seconds;
        ``shutdown_timeout_s`` by default); no write of theirs was acknowledged at ``commit``.
        """
        limit_s = self.options.shutdown_timeout_s if time_limit_s is None else time_limit_s
        self._closed_by = Stopping
        self.admission.close(Stopping("The store is closing; nothing was changed."))
        await end([self._preloading, self._watching])
        await self._ids.close()
        await self.loader.close()
        if self._persisting is not None:
            self.persister.stop()
            await asyncio.wait([self._persisting], timeout=max(0.0, limit_s))
            await end([self._persisting])
        left = sorted(self.queue.dirty_ids())
        await self._storage.close()
        return left

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered, and exactly."""
        return self._closed_by is None

    # --- reading

    async def get(self, item_id: str) -> Item | None:
        """The item's newest accepted state, or None if there is none.

        Raises InvalidId, or DatabaseUnavailable if it is not cached and cannot be loaded.
        """
        entry = self.cache.entries.get(item_id)
        if entry is None:
            entry = await self._find(check_id(item_id))
        return None if entry is None else Item(item_id, entry)

    async def list(
        self,
        *,
        limit: int = listing.LIMIT_DEFAULT,
        order: str = "created",
        cursor: str | None = None,
        prefix: str = "",
        count: bool = False,
    ) -> listing.Page:
        """A page of items, exact: every write accepted before the call is in it.

        ``order`` is created, updated or id, with a ``-`` before it for the other direction;
        ``prefix`` is what the ids begin with; ``count`` asks for the number of all that match.
        Raises InvalidParameter, InvalidCursor, or DatabaseUnavailable.
        """
        self._check_open()
        listing.check_limit(limit)
        column, descending = listing.check_order(order)
        listing.check_prefix(prefix)
        after = None if cursor is None else listing.decode(cursor, order=order, prefix=prefix)
        await self.flush()
        query = ListQuery(
            limit=limit + 1,
            bytes_max=listing.PAGE_BYTES_MAX,
            order=column,
            descending=descending,
            prefix=prefix,
            after=after,
            count=count,
        )
        try:
            rows, number = await self._storage.select(query)
        except StorageError as error:
            raise DatabaseUnavailable(
                f"A list needs PostgreSQL, which cannot be read now ({error.kind}). Repeat later."
            ) from error
        return listing.page(rows, limit=limit, order=order, prefix=prefix, count=number)

    async def flush(self) -> None:
        """Returns when everything accepted before the call is committed: the barrier.

        Raises DatabaseUnavailable if that takes more than ``commit_timeout_s``.
        """
        if not len(self.queue):
            return
        self._check_database("accepted writes are not committed yet")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.when_settled(self._version, partial(_settle, done))
        try:
            async with asyncio.timeout(self.options.commit_timeout_s):
                await done
        except TimeoutError:
            raise DatabaseUnavailable(
                "PostgreSQL did not commit the accepted writes within "
                f"{self.options.commit_timeout_s:g} s. They are kept; repeat later."
            ) from None

    async def _find(self, item_id: str) -> bytes | None:
        self._check_open()
        while (known := self._known(item_id)) is UNKNOWN:
            await self._load(item_id)
        return known

    def _known(self, item_id: str) -> bytes | _Unknown | None:
        """The packed entry, None if there is surely no such item, or UNKNOWN."""
        entry = self.cache.entries.get(item_id)
        if entry is not None:
            return entry
        if self.cache.is_absent(item_id) or self.queue.get(item_id) is not None:
            return None  # what is pending and not cached is a delete
        return UNKNOWN

    def _is_used(self, item_id: str) -> bool:
        """Whether an item of this id was written here; PostgreSQL may not know it yet."""
        return item_id in self.cache.entries or self.queue.get(item_id) is not None

    async def _load(self, item_id: str) -> None:
        try:
            async with asyncio.timeout(self.options.load_timeout_s):
                await self.loader.load(item_id)
        except TimeoutError:
            raise DatabaseUnavailable(
                "The item is not in memory and PostgreSQL did not answer within "
                f"{self.options.load_timeout_s:g} s. Repeat later."
            ) from None

    # --- writing

    async def create(
        self,
        data: Mapping[str, Any] | Encoded,
        *,
        item_id: str | None = None,
        durability: Durability | str | None = None,
    ) -> Item:
        """A new item, under the given id or a generated one.

        Raises ItemExists if there is one with this id, InvalidId, InvalidData, Unavailable.
        """
        return await self.write(Create(data, item_id), durability)

    async def put(
        self,
        item_id: str,
        data: Mapping[str, Any] | Encoded,
        *,
        when: Condition = ALWAYS,
        durability: Durability | str | None = None,
    ) -> Item:
        """Creates or replaces the item; its ``is_new`` tells which.

        Raises PreconditionFailed if ``when`` does not hold, InvalidId, InvalidData, Unavailable.
        """
        return await self.write(Put(item_id, data, when), durability)

    async def patch(
        self,
        item_id: str,
        patch: Mapping[str, Any],
        *,
        when: Condition = ALWAYS,
        durability: Durability | str | None = None,
    ) -> Item:
        """Changes the item's data by a JSON merge patch (RFC 7396).

        Raises ItemNotFound, PreconditionFailed, InvalidData if the result cannot be stored,
        Unavailable.
        """
        return await self.write(Patch(item_id, patch, when), durability)

    async def delete(
        self,
        item_id: str,
        *,
        when: Condition = ALWAYS,
        durability: Durability | str | None = None,
    ) -> None:
        """Deletes the item. Raises ItemNotFound, PreconditionFailed, InvalidId, Unavailable."""
        await self.write(Delete(item_id, when), durability)

    async def batch(
        self, operations: Sequence[Operation], *, durability: Durability | str | None = None
    ) -> Sequence[Item | ItemStoreError | None]:
        """Carries the operations out one after another; one result each, in their order.

        Each stands alone: a result is the item, None for a delete, or the error that stopped this
        operation and no other. Their commits are waited for together.
        """
        self._check_open()
        level = self.level(durability)
        unknown = dict.fromkeys(
            op.id for op in operations if op.id and self._known(op.id) is UNKNOWN
        )
        loads = await asyncio.gather(*map(self._load, unknown), return_exceptions=True)
        failures = {item_id: load for item_id, load in zip(unknown, loads, strict=True) if load}
        begun = [
            await _outcome(self._begin(operation, level, failures.get(operation.id or "")))
            for operation in operations
        ]
        deadline = asyncio.get_running_loop().time() + self.options.commit_timeout_s
        return [
            await _outcome(self._finish(each, deadline)) if isinstance(each, _Accepted) else each
            for each in begun
        ]

    def level(self, durability: Durability | str | None) -> Durability:
        """The durability a write will have; the store's own for None.

        Raises InvalidDurability if there is no such level, DurabilityUnavailable if it cannot be
        given: a level is never weakened in silence.
        """
        if durability is None:
            return self.options.durability
        try:
            level = Durability(durability)
        except ValueError:
            raise InvalidDurability(
                f"durability is {', '.join(Durability)}, not {str(durability)[:40]!r}."
            ) from None
        if level is Durability.JOURNAL:
            raise DurabilityUnavailable("This store has no journal. Ask for memory or commit.")
        return level

    async def write(self, operation: Write, durability: Durability | str | None = None) -> Item:
        """Carries out one operation; the methods above are its short forms.

        Returns the item as it is now; of a deleted one what is left: its id and version.
        """
        accepted = await self._accept(operation, self.level(durability))
        await self._acknowledge(accepted)
        return _item(accepted.change)

    async def _accept(self, operation: Write, level: Durability) -> _Accepted:
        """Waits for what the decision needs, then decides and applies it without a pause."""
        while True:
            self._check_open()
            if level is Durability.COMMIT:
                self._check_database("nothing was changed")
            await self.admission.enter()
            if operation.id is None:
                item_id, old = self._ids.take(), None
                if item_id is not None:
                    break
                await self._ids.refill()
            else:
                item_id = operation.id
                known = self._known(item_id)
                if known is not UNKNOWN:
                    old = known
                    break
                await self._load(item_id)
        return self._apply(item_id, old, operation.decide(old), level)

    def _apply(
        self, item_id: str, old: bytes | None, text: bytes | None, level: Durability
    ) -> _Accepted:
        """The one place where an item changes. Nothing here awaits."""
        version = self._version = next_version(self._version, self._now_us())
        entry = pack(version, version if old is None else created_us_of(old), text or b"")
        change = Change(item_id, version, entry, deleted=text is None, now_s=self._monotonic())
        if text is None:
            self.cache.remove(item_id)
        else:
            self.cache.put(item_id, entry)
        if old is None:
            self._ids.claim(item_id)
        done = None
        if level is Durability.COMMIT:
            done = asyncio.get_running_loop().create_future()
            change.settled.append(partial(_settle, done))
        self.queue.put(change)
        self.persister.wake()
        return _Accepted(change, done)

    async def _acknowledge(self, accepted: _Accepted, deadline: float | None = None) -> None:
        """Returns when the write is as durable as was asked; waits no longer than ``deadline``."""
        if accepted.done is None:
            return
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.options.commit_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await accepted.done
        except TimeoutError:
            raise CommitUnconfirmed(
                f"Version {accepted.change.version} is accepted and will be written, but "
                f"PostgreSQL has not confirmed it within {self.options.commit_timeout_s:g} s. "
                "Read the item before you repeat the request."
            ) from None

    async def _begin(
        self, operation: Operation, level: Durability, failure: BaseException | None
    ) -> _Accepted | Item:
        if failure is not None and operation.id and self._known(operation.id) is UNKNOWN:
            raise failure  # not each operation is to wait for a load again
        if not isinstance(operation, Get):
            return await self._accept(operation, level)
        item = await self.get(operation.id)
        if item is None:
            raise ItemNotFound(f"There is no item {operation.id!r}.")
        return item

    async def _finish(self, accepted: _Accepted, deadline: float) -> Item | None:
        await self._acknowledge(accepted, deadline)
        return None if accepted.change.deleted else _item(accepted.change)

    # --- the state of things

    def _check_open(self) -> None:
        if self._closed_by is not None:
            raise self._closed_by(
                "The store is connecting to PostgreSQL. Repeat in a moment."
                if self._closed_by is Starting
                else "The store is closing; nothing was changed. Repeat with its successor."
            )

    def _check_database(self, meanwhile: str) -> None:
        """Raises DatabaseUnavailable if PostgreSQL has been failing for a while already."""
        persister = self.persister
        if persister.failing_since is None:
            return
        failing_s = self._monotonic() - persister.failing_since
        kind = persister.failure.kind if persister.failure else "away"
        if persister.is_halted or failing_s > AWAY_MAX_S:
            raise DatabaseUnavailable(
                f"PostgreSQL has not taken a write for {failing_s:.0f} s ({kind}); "
                f"{meanwhile}. Repeat later."
            )

    def _saw(self, version: int) -> None:
        """Another hand gave out this version: the clock goes on after it."""
        self._version = max(self._version, version)

    def _on_settled(self, changes: Sequence[Change]) -> None:
        """Loads under way may have read these items as they were before."""
        self.cache.touch(change.id for change in changes)
        self.admission.let_in()


def _item(change: Change) -> Item:
    return Item(change.id, change.entry)


async def _outcome(step: Awaitable[T]) -> T | ItemStoreError:
    try:
        return await step
    except ItemStoreError as error:
        return error


def _settle(future: asyncio.Future[None], failure: Exception | None) -> None:
    if future.done():  # its writer has given up
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
        future.exception()  # its writer may be gone: that is no news
