"""Audit and idempotency keys, as the store keeps them: whatever becomes of it or PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from itemstore import errors
from itemstore.core import queue as queue_module
from itemstore.core.caller import Caller, Role
from itemstore.core.operation import Create, Delete, Operation, Patch, Put
from itemstore.core.record import Once, Origin
from itemstore.options import Durability
from itemstore.storage import StorageAway
from itemstore.store import ItemStore
from tests.stores import (
    COMMIT,
    EXPIRE,
    HOUR_US,
    JOURNAL,
    MEMORY,
    Stores,
    cut_off,
    gates,
    hand_over,
    soon,
    start,
    take_away,
    until,
)
from tests.test_journaling import abandon, as_killed
from tests.test_tail import Replica, healed

AUDIT = "SELECT id, what, caller, request_id, address FROM audit ORDER BY version"
VERSIONS = "SELECT version FROM audit ORDER BY version"
ANSWERS = "SELECT caller, key, position, id, version FROM idempotency ORDER BY 1, 2, 3"
COUNT = "SELECT count(*) FROM items"


def origin_of(name: str, *given: Any) -> Origin:
    return Origin(Caller(name, Role.ADMIN), *given)


def asked(key: str = "k", payload: bytes = b"x", caller: str = "me") -> Origin:
    """A request with this key; each call is a repetition."""
    return Origin(Caller(caller, Role.ADMIN), "r", "::1", Once(key, payload))


def replayed(origin: Origin) -> int:
    assert origin.once is not None
    return origin.once.replayed


async def create(
    store: ItemStore, origin: Origin | None = None, level: Durability = COMMIT
) -> tuple[str, int, int]:
    """Its id, its version, and how often it was replayed."""
    origin = origin or asked()
    item = await soon(store.create({"n": 1}, origin=origin, durability=level))
    return item.id, item.version, replayed(origin)


def forget(store: ItemStore) -> None:
    """From now on only PostgreSQL knows what was committed."""
    store.repetitions._recent.clear()


# --- the audit


async def test_each_write_has_a_row(stores: Stores) -> None:
    """Every kind of write, with who asked for it; what changes nothing has none."""
    store = await stores.open(audit=True)
    me = origin_of("me", "r1", "10.0.0.1")
    await store.put("a", {"n": 1}, origin=me)
    await store.patch("a", {"n": 2}, origin=me)
    await store.delete("a")
    with pytest.raises(errors.ItemNotFound):
        await store.delete("a", origin=me)
    await store.batch([Create({}, "b"), Delete("none")], origin=me)
    assert [
        ("a", "put", "me", "r1", "10.0.0.1"),
        ("a", "patch", "me", "r1", "10.0.0.1"),
        ("a", "delete", "library", None, None),
        ("b", "create", "me", "r1", "10.0.0.1"),
    ] == stores.psql(AUDIT)


async def test_coalesced_writes_have_a_row_each(stores: Stores) -> None:
    """Of a hundred writes of one item few are written, and each has its row, with its version."""
    store = await stores.open(audit=True)
    write = gates(store).hold("write")
    items = [await store.put("a", {"n": n}, durability=MEMORY) for n in range(100)]
    write.open()
    await store.flush()
    assert [item.version for item in items] == stores.psql(VERSIONS)
    assert store.queue.coalesced > 0


async def test_without_an_audit_nothing_is_kept(stores: Stores) -> None:
    """Changes carry no records, and the tables stay empty, also for changes by other hands."""
    store = await stores.open()
    await store.put("a", {}, origin=origin_of("me"))
    stores.psql("INSERT INTO items (id, data) VALUES ('hand', '{}')")
    assert [[], []] == [stores.psql(AUDIT), stores.psql(ANSWERS)]


async def test_a_lost_answer_makes_no_double(stores: Stores) -> None:
    """A batch that was committed and is sent again adds no row."""
    store = await stores.open(audit=True)
    write = gates(store).hold("write", "after", failing=StorageAway("the answer was lost"))
    writing = start(store.put("a", {}, durability=COMMIT))
    await write.reached()
    write.open()
    await soon(writing)
    assert 1 == len(stores.psql(AUDIT))
    assert store.persister.retries["away"] > 0


async def test_a_change_by_another_hand_has_a_row(stores: Stores) -> None:
    """INSERT, UPDATE, DELETE, a changed id and TRUNCATE, with the role that typed them."""
    await stores.open(audit=True)
    for statement in (
        "INSERT INTO items (id, data) VALUES ('x', '{}')",
        "UPDATE items SET data = '[1]' WHERE id = 'x'",
        "UPDATE items SET id = 'y' WHERE id = 'x'",
        "DELETE FROM items",
        "TRUNCATE items",
    ):
        stores.psql(statement)
    found = [(item_id, what) for item_id, what, *_ in stores.psql(AUDIT)]
    assert [
        *[("x", "insert"), ("x", "update")],
        *sorted([("x", "delete"), ("y", "update")], key=lambda row: found.index(row)),
        *[("y", "delete"), ("", "truncate")],
    ] == found
    [user] = stores.psql("SELECT DISTINCT caller = 'sql:' || session_user FROM audit")
    assert user


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET caller = 'x'", "DELETE FROM audit WHERE id = 'a'", "TRUNCATE audit"],
)
async def test_the_audit_is_append_only(stores: Stores, statement: str) -> None:
    """No SQL changes a row, and none removes one that is younger than AUDIT_RETENTION."""
    store = await stores.open(audit=True, audit_retention_s=3600.0)
    await store.put("a", {})
    rows = stores.psql(AUDIT)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        stores.psql(statement)
    assert rows == stores.psql(AUDIT)


async def test_old_rows_are_purged(stores: Stores) -> None:
    """Rows older than AUDIT_RETENTION go, younger ones stay; keys go by their own retention."""
    store = await stores.open(audit=True, audit_retention_s=3600.0)
    await create(store)
    now = store.clock.now()
    old = "INSERT INTO audit SELECT %s, 'old', now(), 'put', 'me', NULL, NULL"
    stores.psql(old, now - HOUR_US - 60_000_000)
    assert 1 == await store._storage.purge_records(0)
    assert 0 == await store._storage.purge_records(0)
    assert 1 == len(stores.psql(AUDIT))
    assert 1 == await store._storage.purge_records(now)
    assert [] == stores.psql(ANSWERS)


async def test_a_fenced_write_leaves_no_row(stores: Stores) -> None:
    """Without the lease what was acknowledged is written with its row, the rest with none."""
    first = await stores.open(audit=True)
    await first.put("a", {"n": 0})
    second = await stores.open(audit=True)
    gates(first).cut_off()
    told = await first.put("told", {}, durability=MEMORY, origin=origin_of("told"))
    refused = start(first.put("refused", {}, durability=COMMIT, origin=origin_of("refused")))
    await asyncio.sleep(0)
    await take_away(stores, first, second)
    gates(first).join()
    with pytest.raises(errors.Unavailable):
        await soon(refused)
    await until(lambda: not len(first.queue))
    callers = [caller for _, _, caller, *_ in stores.psql(AUDIT)]
    assert ["library", "told"] == callers
    assert told.version


async def test_a_failover_loses_no_row(stores: Stores) -> None:
    """What PostgreSQL lost of the last commits is written again with all its rows, and keys."""
    store = await stores.open(audit=True)
    await store.put("a", {"n": 0})
    replica = Replica(stores.dsn)
    for n in range(3):
        await store.put("a", {"n": n})
    made = await create(store)
    rows, answers = stores.psql(AUDIT), stores.psql(ANSWERS)
    with psycopg.connect(stores.dsn) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("DELETE FROM audit")
        connection.execute("DELETE FROM idempotency")
    replica.promote()
    await healed(stores, store)
    assert [rows, answers] == [stores.psql(AUDIT), stores.psql(ANSWERS)]
    assert (*made[:2], 1) == await create(store)


async def test_a_refused_write_has_its_row_with_its_parking(stores: Stores) -> None:
    """The row of a write in quarantine is committed with that; a retry has one of its own."""
    store = await stores.open(audit=True)
    stores.psql("ALTER TABLE items ADD CONSTRAINT rule CHECK (id <> 'bad')")
    with pytest.raises(errors.ItemQuarantined):
        await store.put("bad", {}, durability=COMMIT, origin=origin_of("me"))
    stores.psql("ALTER TABLE items DROP CONSTRAINT rule")
    await store.quarantine.retry("bad", origin_of("admin"))
    rows = [(what, caller) for _, what, caller, *_ in stores.psql(AUDIT)]
    assert [("put", "me"), ("repeat", "admin")] == rows


async def test_records_are_bounded(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that is written too often while PostgreSQL is away is refused, not its records."""
    monkeypatch.setattr(queue_module, "RECORDS_MAX", 3)
    store = await stores.open(audit=True)
    write = gates(store).hold("write")
    await store.put("b", {}, durability=MEMORY)
    await write.reached()
    for n in range(4):
        await store.put("a", {"n": n}, durability=MEMORY)
    with pytest.raises(errors.Overloaded):
        await store.put("a", {"n": 4}, durability=MEMORY)
    assert {"n": 3} == (await store.get("a")).data  # type: ignore[union-attr]
    write.open()
    await store.flush()
    assert 5 == len(stores.psql(AUDIT))


