"""An empty database of either body, for the tests of the promises of ``storage.Storage``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from itemstore.storage import Storage
from tests.simulation.bodies import Tables


@pytest.fixture(params=["simulation", "postgres"])
async def tables(request: pytest.FixtureRequest) -> AsyncIterator[Tables]:
    """An empty database of either body."""
    is_real = request.param == "postgres"
    async with AsyncExitStack() as stack:
        yield Tables(request.getfixturevalue("dsn") if is_real else None, stack)


@pytest.fixture
async def storage(tables: Tables) -> Storage:
    storage, _ = await tables.open()
    return storage
