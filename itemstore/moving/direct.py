"""Straight into the database, under the writer lease, as the store itself writes.

    load what is there → decide each row → one statement: the rows, the version guard, the lease

What ``ItemStore`` does for one process that also answers, without its cache, which would hold all
that goes in: memory stays the same whatever the size of the source.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

from itemstore import process
from itemstore.core.item import VersionClock, following
from itemstore.core.operation import KEEP
from itemstore.core.queue import Change
from itemstore.database import database
from itemstore.errors import MovingError, StartupError
from itemstore.lease import DOWN_MIN_S, DOWN_SHARE, HEARTBEAT_SHARE
from itemstore.moving.record import Rejected, Row
from itemstore.persister import halves
from itemstore.settings import Settings
from itemstore.storage import (
    Claim,
    Grant,
    Lease,
    StorageAway,
    StorageError,
    StorageRefused,
    StorageSlow,
)
from itemstore.storage.postgres import Postgres
from itemstore.tasks import end

AWAY_MAX_S: Final = 60.0  # then the import stops, to be resumed
RETRY_S: Final = 0.5

T = TypeVar("T")


class Decided(NamedTuple):
    """What is to become of some rows: a field of ``Tally`` for each, and what changes by id."""

    statuses: list[str]
    changes: dict[str, Change]


class Direct:
    """The target over ``storage``. With ``dry`` it only says what would become of the rows."""

    def __init__(self, storage: Postgres, lease_s: float, *, dry: bool = False) -> None:
        self._storage = storage
        self._lease_s = lease_s
        self._dry = dry
        self._clock = VersionClock(lambda: time.time_ns() // 1_000)
        self._holder = f"{socket.gethostname()}/import-{secrets.token_hex(4)}"
        self._epoch = self._settled = self._high_water = 0
        self._deciding, self._writing = asyncio.Lock(), asyncio.Lock()  # both in order of the calls
        #: What is decided and not yet committed, and what was refused of the rows written last.
        self._uncommitted: dict[str, bytes] = {}
        self._refused: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, dsn: str, direct_dsn: str | None, lease_s: float, *, dry: bool
    ) -> AsyncIterator[Direct]:
        """Makes the tables where they are missing; holds the lease as long as it is open.

        Raises MovingError if the lease is another's, or PostgreSQL cannot be used.
        """
        beating: asyncio.Task[None] | None = None
        try:
            storage = Postgres(dsn, direct_dsn=direct_dsn)
            target = cls(storage, lease_s, dry=dry)
            try:
                await target._begin()
                beating = asyncio.create_task(target._beat(), name="heartbeat")
                yield target
            finally:
                await end([beating])
                if target._epoch:
                    with suppress(StorageError):  # then it runs out by itself
                        await storage.let_go(target._claim())
                await storage.close()
        except StorageError as error:
            raise MovingError(f"PostgreSQL cannot be used: {error}") from error

    # --- the lease

    async def _begin(self) -> None:
        found = await self._storage.open()
        self._clock.saw(max(self._clock.now(), found.newest_version))
        if self._dry:
            return
        grant = await self._acquire()
        if grant is None:
            holder = (await self._storage.lease()).holder
            raise MovingError(
                f"A running instance holds the writer lease ({holder or 'it is being taken'}). "
                "Import through it with --server http://host:port, or stop it first."
            )
        self._epoch, self._high_water = grant.epoch, grant.high_water
        self._clock.saw(grant.clock)
        self._settled = self._clock.newest

    async def _acquire(self) -> Grant | None:
        """Only if nobody has it: one that ran out is left to its holder for a while, who asks."""
        lease = await self._storage.lease()
        is_gone = process.is_gone(lease.process)
        if _ran_out(lease) and not is_gone:
            await asyncio.sleep(max(DOWN_MIN_S, DOWN_SHARE * self._lease_s))
            lease = await self._storage.lease()
        if not (lease.is_free or is_gone):
            return None
        gone = lease.holder if is_gone else None
        return await self._storage.acquire(self._claim(), process.identity() or "", gone)

    def _claim(self, high_water: int = 0) -> Claim:
        return Claim(
            self._holder,
            self._epoch,
            self._lease_s,
            clock=self._clock.newest,
            settled=self._settled,
            high_water=high_water or self._high_water,
        )

    async def _beat(self) -> None:
        """Between the parts, which are heartbeats too; a failure shows with the next part."""
        while self._epoch:
            await asyncio.sleep(self._lease_s * HEARTBEAT_SHARE)
            async with self._writing:
                with suppress(StorageError):
                    await self._storage.renew(self._claim())

    # --- rows

    async def put(self, rows: Sequence[Row]) -> list[str | Rejected]:
        """The promise of ``Target``: the next rows are decided while these are being written."""
        try:
            return await self._put(rows)
        except StorageError as error:
            raise MovingError(f"PostgreSQL takes no more rows: {error}") from error

    async def _put(self, rows: Sequence[Row]) -> list[str | Rejected]:
        async with self._deciding:
            decided = await self._decided(rows)
        async with self._writing:
            if not self._refused.isdisjoint(row.id for row in rows):
                self._forget(decided.changes)  # it saw a row that did not go in after all
                decided = await self._decided(rows)
            refused = {} if self._dry else await self._write(decided.changes)
            self._forget(decided.changes)
            self._refused = set(refused)
        return [
            Rejected(row.number, refused[row.id]) if row.id in refused else status
            for row, status in zip(rows, decided.statuses, strict=True)
        ]

    async def _decided(self, rows: Sequence[Row]) -> Decided:
        """What becomes of the rows; a later one of the same id sees an earlier one."""
        entries = await self._entries({row.id for row in rows})
        entries.update(self._uncommitted)
        changes: dict[str, Change] = {}
        statuses = [self._decide(row, entries, changes) for row in rows]
        if not self._dry:
            self._uncommitted.update((each.id, each.entry) for each in changes.values())
        return Decided(statuses, changes)

    async def _entries(self, ids: set[str]) -> dict[str, bytes]:
        """What PostgreSQL has of them."""
        entries: dict[str, bytes] = {}
        while True:
            some, total = await _answered(partial(self._storage.load, list(ids)))
            entries.update(some)
            if len(some) == total:
                return entries
            ids -= entries.keys()

    def _decide(self, row: Row, entries: dict[str, bytes], changes: dict[str, Change]) -> str:
        old = entries.get(row.id)
        text = row.item.decide(old)
        if old is not None and text is KEEP:
            return row.item.status_of(old)
        version = self._clock.next()
        entry = following(old, version, row.item.text, row.item.created_us)
        entries[row.id] = entry
        changes[row.id] = Change(row.id, version, entry, deleted=False, now_s=0.0, is_acked=False)
        return "created" if old is None else "replaced"

    def _forget(self, changes: dict[str, Change]) -> None:
        """They are committed, or never will be; one that was decided since stays."""
        for item_id, change in changes.items():
            if self._uncommitted.get(item_id) is change.entry:
                del self._uncommitted[item_id]

    async def _write(self, changes: dict[str, Change]) -> dict[str, str]:
        """Commits all that PostgreSQL takes; id → reason of those that it refuses."""
        refused: dict[str, str] = {}
        parts = [sorted(changes.values(), key=lambda change: change.id)] if changes else []
        while parts:
            part = parts.pop()
            try:
                await _answered(lambda part=part: self._send(part))  # type: ignore[misc]
            except (StorageRefused, StorageSlow) as failure:
                if len(part) > 1:
                    parts += halves(part)
                else:
                    refused[part[0].id] = f"PostgreSQL refused it: {failure}"
        self._settled = max((each.version for each in changes.values()), default=self._settled)
        return refused

    async def _send(self, part: list[Change]) -> None:
        high_water = max(self._high_water + 1, self._clock.newest)
        standing = await self._storage.write(part, self._claim(high_water))
        if standing.epoch < self._epoch or (
            standing.is_held and standing.high_water < self._high_water
        ):
            raise MovingError(
                "PostgreSQL has lost its last commits, perhaps in a failover. "
                "Begin the import anew with --restart: what is in already does no harm."
            )
        if not standing.is_held:
            raise MovingError(
                "Another instance has taken the writer lease. Repeat the command to go on, "
                "with --server http://host:port if that instance is a running server."
            )
        self._high_water = high_water


def _ran_out(lease: Lease) -> bool:
    return lease.is_free and lease.holder is not None


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    """What PostgreSQL says, repeated while it is away. Raises StorageError."""
    deadline = time.monotonic() + AWAY_MAX_S
    while True:
        try:
            return await call()
        except StorageSlow:
            raise
        except StorageAway:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)


@asynccontextmanager
async def store_database(settings: Settings) -> AsyncIterator[str]:
    """The store's database. Raises MovingError if it is an embedded one that does not start."""
    try:
        async with database(settings.database_url, settings.embedded_dir) as dsn:
            yield dsn
    except StartupError as error:
        raise MovingError(
            f"{error.detail}\nIf a server is running over it, name that: --server http://host:port"
        ) from error
