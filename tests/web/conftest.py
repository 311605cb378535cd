"""A real server in this process, on production's own protocol class, and two clients for it.

``Api`` is a well-behaved client and checks of every answer what must hold of all of them. ``Raw``
is a bare connection: bytes go out as they are, whole answers come in.
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson
import pytest
import pytest_asyncio
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from itemstore import errors
from itemstore.access import Access
from itemstore.issuer import Tokens
from itemstore.keyring import Keyring
from itemstore.log import LineWriter, server_logger
from itemstore.options import Options
from itemstore.storage import Storage
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.surroundings import Surroundings
from itemstore.web import requests
from itemstore.web import server as web_server
from itemstore.web.access import Guard
from itemstore.web.app import make_app
from itemstore.web.door import DOOR, Door
from itemstore.web.numbers import AROUND, TRAFFIC
from itemstore.web.streams import STREAMS, Streams
from itemstore.web.traffic import Traffic
from tests.conftest import _FOUND
from tests.sql import make_database
from tests.web import contract

ANSWER_LIMIT_S: Final = 20.0  # so that a missing answer fails a test instead of hanging it
PROBLEM: Final = "application/problem+json"
#: What no answer may carry: where the code lies, how it is called, what it runs on.
INTERNALS: Final = (
    "Traceback",
    'File "',
    "site-packages",
    "aiohttp",
    "psycopg",
    "orjson.",
    "itemstore.core",
    "itemstore.web",
    "bytearray(",
    " object at 0x",
)


def codes(error: type[errors.ItemStoreError]) -> dict[str, type[errors.ItemStoreError]]:
    """The stable code of every error below this one."""
    found = {error.code: error}
    for each in error.__subclasses__():
        found.update(codes(each))
    return found


CODES: Final = codes(errors.ItemStoreError)


@dataclass(frozen=True, slots=True)
class Answer:
    method: str
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    target: str | None = None  #: None where the request was none, or is not known

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def etag(self) -> str:
        return self.headers["ETag"]

    def check(self) -> None:
        """What holds of every answer to a request that was understood as HTTP."""
        assert self.headers.getall("Server") == ["itemstore"]
        assert len(self.headers.getall("X-Request-Id")) == 1
        assert "Date" in self.headers
        for each in INTERNALS:
            assert each.encode() not in self.body, self.body
            assert not any(each in value for value in self.headers.values()), self.headers
        if self.status >= 400 and self.method != "HEAD":
            self.check_problem()
        if self.target is not None:
            contract.check(self.method, self.target, self.status, self.headers, self.body)

    def check_problem(self) -> None:
        """RFC 9457, and our promises on top of it."""
        assert self.headers["Content-Type"] == PROBLEM
        assert self.headers["Cache-Control"] == "no-store"
        problem = self.json
        assert set(problem) <= {
            *("type", "title", "status", "detail", "code", "pointer", "request_id")
        }
        assert problem["status"] == self.status
        error = CODES[problem["code"]]
        assert error.status == self.status
        assert problem["title"] == error.title()
        assert problem["type"] == f"urn:itemstore:problem:{error.code}"
        assert problem["detail"].endswith((".", ".)"))
        assert problem.get("pointer", "/").startswith("/")
        assert problem.get("request_id") == self.headers.get("X-Request-Id")
        retry_after = self.headers.get("Retry-After")
        if error is errors.RateLimited:  # which knows when
            assert retry_after is not None
            assert int(retry_after) >= 1
        else:
            expected = None if error.retry_after_s is None else str(error.retry_after_s)
            assert expected == retry_after

    def is_problem(self, status: int, code: str) -> dict[str, Any]:
        """The problem document, which must be this one."""
        assert (self.status, self.json.get("code")) == (status, code), self.body
        problem: dict[str, Any] = self.json
        return problem


class Api:
    """``await api("PUT", "/items/a", {"data": {}}, if_match='"1"')``: paths go out as given."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def __call__(
        self,
        method: str,
        path: str,
        value: Any = None,
        *,
        body: bytes | None = None,
        lines: list[tuple[str, str]] | None = None,
        check: bool = True,
        **headers: str,
    ) -> Answer:
        """``value`` is sent as JSON, or ``body`` as it is; ``lines`` are further header lines."""
        sent = CIMultiDict({name.replace("_", "-"): each for name, each in headers.items()})
        sent.extend(lines or [])
        if value is not None:
            body = orjson.dumps(value)
            sent.setdefault("Content-Type", "application/json")
        url = URL(self.url + path, encoded=True)
        async with (
            asyncio.timeout(ANSWER_LIMIT_S),
            self._session.request(
                method,
                url,
                data=None if body is None else io.BytesIO(body),
                headers=sent,
                allow_redirects=False,
                skip_auto_headers=("Content-Type",),
            ) as response,
        ):
            answer = Answer(method, response.status, response.headers, await response.read(), path)
        if check:
            answer.check()
        return answer


