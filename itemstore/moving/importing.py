"""An import from beginning to end.

    read part n+2 in a thread   ┐
    put part n+1                │ together
    part n is confirmed         ┘ → report what was rejected → save the checkpoint

A signal ends it after the parts that are being put. SIGKILL at any moment costs a repetition of at
most those.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from itemstore.moving.checkpoint import Checkpoint
from itemstore.moving.display import Display
from itemstore.moving.mapping import Mapping
from itemstore.moving.parts import Part, Parts, in_thread
from itemstore.moving.record import Rejected, Row, Target
from itemstore.moving.rejects import Rejects
from itemstore.moving.source import Source
from itemstore.tasks import end

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Putting(NamedTuple):
    """A part on its way."""

    part: Part
    results: asyncio.Task[list[str | Rejected]]


@dataclass(slots=True)
class Importing:
    """One run. ``checkpoint`` is where it begins, and in the end how far it came."""

    source: Source
    mapping: Mapping
    target: Target
    checkpoint: Checkpoint
    rejects: Rejects
    display: Display

    async def run(self) -> int | None:
        """Until all is in, or the number of the signal that ended it. Raises MovingError."""
        parts = Parts(self.source, self.mapping, self.checkpoint.row, self.checkpoint.key)
        putting: list[Putting] = []
        try:
            with _told_to_stop() as stop:
                part = await _unless(stop, in_thread(parts.read))
                while part is not None:
                    following = in_thread(parts.read)
                    putting.append(Putting(part, asyncio.create_task(self.target.put(part.rows))))
                    if len(putting) > 1:
                        await self._confirm(putting.pop(0))
                    part = await _unless(stop, following)
                while putting:
                    await self._confirm(putting.pop(0))
        finally:
            await end(each.results for each in putting)
        if stop.done():
            return stop.result()
        self.checkpoint.remove()
        return None

    async def _confirm(self, putting: Putting) -> None:
        part, results = putting.part, await putting.results
        refused = [_with_source(each, part.rows) for each in results if not isinstance(each, str)]
        rejected = sorted(part.rejected + refused)
        self.rejects.add(rejected)
        checkpoint = self.checkpoint
        for status in results:
            if isinstance(status, str):
                checkpoint.tally.count(status)
        checkpoint.tally.rejected += len(rejected)
        checkpoint.row, checkpoint.key = part.last, part.key
        checkpoint.rejects_bytes = self.rejects.bytes
        await asyncio.to_thread(checkpoint.save)
        self.display.update(checkpoint.row, part.done)


def _with_source(refused: Rejected, rows: Sequence[Row]) -> Rejected:
    [row] = [row for row in rows if row.number == refused.number]
    return refused._replace(source=bytes(row.item.text).decode())


@contextmanager
def _told_to_stop() -> Iterator[asyncio.Future[int]]:
    """Settled with the number of the first signal; a second one ends the process as ever."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def note(number: int) -> None:
        stop.set_result(number)
        forget()

    def forget() -> None:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)

    for each in _SIGNALS:
        loop.add_signal_handler(each, note, each)
    try:
        yield stop
    finally:
        forget()


async def _unless(stop: asyncio.Future[int], reading: asyncio.Future[Part | None]) -> Part | None:
    """The part; None if a signal comes first: nobody waits then for a source that is silent."""
    await asyncio.wait((stop, reading), return_when=asyncio.FIRST_COMPLETED)
    if stop.done():
        reading.cancel()
        return None
    return await reading
