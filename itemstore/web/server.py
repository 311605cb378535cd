"""The process that serves: listens, starts the store, and on SIGTERM stops in order.

take the port → embedded database, if it is to be → listen → connect (503 until then) → serve
SIGTERM → stop listening → finish requests → empty the write queue → close
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from itemstore import descriptors, terminal
from itemstore.access import Access, access
from itemstore.database import database, default_data_dir
from itemstore.deployment import journal_dir
from itemstore.errors import StartupError
from itemstore.keyring import Keyring
from itemstore.log import LineWriter, server_logger
from itemstore.settings import Settings
from itemstore.storage import StorageError
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.surroundings import Surroundings
from itemstore.web.access import GUARD, Guard
from itemstore.web.app import make_app
from itemstore.web.bodies import Bodies
from itemstore.web.browsers import BROWSERS, Browsers
from itemstore.web.connection import Connection
from itemstore.web.door import DOOR, Door
from itemstore.web.items import STORE
from itemstore.web.lane import Lane
from itemstore.web.limits import LIMITS, Limits
from itemstore.web.numbers import TRAFFIC
from itemstore.web.shared import Shared
from itemstore.web.traffic import Kind

#: Longer than a proxy keeps idle connections, or it sends requests into one just closed: Railway's
#: edge keeps them for 60 s.
KEEPALIVE_TIMEOUT_S: Final = 75.0
LINGERING_TIME_S: Final = 2.0  # how long the rest of a refused body is read
BACKLOG: Final = 1_024  # connections not yet accepted
#: Of SHUTDOWN_TIMEOUT, what requests may take; the rest is for the write queue.
REQUESTS_SHARE: Final = 0.3
LOST_IDS_MAX: Final = 1_000  # named in the log


async def serve(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code: 0 if everything accepted is written.

    Raises StartupError.
    """
    hide = settings.redaction()
    log, lines = server_logger(settings.log_level, settings.log_format, hide=hide)
    try:
        async with AsyncExitStack() as stack:
            allowed = access(settings)
            sock = stack.enter_context(closing(listening_socket(allowed.host, settings.port)))
            dsn = await stack.enter_async_context(
                database(settings.database_url, settings.embedded_dir)
            )
            options = settings.options(journal_dir(settings))
            storage = _storage(dsn, settings)
            store = ItemStore(storage, options, log=log)
            runner = web.AppRunner(
                _app(store, storage, settings, allowed),
                access_log=None,
                shutdown_timeout=settings.shutdown_timeout * REQUESTS_SHARE,
            )
            await runner.setup()
            listener = await listen(runner, sock, fast_lane=settings.fast_lane)
            stopping = _Stopping()
            try:
                await _run(store, _Place(settings, allowed, sock), lines, stopping)
            finally:
                drain = _drain(store, runner, listener, settings.shutdown_timeout, stopping)
                left = await drain
    finally:
        lines.close()
    return 1 if left or store.has_failed else 0


class _Place:
    """Where the server is reached and where its data lies, in words."""

    def __init__(self, settings: Settings, allowed: Access, sock: socket.socket) -> None:
        self.url = f"http://{settings.host or 'localhost'}:{sock.getsockname()[1]}"
        self.auth, self.reach = allowed.auth, allowed.reach
        self.data = (
            "the database of DATABASE_URL"
            if settings.database_url
            else f"{_data_dir(settings)} (embedded PostgreSQL)"
        )


def _data_dir(settings: Settings) -> Path | None:
    """Where files of ours lie; None if there are none."""
    if settings.database_url is None:
        return settings.embedded_dir or default_data_dir()
    return settings.embedded_dir


def _storage(dsn: str, settings: Settings) -> Postgres:
    try:
        return Postgres(dsn, direct_dsn=settings.database_unpooled_url)
    except StorageError as error:
        raise StartupError(str(error)) from error


def _app(
    store: ItemStore, storage: Postgres, settings: Settings, allowed: Access
) -> web.Application:
    per_address, room = settings.connections_max_per_address, descriptors.room()
    if settings.connections_max > room:
        store.log.warning("connections_limited", wanted=settings.connections_max, max=room)
    return make_app(
        store,
        guard=_guard(allowed, storage, store.log),
        limited=_limits(settings, store.log),
        around=Surroundings(storage, _data_dir(settings)),
        door=Door(min(settings.connections_max, room), per_address),
        browsers=Browsers(settings.cors_origins),
        bodies=Bodies(settings.bodies_max_bytes),
        docs=settings.docs,
    )


def _guard(allowed: Access, storage: Postgres, log: FilteringBoundLogger) -> Guard:
    tokens = None
    if allowed.issuer is not None:
        from itemstore.issuer import Tokens  # here: who takes no tokens needs no cryptography

        tokens = Tokens(allowed.issuer, log)
    return Guard(allowed, Keyring(storage.keys, log), tokens)


