"""Who may call: by which credentials, with which role, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from itemstore import keyring as keyring_module
from itemstore.core.apikey import compose
from itemstore.core.caller import Role
from itemstore.core.rate import Rate
from itemstore.errors import Unauthenticated
from itemstore.issuer import Believed, Tokens
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.web import access as access_module
from itemstore.web.access import Guard
from itemstore.web.app import ROUTES, make_app
from itemstore.web.limits import Limits
from tests.conftest import _FOUND
from tests.sql import make_database, query
from tests.stores import Gated, Logged, soon, until
from tests.test_issuer import OTHER, SYMMETRIC, signed
from tests.web.callers import API_KEY, KEYS, Calling, admin, caller
from tests.web.conftest import Answer, Api, Service, head, request, service_over, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHALLENGE: Final = 'Bearer realm="itemstore"'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(server: Callable[[int], str]) -> AsyncIterator[Service]:
    """A served store that asks for keys."""
    storage = Postgres(make_database(server(max(_FOUND))))
    async with service_over(storage, access=KEYS) as one:
        yield one


@pytest.fixture
def api(service: Service) -> Api:
    return service.api


# --- credentials

_, STRANGE = compose(b"stranger", bytes(range(32)))

WRONG: Final = {
    "another key": STRANGE,
    "a typo": STRANGE[:-1] + ("0" if STRANGE[-1] != "0" else "1"),
    "cut": STRANGE[:-5],
    "the bootstrap key and more": API_KEY + "0",
    "the bootstrap key, cut": API_KEY[:-1],
    "in upper case": API_KEY.upper(),
    "unsigned": "eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.",
    "long": "x" * 7_000,
    "not ASCII": "é" * 32,
}


@pytest.mark.parametrize("token", WRONG.values(), ids=WRONG)
async def test_a_wrong_key_is_401(api: Api, token: str) -> None:
    """It is not told which keys there are, only that this is none."""
    answer = await Calling(api, token)("GET", "/items/a")

    answer.is_problem(401, "unauthenticated")
    assert f'{CHALLENGE}, error="invalid_token"' == answer.headers["WWW-Authenticate"]
    assert token.encode() not in answer.body


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", f"Basic {API_KEY}", API_KEY, f"Bearer{API_KEY}"]
)
async def test_what_is_no_bearer_is_401(service: Service, header: str) -> None:
    """RFC 6750: without credentials the challenge has no error."""
    connection = await service.raw()

    answer = await connection.ask(request("GET", "/items/a", b"", f"Authorization: {header}"))

    answer.is_problem(401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"].startswith(CHALLENGE)


async def test_two_headers_are_401(service: Service) -> None:
    """Which of them a proxy looked at cannot be known."""
    line = f"Authorization: Bearer {API_KEY}"
    connection = await service.raw()

    answer = await connection.ask(request("GET", "/items/a", b"", line, line))

    answer.is_problem(401, "unauthenticated")


@pytest.mark.parametrize("tried", ["/items/a", "/readyz", "/items:batch"])
async def test_wrong_keys_one_after_another_are_429(dsn: str, tried: str) -> None:
    """Wherever they are tried: then only right ones are served, and probes, which learn nothing."""
    limits = Limits(failures=Rate.parse("2/h"))
    async with service_over(Postgres(dsn), access=KEYS, limited=limits) as service:
        stranger = Calling(service.api, STRANGE)
        for _ in range(2):
            answer = await stranger("POST" if tried == "/items:batch" else "GET", tried)
            assert answer.status == (200 if tried == "/readyz" else 401)

        (await stranger("GET", "/items/a")).is_problem(429, "rate_limited")
        assert (await stranger("GET", "/readyz")).json == {"ready": True}
        assert (await Calling(service.api, API_KEY)("GET", "/items")).status == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_bootstrap_key_lets_an_admin_in(api: Api, scheme: str) -> None:
    """The scheme is compared without case, as RFC 9110 has it."""
    answer = await api("GET", "/keys", Authorization=f"{scheme} {API_KEY}")

    assert 200 == answer.status


async def test_a_body_of_a_stranger_is_not_invited(service: Service) -> None:
    """Expect: 100-continue is answered 401, and the connection ends."""
    connection = await service.raw()

    lines = ("Content-Length: 1000000", "Expect: 100-continue")
    answer = await connection.ask(head("PUT", "/items/a", *lines))

    answer.is_problem(401, "unauthenticated")
    await connection.check_ended()


# --- routes

TARGETS: Final = [(each, each.path.replace("{id:(?s:.+)}", "no-such-id")) for each in ROUTES]


async def called(api: Callable[..., Any], method: str, target: str) -> Answer:
    """With a parameter that no route knows: who is let in gets 400, and nothing is changed."""
    answer: Answer = await api(method, f"{target}?unknown=1")
    return answer


@pytest.mark.parametrize(
    ("route", "target"), TARGETS, ids=[f"{each.method} {target}" for each, target in TARGETS]
)
async def test_every_route_is_for_its_role(service: Service, route: Any, target: str) -> None:
    """Strangers, and each role with and without a prefix, on each route: as ROUTES has it."""
    api = service.api
    stranger = await called(api, route.method, target)
    expected = 400 if route.role is None else 401
    assert expected == stranger.status
    for role in (Role.READ, Role.WRITE, Role.ADMIN):
        for prefix in ("",) if role is Role.ADMIN else ("", "no-such"):
            calling = await caller(service, role, prefix)
            allowed = route.role is None or (role >= route.role and not (prefix and route.is_whole))
            answer = await called(calling, route.method, target)
            if allowed:
                answer.is_problem(400, "invalid_parameter")
            else:
                answer.is_problem(403, "forbidden")
                challenge = f'{CHALLENGE}, error="insufficient_scope"'
                assert challenge == answer.headers["WWW-Authenticate"]


async def test_what_is_open_is_what_railway_asks(api: Api) -> None:
    """Whether it is alive and ready is told to all; how it is, to those who may read it."""
    assert {"alive": True} == (await api("GET", "/livez")).json
    assert {"ready": True} == (await api("GET", "/readyz")).json
    assert {"ready": True} == (await Calling(api, STRANGE)("GET", "/readyz")).json
    assert {"ready", "lease", "dirty"} <= set((await admin(api)("GET", "/readyz")).json)


async def test_a_confined_caller_learns_nothing_of_the_whole(service: Service) -> None:
    """Neither from /readyz, nor from the numbers."""
    confined = await caller(service, Role.WRITE, "a/")

    assert {"ready": True} == (await confined("GET", "/readyz")).json
    for path in ("/stats", "/metrics"):
        (await confined("GET", path)).is_problem(403, "forbidden")


async def test_a_reader_scrapes(service: Service) -> None:
    """Prometheus needs no key that could change anything."""
    reader = await caller(service, Role.READ)

    assert 200 == (await reader("GET", "/metrics")).status


async def test_a_route_without_a_role_lets_nobody_in(dsn: str) -> None:
    """What is added beside ROUTES is closed until it says for whom it is."""

    async def hidden(_: web.Request) -> web.Response:
        return web.Response(text="told")

    app = make_app(ItemStore(Postgres(dsn)))
    app.router.add_get("/hidden", hidden)
    async with serving(app) as port, aiohttp.ClientSession() as session:
        answer = await Api(session, f"http://127.0.0.1:{port}")("GET", "/hidden", check=False)

    answer.is_problem(403, "forbidden")


async def test_a_reader_writes_nothing_in_a_batch(service: Service) -> None:
    """The route is for readers; each write in it is refused."""
    reader = await caller(service, Role.READ)
    operations = [
        {"op": "create", "data": {}},
        {"op": "put", "id": "batch-a", "data": {}},
        {"op": "patch", "id": "batch-a", "data": {}},
        {"op": "delete", "id": "batch-a"},
        {"op": "get", "id": "batch-a"},
    ]

    answer = await reader("POST", "/items:batch", {"operations": operations})

    results = answer.json["results"]
    assert [403, 403, 403, 403, 404] == [each["status"] for each in results]


# --- keys over HTTP


async def test_a_key_is_made_shown_once_and_revoked(api: Api) -> None:
    """What is listed has no secret in it; a revoked key lets in nobody from then on."""
    wanted = {"name": "shop", "role": "write", "prefix": "shop/", "expires_at": None}
    made = await admin(api)("POST", "/keys", wanted)
    assert (201, "no-store") == (made.status, made.headers["Cache-Control"])
    key_id, token = made.json["id"], made.json["key"]
    assert f"/keys/{key_id}" == made.headers["Location"]
    listed = await admin(api)("GET", "/keys")
    [shown] = [each for each in listed.json["keys"] if each["id"] == key_id]
    assert {**shown, "key": token} == made.json
    assert token[17:] not in listed.body.decode()
    shop = Calling(api, token)
    assert 201 == (await shop("PUT", "/items/shop%2F1", {"data": {}})).status

    assert 204 == (await admin(api)("DELETE", f"/keys/{key_id}")).status

    (await shop("GET", "/items/shop%2F1")).is_problem(401, "unauthenticated")
    (await admin(api)("DELETE", f"/keys/{key_id}")).is_problem(404, "key_not_found")


BAD_KEYS: Final[tuple[Any, ...]] = (
    *([], "x", {}, {"name": "a"}, {"name": "a", "role": "root"}, {"name": "", "role": "read"}),
    *({"name": "a" * 101, "role": "read"}, {"name": "a\n", "role": "read"}, {"role": "read"}),
    *({"name": "a", "role": ["read"]}, {"name": "a", "role": "read", "key": "mine"}),
    *({"name": "a", "role": "admin", "prefix": "a"}, {"name": 1, "role": "read"}),
    *({"name": "a", "role": "read", "prefix": "\x01"}, {"name": "a", "role": "read", "prefix": 1}),
    {"name": "a", "role": "read", "prefix": "a" * 505},
    {"name": "a", "role": "read", "expires_at": "2020-01-01T00:00:00Z"},
    *(
        {"name": "a", "role": "read", "expires_at": "soon"},
        {"name": "a", "role": "read", "expires_at": 1},
    ),
    *(
        {"name": "a", "role": "write", member: quota}
        for member in ("max_items", "max_bytes")
        for quota in (0, -1, 2**53, 2**63 - 1, 1.5, True, "2", [2])
    ),
)


@pytest.mark.parametrize("wanted", BAD_KEYS, ids=str)
async def test_a_key_that_is_not_described_is_422(api: Api, wanted: Any) -> None:
    """And none is made."""
    before = (await admin(api)("GET", "/keys")).json

    problem = (await admin(api)("POST", "/keys", wanted)).is_problem(422, "invalid_item")

    for member in ("max_items", "max_bytes"):
        if member in wanted:
            assert f"/{member}" == problem["pointer"]
    assert before == (await admin(api)("GET", "/keys")).json


async def test_a_whole_number_may_be_written_as_a_float(api: Api) -> None:
    """1.0 is an integer to JSON Schema (6.1.1), and so to the contract."""
    wanted = {"name": "a", "role": "read", "max_items": 3.0, "max_bytes": 3160.0}

    made = (await admin(api)("POST", "/keys", wanted)).json

    assert (3, 3160) == (made["max_items"], made["max_bytes"])


async def test_there_are_so_many_keys_and_no_more(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all in memory, so there is a bound."""
    from itemstore.storage import key_table

    monkeypatch.setattr(key_table, "KEYS_MAX", 0)

    answer = await admin(service.api)("POST", "/keys", {"name": "one more", "role": "read"})

    answer.is_problem(409, "too_many_keys")


