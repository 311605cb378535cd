"""A large store: how long it takes to fill, and what it takes in memory, beside Redis."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.client import item_path
from benchmarks.comparison import Comparison
from benchmarks.data import Dataset, check, rows
from benchmarks.kinds import EVERYSEC
from benchmarks.memory import SETTLE_S, memory_of
from benchmarks.report import MB, Result, Table, spread
from benchmarks.servers import Server, itemstore
from benchmarks.startup import copy_out
from benchmarks.systems import fill, redis

COPY, ITEMSTORE, REDIS = "footprint copy", "footprint itemstore", "footprint redis"
COMPRESSED: Final = "footprint itemstore zstd"

_READ: Final = 200  # items, to be sure that they are there


def measure(run: Comparison, dataset: Dataset) -> None:
    """Round after round; Redis at last and once, as it takes the same each time."""
    task = run.bar.add_task("start and memory", total=run.rounds + 1)
    for _ in range(run.rounds):
        run.result.add(dataset.items, COPY, total_s=copy_out(dataset.dsn))
        with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="false") as server:
            run.result.add(dataset.items, ITEMSTORE, **preloaded(server, dataset))
        settings = {"SKIP_ITEMS_PRELOAD": "false", "CACHE_COMPRESSION": "zstd"}
        with itemstore(dataset.dsn, **settings) as server:
            run.result.add(dataset.items, COMPRESSED, **preloaded(server, dataset))
        run.bar.advance(task)
    if EVERYSEC in run.systems:
        with redis("off") as server:
            run.result.add(dataset.items, REDIS, **_filled(server, dataset))
    run.bar.advance(task)


def preloaded(server: Server, dataset: Dataset) -> dict[str, float]:
    """Waits for all items, and reads some: seconds from exec, and what the process takes then."""
    server.wait_until_hydrated()
    hydrated_s = time.perf_counter() - server.started
    with server.connect() as client:
        for row in itertools.islice(dataset.sample, _READ):
            check(client.get(item_path(row.id)), row)
    time.sleep(SETTLE_S)
    now, peak = memory_of(server.pid)
    return {"hydrated_s": hydrated_s, "resident_bytes": now, "peak_bytes": peak}


def _filled(server: Server, dataset: Dataset) -> dict[str, float]:
    fill(server, rows(dataset.items))
    used = _used_memory(server)
    return {"used_bytes": used, "resident_bytes": memory_of(server.pid)[0]}


def _used_memory(server: Server) -> int:
    """What Redis says it uses, without what its allocator keeps for later."""
    asked = ["redis-cli", "-p", str(server.port), "INFO", "memory"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return int(dict(line.split(":", 1) for line in told.splitlines() if ":" in line)["used_memory"])


def items(result: Result) -> int:
    """How many the large store held; 0 if it was not measured."""
    return next((each.items for each in result.series if each.mode == ITEMSTORE), 0)


def tables(result: Result) -> Iterator[Table]:
    """What stands beside each other in the targets."""
    ours, copy, redis_ = (result.only(mode) for mode in (ITEMSTORE, COPY, REDIS))
    if ours is None or copy is None:
        return
    count = items(result)
    columns = (f"{count:,} items", "seconds to fill", "MB resident", "MB used", "bytes an item")
    rows = [("itemstore, preloaded", *_preload_row(ours, count))]
    if (compressed := result.only(COMPRESSED)) is not None:
        rows.append(("the same, compressed", *_preload_row(compressed, count)))
    if redis_ is not None:
        used = redis_["used_bytes"]
        sizes = spread(redis_["resident_bytes"], MB), spread(used, MB), spread(used, count)
        rows.append(("Redis", "", *sizes))
    rows.append(("raw COPY to nowhere", spread(copy["total_s"]), "", "", ""))
    yield Table("A large store", columns, rows)


def _preload_row(values: dict[str, list[float]], count: int) -> tuple[str, ...]:
    resident = values["resident_bytes"]
    return spread(values["hydrated_s"]), spread(resident, MB), "", spread(resident, count)
