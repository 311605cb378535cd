"""PostgreSQL loses its last commits, as in a failover: they are written again.

The loss is made by SQL with triggers off: the rows and the lease's row are put back to what they
were, so that the store cannot tell it from a standby that was promoted too early.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from itemstore import metrics
from itemstore.errors import ItemQuarantined
from itemstore.storage import StorageAway
from itemstore.store import ItemStore
from tests.stores import (
    COMMIT,
    EXPIRE,
    LAZY,
    MEMORY,
    Stores,
    cut_off,
    data_of,
    gates,
    soon,
    start,
    until,
)
from tests.test_races import turns

ITEMS = "SELECT id, data::text FROM items ORDER BY id"
TABLES = ("items", "tombstones", "quarantine", "writer_lease", "foreign_changes")


class Replica:
    """The tables as they were once, to be brought back in one transaction."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        with psycopg.connect(dsn) as connection:
            for table in TABLES:
                connection.execute(f"CREATE TABLE old_{table} AS TABLE {table}".encode())

    def promote(self, *, keep_epoch: bool = True) -> None:
        """From now on PostgreSQL has what the replica had."""
        with psycopg.connect(self._dsn) as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            for table in ("items", "tombstones", "quarantine"):
                connection.execute(f"DELETE FROM {table}".encode())
                connection.execute(f"INSERT INTO {table} TABLE old_{table}".encode())
            lost = "high_water, settled, clock" + ("" if keep_epoch else ", epoch, holder")
            connection.execute(
                f"UPDATE writer_lease SET ({lost}) = (SELECT {lost} FROM old_writer_lease)".encode()
            )


def number(store: ItemStore, name: str) -> float:
    return metrics.numbers(metrics.METRICS, store)[name]


REAPPLIED = "itemstore_writes_reapplied_total"


async def healed(stores: Stores, store: ItemStore) -> None:
    """Returns when the store has found the loss and written again what it had."""
    await until(lambda: number(store, REAPPLIED) > 0)
    await until(lambda: not store.lease.tail_lost)


async def three(stores: Stores, **options: Any) -> ItemStore:
    """A store of "a", "b" and "c", committed, with n 0."""
    store = await stores.open(LAZY, **options)
    for item_id in "abc":
        await store.put(item_id, {"n": 0}, durability=COMMIT)
    return store


async def test_what_was_lost_is_written_again_though_nothing_is_being_written(
    stores: Stores,
) -> None:
    """An idle store's heartbeat finds the loss; creates, updates and deletes are made again."""
    store = await three(stores)
    replica = Replica(stores.dsn)
    a = await store.put("a", {"n": 1}, durability=COMMIT)
    await store.delete("b", durability=COMMIT)
    await store.create({"n": 1}, item_id="d", durability=COMMIT)
    there = stores.psql("SELECT id, version, data::text, created_at FROM items ORDER BY id")
    graves = stores.psql("SELECT id, version FROM tombstones")
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    assert ["a", "b", "c"] == stores.psql("SELECT id FROM items ORDER BY id")
    renew.open()
    await healed(stores, store)
    assert there == stores.psql("SELECT id, version, data::text, created_at FROM items ORDER BY id")
    assert graves == stores.psql("SELECT id, version FROM tombstones")
    assert a == await soon(store.get("a"))


async def test_the_loss_is_told(stores: Stores) -> None:
    """The log has the error tail_lost with what was missing, and the metric counts the writes."""
    store = await three(stores)
    replica = Replica(stores.dsn)
    assert 0 == number(store, REAPPLIED)
    await store.put("a", {"n": 1}, durability=COMMIT)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    renew.open()
    await healed(stores, store)
    [lost] = [event for event in stores.logged if event["event"] == "tail_lost"]
    assert "error" == lost["level"]
    assert lost["high_water"] < lost["committed"]
    [again] = [event for event in stores.logged if event["event"] == "reapplying"]
    assert ("error", 3) == (again["level"], again["changes"])
    assert 3 == number(store, REAPPLIED)


