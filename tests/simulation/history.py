"""One history of a store: some lives over the same disk, each closed or crashed, the last at rest.

Everything in it is drawn from one seed: how many clients, which limits, what the database holds
and refuses, the weather, and where each life ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Final

import structlog

from itemstore.core.item import pack
from itemstore.core.operation import Put
from itemstore.core.queue import Change
from itemstore.options import Durability, Options, Preload
from itemstore.store import ItemStore
from tests.simulation.answers import Answers
from tests.simulation.clients import Clients, some_ids
from tests.simulation.disk import Disk
from tests.simulation.evicting import let_evict
from tests.simulation.hand import IDS as HAND_IDS
from tests.simulation.hand import Hand
from tests.simulation.packing import let_pack
from tests.simulation.storage import FlakyStorage, Weather
from tests.simulation.truth import Truth
from tests.simulation.world import START_US, World

CLIENTS_MAX: Final = 10
CALLS_MAX: Final = 40  # of one client in one life
LIVES_MAX: Final = 3
HORIZON_S: Final = 30.0  # of one life's weather
RECOVERY_S: Final = 60.0  # more than the engine may need to notice that the database is back
STUCK_S: Final = 5_000.0  # no call takes so long

#: Calls of the storage in the midst of which a life may end; at about which of their steps.
DOOMS: Final = {"write": 20, "load": 10, "page": 3, "select": 3, "quarantine": 2, "release": 1}

#: A logger that tells nobody.
SILENT: Final = structlog.wrap_logger(
    structlog.ReturnLogger(),
    processors=[],
    wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
)


class History:
    def __init__(self, seed: int, world: World) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._is_calm = self._chance.random() < 0.2
        self._disk = some_disk(self._chance)
        self._truth = Truth(world, self._disk)
        self._answers = Answers(self._truth, is_calm=self._is_calm)
        self._hand = Hand(world, self._disk)
        self._clock_skew_us = 0
        self._lives = 0

    async def run(self) -> None:
        lives = self._chance.randrange(LIVES_MAX)
        for life in self._chance.choices((self._closed_life, self._crashed_life), k=lives):
            await life()
        await self._last_life()

    async def _closed_life(self) -> None:
        await self._begin()
        await self._doom()
        self._step_clock_back()
        await self._close()
        self._die()

    async def _crashed_life(self) -> None:
        await self._begin()
        await self._doom()
        self._check_not_cancelled()
        self._world.tell("crash")
        self._world.at_rest = lambda: None
        self._storage.cut()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._truth.check_survived()
        self._step_clock_back()
        self._die()

    async def _last_life(self) -> None:
        """In the end the weather is good: all goes through, and everything is in its place."""
        await self._begin()
        await self._wait_for_clients()
        self._weather.clear()
        await asyncio.sleep(RECOVERY_S)
        self._world.tell("the weather is good again")
        self._answers.is_calm = self._clients.is_patient = True
        self._truth.check_drained()
        self._check_lease()
        await self._clients.write(Put("last", {}), Durability.COMMIT)
        await self._read_everything()
        for order in ("created", "-updated", "id"):
            await self._clients.list(order=order, limit=10, pages=100)
        await self._read_everything()
        await self._close()

    # --- the parts of a life

    async def _begin(self) -> None:
        """Opens a store, and lets clients loose on it."""
        chance, world = self._chance, self._world
        weather_s = 0.0 if self._is_calm else HORIZON_S
        self._weather = Weather(random.Random(chance.random()), world.time(), weather_s)
        self._storage = FlakyStorage(self._disk, self._weather, world.now_us, world.check)
        self._store = ItemStore(
            self._storage,
            some_options(chance, is_calm=self._is_calm),
            log=SILENT,
            now_us=lambda: world.now_us() + self._clock_skew_us,
            monotonic=world.time,
            chance=random.Random(chance.random()),
        )
        let_pack(self._store, chance)
        let_evict(self._store, chance)
        self._lives += 1
        self._store.lease.name = self._store.lease._process = f"life {self._lives}"
        world.tell(f"a life begins: {self._store.options}")
        self._truth.begin(self._store)
        self._hand.begin()
        await self._store.start()
        self._storage.has_started = True
        ids = some_ids(self._disk, chance)
        ours, others = random.Random(chance.random()), random.Random(chance.random())
        self._clients = Clients(self._truth, self._answers, self._hand, self._store, ours, ids)
        self._running = [
            asyncio.create_task(self._clients.run(chance.randint(1, CALLS_MAX)), name=f"client {n}")
            for n in range(chance.randint(1, CLIENTS_MAX))
        ]
        changes = chance.choice((0, 10, 100))
        self._running.append(asyncio.create_task(self._hand.run(others, changes), name="hand"))

    async def _doom(self) -> None:
        """Returns when this life is to end: at some time, or in the midst of some call."""
        chance = self._chance
        name = chance.choice(list(DOOMS))
        self._storage.doom_at = name, 1 + int(chance.expovariate(1 / DOOMS[name]))
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.choice((HORIZON_S, 10 ** chance.uniform(-3, 1)))):
                await self._storage.doom.wait()

    def _die(self) -> None:
        """The next life may see that this one is over; else it waits until the lease expires."""
        if self._chance.random() < 0.5:
            self._world.gone.add(f"life {self._lives}")

    def _check_lease(self) -> None:
        lease, row = self._store.lease, self._disk.lease
        is_held = lease.is_holder and (lease.name, lease.epoch) == (row.holder, row.epoch)
        self._world.check(is_held, f"it holds the lease: {row}")

    def _step_clock_back(self) -> None:
        """The machine's clock is set, as NTP does, by up to a minute."""
        if self._chance.random() < 0.3:
            self._clock_skew_us -= self._chance.randrange(60_000_000)

    async def _close(self) -> None:
        left = await self._store.close()
        self._world.tell(f"closed, left {left}")
        await self._wait_for_clients()
        self._truth.check_closed(left)
        is_drained = not (left and self._answers.is_calm)
        self._world.check(is_drained, f"in good weather nothing is left: {left}")

    async def _wait_for_clients(self) -> None:
        _, stuck = await asyncio.wait(self._running, timeout=STUCK_S)
        self._world.check(not stuck, f"everybody gets an answer: {stuck}")
        self._check_not_cancelled()

    def _check_not_cancelled(self) -> None:
        cancelled = [client.get_name() for client in self._running if client.cancelled()]
        self._world.check(not cancelled, f"nobody is cancelled who did not give up: {cancelled}")

    async def _read_everything(self) -> None:
        for item_id in (*self._truth.ids(), *HAND_IDS):
            await self._clients.get(item_id)


