"""What holds of all routes: methods and parameters they do not know."""

from __future__ import annotations

from typing import Final

import pytest

from itemstore.web.app import ROUTES
from tests.web.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")


TARGETS: Final = [
    (method, pattern.replace("{id:(?s:.+)}", "some-id")) for method, pattern, *_ in ROUTES
]


@pytest.mark.parametrize(("method", "target"), TARGETS)
@pytest.mark.parametrize("query", ["unknown=1", "version=1", "%FF", "a=1&a=1", "&".join("a" * 25)])
async def test_an_unknown_parameter_is_refused_on_every_route(
    api: Api, method: str, target: str, query: str
) -> None:
    """A parameter that a route does not know is 400, before anything else is looked at."""
    answer = await api(method, f"{target}?{query}")

    answer.is_problem(400, "invalid_parameter")


METHODS: Final = {
    "/items": "GET, HEAD, OPTIONS, POST",
    "/items:batch": "OPTIONS, POST",
    "/items/x": "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
    "/livez": "GET, HEAD, OPTIONS",
    "/readyz": "GET, HEAD, OPTIONS",
    "/stats": "GET, HEAD, OPTIONS",
    "/metrics": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize(("target", "allow"), METHODS.items())
async def test_a_method_a_path_does_not_know_is_405(api: Api, target: str, allow: str) -> None:
    """Another method is 405 with Allow and the methods in words."""
    known = allow.split(", ")
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}.difference(known):
        answer = await api(method, target)

        problem = answer.is_problem(405, "method_not_allowed")
        assert answer.headers["Allow"] == allow
        assert ", ".join(known) in problem["detail"]


@pytest.mark.parametrize(("target", "allow"), METHODS.items())
async def test_options_tells_the_methods(api: Api, target: str, allow: str) -> None:
    """OPTIONS is 204 with Allow (RFC 9110, section 9.3.7), and nothing for other origins."""
    answer = await api("OPTIONS", target, origin="https://elsewhere.example")

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Allow"] == allow
    assert not [name for name in answer.headers if name.startswith("Access-Control-")]
    assert "Vary" not in answer.headers


async def test_options_where_nothing_is(api: Api) -> None:
    """Of a path that does not exist there is nothing to tell; of the server, all methods."""
    (await api("OPTIONS", "/nothing")).is_problem(404, "route_not_found")
