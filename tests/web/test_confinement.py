"""A confined caller cannot tell what others keep: what is theirs is answered as what is not there.

Each question is asked through the lane and without it, of a store in which the other's item exists
and of one in which it does not. All answers are the same bytes but for the date.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import quote

import orjson
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore import lister
from itemstore.core.caller import Role
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.web.lane import Lane
from tests.conftest import _FOUND
from tests.sql import make_database
from tests.web.callers import KEYS, Calling, admin, caller
from tests.web.conftest import Answer, Service, request, service_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX: Final = "a%_/"
#: Ids that look like the caller's own, to SQL's LIKE, to Unicode, to a path, to the eye.
FOREIGN: Final = (
    *("b", "a", "a%", "a%_", "a%_\u2215x", "aXY/x", "A%_/x", "a%25_/x", "a%_%2Fx", " a%_/x"),
    *("\u0430%_/x", "a%_\uff0fx", "a\u0301%_/x", "../a%_/x", "%61%_/x", "a%_\\x"),
)
OWN: Final = (f"{PREFIX}x", f"{PREFIX}é", f"{PREFIX}", f"{PREFIX}/../b")

_DATE: Final = re.compile(rb"Date: [^\r]+")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(server: Callable[[int], str]) -> AsyncIterator[Service]:
    """A served store in which another's items exist, and the caller's own."""
    storage = Postgres(make_database(server(max(_FOUND))))
    async with service_over(storage, access=KEYS) as one:
        for item_id in (*FOREIGN, *OWN):
            made = await admin(one.api)("PUT", path(item_id), {"data": {"n": 1}})
            assert 201 == made.status
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def empty(server: Callable[[int], str]) -> AsyncIterator[Service]:
    """The same without another's items."""
    storage = Postgres(make_database(server(max(_FOUND))))
    async with service_over(storage, access=KEYS) as one:
        yield one


def path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


async def asked(
    service: Service, calling: Calling, method: str, target: str, body: bytes, *lines: str
) -> bytes:
    """The whole answer but for the date."""
    connection = await service.raw()
    given = [f"Authorization: Bearer {calling.token}", "X-Request-Id: same", *lines]
    if body:
        given.append("Content-Type: application/json")
    answer = await connection.ask(request(method, target, body, *given), method)
    shown = b"".join(b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in answer.headers.items())
    return _DATE.sub(b"-", b"%d\r\n%b\r\n%b" % (answer.status, shown, answer.body))


CONDITIONS: Final = ("X: 1", 'If-None-Match: "1"', "If-None-Match: *", "If-Match: *", "If-Match: x")
#: Method, body, and the status if the id is not the caller's.
CALLS: Final = (
    *(("GET", b"", 404), ("HEAD", b"", 404), ("DELETE", b"", 404)),
    *(("PATCH", b'{"data":{"n":2}}', 404), ("PUT", b'{"data":{"n":2}}', 403)),
)


@pytest.mark.parametrize(("method", "body", "status"), CALLS, ids=lambda each: str(each)[:8])
async def test_anothers_id_is_as_one_that_is_not_there(
    service: Service,
    empty: Service,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    body: bytes,
    status: int,
) -> None:
    """In a store that has it as in one that has not, under any condition, lane or not."""
    confined = await caller(service, Role.WRITE, PREFIX)
    there = await caller(empty, Role.WRITE, PREFIX)
    for item_id in FOREIGN:
        for condition in CONDITIONS:
            answers = []
            for fast in (True, False):
                with monkeypatch.context() as patch:
                    if not fast:
                        patch.setattr(Lane, "answer", lambda *_: None)
                    for where, who in ((service, confined), (empty, there)):
                        target = path(item_id)
                        told = await asked(where, who, method, target, body, condition)
                        answers.append(told.replace(who.token[8:16].encode(), b"--------"))
            assert len(set(answers)) == 1, (item_id, condition, answers)
            assert answers[0].startswith((b"%d" % status, b"400")), answers[0]
    left = await admin(service.api)("GET", "/items?count=exact&limit=1")
    assert len(FOREIGN) + len(OWN) == left.json["count"], "something was changed"


