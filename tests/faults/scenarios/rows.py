"""PostgreSQL refuses some rows, though the validator lets them pass."""

from __future__ import annotations

import asyncio
import math

from tests.faults.bench import Bench
from tests.faults.history import State
from tests.faults.scenarios.base import Scenario, Turn
from tests.faults.verdict import Rules, Verdict

_CONSTRAINT = """
ALTER TABLE items ADD CONSTRAINT no_poison CHECK (data::text NOT LIKE '%poison%')
"""


class BadRows(Scenario):
    """Only the bad rows are parked, and they are served all the same, also after a kill."""

    name = "bad_rows"
    about = "PostgreSQL refuses one row in 30; then SIGKILL of the server at rest, and a restart"
    full, short = 50, 2

    async def prepare(self, bench: Bench) -> None:
        await super().prepare(bench)
        await bench.postgres.run(_CONSTRAINT)

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        await bench.kill()
        await bench.forget()
        await bench.restart()
        clients = await bench.clients(
            turn.tag, seed=turn.seed, levels="commit=1,memory=1", ids=100, poison=1 / 30
        )
        await asyncio.sleep(turn.chance.uniform(0.5, 1.5))
        checker = await self.judge(bench, clients, rules=Rules(quarantine=True), books=True)
        verdict = checker.verdict
        state = await bench.left()
        self._check(state, verdict)
        self.figures["in quarantine"].append(len(state.quarantine))
        await bench.kill()
        await bench.restart()
        again = await bench.state(checker.history.ids())
        checker.check_state(again, 0, math.inf, "the state after a restart")
        return verdict

    def _check(self, state: State, verdict: Verdict) -> None:
        for item_id, (version, envelope) in state.quarantine.items():
            verdict.expect(
                envelope is not None and "poison" in envelope,
                f"{item_id} version {version} is in quarantine, though it is good: {envelope}",
            )
