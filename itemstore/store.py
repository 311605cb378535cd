"""ItemStore: the one object the outside knows.

A write reads the old item, decides, changes the cache and joins the write queue in one plain
``def``, so nothing can come between (invariant 1). What may wait stands before it (the lease, room
in the queue, an item that is not cached) or after it (the durability asked for).

Only the holder of the lease answers from its cache. A standby reads through PostgreSQL, and has its
writes wait for the lease.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from itemstore import memory
from itemstore.accepted import Accepted, finished, outcome, settle
from itemstore.admission import Admission
from itemstore.allocator import Allocator
from itemstore.core import listing
from itemstore.core.cache import Cache
from itemstore.core.caller import ANYBODY, Caller
from itemstore.core.condition import ALWAYS, Condition
from itemstore.core.data import Encoded
from itemstore.core.item import Item, VersionClock, check_id, following
from itemstore.core.operation import (
    KEEP,
    Create,
    Delete,
    Get,
    Import,
    Operation,
    Patch,
    Put,
    Write,
)
from itemstore.core.query import Filters
from itemstore.core.queue import Change, WriteQueue
from itemstore.core.recent import Recent
from itemstore.deadlines import Deadlines
from itemstore.errors import (
    ItemNotFound,
    ItemStoreError,
    Starting,
    StartupError,
    Stopping,
)
from itemstore.journaling import Journaling
from itemstore.keeper import Keeper
from itemstore.lease import WriterLease
from itemstore.lister import Lister
from itemstore.loader import Loader
from itemstore.log import library_logger
from itemstore.options import Durability, Options
from itemstore.packer import Packer
from itemstore.persister import Persister
from itemstore.quarantine import Quarantine
from itemstore.quotas import Quotas
from itemstore.reader import UNKNOWN, Reader
from itemstore.storage import Storage, StorageError
from itemstore.succession import Succession
from itemstore.tasks import end, give_way, until_answered
from itemstore.watcher import Watcher

LET_GO_S: Final = 1.0  # for giving the lease back, however much time the queue has taken
NAMED_MAX: Final = 1_000  # ids in a line of the log


def _now_us() -> int:
    return time.time_ns() // 1_000


#: Seconds that go on while the machine sleeps: a lease runs out meanwhile (clock_gettime(2)).
_monotonic: Final = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)


class ItemStore:
    """Items in memory, persisted to PostgreSQL. Made by ``ItemStore.open``."""

    def __init__(
        self,
        storage: Storage,
        options: Options | None = None,
        *,
        log: FilteringBoundLogger | None = None,
        now_us: Callable[[], int] = _now_us,
        monotonic: Callable[[], float] = _monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.options = options = options or Options()
        self.log = log or library_logger()
        self.cache = Cache(packs=bool(options.cache_compression))
        self.queue = WriteQueue()
        cache_bytes = memory.cache_bytes(options.cache_bytes_max, options.queue_bytes_max)
        recent = Recent(memory.recent_bytes(cache_bytes))
        self.admission = Admission(self.queue, self.options)
        self.clock = VersionClock(now_us)
        self.lease = WriterLease(storage, self.options, self.log, monotonic=monotonic)
        self.persister = Persister(
            self.queue,
            storage,
            self.lease,
            self.options,
            self.log,
            on_settled=self._on_settled,
            recent=recent,
            now_us=now_us,
            monotonic=monotonic,
            chance=chance,
        )
        self.packer = Packer(self.cache, self.queue, self.log)
        self.loader = Loader(
            self.cache,
            self.queue,
            storage,
            self.log,
            self.packer,
            epoch=lambda: self.lease.held_epoch,
            monotonic=monotonic,
            chance=chance,
        )
        self.quotas = Quotas(self.queue, storage, wait_s=self.options.load_timeout_s)
        self._usages = self.quotas.usages
        self.quarantine = Quarantine(
            self.cache,
            self.queue,
            storage,
            self.lease,
            self.log,
            write=partial(self.write, durability=Durability.COMMIT),
            on_foreign=self._usages.forget,
        )
        self.reader = Reader(
            self.cache,
            self.queue,
            self.lease,
            self.loader,
            self.quarantine,
            load_timeout_s=self.options.load_timeout_s,
        )
        self.watcher = Watcher(
            self.cache,
            self.queue,
            storage,
            self.log,
            on_version=self.clock.saw,
            on_foreign=self._usages.forget,
            epoch=lambda: self.lease.held_epoch,
        )
        self._lister = Lister(storage, self.log, monotonic=monotonic)
        self.keeper = Keeper(self.cache, self.queue, recent, self.loader.awaited, cache_bytes)
        self._ids = Allocator(storage, self.cache, self.queue)
        self._deadlines = Deadlines(self.options.commit_timeout_s)
        self._succession = Succession(
            self.cache,
            self.queue,
            self.clock,
            storage,
            self.options,
            self.log,
            cache_bytes=cache_bytes,
            loader=self.loader,
            watcher=self.watcher,
            ids=self._ids,
            heal=self.persister.wake,
            on_foreign=self._usages.forget,
        )
        self.lease.owner = self._succession
        self.journaling = Journaling(
            self.queue,
            self.clock,
            self.options,
            self.log,
            wake=self.persister.wake,
            on_failure=lambda _: self._failed.set(),
            monotonic=monotonic,
        )
        self.monotonic = monotonic
        self._storage = storage
        self._persisting: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []
        self._closed_by: type[Starting | Stopping] | None = Starting
        self._failed = asyncio.Event()

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
                found = await until_answered(self._storage.open, self.log)
        except TimeoutError:
            raise StartupError(
                f"PostgreSQL did not answer within {connect_timeout_s:g} s. Is it running, "
                "and does DATABASE_URL name the right host and port?"
            ) from None
        self.clock.saw(max(self.clock.now(), found.newest_version))
        self._succession.begin(found)
        self._persisting = asyncio.create_task(self.persister.run(), name="persister")
        await self.journaling.open(found)
        await until_answered(self.lease.begin, self.log)
        self.lease.start()
        for each in (self.watcher, self.packer, self.keeper):
            self._others.append(asyncio.create_task(each.run(), name=type(each).__name__.lower()))
        self._closed_by = None

    async def close(
        self, time_limit_s: float | None = None, *, hurry: asyncio.Event | None = None
    ) -> list[str]:
        """Refuses new requests, empties the write queue, gives the lease back and disconnects.

        Returns the ids of accepted items that could neither be written nor journaled within the
        time limit (seconds; ``shutdown_timeout_s`` by default); no write of theirs was acknowledged
        at ``commit`` or ``journal``. ``hurry``, once set, ends the wait for PostgreSQL.
        """
        limit_s = self.options.shutdown_timeout_s if time_limit_s is None else time_limit_s
        deadline, hurry = self.monotonic() + limit_s, hurry or asyncio.Event()
        self._closed_by = Stopping
        self.admission.close(Stopping("The store is closing; nothing was changed."))
        self.lease.refuse()
        await self._ids.close()
        await self.loader.close()
        await self.quotas.close()
        if self._persisting is not None:
            self.persister.stop()
            waited = [self._persisting, asyncio.create_task(hurry.wait())]
            await asyncio.wait(waited, timeout=max(0.0, limit_s), return_when="FIRST_COMPLETED")
            await end(waited)
        left = sorted(self.queue.dirty_ids())
        is_kept = await self.journaling.close()
        if self._persisting is not None:
            rest_s = 0.0 if hurry.is_set() else deadline - self.monotonic()
            await self.lease.close(max(LET_GO_S, rest_s))
        await self._succession.close()
        await end(self._others)
        self._deadlines.close()
        await self._storage.close()
        if left and is_kept:
            self.log.warning("journaled", items=len(left), ids=left[:NAMED_MAX])
            return []
        return left

    async def failure(self) -> None:
        """Returns when the store should be ended, though it still serves: its journal failed."""
        await self._failed.wait()

    @property
    def has_failed(self) -> bool:
        """Whether ``failure`` has returned."""
        return self._failed.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered, and exactly."""
        return self._closed_by is None

    # --- reading

    async def get(self, item_id: str) -> Item | None:
        """The item's newest accepted state, or None if there is none.

        Raises InvalidId, or DatabaseUnavailable if it is not cached and cannot be loaded.
        """
        entry = self.cache.get(item_id)
        if entry is None or self.monotonic() >= self.lease.reads_until:
            self._check_open()
            entry = await self.reader.find(check_id(item_id))
        else:
            self.reader.found += 1
        return None if entry is None else Item(item_id, entry)

    def is_pending(self, item_id: str) -> bool:
        """Whether its newest state is not committed yet."""
        return item_id in self.queue

    async def list(
        self,
        *,
        limit: int = listing.LIMIT_DEFAULT,
        order: str = "created",
        cursor: str | None = None,
        prefix: str = "",
        count: str = "none",
        filters: Filters | None = None,
        fields: Sequence[str] | None = None,
    ) -> listing.Page:
        """A page of items, exact: every write accepted before the call is in it.

        ``order`` is created, updated, id or a field such as data.price, with a ``-`` before it for
        the other direction; ``prefix`` is what the ids begin with; ``count`` is none, exact or
        estimated; ``filters`` is ``{"data.price": ["gte.10", "lt.20"], "data.status": "eq.open"}``;
        with ``fields`` the items' data hold only these. docs/queries.md has the whole notation.
        Raises InvalidParameter, InvalidCursor, QueryTooSlow, or DatabaseUnavailable.
        """
        self._check_open()
        time_limit_s = self.options.query_timeout_s
        asked = listing.understand(
            limit, order, cursor, prefix, count, filters, fields, time_limit_s
        )
        await self.flush()
        return await self._lister.page(asked)

    async def flush(self) -> None:
        """Returns when everything accepted before the call is committed: the barrier.

        Raises DatabaseUnavailable if that takes more than ``commit_timeout_s``.
        """
        await self.persister.flush(self.clock.newest)

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
        self,
        operations: Sequence[Operation],
        *,
        durability: Durability | str | None = None,
        caller: Caller = ANYBODY,
    ) -> Sequence[Item | ItemStoreError | None]:
        """Carries the operations out one after another; one result each, in their order.

        Each stands alone: a result is the item, None for a delete, or the error that stopped this
        operation and no other. Their commits are waited for together.
        """
        self._check_open()
        level = self.level(durability)
        if any(not isinstance(op, Get) for op in operations):
            await self.lease.to_accept()
        failures = await self.reader.load_all(op.id for op in operations)
        begun: list[Accepted | Item | ItemStoreError] = []
        for number, operation in enumerate(operations, 1):
            begun.append(
                await outcome(
                    self._begin(operation, level, failures.get(operation.id or ""), caller)
                )
            )
            await give_way(number)
        return [
            await outcome(finished(each)) if isinstance(each, Accepted) else each for each in begun
        ]

    def level(self, durability: Durability | str | None) -> Durability:
        """The durability a write will have; the store's own for None.

        Raises InvalidDurability if there is no such level, DurabilityUnavailable if it cannot be
        given: a level is never weakened in silence.
        """
        if self._closed_by is Starting:  # whether there is a journal is not known yet
            self._check_open()
        return self.journaling.level(durability)

    async def write(
        self,
        operation: Write,
        durability: Durability | str | None = None,
        caller: Caller = ANYBODY,
    ) -> Item:
        """Carries out one operation; the methods above are its short forms.

        Returns the item as it is now; of a deleted one what is left: its id and version. Raises
        QuotaExceeded if there is no room left for the caller.
        """
        level = self.level(durability)
        accepted = self.accept_now(operation, level, caller)
        if accepted is None:
            accepted = await self.accept(operation, level, caller)
        if accepted.done is not None:
            await accepted.done
        return accepted.item

    def accept_now(
        self, operation: Write, level: Durability, caller: Caller = ANYBODY
    ) -> Accepted | None:
        """Decides and applies the operation, unless something must be waited for: then None.

        Raises what ``write`` does; then nothing was changed.
        """
        self.check_accepting(level)
        return self._decide(operation, level, caller) if self.admission.is_open else None

    def _decide(self, operation: Write, level: Durability, caller: Caller) -> Accepted | None:
        if not self.lease.may_accept() or self.quotas.lacks(caller):
            return None
        if operation.id is None:
            item_id, old = self._ids.take(), None
            if item_id is None:
                return None
        else:
            item_id, known = operation.id, self.reader.known(operation.id)
            if known is UNKNOWN:
                return None
            old = known
        text = operation.decide(old)
        if text is KEEP:
            return self._deadlines.kept(self.queue, item_id, old or b"", level)
        if caller.has_quota:
            self._usages.check(caller, old, text)
        created_us = operation.created_us if isinstance(operation, Import) else None
        return self._apply(item_id, old, text, level, created_us)

    async def accept(
        self,
        operation: Write,
        level: Durability,
        caller: Caller = ANYBODY,
        hold_s: float | None = None,
    ) -> Accepted:
        """Decides and applies the operation as soon as that needs no pause; raises as ``write``.

        It may have yet to become durable. ``hold_s`` is how long it waits for the lease.
        """
        deadline = self.monotonic() + (self.options.hold_s if hold_s is None else hold_s)
        while True:
            self.check_accepting(level)
            await self.lease.to_accept(deadline - self.monotonic())
            await self.admission.enter()
            accepted = self._decide(operation, level, caller)
            if accepted is not None:
                return accepted
            if self.quotas.lacks(caller):
                await self.quotas.know(caller)
            elif operation.id is None:
                await self._ids.refill()
            elif self.reader.known(operation.id) is UNKNOWN:
                await self.reader.load(operation.id)

    def _apply(
        self,
        item_id: str,
        old: bytes | None,
        text: bytes | None,
        level: Durability,
        created_us: int | None = None,
    ) -> Accepted:
        """The one place where an item changes. Nothing here awaits.

        ``created_us`` is that of a new item, None for now.
        """
        version = self.clock.next()
        entry = following(old, version, text or b"", created_us)
        change = Change(
            item_id,
            version,
            entry,
            deleted=text is None,
            now_s=self.monotonic(),
            is_acked=level is not Durability.COMMIT,
        )
        if text is None:
            self.cache.remove(item_id)
        else:
            self.cache.put(item_id, entry)
        if old is None:
            self._ids.claim(item_id)
        if self._usages.tracked:
            self._usages.note(item_id, old, text)
        done = None if level is Durability.MEMORY else self._deadlines.commit(change)
        self.queue.put(change)
        self.persister.wake(is_awaited=level is Durability.COMMIT)
        if level is Durability.JOURNAL and done is not None:
            self.journaling.append(change, partial(settle, done, None))
        return Accepted(change, old is None, done)

    async def _begin(
        self,
        operation: Operation,
        level: Durability,
        failure: BaseException | None,
        caller: Caller,
    ) -> Accepted | Item:
        if failure is not None and operation.id and self.reader.known(operation.id) is UNKNOWN:
            raise failure  # not each operation is to wait for a load again
        if not isinstance(operation, Get):
            return await self.accept(
                operation, level, caller, 0.0
            )  # the batch has waited for the lease
        item = await self.get(operation.id)
        if item is None:
            raise ItemNotFound(f"There is no item {operation.id!r}.")
        return item

    # --- the state of things

    def _check_open(self) -> None:
        if self._closed_by is not None:
            raise self._closed_by(
                "The store is connecting to PostgreSQL. Repeat in a moment."
                if self._closed_by is Starting
                else "The store is closing; nothing was changed. Repeat with its successor."
            )

    def check_accepting(self, level: Durability) -> None:
        """Raises Unavailable if a write would be refused at once."""
        self._check_open()
        if level is Durability.COMMIT:
            self.persister.check("nothing was changed")

    def _on_settled(self, changes: Sequence[Change]) -> None:
        """Loads under way may have read these items as they were before."""
        self.cache.touch(change.id for change in changes)
        self.admission.let_in()
        if self.lease.is_yielding and not len(self.queue):
            self.lease.wake()
