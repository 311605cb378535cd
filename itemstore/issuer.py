"""JSON Web Tokens of one issuer: which are believed, and the keys they are signed with.

A token chooses nothing: neither the algorithm (RFC 8725, section 3.1), nor where its key is to be
found. PyJWT verifies; its own client of key sets is not used, for it follows redirects and has no
limits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import aiohttp
import jwt
import orjson
from structlog.typing import FilteringBoundLogger

from itemstore.access import Issuer
from itemstore.core.caller import ROLES, Caller, Role
from itemstore.core.confinement import check_confining
from itemstore.errors import Forbidden, InvalidId, IssuerUnavailable, Unauthenticated

LEEWAY_S: Final = 30  # between the issuer's clock and ours
TOKEN_LENGTH_MAX: Final = 4_096  # characters
NAME_LENGTH_MAX: Final = 200  # characters of sub
FETCH_TIMEOUT_S: Final = 5.0
FETCH_BYTES_MAX: Final = 256 * 1024
KEYS_MAX: Final = 100  # of an issuer
FRESH_S: Final = 600.0  # after which they are fetched again
STALE_S: Final = 24 * 3600.0  # for which they do if the issuer does not answer
COOL_DOWN_S: Final = 30.0  # between two fetches, whatever keys tokens name

#: What a key of this type may be used for.
_FAMILIES: Final = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}

_verifier: Final = jwt.PyJWT({"enforce_minimum_key_length": True})


class Believed(NamedTuple):
    """Who sent a token, and until when it holds (seconds since 1970)."""

    caller: Caller
    until_s: float


class Tokens:
    """Verifies the tokens of one issuer."""

    def __init__(
        self,
        issuer: Issuer,
        log: FilteringBoundLogger,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._keys = None if issuer.jwks_url is None else KeySet(issuer, log, monotonic)

    async def verify(self, token: str) -> Believed:
        """Who sent it. Raises Unauthenticated, Forbidden, IssuerUnavailable."""
        if len(token) > TOKEN_LENGTH_MAX:
            raise _wrong(f"is longer than {TOKEN_LENGTH_MAX:,} characters")
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:  # RFC 7515, section 4.1.11: we know no extension
                raise _wrong("demands an extension (crit) that is not known here")
            claims = self._claims(token, await self._key(header))
            return Believed(self._caller(claims), float(claims["exp"]))
        except jwt.PyJWTError as error:
            raise _wrong(f"is not accepted: {error}".rstrip(".")[:200]) from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise _wrong("cannot be read") from None

    def _claims(self, token: str, key: str | jwt.PyJWK) -> Mapping[str, Any]:
        claims: Mapping[str, Any] = _verifier.decode(
            token,
            key,
            algorithms=self._issuer.algorithms,
            audience=self._issuer.audience,
            issuer=self._issuer.issuer,
            leeway=LEEWAY_S,
            options={"require": ["exp", "aud", "iss"]},
        )
        return claims

    async def _key(self, header: Mapping[str, Any]) -> str | jwt.PyJWK:
        if self._keys is not None:
            return await self._keys.key(header.get("kid"))
        assert self._issuer.secret is not None  # noqa: S101 - our own error, not a caller's
        return self._issuer.secret

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims.get("sub", "")
        if len(subject) > NAME_LENGTH_MAX or not subject.isprintable():
            raise _wrong(f"has a sub that is not {NAME_LENGTH_MAX} printable characters at most")
        role, prefix = self._role(claims), self._prefix(claims)
        if prefix and role is Role.ADMIN:
            raise Forbidden("The token names the role admin and a prefix; an admin has none.")
        return Caller(f"jwt:{subject}", role, prefix)

    def _role(self, claims: Mapping[str, Any]) -> Role:
        """Several roles come as a list, or as OAuth's scope: with spaces between."""
        claim = self._issuer.role_claim
        given = claims.get(claim)
        names = given.split() if isinstance(given, str) else given
        roles = [role for name, role in ROLES.items() if isinstance(names, list) and name in names]
        if not roles:
            raise Forbidden(f"The token's claim {claim!r} names none of {', '.join(ROLES)}.")
        return max(roles)

    def _prefix(self, claims: Mapping[str, Any]) -> str:
        """A token without the claim is not one for all ids."""
        claim = self._issuer.prefix_claim
        if claim is None:
            return ""
        given = claims.get(claim)
        if not isinstance(given, str):
            raise Forbidden(f"The token has no claim {claim!r} with the prefix of its ids.")
        try:
            return check_confining(given)
        except InvalidId:
            raise Forbidden(f"No id begins as the token's claim {claim!r} says.") from None


