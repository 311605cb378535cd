"""python -m tests.faults: breaks things and tells what was lost. Exit code 1 if anything was."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.faults import report
from tests.faults.bench import ROOT
from tests.faults.runner import Outcome, run
from tests.faults.scenarios import BY_NAME, SCENARIOS


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole campaign")
    parser.add_argument("--only", nargs="+", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument("--rounds", type=int, help="of each scenario")
    parser.add_argument("--first", type=int, default=0, help="the first round's number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="writes the outcome there too")
    parser.add_argument("--source", type=Path, default=ROOT, help="the tree with itemstore/")
    return parser.parse_args()


async def _main(options: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    for scenario in (each for each in SCENARIOS if each.name in options.only):
        rounds = options.rounds or (scenario.full if options.full else scenario.short)
        print(f"{scenario.name}: {rounds} rounds …", file=sys.stderr)
        outcome = await run(
            scenario(is_full=options.full),
            rounds=rounds,
            seed=options.seed,
            source=options.source.resolve(),
            first=options.first,
        )
        outcomes.append(outcome)
        print(report.table([outcome]).splitlines()[-1], file=sys.stderr)
        if options.json:
            report.write_json(outcomes, options.json, seed=options.seed, full=options.full)
    print(report.table(outcomes))
    return 1 if any(outcome.lost or outcome.failed_rounds for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(_options())))
