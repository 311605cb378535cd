"""A real server process, for the tests that start, stop and kill one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from benchmarks.ports import Port

START_LIMIT_S = 30.0


class ServerProcess:
    """``python -m itemstore serve`` with the given environment; its log goes to a file."""

    def __init__(self, log_file: Path, **environment: str) -> None:
        self._port = Port()
        self.port = self._port.number
        self.url = f"http://127.0.0.1:{self.port}"
        self._log_file = log_file
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> ServerProcess:
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "itemstore", "serve"],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if wait:
            self._wait_until_ready()
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, limit_s: float = 40.0) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(limit_s)

    def end(self) -> None:
        """Ends it if it still runs, and gives its port up; for a test's finally."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._port.close()

    def events(self) -> list[dict[str, Any]]:
        """Its log so far, as far as it is JSON."""
        lines = self._log_file.read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if line.startswith(b"{")]

    def output(self) -> str:
        return self._log_file.read_text()

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        limit = time.monotonic() + START_LIMIT_S
        while self.process.poll() is None and time.monotonic() < limit:
            if self._is_ready():
                return
            time.sleep(0.02)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        raise AssertionError(f"the server did not become ready:\n{self.output()}")

    def _is_ready(self) -> bool:
        request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(request)
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


#: With these settings.
Start = Callable[..., ServerProcess]
