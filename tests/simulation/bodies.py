"""The two bodies of ``storage.Storage`` for the tests of its promises, and what these are made of.

Whatever the simulation proves about the engine rests on its storage being no kinder and no
stranger than PostgreSQL; so every test of a promise runs on both.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, LiteralString

import psycopg

from itemstore.core.cache import Row
from itemstore.core.caller import Caller, Role
from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.core.record import Once, Origin, record_of
from itemstore.storage import Claim, Found, Parked, Standing, Storage
from itemstore.storage.postgres import Postgres
from tests.simulation.disk import Disk
from tests.simulation.storage import FlakyStorage, Weather

NOW: Final = time.time_ns() // 1_000
LEASE_S: Final = 600.0  # longer than any test
ME: Final = "me"


class Tables:
    """One database, to which storages are opened one after another."""

    def __init__(self, dsn: str | None, stack: AsyncExitStack) -> None:
        self._dsn = dsn
        self._stack = stack
        self._disk = Disk()

    async def open(self) -> tuple[Storage, Found]:
        """A storage of its own, as a new process would open one."""
        storage = self._storage()
        found = await storage.open()
        self._stack.push_async_callback(storage.close)
        return storage, found

    def _storage(self) -> Storage:
        if self._dsn is not None:
            return Postgres(self._dsn)
        calm = Weather(random.Random(0), 0, 0)
        calm.leg_s = lambda: 0.0  # type: ignore[method-assign]
        return FlakyStorage(self._disk, calm, lambda: time.time_ns() // 1_000, _unchecked)

    async def refuse_poison(self) -> None:
        """From now on a rule refuses items whose id begins with "poison"."""
        self._disk.refuses = lambda change: change.id.startswith("poison") and not change.deleted
        await self._execute("ALTER TABLE items ADD CHECK (id NOT LIKE 'poison%')")

    async def change_by_hand(self, item_id: str, text: bytes | None) -> None:
        """Somebody in psql writes, or without a text deletes, an item."""
        self._disk.change_by_hand(item_id, text, time.time_ns() // 1_000)
        given = {"id": item_id, "data": text and text.decode()}
        if text is None:
            await self._execute("DELETE FROM items WHERE id = %(id)s", given)
        elif not await self._execute("UPDATE items SET data = %(data)s WHERE id = %(id)s", given):
            await self._execute("INSERT INTO items (id, data) VALUES (%(id)s, %(data)s)", given)

    async def truncate(self) -> None:
        """Somebody in psql forgets all items."""
        self._disk.truncate(time.time_ns() // 1_000)
        await self._execute("TRUNCATE items")

    async def age_wish(self, seconds: float) -> None:
        """The wish for the lease was last repeated so much earlier."""
        self._disk.lease.wanted_us -= round(seconds * 1_000_000)
        await self._execute(
            "UPDATE writer_lease SET wanted_at = wanted_at - %(s)s * interval '1 second'",
            {"s": seconds},
        )

    async def _execute(self, statement: LiteralString, given: dict[str, Any] | None = None) -> int:
        if self._dsn is None:
            return 1
        async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
            return (await connection.execute(statement, given)).rowcount


def _unchecked(is_kept: bool, promise: str) -> None:
    """What the engine promises in turn is not at stake here."""


def upsert(
    item_id: str,
    version: int,
    text: bytes = b"{}",
    created: int | None = None,
    *,
    is_acked: bool = True,
) -> Change:
    entry = pack(version, version if created is None else created, text)
    return Change(item_id, version, entry, deleted=False, now_s=0.0, is_acked=is_acked)


def delete(item_id: str, version: int, *, is_acked: bool = True) -> Change:
    entry = pack(version, version, b"")
    return Change(item_id, version, entry, deleted=True, now_s=0.0, is_acked=is_acked)


def recorded(
    change: Change, key: str | None = None, *, caller: str = "me", position: int = 0
) -> Change:
    """The same with a record for the audit, and for a key if one is given."""
    once = None if key is None else Once(key, b"payload")
    origin = Origin(Caller(caller, Role.ADMIN), "request", once=once)
    change.keep(record_of("put", change, origin, position, is_audited=True, keeps_data=True))
    return change


def row(change: Change) -> Row:
    return change.id, change.entry


def described(changes: Iterable[Change | Parked]) -> list[Any]:
    """What can be compared of changes, parked or not."""
    plain = [each.change if isinstance(each, Parked) else each for each in changes]
    return [(change.id, change.version, change.entry, change.deleted) for change in plain]


def claim(holder: str = ME, epoch: int = 0, **others: Any) -> Claim:
    """Of an instance that has given out nothing yet, unless others say so."""
    return Claim(
        holder,
        epoch,
        **{"lease_s": LEASE_S, "clock": 0, "settled": 0, "high_water": 0, **others},
    )


async def write(storage: Storage, changes: Sequence[Change]) -> Standing:
    """Writes them as whoever holds the lease; if nobody does, as the one who takes it."""
    lease = await storage.lease()
    holder, epoch = lease.holder, lease.epoch
    if holder is None:
        grant = await storage.acquire(claim(), "process", None)
        assert grant is not None
        holder, epoch = ME, grant.epoch
    return await storage.write(changes, claim(holder, epoch))
