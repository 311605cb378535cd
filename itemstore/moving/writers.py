"""What an export writes: NDJSON, CSV, SQLite. A file has its name only when it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from itemstore.core.cache import Row
from itemstore.core.item import Item, envelope
from itemstore.moving.sqlite import SqliteFile
from itemstore.web import columns


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
    """A row an item, as ``GET /export`` writes it for spreadsheets."""

    def __init__(
        self, file: BinaryIO, table: Sequence[columns.Column], *, keeps_formulas: bool
    ) -> None:
        self._file = file
        self._table = table
        self._keeps_formulas = keeps_formulas
        file.write(columns.header(table))

    def add(self, page: Sequence[Row]) -> None:
        """Some items more."""
        items = (Item(item_id, entry) for item_id, entry in page)
        self._file.write(columns.rows(items, self._table, keeps_formulas=self._keeps_formulas))

    def close(self) -> None:
        """There are no more."""
        self._file.flush()


@contextmanager
def writer(path: Path | None, text: Callable[[BinaryIO], Writer] | None) -> Iterator[Writer]:
    """Writes beside ``path``; what is whole and on disk gets this name. None: standard output.

    ``text`` makes the writer over a file; None: a SQLite file is written.

    Raises OSError, or sqlite3.Error.
    """
    if path is None:
        standard = (text or Ndjson)(sys.stdout.buffer)
        yield standard
        standard.close()
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            made = text(file) if text else SqliteFile(beside)
            yield made
            made.close()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
