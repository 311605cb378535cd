"""An export from beginning to end: items in order of the id, a page at a time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from itemstore.core.cache import Row
from itemstore.core.listing import ListQuery, check_prefix
from itemstore.core.query import parse_filter
from itemstore.errors import InvalidId, InvalidParameter, MovingError, WrongUsage
from itemstore.moving.direct import store_database
from itemstore.moving.display import Display
from itemstore.moving.parts import in_thread
from itemstore.moving.remote import ServerItems, entry
from itemstore.moving.sources import STANDARD, Format, guess
from itemstore.moving.writers import Csv, Ndjson, Writer, writer
from itemstore.settings import Settings
from itemstore.storage import StorageError
from itemstore.storage.postgres import Postgres
from itemstore.web import columns

PAGE_ITEMS: Final = 200  # of a server, in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What ``itemstore export`` was asked for."""

    target: str
    format: Format | None
    prefix: str
    filters: tuple[tuple[str, str], ...]  #: (field, condition)
    fields: str | None
    formulas: bool  #: CSV: texts that a spreadsheet would run are written as they are
    server: str
    token: str
    overwrite: bool


async def export(settings: Settings, options: ExportOptions) -> int:
    """Writes the items. Returns how many. Raises WrongUsage, MovingError."""
    what = options.format or guess(options.target)
    if what not in (Format.NDJSON, Format.CSV, Format.SQLITE):
        raise WrongUsage(f"--format {what} cannot be written: give ndjson, csv or sqlite.")
    if options.fields and what is not Format.CSV:
        raise WrongUsage("--fields are for CSV; the other formats have everything.")
    _query(options)
    text = _text(what, options)
    path = _export_path(options, what)
    items = 0
    try:
        with writer(path, text) as made, Display("export", None) as display:
            async with aclosing(_pages(settings, options)) as pages:
                async for page in pages:
                    await asyncio.to_thread(made.add, page)
                    items += len(page)
                    display.update(items, items)
    except (OSError, sqlite3.Error) as error:
        raise MovingError(f"{options.target} cannot be written: {error}.") from error
    except StorageError as error:
        raise MovingError(f"PostgreSQL cannot give the items: {error}.") from error
    return items


def _query(options: ExportOptions) -> ListQuery:
    """The items wanted, from the database. Raises WrongUsage."""
    try:
        check_prefix(options.prefix)
        filters = tuple(parse_filter(*each) for each in options.filters)
    except (InvalidId, InvalidParameter) as error:
        raise WrongUsage(f"{error.detail}") from None
    return ListQuery(0, 0, order="id", prefix=options.prefix, filters=filters)


def _text(what: Format, options: ExportOptions) -> Callable[[BinaryIO], Writer] | None:
    """What writes the format; None for SQLite. Raises WrongUsage."""
    if what is not Format.CSV:
        return None if what is Format.SQLITE else Ndjson
    try:
        table = columns.parse(options.fields or columns.FIELDS_DEFAULT)
    except InvalidParameter as error:
        raise WrongUsage(f"--fields: {error.detail}") from None
    return partial(Csv, table=table, keeps_formulas=options.formulas)


def _export_path(options: ExportOptions, what: Format) -> Path | None:
    if options.target == STANDARD:
        if what is Format.SQLITE:
            raise WrongUsage("A SQLite file cannot be written to standard output: name a file.")
        return None
    path = Path(options.target)
    if path.exists() and not options.overwrite:
        raise WrongUsage(f"{path} exists. Give another name, or --overwrite.")
    if not path.parent.is_dir():
        raise WrongUsage(f"There is no directory {path.parent}.")
    return path


async def _pages(settings: Settings, options: ExportOptions) -> AsyncGenerator[Sequence[Row]]:
    if options.server:
        server = ServerItems(options.server, options.token, options.prefix, options.filters)
        items = map(entry, server.lines())
        while page := await in_thread(lambda: list(islice(items, PAGE_ITEMS))):
            yield page
        return
    query = _query(options)
    async with store_database(settings) as dsn:
        storage = Postgres(dsn)
        try:
            await storage.open()
            async with aclosing(storage.export(query)) as pages:
                async for page in pages:
                    yield page
        finally:
            await storage.close()
