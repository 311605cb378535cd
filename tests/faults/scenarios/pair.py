"""What scenarios with two instances over one database have in common."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import orjson

from tests.acceptance.process import ServerProcess
from tests.faults.bench import Bench, Clients, Stuck
from tests.faults.checker import Checker, _Known
from tests.faults.connection import Connection, Lost, item_path
from tests.faults.history import Op, read_directory
from tests.faults.scenarios.base import Scenario, rules_json
from tests.faults.verdict import Rules

#: Of clients at memory: a standby reads PostgreSQL, where such a write may yet be missing.
BLIND: Final = ("get=0", "add=0", "patch=0")


class AcrossInstances(Checker):
    """What an instance has acknowledged, the other shows; not all that it has shown.

    The holder shows a write before it is committed, and nothing was promised of that one yet.
    """

    @cached_property
    def _known(self) -> dict[str, list[_Known]]:
        found: dict[str, list[_Known]] = defaultdict(list)
        for item_id, known in super()._known.items():
            found[item_id] = [each for each in known if not each.what.startswith("read by")]
        return found


class Pair(Scenario):
    """``bench.server`` is the one that is asked in the end."""

    async def judge_pair(
        self, bench: Bench, *clients: Clients, rules: Rules | None = None, own: Sequence[Op] = ()
    ) -> AcrossInstances:
        """As ``judge``."""
        rules = rules or Rules()
        for each in clients:
            await each.end()
        directory = clients[0].directory
        (directory / "own.json").write_bytes(orjson.dumps(own))
        (directory / "rules.json").write_bytes(rules_json(rules))
        history = await asyncio.to_thread(read_directory, directory)
        await bench.rested()
        final = await bench.state(history.ids())
        final.write(directory / "final.json")
        checker = AcrossInstances(history, rules)
        checker.check(final)
        return checker


def another(bench: Bench, **environment: str) -> ServerProcess:
    """One more server, of which clients may know before it is started."""
    settings = {
        "LOG_LEVEL": "warning",
        "LOG_FORMAT": "json",
        "DATABASE_URL": bench.postgres.dsn,
        "PYTHONPATH": str(bench.source),
        "PYTHONSAFEPATH": "1",
        **bench.environment,
        **environment,
    }
    log_file = bench.directory / f"server{len(bench._servers)}.log"
    server = ServerProcess(log_file, **settings)
    bench._servers.append(server)
    return server


def to_front(bench: Bench, server: ServerProcess) -> None:
    """Makes it ``bench.server``."""
    bench._servers.remove(server)
    bench._servers.append(server)


async def readiness(server: ServerProcess) -> dict[str, Any]:
    """What its /readyz says. Raises NotSent or Lost."""
    connection = Connection(server.url, timeout_s=5.0)
    try:
        answer = await connection.request("GET", "/readyz")
        return dict(orjson.loads(answer.body), status=answer.status)
    finally:
        connection.close()


async def until_it_is(server: ServerProcess, lease: str, limit_s: float) -> float:
    """Seconds until its /readyz says so."""
    started = time.monotonic()
    while (said := await readiness(server))["lease"] != lease:
        if time.monotonic() > started + limit_s:
            raise Stuck(f"the instance is not {lease} within {limit_s:g} s: {said}")
        await asyncio.sleep(0.02)
    return time.monotonic() - started


def longest_gap(ops: Iterable[Op], begin: float, end: float) -> float:
    """The longest time in which no write was acknowledged, in seconds."""
    ends = sorted(op.end for op in ops if op.is_write and op.is_acknowledged)
    times = [begin, *(at for at in ends if begin < at < end), end]
    return max(later - earlier for earlier, later in pairwise(times))


class Late:
    """One who writes at memory, and does not give up."""

    def __init__(self, url: str, item_id: str) -> None:
        self._connection = Connection(url)
        data = {"by": item_id, "put": item_id}
        self._op = Op(-1, "put", item_id, 0.0, level="memory", by=item_id)
        self._op.data = orjson.dumps(data).decode()

    async def knocks(self) -> None:
        await self._connection.request("GET", "/livez")

    async def puts(self) -> Op:
        """What became of it."""
        op, body = self._op, f'{{"data":{self._op.data}}}'.encode()
        op.start = time.monotonic()
        try:
            answer = await self._connection.request(
                "PUT", item_path(op.id or ""), body, Durability=op.level
            )
        except Lost:
            return op
        finally:
            self._connection.close()
        op.end, op.status, op.body = time.monotonic(), answer.status, answer.body
        op.given = answer.headers.get("durability", "")
        op.retry_after = "retry-after" in answer.headers
        said = orjson.loads(answer.body)
        op.version, op.code = said.get("version", 0), said.get("code", "")
        return op
