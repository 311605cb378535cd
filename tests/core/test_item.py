"""The item: its id, its packed form, its clock, and the envelope it is answered in."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.data import encode_parsed, loads
from itemstore.core.item import (
    HEADER_BYTES,
    ID_MAX_BYTES,
    Item,
    VersionClock,
    check_id,
    created_us_of,
    data_of,
    envelope,
    microseconds,
    next_version,
    pack,
    timestamp,
    version_of,
)
from itemstore.errors import InvalidId
from tests.strategies import IDS, json_objects

CREATED_US = 1_763_769_600_000_001  # 2025-11-22 00:00:00.000001 UTC
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

VERSIONS = st.integers(0, 2**53 - 1)
#: Microseconds since 1970 of all the years that RFC 3339 can write: 1 to 9999.
MOMENTS_US = st.datetimes(timezones=st.just(UTC)).map(lambda at: (at - EPOCH) // timedelta(0, 0, 1))


# --- ids


@given(IDS)
def test_an_id_may_be_any_printable_text(item_id: str) -> None:
    """Whatever has 1 to 512 bytes of UTF-8 and no control character is an id, as it is."""
    assert check_id(item_id) is item_id


@pytest.mark.parametrize(
    "item_id",
    [
        "a",
        " ",
        "~",
        "...",
        ".a",
        "..a",
        "a/b",
        "%2F",
        "../x",
        "x" * ID_MAX_BYTES,
        "\u00e9" * (ID_MAX_BYTES // 2),
        "\U0001f34f" * (ID_MAX_BYTES // 4),
        "\u00a0",
        "\u2028",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
        '"\\',
    ],
    ids=ascii,
)
def test_an_id_may_be_odd(item_id: str) -> None:
    """Slashes, spaces, quotes, non-characters and 512 bytes exactly are allowed."""
    assert check_id(item_id) == item_id


@pytest.mark.parametrize(
    "item_id",
    [
        "",
        ".",
        "..",
        "x" * (ID_MAX_BYTES + 1),
        "x" + "\u00e9" * (ID_MAX_BYTES // 2),
        "\U0001f34f" * (ID_MAX_BYTES // 4) + "x",
        "\ud800",
        "a\udcffb",
        *(chr(point) for point in (*range(0x20), *range(0x7F, 0xA0))),
        *("\u00e9" + chr(point) for point in (0x00, 0x0A, 0x1F, 0x7F, 0x80, 0x9F)),
        None,
        7,
        b"a",
        ["a"],
    ],
    ids=lambda item_id: ascii(item_id)[:20],
)
def test_what_no_url_or_terminal_carries_is_no_id(item_id: Any) -> None:
    """An id that is empty, too long, dots, no UTF-8, or has control characters is refused."""
    with pytest.raises(InvalidId) as refusal:
        check_id(item_id)
    assert refusal.value.pointer == "/id"


# --- the packed form


@given(VERSIONS, st.integers(-(2**62), 2**62), st.text(max_size=50).map(str.encode))
def test_packing_loses_nothing(version: int, created_us: int, data: bytes) -> None:
    """Version, creation time and data come out of an entry as they went in."""
    entry = pack(version, created_us, data)
    assert (version_of(entry), created_us_of(entry), data_of(entry)) == (version, created_us, data)
    assert len(entry) == HEADER_BYTES + len(data)


def test_the_packed_form_is_postgresqls() -> None:
    """Both integers are big-endian; the time counts from 2000, as timestamptz_send() does."""
    in_2000 = (datetime(2000, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    assert pack(258, in_2000 + 3, b"{}") == struct.pack(">qq", 258, 3) + b"{}"
    assert pack(1, in_2000 - 1, b"") == struct.pack(">qq", 1, -1)


# --- the clock


@given(st.lists(st.integers(0, 2**53), min_size=1, max_size=30))
def test_versions_only_grow(clock: list[int]) -> None:
    """Versions increase strictly, and are the time where time allows, however the clock jumps.

    All are even, for changes by hand are odd.
    """
    versions = [0]
    for now_us in clock:
        versions.append(next_version(versions[-1], now_us))
        assert versions[-1] > versions[-2]
        assert versions[-1] % 2 == 0
        assert versions[-1] - max(versions[-2] + 1, now_us) in {0, 1}


# --- what is answered


@given(MOMENTS_US)
def test_timestamps_are_rfc_3339(us: int) -> None:
    """A timestamp is UTC with all six digits of the microseconds, and names the same moment."""
    text = timestamp(us).decode()
    assert len(text) == len("2025-11-22T00:00:00.000001Z")
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == EPOCH + timedelta(microseconds=us)


def test_a_timestamp_looks_like_this() -> None:
    """The form of a timestamp is fixed: no fraction is left out, none is rounded."""
    assert timestamp(CREATED_US) == b"2025-11-22T00:00:00.000001Z"
    assert timestamp(CREATED_US - 1) == b"2025-11-22T00:00:00.000000Z"
    assert timestamp(CREATED_US - 2) == b"2025-11-21T23:59:59.999999Z"
    assert timestamp(0) == b"1970-01-01T00:00:00.000000Z"
    assert timestamp(-1) == b"1969-12-31T23:59:59.999999Z"
    assert timestamp(-62_135_596_800_000_000) == b"0001-01-01T00:00:00.000000Z"
    assert timestamp(253_402_300_799_999_999) == b"9999-12-31T23:59:59.999999Z"


@given(IDS, VERSIONS, st.integers(0, 2**53), json_objects())
def test_the_envelope_is_json_around_the_untouched_data(
    item_id: str, version: int, created_us: int, raw: bytes
) -> None:
    """The envelope has the item's members in a fixed order, and its data byte by byte."""
    data = encode_parsed(loads(raw))
    text = envelope(item_id, pack(version, created_us, data))
    assert text.endswith(b',"data":' + data + b"}")
    parsed = orjson.loads(text)
    assert list(parsed) == ["id", "version", "created_at", "updated_at", "data"]
    assert (parsed["id"], parsed["version"]) == (item_id, version)
    assert parsed["created_at"] == timestamp(created_us).decode()
    assert parsed["updated_at"] == timestamp(version).decode()


