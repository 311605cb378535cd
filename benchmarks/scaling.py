"""How each cost grows: with the number of items, their size, and the writes a second.

    python -m benchmarks.scaling [--quick] [--items 10000,100000,1000000,5000000] [--runs 3]

One table after the other, each in a database of its own: bytes in PostgreSQL and in the process,
starts, single reads, pages of lists, PUTs as fast as they go. Then PUTs at fixed rates, and what
those cost. Beside what was measured stands what ``benchmarks.model`` predicts. It needs wrk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import command, growth
from benchmarks.data import load, rows
from benchmarks.growth import ITEM_BYTES, Point, Store
from benchmarks.growth_tables import plot, tables
from benchmarks.report import Result, environment
from benchmarks.servers import database, postgres

SIZES: Final = (10_000, 100_000, 1_000_000, 5_000_000)
RUNS: Final = 3
SIZED: Final = 100_000  # items, of each size in ITEM_BYTES and at each rate
SECONDS: Final = 2.0  # a measurement
RATE_SECONDS: Final = 5.0
ONCE_BYTES: Final = 100_000_000  # of JSON; a larger store is measured once, as noise is small there


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how long each time."""

    items: Sequence[int]
    sized: int  #: items of each size, and at each rate
    item_bytes: Sequence[int]
    runs: int
    seconds: float
    rate_seconds: float

    def points(self) -> list[Point]:
        """Small ones first."""
        sized = {Point(self.sized, item_bytes) for item_bytes in self.item_bytes}
        return sorted(sized | {Point(items) for items in self.items})

    def runs_of(self, store: Store) -> range:
        return range(self.runs if store.dataset.json_bytes <= ONCE_BYTES else 1)


def main() -> None:
    given = command.parse_sizes(__doc__, SIZES, RUNS)
    plan = Plan(given.items, SIZED, ITEM_BYTES, given.runs, SECONDS, RATE_SECONDS)
    if given.quick:
        plan = Plan(given.items, min(given.items), ITEM_BYTES[::2], given.runs, 0.5, 1.0)
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("scaling", environment(server_dsn))
        task = bar.add_task("measuring", total=len(plan.points()))
        for point in plan.points():
            bar.update(task, description=f"{point.items:,} × {point.item_bytes or 230} bytes")
            with _store(server_dsn, point, plan) as store:
                _measure(point, store, plan, result)
            bar.advance(task)
    command.finish(result, tables(result), plot, given)


@contextmanager
def _store(server_dsn: str, point: Point, plan: Plan) -> Iterator[Store]:
    with database(server_dsn) as dsn, tempfile.TemporaryDirectory() as directory:
        items = rows(point.items, item_bytes=point.item_bytes)
        yield Store(load(dsn, point.items, items=items), Path(directory), plan.seconds)


def _measure(point: Point, store: Store, plan: Plan, result: Result) -> None:
    """Writes at last: they leave old rows behind."""

    def add(kind: str, **values: float) -> None:
        result.add(point.items, point.mode(kind), **values)

    growth.warm_up(store)
    growth.measure_stored(store, add)
    for _ in plan.runs_of(store):
        growth.measure_reads(store, add)
    for _ in plan.runs_of(store):
        growth.measure_writes(store, add)
    if point == Point(plan.sized):
        for _ in plan.runs_of(store):
            growth.measure_rates(store, plan.rate_seconds, add)


if __name__ == "__main__":
    main()
