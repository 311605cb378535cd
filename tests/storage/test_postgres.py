"""Every promise of ``storage.Storage``, checked on each major version of PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count, product
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from itemstore.core.cache import Row
from itemstore.core.ids import scramble
from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.storage import (
    LIST_ORDERS,
    LOAD_CONNECTIONS,
    Found,
    ListQuery,
    StorageAway,
    StorageBroken,
    StorageDown,
    StorageError,
    StorageRefused,
    StorageSlow,
    postgres,
    statements,
)
from itemstore.storage import walk as walk_module
from itemstore.storage.conditions import prefix_end
from itemstore.storage.postgres import LOAD_BYTES, POOL_MAX, Postgres
from itemstore.storage.session import classify
from tests.conftest import MAJORS_WANTED
from tests.sql import EMPTY, NO_CLAIM, Holder, loaded, make_database, query, tables
from tests.walking import items, walk

Another = Callable[[str], Holder]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW_US = 1_763_769_600_000_001
BYTES = 1_000_000  # a limit that does not matter

_numbers = count(1)


def upsert(
    item_id: str, version: int, data: bytes = b"{}", created_us: int | None = None
) -> Change:
    entry = pack(version, version if created_us is None else created_us, data)
    return Change(item_id, version, entry, deleted=False, now_s=0.0)


def delete(item_id: str, version: int) -> Change:
    return Change(item_id, version, pack(version, version, b""), deleted=True, now_s=0.0)


def row(change: Change) -> Row:
    return change.id, change.entry


def _version(change: Change) -> int:
    return change.version


@pytest.fixture(scope="module", params=MAJORS_WANTED, ids=lambda major: f"pg{major}")
def database(request: pytest.FixtureRequest, server: Callable[[int], str]) -> str:
    """A database on each major version in turn, for the tests that leave its tables as they are."""
    return make_database(server(request.param))


@pytest.fixture
async def db(database: str) -> AsyncIterator[Holder]:
    """The storage over it, open, and its tables empty."""
    storage = Holder(database)
    await storage.open()
    query(database, EMPTY)
    yield storage
    await storage.close()


@pytest.fixture
async def another() -> AsyncIterator[Another]:
    """Makes further storages, not yet open; closes them in the end."""
    async with AsyncExitStack() as stack:

        def make(dsn: str) -> Holder:
            storage = Holder(dsn)
            stack.push_async_callback(storage.close)
            return storage

        yield make


@pytest.fixture
async def own_db(each_dsn: str) -> AsyncIterator[Holder]:
    """The storage over a database of the test's own, open."""
    storage = Holder(each_dsn)
    await storage.open()
    yield storage
    await storage.close()


# --- write: idempotent, guarded by version


async def test_what_is_written_is_there(db: Holder, database: str) -> None:
    """A batch of upserts and deletes is applied as a whole."""
    await db.write([upsert("a", 1, b'{"n":1}'), delete("b", 2), upsert("c", 3)])
    assert tables(database) == ([("a", 1, '{"n":1}'), ("c", 3, "{}")], [("b", 2)])


async def test_the_newest_version_wins(db: Holder, database: str) -> None:
    """In whatever order an item's writes arrive, and however often, the newest of them stays.

    Every order, with repetitions, of three versions, each an upsert or a delete: one id for each.
    """
    kinds = list(product((upsert, delete), repeat=3))
    orders = list(product((1, 2, 3), repeat=4))
    histories = {
        f"{n}.{''.join(map(str, order))}": [
            kind[version - 1](f"{n}.{''.join(map(str, order))}", version) for version in order
        ]
        for n, kind in enumerate(kinds)
        for order in orders
    }
    for step in range(4):
        await db.write([history[step] for history in histories.values()])
        newest = [max(history[: step + 1], key=_version) for history in histories.values()]
        live = sorted((each.id, each.version, "{}") for each in newest if not each.deleted)
        dead = sorted((each.id, each.version) for each in newest if each.deleted)
        assert tables(database) == (live, dead)  # 4


async def test_repeating_a_batch_changes_nothing(db: Holder, database: str) -> None:
    """A batch that was applied already, or that newer ones have overtaken, has no effect."""
    batch = [upsert("a", 1), delete("b", 2), upsert("c", 3), delete("d", 4)]
    await db.write([upsert(item_id, 0) for item_id in "abd"])
    await db.write(batch)
    once = tables(database)
    await db.write(batch)
    assert tables(database) == once  # 4
    await db.write([delete("a", 5), upsert("b", 6), upsert("c", 7), delete("d", 8)])
    newer = tables(database)
    await db.write(batch)
    assert tables(database) == newer  # 4


async def test_times_are_exact_to_the_microsecond(db: Holder, database: str) -> None:
    """created_at and updated_at are the entry's creation time and the version, unrounded."""
    times = [0, 1, 999_999, NOW_US, NOW_US + 1, 2_147_483_647_999_999, 2**53 - 1]
    for number, us in enumerate(times):
        await db.write([upsert(str(number), us, created_us=us - 1), delete(f"x{number}", us)])
    moments = [EPOCH + timedelta(microseconds=us) for us in times]
    created = query(database, "SELECT created_at FROM items ORDER BY id")
    assert created == [moment - timedelta(microseconds=1) for moment in moments]
    assert query(database, "SELECT updated_at FROM items ORDER BY id") == moments
    assert query(database, "SELECT deleted_at FROM tombstones ORDER BY id") == moments


async def test_the_creation_time_is_the_writes(db: Holder, database: str) -> None:
    """An update carries the creation time along; an item that is created again gets a new one."""
    created_us = "SELECT (extract(epoch FROM created_at) * 1000000)::bigint FROM items"
    await db.write([upsert("a", 10)])
    await db.write([upsert("a", 20, created_us=10)])
    assert query(database, created_us) == [10]
    await db.write([delete("a", 30)])
    await db.write([upsert("a", 40)])
    assert query(database, created_us) == [40]
    await db.write([upsert("a", 60, created_us=55)])  # deleted and created again in one batch
    assert query(database, created_us) == [55]


# --- load and page


async def test_load_brings_those_that_exist(db: Holder) -> None:
    """Of the ids asked for those that exist come back packed, each once, byte for byte."""
    kept = [upsert("a", 5, b'{"b": 1,  "a":[1.50,1e2]}', created_us=3), upsert("\U0010ffff", 6)]
    await db.write([*kept, upsert("not asked for", 7), delete("deleted", 8)])
    rows = await loaded(db, ["\U0010ffff", "a", "deleted", "missing", "a"])
    assert sorted(rows) == [row(change) for change in kept]  # 8
    assert await loaded(db, []) == []