async def test_secrets_reach_no_log(service: Service) -> None:
    """Keys are logged by their ids."""
    made = await admin(service.api)("POST", "/keys", {"name": "a", "role": "read"})
    await admin(service.api)("DELETE", f"/keys/{made.json['id']}")

    await asyncio.sleep(0.1)
    logged = service._log.getvalue()

    assert '"message":"key_revoked"' in logged
    assert made.json["id"] in logged
    for secret in (made.json["key"], made.json["key"][17:], API_KEY):
        assert secret not in logged


# --- time, and several instances


class Clock:
    """Seconds since 1970 that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


async def test_a_key_ends_when_it_expires(service: Service) -> None:
    """Also where it was seen before: not a microsecond later."""
    assert service.keyring is not None
    clock = Clock()
    service.keyring._now_s = clock
    guard = Guard(KEYS, service.keyring, now_s=clock)
    expires_us = int(clock.now_s + 60) * 1_000_000
    key, token = await service.keyring.add("a", Role.READ, "", expires_us)
    header = f"Bearer {token}"
    try:
        clock.now_s = expires_us / 1e6 - 0.001
        assert key.caller == await guard.caller(header) == guard.seen(header)

        clock.now_s = expires_us / 1e6
        assert guard.seen(header) is None
        with pytest.raises(Unauthenticated):
            await guard.caller(header)
    finally:
        service.keyring._now_s = time.time


async def test_what_is_remembered_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of any number take a bounded memory, wrong ones none."""
    monkeypatch.setattr(access_module, "SEEN_MAX", 3)
    guard = Guard(KEYS, service.keyring)
    tokens = [(await caller(service, Role.READ)).token for _ in range(5)]

    for token in tokens:
        await guard.caller(f"Bearer {token}")
        assert len(guard._seen) <= 3
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            await guard.caller(f"Bearer {STRANGE}")

    assert not any(STRANGE in str(header) for header in guard._seen)


