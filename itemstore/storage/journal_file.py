"""The journal's file on disk: one SQLite database, one connection, used on one thread.

    DATA_DIR/journal.sqlite3        the records
    DATA_DIR/journal.sqlite3-wal    SQLite's write-ahead log, where they come first
    DATA_DIR/journal.lock           locked while a store uses the journal; holds its pid
    DATA_DIR/journal.damaged, -wal  the last ones that could not be read in full

Never a second connection, not even to look: before 3.51.3 two of them could damage the file
(https://www.sqlite.org/wal.html, "the WAL-reset bug"), and Debian 12 has 3.40.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from itemstore.core.queue import Change
from itemstore.errors import StartupError
from itemstore.storage.journal_records import (
    PAGE_BYTES,
    Log,
    Recovered,
    Scan,
    Trail,
    encode,
    encode_mark,
)

FILE_NAME: Final = "journal.sqlite3"
ASIDE_NAME: Final = "journal.damaged"
LOCK_NAME: Final = "journal.lock"

_LOG_BYTES_MAX: Final = 4 * 2**20  # then a checkpoint, some 10 ms; SQLite's own default
_TRIM_BYTES_MAX: Final = 16 * 2**20  # a transaction's pages are kept in memory until it ends
_READ_BYTES: Final = 1024 * PAGE_BYTES  # whole pages, so that no record is cut in two
_SQLITE_FULL: Final = 13

_PRAGMAS: Final = (
    f"PRAGMA page_size = {PAGE_BYTES}",
    # Before the first access: then the log's index is kept in memory, and no -shm file made.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # NORMAL would sync at checkpoints only
    # Ours alone, and always to length zero. SQLite's would write the log from the top again, over
    # old frames, where the torn end of a killed write cannot be told from damage. So there is also
    # nothing for journal_size_limit to cut off. It costs 0.07 ms an fsync, as the file grows.
    "PRAGMA wal_autocheckpoint = 0",
    # What a transaction writes, it writes at its end, in one go: nothing of one that fails before.
    "PRAGMA cache_spill = OFF",
    # Zeros over a freed cell, so that no half of it stays behind. FAST spares the pages that are
    # freed whole: the records in them stay whole, too.
    "PRAGMA secure_delete = FAST",
)
_CREATE: Final = "CREATE TABLE records (seq INTEGER PRIMARY KEY, record BLOB NOT NULL)"
_DELETE: Final = "DELETE FROM records WHERE seq >= ? AND seq < ?"
_MARK: Final = "REPLACE INTO records VALUES (0, ?)"
_INSERT: Final = "INSERT INTO records VALUES (?, ?)"
#: By their number of rows. Each call of SQLite gives up the GIL and has to wait for it again, up to
#: 5 ms if the event loop is busy: so few calls, each with many rows.
_INSERTS: Final = {rows: _INSERT + ", (?, ?)" * (rows - 1) for rows in (256, 32, 4, 1)}


def is_full(error: BaseException) -> bool:
    """Whether it says that the disk is full, which passes.

    Anything else does not: after a failed fsync Linux takes the pages for written, so that the next
    one succeeds though the data is not there (https://wiki.postgresql.org/wiki/Fsync_Errors).
    """
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_FULL
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def lock(directory: Path) -> int:
    """Locks the directory's journal until the descriptor is closed. Raises StartupError."""
    path = directory / LOCK_NAME
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartupError(f"The journal's lock {path} cannot be opened: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StartupError(
            f"Another itemstore, process {holder}, uses the journal in {directory}: stop it first, "
            "or give this one a DATA_DIR of its own."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise StartupError(f"The journal's lock {path} cannot be taken: {error}") from error
    with contextlib.suppress(OSError):  # on a full disk; the pid is for people
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def recover(directory: Path, store_id: UUID, now_s: float) -> Recovered:
    """What the files hold. Raises StartupError if they cannot be read, or are another store's."""
    path = directory / FILE_NAME
    scan = Scan(store_id)
    try:
        # The removal of the files begins with this one: a log without it is half removed, and
        # promises nothing.
        has_file = path.exists()
        file_bytes = 0
        for block in _blocks(path):
            file_bytes += len(block)
            scan.add(block)
        log_bytes = b"".join(_blocks(_log_of(path)))
    except OSError as error:
        raise StartupError(f"The journal {path} cannot be read: {error}") from error
    log = Log(log_bytes)
    end = log.committed_bytes if has_file else 0
    scan.add(log_bytes[:end])
    scan.add(log_bytes[end:], is_committed=False)
    _refuse_foreign(path, store_id, scan.foreign)
    # The first page is there before anything is committed.
    is_used = file_bytes > PAGE_BYTES or end > 0
    return scan.result(now_s, is_used=is_used, is_suspect=has_file and log.is_suspect)


def _blocks(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for at in range(0, size, _READ_BYTES):
            yield _read(file.fileno(), at, min(_READ_BYTES, size - at))


def _read(descriptor: int, at: int, size: int) -> bytes:
    """What the disk will not give is zeros: its records are missing, the others are not."""
    try:
        return os.pread(descriptor, size, at)
    except OSError:
        if size <= PAGE_BYTES:
            return bytes(size)
    pages = range(at, at + size, PAGE_BYTES)
    return b"".join(_read(descriptor, page, min(PAGE_BYTES, at + size - page)) for page in pages)


def _refuse_foreign(path: Path, store_id: UUID, foreign: set[UUID]) -> None:
    if foreign:
        others = ", ".join(sorted(map(str, foreign)))
        raise StartupError(
            f"The journal {path} belongs to the store {others}, and this database is the store "
            f"{store_id}: point DATABASE_URL to the database that the journal was written for, or "
            f"move {path} and {_log_of(path)} away."
        )


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def remove(directory: Path) -> None:
    """Removes the journal, its file first: ``recover`` takes that for the whole."""
    path = directory / FILE_NAME
    for each in (path, _log_of(path), path.with_name(path.name + "-journal")):
        each.unlink(missing_ok=True)
    _sync_directory(directory)


def _set_aside(directory: Path) -> None:
    """Keeps what could not all be read, for whoever wants to look, in place of an older one."""
    path, aside = directory / FILE_NAME, directory / ASIDE_NAME
    for each, other in ((path, aside), (_log_of(path), _log_of(aside))):
        other.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            each.rename(other)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JournalFile:
    """Writes the journal. Every method raises what SQLite and the disk raise."""

    def __init__(self, directory: Path, store_id: UUID) -> None:
        self._directory = directory
        self._path = directory / FILE_NAME
        self._store_id = store_id.bytes
        self._connection: sqlite3.Connection | None = None
        self._reset()

    def _reset(self) -> None:
        self._trail = Trail()  # the tags are the records' last seqs
        self._first = self._next = 1
        self._log_bytes = 0
        self._has_leftovers = False  # frames in the log of a transaction that failed

    @property
    def has_records(self) -> bool:
        return len(self._trail) > 0

    def create(self, *, set_aside: bool = False) -> None:
        """A fresh file in place of what is there, which goes or is set aside."""
        self._abandon()
        if set_aside:
            _set_aside(self._directory)
        remove(self._directory)
        self._reset()
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        # The log gets the mode of the file. Statements are few and stay prepared.
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        for pragma in _PRAGMAS:
            self._connection.execute(pragma)
        with self._transaction() as connection:
            connection.execute(_CREATE)
            self._put_mark(connection, 0)
        _sync_directory(self._directory)

    def write(self, changes: Sequence[Change], trimmed: int) -> None:
        """Commits these, and lets go of what PostgreSQL has. All or nothing."""
        cut = self._trail.fitting(self._trail.count_to(trimmed), _TRIM_BYTES_MAX)
        first = self._trail.tag(cut - 1) + 1 if cut else self._first
        rows, written = self._rows(changes, first, trimmed)
        with self._transaction() as connection:
            if first > self._first:
                connection.execute(_DELETE, (self._first, first))
            self._insert(connection, rows)
            if not rows:
                self._put_mark(connection, trimmed, first)
        self._trail.drop(cut)
        for version, size, last in written:
            self._trail.add(version, size, last)
        self._first = first
        self._next += len(rows)
        self._log_bytes += sum(size for _, size, _ in written) + 3 * PAGE_BYTES

    def _rows(
        self, changes: Iterable[Change], first: int, trimmed: int
    ) -> tuple[list[bytes], list[tuple[int, int, int]]]:
        rows: list[bytes] = []
        written = []
        for change in changes:
            seq = self._next + len(rows)
            parts = encode(change, self._store_id, seq, first, trimmed)
            rows += parts
            written.append((change.version, sum(map(len, parts)), seq + len(parts) - 1))
        return rows, written

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[bytes]) -> None:
        done = 0
        for size, statement in _INSERTS.items():
            while len(rows) - done >= size:
                values: list[object] = []
                for number in range(done, done + size):
                    values += (self._next + number, rows[number])
                connection.execute(statement, values)
                done += size

    def _put_mark(
        self, connection: sqlite3.Connection, trimmed: int, first: int | None = None
    ) -> None:
        mark = encode_mark(self._store_id, self._next, first or self._first, trimmed)
        connection.execute(_MARK, (mark,))

    def can_trim(self, trimmed: int) -> bool:
        """Whether something that PostgreSQL has is still there."""
        return self._trail.count_to(trimmed) > 0

    def tidy(self, trimmed: int) -> None:
        """A checkpoint, if the log is long."""
        if self._log_bytes >= _LOG_BYTES_MAX:
            self._checkpoint(trimmed)

    def _checkpoint(self, trimmed: int) -> None:
        # The mark first: without the log it is what tells of damage to the last records.
        with self._transaction() as connection:
            self._put_mark(connection, trimmed)
        self._empty_log(connection)

    def _empty_log(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._log_bytes = 0
        self._has_leftovers = False

    def try_again(self, trimmed: int, wanted_bytes: int) -> None:
        """After a full disk: returns if there is room again, else raises as ``write`` does."""
        connection = self._connection
        if connection is None or self._trail.count_to(trimmed) == len(self._trail):
            self.create()  # frees what the journal itself took
        else:
            self._empty_log(connection)
            self.write((), trimmed)
        disk = shutil.disk_usage(self._directory)
        if disk.free < min(wanted_bytes, disk.total // 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        assert connection is not None, "created first"  # noqa: S101 - our own error
        if self._has_leftovers:  # a shorter transaction would not cover them: they look like damage
            self._empty_log(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            self._has_leftovers = True
            # SQLite has rolled back by itself what it could not write. Of a file that failed,
            # nothing more is touched.
            if is_full(error) and connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def close(self, trimmed: int, *, keep: bool) -> None:
        """Ends with all records in the file; or leaves it to be removed."""
        if not keep or self._connection is None:
            self._abandon()
            return
        try:
            self._checkpoint(trimmed)
        except sqlite3.Error as error:  # then the records stay in the log
            if not is_full(error):
                raise
        self._connection.close()

    def leave(self) -> None:
        """Never touches the file again, nor lets SQLite do so.

        Whenever a connection is closed, SQLite makes a checkpoint, and Python closes those nobody
        refers to. The switch against it (SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE) came with Python 3.12.
        """
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None

    def _abandon(self) -> None:
        # Without its file SQLite has nothing to write when it closes.
        if self._connection is not None:
            self._path.unlink(missing_ok=True)
            self._connection.close()
            self._connection = None
