"""What the commands ``check``, ``stats`` and ``quarantine`` find out and tell."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from itemstore import memory
from itemstore.database import database
from itemstore.deployment import journal_dir
from itemstore.errors import StartupError
from itemstore.settings import SECRET, Settings, table
from itemstore.storage import StorageError
from itemstore.storage.postgres import CONNECTIONS_MAX, SCHEMA_VERSION, Postgres

_ANSWER_TIMEOUT_S = 15.0  # a write that is retried waits for its commit
_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``advice`` says what to do unless it is ok."""

    verdict: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


def check(settings: Settings) -> int:
    """Prints the findings. Returns 1 if one is a failure."""
    console = Console(highlight=False, soft_wrap=True)
    failed, hide = False, settings.redaction()

    async def tell() -> None:
        nonlocal failed
        async for finding in _findings(settings):
            failed |= finding.verdict == "fail"
            console.print(f"{_MARKS[finding.verdict]:>4}  {hide(finding.what)}")
            if finding.advice:
                console.print(f"      → {hide(finding.advice)}")

    asyncio.run(tell())
    return int(failed)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    yield _settings_found()
    yield _durability(settings)
    for finding in _platform(settings):
        yield finding
    try:
        async with database(settings.database_url, settings.embedded_dir) as dsn:
            async for finding in _database(dsn, settings):
                yield finding
    except StartupError as error:
        yield Finding(
            "fail", f"embedded PostgreSQL: {error.detail}", "mend that, or set DATABASE_URL"
        )


def _settings_found() -> Finding:
    given = [
        f"{name}={'(set)' if name in SECRET else os.environ[name]}"
        for name in table()
        if os.environ.get(name)
    ]
    return Finding("ok", f"settings: {', '.join(given) or 'all at their defaults'}")


def _durability(settings: Settings) -> Finding:
    try:
        directory = journal_dir(settings)
    except StartupError as error:
        return Finding("fail", "DURABILITY=journal cannot be given", error.detail)
    if directory is None:
        return Finding("ok", "no journal: an OK to a write means committed, unless asked otherwise")
    return Finding("ok", f"journal in {directory}, at most {_mib(settings.journal_max_bytes)}")


