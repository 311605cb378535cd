"""A histogram: how often a number fell between bounds that are set beforehand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

#: Of a request: an item out of memory takes 50 µs, a list may take 10 s (QUERY_TIMEOUT).
LATENCY_BOUNDS_S: Final = (
    *(50e-6, 100e-6, 250e-6, 500e-6),
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
#: Of a batch: a commit takes 1 ms at the least, and is given up after 30 s.
BATCH_BOUNDS_S: Final = (*LATENCY_BOUNDS_S[4:], 30.0)
#: Of a batch, in items: up to the largest BATCH_MAX_ITEMS.
BATCH_BOUNDS_ITEMS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Histogram:
    """Counts in place: a search among the bounds and two additions, nothing is allocated."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        #: Of each bound, how many were at most as large and larger than the bound before; the last
        #: is of those larger than all bounds.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def buckets(self) -> Iterator[tuple[str, int]]:
        """(bound, how many were at most as large), as Prometheus writes it; the last is +Inf.

        https://prometheus.io/docs/concepts/metric_types/#histogram
        """
        names = (*(repr(float(bound)) for bound in self.bounds), "+Inf")
        return zip(names, accumulate(self.counts), strict=True)
