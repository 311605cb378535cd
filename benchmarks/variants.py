"""What single settings of the server are worth: the fast lane, the event loop, compression, logs.

    python -m benchmarks.variants [--quick] [--items 100000] [--runs 5]

Each variant is a server of its own over the same table, one after the other in each round. wrk asks
it over 32 connections for random items, then replaces random items at ``memory``.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from benchmarks import command, wrk
from benchmarks.apis import ItemsApi
from benchmarks.comparison import settle
from benchmarks.data import load
from benchmarks.report import Result, Table, Values, environment, ratios, spread
from benchmarks.requests_file import pack
from benchmarks.servers import database, itemstore, postgres
from benchmarks.ways import bars
from benchmarks.workload import Workload

VARIANTS: Final[dict[str, dict[str, str]]] = {
    "as it is": {},
    "no fast lane": {"FAST_LANE": "false"},
    "asyncio's loop": {"EVENT_LOOP": "asyncio"},
    "neither": {"FAST_LANE": "false", "EVENT_LOOP": "asyncio"},
    "compressed": {"CACHE_COMPRESSION": "zstd"},
    "a log line a request": {"LOG_LEVEL": "debug"},
}
WORKS: Final = ("get", "put")
ITEMS: Final = 100_000
CONNECTIONS: Final = 32
SECONDS: Final = 3.0
QUICK_SECONDS: Final = 0.2


def main() -> None:
    given = command.parse_size(__doc__, ITEMS)
    workload, runs = Workload(given.items), given.runs
    seconds = QUICK_SECONDS if given.quick else SECONDS
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("variants", environment(server_dsn))
        task = bar.add_task("measuring", total=runs * len(VARIANTS))
        with database(server_dsn) as dsn, tempfile.TemporaryDirectory() as directory:
            load(dsn, workload.items, items=workload.rows)
            with itemstore(dsn) as first:  # takes over what others have written
                first.wait_until_hydrated()
            for _, name in itertools.product(range(runs), VARIANTS):
                values = _measured(VARIANTS[name], dsn, workload, Path(directory), seconds)
                result.add(workload.items, name, **values)
                bar.advance(task)
    command.finish(result, tables(result), plot, given)


def _measured(
    settings: dict[str, str], dsn: str, workload: Workload, directory: Path, seconds: float
) -> dict[str, float]:
    values = {}
    with itemstore(dsn, **({"SKIP_ITEMS_PRELOAD": "false"} | settings)) as server:
        server.wait_until_hydrated()
        for work in WORKS:
            requests = directory / work
            if not requests.exists():
                requests.write_bytes(pack(workload.requests(work, ItemsApi("memory"), server.port)))
            found = wrk.run(
                server.port,
                requests,
                connections=CONNECTIONS,
                seconds=seconds,
                start=0,
                refused=False,
            )
            values[f"{work}_per_s"] = found.per_s
            settle(server)
    return values


def tables(result: Result) -> list[Table]:
    [items] = result.sizes()
    base = result.of(items, next(iter(VARIANTS)))
    rows = [
        (name, *(_times(result.of(items, name), base, work) for work in WORKS)) for name in VARIANTS
    ]
    title = f"{items:,} items, {CONNECTIONS} connections; as multiples of the first"
    return [Table(title, ("server", "GET", "PUT at memory"), rows)]


def _times(values: Values, base: Values, work: str) -> str:
    return spread(ratios(values[f"{work}_per_s"], base[f"{work}_per_s"]))


def plot(result: Result) -> Figure:
    """GETs a second of each variant."""
    return bars(result, list(VARIANTS), "get_per_s", "GETs a second")


if __name__ == "__main__":
    main()
