"""The reader: finds the newest accepted state of an item, in memory or in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Final, TypeVar

from itemstore.core.cache import Cache
from itemstore.core.queue import WriteQueue, newer
from itemstore.errors import DatabaseUnavailable
from itemstore.lease import WriterLease
from itemstore.loader import Loader
from itemstore.quarantine import Quarantine

T = TypeVar("T")


class _Unknown(Enum):
    UNKNOWN = 0


#: What is known of an item that is neither cached nor surely absent.
UNKNOWN: Final = _Unknown.UNKNOWN


class Reader:
    """What it knows at once, the holder of the lease may answer; the rest must be waited for."""

    def __init__(
        self,
        cache: Cache,
        queue: WriteQueue,
        lease: WriterLease,
        loader: Loader,
        quarantine: Quarantine,
        *,
        load_timeout_s: float,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._lease = lease
        self._loader = loader
        self._quarantine = quarantine
        self._load_timeout_s = load_timeout_s
        self.found = 0  #: looked for, and known at once or after a load
        self.misses = 0  #: that had to wait for PostgreSQL
        self._loaded = 0

    @property
    def hits(self) -> int:
        """How many were known at once."""
        return self.found - self._loaded

    def known(self, item_id: str) -> bytes | _Unknown | None:
        """The packed entry, None if there is surely no such item, or UNKNOWN."""
        entry = self._cache.get(item_id)
        if entry is not None:
            self.found += 1
            return entry
        if self._cache.is_absent(item_id) or item_id in self._queue:
            self.found += 1
            return None  # what is pending and not cached is a delete
        return UNKNOWN

    async def find(self, item_id: str) -> bytes | None:
        """The packed entry, or None. Raises DatabaseUnavailable, Overloaded."""
        return await self._timely(self._find, item_id)

    async def load(self, item_id: str) -> None:
        """Makes it known to who holds the lease. Raises DatabaseUnavailable, Overloaded."""
        await self._timely(self._load, item_id)

    async def load_all(self, ids: Iterable[str | None]) -> dict[str, BaseException]:
        """Makes them known, those that are not with one query. Returns what failed, by id."""
        unknown = dict.fromkeys(each for each in ids if each and self.known(each) is UNKNOWN)
        loads = await asyncio.gather(*map(self.load, unknown), return_exceptions=True)
        answers = zip(unknown, loads, strict=True)
        return {each: load for each, load in answers if isinstance(load, BaseException)}

    async def _find(self, item_id: str) -> bytes | None:
        while await self._lease.to_answer():
            known = self.known(item_id)
            if known is not UNKNOWN:
                return known
            await self._load(item_id)
        newest = await self._loader.newest(item_id)
        if item_id in self._queue.parked and (parked := await self._quarantine.find(item_id)):
            newest = newer(newest, parked.change)
        return newest

    async def _load(self, item_id: str) -> None:
        self.misses += 1
        await self._loader.load(item_id)
        self._loaded += 1  # and will be found

    async def _timely(self, find: Callable[[str], Awaitable[T]], item_id: str) -> T:
        try:
            async with asyncio.timeout(self._load_timeout_s):
                return await find(item_id)
        except TimeoutError:
            raise DatabaseUnavailable(
                "The item's newest state is not in memory, and PostgreSQL did not answer within "
                f"{self._load_timeout_s:g} s. Repeat later."
            ) from None
