"""Indexes over fields of data, made and dropped while stores go on reading and writing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow

from itemstore.core.index import NAME_PREFIX, Index
from itemstore.storage import StorageBroken, StorageError, statements
from itemstore.storage.session import classify, conninfo

PROGRESS_S: Final = 1.0

#: Is told how far a build is, in percent.
Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Found:
    """An index of ours as it is in the database."""

    name: str
    made_for: str  #: the field and the kind; empty for one whose making was broken off
    is_valid: bool  #: a build that failed leaves one that costs writes and serves nothing
    size: int  #: bytes
    scans: int  #: how often it was used since PostgreSQL's statistics began
    building: int | None  #: percent; None if nobody is at it


async def find(dsn: str) -> list[Found]:
    """The indexes that ``create`` made, by name. Raises StorageError."""
    async with _connection(dsn) as connection:
        return await _found(connection)


async def create(dsn: str, index: Index, tell: Tell) -> bool:
    """Makes the index without holding up writes; False if it was there.

    What a failed build left is dropped first. Raises StorageError.
    """
    async with _connection(dsn) as connection:
        before = {each.name: each for each in await _found(connection)}.get(index.name)
        if before is not None and before.building is not None:
            raise StorageBroken(f"it is being built by another session: {before.building} %")
        if before is not None and before.is_valid and before.made_for:
            return False
        if before is not None:
            await connection.execute(statements.drop_index(index.name).encode())
        watching = asyncio.create_task(_watch(dsn, index.name, tell))
        try:
            await connection.execute(statements.create_index(index).encode())
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        await connection.execute(statements.ANALYZE.encode())
        await connection.execute(statements.describe_index(index).encode())
        return True


async def drop(dsn: str, name: str) -> bool:
    """Drops an index that ``create`` made; False if there is none. Raises StorageError."""
    async with _connection(dsn) as connection:
        if name not in {each.name for each in await _found(connection)}:
            return False
        await connection.execute(statements.drop_index(name).encode())
        return True


async def _watch(dsn: str, name: str, tell: Tell) -> None:
    """On a connection of its own: the other one is busy."""
    with suppress(StorageError):
        async with _connection(dsn) as connection:
            while True:
                await asyncio.sleep(PROGRESS_S)
                for each in await _found(connection):
                    if each.name == name and each.building is not None:
                        tell(each.building)


async def _found(connection: psycopg.AsyncConnection[TupleRow]) -> list[Found]:
    parameters: dict[str, Any] = {"prefix": NAME_PREFIX}
    cursor = await connection.execute(statements.INDEXES.encode(), parameters)
    return [Found(*row) for row in await cursor.fetchall()]


@asynccontextmanager
async def _connection(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo(dsn, "itemstore index"), autocommit=True, prepare_threshold=None
        )
        async with connection:
            yield connection
    except psycopg.Error as error:
        raise classify(error) from error
