"""What those who run the store see: health and numbers; and where it listens."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from itemstore.core.rate import Rate
from itemstore.errors import StartupError
from itemstore.log import library_logger
from itemstore.metrics import METRICS as STORE
from itemstore.metrics import Metric
from itemstore.options import Options, Preload
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.surroundings import SURROUNDINGS, Surroundings
from itemstore.web.app import ROUTES, make_app
from itemstore.web.limits import Limits
from itemstore.web.numbers import HTTP
from itemstore.web.server import listening_socket
from itemstore.web.shared import Shared
from itemstore.web.traffic import Kind
from tests.web.conftest import Gate, Service, make, service_over, serving

# --- health


async def test_a_store_that_starts_is_alive_but_not_ready(dsn: str) -> None:
    """Until the store is connected /livez is 200, /readyz 503, and items are 503 with a time."""
    async with service_over(Postgres(dsn), start=False) as service:
        api = service.api

        assert (await api("GET", "/livez")).json == {"alive": True}
        ready = await api("GET", "/readyz", check=False)
        assert ready.status == 503
        assert ready.headers["Cache-Control"] == "no-store"
        assert ready.json == {
            "ready": False,
            "hydrated": False,
            "loaded": 0,
            "estimate": 0,
            "lease": "standby",
            "epoch": 0,
            "dirty": 0,
            "quarantined": 0,
            "database": "unknown",
            "journal": "none",
        }
        batch = {"operations": [{"op": "get", "id": "a"}]}
        for method, target, body in (
            ("GET", "/items/a", None),
            ("PUT", "/items/a", {"data": {}}),
            ("PATCH", "/items/a", {"data": {}}),
            ("DELETE", "/items/a", None),
            ("POST", "/items", {"data": {}}),
            ("POST", "/items:batch", batch),
            ("GET", "/items", None),
        ):
            answer = await api(method, target, body)
            answer.is_problem(503, "starting")
            assert answer.headers["Retry-After"] == "1"

        await service.store.start()
        assert (await api("GET", "/readyz")).json["database"] == "ok"
        assert (await api("GET", "/items/a")).status == 404


async def test_a_store_that_preloads_is_ready_and_tells_how_far_it_is(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the preload runs /readyz is 200 with its progress, and every answer is exact."""
    async with service_over(Postgres(dsn)):
        pass  # makes the tables
    number = 10_000
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO items SELECT lpad(n::text, 6, '0'), '{}', n, now(), now() "
            "FROM generate_series(1, %s) AS n",
            [number],
        )
        connection.execute("ANALYZE items")
    storage = Postgres(dsn)
    storage_page = storage.page
    further = Gate(storage_page)
    pages = 0

    async def page(*position: Any) -> Any:
        nonlocal pages
        pages += 1
        return await (storage_page if pages == 1 else further)(*position)

    monkeypatch.setattr(storage, "page", page)
    options = Options(skip_items_preload=Preload.PRELOAD)
    async with service_over(storage, options) as service:
        api, cached = service.api, service.store.cache
        await further.reached.wait()
        await service.until(lambda: service.store.loader.preloaded > 0)

        state = await api("GET", "/readyz")
        assert state.status == 200
        assert state.json == {
            "ready": True,
            "hydrated": False,
            "loaded": state.json["loaded"],
            "estimate": number,
            "lease": "holder",
            "epoch": service.store.lease.epoch,
            "dirty": 0,
            "quarantined": 0,
            "database": "ok",
            "journal": "none",
        }
        assert 0 < state.json["loaded"] < number
        missing = max(n for n in range(1, number + 1) if f"{n:06}" not in cached)
        assert (await api("GET", f"/items/{missing:06}")).status == 200
        assert (await api("GET", "/items/none")).status == 404
        assert (await api("GET", "/items?count=exact&limit=1")).json["count"] == number

        further.open.set()
        await service.until(lambda: service.store.cache.hydrated)
        state = await api("GET", "/readyz")
        assert state.json["hydrated"] is True
        assert number - 1 <= state.json["loaded"] <= number  # one was asked for before its turn


async def test_what_postgresql_refuses_is_quarantined_and_served(dsn: str) -> None:
    """An item PostgreSQL refuses is told to its writer, shown in /readyz, served, and mended."""
    async with service_over(Postgres(dsn)) as service:
        api = service.api
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE items ADD CHECK ((data ->> 'n')::int < 100)")

        answer = await api("PUT", "/items/bad", {"data": {"n": 100}})
        assert "quarantine" in answer.is_problem(500, "item_quarantined")["detail"]
        assert (await api("PUT", "/items/good", {"data": {"n": 1}})).status == 201
        assert (await api("GET", "/items/bad")).json["data"] == {"n": 100}
        state = await api("GET", "/readyz")
        assert (state.status, state.json["quarantined"], state.json["database"]) == (200, 1, "ok")
        assert (await api("GET", "/stats")).json["itemstore_quarantined_items"] == 1

        assert (await api("PUT", "/items/bad", {"data": {"n": 2}})).status == 200
        assert (await api("GET", "/readyz")).json["quarantined"] == 0
        [event] = [each for each in service.events() if each["message"] == "quarantined"]
    assert (event["id"], event["level"]) == ("bad", "error")


async def test_a_store_that_closes_is_not_ready(dsn: str) -> None:
    """Once the store is closing /readyz is 503 and items are 503."""
    async with service_over(Postgres(dsn)) as service:
        await service.store.close()

        assert (await service.api("GET", "/livez")).status == 200
        assert (await service.api("GET", "/readyz", check=False)).status == 503
        (await service.api("PUT", "/items/a", {"data": {}})).is_problem(503, "stopping")


