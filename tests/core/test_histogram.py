"""A histogram counts each number once, in the bucket Prometheus expects it in."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.histogram import (
    BATCH_BOUNDS_ITEMS,
    BATCH_BOUNDS_S,
    LATENCY_BOUNDS_S,
    Histogram,
)

NUMBERS = st.floats(min_value=0, max_value=1e6)
BOUNDS = st.lists(NUMBERS, min_size=1, max_size=20, unique=True).map(sorted)


@given(BOUNDS, st.lists(NUMBERS, max_size=50))
def test_a_bucket_holds_all_that_are_at_most_its_bound(
    bounds: list[float], numbers: list[float]
) -> None:
    """Buckets are cumulative and include their bound; the last has all, whatever their size."""
    histogram = Histogram(bounds)
    for each in [*numbers, *bounds]:
        histogram.observe(each)

    seen = [*numbers, *bounds]
    expected = [sum(each <= bound for each in seen) for bound in [*bounds, math.inf]]
    assert expected == [count for _, count in histogram.buckets()]
    assert [*bounds, math.inf] == [float(name) for name, _ in histogram.buckets()]
    assert len(seen) == histogram.count
    assert math.isclose(sum(seen), histogram.sum)


def test_the_bounds_grow() -> None:
    """Those in use are in order, and reach as far as the limits they are made for."""
    for bounds in (LATENCY_BOUNDS_S, BATCH_BOUNDS_S, BATCH_BOUNDS_ITEMS):
        assert sorted(set(bounds)) == list(bounds)
    assert (50e-6, 10.0) == (LATENCY_BOUNDS_S[0], LATENCY_BOUNDS_S[-1])
