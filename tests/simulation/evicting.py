"""Evicting in a simulated world: whatever may leave the cache leaves it, at any moment.

Not by the policy, which goes by the hashes of ids: a seed must tell the same history everywhere.
"""

from __future__ import annotations

import random
from typing import Final

from itemstore.store import ItemStore

SHARES: Final = (0.0, 0.0, 0.05, 0.5)  # of the moments at which something is put or loaded


def let_evict(store: ItemStore, chance: random.Random) -> None:
    """Has items leave the store's cache, as if it were small."""
    chance = random.Random(chance.random())
    share, cache = chance.choice(SHARES), store.cache

    def make_room(looks: int) -> None:
        if chance.random() < share:
            evictable = sorted(id for id, _ in cache.items() if not store.keeper.must_stay(id))
            for item_id in chance.sample(evictable, k=len(evictable) // 2):
                cache.evict_one(item_id)

    cache._make_room = make_room  # type: ignore[method-assign]
