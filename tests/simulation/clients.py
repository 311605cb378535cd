"""Clients that do everything the store allows, at random, and have each answer checked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from itemstore.core import listing
from itemstore.core.condition import ALWAYS, Condition
from itemstore.core.ids import scramble
from itemstore.core.item import version_of
from itemstore.core.operation import Create, Delete, Get, Operation, Patch, Put
from itemstore.errors import DurabilityUnavailable, ItemStoreError, NotHolder
from itemstore.options import Durability
from itemstore.storage import ListQuery
from itemstore.store import ItemStore
from tests.simulation import hand
from tests.simulation.answers import Answers, Call, Result
from tests.simulation.disk import Disk
from tests.simulation.truth import COUNTER, Truth

T = TypeVar("T")

#: Seconds between the calls of a client, in a life of leisure and in a busy one.
PAUSES_S: Final = ((0.0, 0.0, 0.001, 0.001, 0.01, 0.1, 1.0), (0.0, 0.0, 0.0, 0.001))
#: Seconds after which some lose patience.
PATIENCE_S: Final = (0.0, 0.001, 0.01, 0.3)
PREFIXES: Final = ("", "", "", "a", "old:", "poison:", "b\U0010ffff")
LEVELS: Final = ((None, "memory", "commit"), (None, "memory", "memory", "memory"))


class GaveUp(Exception):
    """The client did not wait for the answer."""


@dataclass
class Clients:
    truth: Truth
    answers: Answers
    hand: hand.Hand
    store: ItemStore
    chance: random.Random
    ids: list[str]
    is_patient: bool = False
    _operations: int = 0

    def __post_init__(self) -> None:
        self._world = self.truth.world
        self._pauses_s = self.chance.choice(PAUSES_S)
        self._levels = self.chance.choice(LEVELS)
        self._calls: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._get, 25),
            (self._write, 40),
            (self._count, 10),
            (self._batch, 8),
            (self._list, 6),
            (self._flush, 2),
            (self._ask_too_much, 1),
        ]

    async def run(self, calls: int) -> None:
        """One client, until it has made so many calls or the store closes."""
        for _ in range(calls):
            await asyncio.sleep(self.chance.choice(self._pauses_s))
            if not self.store.is_ready:
                return
            functions, weights = zip(*self._calls, strict=True)
            [call] = self.chance.choices(functions, weights)
            try:
                await call()
            except GaveUp:
                self._world.tell("gave up")
            except Exception as error:
                self._world.check(False, f"no other error is raised: {error!r}")

    # --- the calls

    async def _get(self) -> None:
        is_others = self.chance.random() < 0.2
        await self.get(self.chance.choice(hand.IDS) if is_others else self._id())

    async def get(self, item_id: str) -> Result:
        began = self.truth.began()
        result = await self._outcome(self.store.get(item_id))
        if isinstance(result, ItemStoreError):
            self.answers.check_error(result, f"get {item_id}: {result!r}")
        elif item_id in hand.IDS:
            self.hand.check_get(item_id, result, is_settled=self.is_patient)
        else:
            self.answers.check_get(item_id, result, began)
        return result

    async def _write(self) -> None:
        await self.write(self._a_write(), self._level())

    async def write(self, operation: Create | Put | Patch | Delete, durability: str | None) -> None:
        async with self._call(operation) as call:
            result = await self._outcome(self._written(operation, durability))
            self.answers.check_results(call, [result], self.store.level(durability))

    async def _written(
        self, operation: Create | Put | Patch | Delete, durability: str | None
    ) -> Result:
        item = await self.store.write(operation, durability)
        return None if isinstance(operation, Delete) else item

    async def _count(self) -> None:
        """Adds one to a counter: no increment may be lost or done twice."""
        item_id = f"{COUNTER}{self.chance.randrange(2)}"
        item = await self.get(item_id)
        if isinstance(item, ItemStoreError):
            return
        when = Condition.absent() if item is None else Condition.version(item.version)
        data = {"n": 0 if item is None else item.data["n"] + 1, "op": self._number()}
        await self.write(Put(item_id, data, when), self._level())

    async def _batch(self) -> None:
        operations: list[Operation] = [
            Get(self._id()) if self.chance.random() < 0.3 else self._a_write()
            for _ in range(self.chance.randint(1, 6))
        ]
        durability = self._level()
        async with self._call(*operations) as call:
            try:
                results = await self._patiently(self.store.batch(operations, durability=durability))
            except NotHolder as error:  # refused whole
                results = [error] * len(operations)
            self.answers.check_results(call, results, self.store.level(durability))

    async def _list(self) -> None:
        await self.list(
            order=self.chance.choice(listing.ORDERS),
            prefix=self.chance.choice(PREFIXES),
            limit=self.chance.choice((1, 3, 10, 1000)),
            pages=self.chance.choice((1, 1, 5)),
        )

    async def list(
        self, *, order: str, prefix: str = "", limit: int = 1000, pages: int = 1
    ) -> None:
        """Walks through so many pages."""
        cursor = after = None
        for _ in range(pages):
            async with self._call() as call:
                pending = self.store.list(
                    limit=limit,
                    order=order,
                    prefix=prefix,
                    cursor=cursor,
                    count="exact" if limit == 3 else "none",
                )
                try:
                    page = await self._patiently(pending)
                except ItemStoreError as error:
                    self.answers.check_error(error, f"list: {error!r}")
                    return
                query = ListQuery(
                    limit=limit,
                    bytes_max=0,
                    order=order.removeprefix("-"),
                    descending=order.startswith("-"),
                    prefix=prefix,
                    after=after,
                )
                rows = [(item.id, item.entry) for item in page.items]
                self._world.tell(f"list {order} {prefix!r}: {[row[0] for row in rows]}")
                self.answers.check_page(call, query, rows, is_end=page.next is None)
                if page.count is not None:
                    self.answers.check_count(call, prefix, page.count)
            if (cursor := page.next) is None:
                return
            after = listing.decode(cursor, listing.identify(order, prefix, {}, None))

    async def _flush(self) -> None:
        async with self._call() as call:
            try:
                await self._patiently(self.store.flush())
            except ItemStoreError as error:
                self.answers.check_error(error, f"flush: {error!r}")
            else:
                self.answers.check_flushed(call)

    async def _ask_too_much(self) -> None:
        """There is no journal here, and nobody gets less than he asked for in its place."""
        operation = self._a_write()
        async with self._call(operation):
            result = await self._outcome(self._written(operation, Durability.JOURNAL))
        self._world.check(isinstance(result, DurabilityUnavailable), "no level is weakened")

    # --- what they send

    def _id(self) -> str:
        return self.chance.choice(self.ids)

    def _level(self) -> str | None:
        return self.chance.choice(self._levels)

    def _number(self) -> int:
        self._operations += 1
        return self._operations

    def _a_write(self) -> Create | Put | Patch | Delete:
        item_id = self._id()
        when = self._condition(item_id)
        [kind] = self.chance.choices(("put", "patch", "delete", "create", "new"), (8, 4, 5, 3, 2))
        data = {"op": self._number(), "x": "x" * self.chance.choice((0, 0, 10, 400))}
        match kind:
            case "put":
                return Put(item_id, data, when)
            case "patch":
                return Patch(item_id, {"op": data["op"], "x": None}, when)
            case "delete":
                return Delete(item_id, when)
            case "create":
                return Create(data, item_id)
            case _:
                return Create(data)

    def _condition(self, item_id: str) -> Condition:
        if self.chance.random() < 0.7:
            return ALWAYS
        entry = self.truth.now(item_id)
        versions = [] if entry is None else [version_of(entry)]
        return self.chance.choice(
            (Condition.version(*versions), Condition.exists(), Condition.absent())
        )

    # --- how they wait

    @asynccontextmanager
    async def _call(self, *operations: Operation) -> AsyncIterator[Call]:
        try:
            yield self.answers.begin_call(*operations)
        finally:
            self.answers.end_call()

    async def _outcome(self, answer: Awaitable[Result]) -> Result:
        try:
            return await self._patiently(answer)
        except ItemStoreError as error:
            return error

    async def _patiently(self, answer: Awaitable[T]) -> T:
        """The answer; some clients go before they have it. Raises GaveUp."""
        is_hasty = not self.is_patient and self.chance.random() < 0.1
        patience_s = self.chance.choice(PATIENCE_S) if is_hasty else None
        try:
            async with asyncio.timeout(patience_s) as patience:
                return await answer
        except TimeoutError:
            self._world.check(patience.expired(), "a time limit inside is not the caller's")
            raise GaveUp from None


def some_ids(disk: Disk, chance: random.Random) -> list[str]:
    """Few or many ids of every kind, also such as the store is about to generate."""
    generated = [scramble(disk.next_id + number, disk.key) for number in range(6)]
    old = sorted(item_id for item_id in disk.items if item_id.startswith("old:"))
    ids = [*"abcdef", "b\U0010ffff", "poison:1", "poison:2", "poison:3", *generated, *old[-3:]]
    ids += chance.sample(old, min(8, len(old)))
    return chance.sample(ids, chance.choice((3, 6, len(ids))))
