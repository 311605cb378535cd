"""``itemstore import``: what is in the source is in the store, whatever happens on the way."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from itemstore.moving import checkpoint, parts
from itemstore.moving.checkpoint import SUFFIX
from itemstore.store import ItemStore
from tests.moving.moves import begun, beside, datas, moved, moved_beside, ndjson, run, stored
from tests.sql import query

Databases = Any
LIMIT_S = 100.0


def records(count: int) -> list[dict[str, Any]]:
    return [{"id": f"i{number}", "n": number, "name": f"Ñ {number}"} for number in range(count)]


def expected(made: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["id"]: {k: v for k, v in each.items() if k != "id"} for each in made}


def as_ndjson(file: Path, made: list[dict[str, Any]]) -> None:
    ndjson(file, made)


def as_array(file: Path, made: list[dict[str, Any]]) -> None:
    file.write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2))


def as_csv(file: Path, made: list[dict[str, Any]]) -> None:
    lines = ["id;n;name", *(f"{each['id']};{each['n']};{each['name']}" for each in made)]
    file.write_text("\n".join(lines), "utf-8-sig")


def as_sqlite(file: Path, made: list[dict[str, Any]]) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE things (id TEXT, n INTEGER, name TEXT)")
        connection.executemany("INSERT INTO things VALUES (:id, :n, :name)", made)


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("a.ndjson", as_ndjson, ()),
        ("a.json", as_array, ()),
        ("a.csv", as_csv, ("--parse",)),
        ("a.db", as_sqlite, ()),
    ],
)
def test_each_kind_of_file_goes_in(
    dsn: str, tmp_path: Path, name: str, make: Callable[..., None], options: tuple[str, ...]
) -> None:
    made = records(6_000)
    make(tmp_path / name, made)
    said = moved(dsn, "import", tmp_path / name, *options)
    assert "6,000 rows: 6,000 created" in said
    assert expected(made) == datas(dsn)
    assert [name] == [file.name for file in tmp_path.iterdir()]
    again = moved(dsn, "import", tmp_path / name, *options)
    assert "6,000 unchanged" in again


@pytest.fixture
def other(server: Callable[[int], str], databases: Databases) -> Iterator[str]:
    """Another database, with a table of every kind of value."""
    with databases.one(server(18)) as dsn:
        query(
            dsn,
            """CREATE TABLE things (id bigint, n numeric, at timestamptz, doc jsonb, u uuid,
               b bytea, t text, list int[])""",
        )
        query(
            dsn,
            """INSERT INTO things SELECT i, 1.50, '2024-05-01 12:00Z', '{"a": [1, null]}',
               '00000000-0000-0000-0000-000000000001', '\\x00ff', NULL, '{1,2}'
               FROM generate_series(1, 3000) i""",
        )
        yield dsn


def test_a_postgresql_table_goes_in_as_json(dsn: str, other: str) -> None:
    moved(dsn, "import", other_url(other), "--table", "public.things")
    found = datas(dsn)
    assert {str(number) for number in range(1, 3_001)} == set(found)
    row = {"n": 1.5, "at": "2024-05-01T12:00:00+00:00", "doc": {"a": [1, None]}}
    row |= {"u": "00000000-0000-0000-0000-000000000001", "b": "\\x00ff", "t": None, "list": [1, 2]}
    assert row == found["7"]


def test_a_query_cannot_write_and_its_percent_signs_are_its_own(dsn: str, other: str) -> None:
    chosen = "SELECT id % 10 AS id, 'a%s' AS name FROM things WHERE id <= 10;"
    moved(dsn, "import", other_url(other), "--query", chosen)
    assert {str(n): {"name": "a%s"} for n in range(10)} == datas(dsn)
    writing = "WITH gone AS (DELETE FROM things RETURNING *) SELECT * FROM gone"
    assert 1 == run(dsn, "import", other_url(other), "--query", writing).code
    assert [3_000] == query(other, "SELECT count(*) FROM things")


def other_url(dsn: str) -> str:
    """As an address: what has a scheme is known to be PostgreSQL."""
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    host, name = str(given["host"]).replace("/", "%2F"), given["dbname"]
    user = f"{given['user']}@" if "user" in given else ""
    port = f"&port={given['port']}" if "port" in given else ""
    return f"postgresql://{user}/{name}?host={host}{port}"


async def test_another_store_goes_in_with_its_times(
    store: ItemStore, dsn: str, server: Callable[[int], str], databases: Databases, tmp_path: Path
) -> None:
    items = [await store.put(f"i{n}", {"n": n, "text": 'a"b'}) for n in range(50)]
    await store.flush()
    with databases.one(server(18)) as target:
        arguments = ("import", other_url(dsn), "--format", "itemstore")
        await moved_beside(target, *arguments)
        assert {item.id: (item.data_json.decode(), item.created_at) for item in items} == stored(
            target
        )


def test_an_item_that_is_there_is_replaced_only_as_told(dsn: str, tmp_path: Path) -> None:
    source = ndjson(tmp_path / "a.ndjson", [{"id": "a", "data": {"n": 1}}])
    moved(dsn, "import", source)
    [(first, created_at)] = query(dsn, "SELECT version, created_at FROM items")
    later = {"id": "a", "updated_at": "2999-01-01T00:00:00Z", "created_at": "2001-01-01T00:00:00Z"}
    earlier = later | {"updated_at": "2001-01-01T00:00:00Z"}
    cases: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
        ({"id": "a"}, (), "1 skipped"),
        (earlier, (), "1 skipped"),
        (later, ("--conflict", "skip"), "1 skipped"),
        (later, (), "1 replaced"),
        (earlier, ("--conflict", "replace"), "1 replaced"),
        (earlier | {"n": 14}, ("--conflict", "replace"), "1 unchanged"),
    ]
    for n, (record, options, counted) in enumerate(cases):
        data = {"n": record.get("n", 10 + n)}
        ndjson(source, [{k: v for k, v in record.items() if k != "n"} | {"data": data}])
        assert counted in moved(dsn, "import", source, *options), (record, options)
    [(version, data, created)] = query(dsn, "SELECT version, data, created_at FROM items")
    assert (version > first, {"n": 14}, created_at) == (True, data, created)
    moved(dsn, "import", ndjson(source, [earlier | {"id": "b", "data": {}}]))
    [created] = query(dsn, "SELECT created_at::text FROM items WHERE id = 'b'")
    assert str(created).startswith("2001-01-01")


def test_of_two_rows_with_one_id_the_later_one_sees_the_earlier_one(
    dsn: str, tmp_path: Path
) -> None:
    made = [{"id": "a", "data": {"n": n % 2}} for n in range(5)]
    said = moved(dsn, "import", ndjson(tmp_path / "a.ndjson", made), "--conflict", "replace")
    assert "5 rows: 1 created, 4 replaced" in said
    assert {"a": {"n": 0}} == datas(dsn)


def test_rejected_rows_are_reported_and_the_others_go_in(dsn: str, tmp_path: Path) -> None:
    source, report = tmp_path / "a.ndjson", tmp_path / "bad.ndjson"
    source.write_bytes(b'{"id":"a","n":1}\n{"id":"b"\n\n{"id":".","n":1}\n{"id":"c","n":1}\n')
    query_unique(dsn)
    done = run(dsn, "import", source, "--rejects", report)
    assert 1 == done.code
    assert "4 rows: 1 created, 3 rejected" in done.said
    assert "row 2: The body is not JSON" in done.said
    found = [orjson.loads(line) for line in report.read_bytes().splitlines()]
    assert [2, 4, 5] == [each["row"] for each in found]
    assert '{"id":"b"' == found[0]["source"]
    assert "PostgreSQL refused it" in found[2]["reason"]
    assert {"a": {"n": 1}} == datas(dsn)


def query_unique(dsn: str) -> None:
    """The store's tables, and an index of somebody's own that refuses a second one."""
    moved(dsn, "export", "-")
    query(dsn, "CREATE UNIQUE INDEX ON items ((data->>'n'))")


def test_a_dry_run_tells_and_writes_nothing(dsn: str, tmp_path: Path) -> None:
    source = ndjson(tmp_path / "a.ndjson", [*records(10), {"id": ""}])
    moved(dsn, "import", ndjson(tmp_path / "b.ndjson", records(3)))
    before = stored(dsn)
    done = run(dsn, "import", source, "--dry-run")
    assert (
        "Nothing was written; it would be: 11 rows: 7 created, 3 unchanged, 1 rejected" in done.said
    )
    assert before == stored(dsn)
    assert not (tmp_path / f"a.ndjson{SUFFIX}").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.xyz",), "--format"),
        (("a.ndjson", "--format", "xml"), "ndjson, json"),
        (("a.ndjson", "--conflict", "never"), "newer, skip, replace"),
        (("a.ndjson", "--table", "t"), "--table"),
        (("postgresql:///x",), "--table or --query"),
        (("postgresql:///x", "--table", "t", "--query", "q"), "not both"),
        (("-", "--format", "sqlite"), "name a file"),
        (("a.ndjson", "--dry-run", "--server", "http://localhost:1"), "--dry-run"),
        (("a.ndjson", "--rejects", "no/such/file"), "--rejects"),
    ],
)
def test_wrong_usage_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ndjson(Path("a.ndjson"), [])
    done = run("postgresql:///nowhere?host=/nowhere", "import", *arguments)
    assert 2 == done.code, done.said
    assert says in done.said


async def test_a_running_instance_keeps_its_lease(
    store: ItemStore, dsn: str, tmp_path: Path
) -> None:

    await store.put("a", {"n": 1})
    source = ndjson(tmp_path / "a.ndjson", records(3))
    done = await beside(dsn, "import", source)
    assert 1 == done.code
    assert "--server" in done.said
    await store.put("b", {"n": 2})
    assert {"a", "b"} == set(datas(dsn))


# --- interrupted, and resumed


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A file of several parts, and what is in it."""
    made = records(60_000)
    return ndjson(tmp_path / "many.ndjson", made), expected(made)


