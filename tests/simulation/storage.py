"""The road to the disk, on which everything goes wrong that can.

Every call sets out, takes effect somewhere on the way and comes back. In bad ``Weather`` it never
sets out, or takes effect and loses the answer, or brings an answer that is old by the time it
arrives. And ``FlakyStorage`` checks what the engine promises to it in turn.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.queue import Change
from itemstore.storage import (
    ForeignChange,
    Found,
    ListQuery,
    State,
    StorageAway,
    StorageBroken,
    StorageError,
    StorageSlow,
)
from tests.simulation.disk import Disk, Walk

T = TypeVar("T")

#: Seconds one leg of a call takes. Few different values, so that things often coincide.
LEGS_S: Final = (0.0, 0.001, 0.001, 0.002, 0.005, 0.02, 0.1)
LONG_LEGS_S: Final = (0.05, 0.5, 4.0)
SPELLS_S: Final = (0.05, 1.0, 7.0, 20.0)
KINDS: Final = ("away", "broken", "slow", "flaky")


class Weather:
    """Which errors happen: now and then by chance, and in spells of one kind, until ``clear``."""

    def __init__(self, chance: random.Random, start_s: float, length_s: float) -> None:
        self.chance = chance
        #: (from, to, kind), in seconds of the world.
        self._spells: list[tuple[float, float, str]] = []
        self.is_clear = length_s == 0
        moment = start_s + chance.uniform(0, length_s / 3)
        while moment < start_s + length_s:
            end = moment + chance.choice(SPELLS_S)
            self._spells.append((moment, end, chance.choice(KINDS)))
            moment = end + chance.uniform(0, length_s / 3)

    def clear(self) -> None:
        self.is_clear = True

    def leg_s(self) -> float:
        is_long = not self.is_clear and self.chance.random() < 0.01
        return self.chance.choice(LONG_LEGS_S if is_long else LEGS_S)

    def failure(self, now_s: float, rows: int) -> StorageError | None:
        """What befalls a call of so many rows now, if anything."""
        if self.is_clear:
            return None
        kinds = {kind for start, end, kind in self._spells if start <= now_s < end}
        dice = self.chance.random()
        if "away" in kinds or dice < (0.3 if "flaky" in kinds else 0.02):
            return StorageAway("away")
        if "broken" in kinds:
            return StorageBroken("broken")
        slow = 0.99 if "slow" not in kinds else 0.3 if rows > 1 else 0.8
        return StorageSlow("slow") if dice > slow else None


class FlakyStorage:
    """``storage.Storage`` over a disk. ``check`` is told whether the engine keeps its promises."""

    def __init__(
        self,
        disk: Disk,
        weather: Weather,
        now_us: Callable[[], int],
        check: Callable[[bool, str], None],
    ) -> None:
        self.disk = disk
        self._weather = weather
        self._now_us = now_us
        self._check = check
        self._is_open = False
        self._is_closed = False
        self._writing = ""
        self._sent: dict[str, int] = {}
        self._walk = Walk(disk, weather.chance)
        self._steps: Counter[str] = Counter()
        #: ``doom`` is set when the call of this name takes its so-many-th step.
        self.doom_at = ("", 0)
        self.doom = asyncio.Event()

    async def open(self) -> Found:
        self._check(not self._is_open and not self._is_closed, "open is called once")
        await self._leg()
        await asyncio.sleep(0.001)  # no process starts in no time
        if failure := self._weather.failure(self._now_s(), 1):
            raise StorageAway(str(failure))
        self._is_open = True
        return Found(
            newest_version=max(self.disk.newest_version(), self._now_us()),
            parked=self.disk.parked(),
            items_estimate=len(self.disk.items),
            bytes_estimate=sum(map(len, self.disk.items.values())),
        )

    async def close(self) -> None:
        self._is_closed = True
        await self._leg()

    def cut(self) -> None:
        """The process is gone: nothing takes effect any more."""
        self._is_open = False
        self._check = lambda is_kept, promise: None

    async def write(self, changes: Sequence[Change]) -> None:
        ids = [change.id for change in changes]
        self._check(bool(ids), "a batch holds something")
        self._check(ids == sorted(set(ids)), f"ids in a batch are unique and sorted: {ids}")
        for change in changes:
            is_grown = self._sent.get(change.id, 0) <= change.version
            self._check(is_grown, f"versions only grow: {change}")
            self._sent[change.id] = change.version
        with self._alone("write"):
            await self._call("write", lambda: self.disk.write(changes), rows=len(ids))

    async def quarantine(self, change: Change, reason: str) -> None:
        self._check(self.disk.refuses(change), f"only what was refused is parked: {change}")
        with self._alone("quarantine"):
            await self._call("quarantine", lambda: self.disk.park(change))

    async def release(self, ids: Sequence[str]) -> None:
        for item_id in ids:
            parked = self.disk.quarantine.get(item_id)  # None where an answer was lost
            is_newer = parked is None or self.disk.version(item_id) > parked.version
            self._check(is_newer, f"only what is overtaken is released: {item_id}")
        with self._alone("release"):
            await self._call("release", lambda: self.disk.release(ids))

    async def purge(self, before_version: int) -> int:
        with self._alone("purge"):
            return await self._call("purge", lambda: self.disk.purge(before_version))

    async def load(self, ids: Sequence[str]) -> list[Row]:
        self._check(len(ids) == len(set(ids)) > 0, f"ids in a load are unique: {ids}")
        return await self._call("load", lambda: self.disk.load(ids))

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        return await self._call("page", lambda: self._walk.page(position))

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        rows = await self._call("select", lambda: self.disk.select(query))
        if not query.count:
            return rows, None
        ids = await self._call("count", lambda: list(self.disk.items))  # a snapshot of its own
        return rows, sum(each.startswith(query.prefix) for each in ids)

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        block = await self._call("lease", lambda: self.disk.lease(count))
        return block, await self._call("taken", lambda: self.disk.items.keys() & block.ids())

    async def foreign_changes(self) -> list[ForeignChange]:
        return await self._call("foreign", lambda: self.disk.foreign[:1_000])

    async def states(self, ids: Sequence[str]) -> list[State]:
        return await self._call("states", lambda: self.disk.states(ids))

    async def forget_foreign_changes(self, seqs: Sequence[int]) -> None:
        await self._call("forget", lambda: self.disk.forget_foreign_changes(seqs))

    async def await_foreign_changes(self, time_limit_s: float) -> None:
        """No notification ever arrives here: what is noted is found all the same."""
        await asyncio.sleep(time_limit_s)

    async def _call(self, name: str, effect: Callable[[], T], *, rows: int = 1) -> T:
        self._check(self._is_open, "it is open when it is used")
        self._check(not (self._is_closed and self._writing), "nothing is written after close")
        self._step(name)
        await self._leg()
        if failure := self._weather.failure(self._now_s(), rows):
            raise failure
        if not self._is_open or self._is_closed:
            raise StorageAway("closed")
        answer = effect()
        self._step(name)
        await self._leg()
        if failure := self._weather.failure(self._now_s(), 1):
            raise StorageAway(f"{failure}, and the answer lost")
        return answer

    def _step(self, name: str) -> None:
        self._steps[name] += 1
        if self.doom_at == (name, self._steps[name]):
            self.doom.set()

    async def _leg(self) -> None:
        await asyncio.sleep(self._weather.leg_s())

    @contextmanager
    def _alone(self, call: str) -> Iterator[None]:
        self._check(not self._writing, f"{call} is called while {self._writing} is under way")
        self._writing = call
        try:
            yield
        finally:
            self._writing = ""

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
