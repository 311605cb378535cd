"""What it costs to know who calls: GETs through the fast lane with API keys on, against without.

    python -m benchmarks.guarded [--quick] [--items 10000] [--runs 10]

Two servers over tables of the same items, both running throughout. wrk asks one and then the other
over 32 connections for random items, and in the next round in the other order. Requests a second
tell as much of what else the machine does; the server's own CPU time for a request tells less of
it. Beside it, how long a header that was seen before takes to be recognised, in this process.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from timeit import Timer
from typing import Final

from matplotlib.figure import Figure

from benchmarks import command, wrk
from benchmarks.apis import ItemsApi
from benchmarks.client import item_path, request
from benchmarks.data import load
from benchmarks.report import Result, Table, environment, ratios, spread
from benchmarks.requests_file import pack
from benchmarks.servers import POLL_S, Server, ServerError, database, itemstore, postgres
from benchmarks.spent import cpu_s
from benchmarks.ways import bars
from benchmarks.workload import Workload
from itemstore import asking
from itemstore.access import Access
from itemstore.web.access import Guard

OPEN, GUARDED = "nobody is asked", "API keys"
ITEMS: Final = 10_000
CONNECTIONS: Final = 32
SECONDS: Final = 3.0
QUICK_SECONDS: Final = 0.2
LOOK_UPS: Final = 100_000
HYDRATED_S: Final = 60.0


class GuardedApi(ItemsApi):
    """itemstore's own, with a key."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def get(self, item_id: str, etag: str = "") -> bytes:
        del etag  # not asked for here
        return request("GET", item_path(item_id), {"Authorization": f"Bearer {self._token}"})


def main() -> None:
    given = command.parse_size(__doc__, ITEMS)
    workload, seconds = Workload(given.items), QUICK_SECONDS if given.quick else SECONDS
    admin = secrets.token_hex(32)
    with command.progress() as bar, postgres() as server_dsn, ExitStack() as stack:
        result = Result("guarded", environment(server_dsn))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for name, settings in ((OPEN, {}), (GUARDED, {"API_KEY": admin})):
            dsn = stack.enter_context(database(server_dsn))
            load(dsn, workload.items, items=workload.rows)
            servers[name] = stack.enter_context(itemstore(dsn, **settings))
        token = _key(servers[GUARDED], admin)
        for name, api in ((OPEN, ItemsApi()), (GUARDED, GuardedApi(token))):
            packed = pack(workload.requests("get", api, servers[name].port))
            _file(directory, name).write_bytes(packed)
            _wait_until_hydrated(servers[name], token)
        task = bar.add_task("measuring", total=given.runs)
        for number in range(given.runs):
            order = (OPEN, GUARDED) if number % 2 == 0 else (GUARDED, OPEN)
            values = {name: _gets(servers[name], _file(directory, name), seconds) for name in order}
            result.add(workload.items, OPEN, **values[OPEN])
            result.add(workload.items, GUARDED, **values[GUARDED], look_up_ns=look_up_ns())
            bar.advance(task)
    command.finish(result, tables(result), plot, given)


def _file(directory: Path, name: str) -> Path:
    return directory / name.replace(" ", "-")


def _key(server: Server, admin: str) -> str:
    """A reader's, as a caller has it."""
    server.wait_for("/readyz")
    at = asking.Server(f"http://127.0.0.1:{server.port}", admin)
    made = asking.ask(at, "/keys", "POST", {"name": "benchmark", "role": "read"})
    return str(made["key"])


def _wait_until_hydrated(server: Server, token: str) -> None:
    """Strangers are not told."""
    server.wait_for("/readyz")
    deadline = time.perf_counter() + HYDRATED_S
    at = asking.Server(f"http://127.0.0.1:{server.port}", token)
    while not asking.ask(at, "/readyz")["hydrated"]:
        if time.perf_counter() > deadline:
            raise ServerError(f"{server.name} is not hydrated after {HYDRATED_S:g} s")
        time.sleep(POLL_S)


def _gets(server: Server, requests: Path, seconds: float) -> dict[str, float]:
    spent = cpu_s(server.pid)
    found = wrk.run(
        server.port, requests, connections=CONNECTIONS, seconds=seconds, start=0, refused=False
    )
    cpu_us = (cpu_s(server.pid) - spent) / found.requests * 1e6
    return {"get_per_s": found.per_s, "get_cpu_us": cpu_us}


def look_up_ns() -> float:
    """How long a guard takes to know a header that it has seen: the median of several tries."""
    secret = secrets.token_hex(32)
    guard = Guard(Access(host=None, keys=True, api_key=secret, issuer=None))
    header = f"Bearer {secret}"
    asyncio.run(guard.caller(header))
    took = sorted(Timer(lambda: guard.seen(header)).repeat(5, LOOK_UPS))
    return took[2] / LOOK_UPS * 1e9


def tables(result: Result) -> list[Table]:
    [items] = result.sizes()
    base, guarded = result.of(items, OPEN), result.of(items, GUARDED)
    shares = [
        spread(ratios(guarded["get_per_s"], base["get_per_s"])),
        spread(ratios(base["get_cpu_us"], guarded["get_cpu_us"])),
    ]
    rows = [
        (name, spread(of["get_per_s"]), spread(of["get_cpu_us"]))
        for name, of in ((OPEN, base), (GUARDED, guarded))
    ]
    rows.append(("the second's speed as a share of the first's", shares[0], shares[1]))
    title = (
        f"{items:,} items, {CONNECTIONS} connections; a header is recognised in "
        f"{spread(guarded['look_up_ns'])} ns"
    )
    return [Table(title, ("server", "GETs a second", "CPU time of one, µs"), rows)]


def plot(result: Result) -> Figure:
    """GETs a second of both."""
    return bars(result, [OPEN, GUARDED], "get_per_s", "GETs a second")


if __name__ == "__main__":
    main()
