"""The benchmarks run and check what they are answered. How fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import cities, docs
from benchmarks.client import Answer
from benchmarks.data import Row, WrongAnswer, check, rows
from benchmarks.report import REPOSITORY, Table, spread

ITEMS = 500

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(server: Callable[[int], str]) -> Run:
    """Runs a benchmark over the session's PostgreSQL server."""

    def run_one(
        name: str, *arguments: object, dsn: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *map(str, arguments)]
        environment = os.environ | {"DATABASE_URL": server(18) if dsn is None else dsn}
        return subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
        )

    return run_one


def measured(done: subprocess.CompletedProcess[str], file: Path) -> dict[str, Any]:
    """Mode → measure → values, of a benchmark that succeeded."""
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(file.read_bytes())
    return {each["mode"]: each["values"] for each in result["series"] if each["items"] == ITEMS}


def test_startup_measures_each_mode_in_a_fresh_process(run: Run, tmp_path: Path) -> None:
    file, svg = tmp_path / "startup.json", tmp_path / "startup.svg"
    done = run("startup", "--items", ITEMS, "--runs", 1, "--json", file, "--svg", svg)
    values = measured(done, file)
    assert set(values) == {"copy", "lazy", "preload"}
    assert 0 < values["preload"]["first_answer_s"][0] <= values["preload"]["hydrated_s"][0]
    assert svg.read_bytes().startswith(b"<?xml")


def test_memory_measures_the_process_and_its_own_estimate(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    values = measured(run("memory", "--items", ITEMS, "--runs", 1, "--json", file), file)
    assert set(values) == {"lazy", "preload"}
    [json_bytes] = values["preload"]["json_bytes"]
    assert json_bytes == sum(len(row.data) for row in rows(ITEMS))
    assert json_bytes < values["preload"]["estimate_bytes"][0]


def test_cities_come_back_byte_for_byte_by_way_of_a_postgresql_that_syncs(
    run: Run, tmp_path: Path
) -> None:
    file, source = tmp_path / "result.json", cities_file(tmp_path)
    done = run("cities", "--file", source, "--durability", "memory", "--json", file, dsn="")
    assert set(measured(done, file)) == set(cities.PHASES)
    assert "equal as written, and byte for byte after the restart" in done.stdout
    assert "fsync on" in json.loads(file.read_bytes())["environment"]["postgresql"]


def test_packing_compares_what_comes_back(run: Run) -> None:
    done = run("packing", "--offline", "--items", 3_000)
    assert done.returncode == 0, done.stderr
    assert "| generated | 3,000 |" in done.stdout


def cities_file(directory: Path) -> Path:
    file = directory / "cities.json"
    file.write_bytes(orjson.dumps([city(number) for number in range(ITEMS)]))
    return file


def city(number: int) -> dict[str, str]:
    """Names with what an id and a path must not stumble over; each comes twice."""
    name = f"Ñ/{number // 2} %?#"
    return {"name": name, "lat": "1.5", "lng": "-2", "country": "XX", "admin1": "", "admin2": ""}


@pytest.mark.parametrize("content", [None, "[", "{}", "[1]", '[{"name": "Ys"}]'])
def test_a_file_without_cities_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "some.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(cities.CitiesMissing, match=r"some\.json"):
        cities._cities(file)


def test_without_npm_the_message_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(cities.CitiesMissing, match="--file"):
        cities._cities(None)


def test_repeated_cities_get_ids_of_their_own() -> None:
    found = [city(0), city(0), city(0)]
    assert len(cities.identified(found)) == 3


def test_a_lost_or_changed_answer_is_a_difference() -> None:
    one = {"a": city(0)}
    good = Answer(200, orjson.dumps({"id": "a", "data": city(0)}))
    changed = Answer(200, orjson.dumps({"id": "a", "data": city(2)}))
    lost = Answer(404, b"{}")
    differences = [
        len(list(cities._differences(one, {"a": before}, {"a": after})))
        for before, after in ((good, good), (changed, changed), (good, changed), (good, lost))
    ]
    assert differences == [0, 1, 1, 1]


def test_generated_items_are_the_same_again_and_differ_from_each_other() -> None:
    some = list(rows(2_000))
    assert some == list(islice(rows(1_000_000), 2_000))
    assert len({row.id for row in some}) == len({row.version for row in some}) == len(some)
    assert len({row.data for row in some}) == len(some)
    assert 215 < statistics.mean(len(row.data) for row in some) < 245


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"id":"a","version":7,"created_at":"1970-01-01T00:00:00Z","data":{}}'),
        (200, b'{"id":"b","version":7,"created_at":"1970-01-01T00:00:00Z","data":{}}'),
        (200, b'{"id":"a","version":8,"created_at":"1970-01-01T00:00:00Z","data":{}}'),
        (200, b'{"id":"a","version":7,"created_at":"1970-01-01T00:00:01Z","data":{}}'),
        (200, b'{"id":"a","version":7,"created_at":"1970-01-01T00:00:00Z","data":{ }}'),
    ],
)
def test_a_wrong_answer_is_noticed(status: int, body: bytes) -> None:
    row = Row("a", b"{}", 7, 0)
    check(Answer(200, b'{"id":"a","version":7,"created_at":"1970-01-01T00:00:00Z","data":{}}'), row)
    with pytest.raises(WrongAnswer):
        check(Answer(status, body), row)


def test_a_spread_is_the_median_with_the_least_and_the_greatest() -> None:
    assert spread([3.0]) == "3.00"
    assert spread([0.5, 0.25, 1_234.5]) == "0.500 (0.250–1,234)"
    assert spread([450_100_000.0, 450_200_000.0], 1_000_000) == "450"


def test_a_table_is_markdown() -> None:
    table = Table("Title", ("a", "b"), [("1", "2")])
    assert table.markdown() == "**Title**\n\n| a | b |\n| :-- | --: |\n| 1 | 2 |"


def test_the_page_has_the_figures_of_the_results() -> None:
    """If it has not: python -m benchmarks.docs"""
    page = docs.PAGE.read_text("utf-8")
    assert docs.render(page, docs.read()) == page
    for name in docs.BENCHMARKS:
        assert f"benchmarks/{name}.svg" in page
