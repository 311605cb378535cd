"""Ends tasks for certain, waits for a PostgreSQL that is away, and shares the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from structlog.typing import FilteringBoundLogger

from itemstore.errors import StartupError
from itemstore.storage import StorageAway, StorageError

CANCEL_AGAIN_S: Final = 0.5
CONNECT_RETRY_MAX_S: Final = 2.0
TURN_CALLS: Final = 50  # at once: about 1 ms of the event loop

T = TypeVar("T")
R = TypeVar("R")


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


async def until_answered(call: Callable[[], Awaitable[T]], log: FilteringBoundLogger) -> T:
    """What the call returns, repeated while PostgreSQL is away.

    Raises StartupError if waiting does not help.
    """
    delay = 0.1
    while True:
        try:
            return await call()
        except StorageAway as error:
            log.warning("database_away", reason=str(error), retry_s=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, CONNECT_RETRY_MAX_S)
        except StorageError as error:
            raise StartupError(f"PostgreSQL cannot be used: {error}") from error


async def in_turns(call: Callable[[T], R], values: Sequence[T]) -> list[R]:
    """What the call makes of each value; others have their turn of the event loop in between."""
    made = []
    for number, value in enumerate(values, 1):
        made.append(call(value))
        await give_way(number)
    return made


async def give_way(calls: int) -> None:
    """Lets others have their turn of the event loop after every ``TURN_CALLS`` calls."""
    if calls % TURN_CALLS == 0:
        await asyncio.sleep(0)
