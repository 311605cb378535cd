"""The fast lane answers as the ordinary route does, byte for byte.

Two servers over two databases get the same bytes in the same pieces, one with the lane and one
without. Their clocks and ids are made equal; of what they send, only the date is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import pytest
import pytest_asyncio
from aiohttp import web

from itemstore.core.item import version_of
from itemstore.options import Options, Preload
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.web import lane as lane_module
from itemstore.web import server, traffic
from itemstore.web.app import make_app
from itemstore.web.browsers import Browsers
from itemstore.web.limits import LIMITS, Limits
from itemstore.web.numbers import TRAFFIC
from itemstore.web.traffic import Traffic
from tests.sql import make_database
from tests.stores import Gate, Gated, soon, until

EPOCH_US: Final = 4_000_000_000_000_000  # beyond PostgreSQL's clock: versions count from here
QUIET_TURNS: Final = 100  # of the loop; an unfinished request is then given up
_DATE: Final = re.compile(rb"\r\nDate: [^\r]{29}\r\n")
END: Final = b"GET /livez HTTP/1.1\r\nHost: end\r\nConnection: close\r\n\r\n"

BROKEN: Final = b"(broken)"

Chunks = Sequence[bytes]


@dataclass
class Side:
    """A served store; ``lane`` tells whether through the lane."""

    store: ItemStore
    port: int
    traffic: Traffic
    limits: Limits
    answered: list[bytes] = field(default_factory=list)  #: what the lane answered

    async def send(self, chunks: Chunks, pause_s: float = 0.0) -> bytes:
        """All that comes back, until the server closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        reading = asyncio.ensure_future(_read(reader))
        for chunk in (*chunks, END):
            if reading.done():  # refused: what is sent now would only break the connection
                break
            writer.write(chunk)
            for _ in range(10):  # until the server has read it, and nothing but it
                await asyncio.sleep(0)
            await asyncio.sleep(pause_s)
        for _ in range(QUIET_TURNS):  # counted, not timed: a busy machine takes longer for them
            await soon(self.store.flush())
            if reading.done():
                break
            await asyncio.sleep(0.001)
        else:
            writer.write_eof()
        received = await soon(reading)
        writer.close()
        await soon(self.store.flush())
        return _DATE.sub(b"\r\nDate: -\r\n", received)

    async def ask(self, chunks: Chunks) -> bytes:
        """The same, however long a commit takes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for chunk in (*chunks, END):
            writer.write(chunk)
            await asyncio.sleep(0.01)
        answers = await soon(_read(reader))
        writer.close()
        return _DATE.sub(b"\r\nDate: -\r\n", answers)


async def _read(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while part := await reader.read(65_536):
            received += part
    except ConnectionError:  # the server had not read all that was sent
        received += BROKEN
    return received


@asynccontextmanager
async def side(
    server_dsn: str, *, fast: bool, limited: Limits | None = None, origins: str | None = None
) -> AsyncIterator[Side]:
    dsn = make_database(server_dsn)
    store = ItemStore(Postgres(dsn), Options(), now_us=lambda: EPOCH_US)
    async with AsyncExitStack() as stack:
        one = await serve(stack, store, fast=fast, limited=limited, browsers=Browsers(origins))
        await soon(store.start())
        await until(lambda: store.cache.hydrated)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE id_blocks SET key = 1")
        store.clock.newest = EPOCH_US
        # Which of two commits is sooner is chance; another test compares what is said of it.
        store.is_pending = lambda item_id: False  # type: ignore[method-assign]
        stack.push_async_callback(store.close, 10.0)
        yield one


async def serve(stack: AsyncExitStack, store: ItemStore, *, fast: bool, **parts: Any) -> Side:
    """``store``, served until the stack is left; ``parts`` are those of ``make_app``."""
    sock = stack.enter_context(server.listening_socket("127.0.0.1", 0))
    app = make_app(store, **parts)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    listener = await server.listen(runner, sock, fast_lane=fast)
    stack.push_async_callback(runner.cleanup)
    stack.callback(listener.close)
    return Side(store, sock.getsockname()[1], runner.app[TRAFFIC], runner.app[LIMITS])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(server: Callable[[int], str]) -> AsyncIterator[tuple[Side, Side]]:
    """With the lane, and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "request_id", _request_id)
        async with (
            side(server(16), fast=True) as fast,
            side(server(16), fast=False) as slow,
        ):
            _count_answers(patch, fast)
            yield fast, slow