def some_options(chance: random.Random, *, is_calm: bool) -> Options:
    wait_s = 1_000.0 if is_calm else chance.choice((0.5, 2.0))
    return Options(
        durability=chance.choice((Durability.MEMORY, Durability.COMMIT)),
        skip_items_preload=chance.choice((Preload.PRELOAD, Preload.SKIP)),
        queue_items_max=chance.choice((1, 4, 8, 50_000, 50_000)),
        queue_bytes_max=chance.choice((5_000, 64_000_000, 64_000_000)),
        queue_wait_s=chance.choice((0.05, 1.0)),
        batch_items_max=chance.choice((1, 2, 5, 1_000)),
        batch_bytes_max=chance.choice((1, 2_000, 4_000_000)),
        commit_timeout_s=wait_s,
        load_timeout_s=wait_s,
        tombstone_retention_s=chance.choice((1.0, 1_000.0)),
        lease_s=chance.choice((0.5, 10.0, 10.0)),
        hold_s=1_000.0 if is_calm else chance.choice((0.5, 5.0)),
        shutdown_timeout_s=1_000.0 if is_calm else chance.choice((1.0, 40.0)),
    )


def some_disk(chance: random.Random) -> Disk:
    """A database with a past, and perhaps with a rule that some rows break."""
    disk = Disk()
    for number in range(chance.choice((0, 7, 33))):
        version = START_US - 10_000 * (100 - number)
        text = b'{"op": %d}' % -number  # with a space: not as the store would write it
        disk.items[f"old:{number:02}"] = pack(version, version - number, text)
    if chance.random() < 0.5:
        disk.refuses = _is_poison
    return disk


def _is_poison(change: Change) -> bool:
    """Two versions of three, so that a parked item is sometimes mended."""
    return change.id.startswith("poison") and change.version % 3 > 0
