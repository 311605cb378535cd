"""Quarantine: what PostgreSQL refused is kept and served, and can be retried or given up."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from itemstore.errors import (
    DatabaseUnavailable,
    ItemNotFound,
    ItemQuarantined,
    NotHolder,
    PreconditionFailed,
)
from itemstore.store import ItemStore
from tests.stores import (
    COMMIT,
    FULL,
    LAZY,
    MEMORY,
    Stores,
    data_of,
    gates,
    hand_over,
    soon,
    start,
    take_away,
    until,
)
from tests.test_races import turns

ITEMS = "SELECT id, data::text FROM items ORDER BY id"
REFUSE = "ALTER TABLE items ADD CONSTRAINT no_negative CHECK (data ->> 'n' NOT LIKE '-%')"
ALLOW = "ALTER TABLE items DROP CONSTRAINT no_negative"


@pytest.fixture(params=[FULL, LAZY], ids=["preload", "on demand"])
async def store(request: pytest.FixtureRequest, stores: Stores) -> ItemStore:
    """A store of "old" and "gone"; of "old" a newer write, and a "new" item, are in quarantine.

    The delete of "gone" is, too: another table refers to it.
    """
    store = await stores.open(request.param)
    await store.put("old", {"n": 0}, durability=COMMIT)
    await store.put("gone", {"n": 0}, durability=COMMIT)
    stores.psql(REFUSE)
    stores.psql("CREATE TABLE reference AS SELECT 'gone'::text COLLATE \"C\" AS id")
    stores.psql("ALTER TABLE reference ADD FOREIGN KEY (id) REFERENCES items")
    for item_id in ("old", "new"):
        with pytest.raises(ItemQuarantined):
            await soon(store.put(item_id, {"n": -1}, durability=COMMIT))
    with pytest.raises(ItemQuarantined):
        await soon(store.delete("gone", durability=COMMIT))
    return store


async def get(store: ItemStore, item_id: str) -> Any:
    return data_of(await soon(store.get(item_id)))


async def parked(store: ItemStore) -> list[tuple[str, bytes | None]]:
    found = [(each.change.id, each.change.data) for each in await store.quarantine.list()]
    assert {item_id for item_id, _ in found} == set(store.queue.parked)
    return found


ALL = [("old", b'{"n":-1}'), ("new", b'{"n":-1}'), ("gone", None)]


async def test_the_list_tells_what_was_refused_and_why(store: ItemStore) -> None:
    """The list is in the order of versions, with the data, PostgreSQL's reason and the time."""
    assert ALL == await parked(store)
    listed = await store.quarantine.list()
    assert ["no_negative" in each.reason for each in listed] == [True, True, False]
    assert "reference" in listed[2].reason
    item = await store.get("old")
    assert item is not None
    assert item.version == listed[0].change.version < listed[1].change.version
    assert all(each.change.version <= each.at_us for each in listed)
    assert listed[1] == await store.quarantine.get("new") or listed[1].change.id == "new"


async def test_a_retry_is_refused_while_the_rule_stands(store: ItemStore) -> None:
    """Retrying too early raises the reason again, and all is as it was."""
    for item_id in ("old", "new", "gone"):
        with pytest.raises(ItemQuarantined):
            await soon(store.quarantine.retry(item_id))
    assert ALL == await parked(store)
    assert [{"n": -1}, {"n": -1}, None] == [await get(store, i) for i in ("old", "new", "gone")]


async def test_a_retry_is_written_once_the_rule_is_gone(store: ItemStore, stores: Stores) -> None:
    """After the reason is mended the writes are in PostgreSQL, readable, and out of quarantine."""
    created = (await store.get("old")).created_at  # type: ignore[union-attr]
    stores.psql(ALLOW)
    stores.psql("DROP TABLE reference")
    for item_id in ("old", "new", "gone"):
        await soon(store.quarantine.retry(item_id))
    assert [] == await parked(store)
    assert [("new", '{"n":-1}'), ("old", '{"n":-1}')] == stores.psql(ITEMS)
    assert [{"n": -1}, {"n": -1}, None] == [await get(store, i) for i in ("old", "new", "gone")]
    item = await store.get("old")
    assert item is not None
    assert [(item.version, created)] == stores.psql(
        "SELECT version, created_at FROM items WHERE id = 'old'"
    )


async def test_what_is_discarded_is_as_postgresql_has_it(store: ItemStore, stores: Stores) -> None:
    """After a discard the item is the older one, or not there, or back; and it can be written."""
    for item_id in ("old", "new", "gone"):
        await soon(store.quarantine.discard(item_id))
    assert [] == await parked(store)
    assert [{"n": 0}, None, {"n": 0}] == [await get(store, i) for i in ("old", "new", "gone")]
    assert [("gone", '{"n":0}'), ("old", '{"n":0}')] == stores.psql(ITEMS)
    assert (await soon(store.put("new", {"n": 1}, durability=COMMIT))).is_new
    assert not (await soon(store.put("old", {"n": 1}, durability=COMMIT))).is_new


