"""Walks through a storage as the preload does."""

from __future__ import annotations

from itemstore.core.cache import Row
from itemstore.storage import Storage


async def walk(storage: Storage) -> list[Row]:
    """Every item a walk brings, in the order in which it does; twice where it does."""
    rows: list[Row] = []
    position: int | None = 0
    while position is not None:
        page, position = await storage.page(position)
        rows += page
    return rows


async def items(storage: Storage) -> list[Row]:
    """All items by the bytes of their ids, each in its newest state."""
    return sorted(dict(await walk(storage)).items(), key=lambda row: row[0].encode())
