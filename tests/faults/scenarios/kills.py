"""The server is killed without warning, amid writes."""

from __future__ import annotations

import asyncio

from tests.faults.bench import Bench
from tests.faults.scenarios.base import Scenario, Skipped, Turn
from tests.faults.verdict import Rules, Verdict, lost_ages_ms

KILL_MAX_S = 2.0
AFTER_S = 0.3  # how long the clients go on after the restart


class KillCommit(Scenario):
    """Some rounds look at PostgreSQL before the restart; the others restart at once."""

    name = "kill_commit"
    about = "SIGKILL of the server within 2 s of 32 writers at `commit`; restart"
    full, short = 300, 4

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        clients = await bench.clients(turn.tag, seed=turn.seed)
        await asyncio.sleep(chance.uniform(0.0, KILL_MAX_S))
        kill = await bench.kill()
        await bench.forget()
        left = None
        if chance.random() < 0.5:
            await bench.postgres.until_left()
            left = await bench.left()
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        rules = Rules(kills=(kill,), survives=frozenset({"commit"}))
        return (await self.judge(bench, clients, rules=rules, left=left)).verdict


class KillMemory(Scenario):
    """Losses are allowed here, and measured."""

    name = "kill_memory"
    about = "SIGKILL of the server within 2 s of 32 writers at `memory`; restart"
    full, short = 100, 3

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="memory=1")
        await asyncio.sleep(chance.uniform(0.0, KILL_MAX_S))
        stated = (await bench.stats())["itemstore_oldest_dirty_age_seconds"]
        self.figures["stated window just before in ms"].append(stated * 1000)
        kill = await bench.kill()
        await bench.forget()
        await bench.postgres.until_left()
        left = await bench.left()
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        rules = Rules(kills=(kill,), survives=frozenset())
        checker = await self.judge(bench, clients, rules=rules, left=left)
        ages = lost_ages_ms(checker.history, left, kill)
        self.figures["lost a kill"].append(len(ages))
        self.figures["their age in ms"] += ages
        return checker.verdict


class KillJournal(Scenario):
    """Where PostgreSQL has crashed before, what is owed is in the journal only."""

    name = "kill_journal"
    about = "the same at `journal`; in half of the rounds PostgreSQL crashed before"
    full, short = 300, 4

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        await bench.forget()
        data_dir = bench.directory / turn.tag / "data"
        data_dir.mkdir(parents=True)
        try:
            await bench.start(DURABILITY="journal", DATA_DIR=str(data_dir))
        except AssertionError as error:
            if "DURABILITY='journal' is not allowed" in str(error):
                raise Skipped("this itemstore has no journal") from None
            raise
        answer = await bench.ask("DELETE", "/items/none", Durability="journal")
        if answer.status == 503:
            raise Skipped(f"the server cannot give journal: {answer.body}")
        clients = await bench.clients(turn.tag, seed=turn.seed, levels="journal=1")
        await asyncio.sleep(chance.uniform(0.0, KILL_MAX_S))
        crash = chance.random() < 0.5
        if crash:
            await bench.postgres.crash()
            await asyncio.sleep(chance.uniform(0.0, 1.0))
        kill = await bench.kill()
        if crash:
            await bench.postgres.start()
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        rules = Rules(kills=(kill,), survives=frozenset({"journal", "commit"}))
        checker = await self.judge(bench, clients, rules=rules)
        await bench.kill()
        return checker.verdict
