"""A table much larger than the cache may be: what is answered, how fast, and in how much memory.

    python -m benchmarks.bounded [--quick] [--items 5000000] [--json FILE]

Exits with 1 unless every item that is read, every page, filter and count is what SQL says.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
import orjson
import psycopg
from matplotlib.figure import Figure

from benchmarks import charts, command, openloop
from benchmarks.apis import ItemsApi
from benchmarks.client import Answer, Client, item_path
from benchmarks.data import Dataset, WrongAnswer, check, item_id
from benchmarks.memory import memory_of
from benchmarks.policies import POLICIES, SKEW
from benchmarks.report import MB, Result, Table, environment, spread
from benchmarks.requests_file import pack
from benchmarks.servers import Server, itemstore, postgres
from benchmarks.startup import first_answer
from itemstore.core.index import parse_index
from itemstore.storage import statements

ITEMS: Final = 5_000_000
BYTES: Final = "256MiB"
TARGET_MB: Final = 400.0
FEW_BYTES: Final = "32MiB"  # so that a trace of some hundred thousand requests fills it many times
QUICK_BYTES: Final = "4MiB"
RATE: Final = 4_000.0  # requests of the trace a second
HIT_RATE: Final = 2_000.0
HALF_S: Final = 60.0  # of the trace
HITS_S: Final = 10.0
QUICK_SHARE: Final = 1 / 30  # of those times
READ: Final = 20_000  # items, drawn from all
HOT: Final = 5_000  # items that stay cached
LIMIT: Final = 1_000
INDEXED: Final = "data.owner"

READS, TRACE, ALONE, BESIDE = "reads", "trace", "hits alone", "hits beside an export"

_MISSES: Final = "itemstore_cache_misses_total"

#: Parameters of a list, and the same in SQL.
LISTS: Final = (
    ({"order": "created"}, "true ORDER BY created_at, id"),
    ({"order": "-updated"}, "true ORDER BY version DESC, id DESC"),
    ({"order": "id", "prefix": "a"}, "id >= 'a' AND id < 'b' ORDER BY id"),
    ({INDEXED: "eq.{owner}"}, "data->>'owner' = '{owner}' ORDER BY created_at, id"),
    (
        {INDEXED: "eq.{owner}", "data.price": "lt.100", "data.active": "eq.true"},
        "data->>'owner' = '{owner}' AND (data->>'price')::numeric < 100"
        " AND data->>'active' = 'true' ORDER BY created_at, id",
    ),
)


def main() -> None:
    given = command.parse_size(__doc__, ITEMS)
    share, bound = (QUICK_SHARE, QUICK_BYTES) if given.quick else (1.0, BYTES)
    few = QUICK_BYTES if given.quick else FEW_BYTES
    with (
        command.progress() as bar,
        postgres() as server_dsn,
        TemporaryDirectory(prefix="itemstore-benchmark-") as directory,
        command.datasets(server_dsn, [given.items], bar) as [dataset],
    ):
        result = Result("bounded", environment(server_dsn))
        task = bar.add_task("measuring", total=3)
        with itemstore(dataset.dsn, SKIP_ITEMS_PRELOAD="true") as first:  # takes over what is there
            first.wait_for("/readyz")
        with psycopg.connect(dataset.dsn, autocommit=True) as connection:
            connection.execute(statements.create_index(parse_index(INDEXED, "value")).encode())
            connection.execute(statements.ANALYZE.encode())
        settings = {"CACHE_MAX_BYTES": bound, "SKIP_ITEMS_PRELOAD": "false", "QUERY_TIMEOUT": "5m"}
        with itemstore(dataset.dsn, **settings) as server:
            result.add(given.items, READS, **_reads(server, dataset))
            bar.advance(task)
            for mode, values in _hits(server, dataset, Path(directory), share).items():
                result.add(given.items, mode, **values)
            bar.advance(task)
        with itemstore(
            dataset.dsn, CACHE_MAX_BYTES=few, SKIP_ITEMS_PRELOAD="true", CACHE_COMPRESSION="off"
        ) as server:
            result.add(given.items, TRACE, **_trace(server, dataset, Path(directory), share))
            bar.advance(task)
    command.finish(result, tables(result), plot, given)


# --- what is answered


def _reads(server: Server, dataset: Dataset) -> dict[str, float]:
    """First from the beginning on, then any item, lists, filters and counts."""
    first_s = first_answer(server, dataset)
    server.wait_for("/stats", _is_filled)
    chance = random.Random(1)
    with server.connect() as client, psycopg.connect(dataset.dsn) as connection:
        for row in dataset.sample:
            check(client.get(item_path(row.id)), row)
        for _ in range(READ - len(dataset.sample)):
            asked = item_id(chance.randrange(dataset.items))
            _check_read(client, connection, asked)
        owner = orjson.loads(dataset.sample[0].data)["owner"]
        for parameters, condition in LISTS:
            given = {name: value.format(owner=owner) for name, value in parameters.items()}
            _check_list(client, connection, given, condition.format(owner=owner))
    now, peak = memory_of(server.pid)
    stats = _stats(server)
    return {
        "first_answer_s": first_s,
        "resident_bytes": now,
        "peak_bytes": peak,
        "cached_items": stats["itemstore_cache_items"],
        "lists": len(LISTS),
    }


def _is_filled(answer: Answer) -> bool:
    """Whether the preload is over: all are cached, or some had to leave."""
    stats = orjson.loads(answer.body)
    return bool(stats["itemstore_hydrated"] or stats["itemstore_cache_evictions_total"])


def _check_read(client: Client, connection: psycopg.Connection, asked: str) -> None:
    [(text,)] = connection.execute("SELECT data::text FROM items WHERE id = %s", (asked,))
    answer = client.get(item_path(asked))
    if answer.status != 200 or not answer.body.endswith(b'"data":%b}' % text.encode()):
        raise WrongAnswer(f"{asked} was answered with {answer}")


def _check_list(
    client: Client, connection: psycopg.Connection, asked: dict[str, str], condition: str
) -> None:
    """Its first two pages, and its count."""
    where = condition.partition(" ORDER BY ")[0]
    [(count,)] = connection.execute(f"SELECT count(*) FROM items WHERE {where}".encode())
    query = f"SELECT id FROM items WHERE {condition} LIMIT {2 * LIMIT}"
    expected = [found for (found,) in connection.execute(query.encode())]
    more = {"limit": str(LIMIT), "count": "exact"}
    pages = []
    for _ in range(2):
        answer = client.get(f"/items?{urlencode(asked | more)}")
        pages.append(orjson.loads(answer.body))
        if answer.status != 200 or pages[-1]["next"] is None:
            break
        more["cursor"] = pages[-1]["next"]
    found = [item["id"] for page in pages for item in page.get("items", [])]
    if found != expected or {page.get("count") for page in pages} != {count}:
        raise WrongAnswer(f"{asked}: {len(found)} of {len(expected)}, {pages[0].get('count')}")


# --- hits beside an export


def _hits(
    server: Server, dataset: Dataset, directory: Path, share: float
) -> dict[str, dict[str, float]]:
    chance = random.Random(2)
    ids = [item_id(chance.randrange(dataset.items)) for _ in range(min(HOT, dataset.items // 10))]
    requests = directory / "hits"
    requests.write_bytes(pack(ItemsApi().get(each) for each in ids))
    ask = partial(openloop.run, server.port, requests, rate=HIT_RATE, good="HTTP/1.1 200")
    for _ in range(2):  # so that they are what is used most
        ask(seconds=len(ids) / HIT_RATE)
    found = {}
    for mode, work in ((ALONE, _nothing), (BESIDE, _export)):
        before = _stats(server)
        with work(server.port) as exported:
            latencies = ask(seconds=max(1.0, HITS_S * share))
        after = _stats(server)
        found[mode] = {
            **{f"p{name}_us": float(us) for name, us in latencies.percentiles_us.items()},
            "misses": after[_MISSES] - before[_MISSES],
            "exported_bytes": float(exported[0]),
            "peak_bytes": memory_of(server.pid)[1],
        }
    return found


@contextmanager
def _nothing(_: int) -> Iterator[list[int]]:
    yield [0]


@contextmanager
def _export(port: int) -> Iterator[list[int]]:
    """Reads GET /export as fast as it comes, until the end of the body, or of the export."""
    received = [0]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /export HTTP/1.1\r\nHost: localhost\r\n\r\n")

        def read() -> None:
            while chunk := connection.recv(1 << 20):
                received[0] += len(chunk)

        reading = threading.Thread(target=read)
        reading.start()
        try:
            yield received
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            reading.join()


# --- a trace


def _trace(server: Server, dataset: Dataset, directory: Path, share: float) -> dict[str, float]:
    """The share of hits in its second half, beside that of published policies."""
    half = int(RATE * HALF_S * share)
    trace = _zipf(dataset.items, 2 * half)
    server.wait_for("/readyz")
    hits: list[float] = []
    for number, part in enumerate((trace[:half], trace[half:])):
        requests = directory / f"trace {number}"
        requests.write_bytes(pack(ItemsApi().get(each) for each in part))
        before = _stats(server)
        openloop.run(server.port, requests, rate=RATE, seconds=half / RATE, good="HTTP/1.1 200")
        after = _stats(server)
        found, missed = (
            after[f"itemstore_cache_{kind}_total"] - before[f"itemstore_cache_{kind}_total"]
            for kind in ("hits", "misses")
        )
        hits.append(found / (found + missed))
    stats = _stats(server)
    room = int(stats["itemstore_cache_items"])
    others = {name: _ratio(policy(room).ask, trace, half) for name, policy in POLICIES.items()}
    others["endless"] = _ratio(POLICIES["LRU"](len(trace)).ask, trace, half)
    return {
        "hit_ratio": hits[1],
        "room_items": room,
        "evictions": stats["itemstore_cache_evictions_total"],
        "resident_bytes": memory_of(server.pid)[0],
        **{f"{name} ratio": ratio for name, ratio in others.items()},
    }


def _zipf(items: int, count: int) -> list[str]:
    """The k-th most wanted is wanted 1/k^0.99 times as often as the first; any may be it."""
    chance = np.random.default_rng(3)
    weights = np.cumsum(1 / np.arange(1, items + 1) ** SKEW)
    ranks = np.searchsorted(weights, chance.random(count) * weights[-1])
    return [item_id(number) for number in chance.permutation(items)[ranks].tolist()]


def _ratio(ask: Callable[[str], bool], trace: Sequence[str], half: int) -> float:
    hits = [ask(each) for each in trace]
    return sum(hits[half:]) / len(hits[half:])


def _stats(server: Server) -> dict[str, Any]:
    stats: dict[str, Any] = orjson.loads(server.wait_for("/stats").body)
    return stats


# --- showing


def tables(result: Result) -> list[Table]:
    [items] = result.sizes()
    reads, trace = result.of(items, READS), result.of(items, TRACE)
    return [
        Table(
            f"{items:,} items",
            ("what", "measured"),
            [
                ("first correct answer, s", spread(reads["first_answer_s"])),
                ("items cached", spread(reads["cached_items"])),
                ("RSS after the reads, MB", spread(reads["resident_bytes"], MB)),
                ("greatest RSS until then, MB", spread(reads["peak_bytes"], MB)),
            ],
        ),
        Table(
            f"Hits at {HIT_RATE:,.0f} a second",
            ("", "p50, ms", "p99, ms", "max, ms", "misses", "exported, MB", "greatest RSS, MB"),
            [_hit_row(mode, result.of(items, mode)) for mode in (ALONE, BESIDE)],
        ),
        Table(
            f"zipf {SKEW}, with room for {spread(trace['room_items'])} items: share of hits",
            ("policy", "per cent"),
            [
                ("the store", spread(trace["hit_ratio"], 0.01)),
                *((name, spread(trace[f"{name} ratio"], 0.01)) for name in POLICIES),
                ("a cache without a bound", spread(trace["endless ratio"], 0.01)),
            ],
        ),
    ]


def _hit_row(mode: str, found: dict[str, list[float]]) -> tuple[str, ...]:
    waited = (spread(found[f"p{each}_us"], 1_000) for each in ("50", "99", "100"))
    sizes = (spread(found[name], MB) for name in ("exported_bytes", "peak_bytes"))
    return mode, *waited, spread(found["misses"]), *sizes


def plot(result: Result) -> Figure:
    """How long hits take, alone and beside an export."""
    figure, [axes] = charts.panels(1)
    [items] = result.sizes()
    for mode, color in ((ALONE, charts.BLUE), (BESIDE, charts.ORANGE)):
        found = result.of(items, mode)
        curve = [found[f"p{each:g}_us"][0] / 1_000 for each in openloop.PERCENTILES]
        charts.curve(axes, openloop.PERCENTILES, curve, mode, charts.Look(color))
    charts.by_percentile(axes, f"Hits, {HIT_RATE:,.0f} a second", "milliseconds")
    return figure


if __name__ == "__main__":
    main()
