"""The promises of ``storage.Storage`` about items, kept by both its bodies (``bodies.py``)."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import pytest

from itemstore.core import listing
from itemstore.core.audit import AuditQuery
from itemstore.core.cache import Row
from itemstore.core.index import indexes_for
from itemstore.core.queue import Change
from itemstore.storage import LIST_ORDERS, ListQuery, Storage, StorageRefused
from tests import walking
from tests.simulation.bodies import (
    NOW,
    Tables,
    claim,
    delete,
    described,
    recorded,
    row,
    upsert,
    write,
)
from tests.sql import loaded
from tests.walking import items

#: In byte order: one, two, three and four bytes of UTF-8 a character.
IDS: Final = ("A", "Z", "a", "a b", "a/b", "ab", "z", "é", "ü", "\u20ac", "\uffff", "\U0001f600")
EVERYTHING: Final = ListQuery(limit=1_000, bytes_max=10**9)


# --- write


async def test_an_item_comes_back_byte_for_byte(storage: Storage) -> None:
    """The data, the version and created_at come back as they were written, to the microsecond."""
    text = '{"b" : 1.50,"a":"\\u00e9 é 😀",\n "a":2}'.encode()
    change = upsert("é/1", NOW, text, created=NOW - 86_400_000_001)
    await write(storage, [change])
    assert await loaded(storage, ["é/1"]) == [row(change)]
    assert await items(storage) == [row(change)]
    assert await storage.select(EVERYTHING) == ([row(change)], None)


async def test_a_repeated_batch_changes_nothing(storage: Storage) -> None:
    """Writing a batch again, and again after a newer one, leaves the newer state as it is."""
    first = [upsert("a", NOW), upsert("b", NOW + 1), delete("c", NOW + 2)]
    second = [delete("a", NOW + 3), upsert("b", NOW + 4, b'{"n":2}'), upsert("c", NOW + 5)]
    for batch in (first, first, second, first, second, first):
        await write(storage, batch)
    assert await items(storage) == [row(second[1]), row(second[2])]


async def test_an_older_version_writes_nothing(storage: Storage) -> None:
    """An older write in a batch is passed over, and the newer ones beside it are committed."""
    await write(storage, [upsert("a", NOW + 10), upsert("b", NOW + 1)])
    await write(storage, [upsert("a", NOW + 9, b'{"old":1}'), upsert("b", NOW + 11, b'{"new":1}')])
    await write(storage, [delete("a", NOW + 8)])
    expected = [row(upsert("a", NOW + 10)), row(upsert("b", NOW + 11, b'{"new":1}'))]
    assert await items(storage) == expected


async def test_a_late_delete_leaves_no_tombstone(storage: Storage) -> None:
    """A delete older than the item buries nothing."""
    await write(storage, [upsert("a", NOW + 10)])
    await write(storage, [delete("a", NOW)])
    assert await storage.purge(NOW + 100) == 0


@pytest.mark.parametrize("existed", [True, False])
async def test_a_tombstone_keeps_an_older_write_out(storage: Storage, existed: bool) -> None:
    """After a delete no older write of the id brings an item back, whether it existed or not."""
    if existed:
        await write(storage, [upsert("a", NOW)])
    await write(storage, [delete("a", NOW + 5)])
    await write(storage, [upsert("a", NOW + 4)])
    await write(storage, [delete("a", NOW + 3)])
    await write(storage, [upsert("a", NOW + 4)])
    assert await items(storage) == []
    assert await loaded(storage, ["a"]) == []


async def test_a_newer_write_revives_and_clears_the_tombstone(storage: Storage) -> None:
    """A deleted id can be written anew, with a created_at of its own and no tombstone left."""
    revived = upsert("a", NOW + 2, b'{"life":2}')
    await write(storage, [upsert("a", NOW)])
    await write(storage, [delete("a", NOW + 1)])
    await write(storage, [revived])
    assert await items(storage) == [row(revived)]
    assert await storage.purge(NOW + 100) == 0


async def test_a_batch_is_committed_whole_or_not_at_all(tables: Tables, storage: Storage) -> None:
    """One refused row keeps the whole batch out, deletes and tombstones included."""
    await tables.refuse_poison()
    await write(storage, [upsert("a", NOW)])
    batch = [delete("a", NOW + 1), upsert("b", NOW + 2), upsert("poison", NOW + 3)]
    with pytest.raises(StorageRefused):
        await write(storage, batch)
    assert await items(storage) == [row(upsert("a", NOW))]
    assert await storage.purge(NOW + 100) == 0
    await write(storage, [delete("a", NOW + 1), upsert("b", NOW + 2)])
    assert await items(storage) == [row(upsert("b", NOW + 2))]


async def test_a_cancelled_write_does_not_break_the_next(storage: Storage) -> None:
    """After a write that was cancelled half-way the next one goes through, and so do reads."""
    for number in range(3):
        writing = asyncio.create_task(write(storage, [upsert("a", NOW + number)]))
        await asyncio.sleep(0.001 * number)
        writing.cancel()
        await asyncio.wait([writing])
    await write(storage, [upsert("a", NOW + 10)])
    assert await items(storage) == [row(upsert("a", NOW + 10))]


async def _write(storage: Storage, change: Change) -> None:
    await write(storage, [change])


# --- records


async def audited(storage: Storage) -> list[tuple[str, int]]:
    return [(each.id, each.version) for each in await storage.audit(AuditQuery(limit=100))]


async def answered(storage: Storage, *keys: str, since: int = 0) -> list[tuple[str, int, int]]:
    found = await storage.repetitions([("me", key) for key in keys], since)
    return sorted((each.key or "", each.position, each.version) for each in found)


async def test_records_are_committed_with_their_change(tables: Tables, storage: Storage) -> None:
    """A batch brings all its records or none, and again it brings no more."""
    await tables.refuse_poison()
    earlier = recorded(upsert("a", NOW), "k1").record
    assert earlier is not None
    change = recorded(upsert("a", NOW + 1), "k2")
    change.keep_earlier([earlier])
    batch = [change, recorded(delete("b", NOW + 2)), upsert("c", NOW + 3)]
    with pytest.raises(StorageRefused):
        await write(storage, [*batch, upsert("poison", NOW + 4)])
    assert ([], []) == (await audited(storage), await answered(storage, "k1", "k2"))
    for _ in range(2):
        await write(storage, batch)
        assert [("b", NOW + 2), ("a", NOW + 1), ("a", NOW)] == await audited(storage)
        expected = [("k1", 0, NOW), ("k2", 0, NOW + 1)]
        assert expected == await answered(storage, "k1", "k2", "k3")


async def test_a_record_comes_back_whole(storage: Storage) -> None:
    """Id, payload, times and data come back, for its caller's key alone."""
    change = recorded(upsert("é", NOW, '{"ü":1}'.encode(), NOW - 9), "k", position=3)
    gone = recorded(delete("gone", NOW + 1), "k", position=4)
    other = recorded(upsert("x", NOW), "k", caller="other")
    await write(storage, [gone, other, change])
    first, second = sorted(await storage.repetitions([("me", "k")], 0), key=lambda r: r.position)
    assert (change.id, change.entry, False) == (first.id, first.entry(b""), first.deleted)
    assert ("gone", NOW + 1, True) == (second.id, second.version, second.deleted)
    assert "payload" not in first.payload
    assert [] == await answered(storage, "k", since=NOW + 2)


