"""Bodies and answers longer than memory: part by part, and no part is taken for the whole."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import hdrs, web

from itemstore.errors import BodyTimeout, MalformedRequest, Overloaded, Stopping
from itemstore.web import limits, traffic
from itemstore.web.items import STORE
from itemstore.web.requests import REQUEST_ID

STREAMS_MAX: Final = 32  # at a time; each holds up to a page, or the parts of an import, in memory
IDLE_S: Final = 60.0  # without a byte of the body, or of the answer taken
PIECE_BYTES: Final = 64 * 1024  # sent at a time: what a client must take in IDLE_S


_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


class Stream:
    """One request that is answered while it is read, or answered at length."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse()
        self.is_stopping = False
        self._request = request
        self._reading: asyncio.Timeout | None = None

    async def begin(self, content_type: str, **headers: str) -> None:
        """Sends the head of the answer: from here on, an error can only be told in its body."""
        self.response.headers.update(
            {
                hdrs.CONTENT_TYPE: content_type,
                hdrs.CACHE_CONTROL: "no-store",
                **{name.replace("_", "-"): value for name, value in headers.items()},
                **limits.headers_of(self._request),
                traffic.REQUEST_ID: self._request[REQUEST_ID],
                hdrs.SERVER: traffic.SERVER,
            }
        )
        await self.response.prepare(self._request)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BodyTimeout, MalformedRequest, Stopping."""
        while chunk := await self._chunk():
            yield chunk

    async def _chunk(self) -> bytes:
        self.check()
        try:
            async with asyncio.timeout(IDLE_S) as self._reading:
                return await self._request.content.readany()
        except TimeoutError:
            self.check()
            raise BodyTimeout(
                f"Nothing of the body came for {IDLE_S:g} s. Resume after the last line confirmed."
            ) from None
        except web.RequestPayloadError as error:
            raise MalformedRequest(f"The body's transfer coding is broken: {error}.") from None
        except OSError:  # nobody reads the answer any more, but the log does
            raise MalformedRequest("The connection ended before the body did.") from None
        finally:
            self._reading = None

    async def send(self, data: bytes) -> None:
        """Returns when more may be sent. Raises OSError if the client is gone, or takes nothing."""
        for start in range(0, len(data), PIECE_BYTES):
            async with asyncio.timeout(IDLE_S):  # a TimeoutError is an OSError
                await self.response.write(data[start : start + PIECE_BYTES])

    def fail(self, reason: Exception) -> None:
        """It ends before its time; so does the connection, once the answer is sent."""
        self._request.app[STORE].log.info(
            "stream_ended",
            path=self._request.path,
            request_id=self._request[REQUEST_ID],
            reason=str(reason) or type(reason).__name__,
        )
        self.response.force_close()

    def cut(self, reason: Exception) -> None:
        """Ends the connection at once, so that nobody takes what was sent for the whole.

        By a reset: in HTTP/1.0, which proxies still speak, the end of the connection is the end of
        the answer.
        """
        self.fail(reason)
        transport = self._request.transport
        if transport is not None:
            reset(transport)

    def check(self) -> None:
        """Raises Stopping if the server is."""
        if self.is_stopping:
            raise _stopping()

    def stop(self) -> None:
        """Nothing more is read; what was is finished."""
        self.is_stopping = True
        if self._reading is not None:
            self._reading.reschedule(0.0)


def reset(transport: asyncio.Transport) -> None:
    """Ends the connection at once; what the kernel has still to send is dropped (socket(7))."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _stopping() -> Stopping:
    return Stopping("The server is stopping. Go on after the last line, with its successor.")


class Streams:
    """The streams under way: so many at a time, and none of them outlives the server."""

    def __init__(self) -> None:
        self._open: set[Stream] = set()
        self._is_stopping = False

    @contextmanager
    def one(self, request: web.Request) -> Iterator[Stream]:
        """A stream, as long as it is in use. Raises Overloaded, Stopping."""
        if self._is_stopping:
            raise _stopping()
        if self.under_way >= STREAMS_MAX:
            raise Overloaded(
                f"There are {STREAMS_MAX} imports and exports under way, the most at a time. "
                "Repeat when one of them has ended."
            )
        stream = Stream(request)
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.remove(stream)

    @property
    def under_way(self) -> int:
        """How many there are."""
        return len(self._open)

    async def stop(self, _: web.Application | None = None) -> None:
        """The server stops: imports end with what they have read, exports are cut."""
        self._is_stopping = True
        for stream in self._open:
            stream.stop()


STREAMS: Final = web.AppKey("streams", Streams)
