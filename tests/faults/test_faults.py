"""A short version of every scenario; the campaign is ``python -m tests.faults --full``."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.faults.bench import ROOT
from tests.faults.bugs.__main__ import Bug, bugs, put_in
from tests.faults.report import table, write_json
from tests.faults.runner import Outcome, run
from tests.faults.scenarios import BY_NAME, SCENARIOS
from tests.faults.verdict import Verdict, told

#: Scenarios at a time: while one waits for its outage to end, others work.
TOGETHER: Final = 3


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """By name, of the scenarios whose tests were selected."""
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    names = {call.params.get("name") for call in selected if call is not None}
    return asyncio.run(_run_all([name for name in BY_NAME if name in names]))


async def _run_all(names: list[str]) -> dict[str, Outcome]:
    places = asyncio.Semaphore(TOGETHER)

    async def run_one(name: str) -> Outcome:
        async with places:
            scenario = BY_NAME[name]
            return await run(scenario(), rounds=scenario.short, source=ROOT)

    return dict(zip(names, await asyncio.gather(*map(run_one, names)), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_nothing_acknowledged_is_lost(name: str, outcomes: dict[str, Outcome]) -> None:
    """Whatever breaks, what was acknowledged is there afterwards, and no rule is broken."""
    outcome = outcomes[name]
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.violations, told(outcome.violations)
    assert 0 == outcome.lost
    assert outcome.acknowledged > 0


def test_report_says_what_was_found(tmp_path: Path) -> None:
    """One row a scenario; with no failure in 60 rounds, at most 5 % fail; JSON has it all."""
    good, bad = Outcome("one", "is done"), Outcome("two", "is done")
    for _ in range(60):
        good.add(Verdict(acknowledged=100, refused=Counter(overloaded=1)))
    bad.add(Verdict(lost=2, violations=["rule 1: lost"]))

    rows = table([good, bad]).splitlines()
    write_json([good, bad], tmp_path / "report", seed=1)

    expected = "`one` | is done | 60 | 6,000 | 0 | 0 | 0 open; refused: 60 overloaded | ≤ 5.0% | 0"
    assert f"| {expected} |" == rows[2]
    assert "| none |" in rows[3]
    read = orjson.loads((tmp_path / "report").read_bytes())
    assert [0.05, None] == [each["bound"] for each in read["scenarios"]]
    assert {"overloaded": 60} == read["scenarios"][0]["refused"]


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no patch in PATH")
@pytest.mark.parametrize("bug", bugs(), ids=lambda bug: str(bug.patch.stem))
def test_bug_can_be_put_in(bug: Bug, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every patch still fits; ``python -m tests.faults.bugs`` shows that it is noticed."""
    assert "" == put_in(bug, ROOT, tmp_path_factory.mktemp(bug.patch.stem))
    assert bug.scenario in BY_NAME or bug.test
