"""The validator: what it lets in comes back unchanged, everything else is refused with a reason."""

from __future__ import annotations

import dataclasses
import enum
import json
import uuid
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore.core.data import (
    DEPTH_MAX,
    Encoded,
    check_numbers,
    decode,
    encode,
    encode_parsed,
    loads,
    merge_patch,
)
from itemstore.core.item import pack
from itemstore.core.operation import Patch
from itemstore.errors import BodyTooLarge, InvalidData, InvalidInput, MalformedJSON
from tests.strategies import ANY_NUMBERS, TEXT, json_objects

# --- reading: syntax

MALFORMED = {
    "nothing": b"",
    "white space": b" \t\r\n",
    "truncated literal": b"nul",
    "truncated object": b'{"a":1',
    "truncated string": b'{"a":"b',
    "truncated escape": b'{"a":"\\u12"}',
    "trailing comma": b'{"a":1,}',
    "missing colon": b'{"a" 1}',
    "single quotes": b"{'a':1}",
    "bare word": b"{a:1}",
    "two values": b"{}{}",
    "comment": b"{}//",
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a":1}'.encode("utf-16"),
    "raw NUL": b"\x00",
    "raw NUL in a string": b'{"a":"\x00"}',
    "raw newline in a string": b'{"a":"\n"}',
    "byte that is no utf-8": b'{"a":"\xff"}',
    "overlong utf-8": b'{"a":"\xc0\xaf"}',
    "truncated utf-8": b'{"a":"\xe2\x82"}',
    "surrogate as utf-8": b'{"a":"\xed\xa0\x80"}',
    "beyond Unicode": b'{"a":"\xf4\x90\x80\x80"}',
    "high surrogate alone": b'{"a":"\\ud800"}',
    "low surrogate alone": b'{"a":"\\udc00"}',
    "surrogates in the wrong order": b'{"a":"\\udc00\\ud800"}',
    "surrogate in a key": b'{"\\ud800":1}',
    "unknown escape": b'{"a":"\\x41"}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":-Infinity}',
    "leading zero": b'{"a":01}',
    "leading plus": b'{"a":+1}',
    "no digit before the point": b'{"a":.5}',
    "no digit after the point": b'{"a":1.}',
    "no exponent": b'{"a":1e}',
    "hexadecimal": b'{"a":0x10}',
    "separators in digits": b'{"a":1_000}',
    "other digits": '{"a":\u0661}'.encode(),
    "beyond a double": b'{"a":1e400}',
    "far beyond a double": b'{"a":-1e99999999999999999999}',
    "a million digits": b'{"a":' + b"9" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_malformed_text_is_refused(raw: bytes) -> None:
    """A text that is no JSON, no UTF-8, or beyond every double is malformed."""
    with pytest.raises(MalformedJSON):
        loads(raw)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever arrives, the answer is a value or one of our errors."""
    with suppress(MalformedJSON, InvalidData):
        loads(raw)


@given(json_objects(), st.data())
def test_truncated_text_is_refused(raw: bytes, data: st.DataObject) -> None:
    """An object cut short anywhere is malformed."""
    end = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(InvalidInput):
        loads(raw[:end])


# --- reading: numbers

KEPT_NUMBERS = {
    "0": b"0",
    "-0": b"0",
    "-0.0": b"-0.0",
    "0.1": b"0.1",
    "1.10": b"1.1",
    "1e2": b"100.0",
    "1E+2": b"100.0",
    "1e16": b"1e+16",
    "0e400": b"0.0",
    "1e0000000000000001": b"10.0",
    "1.0000000000000000000": b"1.0",
    "123456789012345": b"123456789012345",
    "9007199254740993": b"9007199254740993",
    "9007199254740992.0": b"9007199254740992.0",
    "9223372036854775807": b"9223372036854775807",
    "-9223372036854775808": b"-9223372036854775808",
    "5e-324": b"5e-324",
    "1.7976931348623157e308": b"1.7976931348623157e+308",
    "-1.7976931348623157E+308": b"-1.7976931348623157e+308",
    "0.30000000000000004": b"0.30000000000000004",
}
CHANGED_NUMBERS = (
    "9223372036854775808",  # 2^63
    "-9223372036854775809",  # -2^63 - 1
    "18446744073709551615",  # 2^64 - 1, which orjson would read as an integer
    "18446744073709551616",  # 2^64, which orjson would read as a float
    "100000000000000000000",
    "-100000000000000000000",
    "9" * 300,
    "0.1234567890123456789",
    "9007199254740993.0",
    "9.007199254740993e15",
    "3.14159265358979323846",
    "123456789012345678901234567890e-20",
    "4e-324",
    "1e-400",
    "1e-99999999999999999999",
    "1.7976931348623158e308",
    "2.00000000000000000001",
    "0." + "3" * 1_000_000,
)


@pytest.mark.parametrize(("number", "text"), KEPT_NUMBERS.items())
def test_a_number_that_a_double_or_an_int64_holds_is_kept(number: str, text: bytes) -> None:
    """A number that can be kept is accepted and has one spelling."""
    raw = b'{"a":%b}' % number.encode()
    assert encode_parsed(loads(raw)) == b'{"a":%b}' % text
    assert Decimal(number) == Decimal(text.decode())


@pytest.mark.parametrize("number", CHANGED_NUMBERS, ids=lambda number: number[:24])
def test_a_number_that_would_change_is_refused(number: str) -> None:
    """A number that would come back as another one is refused, by each door."""
    raw = b'{"a":[{"b":%b}]}' % number.encode()
    for door in (loads, check_numbers):
        with pytest.raises(InvalidData) as refusal:
            door(raw)
        assert refusal.value.pointer == "/data"
        assert len(str(refusal.value)) < 300  # however many digits there are


def test_an_integer_beyond_pythons_limit_of_digits_is_refused() -> None:
    """An integer too long for Python to read, which PostgreSQL may hold, is refused as others."""
    with pytest.raises(InvalidData, match="64 bits"):
        check_numbers(b'{"a":' + b"9" * 5_000 + b"}")


@pytest.mark.parametrize(
    ("number", "is_looked_at"),
    [
        ("123456789012345", False),
        ("1795319049446162", False),
        ("-999999999999999999", False),
        ("1000000000000000000", True),
        ("1234567890123456e1", True),
        ("1234567890123456E1", True),
        ("1234567890123456.5", True),
        ("0.12345678901234567", True),
        ("1e100", True),
    ],
)
def test_only_numbers_that_may_be_too_long_are_looked_at(
    number: str, is_looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole number of up to 18 digits, as a version is, fits, and costs no second parse."""
    seen: list[str] = []
    monkeypatch.setattr("itemstore.core.data._check_int", seen.append)
    monkeypatch.setattr("itemstore.core.data._check_float", seen.append)
    check_numbers(f'{{"a":1795319049446162,"b":[{number},1]}}'.encode())
    assert is_looked_at == (number in seen)


def test_digits_in_a_string_are_not_a_number() -> None:
    """A string of digits is a string."""
    raw = b'{"a":"0.1234567890123456789 1e400 99999999999999999999"}'
    assert encode_parsed(loads(raw)) == raw


def test_a_member_that_is_repeated_keeps_the_last_value() -> None:
    """Of a repeated member the last value counts, in the first one's place."""
    assert encode_parsed(loads(b'{"a":1,"b":2,"a":3}')) == b'{"a":3,"b":2}'


# --- depth


def nested(kind: str, depth: int) -> bytes:
    """A JSON text of so many levels, all objects, all arrays, or both in turn."""
    opening = {"objects": [b'{"a":'], "arrays": [b"["], "mixed": [b'{"a":', b"["]}[kind]
    closing = {b"[": b"]"}
    layers = [opening[level % len(opening)] for level in range(depth)]
    return (
        b"".join(layers) + b"1" + b"".join(closing.get(layer, b"}") for layer in reversed(layers))
    )


def nested_in_object(kind: str, depth: int) -> bytes:
    """The same inside an object, which is one level of the depth."""
    return b'{"a":' + nested(kind, depth - 1) + b"}"


each_kind = pytest.mark.parametrize("kind", ["objects", "arrays", "mixed"])


@each_kind
@pytest.mark.parametrize("depth", [1, 2, 63, 64])
def test_data_may_be_64_levels_deep(kind: str, depth: int) -> None:
    """Data of up to 64 levels is accepted as it is, by each door."""
    text = nested_in_object(kind, depth)
    assert encode_parsed(loads(text)) == text
    assert encode(orjson.loads(text)) == text


@each_kind
@pytest.mark.parametrize("depth", [65, 66, 254, 255, 500])
def test_deeper_data_is_refused(kind: str, depth: int) -> None:
    """Data of 65 levels or more is refused when it is written, orjson's own limit of 254 or not."""
    value = orjson.loads(nested_in_object(kind, depth))
    for door in (encode, encode_parsed):
        with pytest.raises(InvalidData) as refusal:
            door(value)
        assert refusal.value.pointer == "/data"


@each_kind
@pytest.mark.parametrize("wrapping", [1, 2, 3])
def test_a_body_may_be_as_deep_as_data_and_what_is_around_it(kind: str, wrapping: int) -> None:
    """A body has the levels of its envelope on top of the data's 64, and none more."""
    assert loads(nested(kind, DEPTH_MAX + wrapping), wrapping=wrapping)
    with pytest.raises(InvalidData):
        loads(nested(kind, DEPTH_MAX + wrapping + 1), wrapping=wrapping)


@each_kind
@pytest.mark.parametrize("depth", [254, 255, 1024, 1025, 100_000])
def test_a_body_far_too_deep_is_refused(kind: str, depth: int) -> None:
    """A body of any depth is refused without a crash, beyond orjson's limit of 1,024 too."""
    with pytest.raises(MalformedJSON if depth > 1024 else InvalidData):
        loads(nested(kind, depth))


def test_brackets_side_by_side_are_not_depth() -> None:
    """Many brackets beside each other, or in a string, are not deep."""
    text = b'{"a":[' + b",".join([b"[{}]"] * 1_000) + b'],"b":"' + b"[{" * 1_000 + b'"}'
    assert encode_parsed(loads(text)) == text


# --- structure and size


def list_of(count: int) -> bytes:
    """An object with a list of so many ones: two brackets and ``count - 1`` commas."""
    return b'{"a":[' + b",".join([b"1"] * count) + b"]}"


def test_structure_is_limited_to_the_bracket() -> None:
    """Exactly 100,000 brackets and commas are accepted, one more is not, by each door."""
    most = list_of(99_999)
    assert encode_parsed(loads(most)) == most
    too_many = list_of(100_000)
    value = orjson.loads(too_many)
    for refused in (
        lambda: loads(too_many),
        lambda: encode(value),
        lambda: encode_parsed(value),
    ):
        with pytest.raises(InvalidData):
            refused()


@pytest.mark.parametrize("char", ["x", "\u00e9", "\u20ac", "\U0001f34f"])
def test_size_is_limited_to_the_byte(char: str) -> None:
    """Data of 1 MiB in UTF-8 is accepted, one byte more is not; how it was spelled is no matter."""
    frame = len(b'{"a":""}')
    text, rest = divmod(1_048_576 - frame, len(char.encode()))
    fits = {"a": char * text + "x" * rest}
    assert len(encode(fits)) == 1_048_576
    assert encode_parsed(loads(json.dumps(fits, indent=9).encode())) == encode(fits)
    for door in (encode, encode_parsed):
        with pytest.raises(BodyTooLarge) as refusal:
            door({"a": fits["a"] + "x"})
        assert (refusal.value.status, refusal.value.pointer) == (413, "/data")


# --- NUL


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        (rb'{"a":"\u0000"}', "/data/a"),
        (rb'{"a":["x",{"b":"y\u0000z"}]}', "/data/a/1/b"),
        (rb'{"k\u0000":1}', "/data/k\x00"),
        (rb'{"a":{"\u0000":1}}', "/data/a/\x00"),
        (rb'{"a/b":{"~":"\u0000"}}', "/data/a~1b/~0"),
        (rb'{"a":"\\\u0000"}', "/data/a"),
    ],
)
def test_a_nul_is_refused_where_it_stands(raw: bytes, pointer: str) -> None:
    """A NUL in a value or a key is refused, and the pointer says where it is."""
    for door in (encode, encode_parsed):
        with pytest.raises(InvalidData, match="u0000") as refusal:
            door(loads(raw))
        assert refusal.value.pointer == pointer


