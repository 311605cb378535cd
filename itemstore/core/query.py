"""Filters: ``field=operator.value``, read into frozen values. Nothing here knows SQL.

The notation is PostgREST's (docs/decisions/0013-filters.md). A value is a JSON value where it is
one (``10``, ``true``, ``null``, ``"10"``, ``["red"]``) and a text where it is not (``open``).
docs/queries.md says what each operator means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from itemstore.core.data import loads
from itemstore.core.field import CREATED, ID, UPDATED, Field, parse_field
from itemstore.core.item import since_1970
from itemstore.errors import InvalidData, InvalidParameter, MalformedJSON

FILTERS_MAX: Final = 20
VALUE_LENGTH_MAX: Final = 500  # characters of a text or a number
JSON_LENGTH_MAX: Final = 8_000  # characters of an array or an object
IN_MAX: Final = 100  # values
EXPONENT_MAX: Final = 15_000  # of ten: PostgreSQL's numeric takes 16,383 decimals

_COMPARING: Final = ("lt", "lte", "gt", "gte")
OPERATORS: Final = ("eq", "neq", *_COMPARING, "in", "exists", "prefix", "contains")
_OF_TIMES: Final = ("eq", "neq", *_COMPARING, "in")
_OF_ID: Final = (*_OF_TIMES, "prefix")

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS: Final[Mapping[str, bool | None]] = {"true": True, "false": False, "null": None}
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-9]{2}))?"
)
_ELEMENT: Final = re.compile(r'("(?:[^"\\]|\\.)*"|[^",]+)(?:,|$)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Json:
    """An array or an object; ``text`` with sorted members, so that equal ones are equal."""

    text: str


#: Of a field of data. A time is an int: microseconds since 1970.
Scalar = Decimal | str | bool | None
Value = Scalar | Json | int | tuple[Scalar | int, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition; several are joined by AND."""

    field: Field
    operator: str
    value: Value


#: field → one condition or several, each ``operator.value``.
Filters = Mapping[str, str | Sequence[str]]


def parse_filters(filters: Filters) -> tuple[Filter, ...]:
    """The conditions. Raises InvalidParameter."""
    given = [(name, each) for name, some in filters.items() for each in _listed(some)]
    if len(given) > FILTERS_MAX:
        raise InvalidParameter(f"There are {len(given)} filters; at most {FILTERS_MAX} are taken.")
    return tuple(parse_filter(name, condition) for name, condition in given)


def _listed(conditions: str | Sequence[str]) -> Iterable[str]:
    return [conditions] if isinstance(conditions, str) else conditions


def parse_filter(name: str, condition: str) -> Filter:
    """One condition. Raises InvalidParameter that names the field and says what there is."""
    field = parse_field(name)
    operator, dot, text = condition.partition(".")
    allowed = OPERATORS if field.path else _OF_ID if field == ID else _OF_TIMES
    if not dot or operator not in allowed:
        raise InvalidParameter(
            f"A filter is {field}=operator.value with one of the operators {', '.join(allowed)}, "
            f"not {condition[:40]!r}."
        )
    try:
        text.encode()
        return Filter(field, operator, _value(field, operator, text))
    except (ValueError, ArithmeticError) as error:
        raise InvalidParameter(f"{field}={operator}.{text[:40]!r}: {error}.") from None


def _value(field: Field, operator: str, text: str) -> Value:
    if operator == "in":
        return tuple(_element(field, each) for each in _elements(text))
    return _one(field, operator, text)


def _element(field: Field, text: str) -> Scalar | int:
    value = _one(field, "eq", text)
    if isinstance(value, Json):
        raise ValueError("in takes numbers, texts, true, false and null")
    return value


