"""uvloop and httptools over a dict, and nothing else: the limit of Python on this machine.

python -m benchmarks.peer_services.bare --port 8080 --items FILE
"""

from __future__ import annotations

import asyncio
import signal
from typing import Final, cast

import httptools
import uvloop

from benchmarks.peer_services.held import Held, Items, arguments

_ITEM: Final = b"/items/"
_HEAD: Final = (
    b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nETag: %b\r\nContent-Length: %d\r\n\r\n%b"
)
_NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_NOT_MODIFIED: Final = b"HTTP/1.1 304 Not Modified\r\nETag: %b\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection; the names are those httptools calls."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path, self._body, self._known_etag = b"", b"", b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"if-none-match":
            self._known_etag = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._transport.write(self._answer(self._parser.get_method()))

    def _answer(self, method: bytes) -> bytes:
        item_id = self._path.removeprefix(_ITEM).decode()
        if method == b"GET":
            held = self._items.get(item_id)
            if held is None:
                return _NOT_FOUND
            if self._known_etag == held.etag.encode():
                return _NOT_MODIFIED % self._known_etag
            return _whole(b"200 OK", held)
        if method == b"PUT":
            return _whole(b"200 OK", self._items.put(item_id, self._body))
        return _whole(b"201 Created", self._items.post(self._body))


def _whole(status: bytes, held: Held) -> bytes:
    return _HEAD % (status, held.etag.encode(), len(held.body), held.body)


async def serve(items: Items, port: int) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: Connection(items), "127.0.0.1", port)
    await stopped.wait()
    server.close()


def main() -> None:
    given = arguments()
    items = Items(given.items)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(items, given.port))


if __name__ == "__main__":
    main()
