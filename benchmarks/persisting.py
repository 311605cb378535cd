"""How changes get into PostgreSQL: the store's batch beside others, and what each part costs.

    python -m benchmarks.persisting [--quick] [--items 100000] [--runs 5]

Each measurement replaces random items, in transactions of one batch each. What PostgreSQL's
process and ours take is CPU time, which other processes of the machine do not change much.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
import psycopg
from matplotlib.figure import Figure

from benchmarks import command
from benchmarks.data import SEED, Dataset
from benchmarks.data import rows as generated
from benchmarks.report import Result, Table, environment, ratios, spread
from benchmarks.servers import postgres
from benchmarks.spent import LOG_BYTES, cpu_s
from benchmarks.ways import bars, cost
from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.options import Options
from itemstore.storage import Claim, statements
from itemstore.storage.postgres import Postgres, arrays, fields
from itemstore.storage.session import PREPARE_THRESHOLD

ITEMS: Final = 100_000
BATCH: Final = Options().batch_items_max
ROWS: Final = 10_000  # written in a measurement
COMMITS_MAX: Final = 100
SIZES: Final = (1, 10, 32, 100, 250, 1_000, 2_000, 4_000)
TOMBSTONES: Final = 100_000

Connection = psycopg.AsyncConnection[Any]
Batches = list[list[Change]]
#: Writes all batches.
Way = Callable[["Target", Batches], Coroutine[Any, Any, None]]


@dataclass
class Target:
    """A database with items, whose lease is ours."""

    dataset: Dataset
    epoch: int
    server_s: float = 0.0  #: CPU time of the PostgreSQL processes of closed connections
    tick: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(SEED)
        self.rows = list(generated(self.dataset.items))
        self.tick = time.time_ns() // 1_000

    def claim(self) -> dict[str, Any]:
        self.tick += 1
        return fields(_claim(self.epoch, self.tick))

    def batches(self, size: int) -> Batches:
        """Random items with data of others, each batch sorted by id as the queue does."""
        count = max(1, min(ROWS // size, COMMITS_MAX, self.dataset.items // size))
        return [sorted(self._changes(size), key=lambda change: change.id) for _ in range(count)]

    def _changes(self, size: int) -> Iterator[Change]:
        for row in self.chance.sample(self.rows, min(size, len(self.rows))):
            self.tick += 1
            entry = pack(self.tick, row.created_us, self.chance.choice(self.rows).data)
            yield Change(row.id, self.tick, entry, deleted=False, now_s=0.0)

    @asynccontextmanager
    async def connect(self, *, plans: bool = True) -> AsyncIterator[Connection]:
        """With its plans kept, as the store's, or as behind a pooler."""
        async with await psycopg.AsyncConnection.connect(
            self.dataset.dsn, autocommit=True, prepare_threshold=None
        ) as connection:
            if plans:
                await connection.execute(statements.BY_KEYS.encode())
                connection.prepare_threshold = PREPARE_THRESHOLD
            yield connection
            self.server_s += cpu_s(connection.info.backend_pid)


def _claim(epoch: int, clock: int) -> Claim:
    return Claim("benchmark", epoch, lease_s=3_600.0, clock=clock, settled=0, high_water=clock)


def _by(
    statement: str,
    parameters: Callable[[list[Change]], dict[str, Any]] = arrays,
    *,
    plans: bool = True,
) -> Way:
    async def write(target: Target, batches: Batches) -> None:
        async with target.connect(plans=plans) as connection:
            for batch in batches:
                await _send(connection, statement, parameters(batch) | target.claim())

    return write


async def _send(connection: Connection, statement: str, parameters: dict[str, Any]) -> None:
    cursor = await connection.execute(statement.encode(), parameters)
    [(is_wanted, _, _)] = await cursor.fetchall()
    if is_wanted is None:
        raise RuntimeError("the lease is not ours, so that nothing was written")


