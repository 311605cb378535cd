"""Requests a second of every system, at every work, with so many connections."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from rich.progress import Progress

from benchmarks import charts, redis_benchmark, wrk
from benchmarks.client import Client
from benchmarks.report import Result, Table, ratios, spread
from benchmarks.systems import KINDS, WRITES, System
from benchmarks.workload import WORKS, Workload, pack

SHOWN: Final = 32  # connections; the targets are set for so many
CONNECTIONS: Final = (1, SHOWN, 256)

STATUS: Final = {"get": 200, "miss": 404, "304": 304, "put": 200, "post": 201, "mixed": 200}


class WrongStatus(Exception):
    """A system did not do the work it is measured at."""


class Throughput:
    """Measures cells: one system at one work with so many connections."""

    def __init__(self, workload: Workload, directory: Path, seconds: float) -> None:
        self._workload, self._directory, self._seconds = workload, directory, seconds
        self._chance = random.Random(workload.items)

    def measure(self, system: System, work: str, connections: int) -> dict[str, float]:
        """``per_s``, and for writes to itemstore the seconds until all were committed."""
        if not system.api.is_http:
            return {"per_s": self._redis(system, work, connections)}
        requests = self.requests(system, work)
        _check(system, work, requests)
        found = wrk.run(
            system.server.port,
            requests,
            connections=connections,
            seconds=self._seconds,
            start=self._chance.randrange(self._workload.items),
            refused=STATUS[work] >= 400,
        )
        settled_s = settle(system) if work in WRITES else {}
        return {"per_s": found.per_s, **settled_s}

    def _redis(self, system: System, work: str, connections: int) -> float:
        return redis_benchmark.run(
            system.server.port,
            work,
            items=self._workload.items,
            body=_typical(self._workload.bodies),
            connections=connections,
            seconds=self._seconds,
        )

    def requests(self, system: System, work: str) -> Path:
        """The file with the requests; made anew only where it holds ETags."""
        file = self._directory / f"{system.name}-{work}"
        if work == "304" or not file.exists():
            made = self._workload.requests(work, system.api, system.server.port)
            file.write_bytes(pack(made))
        return file


def _typical(bodies: Sequence[bytes]) -> bytes:
    """The one of middle length: redis-benchmark writes always the same."""
    return sorted(bodies, key=len)[len(bodies) // 2]


def _check(system: System, work: str, requests: Path) -> None:
    with requests.open("rb") as file, Client(system.server.port) as client:
        first = file.read(64 * 1024).split(b"\0", 1)[0]
        _, answer = client.ask(first)
    if answer.status != STATUS[work]:
        raise WrongStatus(f"{system.name}, {work}: {first!r} was answered with {answer}")


def settle(system: System) -> dict[str, float]:
    """Lets itemstore commit what it accepted, or it would do so beside the next one's work."""
    if not system.name.startswith("itemstore"):
        return {}
    started = time.perf_counter()
    with Client(system.server.port) as client:
        answer = client.post("/flush", b"")
    if answer.status != 204:
        raise WrongStatus(f"POST /flush was answered with {answer}")
    return {"flush_s": time.perf_counter() - started}


def measure(
    systems: dict[str, System],
    throughput: Throughput,
    result: Result,
    bar: Progress,
    *,
    works: Sequence[str],
    connections: Sequence[int],
    rounds: int,
) -> None:
    """Round after round, in each all systems one after the other at the same work."""
    cells = [
        (work, count, system)
        for work, count, system in itertools.product(works, connections, systems.values())
        if work in system.works
    ]
    task = bar.add_task("throughput", total=rounds * len(cells))
    for _, (work, count, system) in itertools.product(range(rounds), cells):
        values = throughput.measure(system, work, count)
        result.add(count, mode(work, system.name), **values)
        bar.advance(task)


def mode(work: str, system: str) -> str:
    return f"throughput {work} {system}"


def rates(result: Result, work: str, connections: int) -> dict[str, list[float]]:
    """Requests a second of each system, run by run."""
    return {
        kind: found["per_s"]
        for kind in KINDS
        if (found := result.find(connections, mode(work, kind))) is not None
    }


def tables(result: Result) -> Iterator[Table]:
    """One a work: requests a second, and beside it itemstore's ratio to that system."""
    for work, title in WORKS.items():
        sizes = [each for each in CONNECTIONS if rates(result, work, each)]
        found = {each: rates(result, work, each) for each in sizes}
        if not sizes:
            continue
        columns = ["requests a second", *(f"{each} connections" for each in sizes)]
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


def _of_itemstore(found: dict[str, list[float]], kind: str) -> str:
    ours = found.get("itemstore-memory")
    if ours is None or kind == "itemstore-memory":
        return ""
    return spread(ratios(ours, found[kind]))


def plot(result: Result) -> Figure:
    """All works at the connections the targets are set for."""
    shown = {work: found for work in WORKS if (found := rates(result, work, SHOWN))}
    figure, axes = charts.panels(len(shown), columns=2)
    for place, (work, found) in zip(axes, shown.items(), strict=True):
        values = {KINDS[kind].title: each for kind, each in found.items()}
        colors = [KINDS[kind].color for kind in found]
        charts.bars(place, WORKS[work], f"requests a second, {SHOWN} connections", values, colors)
    return figure
