"""A PostgreSQL table or query as a source. The server makes each row JSON (``row_to_json``)."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from itemstore.errors import MovingError
from itemstore.moving.record import Record
from itemstore.moving.source import Source
from itemstore.storage import statements

FETCHED_ROWS: Final = 1_000  # at once
CONNECT_TIMEOUT_S: Final = 10
CURSOR: Final = "itemstore_import"


class PostgresRows(Source):
    """The rows in the order of ``id_column``, in one read-only transaction."""

    def __init__(self, dsn: str, table: str | None, query: str | None, id_column: str) -> None:
        self._dsn = dsn
        self._what = (table, query, id_column)
        self.identity = {
            "database": database_name(dsn),
            "part": blake2b(repr(self._what).encode(), digest_size=16).hexdigest(),
        }

    def records(self) -> Iterator[Record]:
        return self.records_after(0, None)

    def records_after(self, number: int, key: str | None) -> Iterator[Record]:
        del number  # rows may have come and gone before it
        statement = statements.source_rows(*self._what, after=key is not None)
        try:
            with (
                psycopg.connect(self._dsn, connect_timeout=CONNECT_TIMEOUT_S) as connection,
                connection.cursor(CURSOR, binary=True) as cursor,
            ):
                connection.read_only = True
                cursor.itersize = FETCHED_ROWS
                cursor.execute(statement.encode(), {"after": key})
                for row_id, text in cursor:
                    self.done += 1
                    self.key = row_id
                    yield text.encode()
        except psycopg.Error as error:
            raise MovingError(f"PostgreSQL cannot give the rows: {str(error).strip()}") from error


def database_name(dsn: str) -> str:
    """Host, port and database of a DSN, without user and password."""
    try:
        given = conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError):  # libpq quotes it, password and all
        raise MovingError(
            "This is no address of a PostgreSQL database: give "
            "postgresql://user:password@host:port/database, what is special in the password "
            "percent-encoded."
        ) from None
    return " ".join(f"{name}={given[name]}" for name in ("host", "port", "dbname") if name in given)
