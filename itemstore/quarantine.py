"""Quarantine: accepted writes that PostgreSQL refused, and what can be done about them.

They are kept in a table of their own and served from memory; nothing leaves but by a newer write of
the item, by ``retry`` once the reason is gone, or by ``discard``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger

from itemstore.core.cache import Cache
from itemstore.core.data import Encoded
from itemstore.core.item import version_of
from itemstore.core.operation import Repeat
from itemstore.core.queue import Change, WriteQueue
from itemstore.core.record import Origin
from itemstore.errors import DatabaseUnavailable, ItemNotFound
from itemstore.lease import WriterLease
from itemstore.storage import Parked, Storage, StorageError


class Quarantine:
    """What the commands ``itemstore quarantine …`` do."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        storage: Storage,
        lease: WriterLease,
        log: FilteringBoundLogger,
        *,
        write: Callable[[Repeat, Origin | None], Awaitable[object]],
        on_foreign: Callable[[str], None],
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._storage = storage
        self._lease = lease
        self._log = log
        self._write = write
        #: Told each id whose state is not what was written here last.
        self._on_foreign = on_foreign

    async def list(self) -> tuple[Parked, ...]:
        """What is in it, oldest version first. Raises DatabaseUnavailable."""
        try:
            return await self._storage.parked()
        except StorageError as error:
            raise _away(error) from error

    async def get(self, item_id: str) -> Parked:
        """Raises ItemNotFound if nothing of this item is in it, DatabaseUnavailable."""
        parked = await self.find(item_id)
        if parked is None:
            raise ItemNotFound(f"Nothing of an item {item_id!r} is in quarantine.")
        return parked

    async def find(self, item_id: str) -> Parked | None:
        """What is in it of this item. Raises DatabaseUnavailable."""
        return next((each for each in await self.list() if each.change.id == item_id), None)

    async def retry(self, item_id: str, origin: Origin | None = None) -> None:
        """Writes it again, as of now, and waits for the commit. ``origin`` is who asks for it.

        Raises ItemQuarantined if PostgreSQL refuses it again, ItemNotFound, PreconditionFailed if
        the item was written since, Unavailable.
        """
        await self._lease.to_accept()
        change = await self._parked(item_id)
        data = change.data
        text = None if data is None else Encoded(data)
        await self._write(Repeat(item_id, text, version=change.version), origin)
        self._log.warning("quarantine_retried", id=item_id, version=change.version)

    async def discard(self, item_id: str) -> None:
        """Gives the write up: the item is again as PostgreSQL has it. Raises as ``retry`` does."""
        await self._lease.to_accept()
        change = await self._parked(item_id)
        load = self._cache.begin_load()
        try:
            await self._storage.discard(item_id)
            [state] = await self._storage.states([item_id])
        except StorageError as error:
            raise _away(error) from error
        finally:
            self._cache.end_load(load)
        if self._queue.parked.get(item_id) is change:
            self._queue.unpark(item_id)
            if item_id not in load.touched and item_id not in self._queue:
                self._show(item_id, state.entry)
        self._log.warning("quarantine_discarded", id=item_id, version=change.version)

    def _show(self, item_id: str, entry: bytes | None) -> None:
        if entry is None:
            self._cache.remove(item_id)
        else:
            self._cache.put(item_id, entry)
        self._on_foreign(item_id)

    async def _parked(self, item_id: str) -> Change:
        """What is parked of the item, also if a former holder has parked it since we began."""
        change = self._queue.parked.get(item_id)
        if change is None:
            change = (await self.get(item_id)).change
            self._queue.adopt_parked(change)
            cached = self._cache.get(item_id)
            if cached is None or version_of(cached) < change.version:
                self._show(item_id, None if change.deleted else change.entry)
        return change


def _away(error: StorageError) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"The table quarantine cannot be reached now ({error.kind}). Repeat later."
    )
