"""Filters are read strictly: what is understood is a frozen value, the rest is refused in words."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.field import FIELD_LENGTH_MAX, Field, parse_field, split_fields
from itemstore.core.query import (
    FILTERS_MAX,
    IN_MAX,
    OPERATORS,
    VALUE_LENGTH_MAX,
    Json,
    parse_filter,
    parse_filters,
)
from itemstore.core.selection import SELECTED_MAX, parse_fields
from itemstore.errors import InvalidParameter
from tests.strategies import STORABLE_TEXT


def _after_operator(operator: str) -> st.SearchStrategy[str]:
    return st.text().map(lambda text: f"{operator}.{text}")


# --- fields


@given(st.lists(STORABLE_TEXT, min_size=1, max_size=6).map(tuple))
def test_a_field_comes_back_as_it_is_written(path: tuple[str, ...]) -> None:
    """Any path is written in ASCII without spaces or control characters, and read again."""
    field = Field("data", path)
    written = str(field)
    assert written.isascii()
    assert written.isprintable()
    if len(written) <= FIELD_LENGTH_MAX:
        assert field == parse_field(written)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("data.a", ("a",)),
        ("data.a.b.0", ("a", "b", "0")),
        ('data."a.b".c', ("a.b", "c")),
        (r'data."\u00e9\""', ('é"',)),
        ('data.""', ("",)),
        ("data.größe in cm", ("größe in cm",)),
        ("data.a'; DROP TABLE items; --", ("a'; DROP TABLE items; --",)),
        ("data.a=b", ("a=b",)),
    ],
)
def test_a_path_is_keys_between_dots(text: str, path: tuple[str, ...]) -> None:
    """A key is written as it is, or as a JSON string."""
    assert parse_field(text) == Field("data", path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "data", "data.", "data..a", ".a", "data.a.", "Data.a", "version", "name", "id.a"),
        *('data."a', 'data."a"b', 'data.a"b', "data.a,b", r'data."\x"', 'data."a\nb"'),
        *("data.\x00", r'data."\u0000"', "data.\ud800", r'data."\ud800"', "data.a" * 100),
        "data" + ".a" * 65,
        "created_at.a",
    ],
    ids=ascii,
)
def test_another_field_is_refused(text: str) -> None:
    """What is no field, or no path that an item could have, is refused."""
    with pytest.raises(InvalidParameter):
        parse_field(text)


def test_a_list_of_fields_is_split_outside_quotes() -> None:
    """A comma in quotes belongs to a key."""
    assert ["id", 'data."a,b".c', "data.d"] == split_fields('id,data."a,b".c,data.d')
    for text in ("", ",", "id,", ",id", 'data."a,b'):
        with pytest.raises(InvalidParameter):
            parse_fields(split_fields(text))
    with pytest.raises(InvalidParameter, match=str(SELECTED_MAX)):
        parse_fields(["data.a"] * (SELECTED_MAX + 1))


# --- values


@pytest.mark.parametrize(
    ("condition", "operator", "value"),
    [
        ("eq.10", "eq", Decimal(10)),
        ("eq.-1.50e2", "eq", Decimal(-150)),
        ("eq.-0", "eq", Decimal(0)),
        ("eq.0e999999999999", "eq", Decimal(0)),
        ("eq.1e15000", "eq", Decimal("1e15000")),
        ('eq."10"', "eq", "10"),
        ("eq.", "eq", ""),
        ("eq.open", "eq", "open"),
        ("eq. 10", "eq", " 10"),
        ("eq.010", "eq", "010"),
        ("eq.+1", "eq", "+1"),
        ("eq.1.", "eq", "1."),
        ("eq.NaN", "eq", "NaN"),
        ("eq.\u0661", "eq", "\u0661"),
        ("eq.True", "eq", "True"),
        ("eq.true", "eq", True),
        ("eq.null", "eq", None),
        ('eq."null"', "eq", "null"),
        ("eq.a.b.c", "eq", "a.b.c"),
        ("eq.' OR true --", "eq", "' OR true --"),
        ('eq.{"b":1,"a":[ 2 ]}', "eq", Json('{"a":[2],"b":1}')),
        ("neq.[]", "neq", Json("[]")),
        ("contains.red", "contains", Json('"red"')),
        ("contains.1.50", "contains", Json("1.50")),
        ("contains.null", "contains", Json("null")),
        ("prefix.10", "prefix", "10"),
        ('prefix."a', "prefix", InvalidParameter),
        ("exists.true", "exists", True),
        ("exists.1", "exists", InvalidParameter),
        ("in.(a)", "in", ("a",)),
        ('in.(1,"1",true,null,"a,b","",(x))', "in", (1, "1", True, None, "a,b", "", "(x)")),
        ("in.a,b", "in", InvalidParameter),
        ("in.()", "in", InvalidParameter),
        ("in.(a,)", "in", InvalidParameter),
        ("in.(,a)", "in", InvalidParameter),
        ("in.(a,,b)", "in", InvalidParameter),
        ('in.(a"b)', "in", InvalidParameter),
        ('in.("a"b)', "in", InvalidParameter),
        ("in.([1],2)", "in", InvalidParameter),
        (f"in.({','.join('x' * (IN_MAX + 1))})", "in", InvalidParameter),
        ("lt.true", "lt", InvalidParameter),
        ("gte.null", "gte", InvalidParameter),
        ("lt.[1]", "lt", InvalidParameter),
        ("eq.[1", "eq", InvalidParameter),
        ('eq."a"b', "eq", InvalidParameter),
        (r'eq."\u0000"', "eq", InvalidParameter),
        (r'eq."\\u0000"', "eq", "\\u0000"),
        (r'contains.{"a":["\u0000"]}', "contains", InvalidParameter),
        ("eq.\x00", "eq", InvalidParameter),
        ("eq.\ud800", "eq", InvalidParameter),
        (r'eq."\ud800"', "eq", InvalidParameter),
        ("eq.1e15001", "eq", InvalidParameter),
        ("eq.1e-99999999999999999999", "eq", InvalidParameter),
        ("eq." + "9" * (VALUE_LENGTH_MAX + 1), "eq", InvalidParameter),
        ("eq." + "x" * (VALUE_LENGTH_MAX + 1), "eq", InvalidParameter),
        ("eq.[" + "1," * 5_000 + "1]", "eq", InvalidParameter),
        ("eq." + "[" * 70 + "]" * 70, "eq", InvalidParameter),
        ("eq.[12345678901234567890]", "eq", InvalidParameter),
        ("10", "", InvalidParameter),
        ("eq", "", InvalidParameter),
        ("", "", InvalidParameter),
        ("EQ.1", "", InvalidParameter),
        ("like.a", "", InvalidParameter),
        ("not.eq.1", "", InvalidParameter),
    ],
    ids=lambda each: ascii(each)[:40],
)
def test_a_value_is_json_where_it_is_and_else_a_text(
    condition: str, operator: str, value: Any
) -> None:
    """Each value has one type; what could be meant otherwise is refused."""
    if value is InvalidParameter:
        with pytest.raises(InvalidParameter):
            parse_filter("data.a", condition)
        return
    found = parse_filter("data.a", condition)
    assert (operator, value) == (found.operator, found.value)
    assert type(found.value) is type(value)


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("gte.1970-01-01", 0),
        ("lt.1970-01-01T00:00:01.5Z", 1_500_000),
        ("eq.1970-01-01T01:00:00.000001+01:00", 1),
        ("neq.1969-12-31t23:59:59z", -1_000_000),
        ("in.(1970-01-01,1970-01-02)", (0, 86_400_000_000)),
        ("gt.9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
        ("gt.1970-01-01 00:00:00", None),
        ("gt.1970-01-01T00:00:00 01:00", None),
        ("gt.1970-01-01T00:00:00", None),
        ("gt.1970-01-01T00:00:00.0000001Z", None),
        ("gt.1970-02-30", None),
        ("gt.1970-01-01T24:00:01Z", None),
        ("gt.0001-01-01T00:00:00+01:00", None),
        ("gt.now", None),
        ("gt.0", None),
        ("prefix.1970", None),
        ("exists.true", None),
        ("contains.1", None),
    ],
)
def test_times_are_rfc_3339(condition: str, value: Any) -> None:
    """A date is its beginning in UTC; a time is exact to the microsecond, with its offset."""
    for name in ("created_at", "updated_at"):
        if value is None:
            with pytest.raises(InvalidParameter):
                parse_filter(name, condition)
        else:
            assert value == parse_filter(name, condition).value


def test_an_id_is_a_text() -> None:
    """What looks like a number or a word is an id all the same."""
    assert "10" == parse_filter("id", "eq.10").value
    assert ("true", "a") == parse_filter("id", "in.(true,a)").value
    for condition in ("exists.true", "contains.a"):
        with pytest.raises(InvalidParameter, match="operators eq, neq"):
            parse_filter("id", condition)


def test_filters_are_bounded() -> None:
    """Too many are refused, however they are given."""
    assert FILTERS_MAX == len(parse_filters({"data.a": ["eq.1"] * FILTERS_MAX}))
    for filters in ({"data.a": ["eq.1"] * 1_000}, {f"data.a{n}": "eq.1" for n in range(1_000)}):
        with pytest.raises(InvalidParameter, match=f"at most {FILTERS_MAX}"):
            parse_filters(filters)


@given(
    st.text(max_size=30), st.one_of(st.text(), st.sampled_from(OPERATORS).flatmap(_after_operator))
)
def test_anything_else_is_refused(name: str, condition: str) -> None:
    """Text at random is a filter or an InvalidParameter, never another error."""
    for each in (name, f"data.{name}", "data.a", "created_at", "id"):
        with suppress(InvalidParameter):
            hash(parse_filter(each, condition))
