"""Writes what the campaign found into docs/durability.md, from docs/faults/*.json.

    python -m tests.faults --full --json docs/faults/campaign.json
    python -m tests.faults.bugs --json docs/faults/bugs.json
    python -m tests.faults.docs

Several campaigns add up: every ``docs/faults/campaign*.json`` counts, a scenario in several of them
with all its rounds. Everything between the marks of a table is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from tests.faults.bench import ROOT
from tests.faults.scenarios import BY_NAME, SCENARIOS

PAGE: Final = ROOT / "docs" / "durability.md"
RESULTS: Final = ROOT / "docs" / "faults"

_BLOCK: Final = re.compile(r"(<!-- (faults|bugs) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
_CONFIDENCE: Final = 3  # rounds without a failure: at most 3 in so many, at 95 %


def main() -> None:
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")


def render(page: str, results: Path = RESULTS) -> str:
    """The page with its tables filled anew."""
    tables = {"faults": _faults(results), "bugs": _bugs(results)}
    return _BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]}\n{block[3]}", page)


def _faults(results: Path) -> str:
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(results.glob("campaign*.json")):
        for outcome in orjson.loads(file.read_bytes())["scenarios"]:
            if not outcome["skipped"]:
                found.setdefault(outcome["name"], []).append(outcome)
    rows: list[tuple[str, ...]] = [
        ("fault", "what is done", "rounds", "planned", "acknowledged", "lost", "at most", "found")
    ]
    rows += [_row(each.name, found[each.name]) for each in SCENARIOS if each.name in found]
    return _table(rows)


def _row(name: str, outcomes: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    rounds = sum(each["rounds"] for each in outcomes)
    failed = sum(each["failed_rounds"] for each in outcomes)
    lost = sum(each["lost"] for each in outcomes)
    return (
        f"`{name}`",
        BY_NAME[name].about,
        f"{rounds:,}",
        f"{BY_NAME[name].full:,}",
        f"{sum(each['acknowledged'] for each in outcomes):,}",
        f"**{lost}**",
        f"{failed} failed" if failed else f"{min(1.0, _CONFIDENCE / rounds):.1%}",
        max(outcomes, key=lambda each: each["rounds"])["findings"].replace("|", "\\|"),
    )


def _bugs(results: Path) -> str:
    rows: list[tuple[str, ...]] = [("mistake", "what it does", "noticed by")]
    for bug in orjson.loads((results / "bugs.json").read_bytes()):
        noticed = f"`{bug['judge']}`" if bug["noticed"] else f"**missed** by `{bug['judge']}`"
        rows.append((f"`{bug['name']}`", bug["about"], noticed))
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
