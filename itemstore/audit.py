"""Answers what the audit holds, from PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from itemstore.core import audit
from itemstore.core.audit import AuditPage
from itemstore.errors import DatabaseUnavailable, QueryTooSlow
from itemstore.storage import Storage, StorageError, StorageTimeLimit


class Audit:
    """The audit of one store. ``flush`` returns when what was accepted before is committed."""

    def __init__(
        self, storage: Storage, *, flush: Callable[[], Awaitable[None]], time_limit_s: float
    ) -> None:
        self._storage = storage
        self._flush = flush
        self._time_limit_s = time_limit_s

    async def page(
        self,
        *,
        limit: int = audit.LIMIT_DEFAULT,
        item_id: str | None = None,
        prefix: str = "",
        caller: str | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
        cursor: str | None = None,
    ) -> AuditPage:
        """Some rows, newest first: every write accepted before the call has its own.

        Times are microseconds since 1970. Raises InvalidParameter, InvalidId, InvalidCursor,
        QueryTooSlow, DatabaseUnavailable.
        """
        query = audit.understand(
            limit=limit,
            item_id=item_id,
            prefix=prefix,
            caller=caller,
            since_us=since_us,
            until_us=until_us,
            cursor=cursor,
            time_limit_s=self._time_limit_s,
        )
        await self._flush()
        try:
            return audit.page(query, await self._storage.audit(query))
        except StorageTimeLimit as error:
            raise QueryTooSlow(
                f"PostgreSQL was given {self._time_limit_s:g} s (QUERY_TIMEOUT), which was not "
                "enough. Ask for less time, with since and until."
            ) from error
        except StorageError as error:
            raise DatabaseUnavailable(
                f"The audit needs PostgreSQL, which cannot be read now ({error.kind}). Repeat "
                "later."
            ) from error
