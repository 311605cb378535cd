"""Items as the rows of a table: CSV (RFC 4180), for spreadsheets and their like.

A table is less than the items: what is missing, null and an empty text look alike, and numbers look
like texts. NDJSON is the form that can be imported again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from itemstore.core.field import MISSING, Field, parse_field, split_fields, value_at
from itemstore.core.item import Item, created_us_of, timestamp
from itemstore.core.selection import MEMBERS, SELECTED_MAX
from itemstore.errors import InvalidParameter

FIELDS_DEFAULT: Final = ",".join(MEMBERS)

#: With these a spreadsheet begins a formula, also one that runs programs or sends the table away.
#: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class Column(NamedTuple):
    """A column: its title and where its values are."""

    title: str
    field: Field


def parse(fields: str) -> list[Column]:
    """The columns, such as ``id,created_at,data.address.city``. Raises InvalidParameter."""
    titles = split_fields(fields)
    if len(titles) > SELECTED_MAX:
        raise InvalidParameter(f"fields names 1 to {SELECTED_MAX} fields, not {len(titles)}.")
    return [
        Column(title, Field(title) if title in MEMBERS else parse_field(title)) for title in titles
    ]


def header(columns: Sequence[Column]) -> bytes:
    """The first row: the fields as they were asked for."""
    return _written([[column.title for column in columns]])


def rows(items: Iterable[Item], columns: Sequence[Column], *, keeps_formulas: bool) -> bytes:
    """A row for each item; texts that begin like a formula get a ``'`` first, unless kept."""
    return _written(
        [_cell(value, keeps_formulas) for value in _values(item, columns)] for item in items
    )


def _written(table: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(table)
    return text.getvalue().encode()


def _values(item: Item, columns: Sequence[Column]) -> Iterable[Any]:
    data: Any = None
    for _, field in columns:
        match field.name:
            case "id":
                yield item.id
            case "version":
                yield item.version
            case "created_at":
                yield timestamp(created_us_of(item.entry)).decode()
            case "updated_at":
                yield timestamp(item.version).decode()
            case _:
                data = item.data if data is None else data
                yield value_at(data, field.path)


def _cell(value: Any, keeps_formulas: bool) -> str:
    if value is None or value is MISSING:
        return ""
    if type(value) is not str:
        return orjson.dumps(value).decode()
    return f"'{value}" if value.startswith(_FORMULA) and not keeps_formulas else value