async def test_anothers_missing_item_is_as_ones_own(service: Service) -> None:
    """But for the id in it, 404 is 404."""
    confined = await caller(service, Role.WRITE, PREFIX)

    own = await asked(service, confined, "GET", path(f"{PREFIX}none"), b"")
    other = await asked(service, confined, "GET", path("b%_/none"), b"")

    assert own == other.replace(b"b%_/none", f"{PREFIX}none".encode())


async def test_ones_own_items_are_as_ever(service: Service) -> None:
    """Read, changed and made behind the prefix; a generated id begins with it."""
    confined = await caller(service, Role.WRITE, PREFIX)
    for item_id in OWN:
        assert 200 == (await confined("GET", path(item_id))).status
        assert 200 == (await confined("PUT", path(item_id), {"data": {"n": 2}})).status
    made = await confined("POST", "/items", {"data": {}})
    assert re.fullmatch(re.escape(PREFIX) + "[0-9A-Za-z]{8}", made.json["id"])
    again = await confined("POST", "/items", {"id": f"{PREFIX}new", "data": {}})
    assert 201 == again.status
    (await confined("POST", "/items", {"id": "b", "data": {}})).is_problem(403, "forbidden")
    (await confined("POST", "/items", {"id": "none", "data": {}})).is_problem(403, "forbidden")
    for item_id in (made.json["id"], f"{PREFIX}new"):
        assert 204 == (await confined("DELETE", path(item_id))).status


async def test_a_batch_is_confined(service: Service) -> None:
    """Each operation as if it were a request of its own."""
    confined = await caller(service, Role.WRITE, PREFIX)
    operations = [
        {"op": "get", "id": "b"},
        {"op": "get", "id": "none"},
        {"op": "patch", "id": "b", "data": {}},
        {"op": "delete", "id": "b"},
        {"op": "put", "id": "b", "data": {}},
        {"op": "put", "id": "none", "data": {}},
        {"op": "create", "id": "b", "data": {}},
        {"op": "get", "id": OWN[0]},
        {"op": "create", "data": {}},
    ]

    answer = await confined("POST", "/items:batch", {"operations": operations})

    results = answer.json["results"]
    assert [404, 404, 404, 404, 403, 403, 403, 200, 201] == [each["status"] for each in results]
    made = results[-1]["item"]["id"]
    assert made.startswith(PREFIX)
    await confined("DELETE", path(made))


async def test_an_import_is_confined(service: Service) -> None:
    """A line for another's id fails, whether or not there is such an item."""
    confined = await caller(service, Role.WRITE, PREFIX)
    lines = [{"id": "b", "data": {}}, {"id": "none", "data": {}}, {"data": {}}]
    body = b"".join(orjson.dumps(each) + b"\n" for each in lines)

    answer = await confined("POST", "/import", body=body, Content_Type="application/x-ndjson")

    told = [orjson.loads(line) for line in answer.body.splitlines()]
    assert ["failed", "failed", "created"] == [each["status"] for each in told[:3]]
    first, second = ({**each["problem"]} for each in told[:2])
    assert (403, first) == (first["status"], second)
    assert told[2]["id"].startswith(PREFIX)
    await confined("DELETE", path(told[2]["id"]))


# --- lists and exports

PREFIXES: Final = ("", "a", PREFIX, f"{PREFIX}/", "b", "a%_x", "\u0430", f"{PREFIX}none", "A%_/")
LISTS: Final = (
    "order=id",
    "order=-created&limit=2",
    "count=exact",
    "count=estimated&order=id&limit=1",
)
FILTERS: Final = ("", "&id=gte.b", "&data.n=gte.1", "&order=data.n", "&fields=id")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(server: Callable[[int], str]) -> AsyncIterator[Service]:
    """A store that holds the caller's own items only."""
    storage = Postgres(make_database(server(max(_FOUND))))
    async with service_over(storage, access=KEYS) as one:
        for item_id in OWN:
            await admin(one.api)("PUT", path(item_id), {"data": {"n": 1}})
        yield one


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("asking", LISTS)
async def test_a_list_is_that_of_a_store_with_ones_own_items_only(
    service: Service, alone: Service, prefix: str, asking: str
) -> None:
    """Items, counts, hints and pages; an order given twice is wrong in both."""
    confined = await caller(service, Role.READ, PREFIX)
    for further in FILTERS:
        target = f"/items?{asking}&prefix={quote(prefix, safe='')}{further}"
        expected = await listed(admin(alone.api), target.replace("count=estimated", "count=exact"))
        assert expected == await listed(confined, target), target


