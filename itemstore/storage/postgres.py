"""The storage over a real PostgreSQL.

Its connections: one for writing, which no request can cancel; one for the lease; one for the
preload; one that listens for changes by other hands; and two small pools for reads that requests
wait for: one for items that are not cached, one for lists and the rest, which take longer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from itemstore.core.audit import AuditQuery, AuditRow
from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.index import Index, index_for, indexes_for
from itemstore.core.item import pack
from itemstore.core.query import Filter
from itemstore.core.queue import Change
from itemstore.core.record import Record, unpacked
from itemstore.core.usage import Usage
from itemstore.storage import (
    LOAD_CONNECTIONS,
    Claim,
    ForeignChange,
    Found,
    Grant,
    Lease,
    ListQuery,
    Parked,
    Server,
    Standing,
    State,
    StorageAway,
    StorageBroken,
    StorageRefused,
    StorageSlow,
    StorageTimeLimit,
    statements,
)
from itemstore.storage.key_table import KeyTable
from itemstore.storage.session import READ_TIMEOUT_S, Session, classify, conninfo
from itemstore.storage.walk import Walk

SCHEMA_VERSION: Final = 4  # what schema.sql writes into store_meta
SERVER_VERSION_MIN: Final = 150_000

WRITE_TIMEOUT_S: Final = 30.0
USAGE_TIMEOUT_S: Final = 60.0  # it may read every item there is
LOAD_BYTES: Final = 4 * 1024 * 1024  # as they are stored: the large ones compressed
POOL_MAX: Final = 3
CONNECTIONS_MAX: Final = POOL_MAX + LOAD_CONNECTIONS + 4  # and writer, lease, preload and listener
POOL_WAIT_S: Final = 5.0
POOL_WAITING_MAX: Final = 256
#: Beyond a list's own limit, which the server keeps: then it is silent.
SILENCE_MAX_S: Final = 5.0
CHANGES_PAGE: Final = 1_000  # items
EXPORT_ROWS: Final = 200  # fetched at once: of 1 MiB each, if they are as large as can be
LEASE_CALL_SHARE: Final = 0.4  # of the lease's time: a heartbeat that takes longer has failed

Pool = AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]
T = TypeVar("T")


def schema_sql() -> str:
    """schema.sql: beside the package when installed, else at the top of the repository."""
    packaged = resources.files("itemstore").joinpath("schema.sql")
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return Path(__file__).parents[2].joinpath("schema.sql").read_text("utf-8")


class PoolUse(NamedTuple):
    """What a pool of connections is doing."""

    size: int
    busy: int
    size_max: int
    waiting: int  #: who waits for a connection


class Postgres:
    """``storage.Storage`` over a real server. ``direct_dsn`` goes around a pooler, if any."""

    def __init__(self, dsn: str, *, direct_dsn: str | None = None) -> None:
        instance = secrets.token_hex(4)
        direct = direct_dsn or dsn
        self._writer = Session(direct, f"itemstore writer {instance}", if_direct=statements.BY_KEYS)
        self._lessee = Session(direct, f"itemstore lease {instance}")
        self._preloader = Session(
            direct, f"itemstore preload {instance}", on_connect=statements.WIDEN
        )
        self._walk = Walk(self._preloader)
        self._listener = Session(
            direct, f"itemstore listener {instance}", on_connect=statements.LISTEN
        )
        self._pool = _pool(conninfo(dsn, f"itemstore reader {instance}"), POOL_MAX)
        self._loaders = _pool(conninfo(dsn, f"itemstore loader {instance}"), LOAD_CONNECTIONS)
        self.keys = KeyTable(self._read)

    async def open(self, *, audit_s: float | None = None) -> Found:
        await self._install()
        await self._writer.run(statements.SET_AUDIT, {"audit_s": audit_s})
        [(newest,)] = await self._writer.run(statements.NEWEST_VERSION)
        [(items, size)] = await self._writer.run(statements.ESTIMATE)
        await self._writer.run(statements.RELEASE_OVERTAKEN)
        [(store_id, purged_before)] = await self._writer.run(statements.IDENTITY)
        await self._pool.open(wait=False)
        await self._loaders.open(wait=False)
        return Found(
            store_id=store_id,
            newest_version=newest,
            purged_before=purged_before,
            parked=await self.parked(),
            items_estimate=items,
            bytes_estimate=size,
        )

    async def _install(self) -> None:
        [(version, encoding, is_installed)] = await self._writer.run(statements.INSTALLED)
        if version < SERVER_VERSION_MIN:
            raise StorageBroken(
                f"PostgreSQL 15 or newer is needed, this server is {version // 10_000}."
            )
        if encoding != "UTF8":
            raise StorageBroken(
                f"The database's encoding is {encoding}; create one with ENCODING 'UTF8'."
            )
        if is_installed:
            [(schema_version,)] = await self._writer.run(statements.INSTALLED_VERSION)
            if schema_version >= SCHEMA_VERSION:
                return
        await self._writer.run(statements.SCHEMA_LOCK + schema_sql(), time_limit_s=WRITE_TIMEOUT_S)

    async def close(self) -> None:
        await self._pool.close()
        await self._loaders.close()
        for session in (self._listener, self._preloader, self._lessee, self._writer):
            await session.end()

    async def write(self, changes: Sequence[Change], claim: Claim) -> Standing:
        try:
            parameters = arrays(changes) | fields(claim)
        except UnicodeError as error:
            raise classify(error) from error
        write, write_late = statements.WRITE, statements.WRITE_LATE
        if any(change.record is not None or change.earlier for change in changes):
            parameters |= record_arrays(changes)
            write, write_late = statements.WRITE_RECORDED, statements.WRITE_RECORDED_LATE
        [row] = await self._writer.run(write, parameters, time_limit_s=WRITE_TIMEOUT_S)
        standing = _standing(*row)
        if standing.is_held or not any(parameters["acked"]):
            return standing
        [row] = await self._writer.run(
            write_late,
            parameters,
            time_limit_s=WRITE_TIMEOUT_S,
            after=statements.ALONE,
        )
        return _standing(*row)

    async def renew(self, claim: Claim) -> Standing:
        [row] = await self._lessee.run(
            statements.RENEW, fields(claim), time_limit_s=claim.lease_s * LEASE_CALL_SHARE
        )
        return _standing(*row)

    async def lease(self) -> Lease:
        [row] = await self._lessee.run(statements.LEASE)
        return Lease(*row)

    async def acquire(self, claim: Claim, process: str, gone: str | None) -> Grant | None:
        rows = await self._lessee.run(
            statements.ACQUIRE, {**fields(claim), "process": process, "gone": gone}
        )
        return Grant(*rows[0]) if rows else None

    async def want(self, holder: str, *, wanted: bool = True) -> None:
        statement = statements.WANT if wanted else statements.UNWANT
        await self._lessee.run(statement, {"holder": holder})

    async def let_go(self, claim: Claim) -> None:
        await self._lessee.run(statements.LET_GO, fields(claim))

    async def changes(self, after_version: int) -> tuple[list[State], int | None]:
        parameters = {"after": after_version, "limit": CHANGES_PAGE}
        rows = await self._read(statements.CHANGES, parameters)
        following = rows[-1][2] if len(rows) >= CHANGES_PAGE else None
        return [State(*row) for row in rows], following

    async def parked(self) -> tuple[Parked, ...]:
        return tuple(_parked(*row) for row in await self._read(statements.PARKED, {}))

    async def quarantine(self, change: Change, reason: str) -> None:
        await self._writer.run(
            statements.QUARANTINE,
            {
                "id": change.id,
                "version": change.version,
                "data": None if change.data is None else change.data.decode(errors="replace"),
                "created": change.created_us,
                "error": reason,
            }
            | record_arrays([change]),
        )

    async def release(self, ids: Sequence[str]) -> None:
        await self._writer.run(statements.RELEASE, {"ids": list(ids)})

    async def discard(self, item_id: str) -> None:
        await self._read(statements.DISCARD, {"id": item_id})

    async def purge(self, before_version: int) -> int:
        await self._writer.run(statements.RELEASE_OVERTAKEN)
        [(count,)] = await self._writer.run(statements.PURGE, {"before": before_version})
        return int(count)

    async def purge_records(self, before_version: int) -> int:
        [(count,)] = await self._writer.run(statements.PURGE_RECORDS, {"before": before_version})
        return int(count)

    async def repetitions(self, scopes: Sequence[tuple[str, str]], since: int) -> list[Record]:
        callers, keys = zip(*scopes, strict=True)
        parameters = {"callers": list(callers), "keys": list(keys), "since": since}
        rows = await self._read(statements.REPETITIONS, parameters)
        return [Record(*row) for row in rows]

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        return await self._again(partial(self._audit, query))

    async def _audit(self, query: AuditQuery) -> list[AuditRow]:
        async with self._snapshot(query.time_limit_s, query.time_limit_s) as connection:
            rows = await _fetched(connection, *statements.audit(query))
        return [AuditRow(*row) for row in rows]

    async def load(self, ids: Sequence[str]) -> tuple[list[Row], int]:
        given = {"ids": list(ids), "bytes_max": LOAD_BYTES}
        found = await self._read(statements.LOAD, given, self._loaders)
        total = found[0][3] if found else 0
        return [(item_id, entry) for item_id, entry, *_ in found], total

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        return await self._walk.page(position)

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        try:
            return await self._again(partial(self._select, query, statements.ITEMS))
        except StorageRefused:  # an item that another hand stored cannot be read as jsonb
            return await self._again(partial(self._select, query, statements.SOUND_ITEMS))

    async def _select(self, query: ListQuery, source: str) -> tuple[list[Row], int | None]:
        count: int | None = None
        async with self._snapshot(query.time_limit_s, 2 * query.time_limit_s) as connection:
            rows = await _fetched(connection, *statements.page(query, source))
            if query.count == "exact":
                [(count,)] = await _fetched(connection, *statements.count(query, source))
            elif query.count == "estimated":
                count = await _estimated(connection, query)
        return rows, count

    @asynccontextmanager
    async def _snapshot(
        self, time_limit_s: float, in_all_s: float
    ) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """One state of the tables, and a limit on each statement. Raises StorageTimeLimit."""
        try:
            async with (
                self._reader(in_all_s + SILENCE_MAX_S) as connection,
                connection.transaction(),
            ):
                await connection.execute(statements.limits(time_limit_s).encode())
                yield connection
        except StorageSlow as error:
            if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                raise StorageTimeLimit(str(error)) from error
            raise

    async def export(self, query: ListQuery) -> AsyncGenerator[list[Row]]:
        """All items that match, in order of the id, as they are committed at one moment.

        Raises StorageError.
        """
        text, parameters = statements.export(query)
        try:
            async with (
                self._pool.connection() as connection,
                connection.transaction(),
                connection.cursor("itemstore_export", binary=True) as cursor,
            ):
                await cursor.execute(text.encode(), parameters)
                while page := await cursor.fetchmany(EXPORT_ROWS):
                    yield page
        except psycopg.Error as error:
            raise classify(error) from error

    async def usage(self, prefix: str, changed: Callable[[], Sequence[str]]) -> Usage:
        return await self._again(partial(self._usage, prefix, changed))

    async def _usage(self, prefix: str, changed: Callable[[], Sequence[str]]) -> Usage:
        async with self._reader(USAGE_TIMEOUT_S) as connection, connection.transaction():
            await connection.execute(statements.limits(USAGE_TIMEOUT_S).encode())
            [counted] = await _fetched(connection, *statements.usage(prefix))
            [beside] = await _fetched(connection, *statements.usage(prefix, changed()))
        return Usage(*counted) - Usage(*beside)

    async def unserved(self, query: ListQuery) -> tuple[Sequence[Index], int]:
        return await self._again(partial(self._unserved, query))

    async def _unserved(self, query: ListQuery) -> tuple[Sequence[Index], int]:
        wanted = indexes_for(query.filters, query.order)
        names = {"names": [index.name for index in wanted]}
        async with self._reader() as connection:
            rows = await _fetched(connection, statements.INDEXES_AMONG, names)
            missing = [index for index in wanted if (index.name,) not in rows]
            served = [each for each in query.filters if _is_served(each, missing)]
            read = await _estimated(connection, replace(query, filters=tuple(served)))
        return missing, read

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        [(first, key)] = await self._read(statements.LEASE_IDS, {"count": count})
        block = IdBlock(first, count, key)
        taken = await self._read(statements.EXISTING, {"ids": block.ids()})
        return block, {row[0] for row in taken}

    async def foreign_changes(self) -> list[ForeignChange]:
        rows = await self._listener.run(statements.FOREIGN_CHANGES)
        return [ForeignChange(*row) for row in rows]

    async def foreign_changes_since(self, since_us: int, after_seq: int) -> list[ForeignChange]:
        parameters = {"since": since_us, "after": after_seq}
        rows = await self._listener.run(statements.FOREIGN_CHANGES_SINCE, parameters)
        return [ForeignChange(*row) for row in rows]

    async def states(self, ids: Sequence[str]) -> list[State]:
        rows = await self._read(statements.STATES, {"ids": list(ids)})
        return [State(item_id, entry, version or 0) for item_id, entry, version in rows]

    async def forget_foreign_changes(self, seqs: Sequence[int], epoch: int) -> None:
        parameters = {"seqs": list(seqs), "epoch": epoch}
        await self._listener.run(statements.FORGET_FOREIGN_CHANGES, parameters)

    async def await_foreign_changes(self, time_limit_s: float) -> None:
        await self._listener.notified(time_limit_s)

    async def server(self) -> Server:
        """What the server says of itself. Raises StorageError, also before ``open``."""
        if self._pool.closed:
            raise StorageAway("not connected")
        [row] = await self._read(statements.SERVER, {})
        return Server(*row)

    def pools(self) -> dict[str, PoolUse]:
        """The pools of connections for reading, by name."""
        return {
            name: _use(pool) for name, pool in (("reader", self._pool), ("loader", self._loaders))
        }

    async def _read(
        self, statement: str, parameters: dict[str, Any], pool: Pool | None = None
    ) -> list[TupleRow]:
        return await self._again(partial(self._read_once, statement, parameters, pool), pool)

    async def _again(self, call: Callable[[], Awaitable[T]], pool: Pool | None = None) -> T:
        """Once more if it fails: a connection may have died while nobody used it."""
        pool = pool or self._pool
        try:
            return await call()
        except StorageSlow:
            raise
        except StorageAway:
            await pool.check()
            return await call()

    async def _read_once(
        self, statement: str, parameters: dict[str, Any], pool: Pool | None
    ) -> list[TupleRow]:
        async with self._reader(pool=pool) as connection:
            return await _fetched(connection, statement, parameters)

    @asynccontextmanager
    async def _reader(
        self, time_limit_s: float = READ_TIMEOUT_S, pool: Pool | None = None
    ) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        pool = pool or self._pool
        try:
            async with asyncio.timeout(time_limit_s), pool.connection() as connection:
                yield connection
        except Exception as error:
            raise classify(error) from error


def _pool(url: str, most: int) -> Pool:
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=most,
        open=False,
        timeout=POOL_WAIT_S,
        max_waiting=POOL_WAITING_MAX,
        reconnect_timeout=30.0,
        kwargs={"autocommit": True, "prepare_threshold": None},
    )


def _use(pool: Pool) -> PoolUse:
    now = pool.get_stats()
    size = now["pool_size"]
    busy = size - now["pool_available"]
    return PoolUse(size, busy, now["pool_max"], now["requests_waiting"])


async def look(dsn: str) -> tuple[Server, Lease | None]:
    """What the server says of itself and of the lease, None before a store made its tables.

    Makes and changes nothing. Raises StorageError.
    """
    session = Session(dsn, "itemstore doctor")
    try:
        [server] = await session.run(statements.SERVER)
        [(*_, is_installed)] = await session.run(statements.INSTALLED)
        leases = await session.run(statements.LEASE) if is_installed else []
    finally:
        await session.end()
    return Server(*server), Lease(*leases[0]) if leases else None


async def _fetched(
    connection: psycopg.AsyncConnection[TupleRow], statement: str, parameters: Mapping[str, Any]
) -> list[TupleRow]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement.encode(), parameters)
    return await cursor.fetchall()


async def _estimated(connection: psycopg.AsyncConnection[TupleRow], query: ListQuery) -> int:
    """How many items the planner expects in the list."""
    [(plan,)] = await _fetched(connection, *statements.estimate(query))
    return int(plan[0]["Plan"]["Plan Rows"])


def _is_served(condition: Filter, missing: Sequence[Index]) -> bool:
    """Whether the items that fail it need not be read."""
    if not condition.field.path:
        return True
    index = index_for(condition)
    return index is not None and index not in missing


def arrays(changes: Sequence[Change]) -> dict[str, list[Any]]:
    """A batch as ``statements.WRITE`` takes it. Raises UnicodeError."""
    return {
        "ids": [change.id for change in changes],
        "data": [None if (data := change.data) is None else data.decode() for change in changes],
        "versions": [change.version for change in changes],
        "created": [change.created_us for change in changes],
        "acked": [change.is_acked for change in changes],
    }


def record_arrays(changes: Sequence[Change]) -> dict[str, list[Any]]:
    """Their records as ``statements.WRITE_RECORDED`` takes them: audit rows and keyed answers."""
    records = [(unpacked(each), change.is_acked) for change in changes for each in change.records]
    rows = [(each, is_acked) for each, is_acked in records if each.is_audited]
    answers = [(each, is_acked) for each, is_acked in records if each.key is not None]
    return {
        "audit_ids": [each.id for each, _ in rows],
        "audit_versions": [each.version for each, _ in rows],
        "audit_what": [each.what for each, _ in rows],
        "audit_callers": [each.caller for each, _ in rows],
        "audit_requests": [each.request_id for each, _ in rows],
        "audit_addresses": [each.address for each, _ in rows],
        "audit_acked": [is_acked for _, is_acked in rows],
        "answer_callers": [each.caller for each, _ in answers],
        "answer_keys": [each.key for each, _ in answers],
        "answer_positions": [each.position for each, _ in answers],
        "answer_payloads": [each.payload for each, _ in answers],
        "answer_ids": [each.id for each, _ in answers],
        "answer_versions": [each.version for each, _ in answers],
        "answer_created": [each.created_us for each, _ in answers],
        "answer_deleted": [each.deleted for each, _ in answers],
        "answer_data": [each.data for each, _ in answers],
        "answer_what": [each.what for each, _ in answers],
        "answer_acked": [is_acked for _, is_acked in answers],
    }


def fields(claim: Claim) -> dict[str, Any]:
    """A claim as the statements of the writer take it."""
    return {field: getattr(claim, field) for field in Claim.__slots__}


def _standing(is_wanted: bool | None, epoch: int, high_water: int) -> Standing:
    return Standing(is_wanted is not None, bool(is_wanted), epoch, high_water)


def _parked(
    item_id: str, version: int, data: str | None, created_us: int, reason: str, at_us: int
) -> Parked:
    entry = pack(version, created_us, (data or "").encode())
    change = Change(item_id, version, entry, deleted=data is None, now_s=0.0)
    return Parked(change, reason, at_us)
