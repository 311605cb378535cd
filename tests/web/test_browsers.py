"""What browsers are told: CORS, writes by other pages, and the headers of every answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from itemstore.errors import StartupError
from itemstore.settings import load
from itemstore.storage.postgres import Postgres
from itemstore.web.app import ROUTES
from itemstore.web.browsers import Browsers
from tests.conftest import _FOUND
from tests.sql import make_database
from tests.web.conftest import Api, Service, head, make, path, service_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRIEND: Final = "https://friend.example"
WRONG: Final = (
    *("https://elsewhere.example", "http://friend.example", "https://friend.example:8443"),
    *("https://sub.friend.example", "https://friend.example.evil.example", "null", ""),
    *("https://FRIEND.example", "https://friend.example/", "friend.example", "file://", "*"),
)
EVERY_ROUTE: Final = [
    (route.method, route.path.replace("{id:(?s:.+)}", "none"))
    for route in ROUTES
    if route.path != "/import"
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def friendly(server: Callable[[int], str]) -> AsyncIterator[Service]:
    """A service whose pages of one other origin may use it."""
    database = make_database(server(max(_FOUND)))
    async with service_over(Postgres(database), browsers=Browsers(FRIEND)) as one:
        yield one


def told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("Access-")}


# --- off


@pytest.mark.parametrize(("method", "target"), EVERY_ROUTE)
async def test_without_cors_origins_nothing_is_told(api: Api, method: str, target: str) -> None:
    """CORS is off by default: no answer names an origin, and caches need not tell them apart."""
    answer = await api(method, target, origin=FRIEND)
    assert told(answer.headers) == {}
    assert hdr(answer.headers.get("Vary")).isdisjoint({"origin"})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Cache-Control" in answer.headers


def hdr(value: str | None) -> set[str]:
    return {each.strip().lower() for each in (value or "").split(",")}


# --- on


@pytest.mark.parametrize(("method", "target"), EVERY_ROUTE)
async def test_a_page_of_a_named_origin_reads_every_answer(
    friendly: Service, method: str, target: str
) -> None:
    """Each answer, a stream and a problem too, names the origin and the headers a page may see."""
    answer = await friendly.api(method, target, origin=FRIEND)
    assert answer.headers.getall("Access-Control-Allow-Origin") == [FRIEND]
    assert {"etag", "location", "durability", "link", "retry-after", "itemstore-hint"} <= hdr(
        answer.headers["Access-Control-Expose-Headers"]
    )
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert len(answer.headers.getall("Vary")) == 1
    assert hdr(answer.headers["Vary"]) - {"accept"} == {"origin"}
    assert ("accept" in hdr(answer.headers["Vary"])) == (target == "/export")


@pytest.mark.parametrize("origin", WRONG)
async def test_wrong_origins(friendly: Service, name: str, origin: str) -> None:
    """A page of any other origin is told nothing; what it tries to write is 403 and not written."""
    before = await make(friendly.api, name)
    answer = await friendly.api("GET", path(name), origin=origin)
    assert (answer.status, told(answer.headers), answer.headers["Vary"]) == (200, {}, "Origin")
    sites: list[dict[str, Any]] = [
        {},
        *({"sec_fetch_site": f"{s}-site"} for s in ("cross", "same")),
    ]
    for site in sites:
        for method, target in (("PUT", path(name)), ("DELETE", path(name)), ("POST", "/items")):
            refused = await friendly.api(
                method, target, {"data": {}} if method != "DELETE" else None, origin=origin, **site
            )
            refused.is_problem(403, "origin_not_allowed")
            assert told(refused.headers) == {}
    assert (await friendly.api("GET", path(name))).body == before.body


async def test_a_write_that_looks_like_a_form_is_refused(service: Service, name: str) -> None:
    """What a browser sends for any page without asking first, a body without a type, is 403."""
    raw = await service.raw()
    body = b'{"data":{}}'
    lines = (f"Origin: {FRIEND}", "Sec-Fetch-Site: cross-site", f"Content-Length: {len(body)}")
    answer = await raw.ask(head("POST", "/items", *lines) + body, "POST")
    answer.is_problem(403, "origin_not_allowed")


async def test_the_stores_own_pages_may_write(service: Service, name: str) -> None:
    """A page of the same origin may, as the browser tells it, or the Host if it does not."""
    ways: list[dict[str, Any]] = [
        {"origin": service.api.url},
        {"origin": "https://behind-a-proxy.example", "sec_fetch_site": "same-origin"},
    ]
    for lines in ways:
        answer = await service.api("PUT", path(name), {"data": {}}, **lines)
        assert answer.status in {200, 201}


@pytest.mark.parametrize(
    ("target", "methods"),
    [
        ("/items", "GET, HEAD, OPTIONS, POST"),
        ("/items/a", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
    ],
)
async def test_a_preflight(friendly: Service, target: str, methods: str) -> None:
    """A named origin gets exactly the methods of the path, and need not ask again for 600 s."""
    asked: dict[str, Any] = {
        "access_control_request_method": "PUT",
        "access_control_request_headers": "if-match",
    }
    answer = await friendly.api("OPTIONS", target, origin=FRIEND, **asked)
    assert (answer.status, answer.body) == (204, b"")
    assert told(answer.headers) == {
        "Access-Control-Allow-Origin": FRIEND,
        "Access-Control-Allow-Methods": methods,
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Durability, "
        "Idempotency-Key, If-Match, If-None-Match, X-Request-Id",
        "Access-Control-Expose-Headers": answer.headers["Access-Control-Expose-Headers"],
        "Access-Control-Max-Age": "600",
    }
    for origin in WRONG:
        other = await friendly.api("OPTIONS", target, origin=origin, **asked)
        assert (other.status, told(other.headers)) == (204, {})


async def test_all_origins(server: Callable[[int], str]) -> None:
    """With ``*`` every page may; none with credentials."""
    database = make_database(server(max(_FOUND)))
    async with service_over(Postgres(database), browsers=Browsers("*")) as one:
        answer = await one.api("POST", "/items", {"data": {}}, origin="https://any.example")
        assert answer.status == 201
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


# --- the setting


@pytest.mark.parametrize(
    "value", ["*", FRIEND, f"{FRIEND}, http://localhost:3000", "http://[::1]:80"]
)
async def test_origins_that_are_allowed(value: str) -> None:
    """Origins as browsers write them, with blanks between them or without."""
    assert load({"CORS_ORIGINS": value}).cors_origins == value.replace(" ", "")


@pytest.mark.parametrize(
    "value",
    [
        *("friend.example", "https://friend.example/", "https://*.example", "null", f"*,{FRIEND}"),
        *("https://user@friend.example", "https://friend.example/path", ",", f"{FRIEND},"),
        *("https://", "ftp://friend.example", "https://friend.example\r\nX: 1"),
    ],
)
async def test_origins_that_are_not(value: str) -> None:
    """Anything else stops the start: who would notice a mistake here?"""
    with pytest.raises(StartupError, match="CORS_ORIGINS"):
        load({"CORS_ORIGINS": value})


@given(origin=st.text(), host=st.text())
async def test_no_text_is_taken_for_a_named_origin(origin: str, host: str) -> None:
    """Only the very text of the setting is."""
    browsers = Browsers(FRIEND)
    if origin != FRIEND:
        assert browsers.headers(origin) == {"Vary": "Origin"}
        assert not browsers.may_write(origin, "cross-site", host)
