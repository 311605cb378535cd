"""How PostgreSQL goes about the statements: by keys and indexes, however large the tables are."""

from __future__ import annotations

import re

import psycopg

from itemstore.core.ids import scramble
from itemstore.storage import statements
from tests.sql import Holder, query

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


def test_arrays_go_in_binary() -> None:
    """No array is a text, which takes the event loop fifty times as long to put together."""
    texts = [text for text in vars(statements).values() if isinstance(text, str)]
    assert [] == [text for text in texts if re.search(r"%\(\w+\)s::\w+\[\]", text)]
    assert any(re.search(r"%\(\w+\)b::\w+\[\]", text) for text in texts)
