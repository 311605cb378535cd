"""Pauses of the server above 10 ms while 5,000 requests a second run, and what went on meanwhile.

A pause is seen from outside: requests that waited longer than 10 ms, those that waited for the same
counted as one. The kernel tells how long the server's thread waited for a core, which is no fault
of the server's; what is left of a pause beyond that is.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from benchmarks import openloop
from benchmarks.client import Client
from benchmarks.comparison import Comparison, settle
from benchmarks.data import Dataset
from benchmarks.kinds import MEMORY
from benchmarks.openloop import PAUSE_MS, core_wait_ms
from benchmarks.report import Result, Table, spread
from benchmarks.requests_file import pack
from benchmarks.servers import Server, itemstore

RATE: Final = 5_000.0
TIMES: Final = 3.0  # measurements long
BATCH_ITEMS: Final = 1_000
HOT_ITEMS: Final = 200  # that are read: they are cached before the preload has brought them
GOOD: Final = "HTTP/1.1 200"

#: Does something once over a connection; the number says the how-manieth time it is.
Step = Callable[[Client, int], object]


class Scenario(NamedTuple):
    """What goes on beside the requests: steps on one connection."""

    title: str
    step: Step | None = None
    pause_s: float = 0.0  #: from the end of one to the beginning of the next


PRELOAD, LOG, CONTROL = "preload", "log", "control"


def scenarios(bodies: Sequence[bytes]) -> dict[str, Scenario]:
    """By name, in the order in which they are measured."""

    def lists(client: Client, _: int) -> None:
        client.get("/items?limit=1000")

    def batches(client: Client, number: int) -> None:
        client.post("/items:batch", _batch(bodies, number), Durability="memory")

    def writes(client: Client, number: int) -> None:
        data = b'{"data":%b}' % bodies[number % len(bodies)]
        client.post("/items", data, Durability="memory")

    def scrapes(client: Client, _: int) -> None:
        client.get("/metrics")

    return {
        CONTROL: Scenario("nothing, and no itemstore: uvloop + httptools"),
        PRELOAD: Scenario("the preload"),
        "nothing": Scenario("nothing"),
        "lists": Scenario("lists of 1,000 items, one after the other", lists),
        "batches": Scenario(f"batches of {BATCH_ITEMS:,} creates, 0.2 s apart", batches, 0.2),
        "writes": Scenario("creates, 1 ms apart", writes, 0.001),
        "scrapes": Scenario("/metrics, 0.1 s apart", scrapes, 0.1),
        LOG: Scenario("a line in the log for each request"),
    }


def _batch(bodies: Sequence[bytes], number: int) -> bytes:
    first = number * BATCH_ITEMS
    some = (bodies[place % len(bodies)] for place in range(first, first + BATCH_ITEMS))
    operations = [{"op": "create", "data": orjson.Fragment(body)} for body in some]
    return orjson.dumps({"operations": operations})


def measure(run: Comparison, dataset: Dataset) -> None:
    """Each scenario, over a server that holds many items."""
    found = scenarios(run.workload.bodies)
    task = run.bar.add_task("stalls", total=len(found))
    api = run.systems[MEMORY].api
    hot = run.directory / "hot"
    hot.write_bytes(pack(api.get(row.id) for row in dataset.sample[:HOT_ITEMS]))

    def watch(name: str, server: Server, requests: Path = hot) -> None:
        _watch(run, name, found[name], server, requests)
        run.bar.advance(task)

    bare = run.systems.get("bare")
    if bare is not None:
        watch(CONTROL, bare.server, run.requests(bare, "get"))
    with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="false") as server:
        server.wait_for("/readyz")
        watch(PRELOAD, server)
        server.wait_until_hydrated()
        for name in (each for each in found if each not in (CONTROL, PRELOAD, LOG)):
            watch(name, server)
            settle(server)
    with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="false", LOG_LEVEL="info") as server:
        server.wait_until_hydrated()
        watch(LOG, server)


def _watch(run: Comparison, name: str, scenario: Scenario, server: Server, requests: Path) -> None:
    seconds = TIMES * run.seconds
    with _beside(server, scenario):
        waited_ms = core_wait_ms(server.pid)
        found = openloop.run(server.port, requests, rate=RATE, seconds=seconds, good=GOOD)
        waited_ms = core_wait_ms(server.pid) - waited_ms
    run.add(
        f"stalls {name}",
        seconds=seconds,
        p99_us=found.percentiles_us["99"],
        max_us=found.percentiles_us["100"],
        core_wait_ms=waited_ms,
        generator_core_wait_ms=found.core_wait_ms,
        lost=found.lost,
        pauses=len(found.pauses),
        longest_ms=max((each.ms for each in found.pauses), default=0.0),
    )
    for pause in found.pauses:
        run.add(f"stalls {name} pauses", at_s=pause.at_s, ms=pause.ms)


@contextmanager
def _beside(server: Server, scenario: Scenario) -> Iterator[None]:
    """Takes the steps on a thread of its own until the measurement is over."""
    if scenario.step is None:
        yield
        return
    over = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        stepping = executor.submit(_steps, server, scenario.step, scenario.pause_s, over)
        try:
            yield
        finally:
            over.set()
        stepping.result()


def _steps(server: Server, step: Step, pause_s: float, over: threading.Event) -> None:
    with server.connect() as client:
        for number in itertools.count():
            step(client, number)
            if over.wait(pause_s):
                return


def tables(result: Result) -> Iterator[Table]:
    """One row a scenario."""
    rows = []
    for name, scenario in scenarios(()).items():
        found = result.only(f"stalls {name}")
        if found is not None:
            rows.append(
                (
                    scenario.title,
                    f"{found['pauses'][0]:.0f}",
                    spread(found["longest_ms"]),
                    spread(found["p99_us"], 1_000),
                    spread(found["max_us"], 1_000),
                    spread(found["core_wait_ms"]),
                )
            )
    if rows:
        columns = (
            f"beside {RATE:,.0f} GETs a second",
            f"pauses above {PAUSE_MS:g} ms",
            "longest, ms",
            "p99, ms",
            "max, ms",
            "server waited for a core, ms",
        )
        yield Table("Stalls", columns, rows)
