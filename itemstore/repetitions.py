"""Repetitions: requests with an idempotency key are carried out once, however often they come.

    arrives ──► alone with its key? ──► known under this epoch of the lease? ──► decided in one step
                no: 409 meanwhile       no: PostgreSQL is asked                  recorded: the same
                                                                                 answer; else done
                                                                                 and recorded

The record of a write is in memory from the moment it is accepted until it is committed and, against
a failover that loses it, a while longer; then it is in PostgreSQL. What PostgreSQL says counts only
under the epoch for which it was asked: another holder may have carried the request out since.
"""

from __future__ import annotations

import asyncio
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from itertools import islice
from typing import Final

from itemstore.core.operation import Delete, Patch, Write
from itemstore.core.queue import Change
from itemstore.core.recent import RECENT_S
from itemstore.core.record import Once, Origin, Record, unpacked
from itemstore.errors import DatabaseUnavailable, IdempotencyInProgress, IdempotencyKeyReused
from itemstore.storage import Storage, StorageAway, StorageError, as_failure
from itemstore.tasks import end

ASKED_MAX: Final = 100  # keys, in one query
RECENT_BYTES_MAX: Final = 8 * 1024 * 1024

#: A caller and a key of his.
Scope = tuple[str, str]


_NOTHING: Final[dict[int, bytes]] = {}


class _Unknown(Enum):
    UNKNOWN = 0


#: What is known of a request before PostgreSQL has been asked.
UNKNOWN: Final = _Unknown.UNKNOWN


