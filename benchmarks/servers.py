"""The servers under measurement: PostgreSQL, and itemstore as a process of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString

import orjson
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from benchmarks.client import Answer, Client
from benchmarks.ports import Port
from itemstore.settings import table
from itemstore.storage.embedded import EmbeddedPostgres

WAIT_S: Final = 300.0  # for any one thing
END_S: Final = 5.0  # then a process that does not end is killed
LINES_SHOWN_MAX: Final = 20  # of the server's log, when it failed
POLL_S: Final = 0.001  # a busier poll would take a core from the server that it waits for

_numbers = itertools.count(1)


@contextmanager
def postgres() -> Iterator[str]:
    """The DSN of a server: that of DATABASE_URL, else a new embedded one, removed at the end.

    The embedded one has PostgreSQL's own settings, so it syncs to disk.
    """
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    directory = Path(tempfile.mkdtemp(prefix="itemstore-benchmark-"))
    directory.chmod(0o755)  # for root, PostgreSQL runs as another account
    server = EmbeddedPostgres(directory)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def database(server_dsn: str) -> Iterator[str]:
    """The DSN of a new database on the server; it is dropped at the end."""
    name = f"itemstore_benchmark_{os.getpid()}_{next(_numbers)}"
    _administer(server_dsn, "CREATE DATABASE {}", name)
    try:
        yield make_conninfo(server_dsn, dbname=name)
    finally:
        _administer(server_dsn, "DROP DATABASE {} WITH (FORCE)", name)


def _administer(server_dsn: str, statement: LiteralString, name: str) -> None:
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(SQL(statement).format(Identifier(name)))


class ServerError(Exception):
    """A process did not do what a benchmark needs."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running process that listens: itemstore, or what it is compared with."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float  #: by time.perf_counter(), just before the exec

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> Client:
        """Waits until the process listens. Raises ServerError if it does not, or ends."""
        deadline = time.perf_counter() + WAIT_S
        while time.perf_counter() < deadline:
            try:
                return Client(self.port)
            except ConnectionRefusedError:
                self._check_alive()
                time.sleep(POLL_S)
        raise ServerError(f"{self.name} does not listen after {WAIT_S:g} s{self._last_lines()}")

    def wait_until_listening(self) -> None:
        with self.connect():
            pass

    def wait_for(
        self, path: str, is_awaited: Callable[[Answer], bool] = lambda answer: answer.status == 200
    ) -> Answer:
        """Asks until this is the answer. Raises ServerError if it does not come."""
        deadline = time.perf_counter() + WAIT_S
        with self.connect() as client:
            while not is_awaited(answer := client.get(path)):
                if time.perf_counter() > deadline:
                    raise ServerError(f"GET {path} is still {answer}{self._last_lines()}")
                time.sleep(POLL_S)
        return answer

    def wait_until_hydrated(self) -> None:
        self.wait_for("/readyz", is_hydrated)

    def stop(self) -> None:
        """SIGTERM. Raises ServerError unless the process then ends with 0."""
        self._check_alive()
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(WAIT_S) != 0:
            raise ServerError(self._ended())

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerError(self._ended())

    def _ended(self) -> str:
        return f"{self.name} ended with {self.process.returncode}{self._last_lines()}"

    def _last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LINES_SHOWN_MAX:]
        return "\n".join([":", *lines])


def is_hydrated(readyz: Answer) -> bool:
    """Few items may be there before the first request is answered."""
    return readyz.status == 200 and bool(orjson.loads(readyz.body)["hydrated"])


@contextmanager
def itemstore(dsn: str, **settings: str) -> Iterator[Server]:
    """A fresh itemstore over the database; stopped by SIGTERM at the end."""
    command = [sys.executable, "-m", "itemstore", "serve"]
    with process(
        "itemstore", lambda port: command, _environment(settings | {"DATABASE_URL": dsn})
    ) as server:
        yield server
        server.stop()


@contextmanager
def process(
    name: str,
    command: Callable[[int], Sequence[str]],
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A process that listens on the port it is given, also as PORT; ended by SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="itemstore-benchmark-") as directory:
        port = Port()
        server = _start(name, Path(directory, "log"), port.number, command, environment)
        try:
            yield server
        finally:
            _end(server.process)
            port.close()


def _start(
    name: str,
    log: Path,
    port: int,
    command: Callable[[int], Sequence[str]],
    environment: dict[str, str] | None,
) -> Server:
    given = (dict(os.environ) if environment is None else environment) | {"PORT": str(port)}
    with log.open("wb") as output:
        started = time.perf_counter()
        started_process = subprocess.Popen(command(port), env=given, stdout=output, stderr=output)
    return Server(name, started_process, port, log, started)


def _end(ending: subprocess.Popen[bytes]) -> None:
    """However it ends: only itemstore promises to end with 0."""
    if ending.poll() is not None:
        return
    ending.terminate()
    try:
        ending.wait(END_S)
    except subprocess.TimeoutExpired:
        ending.kill()
        ending.wait()


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """Ours, but nothing in it that would change what the server does."""
    inherited = {name: value for name, value in os.environ.items() if name not in table()}
    return inherited | {"HOST": "127.0.0.1", "LOG_LEVEL": "warning"} | settings