# --- idempotency keys


async def test_a_repetition_gets_the_same_answer(stores: Stores) -> None:
    """The same item, also when only PostgreSQL knows, and after it was changed and deleted."""
    store = await stores.open()
    first = await create(store)
    assert (*first[:2], 1) == await create(store)
    forget(store)
    assert (*first[:2], 1) == await create(store)
    await store.put(first[0], {"n": 2})
    again = await store.create({"n": 1}, origin=asked())
    assert ({"n": 1}, True) == (again.data, again.is_new)
    await store.delete(first[0])
    assert (*first[:2], 1) == await create(store)
    assert [0] == stores.psql(COUNT)


async def test_a_key_is_its_callers_own(stores: Stores) -> None:
    """Another caller's request under the same key is another request."""
    store = await stores.open()
    one, other = await create(store), await create(store, asked(caller="other"))
    assert one[0] != other[0]
    assert [2] == stores.psql(COUNT)


@pytest.mark.parametrize("place", ["pending", "recent", "PostgreSQL"])
async def test_another_payload_is_refused(stores: Stores, place: str) -> None:
    """Wherever the first one is known from, and nothing is changed."""
    store = await stores.open()
    write = gates(store).hold("write")
    await create(store, level=MEMORY)
    if place != "pending":
        write.open()
        await store.flush()
    if place == "PostgreSQL":
        forget(store)
    with pytest.raises(errors.IdempotencyKeyReused):
        await store.create({"n": 2}, origin=asked(payload=b"y"), durability=MEMORY)
    write.open()
    await store.flush()
    assert [1] == stores.psql(COUNT)


