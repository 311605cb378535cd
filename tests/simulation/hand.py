"""Another hand than the store's: somebody in psql, who changes items while the store serves them.

The store learns of it a little later. So a read of such an item may show any state that it had
since the store was opened, but no other; and when all is quiet, what the database holds.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from itemstore.core.item import Item, plain
from tests.simulation.disk import Disk
from tests.simulation.world import World

IDS: Final = ("hand:1", "hand:2")  # which the store's clients only read
PAUSES_S: Final = (0.0, 0.001, 0.01, 0.1, 1.0)


class Hand:
    def __init__(self, world: World, disk: Disk) -> None:
        self._world = world
        self._disk = disk
        self._history: dict[str, list[bytes | None]] = {item_id: [None] for item_id in IDS}
        self._opened_at = dict.fromkeys(IDS, 0)  # places in the history
        self._changes = 0

    def begin(self) -> None:
        """A store is about to open: it will find what the database holds now, or what comes."""
        self._opened_at = {item_id: len(self._history[item_id]) - 1 for item_id in IDS}

    async def run(self, chance: random.Random, changes: int) -> None:
        for _ in range(changes):
            await asyncio.sleep(chance.choice(PAUSES_S))
            self._changes += 1
            item_id = chance.choice(IDS)
            text = None if chance.random() < 0.5 else b'{"hand":%d}' % self._changes
            if text is None and item_id not in self._disk.items:
                continue
            self._disk.change_by_hand(item_id, text, self._world.now_us())
            self._history[item_id].append(self._disk.items.get(item_id))
            self._world.tell(f"by hand {item_id}: {text!r}")

    def check_get(self, item_id: str, item: Item | None, *, is_settled: bool) -> None:
        first = -1 if is_settled else self._opened_at[item_id]
        possible = self._history[item_id][first:]
        is_known = (None if item is None else plain(item.entry)) in possible
        self._world.check(is_known, f"{item_id} was so: {item!r}, {possible}")
