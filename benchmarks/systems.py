"""What is compared: itemstore and what people would pick instead, each started and loaded alike.

Whatever is not installed is left out; ``missing`` says what, and how to install it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from psycopg.conninfo import conninfo_to_dict

from benchmarks import charts
from benchmarks.apis import Api, ItemsApi, RedisApi, WebdisApi
from benchmarks.charts import Look
from benchmarks.data import Row, load
from benchmarks.peer_services import held
from benchmarks.servers import Server, ServerError, database, itemstore, process

MEMORY: Final = "itemstore-memory"
COMMIT: Final = "itemstore-commit"
EVERYSEC: Final = "redis-everysec"

READS: Final = frozenset({"get", "miss", "304"})
WRITES: Final = frozenset({"put", "post", "mixed"})
ALL: Final = READS | WRITES
BY_KEY: Final = frozenset({"get", "miss", "put", "post"})  #: what redis-benchmark can do
NO_IDS: Final = ALL - {"post"}  #: what Redis can be asked over HTTP
ONLY_PUT: Final = frozenset({"put"})  #: all else is the same with any AOF


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


class Kind(NamedTuple):
    """One row of the comparison, and what it needs."""

    title: str
    works: frozenset[str]
    look: Look
    commands: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


_REDIS: Final = ("redis-server", "redis-benchmark", "redis-cli")
_LOOP: Final = ("uvloop", "httptools")
_SERVICE: Final = (*_LOOP, "fastapi", "uvicorn", "asyncpg")

KINDS: Final = {
    MEMORY: Kind("itemstore, memory", ALL, Look(charts.BLUE)),
    COMMIT: Kind("itemstore, commit", WRITES, Look(charts.BLUE, "--")),
    "redis-off": Kind("Redis, no AOF", ONLY_PUT, Look(charts.ORANGE, ":"), _REDIS),
    EVERYSEC: Kind("Redis, AOF everysec", BY_KEY, Look(charts.ORANGE), _REDIS),
    "redis-always": Kind("Redis, AOF always", ONLY_PUT, Look(charts.ORANGE, "--"), _REDIS),
    "webdis": Kind("Webdis, Redis everysec", NO_IDS, Look(charts.PURPLE), (*_REDIS, "webdis")),
    "fastapi": Kind("FastAPI + asyncpg", ALL, Look(charts.GREEN), (), _SERVICE),
    "aiohttp": Kind("aiohttp over a dict", ALL, Look(charts.GREY), (), ("uvloop",)),
    "bare": Kind("uvloop + httptools", ALL, Look(charts.GREY, "--"), (), _LOOP),
}

_PACKAGES: Final = {"redis-benchmark": "redis-tools", "redis-cli": "redis-tools"}


def missing(kinds: Sequence[str]) -> dict[str, list[str]]:
    """What the kinds need and this machine has not, by the command that installs it."""
    commands = {each for kind in kinds for each in KINDS[kind].commands} | {"wrk"}
    modules = {each for kind in kinds for each in KINDS[kind].modules}
    debian = {_PACKAGES.get(each, each) for each in commands if not shutil.which(each)}
    python = {each for each in modules if not find_spec(each)}
    found = {"apt-get install": sorted(debian), "pip install --group bench": sorted(python)}
    return {how: what for how, what in found.items() if what}


def is_installed(kind: str) -> bool:
    needs = KINDS[kind]
    return all(map(shutil.which, needs.commands)) and all(map(find_spec, needs.modules))


class Ground(NamedTuple):
    """What the systems are started on."""

    server_dsn: str  #: of PostgreSQL
    rows: Sequence[Row]
    directory: Path


def versions() -> dict[str, str]:
    """Of what itemstore is compared with, as far as it tells and is installed."""
    python = {each for kind in KINDS.values() for each in kind.modules}
    told = [f"{name} {version(name)}" for name in sorted(python) if find_spec(name)]
    for command, option in (("redis-server", "--version"), ("wrk", "--version")):
        if shutil.which(command):
            done = subprocess.run([command, option], capture_output=True, text=True, check=False)
            told += [f"{command} {found[0]}" for found in [_VERSION.search(done.stdout)] if found]
    return {"peers": ", ".join(told)}


_VERSION: Final = re.compile(r"\d+(\.\d+)+")


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
