"""Rates: as they are written, as answers tell of them, and what they let through."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from throttled import MemoryStore, per_duration, utils
from throttled.rate_limiter.gcra import GCRARateLimiter

from itemstore.core.rate import Buckets, Rate, Verdict


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", Rate(100, 1, 100)),
        ("600/m burst 50", Rate(600, 60, 50)),
        (" 1 / H  BURST  2 ", Rate(1, 3_600, 2)),
        ("1000000/d", Rate(1_000_000, 86_400, 1_000_000)),
    ],
)
def test_a_rate_is_read(text: str, rate: Rate) -> None:
    """Spaces and capitals do not matter; without a burst, all may come at once."""
    assert rate == Rate.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "100", "0/s", "1/s burst 0", "-1/s", "1.5/s", "1/w", "1000001/s"),
        *("1/s burst 1000001", "1/s burst", "1/s 5", "١/s", "1/s\nburst 5x"),
    ],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="rate"):
        Rate.parse(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("100/s", '"read";q=100;w=1'),
        ("600/m burst 50", '"read";q=50;w=5'),
        ("3/s burst 10", '"read";q=10;w=4'),  # 3.3 s, and whole seconds are told
        ("1000/s burst 1", '"read";q=1;w=1'),
    ],
)
def test_the_policy_is_told(text: str, field: str) -> None:
    """The window is how long an empty bucket takes to fill, never told too short."""
    assert field == Rate.parse(text).policy("read")


def test_what_is_left_is_told_in_whole_seconds() -> None:
    """Rounded up: after them, it is surely full."""
    assert '"write";r=3;t=2' == Verdict("write", "", 3, 1.001, 0.0).left
    assert '"write";r=4;t=0' == Verdict("write", "", 4, 0.0, 0.0).left


# --- what passes

SECOND_NS: Final = 1_000_000_000
TICK_NS: Final = SECOND_NS // 64  # whole in floats, too, as throttled-py counts


class Model:
    """GCRA in exact numbers: one theoretical arrival time a caller (ITU-T I.371)."""

    def __init__(self, rate: Rate) -> None:
        self.interval, self.burst = Fraction(rate.period_s * SECOND_NS, rate.requests), rate.burst
        self.arrival: dict[str, Fraction] = {}

    def take(self, caller: str, now: int) -> tuple[int, Fraction, Fraction]:
        """Remaining, nanoseconds until it is full, and until the next one."""
        arrival = max(self.arrival.get(caller, Fraction(now)), Fraction(now)) + self.interval
        wait = arrival - now - self.burst * self.interval
        if wait > 0:
            return 0, arrival - self.interval - now, wait
        self.arrival[caller] = arrival
        return -wait // self.interval, arrival - now, Fraction(0)


CALLS: Final = st.lists(st.tuples(st.sampled_from("ab"), st.integers(-20, 200)), max_size=60)
#: Of whose intervals no nanosecond is lost.
EVEN: Final = ("1/s", "4/s burst 3", "8/s burst 1", "64/s burst 9", "30/m burst 5", "1/d")


@given(st.sampled_from(EVEN), CALLS)
def test_what_passes_is_what_gcra_lets_pass(text: str, calls: list[tuple[str, int]]) -> None:
    """Of two callers, to the last request and the last tick, also where the clock steps back."""
    rate, now = Rate.parse(text), 10**15
    buckets, model = Buckets("read", rate, 10), Model(rate)
    for caller, ticks in calls:
        now += ticks * TICK_NS
        verdict = buckets.take(caller, now)
        remaining, full_ns, wait_ns = model.take(caller, now)
        assert (remaining, float(full_ns / SECOND_NS), float(wait_ns / SECOND_NS)) == (
            *(verdict.remaining, verdict.reset_s, verdict.retry_after_s),
        )


@given(st.sampled_from(EVEN[:-1]), CALLS)
def test_what_passes_here_passes_in_redis(text: str, calls: list[tuple[str, int]]) -> None:
    """throttled-py, whose script counts there, says the same of the same requests."""
    rate, now = Rate.parse(text), 1_000 * SECOND_NS
    buckets = Buckets("read", rate, 10)
    quota = per_duration(timedelta(seconds=rate.period_s), rate.requests, rate.burst)
    theirs = GCRARateLimiter(quota, MemoryStore())
    with pytest.MonkeyPatch.context() as patch:
        for caller, ticks in calls:
            now += abs(ticks) * TICK_NS
            patch.setattr(utils, "now_mono_f", lambda at=now / SECOND_NS: at)
            state, verdict = theirs.limit(caller).state, buckets.take(caller, now)
            assert (state.remaining, state.reset_after, state.retry_after) == (
                *(verdict.remaining, verdict.reset_s, verdict.retry_after_s),
            )


@given(st.integers(1, 1_000_000), st.sampled_from("smhd"), st.integers(1, 50), st.integers(2, 30))
def test_no_more_pass_than_the_rate_allows(
    requests: int, unit: str, burst: int, parts: int
) -> None:
    """In any time a burst and what fills up meanwhile, and not one more."""
    rate = Rate.parse(f"{requests}/{unit} burst {burst}")
    buckets, step_ns = Buckets("read", rate, 1), max(1, rate.interval_ns // parts)
    passed, tries = 0, (burst + 20) * parts
    for number in range(tries):
        passed += not buckets.take("a", number * step_ns).retry_after_s
    assert burst <= passed <= burst + (tries - 1) * step_ns // rate.interval_ns


def test_who_has_waited_as_told_is_answered() -> None:
    """And not a nanosecond before."""
    buckets = Buckets("read", Rate.parse("7/m burst 2"), 10)
    assert [0, 0] == [buckets.take("a", 5).retry_after_s for _ in range(2)]
    wait_ns = round(buckets.take("a", 5).retry_after_s * SECOND_NS)
    assert buckets.take("a", 5 + wait_ns - 1).retry_after_s > 0
    assert buckets.take("a", 5 + wait_ns).retry_after_s == 0


def test_whoever_is_silent_for_longest_is_forgotten() -> None:
    """Not who asks on, though it is refused each time."""
    buckets = Buckets("read", Rate.parse("1/d"), 3)
    buckets.take("busy", 0)
    for number in range(1_000):
        buckets.take(f"{number}", number)
        assert buckets.take("busy", number).retry_after_s > 0
    assert 3 == len(buckets)
    assert buckets.take("998", 1_000).retry_after_s > 0
    assert buckets.take("0", 1_000).retry_after_s == 0