class Repetitions:
    """What requests with a key came to; ``kept_s`` is how long they are remembered."""

    def __init__(
        self,
        storage: Storage,
        *,
        kept_s: float,
        epoch: Callable[[], int],
        now_us: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._kept_us = int(kept_s * 1_000_000)
        self._epoch = epoch
        self._now_us = now_us
        self._monotonic = monotonic
        self._running: dict[Scope, Once] = {}
        #: The records that are not committed yet: as many as the write queue holds.
        self._pending: dict[Scope, dict[int, bytes]] = {}
        #: The last ones that are, and since when.
        self._recent: OrderedDict[Scope, tuple[float, dict[int, bytes]]] = OrderedDict()
        self._recent_bytes = 0
        self._asked: dict[Scope, asyncio.Future[dict[int, Record]]] = {}
        self._asking: asyncio.Task[None] | None = None
        self.replayed = 0  #: operations answered as an earlier request was

    async def close(self) -> None:
        """Who waits for PostgreSQL is told that it cannot be asked any more."""
        await end([self._asking])
        for future in self._asked.values():
            _answer(future, {}, _away(StorageAway("closing")))

    @contextmanager
    def alone(self, origin: Origin) -> Iterator[None]:
        """While this request is answered, no other with its key is.

        Raises IdempotencyInProgress if another is.
        """
        once = _once(origin)
        scope = origin.name, once.key
        if scope in self._running:
            raise IdempotencyInProgress(
                "A request with this Idempotency-Key is being answered. Repeat this one when that "
                "is over."
            )
        self._running[scope] = once
        once.found, once.epoch, once.replayed = {}, 0, 0
        try:
            yield
        finally:
            del self._running[scope]
            self.replayed += once.replayed

    def answer(self, operation: Write, origin: Origin, position: int) -> Change | _Unknown | None:
        """The item as the operation has made it; None if it has yet to be carried out.

        Raises IdempotencyKeyReused if the key is that of another request.
        """
        record = self._known(origin, position)
        if record is None or record is UNKNOWN:
            return record
        _once(origin).replayed += 1
        text = b"" if isinstance(operation, Patch | Delete) else operation.text or b""
        entry = record.entry(text)
        return Change(record.id, record.version, entry, deleted=record.deleted, now_s=0.0)

    def has_to_ask(self, origin: Origin, position: int) -> bool:
        """Whether ``look_up`` comes first."""
        return origin.once is not None and self._known(origin, position) is UNKNOWN

    def _known(self, origin: Origin, position: int) -> Record | _Unknown | None:
        once = _once(origin)
        packed = self._in_memory((origin.name, once.key))
        if position in packed:
            return _same(unpacked(packed[position]), once)
        if not once.epoch or once.epoch != self._epoch():
            return UNKNOWN
        return once.found.get(position)

    def _in_memory(self, scope: Scope) -> Mapping[int, bytes]:
        since_s, recent = self._recent.get(scope, (0.0, _NOTHING))
        if self._monotonic() - since_s > RECENT_S:
            recent = _NOTHING
        pending = self._pending.get(scope)
        return recent if pending is None else ChainMap(pending, recent)

    def note(self, origin: Origin, position: int, change: Change) -> None:
        """The operation is accepted, and this change carries its record."""
        assert change.record is not None  # noqa: S101 - our own error, not a caller's
        scope = origin.name, _once(origin).key
        self._pending.setdefault(scope, {})[position] = change.record
        change.settled += (partial(self._settle, scope, position, change.record),)

    def _settle(
        self, scope: Scope, position: int, record: bytes, failure: Exception | None
    ) -> None:
        pending = self._pending[scope]
        del pending[position]
        if not pending:
            del self._pending[scope]
        if failure is None:  # else PostgreSQL knows what has become of it
            self._keep(scope, position, record)

    def _keep(self, scope: Scope, position: int, record: bytes) -> None:
        now_s = self._monotonic()
        once = self._running.get(scope)
        if once is not None:  # it may be asking PostgreSQL, which did not have it yet
            once.found[position] = unpacked(record)
        _, records = self._recent.pop(scope, (0.0, {}))
        self._recent_bytes += len(record) - len(records.get(position, b""))
        records[position] = record
        self._recent[scope] = now_s, records
        while self._recent:
            since_s, oldest = next(iter(self._recent.values()))
            if since_s > now_s - RECENT_S and self._recent_bytes <= RECENT_BYTES_MAX:
                return
            self._recent.popitem(last=False)
            self._recent_bytes -= sum(map(len, oldest.values()))

    async def look_up(self, origin: Origin) -> None:
        """Makes it known what earlier requests with the key came to.

        Raises DatabaseUnavailable, and IdempotencyKeyReused if the key is that of another request.
        """
        once, epoch = _once(origin), self._epoch()
        scope = origin.name, once.key
        asked = self._asked[scope] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="ask for repetitions")
        found = await asked
        once.found, once.epoch = found | once.found, epoch
        for record in [*once.found.values(), *map(unpacked, self._in_memory(scope).values())]:
            _same(record, once)

    async def _ask(self) -> None:
        """All that gathers while one query is under way becomes the next one."""
        while self._asked:
            scopes = list(islice(self._asked, ASKED_MAX))
            asked = {scope: self._asked.pop(scope) for scope in scopes}
            found: dict[Scope, dict[int, Record]] = {scope: {} for scope in scopes}
            failure: Exception | None = _away(StorageAway("closing"))
            try:
                since = self._now_us() - self._kept_us
                for record in await self._storage.repetitions(scopes, since):
                    found[record.caller, record.key or ""][record.position] = record
                failure = None
            except Exception as error:
                failure = _away(as_failure(error))
            finally:
                for scope, future in asked.items():
                    _answer(future, found[scope], failure)


def _once(origin: Origin) -> Once:
    assert origin.once is not None  # noqa: S101 - our own error, not a caller's
    return origin.once


def _same(record: Record, once: Once) -> Record:
    if record.payload != once.digest:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used for another request. Give each request a key of its "
            "own, and send a repetition with the same body."
        )
    return record


def _answer(
    asked: asyncio.Future[dict[int, Record]], found: dict[int, Record], failure: Exception | None
) -> None:
    if asked.done():  # its request has given up
        return
    if failure is None:
        asked.set_result(found)
    else:
        asked.set_exception(failure)


def _away(failure: StorageError) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "Whether a request with this Idempotency-Key was carried out cannot be told: PostgreSQL "
        f"does not answer ({failure.kind}). Nothing was changed; repeat later."
    )
