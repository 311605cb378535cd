"""Ends tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

CANCEL_AGAIN_S: Final = 0.5


async def end(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancels them and returns when they are gone, whatever they ended with.

    More than once if need be: before Python 3.12 a cancellation that meets a result inside
    ``asyncio.wait_for``, which the connection pool uses, can get lost
    (https://github.com/python/cpython/issues/86296).
    """
    running = {task for task in tasks if task is not None}
    while pending := {task for task in running if not task.done()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*running, return_exceptions=True)
