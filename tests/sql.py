"""The store's database for tests: seen from outside, and written to without a lease."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg

from itemstore.core.cache import Row
from itemstore.core.queue import Change
from itemstore.storage import Claim, Standing, Storage
from itemstore.storage.postgres import Postgres

#: Makes the tables as they were after schema.sql, for the next test of a shared database.
EMPTY = """
TRUNCATE items, tombstones, quarantine;
DELETE FROM foreign_changes;
UPDATE id_blocks SET next = 0;
DELETE FROM writer_lease;
INSERT INTO writer_lease DEFAULT VALUES
"""

#: Of somebody who never held the lease.
NO_CLAIM: Final = Claim("nobody", epoch=0, lease_s=10.0, clock=0, settled=0, high_water=0)


class Holder(Postgres):
    """PostgreSQL for tests of statements: it takes the lease from whoever has it, once."""

    _claim = NO_CLAIM

    async def write(self, changes: Sequence[Change], claim: Claim | None = None) -> Standing:
        if claim is None and not self._claim.epoch:
            former = (await self.lease()).holder
            grant = await self.acquire(self._claim, "", former)
            assert grant is not None
            self._claim = replace(self._claim, epoch=grant.epoch)
            await self._lessee.run("UPDATE writer_lease SET settled = 0")  # tests count versions
        return await super().write(changes, claim or self._claim)


_numbers = itertools.count(1)


def make_database(server_dsn: str, options: str = "") -> str:
    """A new empty database; its DSN. ``options`` are those of CREATE DATABASE."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" {options}'.encode())
    return psycopg.conninfo.make_conninfo(server_dsn, dbname=name)


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


async def loaded(storage: Storage, ids: Sequence[str]) -> list[Row]:
    """Those of the ids that exist, asked for until all have come."""
    rows: list[Row] = []
    while True:
        known = {item_id for item_id, _ in rows}
        some, total = await storage.load([each for each in ids if each not in known])
        assert len(some) > 0 or total == 0
        rows += some
        if len(some) == total:
            return rows
