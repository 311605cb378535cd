"""How all items get out of PostgreSQL and into Python objects: the store's way beside others.

    python -m benchmarks.preloading [--quick] [--items 1000000] [--runs 5]

Each way brings every item as (id, packed entry), which is counted. Beside them stands the raw
COPY of the same rows, thrown away.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from matplotlib.figure import Figure

from benchmarks import command
from benchmarks.data import Dataset
from benchmarks.report import Result, Table, environment, ratios, spread
from benchmarks.servers import postgres
from benchmarks.startup import copy_out
from benchmarks.ways import bars, cost
from itemstore.core.cache import Cache, Row
from itemstore.core.queue import WriteQueue
from itemstore.loader import Loader
from itemstore.log import library_logger
from itemstore.packer import Packer
from itemstore.storage import statements
from itemstore.storage.postgres import Postgres
from itemstore.storage.session import Session
from itemstore.storage.walk import Walk

ITEMS: Final = 1_000_000

_PACKED: Final = "int8send(version) || timestamptz_send(created_at) || json_send(data)"
_COLUMNS: Final = "int8send(version), timestamptz_send(created_at), json_send(data)"
ARRAYS: Final = statements.BLOCKS.replace(f"id, {_PACKED}", f"array_agg(id), array_agg({_PACKED})")
COLUMNS: Final = statements.BLOCKS.replace(_PACKED, _COLUMNS)
ROWS: Final = f"SELECT id, {_PACKED} FROM items".encode()
COPY_BINARY: Final = b"COPY (%b) TO STDOUT (FORMAT BINARY)" % ROWS
COUNT_BLOCKS: Final = "SELECT pg_relation_size('items') / current_setting('block_size')::int"

_FIELDS: Final = struct.Struct(">hi")
_LENGTH: Final = struct.Struct(">i")

#: Brings all items of a database; the number of them.
Way = Callable[[str], Awaitable[int]]


def main() -> None:
    given = command.parse_size(__doc__, ITEMS)
    items, runs = given.items, given.runs
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("preloading", environment(server_dsn))
        with command.datasets(server_dsn, [items], bar) as [dataset]:
            _settle(dataset)
            copy_out(dataset.dsn)  # the first reading is not counted
            task = bar.add_task("preloading", total=runs * len(WAYS))
            for _ in range(runs):
                result.add(items, "copy", total_s=copy_out(dataset.dsn))
                for name, way in WAYS.items():
                    _measure(name, way, dataset, result)
                    bar.advance(task)
    command.finish(result, tables(result), plot, given)


def _settle(dataset: Dataset) -> None:
    """Nothing has changed since the items were loaded; else all would be walked through twice."""
    with psycopg.connect(dataset.dsn, autocommit=True) as connection:
        connection.execute(b"UPDATE writer_lease SET settled = 9000000000000000")


def _measure(name: str, way: Way, dataset: Dataset, result: Result) -> None:
    async def job() -> None:
        brought = await way(dataset.dsn)
        if brought != dataset.items:
            raise RuntimeError(f"{name} brought {brought} of {dataset.items} items")

    spent = cost(job)
    result.add(dataset.items, name, total_s=spent.total_s, cpu_s=spent.cpu_s, turn_ms=spent.turn_ms)


async def _installed(dsn: str) -> int:
    """As the store does it, into a cache."""
    cache, queue, storage, log = Cache(packs=True), WriteQueue(), Postgres(dsn), library_logger()
    await Loader(cache, queue, storage, log, Packer(cache, queue, log)).preload(0)
    await storage.close()
    return len(cache)


async def _walked(dsn: str) -> int:
    async with _session(dsn) as session:
        return await _follow(Walk(session))


async def _narrow(dsn: str) -> int:
    async with _session(dsn, on_connect="") as session:
        return await _follow(Walk(session))


async def _follow(walk: Walk) -> int:
    count, position = 0, 0
    while True:
        rows, following = await walk.page(position)
        count += len(rows)
        if following is None:
            return count
        position = following


@asynccontextmanager
async def _session(dsn: str, on_connect: str = statements.WIDEN) -> AsyncIterator[Session]:
    session = Session(dsn, "itemstore benchmark", on_connect=on_connect)
    try:
        yield session
    finally:
        await session.end()


def _blocks(
    step: int, statement: str = statements.BLOCKS, unpack: Callable[[Any], Iterable[Row]] = list
) -> Way:
    """Pages of so many blocks of 8 KiB."""

    async def bring(dsn: str) -> int:
        async with _session(dsn) as session:
            [(end,)] = await session.run(COUNT_BLOCKS)
            return await _range(session, 0, end, step, statement, unpack)

    return bring


async def _range(
    session: Session,
    first: int,
    end: int,
    step: int,
    statement: str = statements.BLOCKS,
    unpack: Callable[[Any], Iterable[Row]] = list,
) -> int:
    count = 0
    for block in range(first, end, step):
        limits = {"first": f"({block},0)", "end": f"({min(block + step, end)},0)"}
        rows = unpack(await session.run(statement, limits, binary=True))
        count += sum(1 for _ in rows)
    return count


def _from_arrays(rows: list[tuple[list[str] | None, list[bytes] | None]]) -> Iterable[Row]:
    [(ids, entries)] = rows
    return zip(ids or (), entries or (), strict=True)


def _packed_here(rows: list[tuple[str, bytes, bytes, bytes]]) -> Iterable[Row]:
    return [(item_id, version + created + data) for item_id, version, created, data in rows]


async def _two(dsn: str) -> int:
    """Each connection half of the table."""
    async with _session(dsn) as one, _session(dsn) as other:
        [(end,)] = await one.run(COUNT_BLOCKS)
        middle = end // 2
        return sum(await asyncio.gather(_range(one, 0, middle, 64), _range(other, middle, end, 64)))


async def _in_thread(dsn: str) -> int:
    """The driver waits and reads in a thread, a page at a time."""
    count = 0
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        cursor = connection.cursor(binary=True)
        cursor.execute(statements.WIDEN.encode())
        [(end,)] = cursor.execute(COUNT_BLOCKS.encode()).fetchall()

        def page(block: int) -> list[Any]:
            limits = {"first": f"({block},0)", "end": f"({block + 64},0)"}
            return cursor.execute(statements.BLOCKS.encode(), limits).fetchall()

        for block in range(0, end, 64):
            count += len(await asyncio.to_thread(page, block))
    return count


async def _streamed(dsn: str) -> int:
    count = 0
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        async for _ in connection.cursor(binary=True).stream(ROWS, size=2_000):
            count += 1
    return count


async def _copied(dsn: str) -> int:
    """A message of the protocol is a row: two fields, each with its length before it."""
    count = 0
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        connection.cursor().copy(COPY_BINARY) as copy,
    ):
        async for message in copy:
            row = bytes(message)
            row = row[19:] if row.startswith(b"PGCOPY") else row
            fields, length = _FIELDS.unpack_from(row) if len(row) > 2 else (-1, 0)
            if fields == 2:
                end = _FIELDS.size + length
                _ = row[_FIELDS.size : end].decode(), row[end + _LENGTH.size :]
                count += 1
    return count


INSTALLED: Final = "the whole preload, into the cache"
STORE: Final = "the store's walk: 512 KiB pages"
WAYS: Final[dict[str, Way]] = {
    INSTALLED: _installed,
    STORE: _walked,
    "the same, libpq's buffer as it begins": _narrow,
    "256 KiB pages": _blocks(32),
    "1 MiB pages": _blocks(128),
    "a page as two arrays": _blocks(64, ARRAYS, _from_arrays),
    "packed in Python": _blocks(64, COLUMNS, _packed_here),
    "two connections, half each": _two,
    "fetched in a thread": _in_thread,
    "psycopg's stream, 2,000 rows": _streamed,
    "binary COPY": _copied,
}


def tables(result: Result) -> list[Table]:
    [items] = result.sizes()
    copy = result.of(items, "copy")["total_s"]
    rows = []
    for way in WAYS:
        values = result.of(items, way)
        rows.append(
            (
                way,
                spread(ratios(values["total_s"], copy)),
                spread(ratios(values["cpu_s"], result.of(items, STORE)["cpu_s"])),
                spread(values["turn_ms"]),
            )
        )
    columns = ("way", "time / raw COPY", "CPU / the walk's", "longest turn, ms of CPU")
    return [Table(f"{items:,} items out of PostgreSQL", columns, rows)]


def plot(result: Result) -> Figure:
    return bars(result, ["copy", *WAYS], "total_s", "seconds")


if __name__ == "__main__":
    main()