async def test_a_store_that_lost_nothing_writes_nothing_again(stores: Stores) -> None:
    """Without a loss nothing is applied again, however often the store asks."""
    store = await three(stores)
    asked = gates(store).counts["renew"]
    await until(lambda: gates(store).counts["renew"] > asked + 5)
    assert 0 == number(store, REAPPLIED)
    assert "tail_lost" not in stores.logged.names()


async def test_a_batch_finds_the_loss(stores: Stores) -> None:
    """A commit is confirmed only when what was lost before it is there again."""
    store = await three(stores)
    replica = Replica(stores.dsn)
    await store.put("a", {"n": 1}, durability=COMMIT)
    gates(store).hold("renew")
    replica.promote()
    await soon(store.put("b", {"n": 2}, durability=COMMIT))
    assert [("a", '{"n":1}'), ("b", '{"n":2}'), ("c", '{"n":0}')] == stores.psql(ITEMS)
    assert 0 < number(store, REAPPLIED)


async def test_the_lease_is_regained_when_its_epoch_is_lost(stores: Stores) -> None:
    """Where the loss took the lease with it, the holder takes it again, and writes all again."""
    before = await stores.open(LAZY)
    await before.put("a", {"n": 0}, durability=COMMIT)
    await soon(before.close())
    replica = Replica(stores.dsn)
    store = await three(stores)
    epoch = store.lease.epoch
    await store.delete("b", durability=COMMIT)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote(keep_epoch=False)
    assert [("a", '{"n":0}')] == stores.psql(ITEMS)
    renew.open()
    await healed(stores, store)
    assert [("a", '{"n":0}'), ("c", '{"n":0}')] == stores.psql(ITEMS)
    assert epoch < store.lease.epoch
    assert ("holder", 0) == (store.lease.state, store.lease.lost)
    assert [(store.lease.name, store.lease.epoch)] == stores.psql(
        "SELECT holder, epoch FROM writer_lease"
    )
    assert "lease_regained" in stores.logged.names()


async def test_a_batch_on_its_way_when_the_lease_is_regained_is_sent_again(stores: Stores) -> None:
    """A batch under the lost epoch is no other's loss: it is written under the new one.

    1. a write at commit is on its way, under the epoch that gets lost
    2. PostgreSQL loses the epoch; the holder takes the lease again
    3. the batch arrives
    """
    before = await stores.open(LAZY)
    await soon(before.close())
    replica = Replica(stores.dsn)
    store = await three(stores)
    epoch = store.lease.epoch
    write = gates(store).hold("write")
    writing = start(store.put("a", {"n": 1}, durability=COMMIT))
    await write.reached()  # 1
    replica.promote(keep_epoch=False)
    await until(lambda: store.lease.epoch > epoch)  # 2
    write.open()
    await asyncio.wait([writing])  # 3
    cached = data_of(await soon(store.get("a")))
    await healed(stores, store)
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)[:1]
    assert {"n": 1} == cached
    await writing


async def test_a_newer_write_that_waits_wins(stores: Stores) -> None:
    """Applying again undoes nothing that was accepted since: newer writes and deletes stay.

    1. "a" and "b" are committed; newer changes of both are under way
    2. PostgreSQL loses the commits
    3. the newer changes arrive
    """
    store = await three(stores)
    replica = Replica(stores.dsn)
    for item_id in "ab":
        await store.put(item_id, {"n": 1}, durability=COMMIT)
    write = gates(store).hold("write")
    newer = await store.put("a", {"n": 2}, durability=MEMORY)
    await store.delete("b", durability=MEMORY)
    await write.reached()  # 1
    replica.promote()  # 2
    write.open()
    await healed(stores, store)
    await soon(store.flush())
    assert [("a", '{"n":2}'), ("c", '{"n":0}')] == stores.psql(ITEMS)  # 3
    assert newer == await soon(store.get("a"))
    assert await soon(store.get("b")) is None


