"""What an export writes: NDJSON, CSV, SQLite. A file has its name only when it is whole."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import orjson

from itemstore.core.cache import Row
from itemstore.core.item import created_us_of, data_of, envelope, timestamp, version_of
from itemstore.errors import WrongUsage
from itemstore.moving.sources import Format
from itemstore.moving.sqlite import SqliteFile

#: The columns of a CSV file unless others are named: all there is, and it can be read back.
FIELDS: Final = ("id", "created_at", "updated_at", "data")
_MEMBERS: Final = ("id", "version", "created_at", "updated_at", "data")


class Writer(Protocol):
    """Where items go."""

    def add(self, page: Sequence[Row]) -> None:
        """Some items more."""

    def close(self) -> None:
        """There are no more."""


class Ndjson:
    """An item a line, as ``GET`` answers it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, page: Sequence[Row]) -> None:
        """Some items more."""
        self._file.write(b"".join(b"%b\n" % envelope(item_id, entry) for item_id, entry in page))

    def close(self) -> None:
        """There are no more."""
        self._file.flush()


class Csv:
    """A row an item (RFC 4180): text as it is, nothing for null, everything else as JSON."""

    def __init__(self, file: BinaryIO, fields: Sequence[str]) -> None:
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._rows = csv.writer(self._text)
        self._paths = [field.split(".") for field in fields]
        self._has_parts = any(len(path) > 1 for path in self._paths)
        self._rows.writerow(fields)

    def add(self, page: Sequence[Row]) -> None:
        """Some items more."""
        self._rows.writerows(
            [_cell(item, path) for path in self._paths] for item in map(self._item, page)
        )

    def close(self) -> None:
        """There are no more."""
        self._text.flush()
        self._text.detach()

    def _item(self, row: Row) -> dict[str, Any]:
        item_id, entry = row
        text = data_of(entry)
        return {
            "id": item_id,
            "version": version_of(entry),
            "created_at": timestamp(created_us_of(entry)).decode(),
            "updated_at": timestamp(version_of(entry)).decode(),
            "data": orjson.loads(text) if self._has_parts else text.decode(),
        }


def _cell(item: dict[str, Any], path: Sequence[str]) -> str:
    value: Any = item
    for name in path:
        value = value.get(name) if type(value) is dict else None
    if value is None:
        return ""
    return value if type(value) is str else orjson.dumps(value).decode()


def check_fields(given: str | None) -> tuple[str, ...]:
    """Raises WrongUsage if there is a field that no item has."""
    fields = tuple(given.split(",")) if given else FIELDS
    for field in fields:
        first, *rest = field.split(".")
        if first not in _MEMBERS or (rest and first != "data"):
            raise WrongUsage(
                f"--fields {field} is not allowed: give {', '.join(_MEMBERS)}, or parts of the "
                "data such as data.name, separated by commas."
            )
    return fields


@contextmanager
def writer(path: Path | None, what: Format, fields: Sequence[str]) -> Iterator[Writer]:
    """Writes beside ``path``; what is whole and on disk gets this name. None: standard output.

    Raises OSError, or sqlite3.Error.
    """
    if path is None:
        standard = _text(sys.stdout.buffer, what, fields)
        yield standard
        standard.close()
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            made: Writer = (
                SqliteFile(beside) if what is Format.SQLITE else _text(file, what, fields)
            )
            yield made
            made.close()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _text(file: BinaryIO, what: Format, fields: Sequence[str]) -> Ndjson | Csv:
    return Csv(file, fields) if what is Format.CSV else Ndjson(file)
