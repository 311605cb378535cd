"""Counts requests in plain numbers, by route and status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Served:
    """Requests of one route and status: how many, and how long they took in all (seconds)."""

    count: int = 0
    seconds: float = 0.0


class Traffic:
    """The requests answered since the start."""

    def __init__(self) -> None:
        #: (route, status) → what was served. Bounded: routes and statuses are ours.
        self.served: dict[tuple[str, int], Served] = {}

    def note(self, route: str, status: int, seconds: float) -> None:
        served = self.served.get((route, status))
        if served is None:
            served = self.served[route, status] = Served()
        served.count += 1
        served.seconds += seconds