async def test_a_load_of_large_items_brings_some_at_a_time(db: Holder) -> None:
    """Asked again for those that did not come, it brings each of them once, and says when all."""
    large = [upsert(f"{n}", n, _json_without_pattern(1_000_000)) for n in range(1, 13)]
    for change in large:
        await db.write([change])
    ids = [change.id for change in large]
    found: list[Row] = []
    for left in (12, 7, 2):
        rows, total = await db.load(["missing", *ids])
        assert (total, len(rows)) == (left, min(5, left))
        assert sum(len(entry) for _, entry in rows) < LOAD_BYTES + 1_100_000
        found += rows
        ids = [each for each in ids if each not in dict(rows)]
    assert ids == []
    assert sorted(found) == sorted(row(change) for change in large)


def _json_without_pattern(size: int) -> bytes:
    """What PostgreSQL cannot compress."""
    return orjson.dumps({"a": random.Random(1).randbytes(size // 2).hex()})


async def test_a_walk_brings_all_items(db: Holder) -> None:
    """Following the positions brings every item, byte for byte."""
    ids = ["", "A", "Z", "a", "aa", "a\u00e9", "b", "z", "\u00e9", "\ud7ff", "\ue000", "\uffff"]
    ids = [*ids[1:], "\U00010000", "\U0010ffff"]
    changes = [upsert(item_id, 10 + n, b'{"n":%d}' % n) for n, item_id in enumerate(ids)]
    await db.write(changes)
    assert await items(db) == [row(change) for change in changes]
    assert sorted(ids, key=str.encode) == ids


async def many(db: Holder, count: int) -> None:
    """Items of 2 KB, ten seconds apart: a few make a block, and all of them several pages."""
    filler = b'{"x":"%s"}' % (b"x" * 2_000)
    for start in range(0, count, 500):
        await db.write(
            [upsert(f"{n:05}", (n + 1) * 10_000_000, filler) for n in range(start, start + 500)]
        )


async def test_a_walk_has_pages(db: Holder, database: str) -> None:
    """A table of many blocks comes in several pages: each item once, then what is not settled."""
    await many(db, 4_000)
    pages = 0
    position: int | None = 0
    while position is not None:
        _, position = await db.page(position)
        pages += 1
    assert pages > 2  # two of blocks at least, and one of what changed meanwhile
    assert (len(await walk(db)), len(await items(db))) == (8_000, 4_000)
    query(database, "UPDATE writer_lease SET settled = 9000000000000000")
    assert (len(await walk(db)), len(await items(db))) == (4_000, 4_000)


async def test_a_walk_never_brings_much_at_once(
    db: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where large items lie behind small ones: a page is a few of them, and all come once."""
    monkeypatch.setattr(walk_module, "OUTSIDE_BYTES", 1_000_000)
    await many(db, 1_000)
    chance = random.Random(1)
    large = [b'{"x":"%s"}' % chance.randbytes(150_000).hex().encode() for _ in range(30)]
    changes = [upsert(f"large {n:02}", NOW_US + n, data) for n, data in enumerate(large)]
    for start in range(0, len(changes), 10):
        await db.write(changes[start : start + 10])
    sizes = []
    rows: list[Row] = []
    position: int | None = 0
    while position is not None and position >= 0:
        page, position = await db.page(position)
        sizes.append(sum(len(entry) for _, entry in page))
        rows += page
    assert 1_030 == len(rows) == len(dict(rows))
    assert [dict(rows)[change.id] for change in changes] == [change.entry for change in changes]
    assert max(sizes) < 6 * walk_module.PAGE_BYTES  # as they are stored, compressed


async def test_a_walk_brings_what_moved(db: Holder, database: str) -> None:
    """Rows moved behind the walk by another instance's writes, and new ones, are brought too."""
    await many(db, 1_000)
    rows, position = await db.page(0)
    moved = [upsert(f"{n:05}", NOW_US + n) for n in range(990, 1_010)]
    await db.write(moved)
    query(database, "VACUUM items")
    while position is not None:
        page, position = await db.page(position)
        rows += page
    newest = dict(rows)
    assert len(newest) == 1_010
    assert [newest[change.id] for change in moved] == [change.entry for change in moved]


async def test_a_walk_brings_items_that_share_a_version(db: Holder) -> None:
    """More new items of one version than fit on a page are all brought."""
    await many(db, 500)
    rows, position = await db.page(0)
    same = [upsert(f"same {n:04}", NOW_US) for n in range(1_500)]
    await db.write(same)
    while position is not None:
        page, position = await db.page(position)
        rows += page
    assert len(dict(rows)) == 2_000


async def test_a_lost_walk_goes_on_where_it_was(db: Holder, database: str) -> None:
    """A page that failed can be asked for again, and the walk still brings everything."""
    await many(db, 1_000)
    rows, position = await db.page(0)
    assert query(database, TERMINATE, "itemstore preload %") == [True]
    assert position is not None
    with pytest.raises(StorageAway):
        await db.page(position)
    while position is not None:
        page, position = await db.page(position)
        rows += page
    assert len(dict(rows)) == 1_000


async def test_a_walk_begins_again_in_a_new_file(db: Holder, database: str) -> None:
    """A table rewritten during the walk is walked through again from the beginning."""
    await many(db, 1_000)
    rows, position = await db.page(0)
    query(database, "VACUUM FULL items")
    positions = []
    while position is not None:
        page, position = await db.page(position)
        rows += page
        positions.append(position)
    assert 0 in positions
    assert len(dict(rows)) == 1_000


# --- select


def by_order(changes: Sequence[Change], order: str, *, descending: bool) -> list[Change]:
    key: Callable[[Change], tuple[Any, ...]] = {
        "created": lambda change: (change.created_us, change.id.encode()),
        "updated": lambda change: (change.version, change.id.encode()),
        "id": lambda change: (change.id.encode(),),
    }[order]
    return sorted(changes, key=key, reverse=descending)


def end_of(order: str, change: Change) -> tuple[int, str]:
    return {"created": change.created_us, "updated": change.version, "id": 0}[order], change.id


#: With ties in both times, which only the id breaks.
TIED = [
    upsert(item_id, version=NOW_US + n // 3, created_us=NOW_US + (n * 7) % 10 // 3)
    for n, item_id in enumerate(
        ["b", "a", "\u00e9", "A", "\U0010ffff", "ab", "z", "Z", "0", "\uffff"]
    )
]


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("order", LIST_ORDERS)
async def test_lists_walk_in_their_order(db: Holder, order: str, descending: bool) -> None:
    """Each order, in both directions, by pages of any size, shows each item once, ties included."""
    await db.write(TIED)
    expected = [row(change) for change in by_order(TIED, order, descending=descending)]
    ends = {change.id: end_of(order, change) for change in TIED}
    for limit in (1, 2, 3, 100):
        walked: list[Row] = []
        while True:
            after = ends[walked[-1][0]] if walked else None
            page, count = await db.select(
                ListQuery(limit, BYTES, order=order, descending=descending, after=after)
            )
            assert count is None
            if not page:
                break
            walked += page
        assert walked == expected


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("order", LIST_ORDERS)
async def test_a_walk_is_not_moved_by_others(db: Holder, order: str, descending: bool) -> None:
    """What is inserted or deleted before the page's end, the end itself too, moves no item."""
    await db.write(TIED)
    expected = by_order(TIED, order, descending=descending)
    end = expected[4]
    before = upsert("~", NOW_US - 50) if not descending else upsert("~", NOW_US + 50)
    if order != "id":
        await db.write([before])
    await db.write([delete(change.id, NOW_US + 99) for change in expected[:5]])
    page, _ = await db.select(
        ListQuery(100, BYTES, order=order, descending=descending, after=end_of(order, end))
    )
    assert page == [row(change) for change in expected[5:]]


PREFIXED = [
    "a",
    "aa",
    "ab",
    "a\u00e9",
    "a\U0010ffff",
    "a\U0010ffff!",
    "b",
    "\ud7ff",
    "\ud7ffx",
    "\ue000",
    "\ue000x",
    "\u00e9",
    "\u00e9\u00e9",
    "\u00ea",
    "\U0010ffff",
    "\U0010ffffx",
    "\U0010ffff\U0010ffff",
    "%",
    "_",
    "\\",
    "'",
]


PREFIXES = [
    *("", "a", "aa", "ab", "b", "c", "ac", "%", "_", "\\", "'"),
    *("\u00e9", "\u00e9\u00e9", "a\u00e9", "\ud7ff", "\ue000"),
    *("\U0010ffff", "\U0010ffff\U0010ffff", "a\U0010ffff", "a\U0010ffff\U0010ffff"),
]


async def test_a_prefix_selects_what_begins_with_it(db: Holder) -> None:
    """A prefix of any characters selects exactly the ids that begin with it, and counts them."""
    await db.write([upsert(item_id, NOW_US) for item_id in PREFIXED])
    for prefix in PREFIXES:
        expected = sorted((i for i in PREFIXED if i.startswith(prefix)), key=str.encode)
        for descending in (False, True):
            rows, count = await db.select(
                ListQuery(100, BYTES, "id", descending=descending, prefix=prefix, count="exact")
            )
            assert [item_id for item_id, _ in rows] == expected[:: -1 if descending else 1]
            assert count == len(expected)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("", None),
        ("a", "b"),
        ("az", "a{"),
        ("\x7f", "\x80"),
        ("\ud7ff", "\ue000"),
        ("a\ud7ff", "a\ue000"),
        ("\uffff", "\U00010000"),
        ("\U0010ffff", None),
        ("\U0010ffff\U0010ffff", None),
        ("a\U0010ffff", "b"),
        ("\ud7ff\U0010ffff\U0010ffff", "\ue000"),
    ],
    ids=ascii,
)
def test_a_prefix_ends_before_the_next_code_point(prefix: str, end: str | None) -> None:
    """The end of a prefix is its last code point counted up, past surrogates and the last one."""
    assert prefix_end(prefix) == end
    if end is not None:
        for longer in ("", "\x01", "\U0010ffff" * 3):
            assert prefix.encode() <= (prefix + longer).encode() < end.encode()


async def test_a_count_is_of_all_that_match(db: Holder) -> None:
    """The count knows the prefix, but neither the limit nor where the page begins."""
    await db.write([upsert(f"a{n}", n) for n in range(7)] + [upsert("b", 8)])
    rows, count = await db.select(
        ListQuery(2, BYTES, "id", prefix="a", after=(0, "a4"), count="exact")
    )
    assert ([item_id for item_id, _ in rows], count) == (["a5", "a6"], 7)


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
async def test_a_page_ends_with_the_item_that_passes_its_bytes(
    db: Holder, descending: bool
) -> None:
    """A page has items until their entries reach its bytes, one at least, however large it is."""
    changes = [upsert(str(n), n, b'{"n":"%b"}' % (b"x" * 100 * n)) for n in range(1, 6)]
    await db.write(changes)
    expected = by_order(changes, "created", descending=descending)
    first, second = (len(change.entry) for change in expected[:2])
    for bytes_max, some in (
        (1, 1),
        (first, 1),
        (first + 1, 2),
        (first + second, 2),
        (first + second + 1, 3),
        (BYTES, 5),
    ):
        rows, _ = await db.select(ListQuery(100, bytes_max, descending=descending))
        assert rows == [row(change) for change in expected[:some]]


# --- ids


async def test_leased_blocks_never_overlap(db: Holder, database: str, another: Another) -> None:
    """Leases of two instances, many at once, give each number to one of them, under one key."""
    other = another(database)
    await other.open()
    leases = await asyncio.gather(*((db, other)[n % 2].lease_ids(1 + n) for n in range(40)))
    blocks = [block for block, _ in leases]
    numbers = [n for block in blocks for n in range(block.first, block.first + block.count)]
    assert sorted(numbers) == list(range(sum(range(1, 41))))
    assert len({block.key for block in blocks}) == 1
    assert all(not existing for _, existing in leases)


async def test_a_lease_tells_which_ids_exist(db: Holder) -> None:
    """Ids of the block that clients chose before are told, so that they are not generated."""
    block, _ = await db.lease_ids(3)
    following = [scramble(number, block.key) for number in range(3, 8)]
    await db.write([upsert(following[1], 1), upsert(following[4], 2), upsert("other", 3)])
    block, existing = await db.lease_ids(5)
    assert block.ids() == following
    assert existing == {following[1], following[4]}


# --- purge


async def test_old_tombstones_are_purged_in_portions(db: Holder, database: str) -> None:
    """Only tombstones below the version go, up to 1,000 a call, the oldest first; items stay."""
    await db.write([delete(f"t{n}", n) for n in range(1, 1_601)] + [upsert("a", 1)])
    assert await db.purge(1) == 0
    assert await db.purge(1_501) == 1_000
    assert query(database, "SELECT min(version), count(*) FROM tombstones") == [(1_001, 600)]
    assert await db.purge(1_501) == 500
    assert await db.purge(1_501) == 0
    assert query(database, "SELECT min(version), count(*) FROM tombstones") == [(1_501, 100)]
    assert query(database, "SELECT id FROM items") == ["a"]


# --- quarantine


def parked(found: Found) -> list[tuple[str, int, bytes | None, int]]:
    changes = [each.change for each in found.parked]
    return [(each.id, each.version, each.data, each.created_us) for each in changes]


async def test_what_is_quarantined_is_found_at_the_next_start(
    db: Holder, database: str, another: Another
) -> None:
    """Refused upserts and deletes, JSON or not, are found again as they were accepted."""
    kept = [
        upsert("a", NOW_US, b'{"a": "\xc3\xa9"}', created_us=NOW_US - 1),
        upsert("b", NOW_US + 1, b"no json"),
        delete("c", NOW_US + 2),
    ]
    for change in reversed(kept):
        await db.quarantine(change, f"because {change.id}")
    other = another(database)
    found = await other.open()
    assert parked(found) == [(each.id, each.version, each.data, each.created_us) for each in kept]
    assert [each.change.deleted for each in found.parked] == [False, False, True]
    assert found.newest_version >= NOW_US + 2
    reasons = query(database, "SELECT error FROM quarantine ORDER BY id")
    assert reasons == ["because a", "because b", "because c"]


async def test_of_an_item_the_newest_refusal_is_kept(db: Holder, database: str) -> None:
    """A newer refusal replaces the older one, never the other way round."""
    for version in (2, 2, 3, 1, 3):
        await db.quarantine(upsert("a", version), "no")
    assert query(database, "SELECT version FROM quarantine") == [3]


async def test_bytes_that_are_no_text_can_be_quarantined(db: Holder, database: str) -> None:
    """Data that is no UTF-8 is kept as nearly as text can hold it."""
    await db.quarantine(upsert("a", 1, b'{"a":"\xff"}'), "no")
    assert query(database, "SELECT data FROM quarantine") == ['{"a":"\ufffd"}']


async def test_released_changes_are_forgotten(db: Holder, database: str) -> None:
    """What a newer commit replaced leaves the quarantine; the rest stays."""
    for item_id in ("a", "b", "c"):
        await db.quarantine(upsert(item_id, 1), "no")
    await db.release(["a", "c", "never there"])
    assert query(database, "SELECT id FROM quarantine") == ["b"]


async def test_an_overtaken_refusal_is_not_found(
    db: Holder, database: str, another: Another
) -> None:
    """A newer item or tombstone in the tables outdates what is in quarantine, an older one not."""
    for item_id in ("newer item", "newer tombstone", "older item", "older tombstone"):
        await db.quarantine(upsert(item_id, 5), "no")
    await db.write([upsert("newer item", 6), delete("newer tombstone", 6)])
    await db.write([upsert("older item", 4), delete("older tombstone", 4)])
    other = another(database)
    found = await other.open()
    assert {each.change.id for each in found.parked} == {"older item", "older tombstone"}


@pytest.mark.parametrize("first", ["late", "holder"])
async def test_a_late_batch_brings_nothing_back(
    db: Holder, database: str, another: Another, first: str
) -> None:
    """A deletion that meets a late batch wins, whichever of the two is under way before the other.

    1. a row that both want is locked by somebody else, so that the first stops half way
    2. the second is sent
    3. the row is free
    """
    former = another(database)
    await former.open()
    rows = [upsert("0", 1), upsert("a", 1)]
    await db.write(rows if first == "late" else rows[:1])
    batches: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "late": lambda: former.write([upsert("0", 2), upsert("a", 2)], NO_CLAIM),
        "holder": lambda: db.write([upsert("0", 3), delete("a", 3)]),
    }
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM items WHERE id = '0' FOR UPDATE")  # 1
        writes = [asyncio.create_task(batches.pop(first)())]
        await waiting_for_a_lock(database, 1)
        writes += [asyncio.create_task(batch()) for batch in batches.values()]  # 2
        await waiting_for_a_lock(database, 2)
    await asyncio.gather(*writes)  # 3
    assert ([("0", 3, "{}")], [("a", 3)]) == tables(database)


# --- changes by other hands


async def test_the_stores_own_writes_are_not_foreign(db: Holder) -> None:
    """Creating, replacing, deleting, reviving, repeating and being too late leave no note."""
    batches = [
        [upsert("a", 1), upsert("b", 2), delete("never there", 3)],
        [upsert("a", 4), delete("b", 5)],
        [delete("a", 6), upsert("b", 7)],
        [upsert("a", 2), delete("b", 3)],
    ]
    for batch in (*batches, *batches):
        await db.write(batch)
    await db.purge(100)
    assert await db.foreign_changes() == []


async def noted(db: Holder) -> list[tuple[str, int]]:
    return [(change.id, change.version) for change in await db.foreign_changes()]


async def test_a_row_inserted_by_hand_is_noted(db: Holder, database: str) -> None:
    """A row that comes without a version gets one, and its times; the store is told of it."""
    await db.write([delete("a", 2**52)])
    [before_us] = query(database, NOW)
    query(
        database, """INSERT INTO items (id, data) VALUES ('a', '{"b": 1,  "a": 2}'), ('b', '{}')"""
    )
    [(_, version), (_, b_version)] = changes = await noted(db)
    assert [item_id for item_id, _ in changes] == ["a", "b"]
    assert version > 2**52  # 4: more than the tombstone had
    assert b_version >= before_us
    expected = [upsert("a", version, b'{"b": 1,  "a": 2}'), upsert("b", b_version)]
    assert sorted(await loaded(db, ["a", "b"])) == [row(change) for change in expected]
    assert tables(database)[1] == []
    states = await db.states(["b", "a"])
    assert {each.id: each.entry for each in states} == {each.id: each.entry for each in expected}


@pytest.mark.parametrize(
    ("item_id", "created_at"),
    [
        *((item_id, "now") for item_id in ("", ".", "..", "x" * 513, "\u00e9" * 257)),
        *((item_id, "now") for item_id in ("a\nb", "\x01", "\x1f", "\x7f", "\x80", "\u00e9\x9f")),
        *(("a", moment) for moment in ("infinity", "-infinity", "10000-01-01 Z", "0001-12-31 BC")),
    ],
    ids=ascii,
)
async def test_a_row_that_could_not_be_answered_is_refused(
    db: Holder, database: str, item_id: str, created_at: str
) -> None:
    """Another hand cannot insert an id that no URL carries, nor a time that JSON has no form for.

    The empty id is a note's word for TRUNCATE: as an item's it would empty the cache.
    """
    insert = "INSERT INTO items (id, data, created_at) VALUES (%s, '{}', %s::timestamptz)"
    with pytest.raises(psycopg.errors.CheckViolation):
        query(database, insert, item_id, created_at)
    assert await db.foreign_changes() == []


async def test_a_row_by_hand_may_be_as_odd_as_a_clients(db: Holder, database: str) -> None:
    """Whatever id a client may choose, and any time of the years 1 to 9999, can be inserted."""
    insert = "INSERT INTO items (id, data, created_at) VALUES (%s, '{}', %s::timestamptz)"
    ids = ["x" * 512, "\U0010ffff" * 128, "...", "a/b c", "\u00a0", "\u2028", "\ufeff", "'\"\\"]
    for item_id in ids:
        query(database, insert, item_id, "now")
    for moment in ("0001-01-01 Z", "1969-12-31 Z", "9999-12-31 23:59:59.999999Z"):
        query(database, insert, moment, moment)
    assert len(await noted(db)) == len(ids) + 3


async def test_a_row_updated_by_hand_is_noted(db: Holder, database: str) -> None:
    """An update that leaves the version alone gets a newer one; the creation time stays."""
    await db.write([upsert("a", 7, created_us=5), upsert("b", 2**52, created_us=6)])
    [before_us] = query(database, NOW)
    query(database, """UPDATE items SET data = '{"by": "hand"}'""")
    versions = dict(await noted(db))
    assert versions["a"] >= before_us
    assert versions["b"] == 2**52 + 1  # 4
    expected = [
        upsert("a", versions["a"], b'{"by": "hand"}', created_us=5),
        upsert("b", versions["b"], b'{"by": "hand"}', created_us=6),
    ]
    assert sorted(await loaded(db, ["a", "b"])) == [row(change) for change in expected]
    updated = query(database, "SELECT updated_at FROM items ORDER BY id")
    assert updated == [EPOCH + timedelta(microseconds=versions[item_id]) for item_id in "ab"]


async def test_a_row_renamed_by_hand_is_a_delete_and_an_insert(db: Holder, database: str) -> None:
    """A row that gets another id is gone under the old one, and no late write brings it back."""
    await db.write([upsert("old", 7)])
    query(database, "UPDATE items SET id = 'new'")
    versions = dict(await noted(db))
    assert sorted(versions) == ["new", "old"]
    await db.write([upsert("old", 8)])
    assert tables(database) == ([("new", versions["new"], "{}")], [("old", versions["old"])])


async def test_a_row_deleted_by_hand_is_noted(db: Holder, database: str) -> None:
    """A delete without the store leaves a newer tombstone: no late write revives the item."""
    await db.write([upsert("a", 7), upsert("b", 2**52), upsert("c", 9)])
    query(database, "DELETE FROM items WHERE id < 'c'")
    versions = dict(await noted(db))
    assert sorted(versions) == ["a", "b"]
    assert versions["b"] == 2**52 + 1  # 4
    await db.write([upsert("a", 8), upsert("b", 2**52)])
    assert tables(database) == ([("c", 9, "{}")], sorted(versions.items()))
    states = [(each.id, each.entry, each.version) for each in await db.states(["a", "b", "d"])]
    assert sorted(states) == [*((i, None, v) for i, v in sorted(versions.items())), ("d", None, 0)]


async def test_a_truncate_by_hand_is_noted(db: Holder, database: str) -> None:
    """A TRUNCATE is one note without an id, with a version above that of every item."""
    await db.write([upsert("a", 7), upsert("b", 2**52)])
    query(database, "TRUNCATE items")
    assert await noted(db) == [("", 2**52 + 1)]


async def test_notes_are_kept_until_forgotten(db: Holder, database: str) -> None:
    """Notes come oldest first, each until it was taken over; others stay."""
    for item_id in "abc":
        query(database, "INSERT INTO items (id, data) VALUES (%s, '{}')", item_id)
    first, second, third = await db.foreign_changes()
    assert first.seq < second.seq < third.seq
    await db.write([upsert("d", 1)])
    await db.forget_foreign_changes([first.seq, third.seq], (await db.lease()).epoch)
    assert await db.foreign_changes() == [second]


async def test_who_waits_for_foreign_changes_is_woken(db: Holder, database: str) -> None:
    """The wait ends when another hand changes a row; without one, when the time is up."""
    await db.foreign_changes()  # connects, and so listens
    await db.await_foreign_changes(0.001)
    waiting = asyncio.create_task(db.await_foreign_changes(3_600))
    await asyncio.to_thread(query, database, "INSERT INTO items (id, data) VALUES ('a', '{}')")
    async with asyncio.timeout(30):
        await waiting
    assert [item_id for item_id, _ in await noted(db)] == ["a"]


async def test_a_lost_listener_comes_back(db: Holder, database: str) -> None:
    """Who listens on a connection that the server ended is told so, and can listen again."""
    await db.foreign_changes()
    waiting = asyncio.create_task(db.await_foreign_changes(3_600))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(query, database, TERMINATE, "itemstore listener %") == [True]
    with pytest.raises(StorageAway):
        await waiting
    assert await db.foreign_changes() == []
    await db.await_foreign_changes(0.001)


# --- opening


async def test_an_empty_database_is_set_up(each_dsn: str, another: Another) -> None:
    """Opening makes the tables; the clock starts at the server's time, with nothing parked."""
    storage = another(each_dsn)
    found = await storage.open()
    [now_us] = query(each_dsn, NOW)
    assert NOW_US < found.newest_version <= now_us
    assert (found.parked, found.items_estimate) == ((), 0)


@pytest.mark.parametrize("kind", ["item", "tombstone", "quarantine"])
async def test_the_clock_starts_above_all_versions(
    db: Holder, database: str, kind: str, another: Another
) -> None:
    """No version in any table, ahead of the server's clock or not, can be given out again."""
    future = 2**53 - 1
    if kind == "quarantine":
        await db.quarantine(upsert("a", future), "no")
    else:
        await db.write([upsert("a", future) if kind == "item" else delete("a", future)])
    other = another(database)
    assert (await other.open()).newest_version == future


async def test_the_schema_can_be_applied_again(own_db: Holder, each_dsn: str) -> None:
    """schema.sql run twice changes nothing: not the items, not the ids' counter and key."""
    await own_db.write([upsert("a", 1), delete("b", 2)])
    await own_db.lease_ids(10)
    state = "SELECT * FROM id_blocks, store_meta"
    before = tables(each_dsn), query(each_dsn, state)
    query(each_dsn, postgres.schema_sql())
    assert (tables(each_dsn), query(each_dsn, state)) == before


async def test_many_instances_can_open_at_once(each_dsn: str, another: Another) -> None:
    """Instances that start at the same moment on an empty database all open, on one schema."""
    instances = [another(each_dsn) for _ in range(6)]
    await asyncio.gather(*(instance.open() for instance in instances))
    await instances[0].write([upsert("a", 1)])
    assert await loaded(instances[5], ["a"]) == [row(upsert("a", 1))]
    assert query(each_dsn, "SELECT count(*) FROM id_blocks, store_meta") == [1]


async def test_the_estimate_follows_the_statistics(
    db: Holder, database: str, another: Another
) -> None:
    """Once analyzed, the number of items is the planner's; before, it comes from the size."""
    await db.write([upsert(f"i{n}", n, b'{"pad":"%b"}' % (b"x" * 250)) for n in range(1, 301)])
    other = another(database)
    before = await other.open()
    assert 100 <= before.items_estimate <= 1_000
    assert before.bytes_estimate > 300 * 250
    query(database, "ANALYZE items")
    assert (await other.open()).items_estimate == 300


async def test_a_role_without_ddl_rights_can_use_the_schema(
    own_db: Holder, each_dsn: str, another: Another
) -> None:
    """A role that may only read and write rows opens and uses a database that is set up."""
    role = make_role(
        each_dsn, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
    )
    limited = another(make_conninfo(each_dsn, user=role))
    await limited.open()
    await limited.write([upsert("a", 1), delete("b", 2)])
    await limited.quarantine(upsert("c", 3), "no")
    await limited.release(["c"])
    await limited.lease_ids(5)
    assert await limited.purge(10) == 1
    assert await loaded(limited, ["a"]) == [row(upsert("a", 1))]
    query(each_dsn, "UPDATE items SET data = '{}'")
    [change] = await limited.foreign_changes()
    await limited.forget_foreign_changes([change.seq], (await limited.lease()).epoch)
    assert await limited.foreign_changes() == []


async def test_a_role_without_ddl_rights_cannot_set_up(each_dsn: str, another: Another) -> None:
    """Where the tables are missing and may not be made, opening fails for good."""
    role = make_role(each_dsn)
    limited = another(make_conninfo(each_dsn, user=role))
    with pytest.raises(StorageBroken, match="42501"):
        await limited.open()


async def test_a_database_of_another_encoding_is_refused(each_dsn: str, another: Another) -> None:
    """A database that does not check its text for UTF-8 cannot be used."""
    name = conninfo_to_dict(each_dsn)["dbname"]
    query(
        each_dsn,
        f"CREATE DATABASE \"{name}_ascii\" TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'",
    )
    storage = another(make_conninfo(each_dsn, dbname=f"{name}_ascii"))
    with pytest.raises(StorageBroken, match=r"SQL_ASCII.*UTF8"):
        await storage.open()


async def test_text_is_utf8_whatever_the_connection_string_says(
    each_dsn: str, another: Another
) -> None:
    """A client encoding in the connection string does not change what is stored or read."""
    storage = another(make_conninfo(each_dsn, client_encoding="LATIN1"))
    await storage.open()
    change = upsert("\u00e9\u20ac", 1, '{"a":"\u00e9\u20ac\U0001f34f"}'.encode())
    await storage.write([change])
    assert await loaded(storage, [change.id]) == [row(change)]  # 8
    assert await items(storage) == [row(change)]  # 8
    assert query(each_dsn, "SELECT id FROM items") == [change.id]


async def test_the_server_tells_its_settings(db: Holder, database: str) -> None:
    """What durability rests on is read from the server."""
    server = await db.server()
    assert server.version == query(database, "SHOW server_version")[0]
    assert (server.fsync, server.synchronous_commit) == ("off", "on")
    assert server.in_recovery is False
    assert 1 <= server.connections <= server.max_connections


async def test_every_table_and_column_is_explained(db: Holder, database: str) -> None:
    """psql's \\d+ shows a comment for each table and each column there is."""
    described = query(
        database,
        """
        SELECT c.relname, a.attname, col_description(c.oid, a.attnum), obj_description(c.oid)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
           AND a.attnum > 0 AND NOT a.attisdropped
        """,
    )
    assert {"items", "tombstones", "quarantine", "id_blocks", "store_meta"} <= {
        table for table, *_ in described
    }
    assert [(table, column) for table, column, *texts in described if not all(texts)] == []


# --- refusals


async def test_a_row_that_a_constraint_forbids_is_refused(own_db: Holder, each_dsn: str) -> None:
    """A batch with a row that the table does not take is refused as a whole; the rest passes."""
    query(each_dsn, "ALTER TABLE items ADD CHECK (length(data::text) < 20)")
    good, bad = upsert("a", 1), upsert("b", 2, b'{"a":"much too long for this"}')
    with pytest.raises(StorageRefused, match="23514"):
        await own_db.write([good, bad, delete("c", 3)])
    assert tables(each_dsn) == ([], [])
    await own_db.write([good, delete("c", 3)])
    assert tables(each_dsn) == ([("a", 1, "{}")], [("c", 3)])


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"no json", "22P02"),
        (b"", "22P02"),
        (b'{"a":}', "22P02"),
        (b'{"a":NaN}', "22P02"),
        (b'{"a":"\n"}', "22P02"),
        (b'{"a":"\x00"}', "22021"),
        (b'{"a":"\xff"}', "utf-8"),
        (b'{"a":"\xed\xa0\x80"}', "utf-8"),
    ],
)
async def test_what_is_no_json_is_refused(
    db: Holder, database: str, data: bytes, state: str
) -> None:
    """Data that is no JSON, no UTF-8 or has a NUL is refused, before or by the server."""
    with pytest.raises(StorageRefused, match=state):
        await db.write([upsert("a", 1), upsert("b", 2, data)])
    assert tables(database) == ([], [])
    await db.write([upsert("a", 1)])
    assert tables(database) == ([("a", 1, "{}")], [])


