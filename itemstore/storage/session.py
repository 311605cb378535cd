"""One connection to PostgreSQL that is opened again after it broke, and what its errors mean."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from itemstore.storage import (
    StorageAway,
    StorageBroken,
    StorageDown,
    StorageError,
    StorageRefused,
    StorageSlow,
    statements,
)

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 10.0
BURIAL_MAX_S: Final = 10.0  # psycopg gives up cancelling after 5 s
LOST_SESSION_WAIT_MS: Final = 5_000
PREPARE_THRESHOLD: Final = 2  # times a statement is sent before its plan is kept

#: Connecting fails without an SQLSTATE, whatever the server said; these never pass by waiting.
_HOPELESS: Final = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "invalid connection option",
)

#: The server is there, and says that it lets nobody in: it is starting, stopping or recovering.
_DOWN: Final = "the database system is"
#: Nobody listens at the server's own socket. Of a TCP port this says nothing: a pooler or proxy may
#: be down for us alone, or the name may lead others to another server already.
_DOWN_HERE: Final = ("Connection refused", "No such file or directory")

#: A prepared statement is not there, or is there already: the session is not ours alone.
_POOLED: Final = ("26", "42P05")
_AWAY: Final = ("08", "40", "53", "57P", "58", "25006", *_POOLED)
_SHUTDOWN: Final = ("57P02", "57P03")
_SLOW: Final = ("55P03", "57014")
_REFUSED: Final = ("22", "23", "54")


def classify(error: Exception) -> StorageError:
    """What the engine can do about it, by SQLSTATE.

    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return _class_of(error)(_text_of(error))


def _class_of(error: Exception) -> type[StorageError]:
    if isinstance(error, TimeoutError):
        return StorageSlow
    if isinstance(error, UnicodeError):  # raised by the driver before anything is sent
        return StorageRefused
    if isinstance(error, OSError):
        return StorageAway
    if not isinstance(error, psycopg.Error):
        return StorageBroken
    state = error.sqlstate
    if state is None:
        return _class_without_state(error)
    for states, kind in (
        (_SLOW, StorageSlow),
        (_SHUTDOWN, StorageDown),
        (_AWAY, StorageAway),
        (_REFUSED, StorageRefused),
    ):
        if state.startswith(states):
            return kind
    return StorageBroken


def _class_without_state(error: psycopg.Error) -> type[StorageError]:
    if isinstance(error, psycopg.DataError):
        return StorageRefused
    if _is_down(str(error)):
        return StorageDown
    if any(text in str(error) for text in _HOPELESS):
        return StorageBroken
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StorageAway
    return StorageBroken


def _is_down(message: str) -> bool:
    at_its_socket = "on socket" in message and any(text in message for text in _DOWN_HERE)
    return at_its_socket or _DOWN in message


def _text_of(error: Exception) -> str:
    """One line; psycopg's messages carry the statement's position below the first."""
    state = getattr(error, "sqlstate", None)
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{first_line} ({state})" if state else first_line


def conninfo(dsn: str, name: str) -> str:
    """The DSN with our defaults, where it does not say otherwise.

    A server that went away without a word is noticed after about 10 to 20 s.
    Raises StorageBroken if it is not a connection string.
    """
    try:
        given = conninfo_to_dict(dsn)
        for port in str(given.get("port") or "").split(","):  # libpq itself finds out too late
            int(port or 0)
    except (psycopg.ProgrammingError, ValueError):  # libpq quotes it, password and all
        raise StorageBroken(
            "DATABASE_URL is not a connection string: give "
            "postgresql://user:password@host:port/database, what is special in the password "
            "percent-encoded."
        ) from None
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "gssencmode": "disable",
    }
    # Rows are packed by the server in the connection's encoding: it must be the one we read.
    ours = {"application_name": name, "client_encoding": "UTF8"}
    return make_conninfo("", **{**defaults, **given, **ours})


