"""Every request gets an id, is counted by route and status, is timed, and can be logged."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore.core.histogram import LATENCY_BOUNDS_S, Histogram

SERVER: Final = "itemstore"  # as every response calls it
REQUEST_ID: Final = "X-Request-Id"
RAILWAY_REQUEST_ID: Final = "X-Railway-Request-Id"

_SAFE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
_OWN_REQUEST_ID: Final = secrets.token_hex(4)
_numbers: Final = itertools.count(1)


def request_id(given: str | None, railway: str | None) -> str:
    """The caller's or the proxy's id for this request, if it is harmless; else one of ours."""
    wanted = given or railway
    if wanted is not None and _SAFE_REQUEST_ID.fullmatch(wanted):
        return wanted
    return f"{_OWN_REQUEST_ID}-{next(_numbers)}"


class Kind(StrEnum):
    """The class of a route: what its requests are about."""

    READ = "read"  #: reading one item
    WRITE = "write"  #: changing one
    HEAVY = "heavy"  #: many
    SYSTEM = "system"  #: none


UNMATCHED: Final = "unmatched"  # the route of what leads nowhere
MALFORMED: Final = "malformed"  # and of what is not HTTP


@dataclass(slots=True)
class Served:
    """Requests of one route and status: how many, and how long they took in all (seconds)."""

    latency: Histogram  #: of all routes of its kind
    count: int = 0
    seconds: float = 0.0


class Traffic:
    """The requests answered since the start, and the connections they come by.

    ``kinds`` are those of the routes, by ``"GET /items"``; what is not among them is of no item.
    """

    def __init__(self, log: FilteringBoundLogger, kinds: Mapping[str, Kind] | None = None) -> None:
        self._log = log.bind()
        self._is_told = self._log.is_enabled_for(logging.DEBUG)
        self._kinds = kinds or {}
        #: (route, status) → what was served. Bounded: routes and statuses are ours.
        self.served: dict[tuple[str, int], Served] = {}
        #: How long answers took, in seconds.
        self.latency: dict[Kind, Histogram] = {kind: Histogram(LATENCY_BOUNDS_S) for kind in Kind}
        #: Errors answered, by code. Bounded: codes are ours.
        self.errors: Counter[str] = Counter()

    def note(
        self,
        method: str,
        path: str,
        route: str,
        started: float,
        request_id: str,
        status: int,
        *,
        is_stream: bool = False,
    ) -> None:
        """One more is answered; ``started`` by time.perf_counter().

        How long a stream took is its client's doing: it is not held against its kind.
        """
        elapsed = time.perf_counter() - started
        served = self.served.get((route, status))
        if served is None:
            kind = self._kinds.get(route.replace("HEAD ", "GET ", 1), Kind.SYSTEM)
            served = self.served[route, status] = Served(self.latency[kind])
        served.count += 1
        served.seconds += elapsed
        if not is_stream:
            served.latency.observe(elapsed)
        if self._is_told:
            self._log.debug(
                "request",
                method=method,
                path=path,
                status=status,
                ms=round(elapsed * 1000, 3),
                request_id=request_id,
            )

    def malformed(self, reason: str, code: str) -> None:
        """Bytes that are not HTTP were answered with 400: nobody knows when they began."""
        served = self.served.setdefault((MALFORMED, 400), Served(self.latency[Kind.SYSTEM]))
        served.count += 1
        self.errors[code] += 1
        self._log.debug("malformed", reason=reason)
