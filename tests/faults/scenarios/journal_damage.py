"""Bits of the journal's files flip, sectors go blank, the end is missing."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from tests.faults.bench import ROOT, Bench
from tests.faults.journal_file import MUST_BE_ZERO
from tests.faults.scenarios.base import Scenario, Turn
from tests.faults.verdict import Verdict

MUTATIONS: Final = 150


class JournalDamage(Scenario):
    """In a process of its own, so that the journal is that of the source under test."""

    name = "journal_damage"
    about = f"copies of journals are damaged {MUTATIONS} times a round, and read"
    full, short = 14, 1

    async def prepare(self, bench: Bench) -> None:
        """No server."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        (bench.directory / turn.tag).mkdir()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.journal_file"),
            *(str(MUTATIONS), str(1_000 * turn.seed + turn.number)),
            cwd="/",
            env={**os.environ, "PYTHONPATH": f"{bench.source}:{ROOT}", "PYTHONSAFEPATH": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complaints = await process.communicate()
        lines = [line.split() for line in said.decode().splitlines()]
        found = {name: int(value) for value, name in lines}
        assert found, complaints.decode()
        for name, value in found.items():
            self.figures[name.replace("_", " ")].append(value)
        verdict = Verdict(acknowledged=found["recovered_untouched"], lost=found["lost_untouched"])
        for name in MUST_BE_ZERO:
            told = complaints.decode()[-500:]
            verdict.expect(found[name] == 0, f"{found[name]} {name}: {told}")
        return verdict

    def findings(self) -> str:
        """Sums say more here."""
        return "; ".join(f"{sum(numbers):,.0f} {name}" for name, numbers in self.figures.items())