@pytest.mark.parametrize(
    "raw", [rb'{"a":"\\u0000"}', rb'{"\\u0000":"\\\\u0000"}', rb'{"a":"u0000"}']
)
def test_a_backslash_before_u0000_is_not_a_nul(raw: bytes) -> None:
    """The six characters of the escape are text like any other."""
    assert encode_parsed(loads(raw)) == raw


# --- Python's own data


class Str(str):
    __slots__ = ()


class Int(int):
    pass


class Dict(dict[str, Any]):
    pass


class List(list[Any]):
    pass


class Colour(enum.Enum):
    RED = "red"
    NUL = "\x00"
    NAN = float("nan")
    HUGE = 2**63


@dataclasses.dataclass
class Point:
    x: int = 1


NOT_JSON = {
    "datetime": datetime.now(UTC),
    "date": date(2026, 1, 2),
    "time": time(1, 2),
    "UUID": uuid.UUID(int=7),
    "dataclass": Point(),
    "enumeration": Colour.RED,
    "NUL in an enumeration": Colour.NUL,
    "NaN in an enumeration": Colour.NAN,
    "2^63 in an enumeration": Colour.HUGE,
    "Decimal": Decimal("1.1"),
    "bytes": b"x",
    "set": {1},
    "complex": 1j,
    "object": object(),
    "str subclass": Str("x"),
    "int subclass": Int(1),
    "dict subclass": Dict(a=1),
    "list subclass": List([1]),
    "OrderedDict": OrderedDict(a=1),
    "mapping": MappingProxyType({"a": 1}),
    "tuple": (1, 2),
    "NaN in a tuple": (float("nan"),),
    "NUL in a tuple": ("\x00",),
    "2^63 in a tuple": (2**63,),
    "int key": {1: "a"},
    "None key": {None: "a"},
    "bool key": {True: "a"},
    "float key": {1.5: "a"},
    "tuple key": {(1, 2): "a"},
    "str subclass key": {Str("k"): "a"},
    "surrogate": "\ud800",
    "surrogate in a key": {"\udfff": 1},
    "2^64": 2**64,
    "-2^63 - 1": -(2**63) - 1,
    "integer of a million bits": 1 << 1_000_000,
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_only_jsons_own_types_are_data(value: Any) -> None:
    """A value that JSON would give back as something else is refused, not converted."""
    for data in ({"a": value}, {"a": [1, {"b": value}]}):
        with pytest.raises(InvalidData) as refusal:
            encode(data)
        assert str(refusal.value.pointer).startswith("/data")


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"a": float("nan")}, "/data/a"),
        ({"a": [None, {"b/c": float("inf")}]}, "/data/a/1/b~1c"),
        ({"": {"~": float("-inf")}}, "/data//~0"),
        ({"a": 2**63}, "/data/a"),
        ({"a": [0, 2**64 - 1]}, "/data/a/1"),
        ({"a": [uuid.UUID(int=7)]}, "/data/a/0"),
        ({"a": {"b": (1,)}}, "/data/a/b"),
    ],
)
def test_the_pointer_says_where(data: dict[str, Any], pointer: str) -> None:
    """The JSON pointer of a refusal leads to the value that was refused."""
    with pytest.raises(InvalidData) as refusal:
        encode(data)
    assert refusal.value.pointer == pointer


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ([], "an array"),
        ("x", "a string"),
        (True, "a boolean"),
        (None, "null"),
        (1, "a int"),
        (Dict(), "a Dict"),
        (MappingProxyType({}), "a mappingproxy"),
    ],
)
def test_data_is_an_object(data: Any, kind: str) -> None:
    """Data that is no JSON object is refused by what it is."""
    for door in (encode, encode_parsed):
        with pytest.raises(InvalidData, match=f"not {kind}") as refusal:
            door(data)
        assert refusal.value.pointer == "/data"


