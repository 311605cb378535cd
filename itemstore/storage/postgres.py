"""PostgreSQL, and every SQL statement of the store.

Connections: one of its own for writing, which no request can cancel; one for the preload; a small
pool for reads that requests wait for. The statements use nothing that a pooler in transaction
mode breaks: no prepared statements, no session settings, no session locks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.storage import (
    ForeignChange,
    Found,
    ListQuery,
    State,
    StorageAway,
    StorageBroken,
    StorageError,
    StorageRefused,
    StorageSlow,
)

SCHEMA_VERSION: Final = 1  # what schema.sql writes into store_meta
SERVER_VERSION_MIN: Final = 150_000

CONNECT_TIMEOUT_S: Final = 5
WRITE_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 10.0
POOL_MAX: Final = 4
CONNECTIONS_MAX: Final = POOL_MAX + 3  # and the writer, the preload and the listener
POOL_WAIT_S: Final = 5.0
POOL_WAITING_MAX: Final = 256
LOST_SESSION_WAIT_MS: Final = 5_000

# ---------------------------------------------------------------------------------------------
# The statements. Times go in as microseconds, exactly; rows come out packed (core/item.py).

_PACKED: Final = "int8send(version) || timestamptz_send(created_at) || json_send(data)"


def _time(microseconds: str) -> str:
    """SQL for a timestamptz from microseconds since 1970; exact, where to_timestamp() rounds."""
    return f"timestamptz '1970-01-01 00:00:00+00' + {microseconds} * interval '1 microsecond'"


WRITE: Final = f"""
WITH batch AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::text[], %(data)s::text[], %(versions)s::bigint[],
                         %(created)s::bigint[]) AS b (id, data, version, created)
), upserted AS (
    INSERT INTO items AS i (id, data, version, created_at, updated_at)
    SELECT b.id, b.data::json, b.version, {_time("b.created")}, {_time("b.version")}
      FROM batch b
     WHERE b.data IS NOT NULL
       AND NOT EXISTS (SELECT FROM tombstones t WHERE t.id = b.id AND t.version >= b.version)
    ON CONFLICT (id) DO UPDATE
       SET data = excluded.data, version = excluded.version,
           created_at = excluded.created_at, updated_at = excluded.updated_at
     WHERE i.version < excluded.version
), deleted AS (
    DELETE FROM items i USING batch b
     WHERE b.data IS NULL AND i.id = b.id AND i.version < b.version
), buried AS (
    INSERT INTO tombstones AS t (id, version, deleted_at)
    SELECT b.id, b.version, {_time("b.version")}
      FROM batch b
     WHERE b.data IS NULL
       AND NOT EXISTS (SELECT FROM items i WHERE i.id = b.id AND i.version > b.version)
    ON CONFLICT (id) DO UPDATE
       SET version = excluded.version, deleted_at = excluded.deleted_at
     WHERE t.version < excluded.version
)
DELETE FROM tombstones t USING batch b
 WHERE b.data IS NOT NULL AND t.id = b.id AND t.version < b.version
"""  # noqa: S608 - built from constants above

QUARANTINE: Final = f"""
WITH older AS (
    DELETE FROM quarantine WHERE id = %(id)s AND version < %(version)s
)
INSERT INTO quarantine (id, version, data, created_at, error)
SELECT %(id)s, %(version)s, %(data)s, {_time("%(created)s::bigint")}, %(error)s
 WHERE NOT EXISTS (SELECT FROM quarantine WHERE id = %(id)s AND version >= %(version)s)
"""  # noqa: S608 - built from constants above

RELEASE: Final = "DELETE FROM quarantine WHERE id = ANY(%(ids)s::text[])"

#: What a crash kept from being released. At the next start, and not later: once the tombstone that
#: tells is purged, a deleted item would come back from quarantine.
RELEASE_OVERTAKEN: Final = """
DELETE FROM quarantine q
 WHERE EXISTS (SELECT FROM items i WHERE i.id = q.id AND i.version > q.version)
    OR EXISTS (SELECT FROM tombstones t WHERE t.id = q.id AND t.version > q.version)