def _as_json(batch: list[Change]) -> dict[str, Any]:
    parts = [
        b'{"id":%b,"version":%d,"created":%d,"acked":%b,"data":%b}'
        % (
            orjson.dumps(change.id),
            change.version,
            change.created_us,
            b"true" if change.is_acked else b"false",
            change.data or b"null",
        )
        for change in batch
    ]
    return {"rows": (b"[%b]" % b",".join(parts)).decode()}


async def _staged(target: Target, batches: Batches) -> None:
    """Three commands in one transaction; a temporary table must live as long as the session."""
    async with target.connect() as connection:
        await connection.execute(STAGE)
        for batch in batches:
            async with connection.transaction():
                async with connection.cursor().copy(COPY_IN) as copy:
                    copy.set_types(("text", "json", "int8", "int8", "bool"))
                    for row in zip(*arrays(batch).values(), strict=True):
                        await copy.write_row(row)
                await _send(connection, MERGE, target.claim())
                await connection.execute(b"TRUNCATE staged")


def _halved(statement: str) -> Way:
    """Two connections, half of each batch each."""

    async def write(target: Target, batches: Batches) -> None:
        async with target.connect() as one, target.connect() as other:
            for batch in batches:
                middle = len(batch) // 2
                await asyncio.gather(
                    _send(one, statement, arrays(batch[:middle]) | target.claim()),
                    _send(other, statement, arrays(batch[middle:]) | target.claim()),
                )

    return write


def _replaced(text: str, *parts: tuple[str, str]) -> str:
    """Raises ValueError if the store's statement has changed so that a part is not in it."""
    for old, new in parts:
        if old not in text:
            raise ValueError(f"not in the statement: {old}")
        text = text.replace(old, new)
    return text


def _between(text: str, begin: str, end: str) -> str:
    """From begin to just before end."""
    start = text.index(begin)
    return text[start : text.index(end, start)]


W: Final = statements.WRITE
_SOURCE: Final = _between(W, "unnest(", "\n     WHERE EXISTS")
_FREELY: Final = _replaced(W, (_between(W, " AND version BETWEEN", "\n)"), ""))
_JSON_COLUMNS: Final = "(id text, data json, version bigint, created bigint, acked boolean)"
_NO_LEASE: Final = (
    "UPDATE writer_lease SET settled = settled WHERE false RETURNING true AS is_wanted"
)

AS_TEXT: Final = _replaced(W, (")b::", ")s::"))
AS_JSON: Final = _replaced(
    W, (_SOURCE, f"json_to_recordset(%(rows)s::json) AS b {_JSON_COLUMNS}"), ("data::json", "data")
)
UPSERTS_ONLY: Final = _replaced(W, (_between(W, "), deleted AS", "\n)\nSELECT"), ""))
STAGE: Final = b"CREATE TEMPORARY TABLE staged (id text, data json, version bigint, created bigint, acked boolean)"  # noqa: E501
COPY_IN: Final = b"COPY staged FROM STDIN (FORMAT BINARY)"
MERGE: Final = _replaced(W, (_SOURCE, "staged AS b"))
#: As if the lease needed no lock: what two connections could give at best.
UNLEASED: Final = _replaced(
    W,
    (_between(W, "UPDATE writer_lease", "\n)"), _NO_LEASE),
    ("EXISTS (SELECT FROM lease) AND", "true AND"),
    ("NOT EXISTS (SELECT FROM lease)", "false"),
    ("(SELECT is_wanted FROM lease)", "true"),
)

STORE: Final = "the store's: arrays in binary"
PLANNED: Final = "planned each time, as behind a pooler"
WAYS: Final[dict[str, Way]] = {
    STORE: _by(W),
    "arrays as text": _by(AS_TEXT),
    "one JSON text": _by(AS_JSON, _as_json),
    "upserts only, no deletes": _by(UPSERTS_ONLY),
    PLANNED: _by(W, plans=False),
    "COPY, then merge": _staged,
    "two connections": _halved(W),
    "two connections, no lease": _halved(UNLEASED),
    "one connection, no lease": _by(UNLEASED),
}

