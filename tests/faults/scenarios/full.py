"""The journal's disk is full."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import orjson

from tests.faults import disk
from tests.faults.bench import Bench, Stuck
from tests.faults.disk import Disk
from tests.faults.history import Kill
from tests.faults.scenarios.base import Scenario, Skipped, Turn
from tests.faults.scenarios.pair import readiness
from tests.faults.verdict import Rules, Verdict

DISK_MIB: Final = 48
AFTER_S: Final = 0.3
FULL_MAX_S: Final = 15.0
BACK_MAX_S: Final = 10.0


class DiskFull(Scenario):
    """Where PostgreSQL is away meanwhile, an OK at journal could only come of the journal."""

    name = "disk_full"
    about = (
        "the journal's disk fills up under writers at `journal`; in half of the rounds PostgreSQL "
        "crashes meanwhile and the server is killed with the disk full, in the others space is "
        "freed, the journal comes back by itself, and the server is killed then"
    )
    full, short = 50, 2

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        if refusal := disk.refusal():
            raise Skipped(refusal)
        await bench.forget()
        directory = bench.directory / turn.tag
        directory.mkdir()
        own = Disk(directory, DISK_MIB)
        own.mount()
        try:
            return await self._round(bench, turn, own)
        finally:
            bench.server.end()
            await asyncio.to_thread(own.unmount)

    async def _round(self, bench: Bench, turn: Turn, own: Disk) -> Verdict:
        chance = turn.chance
        data_dir = own.place / "data"
        data_dir.mkdir()
        await bench.start(DATA_DIR=str(data_dir))
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="journal=1", size=2_000)
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        await asyncio.to_thread(own.fill, chance.choice([0, chance.randrange(4_000_000)]))
        self.figures["s until it is full"].append(await _until(bench, "refusing", FULL_MAX_S))
        if turn.number % 2:
            kill = await self._crash(bench, own, chance)
        else:
            kill = await self._free(bench, own, chance)
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        rules = Rules((kill,), frozenset({"journal"}))
        checker = await self.judge(bench, clients, rules=rules)
        verdict = checker.verdict
        refused = verdict.refused["durability_unavailable"]
        verdict.expect(refused > 0, "nobody was told that the journal cannot be given")
        await bench.kill()
        return verdict

    async def _free(self, bench: Bench, own: Disk, chance: random.Random) -> Kill:
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await asyncio.to_thread(own.free)
        self.figures["s until it is back"].append(await _until(bench, "ok", BACK_MAX_S))
        await asyncio.sleep(chance.uniform(0.1, 0.5))
        answer = await bench.ask("PUT", "/items/after", orjson.dumps({"data": {}}))
        if answer.status >= 300:
            raise Stuck(f"space was freed, and a write is answered {answer}")
        await bench.ask("DELETE", "/items/after")
        return await bench.kill()

    async def _crash(self, bench: Bench, own: Disk, chance: random.Random) -> Kill:
        await bench.postgres.crash()
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        kill = await bench.kill()
        await asyncio.to_thread(own.free)
        await bench.postgres.start()
        return kill


async def _until(bench: Bench, journal: str, limit_s: float) -> float:
    started = time.monotonic()
    while (said := await readiness(bench.server))["journal"] != journal:
        if time.monotonic() > started + limit_s:
            raise Stuck(f"the journal is not {journal} within {limit_s:g} s: {said}")
        await asyncio.sleep(0.02)
    return time.monotonic() - started
