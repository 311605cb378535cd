"""The memory of answers that are written and not taken yet, of all connections together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from itemstore.errors import Overloaded

#: An answer takes two to four times its bytes until the last of them is taken.
BYTES_MAX: Final = 32 * 1024 * 1024
#: Up to here an answer needs no room, whatever large ones take. How many such there are at a time,
#: the number of connections bounds.
SMALL_BYTES: Final = 64 * 1024
TAKE_BYTES: Final = 64 * 1024  # of an answer, to be taken within:
TAKE_S: Final = 60.0
TAKE_CROWDED_S: Final = 1.0  # while others wait for room
WAIT_S: Final = 10.0  # for room


class Taker(Protocol):
    """A connection, as its answers see it."""

    transport: asyncio.Transport | None
    answer_bytes: int  #: of what is written to it, whole


class _Full(NamedTuple):
    """One that takes its answer by and by."""

    since: float
    size: int
    untaken: int  #: bytes, at that time

    def taken(self, taker: Taker) -> int:
        """Bytes since."""
        return self.untaken - _untaken(taker)


class Answers:
    """Lets large answers in one by one, and cuts who takes them too slowly.

    What is let in is written at once, without awaiting anything in between: if it is not taken at
    once either, ``is_full`` is told before the next one asks.
    """

    def __init__(self, cut: Callable[[Taker], None]) -> None:
        self._cut = cut
        self._full: dict[Taker, _Full] = {}
        self._ending: dict[Taker, int] = {}  # bytes of those cut, until they are gone
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._bytes_waiting = 0

    def __len__(self) -> int:
        """How many connections have an answer they have not taken."""
        return len(self._full)

    def has_room(self, size: int) -> bool:
        """Whether an answer of so many bytes may be written now, and nobody was here before."""
        return size <= SMALL_BYTES or (not self._waiting and self._fits(size))

    async def room(self, size: int, *, is_done: bool = False) -> None:
        """Returns when an answer of so many bytes may be written, at once. Raises Overloaded.

        The answer to what is done already waits too, but is not refused.
        """
        if self.has_room(size):
            return
        if not is_done and self._bytes_waiting + size > BYTES_MAX:
            raise _overloaded()
        self._bytes_waiting += size
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turn(size)
        except TimeoutError:
            if not is_done:
                raise _overloaded() from None
        finally:
            self._bytes_waiting -= size

    def _turn(self, size: int) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        # After whoever had the turn has written.
        turn.add_done_callback(lambda _: loop.call_soon(self._let_in))
        self._waiting.append((size, turn))
        self._make_room(loop.time())
        return turn

    def _let_in(self) -> None:
        """The first in line, if there is room for it; then the next."""
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if self._fits(size):
                    turn.set_result(None)
                    self._waiting.popleft()
                return
            self._waiting.popleft()  # it has given up

    def _fits(self, size: int) -> bool:
        used = self._bytes_full() + sum(self._ending.values())
        return used + size <= BYTES_MAX or not used

    def _bytes_full(self) -> int:
        return sum(full.size for full in self._full.values())

    # --- what connections tell

    def is_full(self, taker: Taker) -> None:
        """More is written to it than it takes at once."""
        now, untaken = asyncio.get_running_loop().time(), _untaken(taker)
        self._full[taker] = _Full(now, max(taker.answer_bytes, untaken), untaken)

    def takes(self, taker: Taker) -> None:
        """It has taken most of it, or is gone."""
        self._full.pop(taker, None)
        self._ending.pop(taker, None)
        self._let_in()

    def look(self, now: float) -> None:
        """Cuts who takes less than the least; to be called every now and then."""
        for taker, full in list(self._full.items()):
            if now - full.since < TAKE_S:
                break  # whoever came first is first
            if full.taken(taker) < TAKE_BYTES:
                self._end(taker)
            else:
                del self._full[taker]
                self.is_full(taker)  # the last one now
        self._make_room(now)

    def _make_room(self, now: float) -> None:
        """Cuts who is slow while others wait, the slowest first, as far as it takes."""
        while self._waiting and self._bytes_full() + self._waiting[0][0] > BYTES_MAX:
            rates = {
                taker: full.taken(taker) / (now - full.since)
                for taker, full in self._full.items()
                if now - full.since >= TAKE_CROWDED_S
            }
            slowest = min(rates, key=rates.__getitem__, default=None)
            if slowest is None or rates[slowest] >= TAKE_BYTES / TAKE_CROWDED_S:
                return
            self._end(slowest)

    def _end(self, taker: Taker) -> None:
        self._ending[taker] = self._full.pop(taker).size
        self._cut(taker)


def _untaken(taker: Taker) -> int:
    return 0 if taker.transport is None else taker.transport.get_write_buffer_size()


def _overloaded() -> Overloaded:
    return Overloaded(
        f"Answers that others have not taken yet fill the {BYTES_MAX:,} bytes there are for them. "
        f"Repeat, or ask for less than {SMALL_BYTES:,} bytes at a time."
    )
