"""itemstore beside what people would pick instead, in one run on one machine.

    python -m benchmarks.peers [--quick] [--only throughput] [--rounds 3]

Starts each system itself, loads the same items, does the same work, and stops everything again.
Whatever is not installed is left out, and it says so. The systems take turns within each round, so
that noise of the machine hits them alike. No process is pinned: each has the whole machine, and
shares it with whoever loads it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from benchmarks import command, systems, throughput
from benchmarks.report import Result, Table, environment
from benchmarks.servers import postgres
from benchmarks.workload import WORKS, Workload

ITEMS: Final = 100_000
ROUNDS: Final = 3


def main() -> None:
    given = _arguments()
    for how, what in systems.missing(given.systems).items():
        print(f"Left out is what needs {', '.join(what)}: {how} {' '.join(what)}", file=sys.stderr)
    kinds = [each for each in given.systems if systems.is_installed(each)]
    with (
        command.progress() as bar,
        postgres() as server_dsn,
        tempfile.TemporaryDirectory(prefix="itemstore-benchmark-") as directory,
    ):
        result = Result("peers", environment(server_dsn))
        workload = Workload(given.items)
        ground = systems.Ground(server_dsn, workload.rows, Path(directory))
        with systems.running(kinds, ground) as found:
            throughput.measure(
                found,
                throughput.Throughput(workload, Path(directory), given.seconds),
                result,
                bar,
                works=given.work,
                connections=given.connections,
                rounds=given.rounds,
            )
    command.finish(result, tables(result), plot, given)


def _arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--items", type=int, default=ITEMS, metavar="N")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"by default {ROUNDS}; quick: 1")
    parser.add_argument("--seconds", type=float, default=1.0, help="that one measurement takes")
    parser.add_argument("--work", type=_names(WORKS), default=[*WORKS], help=",".join(WORKS))
    parser.add_argument(
        "--systems",
        type=_names(systems.KINDS),
        default=[*systems.KINDS],
        help=",".join(systems.KINDS),
    )
    parser.add_argument(
        "--connections",
        type=lambda text: [int(each) for each in text.split(",")],
        metavar="N,N,…",
    )
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else ROUNDS)
    given.connections = given.connections or ([32] if given.quick else [*throughput.CONNECTIONS])
    return given


def tables(result: Result) -> list[Table]:
    return [*throughput.tables(result)]


def plot(result: Result) -> Figure:
    return throughput.plot(result)


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """For --systems and the like: names, or how they begin."""

    def parse(text: str) -> list[str]:
        found = [each for each in known for part in text.split(",") if each.startswith(part)]
        if not found:
            raise argparse.ArgumentTypeError(f"one of {', '.join(known)}")
        return found

    return parse


if __name__ == "__main__":
    main()
