"""The page at /docs: what it shows, what it must not load, and that its examples are true."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, Final

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.web import contract, reference
from itemstore.web.app import ROUTES, make_app
from tests.web.conftest import Api, make, service_over, serving
from tests.web.contract import operations

VOID: Final = {"meta", "link", "wbr", "br", "hr"}
PAGE: Final = contract.pages()[contract.DOCS].body.decode()


class Elements(HTMLParser):
    """The elements of a page; fails where one is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def each(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.found if attribute in attributes]


def test_it_shows_every_operation_and_every_schema() -> None:
    """Each has its place on the page, which its own name leads to; no name is there twice."""
    ids = Elements(PAGE).each("id")

    wanted = {operation["operationId"] for operation in operations().values()}
    wanted |= {f"schema-{name}" for name in contract.contract()["components"]["schemas"]}
    assert wanted <= set(ids)
    assert len(ids) == len(set(ids))


def test_every_link_leads_somewhere() -> None:
    """A link within the page leads to a place on it; one to this server to a route."""
    elements = Elements(PAGE)
    ids, paths = set(elements.each("id")), {route.path for route in ROUTES}

    for href in elements.each("href"):
        if href.startswith("#"):
            assert href[1:] in ids, href
        else:
            assert href in paths or href.startswith("https://www.rfc-editor.org/"), href


def test_it_loads_nothing_but_its_style() -> None:
    """No script, no picture, no frame, no form, no style in an element: the policy forbids them."""
    elements = Elements(PAGE)
    assert {tag for tag, _ in elements.found}.isdisjoint(
        {"script", "img", "iframe", "object", "embed", "form", "style", "base", "svg"}
    )
    assert [] == elements.each("src") + elements.each("style")
    assert not [each for _, given in elements.found for each in given if each.startswith("on")]
    style = contract.pages()[contract.STYLE].body.decode()
    assert "url(" not in style
    assert "@import" not in style


def strings(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every text of the contract that the page shows, with where it stands."""
    for name, each in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(each, dict | list):
            yield from strings(each)
        elif isinstance(each, str) and name in {"summary", "description", "title"}:
            yield node, name


@settings(max_examples=25)
@given(st.text(alphabet="<>&\"'`()[]!scripthref=:x*_\n ", min_size=1, max_size=40))
def test_no_text_of_the_contract_becomes_html(text: str) -> None:
    """Whatever a description says, the page has the same kinds of elements, in order."""
    changed = copy.deepcopy(contract.contract())
    for node, name in list(strings(changed)):
        node[name] = text
    elements = Elements(reference.render(changed))

    written = {"p", "em", "strong", "code", "pre", "ul", "ol", "li", "blockquote", "a", "img", "br"}
    known = {tag for tag, _ in Elements(PAGE).found} | written | {f"h{n}" for n in range(1, 7)}
    assert {tag for tag, _ in elements.found} <= known | {"hr"}
    assert not [each for _, given in elements.found for each in given if each.startswith("on")]
    assert not [href for href in elements.each("href") if href.lower().startswith("javascript:")]


async def test_it_is_answered_so_that_a_browser_is_safe(dsn: str) -> None:
    """Nothing may be guessed, framed or loaded from elsewhere."""
    async with service_over(Postgres(dsn), start=False) as service:
        page = await service.api("GET", "/docs")
        style = await service.api("GET", "/docs/style.css")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        each.strip().split(" ", 1) for each in page.headers["Content-Security-Policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    for answer in (page, style):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_openapi_json_is_the_file(dsn: str) -> None:
    """What is served is what the file says, while the store is still starting too."""
    async with service_over(Postgres(dsn), start=False) as service:
        assert (await service.api("GET", "/openapi.json")).json == contract.contract()


async def test_it_can_be_turned_off(dsn: str) -> None:
    """Without DOCS there is nothing there, and no answer says that there were."""
    app = make_app(ItemStore(Postgres(dsn)), docs=False)
    async with serving(app) as port, aiohttp.ClientSession() as session:
        api = Api(session, f"http://127.0.0.1:{port}")
        for path in (contract.OPENAPI, contract.DOCS, contract.STYLE):
            answer = await api("GET", path, check=False)
            answer.is_problem(404, "route_not_found")
            assert "Link" not in answer.headers


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl in PATH")
async def test_its_commands_do_what_they_show(dsn: str) -> None:
    """Each command of the page is pasted into a shell, and is answered 2xx."""
    found = re.findall(r"<pre[^>]*><code>(curl .*?)</code>", PAGE, re.DOTALL)
    commands = [Elements(f"<p>{each}</p>").text for each in found]
    assert len(commands) == len(operations()) + 1  # and one with a key
    async with service_over(Postgres(dsn)) as service:
        for command in commands:
            if "/quarantine/" in command or "/keys/" in command:
                continue  # nothing is in there
            await make(service.api, "grace", {"name": "Grace", "born": 1906})
            typed = command.replace(reference.ADDRESS, f"127.0.0.1:{service.port}")
            process = await asyncio.create_subprocess_exec(
                *("bash", "-c", f"{typed} -s -o /dev/null -w '%{{http_code}}'"),
                env={"PATH": os.environ["PATH"], "NO_PROXY": "*", "API_KEY": "key"},
                stdout=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(30):
                status, _ = await process.communicate()
            assert status.startswith(b"2"), command
