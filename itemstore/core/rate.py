"""Rates: how many requests a caller may send, and what an answer says of it.

A rate is a bucket that holds ``burst`` requests and fills evenly. GCRA, the generic cell rate
algorithm (ITU-T I.371, annex A), keeps it as one time a caller: when the bucket will be full.

    now            full at
     |-- taken -------|              a request moves ``full at`` on by one interval
     |------------ burst * interval ------------|      and never beyond this

What is told (draft-ietf-httpapi-ratelimit-headers-11): RateLimit-Policy is the rate itself, a full
bucket and how long an empty one takes to fill; RateLimit is what is left, and when it is full.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Final, NamedTuple

REQUESTS_MAX: Final = 1_000_000  # of a rate and a burst
_PERIODS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_RATE: Final = re.compile(r"([0-9]{1,7})\s*/\s*([smhd])(?:\s+burst\s+([0-9]{1,7}))?")


class Rate(NamedTuple):
    """So many requests in so many seconds, of which ``burst`` may come at once."""

    requests: int
    period_s: int
    burst: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """From ``100/s``, or ``600/m burst 50``; without a burst, all may come at once.

        Raises ValueError.
        """
        match = _RATE.fullmatch(text.strip().lower())
        if match is None:
            raise ValueError("a rate is 100/s, 600/m, 1000/h or 1000/d, and may end in: burst 50")
        requests, burst = int(match[1]), int(match[3] or match[1])
        if not (1 <= requests <= REQUESTS_MAX and 1 <= burst <= REQUESTS_MAX):
            raise ValueError(f"a rate and its burst are from 1 to {REQUESTS_MAX}")
        return cls(requests, _PERIODS_S[match[2]], burst)

    @property
    def interval_ns(self) -> int:
        """After which there is one more: GCRA's emission interval, a nanosecond short at most."""
        return self.period_s * 1_000_000_000 // self.requests

    def policy(self, name: str) -> str:
        """The field RateLimit-Policy; its window is in whole seconds, rounded up."""
        return f'"{name}";q={self.burst};w={-(-self.burst * self.period_s // self.requests)}'


class Verdict(NamedTuple):
    """What is said of one request; ``retry_after_s`` is 0 if it may be answered."""

    name: str  #: of the policy
    policy: str  #: the field RateLimit-Policy
    remaining: int  #: requests
    reset_s: float  #: until the bucket is full
    retry_after_s: float

    @property
    def left(self) -> str:
        """The field RateLimit."""
        return f'"{self.name}";r={self.remaining};t={math.ceil(self.reset_s)}'


class Buckets:
    """Those of all callers, under one rate; of so many ``callers_max`` at most.

    Beyond them whoever has not asked for longest is forgotten: its bucket is full again.
    """

    __slots__ = ("_burst_ns", "_callers_max", "_full_at", "_interval_ns", "_name", "_policy")

    def __init__(self, name: str, rate: Rate, callers_max: int) -> None:
        self._name = name
        self._policy = rate.policy(name)
        self._interval_ns = rate.interval_ns
        self._burst_ns = rate.burst * rate.interval_ns
        self._callers_max = callers_max
        self._full_at: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str, now_ns: int) -> Verdict:
        """One request more; a refused one takes nothing from the bucket."""
        full_at = self._full_at.get(caller)
        if full_at is None:
            full_at = now_ns
            if len(self._full_at) >= self._callers_max:
                self._full_at.popitem(last=False)
        elif full_at < now_ns:
            full_at = now_ns
        room_ns = now_ns + self._burst_ns - self._interval_ns - full_at
        if room_ns >= 0:
            full_at += self._interval_ns
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        return Verdict(
            self._name,
            self._policy,
            max(0, room_ns // self._interval_ns),
            (full_at - now_ns) / 1e9,
            max(0, -room_ns) / 1e9,
        )
