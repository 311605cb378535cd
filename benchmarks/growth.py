"""What ``benchmarks.scaling`` measures of one store: so many items, each of such a size."""

from __future__ import annotations

import random
import statistics
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import psycopg

from benchmarks import openloop, wrk
from benchmarks.apis import ItemsApi
from benchmarks.client import Client, item_path
from benchmarks.comparison import sampled, settle
from benchmarks.data import SEED, Dataset, Row, WrongAnswer, check, item_id
from benchmarks.footprint import preloaded
from benchmarks.memory import SETTLE_S, memory_of
from benchmarks.requests_file import pack
from benchmarks.servers import Server, itemstore
from benchmarks.spent import measured
from benchmarks.startup import first_answer

TYPICAL: Final = 0  # the size of generated items, about 230 bytes
ITEM_BYTES: Final = (TYPICAL, 2_000, 20_000)
CONNECTIONS: Final = 32
PAGE: Final = 100  # items
RATES: Final = (100, 1_000, 5_000)  # writes a second

_READ: Final = 1_000  # items, one after the other
_LISTED: Final = 20  # pages
_COUNTED: Final = 3
_REQUESTS_MAX: Final = 20_000
_REQUESTS_BYTES_MAX: Final = 32_000_000  # wrk holds them all

#: The kinds of measurement.
STORED: Final = "stored"
LAZY: Final = "lazy"
PLAIN: Final = "plain"
PACKED: Final = "packed"
LISTS: Final = "lists"
WRITES: Final = "writes"

_PLAIN: Final = {"SKIP_ITEMS_PRELOAD": "false", "CACHE_COMPRESSION": "off"}
_PACKED: Final = _PLAIN | {"CACHE_COMPRESSION": "zstd"}

#: A relation's own pages, and those of what is kept outside of its rows.
_SIZES: Final = b"""
SELECT pg_relation_size('items'), pg_table_size('items') - pg_relation_size('items'),
       pg_relation_size('items_pkey'), pg_relation_size('items_created_at_id'),
       pg_relation_size('items_version')
"""


class Point(NamedTuple):
    """One store that is measured."""

    items: int
    item_bytes: int = TYPICAL

    def mode(self, kind: str) -> str:
        return f"{kind}, {self.item_bytes} bytes" if self.item_bytes else kind


