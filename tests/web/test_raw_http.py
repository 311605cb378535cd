"""Bytes that are not HTTP, which end the connection; and HTTP that is odd but right."""

from __future__ import annotations

from typing import Final

import pytest

from tests.web.conftest import INTERNALS, PROBLEM, Answer, Service, head, make, path, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAST_CHUNK: Final = b"0\r\n\r\n"


def check_malformed(answer: Answer) -> None:
    """What was not understood as HTTP is told so, in HTTP/1.0: the connection ends with that."""
    assert (answer.status, answer.json["code"]) == (400, "malformed_request")
    assert answer.headers["Content-Type"] == PROBLEM
    assert answer.headers["Server"] == "itemstore"
    assert answer.json["detail"].endswith("Mend it, and send it over a new connection.")
    assert not any(each.encode() in answer.body for each in INTERNALS)


# --- what is not HTTP

HOST: Final = b"Host: test\r\n"


def get(*lines: bytes) -> bytes:
    return b"GET /items/x HTTP/1.1\r\n" + HOST + b"".join(b"%b\r\n" % line for line in lines)


def put(*lines: bytes) -> bytes:
    return b"PUT /items/x HTTP/1.1\r\n" + HOST + b"".join(b"%b\r\n" % line for line in lines)


NOT_HTTP: Final = {
    "garbage": b"\x00\x01\x02\xfe\xff\r\n\r\n",
    "words": b"hello, is this the item store?\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "PostgreSQL": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /items/x HTTP/9.9\r\n" + HOST + b"\r\n",
    "lower case": b"get /items/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"FETCH /items/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "no target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /items/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "UTF-8 in the target": "GET /items/é HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "a byte in the target": b"GET /items/\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "a byte in the query": b"GET /items?prefix=\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in the target": b"GET /items/\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a relative target": b"GET items/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute target without a host": b"GET http:///items/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute target with a bad port": b"GET http://a:999999/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "no Host": b"GET /items/x HTTP/1.1\r\n\r\n",
    "two Hosts": get(b"Host: other") + b"\r\n",
    "bare LF": b"GET /items/x HTTP/1.1\nHost: test\n\n",
    "bare LF in the headers": get() + b"X-A: 1\nX-B: 2\r\n\r\n",
    "bare CR": get(b"X-A: 1\rX-B: 2") + b"\r\n",
    "a folded header": get(b"X-A: 1", b" 2") + b"\r\n",
    "a space before the colon": get(b"X-A : 1") + b"\r\n",
    "a header without a name": get(b": 1") + b"\r\n",
    "a header without a colon": get(b"X-A") + b"\r\n",
    "NUL in a header": get(b"X-A: 1\x002") + b"\r\n",
    "a control character in a header": get(b"X-A: 1\x012") + b"\r\n",
    "NUL in a header's name": get(b"X-\x00A: 1") + b"\r\n",
    "a long request line": b"GET /items/" + b"a" * 8_200 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a longer request line": b"GET /items/" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long header": get(b"X-A: " + b"a" * 8_200) + b"\r\n",
    "a long header's name": get(b"X-" + b"a" * 8_200 + b": 1") + b"\r\n",
    "200 headers": get(*(b"X-%d: 1" % n for n in range(200))) + b"\r\n",
    "two lengths": put(b"Content-Length: 2", b"Content-Length: 3") + b"\r\n{}",
    "the same length twice": put(b"Content-Length: 2", b"Content-Length: 2") + b"\r\n{}",
    "a list of lengths": put(b"Content-Length: 2, 2") + b"\r\n{}",
    "a negative length": put(b"Content-Length: -1") + b"\r\n",
    "a signed length": put(b"Content-Length: +2") + b"\r\n{}",
    "a hexadecimal length": put(b"Content-Length: 0x2") + b"\r\n{}",
    "no length": put(b"Content-Length:") + b"\r\n",
    "a length beyond 64 bits": put(b"Content-Length: " + b"9" * 30) + b"\r\n",
    "length and chunks": put(b"Content-Length: 5", b"Transfer-Encoding: chunked")
    + b"\r\n"
    + LAST_CHUNK,
    "chunks and length": put(b"Transfer-Encoding: chunked", b"Content-Length: 5")
    + b"\r\n"
    + LAST_CHUNK,
    "chunks not last": put(b"Transfer-Encoding: chunked, gzip") + b"\r\n" + LAST_CHUNK,
    "no transfer coding": put(b"Transfer-Encoding: identity") + b"\r\n",
    "xchunked": put(b"Transfer-Encoding: xchunked") + b"\r\n" + LAST_CHUNK,
    "a chunk without a size": put(b"Transfer-Encoding: chunked") + b"\r\n\r\n",
    "a chunk size that is none": put(b"Transfer-Encoding: chunked") + b"\r\nzz\r\n",
    "a negative chunk": put(b"Transfer-Encoding: chunked") + b"\r\n-1\r\n",
    "a chunk size beyond 64 bits": put(b"Transfer-Encoding: chunked") + b"\r\n1" + b"0" * 20,
    "a chunk longer than its size": put(b"Transfer-Encoding: chunked") + b"\r\n2\r\n{}}\r\n",
    "a chunk ended by bare LF": put(b"Transfer-Encoding: chunked") + b"\r\n2\n{}\n0\n\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_is_not_http_is_told_so(service: Service, name: str, sent: bytes) -> None:
    """Bytes that are not HTTP are 400 and end the connection: what follows is not carried out."""
    before = await make(service.api, name)
    raw = await service.raw()

    answer = await raw.ask(sent + request("DELETE", path(name)))

    check_malformed(answer)
    await raw.check_ended()
    assert (await service.api("GET", path(name))).body == before.body
    assert (await service.api("GET", "/items/x")).status == 404


async def test_what_came_before_the_nonsense_is_answered(service: Service, name: str) -> None:
    """A good request is answered before the bad one behind it, and the one after that never."""
    before = await make(service.api, name)
    raw = await service.raw()

    good = await raw.ask(request("GET", path(name)))
    bad = await raw.ask(b"nonsense\r\n\r\n" + request("DELETE", path(name)))

    assert good.body == before.body
    check_malformed(bad)
    await raw.check_ended()
    assert (await service.api("GET", path(name))).body == before.body


async def test_a_write_in_one_packet_with_nonsense_is_not_lost_in_silence(
    service: Service, name: str
) -> None:
    """A write that arrives together with bytes that are not HTTP is answered, or not done."""
    raw = await service.raw()

    answer = await raw.ask(
        request("PUT", path(name), b'{"data":{}}') + b"nonsense\r\n\r\n", method="PUT"
    )

    is_there = (await service.api("GET", path(name))).status == 200
    if answer.status == 201:
        assert is_there
        check_malformed(await raw.answer())
    else:
        check_malformed(answer)
        assert not is_there
    await raw.check_ended()


# --- odd but right


async def test_http_1_0(service: Service, name: str) -> None:
    """HTTP/1.0 is answered and closed, or kept open if asked to."""
    before = await make(service.api, name)
    sent = head("GET", path(name), version="1.0")
    raw = await service.raw()

    answer = await raw.ask(sent)
    assert (answer.status, answer.body) == (200, before.body)
    await raw.check_ended()

    raw = await service.raw()
    kept = await raw.ask(head("GET", path(name), "Connection: keep-alive", version="1.0"))
    assert kept.headers["Connection"] == "keep-alive"
    await raw.check_usable()


async def test_connection_close(service: Service, name: str) -> None:
    """A client that says close is answered and the connection closed."""
    raw = await service.raw()

    answer = await raw.ask(head("GET", path(name), "Connection: close"))

    assert answer.status == 404
    assert answer.headers["Connection"] == "close"
    await raw.check_ended()


async def test_a_target_may_be_absolute(service: Service, name: str) -> None:
    """The absolute form of a target, as proxies send it, is the same target."""
    before = await make(service.api, name)
    raw = await service.raw()

    answer = await raw.ask(request("GET", f"http://example.org{path(name)}"))

    assert (answer.status, answer.body) == (200, before.body)
    listed = await raw.ask(request("GET", f"http://example.org/items?prefix={name}&limit=1"))
    assert [item["id"] for item in listed.json["items"]] == [name]
    await raw.check_usable()


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
async def test_an_upgrade_is_declined(service: Service, name: str, protocol: str) -> None:
    """A request that offers another protocol is answered in this one, and so is the next."""
    before = await make(service.api, name)
    raw = await service.raw()
    sent = request("GET", path(name), b"", "Connection: Upgrade", f"Upgrade: {protocol}")

    answer = await raw.ask(sent)

    answer.check()
    assert (answer.status, answer.body) == (200, before.body)
    await raw.check_usable()


async def test_a_body_where_none_is_needed_is_ignored(service: Service, name: str) -> None:
    """GET and DELETE with a body are carried out, and the body is not taken for a request."""
    before = await make(service.api, name)
    raw = await service.raw()
    body = request("DELETE", path(name))

    answer = await raw.ask(request("GET", path(name), body))

    assert answer.body == before.body
    await raw.check_usable()
    assert (await raw.ask(request("DELETE", path(name), b"{"), "DELETE")).status == 204
    await raw.check_usable()


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_a_request_may_come_in_pieces(service: Service, name: str, size: int) -> None:
    """A request cut anywhere into packets is the same request."""
    raw = await service.raw()
    sent = request("PUT", path(name), '{"data":{"a":"é"}}'.encode())

    for start in range(0, len(sent), size):
        await raw.send(sent[start : start + size])
        await service.api("GET", "/livez")

    answer = await raw.answer()
    assert (answer.status, answer.json["data"]) == (201, {"a": "é"})
    await raw.check_usable()


async def test_options_of_the_server(service: Service) -> None:
    """``OPTIONS *`` asks for the server as a whole (RFC 9110, section 9.3.7)."""
    raw = await service.raw()

    answer = await raw.ask(request("OPTIONS", "*"), "OPTIONS")

    answer.check()
    assert (answer.status, answer.headers["Allow"]) == (
        *(204,),
        "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
    )
    await raw.check_usable()
