"""What itemstore is to reach beside its peers, and what it reached in a run."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks import footprint, throughput, writes
from benchmarks.kinds import COMMIT, EVERYSEC, MEMORY
from benchmarks.report import Result, Table, ratios, spread
from benchmarks.throughput import SHOWN

#: Run by run; None if a part of it was not measured.
Measured = Callable[[Result], list[float] | None]


@dataclass(frozen=True, slots=True)
class Target:
    """One promise about a ratio or a time."""

    title: str  #: ``{items}`` is for the size of the large store
    bound: float
    measured: Measured
    goal: float | None = None  #: what would be better still
    unit: str = "×"
    is_most: bool = False  #: whether the bound is the most it may be, not the least

    def row(self, result: Result) -> tuple[str, ...] | None:
        found = self.measured(result)
        if found is None:
            return None
        return (
            self.title.format(items=footprint.items(result)),
            self._bound(self.bound),
            "" if self.goal is None else self._bound(self.goal),
            f"{spread(found)} {self.unit}",
            self._verdict(statistics.median(found)),
        )

    def _bound(self, value: float) -> str:
        return f"{'≤' if self.is_most else '≥'} {value:g} {self.unit}"

    def _verdict(self, value: float) -> str:
        is_within = operator.le if self.is_most else operator.ge
        if not is_within(value, self.bound):
            return "no"
        return "goal" if self.goal is not None and is_within(value, self.goal) else "yes"


def _throughput(work: str, ours: str, theirs: str, measure: str = "per_s") -> Measured:
    def measured(result: Result) -> list[float] | None:
        found = result.only(throughput.mode(work, ours, SHOWN))
        other = result.only(throughput.mode(work, theirs, SHOWN))
        return ratios(found[measure], other["per_s"]) if found and other else None

    return measured


def _ratio(mode: str, measure: str, other: str, by: str) -> Measured:
    """What was measured but once stands for each run."""

    def measured(result: Result) -> list[float] | None:
        found, others = result.only(mode), result.only(other)
        if not found or not others:
            return None
        values, divisors = found[measure], others[by]
        return ratios(values, divisors * len(values) if len(divisors) == 1 else divisors)

    return measured


def _reads_p99_ms(result: Result) -> list[float] | None:
    found = result.only(writes.READS)
    return [each / 1_000 for each in found["p99_us"]] if found else None


TARGETS: Final = (
    Target("GET / Redis GET", 0.9, _throughput("get", MEMORY, EVERYSEC), 1.2),
    Target("GET / Webdis", 1.5, _throughput("get", MEMORY, "webdis")),
    Target("GET / plain aiohttp", 4, _throughput("get", MEMORY, "aiohttp")),
    Target(
        "PUT at memory / Redis SET, AOF everysec",
        0.35,
        _throughput("put", MEMORY, EVERYSEC),
        0.6,
    ),
    Target(
        "the same until every row is committed",
        0.35,
        _throughput("put", MEMORY, EVERYSEC, "settled_per_s"),
        0.6,
    ),
    Target(
        "PUT at commit / FastAPI + asyncpg",
        8,
        _throughput("put", COMMIT, "fastapi"),
        15,
    ),
    Target(
        "persisted rows a second / single-row commits",
        6,
        _ratio(writes.FULL, "committed_per_s", writes.SINGLE, "per_s"),
    ),
    Target(
        "{items:,} items in memory, from exec / raw COPY",
        3,
        _ratio(footprint.ITEMSTORE, "hydrated_s", footprint.COPY, "total_s"),
        1.5,
        is_most=True,
    ),
    Target(
        "{items:,} items compressed, memory of the process / Redis' used_memory",
        0.8,
        _ratio(footprint.COMPRESSED, "resident_bytes", footprint.REDIS, "used_bytes"),
        0.6,
        is_most=True,
    ),
    Target(
        "the same, not compressed",
        0.8,
        _ratio(footprint.ITEMSTORE, "resident_bytes", footprint.REDIS, "used_bytes"),
        0.6,
        is_most=True,
    ),
    Target(
        "p99 of GET at half of the peak, beside 2,000 persisted writes a second",
        3,
        _reads_p99_ms,
        unit="ms",
        is_most=True,
    ),
)


def tables(result: Result) -> Iterator[Table]:
    """One row a target that was measured."""
    rows = [row for target in TARGETS if (row := target.row(result)) is not None]
    if rows:
        columns = (f"{SHOWN} connections", "target", "goal", "measured", "reached")
        yield Table("Targets", columns, rows)