async def test_another_hands_newer_change_wins(stores: Stores) -> None:
    """What a hand has changed since is newer than what is applied again."""
    store = await three(stores)
    replica = Replica(stores.dsn)
    await store.put("a", {"n": 1}, durability=COMMIT)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    stores.psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
    renew.open()
    await healed(stores, store)
    assert [("a", '{"by": "hand"}')] == stores.psql(ITEMS)[:1]
    await until(lambda: stores.psql("SELECT seq FROM foreign_changes WHERE taken_at IS NULL") == [])
    assert {"by": "hand"} == data_of(await soon(store.get("a")))


async def test_a_failure_amid_the_repetition_is_repeated(stores: Stores) -> None:
    """PostgreSQL fails while what was lost is written again: it is tried until it is done."""
    store = await three(stores)
    replica = Replica(stores.dsn)
    await store.put("a", {"n": 1}, durability=COMMIT)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    for place in ("before", "after", "before"):
        gates(store).hold("write", place, failing=StorageAway("lost")).open()
    renew.open()
    await healed(stores, store)
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)[:1]
    await soon(store.put("a", {"n": 2}, durability=COMMIT))


async def test_many_are_written_again_in_batches(stores: Stores) -> None:
    """More commits than a batch takes are all there again."""
    store = await stores.open(LAZY, batch_items_max=3)
    replica = Replica(stores.dsn)
    for n in range(10):
        await store.put(f"i{n}", {"n": n}, durability=MEMORY)
    await soon(store.flush())
    there = stores.psql(ITEMS)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    assert [] == stores.psql(ITEMS)
    renew.open()
    await healed(stores, store)
    assert (10, there) == (len(there), stores.psql(ITEMS))
    assert 10 == number(store, REAPPLIED)


async def test_a_row_that_is_refused_now_holds_up_no_other(stores: Stores) -> None:
    """One lost commit that a new rule refuses does not keep the others from being written again."""
    store = await three(stores)
    replica = Replica(stores.dsn)
    await store.put("a", {"n": 1}, durability=COMMIT)
    await store.put("b", {"n": -1}, durability=COMMIT)
    await store.put("c", {"n": 1}, durability=COMMIT)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    stores.psql("ALTER TABLE items ADD CHECK (data ->> 'n' NOT LIKE '-%')")
    renew.open()
    await healed(stores, store)
    there = stores.psql(ITEMS)
    assert [("a", '{"n":1}'), ("c", '{"n":1}')] == [row for row in there if row[0] != "b"]


async def test_who_loses_the_lease_in_the_failover_writes_again_as_well(stores: Stores) -> None:
    """A failover longer than the lease loses nothing that was confirmed either.

    1. a write is confirmed at commit; PostgreSQL fails over without it
    2. another store is the first to reach PostgreSQL again, and takes the lease, which is over
    3. the former holder reaches it
    """
    store = await three(stores)
    replica = Replica(stores.dsn)
    await store.put("a", {"n": 1}, durability=COMMIT)
    await cut_off(store)
    replica.promote()  # 1
    stores.psql(EXPIRE)
    other = await stores.open(LAZY)
    await until(lambda: other.lease.is_holder)  # 2
    gates(store).join()
    await until(lambda: not store.lease.epoch)
    await turns(1_000)
    await until(lambda: gates(store).counts["lease"] > 5)  # 3
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)[:1]


async def test_what_is_in_quarantine_stays_there(stores: Stores) -> None:
    """A refused write that the loss took out of the table is served on, as it was accepted."""
    store = await three(stores)
    stores.psql("ALTER TABLE items ADD CHECK (data ->> 'n' NOT LIKE '-%')")
    with pytest.raises(ItemQuarantined):
        await soon(store.put("a", {"n": -1}, durability=COMMIT))
    replica = Replica(stores.dsn)
    await store.put("b", {"n": 1}, durability=COMMIT)
    renew = gates(store).hold("renew")
    await renew.reached()
    replica.promote()
    renew.open()
    await healed(stores, store)
    assert {"n": -1} == data_of(await soon(store.get("a")))
    assert ["a"] == [each.change.id for each in await store.quarantine.list()]
