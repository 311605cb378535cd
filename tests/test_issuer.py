"""Tokens: forged ones, old ones and those meant for others let nobody in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import jwt
import orjson
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from itemstore import issuer as issuer_module
from itemstore.access import Issuer
from itemstore.core.caller import Caller, Role
from itemstore.errors import Forbidden, IssuerUnavailable, Unauthenticated
from itemstore.issuer import Tokens
from tests.stores import Logged, Time

SECRET: Final = "5d1f6b0c9a8e7f6d5c4b3a2918f7e6d5"
OTHER: Final = "aa1f6b0c9a8e7f6d5c4b3a2918f7e6d5"
AUDIENCE: Final = "itemstore"
ISSUER: Final = "https://issuer.test/"
SYMMETRIC: Final = Issuer(("HS256",), AUDIENCE, ISSUER, SECRET, None, "role", None)

RSA_KEY: Final = rsa.generate_private_key(65_537, 2_048)
RSA_OTHER: Final = rsa.generate_private_key(65_537, 2_048)
EC_KEY: Final = ec.generate_private_key(ec.SECP256R1())
RSA_PEM: Final = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def claims(**changed: Any) -> dict[str, Any]:
    """Good ones, but for these; None leaves one out."""
    good = {"exp": int(time.time()) + 600, "aud": AUDIENCE, "iss": ISSUER, "sub": "ada"}
    return {k: v for k, v in {**good, "role": "write", **changed}.items() if v is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm)


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: Any, payload: Any, key: bytes = SECRET.encode()) -> str:
    """A token with any header, signed by HMAC with SHA-256, as no library would make it."""
    body = f"{part(header)}.{part(payload)}"
    return f"{body}.{part(hmac.new(key, body.encode(), hashlib.sha256).digest())}"


HS: Final = {"alg": "HS256", "typ": "JWT"}

#: What is wrong → the token. Each lets nobody in.
FORGED: Final[dict[str, Callable[[], str]]] = {
    "another secret": lambda: signed(OTHER),
    "another payload": lambda: ".".join(
        [signed().split(".")[0], part(claims(role="admin")), signed().split(".")[2]]
    ),
    "no signature": lambda: signed().rpartition(".")[0] + ".",
    "alg none": lambda: f"{part({'alg': 'none'})}.{part(claims())}.",
    "alg None": lambda: by_hand({"alg": "None"}, claims()),
    "alg null": lambda: by_hand({"alg": None}, claims()),
    "alg a list": lambda: by_hand({"alg": ["HS256"]}, claims()),
    "no alg": lambda: by_hand({"typ": "JWT"}, claims()),
    "alg HS512": lambda: signed(SECRET * 2, "HS512"),
    "alg RS256": lambda: signed(RSA_KEY, "RS256"),
    "expired": lambda: signed(exp=int(time.time()) - 31),
    "no exp": lambda: signed(exp=None),
    "exp a text": lambda: by_hand(HS, claims(exp="tomorrow")),
    "exp infinite": lambda: by_hand(HS, json.dumps(claims(exp=7)).replace("7,", "1e999,").encode()),
    "exp endless": lambda: by_hand(HS, claims(exp=10**400)),
    "not yet": lambda: signed(nbf=int(time.time()) + 600),
    "from the future": lambda: signed(iat=int(time.time()) + 600),
    "another audience": lambda: signed(aud="another"),
    "no audience": lambda: signed(aud=None),
    "an audience like ours": lambda: signed(aud=AUDIENCE + "2"),
    "another issuer": lambda: signed(iss=ISSUER[:-1]),
    "no issuer": lambda: signed(iss=None),
    "crit": lambda: by_hand({**HS, "crit": ["exp"], "exp": 1}, claims()),
    "crit empty": lambda: by_hand({**HS, "crit": []}, claims()),
    "b64 false": lambda: by_hand({**HS, "crit": ["b64"], "b64": False}, claims()),
    "its own key": lambda: by_hand(
        {**HS, "jwk": {"kty": "oct", "k": part(OTHER.encode())}}, claims(), OTHER.encode()
    ),
    "its own address": lambda: by_hand({**HS, "jku": "https://evil.test"}, claims(), b"x" * 32),
    "an empty secret": lambda: by_hand(HS, claims(), b""),
    "sub a number": lambda: by_hand(HS, claims(sub=1)),
    "sub endless": lambda: signed(sub="a" * 201),
    "sub with a line end": lambda: signed(sub="a\nb"),
    "five parts": lambda: "a.b.c.d.e",
    "dots": lambda: "..",
    "not base64": lambda: "é.é.é",
    "deep": lambda: f"{part(b'[' * 2_900)}.e30.e30",
    "a header that is a list": lambda: by_hand([], claims()),
    "a payload that is a list": lambda: by_hand(HS, [claims()]),
    "long": lambda: signed(padding="x" * 4_000),
    "nothing": lambda: "",
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_lets_nobody_in(name: str) -> None:
    """Whatever is wrong with it, the answer is 401 and not an error of ours."""
    token = FORGED[name]()

    with pytest.raises(Unauthenticated) as error:
        await Tokens(SYMMETRIC, Logged().log).verify(token)

    assert 'error="invalid_token"' in (error.value.challenge or "")
    assert error.value.detail.endswith(".")


async def test_a_good_token_lets_in() -> None:
    """As who its issuer says, until it expires."""
    until = int(time.time()) + 600

    found = await Tokens(SYMMETRIC, Logged().log).verify(signed(aud=["x", AUDIENCE], exp=until))

    assert (Caller("jwt:ada", Role.WRITE), until) == found


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("read", Role.READ),
        ("admin", Role.ADMIN),
        ("openid read write", Role.WRITE),
        (["read", "admin", "x"], Role.ADMIN),
    ],
)
async def test_the_highest_role_counts(given: Any, role: Role) -> None:
    """One name, a list, or OAuth's scope."""
    found = await Tokens(SYMMETRIC, Logged().log).verify(signed(role=given))

    assert role is found.caller.role


