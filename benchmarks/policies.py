"""Which items a full cache should keep: policies on traces, beside what could be known at best.

    python -m benchmarks.policies [--quick] [--items 50000] [--runs 3] [--json FILE]

Each policy is given the same ids, one after another, and room for some hundredth of them. ``ours``
is the one the store has (itemstore/core/eviction.py), over its own table; the others are written as
they are published. Belady's keeps what is asked for again first: nothing can do better.
"""

from __future__ import annotations

import heapq
import time
import timeit
import tracemalloc
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import charts, command
from benchmarks.report import Result, Table, environment, number, spread
from itemstore.core.cache import NEARLY_FULL
from itemstore.core.eviction import Eviction
from itemstore.core.ids import scramble
from itemstore.core.item import pack
from itemstore.core.shards import Shards

ITEMS: Final = 50_000
REQUESTS: Final = 10  # an item
SHARES: Final = (1, 10, 50)  # hundredths of the items that fit
SKEW: Final = 0.99  # YCSB's
ITEM_BYTES: Final = 400  # with 230 bytes of JSON
SCANS: Final = 3
LOOP: Final = 1.2  # times what fits
PER_WRITE: Final = 10  # reads to each new item

Trace = NDArray[np.int64]


class Policy(Protocol):
    def ask(self, item_id: str) -> bool:
        """Whether the item is cached; it is afterwards."""
        ...


class Lru:
    """Evicts what was not asked for for the longest time."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._items: OrderedDict[str, None] = OrderedDict()

    def ask(self, item_id: str) -> bool:
        if item_id in self._items:
            self._items.move_to_end(item_id)
            return True
        if len(self._items) >= self._room:
            self._items.popitem(last=False)
        self._items[item_id] = None
        return False


class Clock:
    """First in, first out, but for what was asked for since the hand came by (Corbató 1968)."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._is_used: dict[str, bool] = {}
        self._queue: deque[str] = deque()

    def ask(self, item_id: str) -> bool:
        if item_id in self._is_used:
            self._is_used[item_id] = True
            return True
        if len(self._is_used) >= self._room:
            while self._is_used[oldest := self._queue.popleft()]:
                self._is_used[oldest] = False
                self._queue.append(oldest)
            del self._is_used[oldest]
        self._is_used[item_id] = False
        self._queue.append(item_id)
        return False


class _Node:
    __slots__ = ("id", "is_used", "newer", "older")

    def __init__(self, item_id: str, older: _Node | None) -> None:
        self.id, self.is_used = item_id, False
        self.older = older
        self.newer: _Node | None = None


class Sieve:
    """CLOCK whose hand leaves what it has spared where it is (Zhang et al., NSDI 2024)."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._nodes: dict[str, _Node] = {}
        self._newest: _Node | None = None
        self._oldest: _Node | None = None
        self._hand: _Node | None = None

    def ask(self, item_id: str) -> bool:
        node = self._nodes.get(item_id)
        if node is not None:
            node.is_used = True
            return True
        if len(self._nodes) >= self._room:
            self._evict()
        node = self._nodes[item_id] = _Node(item_id, self._newest)
        if self._newest is None:
            self._oldest = node
        else:
            self._newest.newer = node
        self._newest = node
        return False

    def _evict(self) -> None:
        node = self._hand or self._oldest
        while node is not None and node.is_used:
            node.is_used = False
            node = node.newer or self._oldest
        if node is None:
            return
        self._hand = node.newer
        if node.older is None:
            self._oldest = node.newer
        else:
            node.older.newer = node.newer
        if node.newer is None:
            self._newest = node.older
        else:
            node.newer.older = node.older
        del self._nodes[node.id]


class S3Fifo:
    """Newcomers, the main part and ghosts, each first in, first out (Yang et al., SOSP 2023)."""

    def __init__(self, room: int) -> None:
        self._room, self._small = room, max(1, room // 10)
        self._uses: dict[str, int] = {}
        self._newcomers: deque[str] = deque()
        self._main: deque[str] = deque()
        self._ghosts: OrderedDict[str, None] = OrderedDict()

    def ask(self, item_id: str) -> bool:
        uses = self._uses.get(item_id)
        if uses is not None:
            self._uses[item_id] = min(uses + 1, 3)
            return True
        if len(self._uses) >= self._room:
            while not self._evict():
                pass
        if item_id in self._ghosts:
            del self._ghosts[item_id]
            self._main.append(item_id)
        else:
            self._newcomers.append(item_id)
        self._uses[item_id] = 0
        return False

    def _evict(self) -> bool:
        if len(self._newcomers) >= self._small or not self._main:
            oldest = self._newcomers.popleft()
            if self._uses[oldest] > 1:
                self._uses[oldest] = 0
                self._main.append(oldest)
                return False
            self._ghosts[oldest] = None
            if len(self._ghosts) > self._room - self._small:
                self._ghosts.popitem(last=False)
        else:
            oldest = self._main.popleft()
            if self._uses[oldest]:
                self._uses[oldest] -= 1
                self._main.append(oldest)
                return False
        del self._uses[oldest]
        return True


class Ours:
    """The store's, over its table, with room for so many items of ``ITEM_BYTES``."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._table = Shards()
        self._eviction: Eviction | None = None
        self._get: Callable[[str], bytes | None] = self._table.get

    def ask(self, item_id: str) -> bool:
        if self._get(item_id) is not None:
            return True
        if self._eviction is None and len(self._table) >= NEARLY_FULL * self._room:
            self._eviction = Eviction(self._table, self._room * ITEM_BYTES)
            self._get = self._eviction.get
        if self._eviction is not None:
            while len(self._table) >= self._room:
                evicted = self._eviction.next(lambda _: False)
                if evicted is not None:
                    self._table.pop(evicted)
        self._table.put(item_id, _ENTRY)
        if self._eviction is not None:
            self._eviction.arrived(item_id)
        return False


