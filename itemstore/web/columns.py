"""Items as the rows of a table: CSV (RFC 4180), for spreadsheets and their like.

A table is less than the items: what is missing, null and an empty text look alike, and numbers look
like texts. NDJSON is the form that can be imported again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

from itemstore.core.item import Item, created_us_of, timestamp
from itemstore.errors import InvalidParameter

FIELDS_DEFAULT: Final = "id,version,created_at,updated_at,data"
FIELDS_MAX: Final = 100
_MEMBERS: Final = frozenset(FIELDS_DEFAULT.split(","))

#: With these a spreadsheet begins a formula, also one that runs programs or sends the table away.
#: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

Path = tuple[str, ...]


def parse(fields: str) -> list[Path]:
    """The paths to the values, such as ``data.address.city``. Raises InvalidParameter."""
    paths = [tuple(field.split(".")) for field in fields.split(",")]
    for path in paths:
        if path[0] not in _MEMBERS or "" in path or (len(path) > 1 and path[0] != "data"):
            raise InvalidParameter(
                f"fields has {'.'.join(path)[:80]!r}; it is a list of id, version, created_at, "
                "updated_at, data and paths into the data, such as data.address.city."
            )
    if len(paths) > FIELDS_MAX:
        raise InvalidParameter(f"fields has {len(paths)} fields; at most {FIELDS_MAX} are allowed.")
    return paths


def header(paths: Sequence[Path]) -> bytes:
    """The first row: the fields as they were asked for."""
    return _written([[".".join(path) for path in paths]])


def rows(items: Iterable[Item], paths: Sequence[Path], *, keeps_formulas: bool) -> bytes:
    """A row for each item; texts that begin like a formula get a ``'`` first, unless kept."""
    return _written(
        [_cell(value, keeps_formulas) for value in _values(item, paths)] for item in items
    )


def _written(table: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(table)
    return text.getvalue().encode()


def _values(item: Item, paths: Sequence[Path]) -> Iterable[Any]:
    data: Any = None
    for name, *inner in paths:
        match name:
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
                yield _inside(data, inner)


def _inside(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        if type(value) is not dict:
            return None
        value = value.get(name)
    return value


def _cell(value: Any, keeps_formulas: bool) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        return orjson.dumps(value).decode()
    return f"'{value}" if value.startswith(_FORMULA) and not keeps_formulas else value
