"""Through a real server process: in, out, from one to another, and over its death."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from itemstore.moving.checkpoint import SUFFIX
from tests.acceptance.process import ServerProcess
from tests.moving.moves import begun, datas, moved, ndjson, run, stored

NOWHERE = "postgresql:///nowhere?host=/nowhere"  # what goes through a server asks no database
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMIT_S = 200.0


@pytest.fixture
def process(dsn: str, tmp_path: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path / "server.log", DATABASE_URL=dsn, DURABILITY="commit")
    try:
        yield made.start()
    finally:
        made.end()


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"i{n}", "data": {"n": n, "text": 'a"\n'}, "created_at": "2024-05-01T12:00:00Z"}
        for n in range(count)
    ]


def test_what_goes_in_and_out_through_a_server_is_the_same(
    process: ServerProcess, dsn: str, server: Callable[[int], str], databases: Any, tmp_path: Path
) -> None:
    made = [*records(6_000), {"id": "", "data": {}}, {"id": "i1", "data": {}}]
    source = ndjson(tmp_path / "in.ndjson", made)
    done = run(NOWHERE, "import", source, "--server", process.url)
    assert (1, True) == (done.code, "6,000 created, 1 skipped, 1 rejected" in done.said)
    assert {each["id"]: each["data"] for each in records(6_000)} == datas(dsn)
    assert {"2024-05-01 12:00:00+00:00"} == {str(at) for _, at in stored(dsn).values()}
    moved(NOWHERE, "export", tmp_path / "out.ndjson", "--server", process.url)
    moved(dsn, "export", tmp_path / "same.ndjson")
    assert (tmp_path / "same.ndjson").read_bytes() == (tmp_path / "out.ndjson").read_bytes()
    with databases.one(server(18)) as other:
        moved(other, "import", process.url)
        assert stored(dsn) == stored(other)


def test_only_items_that_match_are_exported(
    process: ServerProcess, dsn: str, tmp_path: Path
) -> None:
    moved(NOWHERE, "import", ndjson(tmp_path / "in.ndjson", records(20)), "--server", process.url)
    wanted = ("--prefix", "i1", "--filter", "data.n=gte.9", "--filter", "data.n=lt.12")
    moved(NOWHERE, "export", tmp_path / "out.ndjson", *wanted, "--server", process.url)
    moved(dsn, "export", tmp_path / "same.ndjson", *wanted)
    out = (tmp_path / "out.ndjson").read_bytes()
    assert ["i10", "i11"] == [json.loads(line)["id"] for line in out.splitlines()]
    assert (tmp_path / "same.ndjson").read_bytes() == out


def test_over_the_death_of_the_server_nothing_is_lost_and_nothing_twice(
    process: ServerProcess, dsn: str, tmp_path: Path
) -> None:
    """Records without ids, for those would be created a second time."""
    made = [{"n": n} for n in range(30_000)]
    source = ndjson(tmp_path / "in.ndjson", made)
    importing = begun(NOWHERE, "import", source, "--server", process.url)
    until_confirmed(source)
    process.signal(signal.SIGKILL)
    process.wait()
    process.start()
    said, _ = importing.communicate(timeout=LIMIT_S)
    if importing.returncode:  # the server was away for longer than the import waits
        assert "Repeat the same command" in said
        moved(NOWHERE, "import", source, "--server", process.url)
    assert list(range(30_000)) == sorted(each["n"] for each in datas(dsn).values())


def until_confirmed(source: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not Path(f"{source}{SUFFIX}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itemstore.moving.remote.PAUSE_S", 0.001)
    source = ndjson(tmp_path / "in.ndjson", records(1))
    done = run(NOWHERE, "import", source, "--server", "http://127.0.0.1:9")
    assert (1, True) == (done.code, "http://127.0.0.1:9/import" in done.said)
    assert 1 == run(NOWHERE, "export", "-", "--server", "http://127.0.0.1:9").code


def test_the_database_of_a_running_server_is_left_to_it(
    process: ServerProcess, dsn: str, tmp_path: Path
) -> None:
    source = ndjson(tmp_path / "in.ndjson", records(1))
    done = run(dsn, "import", source)
    assert (1, True) == (done.code, "--server" in done.said)
    assert orjson.loads(source.read_bytes()) == records(1)[0]
    moved(NOWHERE, "import", source, "--server", process.url)
