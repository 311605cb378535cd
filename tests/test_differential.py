"""The store beside a plain dict: both answer the same, in every mode of the cache.

A history is drawn from a seed: ``ITEMSTORE_SEED=7 pytest tests/test_differential.py`` repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from itemstore import bulk
from itemstore.core import listing
from itemstore.core.data import merge_patch
from itemstore.core.item import Item
from itemstore.core.operation import Conflict, Delete, Get, Import, Operation, Put
from itemstore.errors import ItemExists, ItemNotFound, Unavailable
from itemstore.storage import StorageAway
from itemstore.store import ItemStore
from tests import oracle
from tests.stores import FULL, LAZY, MEMORY, Stores, gates, soon, until
from tests.test_races import turns

SEEDS: Final = 6
STEPS: Final = 120
IDS: Final = tuple(f"{kind}{number:02}" for kind in ("a", "b") for number in range(25))
SEEDED: Final = IDS[::2]
TAGS: Final = ("x", "xy", "é", "10")
FEW_ITEMS_BYTES: Final = 6_000
UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ORDERS: Final = (*listing.ORDERS, "data.n", "-data.n", "data.tag", "-data.deep.k")


def seeds() -> Iterable[int]:
    if "ITEMSTORE_SEED" in os.environ:
        return [int(os.environ["ITEMSTORE_SEED"])]
    return range(SEEDS)


@asynccontextmanager
async def hydrated(stores: Stores) -> AsyncIterator[ItemStore]:
    store = await stores.open(FULL)
    await until(lambda: store.cache.hydrated)
    yield store


@asynccontextmanager
async def lazy(stores: Stores) -> AsyncIterator[ItemStore]:
    yield await stores.open(LAZY)


@asynccontextmanager
async def bounded(stores: Stores) -> AsyncIterator[ItemStore]:
    store = await stores.open(FULL, cache_bytes_max=FEW_ITEMS_BYTES, cache_compression=False)
    yield store
    assert store.cache.evictions


@asynccontextmanager
async def preloading(stores: Stores) -> AsyncIterator[ItemStore]:
    """The preload has read the items, and installs them in the middle of the history."""
    store = stores.make(FULL)
    page = gates(store).hold("page", "after")
    await soon(store.start())
    await page.reached()
    opening = asyncio.get_running_loop().call_later(0.2, page.open)
    yield store
    opening.cancel()
    page.open()
    await until(lambda: store.cache.hydrated)


@asynccontextmanager
async def flapping(stores: Stores) -> AsyncIterator[ItemStore]:
    """PostgreSQL is away now and then."""
    store = await stores.open(LAZY)
    chance, pg = random.Random(0), gates(store)

    async def flap() -> None:
        while True:
            await asyncio.sleep(chance.choice((0.0, 0.005, 0.05)))
            pg.cut_off(StorageAway("cut off"))
            await asyncio.sleep(chance.choice((0.0, 0.002, 0.02)))
            pg.join()

    flapping = asyncio.create_task(flap())
    yield store
    flapping.cancel()
    pg.join()


Mode = Callable[[Stores], AbstractAsyncContextManager[ItemStore]]
MODES: Final[tuple[Mode, ...]] = (hydrated, lazy, bounded, preloading, flapping)


class Both:
    """One history of the store and of the model."""

    def __init__(self, store: ItemStore, chance: random.Random, items: Sequence[Item]) -> None:
        self.store = store
        self.chance = chance
        self.model = {item.id: item for item in items}
        self.refused = 0

    async def run(self) -> None:
        steps = (
            *((self.read, 5), (self.put, 4), (self.create, 2), (self.patch, 2), (self.delete, 2)),
            *((self.batch, 1), (self.bring, 2), (self.walk, 3), (self.export, 1)),
        )
        for _ in range(STEPS):
            [step] = self.chance.choices(*zip(*steps, strict=True))
            try:
                await step()
            except Unavailable:  # nothing was changed, and nothing said of the items
                self.refused += 1
            if self.chance.random() < 0.3:
                await turns(self.chance.randrange(40))

    # --- single items

    async def read(self) -> None:
        item_id = self.an_id()
        found = await self.store.get(item_id)
        assert _state(self.model.get(item_id)) == _state(found)

    async def put(self) -> None:
        item_id, data = self.an_id(), self.some_data()
        self.check_written(item_id, data, await self.store.put(item_id, data, durability=MEMORY))

    async def create(self) -> None:
        item_id, data = self.chance.choice((None, self.an_id())), self.some_data()
        try:
            item = await self.store.create(data, item_id=item_id, durability=MEMORY)
        except ItemExists:
            assert item_id in self.model
            return
        assert item.id not in self.model
        assert item_id in {None, item.id}
        self.check_written(item.id, data, item)

    async def patch(self) -> None:
        item_id, patch = self.an_id(), self.chance.choice(({"n": None}, {"deep": {"k": 7}}))
        old = self.model.get(item_id)
        try:
            item = await self.store.patch(item_id, patch, durability=MEMORY)
        except ItemNotFound:
            assert old is None
            return
        assert old is not None
        self.check_written(item_id, merge_patch(old.data, patch), item)

    async def delete(self) -> None:
        item_id = self.an_id()
        try:
            await self.store.delete(item_id, durability=MEMORY)
        except ItemNotFound:
            assert item_id not in self.model
            return
        del self.model[item_id]

    def check_written(self, item_id: str, data: Any, item: Item) -> None:
        old = self.model.get(item_id)
        assert (item_id, data) == (item.id, item.data)
        assert (old is None) == item.is_new
        assert old is None or (old.version < item.version and old.created_at == item.created_at)
        self.model[item_id] = item

    # --- many

    async def batch(self) -> None:
        """The results are what the operations would have had one by one."""
        ids = [self.an_id() for _ in range(6)]
        kinds = [self.chance.choice("gpd") for _ in ids]
        datas = [self.some_data() for _ in ids]
        operations: list[Operation] = [
            Get(item_id) if kind == "g" else Put(item_id, data) if kind == "p" else Delete(item_id)
            for kind, item_id, data in zip(kinds, ids, datas, strict=True)
        ]
        results = await self.store.batch(operations, durability=MEMORY)
        for kind, item_id, data, result in zip(kinds, ids, datas, results, strict=True):
            if isinstance(result, Unavailable):
                self.refused += 1
            elif kind == "p":
                assert isinstance(result, Item)
                self.check_written(item_id, data, result)
            elif kind == "g":
                found = result if isinstance(result, Item) else None
                assert _state(self.model.get(item_id)) == _state(found)
            else:
                was_there = self.model.pop(item_id, None) is not None
                assert was_there is (result is None)

    async def bring(self) -> None:
        """An import of one item."""
        item_id, data, then_us = self.an_id(), self.some_data(), self.chance.randrange(10**15)
        conflict = self.chance.choice(tuple(Conflict))
        old = self.model.get(item_id)
        operation = Import(item_id, data, created_us=then_us, updated_us=then_us, conflict=conflict)
        item = await self.store.write(operation, MEMORY)
        if old is None:
            assert item.data == data
            assert then_us == (item.created_at - UNIX_EPOCH) // timedelta(microseconds=1)
        elif conflict is Conflict.REPLACE and old.data != data:
            assert (item.data, item.created_at) == (data, old.created_at)
        else:
            assert _state(old) == _state(item)
        self.model[item_id] = item

    async def walk(self) -> None:
        """All pages, and the counts."""
        asked: dict[str, Any] = {"filters": self.some_filters()}
        asked["order"] = self.chance.choice(ORDERS)
        if self.chance.random() < 0.3:
            asked["prefix"] = self.chance.choice(("a", "b1", "zz"))
        expected = self.expected(**asked)
        limit, cursor = self.chance.choice((1, 7, 1_000)), None
        found: list[Item] = []
        while True:
            page = await self.store.list(limit=limit, cursor=cursor, count="exact", **asked)
            assert len(expected) == page.count
            found += page.items
            cursor = page.next
            if cursor is None:
                break
        assert [_state(item) for item in expected] == [_state(item) for item in found]

    async def export(self) -> None:
        asked = self.some_filters()
        found = [item async for page in bulk.export(self.store, filters=asked) for item in page]
        expected = self.expected(filters=asked, order="id")
        assert [_state(item) for item in expected] == [_state(item) for item in found]

    def expected(self, **asked: Any) -> list[Item]:
        rows = [(item.id, item.entry) for item in self.model.values()]
        query = listing.understand(**asked).query
        return [Item(*row) for row in oracle.selected(rows, query)]

    # --- what is drawn

    def an_id(self) -> str:
        if self.model and self.chance.random() < 0.5:
            return self.chance.choice(sorted(self.model))
        return self.chance.choice(IDS)

    def some_data(self) -> dict[str, Any]:
        chance = self.chance
        data: dict[str, Any] = {"n": chance.choice((-1, 0, 1, 1.5, 2**60, "1", None))}
        if chance.random() < 0.7:
            data["tag"] = chance.choice(TAGS)
        if chance.random() < 0.5:
            data["deep"] = {"k": chance.randrange(4), "list": [chance.randrange(3), "é"]}
        return data

    def some_filters(self) -> dict[str, list[str]]:
        chance = self.chance
        known = (
            *(("data.n", f"{operator}.1") for operator in ("eq", "neq", "lt", "gte")),
            *(("data.tag", f"in.({tag},x)") for tag in TAGS),
            *(("data.tag", "prefix.x"), ("data.tag", "exists.false"), ("data.tag", 'gt."10"')),
            *(("data.deep", 'contains.{"list":[1]}'), ("data.deep.k", "lte.2")),
            *(("id", f"gt.{chance.choice(IDS)}"), ("created_at", "gte.2000-01-01")),
        )
        filters: dict[str, list[str]] = {}
        for field, condition in chance.sample(known, chance.randrange(3)):
            filters.setdefault(field, []).append(condition)
        return filters


def _state(item: Item | None) -> Any:
    return item and (item.id, item.version, item.created_at, item.data_json)


async def some_items(stores: Stores, chance: random.Random) -> list[Item]:
    """Committed by a store before."""
    store = await stores.open(LAZY)
    before = Both(store, chance, [])
    items = [await store.put(item_id, before.some_data()) for item_id in SEEDED]
    await store.close()
    return items


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
async def test_the_store_is_a_dict(stores: Stores, mode: Mode, seed: int) -> None:
    """Reads, writes, batches, imports, lists, counts and exports answer what a dict would."""
    chance = random.Random(f"differential {seed}")
    items = await some_items(stores, chance)
    async with mode(stores) as store:
        both = Both(store, chance, items)
        await both.run()
    await soon(store.flush())
    rows = stores.psql("SELECT id, version, data::text FROM items ORDER BY id")
    kept = sorted(both.model.values(), key=lambda item: item.id)
    assert [(item.id, item.version, item.data_json.decode()) for item in kept] == rows
    assert both.refused == 0 or mode is flapping
