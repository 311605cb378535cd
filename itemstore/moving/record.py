"""What moves: records as a source has them, rows as a target takes them, and their fate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from itemstore.core.operation import Import
from itemstore.errors import InvalidInput

#: As a source gives it: JSON text; or values by column; or why there is no record; None for a
#: blank line, which is counted and nothing else.
Record = bytes | dict[str, Any] | InvalidInput | None


class Row(NamedTuple):
    """A record that can be stored, under an id of its own."""

    number: int  #: of the record in its source, from 1
    id: str
    item: Import


class Rejected(NamedTuple):
    """A record that cannot; ``source`` is what stood there, as JSON can show it."""

    number: int
    reason: str
    source: Any = None


@dataclass(slots=True)
class Tally:
    """How many records went which way."""

    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    rejected: int = 0

    def count(self, status: str) -> None:
        """One more; ``status`` is the name of a field."""
        setattr(self, status, getattr(self, status) + 1)

    @property
    def rows(self) -> int:
        """All of them."""
        return self.created + self.replaced + self.unchanged + self.skipped + self.rejected


class Target(Protocol):
    """Where rows go. Two bodies: ``direct.Direct`` and ``remote.Remote``."""

    async def put(self, rows: Sequence[Row]) -> list[str | Rejected]:
        """Writes the rows; for each, in order, a field of ``Tally``, or why it was refused.

        May be called again before it returns; rows are written in the order of the calls.
        When it returns they are confirmed. Raises MovingError if it cannot go on; any of them may
        have gone in then, and putting them again does no harm.
        """