def test_null_true_and_one_stay_apart() -> None:
    """Each of JSON's own values is written as what it is."""
    data: dict[str, Any] = {"a": None, "b": True, "c": 1, "d": 1.0, "e": [], "f": {}, "g": -0.0}
    assert encode(data) == b'{"a":null,"b":true,"c":1,"d":1.0,"e":[],"f":{},"g":-0.0}'


def test_an_object_that_holds_itself_is_refused() -> None:
    """A cycle has no end and so no text."""
    data: dict[str, Any] = {}
    data["a"] = [data]
    with pytest.raises(InvalidData):
        encode(data)


def test_what_was_encoded_is_not_encoded_again() -> None:
    """Text that was checked passes as it is, the very same object."""
    text = encode({"a": 1})
    assert type(text) is Encoded
    assert encode(text) is text


# --- the property of the whole


def exact(raw: bytes) -> Any:
    """The value with its numbers as the text spells them, and true apart from 1."""
    return tagged(json.loads(raw, parse_float=Decimal, parse_int=int))


def tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return "object", [(name, tagged(member)) for name, member in value.items()]
    if isinstance(value, list):
        return "array", [tagged(element) for element in value]
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return type(value).__name__, value
    return "number", value


@settings(max_examples=250)
@given(json_objects(numbers=ANY_NUMBERS, texts=TEXT, depth_max=70))
def test_what_is_accepted_is_kept_exactly(raw: bytes) -> None:
    """Accepted text means the same after it was encoded, and encodes to itself from then on."""
    try:
        text = bytes(encode_parsed(loads(raw)))
    except InvalidInput:
        return
    assert exact(text) == exact(raw)
    assert encode_parsed(loads(text)) == text
    assert encode(orjson.loads(text)) == text
    assert decode(text) == orjson.loads(raw)


