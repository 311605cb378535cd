"""Bodies on their way: too large, in chunks, compressed, invited, stalled, cut off.

A connection is answered on afterwards if HTTP can still tell where the next request begins, and
else it is closed.
"""

from __future__ import annotations

import resource
import zlib
from typing import Final

import pytest

from itemstore.storage.postgres import Postgres
from itemstore.web import requests
from itemstore.web import server as web_server
from tests.web.conftest import Answer, Service, head, make, path, request, service_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB: Final = 1024 * 1024


# --- too large


def body_of(size: int) -> bytes:
    return b'{"data":{}}'.ljust(size)


LIMITS: Final = [
    ("PUT", "/items/x", requests.BODY_MAX_BYTES),
    ("POST", "/items", requests.BODY_MAX_BYTES),
    ("PATCH", "/items/x", requests.BODY_MAX_BYTES),
    ("POST", "/items:batch", requests.BATCH_BODY_MAX_BYTES),
]


def check_too_large(answer: Answer, limit: int) -> None:
    answer.check()
    assert f"{limit:,} bytes" in answer.is_problem(413, "body_too_large")["detail"]


@pytest.mark.parametrize(("method", "target", "limit"), LIMITS)
async def test_a_body_over_the_limit_is_refused(
    service: Service, method: str, target: str, limit: int
) -> None:
    """A body one byte over the limit is 413; once it has passed, the connection is usable."""
    raw = await service.raw()

    answer = await raw.ask(request(method, target, body_of(limit + 1)))

    check_too_large(answer, limit)
    await raw.check_usable()


@pytest.mark.parametrize(("method", "target", "limit"), LIMITS)
async def test_a_body_that_says_it_is_too_large_is_not_waited_for(
    service: Service, in_no_time: None, method: str, target: str, limit: int
) -> None:
    """A Content-Length over the limit is 413 before any byte of the body came."""
    for size in (limit + 1, 10**12):
        raw = await service.raw()

        answer = await raw.ask(head(method, target, f"Content-Length: {size}"))

        check_too_large(answer, limit)
        await raw.check_ended()


async def test_a_body_at_the_limit_is_read(service: Service, name: str) -> None:
    """A body of exactly the limit is no reason to refuse it."""
    raw = await service.raw()

    answer = await raw.ask(request("PUT", path(name), body_of(requests.BODY_MAX_BYTES)))

    assert answer.status == 201
    await raw.check_usable()


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


CHUNKED: Final = "Transfer-Encoding: chunked"
LAST: Final = b"0\r\n\r\n"


async def test_a_chunked_body_is_read(service: Service, name: str) -> None:
    """A body in chunks, with extensions and a trailer, is one body."""
    raw = await service.raw()

    answer = await raw.ask(
        head("PUT", path(name), CHUNKED)
        + chunked(b'{"da', b'ta":')
        + b'5;a=b\r\n{"a":\r\n2\r\n1}\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n'
    )

    assert (answer.status, answer.json["data"]) == (201, {"a": 1})
    await raw.check_usable()


