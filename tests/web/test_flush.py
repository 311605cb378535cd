"""What is committed and what is not: POST /flush, and ``Durability: pending``."""

from __future__ import annotations

import asyncio

import psycopg

from itemstore.options import Options
from tests.stores import Gated, until
from tests.web.conftest import make, service_over


async def test_flush_waits_for_what_was_accepted_before_it(dsn: str) -> None:
    """POST /flush is answered 204 when the writes before it are in PostgreSQL, and not earlier."""
    storage = Gated(dsn)
    async with service_over(storage) as service:
        api = service.api
        await make(api, "a", {"n": 0}, durability="commit")
        write = storage.hold("write")
        await make(api, "a", {"n": 1}, durability="memory")
        await write.reached()
        flushing = asyncio.ensure_future(api("POST", "/flush"))
        for _ in range(3):
            await api("GET", "/livez")
        assert not flushing.done()
        write.open()
        answer = await flushing
        assert (204, b"") == (answer.status, answer.body)
        with psycopg.connect(dsn) as connection:
            assert [({"n": 1},)] == connection.execute("SELECT data FROM items").fetchall()


async def test_flush_does_not_wait_for_what_comes_after_it(dsn: str) -> None:
    """A write accepted after the flush does not hold it up."""
    storage = Gated(dsn)
    async with service_over(storage) as service:
        api = service.api
        first, second = storage.hold("write"), storage.hold("write")
        await make(api, "a", durability="memory")
        await first.reached()
        flushing = asyncio.ensure_future(api("POST", "/flush"))
        await until(lambda: bool(service.store.queue._barriers))
        await make(api, "b", durability="memory")
        first.open()
        assert 204 == (await flushing).status
        await second.reached()
        second.open()


async def test_with_nothing_to_write_flush_is_done(dsn: str) -> None:
    """With everything committed POST /flush is 204 at once; it takes no parameter."""
    async with service_over(Gated(dsn)) as service:
        assert 204 == (await service.api("POST", "/flush")).status
        (await service.api("POST", "/flush?x=1")).is_problem(400, "invalid_parameter")
        answer = await service.api("GET", "/flush")
        answer.is_problem(405, "method_not_allowed")
        assert "OPTIONS, POST" == answer.headers["Allow"]


async def test_without_postgresql_flush_is_refused(dsn: str) -> None:
    """While PostgreSQL is away POST /flush is 503 with a time; what was accepted is kept."""
    storage = Gated(dsn)
    async with service_over(storage, Options(commit_timeout_s=0.05)) as service:
        api = service.api
        await make(api, "warm", durability="memory")
        await service.store.flush()
        storage.cut_off()
        await make(api, "warm", {"n": 2}, durability="memory")
        answer = await api("POST", "/flush")
        assert "They are kept" in answer.is_problem(503, "database_unavailable")["detail"]
        assert "2" == answer.headers["Retry-After"]
        storage.join()
        await service.until(lambda: not len(service.store.queue))
        assert 204 == (await api("POST", "/flush")).status


async def test_an_item_that_is_not_committed_says_so(dsn: str) -> None:
    """GET and HEAD of a dirty item say ``Durability: pending``, 200 and 304; of others nothing."""
    storage = Gated(dsn)
    async with service_over(storage) as service:
        api = service.api
        await make(api, "a", {"n": 0}, durability="commit")
        await make(api, "clean", durability="commit")
        write = storage.hold("write")
        dirty = await make(api, "a", {"n": 1}, durability="memory")
        await write.reached()
        for method in ("GET", "HEAD"):
            for etag, status in (('"0"', 200), (dirty.etag, 304)):
                answer = await api(method, "/items/a", if_none_match=etag)
                assert (status, "pending") == (answer.status, answer.headers.get("Durability"))
                clean = await api(method, "/items/clean", if_none_match=etag)
                assert "Durability" not in clean.headers
        write.open()
        await api("POST", "/flush")
        for etag in ('"0"', dirty.etag):
            assert "Durability" not in (await api("GET", "/items/a", if_none_match=etag)).headers


async def test_a_quarantined_item_is_pending(dsn: str) -> None:
    """What PostgreSQL refused is served, and said not to be committed."""
    async with service_over(Gated(dsn)) as service:
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE items ADD CHECK ((data ->> 'n')::int < 100)")
        answer = await service.api("PUT", "/items/bad", {"data": {"n": 100}})
        answer.is_problem(500, "item_quarantined")
        assert "pending" == (await service.api("GET", "/items/bad")).headers["Durability"]
