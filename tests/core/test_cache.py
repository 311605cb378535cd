"""The cache, invariant by invariant; the numbers are those of docs/architecture.md."""

from __future__ import annotations

import pytest

from itemstore.core.cache import ABSENT_MAX, Cache, Row
from itemstore.core.item import data_of, pack
from itemstore.core.shards import Shards
from itemstore.core.table import Table

NOTHING: frozenset[str] = frozenset()
ROWS: list[Row] = [("a", pack(1, 1, b"old a")), ("b", pack(1, 1, b"old b"))]


@pytest.fixture(params=[False, True], ids=["fast", "small"])
def cache(request: pytest.FixtureRequest) -> Cache:
    return Cache(packs=request.param)


def recount(cache: Cache) -> int:
    overhead = Table.OVERHEAD_BYTES + 1 if cache.packs else Shards.OVERHEAD_BYTES
    return sum(overhead + len(item_id) + len(entry) for item_id, entry in cache.items())


def text(cache: Cache, item_id: str) -> bytes | None:
    entry = cache.get(item_id)
    return None if entry is None else data_of(entry)


def test_the_cache_keeps_what_it_is_given(cache: Cache) -> None:
    """What was put is there until it is replaced or removed."""
    cache.put("a", pack(1, 1, b"1"))
    cache.put("a", pack(1, 1, b"2"))
    assert (text(cache, "a"), text(cache, "b"), len(cache)) == (b"2", None, 1)
    cache.remove("a")
    cache.remove("b")
    assert (text(cache, "a"), len(cache)) == (None, 0)


def test_the_cache_counts_its_bytes(cache: Cache) -> None:
    """The estimate is the sum over the entries, after puts, replacements, removals and loads."""
    assert cache.item_bytes == 0
    cache.put("a", pack(1, 1, b"x" * 10))
    assert cache.item_bytes == recount(cache) > 27  # 10
    cache.put("a", pack(1, 1, b"x" * 3))
    cache.put("bb", pack(1, 1, b""))
    assert cache.item_bytes == recount(cache)
    cache.install(
        cache.begin_load(), [("a", pack(1, 1, b"ignored")), ("c", pack(1, 1, b"xyz"))], NOTHING
    )
    assert cache.item_bytes == recount(cache)
    for item_id in ("a", "bb", "c", "d"):
        cache.remove(item_id)
    assert cache.item_bytes == 0


# --- 6. a load installs only where it finds the place as it was


def test_a_load_fills_empty_places(cache: Cache) -> None:
    """Rows of items that are neither cached nor changed are kept; their number is told."""
    load = cache.begin_load()
    assert cache.install(load, ROWS, NOTHING) == 2
    assert dict(cache.items()) == dict(ROWS)
    assert cache.install(load, ROWS, NOTHING) == 0


def test_a_load_does_not_overwrite(cache: Cache) -> None:
    """A load never replaces an entry that is as new or came meanwhile; an older one it does."""
    new_a, new_b = pack(9, 1, b"{}"), pack(1, 1, b"{}")
    cache.put("a", new_a)
    load = cache.begin_load()
    cache.put("b", new_b)
    rows = [("a", pack(9, 1, b'{"other":1}')), ("b", pack(9, 1, b"{}"))]
    assert cache.install(load, rows, NOTHING) == 0  # 6
    assert dict(cache.items()) == {"a": new_a, "b": new_b}
    newer = pack(10, 1, b'{"longer":"than before"}')
    assert cache.install(cache.begin_load(), [("a", newer)], NOTHING) == 0
    assert dict(cache.items()) == {"a": newer, "b": new_b}
    assert cache.item_bytes == recount(cache)


def test_a_load_does_not_bring_back_what_was_removed_meanwhile(cache: Cache) -> None:
    """An item that was deleted during the load stays deleted, however short it was cached."""
    load = cache.begin_load()
    cache.remove("a")
    cache.put("b", pack(1, 1, b"new b"))
    cache.remove("b")
    assert cache.install(load, ROWS, NOTHING) == 0  # 6


