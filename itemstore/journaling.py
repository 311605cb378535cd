"""Journaling: the durability level between memory and PostgreSQL, for stores that have a disk.

    start:  lock the directory → read what a crash left → write it to PostgreSQL, through the
            version guard → begin a fresh journal → serve
    run:    a write at this level is acknowledged once it is in the journal; what is committed in
            PostgreSQL leaves it ``RECENT_S`` later, for PostgreSQL may lose its last commits
    stop:   what could not be committed is in the journal, whatever level it had; else it is empty

Whoever waits for the journal waits for the commit as well, and takes what comes first: a journal
that fails never makes an OK weaker, only later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from structlog.typing import FilteringBoundLogger

from itemstore.core.item import VersionClock
from itemstore.core.queue import Change, WriteQueue, trace
from itemstore.core.recent import RECENT_S
from itemstore.core.record import unpacked
from itemstore.errors import DurabilityUnavailable, InvalidDurability, StartupError
from itemstore.options import Durability, Options
from itemstore.storage import Found
from itemstore.tasks import end

if TYPE_CHECKING:
    from itemstore.storage.journal import Journal

TRIM_INTERVAL_S: Final = 1.0
#: Of the journal's bound: beyond it what is committed leaves at once.
CROWDED: Final = 0.5


class Journaling:
    """The journal of one store: ``journal`` is None if it has none."""

    def __init__(
        self,
        queue: WriteQueue,
        clock: VersionClock,
        options: Options,
        log: FilteringBoundLogger,
        *,
        wake: Callable[[], None],
        on_failure: Callable[[str], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._options = options
        self._log = log
        self._wake = wake
        self._on_failure = on_failure
        self._monotonic = monotonic
        self.journal: Journal | None = None
        self._has_begun = False
        self._settled: deque[tuple[float, int]] = deque()
        self._trimming: asyncio.Task[None] | None = None

    async def open(self, found: Found) -> None:
        """Brings what a crash left to PostgreSQL; then the level can be given.

        Waits for a PostgreSQL that is away. Raises StartupError.
        """
        if self._options.journal_dir is None:
            return
        from itemstore.storage.journal import Journal  # a store without one needs no SQLite

        self.journal = Journal(
            self._options.journal_dir,
            found.store_id,
            bytes_max=self._options.journal_bytes_max,
            log=self._log,
            on_failure=self._on_failure,
            monotonic=self._monotonic,
        )
        recovered = await self.journal.open()
        self._check_age(recovered.changes, found.purged_before)
        if recovered.records or recovered.damaged:
            tell = self._log.error if recovered.damaged else self._log.warning
            tell(
                "journal_found",
                records=recovered.records,
                items=len(recovered.changes),
                damaged=recovered.damaged,
            )
        await self._replay(recovered.changes)
        await self.journal.begin()
        self._has_begun = True
        self._trimming = asyncio.create_task(self._trim(), name="trim the journal")

    def _check_age(self, changes: tuple[Change, ...], purged_before: int) -> None:
        old = [change.id for change in changes if change.version < purged_before]
        if old:
            raise StartupError(
                f"The journal in {self._options.journal_dir} has writes from before the deletes "
                f"that are still remembered (TOMBSTONE_RETENTION), of {len(old)} items such as "
                f"{old[0]!r}: they could bring deleted items back. To start without them, move "
                "journal.sqlite3 and journal.sqlite3-wal away."
            )

    async def _replay(self, changes: tuple[Change, ...]) -> None:
        """Returns when all of them are committed, or in quarantine."""
        if not changes:
            return
        now_s = self._monotonic()
        for change in changes:
            self._clock.saw(change.version)
            change.dirty_since = now_s
            self._queue.put(change)
        done = asyncio.Event()
        self._queue.when_settled(self._clock.newest, lambda _: done.set())
        self._wake()
        await done.wait()
        took_s = round(self._monotonic() - now_s, 3)
        self._log.info("journal_replayed", items=len(changes), s=took_s)

    def refusal(self) -> str | None:
        """Why the level cannot be given now; None if it can."""
        if self.journal is None:
            return "This store has no journal: it needs a disk that lasts, DATA_DIR."
        return self.journal.refusal()

    def level(self, durability: Durability | str | None) -> Durability:
        """What a write will have that asks for this. Raises as ``ItemStore.level`` does."""
        if durability is None:
            level = self._options.durability or self._default_level()
        else:
            try:
                level = Durability(durability)
            except ValueError:
                raise InvalidDurability(
                    f"durability is {', '.join(Durability)}, not {str(durability)[:40]!r}."
                ) from None
        if level is Durability.JOURNAL and (refusal := self.refusal()):
            raise DurabilityUnavailable(
                f"{refusal} Nothing was changed; ask for memory or commit, or repeat later."
            )
        return level

    def _default_level(self) -> Durability:
        return Durability.COMMIT if self.journal is None else Durability.JOURNAL

    def append(self, change: Change, done: Callable[[], None] | None) -> None:
        """Calls ``done`` when the change is on disk; never, if that cannot be."""
        if self.journal is not None:
            self.journal.append(change, done)

    async def close(self) -> bool:
        """Keeps what is not committed; whether it could be kept, if there is anything."""
        await end([self._trimming])
        if self.journal is None:
            return False
        if not self._has_begun:  # what is left was found there, and is there still
            await self.journal.close(keep=True)
            return True
        self.journal.trim(self._settled_version())
        left = self._queue.dirty()
        for change in left:
            self.journal.append(change, None)
            for record in reversed(change.earlier):
                self.journal.append(trace(change.id, unpacked(record).version, record), None)
        is_kept = await self.journal.flush() if left else True
        await self.journal.close(keep=bool(left))
        return is_kept

    def _settled_version(self) -> int:
        return self._queue.settled_version(self._clock.newest)

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            self.trim()

    def trim(self) -> None:
        """Lets go of what was committed ``RECENT_S`` ago; of all that is, when space is short."""
        assert self.journal is not None  # noqa: S101 - our own error, not a caller's
        now_s = self._monotonic()
        settled = self._settled_version()
        self._settled.append((now_s, settled))
        if self.journal.bytes_used > CROWDED * self._options.journal_bytes_max:
            self._settled.clear()
            self.journal.trim(settled)
        while self._settled and self._settled[0][0] <= now_s - RECENT_S:
            self.journal.trim(self._settled.popleft()[1])
