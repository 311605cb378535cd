"""The door: how many connections there are, in all and of one address, and how slow they may be.

Nothing here costs a usual request anything: a connection is looked at only while it is slow, by one
timer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Protocol

from aiohttp import web

from itemstore.errors import TooManyConnections
from itemstore.web import problems
from itemstore.web.answers import Answers, Taker

CONNECTIONS_MAX: Final = 2_048
FIRST_BYTE_S: Final = 15.0  # from the beginning; browsers open connections ahead, and do not mind
HEAD_S: Final = 10.0  # from the first byte of a request to the end of its headers
LOOK_S: Final = 0.5  # between two looks at who is slow

SILENT_S: Final = 1.0  # without a first byte; such a connection may have to make room for another
LEAVING_MAX: Final = 128  # at a time, of those who are told that there is no room
LEAVING_S: Final = 1.0  # for which what they send is read, so that they can read why


class Guest(Taker, Protocol):
    """A connection, as the door sees it."""

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
    """Who is in, and who of them is slow: to begin, to end its headers, to take its answers."""

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
        self.answers = Answers(self._cut)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._inside)

    def enter(self, guest: Guest, transport: asyncio.Transport, address: str) -> bool:
        """Whether there is room; if not, the connection is told so, and is no guest's any more."""
        limit = self.per_address_max
        if (limit is not None and self._addresses[address] >= limit) or not self._has_place():
            self.refused += 1
            _Leaving(transport, self._leaving)
            return False
        self._inside[guest] = address
        self._addresses[address] += 1
        self._join(self._silent, guest)
        return True

    def _has_place(self) -> bool:
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
        self._make_place(guest)
        self.answers.takes(guest)

    def _make_place(self, guest: Guest) -> None:
        address = self._inside.pop(guest, None)
        if address is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
            self._silent.since.pop(guest, None)
            self._begun.since.pop(guest, None)

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
        """More is written to it than it takes at once."""
        self.answers.is_full(guest)
        self._look_later()

    def writes(self, guest: Any, size: int) -> None:
        """So many bytes are about to be written to it, if it is one that came in here."""
        if guest in self._inside:
            guest.answer_bytes = size

    def _join(self, line: _Line, guest: Guest) -> None:
        line.since.setdefault(guest, asyncio.get_running_loop().time())
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now, self._timer = asyncio.get_running_loop().time(), None
        for guest in self._silent.overdue(now):
            self._show_out(guest)
            guest.leave()
        for guest in self._begun.overdue(now):
            self._show_out(guest)
            guest.leave_late()
        self.answers.look(now)
        if self._silent.since or self._begun.since or self.answers:
            self._look_later()

    def _cut(self, guest: Any) -> None:
        """It is too slow to take its answers."""
        self._show_out(guest)
        guest.leave_now()

    def _show_out(self, guest: Guest) -> None:
        self._make_place(guest)
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


DOOR: Final = web.AppKey("door", Door)
