"""Which columns of a record become the item's id, times and data."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from itemstore.core.operation import Conflict
from itemstore.moving.mapping import Columns, Mapping, made_id, microseconds
from itemstore.moving.record import Rejected, Row

NOON_US = int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


def mapped(record: Any, key: bytes | None = b"key", **columns: Any) -> Row:
    row = Mapping(Columns(**columns), Conflict.NEWER, key).row(1, record)
    assert isinstance(row, Row), row
    return row


def reason(record: Any, key: bytes | None = b"key", **columns: Any) -> str:
    row = Mapping(Columns(**columns), Conflict.NEWER, key).row(7, record)
    assert isinstance(row, Rejected)
    assert 7 == row.number
    return row.reason


def test_an_exported_line_is_the_item() -> None:
    line = (
        b'{"id":"a","version":7,"created_at":"2024-05-01T12:00:00.000000Z",'
        b'"updated_at":"2024-05-01T12:00:00.000001Z","data":{"id":1,"b":[1.5]}}'
    )
    row = mapped(line)
    assert ("a", b'{"id":1,"b":[1.5]}') == (row.id, row.item.text)
    assert (NOON_US, NOON_US + 1) == (row.item.created_us, row.item.updated_us)


def test_an_item_in_columns_has_its_data_as_text() -> None:
    columns = {"id": "a", "data": '{"b": 1}', "created_at": "2024-05-01", "version": 3}
    assert b'{"b":1}' == mapped(columns).item.text


def test_other_records_are_data_without_what_was_taken() -> None:
    record = b'{"id":5,"name":"Ada","created_at":1714564800,"updated_at":null}'
    row = mapped(record)
    assert ("5", b'{"name":"Ada"}', NOON_US, None) == (
        row.id,
        row.item.text,
        row.item.created_us,
        row.item.updated_us,
    )


def test_columns_are_taken_by_the_names_given() -> None:
    record = {"key": "k", "a": "1", "b": "true", "c": "", "born": "2024-05-01T14:00:00+02:00"}
    row = mapped(record, id="key", created_at="born", kept=("a", "b", "c"), parse=True)
    assert ("k", b'{"a":1,"b":true}', NOON_US) == (row.id, row.item.text, row.item.created_us)
    assert (
        b'{"a":"1","b":"true","c":""}' == mapped(record, id="key", kept=("a", "b", "c")).item.text
    )
    assert b'{"born":"never"}' == mapped({"id": "x", "born": "never"}).item.text
    assert b'{"created_at":"never"}' == mapped({"created_at": "never"}, created_at="").item.text


def test_dotted_columns_are_parts_of_the_data() -> None:
    record = {"id": "a", "data.name": "Ada", "data.at.city": "London", 'data."a.b"."c,\\""': "d"}
    expected = b'{"name":"Ada","at":{"city":"London"},"a.b":{"c,\\"":"d"}}'
    assert expected == mapped(record).item.text


def test_an_id_that_is_missing_is_made_and_the_same_again() -> None:
    assert mapped(b'{"a":1}').id == mapped(b'{"b":2}').id == made_id(b"key", 1)
    made = {made_id(key, number) for key in (b"a", b"b") for number in range(1_000)}
    assert 2_000 == len(made)


@pytest.mark.parametrize(
    ("record", "columns", "says"),
    [
        (b'{"a":', {}, "not JSON"),
        (b"[1]", {}, "JSON object"),
        (b'{"id":"a","data":[1]}', {"data": "data"}, "an array"),
        (b'{"id":1.5}', {}, "text or an integer"),
        (b'{"id":""}', {}, "id"),
        (b'{"id":"a\\n"}', {}, "id"),
        (b'{"a":1}', {"id": "key"}, "--id"),
        (b'{"id":"a"}', {"data": "doc"}, "--data"),
        (b'{"id":"a","created_at":"soon"}', {}, "--created-at"),
        (b'{"id":"a","updated_at":true}', {}, "--updated-at"),
        (b'{"id":"a","created_at":1e18}', {}, "years 1 to 9999"),
        ({"id": "a", "data.a..b": "x"}, {}, "no path into data at character 6"),
        (b'{"id":"a","n":12345678901234567890}', {}, "64 bits"),
        ({"id": "a", "b": b"\x00"}, {}, "BLOB"),
        ({"id": "a", "b": "\udcff"}, {}, "UTF-8"),
        ({"id": "a", "b": "\x00"}, {}, "u0000"),
        ({"id": "a", "data.b": "1", "data.b.c": "2"}, {}, "both"),
        (b'{"id":"a","x":"%b"}' % (b"y" * 2_000_000), {}, "bytes"),
    ],
)
def test_what_cannot_be_stored_is_rejected_with_the_reason(
    record: Any, columns: dict[str, Any], says: str
) -> None:
    assert says in reason(record, **columns)


def test_a_source_without_a_key_demands_ids() -> None:
    assert "--id" in reason(b'{"a":1}', key=None)


def test_a_blank_line_is_nothing() -> None:
    assert Mapping(Columns(), Conflict.NEWER, b"key").row(1, None) is None


@pytest.mark.parametrize("time", ["", "x", "2024-13-01", True, None, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(time: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        microseconds(time)
