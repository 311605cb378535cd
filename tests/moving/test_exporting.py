"""``itemstore export``: every item, as it is, in a file that is whole or not there."""

from __future__ import annotations

import csv
import io
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.item import pack
from itemstore.moving.display import Display
from itemstore.moving.writers import Csv
from itemstore.store import ItemStore
from itemstore.web import columns
from tests.moving.moves import begun, datas, moved, moved_beside, ndjson, run, stored
from tests.sql import query

DATA: list[Any] = [
    {},
    {"text": 'a,"b"\r\n;', "n": 1, "f": 0.1, "none": None, "deep": {"a": [1, {"b": "ü"}]}},
    {"data": "x", "id": 5, "created_at": "never"},
    {"": "", "a.b": 1, "ÿ": "\u2028"},
]


async def fill(store: ItemStore) -> None:
    for number, data in enumerate(DATA * 60):
        await store.put(f'={number}-"é,', data)
    await store.delete('=0-"é,')
    await store.flush()


@pytest.mark.parametrize("name", ["out.ndjson", "out.csv", "out.sqlite"])
async def test_what_is_exported_and_imported_elsewhere_is_the_same(
    store: ItemStore,
    dsn: str,
    server: Callable[[int], str],
    databases: Any,
    tmp_path: Path,
    name: str,
) -> None:
    """Ids, data byte for byte and times of creation; beside a running store, without its lease."""
    await fill(store)
    said = await moved_beside(dsn, "export", tmp_path / name, "--keep-formulas")
    assert "239 items" in said
    assert [name] == os.listdir(tmp_path)
    with databases.one(server(18)) as other:
        await moved_beside(other, "import", tmp_path / name)
        assert stored(dsn) == stored(other)
    assert store.lease.is_holder


def test_items_come_in_order_of_the_id_and_only_those_of_the_prefix(
    dsn: str, tmp_path: Path
) -> None:
    made = [{"id": f"{kind}{n}", "data": {"n": n}} for n in range(300) for kind in "abÿ"]
    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", made))
    moved(dsn, "export", tmp_path / "out.ndjson", "--prefix", "b")
    found = [orjson.loads(line) for line in (tmp_path / "out.ndjson").read_bytes().splitlines()]
    assert sorted(f"b{n}" for n in range(300)) == [item["id"] for item in found]
    assert {"id", "version", "created_at", "updated_at", "data"} == set(found[0])


@pytest.mark.parametrize("wrong", ["data.n", "data.n=eleven", "price=eq.1"])
def test_what_is_no_filter_is_told_before_a_file_is_made(
    dsn: str, tmp_path: Path, wrong: str
) -> None:
    assert 2 == run(dsn, "export", tmp_path / "out.ndjson", "--filter", wrong).code
    assert not (tmp_path / "out.ndjson").exists()


def test_a_sqlite_file_is_a_table_like_the_store_s(dsn: str, tmp_path: Path) -> None:
    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", [{"id": "a", "data": {"n": 1}}]))
    moved(dsn, "export", tmp_path / "out.db")
    with closing(sqlite3.connect(tmp_path / "out.db")) as file:
        [row] = file.execute("SELECT id, data, version FROM items").fetchall()
        assert ["delete"] == [mode for (mode,) in file.execute("PRAGMA journal_mode")]
    assert ("a", '{"n":1}', *query(dsn, "SELECT version FROM items")) == row


def test_chosen_fields_are_columns_and_come_back_as_parts(dsn: str, tmp_path: Path) -> None:
    made = [
        {"id": "a", "data": {"at": {"city": "Rome"}, "a.b": 1, "tags": [1]}},
        {"id": "b", "a.b": 2},
    ]
    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", made))
    fields = 'id,data.at.city,data."a.b",data.tags,data.no'
    moved(dsn, "export", tmp_path / "o.csv", "--fields", fields)
    assert [
        fields.split(","),
        ["a", "Rome", "1", "[1]", ""],
        ["b", "", "2", "", ""],
    ] == list(csv.reader(io.StringIO((tmp_path / "o.csv").read_text("utf-8"))))
    said = moved(dsn, "import", tmp_path / "o.csv", "--parse", "--conflict", "replace")
    assert "2 unchanged" in said


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3))
def test_a_csv_file_has_the_data_as_json(data: dict[str, str]) -> None:
    file = io.BytesIO()
    writing = Csv(file, columns.parse("id,data"), keeps_formulas=True)
    text = orjson.dumps(data)
    writing.add([("a", pack(1, 1, text))])
    writing.close()
    [row] = list(csv.DictReader(io.StringIO(file.getvalue().decode(), newline="")))
    assert {"id": "a", "data": text.decode()} == row


def test_standard_output_has_the_items_and_nothing_else(dsn: str, tmp_path: Path) -> None:
    made = [{"id": f"i{n}", "data": {"n": n}} for n in range(3)]
    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", made))
    process = begun(dsn, "export", "-", joined=False)
    out, err = process.communicate(timeout=100)
    assert ["i0", "i1", "i2"] == [orjson.loads(line)["id"] for line in out.splitlines()]
    assert "3 items" in err


def test_a_file_that_exists_is_kept_unless_told(dsn: str, tmp_path: Path) -> None:
    target = tmp_path / "app.db"
    target.write_text("somebody's")
    done = run(dsn, "export", target)
    assert (2, "somebody's") == (done.code, target.read_text())
    assert "--overwrite" in done.said
    moved(dsn, "export", target, "--overwrite")
    assert target.read_bytes().startswith(b"SQLite format 3")


def test_an_export_that_fails_leaves_no_file(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", [{"id": "a"}]))
    monkeypatch.setattr("itemstore.moving.writers.Ndjson.add", fail)
    done = run(dsn, "export", tmp_path / "out.ndjson")
    assert (1, True) == (done.code, "No space left" in done.said)
    assert ["in.ndjson"] == [file.name for file in tmp_path.iterdir()]


def test_an_export_that_is_interrupted_leaves_no_file(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", [{"id": "a"}]))
    monkeypatch.setattr(Display, "update", lambda *_: signal.raise_signal(signal.SIGINT))
    assert 130 == run(dsn, "export", tmp_path / "out.ndjson").code
    assert ["in.ndjson"] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("out.xyz",), "--format"),
        (("out.json",), "ndjson, csv or sqlite"),
        (("-", "--format", "sqlite"), "name a file"),
        (("out.csv", "--fields", "name"), "data.address.city"),
        (("out.csv", "--fields", "id.x"), "data.address.city"),
        (("out.ndjson", "--fields", "id"), "CSV"),
        (("no/such/out.csv",), "directory"),
    ],
)
def test_wrong_usage_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("postgresql:///nowhere?host=/nowhere", "export", *arguments)
    assert 2 == done.code, done.said
    assert says in done.said


def test_an_import_of_its_own_export_changes_nothing(dsn: str, tmp_path: Path) -> None:
    made = [{"id": f"i{n}", "data": {"n": n}} for n in range(20)]
    moved(dsn, "import", ndjson(tmp_path / "in.ndjson", made))
    moved(dsn, "export", tmp_path / "out.ndjson")
    before = query(dsn, "SELECT id, version FROM items ORDER BY id")
    assert "20 unchanged" in moved(dsn, "import", tmp_path / "out.ndjson")
    assert before == query(dsn, "SELECT id, version FROM items ORDER BY id")
    assert {f"i{n}": {"n": n} for n in range(20)} == datas(dsn)
