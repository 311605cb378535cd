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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore import batch, memory
from itemstore.accepted import Accepted, settle
from itemstore.admission import Admission
from itemstore.allocator import Allocator
from itemstore.audit import Audit
from itemstore.core import listing
from itemstore.core.cache import Cache
from itemstore.core.item import Item, VersionClock, check_id, following, version_of
from itemstore.core.operation import KEEP, Get, Import, Operation, Write, is_unnamed, named
from itemstore.core.query import Filters
from itemstore.core.queue import Change, WriteQueue
from itemstore.core.recent import Recent
from itemstore.core.record import Origin
from itemstore.deadlines import Deadlines
from itemstore.errors import ItemNotFound, ItemStoreError, Starting, StartupError, Stopping
from itemstore.forms import ShortForms
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
from itemstore.recorder import Recorder
from itemstore.repetitions import UNKNOWN as NOT_ASKED
from itemstore.repetitions import Repetitions
from itemstore.storage import Found, Storage, StorageError
from itemstore.succession import Succession
from itemstore.tasks import end, until_answered
from itemstore.watcher import Watcher

LET_GO_S: Final = 1.0  # for giving the lease back, however much time the queue has taken
NAMED_MAX: Final = 1_000  # ids in a line of the log


def _now_us() -> int:
    return time.time_ns() // 1_000


#: Seconds that go on while the machine sleeps: a lease runs out meanwhile (clock_gettime(2)).
_monotonic: Final = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)


