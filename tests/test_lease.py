"""The writer lease: of several stores over one database, one answers from its cache and writes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from itemstore import lease as lease_module
from itemstore.allocator import ID_BLOCK
from itemstore.core.item import Item
from itemstore.core.operation import Create, Get, Put
from itemstore.errors import DatabaseUnavailable, LeaseLost, NotHolder, Stopping
from itemstore.options import Preload
from itemstore.storage import StorageSlow
from itemstore.store import ItemStore, _now_us
from tests.stores import (
    COMMIT,
    DOWN,
    EXPIRE,
    FOR_EVER_S,
    FULL,
    HOUR_US,
    LAZY,
    MEMORY,
    Gated,
    Road,
    Stores,
    Time,
    cut_off,
    data_of,
    followed,
    gates,
    hand_over,
    soon,
    start,
    take_away,
    until,
)
from tests.test_races import block_of, turns

HOLDER = "SELECT holder FROM writer_lease"
ITEMS = "SELECT id, data::text FROM items ORDER BY id"


@pytest.fixture(params=[FULL, LAZY], ids=["preload", "on demand"])
def preload(request: pytest.FixtureRequest) -> Preload:
    mode: Preload = request.param
    return mode


async def get(store: ItemStore, item_id: str) -> Any:
    return data_of(await soon(store.get(item_id)))


async def read_all(store: ItemStore, ids: str) -> list[Any]:
    return [await get(store, item_id) for item_id in ids]


# --- who holds it, and how it is handed over


async def test_the_first_is_holder_and_the_second_standby(stores: Stores, preload: Preload) -> None:
    """A store alone holds the lease when it has started; one that comes later is a standby."""
    first = await stores.open(preload)
    assert ("holder", True) == (first.lease.state, first.is_ready)
    assert [(first.lease.name, first.lease.epoch)] == stores.psql(
        "SELECT holder, epoch FROM writer_lease"
    )
    gates(first).hold("let_go")
    second = await stores.open(preload)
    assert ("standby", 0, True) == (second.lease.state, second.lease.epoch, second.is_ready)
    assert [first.lease.name] == stores.psql(HOLDER)


async def test_a_warm_standby_is_handed_the_lease_with_nothing_dirty(stores: Stores) -> None:
    """The holder hands over once the standby is warm and what it has accepted is committed.

    1. the standby preloads; nobody asks for the lease
    2. the holder has a write under way; the standby is warm and asks
    3. the holder accepts nothing more, and commits what it has
    4. it hands over; the standby takes the lease under a later epoch
    """
    first = await stores.open()
    await first.put("a", {"n": 1}, durability=COMMIT)
    second = stores.make()
    page = gates(second).hold("page")
    await soon(second.start())
    await page.reached()
    await followed(second)
    assert [None] == stores.psql("SELECT wanted_by FROM writer_lease")  # 1
    write = gates(first).hold("write")
    await first.put("a", {"n": 2}, durability=MEMORY)
    await write.reached()
    page.open()
    await until(lambda: first.lease.state == "yielding")  # 2
    held = start(first.put("b", {}, durability=MEMORY))
    await turns()
    assert not held.done()
    assert ["standby", {"n": 2}] == [second.lease.state, await get(first, "a")]  # 3
    epoch = first.lease.epoch
    write.open()
    await hand_over(first, second)  # 4
    assert epoch < second.lease.epoch
    assert {"n": 2} == await get(second, "a")
    assert (0, 1) == (first.lease.lost, second.lease.taken)
    held.cancel()


async def test_a_standby_that_closes_asks_for_nothing_more(stores: Stores) -> None:
    """A standby that goes away leaves the lease to its holder, which accepts writes on."""
    first = await stores.open()
    second = stores.make()
    page = gates(second).hold("page")
    await soon(second.start())
    await page.reached()
    renew = gates(first).hold("renew")  # or it hears, and hands the lease over
    await renew.reached()
    stores.psql("UPDATE writer_lease SET wanted_by = %s", second.lease.name)
    await soon(second.close())
    assert [None] == stores.psql("SELECT wanted_by FROM writer_lease")
    renew.open()
    await soon(first.put("a", {}, durability=COMMIT))
    assert "holder" == first.lease.state


async def test_closing_gives_the_lease_back(stores: Stores) -> None:
    """After close() nobody holds the lease, and the next one has it at its start."""
    first = await stores.open()
    await first.put("a", {"n": 1}, durability=MEMORY)
    await soon(first.close())
    assert [(None, None)] == stores.psql("SELECT holder, process FROM writer_lease")
    second = await stores.open()
    assert "holder" == second.lease.state
    assert {"n": 1} == await get(second, "a")


async def test_a_closed_holder_is_followed_by_the_standby(stores: Stores, preload: Preload) -> None:
    """When the holder closes, the standby takes the lease with all that was accepted."""
    first = await stores.open(preload)
    await first.put("a", {"n": 1}, durability=MEMORY)
    second = stores.make(preload)
    want = gates(second).hold("want")
    await soon(first.close())
    want.open()
    await soon(second.start())
    await until(lambda: second.lease.is_holder)
    assert {"n": 1} == await get(second, "a")


async def test_each_that_asks_has_the_lease_in_turn(stores: Stores) -> None:
    """Of three stores one holds the lease; those that ask get it, and then it stays."""
    opened = [await stores.open(LAZY) for _ in range(3)]
    await until(lambda: [1, 1, 1] == [each.lease.taken for each in opened])
    await until(lambda: any(each.lease.state == "holder" for each in opened))
    [holder] = [each for each in opened if each.lease.is_holder]
    item = await soon(holder.put("a", {}, durability=COMMIT))
    assert [item] * 3 == [await soon(each.get("a")) for each in opened]
    assert [0, 0, 0] == [each.lease.lost for each in opened]


# --- writes on a standby


async def test_a_write_on_a_standby_waits_for_the_lease(stores: Stores, preload: Preload) -> None:
    """A write that comes before the lease is handed over is accepted as soon as it is."""
    first = await stores.open(preload)
    await first.put("a", {"n": 1}, durability=COMMIT)
    let_go = gates(first).hold("let_go")
    second = await stores.open(preload, hold_s=FOR_EVER_S)
    await let_go.reached()
    writing = start(second.patch("a", {"m": 2}, durability=COMMIT))
    creating = start(second.create({"n": 3}, durability=COMMIT))
    await turns()
    assert [False, False] == [writing.done(), creating.done()]
    let_go.open()
    assert {"n": 1, "m": 2} == (await soon(writing)).data
    assert {"n": 3} == (await soon(creating)).data
    assert second.lease.is_holder


async def test_a_write_on_a_standby_is_refused_in_the_end(stores: Stores, preload: Preload) -> None:
    """After hold_s a write gets NotHolder, and nothing was changed anywhere."""
    first = await stores.open(preload)
    await first.put("a", {"n": 1}, durability=COMMIT)
    let_go = gates(first).hold("let_go")
    second = await stores.open(preload, hold_s=0.05)
    await let_go.reached()
    for level in (MEMORY, COMMIT):
        with pytest.raises(NotHolder, match="Nothing was changed"):
            await soon(second.put("a", {"n": 2}, durability=level))
    with pytest.raises(NotHolder):
        await soon(second.create({}))
    assert (0, {"n": 1}) == (len(second.queue), await get(second, "a"))
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)


async def test_a_batch_on_a_standby_is_refused_once(stores: Stores) -> None:
    """A batch waits for the lease once, not once an operation; one of reads does not wait."""
    first = await stores.open(LAZY)
    await first.put("a", {"n": 1}, durability=COMMIT)
    let_go = gates(first).hold("let_go")
    second = await stores.open(LAZY, hold_s=0.1)
    await let_go.reached()
    with pytest.raises(NotHolder):
        await soon(second.batch([Get("a"), *(Put(f"i{n}", {}) for n in range(1_000))]))
    [item] = await soon(second.batch([Get("a")]))
    assert {"n": 1} == data_of(item)  # type: ignore[arg-type]
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)


async def test_a_batch_that_loses_the_lease_is_refused_from_there_on(stores: Stores) -> None:
    """Operations that follow the loss are refused at once, however long a write may wait.

    1. a batch has written "a"; its next operation waits for a generated id
    2. another store takes the lease
    3. the ids arrive
    """
    first = await stores.open(LAZY, hold_s=FOR_EVER_S, durability=MEMORY)
    second = await stores.open(LAZY)
    await hand_over(first, second)
    first, second = second, first
    ids = gates(first).hold("lease_ids", "after")
    running = start(first.batch([Put("a", {}), Create({}), Put("c", {})], durability=MEMORY))
    await ids.reached()  # 1
    await take_away(stores, first, second)
    gates(first).join()
    await until(lambda: not first.lease.epoch)  # 2
    ids.open()
    written, *refused = await soon(running)  # 3
    assert {} == data_of(written)  # type: ignore[arg-type]
    assert [NotHolder, NotHolder] == [type(each) for each in refused]
    await until(lambda: stores.psql(ITEMS) == [("a", "{}")])


async def test_a_closing_standby_refuses_who_waits_for_the_lease(stores: Stores) -> None:
    """At the close of a standby writes that wait are refused, and were not accepted."""
    first = await stores.open(LAZY)
    let_go = gates(first).hold("let_go")
    second = await stores.open(LAZY, hold_s=FOR_EVER_S)
    await let_go.reached()
    writing = start(second.put("a", {}))
    await turns()
    assert [] == await soon(second.close())
    with pytest.raises((Stopping, NotHolder)):
        await soon(writing)
    assert [] == stores.psql(ITEMS)


async def test_writes_that_wait_are_limited(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond so many that wait for the lease, a write is refused at once."""
    monkeypatch.setattr(lease_module, "HELD_MAX", 2)
    first = await stores.open(LAZY)
    let_go = gates(first).hold("let_go")
    second = await stores.open(LAZY, hold_s=FOR_EVER_S)
    await let_go.reached()
    waiting = [start(second.put(f"i{n}", {}, durability=MEMORY)) for n in range(2)]
    await turns()
    with pytest.raises(NotHolder):
        await soon(second.put("more", {}))
    let_go.open()
    await soon(asyncio.gather(*waiting))
    assert not second.lease._held