@given(json_objects())
def test_what_is_storable_is_accepted(raw: bytes) -> None:
    """Objects of numbers that fit, text without NUL and moderate depth are never refused."""
    assert exact(encode_parsed(loads(raw))) == exact(raw)


# --- patching

RFC_7396_APPENDIX_A = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), RFC_7396_APPENDIX_A)
def test_merge_patch_follows_the_rfc(target: Any, patch: Any, result: Any) -> None:
    """Each example of RFC 7396, appendix A, comes out as it says there."""
    assert merge_patch(target, patch) == result


@given(json_objects(), json_objects())
def test_a_patch_applied_twice_changes_nothing_more(target: bytes, patch: bytes) -> None:
    """A merge patch is idempotent, and leaves no null where it was applied."""
    once = merge_patch(orjson.loads(target), orjson.loads(patch))
    again = merge_patch(orjson.loads(orjson.dumps(once)), orjson.loads(patch))
    assert again == once
    assert not [
        name for name, value in orjson.loads(patch).items() if value is None and name in once
    ]


def test_a_patch_keeps_the_order_of_members() -> None:
    """A changed member stays in its place, a new one comes last."""
    patched = merge_patch({"a": 1, "b": 2, "c": 3}, {"d": 4, "b": 5, "a": None})
    assert encode_parsed(patched) == b'{"b":5,"c":3,"d":4}'


