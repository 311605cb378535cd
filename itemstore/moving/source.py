"""What a source is, and files of text as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, Final

from itemstore.errors import MovingError
from itemstore.moving.record import Record
from itemstore.moving.text import Parser, blocks

FIRST_BYTES: Final = 64 * 1024  # of a file, which tell it from another


class Source:
    """Records in an order that is the same at each reading. Used by one thread at a time."""

    #: What tells this source from another, or from itself after a change; JSON. None: it cannot be
    #: read again, so an import cannot be resumed.
    identity: dict[str, Any] | None = None
    #: What ids are made from for records that have none. None: they must have one.
    id_key: bytes | None = None
    #: How far it was read, and how far it goes, in whatever unit; None: not known.
    done: int = 0
    total: int | None = None
    #: After which record to go on, where counting would not do: the id of the last one read.
    key: str | None = None

    def records(self) -> Iterator[Record]:
        """All of them, from the first. Raises MovingError where it cannot be read on."""
        raise NotImplementedError

    def records_after(self, number: int, key: str | None) -> Iterator[Record]:
        """Those after the first ``number``, of which the last one had this key."""
        del key
        return islice(self.records(), number, None)


class TextFile(Source):
    """A file of text; ``path`` None is standard input."""

    def __init__(self, path: Path | None, parse: Parser) -> None:
        """Raises MovingError if there is no such file."""
        self._path = path
        self._parse = parse
        if path is None:
            self.id_key = os.urandom(16)
        else:
            self.identity, self.id_key = identified(path)
            self.total = self.identity["bytes"]

    def records(self) -> Iterator[Record]:
        return self._parse(self._counted())

    def _counted(self) -> Iterator[bytes]:
        try:
            with FileIO(self._path or 0, closefd=self._path is not None) as file:
                for block in blocks(file):
                    self.done += len(block)
                    yield block
        except OSError as error:
            raise MovingError(f"The file cannot be read on: {error.strerror}.") from error


def identified(path: Path, part: str = "") -> tuple[dict[str, Any], bytes]:
    """A file's identity, and the key for ids made of it; ``part`` of it is what is read.

    Raises MovingError.
    """
    try:
        state = path.stat()
        with path.open("rb") as file:
            first = blake2b(file.read(FIRST_BYTES), digest_size=16).hexdigest()
    except OSError as error:
        raise MovingError(f"{path} cannot be read: {error.strerror}.") from error
    told = {"bytes": state.st_size, "first": first, "part": part}
    key = blake2b(repr(sorted(told.items())).encode(), digest_size=32).digest()
    return told | {"changed_ns": state.st_mtime_ns}, key
