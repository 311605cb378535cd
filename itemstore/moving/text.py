"""Records in text: NDJSON, one JSON array, CSV. Read block by block, whatever the size.

What is read is bytes of a raw file. No buffered reader: a thread may be left waiting for standard
input when the command ends, and would hold that reader's lock.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, Protocol

from itemstore.core.lines import LINE_MAX_BYTES, Lines
from itemstore.errors import BodyTooLarge, InvalidInput, InvalidItem, MovingError
from itemstore.moving.record import Record

BLOCK_BYTES: Final = 256 * 1024
RECORD_BYTES_MAX: Final = 4 * 1024 * 1024  # an item of 1 MiB, indented, or much of it escaped
_BOM: Final = b"\xef\xbb\xbf"

#: Up to the next bracket that is in no string. Possessive, so that it never goes back: a block
#: without a bracket is passed over in linear time.
_BRACKET: Final = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+([{}\[\]])', re.DOTALL)
_BETWEEN: Final = re.compile(rb"[\s,]*")
_PLAIN: Final = re.compile(rb'[^\s,\[\]{}"]+|"(?:[^"\\]++|\\.)*+"', re.DOTALL)


Parser = Callable[[Iterable[bytes]], Iterator[Record]]


class Raw(Protocol):
    """An unbuffered file, or an HTTP answer."""

    def read(self, size: int, /) -> bytes | None:
        """At most so many bytes; none at the end."""


def blocks(file: Raw) -> Iterator[bytes]:
    """The bytes of the file without a byte order mark."""
    block = (file.read(BLOCK_BYTES) or b"").removeprefix(_BOM)
    while block:
        yield block
        block = file.read(BLOCK_BYTES) or b""


def lines(file: Iterable[bytes]) -> Iterator[bytes | None]:
    """The lines without their ends; None for one that is too long for an item."""
    split = Lines()
    for block in file:
        yield from (line.text for line in split.split(block))
    yield from (line.text for line in split.last())


def ndjson(file: Iterable[bytes]) -> Iterator[Record]:
    """A record a line."""
    for line in lines(file):
        if line is None:
            yield _too_large()
        else:
            yield line.strip() or None


def array(file: Iterable[bytes]) -> Iterator[Record]:
    """The elements of one JSON array. Raises MovingError if it is none, or is cut off."""
    source = iter(file)
    text = next(source, b"").lstrip()
    if not text.startswith(b"["):
        raise MovingError(
            "The file is no JSON array. If it has one object a line, give --format ndjson."
        )
    start = position = 1
    depth = 0
    while True:
        if not depth:
            start = position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        bracket = _BRACKET.match(text, position)
        if bracket is None:
            if len(text) - start > RECORD_BYTES_MAX:
                raise MovingError(
                    f"An element of the array has more than {RECORD_BYTES_MAX:,} bytes. "
                    "Is a bracket or a quote missing? Give the file as NDJSON, a record a line."
                )
            block = next(source, b"")
            if not block:
                raise MovingError("The JSON array has no end: is the file whole?")
            text = text[start:] + block
            position -= start
            start = 0
            continue
        position = bracket.end()
        is_opening = bracket[1] in b"[{"
        if not depth and text[start : bracket.start(1)].strip(b" \t\r\n,"):
            yield from _plain(text[start : bracket.start(1)])
            start = bracket.start(1)
        depth += 1 if is_opening else -1
        if depth < 0:
            return
        if not depth:
            yield text[start:position]


def _plain(text: bytes) -> Iterator[Record]:
    """Elements that are neither object nor array: no items, but to be counted and told."""
    yield from (found[0] for found in _PLAIN.finditer(text))


def rows(file: Iterable[bytes], delimiter: str | None = None) -> Iterator[Record]:
    """The rows of a CSV file by the names in its first one (RFC 4180).

    ``delimiter`` None: found out from the first lines. Raises MovingError if the first row is not
    one of distinct names.
    """
    csv.field_size_limit(RECORD_BYTES_MAX)
    source = iter(file)
    start = next(source, b"")
    # A map, for it goes on after an exception, where a generator would end.
    text = map(_line, lines(chain([start], source)))
    reader = csv.reader(text, delimiter=delimiter or _delimiter(start), strict=True)
    names = next(_cells(reader), None)
    if not isinstance(names, list) or len(set(names)) < len(names):
        raise MovingError("The first line of a CSV file has the names of its columns, each once.")
    for cells in _cells(reader):
        if isinstance(cells, InvalidInput):
            yield cells
        elif not cells:
            yield None
        elif len(cells) == len(names):
            yield dict(zip(names, cells, strict=True))
        else:
            yield InvalidItem(
                f"The row has {len(cells)} cells, and the first line {len(names)} names: "
                f"{','.join(cells)[:200]}"
            )


def _cells(reader: Iterator[list[str]]) -> Iterator[list[str] | InvalidInput]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except InvalidInput as error:
            yield error
        except csv.Error as error:
            yield InvalidItem(f"The row is no CSV: {error}.")


def _line(line: bytes | None) -> str:
    """With its end. What is not UTF-8 is kept, so that the row is refused, and not the file."""
    if line is None:
        raise _too_large()
    return f"{line.decode(errors='surrogateescape')}\n"


def _delimiter(start: bytes) -> str:
    """The one that stands most often between the names."""
    return max(",;\t|", key=start.partition(b"\n")[0].decode(errors="replace").count)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The line has more than {LINE_MAX_BYTES:,} bytes.")
