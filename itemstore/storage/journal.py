"""The local journal: what an OK at the durability level ``journal`` rests on.

    event loop                              the journal's thread
    append(change, done) ──► inbox ───────► takes all that waits (and the next gathers meanwhile)
    trim(version) ──► a number it reads ──► one transaction: DELETE, INSERT …, COMMIT with its fsync
    the group's ``done``s ◄── one call ──── the group is on disk

At start whatever the files hold is written to PostgreSQL by the caller, through the version guard;
then the journal begins anew. What the bytes mean stands in ``journal_records.py``, what happens to
the files in ``journal_file.py``.

A full disk passes: the records at hand are dropped, their writers wait for PostgreSQL's commit
instead, and the thread tries again with every trim and every second. Any other error is final.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

from structlog.typing import FilteringBoundLogger

from itemstore.core.queue import Change
from itemstore.errors import StartupError
from itemstore.storage import journal_file
from itemstore.storage.journal_file import FILE_NAME, JournalFile, is_full
from itemstore.storage.journal_records import Recovered, Trail, record_bytes

__all__ = ["Journal", "Recovered", "lasting"]

_GROUP_BYTES_MAX: Final = 8 * 2**20  # a transaction is in memory until it is written
_POLL_S: Final = 1.0  # trims of an idle journal, and attempts on a full disk

_MOUNTS: Final = Path("/proc/self/mountinfo")
_VOLATILE: Final = {"tmpfs", "ramfs"}

Done = Callable[[], None]
T = TypeVar("T")


class Journal:
    """Keeps changes on the local disk until PostgreSQL has them.

    All methods are for the event loop. The numbers are exact there: what is appended counts from
    then on and what is trimmed no longer, whatever the thread has come to.
    """

    def __init__(
        self,
        directory: Path,
        store_id: UUID,
        *,
        bytes_max: int,
        log: FilteringBoundLogger,
        on_failure: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._store_id = store_id
        self._bytes_max = bytes_max
        self._log = log
        self._on_failure = on_failure
        self._monotonic = monotonic
        self._lock: int | None = None
        self._found_damage = False
        self._writer: _Writer | None = None
        self._refusal: str | None = "The journal is not open."
        #: Whether it failed for good.
        self.is_failed = False
        #: An append found no room, and nothing was trimmed since.
        self._is_out_of_room = False
        self._trimmed = 0
        #: What was to be written and was not: the newest version of each such item.
        self._missing: dict[str, int] = {}
        #: What is on disk; the tags are µs by the monotonic clock.
        self._live = Trail()
        self._live_bytes = 0
        #: What is not yet, with its size, and since when in µs.
        self._waiting: deque[tuple[Change, int, int]] = deque()
        self._waiting_bytes = 0
        #: How many records the thread has been given and is done with; who waits for how many.
        self._given = self._finished = 0
        self._flushes: deque[tuple[int, asyncio.Future[None]]] = deque()

    # --- opening and closing

    async def open(self) -> Recovered:
        """Locks the journal and reads what is there. Raises StartupError."""
        self._lock = journal_file.lock(self._directory)
        try:
            recovered = await _aside(
                lambda: journal_file.recover(self._directory, self._store_id, self._monotonic())
            )
        except BaseException:
            self._unlock()
            raise
        self._found_damage = recovered.damaged > 0
        return recovered

    async def begin(self) -> None:
        """Replaces the old file by a fresh one; from here on it can be appended to.

        A file with damage is kept as ``journal.damaged``. Raises StartupError.
        """
        self._writer = _Writer(self, JournalFile(self._directory, self._store_id))
        self._writer.trim(self._trimmed)
        try:
            await self._writer.start(set_aside=self._found_damage)
        except Exception as error:
            self._writer = None
            raise StartupError(
                f"The journal {self._directory / FILE_NAME} cannot be created: {_described(error)}"
            ) from error
        self._refusal = None

    async def close(self, *, keep: bool) -> None:
        """Writes what waits, ends the thread and unlocks the journal.

        ``keep`` leaves the records for the next start; without it the files go.
        """
        self._refusal = "The journal is closed."
        if self._writer is not None:
            await self._writer.end(keep=keep)
            self._writer = None
        if self._lock is not None:
            if not keep:
                await self._remove()
            self._unlock()

    async def _remove(self) -> None:
        try:
            await _aside(lambda: journal_file.remove(self._directory))
        except OSError as error:  # replayed once more by the next start, which changes nothing
            self._log.error("journal_not_removed", reason=_described(error))

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- writing

    def append(self, change: Change, done: Done | None) -> None:
        """Calls ``done`` on the loop once the change is on disk; never, if it cannot be put there.

        Never blocks and never raises. What is on disk already is not written again.
        """
        if self._refusal is None and self._live.has(change.version):
            if done is not None:
                asyncio.get_running_loop().call_soon(done)
            return
        size = record_bytes(change)
        if self._writer is None or not self._has_room(size):
            self._miss(change)
            return
        if self._missing and self._missing.get(change.id, change.version) <= change.version:
            self._missing.pop(change.id, None)  # superseded, or written after all
        self._waiting.append((change, size, int(self._monotonic() * 1e6)))
        self._waiting_bytes += size
        self._given += 1
        self._writer.give(change, done)

    def _has_room(self, size: int) -> bool:
        if self.refusal() is not None:
            return False
        fits = self.bytes_used + size <= self._bytes_max
        self._is_out_of_room = not fits and self.records > 0
        return fits

    def trim(self, version: int) -> None:
        """PostgreSQL has everything up to this version: those records may go."""
        if version <= self._trimmed:
            return
        self._trimmed = version
        self._is_out_of_room = False
        if self._missing:
            self._missing = {id_: each for id_, each in self._missing.items() if each > version}
        self._live_bytes -= self._live.drop(self._live.count_to(version))
        if self._writer is not None:
            self._writer.trim(version)

    def refusal(self) -> str | None:
        """Why the level ``journal`` cannot be given now, in a sentence; None if it can."""
        if self._refusal is None and (self._is_out_of_room or self.bytes_used >= self._bytes_max):
            return (
                f"The journal holds {self.bytes_used} of {self._bytes_max} bytes that PostgreSQL "
                "does not have yet."
            )
        return self._refusal

    async def flush(self) -> bool:
        """Waits until everything appended so far is on disk or in PostgreSQL; False if it is not.

        False also if one of them found no room, was not appended again and not trimmed since.
        """
        if self._finished < self._given and not self.is_failed:
            flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushes.append((self._given, flushed))
            await flushed
        return not self.is_failed and not self._missing

    # --- numbers

    @property
    def bytes_used(self) -> int:
        """Bytes of the records that PostgreSQL does not have, on disk and on the way there."""
        return self._live_bytes + self._waiting_bytes

    @property
    def records(self) -> int:
        """How many those are."""
        return len(self._live) + len(self._waiting)

    @property
    def oldest_age_s(self) -> float:
        """Age of the oldest of them; 0.0 if there is none."""
        if not self.records:
            return 0.0
        since_us = self._live.tag(0) if len(self._live) else self._waiting[0][2]
        return max(0.0, self._monotonic() - since_us / 1e6)

    # --- what the thread tells; called on the loop

    def written(self, count: int, dones: list[Done]) -> None:
        """The oldest that waited are on disk."""
        for change, size, since_us in self._take(count):
            if change.version > self._trimmed:
                self._live.add(change.version, size, since_us)
                self._live_bytes += size
        for done in dones:
            try:
                done()
            except Exception as error:  # the next ones are to be called all the same
                self._log.error("journal_done_failed", reason=_described(error))
        self._pass_flushes()

    def dropped(self, count: int) -> None:
        """The oldest that waited are not on disk and will not be."""
        for change, _, _ in self._take(count):
            self._miss(change)
        self._is_out_of_room = False
        self._pass_flushes()

    def full(self, reason: str) -> None:
        """The disk is full."""
        if self._refusal is None:
            self._refusal = "The journal's disk is full."
        self._log.warning("journal_full", reason=reason, records=self.records)

    def back(self) -> None:
        """It is not any more."""
        if self._writer is not None and not self._writer.is_closing:
            self._refusal = None
        self._log.info("journal_back", records=self.records)

    def failed(self, reason: str) -> None:
        """Nothing more is written to this file."""
        self.is_failed = True
        self._refusal = f"The journal failed: {reason}."
        self._take(len(self._waiting))
        self._log.critical("journal_failed", reason=reason, records=self.records)
        self._pass_flushes()
        self._on_failure(reason)

    def _miss(self, change: Change) -> None:
        if change.version > self._trimmed and not self.is_failed:
            self._missing[change.id] = change.version

    def _take(self, count: int) -> list[tuple[Change, int, int]]:
        taken = [self._waiting.popleft() for _ in range(count)]
        self._waiting_bytes -= sum(size for _, size, _ in taken)
        self._finished += count
        return taken

    def _pass_flushes(self) -> None:
        while self._flushes and (self.is_failed or self._flushes[0][0] <= self._finished):
            _, flushed = self._flushes.popleft()
            if not flushed.done():
                flushed.set_result(None)


class _Writer:
    """The journal's thread. What it shares with the loop is a queue, an event and two numbers."""

    def __init__(self, journal: Journal, file: JournalFile) -> None:
        self._journal = journal
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._inbox: deque[tuple[Change, Done | None]] = deque()  # its ends are thread-safe
        self._wake = threading.Event()
        self._trimmed = 0
        self._is_full = False
        self._wanted_bytes = 0  # what did not fit on a full disk
        self._keep = True
        #: Whether the loop has asked for the end.
        self.is_closing = False

    # --- on the loop

    async def start(self, *, set_aside: bool) -> None:
        """Returns when the file is there; raises what kept it from being made."""
        thread = threading.Thread(target=self._run, args=(set_aside,), name="journal", daemon=True)
        thread.start()
        await asyncio.shield(self._started)

    def give(self, change: Change, done: Done | None) -> None:
        """Queues a change; they are written in this order."""
        self._inbox.append((change, done))
        # After the append: the thread clears the event before it empties the queue.
        if not self._wake.is_set():
            self._wake.set()

    def trim(self, version: int) -> None:
        """With the next transaction; at once if it may help against a full disk."""
        self._trimmed = version
        if self._is_full:
            self._wake.set()

    async def end(self, *, keep: bool) -> None:
        """Returns when the thread is through."""
        self._keep = keep
        self.is_closing = True
        self._wake.set()
        await asyncio.shield(self._ended)

    # --- on the thread

    def _run(self, set_aside: bool) -> None:
        try:
            self._file.create(set_aside=set_aside)
        except Exception as error:
            self._tell(self._started.set_exception, error)
        else:
            self._tell(self._started.set_result, None)
            self._work()
        self._tell(self._ended.set_result, None)

    def _work(self) -> None:
        try:
            self._serve()
            self._file.close(self._trimmed, keep=self._keep)
        except BaseException as error:  # also what nobody foresaw must not end it in silence
            self._file.leave()
            self._tell(self._journal.failed, _described(error))

    def _serve(self) -> None:
        while not (self.is_closing and not self._inbox):
            has_to_look = self._is_full or self._file.has_records
            is_idle = not self._wake.wait(_POLL_S if has_to_look else None)
            self._wake.clear()
            while self._inbox:
                self._write(self._group())
            if self._is_full:
                self._write([])
            # Else trims wait for the next group, so that they cost no fsync of their own.
            while is_idle and not self._is_full and self._file.can_trim(self._trimmed):
                self._write([])

    def _group(self) -> list[tuple[Change, Done | None]]:
        group: list[tuple[Change, Done | None]] = []
        size = 0
        while self._inbox and size < _GROUP_BYTES_MAX:
            group.append(self._inbox.popleft())
            size += group[-1][0].size
        return group

    def _write(self, group: list[tuple[Change, Done | None]]) -> None:
        try:
            if self._is_full:
                self._try_again()
            if group or self._file.can_trim(self._trimmed):
                self._file.write([change for change, _ in group], self._trimmed)
            self._tell(self._journal.written, len(group), [done for _, done in group if done])
            group = []  # whatever follows, these are on disk
            self._file.tidy(self._trimmed)
        except (sqlite3.Error, OSError) as error:
            if not is_full(error):
                raise
            self._give_up(group, error)

    def _try_again(self) -> None:
        self._file.try_again(self._trimmed, self._wanted_bytes)
        self._is_full = False
        self._tell(self._journal.back)

    def _give_up(self, group: list[tuple[Change, Done | None]], error: Exception) -> None:
        if not self._is_full:
            self._is_full = True
            self._wanted_bytes = 2 * sum(change.size for change, _ in group)  # the log and the file
            self._tell(self._journal.full, _described(error))
        self._tell(self._journal.dropped, len(group))

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # nobody is left to be told
            if not self._loop.is_closed():
                raise


