"""SQLite files: a table is read, or the table ``items`` written (https://www.sqlite.org/lang.html)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from itemstore.core.cache import Row
from itemstore.core.item import created_us_of, data_of, timestamp, version_of
from itemstore.errors import MovingError, WrongUsage
from itemstore.moving.record import Record
from itemstore.moving.source import Source, identified

_TABLES: Final = """
SELECT name FROM sqlite_schema
 WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite@_%' ESCAPE '@'
"""
_MAKE: Final = """
CREATE TABLE items (
    id         TEXT PRIMARY KEY,
    data       TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    version    INTEGER NOT NULL
)
"""
_ADD: Final = "INSERT INTO items VALUES (?, ?, ?, ?, ?)"


class SqliteTable(Source):
    """A table, in the order of its rows, or what a query gives. The file is not written to.

    Raises WrongUsage if there is no such table, or several and none is named.
    """

    def __init__(self, path: Path, table: str | None, query: str | None) -> None:
        self.identity, self.id_key = identified(path, query or table or "")
        self._path = path
        try:
            with closing(self._opened()) as file:
                name = "" if query else _named(file, table)
                self._query = query or _all(file, name)
                if name:
                    [(self.total,)] = file.execute(_counting(name))
        except sqlite3.Error as error:
            raise MovingError(f"{path} cannot be read as a SQLite file: {error}.") from error

    def records(self) -> Iterator[Record]:
        try:
            with closing(self._opened()) as file:
                rows = file.execute(self._query)
                names = [column[0] for column in rows.description or ()]
                for row in rows:
                    self.done += 1
                    yield dict(zip(names, row, strict=True))
        except sqlite3.Error as error:
            raise MovingError(f"The SQLite file cannot be read on: {error}.") from error

    def _opened(self) -> sqlite3.Connection:
        """To be read only, by one thread after another."""
        name = f"file:{quote(str(self._path))}?mode=ro"
        file = sqlite3.connect(name, uri=True, check_same_thread=False)
        file.text_factory = _text
        return file


def _named(file: sqlite3.Connection, table: str | None) -> str:
    names = [name for (name,) in file.execute(_TABLES)]
    if table is None and len(names) == 1:
        return str(names[0])
    if table in names:
        return str(table)
    raise WrongUsage(f"Name one of the file's tables with --table: {', '.join(names)}")


class SqliteFile:
    """A new file with the table ``items``. Without a journal: until it is whole it is nobody's."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", _MAKE):
            self._file.execute(statement)

    def add(self, page: Sequence[Row]) -> None:
        """Some items more. Raises sqlite3.Error."""
        self._file.execute("BEGIN")
        self._file.executemany(_ADD, map(_values, page))
        self._file.execute("COMMIT")

    def close(self) -> None:
        """All is written, if not yet on disk."""
        self._file.close()


def _values(row: Row) -> tuple[str, str, str, str, int]:
    item_id, entry = row
    created_at, updated_at = timestamp(created_us_of(entry)), timestamp(version_of(entry))
    data = data_of(entry).decode()
    return item_id, data, created_at.decode(), updated_at.decode(), version_of(entry)


def _all(file: sqlite3.Connection, table: str) -> str:
    """By rowid, where the table has one: a view has none."""
    query = f"SELECT * FROM {_quoted(table)}"  # noqa: S608 - quoted
    ordered = f"{query} ORDER BY rowid"
    try:
        file.execute(ordered).close()
    except sqlite3.OperationalError:
        return query
    return ordered


def _counting(table: str) -> str:
    return f"SELECT count(*) FROM {_quoted(table)}"  # noqa: S608 - quoted


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(raw: bytes) -> str:
    """What is not UTF-8 is kept, so that the row is refused, and not the file."""
    return raw.decode(errors="surrogateescape")