"""

PARKED: Final = """
SELECT id, version, data, (extract(epoch FROM created_at) * 1000000)::bigint
  FROM quarantine ORDER BY version
"""

PURGE: Final = """
DELETE FROM tombstones WHERE id = ANY(ARRAY(
    SELECT id FROM tombstones WHERE version < %(before)s ORDER BY version LIMIT 1000))
"""

LOAD: Final = f"SELECT id, {_PACKED} FROM items WHERE id = ANY(%(ids)s::text[])"  # noqa: S608 - constants

PAGE: Final = f"""
SELECT id, {_PACKED} FROM items WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
"""  # noqa: S608 - built from constants above

_IN_PREFIX: Final = (
    "id >= %(prefix)s AND (%(prefix_end)s::text IS NULL OR id < %(prefix_end)s::text)"
)

COUNT: Final = f"SELECT count(*) FROM items WHERE {_IN_PREFIX}"  # noqa: S608 - constants


def _list(sort: str, after: str, *, descending: bool) -> str:
    """A page ends after ``limit`` items, or after the item with which it passes ``bytes_max``."""
    direction, beyond = ("DESC", "<") if descending else ("ASC", ">")
    columns = ", ".join(f"{column} {direction}" for column in sort.split(", "))
    return f"""
SELECT id, entry FROM (
    SELECT *, sum(length(entry)) OVER (ORDER BY {columns}) - length(entry) AS bytes_before
      FROM (
        SELECT id, created_at, version, {_PACKED} AS entry FROM items
         WHERE {_IN_PREFIX} AND (%(after_id)s::text IS NULL OR ({sort}) {beyond} ({after}))
         ORDER BY {columns} LIMIT %(limit)s
      ) AS page
  ) AS sized
 WHERE bytes_before < %(bytes_max)s
 ORDER BY {columns}
"""  # noqa: S608 - built from constants above


_SORTS: Final = {
    "created": ("created_at, id", f"{_time('%(after_key)s::bigint')}, %(after_id)s::text"),
    "updated": ("version, id", "%(after_key)s::bigint, %(after_id)s::text"),
    "id": ("id", "%(after_id)s::text"),
}

#: (order, descending) → statement.
LISTS: Final = {
    (order, descending): _list(sort, after, descending=descending)
    for order, (sort, after) in _SORTS.items()
    for descending in (False, True)
}

LEASE_IDS: Final = """
UPDATE id_blocks SET next = next + %(count)s RETURNING next - %(count)s, key
"""

EXISTING: Final = "SELECT id FROM items WHERE id = ANY(%(ids)s::text[])"

FOREIGN_CHANGES: Final = """
SELECT seq, id, version FROM foreign_changes ORDER BY seq LIMIT 1000
"""

#: The newest state of each id: a live row's entry, or what is known of its deletion.
STATES: Final = """
SELECT asked.id,
       CASE WHEN i.id IS NOT NULL
            THEN int8send(i.version) || timestamptz_send(i.created_at) || json_send(i.data) END,
       greatest(i.version, t.version)
  FROM unnest(%(ids)s::text[]) AS asked (id)
  LEFT JOIN items i ON i.id = asked.id
  LEFT JOIN tombstones t ON t.id = asked.id
"""

FORGET_FOREIGN_CHANGES: Final = "DELETE FROM foreign_changes WHERE seq = ANY(%(seqs)s::bigint[])"

LISTEN: Final = "LISTEN itemstore_foreign_changes"

INSTALLED: Final = """
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
       to_regclass('store_meta') IS NOT NULL
