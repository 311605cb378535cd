"""How PostgreSQL goes about the statements: by keys and indexes, however large the tables are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from itemstore.core.ids import scramble
from itemstore.storage import StorageAway, statements
from tests.faults.scenarios.base import Skipped
from tests.faults.scenarios.pooler import pooler
from tests.sql import Holder, query, tables
from tests.storage.test_postgres import delete, upsert

MANY = 50_000  # rows; beyond 200,000 any plan goes by the keys
BATCH = {
    "ids": [scramble(n, 1) for n in range(1_000)],
    "data": ["{}"] * 1_000,
    "versions": [2**50] * 1_000,
    "created": [2**50] * 1_000,
    "acked": [True] * 1_000,
    "holder": "",
    "epoch": 1,
    "lease_s": 10.0,
    "clock": 0,
    "settled": 0,
    "high_water": 0,
}
FILL = f"""
INSERT INTO tombstones SELECT 'dead ' || n, n, now() FROM generate_series(1, {MANY}) AS n;
INSERT INTO items SELECT 'live ' || n, '{{}}', n, now(), now() FROM generate_series(1, {MANY}) AS n;
ANALYZE tombstones;
ANALYZE items
"""


def plan(dsn: str, statement: str, parameters: dict[str, object]) -> str:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(f"EXPLAIN {statement}".encode(), parameters).fetchall()
    return "\n".join(line for (line,) in rows)


async def opened(dsn: str) -> None:
    """The tables, with many rows in them."""
    storage = Holder(dsn)
    await storage.open()
    await storage.close()
    query(dsn, FILL)


async def test_a_batch_is_looked_up_by_its_keys(each_dsn: str) -> None:
    """What a batch costs does not grow with the number of tombstones or items."""
    await opened(each_dsn)
    for statement in (statements.WRITE, statements.WRITE_LATE):
        found = plan(each_dsn, statement, BATCH)
        assert set() == set(re.findall(r"Seq Scan on (?:items|tombstones)", found)), found


async def test_changes_are_read_in_the_order_of_the_index(each_dsn: str) -> None:
    """A page of many changes reads no more than a page."""
    await opened(each_dsn)
    found = plan(each_dsn, statements.CHANGES, {"after": 1, "limit": 1_000})
    assert set() == set(re.findall(r"Seq Scan on (?:items|tombstones)", found)), found


async def written(dsn: str) -> tuple[int, str]:
    """Kept plans of the writer's connection after ten batches, and whether it may read tables."""
    storage = Holder(dsn)
    await storage.open()
    for version in range(1, 11):
        await storage.write([upsert("a", version), delete("b", version)])
    [[kept]] = await storage._writer.run("SELECT count(*) FROM pg_prepared_statements")
    [[scans]] = await storage._writer.run("SELECT current_setting('enable_seqscan')")
    await storage.close()
    return kept, scans


async def test_a_direct_writer_keeps_its_plans(each_dsn: str) -> None:
    """Once it was sent twice, a batch's statement is planned no more; its plan goes by the keys."""
    kept, scans = await written(each_dsn)
    assert kept > 0
    assert scans == "off"
    assert ([("a", 10, "{}")], [("b", 10)]) == tables(each_dsn)


async def test_behind_a_pooler_no_plan_is_kept(
    server: Callable[[int], str], public_dir: Path
) -> None:
    """PgBouncer in transaction mode is told from a direct connection, and nothing is set there."""
    dsn = server(18)
    bench: Any = SimpleNamespace(postgres=SimpleNamespace(dsn=dsn))
    try:
        async with pooler(bench, public_dir / "pooler") as pooled:
            assert (0, "on") == await written(pooled)
    except Skipped as reason:
        pytest.skip(str(reason))


async def test_a_pooler_that_passes_for_the_server_is_noticed(each_dsn: str) -> None:
    """A plan that is gone is StorageAway, and from then on none is kept."""
    storage = Holder(each_dsn)
    await storage.open()
    for version in (1, 2, 3):
        await storage.write([upsert("a", version)])
    await storage._writer.run("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    with pytest.raises(StorageAway, match="26000"):
        await storage.write([upsert("a", 4)])
    for version in (4, 5, 6):
        await storage.write([upsert("a", version)])
    [[kept]] = await storage._writer.run("SELECT count(*) FROM pg_prepared_statements")
    await storage.close()
    assert kept == 0
    assert ([("a", 6, "{}")], []) == tables(each_dsn)


def test_arrays_go_in_binary() -> None:
    """No array is a text, which takes the event loop fifty times as long to put together."""
    texts = [text for text in vars(statements).values() if isinstance(text, str)]
    assert [] == [text for text in texts if re.search(r"%\(\w+\)s::\w+\[\]", text)]
    assert any(re.search(r"%\(\w+\)b::\w+\[\]", text) for text in texts)