async def test_a_request_under_way_is_told(stores: Stores) -> None:
    """While the first is waited for, a repetition is refused; after it, it is answered."""
    store = await stores.open()
    write = gates(store).hold("write")
    first = start(create(store))
    await write.reached()
    with pytest.raises(errors.IdempotencyInProgress):
        await create(store)
    write.open()
    made = await soon(first)
    assert (*made[:2], 1) == await create(store)


async def test_a_repetition_waits_for_what_it_asks(stores: Stores) -> None:
    """A write at memory is repeated at commit: answered when it is committed, and not before."""
    store = await stores.open()
    write = gates(store).hold("write")
    made = await create(store, level=MEMORY)
    again = start(create(store))
    await write.reached()
    await asyncio.sleep(0.01)
    assert not again.done()
    write.open()
    assert (*made[:2], 1) == await soon(again)


async def test_after_its_time_a_key_is_new(stores: Stores) -> None:
    """Older than IDEMPOTENCY_RETENTION it is carried out again, and its row replaced."""
    moved = [0]
    store = await stores.open(
        now_us=lambda: 4_000_000_000_000_000 + moved[0], idempotency_retention_s=600.0
    )
    first = await create(store)
    moved[0] = 601_000_000
    forget(store)
    second = await create(store, asked(payload=b"y"))
    assert (True, 0) == (first[0] != second[0], second[2])
    assert [("me", "k", 0, second[0], second[1])] == stores.psql(ANSWERS)


