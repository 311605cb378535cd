"""Every request gets an id, is counted by route and status, and can be logged."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from structlog.typing import FilteringBoundLogger

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


@dataclass(slots=True)
class Served:
    """Requests of one route and status: how many, and how long they took in all (seconds)."""

    count: int = 0
    seconds: float = 0.0


class Traffic:
    """The requests answered since the start."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log.bind()
        self._is_told = self._log.is_enabled_for(logging.DEBUG)
        #: (route, status) → what was served. Bounded: routes and statuses are ours.
        self.served: dict[tuple[str, int], Served] = {}

    def note(
        self, method: str, path: str, route: str, started: float, request_id: str, status: int
    ) -> None:
        """One more is answered; ``started`` by time.perf_counter()."""
        elapsed = time.perf_counter() - started
        served = self.served.get((route, status))
        if served is None:
            served = self.served[route, status] = Served()
        served.count += 1
        served.seconds += elapsed
        if self._is_told:
            self._log.debug(
                "request",
                method=method,
                path=path,
                status=status,
                ms=round(elapsed * 1000, 3),
                request_id=request_id,
            )
