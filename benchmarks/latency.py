"""Latencies of every system at half of what it can do, by the open-loop generator."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Final

from matplotlib.figure import Figure

from benchmarks import charts, openloop
from benchmarks.comparison import Comparison, settle
from benchmarks.kinds import KINDS
from benchmarks.openloop import PERCENTILES, Latencies
from benchmarks.report import Result, Table, number, spread
from benchmarks.systems import System
from benchmarks.throughput import can_measure, peak
from benchmarks.workload import WORKS

MEASURED: Final = ("get", "put")
LOAD: Final = 0.5  # of the peak
RATE_MAX: Final = 30_000.0  # what the generator can do on a small machine

_COLUMNS: Final = ("50", "90", "99", "99.9", "100")


def measure(run: Comparison) -> None:
    """Each system at its own half; in turn, round after round."""
    cells = [
        (work, system, min(RATE_MAX, LOAD * peak(run, system, work)))
        for work, system in itertools.product(MEASURED, run.systems.values())
        if work in system.works and can_measure(system)
    ]
    task = run.bar.add_task("latency", total=run.rounds * len(cells))
    for _, (work, system, rate) in itertools.product(range(run.rounds), cells):
        found = at(run, system, work, rate)
        run.add(mode(work, system.name), rate=rate, **values(found))
        if system.is_itemstore and work == "put":
            settle(system.server)
        run.bar.advance(task)


def at(run: Comparison, system: System, work: str, rate: float) -> Latencies:
    """At so many requests a second."""
    return openloop.run(
        system.server.port,
        run.requests(system, work),
        rate=rate,
        seconds=run.seconds,
        good=good(system, work),
        strays=KINDS[system.name].strays,
    )


def good(system: System, work: str) -> str:
    """How a right answer begins."""
    if system.api.is_http:
        return "HTTP/1.1 200"
    return "$" if work == "get" else "+OK"


def values(found: Latencies) -> dict[str, float]:
    """As they stand in the result."""
    percentiles = {f"p{name}_us": float(us) for name, us in found.percentiles_us.items()}
    lost, late = float(found.lost), float(found.late_p99_us)
    return {"per_s": found.per_s, "lost": lost, "late_p99_us": late, **percentiles}


def mode(work: str, system: str) -> str:
    return f"latency {work} {system}"


def tables(result: Result) -> Iterator[Table]:
    """Milliseconds at the percentiles people ask for."""
    columns = ("milliseconds", "requests/s", *(_named(each) for each in _COLUMNS), "generator late")
    for work in MEASURED:
        rows = []
        for kind in KINDS:
            found = result.only(mode(work, kind))
            if found is None:
                continue
            shown = (spread(found[f"p{each}_us"], 1_000) for each in (*_COLUMNS,))
            late = spread(found["late_p99_us"], 1_000)
            rate = number(statistics.median(found["rate"]))
            rows.append((KINDS[kind].title, rate, *shown, late))
        if rows:
            yield Table(f"{WORKS[work]}: latency at half of the peak", columns, rows)


def _named(percentile: str) -> str:
    return "max" if percentile == "100" else f"p{percentile}"


def plot(result: Result) -> Figure:
    """The whole curve, with the scale that shows the tail."""
    figure, axes = charts.panels(len(MEASURED))
    for place, work in zip(axes, MEASURED, strict=True):
        for kind in KINDS:
            found = result.only(mode(work, kind))
            if found is not None:
                curve = [statistics.median(found[f"p{each:g}_us"]) / 1_000 for each in PERCENTILES]
                charts.curve(place, PERCENTILES, curve, KINDS[kind].title, KINDS[kind].look)
        charts.by_percentile(place, f"{WORKS[work]}, half of the peak", "milliseconds")
    return figure
