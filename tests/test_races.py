"""Races between readers, writers, the persister and the preload, each in one fixed order.

The store and PostgreSQL are real. Between them stand gates: a call stops before PostgreSQL is
asked, or after it has answered, until the test lets it go on; so every order of events can be had
and none depends on time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, TypeVar

import pytest

from itemstore import persister
from itemstore.allocator import ID_BLOCK
from itemstore.core.cache import Row
from itemstore.core.condition import Condition
from itemstore.core.ids import IdBlock, scramble
from itemstore.core.item import Item, pack
from itemstore.core.operation import Create, Get, Put
from itemstore.core.queue import CHANGE_OVERHEAD_BYTES, Change
from itemstore.errors import (
    CommitUnconfirmed,
    DatabaseUnavailable,
    ItemExists,
    ItemQuarantined,
    Overloaded,
    PreconditionFailed,
    Stopping,
    Unavailable,
)
from itemstore.loader import LOAD_IDS_MAX
from itemstore.options import Durability, Options, Preload
from itemstore.storage import Claim, ListQuery, Standing, StorageAway, StorageError, StorageSlow
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from tests.sql import EMPTY, NO_CLAIM, make_database, query, tables

MEMORY, COMMIT = Durability.MEMORY, Durability.COMMIT
LAZY, FULL = Preload.SKIP, Preload.PRELOAD
OLD_US = 1_700_000_000_000_000  # when what was there before the test was written
FOR_EVER_S = 3_600.0  # a wait that must not end by time

Place = Literal["before", "after"]
T = TypeVar("T")


class Gate:
    """Where one call waits; opened, it lets the call go on, or fail."""

    def __init__(self, failure: StorageError | None) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()
        self._failure = failure

    async def reached(self) -> None:
        """Returns when the call has come here."""
        await soon(self._reached.wait())

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self._reached.set()
        await self._opened.wait()
        if self._failure is not None:
            raise self._failure


class GatedPostgres(Postgres):
    """PostgreSQL behind gates. Counts what it was asked."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._gates: dict[tuple[str, Place], deque[Gate]] = {}
        self._held: list[Gate] = []
        self.written: list[list[Change]] = []
        self.loaded: list[list[str]] = []

    def hold(
        self, call: str, place: Place = "before", *, failing: StorageError | None = None
    ) -> Gate:
        """The next such call waits at the gate; one call for each time this was called."""
        gate = Gate(failing)
        self._gates.setdefault((call, place), deque()).append(gate)
        self._held.append(gate)
        return gate

    def fail(self, call: str, place: Place = "before", *, times: int = 1) -> None:
        """The next such calls fail, before PostgreSQL was asked or after it did as it was told."""
        for _ in range(times):
            self.hold(call, place, failing=StorageAway("lost")).open()

    def open_all(self) -> None:
        self._gates.clear()
        for gate in self._held:
            gate.open()

    async def _at(self, call: str, place: Place) -> None:
        gates = self._gates.get((call, place))
        if gates:
            await gates.popleft().pass_through()

    async def write(self, changes: Sequence[Change], claim: Claim = NO_CLAIM) -> Standing:
        self.written.append(list(changes))
        await self._at("write", "before")
        standing = await super().write(changes, claim)
        await self._at("write", "after")
        return standing

    async def quarantine(self, change: Change, reason: str) -> None:
        await self._at("quarantine", "before")
        await super().quarantine(change, reason)

    async def load(self, ids: Sequence[str]) -> tuple[list[Row], int]:
        self.loaded.append(list(ids))
        await self._at("load", "before")
        found = await super().load(ids)
        await self._at("load", "after")
        return found

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        await self._at("page", "before")
        rows = await super().page(position)
        await self._at("page", "after")
        return rows

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        await self._at("select", "before")
        return await super().select(query)

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        await self._at("lease_ids", "before")
        lease = await super().lease_ids(count)
        await self._at("lease_ids", "after")
        return lease


class Race:
    """A database, and stores over it with gates between."""

    def __init__(self, dsn: str, stack: AsyncExitStack) -> None:
        self.dsn = dsn
        self.pg = GatedPostgres(dsn)
        self.stack = stack

    async def seed(self, *ids: str) -> None:
        """Items that are in PostgreSQL before the store starts, with data {"n": 0}."""
        rows = [
            Change(
                item_id, OLD_US + n, pack(OLD_US + n, OLD_US, b'{"n":0}'), deleted=False, now_s=0
            )
            for n, item_id in enumerate(ids)
        ]
        other = Postgres(self.dsn)
        await other.open()
        await other.write(rows, NO_CLAIM)
        await other.close()
        query(self.dsn, "DELETE FROM foreign_changes")  # they were here before

    async def start(
        self,
        preload: Preload = LAZY,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> ItemStore:
        """A running store over ``pg``; retries come without a pause."""
        settings = Options(skip_items_preload=preload, **options)
        store = ItemStore(self.pg, settings, monotonic=monotonic)
        store.persister._sleep = store.loader._sleep = no_pause
        await store.start()
        self.stack.push_async_callback(self._end, store, self.pg)
        return store

    async def start_again(self, store: ItemStore, **options: Any) -> ItemStore:
        """Closes the store and opens another over the same database."""
        await soon(store.close())
        self.pg = GatedPostgres(self.dsn)
        return await self.start(**options)

    async def _end(self, store: ItemStore, pg: GatedPostgres) -> None:
        pg.open_all()
        await soon(store.close())


@pytest.fixture(scope="module")
def database(server: Callable[[int], str]) -> str:
    """A database for this file, on the newest server."""
    return make_database(server(18))


@pytest.fixture
async def race(database: str) -> AsyncIterator[Race]:
    """The race's track, empty."""
    async with AsyncExitStack() as stack:
        race = Race(database, stack)
        await race.seed()  # makes the tables
        query(database, EMPTY)
        yield race


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


async def soon(answer: Awaitable[T]) -> T:
    """What is awaited; a test that would wait for ever fails instead."""
    async with asyncio.timeout(30):
        return await answer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)