# --- reads on a standby


@pytest.fixture
async def pair(stores: Stores, preload: Preload) -> tuple[ItemStore, ItemStore]:
    """A holder, and a standby that held the lease before and has "a", "b" and "c" in its cache."""
    standby = await stores.open(preload)
    for item_id in "abc":
        await standby.put(item_id, {"n": 0}, durability=COMMIT)
    holder = await stores.open(preload)
    await hand_over(standby, holder)
    return holder, standby


async def test_a_standby_sees_every_commit_at_once(pair: tuple[ItemStore, ItemStore]) -> None:
    """What the holder has committed, a standby reads at once: new, replaced, deleted, revived."""
    holder, standby = pair
    assert await get(standby, "new") is None
    for n in range(5):
        await holder.put("a", {"n": n}, durability=COMMIT)
        assert {"n": n} == await get(standby, "a")
        await holder.create({"n": n}, item_id="new", durability=COMMIT)
        assert {"n": n} == await get(standby, "new")
        await holder.delete("new", durability=COMMIT)
        assert await get(standby, "new") is None
    await holder.delete("b", durability=COMMIT)
    assert [{"n": 4}, None, {"n": 0}] == await read_all(standby, "abc")
    assert "standby" == standby.lease.state


async def test_a_standby_that_preloads_sees_every_commit_at_once(stores: Stores) -> None:
    """Before, during and after its preload a standby reads what the holder has committed."""
    holder = await stores.open()
    await holder.put("a", {"n": 0}, durability=COMMIT)
    standby = stores.make()
    before, after = gates(standby).hold("page"), gates(standby).hold("page", "after")
    want = gates(standby).hold("want")
    await soon(standby.start())
    for n, gate in enumerate((before, after, want), 1):
        await gate.reached()
        await holder.put("a", {"n": n}, durability=COMMIT)
        await holder.put(f"new{n}", {}, durability=COMMIT)
        assert {"n": n} == await get(standby, "a")
        assert {} == await get(standby, f"new{n}")
        await holder.delete(f"new{n}", durability=COMMIT)
        assert await get(standby, f"new{n}") is None
        gate.open()