@pytest.mark.parametrize("call", ["retry", "discard", "get"])
async def test_what_is_not_in_quarantine_is_not_found(store: ItemStore, call: str) -> None:
    """An item that is not in quarantine, or not at all, is told so and left alone."""
    await store.put("fine", {"n": 1}, durability=COMMIT)
    for item_id in ("fine", "none"):
        with pytest.raises(ItemNotFound, match=item_id):
            await soon(getattr(store.quarantine, call)(item_id))
    assert {"n": 1} == await get(store, "fine")


async def test_a_newer_write_is_not_undone_by_a_retry(store: ItemStore, stores: Stores) -> None:
    """An item written since is left alone, committed or not."""
    write = gates(store).hold("write")
    await store.put("old", {"n": 5}, durability=MEMORY)
    await write.reached()
    stores.psql(ALLOW)
    with pytest.raises(PreconditionFailed):
        await soon(store.quarantine.retry("old"))
    write.open()
    await soon(store.flush())
    with pytest.raises(ItemNotFound):
        await soon(store.quarantine.retry("old"))
    assert {"n": 5} == await get(store, "old")
    assert ("old", '{"n":5}') in stores.psql(ITEMS)


async def test_a_delete_is_not_undone_by_a_retry(store: ItemStore, stores: Stores) -> None:
    """A delete accepted since, not yet committed, is not undone by retrying the older write."""
    write = gates(store).hold("write")
    await store.delete("old", durability=MEMORY)
    await write.reached()
    stores.psql(ALLOW)
    retrying = start(store.quarantine.retry("old"))
    await turns()
    write.open()
    with pytest.raises((PreconditionFailed, ItemNotFound)):
        await soon(retrying)
    assert await get(store, "old") is None


async def test_a_newer_write_is_not_undone_by_a_discard(store: ItemStore, stores: Stores) -> None:
    """Discarding an older write leaves a newer one that waits, and a delete."""
    write = gates(store).hold("write")
    await store.put("old", {"n": 5}, durability=MEMORY)
    await store.delete("new", durability=MEMORY)
    await write.reached()
    for item_id in ("old", "new"):
        await soon(store.quarantine.discard(item_id))
    assert [{"n": 5}, None] == [await get(store, item_id) for item_id in ("old", "new")]
    write.open()
    await soon(store.flush())
    assert [{"n": 5}, None] == [await get(store, item_id) for item_id in ("old", "new")]
    assert [("gone", '{"n":0}'), ("old", '{"n":5}')] == stores.psql(ITEMS)


async def test_a_write_during_the_discard_stays(store: ItemStore, stores: Stores) -> None:
    """What is written while the discard asks PostgreSQL is not overwritten by its answer."""
    states = gates(store).hold("states", "after")
    discarding = start(store.quarantine.discard("old"))
    await states.reached()
    await soon(store.put("old", {"n": 7}, durability=MEMORY))
    states.open()
    await soon(discarding)
    await soon(store.flush())
    assert {"n": 7} == await get(store, "old")
    assert ("old", '{"n":7}') in stores.psql(ITEMS)


async def test_while_postgresql_is_away_nothing_is_given_up(store: ItemStore) -> None:
    """Without PostgreSQL each call is an error, what is parked is served, and nothing is lost."""
    gates(store).cut_off()
    for call in (store.quarantine.list(), store.quarantine.get("new")):
        with pytest.raises(DatabaseUnavailable):
            await soon(call)
    with pytest.raises(DatabaseUnavailable):
        await soon(store.quarantine.discard("old"))
    assert {"n": -1} == await get(store, "old")
    gates(store).join()
    assert ALL == await parked(store)


async def test_a_restart_keeps_everything(store: ItemStore, stores: Stores) -> None:
    """After a restart all of it is in quarantine, served, and can be retried or given up."""
    await soon(store.close())
    again = await stores.open(store.options.skip_items_preload)
    assert ALL == await parked(again)
    assert [{"n": -1}, {"n": -1}, None] == [await get(again, i) for i in ("old", "new", "gone")]
    await until(lambda: gates(again).counts["await_foreign_changes"])  # it is connected
    await soon(again.quarantine.discard("old"))
    stores.psql(ALLOW)
    await soon(again.quarantine.retry("new"))
    assert [{"n": 0}, {"n": -1}, None] == [await get(again, i) for i in ("old", "new", "gone")]
    assert [ALL[2]] == await parked(again)