@pytest.mark.parametrize("item_id", ["a\x00", "\ud800"], ids=ascii)
async def test_an_id_that_is_no_text_is_refused(db: Holder, item_id: str) -> None:
    """An id with a NUL is refused by the server, one with a surrogate by the driver."""
    with pytest.raises(StorageRefused):
        await db.write([upsert(item_id, 1)])
    await db.write([upsert("a", 1)])


# --- lost connections


async def test_a_lost_writer_comes_back(db: Holder, database: str) -> None:
    """A write on a connection that the server ended is StorageAway; the same again succeeds."""
    await db.write([upsert("a", 1)])
    assert query(database, TERMINATE, "itemstore writer %") == [True]
    with pytest.raises(StorageAway):
        await db.write([upsert("a", 2)])
    await db.write([upsert("a", 2)])
    assert tables(database)[0] == [("a", 2, "{}")]


async def test_lost_readers_are_replaced_unnoticed(db: Holder, database: str) -> None:
    """A read finds a working connection after the server ended all of the pool's."""
    await db.write([upsert("a", 1)])
    assert await loaded(db, ["a"])
    assert query(database, TERMINATE, "itemstore reader %") == [True]
    assert await loaded(db, ["a"]) == [row(upsert("a", 1))]


async def test_a_lost_preload_comes_back(db: Holder, database: str) -> None:
    """A page on a connection that the server ended is StorageAway; the same again succeeds."""
    await db.write([upsert("a", 1)])
    assert await items(db)
    assert query(database, TERMINATE, "itemstore preload %") == [True]
    with pytest.raises(StorageAway):
        await db.page(0)
    assert await items(db) == [row(upsert("a", 1))]


