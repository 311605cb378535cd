"""Quotas over HTTP: what a key may have, and what it is told when it has that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import psycopg
import pytest
import pytest_asyncio

from itemstore.core.caller import Role
from itemstore.storage.postgres import Postgres
from tests.conftest import _FOUND
from tests.sql import make_database, query
from tests.stores import until
from tests.web.callers import KEYS, Calling, admin, caller
from tests.web.conftest import Service, count_of, path, service_over

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def dsn(server: Callable[[int], str]) -> str:
    return make_database(server(max(_FOUND)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(dsn: str) -> AsyncIterator[Service]:
    """A served store that asks for keys."""
    async with service_over(Postgres(dsn), access=KEYS) as one:
        yield one


async def put(calling: Calling, item_id: str, data: Any = None) -> int:
    """The answer's status, where 403 is for the quota."""
    answer = await calling("PUT", path(item_id), {"data": data or {}})
    if answer.status == 403:
        answer.is_problem(403, "quota_exceeded")
    return answer.status


async def test_a_key_adds_as_many_items_as_it_may(service: Service, name: str) -> None:
    """The next is refused and changes nothing; to replace and to delete goes on, and makes room."""
    shop = await caller(service, Role.WRITE, name, max_items=2)
    assert [201, 201, 403] == [await put(shop, name + each) for each in "abc"]
    refused = await shop("POST", "/items", {"data": {}})
    detail = refused.is_problem(403, "quota_exceeded")["detail"]
    assert "may have 2 items, has 2 and would have 3. Nothing was changed." in detail
    (await shop("GET", path(f"{name}c"))).is_problem(404, "item_not_found")
    assert 2 == await count_of(shop, name)

    assert 200 == await put(shop, f"{name}a", {"text": "longer"})
    patch = {"Content_Type": "application/merge-patch+json"}
    changed = await shop("PATCH", path(f"{name}a"), {"data": {"n": 1}}, **patch)
    assert 200 == changed.status
    assert 204 == (await shop("DELETE", path(f"{name}b"))).status
    assert [201, 403] == [await put(shop, name + each) for each in "cd"]


async def test_a_key_stores_as_many_bytes_as_it_may(service: Service, name: str) -> None:
    """What grows is refused and stays as it was; what shrinks makes room."""
    shop = await caller(service, Role.WRITE, name, max_bytes=30)
    assert 201 == await put(shop, f"{name}a", {"t": "x" * 10})  # 18 bytes
    assert 403 == await put(shop, f"{name}b", {"t": "x" * 5})  # 13 bytes
    assert 403 == await put(shop, f"{name}a", {"t": "x" * 23})
    assert {"t": "x" * 10} == (await shop("GET", path(f"{name}a"))).json["data"]

    assert 200 == await put(shop, f"{name}a", {"t": "x" * 9})
    assert 201 == await put(shop, f"{name}b", {"t": "x" * 5})
    assert 403 == await put(shop, f"{name}c")


async def test_an_operation_of_a_batch_stands_alone(service: Service, name: str) -> None:
    """One that does not fit is 403 among others that do; a delete between them makes room."""
    shop = await caller(service, Role.WRITE, name, max_items=2)
    operations = [
        *({"op": "put", "id": name + each, "data": {}} for each in "abc"),
        {"op": "delete", "id": f"{name}a"},
        {"op": "create", "id": f"{name}d", "data": {}},
    ]

    results = (await shop("POST", "/items:batch", {"operations": operations})).json["results"]

    assert [201, 201, 403, 204, 201] == [each["status"] for each in results]
    assert "quota_exceeded" == results[2]["problem"]["code"]
    assert 2 == await count_of(shop, name)


async def test_a_line_of_an_import_stands_alone(service: Service, name: str) -> None:
    """Those that fit are imported, and each that does not is told."""
    shop = await caller(service, Role.WRITE, name, max_items=2)
    lines = [{"id": name + each, "data": {}} for each in "abcd"]

    answer = await shop(
        "POST",
        "/import",
        body=b"\n".join(map(orjson.dumps, lines)),
        Content_Type="application/x-ndjson",
    )

    assert 200 == answer.status
    *told, end = map(orjson.loads, answer.body.splitlines())
    assert ["created", "created", "failed", "failed"] == [each["status"] for each in told]
    assert {"quota_exceeded"} == {each["problem"]["code"] for each in told[2:]}
    assert (2, 2) == (end["created"], end["failed"])
    assert 2 == await count_of(shop, name)


async def test_what_is_under_the_prefix_counts_however_it_came(
    service: Service, dsn: str, name: str
) -> None:
    """By another key with the same prefix, by one without, by an admin, and by hand."""
    shop = await caller(service, Role.WRITE, name, max_items=4)
    twin = await caller(service, Role.WRITE, name, max_items=4)
    free = await caller(service, Role.WRITE)
    for number, each in enumerate((shop, twin, free)):
        assert 201 == await put(each, f"{name}{number}")
    await service.store.flush()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO items (id, data) VALUES (%s, '{}')", (f"{name}hand",))
    await until(lambda: service.store.quotas.usages.of(name) is None)

    assert 403 == await put(shop, f"{name}x")
    assert 403 == await put(twin, f"{name}x")
    assert 201 == await put(admin(service.api), f"{name}x")
    assert 201 == await put(free, f"not-{name}")
    assert 5 == await count_of(shop, name)


async def test_a_quota_is_raised(service: Service, dsn: str, name: str) -> None:
    """By a new key with the same prefix, or by hand for the key; lowered, it takes nothing."""
    shop = await caller(service, Role.WRITE, name, max_items=1)
    assert [201, 403] == [await put(shop, name + each) for each in "ab"]
    wanted = {"name": "shop", "role": "write", "prefix": name, "max_items": 2, "max_bytes": None}
    made = (await admin(service.api)("POST", "/keys", wanted)).json
    assert (2, None) == (made["max_items"], made["max_bytes"])
    larger = Calling(service.api, made["key"])
    assert [201, 403] == [await put(larger, name + each) for each in "bc"]

    await set_quota(service, dsn, made, 3)
    assert [201, 403] == [await put(larger, name + each) for each in "cd"]
    await set_quota(service, dsn, made, 1)
    assert [200, 403] == [await put(larger, name + each) for each in "cd"]
    assert 3 == await count_of(larger, name)


async def set_quota(service: Service, dsn: str, made: dict[str, Any], max_items: int) -> None:
    """In psql, as an admin of the database does; returns when the server knows."""
    change = "UPDATE api_keys SET max_items = %s WHERE id = %s RETURNING id"
    assert query(dsn, change, max_items, made["id"])
    keyring = service.keyring
    assert keyring is not None

    def is_known() -> bool:
        key = keyring.find(made["key"])
        return key is not None and key.max_items == max_items

    await until(is_known)


async def test_without_a_quota_nothing_is_counted(
    service: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only for the first write of a key with one, and then never again, PostgreSQL is asked."""
    counted = []
    usage = service.store.quotas._storage.usage

    async def counting(prefix: str, changed: Any) -> Any:
        counted.append(prefix)
        return await usage(prefix, changed)

    monkeypatch.setattr(service.store.quotas._storage, "usage", counting)
    free = await caller(service, Role.WRITE, name)
    shop = await caller(service, Role.WRITE, name, max_items=9)

    assert [201, 201] == [await put(free, name + each) for each in "ab"]
    assert [] == counted
    assert name not in service.store.quotas.usages.tracked
    assert [201, 201] == [await put(shop, name + each) for each in "cd"]
    assert [name] == counted
