"""The contract, openapi.yaml, as machines and as people read it: /openapi.json and /docs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import ETag, hdrs, web

from itemstore.errors import PreconditionFailed
from itemstore.web import requests
from itemstore.web.items import ETAG

OPENAPI: Final = "/openapi.json"
DOCS: Final = "/docs"
STYLE: Final = "/docs/style.css"

#: Where the API is described (RFC 8631, sections 4 and 5).
LINK: Final = f'<{OPENAPI}>; rel="service-desc", <{DOCS}>; rel="service-doc"'

#: A page is true for one version of the server: a client may go on with it for a while.
_CACHE_CONTROL: Final = "max-age=300"
_HTML: Final = {
    # No script, nothing from elsewhere, and in no frame: https://www.w3.org/TR/CSP3/
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_HERE: Final = Path(__file__).parent


class Page(NamedTuple):
    """What is answered at one path; ``tag`` is its ETag without the quotes."""

    content_type: str
    body: bytes
    tag: str
    headers: Mapping[str, str]


async def answer(request: web.Request) -> web.Response:
    """GET and HEAD of a page: 200, 304, 412."""
    requests.query(request, ())
    page = (await asyncio.to_thread(pages))[request.path]
    tag = ETag(page.tag)
    if request.if_match is not None and not _names(request.if_match, tag):
        raise PreconditionFailed("If-Match is not met: the page has changed. Read it again.")
    headers = {ETAG: f'"{page.tag}"', hdrs.CACHE_CONTROL: _CACHE_CONTROL}
    if request.if_none_match is not None and _names(request.if_none_match, tag, weakly=True):
        return web.Response(status=304, headers=headers)
    headers |= {
        hdrs.CONTENT_TYPE: page.content_type,
        hdrs.LINK: LINK,
        "X-Content-Type-Options": "nosniff",
        **page.headers,
    }
    return web.Response(body=page.body, headers=headers)


def _names(tags: tuple[ETag, ...], tag: ETag, *, weakly: bool = False) -> bool:
    """Whether a condition names the tag, or any (RFC 9110, section 8.8.3.2)."""
    return any(each.value in {"*", tag.value} and (weakly or not each.is_weak) for each in tags)


@cache
def contract() -> dict[str, Any]:
    """The file as it is. Takes some 50 ms: call it in a thread."""
    import yaml  # here and below: the first who asks pays for the import, not the start

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    read: dict[str, Any] = yaml.load((_HERE / "openapi.yaml").read_bytes(), loader)  # noqa: S506
    return read


@cache
def pages() -> dict[str, Page]:
    """Path → what is there, the same until the process ends."""
    from itemstore.web import reference

    return {
        OPENAPI: _page("application/json", orjson.dumps(contract())),
        DOCS: _page("text/html; charset=utf-8", reference.render(contract()).encode(), _HTML),
        STYLE: _page("text/css; charset=utf-8", (_HERE / "reference.css").read_bytes()),
    }


def _page(content_type: str, body: bytes, headers: Mapping[str, str] = {}) -> Page:
    return Page(content_type, body, blake2b(body, digest_size=16).hexdigest(), headers)
