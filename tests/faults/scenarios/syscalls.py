"""The server dies at one certain system call, or its journal's disk fails at one."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import Final

from tests.faults import strace
from tests.faults.bench import Bench, Stuck
from tests.faults.history import Kill
from tests.faults.scenarios.base import Scenario, Skipped, Turn
from tests.faults.verdict import Rules, Verdict

AFTER_S: Final = 0.3
STRIKES_MAX_S: Final = 8.0
ENDS_MAX_S: Final = 40.0
#: call → up to which of its occurrences: a second or two of load.
CALLS: Final = {"fdatasync": 150, "pwrite64": 400, "sendto": 600, "unlink": 1}
#: Some die a second time, while they recover.
AGAIN: Final = {"fdatasync": 8, "pwrite64": 20, "sendto": 10, "unlink": 3}


async def start(bench: Bench, turn: Turn) -> None:
    """A server with a journal of its own. Raises Skipped."""
    if refusal := strace.refusal():
        raise Skipped(refusal)
    await bench.forget()
    data_dir = bench.directory / turn.tag / "data"
    data_dir.mkdir(parents=True)
    await bench.start(DATA_DIR=str(data_dir))


def pid_of(bench: Bench) -> int:
    assert bench.server.process is not None
    return bench.server.process.pid


async def died(bench: Bench, limit_s: float) -> Kill | None:
    """The end of the server, if it came to it within the limit."""
    assert bench.server.process is not None
    sent = time.monotonic()
    while bench.server.process.poll() is None:
        if time.monotonic() > sent + limit_s:
            return None
        await asyncio.sleep(0.01)
    return Kill(sent, time.monotonic())


class Syscalls(Scenario):
    """Between any two calls that change a disk or tell somebody something."""

    name = "syscalls"
    about = (
        "the server dies at its Nth fdatasync, pwrite64 or sendto under writers at `journal` and "
        "`commit`, and in half of the rounds once more while it recovers; restart"
    )
    full, short = 100, 4

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        await start(bench, turn)
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="journal=2,commit=1")
        call = list(CALLS)[turn.number % 3]
        kills = [await self._kill_at(bench, call, chance.randint(1, CALLS[call]))]
        if chance.random() < 0.5:
            await bench.restart(wait=False)
            second = await self._kill_in_recovery(bench, chance)
            kills += [second] if second else []
            if second:
                await bench.restart()
        else:
            await bench.restart()
        self.figures["kills"].append(len(kills))
        await asyncio.sleep(AFTER_S)
        rules = Rules(tuple(kills), frozenset({"journal", "commit"}))
        checker = await self.judge(bench, clients, rules=rules)
        await bench.kill()
        return checker.verdict

    async def _kill_at(self, bench: Bench, call: str, number: int) -> Kill:
        async with strace.Tampering(pid_of(bench), f"{call}:signal=SIGKILL:when={number}"):
            return await died(bench, STRIKES_MAX_S) or await bench.kill()

    async def _kill_in_recovery(self, bench: Bench, chance: random.Random) -> Kill | None:
        call = chance.choice(list(AGAIN))
        what = f"{call}:signal=SIGKILL:when={chance.randint(1, AGAIN[call])}"
        async with strace.Tampering(pid_of(bench), what):
            return await died(bench, STRIKES_MAX_S / 2)


class FsyncError(Scenario):
    """After that nobody knows what is on the disk: the process drains to PostgreSQL, and ends."""

    name = "fsync_error"
    about = (
        "the journal's Nth fdatasync fails (EIO) under writers at `journal` and `memory`: the "
        "server says so, writes everything to PostgreSQL and ends with an error; restart"
    )
    full, short = 50, 2

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        await start(bench, turn)
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="journal=2,memory=1")
        number = chance.randint(1, CALLS["fdatasync"])
        began = time.monotonic()
        what = f"fdatasync:error=EIO:when={number}"
        async with strace.Tampering(pid_of(bench), what):
            kill = await died(bench, ENDS_MAX_S)
        if kill is None:
            await bench.kill()
            raise Stuck(f"the server did not end after {what}")
        self.figures["s until it has ended"].append(kill.died - began)
        exit_code = bench.server.wait()
        found = [event["message"] for event in bench.server.events()]
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        verdict = (await self.judge(bench, clients, rules=Rules((kill,)))).verdict
        verdict.expect("journal_failed" in found, f"no journal_failed in the log, but {found}")
        verdict.expect(exit_code not in (0, -signal.SIGKILL), f"the exit code was {exit_code}")
        await bench.kill()
        return verdict