async def test_lists_on_a_standby_are_exact(pair: tuple[ItemStore, ItemStore]) -> None:
    """A list and its count on a standby have what the holder has committed, and no more."""
    holder, standby = pair
    await holder.delete("b", durability=COMMIT)
    await holder.create({"n": 1}, item_id="d", durability=COMMIT)
    await holder.put("c", {"n": 2}, durability=COMMIT)
    page = await soon(standby.list(order="id", count="exact"))
    assert [("a", {"n": 0}), ("c", {"n": 2}), ("d", {"n": 1})] == [
        (item.id, item.data) for item in page.items
    ]
    assert 3 == page.count
    assert page.items == (await soon(holder.list(order="id"))).items


async def test_a_standbys_list_waits_for_what_it_has_still_to_write(stores: Stores) -> None:
    """What a former holder had acknowledged is in its lists and reads, committed or not.

    1. the holder accepts a write at memory; the write is under way when another takes the lease
    2. the former holder is asked for the item, and for a list
    3. the write goes on
    """
    first = await stores.open(LAZY)
    second = await stores.open(LAZY)
    await hand_over(first, second)
    write = gates(second).hold("write")
    await second.put("a", {"n": 1}, durability=MEMORY)
    await write.reached()
    await take_away(stores, second, first)  # 1
    gates(second).join()
    await until(lambda: not second.lease.epoch)
    assert {"n": 1} == await get(second, "a")
    listing = start(second.list())
    await turns()
    assert not listing.done()  # 2
    write.open()
    assert ["a"] == [item.id for item in (await soon(listing)).items]  # 3


# --- what a new holder knows


@pytest.mark.parametrize("is_following", [True, False], ids=["following", "cut off"])
async def test_a_new_holder_knows_what_changed(
    stores: Stores, pair: tuple[ItemStore, ItemStore], is_following: bool
) -> None:
    """Updates, creates and deletes, the holder's and by hand, are in the next holder's cache."""
    holder, standby = pair
    assert await get(standby, "e") is None
    if not is_following:
        gates(standby).hold("lease")
    await holder.put("a", {"n": 1}, durability=COMMIT)
    await holder.delete("b", durability=COMMIT)
    await holder.create({"n": 2}, item_id="d", durability=COMMIT)
    await holder.put("x", {}, durability=COMMIT)
    await holder.delete("x", durability=COMMIT)
    stores.psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'c'""")
    stores.psql("""INSERT INTO items (id, data) VALUES ('e', '{"by": "hand"}')""")
    await until(lambda: stores.psql("SELECT seq FROM foreign_changes WHERE taken_at IS NULL") == [])
    if is_following:
        await followed(standby)
    await soon(holder.close())
    gates(standby).open_all()
    await until(lambda: standby.lease.is_holder)
    hand = {"by": "hand"}
    expected = [{"n": 1}, None, hand, {"n": 2}, hand, None]
    assert expected == await read_all(standby, "abcdex")
    for item_id, there in zip("abcdex", expected, strict=True):
        assert (there is not None) is ((await standby.list(prefix=item_id)).items != [])


async def test_a_new_holder_knows_of_changes_nobody_took_over(
    stores: Stores, pair: tuple[ItemStore, ItemStore]
) -> None:
    """Rows changed by hand after the holder's end are seen by its successor at once."""
    holder, standby = pair
    lease = gates(standby).hold("lease")
    await lease.reached()
    await soon(holder.close())
    stores.psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")
    stores.psql("DELETE FROM items WHERE id = 'b'")
    lease.open()
    await until(lambda: standby.lease.is_holder)
    assert [{"by": "hand"}, None, {"n": 0}] == await read_all(standby, "abc")


