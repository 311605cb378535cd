"""Runs the rounds of a scenario, and keeps what is needed to look at one that failed."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.bench import Bench, Stuck, bench
from tests.faults.scenarios.base import Scenario, Skipped, Turn, spread
from tests.faults.verdict import Verdict, told


@dataclass
class Outcome:
    """What the rounds of one scenario came to."""

    name: str
    about: str
    rounds: int = 0
    acknowledged: int = 0
    open: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    lost: int = 0
    failed_rounds: int = 0
    violations: list[str] = field(default_factory=list)
    findings: str = ""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)  #: name → its spread
    skipped: str = ""
    seconds: float = 0.0

    @property
    def bound(self) -> float | None:
        """With 95 % confidence no more rounds than this share fail; None if one did.

        The rule of three: https://doi.org/10.1001/jama.1983.03330370053031
        """
        return min(1.0, 3 / self.rounds) if self.rounds and not self.failed_rounds else None

    def add(self, verdict: Verdict) -> None:
        self.rounds += 1
        self.acknowledged += verdict.acknowledged
        self.open += verdict.open
        self.refused += verdict.refused
        self.reads += verdict.reads
        self.lost += verdict.lost
        self.failed_rounds += bool(verdict.violations)


async def run(
    scenario: Scenario,
    *,
    rounds: int,
    source: Path,
    seed: int = 1,
    first: int = 0,
    environment: Mapping[str, str] = {},
    until_failure: bool = False,
) -> Outcome:
    """Rounds ``first`` and following, of the itemstore in ``source``.

    A round that fails is kept, and does not stop the others; with ``until_failure`` it is the last
    and is not kept. ``environment``: settings for every server.
    """
    outcome = Outcome(scenario.name, scenario.about)
    started = time.monotonic()
    async with bench(source, str(seed)) as made:
        made.environment |= environment
        try:
            await scenario.prepare(made)
            for number in range(first, first + rounds):
                if outcome.failed_rounds and until_failure:
                    break
                await _round(scenario, made, Turn(number, seed), outcome, keep=not until_failure)
        except Skipped as reason:
            outcome.skipped = str(reason)
    outcome.findings = scenario.findings()
    outcome.figures = {name: spread(numbers) for name, numbers in scenario.figures.items()}
    outcome.seconds = time.monotonic() - started
    return outcome


async def _round(
    scenario: Scenario, made: Bench, turn: Turn, outcome: Outcome, *, keep: bool
) -> None:
    stopped = False
    made.begin_round()
    try:
        verdict = await scenario.round(made, turn)
    except Skipped:
        raise
    except Stuck as error:
        verdict = Verdict(violations=[f"stuck: {error}"])
        stopped = True
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {place.name}: {str(error)[-2000:]}"
        verdict = Verdict(violations=[f"the round broke off: {what}"])
        (made.directory / turn.tag).mkdir(exist_ok=True)
        (made.directory / turn.tag / "traceback").write_text(traceback.format_exc())
        stopped = True
    outcome.add(verdict)
    directory = made.directory / turn.tag
    outcome.violations += [f"round {turn.number}: {each}" for each in verdict.violations]
    if verdict.violations and keep:
        print(
            f"{scenario.name}, round {turn.number} failed; kept in {_keep(made, directory)}; again "
            f"with --only {scenario.name} --seed {turn.seed} --first {turn.number} --rounds 1\n"
            f"{told(verdict.violations)}",
            file=sys.stderr,
        )
    shutil.rmtree(directory, ignore_errors=True)
    if stopped:
        await _afresh(scenario, made)


async def _afresh(scenario: Scenario, made: Bench) -> None:
    """After a round that broke off, nobody knows in which state things are."""
    await made.abandon()
    await scenario.prepare(made)


def _keep(made: Bench, directory: Path) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="itemstore-faults-kept-"))
    if directory.exists():
        shutil.copytree(directory, kept, dirs_exist_ok=True)
    for log in made.directory.glob("server*.log"):
        shutil.copy(log, kept)
    return kept