def test_an_item_tells_what_it_is() -> None:
    """An item's members are those of its entry; its envelope is the HTTP API's."""
    item = Item("a", pack(CREATED_US + 5, CREATED_US, b'{"n":1}'))
    assert (item.id, item.version, item.data, item.data_json) == (
        "a",
        CREATED_US + 5,
        {"n": 1},
        b'{"n":1}',
    )
    assert item.created_at == datetime(2025, 11, 22, 0, 0, 0, 1, UTC)
    assert item.updated_at == datetime(2025, 11, 22, 0, 0, 0, 6, UTC)
    assert item.json() == envelope("a", pack(CREATED_US + 5, CREATED_US, b'{"n":1}'))
    assert "id='a'" in repr(item)
    assert str(item.version) in repr(item)


def test_the_first_version_is_new() -> None:
    """An item is new in the version that created it, and only in that one."""
    assert Item("a", pack(7, 7, b"{}")).is_new
    assert not Item("a", pack(8, 7, b"{}")).is_new


def test_an_items_data_is_the_callers_to_change() -> None:
    """Changing the parsed data changes neither the item nor what it gives out next."""
    item = Item("a", pack(1, 1, b'{"n":[1]}'))
    item.data["n"].append(2)
    assert item.data == {"n": [1]}
    assert item.data_json == b'{"n":[1]}'


