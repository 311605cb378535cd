"""Latency at a fixed rate: requests start when it is their time, whatever became of the others.

    python -m benchmarks.openloop --port 8080 --requests FILE --rate 5000 --seconds 5

A request counts from when it was to start. If the server pauses, all that were to start meanwhile
count their waiting too (Gil Tene, "How NOT to Measure Latency", 2013; YCSB calls it the intended
time). A plain loop over sockets, since a timer of uvloop is no finer than a millisecond; select(2)
waits for microseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import select
import socket
import subprocess
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import orjson
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from benchmarks.requests_file import unpack

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
CONNECTIONS: Final = 32
PAUSE_MS: Final = 10.0

_LOST_S: Final = 10.0  # after the last request; what has no answer by then never gets one
_LONGEST_US: Final = 60_000_000
_DIGITS: Final = 3
_CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which requests waited longer than PAUSE_MS."""

    at_s: float  #: when the first of them was to start
    ms: float  #: how long the one waited that waited longest


@dataclass(frozen=True, slots=True)
class Latencies:
    """What so many requests at a fixed rate waited."""

    answered: int
    wrong: int  #: answered otherwise than they should be
    lost: int  #: not answered ten seconds after the end; they count as answered then
    per_s: float  #: answered, so that what could not keep up is seen
    late_p99_us: int  #: how late the generator itself was, with a connection free
    core_wait_ms: float  #: how long the generator waited for a core
    percentiles_us: dict[str, int]
    pauses: list[Pause]


