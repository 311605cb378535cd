"""What every scenario is: a way to break things, and what must hold after it."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import orjson

from tests.faults.bench import Bench, Clients
from tests.faults.checker import Checker
from tests.faults.history import Op, State, read_directory
from tests.faults.verdict import Rules, Verdict, check_books


class Skipped(Exception):
    """The scenario cannot be run here; why."""


@dataclass(frozen=True)
class Turn:
    """One round: its number, and where its random choices come from."""

    number: int
    seed: int

    @property
    def tag(self) -> str:
        return f"r{self.number}"

    @property
    def chance(self) -> random.Random:
        """The same choices in the same round of the same seed; ask once a round."""
        return random.Random(f"{self.seed}-{self.number}")


class Scenario:
    """Subclasses name themselves, and say what a round is."""

    name: ClassVar[str]
    about: ClassVar[str]
    full: ClassVar[int]  #: rounds of the campaign
    short: ClassVar[int]  #: rounds of the tests
    environment: ClassVar[Mapping[str, str]] = {}
    through_proxy: ClassVar[bool] = False

    def __init__(self, *, is_full: bool = False) -> None:
        self.is_full = is_full
        #: What was measured, for ``findings``: name → one number a round, or more.
        self.figures: dict[str, list[float]] = defaultdict(list)

    async def prepare(self, bench: Bench) -> None:
        await bench.start(through_proxy=self.through_proxy, **self.environment)

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        raise NotImplementedError

    def findings(self) -> str:
        """One line for the table."""
        return "; ".join(
            f"{name} {_told(numbers)}" for name, numbers in self.figures.items() if numbers
        )

    # --- what most rounds end with

    async def judge(
        self,
        bench: Bench,
        *clients: Clients,
        rules: Rules | None = None,
        left: State | None = None,
        own: Sequence[Op] = (),
        books: bool = False,
    ) -> Checker:
        """Ends the clients, waits until the server rests, and checks everything.

        ``left``: what was found in PostgreSQL between the last kill and the restart.
        ``own``: operations of the scenario itself.
        ``books``: whether this server was there from the beginning.
        """
        rules = rules or Rules()
        for each in clients:
            await each.end()
        directory = clients[0].directory
        (directory / "own.json").write_bytes(orjson.dumps(own))
        (directory / "rules.json").write_bytes(rules_json(rules))
        history = await asyncio.to_thread(read_directory, directory)
        stats = await bench.rested()
        final = await bench.state(history.ids())
        final.write(directory / "final.json")
        checker = Checker(history, rules)
        if left is not None:
            checker.check_state(
                left, len(rules.kills), rules.kills[-1].died, "PostgreSQL after the kill"
            )
        checker.check(final)
        if books:
            check_books(stats, checker.verdict)
        return checker


def rules_json(rules: Rules) -> bytes:
    return orjson.dumps(
        {
            "kills": [asdict(kill) for kill in rules.kills],
            "survives": sorted(rules.survives),
            "quarantine": rules.quarantine,
        }
    )


def percentile(numbers: Sequence[float], share: float) -> float:
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """How many, and where they lie."""
    if not numbers:
        return {"count": 0}
    return {
        "count": len(numbers),
        "median": percentile(numbers, 0.5),
        "p99": percentile(numbers, 0.99),
        "max": max(numbers),
    }


def _told(numbers: Sequence[float]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:,.3g}"
    found = spread(numbers)
    return f"{found['median']:,.3g} (p99 {found['p99']:,.3g}, max {found['max']:,.3g})"