@pytest.mark.parametrize("hand", ["over HTTP", "in psql"])
async def test_a_key_is_revoked_on_every_instance(
    dsn: str, monkeypatch: pytest.MonkeyPatch, hand: str
) -> None:
    """Whichever hand does it, and though the header was seen; the lane included."""
    monkeypatch.setattr(keyring_module, "POLL_INTERVAL_S", 0.01)
    async with (
        service_over(Postgres(dsn), access=KEYS) as first,
        service_over(Postgres(dsn), access=KEYS) as second,
    ):
        made = await admin(first.api)("POST", "/keys", {"name": "a", "role": "read"})
        here, there = (Calling(each.api, made.json["key"]) for each in (first, second))
        for calling in (here, there, here, there):
            assert 404 == (await calling("GET", "/items/none")).status

        started = time.monotonic()
        if hand == "in psql":
            query(dsn, "DELETE FROM api_keys")
        else:
            await admin(first.api)("DELETE", f"/keys/{made.json['id']}")
            assert 401 == (await here("GET", "/items/none")).status  # here at once
        while 404 == (await there("GET", "/items/none")).status:
            assert time.monotonic() - started < 60
        while 404 == (await here("GET", "/items/none")).status:
            assert time.monotonic() - started < 60

    assert keyring_module.POLL_INTERVAL_S < keyring_module.REVOKED_WITHIN_S
    assert 0.5 * 2 < keyring_module.REVOKED_WITHIN_S


