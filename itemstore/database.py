"""Which database a store runs over: the one named, or an embedded server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from itemstore.storage.embedded import EmbeddedPostgres, default_data_dir

__all__ = ["database", "default_data_dir"]


@asynccontextmanager
async def database(dsn: str | None, data_dir: Path | None = None) -> AsyncIterator[str]:
    """The DSN; without one, that of an embedded server that runs as long as this context.

    Raises StartupError if that cannot run.
    """
    if dsn is not None:
        yield dsn
        return
    server = EmbeddedPostgres(data_dir or default_data_dir())
    try:
        yield await asyncio.to_thread(server.start)
    finally:
        await asyncio.to_thread(server.stop)