async def test_the_session_of_a_lost_connection_is_ended(db: Holder, database: str) -> None:
    """Before a write is repeated, the server no longer executes the one whose answer was lost.

    1. a write of "a" hangs in the server, on a lock
    2. the connection breaks on our side; the server does not notice, and would go on
    3. the same write is sent again, on a new connection
    4. the old session is gone before the new one does anything
    """
    await db.write([upsert("a", 1)])
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE items")
        hanging = asyncio.create_task(db.write([upsert("a", 2, b'{"lost":1}')]))
        [old] = await waiting_for_a_lock(database, 1)
        break_connection(db)
        with pytest.raises(StorageAway):
            await hanging
        assert query(database, ALIVE, [old]) == [old]
        again = asyncio.create_task(db.write([upsert("a", 3)]))
        [new] = await waiting_for_a_lock(database, 1, besides=old)
        assert query(database, ALIVE, [old, new]) == [new]
    await again
    assert tables(database)[0] == [("a", 3, "{}")]  # 4


async def test_a_lost_session_may_end_by_itself(
    own_db: Holder, each_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost session that is gone the moment it is to be ended holds nothing up.

    PostgreSQL says of it, once, that it could not be ended.
    """
    await own_db.write([upsert("a", 1)])
    query(each_dsn, "CREATE SEQUENCE asked")
    monkeypatch.setattr(statements, "END_LOST_SESSIONS", "SELECT nextval('asked') > 1")
    query(each_dsn, TERMINATE, "itemstore writer %")
    with pytest.raises(StorageAway):
        await own_db.write([upsert("a", 2)])
    await own_db.write([upsert("a", 2)])
    assert tables(each_dsn)[0] == [("a", 2, "{}")]
    assert query(each_dsn, "SELECT last_value FROM asked") == [2]


async def test_a_cancelled_write_is_ended_in_the_server(db: Holder, database: str) -> None:
    """A write that was cancelled while it hung has no effect later and does not break the next."""
    with psycopg.connect(database) as holder:
        await db.write([upsert("a", 1)])
        holder.execute("LOCK TABLE items")
        hanging = asyncio.create_task(db.write([upsert("a", 2)]))
        [old] = await waiting_for_a_lock(database, 1)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        again = asyncio.create_task(db.write([upsert("b", 3)]))
        await waiting_for_a_lock(database, 1, besides=old)
        assert query(database, ALIVE, [old]) == []
    await again
    assert tables(database)[0] == [("a", 1, "{}"), ("b", 3, "{}")]


async def test_a_write_that_takes_too_long_is_slow(
    db: Holder, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that exceeds its time is StorageSlow; the next one first ends what is left of it."""
    monkeypatch.setattr(postgres, "WRITE_TIMEOUT_S", 0.05)
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE items")
        with pytest.raises(StorageSlow):
            await db.write([upsert("a", 1)])
    monkeypatch.undo()
    await db.write([upsert("b", 2)])
    writers = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'itemstore writer%'"
    )
    assert query(database, f"{writers} AND datname = current_database()") == [1]
    await db.write([upsert("a", 3)])
    assert tables(database)[0] == [("a", 3, "{}"), ("b", 2, "{}")]