class ItemStore(ShortForms):
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
            write=lambda operation, origin: self.write(operation, Durability.COMMIT, origin),
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
        self.repetitions = Repetitions(
            storage,
            kept_s=self.options.idempotency_retention_s,
            epoch=lambda: self.lease.held_epoch,
            now_us=now_us,
            monotonic=monotonic,
        )
        self._recorder = Recorder(self.queue, self.repetitions, audits=self.options.audit)
        self.audit = Audit(storage, flush=self.flush, time_limit_s=self.options.query_timeout_s)
        self._lister = Lister(storage, self.log, monotonic=monotonic)
        self.keeper = Keeper(self.cache, self.queue, recent, self.loader.awaited, cache_bytes)
        self._ids = Allocator(storage, self.cache, self.queue)
        self._deadlines = Deadlines(self.options.commit_timeout_s, self.queue)
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
                found = await until_answered(self._open, self.log)
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

    async def _open(self) -> Found:
        kept_s = self.options.audit_retention_s if self.options.audit else None
        return await self._storage.open(audit_s=kept_s)

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
        await self.repetitions.close()
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
        hints: bool = True,
    ) -> listing.Page:
        """A page of items, exact: every write accepted before the call is in it.

        ``order`` is created, updated, id or a field such as data.price, with a ``-`` before it for
        the other direction; ``prefix`` is what the ids begin with; ``count`` is none, exact or
        estimated; ``filters`` is ``{"data.price": ["gte.10", "lt.20"], "data.status": "eq.open"}``;
        with ``fields`` the data hold only these; docs/queries.md has the whole notation. ``hints``
        tells of missing indexes. Raises InvalidParameter, InvalidCursor, QueryTooSlow, Unavailable.
        """
        self._check_open()
        limit_s = self.options.query_timeout_s
        asked = listing.understand(limit, order, cursor, prefix, count, filters, fields, limit_s)
        await self.flush()
        return await self._lister.page(asked, hints=hints)

    async def flush(self) -> None:
        """Returns when everything accepted before the call is committed: the barrier.

        Raises DatabaseUnavailable if that takes more than ``commit_timeout_s``; Starting, Stopping.
        """
        self._check_open()  # until it has started, what a journal brings is not in the queue yet
        await self.persister.flush(self.clock.newest)

    # --- writing

    async def batch(
        self,
        operations: Sequence[Operation | ItemStoreError],
        *,
        durability: Durability | str | None = None,
        origin: Origin | None = None,
    ) -> Sequence[Item | ItemStoreError | None]:
        """Carries the operations out one after another; one result each, in their order.

        Each stands alone: a result is the item, None for a delete, or the error that stopped this
        operation and no other; Overloaded for what would read or patch an item when those in the
        results have 8 MiB already. Their commits are waited for together. An error among them is
        what is wrong with an operation, and its own result. With an idempotency key, what an
        earlier batch with it carried out is answered again and not repeated. Raises
        IdempotencyInProgress, IdempotencyKeyReused.
        """
        if origin is None or origin.once is None:
            return await self._batch(operations, durability, origin)
        with self.repetitions.alone(origin):
            return await self._batch(operations, durability, origin)

    async def _batch(
        self,
        operations: Sequence[Operation | ItemStoreError],
        durability: Durability | str | None,
        origin: Origin | None,
    ) -> Sequence[Item | ItemStoreError | None]:
        self._check_open()
        level = self.level(durability)
        if batch.writes(operations):
            await self.lease.to_accept()
            if origin is not None and origin.once is not None:
                await self.repetitions.look_up(origin)
        begin = partial(self._begin, level, origin)
        return await batch.run(operations, begin, self.reader, self.lease)

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
        origin: Origin | None = None,
    ) -> Item:
        """Carries out one operation; the methods of ``ShortForms`` are its short forms.

        Returns the item as it is now; of a deleted one what is left: its id and version. With an
        idempotency key, what an earlier call with it returned, if there was one: ``replayed`` of
        the origin's ``once`` tells. Raises IdempotencyInProgress, IdempotencyKeyReused, and
        QuotaExceeded if there is no room left for the caller.
        """
        if origin is None or origin.once is None:
            return await self._write(operation, durability, origin)
        with self.repetitions.alone(origin):
            return await self._write(operation, durability, origin)

    async def _write(
        self, operation: Write, durability: Durability | str | None, origin: Origin | None
    ) -> Item:
        level = self.level(durability)
        accepted = self.accept_now(operation, level, origin)
        if accepted is None:
            accepted = await self.accept(operation, level, origin=origin)
        if accepted.done is not None:
            await accepted.done
        return accepted.item

    def accept_now(
        self, operation: Write, level: Durability, origin: Origin | None = None
    ) -> Accepted | None:
        """Decides and applies the operation, unless something must be waited for: then None.

        Raises what ``write`` does; then nothing was changed.
        """
        self.check_accepting(level)
        return self._decide(operation, level, origin, 0) if self.admission.is_open else None

    def _decide(
        self, operation: Write, level: Durability, origin: Origin | None, position: int
    ) -> Accepted | None:
        if not self.lease.may_accept():
            return None
        if origin is not None and origin.once is not None:
            earlier = self.repetitions.answer(operation, origin, position)
            if earlier is not None:
                return None if earlier is NOT_ASKED else self._stands(earlier, level)
        if origin is not None and self.quotas.lacks(origin.caller):
            return None
        item_id = operation.id or named(operation, self._ids.take())
        if item_id is None:
            return None
        old = None
        if operation.id is not None:
            known = self.reader.known(item_id)
            if known is UNKNOWN or (known is not None and is_unnamed(operation)):
                return None
            old = known
        text = operation.decide(old)
        if text is KEEP:
            entry = old or b""
            kept = Change(item_id, version_of(entry), entry, deleted=False, now_s=0.0)
            return self._stands(kept, level)
        if origin is not None and origin.caller.has_quota:
            self._usages.check(origin.caller, old, text)
        return self._apply(operation, item_id, old, text, level, origin, position)

    async def accept(
        self,
        operation: Write,
        level: Durability,
        hold_s: float | None = None,
        *,
        origin: Origin | None = None,
        position: int = 0,
    ) -> Accepted:
        """Decides and applies the operation as soon as that needs no pause; raises as ``write``.

        It may have yet to become durable. ``hold_s`` is how long it waits for the lease;
        ``position`` is that of the operation in the batch of ``origin``.
        """
        deadline = self.monotonic() + (self.options.hold_s if hold_s is None else hold_s)
        while True:
            self.check_accepting(level)
            await self.lease.to_accept(deadline - self.monotonic())
            await self.admission.enter()
            accepted = self._decide(operation, level, origin, position)
            if accepted is not None:
                return accepted
            if origin is not None and self.repetitions.has_to_ask(origin, position):
                await self.repetitions.look_up(origin)
            elif origin is not None and self.quotas.lacks(origin.caller):
                await self.quotas.know(origin.caller)
            elif operation.id is None:
                await self._ids.refill()
            elif self.reader.known(operation.id) is UNKNOWN:
                await self.reader.load(operation.id)

    def _apply(
        self,
        operation: Write,
        item_id: str,
        old: bytes | None,
        text: bytes | None,
        level: Durability,
        origin: Origin | None,
        position: int,
    ) -> Accepted:
        """The one place where an item changes. Nothing here awaits."""
        is_recorded = self._recorder.is_due(item_id, origin)
        version = self.clock.next()
        created_us = operation.created_us if isinstance(operation, Import) else None
        entry = following(old, version, text or b"", created_us)
        change = Change(
            item_id,
            version,
            entry,
            deleted=text is None,
            now_s=self.monotonic(),
            is_acked=level is not Durability.COMMIT,
        )
        if is_recorded:
            self._recorder.record(operation, change, origin, position)
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

    def _stands(self, change: Change, level: Durability) -> Accepted:
        """Nothing changes, and no more is promised of the item than what holds, or will."""
        return Accepted(change, False, self._deadlines.durable(change, level), is_kept=True)

    async def _begin(
        self, level: Durability, origin: Origin | None, position: int, operation: Operation
    ) -> Accepted | Item:
        """One operation of a batch, which has waited for the lease."""
        if not isinstance(operation, Get):
            return await self.accept(operation, level, 0.0, origin=origin, position=position)
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
