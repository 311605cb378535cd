"""Ids in paths, bodies and Locations: every odd character, decoded exactly once."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.web.conftest import Api, Service, count_of, make, path, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


ODD_IDS: Final = [
    "a/b",
    "/",
    "//",
    "a/../b",
    "%",
    "%25",
    "%2F",
    "100%",
    "a?b",
    "?",
    "a#b",
    "#",
    " ",
    "a b",
    " a ",
    "a+b",
    "+",
    '"',
    "'",
    '"quoted"',
    "<a&b>",
    "\\",
    "a\\b",
    "{id}",
    "[1]",
    "^`|",
    ":batch",
    "a:batch",
    "items:batch",
    "...",
    ".a",
    "..a",
    "a.",
    "-",
    "~",
    "*",
    "@!$&'()*,;=",
    "é",
    "日本語",
    "😀",
    "e\u0301",
    "\u00a0",
    "\u200b",
    "\u2028",
    "\ufeff",
    "\ufffd",
    "\U0010ffff",
    "a" * 512,
    "é" * 256,
    "😀" * 128,
    "null",
    "0",
]


@pytest.mark.parametrize("rest", ODD_IDS)
async def test_every_id_works_on_every_route(api: Api, name: str, rest: str) -> None:
    """Any id of 1 to 512 bytes can be created, found by Location, listed, changed and deleted."""
    item_id = rest

    created = await api("POST", "/items", {"id": item_id, "data": {"n": 1}})
    location = created.headers["Location"]

    assert created.status == 201
    assert created.json["id"] == item_id
    assert location.isascii()
    assert (await api("GET", location)).body == created.body
    assert (await api("GET", path(item_id))).body == created.body
    listed = await api("GET", f"/items?prefix={quote(item_id, safe='')}&order=id&limit=1")
    assert listed.json["items"] == [created.json]
    replaced = await api("PUT", location, {"id": item_id, "data": {"n": 2}})
    assert (replaced.status, replaced.json["id"]) == (200, item_id)
    patched = await api("PATCH", location, {"data": {"n": 3}}, if_match=replaced.etag)
    assert patched.status == 200
    in_batch = await api("POST", "/items:batch", {"operations": [{"op": "get", "id": item_id}]})
    assert in_batch.json["results"][0]["item"] == patched.json
    assert (await api("DELETE", location)).status == 204
    assert (await api("GET", location)).status == 404


async def test_ids_that_look_alike_are_different_items(api: Api, name: str) -> None:
    """An id is decoded once and never normalised: each spelling is an item of its own."""
    ids = ["a/b", "a%2Fb", "a%252Fb", "a b", "a+b", "a%20b", "\u00e9", "e\u0301", "A/B", "a//b"]
    for number, each in enumerate(ids):
        assert (await make(api, name + each, {"n": number})).status == 201

    for number, each in enumerate(ids):
        assert (await api("GET", path(name + each))).json["data"] == {"n": number}
    assert await count_of(api, name) == len(ids)


@pytest.mark.parametrize(
    ("raw", "item_id"),
    [
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("a:b@c!d$e&f'g(h)i*j,k;l=m", "a:b@c!d$e&f'g(h)i*j,k;l=m"),
        ("%61%62", "ab"),
        ("%c3%a9", "é"),
        ("a%2fb", "a/b"),
        ("%252F", "%2F"),
        ("a%", "a%"),
        ("%zz", "%zz"),
    ],
)
async def test_paths_that_spell_an_id(service: Service, name: str, raw: str, item_id: str) -> None:
    """A path is percent-decoded exactly once; what needs no escape may be escaped."""
    created = await make(service.api, name + item_id)

    raw_connection = await service.raw()
    answer = await raw_connection.ask(request("GET", f"/items/{name}{raw}"))

    assert (answer.status, answer.body) == (200, created.body)


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/items/.", 400, "invalid_id"),
        ("/items/..", 400, "invalid_id"),
        ("/items/%2E", 400, "invalid_id"),
        ("/items/%2E%2E", 400, "invalid_id"),
        ("/items/.%2e", 400, "invalid_id"),
        ("/items/%FF", 400, "invalid_id"),
        ("/items/%C3", 400, "invalid_id"),
        ("/items/%ED%A0%80", 400, "invalid_id"),
        ("/items/%C0%AF", 400, "invalid_id"),
        ("/items/a%00b", 400, "invalid_id"),
        ("/items/a%0Ab", 400, "invalid_id"),
        ("/items/a%0D%0AX:%20y", 400, "invalid_id"),
        ("/items/%7F", 400, "invalid_id"),
        ("/items/%C2%85", 400, "invalid_id"),
        ("/items/" + "a" * 513, 400, "invalid_id"),
        ("/items/" + "%F0%9F%98%80" * 128 + "a", 400, "invalid_id"),
        ("/items/", 404, "route_not_found"),
        ("/items//", 404, "route_not_found"),
        ("/items/a/b", 404, "route_not_found"),
        ("/items/a/", 404, "route_not_found"),
        ("/items/../items", 404, "route_not_found"),
        ("/items%2Fa", 404, "route_not_found"),
        ("//items/a", 404, "route_not_found"),
        ("/Items/a", 404, "route_not_found"),
        ("/", 404, "route_not_found"),
        ("/livez/", 404, "route_not_found"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_paths_that_spell_no_id(
    service: Service, method: str, target: str, status: int, code: str
) -> None:
    """A path without a valid id is refused, and the connection stays usable."""
    raw = await service.raw()

    answer = await raw.ask(request(method, target, b'{"data":{}}' if method == "PUT" else b""))

    answer.check()
    assert "pointer" not in answer.is_problem(status, code)
    await raw.check_usable()


@pytest.mark.parametrize("item_id", ["", ".", "..", "a\x00b", "a\nb", "\x7f", "\x85", "é" * 257, 7])
async def test_create_refuses_what_is_no_id(api: Api, item_id: Any) -> None:
    """POST with an id that is not allowed is 400 with a pointer to it."""
    answer = await api("POST", "/items", {"id": item_id, "data": {}})

    assert answer.is_problem(400, "invalid_id")["pointer"] == "/id"
