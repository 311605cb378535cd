"""How much memory the items take in a running server.

    python -m benchmarks.memory [--quick] [--items 10000,100000] [--runs 5]

What is measured is the resident memory of the process (RSS) as Linux counts it. What an item takes
is the difference to a server without items, divided by their number.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Final

import orjson
from matplotlib.figure import Figure

from benchmarks import charts, command
from benchmarks.client import item_path
from benchmarks.data import Dataset, check
from benchmarks.report import MB, Result, Table, environment, spread
from benchmarks.servers import Server, database, itemstore, postgres

#: MB that the predecessor's documents give for 100,000 items.
CLAIMED_MB: Final = {100_000: 500.0}
ITEM_TARGET_BYTES: Final = 450.0

SETTLE_S: Final = 0.3  # after the last page, for its buffers to be freed


def main() -> None:
    given = command.parse_sizes(__doc__)
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("memory", environment(server_dsn))
        with (
            command.datasets(server_dsn, given.items, bar) as datasets,
            database(server_dsn) as empty_dsn,
        ):
            empty = Dataset(empty_dsn, 0, 0, ())
            task = bar.add_task("measuring", total=given.runs * (1 + 2 * len(datasets)))
            for _, dataset in itertools.product(range(given.runs), (empty, *datasets)):
                for mode in ("preload", "lazy") if dataset.items else ("preload",):
                    _measure(dataset, mode, result)
                    bar.advance(task)
    command.finish(result, tables(result), plot, given)


def _measure(dataset: Dataset, mode: str, result: Result) -> None:
    skip = "true" if mode == "lazy" else "false"
    with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD=skip) as server:
        _fill(server, dataset, mode)
        resident, peak = memory_of(server.pid)
        estimate = orjson.loads(server.wait_for("/stats").body)["itemstore_cache_bytes"]
    result.add(
        dataset.items,
        mode,
        resident_bytes=resident,
        peak_bytes=peak,
        estimate_bytes=estimate,
        json_bytes=dataset.json_bytes,
    )


def _fill(server: Server, dataset: Dataset, mode: str) -> None:
    """Waits for the preload; a lazy server has read the sample, at most 2,000 items."""
    server.wait_for("/readyz")
    if mode == "preload":
        server.wait_until_hydrated()
    with server.connect() as client:
        for row in dataset.sample:
            check(client.get(item_path(row.id)), row)
    time.sleep(SETTLE_S)


def memory_of(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, now and at most so far (proc(5): VmRSS, VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    resident, peak = (int(found[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak


def item_bytes(result: Result, items: int) -> list[float]:
    """Run by run, what one preloaded item takes."""
    full = result.of(items, "preload")["resident_bytes"]
    empty = result.of(0, "preload")["resident_bytes"]
    return [(with_items - without) / items for with_items, without in zip(full, empty, strict=True)]


def tables(result: Result) -> list[Table]:
    return [_process(result), _item(result)]


def _process(result: Result) -> Table:
    empty = result.of(0, "preload")
    rows = [("0", spread(empty["resident_bytes"], MB), spread(empty["peak_bytes"], MB), "")]
    for items in result.sizes():
        preload, lazy = (result.of(items, mode) for mode in ("preload", "lazy"))
        rows.append(
            (
                f"{items:,}",
                spread(preload["resident_bytes"], MB),
                spread(preload["peak_bytes"], MB),
                spread(lazy["resident_bytes"], MB),
            )
        )
    return Table("MB of the process", ("items", "preloaded", "peak", "lazy, 2,000 read"), rows)


def _item(result: Result) -> Table:
    rows = []
    for items in result.sizes():
        values = result.of(items, "preload")
        rows.append(
            (
                f"{items:,}",
                spread(item_bytes(result, items)),
                spread(values["estimate_bytes"][:1], items),
                spread(values["json_bytes"][:1], items),
            )
        )
    return Table("Bytes an item", ("items", "measured", "itemstore's estimate", "its JSON"), rows)


def plot(result: Result) -> Figure:
    figure, (process, item) = charts.panels(2)
    sizes = result.sizes()
    charts.claims(process, CLAIMED_MB, "claimed for the predecessor")
    for mode, measure, label, color in (
        ("preload", "resident_bytes", "process, preloaded", charts.ORANGE),
        ("lazy", "resident_bytes", "process, lazy", charts.GREEN),
        ("preload", "json_bytes", "the JSON alone", charts.PURPLE),
    ):
        values = [[v / MB for v in each] for each in result.values(mode, measure)]
        charts.runs(process, sizes, values, label, color)
    charts.by_items(process, "Memory of the process", "MB resident")

    charts.limit(item, ITEM_TARGET_BYTES, f"target, {ITEM_TARGET_BYTES:g} bytes")
    measured = [item_bytes(result, items) for items in sizes]
    charts.runs(item, sizes, measured, "measured", charts.ORANGE)
    for measure, label, color in (
        ("estimate_bytes", "itemstore's estimate", charts.BLUE),
        ("json_bytes", "its JSON", charts.PURPLE),
    ):
        values = [[v / items for v in result.of(items, "preload")[measure]] for items in sizes]
        charts.runs(item, sizes, values, label, color)
    charts.by_items(item, "Memory of one item", "bytes", log_y=False)
    return figure


if __name__ == "__main__":
    main()
