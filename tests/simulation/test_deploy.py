"""Several instances over one database, in virtual time: whatever happens, none contradicts another.

``ITEMSTORE_SEEDS`` and ``ITEMSTORE_SEED`` as in ``test_simulation.py``.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

from tests.simulation.deploy import Deploy
from tests.simulation.test_simulation import SMALL
from tests.simulation.world import World

SEEDS: Final = 150


def seeds() -> range:
    if "ITEMSTORE_SEED" in os.environ:
        return range(seed := int(os.environ["ITEMSTORE_SEED"]), seed + 1)
    return range(int(os.environ.get("ITEMSTORE_SEEDS", SEEDS)))


@pytest.mark.parametrize("seed", seeds())
def test_instances_never_contradict_each_other(seed: int) -> None:
    """What one has acknowledged, all others know; and at rest one holds the lease."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(name, value)
        patch.setattr("itemstore.process.is_gone", world.is_gone)
        try:
            world.live(Deploy(seed, world).run())
        except Exception as error:
            events = "\n".join(world.told)
            raise AssertionError(
                f"{events}\n\n{error!r}\n\n"
                f"ITEMSTORE_SEED={seed} .venv/bin/pytest tests/simulation -k contradict"
            ) from error
