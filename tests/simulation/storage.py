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
from uuid import UUID

from itemstore.core.audit import AuditQuery, AuditRow
from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.index import Index, indexes_for
from itemstore.core.item import data_of
from itemstore.core.queue import Change
from itemstore.core.record import Record
from itemstore.core.usage import NONE, Usage, of_text
from itemstore.storage import (
    Claim,
    ForeignChange,
    Found,
    Grant,
    Lease,
    ListQuery,
    Parked,
    Standing,
    State,
    StorageAway,
    StorageBroken,
    StorageDown,
    StorageError,
    StorageSlow,
)
from tests.simulation.disk import LOAD_ITEMS, Disk, Walk

T = TypeVar("T")

#: Seconds one leg of a call takes. Few different values, so that things often coincide.
LEGS_S: Final = (0.0, 0.001, 0.001, 0.002, 0.005, 0.02, 0.1)
LONG_LEGS_S: Final = (0.05, 0.5, 4.0)
SPELLS_S: Final = (0.05, 1.0, 7.0, 20.0)
KINDS: Final = ("away", "broken", "down", "slow", "flaky")
#: Time limits of ``postgres.py``, in seconds; of a heartbeat a share of the lease's time.
CALL_LIMIT_S: Final = 10.0
WRITE_LIMIT_S: Final = 30.0
RENEW_LIMIT_SHARE: Final = 0.4
STORE_ID: Final = UUID(int=4711)


