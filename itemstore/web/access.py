"""Who sends this request? Asked of every one, in one place, whether aiohttp or the lane answers it.

A header that was seen before costs a look-up in a dict. What it was found to mean is forgotten when
the keys change, when it expires, and after RECHECKED_S, so that an issuer's key that is withdrawn
counts no longer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from itemstore.access import Access
from itemstore.core.apikey import digest, id_in, is_meant
from itemstore.core.caller import ANYBODY, NOBODY, Caller, Role
from itemstore.errors import (
    Forbidden,
    ItemStoreError,
    RateLimited,
    RouteNotFound,
    Unauthenticated,
)
from itemstore.keyring import Keyring
from itemstore.web import limits, requests

if TYPE_CHECKING:  # who takes no tokens needs no cryptography
    from itemstore.issuer import Tokens

SEEN_MAX: Final = 4_096  # headers, of at most 4 KiB each
SEEN_LENGTH_MAX: Final = 4_096
RECHECKED_S: Final = 300.0

_ADMIN: Final = Caller("key:API_KEY", Role.ADMIN)


class Guard:
    """Knows callers by what they send; ``seen`` at once, ``caller`` for certain."""

    def __init__(
        self,
        access: Access | None = None,
        keyring: Keyring | None = None,
        tokens: Tokens | None = None,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Without ``access`` nobody is asked."""
        self.keyring = keyring
        self.is_open = access is None or access.auth == "none"
        self._takes_keys = access is not None and access.keys
        api_key = access.api_key if access is not None else None
        self._api_key = None if api_key is None else digest(api_key)
        self._tokens = tokens
        self._now_s = now_s
        #: Header → who sends it, and until when that holds (seconds since 1970).
        self._seen: dict[str | None, tuple[Caller, float]] = {}
        if keyring is not None:
            keyring.on_change = self._seen.clear

    def seen(self, authorization: str | None) -> Caller | None:
        """Who sends this header, if that is known already."""
        if self.is_open:
            return ANYBODY
        known = self._seen.get(authorization)
        return known[0] if known is not None and self._now_s() < known[1] else None

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends this header. Raises Unauthenticated, Forbidden, Unavailable."""
        return self.seen(authorization) or await self._found(_token(authorization), authorization)

    async def _found(self, token: str, authorization: str | None) -> Caller:
        caller, until_s = await self._asked(token)
        if len(authorization or "") <= SEEN_LENGTH_MAX:
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            self._seen[authorization] = caller, min(until_s, self._now_s() + RECHECKED_S)
        return caller

    async def _asked(self, token: str) -> tuple[Caller, float]:
        if self._takes_keys and is_meant(token):
            return await self._by_key(token)
        if self._api_key is not None and compare_digest(self._api_key, digest(token)):
            return _ADMIN, float("inf")
        if self._tokens is not None:
            return await self._tokens.verify(token)
        raise Unauthenticated("The key is not one of this store.", is_wrong=True)

    async def _by_key(self, token: str) -> tuple[Caller, float]:
        if id_in(token) is None:
            raise Unauthenticated(
                "The key is mistyped or cut off: its last characters do not fit the others.",
                is_wrong=True,
            )
        if self.keyring is None:
            raise Unauthenticated("This server keeps no keys.", is_wrong=True)
        if not self.keyring.is_known:
            await self.keyring.know()
        key = self.keyring.find(token)
        if key is None:
            raise Unauthenticated(
                "The key was revoked, has expired, or never was one of this store. Ask for a new "
                "one.",
                is_wrong=True,
            )
        until_s = float("inf") if key.expires_us is None else key.expires_us / 1e6
        return key.caller, until_s


GUARD: Final = web.AppKey("guard", Guard)


async def running(app: web.Application) -> AsyncIterator[None]:
    """Keeps the keys fresh as long as the application is there."""
    keyring = app[GUARD].keyring
    if keyring is None:
        yield
    else:
        async with keyring.running():
            yield


async def admit(request: web.Request, role: Role | None, *, is_whole: bool = False) -> None:
    """Lets in who has the role, and no prefix if the route is about the whole store.

    Raises Unauthenticated, Forbidden, Unavailable. A role of None lets everybody in, unasked.
    """
    guard = request.app[GUARD]
    request[requests.CALLER] = NOBODY
    if role is None:
        request[requests.CALLER] = guard.seen(request.headers.get(hdrs.AUTHORIZATION)) or NOBODY
        return
    caller = request[requests.CALLER] = await guard.caller(_header(request))
    if caller.role < role:
        raise Forbidden(f"This needs the role {role.name.lower()}, which {caller.name} has not.")
    if is_whole and caller.prefix:
        raise Forbidden(
            f"This tells of the whole store, and {caller.name} is confined to ids that begin with "
            f"{caller.prefix!r}."
        )


async def is_told_all(request: web.Request) -> bool:
    """Whether who calls a route that is open to everybody may know more than everybody."""
    try:
        caller = await request.app[GUARD].caller(_header(request))
    except Unauthenticated as error:
        with suppress(RateLimited):  # a probe is answered, however often it comes
            limits.failed(request, error)
        return False
    except ItemStoreError:
        return False
    return not caller.prefix


def keyring(request: web.Request) -> Keyring:
    """The keys of this server. Raises RouteNotFound if it keeps none."""
    found = request.app[GUARD].keyring
    if found is None:
        raise RouteNotFound("This server keeps no keys.")
    return found


def _header(request: web.Request) -> str | None:
    given = request.headers.getall(hdrs.AUTHORIZATION, None)
    if given is not None and len(given) > 1:
        raise Unauthenticated("Authorization is there twice; send it once.", is_wrong=True)
    return given[0] if given else None


def _token(authorization: str | None) -> str:
    """RFC 6750, section 2.1. Raises Unauthenticated."""
    if authorization is None:
        raise Unauthenticated(
            "Say who you are: send your key or token in the header Authorization, after Bearer."
        )
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Authorization is Bearer, a space, and your key or token.")
    if not (token.isascii() and token.isprintable()):
        raise Unauthenticated("The key or token has characters that none has.", is_wrong=True)
    return token
