"""A source in parts: read and mapped in a thread, while the part before is being written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from itemstore.moving.mapping import Mapping
from itemstore.moving.record import Rejected, Row
from itemstore.moving.source import Source

PART_ROWS: Final = 2_500  # beyond, a larger statement gains nothing: docs/benchmarks.md
PART_BYTES: Final = 2 * 1024 * 1024

T = TypeVar("T")


@dataclass(slots=True)
class Part:
    """Rows in order, and where the source stands after them."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    last: int = 0  #: the number of the last record
    key: str | None = None
    done: int = 0


class Parts:
    """The records of ``source`` after the first ``row``, of which the last one had this key."""

    def __init__(self, source: Source, mapping: Mapping, row: int, key: str | None) -> None:
        self._source = source
        self._mapping = mapping
        self._records = enumerate(source.records_after(row, key), row + 1)

    def read(self) -> Part | None:
        """The next part; None at the end. Raises MovingError."""
        part, size = Part(), 0
        for number, record in self._records:
            part.last = number
            row = self._mapping.row(number, record)
            if isinstance(row, Row):
                part.rows.append(row)
                size += len(row.item.text)
            elif row is not None:
                part.rejected.append(row)
            if size >= PART_BYTES or len(part.rows) + len(part.rejected) >= PART_ROWS:
                break
        part.key, part.done = self._source.key, self._source.done
        return part if part.last else None


def in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """What it returns. The thread does not keep the process from ending, as an executor's would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: T | BaseException, *, is_error: bool) -> None:
        if future.done():
            return
        if is_error:
            future.set_exception(outcome)  # type: ignore[arg-type]
        else:
            future.set_result(outcome)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome, is_error = call(), False
        except BaseException as error:
            outcome, is_error = error, True  # type: ignore[assignment]
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: settle(outcome, is_error=is_error))

    threading.Thread(target=run, name="source", daemon=True).start()
    return future