def _platform(settings: Settings) -> list[Finding]:
    if settings.railway_environment_name is None:
        return []
    found = [_draining(settings)]
    if settings.database_url is None:
        found.append(
            Finding(
                "fail",
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
        return Finding("ok", f"Railway's drain time: {draining_s} s")
    return Finding(
        "warn",
        f"Railway's drain time is {given or 'not set, which means 0'} s as far as this process can "
        f"see; emptying the write queue may take SHUTDOWN_TIMEOUT, {settings.shutdown_timeout:g} s",
        "set the service variable RAILWAY_DEPLOYMENT_DRAINING_SECONDS to a number of "
        f"{int(settings.shutdown_timeout) + 5} or more",
    )


async def _database(dsn: str, settings: Settings) -> AsyncIterator[Finding]:
    try:
        storage = Postgres(dsn, direct_dsn=settings.database_unpooled_url)
    except StorageError as error:
        yield Finding("fail", str(error), "correct DATABASE_URL")
        return
    try:
        found = await storage.open()
        server = await storage.server()
    except StorageError as error:
        yield Finding(
            "fail",
            f"PostgreSQL: {error}",
            "check that it runs, and that DATABASE_URL has the right host, port, user and password",
        )
        return
    finally:
        await storage.close()
    yield Finding("ok", f"PostgreSQL {server['version']}, schema version {SCHEMA_VERSION}")
    for finding in _server_settings(server):
        yield finding
    yield _memory(found.items_estimate, found.bytes_estimate, settings)
    if found.parked:
        yield Finding(
            "warn",
            f"{len(found.parked)} items in quarantine: accepted, but refused by PostgreSQL",
            "itemstore quarantine list; then write corrected ones, retry or discard them",
        )


def _server_settings(server: dict[str, Any]) -> list[Finding]:
    found = []
    if server["in_recovery"]:
        found.append(
            Finding(
                "fail", "this server is a read-only standby", "name the primary in DATABASE_URL"
            )
        )
    for name, loss in (
        ("fsync", "a power loss can destroy the whole database"),
        ("full_page_writes", "a power loss can corrupt tables"),
        ("synchronous_commit", "a crash of PostgreSQL can lose writes that were answered OK"),
    ):
        if server[name] == "off":
            found.append(Finding("warn", f"{name} is off: {loss}", f"ALTER SYSTEM SET {name} = on"))
        else:
            found.append(Finding("ok", f"{name} is {server[name]}"))
    used, most = server["connections"], server["max_connections"]
    crowded = used + 2 * CONNECTIONS_MAX > most  # two instances run during a deploy
    found.append(
        Finding(
            "warn" if crowded else "ok",
            f"{used} of {most} connections in use; an instance takes up to {CONNECTIONS_MAX}, and "
            "two run in a deploy",
            "raise max_connections or close other clients" if crowded else "",
        )
    )
    return found


def _memory(items: int, data_bytes: int, settings: Settings) -> Finding:
    needed = memory.estimate(items, data_bytes)
    budget = memory.cache_bytes(settings.cache_max_bytes, settings.queue_max_bytes)
    what = f"about {items:,} items would take {_mib(needed)} of the {_mib(budget)} for the cache"
    if needed <= budget:
        return Finding("ok", what)
    return Finding(
        "warn",
        what,
        "give it more memory, or leave SKIP_ITEMS_PRELOAD at auto: items load on demand",
    )


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:,.0f} MiB"


class _NoAnswer(Exception):
    """What the server at the URL did not do, as a person should read it."""


def _ask(url: str, path: str, method: str = "GET") -> Any:
    """The answer's JSON, None without a body. Raises _NoAnswer."""
    target = f"{url.rstrip('/')}{path}"
    try:
        if not target.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        request = urllib.request.Request(target, method=method)  # noqa: S310 - checked
        with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - checked
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise _NoAnswer(_problem(error)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _NoAnswer(
            f"No answer from {target}: {reason}\n"
            "Is it running? Name it with --url http://host:port."
        ) from error


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.url} answered {error.code} {error.reason}"


def _told(tell: Callable[[Console], None]) -> int:
    """Runs it; 1 if the server did not do its part."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        tell(console)
    except _NoAnswer as reason:
        console.print(str(reason), style="red", markup=False)
        return 1
    except (KeyError, TypeError, AttributeError):
        console.print("What answers there is not an itemstore, or not this version.", style="red")
        return 1
    return 0


def stats(url: str) -> int:
    """Prints the numbers of a running server. Returns 1 if there is none."""

    def tell(console: Console) -> None:
        shown = Table("what", "now", box=None)
        for name, value in _ask(url, "/stats").items():
            shown.add_row(name.removeprefix("itemstore_"), _number(name, value))
        console.print(shown)

    return _told(tell)


def quarantine_list(url: str) -> int:
    """Prints what is in quarantine. Returns 1 if the server does not answer."""

    def tell(console: Console) -> None:
        parked = _ask(url, "/quarantine")["items"]
        if not parked:
            console.print("Nothing is in quarantine.")
            return
        shown = Table("id", "version", "at", "what PostgreSQL said", box=None)
        for each in parked:
            shown.add_row(
                *map(escape, (each["id"], str(each["version"]), each["at"], each["error"]))
            )
        console.print(shown)
        console.print("Correct an item with PUT, or see: itemstore quarantine --help")

    return _told(tell)


def quarantine_show(url: str, item_id: str) -> int:
    """Prints one of them in full. Returns 1 if it is not there."""

    def tell(console: Console) -> None:
        console.print_json(data=_ask(url, f"/quarantine/{quote(item_id, safe='')}"))

    return _told(tell)


def quarantine_retry(url: str, item_id: str) -> int:
    """Has it written again. Returns 1 if PostgreSQL refuses it again, or it is not there."""

    def tell(console: Console) -> None:
        _ask(url, f"/quarantine/{quote(item_id, safe='')}", "POST")
        console.print(f"{item_id} is written.", markup=False)

    return _told(tell)


def quarantine_discard(url: str, item_id: str) -> int:
    """Has it given up. Returns 1 if it is not there."""

    def tell(console: Console) -> None:
        _ask(url, f"/quarantine/{quote(item_id, safe='')}", "DELETE")
        console.print(f"{item_id} is again as PostgreSQL has it.", markup=False)

    return _told(tell)


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value:,.0f} ({_mib(int(value))})"
    return f"{value:,.3f}" if "seconds" in name else f"{value:,.0f}"
