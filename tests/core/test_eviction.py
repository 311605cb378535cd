"""The bound of the cache: what leaves it, what stays, and how long that takes."""

from __future__ import annotations

import pytest

from itemstore.core.cache import LOOKS, LOOKS_OF_PUT, NEARLY_FULL, Cache
from itemstore.core.item import pack

BOUND = 1_000_000  # bytes
ENTRY = pack(1, 1, b"x" * 200)

nothing: frozenset[str] = frozenset()


@pytest.fixture(params=[False, True], ids=["fast", "small"])
def cache(request: pytest.FixtureRequest) -> Cache:
    cache = Cache(packs=request.param)
    cache.bound(BOUND, nothing.__contains__, lambda: None)
    return cache


def fill(cache: Cache, name: str, bytes_written: int) -> list[str]:
    """New items, until so many bytes of memory have been asked for; their ids."""
    ids: list[str] = []
    while bytes_written > 0:
        ids.append(f"{name}{len(ids)}")
        cache.put(ids[-1], ENTRY)
        cache._unpacked.clear()  # the packer has seen to them
        bytes_written -= 290
    return ids


def use(cache: Cache, ids: list[str], times: int = 1) -> int:
    """How many of them are cached."""
    return [sum(cache.get(item_id) is not None for item_id in ids) for _ in range(times)][-1]


def test_a_cache_keeps_within_its_bound(cache: Cache) -> None:
    """However much is written, the bound is kept, but for the item written last and its like."""
    for number in range(20_000):
        cache.put(str(number), pack(1, 1, b"x" * (number % 977)))
        cache._unpacked.clear()
        assert cache.bytes_used <= 1.02 * BOUND
    assert cache.bytes_used > 0.9 * BOUND
    assert len(cache) + cache.evictions == 20_000


def test_a_cache_that_is_far_from_full_counts_nothing(cache: Cache) -> None:
    """Below its bound a look-up is the table's own, and nothing is noted of it."""
    fill(cache, "a", int(BOUND * NEARLY_FULL * 0.6))
    assert cache.get == cache._table.get
    fill(cache, "b", BOUND)
    assert cache.get != cache._table.get
    assert cache.overflows
    cache.clear()
    assert cache.get == cache._table.get
    assert not cache.overflows


def test_what_is_pinned_stays(cache: Cache) -> None:
    """No dirty item is evicted, even where that means to exceed the bound; a step stays short."""
    cache.bound(BOUND, lambda item_id: item_id.startswith("dirty"), lambda: None)
    dirty = fill(cache, "dirty", 2 * BOUND)
    assert len(cache) == len(dirty)  # 6
    assert cache.evict(LOOKS)
    cache.bound(BOUND, nothing.__contains__, lambda: None)
    steps = 0
    while cache.evict(LOOKS):
        steps += 1
    assert cache.bytes_used <= BOUND
    assert steps < 4 * len(dirty) / LOOKS + 4


def test_a_step_is_short(cache: Cache) -> None:
    """A large item that comes makes room for itself in many steps, and somebody is told of it."""
    told: list[bool] = []
    cache.bound(BOUND, nothing.__contains__, lambda: told.append(True))
    fill(cache, "a", BOUND)
    told.clear()
    cache.put("large", pack(1, 1, b"x" * (BOUND // 2)))
    before = len(cache)
    cache.put("next", ENTRY)
    assert before - len(cache) <= LOOKS_OF_PUT
    assert told
    while cache.evict():
        pass
    assert cache.bytes_used <= BOUND


def test_a_scan_leaves_what_is_used(cache: Cache) -> None:
    """A reader of ten times as many items as fit does not drive out those that are in use."""
    hot = fill(cache, "hot", BOUND // 3)
    for number in range(10):
        use(cache, hot)
        fill(cache, f"cold{number}-", BOUND // 5)
    fill(cache, "scan", 10 * BOUND)
    assert use(cache, hot) > 0.9 * len(hot)


def test_what_is_used_no_more_gives_way(cache: Cache) -> None:
    """Items that were in use once leave when others are in use."""
    old = fill(cache, "old", BOUND)
    use(cache, old, times=5)
    new = [f"new{number}" for number in range(len(old) // 4)]
    for _ in range(20):
        for item_id in new:
            if cache.get(item_id) is None:
                cache.put(item_id, ENTRY)
                cache._unpacked.clear()
    assert use(cache, new) > 0.9 * len(new)


def test_newcomers_that_were_evicted_and_come_again_stay(cache: Cache) -> None:
    """An id that was evicted unused, and is asked for again soon, is no newcomer any more.

    But for some, whose ghosts gave way to others that fell on the same places.
    """
    fill(cache, "a", 3 * BOUND)
    again = fill(cache, "again", 200 * 290)
    fill(cache, "b", BOUND // 3)
    assert use(cache, again) == 0
    fill(cache, "again", 200 * 290)
    assert cache._eviction is not None
    assert len(cache._eviction._newcomers.keys() & again) < 100


def test_items_that_come_and_go_leave_nothing(cache: Cache) -> None:
    """What is deleted again, over and over, is remembered by no queue."""
    fill(cache, "a", BOUND)
    for number in range(20_000):
        cache.put(f"b{number}", ENTRY)
        cache.remove(f"b{number}")
        cache._unpacked.clear()
    assert cache._eviction is not None
    assert len(cache._eviction._queue) <= len(cache) + 1


def test_the_first_eviction_ends_hydrated(cache: Cache) -> None:
    """A cache that has let go of an item does not say that it holds all of them."""
    cache.fills = True
    cache.set_hydrated()
    first = fill(cache, "a", BOUND // 2)
    assert cache.hydrated
    assert cache.is_absent("never there")
    fill(cache, "b", BOUND)
    assert (cache.hydrated, cache.fills) == (False, False)  # 7
    assert not cache.is_absent("never there")
    assert not any(cache.is_absent(item_id) for item_id in first)


def test_what_is_taken_beyond_the_count_is_made_up_for(cache: Cache) -> None:
    """A cache that is told it takes more memory than it counts holds so much less."""
    fill(cache, "a", 2 * BOUND)
    cache.exceed(BOUND // 4)
    while cache.evict():
        pass
    assert cache.bytes_used <= BOUND - BOUND // 4
    cache.exceed(0)
    fill(cache, "b", BOUND)
    assert cache.bytes_used > 0.9 * BOUND