"""

INSTALLED_VERSION: Final = "SELECT schema_version FROM store_meta"

#: Two instances starting at once must not make the same table twice.
SCHEMA_LOCK: Final = "SELECT pg_advisory_xact_lock(7516193);"

#: The clock must not fall behind anything it has given out, nor behind PostgreSQL's own.
NEWEST_VERSION: Final = """
SELECT greatest(
    (SELECT max(version) FROM items),
    (SELECT max(version) FROM tombstones),
    (SELECT max(version) FROM quarantine),
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
"""

#: reltuples is -1 until the first ANALYZE; then a row is taken to fill 300 bytes of the table.
ESTIMATE: Final = """
SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint
            ELSE pg_relation_size(oid) / 300 END,
       pg_table_size(oid)
  FROM pg_class WHERE oid = 'items'::regclass
"""

#: A session whose connection was lost may still be executing our last statement. It is ended
#: and waited for before the statement is sent again, or it could write an item back that was
#: deleted meanwhile: its snapshot would not show the tombstone.
END_LOST_SESSIONS: Final = """
SELECT coalesce(bool_and(pg_terminate_backend(pid, %(wait_ms)s)), true)
  FROM pg_stat_activity
 WHERE application_name = %(name)s AND datname = current_database() AND pid <> pg_backend_pid()
"""

SERVER: Final = """
SELECT current_setting('server_version'),
       current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('synchronous_commit'), current_setting('max_connections')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       pg_is_in_recovery()
"""

# ---------------------------------------------------------------------------------------------

#: Connecting fails without an SQLSTATE, whatever the server said; these never pass by waiting.
_HOPELESS: Final = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "invalid connection option",
)

_AWAY: Final = ("08", "40", "53", "57P", "58", "25006")
_SLOW: Final = ("55P03", "57014")
_REFUSED: Final = ("22", "23", "54")


def classify(error: Exception) -> StorageError:
    """What the engine can do about it, by SQLSTATE.

    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return _class_of(error)(_text_of(error))


def _class_of(error: Exception) -> type[StorageError]:
    if isinstance(error, TimeoutError):
        return StorageSlow
    if isinstance(error, UnicodeError):  # raised by the driver before anything is sent
        return StorageRefused
    if isinstance(error, OSError):
        return StorageAway
    if not isinstance(error, psycopg.Error):
        return StorageBroken
    state = error.sqlstate
    if state is None:
        return _class_without_state(error)
    for states, kind in (
        (_SLOW, StorageSlow),
        (_AWAY, StorageAway),
        (_REFUSED, StorageRefused),
    ):
        if state.startswith(states):
            return kind
    return StorageBroken


def _class_without_state(error: psycopg.Error) -> type[StorageError]:
    if isinstance(error, psycopg.DataError):
        return StorageRefused
    if any(text in str(error) for text in _HOPELESS):
        return StorageBroken
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StorageAway
    return StorageBroken


def _text_of(error: Exception) -> str:
    """One line; psycopg's messages carry the statement's position below the first."""
    state = getattr(error, "sqlstate", None)
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{first_line} ({state})" if state else first_line


def conninfo(dsn: str, name: str) -> str:
    """The DSN with our defaults, where it does not say otherwise.

    A server that went away without a word is noticed after about 10 to 20 s.
    Raises StorageBroken if it is not a connection string.
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise StorageBroken(f"DATABASE_URL is not a connection string: {error}".strip()) from None
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "gssencmode": "disable",
    }
    # Rows are packed by the server in the connection's encoding: it must be the one we read.
    ours = {"application_name": name, "client_encoding": "UTF8"}
    return make_conninfo("", **{**defaults, **given, **ours})


def schema_sql() -> str:
    """schema.sql: beside the package when installed, else at the top of the repository."""
    packaged = resources.files("itemstore").joinpath("schema.sql")
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return Path(__file__).parents[2].joinpath("schema.sql").read_text("utf-8")


class _Session:
    """One connection of its own, opened again after it broke. Used by one task at a time."""

    def __init__(self, dsn: str, name: str, *, on_connect: str = "") -> None:
        self._conninfo = conninfo(dsn, name)
        self._name = name
        self._on_connect = on_connect
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._was_lost = False

    async def run(
        self,
        statement: str,
        parameters: dict[str, Any] | None = None,
        *,
        time_limit_s: float = READ_TIMEOUT_S,
        binary: bool = False,
    ) -> list[TupleRow]:
        """The rows. Raises StorageError; the connection is dropped unless it is surely sound."""
        try:
            async with asyncio.timeout(time_limit_s):
                connection = await self._connected()
                cursor = connection.cursor(binary=binary)
                await cursor.execute(statement.encode(), parameters)
                return await cursor.fetchall() if cursor.description else []
        except StorageError:
            raise
        except Exception as error:
            failure = classify(error)
            if not isinstance(failure, StorageRefused | StorageBroken):
                self._was_lost = True
                await self.close()
            raise failure from error
        except BaseException:
            self._was_lost = True
            await self.close()
            raise

    async def notified(self, time_limit_s: float) -> None:
        """Returns at a notification or after the time limit. Raises StorageError."""
        try:
            connection = await self._connected()
            async for _ in connection.notifies(timeout=time_limit_s, stop_after=1):
                pass
        except Exception as error:
            await self.close()
            raise classify(error) from error

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connected(self) -> psycopg.AsyncConnection[TupleRow]:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=None
            )
            try:
                if self._was_lost:
                    await self._end_lost_sessions(connection)
                if self._on_connect:
                    await connection.execute(self._on_connect.encode())
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
            self._was_lost = False
        return self._connection

    async def _end_lost_sessions(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        cursor = await connection.execute(
            END_LOST_SESSIONS.encode(), {"name": self._name, "wait_ms": LOST_SESSION_WAIT_MS}
        )
        ended = await cursor.fetchone()
        if ended != (True,):
            raise StorageAway("the session of a lost connection is still busy")


class Postgres:
    """``storage.Storage`` over a real server. ``direct_dsn`` goes around a pooler, if any."""

    def __init__(self, dsn: str, *, direct_dsn: str | None = None) -> None:
        instance = secrets.token_hex(4)
        direct = direct_dsn or dsn
        self._writer = _Session(direct, f"itemstore writer {instance}")
        self._preloader = _Session(direct, f"itemstore preload {instance}")
        self._listener = _Session(direct, f"itemstore listener {instance}", on_connect=LISTEN)
        self._pool = AsyncConnectionPool(
            conninfo(dsn, f"itemstore reader {instance}"),
            min_size=1,
            max_size=POOL_MAX,
            open=False,
            timeout=POOL_WAIT_S,
            max_waiting=POOL_WAITING_MAX,
            reconnect_timeout=30.0,
            kwargs={"autocommit": True, "prepare_threshold": None},
        )

    async def open(self) -> Found:
        await self._install()
        [(newest,)] = await self._writer.run(NEWEST_VERSION)
        [(items, size)] = await self._writer.run(ESTIMATE)
        await self._writer.run(RELEASE_OVERTAKEN)
        parked = await self._writer.run(PARKED)
        await self._pool.open(wait=False)
        return Found(
            newest_version=newest,
            parked=tuple(_parked(*row) for row in parked),
            items_estimate=items,
            bytes_estimate=size,
        )

    async def _install(self) -> None:
        [(version, encoding, is_installed)] = await self._writer.run(INSTALLED)
        if version < SERVER_VERSION_MIN:
            raise StorageBroken(
                f"PostgreSQL 15 or newer is needed, this server is {version // 10_000}."
            )
        if encoding != "UTF8":
            raise StorageBroken(
                f"The database's encoding is {encoding}; create one with ENCODING 'UTF8'."
            )
        if is_installed:
            [(schema_version,)] = await self._writer.run(INSTALLED_VERSION)
            if schema_version >= SCHEMA_VERSION:
                return
        await self._writer.run(SCHEMA_LOCK + schema_sql(), time_limit_s=WRITE_TIMEOUT_S)

    async def close(self) -> None:
        await self._pool.close()
        for session in (self._listener, self._preloader, self._writer):
            await session.close()

    async def write(self, changes: Sequence[Change]) -> None:
        try:
            parameters = {
                "ids": [change.id for change in changes],
                "data": [None if (d := change.data) is None else d.decode() for change in changes],
                "versions": [change.version for change in changes],
                "created": [change.created_us for change in changes],
            }
        except UnicodeError as error:
            raise classify(error) from error
        await self._writer.run(WRITE, parameters, time_limit_s=WRITE_TIMEOUT_S)

    async def quarantine(self, change: Change, reason: str) -> None:
        await self._writer.run(
            QUARANTINE,
            {
                "id": change.id,
                "version": change.version,
                "data": None if change.data is None else change.data.decode(errors="replace"),
                "created": change.created_us,
                "error": reason,
            },
        )

    async def release(self, ids: Sequence[str]) -> None:
        await self._writer.run(RELEASE, {"ids": list(ids)})

    async def purge(self, before_version: int) -> int:
        rows = await self._writer.run(
            f"WITH gone AS ({PURGE} RETURNING 1) SELECT count(*) FROM gone",  # noqa: S608 - constants
            {"before": before_version},
        )
        return int(rows[0][0])

    async def load(self, ids: Sequence[str]) -> list[Row]:
        return await self._read(LOAD, {"ids": list(ids)})

    async def page(self, after: str, limit: int) -> list[Row]:
        return await self._preloader.run(
            PAGE, {"after": after, "limit": limit}, time_limit_s=WRITE_TIMEOUT_S, binary=True
        )

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        parameters = {
            "limit": query.limit,
            "bytes_max": query.bytes_max,
            "prefix": query.prefix,
            "prefix_end": prefix_end(query.prefix),
            "after_key": query.after[0] if query.after else None,
            "after_id": query.after[1] if query.after else None,
        }
        rows = await self._read(LISTS[query.order, query.descending], parameters)
        if not query.count:
            return rows, None
        [(count,)] = await self._read(COUNT, parameters)
        return rows, count

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        [(first, key)] = await self._read(LEASE_IDS, {"count": count})
        block = IdBlock(first, count, key)
        taken = await self._read(EXISTING, {"ids": block.ids()})
        return block, {row[0] for row in taken}

    async def foreign_changes(self) -> list[ForeignChange]:
        rows = await self._listener.run(FOREIGN_CHANGES)
        return [ForeignChange(*row) for row in rows]

    async def states(self, ids: Sequence[str]) -> list[State]:
        rows = await self._listener.run(STATES, {"ids": list(ids)}, binary=True)
        return [State(item_id, entry, version or 0) for item_id, entry, version in rows]

    async def forget_foreign_changes(self, seqs: Sequence[int]) -> None:
        await self._listener.run(FORGET_FOREIGN_CHANGES, {"seqs": list(seqs)})

    async def await_foreign_changes(self, time_limit_s: float) -> None:
        await self._listener.notified(time_limit_s)

    async def server(self) -> dict[str, Any]:
        """The server's settings that durability rests on, and its connections."""
        [row] = await self._read(SERVER, {})
        names = (
            "version",
            "fsync",
            "full_page_writes",
            "synchronous_commit",
            "max_connections",
            "connections",
            "in_recovery",
        )
        return dict(zip(names, row, strict=True))

    async def _read(self, statement: str, parameters: dict[str, Any]) -> list[TupleRow]:
        """Once more if it fails: a connection may have died while nobody used it."""
        try:
            return await self._read_once(statement, parameters)
        except StorageSlow:
            raise
        except StorageAway:
            await self._pool.check()
            return await self._read_once(statement, parameters)

    async def _read_once(self, statement: str, parameters: dict[str, Any]) -> list[TupleRow]:
        async with self._reader() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(statement.encode(), parameters)
            return await cursor.fetchall()

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S), self._pool.connection() as connection:
                yield connection
        except Exception as error:
            raise classify(error) from error


def _parked(item_id: str, version: int, data: str | None, created_us: int) -> Change:
    entry = pack(version, created_us, (data or "").encode())
    return Change(item_id, version, entry, deleted=data is None, now_s=0.0)


def prefix_end(prefix: str) -> str | None:
    """The first id, in byte order, after all that begin with the prefix; None if there is none.

    UTF-8's byte order is the order of code points, so the last one is counted up; code points
    that cannot be encoded (the surrogates, U+D800 to U+DFFF) are stepped over.
    """
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position]) + 1
        if point <= 0x10FFFF:
            return prefix[:position] + chr(0xE000 if point == 0xD800 else point)
    return None