def _request_id(given: str | None, railway: str | None) -> str:
    """As the real one, but every one of ours is the same."""
    wanted = given or railway
    if wanted is not None and traffic._SAFE_REQUEST_ID.fullmatch(wanted):
        return wanted
    return "ours-1"


def _count_answers(patch: pytest.MonkeyPatch, one: Side) -> None:
    answer = lane_module.Lane.answer

    def counted(self: lane_module.Lane, chunk: bytes, peer: str) -> object:
        given = answer(self, chunk, peer)
        if given is not None:
            one.answered.append(chunk)
        return given

    patch.setattr(lane_module.Lane, "answer", counted)


async def compare(sides: tuple[Side, Side], chunks: Chunks, pause_s: float = 0.0) -> bytes:
    """What both answered."""
    fast, slow = sides
    expected = await slow.send(chunks, pause_s)
    got = await fast.send(chunks, pause_s)
    if BROKEN in expected + got:  # what was still under way is lost
        expected, got = (each.partition(BROKEN)[0] for each in (expected, got))
        expected, got = sorted((expected, got))
        assert got.startswith(expected), f"to {chunks}"
    else:
        assert expected == got, f"to {chunks}"
    assert slow.store.clock.newest == fast.store.clock.newest, f"to {chunks}"
    return got


def served(one: Side) -> dict[tuple[str, int], int]:
    return {asked: each.count for asked, each in one.traffic.served.items()}


# --- requests, usual and unusual

