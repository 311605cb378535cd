"""A walk over all items for the preload: as they lie on disk, then what changed meanwhile.

    blocks 0 … n, each read once and in order     an update moves a row to another block, perhaps
                                                  to one already read
    then what was not settled when it began       which brings every row that moved
    then: is the table still the same file?       else (VACUUM FULL, TRUNCATE) from the beginning

A position is a block number; below zero it is a version, of the second part.
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

    async def page(self, position: int) -> tuple[list[Row], int | None]:
        """Some items and the next position; None at the end. Raises StorageError; then again."""
        if position == 0:
            await self._begin()
        if 0 <= position < self._blocks:
            return await self._read_blocks(position)
        return await self._read_changed(-position if position < 0 else self._since)

    async def _begin(self) -> None:
        [(self._blocks, self._file, settled)] = await self._session.run(statements.WALK)
        self._since = max(1, settled)

    async def _read_blocks(self, first: int) -> tuple[list[Row], int | None]:
        end = first + self._step
        rows: list[Row] = await self._run(
            statements.BLOCKS, {"first": f"({first},0)", "end": f"({end},0)"}
        )
        size = sum(len(entry) for _, entry in rows)
        if size < PAGE_BYTES // 2:
            self._step = min(2 * self._step, BLOCKS_MAX)
        elif size > 2 * PAGE_BYTES:
            self._step = max(1, self._step // 4)
        return rows, end if end < self._blocks else -self._since

    async def _read_changed(self, after: int) -> tuple[list[Row], int | None]:
        rows = await self._run(statements.CHANGES, {"after": after, "limit": CHANGED_ITEMS})
        items = [(item_id, entry) for item_id, entry, _ in rows if entry is not None]
        if len(rows) >= CHANGED_ITEMS:
            return items, -rows[-1][2]
        [(_, file, _)] = await self._session.run(statements.WALK)
        return items, None if file == self._file else 0

    async def _run(self, statement: str, parameters: dict[str, object]) -> list[TupleRow]:
        return await self._session.run(
            statement, parameters, time_limit_s=TIME_LIMIT_S, binary=True
        )