@pytest.mark.parametrize("is_taken_over", [True, False], ids=["taken over", "not yet"])
@pytest.mark.parametrize("is_following", [True, False], ids=["following", "cut off"])
async def test_a_new_holder_knows_of_a_truncate(
    stores: Stores, pair: tuple[ItemStore, ItemStore], is_taken_over: bool, is_following: bool
) -> None:
    """After a TRUNCATE by hand the next holder has what was written since, and nothing else."""
    holder, standby = pair
    if not is_following:
        await gates(standby).hold("lease").reached()
    if not is_taken_over:
        gates(holder).hold("foreign_changes")
        await until(lambda: gates(holder)._gates[("foreign_changes", "before")] == [])
    stores.psql("TRUNCATE items")
    await holder.put("new", {}, durability=COMMIT)
    if is_taken_over:
        await until(
            lambda: stores.psql("SELECT seq FROM foreign_changes WHERE taken_at IS NULL") == []
        )
        await soon(holder.close())
        gates(standby).open_all()
        await until(lambda: standby.lease.is_holder)
    else:
        gates(standby).open_all()
        await take_away(stores, holder, standby)
    assert [None, None, None] == await read_all(standby, "abc")
    assert {} == await get(standby, "new")


async def test_a_preloaded_standby_is_caught_up(stores: Stores) -> None:
    """What changed between a standby's preload and its lease is in its cache without a query."""
    holder = await stores.open()
    for item_id in "abc":
        await holder.put(item_id, {"n": 0}, durability=COMMIT)
    standby = stores.make()
    want = gates(standby).hold("want")
    await soon(standby.start())
    await want.reached()
    await holder.put("a", {"n": 1}, durability=COMMIT)
    await holder.delete("b", durability=COMMIT)
    await holder.create({"n": 2}, item_id="d", durability=COMMIT)
    want.open()
    await hand_over(holder, standby)
    assert standby.cache.hydrated
    queries = standby.loader.queries
    assert [{"n": 1}, None, {"n": 0}, {"n": 2}] == await read_all(standby, "abcd")
    assert queries == standby.loader.queries


@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_lease_that_comes_amid_the_preload(stores: Stores, place: Any) -> None:
    """A standby that has to take the lease while it preloads is exact then, and afterwards.

    1. a page of the preload is on its way, with the items as they were
    2. they are changed by the holder and by hand
    3. the holder is gone; the standby takes the lease
    4. the page arrives
    """
    holder = await stores.open()
    for item_id in "abcd":
        await holder.put(item_id, {"n": 0}, durability=COMMIT)
    standby = stores.make()
    page = gates(standby).hold("page", place)
    await soon(standby.start())
    await page.reached()  # 1
    await holder.put("a", {"n": 1}, durability=COMMIT)
    await holder.delete("b", durability=COMMIT)
    stores.psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'c'""")
    stores.psql("DELETE FROM items WHERE id = 'd'")
    await holder.create({"n": 2}, item_id="e", durability=COMMIT)  # 2
    await take_away(stores, holder, standby)  # 3
    expected = [{"n": 1}, None, {"by": "hand"}, None, {"n": 2}]
    assert expected == await read_all(standby, "abcde")
    assert not standby.cache.hydrated
    page.open()
    await until(lambda: standby.cache.hydrated)  # 4
    assert expected == await read_all(standby, "abcde")


# --- versions


@pytest.mark.parametrize("ending", ["handed over", "taken", "closed"])
async def test_versions_grow_across_holders(stores: Stores, ending: str) -> None:
    """A new holder's versions are newer than all before, also if the last one's clock was ahead.

    The last write of the former holder has not reached PostgreSQL when the lease is taken.
    """
    first = await stores.open(LAZY, now_us=lambda: _now_us() + HOUR_US)
    before = await first.put("a", {"n": 1}, durability=COMMIT)
    assert before.version > _now_us() + HOUR_US / 2
    if ending == "closed":
        await soon(first.close())
    second = stores.make(LAZY)
    if ending == "taken":
        write = gates(first).hold("write")
        before = await first.put("a", {"n": 2}, durability=MEMORY)
        await write.reached()
        await cut_off(first)
        stores.psql(EXPIRE)
    await soon(second.start())
    gates(second).open_all()
    await until(lambda: second.lease.is_holder)
    after = await soon(second.put("a", {"n": 3}, durability=COMMIT))
    assert before.version < after.version
    gates(first).open_all()
    await soon(first.close())
    assert [("a", '{"n":3}')] == stores.psql(ITEMS)
    assert {"n": 3} == await get(second, "a")


async def test_a_holder_whose_clock_is_behind_goes_on_after_the_last(stores: Stores) -> None:
    """Versions grow also if the new holder's clock is an hour behind."""
    first = await stores.open(LAZY)
    before = await first.put("a", {}, durability=COMMIT)
    second = await stores.open(LAZY, now_us=lambda: _now_us() - HOUR_US)
    await hand_over(first, second)
    after = [await second.put(item_id, {}, durability=COMMIT) for item_id in "ba"]
    assert before.version < after[0].version < after[1].version


# --- the lease is lost


@pytest.fixture
async def losing(stores: Stores, preload: Preload) -> tuple[ItemStore, ItemStore]:
    """A holder with "a", and a standby: a former holder, which asks for nothing."""
    standby = await stores.open(preload)
    await standby.put("a", {"n": 0}, durability=COMMIT)
    holder = await stores.open(preload, hold_s=0.05)
    await hand_over(standby, holder)
    return holder, standby


