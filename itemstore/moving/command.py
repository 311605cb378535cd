"""The commands ``import`` and ``export``: what was asked for is put together, run, and told.

Exit codes: 0 all is done; 1 something was rejected, or it could not go on; 2 wrong usage; 130 and
143 after SIGINT and SIGTERM, with what is confirmed kept to go on from.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import aiohttp
from rich.console import Console

from itemstore.core.operation import Conflict
from itemstore.errors import ItemStoreError, MovingError, WrongUsage
from itemstore.moving.checkpoint import SUFFIX, Checkpoint
from itemstore.moving.direct import Direct, store_database
from itemstore.moving.display import Display
from itemstore.moving.exporting import ExportOptions, export
from itemstore.moving.importing import Importing
from itemstore.moving.mapping import Columns, Mapping
from itemstore.moving.record import Target
from itemstore.moving.rejects import Rejects
from itemstore.moving.remote import SILENCE_MAX_S, Remote
from itemstore.moving.source import Source
from itemstore.moving.sources import Choice, source
from itemstore.moving.tables import database_name
from itemstore.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What ``itemstore import`` was asked for."""

    choice: Choice
    columns: Columns
    conflict: Conflict
    server: str
    token: str
    dry_run: bool
    restart: bool
    rejects: Path | None


def run_import(settings: Settings, options: ImportOptions) -> int:
    """Imports. Returns the exit code."""
    return _told(lambda console: asyncio.run(_import(settings, options, console)))


def run_export(settings: Settings, options: ExportOptions) -> int:
    """Exports. Returns the exit code."""

    def run(console: Console) -> int:
        console.print(f"{asyncio.run(export(settings, options)):,} items")
        return 0

    return _told(run)


def _told(run: Callable[[Console], int]) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return run(console)
    except WrongUsage as error:
        console.print(error.detail, style="red", markup=False)
        return 2
    except ItemStoreError as error:
        console.print(error.detail, style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted. Repeat the same command.")
        return 130


# --- import


async def _import(settings: Settings, options: ImportOptions, console: Console) -> int:
    if options.dry_run and options.server:
        raise WrongUsage("--dry-run looks into the database: it does not go with --server.")
    origin = source(options.choice, options.token)
    checkpoint = _checkpoint(origin, settings, options)
    if not options.restart and not options.dry_run and checkpoint.resume():
        console.print(f"Going on after row {checkpoint.row:,}.")
    mapping = Mapping(options.columns, options.conflict, origin.id_key)
    async with AsyncExitStack() as stack:
        rejects = stack.enter_context(Rejects(options.rejects, checkpoint.rejects_bytes))
        target = await stack.enter_async_context(_target(settings, options))
        display = stack.enter_context(Display("import", origin.total))
        importing = Importing(origin, mapping, target, checkpoint, rejects, display)
        try:
            stopped = await importing.run()
        except MovingError as error:
            raise type(error)(f"{error.detail}\n{_how_to_go_on(checkpoint)}") from error
    _summary(console, checkpoint, rejects, dry_run=options.dry_run)
    if stopped is None:
        return 1 if checkpoint.tally.rejected else 0
    console.print(_how_to_go_on(checkpoint))
    return 128 + stopped


@asynccontextmanager
async def _target(settings: Settings, options: ImportOptions) -> AsyncIterator[Target]:
    """Raises MovingError."""
    if options.server:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_MAX_S, sock_connect=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Remote(session, options.server, options.conflict, options.token)
        return
    async with (
        store_database(settings) as dsn,
        Direct.open(
            dsn,
            settings.database_unpooled_url,
            settings.lease_time,
            dry=options.dry_run,
        ) as target,
    ):
        yield target


def _checkpoint(origin: Source, settings: Settings, options: ImportOptions) -> Checkpoint:
    """Beside a file; for an address among the user's files of this kind (XDG_STATE_HOME)."""
    named = {
        "target": options.server or _database_name(settings),
        "conflict": str(options.conflict),
        **{
            name: list(v) if isinstance(v, tuple) else v
            for name, v in asdict(options.columns).items()
        },
    }
    path = None
    if origin.identity is not None and not options.dry_run:
        path = Path(f"{options.choice.name}{SUFFIX}")
        if "://" in options.choice.name or "=" in options.choice.name:
            home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
            name = blake2b(repr(origin.identity).encode(), digest_size=16).hexdigest()
            path = Path(home, "itemstore", f"{name}{SUFFIX}")
    return Checkpoint(path, origin.identity, named)


def _database_name(settings: Settings) -> str:
    if settings.database_url is None:
        return f"embedded {settings.embedded_dir or ''}"
    return database_name(settings.database_url)


def _summary(console: Console, checkpoint: Checkpoint, rejects: Rejects, *, dry_run: bool) -> None:
    tally = checkpoint.tally
    title = "Nothing was written; it would be: " if dry_run else ""
    counted = ", ".join(f"{number:,} {name}" for name, number in asdict(tally).items() if number)
    console.print(f"{title}{tally.rows:,} rows: {counted or 'nothing'}")
    for number, reason, _ in rejects.first:
        console.print(f"  row {number:,}: {reason}", markup=False)
    if tally.rejected > len(rejects.first):
        where = rejects.path or "them all with --rejects FILE"
        console.print(
            f"  and {tally.rejected - len(rejects.first):,} more: see {where}", markup=False
        )


def _how_to_go_on(checkpoint: Checkpoint) -> str:
    if checkpoint.path is None:
        return (
            f"Stopped after row {checkpoint.row:,}. This source cannot be resumed; importing it "
            "again leaves what is in as it is."
        )
    return f"Stopped after row {checkpoint.row:,}. Repeat the same command to go on from there."
