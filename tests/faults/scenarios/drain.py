"""SIGTERM: the server writes what it has accepted, or says what it could not write."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from tests.faults.bench import Bench, Clients
from tests.faults.checker import Checker
from tests.faults.history import Kill, State, read_history
from tests.faults.scenarios.base import Scenario, Turn
from tests.faults.verdict import Rules, Verdict

AFTER_S = 0.3
#: One kind of stop after the other.
KINDS = ("up", "preload", "away", "twice")


class Drain(Scenario):
    """At ``memory``, where nothing but an orderly stop saves the queue."""

    name = "drain"
    about = (
        "SIGTERM under writers at `memory`: PostgreSQL up, during the preload of 100,000 rows, "
        "PostgreSQL away, SIGTERM twice"
    )
    full, short = 20, 4

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own; the first one makes the tables."""
        await super().prepare(bench)
        await bench.kill()

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        kind = KINDS[turn.number % len(KINDS)]
        chance = turn.chance
        await bench.forget()
        if kind == "preload":
            await bench.postgres.fill()
        slow = kind in ("up", "twice")  # so that there is a queue to write
        bench.proxy.latency_s = 0.02 if slow else 0.0
        await bench.start(
            through_proxy=slow,
            BATCH_MAX_ITEMS="10" if slow else "1000",
            SKIP_ITEMS_PRELOAD="false",
            LOG_LEVEL="info",
            SHUTDOWN_TIMEOUT="2s" if kind == "away" else "25s",
        )
        few_ids = {"mix": "post=0"} if kind == "away" else {}  # the log names a thousand
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="memory=1", **few_ids)
        await asyncio.sleep(chance.uniform(0.05, 0.2 if kind == "preload" else 1.5))
        if kind == "away":
            await bench.postgres.crash()
            await asyncio.sleep(chance.uniform(0.0, 1.0))
        stop = asyncio.create_task(bench.terminate())
        sent = time.monotonic()
        if kind == "twice":
            await asyncio.sleep(chance.uniform(0.0, 0.05))
            bench.server.signal(signal.SIGTERM)
        exit_code = await stop
        kill = Kill(sent, time.monotonic())
        self.figures["s to stop"].append(kill.died - sent)
        if kind == "away":
            await bench.postgres.start()
        left = await bench.left()
        stopping, stopped = (_last(bench, message) for message in ("stopping", "stopped"))
        self.figures["dirty at the beginning"].append(stopping["dirty"])
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        checker = await self._judge(bench, clients, kill, left, stopped)
        lost = stopped["lost"]
        verdict = checker.verdict
        if kind in ("up", "preload"):
            verdict.expect(lost == 0, f"{kind}: {lost} items were not written")
        else:  # a second SIGTERM is in a hurry, and may leave some
            self.figures[f"listed as lost, {kind}"].append(lost)
        right = exit_code == (1 if lost else 0)
        verdict.expect(right, f"{kind}: the exit code was {exit_code}, {lost} were lost")
        await bench.kill()
        return verdict

    async def _judge(
        self, bench: Bench, clients: Clients, kill: Kill, left: State, stopped: dict[str, Any]
    ) -> Checker:
        """Nothing is missing but what the log lists."""
        listed = stopped["ids"]
        may_lose = frozenset[str]() if listed else frozenset({"memory"})
        checker = await self.judge(bench, clients, rules=Rules(kills=(kill,), survives=may_lose))
        strict = Checker(read_history(clients.directory / "history.jsonl"), Rules(kills=(kill,)))
        strict.check_state(left, 1, kill.died, "PostgreSQL after the stop", but=listed)
        verdict = checker.verdict
        verdict.lost += strict.verdict.lost
        verdict.violations += strict.verdict.violations
        verdict.expect(
            len(listed) == stopped["lost"], f"{stopped['lost']} lost, {len(listed)} of them named"
        )
        return checker


def _last(bench: Bench, message: str) -> dict[str, Any]:
    return [event for event in bench.server.events() if event["message"] == message][-1]
