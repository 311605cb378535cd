"""Ports of loopback for the servers that tests and benchmarks start."""

from __future__ import annotations

import socket
import weakref


class Port:
    """A port of loopback that nobody else is given for as long as this lives.

    A socket that is bound but does not listen keeps it: the kernel hands it out to nobody, and a
    server that sets SO_REUSEADDR, as ours and PgBouncer do, may listen on it (socket(7)).
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        self.close = weakref.finalize(self, self._socket.close)