_VERSION: Final = ("DROP INDEX items_version", "CREATE INDEX items_version ON items (version)")
_CREATED: Final = (
    "DROP INDEX items_created_at_id",
    "CREATE INDEX items_created_at_id ON items (created_at, id)",
)
#: Part of schema.sql → statements that take it away, and bring it back.
PARTS: Final[dict[str, tuple[str, str]]] = {
    "index items_version": _VERSION,
    "index items_created_at_id": _CREATED,
    "both indexes": (";".join((_VERSION[0], _CREATED[0])), ";".join((_VERSION[1], _CREATED[1]))),
    "triggers": ("ALTER TABLE items DISABLE TRIGGER USER", "ALTER TABLE items ENABLE TRIGGER USER"),
    "check of the id": (
        "ALTER TABLE items DROP CONSTRAINT items_id",
        "ALTER TABLE items ADD CONSTRAINT items_id CHECK (octet_length(id) BETWEEN 1 AND 512 AND"
        " id NOT IN ('.', '..') AND id !~ '[\\u0001-\\u001f\\u007f-\\u009f]') NOT VALID",
    ),
}

_BURY: Final = (
    f"INSERT INTO tombstones SELECT 'dead ' || n, n, now() FROM generate_series(1, {TOMBSTONES}) n;"
    "ANALYZE tombstones",
    "TRUNCATE tombstones",
)
AMONG: Final = f"{TOMBSTONES:,} tombstones"
AMONG_PLANNED: Final = f"{AMONG}, planned each time"
FREELY: Final = f"{AMONG}, planned as it likes"


def main() -> None:
    given = command.parse_size(__doc__, ITEMS)
    items, runs = given.items, given.runs
    with command.progress() as bar, postgres() as server_dsn:
        result = Result("persisting", environment(server_dsn))
        with command.datasets(server_dsn, [items], bar) as [dataset]:
            target = Target(dataset, asyncio.run(_take_lease(dataset.dsn)))
            cost(lambda: WAYS[STORE](target, target.batches(BATCH)))  # the first is not counted
            task = bar.add_task("persisting", total=runs)
            for _ in range(runs):
                _run(target, result)
                bar.advance(task)
    command.finish(result, tables(result), plot, given)


async def _take_lease(dsn: str) -> int:
    """Its epoch."""
    storage = Postgres(dsn)
    await storage.open()
    grant = await storage.acquire(_claim(0, 0), "", None)
    await storage.close()
    if grant is None:
        raise RuntimeError("another instance holds the lease of the benchmark's database")
    return grant.epoch


class Job(NamedTuple):
    name: str
    way: Way
    size: int = BATCH
    #: Statements that change the tables for it, and change them back.
    change: tuple[str, str] = ("", "")


def _jobs() -> Iterator[Job]:
    for name, way in WAYS.items():
        yield Job(name, way)
    for size in SIZES:
        yield Job(_sized(size), _by(W), size)
        yield Job(_planned(size), _by(W, plans=False), size)
    for part, change in PARTS.items():
        yield Job(_without(part), _by(W), change=change)
    yield Job(AMONG, _by(W), change=_BURY)
    yield Job(AMONG_PLANNED, _by(W, plans=False), change=_BURY)
    yield Job(FREELY, _by(_FREELY, plans=False), change=_BURY)


def _run(target: Target, result: Result) -> None:
    """Each job once, in another order each time: the indexes grow from one to the next."""
    jobs = list(_jobs())
    target.chance.shuffle(jobs)
    for job in jobs:
        with _changed(target.dataset.dsn, *job.change):
            _measure(job, target, result)


def _sized(size: int) -> str:
    return f"batches of {size:,}"


def _planned(size: int) -> str:
    return f"{_sized(size)}, planned each time"


def _without(part: str) -> str:
    return f"without {part}"


@contextmanager
def _changed(dsn: str, change: str, back: str) -> Iterator[None]:
    _execute(dsn, *filter(None, change.split(";")))
    yield
    _execute(dsn, *filter(None, back.split(";")))


