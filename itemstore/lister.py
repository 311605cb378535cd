"""Answers lists from PostgreSQL, and says which index one lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from structlog.typing import FilteringBoundLogger

from itemstore.core import listing
from itemstore.core.index import Index, indexes_for
from itemstore.core.listing import ListQuery
from itemstore.errors import DatabaseUnavailable, QueryTooSlow
from itemstore.storage import Storage, StorageError, StorageTimeLimit
from itemstore.tasks import in_turns

SCAN_MAX: Final = 10_000  # items read one by one before an index is worth a word: some 50 ms
REMEMBERED_S: Final = 60.0
SHAPES_MAX: Final = 1_000  # remembered
HINTS_MAX: Final = 3  # of one list


class Lister:
    """The lists of one store."""

    def __init__(
        self, storage: Storage, log: FilteringBoundLogger, *, monotonic: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._log = log
        self._monotonic = monotonic
        #: Shape of a query → until when it is remembered, and the commands it was told.
        self._hints: dict[object, tuple[float, tuple[str, ...]]] = {}

    async def page(self, asked: listing.Listing, *, hints: bool = True) -> listing.Page:
        """The page, with ``hints`` also what indexes it lacks.

        Raises QueryTooSlow, DatabaseUnavailable.
        """
        query = asked.query
        missing: tuple[str, ...] = ()
        try:
            if hints and (indexes := indexes_for(query.filters, query.order)):
                missing = await self._hints_for(query, indexes)
            rows, count = await self._storage.select(query)
        except StorageTimeLimit as error:
            advice = f", or make an index: {missing[0]}" if missing else ""
            raise QueryTooSlow(
                f"PostgreSQL was given {query.time_limit_s:g} s (QUERY_TIMEOUT), which was not "
                f"enough. Ask for less, with more filters or without a count{advice}."
            ) from error
        except StorageError as error:
            raise DatabaseUnavailable(
                f"A list needs PostgreSQL, which cannot be read now ({error.kind}). Repeat later."
            ) from error
        page = replace(listing.page(asked, rows, count), hints=missing)
        if asked.selection is None:
            return page
        return replace(page, items=await in_turns(asked.selection.of, page.items))

    async def _hints_for(self, query: ListQuery, indexes: Sequence[Index]) -> tuple[str, ...]:
        """Commands that would help; PostgreSQL is asked once a minute for queries of one shape."""
        shape = (
            query.order,
            bool(query.prefix),
            frozenset((each.field, each.operator) for each in query.filters),
            *indexes,
        )
        until, hints = self._hints.get(shape, (0.0, ()))
        if self._monotonic() < until:
            return hints
        missing, items = await self._storage.unserved(query)
        hints = ()
        if missing and items > SCAN_MAX:
            hints = tuple(index.command for index in missing[:HINTS_MAX])
            self._log.warning("index_missing", items=items, commands=list(hints))
        if len(self._hints) >= SHAPES_MAX:
            self._hints.clear()
        self._hints[shape] = self._monotonic() + REMEMBERED_S, hints
        return hints
