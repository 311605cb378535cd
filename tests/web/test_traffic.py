"""Requests are counted, timed and told apart, in the lane and outside of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from itemstore import surroundings
from itemstore.storage.postgres import Postgres
from itemstore.surroundings import Surroundings
from itemstore.web.app import ROUTES
from itemstore.web.traffic import Kind
from tests.web.conftest import Service, make, request, service_over


@pytest_asyncio.fixture
async def own(dsn: str) -> AsyncIterator[Service]:
    """A served store of this test's own: what it counts is the test's."""
    async with service_over(Postgres(dsn)) as one:
        yield one


def timed(service: Service) -> dict[Kind, int]:
    return {kind: each.count for kind, each in service.traffic.latency.items() if each.count}


async def test_each_request_is_timed_by_its_kind(own: Service) -> None:
    """Reads, writes, large requests and the rest are told apart; HEAD is timed as GET is."""
    await make(own.api, "a")
    await own.api("GET", "/items/a")
    await own.api("HEAD", "/items/a")
    await own.api("GET", "/items")
    await own.api("GET", "/nothing")
    assert timed(own) == {Kind.READ: 2, Kind.WRITE: 1, Kind.HEAVY: 1, Kind.SYSTEM: 1}
    assert all(each.sum > 0 for kind, each in own.traffic.latency.items() if kind in timed(own))


def test_every_route_has_its_kind(own: Service) -> None:
    """What is counted under a route's name is timed under its kind in the table of routes."""
    for route in ROUTES:
        name = f"{route.method} {route.path.replace(':(?s:.+)', '')}"
        before = own.traffic.latency[route.kind].count
        own.traffic.note(route.method, "/", name, 0.0, "x", 200)
        assert own.traffic.latency[route.kind].count == before + 1, name


async def test_the_lane_is_timed(own: Service) -> None:
    """What the lane answers is timed and its errors counted, as the ordinary route does it."""
    await make(own.api, "a", durability="memory")
    raw = await own.raw()
    for target, status in (("/items/a", 200), ("/items/none", 404)):  # the lane's
        assert (await raw.ask(request("GET", target))).status == status
    for target, status in (("/items/%61", 200), ("/items/%6eone", 404)):  # not the lane's
        assert (await raw.ask(request("GET", target))).status == status
    assert timed(own)[Kind.READ] == 4
    assert own.traffic.errors == {"item_not_found": 2}
    assert {key: each.count for key, each in own.traffic.served.items() if key[1] != 201} == {
        ("GET /items/{id}", 200): 2,
        ("GET /items/{id}", 404): 2,
    }


async def test_how_long_a_stream_takes_is_its_clients_doing(own: Service) -> None:
    """Imports and exports are counted and not timed; one that is refused is."""
    await own.api("GET", "/export", check=False)
    await own.api("POST", "/import", body=b'{"data": {}}\n', content_type="application/x-ndjson")
    assert timed(own) == {}
    await own.api("POST", "/import", body=b"", content_type="text/html")
    assert timed(own) == {Kind.HEAVY: 1}
    assert {("GET /export", 200): 1, ("POST /import", 200): 1, ("POST /import", 415): 1} == {
        key: each.count for key, each in own.traffic.served.items()
    }


async def test_what_is_not_http_is_counted_and_logged(own: Service) -> None:
    """Bytes that are no request are counted under 400, by code, and told in the log."""
    raw = await own.raw()
    assert (await raw.ask(b"hello\r\n\r\n")).status == 400
    metrics = (await own.api("GET", "/metrics")).body
    assert b'http_requests_total{route="malformed",status="400"} 1.0' in metrics
    assert b'http_errors_total{code="malformed_request"} 1.0' in metrics
    [event] = [each for each in own.events() if each["message"] == "malformed"]
    assert event["level"] == "debug"
    assert event["reason"]
    assert "hello" not in event["reason"]


async def test_open_connections_are_counted(own: Service) -> None:
    """One more for each that is open, one less when it ends, however it does."""
    await own.api("GET", "/livez")  # over one that stays
    first, second = await own.raw(), await own.raw()
    await first.check_usable()
    await second.check_usable()
    assert own.door.connections == 3
    await first.close()
    await second.ask(b"hello\r\n\r\n")
    await own.until(lambda: own.door.connections == 1)


async def test_batches_are_measured(own: Service) -> None:
    """Each batch is one in both histograms, with its items and its time."""
    for name in "abc":
        await make(own.api, name, durability="commit")
    persister = own.store.persister
    assert persister.batch_items.count == persister.batch_seconds.count == persister.batches
    assert persister.batch_items.sum == 3
    assert persister.batch_seconds.sum > 0


async def test_a_scrape_waits_for_nobody(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While PostgreSQL says nothing of itself /metrics answers, without its numbers."""
    storage = Postgres(dsn)
    silent = asyncio.Event()

    async def server() -> None:
        await silent.wait()

    monkeypatch.setattr(storage, "server", server)
    async with service_over(storage, around=Surroundings(storage)) as service:
        text = (await service.api("GET", "/metrics")).body
    assert b"itemstore_postgres_connections" not in text
    assert b'itemstore_pool_connections{pool="reader"}' in text


async def test_lag_of_the_event_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is held up is late, by what it was held up."""
    monkeypatch.setattr(surroundings, "LAG_INTERVAL_S", 0.001)
    around = Surroundings()
    looking = asyncio.create_task(around.run())
    await _until(lambda: around.lag.count > 1)
    asyncio.get_running_loop().call_soon(_hold_up)
    counted = around.lag.count
    await _until(lambda: around.lag.count > counted + 1)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert around.lag.sum >= 0.05


def _hold_up() -> None:
    time.sleep(0.06)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)
