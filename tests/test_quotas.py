"""Quotas: nobody gets more than he may have, however many write at once and whoever else does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from itemstore.bulk import Entry, Importing, Result
from itemstore.core.caller import Caller, Role
from itemstore.core.operation import Create, Delete, Get, Import, Put, Write
from itemstore.core.record import Origin
from itemstore.core.usage import Usage
from itemstore.errors import DatabaseUnavailable, ItemStoreError, QuotaExceeded
from itemstore.store import ItemStore
from tests.sql import query
from tests.stores import FULL, LAZY, MEMORY, Stores, gates, hand_over, soon, start, until

ITEMS_MAX: Final = 10
BYTES_MAX: Final = 200
SHOP: Final = Caller("shop", Role.WRITE, "shop/", max_items=ITEMS_MAX)
SMALL: Final = Caller("small", Role.WRITE, "shop/", max_bytes=BYTES_MAX)
WHOLE: Final = Caller("whole", Role.WRITE, max_items=ITEMS_MAX, max_bytes=BYTES_MAX)
THERE: Final = (
    "SELECT count(*), coalesce(sum(octet_length(data::text)), 0) FROM items WHERE id ^@ %s"
)


async def tried(store: ItemStore, operation: Write, caller: Caller) -> ItemStoreError | None:
    try:
        await soon(store.write(operation, MEMORY, Origin(caller)))
    except QuotaExceeded as error:
        return error
    return None


async def there(stores: Stores, store: ItemStore, prefix: str = "shop/") -> Usage:
    """What PostgreSQL has, once it has all."""
    await soon(store.flush())
    [(items, size)] = await asyncio.to_thread(query, stores.dsn, THERE, prefix)
    return Usage(items, int(size))


@pytest.mark.parametrize("preload", [FULL, LAZY])
async def test_writers_at_once_never_exceed_a_quota(stores: Stores, preload: Any) -> None:
    """Of 32 who create and delete at once, exactly as many items come to be as fit."""
    store = await stores.open(preload)
    for number in range(4):
        await store.put(f"shop/old{number}", {})

    async def write(number: int) -> int:
        chance, refused = random.Random(number), 0
        for turn in range(12):
            item_id = f"shop/{number}-{turn}"
            refused += await tried(store, Create({}, item_id), SHOP) is not None
            usage = store.quotas.usages.of("shop/")
            assert usage is not None
            assert usage.items <= ITEMS_MAX
            if chance.random() < 0.5 and await store.get(item_id):
                await store.delete(item_id, durability=MEMORY)
            await asyncio.sleep(0)
        return refused

    refused = sum(await asyncio.gather(*map(write, range(32))))
    assert refused > 0
    assert store.quotas.usages.of("shop/") == await there(stores, store)
    while await tried(store, Create({}), Caller("x", Role.WRITE, max_items=ITEMS_MAX)) is None:
        pass
    assert ITEMS_MAX == (await there(stores, store, "")).items


async def test_bytes_are_those_of_the_data(stores: Stores) -> None:
    """What grows beyond it is refused and nothing changes; what shrinks, and a delete, is not."""
    store = await stores.open()
    await store.put("shop/a", {"text": "x" * 100})
    await store.put("other", {"text": "y" * 1_000})  # not under its prefix
    assert await tried(store, Put("shop/b", {"text": "z" * 60}), SMALL) is None
    refused = await tried(store, Put("shop/b", {"text": "z" * 100}), SMALL)
    assert "small may have 200 bytes, has 182 and would have 222. Nothing was changed. " in str(
        refused
    )
    assert {"text": "z" * 60} == (await store.get("shop/b")).data  # type: ignore[union-attr]
    await store.put("shop/a", {"text": "x" * 500})  # an admin's write is counted and not refused
    assert await tried(store, Put("shop/a", {"text": "x" * 400}), SMALL) is None
    assert await tried(store, Create({}, "shop/c"), SMALL) is not None
    assert await tried(store, Delete("shop/a"), SMALL) is None
    assert await tried(store, Create({}, "shop/c"), SMALL) is None
    assert store.quotas.usages.of("shop/") == await there(stores, store)


async def test_each_operation_of_a_batch_stands_alone(stores: Stores) -> None:
    """What fits is carried out, what does not is refused, and a delete between them makes room."""
    store = await stores.open()
    operations = [Put(f"shop/{n}", {}) for n in range(ITEMS_MAX + 2)]
    results = await soon(
        store.batch(
            [*operations, Delete("shop/0"), Get("shop/1"), Put("shop/new", {})], origin=Origin(SHOP)
        )
    )
    codes = [getattr(each, "code", None) for each in results]
    assert [*[None] * ITEMS_MAX, "quota_exceeded", "quota_exceeded", *[None] * 3] == codes
    assert ITEMS_MAX == (await there(stores, store)).items


async def test_the_lines_of_an_import_stand_alone(stores: Stores) -> None:
    """The import goes on, and tells of each line that did not fit."""
    store = await stores.open()
    told: list[Result] = []

    async def lines() -> AsyncIterator[list[Entry]]:
        for number in range(1, 16):
            item_id = f"shop/{number}"
            yield [Entry(number, item_id, Import(item_id, {"n": number}))]

    async def tell(results: Any) -> None:
        told.extend(results)

    await soon(Importing(store, MEMORY, Origin(SHOP)).run(lines(), tell))
    assert ["created"] * ITEMS_MAX + ["failed"] * 5 == [each.status for each in told]
    assert {"quota_exceeded"} == {each.error.code for each in told if each.error}


async def test_what_is_written_during_a_count_is_in_it(stores: Stores) -> None:
    """Others write before PostgreSQL is asked, and before its answer has come."""
    store = await stores.open(LAZY)
    for number in range(5):
        await store.put(f"shop/{number}", {})
    before = gates(store).hold("usage")
    writing = start(tried(store, Create({}, "shop/mine"), SHOP))
    await before.reached()
    await store.put("shop/0", {"n": 1}, durability=MEMORY)
    await store.delete("shop/1")
    await store.put("shop/new", {})
    after = gates(store).hold("usage", "after")
    before.open()
    await after.reached()
    await store.delete("shop/2", durability=MEMORY)
    await store.put("shop/late", {"n": 2}, durability=MEMORY)
    after.open()
    assert await soon(writing) is None
    assert Usage(6, 4 * 2 + 2 * 7) == store.quotas.usages.of("shop/")
    assert store.quotas.usages.of("shop/") == await there(stores, store)


async def test_rows_changed_by_hand_are_counted_anew(stores: Stores) -> None:
    """An INSERT in psql leaves less room, a TRUNCATE all of it."""
    store = await stores.open()
    assert await tried(store, Create({}, "shop/a"), SHOP) is None
    await store.flush()
    stores.psql(
        "INSERT INTO items (id, data) SELECT 'shop/' || n, '{}' FROM generate_series(1, 9) n"
    )
    await until(lambda: store.quotas.usages.of("shop/") is None)
    assert await tried(store, Create({}, "shop/b"), SHOP) is not None
    stores.psql("TRUNCATE items")
    await until(lambda: store.quotas.usages.of("shop/") is None)
    assert await tried(store, Create({}, "shop/b"), SHOP) is None
    assert Usage(1, 2) == await there(stores, store)


async def test_each_holder_counts_for_itself(stores: Stores) -> None:
    """What another has accepted since is in it, also for one that had counted before."""
    first = await stores.open()
    for number in range(4):
        assert await tried(first, Create({}, f"shop/{number}"), SHOP) is None
    second = await stores.open()
    await hand_over(first, second)
    for number in range(4, ITEMS_MAX - 1):
        assert await tried(second, Create({}, f"shop/{number}"), SHOP) is None
    await soon(second.close(10.0))
    await until(lambda: first.lease.is_holder)
    assert await tried(first, Create({}, "shop/x"), SHOP) is None
    assert await tried(first, Create({}, "shop/y"), SHOP) is not None
    assert Usage(ITEMS_MAX, 2 * ITEMS_MAX) == await there(stores, first)


async def test_without_postgresql_nothing_is_counted_or_written(stores: Stores) -> None:
    """503, and others write on; when it is back, so does who has a quota."""
    store = await stores.open()
    await store.put("shop/a", {})
    await until(lambda: store.cache.hydrated)
    gates(store).cut_off()
    with pytest.raises(DatabaseUnavailable, match="shop has is not counted yet"):
        await soon(store.write(Create({}, "shop/b"), MEMORY, Origin(SHOP)))
    await soon(store.put("shop/c", {}, durability=MEMORY))
    gates(store).join()
    assert await tried(store, Create({}, "shop/b"), SHOP) is None
    assert store.quotas.usages.of("shop/") == await there(stores, store)


async def test_a_count_that_takes_long_is_not_waited_for(stores: Stores) -> None:
    """503 after the time of a load; the count goes on, and the next one who asks has it."""
    store = await stores.open(load_timeout_s=0.05)
    gate = gates(store).hold("usage")
    with pytest.raises(DatabaseUnavailable, match="still being counted"):
        await soon(store.write(Create({}, "shop/b"), MEMORY, Origin(SHOP)))
    gate.open()
    await until(lambda: store.quotas.usages.of("shop/") is not None)
    assert await tried(store, Create({}, "shop/b"), SHOP) is None
    assert 1 == gates(store).counts["usage"]


async def test_whoever_has_no_quota_is_not_counted(stores: Stores) -> None:
    """PostgreSQL is never asked."""
    store = await stores.open()
    await soon(store.write(Create({}, "a"), MEMORY, Origin(Caller("free", Role.WRITE, "a"))))
    assert {} == store.quotas.usages.tracked
    assert 0 == gates(store).counts["usage"]
    assert await tried(store, Create({}, "b"), WHOLE) is None
    assert Usage(2, 4) == store.quotas.usages.of("")
