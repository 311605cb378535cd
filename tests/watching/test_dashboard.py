"""What the dashboard and the alarms ask for is there, in a Prometheus that scraped a store."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from itemstore import surroundings
from itemstore.core.caller import Role
from itemstore.storage.postgres import Postgres
from tests.watching.load import under_load
from tests.watching.prometheus import (
    LIMIT_S,
    Prometheus,
    needs_prometheus,
    panels,
    rules,
    scraping,
)
from tests.web.callers import KEYS, caller
from tests.web.conftest import Service, service_over
from tests.web.test_shared_limits import REDIS
from tests.web.test_shared_limits import Server as Redis
from tests.web.test_system import everything

ASKED = {
    name
    for query in [*(each.query for each in panels()), *(each.query for each in rules())]
    for name in re.findall(r"\bitemstore_\w+", query)
}


@pytest.fixture
async def watched(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """A store with everything there is to be watched: a journal, a disk of its own and Redis."""
    monkeypatch.setattr(surroundings, "LOOK_INTERVAL_S", 0.2)
    if REDIS is None:
        pytest.skip("Redis is missing; apt-get install redis-server")
    redis = Redis(tmp_path)
    await redis.start()
    try:
        async with everything(dsn, tmp_path, redis.url) as service:
            yield service
    finally:
        await redis.kill()


async def samples(service: Service) -> dict[str, str]:
    """The names in /metrics, and each one's kind."""
    text = (await service.api("GET", "/metrics")).body.decode()
    return {
        sample.name: family.type
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_metric_that_is_asked_for_exists(watched: Service) -> None:
    """Each metric of the dashboard and of the rules is in /metrics, once it was all looked at."""
    missing = ASKED
    async with under_load(watched.port):
        for _ in range(int(LIMIT_S / 0.2)):
            missing = ASKED - (await samples(watched)).keys()
            if not missing:
                break
            await asyncio.sleep(0.2)
    assert set() == missing


#: What a machine may be guilty of that has much else to do.
OF_THE_MACHINE: Final = {
    f"Itemstore{name}"
    for name in ("EventLoopLag", "Slow", "DirtyAge", "Disk", "Memory", "RedisLost")
}


@needs_prometheus
async def test_every_panel_shows_something(watched: Service, tmp_path: Path) -> None:
    """Each query of the dashboard returns numbers while a store is under load; no alarm fires."""
    async with scraping(watched.port, tmp_path) as prometheus, under_load(watched.port):
        assert [] == await empty_panels(prometheus)
        assert await prometheus.firing() <= OF_THE_MACHINE


@needs_prometheus
async def test_prometheus_scrapes_with_a_key(dsn: str, tmp_path: Path) -> None:
    """deploy/prometheus.yml works with a key that may read everything, and with no lesser one."""
    async with service_over(Postgres(dsn), access=KEYS) as service:
        reader = await caller(service, Role.READ)
        async with scraping(service.port, tmp_path, reader.token) as prometheus:
            assert await prometheus.sees('up{job="itemstore"} == 1')
            assert await prometheus.sees("itemstore_ready == 1")
            assert set() == await prometheus.firing()
        confined = await caller(service, Role.READ, "a/")
        for token in ("", confined.token):
            directory = tmp_path / f"with-{len(token)}"
            directory.mkdir()
            async with scraping(service.port, directory, token) as prometheus:
                assert await prometheus.sees('up{job="itemstore"} == 0')


async def empty_panels(prometheus: Prometheus) -> list[str]:
    """The panels that show nothing, after all the time they may take."""
    wanted = panels()
    try:
        async with asyncio.timeout(LIMIT_S):
            while wanted:
                await asyncio.sleep(0.5)
                wanted = [each for each in wanted if not await prometheus.series(each.query)]
    except TimeoutError:
        pass
    return [f"{each.title}: {each.query}" for each in wanted]