#: Takes note of one run of a kind.
Add = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Store:
    """A loaded database, and where requests to it are kept."""

    dataset: Dataset
    directory: Path
    seconds: float  #: that one measurement takes

    def requests(self, work: str) -> Path:
        """GETs, or PUTs of that durability, of random items in packed form."""
        file = self.directory / work
        if not file.exists():
            file.write_bytes(pack(self._requests(work)))
        return file

    def _requests(self, work: str) -> Iterator[bytes]:
        chance = random.Random(f"{SEED} {work}")
        each_bytes = 200 + self.dataset.json_bytes // self.dataset.items
        for _ in range(min(_REQUESTS_MAX, _REQUESTS_BYTES_MAX // each_bytes)):
            wanted = item_id(chance.randrange(self.dataset.items))
            if work == "get":
                yield ItemsApi().get(wanted)
            else:
                yield ItemsApi(work).put(wanted, chance.choice(self.dataset.sample).data)

    def rate(self, server: Server, work: str) -> wrk.Run:
        return wrk.run(
            server.port,
            self.requests(work),
            connections=CONNECTIONS,
            seconds=self.seconds,
            start=0,
            refused=False,
        )


def warm_up(store: Store) -> None:
    """The first start takes over what others have written; the later ones need not."""
    with itemstore(store.dataset.dsn) as server:
        server.wait_for("/readyz")


def measure_stored(store: Store, add: Add) -> None:
    """Bytes in PostgreSQL, before anything is written beyond the items."""
    with psycopg.connect(store.dataset.dsn) as connection:
        [(table, aside, *indexes)] = connection.execute(_SIZES).fetchall()
    add(
        STORED,
        table_bytes=table,
        aside_bytes=aside,
        **dict(zip(("id_bytes", "created_bytes", "version_bytes"), indexes, strict=True)),
        json_bytes=store.dataset.json_bytes,
    )


def measure_reads(store: Store, add: Add) -> None:
    """Starts, memory, single reads and lists: nothing that changes the table."""
    _lazy(store, add)
    _preloaded(store, add)
    with itemstore(store.dataset.dsn, **_PACKED) as server:
        add(PACKED, **preloaded(server, store.dataset))


def _lazy(store: Store, add: Add) -> None:
    dataset = store.dataset
    with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="true") as server:
        first_answer_s = first_answer(server, dataset)
        rows = dataset.sample[:_READ]
        with server.connect() as client:
            miss_ms, hit_ms = _read(client, rows), _read(client, rows)
        time.sleep(SETTLE_S)
        resident, _ = memory_of(server.pid)
    add(
        LAZY, first_answer_s=first_answer_s, miss_ms=miss_ms, hit_ms=hit_ms, resident_bytes=resident
    )


def _read(client: Client, rows: Sequence[Row]) -> float:
    """The median of these reads, in milliseconds."""
    times = []
    for row in rows:
        started = time.perf_counter()
        answer = client.get(item_path(row.id))
        times.append(time.perf_counter() - started)
        check(answer, row)
    return statistics.median(times) * 1_000


def _preloaded(store: Store, add: Add) -> None:
    with itemstore(store.dataset.dsn, **_PLAIN) as server:
        first_answer_s = first_answer(server, store.dataset)
        values = preloaded(server, store.dataset)
        get_per_s = store.rate(server, "get").per_s
        with server.connect() as client:
            add(LISTS, **_lists(client, store.dataset))
    add(PLAIN, first_answer_s=first_answer_s, get_per_s=get_per_s, **values)


def _lists(client: Client, dataset: Dataset) -> dict[str, float]:
    """Milliseconds of a page at the beginning, of one in the middle, and of a count."""
    page, whole = f"/items?limit={PAGE}", "/items?limit=1&count=exact"
    first, first_ms = _asked(client, page, _LISTED)
    middle, middle_ms = _asked(client, f"{page}&cursor={_middle(client, dataset)}", _LISTED)
    if not first["items"][0]["created_at"] < middle["items"][0]["created_at"]:
        raise WrongAnswer("the page from the middle is the first")
    counted, count_ms = _asked(client, whole, _COUNTED)
    if counted["count"] != dataset.items:
        raise WrongAnswer(f"{dataset.items} items were counted as {counted['count']}")
    return {"first_ms": first_ms, "middle_ms": middle_ms, "count_ms": count_ms}


def _asked(client: Client, path: str, times: int) -> tuple[dict[str, Any], float]:
    """The answer, and the median of the milliseconds it took."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        answer = client.get(path)
        taken.append(time.perf_counter() - started)
    if answer.status != 200:
        raise WrongAnswer(f"GET {path} was answered with {answer}")
    return orjson.loads(answer.body), statistics.median(taken) * 1_000


def _middle(client: Client, dataset: Dataset) -> str:
    """A cursor's last two parts are where it goes on; so nobody has to walk there."""
    given = _asked(client, "/items?limit=1", 1)[0]["next"]
    parts = orjson.loads(urlsafe_b64decode(given + "=" * (-len(given) % 4)))
    row = dataset.sample[len(dataset.sample) // 2]
    there = orjson.dumps([*parts[:-2], row.created_us, row.id])
    return urlsafe_b64encode(there).rstrip(b"=").decode()


def measure_writes(store: Store, add: Add) -> None:
    """PUTs of random items: as many as 32 connections give, until the last is committed."""
    with itemstore(store.dataset.dsn, **_PLAIN) as server:
        server.wait_until_hydrated()
        values: dict[str, float] = {}
        for work in ("memory", "commit"):
            with measured(store.dataset.dsn, server.pid) as spent:
                found = store.rate(server, work)
                whole_s = found.duration_us / 1_000_000 + settle(server)
            values[f"{work}_per_s"] = found.requests / whole_s
            values[f"{work}_log_bytes"] = spent.log_bytes / found.requests
    add(WRITES, **values)


def measure_rates(store: Store, seconds: float, add: Add) -> None:
    """PUTs at ``memory``, so many a second: what they cost, and what a crash would lose."""
    with itemstore(store.dataset.dsn, **_PLAIN) as server:
        server.wait_until_hydrated()
        for rate in RATES:
            add(f"rate {rate}", **_at_rate(store, server, rate, seconds))


def _at_rate(store: Store, server: Server, rate: int, seconds: float) -> dict[str, float]:
    requests, good = store.requests("memory"), "HTTP/1.1 200"
    started = time.perf_counter()
    with measured(store.dataset.dsn, server.pid) as spent:
        found, samples = sampled(
            server,
            lambda: openloop.run(server.port, requests, rate=rate, seconds=seconds, good=good),
        )
        settle(server)
    elapsed_s = time.perf_counter() - started
    return {
        "answered_per_s": found.per_s,
        "oldest_age_s": max(each["oldest_dirty_age_seconds"] for each in samples),
        "p50_ms": found.percentiles_us["50"] / 1_000,
        "p99_ms": found.percentiles_us["99"] / 1_000,
        "server_cores": spent.server_cpu_s / elapsed_s,
        "postgres_cores": spent.postgres_cpu_s / elapsed_s,
        "log_bytes": spent.log_bytes / found.answered,
    }
