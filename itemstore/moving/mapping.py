"""Mapping: which columns of a record are the item's id, times and data."""

from __future__ import annotations

import json
from base64 import b32encode
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from itemstore.core.data import encode_parsed, loads
from itemstore.core.field import parse_field
from itemstore.core.item import since_1970
from itemstore.core.operation import Conflict, Import
from itemstore.errors import InvalidData, InvalidInput, InvalidItem
from itemstore.moving.record import Record, Rejected, Row

#: A record with no other columns than these is an item as ``GET /export`` writes it.
ENVELOPE: Final = frozenset({"id", "data", "version", "created_at", "updated_at"})
SOURCE_SHOWN_MAX: Final = 2_000  # characters of a rejected record in the report
_DATA_DOT: Final = "data."
COLUMNS_KEPT: Final = 2_000  # whose paths are remembered from row to row
MADE_BYTES: Final = 10  # 16 letters: a billion rows have two the same once in a million times


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of columns. None: the usual name, if there is such a column; '': there is none."""

    id: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    data: str | None = None  #: one column that holds the whole data, an object or its JSON text
    kept: tuple[str, ...] = ()  #: those that become the data; none named: all others
    parse: bool = False  #: text that is JSON becomes its value


class Mapping:
    """Makes rows of records. ``key`` is what ids are made from; None: a record must have one."""

    def __init__(self, columns: Columns, conflict: Conflict, key: bytes | None) -> None:
        self._columns = columns
        self._conflict = conflict
        self._key = key
        self._names = {
            field: field if (given := getattr(columns, field)) is None else given
            for field in ("id", "created_at", "updated_at")
        }
        self._taken = frozenset(self._names.values())

    def row(self, number: int, record: Record) -> Row | Rejected | None:
        """None for a blank line."""
        if record is None:
            return None
        try:
            return self._row(number, record)
        except InvalidInput as error:
            return Rejected(number, error.detail, _shown(record))

    def _row(self, number: int, record: bytes | dict[str, Any] | InvalidInput) -> Row:
        if isinstance(record, InvalidInput):
            raise record
        is_json = isinstance(record, bytes)
        value = loads(record) if isinstance(record, bytes) else record
        if type(value) is not dict:
            raise InvalidItem("A record is a JSON object.")
        data, is_json = self._data(value, is_json=is_json)
        item = Import(
            self._id(number, value),
            encode_parsed(data) if is_json else data,
            self._time("created_at", value),
            self._time("updated_at", value),
            self._conflict,
        )
        return Row(number, str(item.id), item)

    def _data(self, value: dict[str, Any], *, is_json: bool) -> tuple[Any, bool]:
        """The data, and whether it was read from JSON: then its numbers are checked."""
        name = self._columns.data
        if name is None and value.keys() <= ENVELOPE and _is_data(value.get("data")):
            name = "data"
        if name is None and not is_json and _is_dotted(value):
            return _nested(self._members(value)), is_json
        if name is None:
            return self._members(value), is_json
        if name not in value:
            raise InvalidItem(f"The record has no {name!r}, which --data names.")
        data = value[name]
        return (loads(data.encode(), wrapping=0), True) if type(data) is str else (data, is_json)

    def _members(self, value: dict[str, Any]) -> dict[str, Any]:
        """The columns that become the data."""
        kept = self._columns.kept
        if kept:
            members = {name: value[name] for name in kept if name in value}
        elif value.keys().isdisjoint(self._taken):
            members = value
        else:
            members = {name: value[name] for name in value if name not in self._taken}
        if bytes in map(type, members.values()):
            raise InvalidData(
                "A column is a BLOB, which JSON has no place for. Name the columns you want with "
                "--columns."
            )
        return _values(members) if self._columns.parse else members

    def _id(self, number: int, value: dict[str, Any]) -> str:
        name = self._names["id"]
        found = value.get(name)
        if type(found) is str:
            return found
        if type(found) is int:
            return str(found)
        if found is not None:
            raise InvalidItem(f"An id is text or an integer, not {str(found)[:60]}.")
        if self._columns.id or self._key is None:
            raise InvalidItem(f"The record has no {name!r}. Name the column of the id with --id.")
        return made_id(self._key, number)

    def _time(self, field: str, value: dict[str, Any]) -> int | None:
        name = self._names[field]
        found = value.get(name)
        if found is None or found == "":
            return None
        try:
            return microseconds(found)
        except (ValueError, OverflowError):
            option = f"--{field.replace('_', '-')}"
            raise InvalidItem(
                f"{name} is {str(found)[:60]!r}, neither a time such as 2024-05-01T12:00:00Z nor "
                f"seconds since 1970. Name another column with {option}, or none: {option} ''"
            ) from None


def made_id(key: bytes, number: int) -> str:
    """The id of a record without one: the same again whenever the same source is read."""
    digest = blake2b(b"%d" % number, key=key, digest_size=MADE_BYTES).digest()
    return b32encode(digest).decode().lower()


def microseconds(time: object) -> int:
    """Since 1970, of ISO 8601 (UTC where it names no zone) or of a number of seconds.

    Raises ValueError or OverflowError if it is neither.
    """
    if isinstance(time, str):
        return since_1970(datetime.fromisoformat(time))
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise ValueError("not a time")
    return round(time * 1_000_000)


def _is_data(value: object) -> bool:
    return type(value) is dict or (type(value) is str and value.startswith("{"))


def _is_dotted(value: dict[str, Any]) -> bool:
    """Whether it is an item with columns for parts of its data, as CSV is exported: data.a.b."""
    others = value.keys() - ENVELOPE
    return bool(others) and all(name.startswith(_DATA_DOT) for name in others)


def _nested(members: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for column, value in members.items():
        *above, name = _path(column)
        place = data
        for each in above:
            place = place.setdefault(each, {})
            if type(place) is not dict:
                raise InvalidItem(f"Column {column!r} and one above it both have a value.")
        place[name] = value
    return data


@lru_cache(COLUMNS_KEPT)
def _path(column: str) -> tuple[str, ...]:
    return parse_field(column).path


def _values(members: dict[str, Any]) -> dict[str, Any]:
    """Each text that is JSON as its value; an empty one is no member."""
    return {
        name: _value(member) if type(member) is str else member
        for name, member in members.items()
        if member != ""
    }


def _value(text: str) -> Any:
    try:
        return loads(text.encode(), wrapping=0)
    except (InvalidInput, UnicodeError):
        return text


def _shown(record: Record) -> str | None:
    if isinstance(record, dict):
        return json.dumps(record, default=repr)[:SOURCE_SHOWN_MAX]  # orjson takes no broken text
    return record[:SOURCE_SHOWN_MAX].decode(errors="replace") if isinstance(record, bytes) else None
