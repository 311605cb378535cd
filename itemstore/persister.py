"""The persister: the one task that empties the write queue into PostgreSQL.

    wait for work → take a batch → write it → settle it → again

A batch that fails is retried as it is until it is committed: writing is idempotent by version,
so a lost answer costs a repetition and nothing else. Only a bad row takes it apart: the batch is
halved until the row stands alone and goes into quarantine. What cannot be written for another
reason halts the persister, loudly; it tries again at long intervals, and the queue is kept.

Every batch carries a claim to the writer lease. If the lease is another's, only what was
acknowledged is written, and who waits for the commit is told that it is not confirmed. If
PostgreSQL turns out to have lost its last commits, they are written again first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore.accepted import settle
from itemstore.core.histogram import BATCH_BOUNDS_ITEMS, BATCH_BOUNDS_S, Histogram
from itemstore.core.queue import Change, WriteQueue
from itemstore.core.recent import Recent
from itemstore.errors import DatabaseUnavailable, ItemQuarantined, LeaseLost
from itemstore.lease import WriterLease
from itemstore.options import Options
from itemstore.storage import (
    Storage,
    StorageAway,
    StorageBroken,
    StorageDown,
    StorageError,
    StorageRefused,
    StorageSlow,
    as_failure,
)

RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 2.0  # so that a database that came back is noticed within seconds
HALT_RETRY_S: Final = 10.0
#: After PostgreSQL has failed for so long, what needs it is refused at once instead of waiting.
AWAY_MAX_S: Final = 5.0
PARKED_MAX: Final = 1_000  # items: more refused than this is not a few bad rows
PURGE_INTERVAL_S: Final = 60.0

Sleep = Callable[[float], Awaitable[None]]

#: Writers whom a batch has let go on, and who are about to write again: the next batch waits for
#: them, or the first of them would have one to himself and the others wait for it.
TOGETHER_MIN: Final = 8
TOGETHER_S: Final = 0.001

#: From batch to batch, while nobody waits for a commit: a batch of one costs PostgreSQL and us a
#: third of what one of thirty costs.
GATHER_S: Final = 0.005

_size: Final = attrgetter("size")
_dirty_since: Final = attrgetter("dirty_since")


class Persister:
    """Writes batch after batch; ``run`` is its life, the counters what it has done."""

    def __init__(
        self,
        queue: WriteQueue,
        storage: Storage,
        lease: WriterLease,
        options: Options,
        log: FilteringBoundLogger,
        *,
        on_settled: Callable[[list[Change]], None],
        now_us: Callable[[], int],
        recent: Recent | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._queue = queue
        self._storage = storage
        self._lease = lease
        self._recent = recent or Recent()
        self._options = options
        self._log = log
        self._together = 0
        self._on_settled = on_settled
        self._now_us = now_us
        self._monotonic = monotonic
        self._sleep = sleep
        self._chance = chance or random.Random()  # noqa: S311 - jitter, not a secret
        self._work = asyncio.Event()
        self._is_awaited = asyncio.Event()
        self._began_at = float("-inf")
        self._stopping = False
        self._purge_at = monotonic() + PURGE_INTERVAL_S
        #: Since when PostgreSQL has not taken a batch, and why; None while it does.
        self.failing_since: float | None = None
        self.failure: StorageError | None = None
        self.batches = 0
        self.committed = 0  #: changes
        self.quarantined = 0  #: changes
        self.reapplied = 0  #: changes that PostgreSQL had lost
        self.retries: dict[str, int] = {kind.kind: 0 for kind in _KINDS}
        self.last_commit_at: float | None = None
        self.last_batch_s = 0.0
        self.batch_items = Histogram(BATCH_BOUNDS_ITEMS)
        self.batch_seconds = Histogram(BATCH_BOUNDS_S)

    @property
    def is_halted(self) -> bool:
        return isinstance(self.failure, StorageBroken)

    def check(self, meanwhile: str) -> None:
        """Raises DatabaseUnavailable if PostgreSQL has been failing for a while already."""
        if self.failing_since is None:
            return
        failing_s = self._monotonic() - self.failing_since
        kind = self.failure.kind if self.failure else "away"
        if self.is_halted or failing_s > AWAY_MAX_S:
            raise DatabaseUnavailable(
                f"PostgreSQL has not taken a write for {failing_s:.0f} s ({kind}); "
                f"{meanwhile}. Repeat later."
            )

    def wake(self, *, is_awaited: bool = True) -> None:
        """There is something in the queue; ``is_awaited``: somebody waits for its commit."""
        self._work.set()
        if is_awaited:
            self._is_awaited.set()

    async def flush(self, version: int) -> None:
        """Returns when everything accepted up to this version is committed: the barrier.

        Raises DatabaseUnavailable if that takes more than ``commit_timeout_s``.
        """
        if not len(self._queue):
            return
        self.check("accepted writes are not committed yet")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.when_settled(version, partial(settle, done))
        self.wake()
        try:
            async with asyncio.timeout(self._options.commit_timeout_s):
                await done
        except TimeoutError:
            raise DatabaseUnavailable(
                "PostgreSQL did not commit the accepted writes within "
                f"{self._options.commit_timeout_s:g} s. They are kept; repeat later."
            ) from None

    def stop(self) -> None:
        """Lets ``run`` return as soon as the queue is empty."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Returns after ``stop``, with the queue empty. Nothing but that ends it."""
        while await self._has_work():
            if self._lease.is_tail_open:
                await self._heal()
                continue
            await self._gather()
            self._began_at = self._monotonic()
            batch = self._queue.take(self._options.batch_items_max, self._options.batch_bytes_max)
            if not self._queue.has_queued:
                self._is_awaited.clear()
            await self._persist(batch)
            await self._purge_if_due()

    async def _has_work(self) -> bool:
        while not (self._queue.has_queued or self._lease.is_tail_open):
            if self._stopping:
                return False
            self._work.clear()
            await self._work.wait()
        return True

    async def _gather(self) -> None:
        """Lets a batch become larger, where that keeps nobody waiting for long."""
        if self._together >= TOGETHER_MIN:
            await self._sleep(TOGETHER_S)
            return
        rest_s = self._began_at + GATHER_S - self._monotonic()
        if rest_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._is_awaited.wait()

    async def _persist(self, batch: list[Change]) -> None:
        """Until every change of the batch is committed or parked."""
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                await self._write(part)
            except (StorageRefused, StorageSlow) as failure:
                if len(part) > 1:
                    parts += halves(part)
                elif isinstance(failure, StorageRefused):
                    await self._park(part[0], failure)
                else:
                    parts.append(part)

    async def _write(self, part: list[Change]) -> None:
        """Commits the part. Raises StorageRefused, and StorageSlow after a pause."""
        attempt = 0
        while True:
            started = self._monotonic()
            try:
                is_held = await self._send(part)
                await self._release(part)
                if self._lease.is_tail_open:
                    await self._reapply()
            except StorageRefused:
                raise
            except Exception as error:
                await self._pause(as_failure(error), attempt, part)
                if isinstance(error, StorageSlow):
                    raise
                attempt += 1
            else:
                self._note_commit(part, started, is_held=is_held)
                return

    async def _send(self, part: list[Change]) -> bool:
        """Writes the part; whether that was under a valid claim to the lease.

        Raises StorageError.
        """
        sent = self._lease.send_batch()
        standing = await self._storage.write(part, sent.claim)
        is_held = self._lease.heard(sent, standing)
        if not is_held and standing.epoch < sent.claim.epoch:
            raise StorageAway("PostgreSQL has lost our epoch of the lease; it is taken again")
        if not is_held and 0 < sent.claim.epoch < self._lease.epoch == standing.epoch:
            raise StorageAway("the batch was sent under an older epoch of ours")
        return is_held

    async def _heal(self) -> None:
        """When the lease has found the loss and there is no batch to do it with."""
        attempt = 0
        while self._lease.is_tail_open:
            try:
                await self._reapply()
            except Exception as error:
                await self._pause(as_failure(error), attempt, [])
                attempt += 1
            else:
                self._note_answer(self._monotonic())

    async def _reapply(self) -> None:
        """Writes again what was committed of late, for PostgreSQL may have lost it."""
        changes, is_lost = self._recent.changes(), self._lease.tail_lost
        if is_lost:
            self._log.error(
                "reapplying", changes=len(changes), hint="a failover lost what had been committed"
            )
        size = self._options.batch_items_max
        parts = [changes[start : start + size] for start in range(0, len(changes), size)]
        while parts:
            part = parts.pop()
            try:
                await self._send(part)
            except StorageRefused as refusal:  # a rule that is newer than the commit
                if len(part) > 1:
                    parts += halves(part)
                else:
                    await self._storage.quarantine(part[0], str(refusal))
                    self._queue.adopt_parked(part[0])
                    self._log.error("reapply_refused", id=part[0].id, reason=str(refusal))
        self._lease.close_tail()
        self.reapplied += len(changes) if is_lost else 0

    async def _release(self, part: list[Change]) -> None:
        superseded = [change.id for change in part if change.id in self._queue.parked]
        if superseded:
            await self._storage.release(superseded)

    def _note_commit(self, part: list[Change], started: float, *, is_held: bool) -> None:
        now = self._monotonic()
        self._note_answer(now)
        self.last_commit_at = now
        self.last_batch_s = now - started
        self.batches += 1
        self.batch_items.observe(len(part))
        self.batch_seconds.observe(self.last_batch_s)
        self._together = sum(bool(change.settled) for change in part)
        written = part if is_held else [change for change in part if change.is_acked]
        self.committed += len(written)
        self._recent.note(written, now)
        self._log.debug(
            "batch",
            items=len(part),
            bytes=sum(map(_size, part)),
            ms=round(self.last_batch_s * 1000, 2),
            oldest_ms=round((now - min(map(_dirty_since, part))) * 1000, 2),
            queued=len(self._queue) - len(part),
        )
        if is_held:
            self._queue.settle(part)
        else:
            self._settle_without_lease(written, [each for each in part if not each.is_acked])
        self._on_settled(part)

    def _settle_without_lease(self, written: list[Change], refused: list[Change]) -> None:
        doubt = LeaseLost(
            "Another instance has taken the writer lease, so that this write is not confirmed. "
            "Read the item before you repeat the request."
        )
        self._queue.settle(written, doubt)
        self._queue.fence(refused, doubt)

    def _note_answer(self, now: float) -> None:
        if self.failing_since is not None:
            self._log.warning("database_back", away_s=round(now - self.failing_since, 3))
        self.failing_since = self.failure = None

    async def _park(self, change: Change, refusal: StorageRefused) -> None:
        """Into quarantine: first on disk, then in the queue's books."""
        attempt = 0
        while True:
            try:
                if len(self._queue.parked) >= PARKED_MAX:
                    raise StorageBroken(f"more than {PARKED_MAX} items were refused: {refusal}")
                await self._storage.quarantine(change, str(refusal))
            except Exception as error:
                await self._pause(as_failure(error), attempt, [change])
                attempt += 1
            else:
                break
        self._note_answer(self._monotonic())  # else, with nothing left to commit, nobody would
        self.quarantined += 1
        self._log.error(
            "quarantined",
            id=change.id,
            version=change.version,
            reason=str(refusal),
            hint="see the table quarantine; the item is served from memory",
        )
        self._queue.park(
            change,
            ItemQuarantined(
                f"PostgreSQL refused version {change.version} of this item: {refusal}. "
                "It is served from memory and kept in the table quarantine; write a corrected one."
            ),
        )
        self._on_settled([change])

    async def _pause(self, failure: StorageError, attempt: int, part: list[Change]) -> None:
        self.retries[failure.kind] += 1
        if self.failing_since is None:
            self.failing_since = self._monotonic()
        is_news = type(failure) is not type(self.failure)
        self.failure = failure
        if isinstance(failure, StorageBroken):
            delay = HALT_RETRY_S
            self._log.critical(
                "halted",
                reason=str(failure),
                queued=len(self._queue),
                retry_s=delay,
                hint="nothing is written until this is mended; the queue is kept",
            )
        else:
            delay = min(RETRY_MIN_S * 2 ** min(attempt, 16), RETRY_MAX_S)
            delay *= self._chance.uniform(0.5, 1.0)
            tell = self._log.warning if is_news else self._log.info
            tell(
                "retry",
                kind=failure.kind,
                reason=str(failure),
                items=len(part),
                attempt=attempt + 1,
                retry_s=round(delay, 3),
            )
        await self._sleep(delay)

    async def _purge_if_due(self) -> None:
        if self._monotonic() < self._purge_at or self._stopping:
            return
        before = self._before(self._options.tombstone_retention_s)
        try:
            purged = await self._storage.purge(before)
            keys_before = self._before(self._options.idempotency_retention_s)
            purged += await self._storage.purge_records(keys_before)
        except StorageError as failure:
            purged = 0
            self._log.warning("purge_failed", reason=str(failure))
        if not purged:  # else more may be left: go on after the next batch
            self._purge_at = self._monotonic() + PURGE_INTERVAL_S

    def _before(self, retention_s: float) -> int:
        return self._now_us() - int(retention_s * 1_000_000)


def halves(part: list[Change]) -> tuple[list[Change], list[Change]]:
    """The second first: parts are taken from the end."""
    middle = len(part) // 2
    return part[middle:], part[:middle]


_KINDS: Final = (StorageAway, StorageDown, StorageSlow, StorageRefused, StorageBroken)
