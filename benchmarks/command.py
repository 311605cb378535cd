"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks import charts
from benchmarks.data import Dataset, load
from benchmarks.report import Result, Table
from benchmarks.servers import database

SIZES: Final = (10_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (1_000, 10_000)
QUICK_ITEMS: Final = 2_000  # where there is one table
RUNS: Final = 5
WIDTH: Final = 160  # columns, where no terminal sets a limit


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="a small measurement, to try it out")
    made.add_argument("--json", type=_target, metavar="FILE", help="write every single value")
    made.add_argument("--svg", type=_target, metavar="FILE", help="write the plot (or a .png)")
    return made


def _target(text: str) -> Path:
    """Looked at now: what cannot be written is not to be found out after the measurement."""
    file = Path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {file.parent}")
    return file


def parse_sizes(
    description: str | None, sizes: Sequence[int] = SIZES, runs: int = RUNS
) -> argparse.Namespace:
    """The options of a benchmark over several numbers of items: with ``items`` and ``runs``."""
    made = parser(description)
    made.add_argument("--items", type=_sizes, metavar="N,N,…", help=f"by default {_listed(sizes)}")
    given = parse_runs(made, runs)
    given.items = given.items or (QUICK_SIZES if given.quick else sizes)
    return given


def parse_size(description: str | None, items: int) -> argparse.Namespace:
    """The options of a benchmark over one table: with ``items``, ``runs``, and their defaults."""
    return parse_table(parser(description), items, RUNS)


def parse_table(made: argparse.ArgumentParser, items: int, runs: int) -> argparse.Namespace:
    """The same for a parser that has options of its own."""
    made.add_argument("--items", type=int, metavar="N", help=f"by default {items}")
    given = parse_runs(made, runs)
    given.items = given.items or (QUICK_ITEMS if given.quick else items)
    return given


def parse_runs(made: argparse.ArgumentParser, runs: int) -> argparse.Namespace:
    """All options, with the number of runs."""
    made.add_argument("--runs", type=int, metavar="N", help=f"by default {runs}; quick: 1")
    given = made.parse_args()
    given.runs = given.runs or (1 if given.quick else runs)
    return given


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(each) for each in text.split(",")}))
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError("numbers of items, such as 10000,100000")
    return sizes


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on standard error. SIGTERM ends the benchmark in order, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description:<24}"), *columns, console=Console(stderr=True)
    ) as shown:
        yield shown


@contextmanager
def datasets(server_dsn: str, sizes: Sequence[int], bar: Progress) -> Iterator[list[Dataset]]:
    """A loaded database for each size; dropped at the end."""
    with ExitStack() as stack:
        task = bar.add_task("loading items", total=sum(sizes))
        yield [
            load(stack.enter_context(database(server_dsn)), size, lambda n: bar.advance(task, n))
            for size in sizes
        ]


def finish(
    result: Result,
    tables: Sequence[Table],
    plot: Callable[[Result], Figure],
    given: argparse.Namespace,
) -> None:
    """Shows the result and writes the files asked for."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for name, value in result.environment.items():
        console.print(f"{name:<12} {value}", soft_wrap=True)
    for table in tables:
        console.print(table.rich())
    if given.json:
        result.write(given.json)
    if given.svg:
        charts.save(plot(result), given.svg)