async def test_a_full_queue_is_503_and_changes_nothing(dsn: str) -> None:
    """A write that finds the write queue full is 503 with Retry-After, and is not applied."""
    storage = Postgres(dsn)
    gate = Gate(storage.write)
    storage.write = gate  # type: ignore[method-assign]
    options = Options(queue_items_max=4, queue_wait_s=0.01)
    async with service_over(storage, options) as service:
        api = service.api
        for number in range(3):
            await make(api, f"{number}", durability="memory")

        answer = await api("PUT", "/items/more", {"data": {}}, durability="memory")

        assert "Nothing was changed" in answer.is_problem(503, "overloaded")["detail"]
        assert answer.headers["Retry-After"] == "1"
        assert (await api("GET", "/items/more")).status == 404
        assert (await api("GET", "/stats")).json["itemstore_writes_refused_total"] == 1
        gate.open.set()


# --- numbers


METRICS: list[Metric[Any]] = [*STORE, *SURROUNDINGS, *HTTP]


@asynccontextmanager
async def everything(
    dsn: str, tmp_path: Path, redis_url: str = "redis://127.0.0.1:1"
) -> AsyncIterator[Service]:
    """A store of which every number is known: with a journal, limits, and PostgreSQL looked at."""
    storage = Postgres(dsn)
    around = Surroundings(storage, tmp_path)
    options = Options(journal_dir=tmp_path / "journal")
    rate = Rate.parse("1000/s")
    shared = Shared(redis_url, library_logger())
    limits = Limits({Kind.HEAVY: rate}, failures=rate, shared=shared)
    async with service_over(storage, options, around=around, limited=limits) as service:
        await around.look()
        yield service


async def test_stats_has_every_number(dsn: str, tmp_path: Path) -> None:
    """/stats is one JSON object with every metric that is one number, and the requests answered."""
    async with everything(dsn, tmp_path) as service:
        await make(service.api, "a", durability="commit")
        await make(service.api, "b", durability="commit")

        answer = await service.api("GET", "/stats")

    single = {each.name for each in METRICS if each.kind != "histogram" and not each.label}
    names = single | {"itemstore_http_requests_total"}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(answer.json) == names
    assert all(isinstance(value, int | float) for value in answer.json.values())
    assert answer.json["itemstore_cache_items"] == 2
    assert answer.json["itemstore_writes_committed_total"] == 2
    assert answer.json["itemstore_http_requests_total"] == 2


async def test_metrics_is_what_prometheus_reads(dsn: str, tmp_path: Path) -> None:
    """/metrics is Prometheus' text format and holds every metric with its kind and help."""
    async with everything(dsn, tmp_path) as service:
        await make(service.api, "a", durability="commit")
        await service.api("GET", "/items/none")

        answer = await service.api("GET", "/metrics")

    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.body.decode()))
    samples = {sample.name: sample for family in families for sample in family.samples}
    by_name = {sample: family for family in families for sample in {s.name for s in family.samples}}
    for metric in METRICS:
        name = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        assert name in samples
        assert by_name[name].type == metric.kind
        assert by_name[name].documentation == metric.help
        assert set(samples[name].labels) - {"le"} == ({metric.label} if metric.label else set())
    assert samples["itemstore_ready"].value == 1
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in by_name["itemstore_http_requests_total"].samples
        if sample.name == "itemstore_http_requests_total"
    }
    assert counted == {("PUT /items/{id}", "201"): 1, ("GET /items/{id}", "404"): 1}
    assert "itemstore_http_request_seconds_total" in samples


async def test_no_caller_can_make_up_a_label(dsn: str) -> None:
    """Requests are counted by route and status of ours, whatever paths and methods come."""
    async with service_over(Postgres(dsn)) as service:
        for target in ("/a", "/b", "/items/x", "/items/y", "/items/x/y", "/items/%00", "/items"):
            for method in ("GET", "PROPFIND", "OPTIONS"):
                await service.api(method, target)
        routes = {route for route, _ in service.traffic.served}

    known = {f"{method} {pattern.replace(':(?s:.+)', '')}" for method, pattern, *_ in ROUTES}
    assert routes <= known | {"unmatched"}


# --- where it listens


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return socket.has_dualstack_ipv6()
    except OSError:
        return False


async def test_without_a_host_both_ipv4_and_ipv6_are_answered(dsn: str) -> None:
    """One socket for all addresses answers clients of either family."""
    app = make_app(ItemStore(Postgres(dsn)))
    async with serving(app, host=None) as port, aiohttp.ClientSession() as session:
        hosts = ["127.0.0.1", "[::1]"] if has_ipv6() else ["127.0.0.1"]
        for host in hosts:
            async with session.get(f"http://{host}:{port}/livez") as response:
                assert response.status == 200
                assert await response.json() == {"alive": True}


@pytest.mark.parametrize("host", ["127.0.0.1", None])
async def test_a_port_in_use_stops_the_start(host: str | None) -> None:
    """A port that is taken is a StartupError that names the port and the setting."""
    with closing(listening_socket(host, 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(StartupError, match=rf"port {port}: .*Set PORT or HOST"):
            listening_socket(host, port)


async def test_an_address_that_is_not_ours_stops_the_start() -> None:
    """An address this machine does not have is a StartupError that names it."""
    with pytest.raises(StartupError, match=r"Cannot listen on 203\.0\.113\.1, port 0"):
        listening_socket("203.0.113.1", 0)
