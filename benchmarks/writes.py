"""How fast itemstore's writes are persisted, and what that does to its reads."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg
from matplotlib.figure import Figure

from benchmarks import charts, latency, openloop, wrk
from benchmarks.comparison import Comparison, Sample, sampled, settle
from benchmarks.data import load
from benchmarks.kinds import MEMORY
from benchmarks.openloop import Latencies
from benchmarks.report import Result, Table, Values, number, ratios, spread
from benchmarks.servers import database
from benchmarks.systems import System
from benchmarks.throughput import SHOWN, peak

#: As many as 32 connections give; and at a fixed rate, beside reads.
FULL, PACED, SINGLE = "writes full", "writes paced", "writes single"
READS, ALONE = "writes beside reads", "reads alone"

PACED_RATE: Final = 2_000.0
FULL_TIMES: Final = 8.0  # measurements long: the queue is to fill up and come to rest
PACED_TIMES: Final = 5.0

_STATEMENT: Final = b"""
INSERT INTO items (id, data, version, created_at, updated_at)
VALUES (%s, %s, %s, now(), now())
ON CONFLICT (id) DO UPDATE
SET data = excluded.data, version = excluded.version, updated_at = excluded.updated_at
"""


def measure(run: Comparison) -> None:
    """Round after round: writes at full speed, paced ones beside reads, single rows."""
    system = run.systems[MEMORY]
    rate = latency.LOAD * peak(run, system, "get")
    task = run.bar.add_task("writes", total=3 * run.rounds)
    with database(run.server_dsn) as dsn:
        load(dsn, run.workload.items, items=run.workload.rows)
        for number_ in range(run.rounds):
            keeps = number_ == 0  # the curve of one round is enough
            _full(run, system, keeps=keeps)
            run.bar.advance(task)
            _paced(run, system, rate, keeps=keeps)
            run.bar.advance(task)
            run.add(SINGLE, per_s=_single_rows(run, dsn))
            run.bar.advance(task)


def _full(run: Comparison, system: System, *, keeps: bool) -> None:
    """What is committed in the second half, when the queue has come to rest."""
    requests = run.requests(system, "put")

    def write() -> wrk.Run:
        return wrk.run(
            system.server.port,
            requests,
            connections=SHOWN,
            seconds=FULL_TIMES * run.seconds,
            start=run.chance.randrange(run.workload.items),
            refused=False,
        )

    _, samples = sampled(system.server, write)
    later = samples[len(samples) // 2 :]
    run.add(
        FULL,
        committed_per_s=_per_s(later, "writes_committed_total"),
        accepted_per_s=_per_s(later, "writes_accepted_total"),
        coalesced_per_s=_per_s(later, "writes_coalesced_total"),
        growth_per_s=_per_s(later, "dirty_items"),
        oldest_age_s=max(each["oldest_dirty_age_seconds"] for each in later),
    )
    settle(system.server)
    if keeps:
        _keep(run, FULL, samples)


def _per_s(samples: Sequence[Sample], name: str) -> float:
    first, last = samples[0], samples[-1]
    return (last[name] - first[name]) / (last.at_s - first.at_s or 1.0)


def _keep(run: Comparison, mode: str, samples: Sequence[Sample]) -> None:
    for each in samples:
        run.add(
            f"{mode} over time",
            at_s=each.at_s,
            dirty_items=each["dirty_items"],
            oldest_age_s=each["oldest_dirty_age_seconds"],
        )


def _paced(run: Comparison, system: System, rate: float, *, keeps: bool) -> None:
    """Reads at half of their peak, without writes and beside 2,000 a second."""
    seconds = PACED_TIMES * run.seconds
    rate = min(rate, latency.RATE_MAX)
    alone = _at_rate(run, system, "get", rate, seconds)

    def both() -> Latencies:
        with ThreadPoolExecutor(1) as executor:
            writing = executor.submit(_at_rate, run, system, "put", PACED_RATE, seconds)
            found = _at_rate(run, system, "get", rate, seconds)
            writing.result()
        return found

    beside, samples = sampled(system.server, both)
    quarter = len(samples) // 4  # at the ends the generators start and stop
    within = samples[quarter : len(samples) - quarter]
    run.add(
        PACED,
        committed_per_s=_per_s(within, "writes_committed_total"),
        growth_per_s=_per_s(within, "dirty_items"),
        oldest_age_s=max(each["oldest_dirty_age_seconds"] for each in within),
    )
    run.add(READS, rate=rate, **latency.values(beside))
    run.add(ALONE, rate=rate, **latency.values(alone))
    settle(system.server)
    if keeps:
        _keep(run, PACED, samples)


def _at_rate(run: Comparison, system: System, work: str, rate: float, seconds: float) -> Latencies:
    return openloop.run(
        system.server.port,
        run.requests(system, work),
        rate=rate,
        seconds=seconds,
        good="HTTP/1.1 200",
    )


def _single_rows(run: Comparison, dsn: str) -> float:
    """Rows a second of one connection that commits each row, into the same table."""
    chance = random.Random(0)
    with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        elapsed, done = 0.0, 0
        while elapsed < run.seconds:
            row = chance.choice(run.workload.rows)
            data = chance.choice(run.workload.bodies).decode()
            cursor.execute(_STATEMENT, (row.id, data, time.time_ns() // 1_000), prepare=True)
            done += 1
            elapsed = time.perf_counter() - started
    return done / elapsed


def tables(result: Result) -> Iterator[Table]:
    """Rows a second, and what reads wait beside writes."""
    if result.only(SINGLE) is not None:
        yield _persisted(result)
        yield _beside(result)


def _persisted(result: Result) -> Table:
    full, paced, single = (_of(result, mode) for mode in (FULL, PACED, SINGLE))
    ratio = spread(ratios(full["committed_per_s"], single["per_s"]))
    rows = [
        (f"PUT at memory, {SHOWN} connections", *_persisting(full), ratio),
        (f"PUT at memory, {PACED_RATE:,.0f} a second", *_persisting(paced), ""),
        ("one connection, a commit a row", spread(single["per_s"]), "", "", ""),
    ]
    columns = ("rows a second", "persisted", "queue grows by", "oldest dirty, ms", "/ single rows")
    return Table("Persisted writes", columns, rows)


def _persisting(found: Values) -> tuple[str, str, str]:
    measures = spread(found["committed_per_s"]), spread(found["growth_per_s"])
    return *measures, spread(found["oldest_age_s"], 0.001)


def _beside(result: Result) -> Table:
    rows = []
    for title, mode in (("no writes", ALONE), (f"{PACED_RATE:,.0f} writes a second", READS)):
        found = _of(result, mode)
        shown = (spread(found[f"p{each}_us"], 1_000) for each in ("50", "99", "99.9", "100"))
        rows.append((title, number(statistics.median(found["rate"])), *shown))
    columns = ("milliseconds", "GETs a second", "p50", "p99", "p99.9", "max")
    return Table("GET at half of the peak, beside writes", columns, rows)


def _of(result: Result, mode: str) -> Values:
    """All of this part is measured, or nothing."""
    found = result.only(mode)
    assert found is not None, mode
    return found


def plot(result: Result) -> Figure:
    """What a crash could lose, and how long the queue is, over time."""
    figure, (age, queue) = charts.panels(2)
    for mode, label, color in (
        (FULL, f"{SHOWN} connections, full speed", charts.ORANGE),
        (PACED, f"{PACED_RATE:,.0f} a second, beside reads", charts.BLUE),
    ):
        found = _of(result, f"{mode} over time")
        ages_ms = [each * 1_000 for each in found["oldest_age_s"]]
        age.plot(found["at_s"], ages_ms, label=label, color=color, lw=1.4)
        queue.plot(found["at_s"], found["dirty_items"], label=label, color=color, lw=1.4)
    charts.by_time(age, "Age of the oldest dirty item", "milliseconds")
    charts.by_time(queue, "Dirty items", "items")
    return figure
