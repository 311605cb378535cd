"""The packer: what lies plain in the cache is packed in the background, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.data import rows
from itemstore.core.cache import Cache, Row
from itemstore.core.item import data_of, pack, plain
from itemstore.core.packing import SAMPLE_ITEMS, dictionary_of
from itemstore.core.queue import Change, WriteQueue
from itemstore.packer import PACK_ITEMS, Packer
from tests.simulation.history import SILENT

ROWS: list[Row] = [(row.id, pack(row.version, row.created_us, row.data)) for row in rows(3_000)]
MORE: list[Row] = [(item_id + "+", entry) for item_id, entry in ROWS]


class Stopped(Exception):
    """Enough was slept."""


class Thread:
    """Calls at once; ``during`` is what happens meanwhile."""

    def __init__(self) -> None:
        self.during: list[Any] = []
        self.calls = 0

    async def __call__(self, call: Any, *arguments: Any) -> Any:
        self.calls += 1
        done = call(*arguments)
        for each in self.during:
            each()
        await asyncio.sleep(0)
        return done


def filled(thread: Thread, *, packs: bool = True) -> tuple[Cache, WriteQueue, Packer]:
    cache, queue = Cache(packs=packs), WriteQueue()
    cache.install(cache.begin_load(), ROWS, ())
    return cache, queue, Packer(cache, queue, SILENT, in_thread=thread)


async def pack_all(packer: Packer) -> None:
    while await packer.step():
        pass


def check(cache: Cache, expected: dict[str, bytes]) -> None:
    found = dict(cache.items())
    assert expected == {item_id: plain(entry) for item_id, entry in found.items()}
    assert cache.packed == sum(dictionary_of(entry) is not None for entry in found.values())


async def test_what_is_cached_gets_packed() -> None:
    """Everything is packed, comes back byte for byte, and the books are right."""
    cache, _, packer = filled(Thread())
    before = cache.bytes_used
    await pack_all(packer)
    check(cache, dict(ROWS))
    assert len(ROWS) == cache.packed
    assert cache.bytes_used < before * 0.7


async def test_few_items_stay_as_they_are() -> None:
    """Below 2,000 there is nothing to train on, and little to save."""
    cache, thread = Cache(packs=True), Thread()
    cache.install(cache.begin_load(), ROWS[: SAMPLE_ITEMS - 1], ())
    await pack_all(Packer(cache, WriteQueue(), SILENT, in_thread=thread))
    assert (0, 0) == (cache.packed, thread.calls)


async def test_a_write_during_packing_stays() -> None:
    """An item written, deleted or truncated while it is packed is not brought back."""
    thread = Thread()
    cache, _, packer = filled(thread)
    (written, old), (deleted, _) = ROWS[:2]
    new = pack(2**52, 1, data_of(old))
    thread.during += [lambda: cache.put(written, new), lambda: cache.remove(deleted)]
    await packer.step()
    thread.during.clear()
    check(cache, _without(deleted) | {written: new})
    await pack_all(packer)
    check(cache, _without(deleted) | {written: new})
    assert len(ROWS) - 1 == cache.packed


def _without(item_id: str) -> dict[str, bytes]:
    return {each: entry for each, entry in ROWS if each != item_id}


async def test_dirty_items_are_packed_when_they_are_clean() -> None:
    """What the write queue has is left alone, and not forgotten."""
    cache, queue, packer = filled(Thread())
    item_id, entry = ROWS[0]
    queue.put(Change(item_id, 1, entry, deleted=False, now_s=0.0))
    await pack_all(packer)
    assert len(ROWS) - 1 == cache.packed
    queue.settle(queue.take(1, 1))
    await pack_all(packer)
    assert len(ROWS) == cache.packed


async def test_a_cleared_cache_gets_nothing_back() -> None:
    """What was being packed when the lease was lost is gone."""
    thread = Thread()
    cache, _, packer = filled(thread)
    thread.during.append(cache.clear)
    await packer.step()
    check(cache, {})


async def test_the_preload_gets_its_pages_packed() -> None:
    """The first pages are kept plain to train on; the others come back packed, row by row."""
    cache = Cache(packs=True)
    packer = Packer(cache, WriteQueue(), SILENT, in_thread=Thread())
    load = cache.begin_load()
    for start in range(0, len(ROWS), 500):
        page = await packer.packed(ROWS[start : start + 500])
        assert [item_id for item_id, _ in page] == [i for i, _ in ROWS[start : start + 500]]
        cache.install(load, page, ())
    check(cache, dict(ROWS))
    assert len(ROWS) == cache.packed
    assert PACK_ITEMS == SAMPLE_ITEMS


async def test_without_compression_nothing_is_packed() -> None:
    """CACHE_COMPRESSION=off: entries stay plain, nothing is noted, and ``run`` ends."""
    thread = Thread()
    cache, _, packer = filled(thread, packs=False)
    await packer.run()
    assert ROWS[:10] == await packer.packed(ROWS[:10])
    assert (0, 0, 0) == (cache.packed, cache.unpacked_items, thread.calls)


async def test_a_failure_costs_nothing_but_memory() -> None:
    """When packing fails, the preload goes on with plain entries, and the packer tries again."""
    thread, pauses = Thread(), 0

    def fail() -> None:
        raise MemoryError

    async def sleep(_: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 2:
            thread.during.clear()
        elif pauses == 3:
            raise Stopped

    cache, queue, _ = filled(thread)
    cache.install(cache.begin_load(), MORE, ())
    packer = Packer(cache, queue, SILENT, in_thread=thread, sleep=sleep)
    thread.during.append(fail)
    assert ROWS == await packer.packed(ROWS)
    with pytest.raises(Stopped):
        await packer.run()
    check(cache, dict(ROWS + MORE))
    assert cache.packed > 0
