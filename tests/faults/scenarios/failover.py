"""PostgreSQL fails over to a standby that lacks the last commits."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Final

import psycopg

from itemstore.storage.installations import Account, choose, find_installations, reachable
from tests.faults.bench import Bench
from tests.faults.postgres import PostgresServer
from tests.faults.proxy import Proxy
from tests.faults.scenarios.base import Scenario, Turn
from tests.faults.verdict import Rules, Verdict

STREAMS_MAX_S: Final = 15.0
HEALS_MAX_S: Final = 15.0
AFTER_S: Final = 0.5
#: ``epoch``: the standby lacks the last change of the lease as well. ``killed``: the store dies in
#: the failover, and has but its journal.
KINDS: Final = ("tail", "epoch", "killed")
_STREAMING: Final = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
_PROMOTE: Final = "SELECT pg_promote(wait => true)"
_BEHIND: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) FROM pg_stat_replication"


class FailoverTail(Scenario):
    """A round's new primary is the next round's old one."""

    name = "failover_tail"
    about = (
        "PostgreSQL's standby is cut off, commits go on, the primary crashes, the standby is "
        "promoted: also without the lease's last change, and with the store killed meanwhile"
    )
    full, short = 10, 2
    through_proxy = True

    def __init__(self, *, is_full: bool = False) -> None:
        super().__init__(is_full=is_full)
        self._made = 0
        self._directory: Path | None = None

    async def prepare(self, bench: Bench) -> None:
        """Each round starts a server of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        primary = bench.postgres
        link = Proxy(lambda: primary.socket, chance)
        self._made += 1
        directory = bench.directory / f"pg{self._made}"
        standby = await _standby(primary, await link.start(), directory)
        try:
            verdict = await self._round(bench, turn, primary, standby, link)
        finally:
            await link.stop()
            for each in (primary, standby):
                if each is not bench.postgres and each.is_running:
                    await each.stop()
        shutil.rmtree(self._directory or bench.directory / "pg")
        self._directory = directory
        return verdict

    async def _round(
        self,
        bench: Bench,
        turn: Turn,
        primary: PostgresServer,
        standby: PostgresServer,
        link: Proxy,
    ) -> Verdict:
        chance = turn.chance
        kind = KINDS[turn.number % len(KINDS)]
        data_dir = bench.directory / turn.tag / "data"
        data_dir.mkdir(parents=True)
        await bench.start(through_proxy=True, DATA_DIR=str(data_dir))
        levels = "journal=1" if kind == "killed" else "commit=3,memory=1"
        if kind == "epoch":
            await _until_streamed(primary)
            link.freeze()
            await bench.terminate()
            await bench.restart()
        clients = await bench.clients(turn.tag, seed=turn.seed, levels=levels)
        await asyncio.sleep(chance.uniform(0.3, 0.8))
        if kind != "epoch":
            await _until_streamed(primary)
            link.freeze()
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        bench.proxy.refusing = True
        await primary.crash()
        link.reset()
        behind = len((await standby.state(bench.since)).newest)
        kills = (await bench.kill(),) if kind == "killed" else ()
        began = time.monotonic()
        await standby.run(_PROMOTE)
        bench.postgres = standby
        bench.proxy.refusing = False
        bench.proxy.reset()
        if kills:
            await bench.restart()
        else:
            await self._until_healed(bench)
            self.figures["s until written again"].append(time.monotonic() - began)
        await asyncio.sleep(AFTER_S)
        rules = Rules(kills, frozenset({"journal"}))
        checker = await self.judge(bench, clients, rules=rules)
        verdict = checker.verdict
        if not kills:
            again = (await bench.stats())["itemstore_writes_reapplied_total"]
            self.figures["written again"].append(again)
            verdict.expect(again > 0, f"{kind}: nothing was written again")
            found = {event["message"] for event in bench.server.events()}
            verdict.expect("tail_lost" in found, f"{kind}: no tail_lost in the log, but {found}")
        self.figures["items the standby had"].append(behind)
        await bench.kill()
        return verdict

    async def _until_healed(self, bench: Bench) -> None:
        limit = time.monotonic() + HEALS_MAX_S
        while (await bench.stats())["itemstore_writes_reapplied_total"] == 0:
            if time.monotonic() > limit:
                return  # the verdict says it
            await asyncio.sleep(0.02)


async def _standby(primary: PostgresServer, port: int, directory: Path) -> PostgresServer:
    """A copy of the primary that follows it through this port."""
    await asyncio.to_thread(_copy, port, directory)
    standby = PostgresServer(directory)
    await standby.start()
    limit = time.monotonic() + STREAMS_MAX_S
    while not (await primary.run(_STREAMING))[0][0]:
        assert time.monotonic() < limit, "the standby does not stream"
        await asyncio.sleep(0.05)
    return standby


def _copy(port: int, directory: Path) -> None:
    cluster = directory / "postgres"
    account = Account.for_cluster(cluster)
    directory.mkdir(mode=0o755)
    chosen = choose(find_installations(), None, cluster)
    program = reachable(chosen, account, directory).bin / "pg_basebackup"
    account.give(directory)
    source = psycopg.conninfo.make_conninfo(
        "", host="127.0.0.1", port=port, user="postgres", sslmode="disable"
    )
    done = account.run(program, "-d", source, "-D", cluster, "-R", "-c", "fast")
    assert done.returncode == 0, f"pg_basebackup: {done.stderr}"
    for lock in cluster.glob(".s.PGSQL.*.lock"):  # the primary's socket lies in its cluster
        lock.unlink()


async def _until_streamed(primary: PostgresServer) -> None:
    limit = time.monotonic() + STREAMS_MAX_S
    while (await primary.run(_BEHIND))[0][0] > 1_000_000:
        assert time.monotonic() < limit, "the standby does not keep up"
        await asyncio.sleep(0.02)
