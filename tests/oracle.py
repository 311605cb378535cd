"""What a filter and an order mean, in plain Python: the oracle for PostgreSQL's answers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

from itemstore.core.cache import Row
from itemstore.core.field import MISSING, Field, value_at
from itemstore.core.item import created_us_of, data_of, version_of
from itemstore.core.listing import ListQuery, Position, position
from itemstore.core.query import Filter, Json

#: What has an order: numbers, texts, and times in microseconds, each among its own.
_ORDERED: Final = (Decimal, str, int)


def selected(rows: list[Row], query: ListQuery) -> list[Row]:
    """Everything in the list, from its place on, sorted; without an end."""
    found = [row for row in rows if matches(row, query)]
    found.sort(key=lambda row: order_key(query.order, row), reverse=query.descending)
    if query.after is None:
        return found
    end = _comparable(query.after)
    if query.descending:
        return [row for row in found if order_key(query.order, row) < end]
    return [row for row in found if order_key(query.order, row) > end]


def order_key(order: str | Field, row: Row) -> Any:
    return _comparable(position(order, row))


def _comparable(place: Position) -> Any:
    """Texts by their bytes."""
    key, item_id = place
    if isinstance(key, int):
        return key, item_id.encode()
    return key.number, key.kind, key.text.encode(), item_id.encode()


def matches(row: Row, query: ListQuery) -> bool:
    return row[0].startswith(query.prefix) and all(holds(row, each) for each in query.filters)


def holds(row: Row, condition: Filter) -> bool:
    """Whether the item fulfils the condition."""
    item_id, entry = row
    match condition.field:
        case Field("id"):
            value: Any = item_id
        case Field("created_at"):
            value = created_us_of(entry)
        case Field("updated_at"):
            value = version_of(entry)
        case Field("data", path):
            value = value_at(parsed(data_of(entry).decode()), path)
    return _holds(value, condition.operator, condition.value)


def parsed(text: str) -> Any:
    """The JSON value, its numbers exactly."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def _holds(value: Any, operator: str, given: Any) -> bool:
    if operator == "exists":
        return (value is not MISSING) is given
    if value is MISSING:
        return False
    if isinstance(given, Json):
        given = parsed(given.text)
    match operator:
        case "eq":
            return same(value, given)
        case "neq":
            return not same(value, given)
        case "in":
            return any(same(value, each) for each in given)
        case "prefix":
            return type(value) is str and value.startswith(given)
        case "contains":
            return contains(value, given) or (
                type(value) is list and not _is_container(given) and _has(value, given)
            )
    if type(value) is not type(given) or type(value) not in _ORDERED:
        return False
    if type(value) is str:
        value, given = value.encode(), given.encode()
    return bool(
        {
            "lt": value < given,
            "lte": value <= given,
            "gt": value > given,
            "gte": value >= given,
        }[operator]
    )


def same(one: Any, other: Any) -> bool:
    """Equality of JSON values: of the same type, numbers as numbers, members in any order."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if type(one) is list:
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def contains(whole: Any, part: Any) -> bool:
    """jsonb's ``@>`` (https://www.postgresql.org/docs/current/datatype-json.html)."""
    if type(whole) is dict and type(part) is dict:
        return all(key in whole and contains(whole[key], part[key]) for key in part)
    if type(whole) is list and type(part) is list:
        return all(_has(whole, each) for each in part)
    return not _is_container(part) and same(whole, part)


def _has(whole: list[Any], part: Any) -> bool:
    return any(contains(each, part) for each in whole)


def _is_container(value: Any) -> bool:
    return type(value) in {dict, list}
