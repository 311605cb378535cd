"""Filters and orders as SQL: fragments for ``statements.py``, with parameters for every value.

Only a path into the data stands in the text itself, as a quoted literal: the planner takes an index
only for an expression that is the same as the index's. The three key columns are core/field.py's
``Key``; none is ever NULL. All expressions are immutable, and safe on everything that core/data.py
accepts: an item's text is good ``jsonb``, and its numbers are good ``numeric``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from psycopg import sql

from itemstore.core.audit import AuditQuery
from itemstore.core.field import (
    ABSENT,
    FALSE,
    KEY_TEXT_LENGTH,
    NULL,
    REST,
    TRUE,
    Field,
    Key,
    key_of,
)
from itemstore.core.listing import ListQuery
from itemstore.core.query import Filter, Json

_COMPARISONS: Final = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_NO_NUMBER: Final = "'Infinity'::numeric"
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Parameters(dict[str, Any]):
    """The values of a statement, by the names they have in it."""

    def take(self, value: Any, type_name: str) -> str:
        """The placeholder of one more value."""
        name = f"p{len(self)}"
        self[name] = value
        return f"%({name})s::{type_name}"


def _path(field: Field) -> str:
    return sql.Literal(list(field.path)).as_string(None).replace("%", "%%")


def json_column(field: Field) -> str:
    """The value there as jsonb; NULL if it is missing."""
    return f"((data #> {_path(field)})::jsonb)"


def key_columns(field: Field) -> tuple[str, str, str]:
    """The key of the value there: number, kind, text."""
    path = _path(field)
    kind, text = f"json_typeof(data #> {path})", f"(data #>> {path})"
    return (
        f"(CASE {kind} WHEN 'number' THEN {text}::numeric ELSE {_NO_NUMBER} END)",
        f"(CASE {kind} WHEN 'number' THEN 0 WHEN 'string' THEN 0"
        f" WHEN 'boolean' THEN CASE {text} WHEN 'false' THEN {FALSE} ELSE {TRUE} END"
        f" WHEN 'null' THEN {NULL} WHEN 'array' THEN {REST} WHEN 'object' THEN {REST}"
        f" ELSE {ABSENT} END)",
        f"(CASE {kind} WHEN 'string' THEN left({text}, {KEY_TEXT_LENGTH}) ELSE '' END"
        ' COLLATE "C")',
    )


def sort_columns(order: str | Field) -> tuple[str, ...]:
    """What a list is sorted by. The id breaks ties, so that every order is total."""
    if isinstance(order, Field):
        return (*key_columns(order), "id")
    return {"created": ("created_at", "id"), "updated": ("version", "id"), "id": ("id",)}[order]


def where(query: ListQuery, given: Parameters) -> str:
    """What items are in the list, on whatever page."""
    conditions = [_condition(each, given) for each in query.filters]
    if query.prefix:
        conditions.append(begins("id", query.prefix, given))
    return " AND ".join(conditions) or "true"


def beyond(query: ListQuery, given: Parameters) -> str:
    """What comes after the last page."""
    if query.after is None:
        return "true"
    key, item_id = query.after
    values: list[tuple[Any, str]]
    match key:
        case Key(number, kind, text):
            values = [(number, "numeric"), (kind, "int"), (text, "text")]
        case _ if query.order == "created":
            values = [(moment(key), "timestamptz")]
        case _ if query.order == "updated":
            values = [(key, "bigint")]
        case _:
            values = []
    place = ", ".join(given.take(*each) for each in [*values, (item_id, "text")])
    columns = ", ".join(sort_columns(query.order))
    return f"({columns}) {'<' if query.descending else '>'} ({place})"


def audited(query: AuditQuery, given: Parameters) -> str:
    """What rows of the audit are asked for, beyond the last page."""
    conditions = [
        f"{column} {compared} {given.take(value, type_name)}"
        for column, compared, value, type_name in (
            ("id", "=", query.id, "text"),
            ("caller", "=", query.caller, "text"),
            ("version", ">=", query.since_us, "bigint"),
            ("version", "<", query.until_us, "bigint"),
        )
        if value is not None
    ]
    if query.prefix:
        conditions.append(begins("id", query.prefix, given))
    if query.after is not None:
        version, item_id = query.after
        place = f"{given.take(version, 'bigint')}, {given.take(item_id, 'text')}"
        conditions.append(f"(version, id) < ({place})")
    return " AND ".join(conditions) or "true"


def _condition(condition: Filter, given: Parameters) -> str:
    match condition.field.name:
        case "id":
            return _compared("id", "text", condition, given)
        case "created_at":
            return _compared("created_at", "timestamptz", condition, given, moment)
        case "updated_at":
            return _compared("version", "bigint", condition, given)
        case _:
            return f"({_of_data(condition, given)})"


def _compared(
    column: str,
    type_name: str,
    condition: Filter,
    given: Parameters,
    as_sent: Callable[[Any], Any] = lambda value: value,
) -> str:
    value: Any = condition.value
    if condition.operator == "prefix":
        return begins(column, value, given)
    if condition.operator == "in":
        return f"{column} = ANY({given.take([as_sent(each) for each in value], type_name)}[])"
    return f"{column} {_COMPARISONS[condition.operator]} {given.take(as_sent(value), type_name)}"


def begins(column: str, prefix: str, given: Parameters) -> str:
    """Whether a text begins so."""
    begun, end = f"{column} >= {given.take(prefix, 'text')}", prefix_end(prefix)
    return begun if end is None else f"{begun} AND {column} < {given.take(end, 'text')}"


def _of_data(condition: Filter, given: Parameters) -> str:
    """What narrows most stands first: it is asked first where no index is."""
    number, kind, text = key_columns(condition.field)
    is_text = f"{kind} = 0 AND {number} = {_NO_NUMBER}"
    match condition.operator, condition.value:
        case "exists", value:
            return f"{kind} {'<>' if value else '='} {ABSENT}" + (
                "" if value else f" AND {number} = {_NO_NUMBER}"
            )
        case "contains", Json(text=value):
            return f"{json_column(condition.field)} @> {given.take(value, 'jsonb')}"
        case "prefix", str(value):
            return f"{begins(text, value, given)} AND {is_text}"
        case "in", tuple(values):
            return _one_of(condition.field, values, given)
        case "eq", value:
            return _equal(condition.field, value, given)
        case "neq", value:
            return f"{kind} <> {ABSENT} AND NOT ({_equal(condition.field, value, given)})"
        case operator, str(value):
            return f"{text} {_COMPARISONS[operator]} {given.take(value, 'text')} AND {is_text}"
        case operator, value:
            compared = f"{number} {_COMPARISONS[operator]} {given.take(value, 'numeric')}"
            return f"{compared} AND {number} < {_NO_NUMBER}"


def _equal(field: Field, value: Any, given: Parameters) -> str:
    if isinstance(value, Json):
        same = f"{json_column(field)} = {given.take(value.text, 'jsonb')}"
        return f"{json_column(field)} @> {given.take(value.text, 'jsonb')} AND {same}"
    return _one_of(field, (value,), given)


def _one_of(field: Field, values: Sequence[Any], given: Parameters) -> str:
    """By kinds of values: each a range of the same index."""
    number, kind, text = key_columns(field)
    keys = [key_of(value) for value in values]
    kinds = [key.kind for key in keys if key.kind]
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, Decimal)]
    conditions = []
    if numbers:
        conditions.append(f"{number} = ANY({given.take(numbers, 'numeric')}[])")
    if texts:
        is_one = f"{text} = ANY({given.take(texts, 'text')}[])"
        conditions.append(f"{is_one} AND {kind} = 0 AND {number} = {_NO_NUMBER}")
    if kinds:
        is_one = f"{kind} = ANY({given.take(kinds, 'int')}[])"
        conditions.append(f"{is_one} AND {number} = {_NO_NUMBER}")
    return " OR ".join(f"({each})" for each in conditions)


def moment(microseconds: int) -> datetime:
    """From microseconds since 1970; exact, where to_timestamp() rounds."""
    return _UNIX_EPOCH + timedelta(microseconds=microseconds)


def prefix_end(prefix: str) -> str | None:
    """The first text, in byte order, after all that begin with the prefix; None if there is none.

    UTF-8's byte order is the order of code points, so the last one is counted up; code points
    that cannot be encoded (the surrogates, U+D800 to U+DFFF) are stepped over.
    """
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position]) + 1
        if point <= 0x10FFFF:
            return prefix[:position] + chr(0xE000 if point == 0xD800 else point)
    return None
