"""Rate limits: what a caller may send, what the answers say of it, and who is counted as one."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import orjson
import pytest

from itemstore.core.address import RAILWAY, Trust
from itemstore.core.caller import ANYBODY, Caller, Role
from itemstore.core.rate import Rate
from itemstore.errors import RateLimited
from itemstore.storage.postgres import Postgres
from itemstore.web import limits as limits_module
from itemstore.web.limits import Limits
from itemstore.web.traffic import Kind
from tests.conftest import _FOUND
from tests.sql import make_database
from tests.stores import Time
from tests.web.conftest import Service, make, path, service_over

SHOP: Final = Caller("shop", Role.WRITE)
HERE: Final = "192.0.2.1"


class Clock(Time):
    """In nanoseconds, as limits count; it stands still."""

    def __call__(self) -> int:
        return round(self.now_s * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_callers_do_not_share_a_limit(clock: Clock) -> None:
    """Two addresses, two names, and a name that reads as an address: each has its own."""
    limits = Limits({Kind.READ: Rate.parse("1/s")}, now_ns=clock)
    for caller, network in (
        *((ANYBODY, HERE), (ANYBODY, "192.0.2.2")),
        *((SHOP, HERE), (Caller(HERE, Role.READ), HERE)),
    ):
        verdict = limits.take_now(Kind.READ, caller, network)
        assert verdict is not None
        assert verdict.retry_after_s == 0
    verdict = limits.take_now(Kind.READ, SHOP, "198.51.100.1")
    assert verdict is not None
    assert verdict.retry_after_s == 1  # by its name, wherever it is


def test_an_address_is_punished_for_failures(clock: Clock) -> None:
    """So many in a row, and then it is told to wait; another address is not."""
    limits = Limits(failures=Rate.parse("2/m"), now_ns=clock)
    assert not limits.are_set
    for _ in range(2):
        limits.punish(HERE)
    with pytest.raises(RateLimited) as refusal:
        limits.punish(HERE)
    assert 30 == refusal.value.retry_after_s
    limits.punish("192.0.2.2")
    clock.now_s += 30
    limits.punish(HERE)
    assert {"failures": 1} == limits.refused


def test_callers_without_end_take_no_memory_without_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has many addresses displaces other addresses; no name, and nobody who is active."""
    monkeypatch.setattr(limits_module, "CALLERS_MAX", 100)
    limits = Limits({Kind.READ: Rate.parse("1/h burst 3")}, now_ns=clock)
    for _ in range(3):
        limits.take_now(Kind.READ, SHOP, HERE)
        limits.take_now(Kind.READ, ANYBODY, HERE)

    def flood(start: int, end: int) -> None:
        for number in range(start, end):
            limits.take_now(Kind.READ, ANYBODY, f"10.0.{number >> 8}.{number & 255}")
            if number % 50 == 0:
                verdict = limits.take_now(Kind.READ, ANYBODY, HERE)
                assert verdict is not None
                assert verdict.retry_after_s > 0

    flood(0, 2_000)
    tracemalloc.start()
    flood(2_000, 4_000)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    flood(4_000, 12_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000
    verdict = limits.take_now(Kind.READ, SHOP, HERE)
    assert verdict is not None
    assert verdict.retry_after_s > 0


# --- what the answers say


@asynccontextmanager
async def served(
    server: Callable[[int], str], clock: Clock, trust: Trust = None, **rates: str
) -> AsyncIterator[Service]:
    parsed = {Kind(kind): Rate.parse(rate) for kind, rate in rates.items()}
    limits = Limits(parsed, trust=trust, now_ns=clock)
    async with service_over(Postgres(make_database(server(max(_FOUND)))), limited=limits) as one:
        yield one


async def test_answers_tell_of_the_limit(server: Callable[[int], str], clock: Clock) -> None:
    """Each class by itself, of every outcome; what runs the store is never limited."""
    async with served(server, clock, read="2/s burst 4", write="1/m burst 3") as service:
        api = service.api
        put = await make(api, "a")
        assert '"write";q=3;w=180' == put.headers["RateLimit-Policy"]
        assert '"write";r=2;t=60' == put.headers["RateLimit"]
        got = await api("GET", path("a"))
        assert '"read";q=4;w=2' == got.headers["RateLimit-Policy"]
        assert '"read";r=3;t=1' == got.headers["RateLimit"]
        missing = await api("GET", path("b"))
        assert (404, '"read";r=2;t=1') == (missing.status, missing.headers["RateLimit"])
        same = await api("GET", path("a"), if_none_match=put.etag)
        assert (304, '"read";r=1;t=2') == (same.status, same.headers["RateLimit"])
        wrong = await api("PATCH", path("a"), {"data": 1})
        assert (422, '"write";r=1;t=120') == (wrong.status, wrong.headers["RateLimit"])
        for target in ("/livez", "/readyz", "/metrics", "/stats", "/items", "/nothing"):
            assert "RateLimit" not in (await api("GET", target)).headers


async def test_one_too_many_is_refused(server: Callable[[int], str], clock: Clock) -> None:
    """429, nothing done, and when it may be repeated; then it may."""
    async with served(server, clock, write="1/m", heavy="1/m") as service:
        api = service.api
        await make(api, "a")
        for method, target in (("PUT", path("a")), ("DELETE", path("a")), ("POST", "/items")):
            refused = await api(method, target, {"data": {"n": 2}})
            refused.is_problem(429, "rate_limited")
            assert "60" == refused.headers["Retry-After"]
            assert '"write";r=0;t=60' == refused.headers["RateLimit"]
        assert {"n": 1} == (await api("GET", path("a"))).json["data"]
        exported = await api("GET", "/export", check=False)
        assert '"heavy";r=0;t=60' == exported.headers["RateLimit"]
        (await api("GET", "/items")).is_problem(429, "rate_limited")
        clock.now_s += 60
        assert 204 == (await api("DELETE", path("a"))).status
        metrics = (await api("GET", "/metrics")).body.decode()
        assert 'itemstore_rate_limited_total{limit="write"} 3.0' in metrics
        assert 'itemstore_rate_limited_total{limit="heavy"} 1.0' in metrics
        assert "itemstore_redis_up" not in metrics


# --- who


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
@pytest.mark.parametrize(
    ("trust", "header", "counts"),
    [
        (None, "X-Real-IP", False),
        (None, "X-Forwarded-For", False),
        (None, "Forwarded", False),
        (RAILWAY, "X-Forwarded-For", False),
        (RAILWAY, "X-Real-IP", True),
        (1, "X-Real-IP", False),
        (1, "X-Forwarded-For", True),
    ],
)
async def test_only_a_trusted_header_names_the_caller(
    server: Callable[[int], str],
    clock: Clock,
    lane: bool,
    trust: Trust,
    header: str,
    counts: bool,
) -> None:
    """Another address in it is another caller, or the same one with a lie."""
    async with served(server, clock, trust, read="1/m") as service:
        extra = [] if lane else [("TE", "trailers")]  # which the lane leaves to aiohttp
        statuses = [
            (
                await service.api(
                    "GET", path("a"), lines=[(header, f"198.51.100.{number}"), *extra]
                )
            ).status
            for number in range(3)
        ]
        assert [404, 404, 404] if counts else [404, 429, 429] == statuses


async def test_addresses_of_one_ipv6_network_are_one_caller(
    server: Callable[[int], str], clock: Clock
) -> None:
    """A customer with 2^64 addresses is no more than one with a single one."""
    async with served(server, clock, RAILWAY, read="1/m") as service:
        statuses = [
            (await service.api("GET", path("a"), X_Real_IP=each)).status
            for each in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
        ]
        assert [404, 429, 404] == statuses


async def test_a_batch_is_one_request(server: Callable[[int], str], clock: Clock) -> None:
    """It is limited as one: what it holds is bounded by itself."""
    async with served(server, clock, heavy="1/m", write="1/m") as service:
        operations = [{"op": "put", "id": f"{n}", "data": {}} for n in range(20)]
        answer = await service.api("POST", "/items:batch", {"operations": operations})
        assert {201} == {each["status"] for each in orjson.loads(answer.body)["results"]}
        assert '"heavy";r=0;t=60' == answer.headers["RateLimit"]
