"""What browsers need to be told: which pages may read answers, and who may not make them write.

A browser sends what any page asks it to; what it keeps from the page is the answer, unless that
names the page's origin (CORS: https://fetch.spec.whatwg.org/#http-cors-protocol). No answer here
allows credentials, so that cookies and remembered passwords are of no use to a page.

Small enough to stand here: aiohttp-cors sets its headers in handlers of its own, so that errors,
streams and the fast lane would lack them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from aiohttp import hdrs, web

from itemstore.errors import OriginNotAllowed

ANY: Final = "*"
PREFLIGHT_MAX_AGE_S: Final = 600  # for which a browser need not ask again

SAFE: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_OWN_SITES: Final = frozenset({"same-origin", "none"})

_REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, Durability, Idempotency-Key, If-Match, If-None-Match, "
    "X-Request-Id"
)
_EXPOSED_HEADERS: Final = (
    "Accept-Patch, Allow, Durability, ETag, Idempotency-Key, Itemstore-Hint, Link, Location, "
    "RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-Id"
)

#: What no answer is without. It keeps a browser from taking an answer for something else than its
#: Content-Type says: JSON is then no page, no script and no style, whoever embeds it.
HEADERS: Final = {"X-Content-Type-Options": "nosniff"}


class Browsers:
    """Which pages may use the store. Without origins, none but its own."""

    def __init__(self, origins: str | None = None) -> None:
        self._origins: Collection[str] = frozenset((origins or "").split(",")) - {""}

    def headers(self, origin: str | None) -> dict[str, str]:
        """What every answer to a request with this Origin has, beside ``HEADERS``."""
        if not self._origins:
            return {}
        told: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        if origin is not None and self._allows(origin):
            allowed = ANY if ANY in self._origins else origin
            told[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
            told[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED_HEADERS
        return told

    def _allows(self, origin: str) -> bool:
        return origin in self._origins or ANY in self._origins

    def may_write(self, origin: str | None, site: str | None, host: str) -> bool:
        """Whether a write with these headers (Origin, Sec-Fetch-Site, Host) is no other page's.

        A write that looks like a form's needs no preflight, and a store on a private network has
        often no other guard. Browsers say by Sec-Fetch-Site where a request comes from, older ones
        by Origin alone, and nothing else sends either:
        https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header
        """
        if origin is None or self._allows(origin):
            return True
        if site is not None:
            return site in _OWN_SITES
        return origin.partition("://")[2] == host.lower()

    def check(self, request: web.Request) -> None:
        """Raises OriginNotAllowed for a write by a page that may not."""
        headers = request.headers
        origin, site = headers.get(hdrs.ORIGIN), headers.get("Sec-Fetch-Site")
        if origin is None or request.method in SAFE:
            return
        if not self.may_write(origin, site, headers.get(hdrs.HOST, "")):
            raise OriginNotAllowed(
                "The page this comes from may not write here. If it is to, add its origin to "
                "CORS_ORIGINS."
            )

    def options(self, request: web.Request) -> web.Response:
        """OPTIONS: 204 with what may be asked here; raises HTTPNotFound where there is nothing.

        https://fetch.spec.whatwg.org/#cors-preflight-fetch, RFC 9110, section 9.3.7.
        """
        allowed = methods_of(request)
        headers = {hdrs.ALLOW: ", ".join(allowed)}
        origin = request.headers.get(hdrs.ORIGIN)
        if (
            origin is not None
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
            and self._allows(origin)
        ):
            headers |= {
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(allowed),
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _REQUEST_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_MAX_AGE_S),
            }
        return web.Response(status=204, headers=headers)

    def finish(self, request: web.Request, response: web.StreamResponse) -> None:
        """Gives an answer the headers that none is without; the lane's have the same."""
        response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        response.headers.update(HEADERS)
        for name, value in self.headers(request.headers.get(hdrs.ORIGIN)).items():
            given = response.headers.get(name)
            response.headers[name] = value if given is None else f"{given}, {value}"


def methods_of(request: web.Request) -> list[str]:
    """The methods that the path knows; OPTIONS is one. Raises HTTPNotFound."""
    if request.rel_url.raw_path == ANY:  # of the server as a whole
        return sorted(hdrs.METH_ALL - {hdrs.METH_CONNECT, hdrs.METH_TRACE})
    error = request.match_info.http_exception
    if isinstance(error, web.HTTPMethodNotAllowed):
        return sorted(error.allowed_methods | {hdrs.METH_OPTIONS})
    raise error or web.HTTPNotFound


BROWSERS: Final = web.AppKey("browsers", Browsers)
