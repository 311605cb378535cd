"""What the process stands on: its processor, event loop and disk, and what PostgreSQL has left.

``Surroundings.run`` looks from time to time, so that nobody who asks waits for PostgreSQL or for a
disk. What could not be found out the last time is not told.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from itemstore import memory
from itemstore.core.histogram import LATENCY_BOUNDS_S, Histogram
from itemstore.metrics import Metric
from itemstore.storage import Server
from itemstore.storage.postgres import PoolUse, Postgres
from itemstore.tasks import end

LAG_INTERVAL_S: Final = 0.25
LOOK_INTERVAL_S: Final = 10.0
LOOK_TIMEOUT_S: Final = 5.0


class Surroundings:
    """Of a store over ``postgres``, whose data lie in ``directory``; either may be none of ours."""

    def __init__(self, postgres: Postgres | None = None, directory: Path | None = None) -> None:
        self._postgres = postgres
        self._directory = directory
        #: How much later than it could the event loop came to what was due, in seconds.
        self.lag = Histogram(LATENCY_BOUNDS_S)
        self.server: Server | None = None
        #: (used, size) in bytes of the file system the data lie in, as df(1) has it.
        self.disk: tuple[int, int] | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        looking = asyncio.create_task(self._look_often(), name="surroundings")
        loop = asyncio.get_running_loop()
        try:
            while True:
                due = loop.time() + LAG_INTERVAL_S
                await asyncio.sleep(LAG_INTERVAL_S)
                self.lag.observe(max(0.0, loop.time() - due))
        finally:
            await end([looking])

    async def _look_often(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def look(self) -> None:
        """Finds out what has to be waited for, within some seconds."""
        self.server = await self._ask()
        self.disk = await asyncio.to_thread(self._usage)

    async def _ask(self) -> Server | None:
        if self._postgres is None:
            return None
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await self._postgres.server()
        except Exception:  # nothing replaces this task; and the lease says what is wrong, and why
            return None

    def _usage(self) -> tuple[int, int] | None:
        if self._directory is None:
            return None
        try:
            usage = shutil.disk_usage(self._directory)
        except OSError:  # it is made at the first start
            return None
        return usage.used, usage.used + usage.free

    def pools(self) -> dict[str, PoolUse]:
        """What the store's own connections for reading are doing, by pool."""
        return {} if self._postgres is None else self._postgres.pools()


def _server(read: Callable[[Server], float]) -> Callable[[Surroundings], float | None]:
    """What PostgreSQL said; absent if it did not."""
    return lambda s: None if s.server is None else read(s.server)


def _pools(read: Callable[[PoolUse], float]) -> Callable[[Surroundings], dict[str, float]]:
    return lambda s: {name: read(use) for name, use in s.pools().items()}


SURROUNDINGS: Final[tuple[Metric[Surroundings], ...]] = (
    Metric(
        "itemstore_postgres_connections",
        "gauge",
        "Connections to the PostgreSQL server, of all its clients; absent while it is away.",
        _server(lambda server: server.connections),
    ),
    Metric(
        "itemstore_postgres_max_connections",
        "gauge",
        "How many it takes: max_connections.",
        _server(lambda server: server.max_connections),
    ),
    Metric(
        "itemstore_postgres_database_bytes",
        "gauge",
        "Bytes of the store's database on PostgreSQL's disk, without WAL.",
        _server(lambda server: server.database_bytes),
    ),
    Metric(
        "itemstore_pool_connections",
        "gauge",
        "Connections in the store's pools for reading.",
        _pools(lambda use: use.size),
        label="pool",
    ),
    Metric(
        "itemstore_pool_busy_connections",
        "gauge",
        "Those that are in use.",
        _pools(lambda use: use.busy),
        label="pool",
    ),
    Metric(
        "itemstore_pool_max_connections",
        "gauge",
        "How many there may be.",
        _pools(lambda use: use.size_max),
        label="pool",
    ),
    Metric(
        "itemstore_pool_waiting_requests",
        "gauge",
        "Who waits for one.",
        _pools(lambda use: use.waiting),
        label="pool",
    ),
    Metric(
        "itemstore_disk_used_bytes",
        "gauge",
        "Bytes used of the disk with the data directory; absent without one.",
        lambda s: None if s.disk is None else s.disk[0],
    ),
    Metric(
        "itemstore_disk_size_bytes",
        "gauge",
        "Bytes of that disk that can be used.",
        lambda s: None if s.disk is None else s.disk[1],
    ),
    Metric(
        "itemstore_memory_resident_bytes",
        "gauge",
        "Memory of this process (RSS).",
        lambda _: memory.resident_bytes(),
    ),
    Metric(
        "itemstore_memory_limit_bytes",
        "gauge",
        "What it may use: the container's limit or the machine's memory.",
        lambda _: memory.limit_bytes(),
    ),
    Metric(
        "itemstore_cpu_seconds_total",
        "counter",
        "Processor time this process has used.",
        lambda _: time.process_time(),
    ),
    Metric("itemstore_cpus", "gauge", "Processors of the machine.", lambda _: os.cpu_count()),
    Metric(
        "itemstore_event_loop_lag_seconds",
        "histogram",
        "How late the event loop comes to what is due.",
        lambda s: s.lag,
    ),
)