async def test_the_newest_answer_of_a_key_wins(storage: Storage) -> None:
    """Also of two in one batch, and whatever comes late."""
    newer = recorded(upsert("b", NOW + 2), "k")
    await write(storage, [recorded(upsert("a", NOW + 1), "k"), newer])
    await write(storage, [recorded(upsert("c", NOW), "k")])
    assert [("k", 0, NOW + 2)] == await answered(storage, "k")


async def test_without_the_lease_records_go_with_what_was_acknowledged(storage: Storage) -> None:
    """A late batch leaves records of what was acknowledged, and of nothing else."""
    await write(storage, [upsert("a", NOW)])
    late = [
        recorded(upsert("told", NOW + 1), "k1"),
        recorded(upsert("untold", NOW + 2, is_acked=False), "k2"),
    ]
    assert not (await storage.write(late, claim("another"))).is_held
    assert [("told", NOW + 1)] == await audited(storage)
    assert [("k1", 0, NOW + 1)] == await answered(storage, "k1", "k2")


async def test_what_is_parked_has_its_records(tables: Tables, storage: Storage) -> None:
    """A change that was refused leaves them when it is quarantined, and later no second ones."""
    await tables.refuse_poison()
    change = recorded(upsert("poison", NOW), "k")
    for _ in range(2):
        await storage.quarantine(change, "a rule")
        assert [("poison", NOW)] == await audited(storage)
        assert [("k", 0, NOW)] == await answered(storage, "k")