DATA: Final = (
    b'{"data":{"a":1}}',
    b'{"data":{}}',
    '{"data":{"ä":"€😀","n":[1,2.5,true,null,{}]}}'.encode(),
    b'{ "data" : { "b" : "x" , "a":1e3 } }',
    b'{"data":{"a":"' + b"y" * 1_500 + b'"}}',
    b'{"data":{"a":1},"id":"k1"}',
    b'{"data":{"a":1},"version":3,"created_at":"?","updated_at":0}',
)
WRONG: Final = (
    *(b"", b"{", b"[]", b'"data"', b"null", b'{"data":[]}', b'{"data":{"a":1},"x":1}'),
    *(b'{"data":{"a":NaN}}', b'{"data":{"a":12345678901234567890}}', b'{"data":{"a":"\\u0000"}}'),
    *(
        b'{"data":{"a":0.12345678901234567}}',
        b'{"data":{"a":"\xff"}}',
        b'{"id":"k1"}',
        b'{"data":1}',
    ),
    b'{"data":' + b'{"a":' * 70 + b"1" + b"}" * 71,
)
IDS: Final = (
    *(b"k1", b"k2", b"k3", b"gone", b"nobody", b"a.b", b"~", b"-_", b"K1", b"...", b"9" * 512),
    *(
        b".",
        b"..",
        b"",
        b"%6B1",
        b"k%31",
        b"a%2Fb",
        b"%00",
        b"%zz",
        b"a b",
        b"k1?x=1",
        b"k1?",
        b"k1#f",
    ),
    *(b"9" * 513, "ä".encode(), b"k1/", b"/k1", b"a:b", b"k1;x", b"a+b", b"k'1", b'k"1'),
)
HEADERS: Final = (
    *(
        b"User-Agent: wrk",
        b"Priority: u=1",
        b"Accept: */*",
        b"Accept-Encoding: gzip",
        b"X-Other: 1",
    ),
    *(b"Connection: keep-alive", b"Connection: Keep-Alive", b"X-Forwarded-For: 1.2.3.4"),
    *(b"X-Request-Id: abc", b"X-Request-Id: <bad>", b"X-Request-Id:", b"X-Railway-Request-Id: rw"),
    *(b"If-None-Match: *", b'If-None-Match: "1"', b"If-None-Match: W/%b", b"If-None-Match: %b"),
    *(
        b"If-Match: *",
        b'If-Match: "1"',
        b"If-Match: %b",
        b"If-Match: bad",
        b"If-None-Match: %b, W/%b",
    ),
    *(b"Content-Type: application/json", b"Content-Type: application/json; charset=utf-8"),
    *(b"Durability: memory", b"Durability: commit", b"Durability: journal", b"Durability: x"),
    *(b"Origin: http://test", b"Origin: https://friend.example", b"Origin: null", b"Origin:"),
    *(b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: none"),
)
ODD: Final = (
    *(b"Connection: close", b"Connection: upgrade", b"Upgrade: websocket", b"Connection: x, y"),
    *(b"Expect: 100-continue", b"Expect: x", b"TE: trailers", b"Trailer: X", b"Keep-Alive: 5"),
    *(b"Content-Type: text/plain", b"Content-Type: application/json; charset=latin-1"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Content-Length: 0"),
    *(b"Content-Length: 5", b"Content-Length: +5", b"Content-Length: 05", b"Content-Length: x"),
    *(b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked", b"Range: bytes=0-1"),
    *(b"Transfer-Encoding: identity", b"X-\xe4: 1", b"X-A: \xe4", b"No colon", b"X A: 1", b": 1"),
    *(b"X-Tab:\ta\tb\t", b"X-Nul: a\x00b", b" folded: 1", b"X-Long: " + b"z" * 2_100, b"X-A : 1"),
    *(b"Sec-WebSocket-Key1: 1", b"Proxy-Connection: close", b"Cookie: a=b", b"X-Empty:"),
    *(b"Date: today", b"Forwarded: for=1", b"Authorization: Bearer x", b"X-Bell: \x07"),
)
GARBAGE: Final = (
    *(b"\r\n", b"\n", b"\x00", b"GET\r\n\r\n", b"GET /items/k1\r\n\r\n", b"hello world\r\n\r\n"),
    *(b"GET /items/k1 HTTP/1.1\nHost: x\n\n", b"GET  /items/k1 HTTP/1.1\r\n\r\n", b"\x16\x03\x01"),
    *(b"get /items/k1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /items/k1 HTTP/1.2\r\nHost: x\r\n\r\n"),
    *(
        b"GET /items/k1 HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET k1 HTTP/1.1\r\n\r\n",
    ),
    *(
        b"GET /items/k1 HTTP/1.1\r\n\r\n",
        b"GET /items/k1 HTTP/1.1 \r\n\r\n",
        b"POST /items HTTP/1.1\r\n\r\n",
    ),
    b"GET /items/" + b"k" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /items/k1 HTTP/1.1\r\n" + b"X: 1\r\n" * 40 + b"\r\n",
)


class Requests:
    """Requests drawn by chance."""

    def __init__(self, chance: random.Random, tag: bytes) -> None:
        self._chance = chance
        self._tag = tag  # an entity tag that names an item's version

    def case(self) -> Chunks:
        """What is sent over one connection, as it is cut into pieces."""
        chance = self._chance
        requests = [self._request() for _ in range(chance.choice([1, 1, 2, 3]))]
        match chance.randrange(8):
            case 0:
                return [b"".join(requests)]  # pipelined, in one piece
            case 1:
                return self._cut(b"".join(requests), chance.randrange(1, 5))
            case 2:
                return [piece for each in requests for piece in self._cut(each, 1)]
            case _:
                return requests

    def _cut(self, data: bytes, times: int) -> list[bytes]:
        places = sorted(self._chance.randrange(len(data) + 1) for _ in range(times))
        pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
        return [piece for piece in pieces if piece]

    def _request(self) -> bytes:
        chance = self._chance
        if chance.random() < 0.03:
            return chance.choice(GARBAGE)
        method = chance.choice(
            [b"GET"] * 6 + [b"HEAD"] * 2 + [b"PUT"] * 5 + [b"POST"] * 3 + [b"DELETE", b"PATCH"]
        )
        if chance.random() < 0.02:
            method = chance.choice([b"OPTIONS", b"TRACE", b"CONNECT", b"QUERY", b"G", b"PUTT"])
        body = b""
        if method in {b"PUT", b"POST", b"PATCH"} or chance.random() < 0.03:
            body = chance.choice(WRONG if chance.random() < 0.15 else DATA)
        lines = [
            method + b" " + self._target(method) + self._version(),
            *self._headers(),
        ]
        if body and chance.random() < 0.08:
            half = len(body) // 2
            lines.append(b"Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n%x;e=1\r\n%b\r\n0\r\n\r\n" % (
                *(half, body[:half]),
                *(len(body) - half, body[half:]),
            )
        elif body or chance.random() < 0.1:
            lines.insert(chance.randrange(1, len(lines) + 1), b"Content-Length: %d" % len(body))
        return b"\r\n".join([*lines, b"", b""]) + body

    def _target(self, method: bytes) -> bytes:
        chance = self._chance
        target = b"/items"
        if method != b"POST" or chance.random() < 0.1:
            usual = chance.random() < 0.7
            target += b"/" + (chance.choice(IDS[:6]) if usual else chance.choice(IDS))
        if chance.random() < 0.02:
            return chance.choice(
                [b"http://test" + target, b"//test" + target, b"*", b"/", b"/livez"]
            )
        return target

    def _version(self) -> bytes:
        return b" HTTP/1.0" if self._chance.random() < 0.04 else b" HTTP/1.1"

    def _headers(self) -> Iterator[bytes]:
        chance = self._chance
        lines = chance.sample(HEADERS, chance.choice([0, 0, 1, 2, 4]))
        if chance.random() < 0.15:
            lines.append(chance.choice(ODD))
        if chance.random() < 0.97:
            hosts = [b"Host: test", b"Host: a.example:8080", b"Host: [::1]:80"]
            odd = [b"Host: ", b"Host: a b", b"Host: a/b", b"Host: \xff", b"Host: a,b", b"Host: -_"]
            lines.append(chance.choice(hosts if chance.random() < 0.97 else odd))
        if lines and chance.random() < 0.05:
            lines.append(chance.choice(lines))
        chance.shuffle(lines)
        for line in lines:
            name, colon, value = line.replace(b"%b", self._tag).partition(b":")
            match chance.randrange(12):
                case 0:
                    name = name.upper()
                case 1:
                    name = name.lower()
                case 2:
                    value = chance.choice([b"", b"  ", b"\t"]) + value.strip() + b" \t"
                case _:
                    pass
            yield name + colon + value


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seed", range(8))
async def test_both_answer_the_same(sides: tuple[Side, Side], seed: int) -> None:
    """Thousands of requests, usual and broken, whole and in pieces: not a byte is different."""
    chance = random.Random(f"lane-{seed}")
    fast, slow = sides
    before = len(fast.answered)
    for _ in range(250):
        entry = fast.store.cache.get("k1")
        tag = b'"%d"' % (version_of(entry) if entry else 7)
        await compare(sides, Requests(chance, tag).case())
    assert served(slow) == served(fast)
    assert len(fast.answered) > before + 60  # else nothing was compared


@pytest.mark.parametrize("origins", ["https://friend.example,http://test:81", "*"])
async def test_both_tell_browsers_the_same(
    server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, origins: str
) -> None:
    """With CORS on, of any origin and of none: the headers are the same, and so is a refusal."""
    monkeypatch.setattr(traffic, "request_id", _request_id)
    lines = [line for line in HEADERS if line.startswith((b"Origin", b"Sec-"))]
    async with (
        side(server(16), fast=True, origins=origins) as fast,
        side(server(16), fast=False, origins=origins) as slow,
    ):
        _count_answers(monkeypatch, fast)
        for first, second in itertools.product([b"X-A: 1", *lines], repeat=2):
            sent = [put("k1"), get("k1"), get("nobody"), put("k1", "commit")]
            more = b"\r\n%b\r\n" % first + (b"%b\r\n" % second if first != second else b"")
            answers = await compare((fast, slow), [each.replace(b"\r\n", more, 1) for each in sent])
            assert answers.count(b"\r\nVary: Origin\r\n") == len(sent) + 1
        assert len(fast.answered) > 100


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /items/split HTTP/1.1\r\nHost: test\r\nIf-None-Match: *\r\n\r\n",
        b'PUT /items/split HTTP/1.1\r\nHost: test\r\nContent-Length: 16\r\n\r\n{"data":{"a":1}}',
        b"POST /items HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n"
        b'{"data":{"a":1}}\r\n0\r\n\r\n',
    ],
)
async def test_a_request_cut_at_every_byte(sides: tuple[Side, Side], request_: bytes) -> None:
    """Two pieces, cut at each place in turn; then a whole one over the same connection."""
    for place in range(1, len(request_)):
        await compare(sides, [request_[:place], request_[place:], request_])


# --- where the lane begins and ends


def put(item_id: str, level: str = "memory", body: bytes = b'{"data":{"a":1}}') -> bytes:
    head = f"PUT /items/{item_id} HTTP/1.1\r\nHost: test\r\nDurability: {level}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def get(item_id: str) -> bytes:
    return f"GET /items/{item_id} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


LIST: Final = b"GET /items HTTP/1.1\r\nHost: test\r\n\r\n"
CHUNKED: Final = (
    b"PUT /items/here HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'10\r\n{"data":{"a":1}}\r\n0\r\n\r\n'
)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("chunks", "answered"),
    [
        ([put("here"), get("here"), get("none"), put("here", "commit"), get("here")], 5),
        ([get("here") + get("here"), get("here")], 0),  # what aiohttp has kept is not known
        ([get("here")[:20], get("here")[20:], get("here")], 0),
        ([put("here")[:-5], put("here")[-5:], get("here")], 1),  # its length says where it ends
        ([b"DELETE /items/none HTTP/1.1\r\nHost: test\r\n\r\n", get("here")], 1),
        ([CHUNKED, get("here")], 0),
        ([b"GET /items/here HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", get("here")], 0),
        ([LIST, get("here"), get("here")], 2),
    ],
)
async def test_what_the_lane_answers(
    sides: tuple[Side, Side], chunks: Chunks, answered: int
) -> None:
    """It answers what it can, and is open again where it is sure of where a request begins."""
    before = len(sides[0].answered)
    await compare(sides, chunks, pause_s=1.0 if LIST in chunks else 0.05)  # for PostgreSQL
    assert answered == len(sides[0].answered) - before


# --- a request that must wait


@asynccontextmanager
async def waiting(dsn: str, **options: Any) -> AsyncIterator[tuple[Side, Gated, AsyncExitStack]]:
    """A store behind gates, served with the lane."""
    storage = Gated(dsn)
    store = ItemStore(storage, Options(**options))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close, 10.0)  # after the server, as in production
        one = await serve(stack, store, fast=True)
        await soon(store.start())
        await until(lambda: store.cache.hydrated or not store.cache.fills)
        yield one, storage, stack


