"""A store whose items do not fit in its cache: every answer is that of one in which they do."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import Any, Final

import pytest

from itemstore.allocator import ID_BLOCK
from itemstore.core.ids import scramble
from itemstore.errors import BodyTooLarge, ItemNotFound
from itemstore.loader import LOAD_IDS_MAX
from itemstore.memory import (
    CACHE_BYTES_MIN,
    MIB,
    SERVER_BYTES,
    cache_bytes,
    recent_bytes,
)
from itemstore.store import ItemStore
from tests.stores import COMMIT, FULL, LAZY, MEMORY, Stores, data_of, gates, hand_over, soon, until

SMALL: Final = 25_000  # bytes: less than a hundred items
FILL: Final = """
    INSERT INTO items
    SELECT 'i' || n, ('{"n":' || n || ',"x":"' || repeat('x', 100) || '"}')::json, n, now(), now()
    FROM generate_series(1, %s) n"""


def body(number: int) -> dict[str, Any]:
    return {"n": number, "x": "x" * 100}


async def seeded(stores: Stores, items: int) -> list[str]:
    """So many items that are in PostgreSQL before the store under test starts; their ids."""
    await soon((await stores.open(LAZY)).close())
    stores.psql(FILL, items)
    stores.psql("DELETE FROM foreign_changes")  # they were here before
    return [f"i{number}" for number in range(1, items + 1)]


async def bounded(stores: Stores, preload: Any = LAZY, **options: Any) -> ItemStore:
    return await stores.open(preload, cache_bytes_max=SMALL, durability=MEMORY, **options)


async def full(stores: Stores) -> None:
    await until(lambda: "cache_full" in stores.logged.names())


async def numbers(store: ItemStore, ids: list[str]) -> list[int | None]:
    items = await soon(asyncio.gather(*map(store.get, ids)))
    return [None if item is None else item.data["n"] for item in items]


# --- answers


@pytest.mark.parametrize("packs", [False, True], ids=["fast", "small"])
@pytest.mark.parametrize("seed", range(3))
async def test_a_bounded_store_answers_as_one_without_a_bound(
    stores: Stores, seed: int, packs: bool
) -> None:
    """Whatever is read, written, deleted and listed, the answers are those of a dict."""
    print(f"{seed=}")
    chance = random.Random(seed)
    ids = await seeded(stores, 300)
    truth = {item_id: body(number) for number, item_id in enumerate(ids, 1)}
    store = await bounded(stores, chance.choice((FULL, LAZY)), cache_compression=packs)
    for step in range(1_500):
        item_id = f"i{chance.choice((chance.randint(1, 20), chance.randint(1, 320)))}"
        match chance.choice(("get", "get", "get", "put", "patch", "delete", "list")):
            case "get":
                assert data_of(await soon(store.get(item_id))) == truth.get(item_id)
            case "put":
                truth[item_id] = body(step)
                item = await soon(store.put(item_id, body(step)))
                assert (await store.get(item_id)) == item  # 1
            case "patch" if item_id in truth:
                truth[item_id] = truth[item_id] | {"step": step}
                await soon(store.patch(item_id, {"step": step}))
            case "delete" if item_id in truth:
                del truth[item_id]
                await soon(store.delete(item_id))
            case "list" if step % 10 == 0:
                page = await soon(store.list(limit=1, count="exact"))
                assert page.count == len(truth)  # 7
            case _ if item_id not in truth:
                with pytest.raises(ItemNotFound):
                    await soon(store.patch(item_id, {}))
    assert store.cache.evictions
    await soon(store.flush())
    await until(lambda: store.cache.bytes_used <= 1.02 * SMALL)
    for item_id in {*ids, *truth}:
        assert data_of(await soon(store.get(item_id))) == truth.get(item_id)


async def test_a_preload_stops_at_the_bound(stores: Stores) -> None:
    """It says so, with numbers, and from then on items are loaded on demand: all are there."""
    ids = await seeded(stores, 2_000)
    store = await bounded(stores, FULL)
    await full(stores)
    [told] = [event for event in stores.logged if event["event"] == "cache_full"]
    assert 0 < told["items"] < 500
    assert 0 < told["bytes"] < 10 * SMALL  # a page of a preload is larger than this cache
    await until(lambda: store.cache.bytes_used <= SMALL)
    assert not store.cache.hydrated
    assert await numbers(store, ids) == list(range(1, 2_001))  # 7
    assert await numbers(store, ["never", "there"]) == [None, None]


async def test_what_changes_during_a_preload_that_stops_is_seen(stores: Stores) -> None:
    """Writes and deletes between the pages and after the stop are answered as they were made."""
    ids = await seeded(stores, 1_000)
    store = stores.make(FULL, cache_bytes_max=SMALL, durability=MEMORY)
    page = gates(store).hold("page", "after")
    await soon(store.start())
    await page.reached()
    await soon(store.put("i1", body(-1)))
    await soon(store.delete("i2"))
    await soon(store.flush())
    page.open()
    await full(stores)
    await soon(store.delete("i3"))
    assert await numbers(store, ids[:4]) == [-1, None, None, 4]
    await soon(store.flush())
    await numbers(store, ids)
    assert await numbers(store, ids[:4]) == [-1, None, None, 4]  # 7


async def test_a_store_that_grows_beyond_its_bound_goes_on(stores: Stores) -> None:
    """A cache that held everything lets go of something, and a miss is no 404 any more."""
    ids = await seeded(stores, 10)
    store = await bounded(stores, FULL)
    await until(lambda: store.cache.hydrated)
    for number in range(300):
        await soon(store.put(f"new{number}", body(number)))
        if number % 50 == 0:
            await soon(store.flush())
    await soon(store.flush())
    await soon(store.put("last", body(0)))
    assert not store.cache.hydrated
    assert await numbers(store, ids) == list(range(1, 11))
    assert await numbers(store, [f"new{n}" for n in range(300)]) == list(range(300))


async def test_a_standby_that_takes_over_has_a_bound_too(stores: Stores) -> None:
    """The new holder of the lease has filled its cache to the bound, is ready, and exact."""
    ids = await seeded(stores, 500)
    first = await bounded(stores, FULL)
    await soon(first.put("i1", body(-1)))
    second = await bounded(stores, FULL)
    await hand_over(first, second)
    await until(lambda: second.cache.bytes_used <= SMALL)
    await soon(second.delete("i2"))
    assert (await numbers(second, ids))[:3] == [-1, None, 3]


async def test_an_item_larger_than_the_cache_is_served(stores: Stores) -> None:
    """It cannot be kept, and is read, changed and deleted all the same."""
    store = await bounded(stores)
    large = {"x": "x" * 2 * SMALL}
    await soon(store.put("large", large, durability=COMMIT))
    for number in range(50):
        await soon(store.put(f"small{number}", body(number), durability=COMMIT))
    assert "large" not in store.cache
    assert data_of(await soon(store.get("large"))) == large
    await soon(store.patch("large", {"n": 1}))
    readers = [store.get("large") for _ in range(20)]
    assert all(data_of(item) == large | {"n": 1} for item in await soon(asyncio.gather(*readers)))
    with pytest.raises(BodyTooLarge):
        await store.patch("large", {"x": "x" * 2 * MIB})
    await soon(store.delete("large"))
    assert await store.get("large") is None


# --- what costs what


async def test_a_list_leaves_the_cache_alone(stores: Stores) -> None:
    """Who reads all pages of a list evicts nothing."""
    ids = await seeded(stores, 1_000)
    store = await bounded(stores)
    await numbers(store, ids)
    await until(lambda: store.cache.bytes_used <= SMALL)
    kept, evictions = sorted(id for id, _ in store.cache.items()), store.cache.evictions
    cursor, seen = None, 0
    while seen < 1_000:
        page = await soon(store.list(limit=100, cursor=cursor))
        cursor, seen = page.next, seen + len(page.items)
    assert kept == sorted(id for id, _ in store.cache.items())
    assert store.cache.evictions == evictions


async def test_cold_items_cost_a_query_a_thousand(stores: Stores) -> None:
    """A thousand readers of one item cost one query, ten thousand items ten, at any bound."""
    ids = await seeded(stores, 10_000)
    store = await bounded(stores)
    assert await numbers(store, ["i7"] * 1_000) == [7] * 1_000
    assert gates(store).counts["load"] == 1
    assert await numbers(store, ids) == list(range(1, 10_001))
    assert gates(store).counts["load"] <= 1 + len(ids) // LOAD_IDS_MAX


async def test_large_cold_items_come_some_at_a_time(stores: Stores) -> None:
    """However large they are together, no query brings much, and every reader gets his answer.

    Who asks for what is not there is told so by the last of the queries.
    """
    await soon((await stores.open(LAZY)).close())
    stores.psql("""
        INSERT INTO items
        SELECT 'i' || n, json_build_object('n', n, 'x', (
                   SELECT string_agg(md5(n || '/' || m), '') FROM generate_series(1, 20000) m
               )), n, now(), now()
        FROM generate_series(1, 20) n""")
    store = await bounded(stores)
    asked = [*(f"i{number}" for number in range(1, 21)), "missing"]

    found = await soon(asyncio.gather(*map(store.get, asked)))

    assert [item and item.data["n"] for item in found] == [*range(1, 21), None]
    assert gates(store).counts["load"] == store.loader.queries == 3
    assert store.reader.misses == 21


async def test_hits_and_misses_are_counted(stores: Stores) -> None:
    """What was known at once is a hit, what was loaded a miss; each is counted once."""
    ids = await seeded(stores, 10)
    store = await stores.open(LAZY)
    assert (store.reader.hits, store.reader.misses) == (0, 0)
    await numbers(store, ids)
    assert (store.reader.hits, store.reader.misses) == (0, 10)
    await numbers(store, ids)
    await numbers(store, ["absent"])
    await numbers(store, ["absent"])
    assert (store.reader.hits, store.reader.misses) == (11, 11)


# --- generated ids


async def test_an_id_that_was_chosen_and_evicted_is_not_generated(stores: Stores) -> None:
    """A client chooses an id of the block under way; it is committed, and leaves the cache.

    1. PostgreSQL was asked which ids of the block are taken; the answer is under way
    2. a client writes one of them; it is committed and evicted
    3. the block arrives
    """
    store = await bounded(stores)
    asked = gates(store).hold("lease_ids", "after")
    creator = asyncio.ensure_future(store.create({"n": 0}))
    await asked.reached()  # 1
    [key] = stores.psql("SELECT key FROM id_blocks")
    chosen = scramble(500, key)
    await soon(store.put(chosen, body(1), durability=COMMIT))
    store.cache.evict_one(chosen)  # 2
    asked.open()
    created = [await soon(creator)]
    created += [await soon(store.create({"n": n})) for n in range(ID_BLOCK)]
    assert chosen not in {item.id for item in created}
    assert await numbers(store, [chosen]) == [1]


# --- bytes


@pytest.mark.parametrize("limit_mib", [64, 256, 512, 1_024, 8_192])
def test_the_default_leaves_room_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, limit_mib: int
) -> None:
    """Cache, queue, recent commits and the server fit in the container, however small it is."""
    monkeypatch.setattr("itemstore.memory.limit_bytes", lambda: limit_mib * MIB)
    cache = cache_bytes(None, 64 * MIB)
    needed = int(1.1 * cache) + recent_bytes(cache) + 64 * MIB + SERVER_BYTES
    assert needed <= limit_mib * MIB or cache == CACHE_BYTES_MIN
    assert cache >= CACHE_BYTES_MIN


@pytest.mark.parametrize("form", ["plain", "packed"])
def test_the_process_takes_what_is_counted(form: str) -> None:
    """Ten times the bound goes through the cache: the process has taken no more than the bound.

    In a process of its own, for what this one took before it keeps.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.cycling", form, "64"],
        capture_output=True,
        text=True,
        check=True,
    )
    bound, most = map(int, done.stdout.split())
    assert most <= 1.1 * bound, f"{most / bound:.3f} of the bound"
    assert most >= 0.8 * bound