@pytest.mark.parametrize("given", [None, "", "root", "ADMIN", [], [["admin"]], {"admin": 1}, 3])
async def test_a_token_without_a_role_may_nothing(given: Any) -> None:
    """It is believed, and of no use."""
    with pytest.raises(Forbidden):
        await Tokens(SYMMETRIC, Logged().log).verify(signed(role=given))


async def test_a_token_confines() -> None:
    """By a claim; a token without it is not one for all ids."""
    tokens = Tokens(replace(SYMMETRIC, prefix_claim="tenant"), Logged().log)

    assert "a/" == (await tokens.verify(signed(tenant="a/"))).caller.prefix
    assert "" == (await tokens.verify(signed(tenant="", role="admin"))).caller.prefix
    for wrong in (None, 1, ["a/"], "\0", "a" * 505):
        with pytest.raises(Forbidden):
            await tokens.verify(signed(tenant=wrong))
    with pytest.raises(Forbidden):
        await tokens.verify(signed(tenant="a/", role="admin"))


# --- key sets


class KeyServer:
    """An issuer's address, and how often it was asked."""

    def __init__(self) -> None:
        self.keys: list[Any] = [rsa_jwk(RSA_KEY, "one")]
        self.asked = 0
        self.answer: Callable[[], web.StreamResponse] | None = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.answer is not None and request.path != "/good":
            return self.answer()
        return web.Response(body=orjson.dumps({"keys": self.keys}))

    def issuer(self, *algorithms: str) -> Issuer:
        names = algorithms or ("RS256",)
        return Issuer(names, AUDIENCE, ISSUER, None, self.url, "role", None)


