"""What an import takes while it runs: memory, the lease, and no more."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from itemstore.core.operation import Conflict, Import
from itemstore.errors import MovingError
from itemstore.moving import direct
from itemstore.moving.direct import Direct
from itemstore.moving.record import Rejected, Row
from itemstore.storage import StorageAway
from itemstore.store import ItemStore
from tests.moving.moves import begun, moved, ndjson
from tests.sql import query

MIB: Final = 1024 * 1024
STREAM_BYTES: Final = int(os.environ.get("IMPORT_STREAM_MIB", "100")) * MIB
WARM_BYTES: Final = 24 * MIB  # by then every part of the program has been used
GROWTH_BYTES_MAX: Final = 40 * MIB


def lines(item_bytes: int) -> Iterator[str]:
    text = "memory " * (item_bytes // 7)
    for number in range(STREAM_BYTES // len(text)):
        yield f'{{"id":"i{number}","data":{{"n":{number},"text":"{text}"}}}}\n'


@pytest.mark.slow
@pytest.mark.parametrize("item_bytes", [20_000, 700_000])
def test_memory_does_not_grow_with_the_source(dsn: str, item_bytes: int) -> None:
    """Peak resident memory (proc(5), VmHWM) after 24 MiB of the stream, and at its end."""
    process = begun(dsn, "import", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    sent, warm, count = 0, 0, 0
    for line in lines(item_bytes):
        process.stdin.write(line)
        sent, count = sent + len(line), count + 1
        if not warm and sent > WARM_BYTES:
            warm = peak(process.pid)
    grown = peak(process.pid) - warm
    said, _ = process.communicate(timeout=100)
    assert 0 == process.returncode, said
    assert [count] == query(dsn, "SELECT count(*) FROM items")
    assert grown < GROWTH_BYTES_MAX, f"{grown / MIB:.0f} MiB"


def peak(pid: int) -> int:
    """In bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    pytest.skip("/proc does not tell the memory of a process")


def row(number: int, data: Any = None) -> Row:
    return Row(number, f"i{number}", Import(f"i{number}", data or {}, None, None, Conflict.NEWER))


async def test_the_lease_is_held_while_the_source_is_silent_and_then_given_back(dsn: str) -> None:
    async with Direct.open(dsn, None, 0.5, dry=False) as target:
        await target.put([row(1)])
        [first] = query(dsn, "SELECT expires_at FROM writer_lease")
        while query(dsn, "SELECT expires_at FROM writer_lease") == [first]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert [True] == query(dsn, "SELECT holder LIKE '%%import%%' FROM writer_lease")
    assert [None] == query(dsn, "SELECT holder FROM writer_lease")


async def test_who_has_lost_the_lease_writes_nothing_more(dsn: str) -> None:
    async with Direct.open(dsn, None, 10.0, dry=False) as target:
        await target.put([row(1)])
        query(dsn, "UPDATE writer_lease SET epoch = epoch + 1, holder = 'another'")
        with pytest.raises(MovingError, match="--server"):
            await target.put([row(2)])
    assert ["i1"] == query(dsn, "SELECT id FROM items")
    assert ["another"] == query(dsn, "SELECT holder FROM writer_lease")


async def test_a_failover_that_lost_commits_is_told(dsn: str) -> None:
    async with Direct.open(dsn, None, 10.0, dry=False) as target:
        await target.put([row(1)])
        query(dsn, "UPDATE writer_lease SET high_water = 1")
        with pytest.raises(MovingError, match="--restart"):
            await target.put([row(2)])


async def test_two_imports_do_not_write_at_once(dsn: str) -> None:
    async with Direct.open(dsn, None, 10.0, dry=False):
        with pytest.raises(MovingError, match="holds the writer lease"):
            async with Direct.open(dsn, None, 10.0, dry=False):
                pass
    async with Direct.open(dsn, None, 10.0, dry=False) as target:
        assert ["created"] == await target.put([row(1)])


