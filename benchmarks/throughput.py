"""Requests a second of every system, at every work, with so many connections."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from matplotlib.figure import Figure

from benchmarks import charts, redis_benchmark, wrk
from benchmarks.comparison import STATUS, Comparison, check, settle
from benchmarks.kinds import KINDS, MEMORY, WRITES
from benchmarks.report import Result, Table, ratios, spread
from benchmarks.systems import System
from benchmarks.workload import WORKS

SHOWN: Final = 32  # connections; the targets are set for so many
CONNECTIONS: Final = (1, SHOWN, 256)


def measure(run: Comparison, works: Sequence[str], connections: Sequence[int]) -> None:
    """Round after round, in each all systems one after the other at the same work."""
    cells = [
        (work, count, system)
        for work, count, system in itertools.product(works, connections, run.systems.values())
        if work in system.works and can_measure(system)
    ]
    task = run.bar.add_task("throughput", total=run.rounds * len(cells))
    for _, (work, count, system) in itertools.product(range(run.rounds), cells):
        run.add(mode(work, system.name, count), **cell(run, system, work, count))
        run.bar.advance(task)


def can_measure(system: System) -> bool:
    """Redis brings its own generator; the others need wrk."""
    return not system.api.is_http or wrk.is_installed()


def cell(run: Comparison, system: System, work: str, connections: int) -> dict[str, float]:
    """``per_s``; of writes to itemstore also ``settled_per_s``, which counts on until the last of
    them is committed."""
    if not system.api.is_http:
        return {"per_s": _redis(run, system, work, connections)}
    requests = run.requests(system, work)
    check(system, work, requests)
    found = wrk.run(
        system.server.port,
        requests,
        connections=connections,
        seconds=run.seconds,
        start=run.chance.randrange(run.workload.items),
        refused=STATUS[work] >= 400,
        strays=KINDS[system.name].strays,
    )
    if work not in WRITES or not system.is_itemstore:
        return {"per_s": found.per_s}
    whole_s = found.duration_us / 1_000_000 + settle(system.server)
    return {"per_s": found.per_s, "settled_per_s": found.requests / whole_s}


def _redis(run: Comparison, system: System, work: str, connections: int) -> float:
    return redis_benchmark.run(
        system.server.port,
        work,
        items=run.workload.items,
        body=run.workload.typical,
        connections=connections,
        seconds=run.seconds,
    )


def peak(run: Comparison, system: System, work: str) -> float:
    """Requests a second at SHOWN connections; measured now if it has not been."""
    found = rates(run.result, work, SHOWN).get(system.name)
    return statistics.median(found) if found else cell(run, system, work, SHOWN)["per_s"]


def mode(work: str, system: str, connections: int) -> str:
    return f"throughput {work} {connections} {system}"


def rates(result: Result, work: str, connections: int) -> dict[str, list[float]]:
    """Requests a second of each system, run by run."""
    return {
        kind: found["per_s"]
        for kind in KINDS
        if (found := result.only(mode(work, kind, connections))) is not None
    }


def tables(result: Result) -> Iterator[Table]:
    """One a work: requests a second, and beside it itemstore's ratio to that system."""
    for work, title in WORKS.items():
        sizes = [each for each in CONNECTIONS if rates(result, work, each)]
        found = {each: rates(result, work, each) for each in sizes}
        if not sizes:
            continue
        columns = ["requests a second", *(_connections(each) for each in sizes)]
        columns += [f"itemstore / it, {each}" for each in sizes]
        rows = [
            (
                KINDS[kind].title,
                *(spread(found[each][kind]) for each in sizes),
                *(_of_itemstore(found[each], kind) for each in sizes),
            )
            for kind in KINDS
            if kind in found[sizes[0]]
        ]
        yield Table(title, columns, rows)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _of_itemstore(found: dict[str, list[float]], kind: str) -> str:
    ours = found.get(MEMORY)
    if ours is None or kind == MEMORY:
        return ""
    return spread(ratios(ours, found[kind]))


def plot(result: Result) -> Figure:
    """All works at the connections the targets are set for."""
    shown = {work: found for work in WORKS if (found := rates(result, work, SHOWN))}
    figure, axes = charts.panels(max(1, len(shown)), columns=2)
    for place, (work, found) in zip(axes, shown.items(), strict=False):
        values = {KINDS[kind].title: each for kind, each in found.items()}
        looks = [KINDS[kind].look for kind in found]
        charts.bars(place, WORKS[work], f"requests a second, {SHOWN} connections", values, looks)
    return figure