async def held_commit(
    one: Side, storage: Gated
) -> tuple[Gate, asyncio.StreamReader, asyncio.StreamWriter]:
    """The gate at which a write of "a" waits for its commit, and the writer's connection."""
    write = storage.hold("write")
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(put("a", "commit"))
    await soon(write.reached())
    return write, reader, writer


async def test_requests_behind_a_commit_wait_their_turn(dsn: str) -> None:
    """What is sent after a write at commit is answered after it, however much it is."""
    async with waiting(dsn) as (one, storage, _):
        write, reader, writer = await held_commit(one, storage)
        for number in range(40):
            writer.write(get("a") if number % 2 else put("b"))
            await asyncio.sleep(0.001)
        writer.write(END)
        other = await asyncio.open_connection("127.0.0.1", one.port)
        other[1].write(END)
        assert b"alive" in await soon(other[0].read())
        write.open()
        answers = (await soon(reader.read())).split(b"HTTP/1.1 ")[1:]
        assert [b"201", b"201", b"200"] == [each[:3] for each in answers[:3]]
        assert 42 == len(answers)
        assert b"alive" in answers[-1]
        writer.close()
        other[1].close()


async def test_what_is_not_committed_yet_is_said_to_be_pending(dsn: str) -> None:
    """A read of a dirty item says so, in the lane and on the ordinary route alike."""
    async with waiting(dsn) as (one, storage, _):
        write = storage.hold("write")
        asked = get("a")[:-2] + b"X-Request-Id: 1\r\n\r\n"
        answers = [
            (await one.ask([put("a"), asked])).partition(b"HTTP/1.1 200")[2],
            (await one.ask([asked[:-2] + b"TE: trailers\r\n\r\n"])).partition(b"HTTP/1.1 200")[2],
        ]
        assert b"\r\nDurability: pending\r\n" in answers[0]
        assert answers[0].split(b"HTTP")[0] == answers[1].split(b"HTTP")[0]
        write.open()


