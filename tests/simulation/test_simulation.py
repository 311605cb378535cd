"""The whole engine in a simulated world: virtual time, a failing database, crashes, one seed.

``ITEMSTORE_SEEDS=5000 pytest tests/simulation`` runs more seeds than the usual ones, and
``ITEMSTORE_SEED=4711 pytest tests/simulation`` the one that failed, step by step as it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import pytest

from tests.simulation.deploy import Deploy
from tests.simulation.history import History
from tests.simulation.world import World

SEEDS: Final = 200

Story = Callable[[int, World], History | Deploy]

#: Limits of the engine, made so small that some dozens of items reach them.
SMALL: Final = {
    "itemstore.allocator.ID_BLOCK": 6,
    "itemstore.allocator.ID_LOW": 3,
    "itemstore.loader.INSTALL_ITEMS": 1,
    "itemstore.core.cache.ABSENT_MAX": 4,
    "itemstore.core.listing.PAGE_BYTES_MAX": 2_000,
    "itemstore.persister.PURGE_INTERVAL_S": 3.0,
}


def seeds(usual: int) -> range:
    if "ITEMSTORE_SEED" in os.environ:
        return range(seed := int(os.environ["ITEMSTORE_SEED"]), seed + 1)
    return range(int(os.environ.get("ITEMSTORE_SEEDS", usual)))


def simulate(seed: int, story: Story = History, test: str = "every_promise") -> int:
    """One story; its digest. Raises AssertionError with its last events and how to replay it."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(name, value)
        patch.setattr("itemstore.process.is_gone", world.is_gone)
        try:
            world.live(story(seed, world).run())
        except Exception as error:
            events = "\n".join(world.told)
            raise AssertionError(
                f"{events}\n\n{error!r}\n\n"
                f"ITEMSTORE_SEED={seed} .venv/bin/pytest tests/simulation -k {test}"
            ) from error
    return world.digest


@pytest.mark.parametrize("seed", seeds(SEEDS))
def test_every_promise_is_kept_whatever_happens(seed: int) -> None:
    """Each answer is the truth, and what was promised is in the database, in every history."""
    simulate(seed)


def test_a_seed_tells_the_same_history_in_every_process() -> None:
    """A seed leads to the same history however Python hashes, so that a failure can be replayed."""
    program = f"from {__name__} import simulate; print([simulate(seed) for seed in range(5)])"
    digests = [
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, **hashing})
        for hashing in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert digests[0] == digests[1]
