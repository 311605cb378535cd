"""What the commands ``itemstore index create|list|drop`` do and tell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.table import Table

from itemstore.core.index import parse_index
from itemstore.database import database
from itemstore.errors import ItemStoreError
from itemstore.settings import Settings
from itemstore.storage import StorageError, StorageRefused
from itemstore.storage.indexing import create, drop, find


def index_create(settings: Settings, field: str, kind: str) -> int:
    """Makes an index and prints its name. Returns 1 if it cannot be made."""

    async def tell(dsn: str, console: Console) -> int:
        index = parse_index(field, kind)
        console.print(f"Building {index.name}. Stores go on meanwhile.", markup=False)
        is_new = await create(dsn, index, lambda percent: console.print(f"  {percent} %"))
        console.print(f"{index.name} {'is ready' if is_new else 'was there already'}.")
        return 0

    return _told(settings, tell)


def index_list(settings: Settings) -> int:
    """Prints the indexes that were made. Returns 1 if PostgreSQL cannot be asked."""

    async def tell(dsn: str, console: Console) -> int:
        found = await find(dsn)
        if not found:
            console.print("There is no index yet. Make one: itemstore index create data.<path>")
            return 0
        shown = Table("name", "field and type", "state", "size", "scans", box=None)
        for each in found:
            state = "valid" if each.is_valid else "invalid: create it again, or drop it"
            state = state if each.building is None else f"building, {each.building} %"
            size = f"{each.size / 1024 / 1024:,.1f} MiB"
            shown.add_row(each.name, each.made_for, state, size, f"{each.scans:,}")
        console.print(shown, markup=False)
        return 0

    return _told(settings, tell)


def index_drop(settings: Settings, name: str) -> int:
    """Drops an index. Returns 1 if there is none of this name."""

    async def tell(dsn: str, console: Console) -> int:
        if not await drop(dsn, name):
            console.print(
                f"There is no index {name!r}. See: itemstore index list", style="red", markup=False
            )
            return 1
        console.print(f"{name} is dropped.", markup=False)
        return 0

    return _told(settings, tell)


def _told(settings: Settings, tell: Callable[[str, Console], Awaitable[int]]) -> int:
    """Runs it over the database; 1, with the reason, if that does not work."""
    console = Console(highlight=False, soft_wrap=True)

    async def run() -> int:
        async with database(settings.database_url, settings.embedded_dir) as dsn:
            return await tell(settings.database_unpooled_url or dsn, console)

    try:
        return asyncio.run(run())
    except StorageRefused as error:
        reason = f"PostgreSQL: {error}\nAn item that another hand stored cannot be read. Find it:\n"
        reason += "  SELECT id FROM items WHERE NOT itemstore_is_sound(data)"
    except StorageError as error:
        reason = f"PostgreSQL: {error}"
    except ItemStoreError as error:
        reason = error.detail
    console.print(reason, style="red", markup=False)
    return 1