def path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


async def make(api: Api, item_id: str, data: Any = None, **headers: Any) -> Answer:
    """Puts an item that is there then."""
    answer = await api("PUT", path(item_id), {"data": data or {"n": 1}}, **headers)
    assert answer.status in {200, 201}
    return answer


async def count_of(api: Callable[..., Awaitable[Answer]], prefix: str) -> int:
    """How many items there are whose ids begin so."""
    answer = await api("GET", f"/items?count=exact&limit=1&prefix={quote(prefix, safe='')}")
    count: int = answer.json["count"]
    return count


async def run_batch(api: Api, *operations: Any) -> list[dict[str, Any]]:
    """The results of the operations, one each."""
    answer = await api("POST", "/items:batch", {"operations": list(operations)})
    assert answer.status == 200
    assert list(answer.json) == ["results"]
    assert answer.headers["Cache-Control"] == "no-store"
    results: list[dict[str, Any]] = answer.json["results"]
    assert len(results) == len(operations)
    return results


class Raw:
    """One connection, used as no client should."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end_sending(self) -> None:
        """Tells the server that nothing more will come (a FIN), and goes on listening."""
        self._writer.write_eof()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer, whole; ``method`` is that of the request it belongs to."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head[:-4].split("\r\n")
            version, status, reason = status_line.split(" ", 2)
            assert version in {"HTTP/1.1", "HTTP/1.0"}
            assert reason == HTTPStatus(int(status)).phrase
            headers = CIMultiDict[str]()
            for line in lines:
                name, _, value = line.partition(": ")
                headers.add(name, value)
            assert "Transfer-Encoding" not in headers
            has_body = method != "HEAD" and status not in {"100", "204", "304"}
            size = int(headers["Content-Length"]) if has_body else 0
            body = await self._reader.readexactly(size)
        return Answer(method, int(status), CIMultiDictProxy(headers), body)

    def stop_reading(self) -> None:
        """Takes nothing more of what comes."""
        transport = self._writer.transport
        assert isinstance(transport.get_protocol(), asyncio.StreamReaderProtocol)
        transport.pause_reading()  # type: ignore[attr-defined]

    def go_on_reading(self) -> None:
        """What has come in between is not lost."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        await self.send(data)
        return await self.answer(method)

    async def check_usable(self) -> None:
        """The connection answers the next request, and that one alone."""
        answer = await self.ask(request("GET", "/livez"))
        answer.check()
        assert (answer.status, answer.json) == (200, {"alive": True})

    async def check_ended(self) -> None:
        """The server sends nothing more and closes the connection."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            with suppress(ConnectionResetError):  # it had not read all that was sent
                assert await self._reader.read() == b""

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class Gate:
    """Stands before a coroutine function: calls of it wait until the gate is open."""

    def __init__(self, behind: Callable[..., Awaitable[Any]]) -> None:
        self._behind = behind
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        await self.open.wait()
        return await self._behind(*args, **kwargs)


def request(method: str, target: str, body: bytes = b"", *lines: str) -> bytes:
    """A request as it goes over the wire; Host and Content-Length are added."""
    head = [f"{method} {target} HTTP/1.1", "Host: test", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def head(method: str, target: str, *lines: str, version: str = "1.1") -> bytes:
    """The request without the body its lines announce."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: test", *lines, "", ""]).encode()