async def test_a_statement_whose_answer_was_lost_is_repeated_and_counted_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "RETRY_S", 0.001)
    failures = [StorageAway("cut"), StorageAway("cut")]
    async with Direct.open(dsn, None, 10.0, dry=False) as target:
        write = target._storage.write

        async def broken(*arguments: Any) -> Any:
            standing = await write(*arguments)
            if failures:
                raise failures.pop()
            return standing

        monkeypatch.setattr(target._storage, "write", broken)
        assert ["created", "created"] == await target.put([row(1), row(2)])
    assert [2] == query(dsn, "SELECT count(*) FROM items")


async def test_a_postgresql_that_stays_away_ends_the_import(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "AWAY_MAX_S", 0.0)

    async def broken(*_: Any) -> Any:
        raise StorageAway("cut")

    async def put() -> None:
        async with Direct.open(dsn, None, 10.0, dry=False) as target:
            monkeypatch.setattr(target._storage, "write", broken)
            await target.put([row(1)])

    with pytest.raises(MovingError, match="cut"):
        await put()


async def test_what_postgresql_refuses_is_found_among_the_others(dsn: str) -> None:
    async with Direct.open(dsn, None, 10.0, dry=False) as target:
        query(dsn, "CREATE UNIQUE INDEX ON items ((data->>'n'))")
        rows = [row(n, {"n": n if n != 70 else 3}) for n in range(100)]
        results = await target.put(rows)
    refused = [each for each in results if isinstance(each, Rejected)]
    assert 1 == len(refused)
    assert refused[0].number in (3, 70)
    assert [99] == query(dsn, "SELECT count(*) FROM items")


async def test_a_store_that_is_opened_afterwards_has_everything_and_goes_on(
    dsn: str, tmp_path: Path
) -> None:
    """Its versions begin beyond those of the import, and no change is taken for a foreign one."""
    source = ndjson(tmp_path / "a.ndjson", [{"id": f"i{n}", "data": {"n": n}} for n in range(100)])
    await asyncio.to_thread(moved_in_process, dsn, source)
    newest = max(query(dsn, "SELECT version FROM items"))
    assert [] == query(dsn, "SELECT id FROM foreign_changes")
    async with ItemStore.open(dsn) as store:
        item = await store.get("i7")
        assert item is not None
        assert {"n": 7} == item.data
        assert item.is_new
        changed = await store.put("i7", {"n": 8})
        assert changed.version > newest


def moved_in_process(dsn: str, source: Path) -> None:
    process = begun(dsn, "import", source)
    said, _ = process.communicate(timeout=100)
    assert 0 == process.returncode, said


def test_a_deleted_item_comes_back_as_a_new_one(dsn: str, tmp_path: Path) -> None:
    source = ndjson(tmp_path / "a.ndjson", [{"id": "a", "data": {"n": 1}}])
    moved(dsn, "import", source)
    query(dsn, "DELETE FROM items")
    assert "1 created" in moved(dsn, "import", source)
    assert [] == query(dsn, "SELECT id FROM tombstones")


async def test_rows_that_are_decided_while_others_are_written_see_those(dsn: str) -> None:
    """Also where one of those is refused: then it is decided again, as if it had not been there."""
    async with Direct.open(dsn, None, 10.0, dry=False) as target:
        query(dsn, "CREATE UNIQUE INDEX ON items ((data->>'n'))")
        parts = [
            [row(1, {"n": 1}), row(2, {"n": 2}), row(3, {"n": 2})],
            [row(1, {"n": 1}), row(3, {"n": 9})],
        ]
        first, second = await asyncio.gather(*map(target.put, parts))
    assert [3] == [each.number for each in first if isinstance(each, Rejected)]
    assert ["unchanged", "created"] == second
    assert 3 == query(dsn, "SELECT count(*) FROM items")[0]