@pytest.mark.parametrize(("method", "target", "limit"), LIMITS)
async def test_a_chunked_body_over_the_limit_is_refused(
    service: Service, method: str, target: str, limit: int
) -> None:
    """Chunks that come to more than the limit are 413; at their end the connection is usable."""
    raw = await service.raw()

    await raw.send(head(method, target, CHUNKED))
    for _ in range(limit // 65_536 + 1):
        await raw.send(chunked(b" " * 65_536))
    await raw.send(LAST)

    check_too_large(await raw.answer(), limit)
    await raw.check_usable()


async def test_chunks_without_end_are_cut(service: Service, in_no_time: None) -> None:
    """A body that goes on after its refusal ends with the connection."""
    raw = await service.raw()

    await raw.send(head("PUT", "/items/x", CHUNKED))
    for _ in range(17):
        await raw.send(chunked(b" " * 65_536))

    check_too_large(await raw.answer(), requests.BODY_MAX_BYTES)
    await raw.check_ended()


@pytest.mark.parametrize(
    "coding", ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"]
)
async def test_a_compressed_body_is_refused_and_not_inflated(
    service: Service, name: str, coding: str
) -> None:
    """A body with a Content-Encoding is 415, and a bomb in it does not go off."""
    before = await make(service.api, name)
    raw = await service.raw()
    packer = zlib.compressobj(9, wbits=31)
    begin, mebibyte = packer.flush(zlib.Z_FULL_FLUSH), packer.compress(bytes(MIB))
    mebibyte += packer.flush(zlib.Z_FULL_FLUSH)
    bomb = begin + mebibyte * 900  # inflates to 900 MiB
    assert len(bomb) < requests.BODY_MAX_BYTES
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    answer = await raw.ask(request("PUT", path(name), bomb, f"Content-Encoding: {coding}"))

    answer.check()
    problem = answer.is_problem(415, "unsupported_media_type")
    assert "uncompressed" in problem["detail"]
    assert (await raw.ask(request("GET", path(name)))).body == before.body
    await raw.check_usable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 * 1024


async def test_identity_is_no_compression(service: Service, name: str) -> None:
    """Content-Encoding: identity says nothing."""
    raw = await service.raw()

    answer = await raw.ask(request("PUT", path(name), b'{"data":{}}', "Content-Encoding: identity"))

    assert answer.status == 201


# --- Expect


@pytest.mark.parametrize(("method", "target", "limit"), LIMITS)
async def test_a_body_that_will_be_refused_is_not_invited(
    service: Service, in_no_time: None, method: str, target: str, limit: int
) -> None:
    """With Expect, a body too large is refused instead of invited, and the connection ends."""
    raw = await service.raw()
    sent = head(method, target, f"Content-Length: {limit + 1}", "Expect: 100-continue")

    answer = await raw.ask(sent)

    check_too_large(answer, limit)
    assert answer.headers["Connection"] == "close"
    await raw.check_ended()


async def test_a_body_that_will_be_read_is_invited(service: Service, name: str) -> None:
    """With Expect, 100 Continue comes before the body and the answer after it."""
    raw = await service.raw()
    body = b'{"data":{}}'

    invitation = await raw.ask(
        head("PUT", path(name), f"Content-Length: {len(body)}", "Expect: 100-Continue")
    )
    assert (invitation.status, dict(invitation.headers)) == (100, {})

    assert (await raw.ask(body)).status == 201
    await raw.check_usable()


async def test_http_1_0_knows_no_invitation(service: Service, name: str) -> None:
    """An Expect in HTTP/1.0 is ignored (RFC 9110, section 10.1.1)."""
    raw = await service.raw()
    body = b'{"data":{}}'
    lines = (f"Content-Length: {len(body)}", "Expect: 100-continue")

    answer = await raw.ask(head("PUT", path(name), *lines, version="1.0") + body)

    assert answer.status == 201
    await raw.check_ended()


# --- bodies that do not come


async def test_a_body_that_stalls_is_given_up(
    service: Service, name: str, in_no_time: None
) -> None:
    """A body that does not come is 408, the connection ends, and nothing is changed."""
    before = await make(service.api, name)
    for begin in (b"", b'{"data":{'):
        raw = await service.raw()

        answer = await raw.ask(head("PUT", path(name), "Content-Length: 11") + begin)

        answer.check()
        answer.is_problem(408, "body_timeout")
        assert answer.headers["Connection"] == "close"
        await raw.check_ended()
    assert (await service.api("GET", path(name))).body == before.body


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("line", ["Content-Length: 11", CHUNKED])
async def test_a_client_that_goes_away_is_no_mistake_of_the_server(
    dsn: str, line: str, half: bool
) -> None:
    """A body cut short by the end of its connection is logged as a bad request, no more."""
    async with service_over(Postgres(dsn)) as service:
        raw = await service.raw()
        await raw.send(head("PUT", "/items/x", line) + (b"" if line == CHUNKED else b"{"))
        if half:
            await raw.end_sending()
            await raw.check_ended()
        else:
            await raw.close()
        served = service.traffic.served
        await service.until(lambda: ("PUT /items/{id}", 400) in served)

        assert (await service.api("GET", "/items/x")).status == 404
        [event] = [each for each in service.events() if each.get("method") == "PUT"]
    assert (event["message"], event["level"], event["status"]) == ("request", "debug", 400)


async def test_headers_that_stall_are_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that does not finish a request's headers, or sends none, is closed."""
    monkeypatch.setattr(web_server, "KEEPALIVE_TIMEOUT_S", 0.02)
    for begin in (b"", b"G", b"GET /items/x HTTP/1.1\r\nHost: test\r\nX-Slow: "):
        raw = await service.raw()
        await raw.send(begin)
        await raw.check_ended()


async def test_chunks_that_break_later_are_given_up(
    service: Service, name: str, in_no_time: None
) -> None:
    """Chunked coding that breaks after the headers were read changes nothing and ends."""
    before = await make(service.api, name)
    raw = await service.raw()
    served = service.store.queue.accepted

    await raw.send(head("PUT", path(name), CHUNKED) + chunked(b'{"data":{}}'))
    await service.api("GET", "/livez")  # the loop turns: the body is being read
    await raw.send(b"nonsense\r\n")
    answer = await raw.answer()

    assert answer.status in {400, 408}
    assert answer.json["code"] in {"malformed_request", "body_timeout"}
    await raw.check_ended()
    assert service.store.queue.accepted == served
    assert (await service.api("GET", path(name))).body == before.body