async def test_it_goes_with_the_lease(store: ItemStore, stores: Stores) -> None:
    """A new holder has what is in quarantine, serves it, and can retry it; a standby serves it."""
    other = await stores.open(LAZY)
    await hand_over(store, other)
    assert ALL == await parked(other)
    assert [{"n": -1}, {"n": -1}, None] == [await get(other, i) for i in ("old", "new", "gone")]
    stores.psql(ALLOW)
    await soon(other.quarantine.retry("new"))
    assert [ALL[0], ALL[2]] == await parked(other)
    assert {"n": -1} == await get(store, "new")


async def former_and_holder(stores: Stores) -> tuple[ItemStore, ItemStore]:
    """A standby that held the lease before, and the holder; "bad" is in quarantine."""
    first = await stores.open(LAZY, hold_s=0.05)
    stores.psql(REFUSE)
    with pytest.raises(ItemQuarantined):
        await soon(first.put("bad", {"n": -1}, durability=COMMIT))
    second = await stores.open(LAZY)
    await hand_over(first, second)
    return first, second


async def test_a_standby_gives_nothing_up(stores: Stores) -> None:
    """A discard waits for the lease as writes do, and is refused in the end."""
    standby, holder = await former_and_holder(stores)
    with pytest.raises(NotHolder):
        await soon(standby.quarantine.discard("bad"))
    assert [("bad", b'{"n":-1}')] == await parked(holder)


async def test_a_standby_retries_nothing(stores: Stores) -> None:
    """A retry waits for the lease as well: what is listed is never said not to be there."""
    standby, holder = await former_and_holder(stores)
    assert ["bad"] == [each.change.id for each in await standby.quarantine.list()]
    with pytest.raises(NotHolder):
        await soon(standby.quarantine.retry("bad"))
    assert [("bad", b'{"n":-1}')] == await parked(holder)


async def test_what_a_former_holder_parks_is_the_holders_to_retry(stores: Stores) -> None:
    """An acknowledged write that is refused after the lease was lost is not out of reach.

    1. a write is acknowledged at memory; it is under way when another store takes the lease
    2. PostgreSQL refuses it: it goes into quarantine
    3. the new holder lists it; once the rule is gone it is retried there
    """
    holder = await stores.open(LAZY)
    former = await stores.open(LAZY)
    await hand_over(holder, former)
    stores.psql(REFUSE)
    write = gates(former).hold("write")
    await soon(former.put("bad", {"n": -1}, durability=MEMORY))
    await write.reached()
    await take_away(stores, former, holder)  # 1
    gates(former).open_all()
    await until(lambda: stores.psql("SELECT id FROM quarantine") == ["bad"])  # 2
    assert ["bad"] == [each.change.id for each in await holder.quarantine.list()]
    stores.psql(ALLOW)
    await soon(holder.quarantine.retry("bad"))  # 3
    assert [("bad", '{"n":-1}')] == stores.psql(ITEMS)


async def test_discards_at_once_leave_no_connection_behind(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that give something up at the same time use no more connections than one does."""
    first = await stores.open(LAZY)
    stores.psql(REFUSE)
    for item_id in ("a", "b"):
        with pytest.raises(ItemQuarantined):
            await soon(first.put(item_id, {"n": -1}, durability=COMMIT))
    await soon(first.close())
    opened = []
    connect = psycopg.AsyncConnection.connect

    async def connected(*args: Any, **named: Any) -> Any:
        opened.append(await connect(*args, **named))
        return opened[-1]

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", connected)
    second = stores.make(LAZY)
    watch = gates(second).hold("foreign_changes")
    await soon(second.start())
    await watch.reached()
    await soon(asyncio.gather(*(second.quarantine.discard(item_id) for item_id in ("a", "b"))))
    listeners = stores.psql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name LIKE 'itemstore listener%'"
    )
    watch.open()
    await soon(second.close())
    for each in opened:
        await each.close()
    assert len(listeners) <= 1


async def test_a_discard_that_is_given_up_does_not_cut_the_writers_connection(
    store: ItemStore, stores: Stores
) -> None:
    """Who gives up waiting for a discard takes no batch that is under way with him.

    1. a batch waits in PostgreSQL for a lock
    2. a discard begins, and is given up
    3. the lock is released
    """
    await store.put("a", {"n": 0}, durability=COMMIT)
    connection = await psycopg.AsyncConnection.connect(stores.dsn)
    async with connection:
        await connection.execute("SELECT FROM items WHERE id = 'a' FOR UPDATE")
        writing = start(store.put("a", {"n": 1}, durability=COMMIT))
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await until(lambda: stores.psql(waiting))  # 1
        discarding = start(store.quarantine.discard("new"))
        asked = gates(store).counts["discard"]
        await until(lambda: gates(store).counts["discard"] > asked - 1)
        await turns()
        discarding.cancel()
        await turns(100)  # 2
    await soon(writing)  # 3
    assert 0 == sum(store.persister.retries.values())
