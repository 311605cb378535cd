"""The watcher: takes over what other hands than the store's change in PostgreSQL.

Triggers (schema.sql) note such changes in a table and notify; the table is read at each
notification and at an interval, so that a lost notification, or a pooler that passes none, costs
half a second and nothing else. A note is deleted only after it was taken over.

    1. psql updates "x", version 7      → noted
    2. the watcher asks for x           → a load begins
    3. a writer replaces "x", version 9 → the load is marked: x is left alone, and asked for again
    4. the watcher asks for x           → version 7, or 9 once it is committed: nothing is newer

That is the holder's part. A standby that has items in its cache keeps them fresh instead: it takes
what was committed beyond the version up to which all was settled when it last looked, and reads the
notes, which it leaves to the holder. So little is left to do when it takes the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore.core.cache import Cache
from itemstore.core.item import version_of
from itemstore.core.queue import WriteQueue
from itemstore.storage import (
    ForeignChange,
    Lease,
    State,
    Storage,
    StorageBroken,
    as_failure,
)

POLL_INTERVAL_S: Final = 0.5
RETRY_S: Final = 0.5


class Watcher:
    """``run`` is its life; ``take_over`` one step of it."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        storage: Storage,
        log: FilteringBoundLogger,
        *,
        on_version: Callable[[int], None],
        on_foreign: Callable[[str], None],
        epoch: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._storage = storage
        self._log = log
        #: Told each version seen, so that the store's clock stays ahead.
        self._on_version = on_version
        #: Told each id that was taken over; none for all of them.
        self._on_foreign = on_foreign
        #: Of the lease; 0 while this instance does not hold it.
        self._epoch = epoch
        self._sleep = sleep
        self.taken_over = 0  #: changes
        #: Of a standby: its cache holds what was committed up to this version, and what was noted
        #: before this time (PostgreSQL's); None if nothing is cached.
        self.since: int | None = None
        self._notes_since_us = 0

    async def run(self) -> None:
        """Until it is cancelled. A database that is away is asked again until it answers."""
        while True:
            try:
                if not self._epoch():
                    await self._sleep(POLL_INTERVAL_S)
                elif not await self.take_over():
                    await self._storage.await_foreign_changes(POLL_INTERVAL_S)
            except Exception as error:
                failure = as_failure(error)
                # Of outages the persister tells.
                tell = self._log.error if isinstance(failure, StorageBroken) else self._log.debug
                tell("watch_failed", reason=str(failure))
                await self._sleep(RETRY_S)

    def stand_by(self, since: int, notes_since_us: int) -> None:
        """From here on ``follow`` keeps the cache fresh, which is so up to now."""
        self.since, self._notes_since_us = since, notes_since_us

    async def follow(self, lease: Lease) -> None:
        """Keeps the cache fresh. ``lease`` was read just before."""
        await self.catch_up()
        self.since, self._notes_since_us = lease.settled, lease.now_us

    async def catch_up(self) -> None:
        """Takes what was committed since the cache was last known to be fresh."""
        after = self.since
        if after is None:
            return
        while after is not None:
            states, after = await self._storage.changes(after)
            self._apply(states, {})
        await self._follow_notes()

    async def _follow_notes(self) -> None:
        seq = 0
        while changes := await self._storage.foreign_changes_since(self._notes_since_us, seq):
            seq = changes[-1].seq
            ids = sorted({change.id for change in changes if change.id})
            states = await self._storage.states(ids) if ids else []
            self._apply(states, {change.id: change.version for change in changes})
            await self._truncate(changes)

    async def take_over(self) -> int:
        """Takes over what is noted by now; returns how many changes that were."""
        epoch = self._epoch()
        changes = await self._storage.foreign_changes()
        if not changes:
            return 0
        load = self._cache.begin_load()
        try:
            ids = sorted({change.id for change in changes if change.id})
            states = await self._storage.states(ids) if ids else []
        finally:
            self._cache.end_load(load)
        if epoch != self._epoch():
            return 0  # they are another's to take over
        done = [change for change in changes if change.id not in load.touched]
        noted = {change.id: change.version for change in changes}
        self._apply([state for state in states if state.id not in load.touched], noted)
        await self._truncate(done)
        for change in changes:
            self._on_foreign(change.id)
        await self._storage.forget_foreign_changes([change.seq for change in done], epoch)
        self._tell(done)
        return len(changes)

    async def _truncate(self, changes: Sequence[ForeignChange]) -> None:
        for change in changes:
            self._on_version(change.version)
            if not change.id:
                for _ in self._cache.truncate(change.version, self._queue):
                    await asyncio.sleep(0)

    def _apply(self, states: Sequence[State], noted: Mapping[str, int]) -> None:
        for state in states:
            self._on_version(state.version)
            # Of an item that is gone the tombstone may be purged already; the note knows as well.
            if max(state.version, noted.get(state.id, 0)) <= self._newest(state.id):
                continue
            if state.entry is None:
                self._cache.remove(state.id)
            else:
                self._cache.refresh(state.id, state.entry)

    def _newest(self, item_id: str) -> int:
        """The version this store knows of; a pending delete is not in the cache."""
        change = self._queue.get(item_id)
        entry = self._cache.get(item_id)
        return max(change.version if change else 0, version_of(entry) if entry else 0)

    def _tell(self, done: Sequence[ForeignChange]) -> None:
        self.taken_over += len(done)
        if done:
            self._log.info("taken_over", changes=len(done), ids=[each.id for each in done[:10]])
