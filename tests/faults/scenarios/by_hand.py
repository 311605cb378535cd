"""Somebody types SQL into psql while the store runs."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

import orjson

from tests.faults.bench import Bench, Stuck
from tests.faults.connection import Connection, item_path
from tests.faults.scenarios.base import Scenario, Turn, percentile
from tests.faults.verdict import Verdict

SEEN_MAX_S: Final = 5.0
MEDIAN_MAX_S: Final = 1.0
CHANGES: Final = 3  # rounds of INSERT, UPDATE and DELETE
_INSERT: Final = "INSERT INTO items (id, data) VALUES (%s, %s)"
_UPDATE: Final = "UPDATE items SET data = %s WHERE id = %s"
_DELETE: Final = "DELETE FROM items WHERE id = %s"
_DEAFEN: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE application_name LIKE 'itemstore listener%'
"""


class Hand:
    """Changes a row, and waits until a reader sees it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._connection = Connection(bench.url)
        self.seen_s: list[float] = []  #: how long each took

    async def changes_one(self, item_id: str) -> None:
        """INSERT, UPDATE and DELETE of one item."""
        await self.types(_INSERT, item_id, '{"n": 1}')
        await self.waits(item_id, {"n": 1})
        await self.types(_UPDATE, '{"n": 2}', item_id)
        await self.waits(item_id, {"n": 2})
        await self.types(_DELETE, item_id)
        await self.waits(item_id, None)

    async def types(self, statement: str, *parameters: Any) -> None:
        await self._bench.postgres.run(statement, *parameters)

    async def waits(self, item_id: str, data: dict[str, Any] | None) -> None:
        """Until the item has these data; None: until it is gone."""
        since = time.monotonic()
        while True:
            answer = await self._connection.request("GET", item_path(item_id))
            found = orjson.loads(answer.body)["data"] if answer.status == 200 else None
            if found == data and answer.status in (200, 404):
                self.seen_s.append(time.monotonic() - since)
                return
            if time.monotonic() > since + SEEN_MAX_S:
                raise Stuck(f"{item_id} is {answer} after {SEEN_MAX_S:g} s, not {data}")
            await asyncio.sleep(0.005)

    def close(self) -> None:
        self._connection.close()


class ByHand(Scenario):
    """The listener's connection is lost now and then: the table of notes is read all the same."""

    name = "by_hand"
    about = (
        "INSERT, UPDATE, DELETE and TRUNCATE typed by somebody under load, most of them while the "
        "listener's connection has just been terminated: readers see them"
    )
    full, short = 20, 2

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        clients = await bench.clients(
            turn.tag, seed=turn.seed, levels="commit=1,memory=1", writers=8
        )
        hand = Hand(bench)
        for number in range(CHANGES):
            await self._deafen(bench, chance)
            await hand.changes_one(f"{turn.tag}-hand{number}")
        verdict = (await self.judge(bench, clients)).verdict
        await self._deafen(bench, chance)
        ids = [f"{turn.tag}-left{number}" for number in range(3)]
        for item_id in ids:
            await bench.ask("PUT", item_path(item_id), b'{"data": {}}')
        await hand.types("TRUNCATE items")
        for item_id in ids:
            await hand.waits(item_id, None)
        hand.close()
        self.figures["s until it is seen"] += hand.seen_s
        median = percentile(hand.seen_s, 0.5)
        verdict.expect(median < MEDIAN_MAX_S, f"in the median seen after {median:.1f} s")
        return verdict

    async def _deafen(self, bench: Bench, chance: random.Random) -> None:
        if chance.random() < 0.7:
            await bench.postgres.run(_DEAFEN)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
