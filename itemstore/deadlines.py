"""Deadlines: futures that fail when nobody has settled them in time, with one timer for all."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from itemstore.accepted import Accepted, settle
from itemstore.core.item import version_of
from itemstore.core.queue import Change, WriteQueue
from itemstore.errors import CommitUnconfirmed, ItemQuarantined
from itemstore.options import Durability


class Deadlines:
    """All have the same time, so they run out in the order in which they came."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
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

    def kept(self, queue: WriteQueue, item_id: str, entry: bytes, level: Durability) -> Accepted:
        """A write that leaves the item as it is: no more is promised than what holds, or will.

        Raises ItemQuarantined if PostgreSQL has refused the item as it is.
        """
        change = Change(item_id, version_of(entry), entry, deleted=False, now_s=0.0)
        pending = queue.get(item_id)
        if pending is None or pending.version != change.version:
            return Accepted(change, False, None, is_kept=True)
        if level is Durability.MEMORY and pending.is_acked:
            return Accepted(change, False, None, is_kept=True)
        if queue.parked.get(item_id) is pending:
            raise ItemQuarantined(
                f"The item {item_id!r} is as it was imported, but PostgreSQL has refused it. See "
                "itemstore quarantine list, and correct the data or the rule."
            )
        return Accepted(change, False, self.commit(pending), is_kept=True)

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