async def test_stopping_lets_a_commit_be_answered(dsn: str) -> None:
    """A write that waits for its commit when the server stops gets its answer."""
    async with waiting(dsn) as (one, storage, stack):
        write, reader, writer = await held_commit(one, storage)
        stopping = asyncio.ensure_future(stack.aclose())
        await asyncio.sleep(0.05)
        write.open()
        assert (await soon(reader.read())).startswith(b"HTTP/1.1 201 ")
        await soon(stopping)
        writer.close()


async def test_a_client_that_leaves_before_its_commit(dsn: str) -> None:
    """Its write is made all the same, and nothing is wrong with the server."""
    async with waiting(dsn) as (one, storage, _):
        write, _, writer = await held_commit(one, storage)
        writer.write(get("a"))
        writer.close()
        await asyncio.sleep(0.01)
        write.open()
        await soon(one.store.flush())
        assert one.store.cache.get("a") is not None
        assert b"200 OK" in await one.send([get("a")])


async def test_a_commit_that_is_not_confirmed_is_told(dsn: str) -> None:
    """A write that PostgreSQL does not confirm in time is 503, as on the ordinary route."""
    async with waiting(dsn, commit_timeout_s=0.05) as (one, storage, _):
        write, reader, writer = await held_commit(one, storage)
        answer = await soon(reader.readuntil(b"}"))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: " in answer
        assert b'"code":"commit_unconfirmed"' in answer
        write.open()
        writer.close()