def test_a_load_does_not_bring_back_what_is_being_deleted(cache: Cache) -> None:
    """A delete accepted before the load began, and not yet committed, is not undone by it."""
    cache.remove("a")
    load = cache.begin_load()
    assert cache.install(load, ROWS, {"a"}) == 1  # 6
    assert dict(cache.items()) == {"b": pack(1, 1, b"old b")}


def test_a_load_does_not_bring_back_what_was_committed_meanwhile(cache: Cache) -> None:
    """A delete accepted before the load, committed during it, marks the load by its commit."""
    cache.remove("a")
    load = cache.begin_load()
    cache.touch(["a"])  # the commit was answered; nothing of the delete is pending any more
    assert cache.install(load, ROWS, NOTHING) == 1  # 6
    assert dict(cache.items()) == {"b": pack(1, 1, b"old b")}


def test_each_load_is_marked(cache: Cache) -> None:
    """A change marks every load under way, none that begins later and none that has ended."""
    ended, first, second = cache.begin_load(), cache.begin_load(), cache.begin_load()
    cache.end_load(ended)
    cache.end_load(ended)
    cache.touch(item_id for item_id in ("a", "c"))
    later = cache.begin_load()
    assert (first.touched, second.touched) == ({"a", "c"}, {"a", "c"})  # 6
    assert (ended.touched, later.touched) == (set(), set())


# --- 6. a TRUNCATE by another hand


def versioned(item_id: str, version: int) -> Row:
    return item_id, pack(version, 1, b"{}")


def test_a_truncate_removes_what_is_older(cache: Cache) -> None:
    """Items older than the TRUNCATE are gone, but for those with a change still to be written."""
    for row in (versioned("old", 1), versioned("dirty", 2), versioned("new", 5)):
        cache.put(*row)
    list(cache.truncate(5, {"dirty"}))
    assert sorted(dict(cache.items())) == ["dirty", "new"]
    assert cache.item_bytes == recount(cache)


def test_a_load_does_not_bring_back_what_was_truncated(cache: Cache) -> None:
    """A load under way installs only what is newer than the TRUNCATE; a later one installs all."""
    load = cache.begin_load()
    list(cache.truncate(5, ()))
    rows = [versioned("a", 4), versioned("b", 5), versioned("c", 6)]
    assert cache.install(load, rows, NOTHING) == 2  # 6
    assert sorted(dict(cache.items())) == ["b", "c"]
    assert cache.install(cache.begin_load(), rows, NOTHING) == 1


# --- 7. what is known to be absent is absent


def test_nothing_is_known_of_an_item_at_first(cache: Cache) -> None:
    """Without a query nothing is surely absent."""
    assert not cache.is_absent("a")


def test_what_postgresql_did_not_have_is_absent(cache: Cache) -> None:
    """An id that a load did not find is known to be absent until it is written."""
    load = cache.begin_load()
    cache.note_absent(load, ["a", "b"])
    assert cache.is_absent("a")
    cache.put("a", pack(1, 1, b"1"))
    cache.remove("a")
    assert not cache.is_absent("a")  # 7: it may be in PostgreSQL by now
    assert cache.is_absent("b")


def test_what_changed_during_the_load_is_not_noted(cache: Cache) -> None:
    """An id that was written, deleted or committed while the load was under way is unknown."""
    load = cache.begin_load()
    cache.put("written", pack(1, 1, b"1"))
    cache.remove("deleted")
    cache.touch(["committed"])
    cache.note_absent(load, ["written", "deleted", "committed", "other"])
    absent = [i for i in ("written", "deleted", "committed", "other") if cache.is_absent(i)]
    assert absent == ["other"]  # 7


def test_what_is_cached_is_not_noted_absent(cache: Cache) -> None:
    """An entry is proof enough that its item exists."""
    cache.put("a", pack(1, 1, b"1"))
    cache.note_absent(cache.begin_load(), ["a"])
    assert not cache.is_absent("a")  # 7


def test_the_notes_of_absence_are_bounded(cache: Cache) -> None:
    """Beyond 10,000 ids the oldest notes are forgotten: a miss costs a query again, no more."""
    load = cache.begin_load()
    cache.note_absent(load, [str(number) for number in range(ABSENT_MAX)])
    assert cache.is_absent("0")
    cache.note_absent(load, ["x", "y"])
    known = [i for i in ("0", "1", "2", "x", "y") if cache.is_absent(i)]
    assert known == ["2", "x", "y"]  # 10


