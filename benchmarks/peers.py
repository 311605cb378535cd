"""itemstore beside what people would pick instead, in one run on one machine.

    python -m benchmarks.peers [--quick] [--only throughput,latency] [--rounds 3] [--json FILE]

Starts each system itself, loads the same items, does the same work, and stops everything again.
Whatever is not installed is left out, and it says so. The systems take turns within each round, so
that noise of the machine hits them alike. No process is pinned: each system has the whole machine,
and shares it with whoever loads it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from rich.progress import Progress

from benchmarks import (
    charts,
    command,
    footprint,
    kinds,
    latency,
    stalls,
    startup,
    systems,
    targets,
    throughput,
    writes,
)
from benchmarks.comparison import Comparison
from benchmarks.report import Result, Table, environment
from benchmarks.servers import postgres
from benchmarks.workload import WORKS, Workload

ITEMS: Final = 100_000
LARGE_ITEMS: Final = 1_000_000
ROUNDS: Final = 3
SECONDS, QUICK_SECONDS = 1.0, 0.5  # of one measurement; some take a multiple

#: As they are shown.
PARTS: Final = {
    "targets": targets,
    "throughput": throughput,
    "latency": latency,
    "writes": writes,
    "footprint": footprint,
    "stalls": stalls,
}

LARGE_PARTS: Final = frozenset({"footprint", "stalls"})  #: over a large store

#: Each in a file of its own, beside that of the throughput.
MORE_PLOTS: Final = {"latency": latency, "writes": writes}


def main() -> None:
    given = _arguments()
    for how, what in kinds.missing(given.systems).items():
        print(f"Not installed: {', '.join(what)}. To measure them: {how}", file=sys.stderr)
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("peers", environment(server_dsn) | kinds.versions())
        with _running(given, server_dsn, result, bar) as run, _kept(result, given.json):
            _measure(run, given)
    command.finish(result, tables(result), plot, given)
    if given.svg:
        for name, figure in more_plots(result).items():
            charts.save(figure, given.svg.with_stem(f"{given.svg.stem}-{name}"))


def _arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    some = parser.add_argument
    parts = [each for each in PARTS if each != "targets"]
    some("--only", type=_names(parts), default=parts, metavar="PART,…", help=", ".join(parts))
    some("--work", type=_names(WORKS), default=[*WORKS], metavar="WORK,…", help=", ".join(WORKS))
    known = [*kinds.KINDS]
    some("--systems", type=_names(known), default=known, metavar="NAME,…", help=", ".join(known))
    some("--connections", type=_numbers, metavar="N,N,…", help="of the throughput")
    some("--rounds", type=int, metavar="N", help=f"by default {ROUNDS}; quick: 1")
    some("--seconds", type=float, metavar="S", help="that one measurement takes")
    some("--items", type=int, default=ITEMS, metavar="N")
    some("--large-items", type=int, metavar="N", help="of the large store")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else ROUNDS)
    given.seconds = given.seconds or (QUICK_SECONDS if given.quick else SECONDS)
    quick = [throughput.SHOWN] if given.quick else [*throughput.CONNECTIONS]
    given.connections = given.connections or quick
    given.large_items = given.large_items or (given.items if given.quick else LARGE_ITEMS)
    return given


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Takes a list of names, or of what they begin with."""

    def parse(text: str) -> list[str]:
        begins = tuple(text.split(","))
        found = [each for each in known if each.startswith(begins)]
        if not found:
            raise argparse.ArgumentTypeError(f"some of {', '.join(known)}")
        return found

    return parse


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


@contextmanager
def _running(
    given: argparse.Namespace, server_dsn: str, result: Result, bar: Progress
) -> Iterator[Comparison]:
    installed = [each for each in given.systems if kinds.is_installed(each)]
    task = bar.add_task("starting", total=len(installed))
    with tempfile.TemporaryDirectory(prefix="itemstore-benchmark-") as made:
        directory, workload = Path(made), Workload(given.items)
        ground = systems.Ground(server_dsn, workload.rows, directory)
        with systems.running(installed, ground, lambda: bar.advance(task)) as found:
            yield Comparison(
                systems=found,
                workload=workload,
                server_dsn=server_dsn,
                directory=directory,
                result=result,
                bar=bar,
                rounds=given.rounds,
                seconds=given.seconds,
            )


@contextmanager
def _kept(result: Result, file: Path | None) -> Iterator[None]:
    """What was measured before something failed is kept, beside where all of it was to stand."""
    try:
        yield
    except BaseException:
        if file:
            result.write(file.with_suffix(".partial.json"))
        raise


def _measure(run: Comparison, given: argparse.Namespace) -> None:
    parts = set(given.only)
    if "throughput" in parts:
        throughput.measure(run, given.work, given.connections)
    if "latency" in parts:
        latency.measure(run)
    ours = run.systems.get(kinds.MEMORY)
    if ours is None:
        return
    if "writes" in parts and throughput.can_measure(ours):
        writes.measure(run)
    if not parts & LARGE_PARTS:
        return
    with command.datasets(run.server_dsn, [given.large_items], run.bar) as [dataset]:
        startup.warm_up([dataset])
        if "footprint" in parts:
            footprint.measure(run, dataset)
        if "stalls" in parts:
            stalls.measure(run, dataset)


def tables(result: Result) -> list[Table]:
    return [table for part in PARTS.values() for table in part.tables(result)]


def plot(result: Result) -> Figure:
    return throughput.plot(result)


def more_plots(result: Result) -> dict[str, Figure]:
    """By name; of the parts that were measured."""
    return {
        name: part.plot(result) for name, part in MORE_PLOTS.items() if any(part.tables(result))
    }


if __name__ == "__main__":
    main()
