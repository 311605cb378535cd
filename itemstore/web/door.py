"""The door: how many connections there are, in all and of one address, and how slow they may be.

Nothing here costs a usual request anything: a connection stands in a line only while it is slow,
and one timer looks at those who have stood there longest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Protocol

from aiohttp import web

from itemstore.core.address import of_peer
from itemstore.errors import TooManyConnections
from itemstore.web import problems

CONNECTIONS_MAX: Final = 2_048
FIRST_BYTE_S: Final = 15.0  # from the beginning; browsers open connections ahead, and do not mind
HEAD_S: Final = 10.0  # from the first byte of a request to the end of its headers
ANSWER_S: Final = 60.0  # in which a client takes ANSWER_PIECE_BYTES of what is written to it
ANSWER_PIECE_BYTES: Final = 64 * 1024
#: Written and not taken whole, for all clients together. An answer takes two to four times its
#: bytes until the last of them is taken.
ANSWERS_MAX_BYTES: Final = 32 * 1024 * 1024
LOOK_S: Final = 0.5  # between two looks at the lines

SILENT_S: Final = 1.0  # without a first byte; such a connection may have to make room for another
LEAVING_MAX: Final = 128  # at a time, of those who are told that there is no room
LEAVING_S: Final = 1.0  # for which what they send is read, so that they can read why


class Guest(Protocol):
    """A connection, as the door sees it."""

    transport: asyncio.Transport | None
    answer_bytes: int  #: of what is written to it, whole

    def leave(self) -> None:
        """It said nothing at all: it need not be told anything either."""

    def leave_late(self) -> None:
        """The headers of its request do not come: it is told so, and ended."""

    def leave_now(self) -> None:
        """It does not take its answers: it is ended, whatever is still to be sent."""


class _Line:
    """Those who wait for the same thing, each as long at most: whoever came first is first."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.since: dict[Guest, float] = {}

    def overdue(self, now: float) -> Iterator[Guest]:
        """Who has waited too long, and waits no more."""
        while self.since:
            guest, since = next(iter(self.since.items()))
            if now - since < self.limit_s:
                return
            del self.since[guest]
            yield guest


class Door:
    """Who is in, and who of them stands in one of three lines."""

    def __init__(
        self, connections_max: int = CONNECTIONS_MAX, per_address_max: int | None = None
    ) -> None:
        self.connections_max = connections_max
        self.per_address_max = per_address_max
        self.refused = 0  #: connections for which there was no room
        self.cut = 0  #: connections that were too slow
        self._inside: dict[Guest, str] = {}
        self._addresses: Counter[str] = Counter()
        self._leaving: set[_Leaving] = set()
        self._silent = _Line(FIRST_BYTE_S)
        self._begun = _Line(HEAD_S)
        self._full = _Line(ANSWER_S)
        self._held: Counter[Guest] = Counter()  # bytes of their answers
        self._untaken: dict[Guest, int] = {}  # of these, when last looked at
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._inside)

    def enter(self, guest: Guest, transport: asyncio.Transport) -> bool:
        """Whether there is room; if not, the connection is told so, and is no guest's any more."""
        address, limit = of_peer(transport.get_extra_info("peername")), self.per_address_max
        if (limit is not None and self._addresses[address] >= limit) or not self._has_room():
            self.refused += 1
            _Leaving(transport, self._leaving)
            return False
        self._inside[guest] = address
        self._addresses[address] += 1
        self._join(self._silent, guest)
        return True

    def _has_room(self) -> bool:
        """Where all places are taken, who has been silent longest may have to give up its own."""
        if len(self._inside) < self.connections_max:
            return True
        loop = asyncio.get_running_loop()
        guest, since = next(iter(self._silent.since.items()), (None, loop.time()))
        if guest is None or loop.time() - since < SILENT_S:
            return False
        self._show_out(guest)
        guest.leave()
        return True

    def forget(self, guest: Guest) -> None:
        """Its connection is over."""
        address = self._inside.pop(guest, None)
        if address is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
            for line in (self._silent, self._begun, self._full):
                line.since.pop(guest, None)
            self._held.pop(guest, None)
            self._untaken.pop(guest, None)

    def speaks(self, guest: Guest) -> None:
        """Its first bytes are here."""
        self._silent.since.pop(guest, None)

    def begins(self, guest: Guest) -> None:
        """Headers of a request are here, and not all."""
        self._join(self._begun, guest)

    def has_begun(self, guest: Guest) -> None:
        """Now they are."""
        self._begun.since.pop(guest, None)

    def is_full(self, guest: Guest) -> None:
        """More is written to it than it takes at once.

        If that is too much with what the others take, one of those is cut that have taken nothing
        for longest.
        """
        self._untaken[guest] = _untaken(guest)
        self._held[guest] = guest.answer_bytes
        self._join(self._full, guest)
        while self._held.total() > ANSWERS_MAX_BYTES:
            self._cut(min(self._full.since, key=self._taken))

    def answers(self, guest: Any, size: int) -> None:
        """So many bytes are about to be written to it, if it is one that came in here."""
        if guest in self._inside:
            guest.answer_bytes = size

    def _taken(self, guest: Guest) -> int:
        return self._untaken[guest] - _untaken(guest)

    def takes(self, guest: Guest) -> None:
        """It has taken most of it."""
        self._full.since.pop(guest, None)
        self._held.pop(guest, None)
        self._untaken.pop(guest, None)

    def _join(self, line: _Line, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        line.since.setdefault(guest, loop.time())
        if self._timer is None:
            self._timer = loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        for guest in self._silent.overdue(now):
            self._show_out(guest)
            guest.leave()
        for guest in self._begun.overdue(now):
            self._show_out(guest)
            guest.leave_late()
        for guest in self._full.overdue(now):
            if self._taken(guest) < ANSWER_PIECE_BYTES:
                self._cut(guest)
            else:
                self.is_full(guest)
        if self._silent.since or self._begun.since or self._full.since:
            self._timer = loop.call_later(LOOK_S, self._look)

    def _cut(self, guest: Guest) -> None:
        self._show_out(guest)
        guest.leave_now()

    def _show_out(self, guest: Guest) -> None:
        self.forget(guest)
        self.cut += 1


class _Leaving(asyncio.Protocol):
    """One for whom there was no room: it is told so, if there are not too many to be told."""

    def __init__(self, transport: asyncio.Transport, leaving: set[_Leaving]) -> None:
        self._leaving = leaving
        transport.set_protocol(self)
        if len(leaving) >= LEAVING_MAX:
            transport.abort()
            return
        leaving.add(self)
        transport.write(problems.bare(TooManyConnections()))
        transport.write_eof()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LEAVING_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._leaving:
            self._leaving.remove(self)
            self._timer.cancel()


def _untaken(guest: Guest) -> int:
    return 0 if guest.transport is None else guest.transport.get_write_buffer_size()


DOOR: Final = web.AppKey("door", Door)
