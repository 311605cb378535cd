"""A pooler in transaction mode between the store and PostgreSQL, and nothing around it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psycopg

from benchmarks.ports import Port
from itemstore.storage.installations import Account
from tests.faults.bench import Bench
from tests.faults.scenarios.base import Skipped, Turn
from tests.faults.scenarios.by_hand import Hand
from tests.faults.scenarios.pair import Pair, another, longest_gap, until_it_is
from tests.faults.verdict import Rules, Verdict

PROGRAM: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
STARTS_MAX_S: Final = 10.0
HOLDER_MAX_S: Final = 15.0
AFTER_S: Final = 0.3
_SETTINGS: Final = """
[databases]
itemstore = host={host} port={port} user={user} dbname=itemstore
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 200
default_pool_size = 20
logfile = {directory}/pgbouncer.log
pidfile = {directory}/pgbouncer.pid
"""


@asynccontextmanager
async def pooler(bench: Bench, directory: Path) -> AsyncIterator[str]:
    """The connection string through it. Raises Skipped."""
    if PROGRAM is None:
        raise Skipped("pgbouncer is not installed")
    port = Port()
    process = _start(PROGRAM, port.number, bench.postgres.dsn, directory)
    try:
        dsn = f"postgresql://postgres@127.0.0.1:{port.number}/itemstore"
        await asyncio.to_thread(_await_answer, dsn)
        yield dsn
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        port.close()


def _start(program: str, port: int, target: str, directory: Path) -> subprocess.Popen[bytes]:
    account = Account.for_cluster(directory / "none")  # it refuses to run as root, too
    directory.mkdir()
    account.give(directory)
    server = psycopg.conninfo.conninfo_to_dict(target)
    settings = directory / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(**server, listen_port=port, directory=directory))
    return subprocess.Popen(
        [program, "-q", str(settings)], **account.process_options(), stderr=subprocess.DEVNULL
    )


def _await_answer(dsn: str) -> None:
    until = time.monotonic() + STARTS_MAX_S
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


class Pooler(Pair):
    """It passes no notifications, and gives each statement another session."""

    name = "pgbouncer"
    about = (
        "everything through pgbouncer in transaction mode, under writers at `commit`: rows "
        "changed by hand, a rolling deploy, SIGKILL and restart"
    )
    full, short = 10, 1

    async def prepare(self, bench: Bench) -> None:
        """Each round starts servers of its own."""

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        (bench.directory / turn.tag).mkdir()
        await bench.forget()
        async with pooler(bench, bench.directory / turn.tag / "pooler") as dsn:
            try:
                return await self._round(bench, turn, dsn)
            finally:
                bench.server.end()

    async def _round(self, bench: Bench, turn: Turn, dsn: str) -> Verdict:
        chance = turn.chance
        old, new = another(bench, DATABASE_URL=dsn), another(bench, DATABASE_URL=dsn)
        await asyncio.to_thread(old.start)
        clients = await bench.clients(turn.tag, urls=[old.url, new.url], seed=turn.seed)
        await asyncio.sleep(chance.uniform(0.1, 0.5))
        begun = time.monotonic()
        await asyncio.to_thread(new.start)
        old.signal(signal.SIGTERM)
        exit_code = await asyncio.to_thread(old.wait)
        await until_it_is(new, "holder", HOLDER_MAX_S)
        await asyncio.sleep(AFTER_S)
        deployed = time.monotonic()
        hand = Hand(bench)
        await hand.changes_one(f"{turn.tag}-hand")
        hand.close()
        self.figures["s until a change by hand is seen"] += hand.seen_s
        kill = await bench.kill()
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        rules = Rules((kill,), frozenset({"commit"}))
        checker = await self.judge_pair(bench, clients, rules=rules)
        verdict = checker.verdict
        pause = longest_gap(checker.history.ops, begun, deployed)
        self.figures["ms without a write, deploy"].append(pause * 1000)
        verdict.expect(exit_code == 0, f"the exit code was {exit_code}")
        slowest = max(hand.seen_s)
        limit_s = 2.0 if self.is_full else 20.0  # in the tests, other work is on the machine
        verdict.expect(slowest < limit_s, f"a change by hand was seen after {slowest:.1f} s")
        return verdict
