"""The table of API keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from psycopg.rows import TupleRow

from itemstore.core.apikey import ApiKey
from itemstore.core.caller import ROLES
from itemstore.storage import statements

KEYS_MAX: Final = 10_000  # all are in the memory of every instance: some 5 MB

Run = Callable[[str, dict[str, Any]], Awaitable[list[TupleRow]]]


class KeyTable:
    """Each call raises StorageError."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def revision(self) -> int:
        """Grows with every change of the table."""
        [(revision,)] = await self._run(statements.KEYS_REVISION, {})
        return int(revision)

    async def all(self) -> list[ApiKey]:
        """The keys, oldest first; those that are over too."""
        rows = await self._run(statements.KEYS, {"limit": KEYS_MAX})
        return [
            ApiKey(key_id, digest, name, ROLES[role], *others)
            for key_id, digest, name, role, *others in rows
        ]

    async def add(self, key: ApiKey) -> bool:
        """Whether it was added: not if there are KEYS_MAX."""
        parameters = {
            "id": key.id,
            "digest": key.digest,
            "name": key.name,
            "role": key.role.name.lower(),
            "prefix": key.prefix,
            "created": key.created_us,
            "expires": key.expires_us,
            "max_items": key.max_items,
            "max_bytes": key.max_bytes,
            "most": KEYS_MAX,
        }
        return bool(await self._run(statements.ADD_KEY, parameters))

    async def remove(self, key_id: str) -> bool:
        """Whether there was one with this id."""
        return bool(await self._run(statements.REMOVE_KEY, {"id": key_id}))
