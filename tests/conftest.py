"""Real PostgreSQL servers for the tests: one a major version and session, a database a test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest

from itemstore.options import Options
from itemstore.storage.embedded import EmbeddedPostgres
from itemstore.storage.installations import find_installations
from itemstore.store import ItemStore
from itemstore.web.server import loop_factory
from tests.sql import make_database
from tests.stores import Stores, stores_over

MAJORS_WANTED = (15, 16, 18)  # Debian 12, Railway's default, the embedded one
_FOUND = {installation.major: installation for installation in reversed(find_installations())}
#: Durability of the server under the tests is tested elsewhere; here it would only cost time.
_FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# No test fails by time: not by Hypothesis' own measure of it either, on a machine that is busy.
hypothesis.settings.register_profile(
    "itemstore", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("itemstore")

# Nothing of the developer's own environment may change what the tests do.
for _name in (
    "DATABASE_URL",
    "DATABASE_UNPOOLED_URL",
    "DATA_DIR",
    "DURABILITY",
    "PORT",
    "HOST",
    "API_KEY",
    "AUTH",
):
    os.environ.pop(_name, None)


def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    """The server's event loop: uvloop, or what TEST_LOOP says."""
    name = os.environ.get("TEST_LOOP", "uvloop")
    return {name: loop_factory(name)}


@pytest.fixture(scope="session")
def public_dir() -> Iterator[Path]:
    """A directory any account may enter: PostgreSQL does not run as root, pytest's are root's."""
    path = Path(tempfile.mkdtemp(prefix="itemstore-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def server(public_dir: Path) -> Iterator[Callable[[int], str]]:
    """The DSN of a running server of a major version, started when first asked for."""
    running: dict[int, tuple[EmbeddedPostgres, str]] = {}

    def start(major: int) -> str:
        if major not in _FOUND:
            pytest.skip(f"PostgreSQL {major} is not installed")
        if major not in running:
            data_dir = public_dir / f"pg{major}"
            embedded = EmbeddedPostgres(data_dir, binaries=_FOUND[major].bin, parameters=_FAST)
            running[major] = embedded, embedded.start()
        return running[major][1]

    yield start
    for embedded, _ in running.values():
        embedded.stop()


class Databases:
    """Empties databases and gives them out again: making one costs ten times as much."""

    def __init__(self) -> None:
        self._free: dict[str, list[str]] = {}

    @contextmanager
    def one(self, server_dsn: str) -> Iterator[str]:
        free = self._free.setdefault(server_dsn, [])
        dsn = free.pop() if free else make_database(server_dsn)
        yield dsn
        self._empty(server_dsn, dsn)
        free.append(dsn)

    def _empty(self, server_dsn: str, dsn: str) -> None:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(server_dsn, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" RESET ALL'.encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                (name,),
            )
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


@pytest.fixture(scope="session")
def databases() -> Databases:
    return Databases()


@pytest.fixture
def dsn(server: Callable[[int], str], databases: Databases) -> Iterator[str]:
    """An empty database on the newest server there is."""
    with databases.one(server(max(_FOUND))) as dsn:
        yield dsn


@pytest.fixture(params=MAJORS_WANTED, ids=lambda major: f"pg{major}")
def each_dsn(
    request: pytest.FixtureRequest, server: Callable[[int], str], databases: Databases
) -> Iterator[str]:
    """An empty database on each major version in turn."""
    with databases.one(server(request.param)) as dsn:
        yield dsn


@pytest.fixture
async def open_store(dsn: str) -> AsyncIterator[Callable[..., object]]:
    """Opens stores over the test's database; closes what the test left open.

    ``await open_store(durability=..., skip_items_preload=...)``: options by name.
    """
    async with AsyncExitStack() as stack:

        async def open_one(**options: object) -> ItemStore:
            return await stack.enter_async_context(
                ItemStore.open(dsn, Options(**options))  # type: ignore[arg-type]
            )

        yield open_one


@pytest.fixture
async def store(open_store: Callable[..., object]) -> ItemStore:
    """A running store over an empty database."""
    return await open_store()  # type: ignore[misc,no-any-return]


@pytest.fixture
async def stores(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stores]:
    """Stores over one database, behind gates; closes them in the end."""
    async with stores_over(dsn, monkeypatch) as made:
        yield made