async def test_a_commit_that_meets_the_loss_is_not_made(
    stores: Stores, losing: tuple[ItemStore, ItemStore]
) -> None:
    """A commit under way when the lease is lost raises LeaseLost, and PostgreSQL does not have it.

    1. the holder's batch is under way: an update, a create and a delete
    2. the standby takes the lease
    3. the batch arrives
    """
    former, holder = losing
    await former.put("b", {"n": 0}, durability=COMMIT)
    write = gates(former).hold("write")
    writers = [
        start(former.put("a", {"n": 1}, durability=COMMIT)),
        start(former.create({"n": 1}, item_id="new", durability=COMMIT)),
        start(former.delete("b", durability=COMMIT)),
    ]
    await write.reached()  # 1
    await turns()
    await take_away(stores, former, holder)  # 2
    gates(former).join()
    write.open()
    for writer in writers:
        with pytest.raises(LeaseLost, match="Read the item"):
            await soon(writer)  # 3
    assert [("a", '{"n":0}'), ("b", '{"n":0}')] == stores.psql(ITEMS)
    for each in (former, holder):
        assert [{"n": 0}, None, {"n": 0}] == [await get(each, i) for i in ("a", "new", "b")]
    assert (0, 3) == (len(former.queue), former.queue.fenced)
    assert (1, "standby") == (former.lease.lost, former.lease.state)


async def test_an_acknowledged_write_survives_the_loss(
    stores: Stores, losing: tuple[ItemStore, ItemStore]
) -> None:
    """What was acknowledged at memory is written after the loss, and the new holder sees it."""
    former, holder = losing
    assert {"n": 0} == await get(holder, "a")
    write, watch = gates(former).hold("write"), gates(former).hold("foreign_changes")
    await former.put("a", {"n": 1}, durability=MEMORY)
    await former.create({"n": 1}, item_id="new", durability=MEMORY)
    await write.reached()
    await watch.reached()
    await take_away(stores, former, holder)
    assert {"n": 0} == await get(holder, "a")
    gates(former).join()
    write.open()
    await until(lambda: not len(former.queue))
    assert [("a", '{"n":1}'), ("new", '{"n":1}')] == stores.psql(ITEMS)
    await until(lambda: stores.psql("SELECT seq FROM foreign_changes WHERE taken_at IS NULL") == [])
    assert [{"n": 1}] * 2 == [await get(holder, item_id) for item_id in ("a", "new")]
    assert 0 == former.queue.fenced


async def test_a_late_write_does_not_undo_the_new_holders(
    stores: Stores, losing: tuple[ItemStore, ItemStore]
) -> None:
    """What the former holder had acknowledged gives way to what the new one wrote since."""
    former, holder = losing
    write = gates(former).hold("write")
    await former.put("a", {"n": 1}, durability=MEMORY)
    await former.put("b", {"n": 1}, durability=MEMORY)
    await write.reached()
    await take_away(stores, former, holder)
    await holder.put("a", {"n": 2}, durability=COMMIT)
    await holder.put("b", {"n": 2}, durability=COMMIT)
    await holder.delete("b", durability=COMMIT)
    gates(former).join()
    await until(lambda: not former.lease.epoch)
    assert [{"n": 2}, None] == await read_all(former, "ab")
    write.open()
    await until(lambda: not len(former.queue))
    assert [("a", '{"n":2}')] == stores.psql(ITEMS)
    for each in (former, holder):
        assert [{"n": 2}, None] == await read_all(each, "ab")


async def test_a_former_holder_forgets_its_cache(
    stores: Stores, losing: tuple[ItemStore, ItemStore]
) -> None:
    """Who has lost the lease answers as a standby, and is exact again when it takes it back."""
    former, holder = losing
    await former.put("b", {"n": 0}, durability=COMMIT)
    assert await get(former, "none") is None
    await take_away(stores, former, holder)
    await holder.put("a", {"n": 1}, durability=COMMIT)
    await holder.delete("b", durability=COMMIT)
    await holder.put("none", {"n": 1}, durability=COMMIT)
    gates(former).join()
    await until(lambda: not former.lease.epoch)
    assert [{"n": 1}, None, {"n": 1}] == [await get(former, i) for i in ("a", "b", "none")]
    with pytest.raises(NotHolder):
        await soon(former.put("a", {}))
    await soon(holder.close())
    await until(lambda: former.lease.is_holder)
    assert [{"n": 1}, None, {"n": 1}] == [await get(former, i) for i in ("a", "b", "none")]
    assert {"n": 2} == (await soon(former.put("a", {"n": 2}, durability=COMMIT))).data
    assert (1, 2) == (former.lease.lost, former.lease.taken)


async def test_who_loses_the_lease_while_preparing_never_acts(stores: Stores) -> None:
    """A standby whose new lease is gone before it is ready stays a standby.

    1. the standby has taken the lease; its first heartbeat is under way
    2. its time is over; a third store takes the lease
    3. the heartbeat arrives
    """
    first = await stores.open(LAZY)
    await first.put("a", {"n": 0}, durability=COMMIT)
    second = await stores.open(LAZY)
    renew = gates(second).hold("renew")
    await renew.reached()
    assert "preparing" == second.lease.state  # 1
    await soon(first.close())
    gates(second).cut_off()
    stores.psql(EXPIRE)
    third = await stores.open(LAZY)
    await until(lambda: third.lease.is_holder)  # 2
    await third.put("a", {"n": 1}, durability=COMMIT)
    gates(second).open_all()
    await until(lambda: second.lease.state == "standby")  # 3
    assert {"n": 1} == await get(second, "a")
    assert 0 == second.lease.taken


