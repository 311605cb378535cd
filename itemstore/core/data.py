"""What may be stored: JSON objects that PostgreSQL takes and gives back without a change.

The rule is that everything accepted here is accepted by PostgreSQL's ``json`` and by
``orjson.dumps`` as well, because what is refused after the acknowledgement is too late. The exact
checks walk the whole value and are slow; each has a cheap test of the text before it that nearly
all data passes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import orjson

from itemstore.errors import BodyTooLarge, InvalidData, MalformedJSON

DATA_MAX_BYTES: Final = 1024 * 1024
DEPTH_MAX: Final = 64  # orjson reads 1,024 levels but writes 254
STRUCTURE_MAX: Final = 100_000  # brackets and commas: keeps one parse under about 40 ms
INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1

#: Only JSON's own types; orjson would turn dates and dataclasses into something else unasked.
_STRICT: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
#: A double holds any decimal of 15 digits and any exponent of two; beyond that it may not.
_LONG_NUMBER: Final = re.compile(rb"[0-9][0-9.]{15}|[eE][+-]?[0-9]{3}")
#: But not all that is long is too long: an item's own version is not.
_EXACT_INTEGER: Final = re.compile(rb"[0-9]{16,18}(?![0-9.eE])")
#: The same in coarse, which takes a tenth of the time: all digits and the point are 0, E is e and -
#: is +, so that these three are looked for as they stand.
_COARSE: Final = bytes.maketrans(b"123456789.E-", b"0000000000e+")
_LONG_COARSE: Final = (b"0" * 16, b"e000", b"e+000")

_KINDS: Final = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
_CONTAINERS: Final = (dict, list)
_TYPES: Final = frozenset({dict, list, str, int, float, bool, type(None)})


def loads(raw: bytes, *, wrapping: int = 1, around: int = 0, what: str = "body") -> Any:
    """The JSON value of a request's body, or of what else it is called.

    ``wrapping`` is how many levels may be around an item's data, ``around`` how many brackets and
    commas beside those of the data.

    Raises MalformedJSON, or InvalidData where reading it would lose something: an integer outside
    int64, a number that a double cannot hold, more depth or structure than allowed.
    """
    _check_structure(raw, STRUCTURE_MAX + around)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedJSON(f"The {what} is not JSON: {error}.") from None
    if _may_be_too_deep(raw):
        _check_depth(value, DEPTH_MAX + wrapping)
    check_numbers(raw)
    return value


class Encoded(bytes):
    """JSON text that ``encode`` made: checked, and not to be checked again."""

    __slots__ = ()


def encode(data: Mapping[str, Any] | Encoded) -> Encoded:
    """The JSON text under which the data is kept: compact, members in the order given.

    Raises InvalidData or BodyTooLarge if it cannot be stored without changing it.
    """
    if type(data) is Encoded:
        return data
    text = _dumps(data)
    if b"\\u0000" in text or _has_long_number(text):
        _check_values(data)
    if orjson.loads(text) != data:  # NaN, tuples, UUIDs, enumerations: orjson writes them unasked
        _check_values(data)
    return Encoded(text)


def encode_parsed(data: Any) -> Encoded:
    """The same for a value that ``loads`` returned: no number in it is too long for us."""
    text = _dumps(data)
    if b"\\u0000" in text:
        _check_values(data)
    return Encoded(text)


def _dumps(data: Any) -> bytes:
    if type(data) is not dict:
        kind = _KINDS.get(type(data), f"a {type(data).__name__}")
        raise InvalidData(f"data is a JSON object, not {kind}.", pointer="/data")
    try:
        text = orjson.dumps(data, option=_STRICT)
    except (orjson.JSONEncodeError, UnicodeError) as error:
        raise InvalidData(f"data is not JSON: {error}.", pointer="/data") from None
    if len(text) > DATA_MAX_BYTES:
        raise BodyTooLarge(
            f"data has {len(text):,} bytes; at most {DATA_MAX_BYTES:,} are stored in one item.",
            pointer="/data",
        )
    _check_structure(text)
    if _may_be_too_deep(text):
        _check_depth(data, DEPTH_MAX)
    return text


def _has_long_number(text: bytes) -> bool:
    """Whether a number in it may be beyond what a double or 64 bits hold."""
    coarse = text.translate(_COARSE)
    digits, *exponents = _LONG_COARSE
    at = coarse.find(digits)
    while at >= 0 and (whole := _EXACT_INTEGER.match(text, at)) is not None:
        at = coarse.find(digits, whole.end())
    if at < 0 and not any(each in coarse for each in exponents):
        return False
    return _LONG_NUMBER.search(text) is not None


def decode(text: bytes) -> dict[str, Any]:
    """The stored object. Raises InvalidData if a foreign hand stored something else there."""
    try:
        check_numbers(text)
        value = orjson.loads(text)
    except (ValueError, RecursionError, InvalidData):  # no JSON, too deep, or a number too long
        value = None
    if type(value) is not dict:
        raise InvalidData(
            "The stored data is not an object this store could have written, so it cannot be "
            "patched. Replace it with PUT.",
            pointer="/data",
        )
    return value


def merge_patch(target: Any, patch: Any) -> Any:
    """The target changed by a JSON merge patch (RFC 7396, section 2). The target is consumed."""
    if type(patch) is not dict:
        return patch
    if type(target) is not dict:
        target = {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merge_patch(target.get(name), value)
    return target


def check_numbers(raw: bytes) -> None:
    """Raises InvalidData if a number in this valid JSON text would come back as another one."""
    if _has_long_number(raw):
        json.loads(raw, parse_int=_check_int, parse_float=_check_float)


def _check_int(text: str) -> int:
    if len(text) > 20 or not INT_MIN <= int(text) <= INT_MAX:
        raise InvalidData(
            f"The integer {text[:40]} does not fit in 64 bits. Send it as a string.",
            pointer="/data",
        )
    return 0


def _check_float(text: str) -> float:
    try:
        exact = Decimal(text) == Decimal(repr(float(text)))
    except ArithmeticError:  # an exponent beyond even Decimal's
        exact = False
    if not exact:
        raise InvalidData(
            f"The number {text[:40]} has more digits than a double holds and would come back "
            "as another one. Round it, or send it as a string.",
            pointer="/data",
        )
    return 0.0


def _check_structure(text: bytes, structure_max: int = STRUCTURE_MAX) -> None:
    if len(text) <= structure_max:
        return
    if text.count(b",") + text.count(b"[") + text.count(b"{") > structure_max:
        raise InvalidData(
            f"The JSON has more than {STRUCTURE_MAX:,} brackets and commas. "
            "Split it into several items."
        )


def _may_be_too_deep(text: bytes) -> bool:
    return text.count(b"{") + text.count(b"[") > DEPTH_MAX


def _check_values(data: Any) -> None:
    for value, place in _walk(data):
        if type(value) is str:
            if "\x00" in value:
                raise InvalidData("PostgreSQL cannot store \\u0000 in text.", pointer=place())
        elif type(value) is int:
            if not INT_MIN <= value <= INT_MAX:
                raise InvalidData(
                    f"The integer {value} does not fit in 64 bits. Send it as a string.",
                    pointer=place(),
                )
        elif type(value) is float and not math.isfinite(value):
            raise InvalidData("JSON has no NaN and no infinity.", pointer=place())
        elif type(value) not in _TYPES:
            raise InvalidData(f"JSON has no {type(value).__name__}.", pointer=place())


def _check_depth(value: Any, depth_max: int) -> None:
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(depth_max):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    raise InvalidData(f"data is nested more than {DEPTH_MAX} levels deep.", pointer="/data")


class _Place:
    """Where a value stands, told as a JSON pointer (RFC 6901) only when somebody asks."""

    __slots__ = ("_key", "_parent")

    def __init__(self, parent: _Place | None, key: str | int) -> None:
        self._parent = parent
        self._key = key

    def __call__(self) -> str:
        parent = self._parent() if self._parent else ""
        return f"{parent}/{str(self._key).replace('~', '~0').replace('/', '~1')}"


def _walk(data: Any) -> Iterator[tuple[Any, _Place]]:
    """Every key and every value below, with its place; iterative, so that depth costs nothing."""
    stack = [(data, _Place(None, "data"))]
    while stack:
        value, place = stack.pop()
        yield value, place
        if type(value) is dict:
            for key, child in value.items():
                at = _Place(place, key)
                yield key, at
                stack.append((child, at))
        elif type(value) is list:
            stack.extend((child, _Place(place, index)) for index, child in enumerate(value))
