"""PostgreSQL crashes, loses its backends, or is away; the server stays up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import ClassVar

import psycopg

from tests.faults.bench import Bench
from tests.faults.connection import Lost
from tests.faults.history import History, Op
from tests.faults.scenarios.base import Scenario, Turn, percentile
from tests.faults.verdict import Verdict

BOTH = "commit=1,memory=1"
AFTER_S = 0.3
MIB = 1024 * 1024


class PostgresCrash(Scenario):
    """Everything acknowledged is there in the end, at either level."""

    name = "postgres_crash"
    about = "`pg_ctl stop -m immediate` under writers at `commit` and `memory`; back after 0–2 s"
    full, short = 50, 2

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        clients = await bench.clients(turn.tag, seed=turn.seed, levels=BOTH)
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        await bench.postgres.crash()
        await asyncio.sleep(chance.uniform(0.0, 2.0))
        await bench.postgres.start()
        self.figures["s until noticed"].append(await bench.until_back())
        await asyncio.sleep(AFTER_S)
        return (await self.judge(bench, clients, books=True)).verdict


class Backends(Scenario):
    """A killed backend makes PostgreSQL end all others (57P02) and recover."""

    name = "backends"
    about = "the server's backends terminated, or one SIGKILLed, again and again under load"
    full, short = 100, 3

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        clients = await bench.clients(turn.tag, seed=turn.seed, levels=BOTH)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            await self._strike(bench, chance)
        self.figures["s until noticed"].append(await bench.until_back())
        await asyncio.sleep(AFTER_S)
        return (await self.judge(bench, clients, books=True)).verdict

    async def _strike(self, bench: Bench, chance: random.Random) -> None:
        with suppress(psycopg.OperationalError, ProcessLookupError):  # it may be recovering
            pids = await bench.postgres.backends()
            if not pids:
                return
            if chance.random() < 0.2:
                os.kill(chance.choice(pids), signal.SIGKILL)
                return
            if chance.random() < 0.5:
                pids = [chance.choice(pids)]
            await bench.postgres.run("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", pids)


class Away(Scenario):
    """What can be answered is answered, the rest is refused, and nothing grows without bound."""

    name = "away"
    about = "PostgreSQL stopped under load, and started again"
    full, short = 3, 1
    queue_max = 200
    environment: ClassVar[Mapping[str, str]] = {
        "QUEUE_MAX_ITEMS": str(queue_max),
        "COMMIT_TIMEOUT": "2s",
    }

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        clients = await bench.clients(
            turn.tag, seed=turn.seed, levels="memory=3,commit=1", ids=20_000
        )
        reading = {"mix": [f"{kind}=0" for kind in ("put", "post", "patch", "delete", "add")]}
        readers = await bench.clients(turn.tag, "readers", seed=turn.seed, writers=4, **reading)
        await asyncio.sleep(1.0)
        before = bench.rss()
        await bench.postgres.stop()
        gone = time.monotonic()
        dirty, lists = await self._watch(bench, until=gone + (180.0 if self.is_full else 7.0))
        asked = time.monotonic()
        await bench.postgres.start()
        back = time.monotonic()
        self.figures["s until noticed"].append(await bench.until_back())
        await asyncio.sleep(1.0)
        checker = await self.judge(bench, clients, readers, books=True)
        verdict = checker.verdict
        self._check(checker.history, verdict, gone, asked, back)
        grown = (bench.rss_max - before) / MIB
        self.figures["MiB more"].append(grown)
        verdict.expect(grown < 100, f"memory grew by {grown:.0f} MiB")
        verdict.expect(dirty <= self.queue_max, f"{dirty} dirty items, {self.queue_max} allowed")
        verdict.expect(set(lists) == {503}, f"lists were answered {sorted(set(lists))}")
        return verdict

    async def _watch(self, bench: Bench, *, until: float) -> tuple[int, list[int]]:
        """The most dirty items, and how lists were answered."""
        dirty, lists = 0, []
        while time.monotonic() < until:
            bench.rss()
            dirty = max(dirty, int((await bench.stats())["itemstore_dirty_items"]))
            with suppress(Lost):
                lists.append((await bench.ask("GET", "/items?limit=1")).status)
            await asyncio.sleep(0.25)
        return dirty, lists

    def _check(
        self, history: History, verdict: Verdict, gone: float, asked: float, back: float
    ) -> None:
        meanwhile = [op for op in history.ops if op.start > gone and op.end < asked]
        reads = [op for op in meanwhile if op.kind == "get"]
        wrong = [op for op in reads if op.status not in (200, 404)]
        verdict.expect(not wrong, f"{len(wrong)} of {len(reads)} reads failed: {wrong[:3]}")
        verdict.expect(len(reads) > 100, f"only {len(reads)} reads were answered")
        took = [(op.end - op.start) * 1000 for op in reads]
        self.figures["reads meanwhile"].append(len(reads))
        self.figures["their p99 in ms"].append(percentile(took, 0.99))
        refused = [op for op in meanwhile if op.level == "memory" and op.code == "overloaded"]
        verdict.expect(bool(refused), "no write at memory was refused with a full queue")
        done = [op for op in meanwhile if op.level == "commit" and op.is_acknowledged]
        verdict.expect(not done, f"{len(done)} were acknowledged at commit: {done[:3]}")
        first = min((op.end for op in history.ops if _committed(op, back)), default=back + 99.0)
        self.figures["s until the first commit"].append(first - back)
        verdict.expect(first - back < 5.0, f"the first commit came after {first - back:.1f} s")


def _committed(op: Op, after: float) -> bool:
    return op.is_write and op.is_acknowledged and op.level == "commit" and op.end > after