async def test_who_is_handing_over_does_not_answer_from_its_cache(stores: Stores) -> None:
    """Between PostgreSQL's release of the lease and word of it, a read asks PostgreSQL.

    1. the holder gives the lease back; the answer is under way
    2. the standby takes it and commits
    3. the former holder is asked
    """
    first = await stores.open(LAZY)
    await first.put("a", {"n": 0}, durability=COMMIT)
    let_go = gates(first).hold("let_go", "after")
    second = await stores.open(LAZY)
    await let_go.reached()  # 1
    await until(lambda: second.lease.is_holder)
    await soon(second.put("a", {"n": 1}, durability=COMMIT))  # 2
    reading = start(first.get("a"))
    await turns()
    let_go.open()
    assert {"n": 1} == data_of(await soon(reading))  # 3


# --- time


async def overtaken(stores: Stores, **options: Any) -> tuple[ItemStore, Time]:
    """A holder that is frozen, and its clock; another has taken the lease and changed "a"."""
    time = Time()
    frozen = await stores.open(LAZY, monotonic=time, **options)
    await frozen.put("a", {"n": 0}, durability=COMMIT)
    stores.psql(EXPIRE)
    other = await stores.open(LAZY)
    await until(lambda: other.lease.is_holder)
    await other.put("a", {"n": 1}, durability=COMMIT)
    return frozen, time


async def test_a_frozen_holder_asks_before_it_answers(stores: Stores) -> None:
    """Who wakes after its lease's time answers and accepts nothing before it has asked.

    1. the holder is frozen; its lease ends, and another store takes it and commits
    2. it wakes; a cached item is asked for, another is to be written
    3. PostgreSQL answers
    """
    frozen, time = await overtaken(stores, hold_s=0.2)  # 1
    renew = gates(frozen).hold("renew")
    time.now_s += 9.0  # of its 10
    reading = start(frozen.get("a"))
    writing = start(frozen.put("b", {}, durability=MEMORY))
    await renew.reached()
    await turns()
    assert [False, False] == [reading.done(), writing.done()]  # 2
    assert 0 == len(frozen.queue)
    renew.open()
    assert {"n": 1} == data_of(await soon(reading))  # 3
    with pytest.raises(NotHolder):
        await soon(writing)
    assert "standby" == frozen.lease.state


async def test_a_frozen_holder_that_kept_the_lease_goes_on(stores: Stores) -> None:
    """Who wakes after its lease's time, and finds that nobody took it, goes on from its cache."""
    time = Time()
    frozen = await stores.open(LAZY, monotonic=time)
    await frozen.put("a", {"n": 0}, durability=COMMIT)
    queries = frozen.loader.queries
    time.now_s += 1_000.0
    assert {"n": 0} == await get(frozen, "a")
    assert (await soon(frozen.put("b", {}, durability=COMMIT))).is_new
    assert ("holder", 0, 1) == (frozen.lease.state, frozen.lease.lost, frozen.lease.taken)
    assert queries + 1 == frozen.loader.queries  # of "b"


async def test_a_frozen_holder_that_wakes_while_postgresql_is_down_accepts_nothing(
    stores: Stores,
) -> None:
    """Who cannot ask whether the lease was taken meanwhile accepts no write.

    1. the holder is frozen; its lease ends, and another store takes it
    2. PostgreSQL is stopped; the frozen one wakes
    """
    time = Time()
    frozen = await stores.open(LAZY, monotonic=time, hold_s=0.05)
    await frozen.put("a", {"n": 0}, durability=COMMIT)
    stores.psql(EXPIRE)
    other = await stores.open(LAZY)
    await until(lambda: other.lease.is_holder)  # 1
    gates(frozen).cut_off(DOWN)
    time.now_s += 1_000.0
    with pytest.raises(NotHolder):
        await soon(frozen.put("a", {"n": 1}, durability=MEMORY))  # 2


async def test_a_frozen_holder_that_wakes_and_cannot_ask_reads_nothing_old(stores: Stores) -> None:
    """A failed call says nothing about the time before it: the cache may be out of date.

    1. the holder is frozen; its lease ends, and another store takes it and commits
    2. it wakes; its heartbeats fail
    3. a heartbeat is answered
    """
    frozen, time = await overtaken(stores, load_timeout_s=0.05)  # 1
    gates(frozen).cut_off(StorageSlow("no answer within 4 s"))
    time.now_s += 9.0  # of its 10
    with pytest.raises(DatabaseUnavailable):
        await soon(frozen.get("a"))
    await asked_again(frozen)
    with pytest.raises(DatabaseUnavailable):
        await soon(frozen.get("a"))  # 2
    gates(frozen).join()
    await until(lambda: frozen.lease.state == "standby")  # 3
    assert {"n": 1} == await get(frozen, "a")