def test_items_are_equal_by_id_and_content() -> None:
    """Two items are the same if id, version, creation time and data are."""
    item = Item("a", pack(2, 1, b"{}"))
    twin = Item("a", pack(2, 1, b"{}"))
    assert item == twin
    assert hash(item) == hash(twin)
    for other in (
        Item("b", pack(2, 1, b"{}")),
        Item("a", pack(3, 1, b"{}")),
        Item("a", pack(2, 2, b"{}")),
        Item("a", pack(2, 1, b'{"a":1}')),
        "a",
    ):
        assert item != other


def test_an_item_takes_no_other_attributes() -> None:
    """A misspelt attribute is an error, not a new one."""
    with pytest.raises(AttributeError):
        Item("a", pack(1, 1, b"{}")).verison = 2  # type: ignore[attr-defined]


# --- the store's clock


class Time:
    """A clock that is set by hand."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


def test_versions_are_the_time_where_time_allows() -> None:
    """A version is the time; else, as when time goes back, the next even number."""
    time = Time(1_000)
    clock = VersionClock(time)
    assert [1_000, 1_002] == [clock.next(), clock.next()]
    time.now_us = 5_000
    assert 5_000 == clock.next()
    time.now_us = 10
    assert [5_002, 5_004] == [clock.next(), clock.next()]
    assert 5_004 == clock.newest


def test_the_clock_goes_on_after_what_it_saw() -> None:
    """A version that another gave out is never given out again, nor any before it."""
    clock = VersionClock(Time(1_000))
    clock.saw(9_000)
    assert 9_002 == clock.next()
    clock.saw(3)
    assert 9_004 == clock.next()


def test_the_clock_tells_what_was_not_given_out() -> None:
    """now() is at least every version given out or seen and the time, and uses up none."""
    time = Time(1_000)
    clock = VersionClock(time)
    assert [1_000, 1_000] == [clock.now(), clock.now()]
    assert 1_000 == clock.next()
    clock.saw(2_000)
    assert 2_000 == clock.now()
    time.now_us = 3_000
    assert 3_000 == clock.now()
    assert 2_000 == clock.newest


@given(st.lists(st.one_of(st.tuples(st.just("saw"), VERSIONS), st.tuples(st.just("at"), VERSIONS))))
def test_versions_grow_whatever_was_seen(events: list[tuple[str, int]]) -> None:
    """Whatever the time does and whatever was seen, each version is newer than all before."""
    time = Time(0)
    clock = VersionClock(time)
    newest = 0
    for kind, value in events:
        if kind == "saw":
            clock.saw(value)
            newest = max(newest, value)
        else:
            time.now_us = value
        given_out = clock.next()
        assert newest < given_out
        newest = given_out


# --- times


@given(MOMENTS_US)
def test_a_time_that_was_written_is_read_back(us: int) -> None:
    """What ``timestamp`` writes, ``microseconds`` reads, to the microsecond."""
    assert us == microseconds(timestamp(us).decode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00.5z", 500_000),
        ("1970-01-01 00:00:01+00:00", 1_000_000),
        ("1970-01-01T01:00:00.000001+01:00", 1),
        ("1969-12-31T23:59:59.999999-00:00", -1),
        ("1970-01-01T00:00:00.000001999Z", 1),
        ("0001-01-01T00:00:00+23:59", -62_135_596_800_000_000 - 86_340_000_000),
    ],
)
def test_times_of_rfc_3339(text: str, expected: int) -> None:
    """Any offset, small letters and fractions of any length are read; what is finer is cut off."""
    assert expected == microseconds(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1970-01-01",
        "1970-01-01T00:00:00",
        "1970-01-01T00:00Z",
        "19700101T000000Z",
        "1970-W01-4T00:00:00Z",
        "1970-01-01T24:00:01Z",
        "1970-01-01T23:59:60Z",
        "1970-02-29T00:00:00Z",
        "1970-01-01T00:00:00+24:00",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        " 1970-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z\n",
        "١٩٧٠-01-01T00:00:00Z",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """ISO 8601's other forms, a time without its offset and days that were never are refused."""
    with pytest.raises(ValueError, match=r"\w"):
        microseconds(text)