def test_a_full_cache_knows_what_is_absent(cache: Cache) -> None:
    """A cache that holds every item needs no notes."""
    cache.note_absent(cache.begin_load(), ["a"])
    assert not cache.hydrated
    cache.set_hydrated()
    assert cache.hydrated
    assert cache.is_absent("a")
    assert cache.is_absent("never asked for")


def test_a_load_does_not_bring_back_what_was_found_absent(cache: Cache) -> None:
    """A page read before another hand deleted an item brings nothing a reader was told is gone."""
    page = cache.begin_load()
    miss = cache.begin_load()
    cache.note_absent(miss, ["a"])
    assert cache.is_absent("a")
    assert cache.install(page, ROWS, NOTHING) == 1  # 6
    assert set(dict(cache.items())) == {"b"}


# --- a standby's cache, and a former holder's


def test_a_newer_state_replaces_what_is_cached(cache: Cache) -> None:
    """An item that is cached is kept fresh, and the books stay right."""
    cache.put("a", pack(1, 1, b"old"))
    load = cache.begin_load()
    cache.refresh("a", pack(1, 1, b"newer one"))
    assert b"newer one" == text(cache, "a")
    assert recount(cache) == cache.item_bytes
    assert {"a"} == load.touched  # 6


def test_what_is_not_cached_is_not_kept_fresh(cache: Cache) -> None:
    """On demand, an item nobody asked for stays out, but is absent no more, and loads are told."""
    cache.note_absent(cache.begin_load(), ["a", "b"])
    load = cache.begin_load()
    cache.refresh("a", pack(1, 1, b"1"))
    assert {} == dict(cache.items())
    assert [False, True] == [cache.is_absent("a"), cache.is_absent("b")]  # 7
    assert 1 == cache.install(load, ROWS, NOTHING)  # 6
    assert {"b": pack(1, 1, b"old b")} == dict(cache.items())


def test_a_cache_that_is_to_hold_everything_takes_what_is_new(cache: Cache) -> None:
    """While a preload is under way, and after it, a new item joins the cache."""
    cache.fills = True
    cache.refresh("a", pack(1, 1, b"1"))
    assert {"a": pack(1, 1, b"1")} == dict(cache.items())
    assert recount(cache) == cache.item_bytes


def test_a_cleared_cache_knows_nothing(cache: Cache) -> None:
    """After clear() nothing is cached, absent, complete or to be filled; no bytes are used."""
    cache.put("a", pack(1, 1, b"1"))
    cache.note_absent(cache.begin_load(), ["b"])
    cache.fills = True
    cache.set_hydrated()
    cache.clear()
    assert ({}, 0, False, False) == (
        dict(cache.items()),
        cache.item_bytes,
        cache.hydrated,
        cache.fills,
    )
    assert [False, False] == [cache.is_absent("a"), cache.is_absent("b")]  # 7


def test_a_cleared_cache_forgets_absent_ids(cache: Cache) -> None:
    """What was absent under a lease that is lost may exist by now."""
    cache.note_absent(cache.begin_load(), ["a"])
    cache.clear()
    assert not cache.is_absent("a")  # 7


def test_a_load_from_before_brings_nothing_into_a_cleared_cache(cache: Cache) -> None:
    """A load under way at clear() installs nothing, whatever its versions; a later one does."""
    load = cache.begin_load()
    cache.clear()
    rows = [versioned("a", 1), versioned("b", 2**53)]
    assert 0 == cache.install(load, rows, NOTHING)  # 6
    assert 2 == cache.install(cache.begin_load(), rows, NOTHING)


def test_who_hands_over_forgets_what_is_absent(cache: Cache) -> None:
    """Absent ids are forgotten, entries are not; a miss is a query again."""
    cache.put("a", pack(1, 1, b"1"))
    cache.note_absent(cache.begin_load(), ["b"])
    cache.forget_absent()
    assert not cache.is_absent("b")  # 7
    assert {"a": pack(1, 1, b"1")} == dict(cache.items())