@pytest.mark.parametrize("call", ["write", "load", "page", "select", "lease_ids", "purge"])
async def test_a_cancelled_call_does_not_break_the_next(
    db: Holder, database: str, call: str
) -> None:
    """Each call can be cancelled at any of its awaits, and the next one works."""
    await db.write([upsert("a", 1)])
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "write": lambda: db.write([upsert("b", 2)]),
        "load": lambda: db.load(["a"]),
        "page": lambda: db.page(0),
        "select": lambda: db.select(ListQuery(10, BYTES, count="exact")),
        "lease_ids": lambda: db.lease_ids(3),
        "purge": lambda: db.purge(1),
    }
    for turns in (0, 1, 2, 3, 5, 8):
        task = asyncio.ensure_future(calls[call]())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await loaded(db, ["a"]) == [row(upsert("a", 1))]
    await calls[call]()


async def test_a_full_pool_is_away(db: Holder, database: str) -> None:
    """Reads beyond the pool's connections wait; when it takes too long they are StorageAway."""
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE items")
        hanging = [asyncio.create_task(db.load(["a"])) for _ in range(LOAD_CONNECTIONS)]
        await waiting_for_a_lock(database, LOAD_CONNECTIONS)
        db._loaders.timeout = 0.01
        with pytest.raises(StorageAway):
            await loaded(db, ["a"])
    assert await asyncio.gather(*hanging) == [([], 0)] * LOAD_CONNECTIONS


