"""What other hands do to the table items is seen by readers, and never undoes the store's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from itemstore import ItemStore, Preload
from tests.stores import HOUR_US

NOTES = "SELECT count(*) FROM foreign_changes WHERE taken_at IS NULL"


@pytest.fixture
async def psql(dsn: str) -> AsyncIterator[Callable[..., Any]]:
    """Executes a statement as somebody in psql would."""
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    async def execute(statement: str) -> list[Any]:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []

    async with connection:
        yield execute


async def taken_over(psql: Callable[..., Any]) -> None:
    """Returns when the store has taken over all that was noted."""
    async with asyncio.timeout(20):
        while (await psql(NOTES)) != [(0,)]:  # noqa: ASYNC110 - another process's table
            await asyncio.sleep(0.01)


@pytest.fixture(params=[Preload.PRELOAD, Preload.SKIP])
async def stocked(request: pytest.FixtureRequest, open_store: Callable[..., Any]) -> ItemStore:
    """A store of three items, hydrated or on demand, all of them cached."""
    store: ItemStore = await open_store(skip_items_preload=request.param)
    for item_id in ("a", "b", "c"):
        await store.put(item_id, {"by": "store"})
    return store


async def data(store: ItemStore, item_id: str) -> dict[str, Any] | None:
    item = await store.get(item_id)
    return item.data if item else None


async def test_an_update_is_seen(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """A row updated by hand is read with its new data, a later version, and the same created_at."""
    before = await stocked.get("a")
    await psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
    await taken_over(psql)

    after = await stocked.get("a")
    assert before is not None
    assert after is not None
    assert {"by": "hand"} == after.data
    assert before.version < after.version
    assert before.created_at == after.created_at
    assert [(after.version, after.updated_at)] == await psql(
        "SELECT version, updated_at FROM items WHERE id = 'a'"
    )


async def test_an_insert_is_seen(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """A row inserted by hand with id and data alone gets the rest, and an absent id is no more."""
    assert await stocked.get("d") is None
    await psql("""INSERT INTO items (id, data) VALUES ('d', '{"by": "hand"}')""")
    await taken_over(psql)

    item = await stocked.get("d")
    assert item is not None
    assert {"by": "hand"} == item.data
    assert item.is_new


async def test_a_delete_is_seen(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """A row deleted by hand is gone, has a tombstone, and others stay."""
    await psql("DELETE FROM items WHERE id = 'a'")
    await taken_over(psql)

    assert await stocked.get("a") is None
    assert {"by": "store"} == await data(stocked, "b")
    assert [("a",)] == await psql("SELECT id FROM tombstones")


async def test_a_truncate_is_seen(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """After TRUNCATE every item is gone, and what is written afterwards stays."""
    await psql("TRUNCATE items")
    await stocked.put("new", {"by": "store"})
    await taken_over(psql)

    assert [None, None, None] == [await data(stocked, item_id) for item_id in ("a", "b", "c")]
    assert {"by": "store"} == await data(stocked, "new")
    assert [("new",)] == await psql("SELECT id FROM items")


async def test_a_changed_id_is_seen(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """A row given another id by hand is found under the new one only."""
    await psql("UPDATE items SET id = 'z' WHERE id = 'a'")
    await taken_over(psql)

    assert await data(stocked, "a") is None
    assert {"by": "store"} == await data(stocked, "z")


async def test_a_write_that_does_not_know_of_a_change_by_hand_is_not_lost(
    stocked: ItemStore, psql: Callable[..., Any]
) -> None:
    """Also where the store's clock is ahead of PostgreSQL's: their versions never are the same."""
    stocked.clock.saw(stocked.clock.now() + HOUR_US)
    await stocked.put("a", {"n": 1}, durability="commit")
    for n in range(2, 6):
        await psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
        written = await stocked.put("a", {"n": n}, durability="commit")
        assert [(written.version, {"n": n})] == await psql(
            "SELECT version, data FROM items WHERE id = 'a'"
        )
    await taken_over(psql)
    assert {"n": 5} == await data(stocked, "a")


async def test_many_rows_at_once(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """Thousands of rows changed by one statement are all taken over."""
    await psql(
        "INSERT INTO items (id, data) "
        "SELECT 'n' || n, json_build_object('n', n) FROM generate_series(1, 3000) n"
    )
    await taken_over(psql)

    assert {"n": 3000} == await data(stocked, "n3000")
    assert 3003 == (await stocked.list(count="exact")).count


async def test_own_writes_are_not_noted(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """Creating, replacing, patching, deleting and reviving through the store notes nothing."""
    await stocked.patch("a", {"x": 1})
    await stocked.delete("a")
    await stocked.put("a", {"by": "store"})

    assert [(1,)] == await psql("SELECT nextval('foreign_changes_seq_seq')")


async def test_the_store_writes_over_a_hand(stocked: ItemStore, psql: Callable[..., Any]) -> None:
    """A write through the store after a hand's is newer, in memory and in PostgreSQL."""
    await psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
    await taken_over(psql)
    written = await stocked.put("a", {"by": "store again"})

    assert [(written.version,)] == await psql("SELECT version FROM items WHERE id = 'a'")


async def test_a_lost_connection_is_found_again(
    stocked: ItemStore, psql: Callable[..., Any]
) -> None:
    """Changes made while the listening connection was cut are seen all the same."""
    await psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name LIKE 'itemstore listener%'"
    )
    await psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
    await taken_over(psql)

    assert {"by": "hand"} == await data(stocked, "a")


async def test_a_preload_page_does_not_undo_a_hand(
    open_store: Callable[..., Any], psql: Callable[..., Any]
) -> None:
    """A row changed by hand while the preload carries its old state is not brought back."""
    first = await open_store()
    for item_id in ("a", "b"):
        await first.put(item_id, {"by": "store"})
    await first.close()
    store: ItemStore = await open_store(skip_items_preload=Preload.SKIP)
    store.cache.fills = True  # as of a preload that is under way
    load = store.cache.begin_load()
    rows, _ = await store._storage.page(0)
    await psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
    await psql("DELETE FROM items WHERE id = 'b'")
    await taken_over(psql)
    store.cache.install(load, rows, store.queue.pending_ids())
    store.cache.end_load(load)
    store.cache.set_hydrated()

    assert {"by": "hand"} == await data(store, "a")
    assert await data(store, "b") is None


async def test_a_page_older_than_a_truncate_is_not_installed(
    open_store: Callable[..., Any], psql: Callable[..., Any]
) -> None:
    """Rows read before a TRUNCATE and installed after it do not come back."""
    store: ItemStore = await open_store(skip_items_preload=Preload.SKIP)
    await store.put("a", {})
    store.cache.remove("a")
    store.cache.fills = True  # as of a preload that is under way
    load = store.cache.begin_load()
    rows, _ = await store._storage.page(0)
    await psql("TRUNCATE items")
    await taken_over(psql)
    load.touched.clear()
    store.cache.install(load, rows, store.queue.pending_ids())
    store.cache.end_load(load)

    assert await data(store, "a") is None
