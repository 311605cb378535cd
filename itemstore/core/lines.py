"""The lines of a text that comes in chunks, in bounded memory however long a line is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from itemstore.core.data import DATA_MAX_BYTES

#: The longest data, and room for the rest of an item: its id, escaped, its version and its times.
LINE_MAX_BYTES: Final = DATA_MAX_BYTES + 8_192


class Line(NamedTuple):
    """``text`` is None if it is longer than ``LINE_MAX_BYTES``."""

    number: int
    text: bytes | None


class Lines:
    """Splits at each newline; a carriage return before it is white space, as JSON has it."""

    def __init__(self, first: int = 1) -> None:
        self.first = first  #: the number of the first line
        self.count = 0  #: lines that have ended
        self._begun = bytearray()
        self._is_too_long = False

    def split(self, chunk: bytes) -> Iterator[Line]:
        """The lines that this chunk ends. To be read to its end before the next chunk."""
        *ends, rest = chunk.split(b"\n")
        for each in ends:
            yield self._end(each)
        self._keep(rest)

    def last(self) -> Iterator[Line]:
        """What comes after the last newline, if anything, once there are no more chunks."""
        if self._begun or self._is_too_long:
            yield self._end(b"")

    def _end(self, rest: bytes) -> Line:
        text: bytes | None = rest
        if self._begun or self._is_too_long or len(rest) > LINE_MAX_BYTES:
            self._keep(rest)
            text = None if self._is_too_long else bytes(self._begun)
            self._begun.clear()
            self._is_too_long = False
        line = Line(self.first + self.count, text)
        self.count += 1
        return line

    def _keep(self, piece: bytes) -> None:
        if len(self._begun) + len(piece) > LINE_MAX_BYTES:
            self._is_too_long = True
            self._begun.clear()
        else:
            self._begun += piece
