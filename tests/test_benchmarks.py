"""The benchmarks run and check what they are answered. How fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import (
    cities,
    data,
    docs,
    growth,
    guarded,
    importing,
    kinds,
    latency,
    model,
    openloop,
    peers,
    persisting,
    policies,
    preloading,
    servers,
    targets,
    throughput,
    variants,
    writes,
    wrk,
)
from benchmarks.apis import ItemsApi
from benchmarks.client import Answer
from benchmarks.data import Row, WrongAnswer, check, rows
from benchmarks.peer_services import held
from benchmarks.report import REPOSITORY, Result, Table, spread
from benchmarks.requests_file import pack, unpack
from benchmarks.servers import process
from benchmarks.workload import WORKS, Workload

ITEMS = 500

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(server: Callable[[int], str]) -> Run:
    """Runs a benchmark over the session's PostgreSQL server."""

    def run_one(
        name: str, *arguments: object, dsn: str | None = None, timeout_s: float = 110
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *map(str, arguments)]
        environment = os.environ | {"DATABASE_URL": server(18) if dsn is None else dsn}
        return subprocess.run(
            command,
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_s,
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


def test_preloading_brings_every_item_each_way(run: Run, tmp_path: Path) -> None:
    file, svg = tmp_path / "preloading.json", tmp_path / "preloading.svg"
    done = run("preloading", "--items", ITEMS, "--json", file, "--svg", svg)
    assert set(measured(done, file)) == {"copy", *preloading.WAYS}
    assert svg.read_bytes().startswith(b"<?xml")


def test_persisting_writes_each_way(run: Run, tmp_path: Path) -> None:
    file, svg = tmp_path / "persisting.json", tmp_path / "persisting.svg"
    done = run("persisting", "--items", ITEMS, "--json", file, "--svg", svg)
    values = measured(done, file)
    assert set(values) > {*persisting.WAYS, persisting.AMONG, persisting.FREELY}
    assert all(values[way]["wal_bytes"][0] > 0 for way in persisting.WAYS)
    assert svg.read_bytes().startswith(b"<?xml")


@pytest.mark.skipif(not wrk.is_installed(), reason="wrk is missing; apt-get install wrk")
def test_every_variant_of_the_server_answers(run: Run, tmp_path: Path) -> None:
    file, svg = tmp_path / "variants.json", tmp_path / "variants.svg"
    done = run("variants", "--items", ITEMS, "--runs", 1, "--json", file, "--svg", svg)
    values = measured(done, file)
    assert set(values) == set(variants.VARIANTS)
    assert all(each["get_per_s"][0] > 0 < each["put_per_s"][0] for each in values.values())
    assert svg.read_bytes().startswith(b"<?xml")


@pytest.mark.skipif(not wrk.is_installed(), reason="install wrk")
def test_guarded_measures_both(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guarded.json"
    done = run("guarded", "--items", ITEMS, "--runs", 2, "--json", file)
    values = measured(done, file)
    assert {guarded.OPEN, guarded.GUARDED} == set(values)
    assert all(len(each["get_per_s"]) == 2 for each in values.values())
    assert 0 < values[guarded.GUARDED]["look_up_ns"][0]
    assert "as a share" in done.stdout


@pytest.mark.skipif(not wrk.is_installed(), reason="install wrk")
@pytest.mark.timeout(300)
def test_scaling_measures_each_size_and_rate(run: Run, tmp_path: Path) -> None:
    file, svg = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    options = ("--items", ITEMS, "--json", file, "--svg", svg)
    done = run("scaling", *options, timeout_s=280)
    values = measured(done, file)
    kinds_ = (growth.STORED, growth.LAZY, growth.PLAIN, growth.PACKED, growth.LISTS, growth.WRITES)
    large = {growth.Point(ITEMS, 20_000).mode(kind) for kind in kinds_}
    assert {*kinds_, *large, *(f"rate {rate}" for rate in growth.RATES)} == set(values)
    assert [sum(len(row.data) for row in rows(ITEMS))] == values[growth.STORED]["json_bytes"]
    assert values[growth.WRITES]["commit_log_bytes"][0] > 0
    assert svg.read_bytes().startswith(b"<?xml")
    assert "Items a gigabyte holds" in done.stdout


def test_items_of_a_size_have_it() -> None:
    some = list(rows(20, item_bytes=2_000))
    assert {2_000} == {len(row.data) for row in some}
    assert len({orjson.loads(row.data)["text"] for row in some}) == len(some)
    assert [row.id for row in some] == [data.item_id(number) for number in range(20)]


def test_the_model_knows_how_postgresql_lays_out_rows(server: Callable[[int], str]) -> None:
    """On disk: what is predicted and what is there differ by less than a twentieth."""
    with servers.database(server(18)) as dsn:
        store = growth.Store(data.load(dsn, 20_000), Path(), 0.0)
        sizes: dict[str, float] = {}
        growth.measure_stored(store, lambda _, **values: sizes.update(values))
    json_bytes = sizes.pop("json_bytes")
    predicted = 20_000 * model.disk_bytes(json_bytes / 20_000)
    assert pytest.approx(predicted, rel=0.05) == sum(sizes.values()) - sizes["aside_bytes"]


def test_the_model_of_a_start_goes_through_both_of_its_points() -> None:
    many, large = (1_000_000, 228.0, 3.4), (100_000, 20_000.0, 4.1)
    start = model.Start.through(0.7, many, large)
    for items, json_bytes, hydrated_s in (many, large):
        assert pytest.approx(hydrated_s) == start.hydrated_s(items, json_bytes)
    assert pytest.approx(0.7) == start.hydrated_s(0, 228.0)


@pytest.fixture(scope="module")
def compared(server: Callable[[int], str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One tiny run of everything beside the peers that are installed."""
    directory = tmp_path_factory.mktemp("peers")
    file, svg = directory / "peers.json", directory / "peers.svg"
    size = ("--items", "300", "--seconds", "0.05", "--rounds", "1")
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", *size]
    done = subprocess.run(
        [*command, "--json", file, "--svg", svg],
        env=os.environ | {"DATABASE_URL": server(18)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    plots = {each.stem for each in directory.glob("*.svg")}
    assert plots >= {"peers"} | ({"peers-latency", "peers-writes"} if HAS_WRK else set())
    return Result.read(file)


HAS_WRK = wrk.is_installed()
INSTALLED = [kind for kind in kinds.KINDS if kinds.is_installed(kind)]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_each_peer_does_the_work_it_can_do(compared: Result, kind: str) -> None:
    if kind not in INSTALLED:
        pytest.skip(f"install what {kind} needs: {kinds.missing([kind])}")
    if not kind.startswith("redis") and not HAS_WRK:
        pytest.skip("install wrk")
    works = {work for work in WORKS if compared.only(throughput.mode(work, kind, 32))}
    assert kinds.KINDS[kind].works == works
    assert all(compared.only(latency.mode(work, kind)) for work in works & {"get", "put"})


@pytest.mark.skipif(not HAS_WRK, reason="install wrk")
def test_every_target_is_measured(compared: Result) -> None:
    rows = [target.row(compared) for target in targets.TARGETS]
    assert (None in rows) == (len(INSTALLED) < len(kinds.KINDS))
    pages = [part.markdown() for part in peers.tables(compared)]
    assert any("Stalls" in page for page in pages)


@pytest.mark.skipif(not HAS_WRK, reason="install wrk")
def test_writes_of_the_benchmark_are_persisted(compared: Result) -> None:
    found = compared.only(writes.FULL)
    assert found is not None
    assert found["committed_per_s"][0] > 0


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    missing = kinds.missing(["webdis", "itemstore-memory"])
    assert ["redis-server", "redis-tools", "webdis", "wrk"] == missing["apt-get install"]
    assert not kinds.is_installed("webdis")
    assert kinds.is_installed("itemstore-memory")


def test_requests_that_waited_for_the_same_are_one_pause() -> None:
    """A server that stops for 30 ms at 0.1 s delays what was to start then, and nothing later."""
    due = [number / 1_000 for number in range(300)]
    waited = [max(0.001, 0.13 - at) if at >= 0.1 else 0.001 for at in due]
    [pause] = openloop.pauses(due, waited)
    assert pytest.approx((0.1, 30.0)) == (pause.at_s, pause.ms)
    late = [0.002] * len(due)
    assert [] == list(openloop.pauses(due, late))
    waited[250] = 0.011
    assert 2 == len(list(openloop.pauses(due, waited)))


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 40),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a\r\ncontent-length:2\r\n\r\n{", 56),
        (b"HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n", 38),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", 0),
    ],
)
def test_the_generator_knows_where_an_answer_ends(answer: bytes, length: int) -> None:
    assert length == openloop.http_length(answer)


@pytest.mark.parametrize(
    ("answer", "length"),
    [(b"$3\r\nabc\r\n", 9), (b"$3\r\nab", 9), (b"$-1\r\n", 5), (b"+OK\r\n", 5), (b"+O", 0)],
)
def test_the_generator_knows_where_an_answer_of_redis_ends(answer: bytes, length: int) -> None:
    assert length == openloop.resp_length(answer)


def test_requests_are_the_same_again_and_survive_the_file() -> None:
    made = [list(Workload(100).requests("mixed", ItemsApi(), 0)) for _ in range(2)]
    assert made[0] == made[1] == unpack(pack(made[0]))
    puts = [each for each in made[0] if each.startswith(b"PUT")]
    assert 0 < len(puts) < len(made[0]) / 4


def test_zipf_wants_few_items_often() -> None:
    wanted = Counter(Workload(1_000).requests("mixed", ItemsApi(), 0))
    uniform = Counter(Workload(1_000).requests("get", ItemsApi(), 0))
    assert wanted.most_common(1)[0][1] > 5 * uniform.most_common(1)[0][1]


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.89, "no"), (0.9, "yes"), (1.19, "yes"), (1.2, "goal")]
)
def test_a_target_tells_whether_it_is_reached(value: float, verdict: str) -> None:
    result = Result("peers", {})
    for kind, per_s in (("itemstore-memory", value), ("redis-everysec", 1.0)):
        result.add(300, throughput.mode("get", kind, 32), per_s=per_s)
    row = targets.TARGETS[0].row(result)
    assert row is not None
    assert row[-1] == verdict


def test_cities_come_back_byte_for_byte_by_way_of_a_postgresql_that_syncs(
    run: Run, tmp_path: Path
) -> None:
    file, source = tmp_path / "result.json", cities_file(tmp_path)
    done = run("cities", "--file", source, "--durability", "memory", "--json", file, dsn="")
    assert set(measured(done, file)) == set(cities.PHASES)
    assert "equal as written, and byte for byte after the restart" in done.stdout
    assert "fsync on" in json.loads(file.read_bytes())["environment"]["postgresql"]


def test_importing_moves_everything_each_way(run: Run, tmp_path: Path) -> None:
    file, svg = tmp_path / "importing.json", tmp_path / "importing.svg"
    done = run("importing", "--items", ITEMS, "--json", file, "--svg", svg)
    values = measured(done, file)
    assert {f"import {each}" for each in (*importing.SOURCES, importing.SERVER)} < set(values)
    assert all(value["per_s"][0] > 0 for value in values.values())
    assert svg.read_bytes().startswith(b"<?xml")


def test_an_item_that_came_out_changed_or_not_at_all_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    item = {"id": "a", "created_at": importing.CREATED_AT, "data": {"n": 1}}
    file.write_bytes(orjson.dumps(item))
    importing._check(file, {"a": {"n": 1}})
    for wrong in ({"a": {"n": 2}}, {}, {"a": {"n": 1}, "b": {}}):
        with pytest.raises(importing.NotTheSame):
            importing._check(file, wrong)


def test_policies_are_compared_on_each_trace(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = run("policies", "--items", 500, "--json", file)
    assert done.returncode == 0, done.stderr
    result = Result.read(file)
    for trace in policies.TRACES:
        for share in policies.SHARES:
            ratios = result.of(share, trace)
            assert all(
                0 <= ratios[name][0] <= ratios[policies.BEST][0] for name in policies.POLICIES
            )


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
        cities.every(file)


def test_without_npm_the_message_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(cities.CitiesMissing, match="--file"):
        cities.every(None)


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


def test_the_pages_have_the_figures_of_the_results() -> None:
    """If they have not: python -m benchmarks.docs"""
    pages = [page.read_text("utf-8") for page in docs.PAGES]
    assert [docs.render(page, docs.read()) for page in pages] == pages
    for name in docs.read():
        assert any(f"benchmarks/{name}.svg" in page for page in pages)


def test_a_page_says_what_was_not_measured_yet(tmp_path: Path) -> None:
    page = "<!-- begin: scaling_items -->\nold\n<!-- end: scaling_items -->"
    assert "Not measured yet" in docs.render(page, docs.read(tmp_path))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a service over a dict, and requests for ids it does not have."""
    items, requests = tmp_path / "items", tmp_path / "requests"
    workload = Workload(10)
    held.write(workload.rows, items)
    command = [sys.executable, "-m", "benchmarks.peer_services.bare", f"--items={items}"]
    with process("bare", lambda port: [*command, f"--port={port}"]) as server:
        server.wait_until_listening()
        requests.write_bytes(pack(workload.requests("miss", ItemsApi(), server.port)))
        yield server.port, requests


@pytest.mark.skipif("bare" not in INSTALLED, reason="install uvloop and httptools")
def test_the_generator_refuses_wrong_answers(service: tuple[int, Path]) -> None:
    port, requests = service
    found = openloop.run(port, requests, rate=500, seconds=0.1, good="HTTP/1.1 404")
    assert 50 == found.answered
    with pytest.raises(openloop.WrongAnswers):
        openloop.run(port, requests, rate=500, seconds=0.1, good="HTTP/1.1 200")


@pytest.mark.skipif("bare" not in INSTALLED or not HAS_WRK, reason="install wrk and uvloop")
def test_throughput_of_wrong_answers_is_refused(service: tuple[int, Path]) -> None:
    port, requests = service
    found = wrk.run(port, requests, connections=2, seconds=0.05, start=0, refused=True)
    assert found.per_s > 0
    with pytest.raises(wrk.WrkError):
        wrk.run(port, requests, connections=2, seconds=0.05, start=0, refused=False)


def test_requests_without_an_answer_count_as_long_as_they_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that takes connections and says nothing: what was sent is lost, and the rest too."""
    monkeypatch.setattr(openloop, "_LOST_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with openloop.Generator(port, [b"GET"], connections=2, good=b"HTTP/1.1 200") as generator:
            found = generator.run(rate=100, seconds=0.1)
    assert (0, 10) == (found.answered, found.lost)
    assert 1 == len(found.pauses)
    assert found.pauses[0].ms >= 50