async def test_a_former_holder_takes_no_change_from_the_new_one(stores: Stores) -> None:
    """What other hands change is seen by the holder, though a former one does not know of it yet.

    1. the holder is frozen; its lease ends, and another store takes it
    2. a row is changed by hand; the new holder has not looked for such changes yet
    3. the former holder wakes and looks for them
    4. the new holder looks
    """
    time = Time()
    frozen = await stores.open(LAZY, monotonic=time)
    await frozen.put("a", {"by": "store"}, durability=COMMIT)
    watch = gates(frozen).hold("foreign_changes")
    await watch.reached()
    stores.psql(EXPIRE)
    other = await stores.open(LAZY)
    await until(lambda: other.lease.is_holder)
    assert {"by": "store"} == await get(other, "a")
    look = gates(other).hold("foreign_changes")
    await look.reached()  # 1
    stores.psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'a'""")  # 2
    looked = gates(frozen).counts["foreign_changes"]
    watch.open()
    await until(lambda: gates(frozen).counts["foreign_changes"] > looked)  # 3
    looked = gates(other).counts["foreign_changes"]
    look.open()
    await until(lambda: gates(other).counts["foreign_changes"] > looked + 1)  # 4
    assert {"by": "hand"} == await get(other, "a")


async def test_the_heartbeat_keeps_the_lease(stores: Stores) -> None:
    """With nothing to write the holder's heartbeats put the end of its lease off."""
    time = Time()
    store = await stores.open(LAZY, monotonic=time)
    ends = "SELECT expires_at FROM writer_lease"
    stores.psql(EXPIRE)
    before = stores.psql(ends)
    time.now_s += 1.0
    await until(lambda: stores.psql(ends) > before)
    assert [True] == stores.psql("SELECT expires_at > clock_timestamp() FROM writer_lease")
    assert [store.lease.name] == stores.psql(HOLDER)


async def test_a_batch_is_a_heartbeat(stores: Stores) -> None:
    """A commit extends the lease as a heartbeat does."""
    time = Time()
    store = await stores.open(LAZY, monotonic=time)
    stores.psql(EXPIRE)
    renewals = gates(store).counts["renew"]
    time.now_s += 0.01  # no heartbeat is due
    await store.put("a", {}, durability=COMMIT)
    assert [True] == stores.psql("SELECT expires_at > clock_timestamp() FROM writer_lease")
    assert renewals == gates(store).counts["renew"]


# --- others' leases


OTHERS = """
UPDATE writer_lease SET epoch = epoch + 1, holder = 'other', process = %s,
                        heartbeat = clock_timestamp(), wanted_by = NULL,
                        expires_at = clock_timestamp() + interval '1 hour'
"""