async def test_a_batch_goes_on_where_it_was_left(stores: Stores) -> None:
    """What was carried out is answered again, what failed is tried again; each once in all."""
    store = await stores.open()
    await store.put("p", {"n": 1, "kept": 1})
    await store.put("d", {})
    operations: list[Operation | errors.ItemStoreError] = [
        Create({"n": 1}),
        Patch("p", {"n": 2}),
        errors.InvalidItem("not understood"),
        Delete("d"),
        Put("q", {"n": 3}),
        Create({}, "late"),
    ]
    await store.put("late", {})
    origin = asked()
    first = await store.batch(operations, origin=origin)
    assert isinstance(first[5], errors.ItemExists)
    await store.put("p", {"n": 9})
    await store.delete("late")
    for known in ("in memory", "in PostgreSQL"):
        origin = asked()
        again = await store.batch(operations, origin=origin)
        assert list(first[:5]) == list(again[:5])
        assert again[5].id == "late"  # type: ignore[union-attr]
        assert (4 if known == "in memory" else 5) == replayed(origin)
        forget(store)
    with pytest.raises(errors.IdempotencyKeyReused):
        await store.batch([Create({}), *operations], origin=asked(payload=b"y"))
    assert [4] == stores.psql(COUNT)


async def test_a_standby_asks_postgresql(stores: Stores) -> None:
    """After a hand-over the new holder answers what the former one has carried out."""
    first = await stores.open()
    made = await create(first)
    second = await stores.open()
    await hand_over(first, second)
    assert (*made[:2], 1) == await create(second)


async def test_what_was_asked_under_another_epoch_is_asked_again(stores: Stores) -> None:
    """Between the question and the write another holder carried the request out.

    1. the first asks PostgreSQL, which knows of no such request
    2. it loses the lease to the second, which carries the request out, and is gone
    3. the first has the lease again: it asks once more, and repeats the answer
    """
    first = await stores.open()
    await first.put("a", {})
    second = await stores.open()
    asking = gates(first).hold("repetitions", "after")
    repeated = start(first.create({"n": 1}, origin=asked()))
    await asking.reached()  # 1
    await take_away(stores, first, second)
    made = await create(second)
    gates(first).join()
    await until(lambda: first.lease.state == "standby")
    gates(second).cut_off()
    stores.psql(EXPIRE)
    await until(lambda: first.lease.is_holder)  # 2
    asking.open()
    item = await soon(repeated)
    assert made[:2] == (item.id, item.version)  # 3
    assert [2] == stores.psql(COUNT)


async def test_away_nothing_can_be_told(stores: Stores) -> None:
    """A key that is not known in memory needs PostgreSQL: without it the request is refused."""
    store = await stores.open()
    made = await create(store)
    await cut_off(store)
    assert (*made[:2], 1) == await create(store, level=MEMORY)
    with pytest.raises(errors.DatabaseUnavailable, match="Idempotency-Key"):
        await create(store, asked("new"), MEMORY)
    assert 1 == len(store.cache)


@pytest.mark.parametrize("level", [MEMORY, JOURNAL])
async def test_a_crash_keeps_both_or_neither(stores: Stores, tmp_path: Path, level: Any) -> None:
    """A write that a crash lost is carried out anew, one that the journal kept is answered."""
    journal = tmp_path / "journal"
    first = await stores.open(journal_dir=journal, audit=True)
    await first.put("a", {}, durability=COMMIT)
    gates(first).hold("write")
    made = await create(first, level=level)
    copy = as_killed(journal)
    await abandon(first)
    stores.psql(EXPIRE)
    second = await stores.open(journal_dir=copy, audit=True)
    again = await create(second)
    assert (level is JOURNAL) == (made[:2] == again[:2]) == bool(again[2])
    assert ([2], 2) == (stores.psql(COUNT), len(stores.psql(AUDIT)))


async def test_a_stop_journals_all_records(stores: Stores, tmp_path: Path) -> None:
    """What cannot be written at the end is in the journal with the records of what it replaced."""
    journal = tmp_path / "journal"
    first = await stores.open(journal_dir=journal, audit=True)
    await first.put("a", {}, durability=COMMIT)
    await cut_off(first)
    written = [
        await first.put("a", {"n": n}, durability=JOURNAL if n == 5 else MEMORY) for n in range(9)
    ]
    assert [] == await soon(first.close(0.0))
    gates(first).open_all()
    second = await stores.open(journal_dir=journal, audit=True)
    assert {"n": 8} == (await second.get("a")).data  # type: ignore[union-attr]
    assert [item.version for item in written] == stores.psql(VERSIONS)[1:]
