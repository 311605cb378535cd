"""A connection: aiohttp's protocol, with the fast lane before it."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from aiohttp import web

from itemstore.errors import MalformedRequest
from itemstore.web import problems
from itemstore.web.lane import Lane, Pending, length_of
from itemstore.web.limits import peer_network
from itemstore.web.traffic import SERVER, Traffic

KEPT_MAX: Final = 8  # chunks; beyond that nothing more is read


class Connection(web.RequestHandler):
    """Lets the lane answer what it can while aiohttp is idle.

    aiohttp's parser keeps what it has of a request that is not whole, and does not tell. So the
    connection follows what it hands over: ``_rest`` is how many bytes of the last request are still
    to come. Where that cannot be told, the lane is closed for the rest of the connection.

    A request that waits, for a commit, a load or room, holds the connection: what arrives meanwhile
    is kept for later, so that responses come in the order of the requests (RFC 9112, section
    9.3.2).
    """

    __slots__ = ("_answered", "_kept", "_lane", "_peer", "_pending", "_rest", "_traffic")

    def __init__(
        self, manager: web.Server, *, lane: Lane | None, traffic: Traffic, **options: Any
    ) -> None:
        super().__init__(manager, **options)
        self._lane = lane
        self._traffic = traffic
        self._peer = ""
        self._rest: int | None = 0 if lane is not None else None
        self._pending: Pending | None = None
        self._kept: list[bytes] = []
        self._answered: asyncio.Event | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._traffic.connections += 1
        super().connection_made(transport)
        self._peer = peer_network(transport.get_extra_info("peername"))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._traffic.connections -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._pending is not None:
            self._keep(data)
            return
        if not data:  # aiohttp wakes its own parser so
            super().data_received(data)
            return
        if self._rest == 0 and self._lane is not None and self._is_idle():
            answer = self._lane.answer(data, self._peer)
            if answer is not None:
                self._give(answer)
                return
        if self._rest is not None:
            self._follow(data)
        super().data_received(data)

    def _is_idle(self) -> bool:
        """Whether aiohttp waits for a request, and its client has read what it was sent."""
        waiter = self._waiter
        return waiter is not None and not (
            waiter.done() or self._messages or self._close or self._force_close or self._paused
        )

    def _follow(self, data: bytes) -> None:
        if self._rest == 0:
            self._rest = length_of(data)
        if self._rest is not None:
            self._rest -= len(data)
            if self._rest < 0:
                self._rest = None

    def _give(self, answer: bytes | Pending) -> None:
        loop = self._loop
        self._next_keepalive_close_time = loop.time() + self._keepalive_timeout
        if isinstance(answer, bytes):
            if self.transport is not None:
                self.transport.write(answer)
            return
        self._pending = answer
        answer.done.add_done_callback(self._settled)

    def _settled(self, _: asyncio.Future[Any]) -> None:
        """The item that was waited for is found, or written as durably as was asked; or not."""
        assert self._pending is not None  # noqa: S101 - our own error, not a caller's
        assert self._lane is not None  # noqa: S101
        answer, self._pending = self._lane.settled(self._pending), None
        if self._answered is not None:
            self._answered.set()
        if self.transport is None:  # nobody reads it any more
            return
        self._give(answer)
        if self._kept:
            kept, self._kept = self._kept, []
            if len(kept) >= KEPT_MAX:
                self.transport.resume_reading()
            for data in kept:
                self.data_received(data)

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        if len(self._kept) == KEPT_MAX and self.transport is not None:
            self.transport.pause_reading()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Lets what is waited for be answered first."""
        if self._pending is not None:
            self._answered = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await self._answered.wait()
            except TimeoutError:
                pass
        await super().shutdown(timeout)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP is answered with a problem document too."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        reason = _reason(message or "")
        error = MalformedRequest(
            f"The request is malformed: {reason}. Mend it, and send it over a new connection."
        )
        self._traffic.malformed(reason, error.code)
        response = problems.response(error, "")
        response.headers["Server"] = SERVER
        response.force_close()
        return response


def _reason(message: str) -> str:
    """What the parser says, without the bytes it says it of."""
    said = re.split(r"\n\n| when reading", message)[0]
    return " ".join(said.split())[:200].rstrip(".:") or "it is not HTTP"
