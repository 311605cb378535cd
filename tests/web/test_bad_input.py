"""What cannot be stored or understood: each bad request gets a problem document and loses nothing.

Over bare connections: a bad request, then a good one on the same connection.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from itemstore.core.data import DATA_MAX_BYTES, DEPTH_MAX, STRUCTURE_MAX
from itemstore.web import requests
from itemstore.web import server as web_server
from tests.web.conftest import INTERNALS, Answer, Service, make, path, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB: Final = 1024 * 1024
EXAMPLES: Final = settings(max_examples=300, deadline=None)


# --- bodies


def nested(levels: int, *, array: bool = False) -> bytes:
    """Data of so many levels, the data itself being one."""
    begin, end = (b"[", b"]") if array else (b'{"a":', b"}")
    return b'{"data":{"a":' + begin * (levels - 1) + b"1" + end * (levels - 1) + b"}}"


def number(text: str) -> bytes:
    return b'{"data":{"a":' + text.encode() + b"}}"


MALFORMED_JSON: Final = {
    "empty": b"",
    "blank": b"  ",
    "a word": b"data",
    "an open brace": b"{",
    "cut after the name": b'{"data"',
    "cut in the data": b'{"data":{"a":1',
    "cut before the end": b'{"data":{}',
    "cut in a character": b'{"data":{"a":"\xc3',
    "more after it": b'{"data":{}}x',
    "two values": b'{"data":{}}{"data":{}}',
    "a trailing comma": b'{"data":{"a":1,}}',
    "a comment": b'{"data":{}/* */}',
    "single quotes": b"{'data':{}}",
    "no quotes": b"{data:{}}",
    "a byte order mark": b'\xef\xbb\xbf{"data":{}}',
    "utf-16": '{"data":{}}'.encode("utf-16"),
    "latin-1": '{"data":{"a":"é"}}'.encode("latin-1"),
    "an overlong character": b'{"data":{"a":"\xc0\xaf"}}',
    "an encoded surrogate": b'{"data":{"a":"\xed\xa0\x80"}}',
    "a high surrogate alone": b'{"data":{"a":"\\ud800"}}',
    "a low surrogate alone": b'{"data":{"a":"\\udc00"}}',
    "surrogates reversed": b'{"data":{"a":"\\udc00\\ud800"}}',
    "a surrogate in a name": b'{"data":{"\\ud800":1}}',
    "a control character": b'{"data":{"a":"\n"}}',
    "a NUL": b'{"data":{"a":"\x00"}}',
    "an unknown escape": b'{"data":{"a":"\\x41"}}',
    "a short escape": b'{"data":{"a":"\\u00"}}',
    "NaN": number("NaN"),
    "Infinity": number("Infinity"),
    "-Infinity": number("-Infinity"),
    "a leading zero": number("01"),
    "a plus": number("+1"),
    "a point alone": number("1."),
    "hexadecimal": number("0x10"),
    "1e400": number("1e400"),
    "-1e99999": number("-1e99999"),
    "a million digits": number("1" * 1_000_000),
    "1025 levels": nested(1025),
    "99000 levels": nested(99_000, array=True),
    "only brackets": b"[" * 90_000,
}

#: What is said of it, the pointer, the body.
INVALID_DATA: Final = {
    "NUL": ("\\u0000", "/data/a", b'{"data":{"a":"\\u0000"}}'),
    "NUL in text": ("\\u0000", "/data/a", b'{"data":{"a":"b\\u0000c"}}'),
    "NUL in a name": ("\\u0000", "/data/a\x00", b'{"data":{"a\\u0000":1}}'),
    "NUL deep": ("\\u0000", "/data/a/1/b~1c", b'{"data":{"a":[1,{"b/c":"\\u0000"}]}}'),
    "2^63": ("64 bits", "/data", number("9223372036854775808")),
    "-2^63 - 1": ("64 bits", "/data", number("-9223372036854775809")),
    "2^64": ("64 bits", "/data", number("18446744073709551616")),
    "100 digits": ("64 bits", "/data", number("9" * 100)),
    "17 decimals": ("digits", "/data", number("0.10000000000000001")),
    "pi": ("digits", "/data", number("3.14159265358979323846264338327950288")),
    "2^53 + 1 as a float": ("digits", "/data", number("9007199254740993.0")),
    "too small": ("digits", "/data", number("1e-400")),
    "a long exponent": ("digits", "/data", number("1e-99999999999999999999")),
    "a million decimals": ("digits", "/data", number("0." + "3" * 1_000_000)),
    "65 levels": ("64 levels", "/data", nested(DEPTH_MAX + 1)),
    "65 levels of arrays": ("64 levels", "/data", nested(DEPTH_MAX + 1, array=True)),
    "1000 levels": ("64 levels", "/data", nested(1000)),
    "too many commas": (
        *("brackets and commas", None),
        b'{"data":{"a":[' + b"1," * STRUCTURE_MAX + b"1]}}",
    ),
    "too many objects": (
        *("brackets and commas", None),
        b'{"data":{"a":[' + b"{}," * (STRUCTURE_MAX // 2) + b"1]}}",
    ),
    "too many levels": ("brackets and commas", None, b"[" * MIB),
}

NO_ITEM: Final = {
    "null": (None, b"null"),
    "true": (None, b"true"),
    "a number": (None, b"17"),
    "a string": (None, b'"text"'),
    "an array": (None, b'[{"data":{}}]'),
    "an unknown member": ("/date", b'{"data":{},"date":{}}'),
}

BODIES: Final = [
    *((400, "malformed_json", "", None, body) for body in MALFORMED_JSON.values()),
    *((422, "invalid_data", *each) for each in INVALID_DATA.values()),
    *((422, "invalid_item", "", *each) for each in NO_ITEM.values()),
]
BODY_NAMES: Final = [*MALFORMED_JSON, *INVALID_DATA, *NO_ITEM]


@pytest.mark.parametrize(("status", "code", "word", "pointer", "body"), BODIES, ids=BODY_NAMES)
@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH"])
async def test_a_bad_body_is_refused(
    service: Service,
    name: str,
    method: str,
    status: int,
    code: str,
    word: str,
    pointer: str | None,
    body: bytes,
) -> None:
    """A body that cannot be stored as it is gets a problem; item and connection stay."""
    before = await make(service.api, name, {"kept": True})
    raw = await service.raw()
    target = "/items" if method == "POST" else path(name)

    answer = await raw.ask(request(method, target, body) if body else empty(method, target))

    answer.check()
    problem = answer.is_problem(status, code)
    assert word in problem["detail"]
    assert problem.get("pointer") == pointer
    assert (await raw.ask(request("GET", path(name)))).body == before.body
    await raw.check_usable()


def empty(method: str, target: str) -> bytes:
    return request(method, target, b"", "Content-Length: 0")


@pytest.mark.parametrize(
    "body",
    [
        nested(DEPTH_MAX),
        nested(DEPTH_MAX, array=True),
        number("9223372036854775807"),
        number("-9223372036854775808"),
        number("0.1"),
        number("1.7976931348623157e308"),
        number("5e-324"),
        number("1.000000000000000000000"),
        b'{"data":{"a":"\\ud83d\\ude00"}}',
        b'{"data":{"a":"\\\\u0000"}}',
        b' \r\n\t{"data" : { } } \n',
        b'{"data":{"":{"":""}}}',
        b'{"data":{"__proto__":{"constructor":1}}}',
        b'{"data":{"a":[' + b"1," * (STRUCTURE_MAX - 3) + b"1]}}",
        b'{"data":{"a":"' + b"x" * (DATA_MAX_BYTES - len('{"data":{"a":""}}')) + b'"}}',
    ],
    ids=lambda body: body[:40].decode(),
)
async def test_what_is_just_allowed_is_stored(service: Service, name: str, body: bytes) -> None:
    """The limits themselves are still within them, and PostgreSQL takes what they let through."""
    raw = await service.raw()

    answer = await raw.ask(request("PUT", path(name), body))

    answer.check()
    assert (answer.status, answer.headers["Durability"]) == (201, "commit")
    assert (await raw.ask(request("GET", path(name)))).body == answer.body


# --- requests that are HTTP, and wrong

WRONG: Final = {
    "method": (405, "method_not_allowed", request("POST", "/items/x")),
    "path": (404, "route_not_found", request("GET", "/item")),
    "id": (400, "invalid_id", request("GET", "/items/%00")),
    "cursor": (400, "invalid_cursor", request("GET", "/items?cursor=x")),
    "parameter": (400, "invalid_parameter", request("GET", "/items?colour=red")),
    "If-Match": (400, "invalid_etag", request("PUT", "/items/x", b"{}", "If-Match: 17")),
    "If-Match, open": (400, "invalid_etag", request("PUT", "/items/x", b"{}", 'If-Match: "1')),
    "If-Match, empty": (400, "invalid_etag", request("DELETE", "/items/x", b"", "If-Match:")),
    "If-None-Match": (400, "invalid_etag", request("PUT", "/items/x", b"{}", "If-None-Match: x")),
    "Durability": (400, "invalid_durability", request("PUT", "/items/x", b"{}", "Durability: x")),
    "Content-Type": (
        *(415, "unsupported_media_type"),
        request("PUT", "/items/x", b'{"data":{}}', "Content-Type: text/html"),
    ),
    "Expect": (400, "malformed_request", request("PUT", "/items/x", b"{}", "Expect: a miracle")),
    "CONNECT": (404, "route_not_found", request("CONNECT", "example.org:80")),
    "upgrade": (
        *(404, "item_not_found"),
        request("GET", "/items/%20", b"", "Connection: Upgrade", "Upgrade: websocket"),
    ),
}


@pytest.mark.parametrize(("status", "code", "sent"), WRONG.values(), ids=WRONG)
async def test_a_wrong_request_leaves_the_connection_usable(
    service: Service, status: int, code: str, sent: bytes
) -> None:
    """A request that is HTTP but not ours gets its problem, and the next one its answer."""
    raw = await service.raw()

    answer = await raw.ask(sent)

    answer.check()
    answer.is_problem(status, code)
    if answer.headers.get("Connection") == "close":
        await raw.check_ended()
    else:
        await raw.check_usable()


async def test_requests_behind_each_other_are_answered_in_their_order(
    service: Service, name: str
) -> None:
    """Pipelined requests, good and bad ones, are answered one by one in their order."""
    await make(service.api, name)
    raw = await service.raw()
    get, bad = request("GET", path(name)), request("PUT", path(name), b"{")

    await raw.send((get + bad) * 100 + get)

    statuses = [(await raw.answer()).status for _ in range(201)]
    assert statuses == [200, 400] * 100 + [200]
    await raw.check_usable()


# --- chance


async def answer_to(service: Service, sent: bytes, method: str) -> Answer:
    """The final answer over a connection of its own; it must not be a mistake of ours."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests, "BODY_TIMEOUT_S", 0.01)
        patched.setattr(web_server, "LINGERING_TIME_S", 0.01)
        raw = await service.raw()
        try:
            answer = await raw.ask(sent, method)
            while answer.status < 200:
                answer = await raw.answer(method)
        finally:
            await raw.close()
    assert answer.status < 500, answer
    assert not any(each.encode() in answer.body for each in INTERNALS)
    return answer