_ENTRY: Final = pack(1, 1, b"{}")

POLICIES: Final[dict[str, Callable[[int], Policy]]] = {
    "LRU": Lru,
    "CLOCK": Clock,
    "SIEVE": Sieve,
    "S3-FIFO": S3Fifo,
    "ours": Ours,
}
BEST: Final = "Belady"


def belady(trace: Trace, room: int) -> float:
    """The hit ratio of who knows the future (Belady 1966)."""
    following = np.full(len(trace), len(trace) + 1)
    last: dict[int, int] = {}
    ids: list[int] = trace.tolist()
    for place in range(len(ids) - 1, -1, -1):
        following[place] = last.get(ids[place], len(ids) + place)
        last[ids[place]] = place
    cached: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    hits = 0
    for item, again in zip(ids, following.tolist(), strict=True):
        if item in cached:
            hits += 1
        elif len(cached) >= room:
            while True:
                place, other = heapq.heappop(farthest)
                if cached.get(other) == -place:
                    del cached[other]
                    break
        cached[item] = again
        heapq.heappush(farthest, (-again, item))
    return hits / len(ids)


# --- traces


def zipf(items: int, room: int, seed: int) -> Trace:
    """Few items are asked for often."""
    return _shuffled(_ranks(items, REQUESTS * items, seed), items, seed)


def scanned(items: int, room: int, seed: int) -> Trace:
    """The same, and three times somebody reads everything."""
    parts = np.array_split(zipf(items, room, seed), SCANS + 1)
    everything = np.arange(items)
    return np.concatenate([part for each in parts[:-1] for part in (each, everything)] + parts[-1:])