def _execute(dsn: str, *commands: str) -> Any:
    """The first value that the last one brings."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.cursor()
        for each in commands:
            cursor.execute(each.encode())
        return next(itertools.chain(*cursor.fetchall())) if cursor.description else None


def _measure(job: Job, target: Target, result: Result) -> None:
    """One measurement, on a table without dead rows."""
    dsn = target.dataset.dsn
    _execute(dsn, "VACUUM items", "VACUUM tombstones", "VACUUM writer_lease")
    batches, written = target.batches(job.size), _execute(dsn, LOG_BYTES)
    target.server_s = 0.0
    spent = cost(lambda: job.way(target, batches))
    rows = sum(map(len, batches))
    result.add(
        target.dataset.items,
        job.name,
        rows_per_s=rows / spent.total_s,
        batch_ms=spent.total_s * 1_000 / len(batches),
        server_us=target.server_s * 1_000_000 / rows,
        loop_us=spent.cpu_s * 1_000_000 / rows,
        turn_ms=spent.turn_ms,
        wal_bytes=(_execute(dsn, LOG_BYTES) - written) / rows,
    )


def tables(result: Result) -> list[Table]:
    return [_ways(result), _sizes(result), _parts(result)]


def _against(result: Result, mode: str, measure: str) -> str:
    """As a multiple of the store's, run by run."""
    [items] = result.sizes()
    return _compared(result.of(items, mode)[measure], result.of(items, STORE)[measure])


def _compared(values: list[float], others: list[float]) -> str:
    """Small measurements may take less than a hundredth of a second."""
    return spread(ratios(values, others)) if all(others) else "–"


def _ways(result: Result) -> Table:
    [items] = result.sizes()
    rows = [
        (
            name,
            _against(result, name, "rows_per_s"),
            _against(result, name, "server_us"),
            spread(result.of(items, name)["loop_us"]),
            spread(result.of(items, name)["turn_ms"]),
        )
        for name in WAYS
    ]
    columns = ("way", "rows/s", "PostgreSQL's CPU", "our CPU, µs a row", "longest turn, ms of CPU")
    return Table(f"Batches of {BATCH:,}; as multiples of the first", columns, rows)


def _sizes(result: Result) -> Table:
    [items] = result.sizes()
    names = {size: (_sized(size), _planned(size)) for size in SIZES} | {BATCH: (STORE, PLANNED)}
    rows = []
    for size, (kept, planned) in sorted(names.items()):
        values, others = result.of(items, kept), result.of(items, planned)
        rows.append(
            (
                f"{size:,}",
                _against(result, kept, "rows_per_s"),
                _against(result, kept, "server_us"),
                spread(values["batch_ms"]),
                spread(values["turn_ms"]),
                spread(ratios(values["batch_ms"], others["batch_ms"])),
                _compared(values["server_us"], others["server_us"]),
            )
        )
    columns = (
        "items a batch",
        "rows/s",
        "PostgreSQL's CPU",
        "ms a batch",
        "longest turn, ms of CPU",
        "time, plans kept",
        "PostgreSQL's CPU, plans kept",
    )
    title = f"Batch sizes; as multiples of {BATCH:,}, and kept plans of planning each time"
    return Table(title, columns, rows)


def _parts(result: Result) -> Table:
    rows = [
        (
            name,
            _against(result, name, "rows_per_s"),
            _against(result, name, "server_us"),
            _against(result, name, "wal_bytes"),
        )
        for name in (*map(_without, PARTS), AMONG, AMONG_PLANNED, FREELY)
    ]
    columns = ("store's batch", "rows/s", "PostgreSQL's CPU", "bytes of its log")
    return Table("Parts of the schema; as multiples of the whole", columns, rows)


def plot(result: Result) -> Figure:
    ways = [*WAYS, *map(_without, PARTS), AMONG, AMONG_PLANNED, FREELY]
    return bars(result, ways, "rows_per_s", "rows a second")


if __name__ == "__main__":
    main()
