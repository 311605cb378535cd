"""How long a start takes: until the first correct answer, and until every item is in memory.

    python -m benchmarks.startup [--quick] [--items 10000,100000] [--runs 5]

Each start is a fresh process. Beside it stands what PostgreSQL takes to give out the same rows to
somebody who throws them away, and how long requests wait while the preload runs.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import psycopg
from matplotlib.figure import Figure

from benchmarks import charts, command
from benchmarks.client import Answer, Client, item_path
from benchmarks.data import Dataset, check
from benchmarks.report import Result, Table, environment, ratios, spread
from benchmarks.servers import Server, is_hydrated, itemstore, postgres

REQUEST_INTERVAL_S: Final = 0.005
IDLE_S: Final = 2.0

#: Seconds that the predecessor's documents give for its preload.
CLAIMED_S: Final = {10_000: 2.0, 100_000: 20.0, 1_000_000: 180.0}
DELAY_TARGET_MS: Final = 50.0

COPY_OUT: Final = b"COPY (SELECT id, data, version, created_at FROM items) TO STDOUT"


class Delays(NamedTuple):
    """Of the requests of one phase, in milliseconds."""

    p99: float
    max: float


def main() -> None:
    given = command.parse_sizes(__doc__)
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("startup", environment(server_dsn))
        with command.datasets(server_dsn, given.items, bar) as datasets:
            if not given.quick:
                warm_up(datasets)
            task = bar.add_task("starting", total=given.runs * len(datasets))
            for _, dataset in itertools.product(range(given.runs), datasets):
                _measure(dataset, result, IDLE_S / 10 if given.quick else IDLE_S)
                bar.advance(task)
    command.finish(result, tables(result), plot, given)


def warm_up(datasets: list[Dataset]) -> None:
    """The first reading of a table, and the first start of all, are not counted."""
    for dataset in datasets:
        copy_out(dataset.dsn)
    with itemstore(datasets[0].dsn) as server:
        server.wait_for("/readyz")


def _measure(dataset: Dataset, result: Result, idle_s: float) -> None:
    """One run; the three configurations one after the other, so that noise hits them alike."""
    result.add(dataset.items, "copy", total_s=copy_out(dataset.dsn))
    with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="true") as server:
        result.add(dataset.items, "lazy", first_answer_s=first_answer(server, dataset))
    with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="false") as server:
        first_answer_s = first_answer(server, dataset)
        preload = _probe(server, dataset, is_hydrated)
        hydrated_s = time.perf_counter() - server.started
        idle = _probe_for(idle_s, server, dataset)
    result.add(
        dataset.items,
        "preload",
        first_answer_s=first_answer_s,
        hydrated_s=hydrated_s,
        preload_p99_ms=preload.p99,
        preload_max_ms=preload.max,
        idle_p99_ms=idle.p99,
        idle_max_ms=idle.max,
    )


def copy_out(dsn: str) -> float:
    """Seconds in which PostgreSQL gives out all rows as text: no store can be filled faster."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        with cursor.copy(COPY_OUT) as copy:
            for _ in copy:
                pass
        return time.perf_counter() - started


def first_answer(server: Server, dataset: Dataset) -> float:
    """Seconds from exec until an item was answered, and right."""
    row = dataset.sample[len(dataset.sample) // 2]
    answer = server.wait_for(item_path(row.id))
    elapsed = time.perf_counter() - server.started
    check(answer, row)
    return elapsed


def _probe_for(duration_s: float, server: Server, dataset: Dataset) -> Delays:
    """The delays of a server that has nothing else to do."""
    end = time.perf_counter() + duration_s
    return _probe(server, dataset, lambda _: time.perf_counter() > end)


def _probe(server: Server, dataset: Dataset, is_over: Callable[[Answer], bool]) -> Delays:
    """Reads an item, checks it, asks for the state, pauses; and again.

    A request that took longer than the pause stands for those that would have waited with it, had
    they come at their own times (Gil Tene, "How NOT to Measure Latency", 2013).
    """
    delays: list[float] = []
    with server.connect() as client:
        for row in itertools.cycle(dataset.sample):
            taken_s, answer = _timed_get(client, item_path(row.id))
            check(answer, row)
            asked_s, state = _timed_get(client, "/readyz")
            delays += [*_waits(taken_s), *_waits(asked_s)]
            if is_over(state):
                break
            time.sleep(REQUEST_INTERVAL_S)
    return Delays(statistics.quantiles(delays, n=100, method="inclusive")[98], max(delays))


def _timed_get(client: Client, path: str) -> tuple[float, Answer]:
    started = time.perf_counter()
    answer = client.get(path)
    return time.perf_counter() - started, answer


def _waits(taken_s: float) -> Iterator[float]:
    """The request's milliseconds, and what those of one at each interval after it would be."""
    while taken_s > 0:
        yield taken_s * 1_000
        taken_s -= REQUEST_INTERVAL_S


def tables(result: Result) -> list[Table]:
    return [_times(result), _requests(result)]


def _times(result: Result) -> Table:
    rows = []
    for items in result.sizes():
        preload, lazy, copy = (result.of(items, mode) for mode in _MODES)
        ratio = ratios(preload["hydrated_s"], copy["total_s"])
        rows.append(
            (
                f"{items:,}",
                spread(preload["first_answer_s"]),
                spread(lazy["first_answer_s"]),
                spread(preload["hydrated_s"]),
                spread(copy["total_s"]),
                spread(ratio),
            )
        )
    return Table("Seconds from exec", _TIMES, rows)


_MODES: Final = ("preload", "lazy", "copy")
_TIMES: Final = (
    "items",
    "first answer",
    "first answer, lazy",
    "hydrated",
    "raw COPY",
    "hydrated / COPY",
)


def _requests(result: Result) -> Table:
    measures = ("preload_p99_ms", "preload_max_ms", "idle_p99_ms", "idle_max_ms")
    rows = []
    for items in result.sizes():
        values = result.of(items, "preload")
        rows.append((f"{items:,}", *(spread(values[measure]) for measure in measures)))
    columns = ("items", "p99, preload", "max, preload", "p99, idle", "max, idle")
    return Table("Milliseconds a request takes", columns, rows)


def plot(result: Result) -> Figure:
    figure, (times, requests) = charts.panels(2)
    sizes = result.sizes()
    charts.claims(times, CLAIMED_S, "claimed for the predecessor")
    for mode, measure, label, color in (
        ("preload", "hydrated_s", "all items in memory", charts.ORANGE),
        ("copy", "total_s", "raw COPY of the table", charts.PURPLE),
        ("preload", "first_answer_s", "first answer, preload", charts.BLUE),
        ("lazy", "first_answer_s", "first answer, lazy", charts.GREEN),
    ):
        charts.runs(times, sizes, result.values(mode, measure), label, color)
    charts.by_items(times, "Start", "seconds from exec")

    charts.limit(requests, DELAY_TARGET_MS, f"target, {DELAY_TARGET_MS:g} ms")
    for measure, label, color in (
        ("preload_max_ms", "max, during the preload", charts.ORANGE),
        ("preload_p99_ms", "p99, during the preload", charts.PURPLE),
        ("idle_max_ms", "max, idle", charts.BLUE),
        ("idle_p99_ms", "p99, idle", charts.GREEN),
    ):
        charts.runs(requests, sizes, result.values("preload", measure), label, color)
    charts.by_items(requests, "Requests during the preload", "milliseconds")
    return figure


if __name__ == "__main__":
    main()