class Session:
    """One connection of its own, opened again after it broke. Used by one task at a time.

    ``if_direct``: settings for a connection that no pooler hands round. It also keeps the plans of
    what is sent often: planning a small batch takes as long as carrying it out.
    """

    def __init__(self, dsn: str, name: str, *, on_connect: str = "", if_direct: str = "") -> None:
        self._conninfo = conninfo(dsn, name)
        self._name = name
        self._on_connect = on_connect
        self._if_direct = if_direct
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._was_lost = False
        self._burials: set[asyncio.Task[None]] = set()

    async def run(
        self,
        statement: str,
        parameters: dict[str, Any] | None = None,
        *,
        time_limit_s: float = READ_TIMEOUT_S,
        binary: bool = False,
        after: str = "",
    ) -> list[TupleRow]:
        """The rows. Raises StorageError; the connection is dropped unless it is surely sound.

        ``after`` these statements, in one transaction with them.

        The call is a task of its own, so that a server that is silent holds nobody up beyond the
        limit: psycopg takes some more seconds to cancel what it has sent.
        """
        call = asyncio.create_task(self._execute(statement, parameters, binary, after))
        try:
            done, _ = await asyncio.wait([call], timeout=time_limit_s)
        except BaseException:
            self._abandon(call)
            raise
        if not done:
            self._abandon(call)
            raise StorageSlow(f"no answer within {time_limit_s:g} s")
        try:
            return call.result()
        except StorageError:
            raise
        except Exception as error:
            failure = classify(error)
            if (getattr(error, "sqlstate", None) or "").startswith(_POOLED):
                self._if_direct = ""  # a pooler that passes for the server
            if not isinstance(failure, StorageRefused | StorageBroken):
                self._was_lost = True
                await self.close()
            raise failure from error

    async def _execute(
        self, statement: str, parameters: dict[str, Any] | None, binary: bool, after: str
    ) -> list[TupleRow]:
        connection = await self._connected()
        cursor = connection.cursor(binary=binary)
        async with connection.transaction() if after else nullcontext():
            if after:
                await cursor.execute(after.encode())
            await cursor.execute(statement.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    def _abandon(self, call: asyncio.Task[list[TupleRow]]) -> None:
        """What was sent may still take effect; the next call has a connection of its own."""
        self._was_lost = True
        connection, self._connection = self._connection, None
        call.cancel()
        burial = asyncio.create_task(_bury(call, connection))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)

    async def notified(self, time_limit_s: float) -> None:
        """Returns at a notification or after the time limit. Raises StorageError."""
        try:
            connection = await self._connected()
            async for _ in connection.notifies(timeout=time_limit_s, stop_after=1):
                pass
        except Exception as error:
            await self.close()
            raise classify(error) from error

    async def close(self) -> None:
        """Ends the connection. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def end(self) -> None:
        """Ends it for good."""
        await self.close()
        if self._burials:
            await asyncio.wait(self._burials, timeout=BURIAL_MAX_S)

    async def _connected(self) -> psycopg.AsyncConnection[TupleRow]:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=None
            )
            try:
                if self._was_lost:
                    await self._end_lost_sessions(connection)
                if self._on_connect:
                    await connection.execute(self._on_connect.encode())
                if self._if_direct and await _is_direct(connection):
                    await connection.execute(self._if_direct.encode())
                    connection.prepare_threshold = PREPARE_THRESHOLD
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
            self._was_lost = False
        return self._connection

    async def _end_lost_sessions(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        for _ in range(2):  # one that ended by itself meanwhile counts as not ended, the first time
            cursor = await connection.execute(
                statements.END_LOST_SESSIONS.encode(),
                {"name": self._name, "wait_ms": LOST_SESSION_WAIT_MS},
            )
            if await cursor.fetchone() == (True,):
                return
        raise StorageAway("the session of a lost connection is still busy")


async def _is_direct(connection: psycopg.AsyncConnection[TupleRow]) -> bool:
    """A pooler gives out a process id of its own making, to cancel by."""
    cursor = await connection.execute(statements.BACKEND.encode())
    return await cursor.fetchone() == (connection.info.backend_pid,)


async def _bury(
    call: asyncio.Task[Any], connection: psycopg.AsyncConnection[TupleRow] | None
) -> None:
    await asyncio.wait([call])
    if not call.cancelled():
        call.exception()  # nobody asks any more
    if connection is not None:
        await connection.close()
