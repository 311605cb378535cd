"""Every route's answers, in each outcome it has, by the rules of HTTP.

httplint, by the editor of RFC 9110 and 9111, reads each answer as a cache and a browser would; what
it cannot see from one answer alone is asked here: that HEAD is GET without its body, that what
varies says so, that an ETag leads to a 304, that a Location leads to what was made.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from httplint import HttpRequestLinter, HttpResponseLinter
from httplint.note import levels
from multidict import CIMultiDict
from yarl import URL

from itemstore.core.caller import Role
from itemstore.core.rate import Rate
from itemstore.storage.postgres import Postgres
from itemstore.web.app import ROUTES
from itemstore.web.limits import Limits
from itemstore.web.traffic import Kind
from tests.web.callers import KEYS, caller
from tests.web.conftest import Service, head, make, request, service_over
from tests.web.contract import template

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON: Final = {"Content-Type": "application/json"}
NDJSON: Final = {"Content-Type": "application/x-ndjson"}


@dataclass(frozen=True)
class Call:
    """A request, and the status of its answer."""

    status: int
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.method} {self.target} {self.headers or ''}".strip()


@dataclass(frozen=True)
class Told:
    """An answer as it came over the wire."""

    status: int
    reason: str
    raw: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def headers(self) -> CIMultiDict[str]:
        return CIMultiDict((name.decode(), value.decode()) for name, value in self.raw)


#: One of each outcome a route has without waiting; {tag} is the ETag of the item "lint".
CALLS: Final = [
    Call(200, "GET", "/items"),
    Call(200, "GET", "/items?limit=1&order=id&count=exact"),
    Call(400, "GET", "/items?limit=0"),
    Call(400, "GET", "/items?cursor=x"),
    Call(200, "GET", "/items/lint"),
    Call(200, "GET", "/items/%C3%A9%2F"),
    Call(304, "GET", "/items/lint", {"If-None-Match": "{tag}"}),
    Call(304, "GET", "/items/lint", {"If-None-Match": "W/{tag}, {tag}"}),
    Call(400, "GET", "/items/%00"),
    Call(400, "GET", "/items/lint", {"If-None-Match": "lint"}),
    Call(404, "GET", "/items/nobody"),
    Call(404, "GET", "/items/a/b"),
    Call(412, "GET", "/items/lint", {"If-Match": '"0"'}),
    Call(201, "POST", "/items", JSON, b'{"data":{}}'),
    Call(400, "POST", "/items", JSON, b"{"),
    Call(400, "POST", "/items", JSON | {"Durability": "paper"}, b'{"data":{}}'),
    Call(409, "POST", "/items", JSON, b'{"id":"lint","data":{}}'),
    Call(413, "POST", "/items", JSON, b'{"data":{"a":"%b"}}' % (b"x" * 1_048_600)),
    Call(415, "POST", "/items", {"Content-Type": "text/plain"}, b"x"),
    Call(422, "POST", "/items", JSON, b"[]"),
    Call(201, "PUT", "/items/put", JSON, b'{"data":{}}'),
    Call(200, "PUT", "/items/put", JSON, b'{"data":{}}'),
    Call(200, "PUT", "/items/put", JSON | {"Durability": "memory"}, b'{"data":{}}'),
    Call(412, "PUT", "/items/lint", JSON | {"If-None-Match": "*"}, b'{"data":{}}'),
    Call(422, "PUT", "/items/lint", JSON, b'{"id":"other","data":{}}'),
    Call(200, "PATCH", "/items/put", JSON, b'{"data":{"a":1}}'),
    Call(404, "PATCH", "/items/nobody", JSON, b'{"data":{"a":1}}'),
    Call(415, "PATCH", "/items/put", {"Content-Type": "text/plain"}, b"x"),
    Call(412, "DELETE", "/items/put", {"If-Match": '"0"'}),
    Call(204, "DELETE", "/items/put"),
    Call(404, "DELETE", "/items/put"),
    Call(200, "POST", "/items:batch", JSON, b'{"operations":[{"op":"get","id":"lint"}]}'),
    Call(422, "POST", "/items:batch", JSON, b"{}"),
    Call(200, "POST", "/import", NDJSON, b'{"id":"line","data":{}}\n'),
    Call(400, "POST", "/import?conflict=x", NDJSON, b""),
    Call(415, "POST", "/import", JSON, b"{}"),
    Call(200, "GET", "/export"),
    Call(200, "GET", "/export?prefix=lint", {"Accept": "text/csv"}),
    Call(200, "GET", "/export?format=csv"),
    Call(400, "GET", "/export?format=xml"),
    Call(204, "POST", "/flush"),
    Call(200, "GET", "/quarantine"),
    Call(404, "GET", "/quarantine/nobody"),
    Call(404, "POST", "/quarantine/nobody"),
    Call(404, "DELETE", "/quarantine/nobody"),
    Call(201, "POST", "/keys", JSON, b'{"name":"lint","role":"read"}'),
    Call(422, "POST", "/keys", JSON, b'{"name":"lint","role":"king"}'),
    Call(200, "GET", "/keys"),
    Call(404, "DELETE", "/keys/12345678"),
    Call(200, "GET", "/audit"),
    Call(200, "GET", "/livez"),
    Call(200, "GET", "/readyz"),
    Call(200, "GET", "/stats"),
    Call(200, "GET", "/metrics"),
    Call(200, "GET", "/openapi.json"),
    Call(200, "GET", "/docs"),
    Call(200, "GET", "/docs/style.css"),
    Call(304, "GET", "/docs", {"If-None-Match": "*"}),
    Call(412, "GET", "/docs", {"If-Match": '"0"'}),
    Call(404, "GET", "/"),
    Call(404, "GET", "/nowhere"),
    *(Call(405, "TRACE", path) for path in ("/items", "/items/lint", "/items:batch", "/docs")),
    *(Call(204, "OPTIONS", path) for path in ("/items", "/items/lint", "/import", "/livez")),
    *(Call(400, "GET", f"{path}?x=1") for path in ("/livez", "/metrics", "/quarantine", "/docs")),
]

#: Every path that can be read.
READ: Final = sorted({call.target for call in CALLS if (call.method, call.status) == ("GET", 200)})

#: What httplint only remarks: of any 400, that it is one.
REMARKS: Final = {"STATUS_BAD_REQUEST"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tag(service: Service) -> AsyncIterator[str]:
    """The ETag of the item "lint", which is there then."""
    await make(service.api, "é/")
    yield (await make(service.api, "lint")).etag


async def ask(url: str, call: Call, tag: str = "") -> Told:
    """The answer, which has the status that it should."""
    headers = {name: value.replace("{tag}", tag) for name, value in call.headers.items()}
    async with (
        aiohttp.ClientSession(skip_auto_headers=("Content-Type",)) as session,
        session.request(
            call.method,
            URL(url + call.target, encoded=True),
            headers=headers,
            data=None if call.body is None else io.BytesIO(call.body),
            allow_redirects=False,
        ) as response,
    ):
        told = Told(
            response.status, response.reason or "", response.raw_headers, await response.read()
        )
    assert told.status == call.status, told.body
    return told


def notes(url: str, call: Call, told: Told) -> Iterator[str]:
    """What httplint finds wrong with it, and the rules that it does not know."""
    asked = HttpRequestLinter(start_time=time.time())
    asked.process_request_topline(call.method.encode(), (url + call.target).encode(), b"1.1")
    asked.process_headers([(name.encode(), value.encode()) for name, value in call.headers.items()])
    asked.finish_content(True)
    linter = HttpResponseLinter(
        start_time=time.time(), _related=asked, no_content=call.method == "HEAD"
    )
    linter.process_response_topline(b"1.1", str(told.status).encode(), told.reason.encode())
    linter.process_headers(list(told.raw))
    linter.feed_content(told.body)
    linter.finish_content(True)
    for note in linter.notes:
        if note.level in {levels.WARN, levels.BAD} and type(note).__name__ not in REMARKS:
            yield f"{type(note).__name__}: {note.summary}"
    yield from missing(call, told)


def missing(call: Call, told: Told) -> Iterator[str]:
    """What an answer must have by RFC 9110 and 9111, and by our own promises."""
    headers, status = told.headers, told.status
    for name in ("Date", "Server", "X-Request-Id"):
        if len(headers.getall(name, [])) != 1:
            yield f"it has not one {name}"
    cached = headers.get("Cache-Control")
    if status >= 400 and cached != "no-store":
        yield "an error is to be no-store: the next answer may be another"
    if call.method in {"GET", "HEAD"} and cached is None:
        yield "without Cache-Control a cache may guess (RFC 9111, section 4.2.2)"
    if status in {204, 304} and (told.body or "Content-Type" in headers):
        yield "it has no body, so it describes none"
    if status == 204 and "Content-Length" in headers:
        yield "a 204 has no Content-Length (RFC 9110, section 8.6)"
    if told.body and "Content-Type" not in headers:
        yield "it does not say what its body is"
    length = headers.get("Content-Length")
    if length is not None and call.method != "HEAD" and int(length) != len(told.body):
        yield "its Content-Length is not that of its body"
    if status == 405 and "Allow" not in headers:
        yield "a 405 has Allow (RFC 9110, section 15.5.6)"
    if status == 503 and "Retry-After" not in headers:
        yield "we promise Retry-After"
    if status == 201 and "Location" not in headers:
        yield "a 201 says where it is (RFC 9110, section 15.3.2)"
    if headers.get("ETag", "").startswith("W/"):
        yield "If-Match never matches a weak ETag"


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_nothing_is_wrong_with_an_answer(service: Service, tag: str, call: Call) -> None:
    """httplint finds nothing wrong with an answer, nor do the rules beyond it."""
    told = await ask(service.api.url, call, tag)

    assert [] == list(notes(service.api.url, call, told))


#: By a server that asks who calls.
REFUSED: Final = [
    Call(401, "GET", "/items/lint"),
    Call(401, "GET", "/items", {"Authorization": "Basic YTpi"}),
    Call(401, "PUT", "/items/lint", JSON | {"Authorization": "Bearer itemkey_x"}, b'{"data":{}}'),
    Call(403, "POST", "/keys", JSON | {"Authorization": "Bearer {reader}"}, b"{}"),
]


async def test_nothing_is_wrong_with_a_refusal(dsn: str) -> None:
    """Of who is not known, may not, or asks too often."""
    limits = Limits({Kind.WRITE: Rate.parse("1/d")})
    async with service_over(Postgres(dsn), access=KEYS, limited=limits) as service:
        reader, writer = [await caller(service, role) for role in (Role.READ, Role.WRITE)]
        for call in REFUSED:
            shown = {
                key: each.replace("{reader}", reader.token) for key, each in call.headers.items()
            }
            asked = replace(call, headers=shown)
            assert [] == list(notes(service.api.url, asked, await ask(service.api.url, asked)))
        for status in (201, 429):
            headers = JSON | {"Authorization": f"Bearer {writer.token}"}
            call = Call(status, "PUT", f"/items/{status}", headers, b'{"data":{}}')
            assert [] == list(notes(service.api.url, call, await ask(service.api.url, call)))


async def test_every_route_is_asked() -> None:
    """Each route stands in the calls with an answer that is no error, if it can have one here."""
    paths = {template(route.path) for route in ROUTES}

    def route_of(call: Call) -> str:
        path = call.target.partition("?")[0]
        above = path.rpartition("/")[0] + "/{"
        return path if path in paths else next((e for e in paths if e.startswith(above)), path)

    asked = {(call.method, route_of(call)) for call in CALLS}
    assert {(each.method, template(each.path)) for each in ROUTES} <= asked


# --- what one answer does not tell


def same(told: Told) -> dict[str, str]:
    """The headers that two answers to the same question share."""
    each_its_own = {"date", "x-request-id", "transfer-encoding"}
    return {name: value for name, value in told.headers.items() if name.lower() not in each_its_own}


@pytest.mark.parametrize("target", READ)
async def test_head_is_get_without_its_body(service: Service, tag: str, target: str) -> None:
    """HEAD has the headers of GET, the length of its body too, and no body (RFC 9110, 9.3.2)."""
    get = await ask(service.api.url, Call(200, "GET", target))
    call = Call(200, "HEAD", target)
    told = await ask(service.api.url, call)

    wanted = same(get)
    if target in {"/metrics", "/stats"}:  # they count the question
        wanted.pop("Content-Length")
        assert "Content-Length" in told.headers
    assert wanted.items() <= same(told).items()
    assert b"" == told.body
    assert [] == list(notes(service.api.url, call, told))


@pytest.mark.parametrize("target", READ)
async def test_what_varies_says_so(service: Service, tag: str, target: str) -> None:
    """Where another Accept gets another form, every form says Vary: Accept (RFC 9110, 12.5.5)."""
    accepted = ("*/*", "text/csv", "application/x-ndjson", "text/html", "application/json")
    forms = [
        await ask(service.api.url, Call(200, "GET", target, {"Accept": each})) for each in accepted
    ]

    if len({form.headers["Content-Type"] for form in forms}) > 1:
        assert {form.headers.get("Vary") for form in forms} == {"Accept"}


@pytest.mark.parametrize("target", READ)
async def test_an_etag_leads_to_a_304(service: Service, tag: str, target: str) -> None:
    """The same thing keeps its ETag; naming it is 304 with the same headers, HEAD too, and no body.

    RFC 9110, section 15.4.5: Cache-Control, ETag and Vary are those of the 200.
    """
    first = await ask(service.api.url, Call(200, "GET", target))
    etag = first.headers.get("ETag")
    if etag is None:
        assert first.headers["Cache-Control"] in {"no-store", "no-cache"}
        return
    assert (await ask(service.api.url, Call(200, "GET", target))).headers["ETag"] == etag
    for method in ("GET", "HEAD"):
        for given in (etag, f"W/{etag}", f'"0", {etag}', "*"):
            call = Call(304, method, target, {"If-None-Match": given})
            told = await ask(service.api.url, call)
            for name in ("ETag", "Cache-Control", "Vary"):
                assert told.headers.get(name) == first.headers.get(name)
            assert [] == list(notes(service.api.url, call, told))
        for given in (etag, "*"):
            await ask(service.api.url, Call(200, method, target, {"If-Match": given}))
        for given in (f"W/{etag}", '"0"'):
            await ask(service.api.url, Call(412, method, target, {"If-Match": given}))
        await ask(service.api.url, Call(200, method, target, {"If-None-Match": '"0"'}))


async def test_a_location_leads_to_what_was_made(service: Service, tag: str) -> None:
    """What 201 names is there: the same body, the same ETag."""
    for body in (b'{"data":{}}', '{"id":"lint é/?#%","data":{}}'.encode()):
        made = await ask(service.api.url, Call(201, "POST", "/items", JSON, body))
        there = await ask(service.api.url, Call(200, "GET", made.headers["Location"]))

        assert made.body == there.body
        assert made.headers["ETag"] == there.headers["ETag"]


@pytest.mark.parametrize("path", sorted({template(each.path) for each in ROUTES}))
async def test_allow_names_what_is_allowed(service: Service, tag: str, path: str) -> None:
    """A method is in Allow exactly if it is not 405."""
    target = re.sub(r"{\w+}", "nobody", path)
    refused = await ask(service.api.url, Call(405, "TRACE", target))
    allowed = set(refused.headers["Allow"].split(", "))

    known = {each.method for each in ROUTES if template(each.path) == path}
    assert allowed == known | {"OPTIONS"} | ({"HEAD"} if "GET" in known else set())


@pytest.mark.parametrize(
    ("method", "target", "line", "status"),
    [
        ("HEAD", "/items/lint", "X: y", 200),
        ("HEAD", "/items", "X: y", 200),
        ("HEAD", "/docs", "X: y", 200),
        ("HEAD", "/export", "X: y", 200),
        ("GET", "/items/lint", "If-None-Match: *", 304),
        ("GET", "/openapi.json", "If-None-Match: *", 304),
        ("POST", "/flush", "X: y", 204),
    ],
)
async def test_what_has_no_body_sends_none(
    service: Service, tag: str, method: str, target: str, line: str, status: int
) -> None:
    """Not a byte follows the head of such an answer: the next one is whole."""
    connection = await service.raw()
    await connection.send(request(method, target, b"", line) + request("GET", "/livez"))

    answer = await connection.answer("HEAD")
    assert answer.status == status
    assert (await connection.answer()).json == {"alive": True}


# --- what must be waited for, or brought about


async def test_a_server_that_starts_says_when_to_come_back(dsn: str) -> None:
    """503, of every route that has it, is as HTTP has it."""
    async with service_over(Postgres(dsn), start=False) as service:
        for call in [
            Call(503, "GET", "/readyz"),
            Call(503, "GET", "/items/lint"),
            Call(503, "GET", "/items"),
            Call(503, "GET", "/export"),
            Call(503, "POST", "/items", JSON, b'{"data":{}}'),
            Call(503, "PUT", "/items/lint", JSON, b'{"data":{}}'),
            Call(503, "PATCH", "/items/lint", JSON, b'{"data":{}}'),
            Call(503, "DELETE", "/items/lint"),
            Call(503, "POST", "/items:batch", JSON, b'{"operations":[{"op":"get","id":"a"}]}'),
            Call(503, "POST", "/import", NDJSON, b'{"data":{}}\n'),
            Call(503, "POST", "/flush"),
        ]:
            told = await ask(service.api.url, call)
            assert [] == list(notes(service.api.url, call, told)), call


async def test_a_body_that_does_not_come_is_answered_in_order(
    service: Service, in_no_time: None
) -> None:
    """408 closes the connection and says so (RFC 9110, section 15.5.9)."""
    connection = await service.raw()
    lines = ("Content-Type: application/json", "Content-Length: 10")
    answer = await connection.ask(head("POST", "/items", *lines), "POST")

    assert (answer.status, answer.headers["Connection"]) == (408, "close")
    assert answer.headers["Cache-Control"] == "no-store"
    await connection.check_ended()
