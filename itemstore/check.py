"""What ``itemstore check`` looks at before a start: settings, platform, PostgreSQL, memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from itemstore import memory
from itemstore.access import access
from itemstore.database import database
from itemstore.deployment import journal_dir
from itemstore.errors import StartupError
from itemstore.finding import Finding, Verdict, told
from itemstore.settings import SECRET, Settings, table
from itemstore.storage import Server, StorageError
from itemstore.storage.postgres import CONNECTIONS_MAX, SCHEMA_VERSION, Postgres


def check(settings: Settings) -> int:
    """Prints the findings. Returns 1 if one is a failure."""
    return int(asyncio.run(told(_findings(settings), settings.redaction())) is Verdict.FAIL)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    yield _settings_found()
    yield _access(settings)
    yield _durability(settings)
    for finding in platform(settings):
        yield finding
    try:
        async with database(settings.database_url, settings.embedded_dir) as dsn:
            async for finding in _database(dsn, settings):
                yield finding
    except StartupError as error:
        yield Finding(
            Verdict.FAIL, f"embedded PostgreSQL: {error.detail}", "mend that, or set DATABASE_URL"
        )


def _settings_found() -> Finding:
    given = [
        f"{name}={'(set)' if name in SECRET else os.environ[name]}"
        for name in table()
        if os.environ.get(name)
    ]
    return Finding(Verdict.OK, f"settings: {', '.join(given) or 'all at their defaults'}")


def _access(settings: Settings) -> Finding:
    try:
        found = access(settings)
    except StartupError as error:
        return Finding(Verdict.FAIL, "nothing good says who may call", error.detail)
    if found.auth == "none" and settings.auth is not None:
        return Finding(
            Verdict.WARN,
            f"AUTH=none: whoever reaches {found.reach} may do everything",
            "set API_KEY, and make keys: itemstore keys create --help",
        )
    return Finding(Verdict.OK, f"AUTH is {found.auth}; it is reached from {found.reach}")


def _durability(settings: Settings) -> Finding:
    try:
        directory = journal_dir(settings)
    except StartupError as error:
        return Finding(Verdict.FAIL, "DURABILITY=journal cannot be given", error.detail)
    if directory is None:
        return Finding(
            Verdict.OK, "no journal: an OK to a write means committed, unless asked otherwise"
        )
    return Finding(Verdict.OK, f"journal in {directory}, at most {mib(settings.journal_max_bytes)}")


def platform(settings: Settings) -> list[Finding]:
    """What Railway says that is not as it should be; nothing elsewhere."""
    if settings.railway_environment_name is None:
        return []
    found = [_draining(settings)]
    if settings.database_url is None:
        found.append(
            Finding(
                Verdict.FAIL,
                "DATABASE_URL is not set, and a Railway container's own disk does not last",
                "add a PostgreSQL service and set DATABASE_URL=${{Postgres.DATABASE_URL}}",
            )
        )
    return found


def _draining(settings: Settings) -> Finding:
    """Only the variable is visible from inside; the same in railway.toml is not."""
    given = settings.railway_deployment_draining_seconds or ""
    draining_s = int(given) if given.isdecimal() else 0
    if draining_s > settings.shutdown_timeout:
        return Finding(Verdict.OK, f"Railway's drain time: {draining_s} s")
    return Finding(
        Verdict.WARN,
        f"Railway's drain time is {given or 'not set, which means 0'} s as far as this process can "
        f"see; emptying the write queue may take SHUTDOWN_TIMEOUT, {settings.shutdown_timeout:g} s",
        "set the service variable RAILWAY_DEPLOYMENT_DRAINING_SECONDS to a number of "
        f"{int(settings.shutdown_timeout) + 5} or more",
    )


async def _database(dsn: str, settings: Settings) -> AsyncIterator[Finding]:
    try:
        storage = Postgres(dsn, direct_dsn=settings.database_unpooled_url)
    except StorageError as error:
        yield Finding(Verdict.FAIL, str(error), "correct DATABASE_URL")
        return
    try:
        found = await storage.open()
        server = await storage.server()
    except StorageError as error:
        yield Finding(
            Verdict.FAIL,
            f"PostgreSQL: {error}",
            "check that it runs, and that DATABASE_URL has the right host, port, user and password",
        )
        return
    finally:
        await storage.close()
    yield Finding(Verdict.OK, f"PostgreSQL {server.version}, schema version {SCHEMA_VERSION}")
    for finding in server_settings(server):
        yield finding
    yield _memory(found.items_estimate, found.bytes_estimate, settings)
    if found.parked:
        yield Finding(
            Verdict.WARN,
            f"{len(found.parked)} items in quarantine: accepted, but refused by PostgreSQL",
            "itemstore quarantine list; then write corrected ones, retry or discard them",
        )


def server_settings(server: Server) -> list[Finding]:
    """What a PostgreSQL server says of itself."""
    found = []
    if server.in_recovery:
        found.append(
            Finding(
                Verdict.FAIL,
                "this server is a read-only standby",
                "name the primary in DATABASE_URL",
            )
        )
    for name, loss in (
        ("fsync", "a power loss can destroy the whole database"),
        ("full_page_writes", "a power loss can corrupt tables"),
        ("synchronous_commit", "a crash of PostgreSQL can lose writes that were answered OK"),
    ):
        given = getattr(server, name)
        if given == "off":
            found.append(
                Finding(Verdict.WARN, f"{name} is off: {loss}", f"ALTER SYSTEM SET {name} = on")
            )
        else:
            found.append(Finding(Verdict.OK, f"{name} is {given}"))
    used, most = server.connections, server.max_connections
    crowded = used + 2 * CONNECTIONS_MAX > most  # two instances run during a deploy
    found.append(
        Finding(
            Verdict.WARN if crowded else Verdict.OK,
            f"{used} of {most} connections in use; an instance takes up to {CONNECTIONS_MAX}, and "
            "two run in a deploy",
            "raise max_connections or close other clients" if crowded else "",
        )
    )
    return found


def _memory(items: int, data_bytes: int, settings: Settings) -> Finding:
    needed = memory.estimate(items, data_bytes)
    budget = memory.cache_bytes(settings.cache_max_bytes, settings.queue_max_bytes)
    what = f"about {items:,} items would take {mib(needed)} of the {mib(budget)} for the cache"
    if needed <= budget:
        return Finding(Verdict.OK, what)
    return Finding(
        Verdict.WARN,
        what,
        "give it more memory, or leave SKIP_ITEMS_PRELOAD at auto: items load on demand",
    )


def mib(size: int) -> str:
    """For a person."""
    return f"{size / 1024 / 1024:,.0f} MiB"