async def test_a_load_does_not_wait_for_lists(db: Holder) -> None:
    """Items that are not cached are loaded also while every other connection is in use."""
    async with AsyncExitStack() as stack:
        for _ in range(POOL_MAX):
            await stack.enter_async_context(db._pool.connection())
        assert await asyncio.wait_for(db.load(["a"]), 30) == ([], 0)


# --- what cannot be reached, and what will not be let in


async def test_a_closed_port_is_away(another: Another) -> None:
    """A server that does not listen may be starting: the same again may succeed."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        storage = another(f"host=127.0.0.1 port={unheard.getsockname()[1]} dbname=x user=x")
        with pytest.raises(StorageAway):
            await storage.open()


async def test_an_unknown_database_is_broken(each_dsn: str, another: Another) -> None:
    """A database that does not exist will not come into being by waiting."""
    storage = another(make_conninfo(each_dsn, dbname="nowhere"))
    with pytest.raises(StorageBroken, match="nowhere"):
        await storage.open()


async def test_a_wrong_password_is_broken(each_dsn: str, another: Another) -> None:
    """A password that is wrong, or missing, stays so."""
    role = make_role(each_dsn, password="right")
    demand_password(each_dsn, role)
    for password in ("wrong", ""):
        storage = another(make_conninfo(each_dsn, user=role, password=password))
        with pytest.raises(StorageBroken, match="password"):
            await storage.open()


def test_what_is_no_connection_string_is_broken() -> None:
    """A connection string that cannot be read is refused before anything is tried."""
    with pytest.raises(StorageBroken, match="DATABASE_URL"):
        Postgres("postgresql://user@host:port/x?nonsense=1")


async def test_a_database_that_may_not_be_written_is_away(
    own_db: Holder, each_dsn: str, another: Another
) -> None:
    """A server that is read-only for now, such as a standby, may become writable."""
    name = conninfo_to_dict(each_dsn)["dbname"]
    query(each_dsn, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    other = another(each_dsn)
    with pytest.raises(StorageAway, match="25006"):
        await other.open()


async def test_a_missing_table_is_broken(own_db: Holder, each_dsn: str) -> None:
    """A table that somebody dropped does not come back by waiting."""
    query(each_dsn, "DROP TABLE tombstones")
    with pytest.raises(StorageBroken, match="42P01"):
        await own_db.write([upsert("a", 1)])


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        ("08000 08003 08006 08001 08004 08007 08P01", StorageAway),
        ("40000 40001 40002 40003 40P01", StorageAway),
        ("53000 53100 53200 53300 53400", StorageAway),
        ("57P01 57P04 57P05", StorageAway),
        ("57P02 57P03", StorageDown),
        ("58000 58030", StorageAway),
        ("25006", StorageAway),
        ("26000 42P05", StorageAway),
        ("55P03 57014", StorageSlow),
        ("22000 22001 22003 22008 22021 22023 22030 22P02 22P05", StorageRefused),
        ("23000 23502 23503 23505 23514 23P01", StorageRefused),
        ("54000 54001 54011", StorageRefused),
        ("42501 42601 42703 42804 42883 42P01 42P07 42P10", StorageBroken),
        ("28000 28P01 3D000 3F000 0A000 21000 25001 25P02 XX000 XX001", StorageBroken),
    ],
)
def test_errors_are_classified_by_sqlstate(states: str, kind: type[StorageError]) -> None:
    """The SQLSTATE decides what can be done: again, less of it, without the row, or nothing."""
    for state in states.split():
        failure = classify(psycopg.errors.lookup(state)("what the server said\nLINE 1: …"))
        assert type(failure) is kind, state
        assert str(failure) == f"what the server said ({state})"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), StorageSlow),
        (ConnectionResetError("gone"), StorageAway),
        (OSError(28, "No space left on device"), StorageAway),
        ("\ud800", StorageRefused),
        (psycopg.DataError("NUL"), StorageRefused),
        (psycopg.OperationalError("server closed the connection unexpectedly"), StorageAway),
        (psycopg.OperationalError("connection is bad"), StorageAway),
        (psycopg.OperationalError("connection timeout expired"), StorageAway),
        (psycopg.InterfaceError("the connection is closed"), StorageAway),
        (psycopg.OperationalError('FATAL:  database "x" does not exist'), StorageBroken),
        (psycopg.OperationalError("FATAL:  password authentication failed"), StorageBroken),
        (psycopg.OperationalError("fe_sendauth: no password supplied"), StorageBroken),
        (psycopg.OperationalError("FATAL:  no pg_hba.conf entry for host"), StorageBroken),
        (psycopg.ProgrammingError("the query has 1 placeholder"), StorageBroken),
        (psycopg.NotSupportedError("not supported"), StorageBroken),
        (ValueError("a bug of ours"), StorageBroken),
        (KeyError("a bug of ours"), StorageBroken),
    ],
    ids=repr,
)
def test_errors_without_an_sqlstate_are_classified(
    error: Exception | str, kind: type[StorageError]
) -> None:
    """What never reached the server is told by the driver's class and words."""
    if isinstance(error, str):
        with pytest.raises(UnicodeEncodeError) as raised:
            error.encode()
        error = raised.value
    assert type(classify(error)) is kind