async def _aside(work: Callable[[], T]) -> T:
    """On a thread of its own: the default executor may be full of other people's work."""
    executor = ThreadPoolExecutor(1, "journal-files")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
    finally:
        executor.shutdown(wait=False)


def _described(error: BaseException) -> str:
    """For people and logs. Of what nobody foresaw no text: there might be an item's data in it."""
    if isinstance(error, sqlite3.Error):
        return f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"
    if isinstance(error, OSError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def lasting(directory: Path) -> str | None:
    """Why files there would not survive a restart of the machine; None if nothing speaks for it.

    The directory need not exist. Of systems other than Linux nothing is known.
    """
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    mount, kind = _mount_of(directory.resolve(), mounts)
    if kind not in _VOLATILE:
        return None
    return f"{directory} lies in memory ({kind}, mounted at {mount}) and is gone after a restart."


def _mount_of(path: Path, mounts: str) -> tuple[Path, str]:
    """The mount point above the path and the kind of its file system (proc(5), mountinfo)."""
    found = Path("/"), ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        mount = Path(_unescaped(fields.split(" ")[4]))
        # Of two on the same point the later one covers the earlier.
        if path.is_relative_to(mount) and len(mount.parts) >= len(found[0].parts):
            found = mount, rest.split(" ")[0]
    return found


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