async def test_the_lease_of_a_dead_process_is_taken_at_once(stores: Stores) -> None:
    """A lease whose holder was a process of this machine and is gone does not hold anybody up."""
    await soon((await stores.open()).close())
    tell = "from itemstore import process; print(process.identity(), flush=True); input()"
    with subprocess.Popen(  # noqa: ASYNC220 - takes no time
        [sys.executable, "-c", tell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        identity = (await asyncio.to_thread(child.stdout.readline)).strip()
        stores.psql(OTHERS, identity)
        standby = await stores.open(LAZY, hold_s=0.01)
        with pytest.raises(NotHolder):
            await soon(standby.put("a", {}))
        assert "standby" == standby.lease.state
        child.kill()
    await until(lambda: standby.lease.is_holder)
    stores.psql(OTHERS, identity)
    at_start = await stores.open()
    await until(lambda: at_start.lease.is_holder or standby.lease.is_holder)


async def test_the_lease_of_another_machine_is_taken_when_its_time_is_over(stores: Stores) -> None:
    """Of another machine's process nothing is known: its lease is taken once it has expired."""
    await soon((await stores.open()).close())
    stores.psql(OTHERS, "another-boot 1 2 3")
    [epoch] = stores.psql("SELECT epoch FROM writer_lease")
    store = await stores.open(LAZY)
    await followed(store)
    assert "standby" == store.lease.state
    stores.psql(EXPIRE)
    await until(lambda: store.lease.is_holder)
    assert epoch < store.lease.epoch
    assert [store.lease.name] == stores.psql(HOLDER)


# --- PostgreSQL is away


@pytest.fixture
async def road(dsn: str) -> AsyncIterator[Road]:
    made = Road(dsn)
    await made.open()
    yield made
    await made.cut()


@pytest.fixture
async def on_road(road: Road, stores: Stores) -> Callable[..., Any]:
    """Opens a store whose way to PostgreSQL can be cut, with a clock of its own."""

    async def opened(**options: Any) -> ItemStore:
        await soon((await stores.open()).close())  # makes the tables
        return await stores.open(LAZY, pg=Gated(road.dsn), **options)

    return opened


async def asked_again(store: ItemStore) -> None:
    """Returns when the store has asked for its lease, and been answered or not."""
    asked = gates(store).counts["renew"]
    await until(lambda: gates(store).counts["renew"] > asked + 1)


async def test_while_postgresql_is_down_reads_and_memory_writes_go_on(stores: Stores) -> None:
    """While the server says that it lets nobody in, cached items are read and memory writes pass.

    The store asks again and again for three times the lease's time. Then PostgreSQL is back.
    """
    time = Time()
    store = await stores.open(LAZY, monotonic=time)
    store.lease._down_s = 2.0  # as it is with a lease of 10 s
    await store.put("a", {"n": 0}, durability=COMMIT)
    gates(store).cut_off(DOWN)
    for n in range(1, 21):
        time.now_s += 1.5
        await asked_again(store)
        assert {"n": n - 1} == await get(store, "a")
        await soon(store.put("a", {"n": n}, durability=MEMORY))
    assert "holder" == store.lease.state
    gates(store).join()
    await until(lambda: stores.psql(ITEMS) == [("a", '{"n":20}')])
    assert ("holder", 0) == (store.lease.state, store.lease.lost)


async def test_while_postgresql_is_silent_reads_go_on_and_writes_do_not(stores: Stores) -> None:
    """From a server that does not answer another may have the lease: reads go on, writes do not."""
    time = Time()
    store = await stores.open(LAZY, monotonic=time, hold_s=0.05)
    store.lease._down_s = 2.0  # as it is with a lease of 10 s
    await store.put("a", {"n": 0}, durability=COMMIT)
    gates(store).cut_off(StorageSlow("canceling statement due to timeout"))
    time.now_s += 1.0
    await soon(store.put("a", {"n": 1}, durability=MEMORY))  # the lease's time is not over
    for _ in range(20):
        time.now_s += 1.5
        await asked_again(store)
        assert {"n": 1} == await get(store, "a")
    for level in (MEMORY, COMMIT):
        with pytest.raises((NotHolder, DatabaseUnavailable)):
            await soon(store.put("a", {"n": 2}, durability=level))
    assert {"n": 1} == await get(store, "a")
    gates(store).join()
    await until(lambda: stores.psql(ITEMS) == [("a", '{"n":1}')])
    await until(lambda: store.lease.may_accept())
    assert {"n": 3} == (await soon(store.put("a", {"n": 3}, durability=MEMORY))).data


async def test_a_silent_server_keeps_no_reader_waiting(
    road: Road, on_road: Callable[..., Any]
) -> None:
    """A heartbeat to a server that does not answer ends within the share of the lease's time."""
    time = Time()
    store = await on_road(monotonic=time, lease_s=0.5)
    await store.put("a", {"n": 0}, durability=COMMIT)
    road.silence()
    for _ in range(5):
        time.now_s += 0.3  # of the 0.45 that it trusts its lease, and of the 0.4 after a failure
        async with asyncio.timeout(4.0):  # it is to take 0.2 s
            await asked_again(store)
            assert {"n": 0} == await get(store, "a")


# --- generated ids


async def test_generated_ids_never_meet_ids_chosen_under_another_holder(stores: Stores) -> None:
    """Ids leased before the lease was handed over are not given out after it came back."""
    first = await stores.open(LAZY, durability=MEMORY)
    block = []
    for _ in range(2):
        block += block_of(stores.dsn, ID_BLOCK)
        await first.create({})
    second = await stores.open(LAZY, durability=MEMORY)
    await hand_over(first, second)
    there = set(stores.psql("SELECT id FROM items"))
    chosen = [item_id for item_id in dict.fromkeys(block) if item_id not in there][:50]
    for item_id in chosen:
        await second.put(item_id, {"by": "hand"})
    await soon(second.close())
    await until(lambda: first.lease.is_holder)
    made = [(await soon(first.create({}))).id for _ in range(ID_BLOCK)]
    assert set() == set(made) & set(chosen)
    assert ID_BLOCK == len(set(made))
    assert [{"by": "hand"}] * 50 == [await get(first, item_id) for item_id in chosen]


async def test_ids_under_way_at_the_handover_are_forgotten_too(stores: Stores) -> None:
    """A block whose answer arrives after the lease was away and back is not given out.

    1. a block of ids is leased; the answer is under way
    2. the lease goes to another store, where somebody chooses the block's ids, and comes back
    3. the answer arrives
    """
    first = await stores.open(LAZY, durability=MEMORY)
    block = block_of(stores.dsn, ID_BLOCK)
    answer = gates(first).hold("lease_ids", "after")
    creator = start(first.create({"n": 1}))
    await answer.reached()  # 1
    second = await stores.open(LAZY, durability=MEMORY)
    await hand_over(first, second)
    await second.batch([Put(item_id, {"by": "hand"}) for item_id in block])
    await soon(second.close())
    await until(lambda: first.lease.is_holder)  # 2
    answer.open()
    assert (await soon(creator)).id not in block  # 3


async def test_a_first_holder_reads_what_it_finds_once(stores: Stores) -> None:
    """Over a table that others have filled, the preload does not take it all for changed."""
    await soon((await stores.open(LAZY)).close())  # makes the tables
    stores.psql("UPDATE writer_lease SET settled = 0")
    stores.psql(
        "INSERT INTO items (id, data) SELECT 'i' || n, '{}' FROM generate_series(1, 3000) AS n"
    )
    store = stores.make()
    renew = gates(store).hold("renew")
    starting = start(store.start())
    await until(lambda: store.cache.hydrated)
    renew.open()
    await soon(starting)
    assert 3000 == len(store.cache)
    assert gates(store).counts["page"] <= 3  # not once more a thousand at a time


async def test_a_batch_whose_loads_outlast_the_lease_waits_for_it(stores: Stores) -> None:
    """The heartbeat is late while items are loaded; then it is heard, and they are written."""
    store = await stores.open(LAZY)
    load = gates(store).hold("load")
    writing = asyncio.ensure_future(store.batch([Put("a", {"n": 1}), Get("a")]))
    await load.reached()
    store.lease.writes_until = float("-inf")
    load.open()
    put, got = await soon(writing)
    assert isinstance(put, Item)
    assert isinstance(got, Item)
    assert put.version == got.version