def test_a_failure_without_words_has_a_name() -> None:
    """An error without a message is told by its class."""
    assert str(classify(TimeoutError())) == "TimeoutError"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (StorageAway, "away"),
        (StorageSlow, "slow"),
        (StorageRefused, "refused"),
        (StorageBroken, "broken"),
    ],
)
def test_each_kind_of_failure_has_a_word(kind: type[StorageError], word: str) -> None:
    """Logs and metrics name a failure in one word."""
    assert kind.kind == word


# --- helpers

NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
TERMINATE = """
SELECT bool_and(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name LIKE %s
"""
ALIVE = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s) ORDER BY pid"
WAITING = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> %s
"""


async def waiting_for_a_lock(dsn: str, count: int, *, besides: int = 0) -> list[int]:
    """The pids of so many sessions that wait for a lock, as soon as there are so many."""
    for _ in range(5_000):
        pids: list[int] = await asyncio.to_thread(query, dsn, WAITING, besides)
        if len(pids) == count:
            return pids
    raise AssertionError("nobody waits for a lock")


def break_connection(storage: Holder) -> None:
    """Cuts the writer's connection on our side, as if the network had eaten it."""
    connection = storage._writer._connection
    assert connection is not None
    with socket.socket(fileno=socket.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def make_role(dsn: str, *grants: str, password: str = "") -> str:
    """A new role with these rights, besides that to enter the schema."""
    role = f"role_{next(_numbers)}"
    query(dsn, f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    for grant in ("GRANT USAGE ON SCHEMA public", *grants):
        query(dsn, f"{grant} TO {role}")
    return role


def demand_password(dsn: str, role: str) -> None:
    """Has the server ask this role for its password from now on."""
    [file] = query(dsn, "SHOW hba_file")
    hba = Path(file)
    hba.write_text(f"local all {role} scram-sha-256\n{hba.read_text()}")
    query(dsn, "SELECT pg_reload_conf()")
    for _ in range(5_000):
        try:
            query(make_conninfo(dsn, user=role), "SELECT 1")
        except psycopg.OperationalError:
            return
    raise AssertionError("the server asks for no password")
