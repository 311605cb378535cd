"""While PostgreSQL is away: what can be served is, the rest is 503, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import pytest

from itemstore import persister
from itemstore.options import Options
from itemstore.storage import postgres
from itemstore.storage.postgres import Postgres
from tests.stores import Road
from tests.web.conftest import ANSWER_LIMIT_S, Service, make, service_over

PATIENCE_S: Final = 1.0  # what the server waits for PostgreSQL here


@asynccontextmanager
async def service_on_a_road(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Service, Road]]:
    """A service whose way to PostgreSQL can be cut, and which does not wait long for it."""
    monkeypatch.setattr(postgres, "POOL_WAIT_S", PATIENCE_S)
    monkeypatch.setattr(persister, "AWAY_MAX_S", 0.0)
    road = Road(dsn)
    await road.open()
    try:
        storage = Postgres(road.dsn)
        options = Options(commit_timeout_s=PATIENCE_S, load_timeout_s=PATIENCE_S)
        async with service_over(storage, options) as service:
            yield service, road
    finally:
        await road.cut()


async def test_while_postgresql_is_away_what_can_be_served_is(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PostgreSQL cached items and writes at memory go on, and the rest is 503."""
    async with service_on_a_road(dsn, monkeypatch) as (service, road):
        api = service.api
        await make(api, "kept", {"n": 1})
        assert (await api("POST", "/items", {"data": {}})).status == 201  # leases ids
        await service.until(lambda: service.store.cache.hydrated)
        await road.cut()

        # Accepted before anybody knows: in doubt for the caller, and not lost.
        doubtful = await api("PUT", "/items/doubtful", {"data": {}})
        assert "Read the item" in doubtful.is_problem(503, "commit_unconfirmed")["detail"]
        assert (await api("GET", "/items/doubtful")).status == 200

        refused = await api("PUT", "/items/kept", {"data": {"n": 2}})
        assert "nothing was changed" in refused.is_problem(503, "database_unavailable")["detail"]
        listed = await api("GET", "/items")
        listed.is_problem(503, "database_unavailable")
        for answer in (doubtful, refused, listed):
            assert answer.headers["Retry-After"] == "2"

        assert (await api("GET", "/items/kept")).json["data"] == {"n": 1}
        assert (await api("GET", "/items/none")).status == 404
        for method, target, body, status in (
            ("PUT", "/items/new", {"data": {}}, 201),
            ("PUT", "/items/kept", {"data": {"n": 3}}, 200),
            ("PATCH", "/items/kept", {"data": {"m": 4}}, 200),
            ("POST", "/items", {"data": {}}, 201),
            ("PUT", "/items/gone", {"data": {}}, 201),
            ("DELETE", "/items/gone", None, 204),
        ):
            assert (await api(method, target, body, durability="memory")).status == status
        assert (await api("GET", "/items/gone")).status == 404
        assert (await api("GET", "/livez")).status == 200
        state = await api("GET", "/readyz")
        assert (state.status, state.json["ready"], state.json["database"]) == (200, True, "away")
        assert state.json["dirty"] == 5
        assert (await api("GET", "/stats")).json["itemstore_database_failing_seconds"] > 0

        await road.open()
        await service.until(lambda: len(service.store.queue) == 0)
        assert (await api("GET", "/readyz")).json["database"] == "ok"
        ids = [item["id"] for item in (await api("GET", "/items?order=id")).json["items"]]
        assert {"doubtful", "kept", "new"} < set(ids)
        assert "gone" not in ids
        assert len(ids) == 5
    with psycopg.connect(dsn) as connection:
        [(data,)] = connection.execute("SELECT data FROM items WHERE id = 'kept'")
    assert data == {"n": 3, "m": 4}


async def test_without_postgresql_an_item_that_is_not_cached_is_503(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that is not cached is 503 while PostgreSQL is away, never 404."""
    async with service_over(Postgres(dsn)) as service:
        await make(service.api, "kept")
    async with service_on_a_road(dsn, monkeypatch) as (service, road):
        await service.until(lambda: service.store.cache.hydrated)
        monkeypatch.setattr(service.store.cache, "hydrated", False)
        service.store.cache.remove("kept")
        await road.cut()

        answer = await service.api("GET", "/items/kept")
        answer.is_problem(503, "database_unavailable")
        written = await service.api("PATCH", "/items/kept", {"data": {}}, durability="memory")
        written.is_problem(503, "database_unavailable")

        await road.open()
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while (await service.api("GET", "/items/kept")).status != 200:
                pass