@dataclass
class Service:
    """A store that is served, its log, and ways to it."""

    store: ItemStore
    port: int
    api: Api
    traffic: Traffic
    streams: Streams
    around: Surroundings
    door: Door
    writer: LineWriter
    keyring: Keyring | None
    _log: io.StringIO
    _connections: AsyncExitStack = field(default_factory=AsyncExitStack)
    #: How many mistakes of the server the test provokes.
    mistakes: int = 0

    async def raw(self) -> Raw:
        """A new connection; closed with the service."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = Raw(reader, writer)
        self._connections.push_async_callback(connection.close)
        return connection

    async def until(self, condition: Callable[[], bool]) -> None:
        """Asks the server things until the condition holds."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while not condition():
                await self.api("GET", "/livez")

    def events(self) -> list[dict[str, Any]]:
        """Its log: ends it, as only then all lines are surely written."""
        self.writer.close()
        lines = self._log.getvalue().splitlines()
        return [orjson.loads(line) for line in lines if not line.startswith("log lines dropped: ")]


@asynccontextmanager
async def serving(app: web.Application, host: str | None = "127.0.0.1") -> AsyncIterator[int]:
    """The port on which the application is served, as ``server.serve`` does it."""
    with closing(web_server.listening_socket(host, 0)) as sock:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        listener = await web_server.listen(runner, sock)
        try:
            yield int(sock.getsockname()[1])
        finally:
            listener.close()
            await runner.cleanup()


@asynccontextmanager
async def service_over(
    storage: Storage,
    options: Options | None = None,
    *,
    start: bool = True,
    stream: io.StringIO | None = None,
    access: Access | None = None,
    tokens: Tokens | None = None,
    **parts: Any,
) -> AsyncIterator[Service]:
    """A served store; ``parts`` are those of ``make_app``.

    Whatever was asked of it, it must not have made a mistake of its own.
    """
    stream = stream or io.StringIO()
    log, writer = server_logger("debug", "json", stream)
    store = ItemStore(storage, options, log=log)
    keyring = Keyring(storage.keys, log) if isinstance(storage, Postgres) else None
    app = make_app(store, guard=Guard(access, keyring, tokens), **parts)
    try:
        async with serving(app) as port, aiohttp.ClientSession() as session:
            api = Api(session, f"http://127.0.0.1:{port}")
            service = Service(
                store,
                port,
                api,
                app[TRAFFIC],
                app[STREAMS],
                app[AROUND],
                app[DOOR],
                writer,
                keyring,
                stream,
            )
            async with service._connections:
                if start:
                    await store.start(30.0)
                yield service
    finally:
        await store.close(10.0)
    made = [event for event in service.events() if event["message"] == "internal_error"]
    assert len(made) == service.mistakes, made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(server: Callable[[int], str]) -> AsyncIterator[Service]:
    """One served store for all tests of a module: each uses ids of its own."""
    async with service_over(Postgres(make_database(server(max(_FOUND))))) as one:
        yield one
        await one.store.flush()
        # PostgreSQL took all that was accepted: no retry, no quarantine, nothing to report.
        assert [event for event in one.events() if event["level"] not in {"info", "debug"}] == []


@pytest.fixture
def api(service: Service) -> Api:
    return service.api


@pytest.fixture
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server waits for is over at once."""
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(web_server, "LINGERING_TIME_S", 0.02)


@pytest_asyncio.fixture(loop_scope="module")
async def held_writes(service: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    """Holds up what is written to PostgreSQL until it is opened, at the latest after the test."""
    gate = Gate(service.store._storage.write)
    monkeypatch.setattr(service.store._storage, "write", gate)
    yield gate
    gate.open.set()


_names = itertools.count(1)


@pytest.fixture
def name() -> str:
    """An id that no other test uses, and a prefix for more of them."""
    return f"test-{next(_names):04}-"


@pytest.fixture(autouse=True)
def aiohttp_is_silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What goes wrong is ours to answer and to log: aiohttp's own net catches nothing."""
    yield
    records = [
        record
        for record in caplog.records
        if record.name.startswith(("aiohttp", "asyncio")) and record.levelname == "ERROR"
    ]
    assert [record.getMessage() for record in records] == []
