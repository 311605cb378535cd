"""The commands as a person runs them: in this process, or in one that can be killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from typer.testing import CliRunner

from itemstore.cli import app
from tests.sql import query

Items = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    said: str


def run(dsn: str, *arguments: object) -> Done:
    """``itemstore`` with these arguments over the database."""
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"DATABASE_URL": dsn})
    return Done(done.exit_code, done.output)


def moved(dsn: str, *arguments: object) -> str:
    """What it said, having done all."""
    done = run(dsn, *arguments)
    assert 0 == done.code, done.said
    return done.said


def begun(
    dsn: str, *arguments: object, stdin: int | None = None, joined: bool = True
) -> subprocess.Popen[str]:
    """The same in a process of its own; ``joined``: with standard error among its output."""
    return subprocess.Popen(
        [sys.executable, "-m", "itemstore", *map(str, arguments)],
        env=os.environ | {"DATABASE_URL": dsn},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if joined else subprocess.PIPE,
        text=True,
    )


async def beside(dsn: str, *arguments: object) -> Done:
    """``run`` in a process of its own, while this one's event loop goes on."""
    process = begun(dsn, *arguments)
    said, _ = await asyncio.to_thread(process.communicate, timeout=100)
    return Done(process.returncode, said)


async def moved_beside(dsn: str, *arguments: object) -> str:
    """``moved`` in a process of its own."""
    done = await beside(dsn, *arguments)
    assert 0 == done.code, done.said
    return done.said


def stored(dsn: str) -> Items:
    """Id → data text and created_at of all items."""
    rows = query(dsn, "SELECT id, data::text, created_at FROM items")
    return {item_id: (data, created_at) for item_id, data, created_at in rows}


def datas(dsn: str) -> Items:
    """Id → data."""
    return {item_id: orjson.loads(data) for item_id, (data, _) in stored(dsn).items()}


def ndjson(file: Path, records: Iterable[Any]) -> Path:
    """The records in a file, a line each."""
    file.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in records))
    return file
