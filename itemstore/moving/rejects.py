"""The report of rejected rows: a line of NDJSON each, and the first few for a person to see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import orjson

from itemstore.errors import MovingError, WrongUsage
from itemstore.moving.record import Rejected

SHOWN_MAX: Final = 5


class Rejects:
    """``path`` None: nothing is written, but the first ones are still shown."""

    def __init__(self, path: Path | None, kept_bytes: int) -> None:
        """Continues the report where the checkpoint saw it last; begins it if that was nowhere.

        Raises WrongUsage if it cannot be written.
        """
        self.path = path
        self.first: list[Rejected] = []
        self.bytes = 0
        self._file = None
        if path is None:
            return
        try:
            self._file = path.open("r+b" if kept_bytes and path.exists() else "wb")
            self.bytes = self._file.seek(min(kept_bytes, path.stat().st_size))
            self._file.truncate()
        except OSError as error:
            raise WrongUsage(f"--rejects {path} cannot be written: {error.strerror}.") from error

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Raises MovingError if the report cannot be written on."""
        self.first += rejected[: SHOWN_MAX - len(self.first)]
        if self._file is None or not rejected:
            return
        text = b"".join(
            orjson.dumps({"row": row, "reason": reason, "source": source}) + b"\n"
            for row, reason, source in rejected
        )
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise MovingError(f"{self.path} cannot be written: {error.strerror}.") from error
        self.bytes += len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
