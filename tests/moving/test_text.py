"""Text is cut into the same records however it comes in blocks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core import lines as core_lines
from itemstore.errors import InvalidInput, MovingError
from itemstore.moving import text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def blocks(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@given(st.lists(JSON), st.integers(1, 50), st.booleans())
def test_the_elements_of_an_array_are_those_that_a_parser_finds(
    values: list[Any], size: int, indented: bool
) -> None:
    content = orjson.dumps(values, option=orjson.OPT_INDENT_2 if indented else 0)
    found = [orjson.loads(each) for each in text.array(blocks(content, size))]  # type: ignore[arg-type]
    assert values == found


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.integers(1, 30))
def test_lines_are_what_stands_between_line_feeds(made: list[bytes], size: int) -> None:
    content = b"".join(line + b"\n" for line in made)
    assert made == list(text.lines(blocks(content, size)))


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=2, max_size=2
        )
    ),
    st.integers(1, 40),
)
def test_csv_is_read_as_it_was_written(rows: list[list[str]], size: int) -> None:
    made = io.StringIO(newline="")
    csv.writer(made, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows([["a", "b"], *rows])
    found = text.rows(blocks(made.getvalue().encode(), size), delimiter=",")
    assert [dict(zip("ab", row, strict=True)) for row in rows] == list(found)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_between_the_names(delimiter: str) -> None:
    content = delimiter.join(["id", "name"]) + "\n" + delimiter.join(["1", "a b"]) + "\n"
    assert [{"id": "1", "name": "a b"}] == list(text.rows([content.encode()]))


@pytest.mark.parametrize("content", ["", "a,a\n1,2\n"])
def test_csv_without_distinct_names_is_refused(content: str) -> None:
    with pytest.raises(MovingError, match="first line"):
        list(text.rows([content.encode()]))


def test_a_bad_row_of_csv_is_one_record_and_the_next_is_whole() -> None:
    content = b'id,name\n1,a\n2\n\n3,"b"c\n4,\xff\n5,e\n'
    found = list(text.rows([content]))
    assert [dict, InvalidInput, type(None), InvalidInput, dict, dict] == [
        InvalidInput if isinstance(each, InvalidInput) else type(each) for each in found
    ]
    assert {"id": "5", "name": "e"} == found[-1]


def test_a_line_that_is_too_long_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_lines, "LINE_MAX_BYTES", 8)
    content = [b'{"a":1}\n', b'{"a":"', b"x" * 20, b'"}\n\n{"a":2}']
    found = list(text.ndjson(content))
    assert [b'{"a":1}', None, b'{"a":2}'] == [found[0], found[2], found[3]]
    assert isinstance(found[1], InvalidInput)
    rows = list(text.rows([b"a,b\n1,2\n", b"x" * 20, b",3\n4,5\n"]))
    assert isinstance(rows[1], InvalidInput)
    assert {"a": "4", "b": "5"} == rows[2]


def test_a_byte_order_mark_is_no_part_of_the_first_record() -> None:
    file = io.BytesIO(b'\xef\xbb\xbf{"a":1}\n')
    assert [b'{"a":1}'] == list(text.ndjson(text.blocks(file)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON array"),
        (b'{"a":1}\n{"a":2}', "--format ndjson"),
        (b'[{"a":1},', "no end"),
        (b'[{"a":"]', "no end"),
        (b"[1, 2", "no end"),
    ],
)
def test_what_is_no_whole_array_is_told(content: bytes, says: str) -> None:
    with pytest.raises(MovingError, match=says):
        list(text.array(blocks(content, 4)))


def test_an_element_without_end_is_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "RECORD_BYTES_MAX", 100)

    def endless() -> Iterator[bytes]:
        yield b'[{"a":"'
        while True:
            yield b"x" * 50

    with pytest.raises(MovingError, match="missing"):
        list(text.array(endless()))
