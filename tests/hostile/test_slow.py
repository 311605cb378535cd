"""Those who are slow on purpose: each time limit, what its connection is told, and that it ends.

In this process, so that the limits can be short: what is waited for is an event, never a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore.core.address import LOCAL, of_peer
from itemstore.storage.postgres import Postgres
from itemstore.web import door as door_module
from itemstore.web import requests
from itemstore.web.door import Door
from tests.hostile.conftest import neighbour
from tests.web.conftest import Service, head, make, path, request, service_over

SHORT_S = 0.05
DAY_S = 86_400.0


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No time runs out but those a test makes short."""
    for name in ("FIRST_BYTE_S", "HEAD_S", "ANSWER_S"):
        monkeypatch.setattr(door_module, name, DAY_S)
    monkeypatch.setattr(door_module, "LOOK_S", 0.01)
    return monkeypatch


@pytest_asyncio.fixture
async def slow_service(dsn: str, limits: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """A service whose door is made with the limits as they are when the test begins."""
    async with service_over(Postgres(dsn)) as service:
        yield service


def shorten(service: Service, line: str) -> Door:
    door = service.door
    getattr(door, line).limit_s = SHORT_S
    return door


async def test_a_silent_connection_is_closed(slow_service: Service) -> None:
    """Who sends nothing at all is not told anything either."""
    door = shorten(slow_service, "_silent")
    async with neighbour(slow_service.api.url):
        raw = await slow_service.raw()
        await raw.check_ended()
    assert door.cut == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"GET /items/a HTTP/1.1\r\n",
        b"GET /items/a HTTP/1.1\r\nHost: test\r\nX-A: 1\r\n",
        b"PUT /items/a HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n",
    ],
)
async def test_slow_headers(slow_service: Service, sent: bytes) -> None:
    """Headers that do not end are 408, be it the first request of the connection or a later one."""
    door = shorten(slow_service, "_begun")
    async with neighbour(slow_service.api.url):
        for before in (b"", request("GET", "/livez")):
            raw = await slow_service.raw()
            if before:
                assert (await raw.ask(before)).status == 200
            answer = await raw.ask(sent)
            answer.is_problem(408, "head_timeout")
            assert answer.headers["Connection"] == "close"
            await raw.check_ended()
    assert door.cut == 2


async def test_trickled_headers(slow_service: Service) -> None:
    """A byte now and then does not win time: it counts from the first."""
    door = slow_service.door
    raw = await slow_service.raw()
    await raw.send(b"GET /items/a HTTP/1.1\r\nHost: test\r\nX-A: ")
    await slow_service.until(lambda: len(door._begun.since) == 1)
    begun = dict(door._begun.since)
    async with neighbour(slow_service.api.url) as one:
        for _ in range(10):
            await raw.send(b"x")
            await one.until(one.rounds + 1)
        assert begun == door._begun.since
        shorten(slow_service, "_begun")
        (await raw.answer()).is_problem(408, "head_timeout")


async def test_headers_in_pieces_are_in_time(slow_service: Service) -> None:
    """What has begun and is whole in time is answered, and the connection is not looked at."""
    raw = await slow_service.raw()
    await raw.send(b"GET /livez HTTP/1.1\r\n")
    await slow_service.until(lambda: len(slow_service.door._begun.since) == 1)
    assert (await raw.ask(b"Host: test\r\n\r\n")).status == 200
    assert not slow_service.door._begun.since
    await raw.check_usable()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_stalled_body(
    slow_service: Service, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    """A body that does not come is 408, sent whole or in chunks, and the connection ends."""
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", SHORT_S)
    line = "Transfer-Encoding: chunked" if chunked else "Content-Length: 17"
    async with neighbour(slow_service.api.url):
        raw = await slow_service.raw()
        answer = await raw.ask(head("PUT", "/items/a", line) + (b"1\r\n{\r\n" if chunked else b"{"))
        answer.is_problem(408, "body_timeout")
        await raw.check_ended()
    assert (await slow_service.api("GET", "/items/a")).status == 404


async def test_a_reader_that_stalls_is_cut(slow_service: Service) -> None:
    """Who takes nothing of a large answer in the time for it is cut; who does is not."""
    await make(slow_service.api, "large", {"a": "x" * 1_000_000})
    door = slow_service.door
    async with neighbour(slow_service.api.url):
        raw = await slow_service.raw()
        raw.stop_reading()
        await raw.send(request("GET", path("large")) * 32)
        await slow_service.until(lambda: len(door._full.since) == 1)
        shorten(slow_service, "_full")
        door._full.since.update(dict.fromkeys(door._full.since, 0.0))
        await slow_service.until(lambda: door.cut == 1)
    assert not door._full.since
    assert not door._held


# --- the door's books


async def test_one_address_has_its_own_limit(dsn: str) -> None:
    """Of one address only so many are let in; when one goes, the next may come."""
    async with service_over(Postgres(dsn), door=Door(100, per_address_max=2)) as service:
        first, second = await service.raw(), await service.raw()
        await first.check_usable()
        await second.check_usable()
        third = await service.raw()
        (await third.answer()).is_problem(503, "too_many_connections")
        await third.check_ended()
        await first.close()
        while service.door.connections == 2:
            await second.check_usable()
        await (await service.raw()).check_usable()
        assert service.door.refused == 1


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@settings(max_examples=200)
@given(address=ADDRESSES)
def test_an_address_is_counted_once_however_it_is_written(
    address: IPv4Address | IPv6Address,
) -> None:
    """IPv4 stands for itself, mapped into IPv6 or not; IPv6 for its network of 64 bits."""
    network = of_peer((str(address), 1))
    if isinstance(address, IPv4Address):
        assert network == str(address) == of_peer((f"::ffff:{address}", 1, 0, 0))
    elif address.ipv4_mapped is None:
        assert address in IPv6Network(network)
        neighbour = IPv6Address(int(address) ^ 1)
        assert network == of_peer((str(neighbour), 2, 0, 0))
        assert network != of_peer((str(IPv6Address(int(address) ^ 1 << 64)), 2, 0, 0))


@pytest.mark.parametrize("peername", [None, "", (), ("/run/socket",), 7])
def test_what_has_no_address_counts_as_one(peername: object) -> None:
    """A socket without an address is nobody's in particular."""
    assert of_peer(peername) == LOCAL
