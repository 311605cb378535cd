"""The holder of the lease is frozen for longer than the lease lasts, and wakes up."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from typing import ClassVar, Final

from tests.faults.bench import Bench
from tests.faults.scenarios.base import Turn
from tests.faults.scenarios.pair import (
    BLIND,
    Late,
    Pair,
    another,
    longest_gap,
    readiness,
    to_front,
    until_it_is,
)
from tests.faults.verdict import Verdict

LEASE_S: Final = 2.0
AFTER_S: Final = 0.3
FREEZES_S: Final = 0.02  # at most, after the signal
TAKES_OVER_MAX_S: Final = 10.0
NOTICES_MAX_S: Final = 5.0
#: Writes sent while it is frozen, over connections that it knows: it finds them when it wakes.
LATE: Final = 16


class FrozenHolder(Pair):
    """In the end the one that was frozen is the holder again, and the next round's standby."""

    name = "frozen_holder"
    about = (
        "SIGSTOP of the holder for longer than its lease of 2 s, under load; the standby takes "
        "over; SIGCONT; later SIGTERM of the new holder, and the first one takes the lease back"
    )
    full, short = 50, 2
    environment: ClassVar[Mapping[str, str]] = {"LEASE_TIME": f"{LEASE_S:g}s"}

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        standby = bench.server
        preload = chance.choice(["true", "false"])
        holder = another(bench, **self.environment, SKIP_ITEMS_PRELOAD=preload)
        await asyncio.to_thread(holder.start)
        await until_it_is(holder, "holder", TAKES_OVER_MAX_S)
        urls = [holder.url, standby.url]
        clients = await bench.clients(turn.tag, urls=urls, seed=turn.seed, writers=16, timeout=0.7)
        memory = await bench.clients(
            f"{turn.tag}/memory",
            urls=urls,
            seed=turn.seed,
            writers=8,
            timeout=0.7,
            ids=5_000,  # few of them are written again
            levels="memory=1",
            mix=list(BLIND),
        )
        readers = await bench.clients(
            turn.tag,
            "readers",
            seed=turn.seed,
            urls=[holder.url],
            writers=4,
            mix=[f"{kind}=0" for kind in ("put", "post", "patch", "delete", "add")],
        )
        late = [Late(holder.url, f"{turn.tag}-late{number}") for number in range(LATE)]
        await asyncio.gather(*(each.knocks() for each in late))
        await asyncio.sleep(chance.uniform(0.3, 1.0))
        holder.signal(signal.SIGSTOP)
        frozen = time.monotonic() + FREEZES_S
        waiting = asyncio.gather(*(each.puts() for each in late))
        try:
            self.figures["s until the standby has it"].append(
                await until_it_is(standby, "holder", TAKES_OVER_MAX_S)
            )
            await asyncio.sleep(chance.uniform(0.1, LEASE_S))
        finally:
            holder.signal(signal.SIGCONT)
        woken = time.monotonic()
        self.figures["s until it knows"].append(await until_it_is(holder, "standby", NOTICES_MAX_S))
        said = await readiness(holder)
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        told = time.monotonic()
        standby.signal(signal.SIGTERM)
        exit_code = await asyncio.to_thread(standby.wait)
        await until_it_is(holder, "holder", TAKES_OVER_MAX_S)
        await asyncio.sleep(AFTER_S)
        to_front(bench, holder)
        own = await waiting
        checker = await self.judge_pair(bench, clients, memory, readers, own=own)
        verdict, ops = checker.verdict, checker.history.ops
        self.figures["ms without a write"].append(longest_gap(ops, frozen, woken) * 1000)
        verdict.expect(said["status"] == 200, f"as a standby it is not ready: {said}")
        verdict.expect(exit_code == 0, f"the exit code was {exit_code}")
        wrong = [op for op in own if op.is_acknowledged and op.end < told]
        verdict.expect(
            not wrong,
            f"{len(wrong)} writes were acknowledged without the lease: {wrong[:2]}",
        )
        return verdict