async def test_old_answers_are_purged(storage: Storage) -> None:
    """Those of requests before a version are forgotten, in the end all of them."""
    await write(storage, [recorded(upsert(each, NOW + n), each) for n, each in enumerate("abc")])
    while await storage.purge_records(NOW + 2):
        pass
    assert [("c", 0, NOW + 2)] == await answered(storage, *"abc")
    assert 3 == len(await audited(storage))


# --- load, page, select


async def test_a_load_brings_those_that_exist(storage: Storage) -> None:
    """Of the ids asked for, a load brings the live ones and no others."""
    await write(storage, [upsert("a", NOW), upsert("b", NOW), upsert("c", NOW)])
    await write(storage, [delete("b", NOW + 1)])
    assert sorted(await loaded(storage, ["a", "b", "c", "d"])) == [
        row(upsert("a", NOW)),
        row(upsert("c", NOW)),
    ]
    assert await loaded(storage, ["d"]) == []


async def test_a_walk_brings_every_item(storage: Storage) -> None:
    """Pages lead through all items, each of them once as long as nothing changes."""
    await write(storage, [upsert(item_id, NOW) for item_id in sorted(IDS)])
    walked = await walking.walk(storage)
    assert sorted(item_id for item_id, _ in dict(walked).items()) == sorted(IDS)


async def test_a_walk_brings_what_changed_meanwhile(tables: Tables, storage: Storage) -> None:
    """Items that others change or add during a walk are brought in their newest state, last."""
    await write(storage, [upsert(item_id, NOW) for item_id in sorted(IDS)])
    walked, position = await storage.page(0)
    await tables.change_by_hand(IDS[0], b'{"by":"hand"}')
    await tables.change_by_hand(IDS[-1], b'{"by":"hand"}')
    await tables.change_by_hand("new", b"{}")
    while position is not None:
        page, position = await storage.page(position)
        walked += page
    newest = await loaded(storage, [*IDS, "new"])
    assert dict(walked) == dict(newest)


def some_items() -> list[Change]:
    """Items of which versions, creations and ids are each in an order of their own, with ties."""
    chance = random.Random(1)
    created = [NOW - chance.randrange(4) for _ in IDS]
    versions = chance.sample(range(NOW, NOW + 100), len(IDS))
    rows = zip(sorted(IDS), versions, created, strict=True)
    return [upsert(item_id, version, b'{"n":1}', at) for item_id, version, at in rows]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("order", LIST_ORDERS)
async def test_a_list_is_walked_in_its_order(
    storage: Storage, order: str, descending: bool
) -> None:
    """Keyset pages show every item once, in the order asked for, ids breaking ties."""
    changes = some_items()
    await write(storage, changes)

    def key(change: Change) -> tuple[int, str]:
        number = {"created": change.created_us, "updated": change.version, "id": 0}[order]
        return number, change.id

    changes.sort(key=key, reverse=descending)
    seen: list[Row] = []
    after = None
    while True:
        query = ListQuery(
            limit=5, bytes_max=10**9, order=order, descending=descending, after=after, count="exact"
        )
        page, count = await storage.select(query)
        assert count == len(IDS)
        if not page:
            break
        seen += page
        after = key(next(change for change in changes if change.id == page[-1][0]))
    assert seen == [row(change) for change in changes]


