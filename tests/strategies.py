"""What hypothesis draws: JSON objects as clients may write them, and ids."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from itemstore.core.data import INT_MAX, INT_MIN
from itemstore.core.item import ID_MAX_BYTES

#: All of Unicode that JSON can carry: only the surrogates are left out.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
#: And that PostgreSQL can: NUL is left out as well.
STORABLE_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20
)

#: Numbers at the edges of what int64 and a double hold, as JSON spells them.
ODD_NUMBERS = (
    "0",
    "-0",
    "-0.0",
    "0.1",
    "1.10",
    "1e2",
    "1E+2",
    "1e16",
    "1e0000000000000001",
    "0e400",
    "5e-324",
    "2.2250738585072014e-308",
    "1.7976931348623157e308",
    "9007199254740991",
    "9007199254740993",
    "9007199254740992.0",
    "-9223372036854775808",
    "9223372036854775807",
    "1.0000000000000000000000",
)
#: A double holds every number of so many digits.
SHORT_NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,6})(\.[0-9]{1,7})?([eE][+-]?[0-9]{1,2})?", fullmatch=True
)
EXACT_NUMBERS = st.one_of(
    st.integers(INT_MIN, INT_MAX).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    SHORT_NUMBERS,
    st.sampled_from(ODD_NUMBERS),
)
#: Any number JSON's grammar allows; most of the long ones no double holds.
ANY_NUMBERS = EXACT_NUMBERS | st.from_regex(
    r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
)

_COMMAS = st.sampled_from([",", " ,", ",\n\t", ", "])


def _escaped(text: str) -> str:
    units = text.encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'


def _strings(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON strings in three spellings: as they are, ASCII only, and escaped throughout."""
    return st.one_of(
        texts.map(lambda text: json.dumps(text, ensure_ascii=False)),
        texts.map(json.dumps),
        texts.map(_escaped),
    )


def _members(
    strings: st.SearchStrategy[str], values: st.SearchStrategy[str]
) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(strings, values).map(" : ".join), max_size=5)
    return st.tuples(_COMMAS, pairs).map(lambda drawn: "{" + drawn[0].join(drawn[1]) + "}")


def _elements(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(_COMMAS, st.lists(values, max_size=5)).map(
        lambda drawn: "[" + drawn[0].join(drawn[1]) + "]"
    )


def _wrapped(drawn: tuple[str, str]) -> str:
    """The value inside as many arrays and objects as were drawn."""
    value, layers = drawn
    for layer in layers:
        value = f"[{value}]" if layer == "[" else '{"":' + value + "}"
    return value


def json_objects(
    *,
    numbers: st.SearchStrategy[str] = EXACT_NUMBERS,
    texts: st.SearchStrategy[str] = STORABLE_TEXT,
    depth_max: int = 60,
) -> st.SearchStrategy[bytes]:
    """JSON texts of objects, spaced and escaped in odd ways, with repeated members, some deep."""
    strings = _strings(texts)
    leaves = st.one_of(st.sampled_from(["null", "true", "false"]), numbers, strings)
    values = st.recursive(
        leaves, lambda inner: _elements(inner) | _members(strings, inner), max_leaves=8
    )
    deep = st.tuples(values, st.text("[{", max_size=depth_max)).map(_wrapped)
    members = _members(strings, st.one_of(values, values, deep))

    @st.composite
    def json_object(draw: st.DrawFn) -> bytes:  # for hypothesis to call it by a short name
        return draw(members).encode()

    return json_object()


def _is_allowed(item_id: str) -> bool:
    return item_id not in {".", ".."} and len(item_id.encode()) <= ID_MAX_BYTES


#: Ids of every kind that ``check_id`` allows.
IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    st.text("ab/.%~\u00e9\ud7ff\ue000\uffff\U0010ffff", min_size=1, max_size=6),
    st.binary(min_size=256, max_size=256).map(bytes.hex),  # as long as may be, and incompressible
).filter(_is_allowed)
