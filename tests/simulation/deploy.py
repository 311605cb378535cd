"""A history of several instances over one database: deploys, handovers, freezes, cuts, kills.

Each instance is a process of its own, with a clock of its own, that can stop without a word.
Clients talk to any of them and go on with another when one refuses. The ledger knows what is right.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from itemstore.core.caller import Caller, Role
from itemstore.core.condition import Condition
from itemstore.core.item import Item, plain
from itemstore.core.operation import Create, Delete, Patch, Put, Write
from itemstore.core.record import Once, Origin
from itemstore.errors import (
    IdempotencyInProgress,
    ItemExists,
    ItemNotFound,
    PreconditionFailed,
    Unavailable,
)
from itemstore.options import Durability, Options, Preload
from itemstore.store import ItemStore
from tests.simulation.disk import Disk
from tests.simulation.evicting import let_evict
from tests.simulation.history import SILENT, STUCK_S, some_disk
from tests.simulation.ledger import HAND, Ledger
from tests.simulation.packing import let_pack
from tests.simulation.storage import FlakyStorage, Weather
from tests.simulation.world import World, owned_by

T = TypeVar("T")

INSTANCES_MAX: Final = 3  # at once
EVENTS_MAX: Final = 6
CLIENTS: Final = (2, 3, 5)
RECOVERY_S: Final = 25.0  # more than any lease, and than what is away for a while
SKEWS_S: Final = (0.0, 0.0, -3.0, -0.2, 0.2, 3.0)
PAUSES_S: Final = (0.0, 0.001, 0.01, 0.05, 0.3)
EVENT_PAUSES_S: Final = (0.0, 0.01, 0.3, 1.0, 3.0)
COUNTERS: Final = ("counter0", "counter1")
IDS: Final = ("a", "b", "c", "old:01", "old:02", "old:05")
DECIDED: Final = (ItemExists, ItemNotFound, PreconditionFailed)
KINDS: Final = ("away", "slow", "flaky")


class Gone(Exception):
    """The instance was killed before it answered."""


@dataclass
class Instance:
    name: str
    store: ItemStore
    storage: FlakyStorage
    weather: Weather
    is_closing: bool = False
    starting: asyncio.Task[None] | None = None


class Deploy:
    def __init__(self, seed: int, world: World) -> None:
        self._world = world
        self._chance = chance = random.Random(f"deploy {seed}")
        self._disk = a_disk(chance)
        self._ledger = Ledger(world, self._disk)
        self._lease_s = chance.choice((1.0, 3.0, 10.0))
        self._is_calm = chance.random() < 0.5
        self._alive: list[Instance] = []
        self._count = 0
        #: Who was killed, or closed with what it could not write: (instance, item or None for all).
        self._excused: list[tuple[str, str | None]] = []
        self._increments = dict.fromkeys(COUNTERS, 0)  # acknowledged
        self._attempts = dict.fromkeys(COUNTERS, 0)
        self._is_over = False
        length_s = 0.0 if self._is_calm or chance.random() < 0.5 else 40.0
        self._server = Weather(random.Random(chance.random()), 0.0, length_s, kinds=("down",))
        self._closing: list[asyncio.Task[None]] = []
        world.at_rest = self._at_rest

    async def run(self) -> None:
        chance = self._chance
        self._start()
        some = [Client(self, random.Random(chance.random())) for _ in range(chance.choice(CLIENTS))]
        clients = [
            asyncio.create_task(each.run(), name=f"client {n}") for n, each in enumerate(some)
        ]
        clients.append(asyncio.create_task(self._hand(), name="hand"))
        for _ in range(chance.randint(2, EVENTS_MAX)):
            await asyncio.sleep(chance.choice(EVENT_PAUSES_S) * self._lease_s)
            await self._event()
        await asyncio.sleep(chance.choice((0.1, 1.0)) * self._lease_s)
        self._mend()
        self._is_over = True
        _, stuck = await asyncio.wait(clients, timeout=STUCK_S)
        self._world.check(not stuck, f"everybody gets an answer: {stuck}")
        for client in clients:
            client.result()
        await self._rest()

    # --- what befalls them

    async def _event(self) -> None:
        chance = self._chance
        events: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._deploy, 4),
            (self._freeze, 3),
            (self._partition, 2),
            (self._close_one, 2),
            (self._kill, 1),
        ]
        functions, weights = zip(*events, strict=True)
        [event] = chance.choices(functions, weights)
        await event()

    async def _deploy(self) -> None:
        """Another instance starts; perhaps the oldest is closed a while later."""
        if len(self._alive) < INSTANCES_MAX:
            self._start()
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.choice((0.0, 0.02, 0.1, 1.0, 3.0)))
            await self._close_one()

    async def _close_one(self) -> None:
        """The oldest closes; others, or the one that is started now, go on."""
        ready = [each for each in self._alive if each.store.is_ready and not each.is_closing]
        if not ready:
            return
        instance = ready[0]
        instance.is_closing = True
        if all(each.is_closing for each in self._alive):
            self._start()
        with owned_by(instance.name):
            closing = asyncio.create_task(self._close(instance), name=f"close {instance.name}")
        self._closing.append(closing)

    async def _close(self, instance: Instance) -> None:
        self._world.tell(f"{instance.name} closes")
        left = await instance.store.close()
        self._world.tell(f"{instance.name} is closed, left {left}")
        self._excused += [(instance.name, item_id) for item_id in left]
        if instance in self._alive:
            self._alive.remove(instance)
        if self._chance.random() < 0.5:
            self._world.gone.add(instance.name)

    async def _kill(self) -> None:
        instance = self._chance.choice(self._alive)
        self._world.tell(f"{instance.name} is killed")
        self._alive.remove(instance)
        self._excused.append((instance.name, None))
        instance.storage.cut()
        await self._world.kill(instance.name)
        if self._chance.random() < 0.5:
            self._world.gone.add(instance.name)
        if all(each.is_closing for each in self._alive):
            self._start()

    async def _freeze(self) -> None:
        """The process stops, and goes on later as if nothing had been."""
        instance = self._chance.choice(self._alive)
        self._world.tell(f"{instance.name} is frozen")
        instance.storage.freeze()
        await self._pass()
        self._world.tell(f"{instance.name} goes on")
        instance.storage.awake.set()
        await self._read_at_once(instance)

    async def _read_at_once(self, instance: Instance) -> None:
        """Before it can have asked whether the lease is still its own."""
        reader = Client(self, random.Random(0))
        reads = [
            asyncio.create_task(reader.get(instance, item_id), name=f"read {item_id}")
            for item_id in (*IDS, *COUNTERS)
        ]
        for read in await asyncio.gather(*reads, return_exceptions=True):
            if isinstance(read, BaseException) and not isinstance(read, Unavailable | Gone):
                raise read

    async def _partition(self) -> None:
        """What the process sends is sent back, or arrives late, perhaps after it has given up."""
        instance = self._chance.choice(self._alive)
        self._world.tell(f"{instance.name} is cut off")
        if self._chance.random() < 0.5:
            instance.storage.reachable.clear()
        else:
            instance.weather.is_cut = True
        await self._pass()
        self._world.tell(f"{instance.name} is back")
        instance.storage.reachable.set()
        instance.weather.is_cut = False

    async def _pass(self) -> None:
        """So long that the lease is in danger, or lost; perhaps another starts meanwhile."""
        if self._chance.random() < 0.6 and len(self._alive) < INSTANCES_MAX:
            self._start()
        await asyncio.sleep(
            self._chance.choice((0.3, 0.95, 1.02, 1.1, 1.5, 2.5, 4.0)) * self._lease_s
        )

    async def _hand(self) -> None:
        """Somebody in psql changes what clients leave alone, and what they do not."""
        chance = random.Random(self._chance.random())
        number = 0
        while not self._is_over:
            await asyncio.sleep(chance.choice((0.1, 1.0, 4.0)))
            number += 1
            item_id = chance.choice((f"{HAND}:1", f"{HAND}:2", "a", "old:01"))
            text = None if chance.random() < 0.3 else b'{"hand":%d}' % number
            if text is not None or item_id in self._disk.items:
                self._world.tell(f"by hand {item_id}: {text!r}")
                self._ledger.change_by_hand(item_id, text)

    # --- their lives

    def _start(self) -> None:
        chance, world = self._chance, self._world
        self._count += 1
        name = f"I{self._count}"
        length_s = 0.0 if self._is_calm else chance.choice((0.0, 20.0))
        weather = Weather(
            random.Random(chance.random()), world.time(), length_s, kinds=KINDS, server=self._server
        )
        storage = FlakyStorage(self._disk, weather, world.now_us, world.check)
        skew_us = round(chance.choice(SKEWS_S) * 1_000_000)
        store = ItemStore(
            storage,
            some_options(chance, self._lease_s),
            log=SILENT,
            now_us=lambda: world.now_us() + skew_us,
            monotonic=world.time,
            chance=random.Random(chance.random()),
        )
        let_pack(store, chance)
        let_evict(store, chance)
        store.lease.name = store.lease._process = name
        self._ledger.listen(name, store)
        instance = Instance(name, store, storage, weather)
        world.tell(f"{name} starts, {skew_us} µs, {store.options.skip_items_preload}")
        self._alive.append(instance)
        with owned_by(name):
            instance.starting = asyncio.create_task(self._begin(instance), name=f"start {name}")

    async def _begin(self, instance: Instance) -> None:
        await instance.store.start()
        instance.storage.has_started = True
        self._world.tell(f"{instance.name} has started")

    def _at_rest(self) -> None:
        accepting = [
            each.name
            for each in self._alive
            if each.storage.awake.is_set() and each.store.is_ready and each.store.lease.may_accept()
        ]
        self._world.check(len(accepting) <= 1, f"one accepts writes at a time: {accepting}")

    # --- at the end

    def _mend(self) -> None:
        self._world.tell("all is mended")
        self._server.clear()
        for each in self._alive:
            each.weather.clear()
            each.storage.awake.set()
            each.storage.reachable.set()
            each.weather.is_cut = False

    async def _rest(self) -> None:
        """When all is quiet, one holds the lease, and all agree with the disk."""
        await asyncio.sleep(RECOVERY_S)
        if self._closing:
            await asyncio.wait(self._closing)
        world, row = self._world, self._disk.lease
        holders = [each for each in self._alive if each.store.lease.is_holder]
        world.check(len(holders) == 1, f"one holds the lease: {[e.name for e in holders]}, {row}")
        lease = holders[0].store.lease
        is_known = (lease.name, lease.epoch) == (row.holder, row.epoch)
        world.check(is_known, f"{lease.name} holds the lease: {row}")
        world.tell("all is quiet")
        for each in self._alive:
            self._ledger.check_agreement(each.name, each.store)
        for item_id in sorted({*self._ledger.ids(), *self._disk.items}):
            for each in self._alive:
                item = await each.store.get(item_id)
                found = item and plain(item.entry)
                is_right = found == self._disk.items.get(item_id)
                world.check(is_right, f"{each.name} agrees on {item_id}: {found!r}")
        self._check_counters()
        self._chance.shuffle(self._alive)
        for each in list(self._alive):
            with owned_by(each.name):
                left = await each.store.close()
            world.check(not left, f"nothing is left in good weather: {left}")
        self._ledger.check_kept(self._excused)
        self._ledger.check_records(self._excused)

    def _check_counters(self) -> None:
        for item_id in COUNTERS:
            entry = self._disk.items.get(item_id)
            n = Item(item_id, entry).data["n"] if entry else 0
            least, most = self._increments[item_id], self._attempts[item_id]
            self._world.check(least <= n <= most, f"{item_id}: {least} ≤ {n} ≤ {most}")


class Client:
    """Reads, writes and counts through whichever instance it comes to."""

    def __init__(self, deploy: Deploy, chance: random.Random) -> None:
        self._deploy = deploy
        self._world = deploy._world
        self._ledger = deploy._ledger
        self._chance = chance
        self._ops = 0
        self._levels = chance.choice((("commit",), ("memory", "commit"), ("memory",)))

    async def run(self) -> None:
        while not self._deploy._is_over:
            await asyncio.sleep(self._chance.choice(PAUSES_S))
            awake = [each for each in self._deploy._alive if each.storage.awake.is_set()]
            if not awake:
                continue
            instance = self._chance.choice(awake)
            calls = self._get, self._write, self._count, self._list, self._create_once
            [call] = self._chance.choices(calls, (6, 4, 3, 1, 2))
            try:
                await call(instance)
            except Gone:
                self._world.tell("no answer")
            except DECIDED:
                pass
            except Unavailable as error:
                self._world.tell(f"{instance.name}: {error.code}")
                await asyncio.sleep(self._chance.choice((0.01, 0.1, 0.5)))

    async def _ask(self, instance: Instance, call: Coroutine[Any, Any, T]) -> T:
        """The answer, unless the instance is killed, or frozen when it comes: then later."""
        with owned_by(instance.name):
            task = asyncio.create_task(call, name=f"a call of {instance.name}")
        await asyncio.wait([task])
        await instance.storage.awake.wait()
        if task.cancelled():
            raise Gone
        return task.result()

    async def _get(self, instance: Instance) -> None:
        await self.get(instance, self._chance.choice((*IDS, *COUNTERS)))

    async def get(self, instance: Instance, item_id: str) -> Item | None:
        floor = self._ledger.floor(instance.name, item_id)
        was_standby, was_in_doubt = self._is_standby(instance), instance.storage.in_doubt
        item = await self._ask(instance, self._read(instance, item_id))
        is_standby = was_standby and self._is_standby(instance)
        if is_standby or not (was_in_doubt or instance.storage.in_doubt):
            entry = None if item is None else plain(item.entry)
            self._ledger.check_read(instance.name, item_id, entry, floor, is_standby=is_standby)
        return item

    async def _read(self, instance: Instance, item_id: str) -> Item | None:
        return await instance.store.get(item_id)

    def _is_standby(self, instance: Instance) -> bool:
        return not instance.store.lease.epoch

    async def _write(self, instance: Instance) -> None:
        await self._do(instance, self._a_write(), self._chance.choice(self._levels))

    async def _do(self, instance: Instance, operation: Write, level: str) -> None:
        item_id = operation.id
        floor = self._ledger.floor(instance.name, item_id or "")
        item = await self._ask(instance, instance.store.write(operation, level))
        self._ledger.acknowledge(instance.name, item.id, item.version, floor, level)

    def _a_write(self) -> Write:
        self._ops += 1
        item_id = self._chance.choice(IDS)
        [kind] = self._chance.choices(("put", "patch", "delete", "create", "new"), (5, 4, 3, 2, 1))
        data = {"op": self._ops}
        match kind:
            case "put":
                return Put(item_id, data)
            case "patch":
                return Patch(item_id, data)
            case "delete":
                return Delete(item_id)
            case "create":
                return Create(data, item_id)
            case _:
                return Create(data)

    async def _count(self, instance: Instance) -> None:
        """Adds one to a counter, at commit: no increment that was acknowledged may be lost."""
        item_id = self._chance.choice(COUNTERS)
        item = await self.get(instance, item_id)
        when = Condition.absent() if item is None else Condition.version(item.version)
        self._deploy._attempts[item_id] += 1
        n = 1 if item is None else item.data["n"] + 1
        awake = [each for each in self._deploy._alive if each.storage.awake.is_set()]
        if not awake:
            return
        other = self._chance.choice(awake)
        await self._do(other, Put(item_id, {"n": n}, when), Durability.COMMIT)
        self._deploy._increments[item_id] += 1

    async def _create_once(self, instance: Instance) -> None:
        """One request at commit, sent again and again: it is carried out once, by whomever."""
        key = f"{self._chance.getrandbits(64):x}"
        for _ in range(self._chance.choice((1, 2, 4))):
            origin = Origin(Caller("client", Role.ADMIN), once=Once(key, b""))
            create = instance.store.write(Create({"key": key}), Durability.COMMIT, origin)
            try:
                item = await self._ask(instance, create)
                self._ledger.answer(key, item)
            except (Unavailable, IdempotencyInProgress, Gone) as error:
                self._world.tell(f"{instance.name} on {key}: {error!r}")
                await asyncio.sleep(self._chance.choice((0.01, 0.1, 0.5)))
            awake = [each for each in self._deploy._alive if each.storage.awake.is_set()]
            if not awake:
                return
            instance = self._chance.choice(awake)

    async def _list(self, instance: Instance) -> None:
        """A list is exact whoever is asked."""
        floors = {each: self._ledger.floor(instance.name, each) for each in (*IDS, *COUNTERS)}
        found: dict[str, bytes] = {}
        cursor, is_end = None, False
        while not is_end:
            page = await self._ask(instance, instance.store.list(order="id", cursor=cursor))
            found |= {item.id: item.entry for item in page.items}
            cursor = page.next
            is_end = cursor is None
        for item_id, floor in floors.items():
            self._ledger.check_read(
                instance.name, item_id, found.get(item_id), floor, is_standby=True
            )


def some_options(chance: random.Random, lease_s: float) -> Options:
    return Options(
        durability=Durability.COMMIT,
        skip_items_preload=chance.choice((Preload.PRELOAD, Preload.PRELOAD, Preload.SKIP)),
        batch_items_max=chance.choice((1, 2, 1_000)),
        commit_timeout_s=chance.choice((0.5, 5.0)),
        load_timeout_s=2.0,
        tombstone_retention_s=1_000.0,
        lease_s=lease_s,
        hold_s=chance.choice((0.1, 1.0, 5.0)),
        shutdown_timeout_s=chance.choice((0.2, 5.0)),
        audit=True,
    )


def a_disk(chance: random.Random) -> Disk:
    """With a past, and no rules that refuse rows."""
    disk = some_disk(chance)
    disk.refuses = lambda change: False
    return disk
