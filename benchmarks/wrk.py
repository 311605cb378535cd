"""Closed-loop throughput over HTTP, by wrk: so many connections, each sends as soon as it may.

Of wrk only the throughput is quoted. It waits for an answer before it sends again, so a stall
hides from its percentiles; those come from ``benchmarks.openloop``.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple

import orjson

SCRIPT: Final = r"""
local requests, at = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  for each in file:read("*a"):gmatch("[^%z]+") do requests[#requests + 1] = each end
  file:close()
  at = tonumber(arguments[2])
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'measured {"requests":%d,"duration_us":%d,"refused":%d,"broken":%d,"p50_us":%d}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(50)))
end
"""

_MEASURED: Final = re.compile(r"^measured (\{.*\})$", re.MULTILINE)
_WAIT_S: Final = 60.0
_TIMEOUT_S: Final = 20  # of one answer; writes may wait for room in the queue
_SHORTEST_S: Final = 1  # that wrk knows; for less it is interrupted, and tells what it has


def is_installed() -> bool:
    return shutil.which("wrk") is not None


class WrkError(Exception):
    """wrk failed, or what it measured was not the work."""


class Run(NamedTuple):
    """One run of wrk."""

    requests: int
    duration_us: int
    refused: int  #: answers of 400 and above
    broken: int  #: connections
    p50_us: int

    @property
    def per_s(self) -> float:
        return self.requests / self.duration_us * 1_000_000


def run(
    port: int,
    requests: Path,
    *,
    connections: int,
    seconds: float,
    start: int,
    refused: bool,
    strays: float = 0.0,
) -> Run:
    """Sends the packed requests from number ``start`` on, round and round.

    ``refused``: whether answers of 400 and above are right. Raises WrkError if not all are as
    expected but for the share of strays.
    """
    script = requests.with_name("wrk.lua")
    script.write_text(SCRIPT)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(_SHORTEST_S, round(seconds))}s"]
    command += [
        f"--timeout={_TIMEOUT_S}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}",
        "--",
        str(requests),
        str(start),
    ]
    measured = _measured(command, seconds)
    if not measured.requests:  # a slow system, a busy machine, and next to no time
        measured = _measured(command, _SHORTEST_S)
    wrong = measured.requests - measured.refused if refused else measured.refused
    if not measured.requests or measured.broken or wrong > strays * measured.requests:
        raise WrkError(f"{measured}, of which {wrong} are wrong; {command}")
    return measured


def _measured(command: list[str], seconds: float) -> Run:
    done = _run(command, seconds)
    found = _MEASURED.search(done)
    if found is None:
        raise WrkError(f"wrk said:\n{done}")
    return Run(**orjson.loads(found[1]))


def _run(command: list[str], seconds: float) -> str:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as wrk:
        if seconds < _SHORTEST_S:
            time.sleep(seconds)
            wrk.send_signal(signal.SIGINT)
        output, _ = wrk.communicate(timeout=_WAIT_S)
    return output.decode(errors="replace")