async def test_known_keys_go_on_while_postgresql_is_away(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can revoke then; keys are neither made nor listed."""
    monkeypatch.setattr(keyring_module, "POLL_INTERVAL_S", 0.01)
    storage = Gated(dsn)
    async with service_over(storage, access=KEYS) as service:
        calling = await caller(service, Role.WRITE)
        assert 201 == (await calling("PUT", "/items/a", {"data": {}})).status

        async def away(*_: Any) -> Any:
            from itemstore.storage import StorageAway

            raise StorageAway("cut off")

        monkeypatch.setattr(storage.keys, "_run", away)
        assert service.keyring is not None
        await until(lambda: '"message":"keys_unread"' in service._log.getvalue())

        assert 200 == (await calling("GET", "/items/a")).status
        answer = await admin(service.api)("POST", "/keys", {"name": "a", "role": "read"})
        answer.is_problem(503, "database_unavailable")
        (await admin(service.api)("GET", "/keys")).is_problem(503, "database_unavailable")


async def test_before_the_keys_are_read_nobody_is_told_that_his_is_wrong(dsn: str) -> None:
    """A server that starts says so; the bootstrap key is known from the first moment."""
    async with service_over(Postgres(dsn), access=KEYS, start=False) as service:
        (await Calling(service.api, STRANGE)("GET", "/items/a")).is_problem(503, "starting")
        (await admin(service.api)("GET", "/items/a")).is_problem(503, "starting")
        await soon(service.store.start(30.0))
        (await Calling(service.api, STRANGE)("GET", "/items/a")).is_problem(401, "unauthenticated")


# --- tokens


async def test_tokens_and_keys_let_in_side_by_side(dsn: str) -> None:
    """AUTH=keys,jwt: each by what it is, confined alike, seen by the lane alike."""
    both = replace(KEYS, issuer=replace(SYMMETRIC, prefix_claim="tenant"))
    tokens = Tokens(both.issuer, Logged().log) if both.issuer else None
    async with service_over(Postgres(dsn), access=both, tokens=tokens) as service:
        ada = Calling(service.api, signed(tenant="ada/", role="write"))
        bob = Calling(service.api, signed(tenant="bob/", role="read", sub="bob"))
        for _ in range(2):  # unseen, and seen
            assert 200 <= (await ada("PUT", "/items/ada%2F1", {"data": {}})).status <= 201
            (await ada("PUT", "/items/bob%2F1", {"data": {}})).is_problem(403, "forbidden")
            (await bob("GET", "/items/ada%2F1")).is_problem(404, "item_not_found")
            (await bob("PUT", "/items/bob%2F1", {"data": {}})).is_problem(403, "forbidden")
            (await Calling(service.api, signed(OTHER))("GET", "/items/x")).is_problem(
                401, "unauthenticated"
            )
        assert 200 == (await admin(service.api)("GET", "/items/ada%2F1")).status
        confined = await caller(service, Role.READ, "ada/")
        assert 200 == (await confined("GET", "/items/ada%2F1")).status
        no_role = Calling(service.api, signed(tenant="", role="none"))
        (await no_role("GET", "/items/x")).is_problem(403, "forbidden")


async def test_a_token_that_was_seen_is_verified_again() -> None:
    """At its exp, and after some minutes, for its issuer may have withdrawn the key."""
    clock, asked = Clock(), []

    class Counted(Tokens):
        async def verify(self, token: str) -> Believed:
            asked.append(token)
            return await super().verify(token)

    access = replace(KEYS, issuer=SYMMETRIC)
    guard = Guard(access, None, Counted(SYMMETRIC, Logged().log), now_s=clock)
    short, long = (int(clock.now_s) + s for s in (60, 600))
    first, second = (f"Bearer {signed(exp=exp)}" for exp in (short, long))
    for header in (first, second, first, second):
        await guard.caller(header)
    assert 2 == len(asked)

    clock.now_s = float(short)
    assert guard.seen(first) is None
    assert guard.seen(second) is not None
    clock.now_s += access_module.RECHECKED_S
    assert guard.seen(second) is None
    await guard.caller(second)
    assert 3 == len(asked)


async def test_an_issuer_that_is_away_is_503(dsn: str) -> None:
    """Keys go on; tokens cannot be judged."""
    issuer = replace(SYMMETRIC, secret=None, jwks_url="http://127.0.0.1:9/", algorithms=("RS256",))
    tokens = Tokens(issuer, Logged().log)
    both = replace(KEYS, issuer=issuer)
    async with service_over(Postgres(dsn), access=both, tokens=tokens) as service:
        (await Calling(service.api, signed())("GET", "/items/x")).is_problem(
            503, "issuer_unavailable"
        )
        assert 404 == (await admin(service.api)("GET", "/items/x")).status
        assert {"ready": True} == (await Calling(service.api, signed())("GET", "/readyz")).json
