"""More than the store can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import ClassVar

from tests.faults.bench import Bench
from tests.faults.scenarios.base import Scenario, Turn, percentile
from tests.faults.scenarios.database import MIB
from tests.faults.verdict import Verdict

QUEUE_WAIT_S = 5.0  # options.py, queue_wait_s
COMMIT_TIMEOUT_S = 10.0  # options.py, commit_timeout_s
RATE = 800.0
LATENCY_S = 0.05


class Overload(Scenario):
    """PostgreSQL is slowed down, so that the store can do about 150 writes a second."""

    name = "overload"
    about = f"{RATE:.0f} operations a second, open loop, about five times what PostgreSQL takes"
    full, short = 3, 1
    environment: ClassVar[Mapping[str, str]] = {
        "QUEUE_MAX_ITEMS": "500",
        "BATCH_MAX_ITEMS": "20",
        "CONNECTIONS_MAX": "20000",  # it is about the queue: each who waits has a connection
    }
    through_proxy = True

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        before = bench.rss()
        bench.proxy.latency_s = LATENCY_S
        committed = (await bench.stats())["itemstore_writes_committed_total"]
        clients = await bench.clients(
            turn.tag, seed=turn.seed, levels="commit=1,memory=2", ids=1_000_000, rate=RATE
        )
        duration = 30.0 if self.is_full else 6.0
        started = time.monotonic()
        while (took := time.monotonic() - started) < duration:
            bench.rss()
            await asyncio.sleep(0.1)
        done = (await bench.stats())["itemstore_writes_committed_total"] - committed
        checker = await self.judge(bench, clients, books=True)
        verdict = checker.verdict
        bench.proxy.calm()
        writes = [op for op in checker.history.writes() if op.end < started + took + 60]
        accepted = [op.end - op.start for op in writes if op.is_acknowledged]
        refused = sum(op.code == "overloaded" for op in writes)
        self.figures["asked a second"].append(len(checker.history.ops) / took)
        self.figures["committed a second"].append(done / took)
        self.figures["p99 of the accepted in s"].append(percentile(accepted, 0.99))
        self.figures["MiB more"].append((bench.rss_max - before) / MIB)
        verdict.expect(refused > 0, "nothing was refused: that was no overload")
        spare_s = 1.0 if self.is_full else 20.0  # in the tests, other work is on the machine
        limit = QUEUE_WAIT_S + COMMIT_TIMEOUT_S + spare_s  # a turn at the door, then the commit
        slowest = max(accepted)
        verdict.expect(slowest < limit, f"an accepted write took {slowest:.1f} s")
        verdict.expect(self.figures["MiB more"][-1] < 150, "memory grew by more than 150 MiB")
        await self._expect_recovered(bench, verdict)
        return verdict

    async def _expect_recovered(self, bench: Bench, verdict: Verdict) -> None:
        """A write passes the door at once; that of nobody's item changes nothing."""
        started = time.monotonic()
        answer = await bench.ask("DELETE", "/items/nobody", Durability="memory")
        took = time.monotonic() - started
        verdict.expect(
            answer.status == 404 and took < 0.5,
            f"at rest again a write was answered {answer.status} after {took:.2f} s",
        )
