"""Those who send what is not what it seems: paths that climb, and requests within requests.

Each row says what the attacker got. The neighbour's item is what some of them are after.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import pytest

from tests.hostile.conftest import Victim
from tests.web.conftest import path, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "the-neighbours-own"  # an id nobody's request names as it is

#: A path → what GET of it gets.
PATHS: Final = {
    "/items/..": "400 invalid_id",
    "/items/../livez": "404 route_not_found",
    "/items/../../etc/passwd": "404 route_not_found",
    "/items/%2e%2e": "400 invalid_id",
    "/items/%2E%2E/livez": "404 route_not_found",
    "/items/%252e%252e": "404 item_not_found",
    "/items/..%2f..%2fetc%2fpasswd": "404 item_not_found",
    "/items/%2fetc%2fpasswd": "404 item_not_found",
    "/items/%252Fetc": "404 item_not_found",
    "/items/a%00": "400 invalid_id",
    "/items/a%0d%0aX-Injected:%201": "400 invalid_id",
    "/items/%c0%ae%c0%ae": "400 invalid_id",
    "/items/%e0%80%ae": "400 invalid_id",
    "/items/%ed%a0%80": "400 invalid_id",
    "/items/%ff": "400 invalid_id",
    "/items/%ef%bc%8e%ef%bc%8e": "404 item_not_found",
    "/items/the%E2%80%90neighbours%E2%80%90own": "404 item_not_found",
    "/items/th%D0%B5-neighbours-own": "404 item_not_found",
    "/items/the-neighbours-own%20": "404 item_not_found",
    "/items/the-neighbours-own.": "404 item_not_found",
    "/items/THE-NEIGHBOURS-OWN": "404 item_not_found",
    "/items/the-neighbours-own/": "404 route_not_found",
    "/items//the-neighbours-own": "404 route_not_found",
    "//items/the-neighbours-own": "404 route_not_found",
    "/./items/the-neighbours-own": "404 route_not_found",
    "/items;/the-neighbours-own": "404 route_not_found",
    "/items\\the-neighbours-own": "404 route_not_found",
    "/items/the-neighbours-own%3Fa": "404 item_not_found",
    "/items?prefix=%00": "400 invalid_parameter",
    "/quarantine/%2e%2e": "400 invalid_id",
}


@pytest.mark.parametrize(("target", "expected"), PATHS.items())
async def test_paths(victim: Victim, target: str, expected: str) -> None:
    """A path is decoded once, never climbs, and names one id or none; letters are not folded."""
    async with victim.under_attack(30):
        put = await victim.ask(request("PUT", path(SECRET), b'{"data":{}}'), "PUT")
        assert put.status in {200, 201}
        answer = await victim.ask(request("GET", target))
    assert f"{answer.status} {answer.json.get('code')}" == expected
    assert "X-Injected" not in answer.headers


INNER: Final = request("DELETE", path(SECRET))
_PUT: Final = b"PUT /items/outer HTTP/1.1\r\nHost: test\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

#: Two readers could see another number of requests in each of these. DELETE is the one within.
SMUGGLED: Final = {
    "CL.TE": _PUT + b"Content-Length: 5\r\n" + _CHUNKED + b"\r\n0\r\n\r\n" + INNER,
    "TE.CL": _PUT + _CHUNKED + b"Content-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n" + INNER,
    "TE.TE": _PUT + _CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + INNER,
    "TE folded": _PUT + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE with a tab": _PUT + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE before a colon": _PUT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE in HTTP/1.0": _PUT.replace(b"1.1", b"1.0") + _CHUNKED + b"\r\n0\r\n\r\n" + INNER,
    "two lengths": _PUT + b"Content-Length: 0\r\nContent-Length: 9\r\n\r\n" + INNER,
    "a list of lengths": _PUT + b"Content-Length: 0, 9\r\n\r\n" + INNER,
    "a length with a sign": _PUT + b"Content-Length: +0\r\n\r\n" + INNER,
    "a folded header": _PUT + b"X-A: 1\r\n Content-Length: 9\r\n\r\n" + INNER,
    "bare LF": _PUT + b"X-A: 1\nContent-Length: 0\r\n\r\n" + INNER,
    "bare LF all along": _PUT.replace(b"\r\n", b"\n") + b"\n" + INNER,
    "bare CR": _PUT + b"X-A: 1\rContent-Length: 0\r\n\r\n" + INNER,
    "a chunk's size with LF": _PUT + _CHUNKED + b"\r\n0\n\n" + INNER,
    "a chunk too long": _PUT + _CHUNKED + b"\r\n1\r\nxx\r\n0\r\n\r\n" + INNER,
    "a chunk of 2^64": _PUT + _CHUNKED + b"\r\n10000000000000000\r\n\r\n" + INNER,
    "two Hosts": _PUT + b"Host: other\r\nContent-Length: 0\r\n\r\n" + INNER,
    "no Host": _PUT.replace(b"Host: test\r\n", b"") + b"Content-Length: 0\r\n\r\n" + INNER,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + INNER,
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED)
async def test_request_smuggling(victim: Victim, sent: bytes) -> None:
    """What can be read in two ways is 400, and nothing behind it is read at all."""
    async with victim.under_attack(30):
        before = await victim.ask(request("PUT", path(SECRET), b'{"data":{}}'), "PUT")
        raw = await victim.raw()
        answer = await raw.ask(sent)
        assert (answer.status, answer.json["code"]) == (400, "malformed_request")
        await raw.check_ended()
        assert (await victim.ask(request("GET", path(SECRET)))).body == before.body
        assert (await victim.ask(request("GET", "/items/outer"))).status == 404


HOSTS: Final = ("evil.example", "evil.example:99999", "a@b", "", "[::1", "x" * 300)


@pytest.mark.parametrize("host", HOSTS)
async def test_the_host_is_in_no_answer(victim: Victim, host: str) -> None:
    """Host is not believed and not repeated: links and locations are paths."""
    lines = f"Host: {host}\r\nX-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n"
    body = b'{"data":{}}'
    for target in ("/items", "/items?limit=1"):
        method = "GET" if "?" in target else "POST"
        sent = f"{method} {target} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        async with victim.under_attack(30):
            answer = await victim.ask(sent.encode() + body)
        assert answer.status in {200, 201, 400}
        assert b"evil" not in answer.body
        assert not [value for value in answer.headers.values() if "evil" in value or "://" in value]


@pytest.mark.parametrize(
    ("expect", "expected"),
    [("100-continue", 100), ("x", 400), ("100-continue, x", 400)],
)
async def test_expect(victim: Victim, expect: str, expected: int) -> None:
    """A body is invited if it will be read; any other expectation is 400."""
    async with victim.under_attack(30):
        raw = await victim.raw()
        head = _PUT.decode() + f"Expect: {expect}\r\nContent-Length: 11\r\n\r\n"
        answer = await raw.ask(head.encode())
        assert answer.status == expected
        if expected == 100:
            assert (await raw.ask(b'{"data":{}}', "PUT")).status in {200, 201}
            with suppress(ConnectionError):
                await raw.ask(request("DELETE", "/items/outer"), "DELETE")


@pytest.mark.parametrize("target", ["example.org:443", "127.0.0.1:22"])
async def test_connect(victim: Victim, target: str) -> None:
    """CONNECT opens nothing: it is no proxy."""
    async with victim.under_attack(30):
        answer = await victim.ask(request("CONNECT", target), "CONNECT")
    assert f"{answer.status} {answer.json['code']}" == "404 route_not_found"