class KeySet:
    """An issuer's public keys: fetched when needed, at most once in COOL_DOWN_S."""

    def __init__(
        self, issuer: Issuer, log: FilteringBoundLogger, monotonic: Callable[[], float]
    ) -> None:
        assert issuer.jwks_url is not None  # noqa: S101 - our own error, not a caller's
        self._url = issuer.jwks_url
        self._algorithms = issuer.algorithms
        self._log = log
        self._monotonic = monotonic
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def key(self, kid: str | None) -> jwt.PyJWK:
        """The key of this name; of an issuer with one key, that one for None.

        Raises Unauthenticated, IssuerUnavailable.
        """
        if kid not in self._keys or self._age() > FRESH_S:
            async with self._fetching:  # who waited finds them fetched
                if self._monotonic() - self._tried_at >= COOL_DOWN_S:
                    await self._fetch()
        if self._age() > STALE_S:
            raise IssuerUnavailable(
                "The keys that tokens are signed with cannot be fetched from JWT_JWKS_URL; the "
                "server's log says why. Repeat later."
            )
        if kid not in self._keys:
            raise _wrong("names a key (kid) that its issuer does not publish")
        return self._keys[kid]

    def _age(self) -> float:
        return self._monotonic() - self._fetched_at

    async def _fetch(self) -> None:
        self._tried_at = self._monotonic()
        try:
            self._keys = _keys_in(await _body(self._url), self._algorithms)
            self._fetched_at = self._monotonic()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._log.error("jwks_failed", reason=str(error) or type(error).__name__)
        else:
            self._log.info("jwks_fetched", keys=len(self._keys))


async def _body(url: str) -> bytes:
    """What is there. Raises aiohttp.ClientError, TimeoutError, ValueError."""
    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers={"Accept": "application/json"}) as session,
        session.get(url, allow_redirects=False) as answer,
    ):
        if answer.status != 200:
            raise ValueError(f"the answer is {answer.status}, not 200")
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > FETCH_BYTES_MAX:
                raise ValueError(f"the answer is longer than {FETCH_BYTES_MAX:,} bytes")
    return bytes(body)


def _keys_in(body: bytes, algorithms: tuple[str, ...]) -> dict[str | None, jwt.PyJWK]:
    """The keys by name that fit the algorithms (RFC 7517). Raises ValueError."""
    parsed = orjson.loads(body)
    given = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(given, list):
        raise ValueError("the answer is no JSON Web Key Set")
    found: dict[str | None, jwt.PyJWK] = {}
    for each in given[:KEYS_MAX]:
        algorithm = _algorithm(each, algorithms) if isinstance(each, dict) else None
        kid = each.get("kid") if isinstance(each, dict) else None
        if algorithm is None or not isinstance(kid, str | None):
            continue
        try:
            found[kid] = jwt.PyJWK(each, algorithm)
        except jwt.PyJWTError:
            continue  # what it cannot read it cannot verify with
    if not found:
        raise ValueError("no key there fits JWT_ALGORITHMS")
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


def _algorithm(key: Mapping[str, Any], allowed: tuple[str, ...]) -> str | None:
    """The one that the key is for: it says so, or its type does. None: it is not for signing."""
    if key.get("use", "sig") != "sig":
        return None
    named = key.get("alg")
    families = _FAMILIES.get(str(key.get("kty")), ())
    for algorithm in allowed:
        if algorithm.startswith(families) and named in (None, algorithm):
            return algorithm
    return None


def _wrong(what: str) -> Unauthenticated:
    return Unauthenticated(f"The token {what}. Get a new one from its issuer.", is_wrong=True)
