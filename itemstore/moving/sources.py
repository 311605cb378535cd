"""Which source a name means, and in which format."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from itemstore.errors import WrongUsage
from itemstore.moving import text
from itemstore.moving.remote import ServerItems
from itemstore.moving.source import Source, TextFile
from itemstore.moving.sqlite import SqliteTable
from itemstore.moving.tables import PostgresRows

STANDARD: Final = "-"  #: standard input, or output


class Format(StrEnum):
    """What a source is read as, and a target written as."""

    NDJSON = "ndjson"
    JSON = "json"
    CSV = "csv"
    SQLITE = "sqlite"
    POSTGRES = "postgres"
    ITEMSTORE = "itemstore"


_SUFFIXES: Final = {
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".sqlite": Format.SQLITE,
    ".sqlite3": Format.SQLITE,
    ".db": Format.SQLITE,
}
_SCHEMES: Final = {
    "postgres": Format.POSTGRES,
    "postgresql": Format.POSTGRES,
    "http": Format.ITEMSTORE,
    "https": Format.ITEMSTORE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a source is to be read."""

    name: str
    format: Format | None = None
    table: str | None = None
    query: str | None = None
    id_column: str | None = None
    delimiter: str | None = None
    prefix: str = ""


def guess(name: str) -> Format:
    """By the scheme of an address or the end of a file's name. Raises WrongUsage."""
    scheme, is_address, _ = name.partition("://")
    found = _SCHEMES.get(scheme) if is_address else _SUFFIXES.get(Path(name).suffix.lower())
    if name == STANDARD:
        return Format.NDJSON
    if found is None:
        raise WrongUsage(f"What is {name}? Say so with --format {'|'.join(Format)}.")
    return found


def source(choice: Choice, token: str = "") -> Source:
    """Opened, and nothing read yet. Raises MovingError, WrongUsage."""
    what = choice.format or guess(choice.name)
    if (choice.table or choice.query) and what not in (Format.SQLITE, Format.POSTGRES):
        raise WrongUsage("--table and --query are for SQLite files and PostgreSQL databases.")
    if choice.table and choice.query:
        raise WrongUsage("Give --table or --query, not both.")
    if what is Format.ITEMSTORE and choice.name.startswith(("http://", "https://")):
        return ServerItems(choice.name, token, choice.prefix)
    if what in (Format.POSTGRES, Format.ITEMSTORE):
        table = choice.table or ("items" if what is Format.ITEMSTORE else None)
        if not (table or choice.query):
            raise WrongUsage("Name what to read of the database with --table or --query.")
        return PostgresRows(choice.name, table, choice.query, choice.id_column or "id")
    if choice.name == STANDARD and what is Format.SQLITE:
        raise WrongUsage("A SQLite file is read here and there: name a file.")
    path = None if choice.name == STANDARD else Path(choice.name)
    if path is not None and what is Format.SQLITE:
        return SqliteTable(path, choice.table, choice.query)
    tab = "\t" if path is not None and path.suffix.lower() == ".tsv" else None
    parsers: dict[Format, text.Parser] = {
        Format.NDJSON: text.ndjson,
        Format.JSON: text.array,
        Format.CSV: partial(text.rows, delimiter=choice.delimiter or tab),
    }
    return TextFile(path, parsers[what])