@pytest.mark.parametrize("depth", [65, 300, 5_000])
def test_a_patch_that_is_too_deep_is_refused(depth: int) -> None:
    """A patch that no item could hold is refused as such, however deep it is."""
    patch: Any = 1
    for _ in range(depth):
        patch = {"a": patch}
    with pytest.raises(InvalidData):
        Patch("x", patch).decide(pack(1, 1, b"{}"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"{",
        b"no json",
        b'{"a":1e400}',
        b'{"a":12345678901234567890}',
        b'{"a":0.1234567890123456789}',
        b'{"a":1234567890123456',
        b'{"a":"\xff1234567890123456"}',
        rb'{"a":"\ud800"}',
        nested("objects", 1025),
        nested("objects", 5_000).replace(b"1", b"1234567890123456"),
        nested("arrays", 100_000).replace(b"1", b"1234567890123456"),
    ],
    ids=lambda text: text[:24].decode(errors="replace") or "nothing",
)
def test_stored_data_of_a_foreign_hand_is_told_apart(text: bytes) -> None:
    """Stored data that this store could not have written is refused for patching, not misread."""
    with pytest.raises(InvalidData):
        decode(text)


def test_stored_data_is_decoded_as_it_is() -> None:
    """Stored data comes back as the object it is, deeper than the store would write it too."""
    text = nested("objects", 300).replace(b"1", b"9223372036854775807")
    assert orjson.dumps(decode(b'{"a":[1,2.5,null]}')) == b'{"a":[1,2.5,null]}'
    assert decode(text) == orjson.loads(text)
