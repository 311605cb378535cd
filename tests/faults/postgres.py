"""The PostgreSQL of a campaign: real, with fsync on, and stopped, killed or slowed as one likes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg

from itemstore.storage.embedded import EmbeddedPostgres
from tests.faults.history import State

#: The envelope as docs/api.md has it, but for the id, which JSON may write in more than one way.
_ENVELOPE: Final = """
    ',"version":' || version
    || ',"created_at":"' || to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    || '","updated_at":"' || to_char((timestamptz 'epoch' + version * interval '1 microsecond')
                                    AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    || '","data":' || data::text || '}'
"""
#: Versions are microseconds: what is older than the round belongs to another one.
_ROWS: Final = f"SELECT id, {_ENVELOPE} FROM items WHERE version >= %s"
_TOTAL: Final = "SELECT count(*) FROM items"
_FILL: Final = """
SET session_replication_role = replica;
INSERT INTO items SELECT 'filler-' || n, json_build_object('n', n), n, 'epoch', 'epoch'
  FROM generate_series(1, 100000) AS n;
RESET session_replication_role;
ANALYZE items
"""
#: The version is the trigger's.
_CHANGE: Final = f"UPDATE items SET data = %s WHERE id = %s RETURNING id, {_ENVELOPE}"
_TOMBSTONES: Final = "SELECT id, version FROM tombstones WHERE version >= %s"
_QUARANTINE: Final = f"SELECT id, version, {_ENVELOPE} FROM quarantine WHERE version >= %s"
#: Without the triggers that would take it for changes by another hand.
_FORGET: Final = """
SET session_replication_role = replica;
DELETE FROM items WHERE version < {0};
DELETE FROM tombstones WHERE version < {0};
DELETE FROM quarantine WHERE version < {0};
RESET session_replication_role
"""
_IS_INSTALLED: Final = "SELECT to_regclass('store_meta') IS NOT NULL"
_BACKENDS: Final = """
SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'itemstore%' ORDER BY pid
"""
_BUSY: Final = """
SELECT count(*) FROM pg_stat_activity
 WHERE application_name LIKE 'itemstore%' AND pid <> pg_backend_pid()
"""
_POLL_S: Final = 0.02


class PostgresServer:
    """One cluster of its own. Nothing here blocks the event loop."""

    def __init__(self, directory: Path, parameters: Mapping[str, str] = {}) -> None:
        self._pid_file = directory / "postgres" / "postmaster.pid"
        self._embedded = EmbeddedPostgres(
            directory, parameters={"fsync": "on", "max_connections": "100", **parameters}
        )
        self.dsn = ""
        self.is_running = False

    @property
    def socket(self) -> str:
        """Its socket's path; it listens nowhere else."""
        parts = psycopg.conninfo.conninfo_to_dict(self.dsn)
        return f"{parts['host']}/.s.PGSQL.{parts['port']}"

    async def start(self) -> None:
        self.dsn = await asyncio.to_thread(self._embedded.start)
        self.is_running = True

    async def stop(self) -> None:
        """In order: a checkpoint, then the end."""
        self.is_running = False
        await asyncio.to_thread(self._embedded.stop)

    async def crash(self) -> None:
        """As ``pg_ctl stop -m immediate``: no checkpoint, the next start recovers."""
        self.is_running = False
        os.kill(self._postmaster(), signal.SIGQUIT)
        await asyncio.to_thread(self._embedded.stop)

    def _postmaster(self) -> int:
        return int(self._pid_file.read_text().split("\n", 1)[0])

    # --- SQL

    async def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(self._run, statement, parameters)

    def _run(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    async def forget(self, before: int) -> None:
        """Removes what is older; while no server runs, for it would not know."""
        if (await self.run(_IS_INSTALLED))[0][0]:
            await self.run(_FORGET.format(before))

    async def fill(self) -> None:
        """100,000 rows, as if the store had written them long ago."""
        await self.run(_FILL)

    async def change(self, item_id: str, data: str) -> str:
        """As somebody in psql would; the envelope of the new state."""
        [(found, rest)] = await self.run(_CHANGE, data, item_id)
        return _envelope(found, rest)

    async def state(self, since: int) -> State:
        """What the tables hold of this version and later ones."""
        rows = await self.run(_ROWS, since)
        tombstones = await self.run(_TOMBSTONES, since)
        quarantine = await self.run(_QUARANTINE, since)
        [(total,)] = await self.run(_TOTAL)
        return State(
            total=total,
            rows={item_id: _envelope(item_id, rest) for item_id, rest in rows},
            tombstones={row[0]: row[1] for row in tombstones},
            quarantine={
                item_id: (version, None if rest is None else _envelope(item_id, rest))
                for item_id, version, rest in quarantine
            },
        )

    async def backends(self) -> list[int]:
        """The pids of the store's sessions."""
        return [row[0] for row in await self.run(_BACKENDS)]

    async def until_left(self) -> None:
        """Until no session of the store is left: a dead one's last statement has ended."""
        while (await self.run(_BUSY))[0][0]:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(_POLL_S)


def _envelope(item_id: str, rest: str) -> str:
    return f'{{"id":{orjson.dumps(item_id).decode()}{rest}'
