"""Deadlines: futures that fail when nobody has settled them in time, with one timer for all."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from itemstore.accepted import settle
from itemstore.core.queue import Change, WriteQueue
from itemstore.errors import CommitUnconfirmed, ItemQuarantined
from itemstore.options import Durability


class Deadlines:
    """All have the same time, so they run out in the order in which they came."""

    def __init__(self, limit_s: float, queue: WriteQueue) -> None:
        self.limit_s = limit_s
        self._queue = queue
        self._line: deque[tuple[float, asyncio.Future[None], Callable[[], Exception]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def future(self, late: Callable[[], Exception]) -> asyncio.Future[None]:
        """To be settled within ``limit_s`` seconds; else ``late`` makes its exception."""
        loop, line = asyncio.get_running_loop(), self._line
        future: asyncio.Future[None] = loop.create_future()
        while line and line[0][1].done():
            line.popleft()
        line.append((loop.time() + self.limit_s, future, late))
        if self._timer is None:
            self._timer = loop.call_at(line[0][0], self._run_out)
        return future

    def commit(self, change: Change) -> asyncio.Future[None]:
        """Settled with the commit of the change; CommitUnconfirmed if that is too late."""
        done = self.future(partial(self._unconfirmed, change.version))
        change.settled += (partial(settle, done),)
        return done

    def durable(self, change: Change, level: Durability) -> asyncio.Future[None] | None:
        """Settled when what was accepted before is as durable as this; None if it is already.

        Raises ItemQuarantined if it will not be.
        """
        pending = self._queue.bearing(change.id, change.version)
        if pending is None or (level is Durability.MEMORY and pending.is_acked):
            return None
        if self._queue.parked.get(change.id) is pending:
            raise ItemQuarantined(
                f"The item {change.id!r} was accepted as it is, but PostgreSQL has refused it. See "
                "itemstore quarantine list, and correct the data or the rule."
            )
        return self.commit(pending)

    def _unconfirmed(self, version: int) -> CommitUnconfirmed:
        return CommitUnconfirmed(
            f"Version {version} is accepted and will be written, but it was not confirmed within "
            f"{self.limit_s:g} s. Read the item before you repeat the request."
        )

    def close(self) -> None:
        """The time of all is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail_until(float("inf"))

    def _run_out(self) -> None:
        loop, line = asyncio.get_running_loop(), self._line
        self._fail_until(loop.time())
        self._timer = loop.call_at(line[0][0], self._run_out) if line else None

    def _fail_until(self, time_s: float) -> None:
        line = self._line
        while line and (line[0][0] <= time_s or line[0][1].done()):
            _, future, late = line.popleft()
            if not future.done():
                future.set_exception(late())
                future.exception()  # its writer may be gone: that is no news