def _limits(settings: Settings, log: FilteringBoundLogger) -> Limits:
    rates = {
        Kind.READ: settings.rate_limit_read,
        Kind.WRITE: settings.rate_limit_write,
        Kind.HEAVY: settings.rate_limit_heavy,
    }
    given = {kind: rate for kind, rate in rates.items() if rate is not None}
    return Limits(
        given,
        failures=settings.rate_limit_failures,
        trust=settings.trust_proxy,
        shared=Shared(settings.redis_url, log) if settings.redis_url and given else None,
    )


class _Stopping:
    """The signals: the first stops in order, repeated ones change nothing, a second Ctrl-C hurries.

    Platforms may send SIGTERM more than once; only a person says that waiting is no use.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)

    def _interrupt(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


async def _run(store: ItemStore, place: _Place, lines: LineWriter, stopping: _Stopping) -> None:
    """Starts the store; returns when the process is told to stop, or has to."""
    start = asyncio.create_task(store.start())
    stop = asyncio.create_task(stopping.asked.wait())
    failure = asyncio.create_task(store.failure())
    tasks: list[asyncio.Task[Any]] = [start, stop, failure]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            start.result()
            store.log.info(
                "serving",
                url=place.url,
                data=place.data,
                lease=store.lease.state,
                auth=place.auth,
                reach=place.reach,
            )
            if lines.is_console:
                lines.msg(terminal.banner(place.url, place.data, place.auth, place.reach))
            tasks.append(asyncio.create_task(terminal.show_preload(store)))
            await asyncio.wait([stop, failure], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def listen(
    runner: web.AppRunner, sock: socket.socket, *, fast_lane: bool = True
) -> asyncio.Server:
    """Serves the runner's application, which ``make_app`` made."""
    loop = asyncio.get_running_loop()
    manager = runner.server
    if manager is None:
        raise RuntimeError("the runner is not set up")
    app = runner.app
    traffic = app[TRAFFIC]
    lane = None
    if fast_lane:
        lane = Lane(
            app[STORE], traffic, guard=app[GUARD], limits=app[LIMITS], browsers=app[BROWSERS]
        )

    def connection() -> Connection:
        return Connection(
            manager,
            lane=lane,
            traffic=traffic,
            door=app[DOOR],
            loop=loop,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=LINGERING_TIME_S,
            access_log=None,
            auto_decompress=False,  # compressed bodies are refused, not inflated
        )

    return await loop.create_server(connection, sock=sock, backlog=BACKLOG)


def listening_socket(host: str | None, port: int) -> socket.socket:
    """Bound, not yet listening. Without a host, one socket for IPv4 and IPv6.

    Asyncio's own ``::`` would take IPv6 alone. Raises StartupError.
    """
    try:
        if host is None and socket.has_dualstack_ipv6():
            return _bound(socket.AF_INET6, "::", port, dual=True)
        if host is None:
            return _bound(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 - it is a server
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _bound(family, str(address[0]), port)
    except OSError as error:
        raise StartupError(
            f"Cannot listen on {host or 'all addresses'}, port {port}: {error.strerror or error}. "
            "Set PORT or HOST to what is free here."
        ) from error


def _bound(family: int, address: str, port: int, *, dual: bool = False) -> socket.socket:
    return socket.create_server(
        (address, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual
    )


async def _drain(
    store: ItemStore,
    runner: web.AppRunner,
    listener: asyncio.Server,
    time_limit_s: float,
    stopping: _Stopping,
) -> list[str]:
    """Returns the ids that could not be written, having logged them."""
    started = time.monotonic()
    store.log.info("stopping", dirty=len(store.queue))
    listener.close()
    store.lease.refuse()
    await runner.cleanup()
    left_s = time_limit_s - (time.monotonic() - started)
    left = await store.close(left_s, hurry=stopping.hurried)
    tell = store.log.error if left else store.log.info
    tell("stopped", lost=len(left), ids=left[:LOST_IDS_MAX], s=round(time.monotonic() - started, 3))
    return left


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop of this name (EVENT_LOOP). Raises StartupError."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # not needed before, and not there on every platform
    except ImportError:
        if name == "auto":
            return asyncio.new_event_loop
        raise StartupError(
            "EVENT_LOOP is uvloop, which is not installed. Install uvloop, or set it to auto."
        ) from None
    return uvloop.new_event_loop


def main(settings: Settings) -> int:
    """Returns the exit code."""
    gc.freeze()  # what is there by now stays: it need not be looked through again and again
    try:
        with asyncio.Runner(loop_factory=loop_factory(settings.event_loop)) as runner:
            return runner.run(serve(settings))
    except StartupError as error:
        hide = settings.redaction()
        sys.stderr.write(f"itemstore cannot start: {hide(error.detail)}\n")
        return 1
