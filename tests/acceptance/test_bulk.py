"""A real server process imports while it is killed, stopped, or given more than its memory."""

from __future__ import annotations

import http.client
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.acceptance.process import ServerProcess, Start

LIMIT_S: Final = 120.0  # so that what never ends fails a test instead of hanging it
MIB: Final = 1024 * 1024


class Import:
    """A client that sends a chunk only when it is asked to, and reads a line at a time."""

    def __init__(self, server: ServerProcess, query: str = "") -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), LIMIT_S)
        self._socket.sendall(
            f"POST /import{query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: application/x-ndjson\r\n\r\n".encode()
        )
        self._answer = http.client.HTTPResponse(self._socket)
        self._answer.begin()
        assert self._answer.status == 200

    def send(self, body: bytes) -> None:
        self._socket.sendall(b"%x\r\n%b\r\n" % (len(body), body))

    def end(self) -> None:
        self._socket.sendall(b"0\r\n\r\n")

    def lines(self) -> Iterator[Any]:
        """The results that come, until there are no more or the connection is gone."""
        try:
            while line := self._answer.readline():
                yield orjson.loads(line)
        except (ConnectionError, http.client.IncompleteRead, orjson.JSONDecodeError):
            return

    def close(self) -> None:
        self._answer.close()
        self._socket.close()


def line(number: int) -> bytes:
    return b'{"id":"i%05d","data":{"n":%d}}\n' % (number, number)


def exported(server: ServerProcess) -> list[int]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    connection.request("GET", "/export")
    body = connection.getresponse().read()
    connection.close()
    return [orjson.loads(each)["data"]["n"] for each in body.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_import_is_resumed_after_the_last_line_confirmed(
    start: Start, number: signal.Signals
) -> None:
    """What was confirmed survives; resumed with its successor, each item is there once.

    1. lines are confirmed while more are sent; then the server is killed, or told to stop
    2. what was confirmed is there; told to stop, the server says so in its last line, and exits 0
    3. the rest is sent from the line after the last confirmed one on
    """
    server = start()
    client = Import(server)
    client.send(b"".join(map(line, range(1, 3001))))
    told: list[Any] = []
    for each in client.lines():  # 1
        told.append(each)
        if len(told) == 700:
            server.signal(number)
    client.close()
    if number == signal.SIGTERM:
        last = told.pop()
        assert (last["done"], last["problem"]["code"]) == (False, "stopping")
        assert last["lines"] == len(told)
    assert (server.wait() == 0) == (number == signal.SIGTERM)
    assert [each["line"] for each in told] == list(range(1, len(told) + 1))

    server = start()
    assert set(exported(server)) >= set(range(1, len(told) + 1))  # 2
    client = Import(server, f"?first_line={len(told) + 1}")
    for each in range(len(told) + 1, 3001):  # 3
        client.send(line(each))
    client.end()
    *results, last = client.lines()
    assert [each["line"] for each in results] == list(range(len(told) + 1, 3001))
    assert {each["status"] for each in results} <= {"created", "unchanged"}
    assert last["done"] is True
    assert exported(server) == list(range(1, 3001))
    client.close()


def peak_bytes(server: ServerProcess) -> int:
    """The most memory the process has had."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [kib] = [each.split()[1] for each in status.splitlines() if each.startswith("VmHWM")]
    return int(kib) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_memory_stays_bounded(start: Start) -> None:
    """200 MB over a few items, in lines short, long and too long, need no more than a few parts."""
    server = start()
    client = Import(server, "?conflict=replace")
    before = peak_bytes(server)
    sent = count = 0
    results = client.lines()
    while sent < 200 * MIB:
        size = (300, 20_000, 900_000, 3 * MIB)[count % 40 // 10 if count % 4 == 0 else 1]
        lines = [
            b'{"id":"i%d","data":{"n":%d,"x":"%b"}}\n' % (number % 50, count + number, b"x" * size)
            for number in range(4)
        ]
        for each in lines:
            client.send(each)
            sent += len(each)
        count += len(lines)
        if count > 64:  # read what has come, a while behind what was sent
            assert [next(results)["line"] for _ in lines]
    client.end()
    *_, last = results
    client.close()

    assert (last["done"], last["lines"]) == (True, count)
    assert last["failed"] > 0
    assert peak_bytes(server) - before < 150 * MIB
