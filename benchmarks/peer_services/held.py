"""A dict of answers: all that the services without a database are."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from benchmarks.data import Row


class Held(NamedTuple):
    """An item as it is answered."""

    etag: str
    body: bytes


class Items:
    """Items by id; nothing is kept beyond the process."""

    def __init__(self, file: Path) -> None:
        """From a file that ``write`` made."""
        lines = file.read_bytes().splitlines()
        self._held = {item["id"]: _held(item) for item in map(orjson.loads, lines)}
        self._new_ids = itertools.count(1)

    def get(self, item_id: str) -> Held | None:
        return self._held.get(item_id)

    def put(self, item_id: str, envelope: bytes) -> Held:
        """Raises ValueError or KeyError unless the envelope is JSON with a member ``data``."""
        held = _held(_item(item_id, time.time_ns() // 1_000, orjson.loads(envelope)["data"]))
        self._held[item_id] = held
        return held

    def post(self, envelope: bytes) -> Held:
        """The item under a new id; raises as ``put`` does."""
        return self.put(f"new{next(self._new_ids)}", envelope)


_TIME: Final = "2024-01-01T00:00:00.000000Z"  # a text of the right length


def _item(item_id: str, version: int, data: object) -> dict[str, object]:
    times = {"created_at": _TIME, "updated_at": _TIME}
    return {"id": item_id, "version": version, **times, "data": data}


def _held(item: dict[str, object]) -> Held:
    return Held(f'"{item["version"]}"', orjson.dumps(item))


def write(rows: Iterable[Row], file: Path) -> None:
    """The rows, for a service to begin with."""
    items = (_item(row.id, row.version, orjson.Fragment(row.data)) for row in rows)
    file.write_bytes(b"\n".join(map(orjson.dumps, items)))


def arguments() -> argparse.Namespace:
    """``--port`` and ``--items``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--items", type=Path, required=True)
    return parser.parse_args()
