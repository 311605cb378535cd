"""Real server processes over the test's database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.process import ServerProcess, Start


@pytest.fixture
def start(tmp_path: Path, dsn: str) -> Iterator[Start]:
    """Starts servers over the test's database and ends those a test leaves behind."""
    started: list[ServerProcess] = []

    def start_one(**environment: str) -> ServerProcess:
        log = tmp_path / f"server{len(started)}.log"
        server = ServerProcess(log, DATABASE_URL=dsn, **environment)
        started.append(server)
        return server.start()

    yield start_one
    for server in started:
        server.end()
