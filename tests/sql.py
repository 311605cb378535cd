"""Plain SQL for tests: what the store's database holds, seen from outside."""

from __future__ import annotations

from typing import Any

import psycopg

#: Makes the tables as they were after schema.sql, for the next test of a shared database.
EMPTY = """
TRUNCATE items, tombstones, quarantine;
DELETE FROM foreign_changes;
UPDATE id_blocks SET next = 0
"""


def query(dsn: str, statement: str, *parameters: object) -> list[Any]:
    """The rows; of a single column, its values."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        rows = cursor.fetchall() if cursor.description else []
    return [row[0] if len(row) == 1 else row for row in rows]


def tables(dsn: str) -> tuple[list[Any], list[Any]]:
    """All there is: items as (id, version, data) and tombstones as (id, version)."""
    return (
        query(dsn, "SELECT id, version, data::text FROM items ORDER BY id"),
        query(dsn, "SELECT id, version FROM tombstones ORDER BY id"),
    )