JSON_PIECES: Final = st.sampled_from(
    [
        *('{"data":', "{", "}", "[", "]", ",", ":", '"', '"a":', "null", "true", "1", "-", "1e9"),
        *("0.1", "9" * 20, "\\u0000", "\\ud800", "\\", "é", "\x00", " ", '"id":', '"data"'),
    ]
)
BODY: Final = st.one_of(
    st.binary(max_size=200),
    st.lists(JSON_PIECES, max_size=20).map(lambda pieces: "".join(pieces).encode()),
    st.binary(max_size=20).map(lambda inside: b'{"data":{"a":"' + inside + b'"}}'),
    st.lists(JSON_PIECES, max_size=12).map(
        lambda pieces: ('{"data":{"a":' + "".join(pieces) + "}}").encode()
    ),
)


@EXAMPLES
@given(body=BODY, method=st.sampled_from(["PUT", "POST", "PATCH", "batch"]))
@example(body=b'{"data":{"a":"\xff"}}', method="PUT")
@example(body=b'{"operations":[{"op":"put","id":"\\u0000","data":{}}]}', method="batch")
async def test_no_body_is_a_mistake_of_the_server(
    service: Service, body: bytes, method: str
) -> None:
    """Whatever the body, a write is carried out or refused; it never fails."""
    target = {"POST": "/items", "batch": "/items:batch"}.get(method, "/items/chance")
    method = "POST" if method == "batch" else method
    sent = request(method, target, body) if body else empty(method, target)

    answer = await answer_to(service, sent, method)

    answer.check()
    if answer.status < 300 and target != "/items:batch":
        assert (await service.api("GET", f"/items/{answer.json['id']}")).body == answer.body


