"""The holder is cut off from PostgreSQL, and nobody else is."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from typing import ClassVar, Final

import psycopg

from tests.faults.bench import Bench
from tests.faults.proxy import Proxy
from tests.faults.scenarios.base import Turn
from tests.faults.scenarios.pair import Late, Pair, another, to_front, until_it_is
from tests.faults.verdict import Verdict

LEASE_S: Final = 2.0
TAKES_OVER_MAX_S: Final = 15.0
NOTICES_MAX_S: Final = 15.0
AFTER_S: Final = 0.3
LATE: Final = 8
#: What the holder meets: resets, silence, or a port where nobody listens.
KINDS: Final = ("reset", "silent", "refused")
WRITES: Final = ("get=0", "add=0")


class Gate(Proxy):
    """A proxy whose port can be closed."""

    _port = 0

    async def start(self) -> int:
        self._port = await super().start()
        return self._port

    def close_port(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()

    async def open_port(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)


class PartitionedHolder(Pair):
    """It goes on reading from its cache, for it has nothing better; but it must not write."""

    name = "partitioned_holder"
    about = (
        "the holder's connections to PostgreSQL are reset, silent or refused for longer than its "
        "lease of 2 s, the standby's are not; it takes over; later all is well again"
    )
    full, short = 30, 2
    environment: ClassVar[Mapping[str, str]] = {"LEASE_TIME": f"{LEASE_S:g}s"}

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        gate = Gate(lambda: bench.postgres.socket, turn.chance)
        try:
            return await self._round(bench, turn, gate, await gate.start())
        finally:
            await gate.stop()
            bench.server.end()
            await self.prepare(bench)

    async def _round(self, bench: Bench, turn: Turn, gate: Gate, port: int) -> Verdict:
        chance, kind = turn.chance, KINDS[turn.number % len(KINDS)]
        standby = bench.server
        dsn = psycopg.conninfo.make_conninfo(bench.postgres.dsn, host="127.0.0.1", port=port)
        holder = another(bench, **self.environment, DATABASE_URL=dsn)
        await asyncio.to_thread(holder.start)
        await until_it_is(holder, "holder", TAKES_OVER_MAX_S)
        clients = await bench.clients(
            turn.tag,
            urls=[holder.url, standby.url],
            seed=turn.seed,
            writers=16,
            timeout=0.7,
            mix=list(WRITES),
        )
        await asyncio.sleep(chance.uniform(0.3, 0.8))
        await self._cut(gate, kind)
        self.figures["s until the standby has it"].append(
            await until_it_is(standby, "holder", TAKES_OVER_MAX_S)
        )
        late = [Late(holder.url, f"{turn.tag}-late{number}") for number in range(LATE)]
        waiting = asyncio.gather(*(each.puts() for each in late))
        await asyncio.sleep(chance.uniform(0.1, 2.0))
        await self._mend(gate, kind)
        self.figures["s until it knows"].append(await until_it_is(holder, "standby", NOTICES_MAX_S))
        knows = time.monotonic()
        standby.signal(signal.SIGTERM)
        exit_code = await asyncio.to_thread(standby.wait)
        await until_it_is(holder, "holder", TAKES_OVER_MAX_S)
        await asyncio.sleep(AFTER_S)
        to_front(bench, holder)
        own = await waiting
        checker = await self.judge_pair(bench, clients, own=own)
        verdict = checker.verdict
        wrong = [op for op in own if op.is_acknowledged and op.end < knows]
        verdict.expect(
            not wrong, f"{kind}: {len(wrong)} writes were acknowledged without the lease"
        )
        verdict.expect(exit_code == 0, f"the exit code was {exit_code}")
        return verdict

    async def _cut(self, gate: Gate, kind: str) -> None:
        if kind == "silent":
            gate.freeze()
        elif kind == "refused":
            gate.close_port()
        else:
            gate.refusing = True
            gate.reset()

    async def _mend(self, gate: Gate, kind: str) -> None:
        if kind == "refused":
            await gate.open_port()
        gate.calm()
