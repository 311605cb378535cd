"""SIGTERM of a server with a journal, with PostgreSQL away."""

from __future__ import annotations

import asyncio
import time

from tests.faults.bench import Bench
from tests.faults.history import Kill
from tests.faults.scenarios.base import Scenario, Turn
from tests.faults.verdict import Rules, Verdict

AFTER_S = 0.3


class StopJournaled(Scenario):
    """Nothing is lost, of no level: what cannot be written is journaled."""

    name = "stop_journaled"
    about = (
        "SIGTERM with 1 s to drain while PostgreSQL is away, under writers at `memory` and "
        "`journal`; everything is in the journal, and written by the next start"
    )
    full, short = 20, 1

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        await bench.forget()
        data_dir = bench.directory / turn.tag / "data"
        data_dir.mkdir(parents=True)
        await bench.start(DATA_DIR=str(data_dir), SHUTDOWN_TIMEOUT="1s")
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="memory=2,journal=1")
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        await bench.postgres.crash()
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        dirty = (await bench.stats())["itemstore_dirty_items"]
        sent = time.monotonic()
        exit_code = await bench.terminate()
        kill = Kill(sent, time.monotonic())
        await bench.postgres.start()
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        verdict = (await self.judge(bench, clients, rules=Rules((kill,)))).verdict
        self.figures["dirty at the beginning"].append(dirty)
        self.figures["s to stop"].append(kill.died - sent)
        verdict.expect(exit_code == 0, f"the exit code was {exit_code}")
        await bench.kill()
        return verdict