class Connection:
    """One keep-alive connection with at most one request on its way."""

    __slots__ = ("due", "late", "received", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due, self.late = 0.0, 0.0


#: How long a whole answer is that begins with these bytes; 0 while it cannot be told.
Length = Callable[[bytes], int]


def http_length(received: bytes) -> int:
    """Of an HTTP answer with a Content-Length, or without a body."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    at = received.find(b"ontent-", 0, end)
    while at >= 0 and received[at + 7 : at + 14].lower() != b"length:":
        at = received.find(b"ontent-", at + 7, end)
    if at < 0:
        return end + 4
    return end + 4 + int(received[at + 14 : received.find(b"\r\n", at)])


def resp_length(received: bytes) -> int:
    """Of a Redis answer: a line, or a string after its length."""
    end = received.find(b"\r\n")
    if end < 0:
        return 0
    if received[:1] != b"$" or received[1:3] == b"-1":
        return end + 2
    return end + 4 + int(received[1:end])


class Generator:
    """Sends requests in turn over a few connections."""

    def __init__(
        self, port: int, requests: Sequence[bytes], *, connections: int, good: bytes
    ) -> None:
        """``good``: how a right answer begins."""
        self._idle = deque(Connection(port) for _ in range(connections))
        self._by_fd = {each.socket.fileno(): each for each in self._idle}
        self._requests = requests
        self._good = good
        self._length: Length = http_length if good.startswith(b"HTTP") else resp_length
        # Of each answered request, in seconds.
        self._due, self._waited, self._late = array("d"), array("d"), array("d")
        self._wrong, self._lost = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._by_fd.values():
            each.socket.close()

    def run(self, rate: float, seconds: float) -> Latencies:
        """Begins at once; ends when the last request is answered or lost."""
        count = max(1, int(rate * seconds))
        gc.collect()
        gc.disable()  # a pause of ours would look like the server's
        try:
            waited_ms = core_wait_ms()
            started = time.perf_counter()
            self._loop(started, 1 / rate, count)
            took_s = time.perf_counter() - started
            waited_ms = core_wait_ms() - waited_ms
        finally:
            gc.enable()
        return self._latencies(took_s, waited_ms)

    def _loop(self, started: float, interval_s: float, count: int) -> None:
        clock, fds, idle = time.perf_counter, list(self._by_fd), self._idle
        requests, answer = self._requests, self._answer
        busy, sent, due, free_since = 0, 0, started, started
        end = started + count * interval_s + _LOST_S
        while sent < count or busy:
            now = clock()
            while idle and due <= now and sent < count:
                connection = idle.popleft()
                connection.due, connection.late = due, now - max(due, free_since)
                connection.socket.send(requests[sent % len(requests)])
                busy += 1
                sent += 1
                due = started + sent * interval_s
                now = clock()
            if now > end:
                self._lose(now, (started + number * interval_s for number in range(sent, count)))
                return
            until = due if idle and sent < count else end
            ready, _, _ = select.select(fds, (), (), max(0.0, until - now))
            if not ready:
                continue
            was_idle = bool(idle)
            for fd in ready:
                busy -= answer(self._by_fd[fd])
            if not was_idle:
                free_since = clock()

    def _lose(self, now: float, unsent: Iterable[float]) -> None:
        """Counts what is not answered as if it were now, which is the least it could be."""
        idle = set(self._idle)
        busy = (each.due for each in self._by_fd.values() if each not in idle)
        for due in (*busy, *unsent):
            self._note(due, now - due, 0.0)
            self._lost += 1

    def _note(self, due: float, waited: float, late: float) -> None:
        self._due.append(due)
        self._waited.append(waited)
        self._late.append(late)

    def _answer(self, connection: Connection) -> bool:
        """Whether the connection's answer is complete now."""
        chunk = connection.socket.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("the server closed the connection")
        received = connection.received + chunk
        length = self._length(received)
        if not 0 < length <= len(received):
            connection.received = received
            return False
        self._note(connection.due, time.perf_counter() - connection.due, connection.late)
        self._wrong += not received.startswith(self._good)
        connection.received = b""
        self._idle.append(connection)
        return True

    def _latencies(self, took_s: float, waited_ms: float) -> Latencies:
        found, answered = _histogram(self._waited), len(self._waited) - self._lost
        # The generator's own lateness counts in the latency, which cannot do better, but is no
        # pause of the server.
        waited = [wait - late for wait, late in zip(self._waited, self._late, strict=True)]
        return Latencies(
            answered=answered,
            wrong=self._wrong,
            lost=self._lost,
            per_s=answered / took_s,
            late_p99_us=_histogram(self._late).get_value_at_percentile(99),
            core_wait_ms=waited_ms,
            percentiles_us={
                f"{each:g}": found.get_value_at_percentile(each) for each in PERCENTILES
            },
            pauses=list(pauses(self._due, waited)),
        )


def _histogram(seconds: Sequence[float]) -> HdrHistogram:
    made = HdrHistogram(1, _LONGEST_US, _DIGITS)
    for each in seconds:
        made.record_value(max(1, int(each * 1_000_000)))
    return made


def pauses(due: Sequence[float], waited: Sequence[float]) -> Iterator[Pause]:
    """The pauses, in the order of time; requests that waited for the same count as one."""
    began, over, longest = 0.0, 0.0, 0.0
    for at, wait in sorted(zip(due, waited, strict=True)):
        if wait * 1_000 < PAUSE_MS:
            continue
        if longest and at > over:
            yield Pause(began - min(due), longest * 1_000)
            longest = 0.0
        began = began if longest else at
        over, longest = max(over, at + wait), max(longest, wait)
    if longest:
        yield Pause(began - min(due), longest * 1_000)


def core_wait_ms(pid: int | str = "self") -> float:
    """How long a process' main thread was ready to run, and no core was free for it (proc(5))."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1_000_000


def run(
    port: int,
    requests: Path,
    *,
    rate: float,
    seconds: float,
    good: str,
    connections: int = CONNECTIONS,
    strays: float = 0.0,
) -> Latencies:
    """The same in a process of its own.

    Raises WrongAnswers unless all answers are right but for the share of strays.
    """
    command = [sys.executable, "-m", "benchmarks.openloop", f"--port={port}"]
    command += [f"--requests={requests}", f"--rate={rate}", f"--seconds={seconds}"]
    command += [f"--connections={connections}", f"--good={good}"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise WrongAnswers(done.stderr.decode(errors="replace"))
    found = orjson.loads(done.stdout)
    latencies = Latencies(**found | {"pauses": [Pause(**each) for each in found["pauses"]]})
    if latencies.wrong > strays * latencies.answered:
        raise WrongAnswers(f"{command}: {latencies}")
    return latencies


class WrongAnswers(Exception):
    """The requests were not answered as they should be."""


def _wake_in_time() -> None:
    """The kernel may wake a sleeper 50 µs late to save power; not this one (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


_PR_SET_TIMERSLACK: Final = 29


def main() -> None:
    _wake_in_time()
    given = _arguments()
    requests, good = unpack(given.requests.read_bytes()), given.good.encode()
    with Generator(given.port, requests, connections=given.connections, good=good) as generator:
        found = generator.run(given.rate, given.seconds)
    sys.stdout.buffer.write(orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=Path, required=True, help="packed, see workload.py")
    parser.add_argument("--rate", type=float, required=True, help="a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--good", default="HTTP/1.1 2", help="how a right answer begins")
    return parser.parse_args()


if __name__ == "__main__":
    main()