async def turns(count: int = 20) -> None:
    """Lets everything run that can run without an answer from PostgreSQL."""
    for _ in range(count):
        await asyncio.sleep(0)


def start(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.ensure_future(call)


def when_settled(store: ItemStore, event: Callable[[], object]) -> None:
    """Has something happen once, right after the next commit has left the queue."""
    settle = store.queue.settle

    def settle_then(changes: Iterable[Change], doubt: Exception | None = None) -> None:
        store.queue.settle = settle  # type: ignore[method-assign]
        settle(changes, doubt)
        event()

    store.queue.settle = settle_then  # type: ignore[method-assign]


def number(item: Item | None) -> int | None:
    return None if item is None else item.data["n"]


# --- loads against writes and deletes


@pytest.mark.parametrize("committed", [False, True], ids=["queued", "committed"])
async def test_a_load_does_not_overwrite_a_newer_write(race: Race, committed: bool) -> None:
    """What a load brings late does not take the place of a write that was accepted meanwhile.

    1. a reader misses "x"; PostgreSQL answers with the old state; the answer is under way
    2. the preload brings "x" as well
    3. a writer replaces "x"; it is queued, or committed already
    4. the answer to 1 arrives
    """
    await race.seed("x")
    answer, page = race.pg.hold("load", "after"), race.pg.hold("page")
    store = await race.start(FULL)
    reader = start(store.get("x"))
    await answer.reached()  # 1
    page.open()
    await until(lambda: store.cache.hydrated)  # 2
    write = race.pg.hold("write")
    await store.put("x", {"n": 1}, durability=MEMORY)
    await write.reached()
    if committed:
        write.open()
        await soon(store.flush())  # 3
    answer.open()
    assert number(await soon(reader)) == 1  # 4
    assert number(await store.get("x")) == 1


@pytest.mark.parametrize("committed", [False, True], ids=["queued", "committed"])
async def test_a_load_does_not_bring_back_what_was_deleted(race: Race, committed: bool) -> None:
    """What a load brings late does not revive an item that was deleted meanwhile.

    1. a reader misses "x"; PostgreSQL answers with the old state; the answer is under way
    2. the preload brings "x" as well; its next page is under way, so that not all is known
    3. "x" is deleted; the delete is queued, or committed already and nothing of it pending
    4. the answer to 1 arrives
    """
    await race.seed("x")
    answer = race.pg.hold("load", "after")
    page, next_page = race.pg.hold("page"), race.pg.hold("page")
    store = await race.start(FULL)
    reader = start(store.get("x"))
    await answer.reached()  # 1
    page.open()
    await next_page.reached()
    await until(lambda: store.cache.get("x"))  # 2
    write = race.pg.hold("write")
    await store.delete("x", durability=MEMORY)
    await write.reached()
    if committed:
        write.open()
        await soon(store.flush())
        assert store.queue.get("x") is None  # 3
    answer.open()
    assert await soon(reader) is None  # 4
    assert await soon(store.get("x")) is None
    assert store.cache.get("x") is None


@pytest.mark.parametrize("moment", ["queued", "in flight", "committed"])
async def test_a_preload_page_does_not_bring_back_what_was_deleted(race: Race, moment: str) -> None:
    """A page of the preload that was read before a delete does not undo it.

    1. the preload reads a page with "x" in it; the answer is under way
    2. a reader loads "x", and it is deleted: queued, in flight, or committed
    3. the page arrives
    """
    await race.seed("x", "y")
    page, write = race.pg.hold("page", "after"), race.pg.hold("write")
    store = await race.start(FULL)
    await page.reached()  # 1
    assert number(await soon(store.get("x"))) == 0
    await store.delete("x", durability=MEMORY)
    if moment != "queued":
        await write.reached()
    if moment == "committed":
        write.open()
        await soon(store.flush())  # 2
    page.open()
    await until(lambda: store.cache.hydrated)  # 3
    assert await store.get("x") is None
    assert number(await store.get("y")) == 0
    write.open()
    assert [item.id for item in (await soon(store.list())).items] == ["y"]


async def test_a_preload_page_that_began_after_the_delete_does_not_undo_it(race: Race) -> None:
    """A page whose snapshot is older than the commit of a delete, but not its acceptance, is late.

    1. "x" is deleted; the delete is under way
    2. the preload begins a page and reads "x", which is still there
    3. the delete is committed, and nothing of it is pending any more
    4. the page arrives
    """
    await race.seed("x")
    before, after = race.pg.hold("page"), race.pg.hold("page", "after")
    write = race.pg.hold("write")
    store = await race.start(FULL)
    await soon(store.get("x"))
    await store.delete("x", durability=MEMORY)
    await write.reached()  # 1
    before.open()
    await after.reached()  # 2
    write.open()
    await soon(store.flush())
    assert store.queue.get("x") is None  # 3
    after.open()
    await until(lambda: store.cache.hydrated)  # 4
    assert await store.get("x") is None
    assert store.cache.get("x") is None


async def test_a_preload_page_does_not_overwrite_a_newer_write(race: Race) -> None:
    """A page of the preload leaves alone what was written and committed since it was read."""
    await race.seed("x", "y")
    page = race.pg.hold("page", "after")
    store = await race.start(FULL)
    await page.reached()
    await soon(store.put("x", {"n": 1}, durability=COMMIT))
    await soon(store.create({"n": 2}, item_id="new", durability=COMMIT))
    page.open()
    await until(lambda: store.cache.hydrated)
    assert [number(await store.get(item_id)) for item_id in ("x", "y", "new")] == [1, 0, 2]


async def test_an_item_created_during_its_load_is_not_absent(race: Race) -> None:
    """An id that PostgreSQL did not have when asked is found once it was created meanwhile.

    1. a reader misses "x"; PostgreSQL does not have it; the answer is under way
    2. a foreign page makes the cache hydrated, and "x" is created
    3. the answer arrives
    """
    answer = race.pg.hold("load", "after")
    page = race.pg.hold("page")
    store = await race.start(FULL)
    reader = start(store.get("x"))
    await answer.reached()  # 1
    page.open()
    await until(lambda: store.cache.hydrated)
    await soon(store.create({"n": 1}, item_id="x", durability=COMMIT))  # 2
    answer.open()
    assert number(await soon(reader)) == 1  # 3


async def test_a_write_waits_for_the_load_of_its_item(race: Race) -> None:
    """A write of an item that is being loaded decides on what the load brings: one query."""
    await race.seed("x")
    answer = race.pg.hold("load", "after")
    store = await race.start()
    reader = start(store.get("x"))
    writer = start(store.put("x", {"n": 1}, durability=COMMIT))
    creator = start(store.create({"n": 2}, item_id="x"))
    await answer.reached()
    answer.open()
    assert number(await soon(reader)) in {0, 1}  # before or after the write, never absent
    item = await soon(writer)
    assert not item.is_new
    assert (item.created_at.timestamp() * 1e6, item.data) == (OLD_US, {"n": 1})
    with pytest.raises(ItemExists):
        await soon(creator)
    assert race.pg.loaded == [["x"]]


async def test_a_late_repetition_does_not_bring_back_what_was_deleted(race: Race) -> None:
    """A write whose answer was lost is repeated behind a delete without undoing it.

    1. "x" is written and committed; the answer is lost
    2. "x" is deleted meanwhile
    3. the persister repeats the write, then writes the delete
    4. the write comes in once more, as from a connection that was thought dead
    """
    lost = race.pg.hold("write", "after", failing=StorageAway("lost"))
    store = await race.start()
    await store.put("x", {"n": 1}, durability=MEMORY)
    await lost.reached()  # 1
    await store.delete("x", durability=MEMORY)  # 2
    assert await store.get("x") is None
    lost.open()
    await soon(store.flush())  # 3
    [first], [again], [delete] = race.pg.written
    assert (again, delete.deleted) == (first, True)
    assert tables(race.dsn) == ([], [("x", delete.version)])
    await Postgres.write(race.pg, [first], NO_CLAIM)  # 4
    assert tables(race.dsn) == ([], [("x", delete.version)])
    assert await soon(store.get("x")) is None


async def test_a_write_that_never_arrived_is_repeated(race: Race) -> None:
    """A writer at commit is answered once his write is there, after any number of failures."""
    store = await race.start()
    race.pg.fail("write", "before", times=3)
    race.pg.fail("write", "after", times=3)
    item = await soon(store.put("x", {"n": 1}, durability=COMMIT))
    assert tables(race.dsn)[0] == [("x", item.version, '{"n":1}')]
    assert len(race.pg.written) == 7
    assert store.persister.failing_since is None


# --- the queue's order


async def test_a_hot_item_neither_starves_nor_pushes_ahead(race: Race) -> None:
    """An item that is written between any two batches takes its turn with the others.

    Each batch holds one item; "hot" is written again while each is under way.
    """
    gates = [race.pg.hold("write") for _ in range(9)]
    store = await race.start(batch_items_max=1)
    for item_id in ("hot", "a", "b", "c"):
        await soon(store.put(item_id, {"n": 0}, durability=MEMORY))
    for n, gate in enumerate(gates):
        await gate.reached()
        if n % 4 == 0:
            for item_id in ("a", "b", "c"):
                await store.put(item_id, {"n": n}, durability=MEMORY)
        await store.put("hot", {"n": n}, durability=MEMORY)
        gate.open()
    written = [change.id for [change] in race.pg.written[:9]]
    assert written == ["hot", "a", "b", "c", "hot", "a", "b", "c", "hot"]  # 9


async def test_writes_nobody_waits_for_are_gathered(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go in one batch a while after the last, or at once with the first one awaited."""
    monkeypatch.setattr(persister, "GATHER_S", FOR_EVER_S)
    store = await race.start()
    await store.put("first", {}, durability=MEMORY)
    await until(lambda: not len(store.queue))  # an idle persister waits for nothing
    for item_id in "abc":
        await store.put(item_id, {}, durability=MEMORY)
        await turns()
    assert [len(batch) for batch in race.pg.written] == [1]
    await soon(store.put("d", {}, durability=COMMIT))
    assert [len(batch) for batch in race.pg.written] == [1, 4]
    await store.put("e", {}, durability=MEMORY)
    await turns()
    assert len(race.pg.written) == 2
    assert (await soon(store.list(count="exact"))).count == 6  # a list waits for it, too
    assert [len(batch) for batch in race.pg.written] == [1, 4, 1]
    await store.put("f", {}, durability=MEMORY)
    await turns()
    await soon(store.close())  # and so does the close
    assert [len(batch) for batch in race.pg.written] == [1, 4, 1, 1]


async def test_superseded_writes_are_acknowledged_by_the_newer_one(race: Race) -> None:
    """Writers of one item whose changes were coalesced are all answered by the one commit.

    1. a batch with "x" is under way
    2. "x" is replaced three times; the last change takes the place of the others
    3. the first batch is committed: its writer is answered, nobody else
    4. the second is: all others are, each with the version he wrote
    """
    first, second = race.pg.hold("write"), race.pg.hold("write")
    store = await race.start()
    writers = [start(store.put("x", {"n": 0}, durability=COMMIT))]
    await first.reached()  # 1
    writers += [start(store.put("x", {"n": n}, durability=COMMIT)) for n in (1, 2, 3)]
    await turns()  # 2
    first.open()
    await second.reached()
    assert [writer.done() for writer in writers] == [True, False, False, False]  # 3
    second.open()
    items = await soon(asyncio.gather(*writers))
    assert [item.data["n"] for item in items] == [0, 1, 2, 3]  # 4
    assert sorted({item.version for item in items}) == [item.version for item in items]
    assert [len(batch) for batch in race.pg.written] == [1, 1]
    assert tables(race.dsn)[0] == [("x", items[3].version, '{"n":3}')]


async def test_a_list_sees_what_was_accepted_before_it(race: Race) -> None:
    """A list waits for the writes accepted before it, in flight and queued, not for later ones.

    1. "a" is in flight, "b" is queued, "c" is deleted
    2. the list is asked for
    3. both batches are committed; the next, with what came after the list, is held
    """
    await race.seed("c")
    first, second, third = (race.pg.hold("write") for _ in range(3))
    store = await race.start()
    await soon(store.get("c"))
    await soon(store.put("a", {"n": 1}, durability=MEMORY))
    await first.reached()
    await soon(store.put("b", {"n": 2}, durability=MEMORY))
    await store.delete("c", durability=MEMORY)  # 1
    listed = start(store.list(order="id", count="exact"))
    await turns()  # 2
    first.open()
    await second.reached()
    await soon(store.put("d", {"n": 3}, durability=MEMORY))
    assert not listed.done()
    second.open()
    await third.reached()  # 3
    page = await soon(listed)
    assert [(item.id, item.data["n"]) for item in page.items] == [("a", 1), ("b", 2)]  # 7
    assert page.count == 2


# --- many readers


async def test_a_thousand_readers_of_a_cold_item_are_one_query(race: Race) -> None:
    """However many ask for an item that is not cached, PostgreSQL is asked once."""
    await race.seed("x")
    store = await race.start()
    items = await soon(asyncio.gather(*(store.get("x") for _ in range(1_000))))
    assert {number(item) for item in items} == {0}
    assert race.pg.loaded == [["x"]]


async def test_readers_who_come_during_the_query_share_it(race: Race) -> None:
    """A query under way answers those who ask meanwhile, too."""
    await race.seed("x")
    answer = race.pg.hold("load", "after")
    store = await race.start()
    first = start(store.get("x"))
    await answer.reached()
    others = [start(store.get("x")) for _ in range(10)]
    await turns()
    answer.open()
    assert [number(item) for item in await soon(asyncio.gather(first, *others))] == [0] * 11
    assert race.pg.loaded == [["x"]]


async def test_misses_of_one_turn_are_one_query(race: Race) -> None:
    """All that is missed in one turn of the loop is asked for at once; half of it is not there."""
    ids = [f"i{n:02}" for n in range(50)]
    await race.seed(*ids[::2])
    store = await race.start()
    items = await soon(asyncio.gather(*(store.get(item_id) for item_id in ids)))
    assert [number(item) for item in items] == [0, None] * 25
    assert [sorted(batch) for batch in race.pg.loaded] == [ids]
    assert await soon(asyncio.gather(*(store.get(item_id) for item_id in ids))) == items
    assert len(race.pg.loaded) == 1  # what is absent was remembered


async def test_a_query_has_a_limit_of_ids(race: Race) -> None:
    """More misses than fit in one query are several, and everybody is answered."""
    store = await race.start()
    ids = [f"i{n:04}" for n in range(3 * LOAD_IDS_MAX + 500)]
    items = await soon(asyncio.gather(*(store.get(item_id) for item_id in ids)))
    assert items == [None] * len(ids)
    assert [len(batch) for batch in race.pg.loaded] == [LOAD_IDS_MAX] * 3 + [500]
    assert sorted(item_id for batch in race.pg.loaded for item_id in batch) == ids


async def test_a_batch_loads_its_misses_together(race: Race) -> None:
    """The operations of one batch call need one query for all they do not know."""
    await race.seed("a", "b")
    store = await race.start()
    results = await soon(
        store.batch([Get("a"), Put("b", {"n": 1}), Create({"n": 2}, "c"), Get("d"), Get("b")])
    )
    assert [number(each) if isinstance(each, Item) else type(each) for each in results[:3]] == [
        0,
        1,
        2,
    ]
    assert [getattr(each, "code", None) for each in results] == [
        None,
        None,
        None,
        "item_not_found",
        None,
    ]
    assert [sorted(ids) for ids in race.pg.loaded] == [["a", "b", "c", "d"]]


async def test_a_cancelled_reader_takes_nobody_elses_answer(race: Race) -> None:
    """A reader who gives up, the first or a later one, leaves the query to the others.

    1. three readers wait for "x"
    2. the first, who caused the query, and the third give up
    3. the answer arrives
    """
    await race.seed("x")
    answer = race.pg.hold("load", "after")
    store = await race.start()
    readers = [start(store.get("x")) for _ in range(3)]
    await answer.reached()  # 1
    readers[0].cancel()
    readers[2].cancel()
    await turns()  # 2
    answer.open()
    results = await soon(asyncio.gather(*readers, return_exceptions=True))  # 3
    assert [type(result) for result in results] == [
        asyncio.CancelledError,
        Item,
        asyncio.CancelledError,
    ]
    assert number(await store.get("x")) == 0
    assert race.pg.loaded == [["x"]]


async def test_a_reader_whose_time_is_up_takes_nobody_elses_answer(race: Race) -> None:
    """A load that takes too long is an error for who waited, and still an answer for later ones."""
    await race.seed("x")
    answer = race.pg.hold("load", "after")
    store = await race.start(load_timeout_s=0.01)
    with pytest.raises(DatabaseUnavailable):
        await store.get("x")
    answer.open()
    await until(lambda: store.cache.get("x"))
    assert number(await store.get("x")) == 0
    assert race.pg.loaded == [["x"]]


@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_failed_load_is_an_error_and_never_a_404(race: Race, place: Place) -> None:
    """When PostgreSQL does not answer, readers and writers are told so; nothing is noted absent."""
    await race.seed("x")
    store = await race.start()
    race.pg.fail("load", place, times=2)
    calls: list[Coroutine[Any, Any, object]] = [
        store.get("x"),
        store.get("never there"),
        store.put("x", {"n": 1}),
        store.delete("x"),
        store.create({}, item_id="x"),
    ]
    results = await soon(asyncio.gather(*calls, return_exceptions=True))
    assert {type(result) for result in results} == {DatabaseUnavailable}
    [batched] = await soon(store.batch([Get("x")]))
    assert isinstance(batched, DatabaseUnavailable)
    assert number(await soon(store.get("x"))) == 0
    assert await soon(store.get("never there")) is None
    assert tables(race.dsn)[0] == [("x", OLD_US, '{"n":0}')]


# --- writers who wait


async def test_a_cancelled_writer_has_written_all_the_same(race: Race) -> None:
    """Who stops waiting for the commit takes back neither his write nor another's answer.

    1. "x" is in flight; its writer waits for the commit
    2. another replaces "x", a third writes "y"; both wait
    3. the first and the second give up
    4. everything is committed, and the third is answered
    """
    write = race.pg.hold("write")
    store = await race.start()
    first = start(store.put("x", {"n": 1}, durability=COMMIT))
    await write.reached()  # 1
    second = start(store.put("x", {"n": 2}, durability=COMMIT))
    third = start(store.put("y", {"n": 3}, durability=COMMIT))
    await turns()  # 2
    first.cancel()
    second.cancel()
    await turns()  # 3
    write.open()
    assert number(await soon(third)) == 3  # 4
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert [(row[0], row[2]) for row in tables(race.dsn)[0]] == [("x", '{"n":2}'), ("y", '{"n":3}')]


async def test_an_unconfirmed_write_is_there(race: Race) -> None:
    """A commit that takes too long is told as unconfirmed; the write is served and written.

    1. the commit is held up until the writer's patience ends
    2. the item can be read, by everybody
    3. the commit goes on
    """
    write = race.pg.hold("write")
    store = await race.start(commit_timeout_s=0.01)
    with pytest.raises(CommitUnconfirmed) as failure:
        await store.put("x", {"n": 1}, durability=COMMIT)
    assert failure.value.status == 503  # 1
    item = await store.get("x")
    assert item is not None
    assert str(item.version) in str(failure.value)
    assert item.data == {"n": 1}  # 2
    write.open()
    await until(lambda: not len(store.queue))
    assert tables(race.dsn)[0] == [("x", item.version, '{"n":1}')]  # 3


async def test_above_the_soft_bound_writers_wait_their_turn(race: Race) -> None:
    """Writers beyond three quarters of the queue wait, get in as it empties, and lose nothing.

    1. six writes fill three quarters of a queue of eight; the first is in flight, held
    2. four more wait
    3. the database goes on
    """
    write = race.pg.hold("write")
    store = await race.start(queue_items_max=8, batch_items_max=2, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()  # so that no write waits for a load
    writers = [start(store.put(f"i{n}", {"n": n}, durability=MEMORY)) for n in range(10)]
    await write.reached()
    assert [writer.done() for writer in writers] == [True] * 6 + [False] * 4  # 1, 2
    assert len(store.queue) == 6
    write.open()
    items = await soon(asyncio.gather(*writers))  # 3
    versions = [item.version for item in items]
    assert versions == sorted(versions)  # first come, first served
    await soon(store.flush())
    assert [row[:2] for row in tables(race.dsn)[0]] == [(item.id, item.version) for item in items]
    assert store.admission.refused == 0


async def test_the_bound_of_bytes_holds_for_waiters_too(race: Race) -> None:
    """As bytes leave the queue just so many writers get in as fit below the soft bound, in order.

    Each change pins a quarter of the bound; three are let in at once, the rest waits. Each commit
    makes room for one.
    """
    change_bytes = 2_000
    gates = [race.pg.hold("write") for _ in range(10)]
    store = await race.start(
        queue_bytes_max=4 * change_bytes, batch_items_max=1, queue_wait_s=FOR_EVER_S
    )
    store.cache.set_hydrated()
    overhead = CHANGE_OVERHEAD_BYTES + len("i0") + len(pack(0, 0, b'{"pad":""}'))
    data = {"pad": "x" * (change_bytes - overhead)}
    writers = [start(store.put(f"i{n}", data, durability=MEMORY)) for n in range(10)]
    for n, gate in enumerate(gates):
        await gate.reached()
        await turns(100)
        assert store.queue.bytes_used <= 3 * change_bytes  # 10
        assert [writer.done() for writer in writers] == [m < n + 3 for m in range(10)]
        gate.open()
    items = await soon(asyncio.gather(*writers))
    versions = [item.version for item in items]
    assert versions == sorted(versions)
    await soon(store.flush())
    assert len(tables(race.dsn)[0]) == 10


async def test_a_full_queue_refuses(race: Race) -> None:
    """At the hard bound a write is refused at once, before anything changed; later it passes."""
    write = race.pg.hold("write")
    store = await race.start(queue_bytes_max=5_000, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()
    await store.put("large", {"pad": "x" * 6_000}, durability=MEMORY)
    await write.reached()
    with pytest.raises(Overloaded) as refusal:
        await soon(store.put("x", {"n": 1}, durability=MEMORY))
    assert refusal.value.retry_after_s
    assert await store.get("x") is None
    assert store.admission.refused == 1
    write.open()
    await soon(store.flush())
    assert number(await soon(store.put("x", {"n": 1}, durability=COMMIT))) == 1


async def test_patience_ends_in_a_refusal(race: Race) -> None:
    """A writer who waited too long for room is refused, with nothing changed, and blocks nobody."""
    write = race.pg.hold("write")
    store = await race.start(queue_items_max=2, queue_wait_s=0.01)
    store.cache.set_hydrated()
    await store.put("a", {"n": 0}, durability=MEMORY)
    await write.reached()
    with pytest.raises(Overloaded):
        await soon(store.put("b", {"n": 1}, durability=MEMORY))
    assert await store.get("b") is None
    write.open()
    await soon(store.flush())
    assert number(await soon(store.put("b", {"n": 2}, durability=COMMIT))) == 2


async def test_a_turn_that_is_not_used_is_the_next_ones(race: Race) -> None:
    """Waiters who give up, or whose condition fails, do not keep the others waiting.

    1. the queue is at its bound; five writers wait
    2. one of them gives up
    3. there is room for one: of those in front of the last none writes anything
    """
    write = race.pg.hold("write")
    store = await race.start(queue_items_max=2, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()
    await store.put("a", {"n": 0}, durability=MEMORY)
    await write.reached()
    never = Condition.version(1)
    waiting = [start(store.put("a", {"n": n}, when=never, durability=MEMORY)) for n in range(4)]
    last = start(store.put("b", {"n": 9}, durability=COMMIT))
    await turns()
    assert not any(writer.done() for writer in (*waiting, last))  # 1
    waiting[1].cancel()  # 2
    write.open()
    assert number(await soon(last)) == 9  # 3
    results = await soon(asyncio.gather(*waiting, return_exceptions=True))
    failed = PreconditionFailed
    assert [type(result) for result in results] == [
        failed,
        asyncio.CancelledError,
        failed,
        failed,
    ]
    assert number(await store.get("a")) == 0


async def test_who_comes_while_others_are_let_in_is_served_after_them(race: Race) -> None:
    """A writer who comes when there is room, but others still wait for it, is the last of them.

    1. a batch of six fills the queue; three writers wait
    2. the batch is committed; the first waiter is let in
    3. another writer comes before the second is
    """
    hold, write = race.pg.hold("write"), race.pg.hold("write")
    store = await race.start(queue_items_max=8, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()
    await store.put("first", {}, durability=MEMORY)
    await hold.reached()
    for n in range(5):
        await store.put(f"i{n}", {}, durability=MEMORY)
    waiting = [start(store.put(f"w{n}", {}, durability=MEMORY)) for n in range(3)]
    await turns()
    assert not any(writer.done() for writer in waiting)
    hold.open()
    await write.reached()  # 1: the one place that was free is taken by the first waiter
    late: list[asyncio.Task[Item]] = []
    when_settled(store, lambda: late.append(start(store.put("late", {}, durability=MEMORY))))
    write.open()
    await until(lambda: late)  # 2, 3
    items = await soon(asyncio.gather(*waiting, *late))
    versions = [item.version for item in items]
    assert versions == sorted(versions)


async def test_who_comes_just_in_time_does_not_break_the_bound(race: Race) -> None:
    """When a newcomer takes the room that the last waiter was let in for, that one waits on.

    1. the queue is full; one writer waits
    2. there is room for one; the waiter is let in
    3. before he writes, another comes and writes: there is nobody in line
    """
    hold, write = race.pg.hold("write"), race.pg.hold("write")
    store = await race.start(queue_items_max=2, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()
    await store.put("a", {}, durability=MEMORY)
    await hold.reached()
    waiting = start(store.put("b", {}, durability=MEMORY))
    await turns()  # 1
    late: list[asyncio.Task[Item]] = []
    when_settled(store, lambda: late.append(start(store.put("c", {}, durability=MEMORY))))
    hold.open()
    await write.reached()  # 2, 3
    await turns()
    assert late[0].done()
    assert not waiting.done()
    assert len(store.queue) == 1  # 10
    write.open()
    assert (await soon(waiting)).id == "b"


async def test_a_writer_cancelled_in_his_turn_passes_it_on(race: Race) -> None:
    """A writer who is let in and cancelled in the same moment leaves his place to the next."""
    write = race.pg.hold("write")
    store = await race.start(queue_items_max=2, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()
    await store.put("a", {"n": 0}, durability=MEMORY)
    await write.reached()
    first = start(store.put("b", {"n": 1}, durability=MEMORY))
    second = start(store.put("c", {"n": 2}, durability=MEMORY))
    await turns()
    when_settled(store, lambda: asyncio.get_running_loop().call_soon(first.cancel))
    write.open()
    assert number(await soon(second)) == 2
    await asyncio.gather(first, return_exceptions=True)


# --- generated ids


def block_of(dsn: str, count: int) -> list[str]:
    """The ids that the next lease will bring."""
    [(first, key)] = query(dsn, "SELECT next, key FROM id_blocks")
    return [scramble(number, key) for number in range(first, first + count)]


async def test_a_generated_id_never_meets_a_chosen_one(race: Race) -> None:
    """Ids that clients took before, during and after the lease are not given out.

    1. one id of the block to come exists
    2. the block is leased; the answer is under way
    3. a client chooses another id of the block, and his write is committed
    4. the block arrives; a client chooses a third id of it
    5. all ids of the block that are left are used up, while the next block is held back
    """
    block = block_of(race.dsn, ID_BLOCK)
    before, during, after = block[0], block[500], block[1]
    await race.seed(before)  # 1
    lease = race.pg.hold("lease_ids", "after")
    store = await race.start(durability=MEMORY)
    creator = start(store.create({"n": 1}))
    await lease.reached()  # 2
    next_lease = race.pg.hold("lease_ids")
    await soon(store.put(during, {"n": 2}, durability=COMMIT))  # 3
    lease.open()
    items = [await soon(creator)]
    assert (await soon(store.create({"n": 3}, item_id=after))).is_new  # 4
    items += [await soon(store.create({"n": 1})) for _ in range(ID_BLOCK - 4)]
    assert {item.id for item in items} == set(block) - {before, during, after}  # 5
    assert all(item.is_new for item in items)
    following = start(store.create({"n": 4}))
    await next_lease.reached()
    assert not following.done()
    next_lease.open()
    assert (await soon(following)).id not in block
    assert [number(await soon(store.get(i))) for i in (before, during, after)] == [0, 2, 3]


async def test_an_id_that_was_chosen_is_not_generated_later(race: Race) -> None:
    """A leased id that a client chose is not given out any more, even after he deleted his item."""
    store = await race.start(durability=MEMORY)
    first = await soon(store.create({}))
    chosen = next(iter(store._ids._pool._free))
    await soon(store.put(chosen, {"n": 1}))
    await store.delete(chosen)
    others = [(await soon(store.create({}))).id for _ in range(ID_BLOCK)]
    assert chosen not in others
    assert len({first.id, *others}) == ID_BLOCK + 1


async def test_creators_share_one_lease(race: Race) -> None:
    """However many need a generated id at once, one block is leased."""
    lease = race.pg.hold("lease_ids")
    store = await race.start(durability=MEMORY)
    creators = [start(store.create({"n": n})) for n in range(100)]
    await lease.reached()
    creators[0].cancel()
    await turns()
    lease.open()
    items = await soon(asyncio.gather(*creators[1:]))
    assert len({item.id for item in items}) == 99
    assert query(race.dsn, "SELECT next FROM id_blocks") == [ID_BLOCK]


async def test_without_ids_a_create_is_refused(race: Race) -> None:
    """When no block can be leased the create is an error, and the next one tries again."""
    store = await race.start()
    race.pg.fail("lease_ids", "before")
    with pytest.raises(DatabaseUnavailable):
        await soon(store.create({"n": 1}))
    assert number(await soon(store.create({"n": 1}))) == 1


# --- quarantine


REFUSE_NEGATIVE = """
ALTER TABLE items DROP CONSTRAINT IF EXISTS no_negative;
ALTER TABLE items ADD CONSTRAINT no_negative CHECK (data ->> 'n' NOT LIKE '-%')
"""


@pytest.fixture
def refusing(race: Race) -> Race:
    """A database that refuses items whose n is negative; the rule goes with the test."""
    query(race.dsn, REFUSE_NEGATIVE)
    race.stack.callback(query, race.dsn, "ALTER TABLE items DROP CONSTRAINT no_negative")
    return race


async def test_a_refused_write_holds_up_nobody(refusing: Race) -> None:
    """One bad row among many is told to its writer, kept and served; all others are committed.

    1. a batch of ten goes out, one of them refused
    2. its writers are answered
    3. the bad one is corrected
    """
    race = refusing
    write = race.pg.hold("write")
    store = await race.start()
    store.cache.set_hydrated()
    await store.put("first", {"n": 0}, durability=MEMORY)
    await write.reached()
    good = [start(store.put(f"i{n}", {"n": n}, durability=COMMIT)) for n in range(9)]
    bad = start(store.put("bad", {"n": -1}, durability=COMMIT))
    await turns()
    write.open()  # 1
    await soon(asyncio.gather(*good))
    with pytest.raises(ItemQuarantined):
        await soon(bad)  # 2
    assert number(await store.get("bad")) == -1
    assert query(race.dsn, "SELECT id FROM quarantine") == ["bad"]
    assert len(tables(race.dsn)[0]) == 10
    await soon(store.put("bad", {"n": 1}, durability=COMMIT))  # 3
    assert query(race.dsn, "SELECT id FROM quarantine") == []
    assert store.queue.parked == {}


async def test_a_refused_write_is_served_after_a_restart(refusing: Race) -> None:
    """What is in quarantine when a store starts is served as it was accepted, and can be mended."""
    race = refusing
    store = await race.start()
    await soon(store.put("x", {"n": 1}, durability=COMMIT))
    with pytest.raises(ItemQuarantined):
        await soon(store.put("x", {"n": -1}, durability=COMMIT))
    item = await store.get("x")
    store = await race.start_again(store)
    assert await soon(store.get("x")) == item
    assert race.pg.loaded == []
    await soon(store.delete("x", durability=COMMIT))
    store = await race.start_again(store)
    assert await soon(store.get("x")) is None
    assert query(race.dsn, "SELECT id FROM quarantine") == []


async def test_a_refused_delete_is_not_undone_by_the_preload(race: Race) -> None:
    """An item whose delete PostgreSQL refused stays deleted, also for a store that starts anew.

    1. another table refers to "x", so that its row cannot be deleted
    2. "x" is deleted; the delete goes into quarantine
    3. a new store preloads a table with "x" in it
    """
    await race.seed("x", "y")
    query(race.dsn, "CREATE TABLE reference AS SELECT 'x'::text COLLATE \"C\" AS id")
    query(race.dsn, "ALTER TABLE reference ADD FOREIGN KEY (id) REFERENCES items")  # 1
    race.stack.callback(query, race.dsn, "DROP TABLE reference")
    store = await race.start()
    with pytest.raises(ItemQuarantined):
        await soon(store.delete("x", durability=COMMIT))  # 2
    assert await soon(store.get("x")) is None
    store = await race.start_again(store, preload=FULL)
    await until(lambda: store.cache.hydrated)  # 3
    assert await store.get("x") is None
    assert number(await store.get("y")) == 0
    assert [row[0] for row in tables(race.dsn)[0]] == ["x", "y"]


@pytest.mark.parametrize("failing", ["write", "quarantine"])
async def test_a_database_that_came_back_is_used_again(refusing: Race, failing: str) -> None:
    """After an outage that ended with a refusal, writes at commit are accepted.

    1. the database fails once, then answers: the only row of the batch is refused
    2. a long time passes; nothing is in the queue
    3. a good write is committed
    """
    race = refusing
    now = 0.0
    store = await race.start(monotonic=lambda: now)
    race.pg.fail(failing)
    with pytest.raises(ItemQuarantined):
        await soon(store.put("bad", {"n": -1}, durability=COMMIT))  # 1
    assert store.persister.failing_since is None
    now = 1_000.0  # 2
    assert number(await soon(store.put("good", {"n": 1}, durability=COMMIT))) == 1  # 3


async def test_a_slow_batch_is_tried_in_halves(race: Race) -> None:
    """A batch that is too slow is split until its parts pass; everything is committed."""
    hold = race.pg.hold("write")
    slow = [race.pg.hold("write", failing=StorageSlow("canceled")) for _ in range(2)]
    store = await race.start()
    store.cache.set_hydrated()
    await store.put("first", {"n": 0}, durability=MEMORY)
    await hold.reached()
    writers = [start(store.put(f"i{n}", {"n": n}, durability=COMMIT)) for n in range(8)]
    await turns()
    for gate in (hold, *slow):
        gate.open()
    await soon(asyncio.gather(*writers))
    assert [len(batch) for batch in race.pg.written] == [1, 8, 4, 2, 2, 4]
    assert len(tables(race.dsn)[0]) == 9


# --- closing


async def test_closing_refuses_those_who_wait_and_writes_what_was_accepted(race: Race) -> None:
    """At the close writers who wait for room are refused; what was accepted is committed first.

    1. the queue is at its bound, writes are held up; some wait for commits, some for room
    2. the store is closed
    3. the database goes on
    """
    write = race.pg.hold("write")
    store = await race.start(queue_items_max=4, queue_wait_s=FOR_EVER_S)
    store.cache.set_hydrated()
    accepted = [start(store.put(f"i{n}", {"n": n}, durability=COMMIT)) for n in range(3)]
    waiting = [start(store.put(f"w{n}", {"n": n}, durability=COMMIT)) for n in range(3)]
    await write.reached()  # 1
    closing = start(store.close())
    results = await soon(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(result) for result in results] == [Stopping] * 3  # 2
    assert not closing.done()
    with pytest.raises(Stopping):
        await store.put("late", {})
    assert number(await store.get("i0")) == 0
    write.open()
    assert await soon(closing) == []  # 3
    assert [number(await soon(writer)) for writer in accepted] == [0, 1, 2]
    assert [row[0] for row in tables(race.dsn)[0]] == ["i0", "i1", "i2"]


async def test_closing_tells_what_could_not_be_written(race: Race) -> None:
    """A store that is closed while PostgreSQL hangs says which items are not written.

    Nobody was told otherwise: those who wait for the commit are not answered with an OK.
    """
    race.pg.hold("write")
    store = await race.start(shutdown_timeout_s=0.01, commit_timeout_s=0.05)
    writer = start(store.put("x", {"n": 1}, durability=COMMIT))
    await until(lambda: race.pg.written)
    assert await soon(store.close()) == ["x"]
    with pytest.raises(Unavailable):
        await soon(writer)
    assert tables(race.dsn) == ([], [])


@pytest.mark.parametrize("place", ["before", "after"])
async def test_closing_answers_those_who_wait_for_ids(race: Race, place: Place) -> None:
    """A create that waits for a generated id when the store closes is refused, not cancelled."""
    lease = race.pg.hold("lease_ids", place)
    store = await race.start()
    creators = [start(store.create({"n": n})) for n in range(3)]
    await lease.reached()
    await soon(store.close())
    results = await soon(asyncio.gather(*creators, return_exceptions=True))
    assert [type(result) for result in results] == [Stopping] * 3


@pytest.mark.parametrize("steps", range(5))
async def test_closing_answers_those_who_wait_for_a_load(race: Race, steps: int) -> None:
    """A reader or writer of a cold item at the close gets the item or an error, never a 404.

    The store is closed at each of the turns between a miss and its query.
    """
    await race.seed("x")
    store = await race.start(load_timeout_s=FOR_EVER_S)
    race.pg.hold("load", "after")
    calls = [start(store.get("x")), start(store.delete("x"))]
    await turns(steps)
    await soon(store.close())
    read, deleted = await soon(asyncio.gather(*calls, return_exceptions=True))
    assert isinstance(read, Item | Unavailable)
    assert isinstance(deleted, Unavailable)
    assert len(race.pg.loaded) <= 1  # nobody begins another query
    assert [row[0] for row in tables(race.dsn)[0]] == ["x"]


@pytest.mark.parametrize("steps", range(5))
async def test_closing_the_loader_answers_everybody(race: Race, steps: int) -> None:
    """Whenever the loader is closed, before its query's first step too, nobody waits for ever."""
    await race.seed("x")
    store = await race.start(load_timeout_s=FOR_EVER_S)
    readers = [start(store.get("x")) for _ in range(3)]
    await turns(steps)
    await soon(store.loader.close())
    results = await soon(asyncio.gather(*readers, return_exceptions=True))
    assert all(isinstance(result, Item | DatabaseUnavailable) for result in results)


async def test_closing_during_the_preload_ends_it(race: Race) -> None:
    """A store that is closed while it preloads ends without an error and without hydration."""
    await race.seed("x")
    page = race.pg.hold("page", "after")
    store = await race.start(FULL)
    await page.reached()
    assert await soon(store.close()) == []
    assert not store.cache.hydrated


async def test_a_failing_preload_goes_on_where_it_was(race: Race) -> None:
    """A page that cannot be read is asked for again until it can; then all is known."""
    await race.seed("x", "y")
    race.pg.fail("page", "before", times=2)
    race.pg.fail("page", "after", times=2)
    store = await race.start(FULL)
    await until(lambda: store.cache.hydrated)
    assert sorted(dict(store.cache.items())) == ["x", "y"]
    assert await store.get("missing") is None
    assert race.pg.loaded == []