def rsa_jwk(key: rsa.RSAPrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


@asynccontextmanager
async def key_server() -> AsyncIterator[KeyServer]:
    served = KeyServer()
    app = web.Application()
    app.router.add_get("/jwks", served.handle)
    app.router.add_get("/good", served.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    served.url = f"http://127.0.0.1:{port}/jwks"
    try:
        yield served
    finally:
        await runner.cleanup()


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    async with key_server() as served:
        yield served


def by_issuer(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "one") -> str:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode(claims(), key, algorithm, headers)


async def test_an_issuers_keys_are_fetched_once(keys: KeyServer) -> None:
    """However many tokens they verify."""
    tokens = Tokens(keys.issuer(), Logged().log)

    for _ in range(3):
        assert "jwt:ada" == (await tokens.verify(by_issuer())).caller.name

    assert 1 == keys.asked


async def test_keys_of_the_other_family_do_not_verify(keys: KeyServer) -> None:
    """The public key as a secret, an algorithm that is not allowed, another's key."""
    logged = Logged()
    keys.keys = [rsa_jwk(RSA_KEY, "one"), {"kty": "oct", "k": part(b"x" * 32), "kid": "two"}]
    tokens = Tokens(keys.issuer(), logged.log)
    confused = by_hand({"alg": "HS256", "kid": "one"}, claims(), RSA_PEM)
    for token in (
        *(confused, by_hand({"alg": "HS256", "kid": "two"}, claims(), b"x" * 32)),
        *(by_issuer(RSA_KEY, "RS512"), by_issuer(RSA_KEY, "PS256"), by_issuer(RSA_OTHER)),
        *(by_issuer(EC_KEY, "ES256"), f"{part({'alg': 'none', 'kid': 'one'})}.{part(claims())}."),
    ):
        with pytest.raises(Unauthenticated):
            await tokens.verify(token)


async def test_each_key_is_for_one_algorithm(keys: KeyServer) -> None:
    """That which it names, or the first allowed one that fits its type; not for encryption."""
    elliptic = {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec"}
    keys.keys = [
        *("junk", None, {"kty": "RSA", "kid": "broken"}, {"kid": 3}, elliptic),
        *(rsa_jwk(RSA_KEY, "one"), rsa_jwk(RSA_KEY, "ps", alg="PS256")),
        *(rsa_jwk(RSA_KEY, "enc", use="enc"), rsa_jwk(RSA_KEY, "512", alg="RS512")),
    ]
    tokens = Tokens(keys.issuer("RS256", "PS256", "ES256"), Logged().log)

    for good in (by_issuer(), by_issuer(RSA_KEY, "PS256", "ps"), by_issuer(EC_KEY, "ES256", "ec")):
        await tokens.verify(good)
    for kid, algorithm in (("ps", "RS256"), ("one", "PS256"), ("enc", "RS256"), ("512", "RS256")):
        with pytest.raises(Unauthenticated):
            await tokens.verify(by_issuer(RSA_KEY, algorithm, kid))
    with pytest.raises(Unauthenticated):
        await tokens.verify(by_issuer(kid=None))  # which one is not said


async def test_an_unknown_key_is_asked_for_once_in_a_while(keys: KeyServer) -> None:
    """A flood of invented names is not passed on; a new key is found after the pause."""
    clock = Time()
    tokens = Tokens(keys.issuer(), Logged().log, monotonic=clock)
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await tokens.verify(by_issuer(kid=f"invented-{number}"))
    assert 1 == keys.asked

    keys.keys = [rsa_jwk(RSA_KEY, "new")]
    clock.now_s += issuer_module.COOL_DOWN_S
    await tokens.verify(by_issuer(kid="new"))

    assert 2 == keys.asked
    with pytest.raises(Unauthenticated):
        await tokens.verify(by_issuer())  # the issuer has withdrawn it


FAILURES: Final[dict[str, Callable[[], web.StreamResponse]]] = {
    "a redirect": lambda: web.Response(status=302, headers={"Location": "/good"}),
    "an error": lambda: web.Response(status=500),
    "too long": lambda: web.Response(body=b" " * (issuer_module.FETCH_BYTES_MAX + 1)),
    "no JSON": lambda: web.Response(body=b"<html>"),
    "no set": lambda: web.Response(body=b"[]"),
    "no keys": lambda: web.Response(body=b'{"keys":[]}'),
    "keys no list": lambda: web.Response(body=b'{"keys":{"a":1}}'),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_an_issuer_that_fails_is_503(keys: KeyServer, name: str) -> None:
    """It is not the caller's fault, and is logged; it is asked again after the pause."""
    clock, logged = Time(), Logged()
    keys.answer = FAILURES[name]
    tokens = Tokens(keys.issuer(), logged.log, monotonic=clock)

    for _ in range(3):
        with pytest.raises(IssuerUnavailable):
            await tokens.verify(by_issuer())

    assert (1, ["jwks_failed"]) == (keys.asked, logged.names())
    keys.answer = None
    clock.now_s += issuer_module.COOL_DOWN_S
    await tokens.verify(by_issuer())


async def test_keys_outlive_an_issuer_for_a_day(keys: KeyServer) -> None:
    """Those that were fetched; then nobody is let in."""
    clock = Time()
    tokens = Tokens(keys.issuer(), Logged().log, monotonic=clock)
    await tokens.verify(by_issuer())
    keys.answer = FAILURES["an error"]

    clock.now_s += issuer_module.STALE_S
    await tokens.verify(by_issuer())
    assert 2 == keys.asked
    clock.now_s += 1.0
    with pytest.raises(IssuerUnavailable):
        await tokens.verify(by_issuer())


async def test_a_silent_issuer_holds_up_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody listens at the address, or nothing is said."""
    monkeypatch.setattr(issuer_module, "FETCH_TIMEOUT_S", 0.05)
    logged = Logged()
    issuer = Issuer(("RS256",), AUDIENCE, ISSUER, None, "http://127.0.0.1:9/", "role", None)

    with pytest.raises(IssuerUnavailable):
        await Tokens(issuer, logged.log).verify(by_issuer())

    assert ["jwks_failed"] == logged.names()
