"""A walk over all items for the preload: as they lie on disk, then what changed meanwhile.

    blocks 0 … n, each read once and in order     an update moves a row to another block, perhaps
                                                  to one already read
    then what was not settled when it began       which brings every row that moved
    then: is the table still the same file?       else (VACUUM FULL, TRUNCATE) from the beginning

A position is a block and a place in it; below zero it is a version, of the second part.
"""

from __future__ import annotations

from typing import Final

from psycopg.rows import TupleRow

from itemstore.core.cache import Row
from itemstore.storage import statements
from itemstore.storage.session import Session

PAGE_BYTES: Final = 512 * 1024  # aimed at: turned into Python objects in about 5 ms
BLOCKS_FIRST: Final = 16
BLOCKS_MAX: Final = 256  # 2 MiB of table
PLACES: Final = 1 << 16  # in a block, more than there can be
#: Kept outside of the rows: from here on pages are cut by their bytes, which takes PostgreSQL
#: longer. A row of a megabyte is some forty bytes of its block.
OUTSIDE_BYTES: Final = 16 * 1024 * 1024
CHANGED_ITEMS: Final = 1_000
TIME_LIMIT_S: Final = 30.0


class Walk:
    """The promise of ``Storage.page``, kept with one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blocks = 0
        self._file = 0
        self._since = 0
        self._step = BLOCKS_FIRST
        self._is_wide = False

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        """Some items and the next position; None at the end. Raises StorageError; then again."""
        if position == 0:
            await self._begin()
        if 0 <= position < self._blocks * PLACES:
            return await self._read_blocks(position)
        return await self._read_changed(-position if position < 0 else self._since)

    async def _begin(self) -> None:
        [(self._blocks, self._file, settled, outside)] = await self._session.run(statements.WALK)
        self._since = max(1, settled)
        self._is_wide = outside > OUTSIDE_BYTES

    async def _read_blocks(self, position: int) -> tuple[list[Row], int | None]:
        first, place = divmod(position, PLACES)
        end = first + self._step
        rows, last = await self._between(f"({first},{place})", f"({end},0)")
        size = sum(len(entry) for _, entry in rows)
        if size < PAGE_BYTES // 2:
            self._step = min(2 * self._step, BLOCKS_MAX)
        elif size > 2 * PAGE_BYTES:
            self._step = max(1, self._step // 4)
        if last is not None:
            return rows, last + 1
        return rows, end * PLACES if end < self._blocks else -self._since

    async def _between(self, first: str, end: str) -> tuple[list[Row], int | None]:
        """The rows, and the position of the last one if there are more."""
        given: dict[str, object] = {"first": first, "end": end}
        if not self._is_wide:
            return await self._run(statements.BLOCKS, given), None
        found = await self._run(statements.BLOCKS_BY_SIZE, given | {"bytes_max": PAGE_BYTES})
        rows = [(item_id, entry) for item_id, entry, _, _ in found]
        if not found or found[-1][3] == len(found):
            return rows, None
        block, place = map(int, found[-1][2].strip("()").split(","))
        return rows, block * PLACES + place

    async def _read_changed(self, after: int) -> tuple[list[Row], int | None]:
        rows = await self._run(statements.CHANGES, {"after": after, "limit": CHANGED_ITEMS})
        items = [(item_id, entry) for item_id, entry, _ in rows if entry is not None]
        if len(rows) >= CHANGED_ITEMS:
            return items, -rows[-1][2]
        [(_, file, *_)] = await self._session.run(statements.WALK)
        return items, None if file == self._file else 0

    async def _run(self, statement: str, parameters: dict[str, object]) -> list[TupleRow]:
        return await self._session.run(
            statement, parameters, time_limit_s=TIME_LIMIT_S, binary=True
        )
