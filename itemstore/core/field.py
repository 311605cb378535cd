"""Fields: what a filter, an order or a selection names, and where a value stands in an order.

A field is ``id``, ``created_at``, ``updated_at`` or a path into the data: ``data.address.city``. A
key with a dot, a comma, a quote or other odd characters is written as a JSON string:
``data."a.b".c``. A number names an element where the value is an array, as in PostgreSQL's ``#>``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

from itemstore.core.data import DEPTH_MAX
from itemstore.errors import InvalidParameter

FIELD_LENGTH_MAX: Final = 500  # characters, as it is written
#: Of a text, what an order goes by and an index holds: with the longest id still less than the
#: 2,704 bytes a btree entry may have (core/item.py). One more than a filter's value may have, so
#: that comparing the beginning is comparing the text.
KEY_TEXT_LENGTH: Final = 501  # characters

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_STEP: Final = re.compile(rf'\.({_QUOTED}|[^.",]+)', re.DOTALL)
_PART: Final = re.compile(rf"((?:{_QUOTED}|[^,])*),", re.DOTALL)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
#: What C's strtol reads, as PostgreSQL does for an element of an array.
_INDEX: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")


@dataclass(frozen=True, slots=True, order=True)
class Field:
    """``name`` is id, created_at, updated_at or data; ``path`` leads into the data."""

    name: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As it is written, in ASCII, whatever its keys are made of."""
        steps = (key if _PLAIN.fullmatch(key) else json.dumps(key) for key in self.path)
        return ".".join((self.name, *steps))


ID: Final = Field("id")
CREATED: Final = Field("created_at")
UPDATED: Final = Field("updated_at")
_BUILT_IN: Final = {field.name: field for field in (ID, CREATED, UPDATED)}


def is_field(name: str) -> bool:
    """Whether a parameter of this name is a filter, right or wrong."""
    return name in _BUILT_IN or name.startswith("data.")


def parse_field(text: str) -> Field:
    """The field. Raises InvalidParameter, which lists what there is."""
    if text in _BUILT_IN:
        return _BUILT_IN[text]
    if not text.startswith("data."):
        raise InvalidParameter(
            f"There is no field {text[:40]!r}; there are {', '.join(_BUILT_IN)} and data.<path>, "
            "such as data.address.city."
        )
    if len(text) > FIELD_LENGTH_MAX:
        raise InvalidParameter(
            f"A field has at most {FIELD_LENGTH_MAX} characters: {text[:40]!r}…."
        )
    path, end = [], len("data")
    while end < len(text):
        step = _STEP.match(text, end)
        if step is None:
            raise InvalidParameter(
                f"{text[:40]!r} is no path into data at character {end}. Join keys with dots, and "
                'write one with a dot, a comma or a quote as a JSON string: data."a.b".c.'
            )
        path.append(_key(step[1]))
        end = step.end()
    if len(path) > DEPTH_MAX:
        raise InvalidParameter(f"A path has at most {DEPTH_MAX} steps: {text[:40]!r}….")
    return Field("data", tuple(path))


def split_fields(text: str) -> list[str]:
    """The fields of a list, split at the commas outside quotes."""
    return _PART.findall(text + ",")


def _key(step: str) -> str:
    try:
        key = json.loads(step) if step.startswith('"') else step
        key.encode()
    except ValueError:
        raise InvalidParameter(f"{step[:40]!r} in a path is not a JSON string.") from None
    if "\0" in key:
        raise InvalidParameter("A key in a path cannot hold NUL: no stored item does.")
    return str(key)


MISSING: Final = object()


def value_at(data: Any, path: tuple[str, ...]) -> Any:
    """The JSON value there, or MISSING: what ``data #> path`` is in PostgreSQL."""
    for key in path:
        if type(data) is dict and key in data:
            data = data[key]
        elif type(data) is list and _INDEX.fullmatch(key) and -len(data) <= int(key) < len(data):
            data = data[int(key)]
        else:
            return MISSING
    return data


class Key(NamedTuple):
    """Where a value of any type stands: numbers, texts, false, true, null, the rest, missing.

    The columns of an index in ``storage/statements.py`` have the same meaning.
    """

    number: Decimal  #: infinity, which no JSON number is, for another value
    kind: int
    text: str  #: the beginning of a text, else empty


INFINITY: Final = Decimal("Infinity")
FALSE, TRUE, NULL, REST, ABSENT = range(1, 6)


def key_of(value: Any) -> Key:
    """The value's place. Numbers are ints, Decimals, or floats by their shortest spelling."""
    match value:
        case False:
            return Key(INFINITY, FALSE, "")
        case True:
            return Key(INFINITY, TRUE, "")
        case None:
            return Key(INFINITY, NULL, "")
        case str():
            return Key(INFINITY, 0, value[:KEY_TEXT_LENGTH])
        case float():
            return Key(Decimal(repr(value)), 0, "")
        case int() | Decimal():
            return Key(Decimal(value), 0, "")
        case _:
            return Key(INFINITY, ABSENT if value is MISSING else REST, "")


def key_in(text: bytes, path: tuple[str, ...]) -> Key:
    """The place of the value there in an item's JSON text, its numbers exactly as written."""
    return key_of(value_at(json.loads(text, parse_float=Decimal, parse_int=Decimal), path))
