"""A new version is deployed under load: two instances overlap, the older one is told to stop."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Final

from tests.faults.bench import Bench
from tests.faults.history import Kill
from tests.faults.scenarios.base import Turn
from tests.faults.scenarios.pair import BLIND, Pair, another, longest_gap, until_it_is
from tests.faults.verdict import Rules, Verdict

#: One after the other; of the last one SIGKILL comes soon after SIGTERM.
DRAINS: Final = ("30s", "5s", "0.1s")
HOLDER_MAX_S: Final = 15.0
AFTER_S: Final = 0.5
_FILL: Final = """
SET session_replication_role = replica;
INSERT INTO items SELECT 'filler-' || n, json_build_object('n', n), n, 'epoch', 'epoch'
  FROM generate_series(1, 5000) AS n;
RESET session_replication_role;
ANALYZE items
"""


class RollingDeploy(Pair):
    """A round's new instance is the next round's old one."""

    name = "rolling_deploy"
    about = (
        "a second instance starts under 32 writers at `commit` and `memory`, the first gets "
        "SIGTERM with 30 s, 5 s or next to no time to drain; 5,000 items, preloaded or not"
    )
    full, short = 100, 3

    async def prepare(self, bench: Bench) -> None:
        await bench.start(SHUTDOWN_TIMEOUT="30s")
        if not await bench.postgres.run("SELECT FROM items WHERE id = 'filler-1'"):
            await bench.kill()
            await bench.postgres.run(_FILL)
            await bench.restart()

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        drain = DRAINS[turn.number % len(DRAINS)]
        old = bench.server
        new = another(
            bench,
            SHUTDOWN_TIMEOUT=DRAINS[(turn.number + 1) % len(DRAINS)],
            SKIP_ITEMS_PRELOAD=chance.choice(["true", "false"]),
        )
        urls = [old.url, new.url]
        clients = await bench.clients(turn.tag, urls=urls, seed=turn.seed, writers=24)
        memory = await bench.clients(
            f"{turn.tag}/memory",
            urls=urls,
            seed=turn.seed,
            writers=8,
            levels="memory=1",
            mix=list(BLIND),
        )
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        begun = time.monotonic()
        await asyncio.to_thread(new.start)
        await asyncio.sleep(chance.choice([0.0, chance.uniform(0.0, 1.0)]))  # the overlap
        told = time.monotonic()
        old.signal(signal.SIGTERM)
        rules = Rules()
        if drain == DRAINS[-1]:
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            old.signal(signal.SIGKILL)
        exit_code = await asyncio.to_thread(old.wait)
        ended = time.monotonic()
        if exit_code == -signal.SIGKILL:
            rules = Rules((Kill(told, ended),), frozenset({"journal", "commit"}))
        self.figures["s to stop"].append(ended - told)
        await until_it_is(new, "holder", HOLDER_MAX_S)
        await asyncio.sleep(AFTER_S)
        until = time.monotonic()
        checker = await self.judge_pair(bench, clients, memory, rules=rules)
        verdict = checker.verdict
        pause = longest_gap(checker.history.ops, begun, until) * 1000
        kind = "killed" if drain == DRAINS[-1] else "drained"
        self.figures[f"ms without a write, {kind}"].append(pause)
        verdict.expect(
            exit_code in (0, -signal.SIGKILL), f"{drain} to drain: the exit code was {exit_code}"
        )
        return verdict
