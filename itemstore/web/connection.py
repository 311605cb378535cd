"""A connection: aiohttp's protocol, with the fast lane before it."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from itemstore.core import address
from itemstore.errors import HeadTimeout, MalformedRequest
from itemstore.web import browsers, problems
from itemstore.web.door import HEAD_S, Door
from itemstore.web.lane import Lane, Pending, length_of
from itemstore.web.streams import reset
from itemstore.web.traffic import SERVER, Traffic

KEPT_MAX: Final = 8  # chunks; beyond that nothing more is read
KEPT_MAX_BYTES: Final = 64 * 1024  # nor beyond this


class Connection(web.RequestHandler):
    """Lets the lane answer what it can while aiohttp is idle.

    aiohttp's parser keeps what it has of a request that is not whole, and does not tell. So the
    connection follows what it hands over: ``_rest`` is how many bytes of the last request are still
    to come. Where that cannot be told, the lane is closed for the rest of the connection.

    A request that waits, for a commit, a load or room, holds the connection: what arrives meanwhile
    is kept for later, so that responses come in the order of the requests (RFC 9112, section
    9.3.2).
    """

    __slots__ = (
        *("_answered", "_door", "_has_begun", "_is_new", "answer_bytes"),
        *("_kept", "_lane", "_peer", "_pending", "_rest", "_traffic"),
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        lane: Lane | None,
        door: Door,
        traffic: Traffic,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._door = door
        self._is_new = True  # nothing has arrived yet
        self.answer_bytes = 0
        self._has_begun = False  # some of a request's headers have, and not all
        self._lane = lane
        self._traffic = traffic
        self._peer = ""
        self._rest: int | None = 0 if lane is not None else None
        self._pending: Pending | None = None
        self._kept: list[bytes] = []
        self._answered: asyncio.Event | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._peer = address.of_peer(transport.get_extra_info("peername"))
        if self._door.enter(self, cast(asyncio.Transport, transport), self._peer):
            super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._door.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._pending is not None:
            self._keep(data)
            return
        if self._is_new:
            self._is_new = False
            self._door.speaks(self)
        if not data:  # aiohttp wakes its own parser so
            super().data_received(data)
            return
        if self._rest == 0 and self._lane is not None and self._is_idle():
            answer = self._lane.answer(data, self._peer)
            if answer is not None:
                self._give(answer)
                return
        if self._is_broken():
            return
        if self._rest is not None:
            self._follow(data)
        super().data_received(data)
        if self._is_idle():
            self._has_begun = True
            self._door.begins(self)
        elif self._has_begun:
            self._has_begun = False
            self._door.has_begun(self)

    def _is_broken(self) -> bool:
        """Whether what came last is not HTTP: what follows is nothing, and need not be kept."""
        return bool(self._messages) and isinstance(self._messages[-1][0], _ErrInfo)

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
                self.answer_bytes = len(answer)
                self.transport.write(answer)
            return
        self._pending = answer
        answer.done.add_done_callback(self._settled)

    def _settled(self, _: asyncio.Future[Any]) -> None:
        """The item that was waited for is found, or written as durably as was asked; or not."""
        assert self._pending is not None  # noqa: S101 - our own error, not a caller's
        assert self._lane is not None  # noqa: S101
        if self.transport is not None and not self._door.answers.has_room(self._pending.size()):
            done = self._loop.create_task(self._when_room(self._pending))
            self._pending = self._pending._replace(done=done)
            done.add_done_callback(self._settled)
            return
        answer, self._pending = self._lane.settled(self._pending), None
        if self._answered is not None:
            self._answered.set()
        if self.transport is None:  # nobody reads it any more
            return
        self._give(answer)
        if self._kept:
            kept, self._kept = self._kept, []
            if _is_much(kept):
                self.transport.resume_reading()
            for data in kept:
                self.data_received(data)

    async def _when_room(self, pending: Pending) -> Any:
        await self._door.answers.room(pending.size())
        return pending.done.result()

    def _keep(self, data: bytes) -> None:
        had_room = not _is_much(self._kept)
        self._kept.append(data)
        if had_room and _is_much(self._kept) and self.transport is not None:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._door.is_full(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._door.answers.takes(self)

    # --- what the door does with a slow one

    def leave(self) -> None:
        """It said nothing at all: it need not be told anything either."""
        self.force_close()

    def leave_late(self) -> None:
        """The headers of its request do not come: it is told so, and ended."""
        if self.transport is not None:
            error = HeadTimeout(f"The headers of the request did not arrive within {HEAD_S:g} s.")
            self.transport.write(problems.bare(error))
        self.force_close()

    def leave_now(self) -> None:
        """It does not take its answers: it is ended, whatever is still to be sent."""
        if self.transport is not None:
            reset(self.transport)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """aiohttp keeps a response until the next one; large bodies would stay in idle connections.

        So the body is let go of when it is written.
        """
        sent, is_reset = await super().finish_response(request, resp, start_time)
        if isinstance(sent, web.Response):
            sent.body = None
        return sent, is_reset

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
        response.headers.update(browsers.HEADERS)
        response.force_close()
        return response


def _is_much(kept: list[bytes]) -> bool:
    return len(kept) >= KEPT_MAX or sum(map(len, kept)) >= KEPT_MAX_BYTES


def _reason(message: str) -> str:
    """What the parser says, without the bytes it says it of."""
    said = re.split(r"\n\n| when reading", message)[0]
    return " ".join(said.split())[:200].rstrip(".:") or "it is not HTTP"
