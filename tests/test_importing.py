"""An import keeps what an item was, and promises no more than holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from itemstore.accepted import finished
from itemstore.bulk import PARTS_MAX, Entry, Importing, Result
from itemstore.core.item import Item
from itemstore.core.operation import Conflict, Import
from itemstore.errors import InvalidItem, ItemQuarantined, LeaseLost
from itemstore.options import Durability
from itemstore.store import ItemStore
from tests.stores import COMMIT, FULL, LAZY, MEMORY, Stores, gates, soon, start, take_away, until
from tests.test_races import turns

THEN_US = 1_000_000_000_000_001  # 2001-09-09
REFUSE = "ALTER TABLE items ADD CONSTRAINT no_negative CHECK (data ->> 'n' NOT LIKE '-%')"


@pytest.fixture(params=[FULL, LAZY], ids=["preload", "on demand"])
async def store(request: pytest.FixtureRequest, stores: Stores) -> ItemStore:
    return await stores.open(request.param)


async def bring(
    store: ItemStore, item_id: str | None, data: Any, level: Durability = COMMIT, **more: Any
) -> tuple[Item, str]:
    """The item as it is then, and what has become of it."""
    accepted = await soon(store.accept(Import(item_id, data, **more), level))
    item = await soon(finished(accepted))
    assert item is not None
    if accepted.is_kept:
        return item, "kept"
    return item, "created" if accepted.is_new else "replaced"


async def test_a_new_item_keeps_its_time_of_creation(store: ItemStore, stores: Stores) -> None:
    """created_at is what it was elsewhere, in memory and in PostgreSQL; the version is new."""
    before = store.clock.now()

    item, outcome = await bring(store, "a", {"n": 1}, created_us=THEN_US)

    assert ("created", "2001-09-09T01:46:40.000001+00:00") == (outcome, item.created_at.isoformat())
    assert before < item.version
    [created] = stores.psql("SELECT created_at FROM items WHERE id = 'a'")
    assert item.created_at == created


async def test_without_a_time_an_item_is_created_now(store: ItemStore) -> None:
    """An import that knows no created_at, nor id, is a creation like any other."""
    item, outcome = await bring(store, None, {"n": 1})
    assert ("created", 8, item.updated_at) == (outcome, len(item.id), item.created_at)


async def test_an_item_that_lives_keeps_its_own_time(store: ItemStore) -> None:
    """created_at never changes while an item lives; a deleted one is created anew."""
    made = await store.put("a", {"n": 0})

    replaced, outcome = await bring(
        store, "a", {"n": 1}, created_us=THEN_US, conflict=Conflict.REPLACE
    )
    assert ("replaced", made.created_at) == (outcome, replaced.created_at)

    await store.delete("a")
    again, outcome = await bring(store, "a", {"n": 1}, created_us=THEN_US)
    assert ("created", 2001) == (outcome, again.created_at.year)


@pytest.mark.parametrize(
    ("conflict", "later_us", "expected"),
    [
        (Conflict.NEWER, 1, "replaced"),
        (Conflict.NEWER, 0, "kept"),
        (Conflict.NEWER, -1, "kept"),
        (Conflict.NEWER, None, "kept"),
        (Conflict.SKIP, 1, "kept"),
        (Conflict.REPLACE, -1, "replaced"),
        (Conflict.REPLACE, None, "replaced"),
    ],
)
async def test_conflicts(
    store: ItemStore, conflict: Conflict, later_us: int | None, expected: str
) -> None:
    """An item with other data is replaced by what is newer, always, or never, as was asked."""
    made = await store.put("a", {"n": 0})
    updated_us = None if later_us is None else made.version + later_us

    item, outcome = await bring(store, "a", {"n": 1}, updated_us=updated_us, conflict=conflict)

    assert expected == outcome
    assert item == await store.get("a")
    assert (item == made) == (expected == "kept")


@pytest.mark.parametrize("conflict", Conflict)
async def test_equal_data_is_not_written(store: ItemStore, conflict: Conflict) -> None:
    """Whatever was asked, an item that has the data already keeps its version."""
    made = await store.put("a", {"n": 0}, durability=COMMIT)
    accepted = store.queue.accepted

    item, outcome = await bring(
        store, "a", {"n": 0}, updated_us=made.version + 1, conflict=conflict
    )

    assert ("kept", made, accepted) == (outcome, item, store.queue.accepted)


async def test_what_is_kept_is_confirmed_with_the_write_it_rests_on(store: ItemStore) -> None:
    """At commit, an unchanged item whose state is not committed yet is waited for."""
    gate = gates(store).hold("write")
    await store.put("a", {"n": 0}, durability=MEMORY)
    await soon(gate.reached())

    waiting = start(bring(store, "a", {"n": 0}))
    await turns()
    _, at_once = await bring(store, "a", {"n": 0}, MEMORY)
    assert ("kept", False) == (at_once, waiting.done())

    gate.open()
    assert "kept" == (await soon(waiting))[1]


@pytest.mark.parametrize("level", [MEMORY, COMMIT])
async def test_what_is_kept_is_not_confirmed_if_its_write_is_refused(
    stores: Stores, level: Durability
) -> None:
    """A state that is lost with the lease was promised to nobody, at no level.

    1. the holder sends a write at commit; its answer is on its way
    2. an import finds the same data, and waits for that write
    3. another instance takes the lease; the write is refused, and so is the import
    """
    store, other = await stores.open(), await stores.open()
    gate = gates(store).hold("write")
    writing = start(store.put("a", {"n": 0}, durability=COMMIT))
    await soon(gate.reached())  # 1
    waiting = start(bring(store, "a", {"n": 0}, level))  # 2
    await take_away(stores, store, other)
    gates(store).join()
    gate.open()  # 3
    for each in (writing, waiting):
        with pytest.raises(LeaseLost):
            await soon(each)


async def test_what_is_in_quarantine_is_not_confirmed(store: ItemStore, stores: Stores) -> None:
    """An item that is unchanged, but refused by PostgreSQL, is an error, and not an OK."""
    stores.psql(REFUSE)
    for _ in range(2):
        with pytest.raises(ItemQuarantined):
            await bring(store, "a", {"n": -1})


async def test_items_that_are_not_cached_are_loaded_together(stores: Stores) -> None:
    """What an import finds in PostgreSQL alone is known to it, by one query for all."""
    first = await stores.open()
    for number in range(20):
        await first.put(f"i{number}", {"n": number})
    await first.close()
    store = await stores.open(LAZY)
    loads = gates(store).counts["load"]

    assert {} == await store.reader.load_all([*(f"i{number}" for number in range(30)), None])

    assert loads + 1 == gates(store).counts["load"]
    assert ["kept", "created"] == [
        (await bring(store, each, {"n": 19}))[1] for each in ("i19", "i20")
    ]


async def test_no_more_is_read_than_can_be_told(stores: Stores) -> None:
    """While nobody takes the results, only so many parts are read; then all of them are."""
    importing = Importing(await stores.open(), MEMORY)
    read, may_go_on = 0, asyncio.Event()

    async def entries() -> AsyncIterator[Sequence[Entry]]:
        nonlocal read
        for number in range(1, 101):
            read += 1
            yield [
                Entry(number, f"i{number}", Import(f"i{number}", {})),
                Entry(number, None, InvalidItem("wrong")),
            ]

    async def tell(_: Sequence[Result]) -> None:
        await may_go_on.wait()

    running = start(importing.run(entries(), tell))
    await until(lambda: read >= PARTS_MAX)
    await turns(1_000)
    assert read <= PARTS_MAX + 2  # one is being told, one waits to be handed over

    may_go_on.set()
    await soon(running)
    assert (100, 100, 100) == (read, importing.counts["created"], importing.counts["failed"])


@pytest.mark.parametrize("told", [0, 2])
async def test_who_stops_taking_results_ends_the_import(stores: Stores, told: int) -> None:
    """An error of whoever takes the results ends it at once, and leaves no task behind."""
    importing = Importing(await stores.open(), MEMORY)

    async def entries() -> AsyncIterator[Sequence[Entry]]:
        for number in range(1, 1_000_000):
            yield [Entry(number, None, InvalidItem("wrong"))]

    async def tell(results: Sequence[Result]) -> None:
        if results[0].line > told:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await soon(importing.run(entries(), tell))
    assert told == importing.last_line
    assert "import" not in [task.get_name() for task in asyncio.all_tasks()]