@pytest.mark.parametrize(
    "prefix", ["", "a", "a ", "é", "\uffff", "\U0001f600", "\ud7ff", "\U0010ffff", "%", "x"]
)
async def test_a_prefix_selects_by_the_bytes_it_begins_with(storage: Storage, prefix: str) -> None:
    """A list of a prefix holds and counts the ids that begin with it, wildcards unknown."""
    ids = sorted([*IDS, "\ud7ff1", "\ue000", "\U0010ffff\U0010ffff", "%", "_"])
    await write(storage, [upsert(item_id, NOW) for item_id in ids])
    expected = [item_id for item_id in ids if item_id.startswith(prefix)]
    query = ListQuery(limit=100, bytes_max=10**9, order="id", prefix=prefix, count="exact")
    page, count = await storage.select(query)
    assert [item_id for item_id, _ in page] == expected
    assert count == len(expected)


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a%", "a_", "\U0010ffff", "nobody"])
async def test_a_usage_is_of_a_prefix(storage: Storage, prefix: str) -> None:
    """Its items and the bytes of their data, without those that changed since."""
    ids = ("a", "a/1", "a/2", "a%", "a%b", "a_b", "axb", "b", "\U0010ffff", "\U0010ffffz")
    texts = (f'{{"n":{10**n}}}' for n in range(len(ids)))
    items_there = {each: text.encode() for each, text in zip(ids, texts, strict=True)}
    items_there["a/3"] = '{"é":"😀"}'.encode()
    await write(storage, [upsert(each, NOW, text) for each, text in sorted(items_there.items())])
    await write(storage, [delete("a/2", NOW + 1)])
    del items_there["a/2"]
    there = {each: len(text) for each, text in items_there.items() if each.startswith(prefix)}
    assert (len(there), sum(there.values())) == await storage.usage(prefix, list)
    changed = [each for each in ("a/1", "a/2", "a/9") if each.startswith(prefix)]
    rest = [size for each, size in there.items() if each not in changed]
    assert (len(rest), sum(rest)) == await storage.usage(prefix, lambda: changed)


async def test_filters_select_by_the_data(storage: Storage) -> None:
    """A list holds and counts the items that fulfil every filter, in the order of a field."""
    values = [b"2", b"10", b'"2"', b"null", b"[2]", b'"x"']
    changes = [upsert(f"i{n}", NOW + n, b'{"a":%b}' % value) for n, value in enumerate(values)]
    await write(storage, [*changes, upsert("none", NOW)])
    for filters, expected in (
        ({"data.a": "gte.2"}, ["i0", "i1"]),
        ({"data.a": "exists.true"}, ["i0", "i1", "i2", "i5", "i3", "i4"]),
        ({"data.a": "contains.2"}, ["i0", "i4"]),
        ({"data.a": ['neq."2"', "neq.null"], "id": "gt.i0"}, ["i1", "i5", "i4"]),
        ({"data.a": "exists.false"}, ["none"]),
    ):
        asked = listing.understand(order="data.a", count="exact", filters=filters).query
        page, count = await storage.select(asked)
        assert (expected, len(expected)) == ([item_id for item_id, _ in page], count)
        missing, _ = await storage.unserved(asked)
        assert list(indexes_for(asked.filters, asked.order)) == list(missing)