def until_begun(source: Path, process: subprocess.Popen[str]) -> None:
    """Until some is confirmed and not all."""
    state = Path(f"{source}{SUFFIX}")
    deadline = time.monotonic() + LIMIT_S
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_after_ctrl_c_it_goes_on_where_it_was(dsn: str, many: tuple[Path, dict[str, Any]]) -> None:
    source, content = many
    process = begun(dsn, "import", source)
    until_begun(source, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert 130 == process.returncode, said
    assert "Repeat the same command" in said
    saved = orjson.loads(Path(f"{source}{SUFFIX}").read_bytes())
    assert [saved["row"]] == query(dsn, "SELECT count(*) FROM items")
    assert 0 < saved["row"] < len(content)
    again = moved(dsn, "import", source)
    assert f"Going on after row {saved['row']:,}." in again
    assert "60,000 rows: 60,000 created" in again
    assert content == datas(dsn)
    assert not Path(f"{source}{SUFFIX}").exists()


@pytest.mark.parametrize("with_ids", [True, False])
def test_killed_at_any_moment_it_goes_on_and_nothing_is_there_twice(
    dsn: str, many: tuple[Path, dict[str, Any]], with_ids: bool
) -> None:
    source, content = many
    if not with_ids:
        ndjson(source, content.values())
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(3):
        process = begun(dsn, "import", source)
        until_begun(source, process)
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.communicate(timeout=LIMIT_S)
        if process.returncode == 0:
            break
    moved(dsn, "import", source)
    found = datas(dsn)
    if with_ids:
        assert content == found
    else:
        assert sorted(map(str, content.values())) == sorted(map(str, found.values()))


def interrupted(monkeypatch: pytest.MonkeyPatch, dsn: str, *arguments: object) -> None:
    """An import that was told to stop after its first part, and had a second one on the way."""
    saves: list[int] = []

    def save(self: checkpoint.Checkpoint) -> None:
        _save(self)
        saves.append(1)
        if len(saves) == 1:
            signal.raise_signal(signal.SIGINT)

    _save = checkpoint.Checkpoint.save
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoint, "save", save)
        patched.setattr(parts, "PART_ROWS", 10)
        done = run(dsn, "import", *arguments)
    assert 130 == done.code, done.said


