"""Many items in and out: streams in bounded memory, in which each side waits for the other.

    lines ──read, parsed──► accepted ──at most PARTS_MAX parts──► durable ──told──► results
             ▲                                                                │
             └────── nothing more is read while the parts are as many ◄───────┘

What has been told is as durable as was asked, in the order of the lines. So an import that ends
early is resumed after the last line told: what was accepted beyond it is met again as equal data.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from itemstore.accepted import Accepted
from itemstore.core import listing
from itemstore.core.caller import ANYBODY, Caller
from itemstore.core.item import Item, check_id
from itemstore.core.operation import Import
from itemstore.core.query import Filters
from itemstore.errors import ItemStoreError, Overloaded, Unavailable
from itemstore.options import Durability
from itemstore.store import ItemStore
from itemstore.tasks import end, give_way

PART_LINES_MAX: Final = 500  # lines that are told together: no more than a batch of the persister
PARTS_MAX: Final = 8  # accepted and not yet told: while one is committed, the next ones gather
ROOM_WAIT_S: Final = 30.0  # for room in the write queue; a single write gives up earlier
EXPORT_PAGE: Final = 200  # items: a page of 1,000 made others wait for 3 ms
ROOM_PAUSE_S: Final = 0.05

STATUSES: Final = ("created", "replaced", "unchanged", "skipped", "failed")


class Entry(NamedTuple):
    """A line: what it asks for, or what is wrong with it, and its id as far as it is known."""

    line: int
    id: str | None
    operation: Import | ItemStoreError


class Result(NamedTuple):
    """What has become of a line; ``error`` is set if that is ``failed``, else ``version``."""

    line: int
    id: str | None
    status: str
    version: int | None = None
    error: ItemStoreError | None = None


Part = list[tuple[Entry, Accepted | ItemStoreError]]
Tell = Callable[[Sequence[Result]], Awaitable[None]]


class Importing:
    """One import under way: ``run`` is its life, ``counts`` what has been told of each status."""

    def __init__(self, store: ItemStore, level: Durability, caller: Caller = ANYBODY) -> None:
        self.counts = dict.fromkeys(STATUSES, 0)
        self.last_line = 0  #: the last one told
        self._store = store
        self._level = level
        self._caller = caller
        self._parts: asyncio.Queue[Part | Exception | None] = asyncio.Queue(PARTS_MAX)

    async def run(self, entries: AsyncIterator[Sequence[Entry]], tell: Tell) -> None:
        """Returns when the last result is told.

        Raises Unavailable if the store cannot go on, and what ``entries`` and ``tell`` raise; what
        was told until then holds.
        """
        taking = asyncio.create_task(self._take(entries), name="import")
        try:
            while (part := await self._parts.get()) is not None:
                if isinstance(part, Exception):
                    raise part
                await self._tell(part, tell)
        finally:
            await end([taking])

    async def _take(self, entries: AsyncIterator[Sequence[Entry]]) -> None:
        """Has the store accept the entries; hands over what that began, and at last why it ends."""
        reason: Exception | None = None
        part: Part = []
        try:
            async for each in entries:
                await self._accept_all(each, part)
                await self._parts.put(part)
                part = []
        except Exception as error:
            reason = error
            await self._parts.put(part)  # what was accepted of the last one
        await self._parts.put(reason)

    async def _accept_all(self, entries: Sequence[Entry], part: Part) -> None:
        given = [each.operation for each in entries if isinstance(each.operation, Import)]
        for failure in (await self._store.reader.load_all(each.id for each in given)).values():
            if not isinstance(failure, Overloaded):  # for that, ``_accept_in_time`` waits
                raise failure
        for number, entry in enumerate(entries, 1):
            part.append((entry, await self._accept(entry.operation)))
            await give_way(number)

    async def _accept(self, operation: Import | ItemStoreError) -> Accepted | ItemStoreError:
        if isinstance(operation, ItemStoreError):
            return operation
        try:
            return await self._accept_in_time(operation)
        except Unavailable:
            raise
        except ItemStoreError as error:
            return error

    async def _accept_in_time(self, operation: Import) -> Accepted:
        """An import has no caller who would rather try again: it waits longer for room."""
        deadline = self._store.monotonic() + ROOM_WAIT_S
        while True:
            try:
                return await self._store.accept(operation, self._level, self._caller)
            except Overloaded:
                if self._store.monotonic() >= deadline:
                    raise
            await asyncio.sleep(ROOM_PAUSE_S)

    async def _tell(self, part: Part, tell: Tell) -> None:
        results: list[Result] = []
        reason: Unavailable | None = None
        try:
            for number, (entry, begun) in enumerate(part, 1):
                results.append(await _result(entry, begun))
                await give_way(number)
        except Unavailable as error:
            reason = error
        await tell(results)
        for each in results:
            self.counts[each.status] += 1
            self.last_line = each.line
        if reason is not None:
            raise reason


async def _result(entry: Entry, begun: Accepted | ItemStoreError) -> Result:
    """As soon as it is as durable as was asked. Raises Unavailable if it does not become so."""
    try:
        if isinstance(begun, ItemStoreError):
            raise begun
        if begun.done is not None:
            await begun.done
    except Unavailable:
        raise
    except ItemStoreError as error:
        return Result(entry.line, entry.id, "failed", error=error)
    return Result(entry.line, begun.change.id, _status(entry, begun), begun.change.version)


def _status(entry: Entry, accepted: Accepted) -> str:
    if not accepted.is_kept:
        return "created" if accepted.is_new else "replaced"
    assert isinstance(entry.operation, Import)  # noqa: S101 - our own error, not a caller's
    return entry.operation.status_of(accepted.change.entry)


async def export(
    store: ItemStore,
    *,
    prefix: str = "",
    filters: Filters | None = None,
    after: str | None = None,
) -> AsyncIterator[list[Item]]:
    """All items that match, or those after the id ``after``, in the order of their ids, by pages.

    Each page is exact as of its own beginning, as a list is; an item that exists throughout is in
    it once. Raises InvalidId, or as ``ItemStore.list`` does.
    """
    cursor = None
    if after is not None:
        identity = listing.identify("id", prefix, filters or {}, None)
        cursor = listing.encode(identity, (0, check_id(after)))
    while True:
        page = await store.list(
            limit=EXPORT_PAGE, order="id", cursor=cursor, prefix=prefix, filters=filters
        )
        yield page.items
        if page.next is None:
            return
        cursor = page.next
