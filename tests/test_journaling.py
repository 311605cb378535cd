"""Journaling, as a store does it: what an OK at journal survives, and when it cannot be given."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from itemstore.core.recent import RECENT_S
from itemstore.errors import DurabilityUnavailable, Starting, StartupError
from itemstore.options import MIB
from itemstore.storage import journal_file
from itemstore.storage.journal import Journal
from itemstore.storage.journal_file import FILE_NAME
from itemstore.store import ItemStore
from tests.sql import make_database, query
from tests.stores import (
    COMMIT,
    DOWN,
    FULL,
    JOURNAL,
    LAZY,
    MEMORY,
    Gated,
    Stores,
    Time,
    data_of,
    gates,
    soon,
    start,
    until,
)
from tests.test_races import turns

ITEMS = "SELECT id, data::text FROM items ORDER BY id"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def as_killed(directory: Path) -> Path:
    """The journal as a start would find it if this process were killed now."""
    return Path(shutil.copytree(directory, directory.with_name("copy"), dirs_exist_ok=True))


def journal_of(store: ItemStore) -> Journal:
    assert store.journaling.journal is not None
    return store.journaling.journal


async def get(store: ItemStore, item_id: str) -> Any:
    return data_of(await soon(store.get(item_id)))


async def abandon(store: ItemStore) -> None:
    """Ends the store as kill -9 does: what it has not written it never writes."""
    gates(store).cut_off(DOWN)
    await soon(store.close(0.0))
    gates(store).open_all()


# --- the level


async def test_the_level_is_journal_where_there_is_one(stores: Stores, directory: Path) -> None:
    """A store with a journal gives journal unless asked otherwise; one without gives commit."""
    with_one = await stores.open(LAZY, journal_dir=directory)
    assert [JOURNAL, COMMIT, MEMORY] == [
        with_one.level(each) for each in (None, "commit", "memory")
    ]
    told = await stores.open(LAZY, journal_dir=directory.with_name("other"), durability=COMMIT)
    assert [COMMIT, JOURNAL] == [told.level(None), told.level("journal")]
    without = await stores.open(LAZY)
    assert COMMIT is without.level(None)
    with pytest.raises(DurabilityUnavailable, match="no journal"):
        without.level("journal")


async def test_a_store_that_starts_does_not_deny_its_journal(
    stores: Stores, directory: Path
) -> None:
    """While the store connects, a write at journal is told that it starts, not that it has none."""
    store = stores.make(journal_dir=directory)
    with pytest.raises(Starting):
        await soon(store.put("a", {}, durability=JOURNAL))


async def test_an_ok_at_journal_does_not_wait_for_postgresql(
    stores: Stores, directory: Path
) -> None:
    """With the commit held up a write at journal is acknowledged, and it is on disk."""
    store = await stores.open(LAZY, journal_dir=directory)
    await store.put("warm", {}, durability=COMMIT)
    write = gates(store).hold("write")
    item = await soon(store.put("warm", {"n": 1}))
    await write.reached()
    assert [("warm", "{}")] == stores.psql(ITEMS)
    assert b'{"n":1}' in b"".join(
        file.read_bytes() for file in as_killed(directory).iterdir() if FILE_NAME in file.name
    )
    assert item == await store.get("warm")
    committing = start(store.put("warm", {"n": 2}, durability=COMMIT))
    await turns()
    assert not committing.done()


# --- what a crash leaves


async def test_what_a_crash_left_is_written_before_the_store_is_ready(
    stores: Stores, directory: Path
) -> None:
    """Creates, updates and deletes that only the journal has are in PostgreSQL at the next start.

    1. everything is acknowledged at journal; nothing reaches PostgreSQL
    2. the process ends; another starts with its journal, and PostgreSQL takes nothing yet
    3. PostgreSQL goes on
    """
    first = await stores.open(journal_dir=directory)
    for item_id in "ab":
        await first.put(item_id, {"n": 0}, durability=COMMIT)
    gates(first).hold("write")
    for item_id in "abcd":
        await soon(first.put(item_id, {"n": 1}))
    changed = await soon(first.put("c", {"n": 2}))
    await soon(first.delete("a"))
    await soon(first.delete("d"))  # 1
    copy = as_killed(directory)
    await abandon(first)
    stores.psql("UPDATE writer_lease SET holder = NULL")
    second = stores.make(journal_dir=copy)
    write = gates(second).hold("write")
    starting = start(second.start())
    await write.reached()
    assert (False, [("a", '{"n":0}'), ("b", '{"n":0}')]) == (second.is_ready, stores.psql(ITEMS))
    write.open()  # 2
    await soon(starting)
    assert second.is_ready
    assert [("b", '{"n":1}'), ("c", '{"n":2}')] == stores.psql(ITEMS)
    assert [None, {"n": 1}, {"n": 2}, None] == [await get(second, item_id) for item_id in "abcd"]
    assert changed == await second.get("c")  # 3
    assert changed.version < (await soon(second.put("c", {}))).version


async def test_newer_rows_win_over_what_a_crash_left(stores: Stores, directory: Path) -> None:
    """What PostgreSQL has in a newer version, or has deleted since, the journal does not undo."""
    first = await stores.open(journal_dir=directory)
    await first.put("a", {"n": 0}, durability=COMMIT)
    write = gates(first).hold("write")  # else the commit may come before the journal's
    for item_id in "abcd":
        await soon(first.put(item_id, {"n": 1}))
    write.open()
    await soon(first.flush())
    copy = as_killed(directory)
    await first.put("a", {"n": 2}, durability=COMMIT)
    await first.delete("b", durability=COMMIT)
    await soon(first.close())
    stores.psql("""UPDATE items SET data = '{"by": "hand"}' WHERE id = 'c'""")
    second = await stores.open(journal_dir=copy)
    assert [("a", '{"n":2}'), ("c", '{"by": "hand"}'), ("d", '{"n":1}')] == stores.psql(ITEMS)
    assert [{"n": 2}, None] == [await get(second, item_id) for item_id in "ab"]
    [found] = [event for event in stores.logged if event["event"] == "journal_found"]
    assert (4, 0, "warning") == (found["items"], found["damaged"], found["level"])


async def test_a_crash_amid_the_replay_loses_nothing(stores: Stores, directory: Path) -> None:
    """A start that is given up before the journal is written leaves it for the next one."""
    first = await stores.open(journal_dir=directory)
    gates(first).hold("write")
    await soon(first.put("a", {"n": 1}))
    copy = as_killed(directory)
    await abandon(first)
    second = stores.make(journal_dir=copy)
    write = gates(second).hold("write", failing=DOWN)
    starting = start(second.start())
    await write.reached()
    starting.cancel()
    gates(second).cut_off(DOWN)
    write.open()
    assert [] == await soon(second.close(0.0))
    assert (copy / FILE_NAME).exists()
    assert [] == stores.psql(ITEMS)
    await stores.open(journal_dir=copy)
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)


async def test_what_postgresql_refuses_of_a_journal_is_in_quarantine(
    stores: Stores, directory: Path
) -> None:
    """A journaled write that PostgreSQL refuses does not stop the start, and is served."""
    first = await stores.open(journal_dir=directory)
    gates(first).hold("write")
    await soon(first.put("bad", {"n": -1}))
    await soon(first.put("good", {"n": 1}))
    copy = as_killed(directory)
    await abandon(first)
    stores.psql("ALTER TABLE items ADD CHECK (data ->> 'n' NOT LIKE '-%')")
    stores.psql("UPDATE writer_lease SET holder = NULL")
    second = await stores.open(journal_dir=copy)
    assert [("good", '{"n":1}')] == stores.psql(ITEMS)
    assert {"n": -1} == await get(second, "bad")
    assert ["bad"] == [each.change.id for each in await second.quarantine.list()]


async def test_a_journal_written_under_another_holder_is_replayed(
    stores: Stores, directory: Path
) -> None:
    """A standby brings its journal to PostgreSQL, and the holder sees what was in it."""
    first = await stores.open(LAZY, journal_dir=directory)
    gates(first).hold("write")
    await soon(first.put("a", {"n": 1}))
    copy = as_killed(directory)
    await abandon(first)
    stores.psql("UPDATE writer_lease SET holder = NULL")
    holder = await stores.open()
    assert await get(holder, "a") is None
    standby = stores.make(journal_dir=copy)
    gates(standby).hold("want")
    await soon(standby.start())
    assert {"n": 1} == await get(standby, "a")
    await until(lambda: holder.cache.get("a") is not None)
    assert {"n": 1} == await get(holder, "a")


async def test_another_databases_journal_stops_the_start(
    stores: Stores, directory: Path, server: Any
) -> None:
    """A journal that was written for another database is refused, with both ids, and kept."""
    first = await stores.open(journal_dir=directory)
    gates(first).hold("write")
    await soon(first.put("a", {"n": 1}))
    copy = as_killed(directory)
    other = make_database(server(18))
    store = stores.make(journal_dir=copy, pg=Gated(other))
    with pytest.raises(StartupError, match="belongs to the store") as refusal:
        await soon(store.start())
    [ours], [theirs] = (
        query(dsn, "SELECT store_id FROM store_meta") for dsn in (stores.dsn, other)
    )
    assert all(str(each) in refusal.value.detail for each in (ours, theirs))
    assert [] == await soon(store.close())
    assert (copy / FILE_NAME).exists()
    assert [] == query(other, ITEMS)


async def test_a_journal_older_than_the_remembered_deletes_stops_the_start(
    stores: Stores, directory: Path
) -> None:
    """Writes from before the oldest delete still remembered are refused: some may be undone."""
    first = await stores.open(journal_dir=directory)
    gates(first).hold("write")
    item = await soon(first.put("a", {"n": 1}))
    copy = as_killed(directory)
    await abandon(first)
    stores.psql("UPDATE store_meta SET purged_before = %s", item.version + 1)
    store = stores.make(journal_dir=copy)
    with pytest.raises(StartupError, match=r"TOMBSTONE_RETENTION.*'a'.*move"):
        await soon(store.start())
    assert [] == await soon(store.close())
    assert [] == stores.psql(ITEMS)
    stores.psql("UPDATE store_meta SET purged_before = %s", item.version)
    await stores.open(journal_dir=copy)
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)


async def test_two_stores_never_share_a_journal(stores: Stores, directory: Path) -> None:
    """A second store over the same directory does not start, and names the process that uses it."""
    await stores.open(journal_dir=directory)
    second = stores.make(journal_dir=directory)
    with pytest.raises(StartupError, match=str(os.getpid())):
        await soon(second.start())


# --- when it cannot be given


async def test_a_full_journal_refuses_and_recovers(stores: Stores, directory: Path) -> None:
    """Beyond its bound the level is refused and nothing is changed; after the commit it is back.

    A write that found no room although the level could still be given waits for the commit.
    """
    store = await stores.open(LAZY, journal_dir=directory, journal_bytes_max=20_000)
    await store.put("warm", {}, durability=COMMIT)
    write = gates(store).hold("write")
    text = {"text": "x" * 9_000}
    await soon(store.put("warm", text))
    await write.reached()
    await soon(store.put("warm", text))
    waiting = start(store.put("warm", {"text": "y" * 9_000}))
    await turns()
    assert not waiting.done()
    with pytest.raises(DurabilityUnavailable, match="Nothing was changed"):
        await soon(store.put("warm", {"n": 1}))
    with pytest.raises(DurabilityUnavailable):
        await soon(store.put("warm", {"n": 1}, durability=JOURNAL))
    await soon(store.put("warm", {"n": 2}, durability=MEMORY))
    write.open()
    await soon(waiting)
    await soon(store.flush())
    store.journaling.trim()
    assert store.journaling.refusal() is None
    assert {"n": 3} == (await soon(store.put("warm", {"n": 3}))).data


async def test_a_failed_journal_asks_for_the_end(
    stores: Stores, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fails, failure() returns; what waits is acknowledged by its commit; then 503.

    1. writes at journal wait; PostgreSQL is held up
    2. the journal's write fails
    3. PostgreSQL goes on
    """
    store = await stores.open(LAZY, journal_dir=directory)
    await store.put("a", {"n": 0}, durability=COMMIT)
    failing = start(store.failure())
    await turns()
    assert (False, False) == (failing.done(), store.has_failed)
    write = gates(store).hold("write")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal_file.JournalFile, "write", fail)
    writing = start(store.put("a", {"n": 1}))  # 1
    await soon(failing)  # 2
    assert store.has_failed
    assert not writing.done()
    with pytest.raises(DurabilityUnavailable, match="journal failed"):
        await soon(store.put("a", {"n": 2}))
    await soon(store.put("b", {}, durability=MEMORY))
    write.open()
    assert {"n": 1} == (await soon(writing)).data  # 3
    await soon(store.put("a", {"n": 3}, durability=COMMIT))
    assert [("a", '{"n":3}'), ("b", "{}")] == stores.psql(ITEMS)
    assert [] == await soon(store.close())