PATH_PIECES: Final = st.one_of(
    st.sampled_from(
        [
            *("items", "items:batch", "/", "//", ".", "..", "?", "#", "&", "=", ":", ";", "@", "+"),
            *("%2F", "%2e", "%00", "%0A", "%FF", "%C3%A9", "%25", "%", "%zz", "%F0%9F%98%80", "*"),
            *("limit=1", "cursor=", "prefix=%", "count=exact", "livez", "metrics", "a", "\\", "|"),
        ]
    ),
    st.binary(min_size=1, max_size=4).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)),
)


@EXAMPLES
@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "PATCH", "DELETE", "POST", "OPTIONS"]),
    begin=st.sampled_from(["/", "/items/", "/items?", "/items", "", "http://h/items/"]),
    pieces=st.lists(PATH_PIECES, max_size=10),
)
async def test_no_path_is_a_mistake_of_the_server(
    service: Service, method: str, begin: str, pieces: list[str]
) -> None:
    """Whatever the path and the query, the answer is one we foresaw."""
    target = begin + "".join(pieces) or "/"

    await answer_to(service, request(method, target, b'{"data":{}}'), method)


HEADER_NAMES: Final = st.one_of(
    st.sampled_from(
        [
            *("If-Match", "If-None-Match", "Content-Type", "Content-Encoding", "Content-Length"),
            *("Transfer-Encoding", "Expect", "Durability", "X-Request-Id", "Connection"),
            *("Upgrade", "Host", "Accept", "Accept-Encoding", "Range", "If-Modified-Since", "Te"),
            *("Cookie", "Authorization", "X-Forwarded-For", "X-Railway-Request-Id", "Trailer"),
            *("Sec-WebSocket-Key", "Sec-WebSocket-Key1", "Content-Disposition"),
        ]
    ),
    st.text(st.sampled_from("aZ0-_!#$%&'*+.^`|~ :()\""), max_size=6),
)
HEADER_VALUES: Final = st.one_of(
    st.sampled_from(
        [
            *(
                b"*",
                b'"1"',
                b'W/"1"',
                b'"',
                b",",
                b"1",
                b"-1",
                b"11",
                b"gzip",
                b"chunked",
                b"close",
            ),
            *(b"keep-alive", b"upgrade", b"websocket", b"100-continue", b"memory", b"journal"),
            *(b"application/json", b"text/html; charset", b"bytes=0-1", b"identity", b"", b"h2c"),
        ]
    ),
    st.binary(max_size=12).filter(lambda value: not set(value) & set(b"\r\n")),
)


@EXAMPLES
@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "PATCH", "DELETE"]),
    lines=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=6),
)
@example(method="PUT", lines=[("Durability", b"\xff"), ("X-Request-Id", b"\xff")])
@example(method="PUT", lines=[("If-Match", b'"\xff"'), ("Content-Type", b"\xff")])
async def test_no_header_is_a_mistake_of_the_server(
    service: Service, method: str, lines: list[tuple[str, bytes]]
) -> None:
    """Whatever the headers, the answer is one we foresaw, and 503 only where it is asked for."""
    soup = b"".join(b"\r\n%b: %b" % (name.encode(), value) for name, value in lines)
    good = request(method, "/items/chance", b'{"data":{}}')
    sent = good.replace(b"\r\n\r\n", soup + b"\r\n\r\n", 1)
    if any(name == "Durability" and b"journal" in value for name, value in lines):
        return

    await answer_to(service, sent, method)
