"""The systems that are compared, each started with the same items, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from psycopg.conninfo import conninfo_to_dict

from benchmarks.apis import Api, ItemsApi, RedisApi, WebdisApi
from benchmarks.data import Row, load
from benchmarks.kinds import COMMIT, EVERYSEC, KINDS, MEMORY
from benchmarks.peer_services import held
from benchmarks.servers import Server, ServerError, database, itemstore, process


@dataclass(frozen=True, slots=True)
class System:
    """One row of the comparison, running."""

    name: str
    api: Api
    works: frozenset[str]
    server: Server

    @property
    def is_itemstore(self) -> bool:
        return _carrier(self.name) == _ITEMSTORE


class Ground(NamedTuple):
    """What the systems are started on."""

    server_dsn: str  #: of PostgreSQL
    rows: Sequence[Row]
    directory: Path


@contextmanager
def running(
    kinds: Sequence[str], ground: Ground, advance: Callable[[], object] = lambda: None
) -> Iterator[dict[str, System]]:
    """The systems, each with the same items, answering; all are ended at the end.

    They stay up beside each other, so that rounds can go through all of them; one that is not asked
    takes no time worth counting.
    """
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for kind in kinds:
            starter = _STARTERS[_carrier(kind)]
            if _carrier(kind) not in servers:
                servers[_carrier(kind)] = stack.enter_context(starter(ground))
            advance()
        found = {
            kind: System(kind, _APIS[kind], KINDS[kind].works, servers[_carrier(kind)])
            for kind in kinds
        }
        for system in found.values():
            system.server.wait_until_listening()
            if system.is_itemstore:
                system.server.wait_until_hydrated()
        yield found


def _carrier(kind: str) -> str:
    """The server behind the row: both levels of itemstore are one's."""
    return _ITEMSTORE if kind.startswith(_ITEMSTORE) else kind


_ITEMSTORE: Final = "itemstore"


_APIS: Final[dict[str, Api]] = {
    MEMORY: ItemsApi("memory"),
    COMMIT: ItemsApi("commit"),
    "redis-off": RedisApi(),
    EVERYSEC: RedisApi(),
    "redis-always": RedisApi(),
    "webdis": WebdisApi(),
    "fastapi": ItemsApi(),
    "aiohttp": ItemsApi(),
    "bare": ItemsApi(),
}


@contextmanager
def _itemstore(ground: Ground) -> Iterator[Server]:
    with database(ground.server_dsn) as dsn:
        load(dsn, len(ground.rows), items=ground.rows)
        with itemstore(dsn, SKIP_ITEMS_PRELOAD="false") as server:
            yield server


@contextmanager
def redis(appendfsync: str) -> Iterator[Server]:
    """A Redis without items; ``appendfsync`` as in redis.conf, or "off" for no AOF at all.

    It neither saves snapshots nor rewrites its AOF, which would only slow it down now and then.
    """
    aof = [] if appendfsync == "off" else ["--appendonly", "yes", "--appendfsync", appendfsync]
    command = ["redis-server", "--bind", "127.0.0.1", "--save", "", *aof]
    command += ["--auto-aof-rewrite-percentage", "0"]
    with tempfile.TemporaryDirectory(prefix="itemstore-benchmark-") as directory:
        command += ["--dir", directory]
        with process("Redis", lambda port: [*command, "--port", str(port)]) as server:
            yield server


def fill(server: Server, items: Iterable[Row]) -> None:
    """Puts the items' data into a Redis, as its manual says to do with many."""
    server.wait_until_listening()
    command = ["redis-cli", "-p", str(server.port), "--pipe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as piping:
        assert piping.stdin is not None
        for row in items:
            piping.stdin.write(RedisApi().put(row.id, row.data))
        piping.stdin.close()
    if piping.returncode != 0:
        raise ServerError(f"redis-cli --pipe ended with {piping.returncode}")


def _redis(appendfsync: str) -> Starter:
    @contextmanager
    def start(ground: Ground) -> Iterator[Server]:
        with redis(appendfsync) as server:
            fill(server, ground.rows)
            yield server

    return start


@contextmanager
def _webdis(ground: Ground) -> Iterator[Server]:
    with redis("everysec") as behind:
        fill(behind, ground.rows)
        file = ground.directory / "webdis.json"

        def command(port: int) -> Sequence[str]:
            ports = {"redis_port": behind.port, "http_port": port}
            logged = {"logfile": str(file.with_suffix(".log"))}
            file.write_bytes(orjson.dumps(_WEBDIS | ports | logged))
            return ("webdis", str(file))

        with process("Webdis", command) as server:
            yield server


#: As Debian sets it up.
_WEBDIS: Final = {
    "redis_host": "127.0.0.1",
    "http_host": "127.0.0.1",
    "threads": 2,
    "daemonize": False,
    "database": 0,
    "verbosity": 0,
}


@contextmanager
def _fastapi(ground: Ground) -> Iterator[Server]:
    from benchmarks.peer_services.by_hand import SCHEMA  # needs what may not be installed

    command = [sys.executable, "-m", "uvicorn", "benchmarks.peer_services.by_hand:app"]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    with database(ground.server_dsn) as dsn:
        load(dsn, len(ground.rows), items=ground.rows, schema=SCHEMA)
        environment = os.environ | _pg(dsn)
        with process(
            "FastAPI", lambda port: [*command, "--port", str(port)], environment
        ) as server:
            yield server


_PG: Final = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
}


def _pg(dsn: str) -> dict[str, str]:
    """The variables that libpq and asyncpg read."""
    given = conninfo_to_dict(dsn)
    return {variable: str(given[name]) for name, variable in _PG.items() if name in given}


def _service(name: str) -> Starter:
    """One of those over a dict."""
    command = [sys.executable, "-m", f"benchmarks.peer_services.{name}"]

    def start(ground: Ground) -> AbstractContextManager[Server]:
        items = ground.directory / "items"
        if not items.exists():
            held.write(ground.rows, items)
        return process(name, lambda port: [*command, f"--port={port}", f"--items={items}"])

    return start


Starter = Callable[[Ground], AbstractContextManager[Server]]

_STARTERS: Final[dict[str, Starter]] = {
    _ITEMSTORE: _itemstore,
    "redis-off": _redis("off"),
    EVERYSEC: _redis("everysec"),
    "redis-always": _redis("always"),
    "webdis": _webdis,
    "fastapi": _fastapi,
    "aiohttp": _service("plain_aiohttp"),
    "bare": _service("bare"),
}