def _elements(text: str) -> list[str]:
    """What is in the brackets of ``in.(a,"b,c",3)``."""
    if not (text.startswith("(") and text.endswith(")")):
        raise ValueError("in takes a list in round brackets, such as (open,closed)")
    inner, end = text[1:-1], 0
    elements = []
    while end < len(inner):
        element = _ELEMENT.match(inner, end)
        if element is None:
            raise ValueError('write a value with a comma or a quote in it as a JSON string: "a,b"')
        elements.append(element[1])
        end = element.end()
    if inner.endswith(",") or not 1 <= len(elements) <= IN_MAX:
        raise ValueError(f'in takes 1 to {IN_MAX} values; write an empty text as ""')
    return elements


def _one(field: Field, operator: str, text: str) -> Scalar | Json | int:
    if field in {CREATED, UPDATED}:
        return _time(text)
    if operator == "exists":
        if text not in {"true", "false"}:
            raise ValueError("exists takes true or false")
        return text == "true"
    value = _parsed(text)
    if field == ID or operator == "prefix":
        return _text(value if isinstance(value, str) else text)
    if operator == "contains":
        return _as_json(value, text)
    if isinstance(value, Json) and operator not in {"eq", "neq"}:
        raise ValueError("an array or an object is taken by eq, neq and contains alone")
    if operator in _COMPARING and not isinstance(value, Decimal | str):
        raise ValueError(f"{operator} takes a number or a text; true, false and null have no order")
    return value


def _parsed(text: str) -> Scalar | Json:
    """A JSON value where it is one, else the text itself."""
    if text.startswith(("[", "{")):
        return Json(_dumps(_loads(text)))
    if text.startswith('"'):
        return _text(_loads(text))
    if text in _WORDS:
        return _WORDS[text]
    return read_number(text) if _NUMBER.fullmatch(text) else _text(text)


def _as_json(value: Scalar | Json, text: str) -> Json:
    """``text`` is what the value was read from: a number's own spelling."""
    if isinstance(value, Json):
        return value
    return Json(text if isinstance(value, Decimal) else _dumps(value))


def _loads(text: str) -> Any:
    if len(text) > JSON_LENGTH_MAX:
        raise ValueError(f"a JSON value has at most {JSON_LENGTH_MAX} characters")
    try:
        value = loads(text.encode())
    except (MalformedJSON, InvalidData):
        raise ValueError(
            "what begins with [, { or a quote must be JSON; a text that begins so is written "
            "as a JSON string"
        ) from None
    if b"\\u0000" in orjson.dumps(value).replace(b"\\\\", b""):
        raise ValueError("no stored text holds \\u0000")
    return value


def _dumps(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _text(value: str) -> str:
    if len(value) > VALUE_LENGTH_MAX:
        raise ValueError(f"a text has at most {VALUE_LENGTH_MAX} characters")
    if "\0" in value:
        raise ValueError("no stored text holds \\u0000")
    return value


def read_number(text: str) -> Decimal:
    """The number, exactly. Raises ValueError if it is none, or beyond what is taken."""
    if _NUMBER.fullmatch(text) is None:
        raise ValueError("not a number")
    if len(text) > VALUE_LENGTH_MAX:
        raise ValueError(f"a number has at most {VALUE_LENGTH_MAX} characters")
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent beyond even Decimal's
        number = Decimal("Infinity")
    if not number:
        return Decimal(0)
    if not number.is_finite() or abs(number.adjusted()) > EXPONENT_MAX:
        raise ValueError(f"a number has an exponent of at most {EXPONENT_MAX}")
    return number


def _time(text: str) -> int:
    """Microseconds since 1970."""
    if _TIME.fullmatch(text.upper()) is None:
        raise ValueError(
            "a time is a date or RFC 3339 with at most six decimals, such as 2026-11-01 or "
            "2026-11-01T12:00:00Z; in a URL the + of an offset is %2B"
        )
    moment = datetime.fromisoformat(text.upper())
    # In UTC first: that fails where the year is then none of 1 to 9999.
    return since_1970(moment.astimezone(UTC) if moment.tzinfo else moment)