def test_a_changed_source_or_command_is_not_resumed_but_told(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ndjson(tmp_path / "a.ndjson", records(30))
    interrupted(monkeypatch, dsn, source)
    other = run(dsn, "import", source, "--conflict", "skip")
    assert (1, True) == (other.code, "another conflict" in other.said)
    ndjson(source, records(31))
    changed = run(dsn, "import", source)
    assert (1, True) == (changed.code, "has changed" in changed.said)
    assert "20 unchanged" in moved(dsn, "import", source, "--restart")
    assert expected(records(31)) == datas(dsn)


def test_a_resumed_report_has_each_rejected_row_once(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = [{"id": ""} if n % 7 == 0 else record for n, record in enumerate(records(40))]
    source, report = ndjson(tmp_path / "a.ndjson", made), tmp_path / "bad.ndjson"
    interrupted(monkeypatch, dsn, source, "--rejects", report)
    with report.open("ab") as file:
        file.write(b"written, and not confirmed")
    done = run(dsn, "import", source, "--rejects", report)
    assert 1 == done.code
    rows = [orjson.loads(line)["row"] for line in report.read_bytes().splitlines()]
    assert [n + 1 for n in range(0, 40, 7)] == rows
    assert f"40 rows: {40 - len(rows)} created, {len(rows)} rejected" in done.said


def test_a_postgresql_source_is_resumed_by_its_ids(
    dsn: str, other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    source = (other_url(other), "--table", "things")
    interrupted(monkeypatch, dsn, *source)
    query(other, "DELETE FROM things WHERE id <= 5")
    assert "Going on after row 20." in moved(dsn, "import", *source)
    assert {str(number) for number in range(1, 3_001)} == set(datas(dsn))


def test_standard_input_that_is_silent_does_not_hold_ctrl_c_up(dsn: str) -> None:
    process = begun(dsn, "import", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write('{"id":"a","n":1}\n')
    process.stdin.flush()
    until_lease(dsn, process)
    process.send_signal(signal.SIGINT)
    process.wait(LIMIT_S)
    said, _ = process.communicate()
    assert 130 == process.returncode, said
    assert "cannot be resumed" in said or "Interrupted" in said  # before it began to read


def until_lease(dsn: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not query(dsn, "SELECT to_regclass('writer_lease') IS NOT NULL")[0] or not query(
        dsn, "SELECT holder FROM writer_lease WHERE holder IS NOT NULL"
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