async def listed(calling: Calling, target: str) -> list[Any]:
    """What the pages tell, up to the last: status, ids, count, headers but the cursors."""
    told: list[Any] = []
    following = target
    while True:
        answer: Answer = await calling("GET", following)
        if answer.status != 200:
            return [answer.status, answer.json["code"], answer.json["detail"]]
        ids = [each["id"] for each in answer.json["items"]]
        told.append((ids, answer.json.get("count"), sorted(set(answer.headers))))
        if answer.json["next"] is None:
            return told
        following = f"{target}&cursor={answer.json['next']}"


async def test_a_confined_list_tells_of_no_index(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one is missing depends on how many items others have."""
    monkeypatch.setattr(lister, "SCAN_MAX", -1)
    confined = await caller(service, Role.READ, PREFIX)

    for calling, is_told in ((admin(service.api), True), (confined, False)):
        answer = await calling("GET", "/items?data.hinted=eq.1")
        assert is_told == ("Itemstore-Hint" in answer.headers)


async def test_a_cursor_of_another_leads_nowhere(service: Service) -> None:
    """A cursor says where to go on, not what may be seen."""
    confined = await caller(service, Role.READ, PREFIX)
    page = await admin(service.api)("GET", f"/items?order=id&limit=1&prefix={quote(PREFIX)}")

    target = f"/items?order=id&limit=100&prefix={quote(PREFIX)}&cursor={page.json['next']}"
    answer = await confined("GET", target)
    assert {each["id"] for each in answer.json["items"]} <= set(OWN)
    whole = await admin(service.api)("GET", "/items?order=id&limit=1")
    refused = await confined("GET", f"/items?order=id&limit=1&cursor={whole.json['next']}")
    refused.is_problem(400, "invalid_cursor")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_an_export_is_confined(service: Service, prefix: str) -> None:
    """It holds one's own items that begin so."""
    confined = await caller(service, Role.READ, PREFIX)

    answer = await confined("GET", f"/export?prefix={quote(prefix, safe='')}")

    exported = [orjson.loads(line)["id"] for line in answer.body.splitlines()]
    assert sorted(each for each in OWN if each.startswith(prefix)) == sorted(exported)
    for wrong in ("after=%00", "data.n=bad.1", "unknown=1"):
        refused = await confined("GET", f"/export?prefix={quote(prefix, safe='')}&{wrong}")
        assert 400 == refused.status


# --- generated ids


@pytest.mark.parametrize("fast", [True, False])
async def test_a_generated_id_that_a_client_chose_is_passed_over(
    service: Service, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """Of a confined caller too: never 409, and never another's item replaced."""
    confined = await caller(service, Role.WRITE, PREFIX)
    store: ItemStore = service.store
    first = store._ids.take()
    following = store._ids.take()
    assert first is not None
    taken = await confined("PUT", path(PREFIX + first), {"data": {"mine": True}})
    assert 201 == taken.status
    if not fast:
        monkeypatch.setattr(Lane, "answer", lambda *_: None)
    given = iter([first, following])
    monkeypatch.setattr(store._ids, "take", lambda: next(given))

    made = await confined("POST", "/items", {"data": {}})

    assert (201, f"{PREFIX}{following}") == (made.status, made.json["id"])
    assert {"mine": True} == (await confined("GET", path(PREFIX + first))).json["data"]
    for item_id in (PREFIX + first, made.json["id"]):
        await confined("DELETE", path(item_id))


ids = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)


@given(item_id=ids)
@settings(max_examples=40)
async def test_no_id_leads_out(service: Service, item_id: str) -> None:
    """Whatever it is made of: a path leads to one's own item, or to none."""
    if item_id in {".", ".."}:
        return
    confined = await caller(service, Role.READ, PREFIX)
    answer = await confined("GET", path(item_id))

    assert item_id.startswith(PREFIX) or (404, "item_not_found") == (
        answer.status,
        answer.json["code"],
    )
