"""A world in which time passes only when there is nothing left to do.

The event loop runs what is ready; when nothing is, its clock jumps to the next timer. So hours
take milliseconds, and whatever is drawn from one seed happens in the same order each time. Three
things end a world early: a broken promise (``check``), an error that nobody handled, and tasks
that wait for something nobody will ever do.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

START_US: Final = 1_750_000_000_000_000  # when every world begins, in µs since 1970
TOLD_MAX: Final = 80  # lines of history that a failure shows
TURNS_MAX: Final = 1_000_000  # of the loop; more are a world that goes round in circles


#: Whose task it is: whatever a process begins is its own, and ends with it.
OWNER: Final = ContextVar("OWNER", default="")


@contextmanager
def owned_by(owner: str) -> Iterator[None]:
    """Tasks made here are the owner's, and so are those that they make."""
    token = OWNER.set(owner)
    try:
        yield
    finally:
        OWNER.reset(token)


class Broken(AssertionError):
    """A promise was not kept."""


class World(asyncio.BaseEventLoop):
    """``at_rest`` is called whenever all that could run has run, before time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.at_rest: Callable[[], None] = lambda: None
        self.told: deque[str] = deque(maxlen=TOLD_MAX)
        self.tasks = 0  #: so far
        self.gone: set[str] = set()  #: processes that others see are gone
        #: Of everything told: two histories are the same if their digests are.
        self.digest = 0
        self._seconds = 0.0
        self._turns = 0
        self._broken: str | None = None
        self._selector = self
        self.set_exception_handler(self._unhandled)
        self.set_task_factory(_numbered_task)

    def time(self) -> float:
        return self._seconds

    def now_us(self) -> int:
        return START_US + round(self._seconds * 1_000_000)

    def is_gone(self, process: str | None) -> bool:
        """In place of ``itemstore.process.is_gone``: the processes here are not the machine's."""
        return process in self.gone

    def tell(self, event: str) -> None:
        line = f"{self._seconds:11.6f}  {event}"
        self.told.append(line)
        self.digest = zlib.crc32(line.encode(), self.digest)

    def check(self, is_kept: bool, promise: str) -> None:
        """Raises where the promise is broken and, should somebody swallow that, ends the world."""
        if not is_kept:
            self._broken = self._broken or promise
            raise Broken(promise)

    async def kill(self, owner: str) -> None:
        """Ends all that is this owner's."""
        while tasks := {task for task in asyncio.all_tasks() if _owner(task) == owner}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def live(self, life: Coroutine[Any, Any, None]) -> None:
        """Runs it to its end. Raises Broken, also for tasks that it left behind."""
        try:
            self.run_until_complete(life)
            self.check(not (left := self._waiting()), f"left behind: {left}")
        finally:
            self._bury()

    def _bury(self) -> None:
        """Ends what a broken world has left, so that nothing of it reaches the next test."""
        self.at_rest = lambda: None
        self._broken = None
        self._turns = 0
        with suppress(Exception):
            while tasks := asyncio.all_tasks(self):
                for task in tasks:
                    task.cancel()
                self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.close()

    # --- what BaseEventLoop asks of its subclass and its selector

    def select(self, timeout: float | None) -> list[Any]:
        self._turns += 1
        if self._broken is None and self._turns > TURNS_MAX:
            self._broken = "the world goes on for ever"
        if self._broken is None and timeout != 0:
            self.at_rest()
            if timeout is None:
                self._broken = f"stuck: nothing will ever wake {self._waiting()}"
            else:
                self._seconds = max(self._seconds, self._scheduled[0].when())  # type: ignore[attr-defined]
        if self._broken is not None:
            raise Broken(self._broken)
        return []

    def _process_events(self, events: list[Any]) -> None:
        """There are none: nothing comes from outside."""

    def _waiting(self) -> str:
        return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._broken = self._broken or f"unhandled: {context['message']}: {error!r}"


class _NumberedTask(asyncio.Task[Any]):
    """Hashed by its number, not by its address: sets of tasks have the same order each time."""

    number: int
    owner: str

    def __hash__(self) -> int:
        return self.number


def _numbered_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> asyncio.Task[Any]:
    assert isinstance(loop, World)
    loop.tasks += 1
    task = _NumberedTask.__new__(_NumberedTask)
    task.number, task.owner = loop.tasks, OWNER.get()
    task.__init__(coroutine, loop=loop, **options)  # type: ignore[misc]  # it is hashed in there
    return task


def _owner(task: asyncio.Task[Any]) -> str:
    assert isinstance(task, _NumberedTask)
    return task.owner
