"""Throughput of Redis, by its own redis-benchmark: keys at random, no pipelining."""

from __future__ import annotations

import re
import subprocess
from typing import Final

KEY: Final = "__rand_int__"  # becomes twelve digits, as in data.numbered_id
NEW_KEYS: Final = 999_999_999_999  # so many that none is drawn twice

#: To guess from how many requests make a second.
_TRIAL_REQUESTS: Final = 2_000
_FIGURE: Final = re.compile(r'"([\d.]+)"')
_FIGURES: Final = 7  # of a line: requests a second first
_WAIT_S: Final = 60.0


def run(
    port: int, work: str, *, items: int, body: bytes, connections: int, seconds: float
) -> float:
    """Requests a second, in about so many seconds."""
    keys, command = _command(work, items, body.decode())
    measured = _run(port, keys, command, connections, _TRIAL_REQUESTS)
    return _run(port, keys, command, connections, max(_TRIAL_REQUESTS, int(measured * seconds)))


def _command(work: str, items: int, body: str) -> tuple[int, list[str]]:
    match work:
        case "get":
            return items, ["GET", KEY]
        case "miss":
            return items, ["GET", f"none{KEY}"]
        case "put":
            return items, ["SET", KEY, body]
        case "post":
            return NEW_KEYS, ["SET", f"new{KEY}", body]
        case _:
            raise ValueError(f"redis-benchmark cannot do {work}")


def _run(port: int, keys: int, command: list[str], connections: int, requests: int) -> float:
    asked = ["redis-benchmark", "-p", str(port), "-c", str(connections), "-n", str(requests)]
    done = subprocess.run(
        [*asked, "-r", str(keys), "--csv", *command],
        capture_output=True,
        text=True,
        timeout=_WAIT_S,
        check=True,
    )
    return float(_FIGURE.findall(done.stdout.splitlines()[-1])[-_FIGURES])