class Weather:
    """Which errors happen: now and then by chance, and in spells of one kind, until ``clear``.

    ``server`` is the weather where the database stands, which all its instances share.
    """

    def __init__(
        self,
        chance: random.Random,
        start_s: float,
        length_s: float,
        *,
        kinds: Sequence[str] = KINDS,
        server: Weather | None = None,
    ) -> None:
        self.chance = chance
        self._server = server
        #: (from, to, kind), in seconds of the world.
        self._spells: list[tuple[float, float, str]] = []
        self.is_clear = length_s == 0
        self.is_cut = False  #: nothing gets through, and it is known at once
        moment = start_s + chance.uniform(0, length_s / 3)
        while moment < start_s + length_s:
            end = moment + chance.choice(SPELLS_S)
            self._spells.append((moment, end, chance.choice(kinds)))
            moment = end + chance.uniform(0, length_s / 3)

    def clear(self) -> None:
        self.is_clear = True

    def leg_s(self) -> float:
        is_long = not self.is_clear and self.chance.random() < 0.01
        return self.chance.choice(LONG_LEGS_S if is_long else LEGS_S)

    def failure(self, now_s: float, rows: int) -> StorageError | None:
        """What befalls a call of so many rows now, if anything."""
        if self._server is not None and self._server.is_down(now_s):
            return StorageDown("down")
        if self.is_cut:
            return StorageAway("cut off")
        if self.is_clear:
            return None
        kinds = {kind for start, end, kind in self._spells if start <= now_s < end}
        dice = self.chance.random()
        if "away" in kinds or dice < (0.3 if "flaky" in kinds else 0.02):
            return StorageAway("away")
        if "broken" in kinds:
            return StorageBroken("broken")
        if "down" in kinds:
            return StorageDown("down")
        slow = 0.99 if "slow" not in kinds else 0.3 if rows > 1 else 0.8
        return StorageSlow("slow") if dice > slow else None

    def is_down(self, now_s: float) -> bool:
        """Whether the server lets nobody in."""
        spells = () if self.is_clear else self._spells
        return any(kind == "down" and start <= now_s < end for start, end, kind in spells)


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
        #: Until its store has started, waiting helps against everything.
        self.has_started = False
        #: Set, but while the process is frozen; and while the network carries what it sends.
        self.awake, self.reachable = asyncio.Event(), asyncio.Event()
        self.awake.set()
        self.reachable.set()
        #: Whether a call for the lease failed for another reason than that it slept, and none has
        #: succeeded since.
        self.in_doubt = False
        self._times_frozen = 0
        self._writing = ""
        self._high_water = -1
        self._sent: dict[str, int] = {}
        self._walk = Walk(disk, weather.chance)
        self._steps: Counter[str] = Counter()
        #: ``doom`` is set when the call of this name takes its so-many-th step.
        self.doom_at = ("", 0)
        self.doom = asyncio.Event()

    async def open(self, *, audit_s: float | None = None) -> Found:
        self._check(not self._is_open and not self._is_closed, "open is called once")
        await self._leg()
        await asyncio.sleep(0.001)  # no process starts in no time
        if failure := self._weather.failure(self._now_s(), 1):
            raise StorageAway(str(failure))
        self._is_open = True
        self.disk.release_overtaken()
        return Found(
            store_id=STORE_ID,
            newest_version=max(self.disk.newest_version(), self._now_us()),
            purged_before=self.disk.purged_before,
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

    # --- writing

    async def write(self, changes: Sequence[Change], claim: Claim) -> Standing:
        ids = [change.id for change in changes]
        self._check(bool(ids), "a batch holds something")
        self._check(ids == sorted(set(ids)), f"ids in a batch are unique and sorted: {ids}")
        for change in changes:
            # Who lost the lease writes again what was committed of late: it may have been lost.
            is_repeated = change.version <= self.disk.committed.get(change.id, -1)
            is_grown = is_repeated or self._sent.get(change.id, 0) <= change.version
            self._check(is_grown, f"versions only grow: {change}")
            self._check(change.version <= claim.clock, f"the clock is ahead: {change}, {claim}")
            self._sent[change.id] = change.version
        self._check(claim.high_water > self._high_water, f"each batch raises the mark: {claim}")
        self._high_water = claim.high_water
        self._check_claim(claim)
        with self._alone("write"):
            return await self._call(
                "write",
                lambda: self.disk.write(changes, claim, self._now_us()),
                rows=len(ids),
                limit_s=WRITE_LIMIT_S,
            )

    async def quarantine(self, change: Change, reason: str) -> None:
        self._check(self.disk.refuses(change), f"only what was refused is parked: {change}")
        with self._alone("quarantine"):
            await self._call("quarantine", lambda: self.disk.park(change, reason, self._now_us()))

    async def release(self, ids: Sequence[str]) -> None:
        for item_id in ids:
            parked = self.disk.quarantine.get(item_id)  # None where an answer was lost
            is_newer = parked is None or self.disk.version(item_id) > parked.version
            self._check(is_newer, f"only what is overtaken is released: {item_id}")
        with self._alone("release"):
            await self._call("release", lambda: self.disk.release(ids))

    async def discard(self, item_id: str) -> None:
        await self._call("discard", lambda: self.disk.release([item_id]))

    async def purge(self, before_version: int) -> int:
        with self._alone("purge"):
            return await self._call(
                "purge", lambda: self.disk.purge(before_version, self._now_us())
            )

    async def purge_records(self, before_version: int) -> int:
        with self._alone("purge records"):
            return await self._call(
                "purge records", lambda: self.disk.purge_records(before_version)
            )

    # --- the lease

    async def renew(self, claim: Claim) -> Standing:
        self._check_claim(claim)
        return await self._for_lease(
            "renew",
            lambda: self.disk.lease.beat(claim, self._now_us()),
            limit_s=claim.lease_s * RENEW_LIMIT_SHARE,
        )

    async def lease(self) -> Lease:
        return await self._call("lease", lambda: self.disk.lease.seen(self._now_us()))

    async def acquire(self, claim: Claim, process: str, gone: str | None) -> Grant | None:
        row = self.disk.lease
        return await self._call(
            "acquire", lambda: row.acquire(claim, process, gone, self._now_us())
        )

    async def want(self, holder: str, *, wanted: bool = True) -> None:
        row = self.disk.lease
        is_others = row.holder != holder or not wanted
        self._check(is_others, "nobody asks himself for the lease")
        await self._call("want", lambda: row.want(holder, self._now_us(), wanted=wanted))

    async def let_go(self, claim: Claim) -> None:
        self._check_claim(claim)
        await self._for_lease("let go", lambda: self.disk.lease.let_go(claim), CALL_LIMIT_S)

    def _check_claim(self, claim: Claim) -> None:
        self._check(claim.settled <= claim.clock, f"what is settled was given out: {claim}")

    # --- reading

    async def changes(self, after_version: int) -> tuple[list[State], int | None]:
        return await self._call("changes", lambda: self.disk.changes(after_version))

    async def parked(self) -> tuple[Parked, ...]:
        return await self._call("parked", self.disk.parked)

    async def repetitions(self, scopes: Sequence[tuple[str, str]], since: int) -> list[Record]:
        self._check(len(scopes) == len(set(scopes)) > 0, f"each key is asked for once: {scopes}")
        return await self._call("repetitions", lambda: self.disk.repetitions(scopes, since))

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        return await self._call("audit", lambda: self.disk.audited(query))

    async def load(self, ids: Sequence[str]) -> tuple[list[Row], int]:
        self._check(len(ids) == len(set(ids)) > 0, f"ids in a load are unique: {ids}")
        rows = await self._call("load", lambda: self.disk.load(ids))
        return rows[:LOAD_ITEMS], len(rows)

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        return await self._call("page", lambda: self._walk.page(position))

    async def select(self, query: ListQuery) -> tuple[list[Row], int | None]:
        def look() -> tuple[list[Row], int]:
            return self.disk.select(query), self.disk.count(query)

        rows, count = await self._call("select", look)
        if query.count == "none":
            return rows, None
        return rows, await self._call("count", lambda: count)  # of the same snapshot

    async def usage(self, prefix: str, changed: Callable[[], Sequence[str]]) -> Usage:
        counted = await self._call("usage", lambda: dict(self.disk.items))
        asked = set(changed())
        return await self._call(  # of the same snapshot
            "usage beside",
            lambda: sum(
                (
                    of_text(data_of(entry))
                    for item_id, entry in counted.items()
                    if item_id.startswith(prefix) and item_id not in asked
                ),
                NONE,
            ),
        )

    async def unserved(self, query: ListQuery) -> tuple[Sequence[Index], int]:
        wanted = indexes_for(query.filters, query.order)
        return await self._call("unserved", lambda: (wanted, len(self.disk.items)))

    async def lease_ids(self, count: int) -> tuple[IdBlock, set[str]]:
        block = await self._call("block", lambda: self.disk.lease_ids(count))
        return block, await self._call("taken", lambda: self.disk.items.keys() & block.ids())

    async def foreign_changes(self) -> list[ForeignChange]:
        return await self._call("foreign", lambda: self.disk.foreign_changes()[:1_000])

    async def foreign_changes_since(self, since_us: int, after_seq: int) -> list[ForeignChange]:
        return await self._call(
            "notes", lambda: self.disk.foreign_changes_since(since_us, after_seq)
        )

    async def states(self, ids: Sequence[str]) -> list[State]:
        return await self._call("states", lambda: self.disk.states(ids))

    async def forget_foreign_changes(self, seqs: Sequence[int], epoch: int) -> None:
        def forget() -> None:
            if self.disk.lease.holder is not None and self.disk.lease.epoch == epoch:
                self.disk.forget_foreign_changes(seqs, self._now_us())

        await self._call("forget", forget)

    async def await_foreign_changes(self, time_limit_s: float) -> None:
        """No notification ever arrives here: what is noted is found all the same."""
        await asyncio.sleep(time_limit_s)

    # --- the road

    async def _call(
        self,
        name: str,
        effect: Callable[[], T],
        *,
        rows: int = 1,
        limit_s: float = CALL_LIMIT_S,
    ) -> T:
        self._check(self._is_open, "it is open when it is used")
        self._check(not (self._is_closed and self._writing), "nothing is written after close")
        try:
            async with asyncio.timeout(limit_s):
                return await self._go(name, effect, rows)
        except TimeoutError:
            await self.awake.wait()
            raise StorageSlow("no answer") from None

    async def _for_lease(self, name: str, effect: Callable[[], T], limit_s: float) -> T:
        """A call by which the lease's holder would know whether it is the holder still."""
        frozen = self._times_frozen, self.awake.is_set()
        try:
            answer = await self._call(name, effect, limit_s=limit_s)
        except StorageError:
            self.in_doubt |= frozen == (self._times_frozen, True)
            raise
        self.in_doubt = False
        return answer

    def freeze(self) -> None:
        """The process stops, and so do its timers; other clocks go on."""
        self._times_frozen += 1
        self.awake.clear()

    async def _go(self, name: str, effect: Callable[[], T], rows: int) -> T:
        """There, and back."""
        self._step(name)
        await self._leg()
        if failure := self._weather.failure(self._now_s(), rows):
            if isinstance(failure, StorageBroken) and not self.has_started:
                raise StorageAway("broken")
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
        await self.reachable.wait()
        await self.awake.wait()

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
