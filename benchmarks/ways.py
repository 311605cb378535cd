"""Several ways to do one thing, measured in turn: what each costs, and how long it holds the loop.

A turn is what the event loop does between two looks for news: while it lasts, no request is
answered. It is told in milliseconds of the thread's own CPU time, which other processes of the
machine do not lengthen.
"""

from __future__ import annotations

import asyncio
import selectors
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.figure import Figure

from benchmarks import charts
from benchmarks.report import Result

_BARS_PER_IN: Final = 3.0


class _Turns(selectors.DefaultSelector):
    """Notes the longest time between two calls."""

    longest_s = 0.0
    _began_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._began_s:
            self.longest_s = max(self.longest_s, time.thread_time() - self._began_s)
        ready = super().select(timeout)
        self._began_s = time.thread_time()
        return ready


@dataclass(frozen=True, slots=True)
class Cost:
    total_s: float
    cpu_s: float  #: of this process
    turn_ms: float  #: the longest


def cost(job: Callable[[], Coroutine[Any, Any, object]]) -> Cost:
    """Of the job, done once on an event loop of its own."""
    turns = _Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
        started, cpu = time.perf_counter(), time.process_time()
        runner.run(job())
        total_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return Cost(total_s, cpu_s, turns.longest_s * 1_000)


def bars(result: Result, ways: Sequence[str], measure: str, title: str) -> Figure:
    """A bar for the median of each way, the first way on top."""
    figure, (axes,) = charts.panels(1)
    figure.set_size_inches(7.0, 1.2 + len(ways) / _BARS_PER_IN)
    [items] = result.sizes()
    medians = [statistics.median(result.of(items, way)[measure]) for way in ways]
    axes.barh(ways, medians, color=charts.BLUE)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    return figure
