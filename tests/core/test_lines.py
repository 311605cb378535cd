"""Lines out of chunks: the same ones however the chunks fall, in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from itemstore.core import lines
from itemstore.core.lines import LINE_MAX_BYTES, Line, Lines

PIECES = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" "]), max_size=30)


def lines_of(chunks: list[bytes], first: int = 1) -> list[Line]:
    split = Lines(first)
    found = [line for chunk in chunks for line in split.split(chunk)]
    found += split.last()
    assert split.count == len(found)
    return found


@given(PIECES, st.integers(1, 10))
def test_the_chunks_do_not_matter(chunks: list[bytes], first: int) -> None:
    """A text has the same lines in one chunk and in many; what ends without a newline is one."""
    *texts, rest = b"".join(chunks).split(b"\n")
    expected = [Line(number, text) for number, text in enumerate([*texts, rest][:], first)]
    if not rest:
        expected.pop()

    assert expected == lines_of(chunks, first) == lines_of([b"".join(chunks)], first)


@given(st.integers(-2, 2), st.integers(1, LINE_MAX_BYTES + 3))
def test_a_line_may_be_so_long(more: int, cut: int) -> None:
    """A line over the limit is told as such, and the lines around it are whole."""
    long = b"x" * (LINE_MAX_BYTES + more)
    text = b"a\n" + long + b"\nb"

    found = lines_of([text[:cut], text[cut:]])

    assert [Line(1, b"a"), Line(2, long if more <= 0 else None), Line(3, b"b")] == found


def test_a_line_without_end_is_not_kept() -> None:
    """However much of a line comes, no more is held than a line may have."""
    split = Lines()
    for _ in range(40):
        assert [] == list(split.split(b"x" * 65_536))
        assert len(split._begun) <= lines.LINE_MAX_BYTES
    assert [Line(1, None), Line(2, b"a")] == [*split.split(b"\na\n"), *split.last()]
