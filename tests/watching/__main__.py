"""A real Prometheus scrapes a real store under load for a minute; each panel must show something.

    python -m tests.watching [seconds]

The store is a process of its own over an embedded PostgreSQL, with a Redis for its limits. The exit
code is 1 if a query of the dashboard has no answer, or if an alarm fires.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from tests.acceptance.process import ServerProcess
from tests.watching.load import under_load
from tests.watching.prometheus import panels, scraping
from tests.web.test_shared_limits import Server as Redis


def main() -> int:
    """The exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory(prefix="itemstore-watching-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs under another account
        redis = Redis(directory)
        limits = {"REDIS_URL": redis.url, "RATE_LIMIT_HEAVY": "1000/s"}
        server = ServerProcess(directory / "log", DATA_DIR=str(directory / "data"), **limits)
        try:
            return asyncio.run(_watch(server.start().port, redis, directory, seconds))
        finally:
            server.signal(signal.SIGTERM)
            server.wait()
            server.end()


async def _watch(port: int, redis: Redis, directory: Path, seconds: float) -> int:
    await redis.start()
    try:
        return await _look(port, directory, seconds)
    finally:
        await redis.kill()


async def _look(port: int, directory: Path, seconds: float) -> int:
    wrong = 0
    async with scraping(port, directory) as prometheus, under_load(port):
        await asyncio.sleep(seconds)
        for panel in panels():
            series = await prometheus.series(panel.query)
            wrong += not series
            shown = ", ".join(each["value"][1] for each in series[:4])
            sys.stdout.write(f"{len(series):3} series  {panel.title}  {shown}\n")
        firing = await prometheus.firing()
    sys.stdout.write(f"{wrong} panels are empty; alarms: {', '.join(firing) or 'none'}\n")
    return int(bool(wrong or firing))


if __name__ == "__main__":
    sys.exit(main())
