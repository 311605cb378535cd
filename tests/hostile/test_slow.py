"""Those who are slow on purpose: each time limit, what its connection is told, and that it ends.

In this process, so that the limits can be short: what is waited for is an event, never a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore.core.address import LOCAL, of_peer
from itemstore.storage.postgres import Postgres
from itemstore.web import answers, requests
from itemstore.web import door as door_module
from itemstore.web.door import Door
from tests.hostile.conftest import neighbour
from tests.web.conftest import Answer, Raw, Service, head, make, path, request, service_over

SHORT_S = 0.05
DAY_S = 86_400.0


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No time runs out but those a test makes short."""
    for name in ("FIRST_BYTE_S", "HEAD_S"):
        monkeypatch.setattr(door_module, name, DAY_S)
    for name in ("TAKE_S", "TAKE_CROWDED_S", "WAIT_S"):
        monkeypatch.setattr(answers, name, DAY_S)
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


# --- those who do not take their answers

SIZE = 1_000_000  # of a large item
BY_LANE, BY_ROUTE, COLD = "by the lane", "by the ordinary route", "not cached"


@pytest_asyncio.fixture
async def with_room_for_one(
    slow_service: Service, limits: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """Answers of large items have room for one, and as many may wait."""
    limits.setattr(answers, "BYTES_MAX", int(1.5 * SIZE))
    await make(slow_service.api, "large", {"a": "x" * SIZE})
    yield slow_service


async def stalled(service: Service) -> Raw:
    """One who has asked for a large item, often, and takes nothing."""
    raw = await service.raw()
    raw.stop_reading()
    await raw.send(request("GET", path("large")) * 32)
    await service.until(lambda: len(service.door.answers) == 1)
    return raw


async def asking(service: Service, how: str = BY_ROUTE) -> asyncio.Task[Answer]:
    """Another who asks for it, and waits for room."""
    raw = await service.raw()
    lines = ("X-A: 1", "X-A: 2") if how == BY_ROUTE else ()
    if how == COLD:
        service.store.cache.evict_one("large")
    waiting = service.door.answers._waiting
    before = len(waiting)
    task = asyncio.create_task(raw.ask(request("GET", path("large"), b"", *lines)))
    await service.until(lambda: len(waiting) > before)
    return task


async def test_a_reader_that_stalls_is_cut(
    with_room_for_one: Service, limits: pytest.MonkeyPatch
) -> None:
    """Who takes nothing of a large answer in the time for it is cut, though nobody waits."""
    door = with_room_for_one.door
    async with neighbour(with_room_for_one.api.url):
        await stalled(with_room_for_one)
        assert door.cut == 0
        limits.setattr(answers, "TAKE_S", SHORT_S)
        await with_room_for_one.until(lambda: door.cut == 1)
    assert len(door.answers) == 0


@pytest.mark.parametrize("how", [BY_LANE, BY_ROUTE, COLD])
async def test_a_large_answer_waits_for_room(with_room_for_one: Service, how: str) -> None:
    """It is whole, once others have taken theirs; small ones do not wait."""
    first = await stalled(with_room_for_one)
    second = await asking(with_room_for_one, how)
    async with neighbour(with_room_for_one.api.url):
        pass
    assert not second.done()
    first.go_on_reading()
    for _ in range(32):
        assert len((await first.answer()).body) > SIZE
    answer = await second
    assert answer.json["data"] == {"a": "x" * SIZE}
    assert with_room_for_one.door.cut == 0


async def test_who_is_slow_makes_room(
    with_room_for_one: Service, limits: pytest.MonkeyPatch
) -> None:
    """Who takes next to nothing is cut sooner if another waits for room."""
    await stalled(with_room_for_one)
    second = await asking(with_room_for_one)
    assert with_room_for_one.door.cut == 0
    limits.setattr(answers, "TAKE_CROWDED_S", SHORT_S)
    assert len((await second).body) > SIZE
    assert with_room_for_one.door.cut == 1


async def test_not_too_much_waits(with_room_for_one: Service) -> None:
    """An answer that finds too much waiting already is 503 at once."""
    await stalled(with_room_for_one)
    second = await asking(with_room_for_one)
    third = await with_room_for_one.api("GET", path("large"))
    third.is_problem(503, "overloaded")
    assert not second.done()
    second.cancel()


@pytest.mark.parametrize("how", [BY_LANE, BY_ROUTE, COLD])
async def test_a_large_answer_does_not_wait_for_ever(
    with_room_for_one: Service, limits: pytest.MonkeyPatch, how: str
) -> None:
    """It is 503 after a while, and whoever comes then is not behind it."""
    first = await stalled(with_room_for_one)
    limits.setattr(answers, "WAIT_S", SHORT_S)
    for _ in range(2):
        second = await asking(with_room_for_one, how)
        (await second).is_problem(503, "overloaded")
    first.go_on_reading()
    for _ in range(32):
        await first.answer()
    third = await with_room_for_one.api("GET", path("large"))
    assert third.status == 200


async def test_the_answer_to_a_write_is_not_refused(
    with_room_for_one: Service, limits: pytest.MonkeyPatch
) -> None:
    """What is done cannot be refused any more: its answer waits, and comes all the same."""
    await stalled(with_room_for_one)
    second = await asking(with_room_for_one)
    limits.setattr(answers, "WAIT_S", SHORT_S)
    answer = await with_room_for_one.api("PATCH", path("large"), {"data": {"b": 1}})
    second.cancel()
    assert answer.status == 200
    assert answer.json["data"]["b"] == 1


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
