"""What the parts of ``benchmarks.peers`` share: the running systems, the work, the result."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from rich.progress import Progress

from benchmarks.client import Client
from benchmarks.kinds import KINDS
from benchmarks.report import Result
from benchmarks.requests_file import pack, unpack
from benchmarks.servers import Server
from benchmarks.systems import System
from benchmarks.workload import Workload

#: How each work is answered.
STATUS: Final = {"get": 200, "miss": 404, "304": 304, "put": 200, "post": 201, "mixed": 200}

SETTLE_MAX_S: Final = 120.0  # a flush is answered with 503 after a while; then it is asked again
SAMPLE_INTERVAL_S: Final = 0.05

T = TypeVar("T")


class WrongStatus(Exception):
    """A system did not do the work it is measured at."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run of the benchmark."""

    systems: dict[str, System]
    workload: Workload
    server_dsn: str  #: of PostgreSQL
    directory: Path
    result: Result
    bar: Progress
    rounds: int
    seconds: float  #: that one measurement takes
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def add(self, mode: str, **values: float) -> None:
        """One more run of a configuration."""
        self.result.add(self.workload.items, mode, **values)

    def requests(self, system: System, work: str) -> Path:
        """The file with the requests; made anew only where it holds ETags."""
        file = self.directory / f"{system.name}-{work}"
        if work == "304" or not file.exists():
            made = self.workload.requests(work, system.api, system.server.port)
            file.write_bytes(pack(made))
        return file


def check(system: System, work: str, requests: Path) -> None:
    """Raises WrongStatus if the first request is not answered as the work should be."""
    first = unpack(requests.read_bytes())[0]
    answers = []
    for _ in range(3 if KINDS[system.name].strays else 1):
        with Client(system.server.port) as client:
            answers.append(client.ask(first)[1])
    if STATUS[work] not in {each.status for each in answers}:
        raise WrongStatus(f"{system.name}, {work}: {first!r} was answered with {answers}")


def settle(server: Server) -> float:
    """Lets itemstore commit what it accepted, or it would do so beside the next one's work.

    Returns the seconds it took.
    """
    started = time.perf_counter()
    with Client(server.port) as client:
        while (answer := client.post("/flush", b"")).status != 204:
            if time.perf_counter() - started > SETTLE_MAX_S:
                raise WrongStatus(f"POST /flush was answered with {answer}")
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers of itemstore at a moment."""

    at_s: float
    stats: dict[str, Any]

    def __getitem__(self, name: str) -> float:
        """A metric by its name without the prefix; 0 if it is absent."""
        return float(self.stats.get(f"itemstore_{name}") or 0)


def sampled(server: Server, work: Callable[[], T]) -> tuple[T, list[Sample]]:
    """Does the work, and asks itemstore for its numbers meanwhile."""
    samples = []
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as executor, server.connect() as client:
        doing = executor.submit(work)
        while not doing.done():
            asked_s = time.perf_counter() - started
            samples.append(Sample(asked_s, orjson.loads(client.get("/stats").body)))
            time.sleep(SAMPLE_INTERVAL_S)
    return doing.result(), samples