USUAL: Final = b" HTTP/1.1\r\nHost: test\r\nX-Request-Id: 1\r\n"
UNUSUAL: Final = USUAL + b"TE: trailers\r\n"  # which the lane leaves to aiohttp


@pytest.mark.parametrize("item_id", [b"cold", b"none", b"away"])
async def test_a_read_that_asks_postgresql(
    dsn: str, monkeypatch: pytest.MonkeyPatch, item_id: bytes
) -> None:
    """A cold item, an absent one, and one that cannot be loaded, as on the ordinary route."""
    async with waiting(dsn, skip_items_preload=Preload.SKIP) as (one, storage, _):
        _count_answers(monkeypatch, one)
        await one.store.put("cold", {"a": 1}, durability="commit")
        if item_id == b"away":
            storage.cut_off()
        answers = []
        for head in (USUAL, UNUSUAL):
            one.store.cache.clear()
            answers.append(await one.ask([b"GET /items/" + item_id + head + b"\r\n"]))
        assert answers[0] == answers[1]
        assert 1 == len(one.answered)
        storage.join()


async def test_a_write_that_waits_for_room(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the queue is full it waits, and is answered as on the ordinary route."""
    async with waiting(dsn, queue_items_max=2) as (one, storage, _):
        _count_answers(monkeypatch, one)
        write = storage.hold("write")
        await one.store.put("first", {}, durability="memory")
        await soon(write.reached())
        body = b'Content-Length: 16\r\n\r\n{"data":{"a":1}}'
        heads = (USUAL, UNUSUAL)
        asking = [asyncio.ensure_future(one.ask([b"PUT /items/a" + head + body])) for head in heads]
        await until(lambda: len(one.store.admission._waiting) == len(heads))
        write.open()
        for answer in await soon(asyncio.gather(*asking)):
            assert b"\r\nX-Request-Id: 1\r\n" in answer
            assert b'"data":{"a":1}}HTTP/1.1 200' in answer
        assert 1 == len(one.answered)