async def test_a_failed_journal_keeps_what_it_had(
    stores: Stores, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged before the disk failed is found by the next start.

    What was accepted at memory since, and could not be written, is told by name.
    """
    store = await stores.open(LAZY, journal_dir=directory)
    await store.put("a", {"n": 0}, durability=COMMIT)
    gates(store).hold("write")
    await soon(store.put("a", {"n": 1}))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(journal_file.JournalFile, "write", fail)
        writing = start(store.put("a", {"n": 2}))
        await soon(store.failure())
    gates(store).cut_off(DOWN)
    assert ["a"] == await soon(store.close(0.0))
    gates(store).open_all()
    writing.cancel()
    assert [("a", '{"n":0}')] == stores.psql(ITEMS)
    copy = as_killed(directory)
    await stores.open(journal_dir=copy)
    assert [("a", '{"n":1}')] == stores.psql(ITEMS)


# --- closing


@pytest.mark.parametrize("is_away", [True, False], ids=["away", "held up"])
async def test_closing_journals_what_is_left(
    stores: Stores, directory: Path, is_away: bool
) -> None:
    """What cannot be committed at the close is in the journal, whatever level it had.

    1. writes at memory, journal and commit are accepted, none is committed
    2. the store is closed: nothing is lost
    3. the next store has them all
    """
    store = await stores.open(journal_dir=directory)
    await store.put("a", {"n": 0}, durability=COMMIT)
    await until(lambda: store.cache.hydrated)  # so that a new item needs no query
    if is_away:
        gates(store).cut_off(DOWN)
    else:
        gates(store).hold("write")
    await soon(store.put("memory", {"n": 1}, durability=MEMORY))
    await soon(store.put("journal", {"n": 1}))
    await soon(store.delete("a", durability=MEMORY))
    committing = start(store.put("commit", {"n": 1}, durability=COMMIT))
    await until(lambda: len(store.queue) == 4)  # 1
    assert [] == await soon(store.close(0.0))  # 2
    [told] = [event for event in stores.logged if event["event"] == "journaled"]
    assert (4, ["a", "commit", "journal", "memory"]) == (told["items"], told["ids"])
    gates(store).open_all()
    committing.cancel()
    assert [("a", '{"n":0}')] == stores.psql(ITEMS)
    stores.psql("UPDATE writer_lease SET holder = NULL")
    again = await stores.open(journal_dir=directory)
    assert [(i, '{"n":1}') for i in ("commit", "journal", "memory")] == stores.psql(ITEMS)
    assert await get(again, "a") is None  # 3


async def test_closing_without_a_journal_tells_what_is_lost(stores: Stores) -> None:
    """Without a journal the ids of what could not be written are returned."""
    store = await stores.open(LAZY)
    await store.put("a", {"n": 0}, durability=COMMIT)
    gates(store).cut_off(DOWN)
    await soon(store.put("a", {"n": 1}, durability=MEMORY))
    assert ["a"] == await soon(store.close(0.0))


async def test_a_clean_close_leaves_no_journal(stores: Stores, directory: Path) -> None:
    """When everything is committed at the close, the journal's files are gone."""
    store = await stores.open(journal_dir=directory)
    await soon(store.put("a", {"n": 1}))
    await soon(store.put("b", {"n": 1}, durability=MEMORY))
    assert FILE_NAME in os.listdir(directory)
    assert [] == await soon(store.close())
    assert ["journal.lock"] == os.listdir(directory)
    assert [("a", '{"n":1}'), ("b", '{"n":1}')] == stores.psql(ITEMS)


async def test_the_hurried_close_does_not_wait(stores: Stores, directory: Path) -> None:
    """Once hurried, the close gives up on PostgreSQL and journals what is left."""
    store = await stores.open(journal_dir=directory)
    await store.put("a", {"n": 0}, durability=COMMIT)
    write = gates(store).hold("write")
    await soon(store.put("a", {"n": 1}, durability=MEMORY))
    await write.reached()
    hurry = asyncio.Event()
    closing = start(store.close(3_600.0, hurry=hurry))
    await turns()
    assert not closing.done()
    gates(store).cut_off(DOWN)
    hurry.set()
    assert [] == await soon(closing)
    assert (directory / FILE_NAME).exists()


async def test_the_hurried_close_does_not_wait_for_the_lease_either(
    stores: Stores, directory: Path
) -> None:
    """Hurried, the close gives a PostgreSQL that is silent no more than a second for the lease."""
    store = await stores.open(journal_dir=directory)
    gates(store).hold("let_go")
    hurry = asyncio.Event()
    hurry.set()
    async with asyncio.timeout(4.0):
        await store.close(3_600.0, hurry=hurry)


# --- trims


async def settled(store: ItemStore) -> None:
    """Returns when everything is committed, and the journal's thread has nothing more to do."""
    await soon(store.flush())
    assert await soon(journal_of(store).flush())


async def test_what_is_committed_stays_for_a_while(stores: Stores, directory: Path) -> None:
    """Records leave the journal RECENT_S after their commit: PostgreSQL may lose its last ones."""
    time = Time()
    store = await stores.open(LAZY, journal_dir=directory, monotonic=time)
    journal = journal_of(store)
    await soon(store.put("a", {"n": 1}))
    await settled(store)
    store.journaling.trim()
    for _ in range(3):
        time.now_s += RECENT_S / 4
        store.journaling.trim()
        assert 1 == journal.records
    await soon(store.put("b", {"n": 1}))
    await settled(store)
    store.journaling.trim()
    time.now_s += RECENT_S / 4
    store.journaling.trim()
    assert 1 == journal.records
    time.now_s += RECENT_S
    store.journaling.trim()
    assert (0, 0) == (journal.records, journal.bytes_used)


async def test_what_is_not_committed_never_leaves(stores: Stores, directory: Path) -> None:
    """However long PostgreSQL takes, what it does not have stays in the journal."""
    time = Time()
    store = await stores.open(LAZY, journal_dir=directory, monotonic=time)
    await store.put("a", {"n": 0}, durability=COMMIT)
    write = gates(store).hold("write")
    await soon(store.put("a", {"n": 1}))
    await write.reached()
    for _ in range(4):
        time.now_s += RECENT_S
        store.journaling.trim()
    assert 1 == journal_of(store).records


async def test_a_crowded_journal_is_trimmed_at_once(stores: Stores, directory: Path) -> None:
    """Beyond half of its bound the journal lets go of all that is committed."""
    time = Time()
    store = await stores.open(
        LAZY, journal_dir=directory, monotonic=time, journal_bytes_max=MIB // 8
    )
    journal = journal_of(store)
    text = {"text": "x" * 60_000}
    await soon(store.put("a", text))
    await settled(store)
    store.journaling.trim()
    assert 1 == journal.records
    await soon(store.put("b", text))
    await settled(store)
    store.journaling.trim()
    assert 0 == journal.records


async def test_a_trim_lets_what_a_crash_finds_be_all_that_is_needed(
    stores: Stores, directory: Path
) -> None:
    """After a trim a crash finds what was written since, and PostgreSQL has the rest."""
    time = Time()
    store = await stores.open(LAZY, journal_dir=directory, monotonic=time)
    await soon(store.put("a", {"n": 1}))
    await settled(store)
    store.journaling.trim()
    time.now_s += RECENT_S + 1.0
    store.journaling.trim()
    gates(store).hold("write")
    await soon(store.put("b", {"n": 2}))
    copy = as_killed(directory)
    await abandon(store)
    await stores.open(FULL, journal_dir=copy)
    assert [("a", '{"n":1}'), ("b", '{"n":2}')] == stores.psql(ITEMS)
