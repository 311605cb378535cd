"""What the commands ``itemstore keys create|list|revoke`` do and tell.

Without ``--url`` they write straight into the database: so the first key can be made before there
is a server, and one be revoked while none runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote

import structlog
from pydantic import ByteSize, TypeAdapter
from rich.console import Console
from rich.table import Table

from itemstore.asking import NoAnswer, Server, ask
from itemstore.core.caller import ROLES
from itemstore.core.item import microseconds, timestamp
from itemstore.database import database
from itemstore.errors import InvalidItem, ItemStoreError
from itemstore.keyring import Keyring
from itemstore.settings import Settings, seconds
from itemstore.storage import StorageError
from itemstore.storage.postgres import Postgres
from itemstore.web.keys import shown

_COLUMNS: Final = ("id", "name", "role", "prefix", "items", "bytes", "created", "expires")
_sizes: Final = TypeAdapter(ByteSize)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The key to be made, as it was asked for."""

    name: str
    role: str
    prefix: str
    expires: str  #: a time from now; empty for never
    max_items: int | None  #: None for no quota
    max_bytes: str  #: a size; empty for no quota


def create(settings: Settings, wanted: Wanted, url: str, token: str) -> int:
    """Makes a key and prints it. Returns 1 if it cannot be made."""

    async def add(keyring: Keyring) -> dict[str, Any]:
        if wanted.role not in ROLES:
            raise InvalidItem(f"--role is one of {', '.join(ROLES)}.")
        expires = _expiry(wanted.expires)
        expires_us = None if expires is None else microseconds(expires)
        key, made = await keyring.add(
            wanted.name,
            ROLES[wanted.role],
            wanted.prefix,
            expires_us,
            max_items=wanted.max_items,
            max_bytes=_size(wanted.max_bytes),
        )
        return {**shown(key), "key": made}

    def tell(console: Console) -> None:
        if url:
            value = {
                "name": wanted.name,
                "role": wanted.role,
                "prefix": wanted.prefix,
                "expires_at": _expiry(wanted.expires),
                "max_items": wanted.max_items,
                "max_bytes": _size(wanted.max_bytes),
            }
            made = ask(Server(url, token), "/keys", "POST", value)
        else:
            made = _with_keyring(settings, add)
        console.print(made["key"], markup=False)
        Console(stderr=True).print(
            f"Keep it now: it is not shown again. Its id is {made['id']}.", markup=False
        )

    return _told(tell)


def show(settings: Settings, url: str, token: str) -> int:
    """Prints the keys there are. Returns 1 if nobody can be asked."""

    async def find(keyring: Keyring) -> list[dict[str, Any]]:
        return [shown(key) for key in await keyring.all()]

    def tell(console: Console) -> None:
        found = ask(Server(url, token), "/keys")["keys"] if url else _with_keyring(settings, find)
        if not found:
            console.print("There is no key yet. Make one: itemstore keys create <name>")
            return
        table = Table(*_COLUMNS, box=None)
        now = timestamp(int(time.time() * 1e6)).decode()
        for each in found:
            expires = each["expires_at"] or "never"
            expires += " (over)" if expires < now else ""
            quota = (_most(each["max_items"]), _most(each["max_bytes"]))
            table.add_row(
                *(each[name] for name in ("id", "name", "role", "prefix")),
                *(*quota, each["created_at"], expires),
            )
        console.print(table, markup=False)

    return _told(tell)


def revoke(settings: Settings, key_id: str, url: str, token: str) -> int:
    """Revokes a key. Returns 1 if there is none of this id."""

    def tell(console: Console) -> None:
        if url:
            ask(Server(url, token), f"/keys/{quote(key_id, safe='')}", "DELETE")
        else:
            _with_keyring(settings, lambda keyring: keyring.revoke(key_id))
        console.print(f"{key_id} is revoked; every instance knows within 5 s.", markup=False)

    return _told(tell)


def _expiry(given: str) -> str | None:
    """The time of day it comes to. Raises InvalidItem."""
    if not given:
        return None
    try:
        return timestamp(int((time.time() + seconds(given)) * 1e6)).decode()
    except (ValueError, OverflowError):
        raise InvalidItem("--expires is a time from now, such as 12h or 90d.") from None


def _size(given: str) -> int | None:
    """In bytes. Raises InvalidItem."""
    if not given:
        return None
    try:
        return int(_sizes.validate_python(given))
    except (ValueError, OverflowError):
        raise InvalidItem("--max-bytes is a size, such as 10MiB.") from None


def _most(quota: int | None) -> str:
    return "" if quota is None else f"up to {quota:,}"


def _with_keyring(settings: Settings, call: Callable[[Keyring], Coroutine[Any, Any, T]]) -> T:
    """What the call returns, over the keys in the database. Raises ItemStoreError, StorageError."""

    async def run() -> T:
        async with database(settings.database_url, settings.embedded_dir) as dsn:
            storage = Postgres(settings.database_unpooled_url or dsn)
            try:
                await storage.open()
                quiet = structlog.wrap_logger(None, processors=[_drop])
                return await call(Keyring(storage.keys, quiet))
            finally:
                await storage.close()

    return asyncio.run(run())


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


def _told(tell: Callable[[Console], None]) -> int:
    console = Console(highlight=False, soft_wrap=True)
    try:
        tell(console)
    except StorageError as error:
        reason = f"PostgreSQL: {error}"
    except ItemStoreError as error:
        reason = error.detail
    except NoAnswer as error:
        reason = str(error)
    except (KeyError, TypeError):
        reason = "What answers there is not an itemstore, or not this version."
    else:
        return 0
    console.print(reason, style="red", markup=False)
    return 1
