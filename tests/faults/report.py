"""The outcomes as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from tests.faults.runner import Outcome

_HEAD = (
    "scenario",
    "what is done",
    "rounds",
    "acknowledged",
    "lost though promised",
    "failed rounds",
    "other findings",
    "95 % bound",
    "s",
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    rows = [_HEAD, tuple("---" for _ in _HEAD), *(_row(outcome) for outcome in outcomes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.skipped:
        findings = f"skipped: {outcome.skipped}"
    else:
        refused = ", ".join(f"{n:,} {code}" for code, n in outcome.refused.most_common(3))
        parts = [outcome.findings, f"{outcome.open:,} open", f"refused: {refused or 'none'}"]
        findings = "; ".join(part for part in parts if part)
    bound = outcome.bound
    return (
        f"`{outcome.name}`",
        outcome.about,
        f"{outcome.rounds}",
        f"{outcome.acknowledged:,}",
        f"{outcome.lost}",
        f"{outcome.failed_rounds}",
        findings.replace("|", "\\|"),
        "none" if bound is None else f"≤ {bound:.1%}",
        f"{outcome.seconds:.0f}",
    )


def write_json(outcomes: Sequence[Outcome], path: Path, **about: object) -> None:
    read = [
        {**vars(outcome), "refused": dict(outcome.refused), "bound": outcome.bound}
        for outcome in outcomes
    ]
    path.write_bytes(orjson.dumps({**about, "scenarios": read}, option=orjson.OPT_INDENT_2) + b"\n")
