"""The wire between server and PostgreSQL is bad; both stay up."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import orjson

from tests.faults.bench import Bench
from tests.faults.history import Op
from tests.faults.scenarios.base import Scenario, Turn
from tests.faults.verdict import Verdict

FREEZE_MAX_S = 2.5
TAKEN_OVER_MAX_S = 10.0


class Network(Scenario):
    """Two hostile things a round, one after the other, all from the seed."""

    name = "network"
    about = (
        "between server and PostgreSQL: delays, resets, a wire cut in the midst, silence, "
        "refused connections, and the cut between a commit and its answer"
    )
    full, short = 200, 6
    environment: ClassVar[Mapping[str, str]] = {"COMMIT_TIMEOUT": "1s"}
    through_proxy = True

    def __init__(self, *, is_full: bool = False) -> None:
        super().__init__(is_full=is_full)
        self._done: Counter[str] = Counter()

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="commit=2,memory=1")
        own: list[Op] = []
        # Each in its turn, so that a few rounds have seen all of them.
        names = list(_TOXICS)
        for name in (names[turn.number % len(names)], chance.choice(names)):
            await asyncio.sleep(chance.uniform(0.1, 0.5))
            self._done[name] += 1
            own += await _TOXICS[name](self, bench, turn, chance)
            bench.proxy.calm()
        self._done["answers eaten"] = bench.proxy.cuts
        self.figures["s until noticed"].append(await bench.until_back())
        await asyncio.sleep(0.3)
        return (await self.judge(bench, clients, own=own, books=True)).verdict

    def findings(self) -> str:
        done = ", ".join(f"{count} {name}" for name, count in self._done.items())
        return f"{super().findings()}; {done}"

    # --- what can happen

    async def _delay(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        bench.proxy.latency_s = chance.uniform(0.0, 0.1)
        bench.proxy.jitter_s = chance.uniform(0.0, 0.1)
        await asyncio.sleep(chance.uniform(0.3, 1.0))
        return []

    async def _reset(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        for _ in range(chance.randint(1, 5)):
            bench.proxy.reset()
            await asyncio.sleep(chance.uniform(0.0, 0.2))
        return []

    async def _break_midst(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        for _ in range(chance.randint(1, 3)):
            bench.proxy.bytes_left = chance.randrange(20_000)
            await asyncio.sleep(chance.uniform(0.1, 0.4))
        return []

    async def _silence(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        bench.proxy.freeze()
        longest = 35.0 if self.is_full and chance.random() < 0.03 else FREEZE_MAX_S
        await asyncio.sleep(chance.uniform(0.1, longest))
        if chance.random() < 0.5:
            bench.proxy.reset()
        bench.proxy.thaw()
        return []

    async def _refuse(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        bench.proxy.refusing = True
        bench.proxy.reset()
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        return []

    async def _cut_answers(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        for _ in range(chance.randint(1, 4)):
            bench.proxy.cut_answer()
            await asyncio.sleep(chance.uniform(0.05, 0.3))
        return []

    async def _cut_and_change(self, bench: Bench, turn: Turn, chance: random.Random) -> list[Op]:
        """Between a commit and its repetition somebody changes the row in psql.

        The repetition must not bring the older state back.
        """
        item_id = f"{turn.tag}-hand{chance.randrange(1_000_000)}"
        changes: list[Op] = []

        async def change() -> None:
            op = _op(item_id, f"{item_id}-2", time.monotonic())
            op.body = await bench.postgres.change(item_id, op.data)
            op.version, op.status = orjson.loads(op.body)["version"], 200
            op.end = time.monotonic()
            changes.append(op)

        bench.proxy.cut_answer(item_id.encode(), change)
        put = _op(item_id, f"{item_id}-1", time.monotonic())
        body = orjson.dumps({"data": orjson.loads(put.data)})
        answer = await bench.ask("PUT", f"/items/{item_id}", body, Durability="commit")
        put.status, put.body = answer.status, answer.body
        if answer.status < 300:
            put.version, put.end = orjson.loads(answer.body)["version"], time.monotonic()
        else:
            put.code, put.retry_after = orjson.loads(answer.body)["code"], True
        if changes:
            await _taken_over(bench, changes[0])
        return [put, *changes]


def _op(item_id: str, token: str, start: float) -> Op:
    data = orjson.dumps({"by": token, "put": token, "text": "by hand"}).decode()
    return Op(-1, "put", item_id, start, level="commit", by=token, data=data, given="commit")


async def _taken_over(bench: Bench, change: Op) -> None:
    """The server takes a change by another hand over within a second, or later if it is cut off."""
    limit = time.monotonic() + TAKEN_OVER_MAX_S
    while time.monotonic() < limit:
        answer = await bench.ask("GET", f"/items/{change.id}")
        if orjson.loads(answer.body).get("version") == change.version:
            return
        await asyncio.sleep(0.05)


_TOXICS = {
    "cut and change": Network._cut_and_change,
    "cut answers": Network._cut_answers,
    "silence": Network._silence,
    "reset": Network._reset,
    "broken in the midst": Network._break_midst,
    "delay": Network._delay,
    "refused": Network._refuse,
}