@pytest.mark.parametrize("bytes_max", [1, 17, 18, 36, 37, 1_000])
@pytest.mark.parametrize("descending", [False, True])
async def test_a_page_ends_with_the_item_that_passes_its_bytes(
    storage: Storage, bytes_max: int, descending: bool
) -> None:
    """A page of limited bytes holds at least one item and ends where the limit is reached."""
    await write(storage, [upsert(item_id, NOW) for item_id in "abcde"])  # 18 bytes each
    query = ListQuery(limit=4, bytes_max=bytes_max, order="id", descending=descending)
    page, _ = await storage.select(query)
    expected = min(4, -(-bytes_max // 18))
    ids = "edcba" if descending else "abcde"
    assert [item_id for item_id, _ in page] == list(ids[:expected])


# --- lease_ids


async def test_leased_blocks_never_overlap(tables: Tables) -> None:
    """Blocks leased one after another or at once, by this store or the next, share no id."""
    one, _ = await tables.open()
    blocks = [block for block, _ in await asyncio.gather(*(one.lease_ids(5) for _ in range(3)))]
    other, _ = await tables.open()
    blocks += [(await other.lease_ids(7))[0]]
    ids = [item_id for block in blocks for item_id in block.ids()]
    assert len(ids) == len(set(ids)) == 22
    assert len({block.key for block in blocks}) == 1


async def test_a_lease_tells_which_ids_are_taken(storage: Storage) -> None:
    """Ids of a block that clients have chosen already are told with it."""
    block, taken = await storage.lease_ids(4)
    assert taken == set()
    following = type(block)(block.first + 4, 4, block.key).ids()
    await write(storage, [upsert(item_id, NOW) for item_id in sorted(following[1:3])])
    block, taken = await storage.lease_ids(4)
    assert block.ids() == following
    assert taken == set(following[1:3])


# --- changes by other hands


async def test_the_stores_own_writes_are_not_foreign(storage: Storage) -> None:
    """Creating, replacing, deleting and reviving through the store notes nothing."""
    for number, change in enumerate((upsert, upsert, delete, upsert, delete)):
        await write(storage, [change("a", NOW + number)])
    assert await storage.foreign_changes() == []


async def test_a_change_by_hand_is_noted_with_a_new_version(
    tables: Tables, storage: Storage
) -> None:
    """Rows inserted, updated and deleted by hand get newer versions, and are noted in order."""
    await write(storage, [upsert("b", NOW, created=NOW - 5), upsert("c", NOW)])
    await tables.change_by_hand("a", b'{"n":1}')
    await tables.change_by_hand("b", b'{"n":2}')
    await tables.change_by_hand("c", None)
    changes = await storage.foreign_changes()
    assert [change.id for change in changes] == ["a", "b", "c"]
    assert [change.seq for change in changes] == sorted({change.seq for change in changes})
    a, b, c = (change.version for change in changes)
    assert NOW < a < b < c
    assert sorted(await items(storage)) == [
        row(upsert("a", a, b'{"n":1}')),
        row(upsert("b", b, b'{"n":2}', created=NOW - 5)),
    ]
    states = {state.id: state for state in await storage.states(["a", "b", "c", "d"])}
    assert [states[each].version for each in "abcd"] == [a, b, c, 0]
    assert [states[each].entry for each in "abcd"] == [
        upsert("a", a, b'{"n":1}').entry,
        upsert("b", b, b'{"n":2}', created=NOW - 5).entry,
        None,
        None,
    ]


async def test_older_writes_do_not_undo_a_change_by_hand(tables: Tables, storage: Storage) -> None:
    """A write accepted before the change by hand, and committed after it, changes nothing."""
    await write(storage, [upsert("a", NOW), upsert("b", NOW)])
    await tables.change_by_hand("a", b'{"by":"hand"}')
    await tables.change_by_hand("b", None)
    expected = await items(storage)
    await write(storage, [delete("a", NOW + 1), upsert("b", NOW + 1)])
    assert await items(storage) == expected


async def test_forgotten_changes_do_not_come_again(tables: Tables, storage: Storage) -> None:
    """What is taken over is forgotten and the rest stays; forgetting twice does nothing."""
    for item_id in "abc":
        await tables.change_by_hand(item_id, b"{}")
    changes = await storage.foreign_changes()
    grant = await storage.acquire(claim(), "process", None)
    assert grant is not None
    for _ in range(2):
        await storage.forget_foreign_changes([changes[0].seq, changes[2].seq], grant.epoch)
    assert await storage.foreign_changes() == [changes[1]]


async def test_waiting_for_changes_ends_by_itself(storage: Storage) -> None:
    """The wait for foreign changes is over at the time limit if nothing happens."""
    async with asyncio.timeout(5):
        await storage.await_foreign_changes(0.01)


# --- quarantine, release, open


async def test_a_parked_change_is_found_by_the_next_store(tables: Tables) -> None:
    """What is in quarantine, upsert or delete, comes back whole when a store is opened."""
    storage, found = await tables.open()
    assert found.parked == ()
    changes = [upsert("a", NOW, '{"é" :1}'.encode(), created=NOW - 7), delete("b", NOW + 1)]
    for change in changes:
        await storage.quarantine(change, "no reason")
        await storage.quarantine(change, "said twice")
    _, found = await tables.open()
    assert described(found.parked) == described(changes)
    assert await items(storage) == []


async def test_quarantine_keeps_the_newest_change_of_an_id(tables: Tables) -> None:
    """A newer change takes the place of an older one in quarantine, never the other way round."""
    storage, _ = await tables.open()
    for version in (NOW + 1, NOW + 2, NOW):
        await storage.quarantine(upsert("a", version), "no reason")
    _, found = await tables.open()
    assert described(found.parked) == described([upsert("a", NOW + 2)])


async def test_released_ids_are_forgotten(tables: Tables) -> None:
    """A release forgets what is parked of its ids and of no other; repeating it does nothing."""
    storage, _ = await tables.open()
    for item_id in "abc":
        await storage.quarantine(upsert(item_id, NOW), "no reason")
    for _ in range(2):
        await storage.release(["a", "c", "d"])
    _, found = await tables.open()
    assert described(found.parked) == described([upsert("b", NOW)])


@pytest.mark.parametrize("newer", [upsert("a", NOW + 1), delete("a", NOW + 1)])
async def test_what_a_newer_write_overtook_never_comes_back(tables: Tables, newer: Change) -> None:
    """A crash between a write and its release leaves nothing parked, purged tombstone or not."""
    storage, _ = await tables.open()
    await storage.quarantine(upsert("a", NOW), "no reason")
    await write(storage, [newer])
    storage, found = await tables.open()
    assert found.parked == ()
    await storage.purge(NOW + 100)
    _, found = await tables.open()
    assert found.parked == ()


async def test_the_older_item_does_not_overtake_what_is_parked(tables: Tables) -> None:
    """A parked change newer than the item or tombstone stays parked."""
    storage, _ = await tables.open()
    await write(storage, [upsert("a", NOW), delete("b", NOW)])
    parked = [upsert("a", NOW + 1), upsert("b", NOW + 2)]
    for change in parked:
        await storage.quarantine(change, "no reason")
    _, found = await tables.open()
    assert described(found.parked) == described(parked)


@pytest.mark.parametrize("where", ["item", "tombstone", "quarantine"])
async def test_no_version_up_to_the_newest_is_free(tables: Tables, where: str) -> None:
    """The newest version counts items, tombstones, quarantine and the server's own clock."""
    storage, found = await tables.open()
    assert found.newest_version >= NOW
    future = NOW + 3_600_000_000
    match where:
        case "item":
            await write(storage, [upsert("a", future)])
        case "tombstone":
            await write(storage, [delete("a", future)])
        case _:
            await storage.quarantine(upsert("a", future), "no reason")
    _, found = await tables.open()
    assert found.newest_version == future


# --- purge


async def test_a_purge_forgets_the_old_tombstones_only(storage: Storage) -> None:
    """A purge forgets tombstones before the version, says how many, and touches nothing else."""
    await write(storage, [upsert("live", NOW)])
    await write(storage, [delete(f"{n}", NOW + n) for n in range(5)])
    assert await storage.purge(NOW + 3) == 3
    assert await storage.purge(NOW + 3) == 0
    await write(storage, [upsert(f"{n}", NOW - 1) for n in range(5)])
    expected = ["0", "1", "2", "live"]  # nothing stands against these older writes any more
    assert [item_id for item_id, _ in await items(storage)] == expected


async def test_a_purge_ends_however_much_there_is(storage: Storage) -> None:
    """One call forgets a limited number; repeated until it says 0, all are forgotten."""
    ids = sorted(f"{n}" for n in range(2_500))
    await write(storage, [delete(item_id, NOW + n) for n, item_id in enumerate(ids)])
    counts = [await storage.purge(NOW + 10_000) for _ in range(4)]
    assert counts == [1_000, 1_000, 500, 0]
