"""Several stores over one database in one process, and what can come between them and PostgreSQL.

The stores and PostgreSQL are real. ``Gated`` stops any call of the storage before PostgreSQL is
asked or after it has answered; a ``Road`` is a port that passes bytes on, and can be cut or silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from itemstore import lease as lease_module
from itemstore import store as store_module
from itemstore import watcher as watcher_module
from itemstore.core.item import Item
from itemstore.options import Durability, Options, Preload
from itemstore.storage import StorageAway, StorageDown, StorageError
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from tests.sql import query
from tests.test_races import Gate, Place, no_pause, soon

__all__ = ["Gate", "soon"]

T = TypeVar("T")

MEMORY, JOURNAL, COMMIT = Durability.MEMORY, Durability.JOURNAL, Durability.COMMIT
LAZY, FULL = Preload.SKIP, Preload.PRELOAD
FOR_EVER_S: Final = 3_600.0  # a wait that must not end by time
HOUR_US: Final = 3_600_000_000
LIMIT_S: Final = 30.0  # so that what never happens fails a test instead of hanging it

#: The calls of the storage that can be stopped.
CALLS: Final = (
    *("write", "renew", "lease", "acquire", "want", "let_go", "changes", "parked"),
    *("quarantine", "release", "discard", "purge", "load", "page", "select", "unserved", "usage"),
    *("lease_ids", "repetitions", "audit", "purge_records"),
    *("foreign_changes", "foreign_changes_since", "states", "forget_foreign_changes"),
    "await_foreign_changes",
)
EXPIRE: Final = "UPDATE writer_lease SET expires_at = clock_timestamp() - interval '1 second'"


class Gated(Postgres):
    """PostgreSQL behind gates: ``hold`` stops the next call of a kind, ``cut_off`` fails all."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._gates: dict[tuple[str, Place], list[Gate]] = {}
        self._held: list[Gate] = []
        self._failure: StorageError | None = None
        self.counts: dict[str, int] = dict.fromkeys(CALLS, 0)
        for name in CALLS:
            setattr(self, name, self._gated(name, getattr(self, name)))

    def hold(
        self, call: str, place: Place = "before", *, failing: StorageError | None = None
    ) -> Gate:
        """The next such call waits at the gate; one call for each time this was called."""
        gate = Gate(failing)
        self._gates.setdefault((call, place), []).append(gate)
        self._held.append(gate)
        return gate

    def cut_off(self, failure: StorageError | None = None) -> None:
        """From now on PostgreSQL cannot be asked."""
        self._failure = failure or StorageAway("cut off")

    def join(self) -> None:
        """It can be asked again."""
        self._failure = None

    def open_all(self) -> None:
        self._failure = None
        self._gates.clear()
        for gate in self._held:
            gate.open()

    def _gated(
        self, name: str, call: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def gated(*args: Any, **named: Any) -> Any:
            self.counts[name] += 1
            await self._at(name, "before")
            if (failure := self._failure) is not None:
                await asyncio.sleep(0)
                raise failure
            answer = await call(*args, **named)
            await self._at(name, "after")
            return answer

        return gated

    async def _at(self, call: str, place: Place) -> None:
        gates = self._gates.get((call, place))
        if gates:
            await gates.pop(0).pass_through()


_started: Final[list[asyncio.Task[Any]]] = []


def start(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The call, under way. ``stores_over`` ends it, and looks at its outcome if no test does."""
    task = asyncio.ensure_future(call)
    _started.append(task)
    return task


DOWN: Final = StorageDown("Connection refused")


class Time:
    """A monotonic clock that stands still unless it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Logged(list[dict[str, Any]]):
    """The events logged."""

    def __init__(self) -> None:
        super().__init__()
        self.log = structlog.wrap_logger(None, processors=[self._take])

    def _take(self, _: object, level: str, event: Any) -> str:
        self.append({**event, "level": level})
        raise structlog.DropEvent

    def names(self) -> list[str]:
        return [event["event"] for event in self]


class Stores:
    """Opens stores over one database, and closes them all at the end."""

    def __init__(self, dsn: str, stack: AsyncExitStack) -> None:
        self.dsn = dsn
        self._stack = stack
        self.logged = Logged()

    async def open(
        self,
        preload: Preload = FULL,
        *,
        pg: Postgres | None = None,
        now_us: Callable[[], int] | None = None,
        monotonic: Callable[[], float] | None = None,
        **options: Any,
    ) -> ItemStore:
        """A started store over PostgreSQL behind gates: ``gates(store)``."""
        store = self.make(preload, pg=pg, now_us=now_us, monotonic=monotonic, **options)
        await soon(store.start())
        return store

    def make(
        self,
        preload: Preload = FULL,
        *,
        pg: Postgres | None = None,
        now_us: Callable[[], int] | None = None,
        monotonic: Callable[[], float] | None = None,
        **options: Any,
    ) -> ItemStore:
        """The same, not yet started."""
        pg = pg or Gated(self.dsn)
        store = ItemStore(
            pg,
            Options(skip_items_preload=preload, **options),
            log=self.logged.log,
            now_us=now_us or store_module._now_us,
            monotonic=monotonic or store_module._monotonic,
        )
        store.persister._sleep = store.loader._sleep = no_pause
        self._stack.push_async_callback(self._end, store, pg)
        return store

    def psql(self, statement: str, *parameters: object) -> list[Any]:
        return query(self.dsn, statement, *parameters)

    async def _end(self, store: ItemStore, pg: Postgres) -> None:
        if isinstance(pg, Gated):
            pg.open_all()
        await soon(store.close(10.0))


def gates(store: ItemStore) -> Gated:
    assert isinstance(store._storage, Gated)
    return store._storage


@asynccontextmanager
async def stores_over(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stores]:
    """Stores over an empty database that look after the lease at short intervals."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_SHARE", 0.005)  # of 10 s
    monkeypatch.setattr(lease_module, "RETRY_S", 0.02)
    monkeypatch.setattr(lease_module, "DOWN_SHARE", 0.0)
    monkeypatch.setattr(lease_module, "DOWN_MIN_S", 0.05)
    monkeypatch.setattr(lease_module, "ASK_INTERVAL_S", 0.02)
    monkeypatch.setattr(lease_module, "STANDBY_INTERVAL_S", 0.02)
    monkeypatch.setattr(watcher_module, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(watcher_module, "RETRY_S", 0.02)
    async with AsyncExitStack() as stack:
        yield Stores(dsn, stack)
    for task in _started:
        task.cancel()
    await asyncio.gather(*_started, return_exceptions=True)
    _started.clear()


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds, which no event tells."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - it depends on another process
            await asyncio.sleep(0.002)


async def hand_over(store: ItemStore, to: ItemStore) -> None:
    """Returns when the standby has been handed the lease it asks for."""
    await until(lambda: to.lease.is_holder)
    assert not store.lease.is_holder


async def take_away(stores: Stores, store: ItemStore, to: ItemStore) -> None:
    """The holder is cut off, its lease's time is over, and the other one takes it."""
    await cut_off(store)
    stores.psql(EXPIRE)
    await until(lambda: to.lease.is_holder)


async def cut_off(store: ItemStore, failure: StorageError | None = None) -> None:
    """Returns when PostgreSQL hears nothing more of this store: no heartbeat is under way."""
    gates(store).cut_off(failure)
    asked = gates(store).counts["renew"]
    await until(lambda: gates(store).counts["renew"] > asked)


async def followed(store: ItemStore) -> None:
    """Returns when the standby has taken over what was committed before the call."""
    seen = gates(store).counts["foreign_changes_since"]
    await until(lambda: gates(store).counts["foreign_changes_since"] > seen + 3)


def data_of(item: Item | None) -> Any:
    return None if item is None else item.data


class Road:
    """The way to PostgreSQL: a port that passes bytes on to the real one."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._to = conninfo_to_dict(dsn)
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    @property
    def dsn(self) -> str:
        return make_conninfo(self._dsn, host="127.0.0.1", port=self.port)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Ends all connections, and lets no new one in: PostgreSQL is stopped."""
        assert self._server is not None
        self._server.close()
        self._flows.set()
        for end in self._ends:
            end.transport.abort()
        await asyncio.gather(*self._tasks)

    def silence(self) -> None:
        """From now on not a byte comes through, and nobody is told."""
        self._flows.clear()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = Path(str(self._to["host"])) / f".s.PGSQL.{self._to['port']}"
        far_reader, far_writer = await asyncio.open_unix_connection(there)
        self._ends |= {writer, far_writer}
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._flows.wait()
                writer.write(data)
        writer.close()


def ids_of(changes: Sequence[Any]) -> list[str]:
    return [change.id for change in changes]
