"""Several instances over one database, in virtual time: whatever happens, none contradicts another.

``ITEMSTORE_SEEDS`` and ``ITEMSTORE_SEED`` as in ``test_simulation.py``.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.simulation.deploy import Deploy
from tests.simulation.test_simulation import seeds, simulate

SEEDS: Final = 100


@pytest.mark.parametrize("seed", seeds(SEEDS))
def test_instances_never_contradict_each_other(seed: int) -> None:
    """What one has acknowledged, all others know; and at rest one holds the lease."""
    simulate(seed, Deploy, "contradict")
