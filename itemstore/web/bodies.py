"""The memory that bodies take, of all requests together."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from itemstore.errors import Overloaded

BYTES_MAX: Final = 64 * 1024 * 1024
#: Of each body, not counted: so small ones are read whatever large ones take. How many such there
#: are at a time, the number of connections bounds.
FREE_BYTES: Final = 64 * 1024

_HELD: Final = web.RequestKey("held", int)


class Bodies:
    """Counts what is held from the reading of a body to the end of its request."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0

    def hold(self, request: web.Request, size: int) -> None:
        """Its body has so many bytes by now. Raises Overloaded if that is too much with others'."""
        wanted, held = max(0, size - FREE_BYTES), request.get(_HELD, 0)
        if self.bytes_used + wanted - held > self.bytes_max:
            raise Overloaded(
                f"The bodies being read and written take {self.bytes_max:,} bytes, the most "
                f"there is for them. Repeat, or send less than {FREE_BYTES:,} bytes at a time."
            )
        self.bytes_used += wanted - held
        request[_HELD] = wanted

    def release(self, request: web.Request) -> None:
        """Its request is answered."""
        self.bytes_used -= request.get(_HELD, 0)
        request[_HELD] = 0


BODIES: Final = web.AppKey("bodies", Bodies)
