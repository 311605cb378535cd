"""HTTP on a raw socket: nothing between a measurement and the server but the kernel."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final, NamedTuple, Self
from urllib.parse import quote

TIMEOUT_S: Final = 60.0
PIPELINED_MAX: Final = 16  # requests sent before the first answer is read

_HEAD_END: Final = b"\r\n\r\n"
_WITHOUT_BODY: Final = (204, 304)
_CHUNK_BYTES: Final = 64 * 1024


class Answer(NamedTuple):
    status: int
    body: bytes


def item_path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


class Client:
    """One keep-alive connection to a port of this machine, used by one thread."""

    def __init__(self, port: int) -> None:
        """Raises ConnectionRefusedError while nobody listens."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> Answer:
        self._socket.sendall(request("GET", path))
        return self._answer()

    def get_all(self, paths: Sequence[str]) -> list[Answer]:
        """Several GETs, pipelined (RFC 9112, section 9.3.2); the answers in their order."""
        assert len(paths) <= PIPELINED_MAX, "or both sides could block on full buffers"
        self._socket.sendall(b"".join(request("GET", path) for path in paths))
        return [self._answer() for _ in paths]

    def post(self, path: str, body: bytes, **headers: str) -> Answer:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
        self._socket.sendall(request("POST", path, headers) + body)
        return self._answer()

    def ask(self, request: bytes) -> tuple[bytes, Answer]:
        """The head of the answer, and the answer, to a request that is complete."""
        self._socket.sendall(request)
        return self._whole_answer()

    def _answer(self) -> Answer:
        return self._whole_answer()[1]

    def _whole_answer(self) -> tuple[bytes, Answer]:
        while (end := self._received.find(_HEAD_END)) < 0:
            self._receive()
        head = bytes(self._received[:end])
        status, length = _parse_head(head)
        start = end + len(_HEAD_END)
        while len(self._received) < start + length:
            self._receive()
        body = bytes(self._received[start : start + length])
        del self._received[: start + length]
        return head, Answer(status, body)

    def _receive(self) -> None:
        chunk = self._socket.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("the server closed the connection")
        self._received += chunk


def request(method: str, path: str, headers: dict[str, str] | None = None) -> bytes:
    """The head of a request, or all of one without a body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _parse_head(head: bytes) -> tuple[int, int]:
    """Status and Content-Length, which every answer with a body carries."""
    status_line, *lines = head.split(b"\r\n")
    status = int(status_line.split(b" ", 2)[1])
    if status in _WITHOUT_BODY:
        return status, 0
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return status, int(value)
    raise ValueError(f"no Content-Length in {head!r}")