def loop(items: int, room: int, seed: int) -> Trace:
    """Somewhat more than fits, over and over."""
    return np.arange(REQUESTS * items // 2) % int(LOOP * room)


def newest(items: int, room: int, seed: int) -> Trace:
    """The newer an item is, the more it is asked for; new ones come all the time."""
    ages = _ranks(items, REQUESTS * items, seed)
    head: Trace = items + np.arange(len(ages)) // PER_WRITE - ages
    return head


def shifting(items: int, room: int, seed: int) -> Trace:
    """zipf, but four times other items are the popular ones."""
    ranks = np.array_split(_ranks(items, REQUESTS * items, seed), 4)
    return np.concatenate([_shuffled(part, items, seed + n) for n, part in enumerate(ranks)])


TRACES: Final = {
    "zipf": zipf,
    "zipf and scans": scanned,
    "a loop": loop,
    "the newest": newest,
    "zipf that shifts": shifting,
}


def _ranks(items: int, count: int, seed: int) -> Trace:
    chances = np.cumsum(1 / np.arange(1, items + 1) ** SKEW)
    drawn = np.random.default_rng(seed).random(count) * chances[-1]
    ranks: Trace = np.searchsorted(chances, drawn).astype(np.int64)
    return ranks


def _shuffled(ranks: Trace, items: int, seed: int) -> Trace:
    shuffled: Trace = np.random.default_rng(seed + 1_000).permutation(items)[ranks]
    return shuffled


# --- measuring


def main() -> None:
    given = command.parse_size(__doc__, ITEMS)
    result = Result("policies", environment())
    with command.progress() as bar:
        task = bar.add_task("measuring", total=given.runs * len(SHARES) * len(TRACES))
        for seed in range(given.runs):
            for share in SHARES:
                room = given.items * share // 100
                for name, trace in TRACES.items():
                    asked = trace(given.items, room, seed)
                    result.add(share, name, **_ratios(asked, room))
                    bar.advance(task)
            for name, policy in POLICIES.items():
                result.add(0, name, **_cost(policy, given.items))
    command.finish(result, tables(result), plot, given)


def _ratios(asked: Trace, room: int) -> dict[str, float]:
    ids = [scramble(each, 1) for each in range(int(asked.max()) + 1)]
    requests = [ids[each] for each in asked.tolist()]
    ratios = {BEST: belady(asked, room)}
    for name, policy in POLICIES.items():
        ratios[name] = sum(map(policy(room).ask, requests)) / len(requests)
    return ratios


def _cost(policy: Callable[[int], Policy], items: int) -> dict[str, float]:
    """Nanoseconds of CPU a hit, and bytes of memory an item beside the table of the items."""
    ids = [scramble(each, 1) for each in range(items)]
    room = items // 2
    requests = [ids[each] for each in zipf(items, room, 0)[: 4 * items]]
    beside = _bytes(lambda: _asked(policy(room), requests))
    if policy is Ours:  # which has a table
        beside -= _bytes(lambda: _filled(ids[:room]))
    full = _asked(policy(room), requests)
    some = [item_id for item_id in requests[-2_000:] if full.ask(item_id) and full.ask(item_id)]
    asking = timeit.repeat(
        lambda: _asked(full, some), timer=time.process_time, number=20, repeat=10
    )
    return {"hit_ns": min(asking) / 20 / len(some) * 1e9, "item_bytes": beside / room}


def _asked(policy: Policy, ids: Iterable[str]) -> Policy:
    ask = policy.ask
    for item_id in ids:
        ask(item_id)
    return policy


def _filled(ids: Sequence[str]) -> object:
    table = Shards()
    for item_id in ids:
        table.put(item_id, _ENTRY)
    return table


def _bytes(make: Callable[[], object]) -> int:
    tracemalloc.start()
    made = make()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return used


# --- showing


def tables(result: Result) -> list[Table]:
    names = [BEST, *POLICIES]
    rows = [
        (trace, f"{share} %", *(_percent(result.of(share, trace)[name]) for name in names))
        for trace in TRACES
        for share in SHARES
    ]
    costs = [(name, result.of(0, name)) for name in POLICIES]
    return [
        Table("Hit ratio in per cent", ("trace", "fit", *names), rows),
        Table(
            "Costs of a policy written in Python",
            ("policy", "ns of CPU a hit, with its look-up", "bytes an item, beside the table"),
            [(name, spread(cost["hit_ns"]), spread(cost["item_bytes"])) for name, cost in costs],
        ),
    ]


def _percent(ratios: Sequence[float]) -> str:
    return number(100 * sum(ratios) / len(ratios))


def plot(result: Result) -> Figure:
    """Hit ratios where a tenth of the items fit."""
    figure, axes = charts.panels(len(TRACES), 3)
    colors = (charts.GREY, charts.PURPLE, charts.PURPLE, charts.ORANGE, charts.GREEN, charts.BLUE)
    looks = [charts.Look(color) for color in colors]
    for each, trace in zip(axes, TRACES, strict=True):
        ratios = result.of(SHARES[1], trace)
        shown = {name: [100 * ratio for ratio in ratios[name]] for name in (BEST, *POLICIES)}
        charts.bars(each, trace, "per cent hits, a tenth fits", shown, looks)
    return figure


if __name__ == "__main__":
    main()
