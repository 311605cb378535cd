"""Packing in a simulated world: from the beginning, by one dictionary after another."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import orjson

from itemstore.core.item import pack
from itemstore.core.packing import Dictionary, Training, know, train
from itemstore.store import ItemStore

DELAYS_S: Final = (0.0, 0.0, 0.001, 0.05, 1.0)


def _trained(letter: str) -> Dictionary:
    bodies = ({"op": n, "x": letter * n, "n": n * n} for n in range(400))
    dictionary = train([pack(1, 1, orjson.dumps(body)) for body in bodies])
    assert dictionary is not None
    assert know(dictionary)
    return dictionary


DICTIONARIES: Final = (_trained("x"), _trained("y"), None)


def let_pack(store: ItemStore, chance: random.Random) -> None:
    """Has the store pack from now on; its data are said to have changed now and then."""
    chance = random.Random(chance.random())
    trainer = store.packer.trainer
    store.cache.begin_packing()

    def retrain() -> None:
        trainer.adopt(Training(chance.choice(DICTIONARIES), 0.5))

    async def in_thread(call: Any, *arguments: Any) -> Any:
        done = call(*arguments)
        await asyncio.sleep(chance.choice(DELAYS_S))
        retrain()
        return done

    store.packer._in_thread = in_thread
    trainer.adopt(Training(DICTIONARIES[0], 0.5))
