"""``itemstore doctor`` finds what is wrong with a real deployment, and says what to type."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp.web_response
import psycopg
import pytest
from aiohttp import web

from itemstore import doctor, memory, persister, surroundings
from itemstore.access import Access
from itemstore.asking import Server
from itemstore.core.caller import Role
from itemstore.core.rate import Rate
from itemstore.finding import Finding, Verdict
from itemstore.log import library_logger
from itemstore.options import Options, Preload
from itemstore.settings import Settings, load
from itemstore.storage import Lease
from itemstore.storage.embedded import EmbeddedPostgres
from itemstore.storage.postgres import Postgres
from itemstore.surroundings import Surroundings
from itemstore.web.door import Door
from itemstore.web.limits import Limits
from itemstore.web.server import listening_socket
from itemstore.web.shared import Shared
from itemstore.web.traffic import Kind
from tests.conftest import _FAST, _FOUND
from tests.stores import Road
from tests.web.callers import KEYS, caller
from tests.web.conftest import Gate, Service, make, service_over

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL


class Said(NamedTuple):
    """What a person who asks the doctor gets."""

    code: int
    text: str


Ask = Callable[..., Any]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The doctor's answer on a service, or on an address."""

    async def at(where: Service | str, token: str = "", **variables: str) -> Said:
        url = where if isinstance(where, str) else where.api.url
        settings = load(variables)
        code = await asyncio.to_thread(doctor.doctor, settings, Server(url, token))
        return Said(code, capsys.readouterr().out)

    return at


def finds(said: Said, verdict: Verdict, what: str, advice: str) -> None:
    """There is this finding with this to do, and the answer says that there is something to do."""
    found = re.findall(r"^ *(ok|warn|FAIL)  (.*)\n((?:      .*\n)*)", said.text, re.MULTILINE)
    marks = {"ok": OK, "warn": WARN, "FAIL": FAIL}
    assert any(
        (marks[mark], what in told, advice in more) == (verdict, True, True)
        for mark, told, more in found
    ), said.text
    assert 1 == said.code
    order = [marks[mark] for mark, *_ in found]
    assert sorted(order, reverse=True) == order
    assert all(marks[mark] is OK or "→" in more for mark, _, more in found)


@asynccontextmanager
async def deployed(
    dsn: str, path: Path | None = None, access: Access | None = None, **options: Any
) -> AsyncIterator[Service]:
    """A store that is served, and that looks around often."""
    storage = Postgres(dsn)
    around = Surroundings(storage, path)
    async with service_over(storage, Options(**options), access=access, around=around) as one:
        yield one


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "LOOK_INTERVAL_S", 0.05)


async def test_a_store_that_is_well(dsn: str, tmp_path: Path, ask: Ask) -> None:
    """Nothing to do is exit code 0, and the doctor says what it looked at."""
    async with deployed(dsn, tmp_path, journal_dir=tmp_path / "journal") as service:
        await make(service.api, "a", durability="commit")
        await service.until(lambda: service.store.cache.hydrated)
        said = await ask(service, DATA_DIR=str(tmp_path))
    assert 0 == said.code, said.text
    assert "is ready, lease holder, 1 items in the cache" in said.text
    assert not re.search("warn|FAIL|→", said.text)


async def test_the_server_is_asked_about_itself(dsn: str, ask: Ask) -> None:
    """With DATABASE_URL, PostgreSQL's settings are looked at; the password is not told."""
    async with deployed(dsn) as service:
        said = await ask(service, DATABASE_URL=dsn)
    finds(said, WARN, "fsync is off: a power loss", "ALTER SYSTEM SET fsync = on")
    assert "connections in use" in said.text
    assert dsn not in said.text


async def test_nobody_answers(ask: Ask) -> None:
    """A port where nothing listens is exit code 2, with how to name another."""
    with closing(listening_socket("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    said = await ask(url)
    assert 2 == said.code
    assert "Name it with --url" in said.text
    assert 2 == (await ask("items.example.com")).code


async def test_somebody_else_answers(aiohttp_server: Any, ask: Ask) -> None:
    """A server that is no itemstore is exit code 2."""
    said = await ask(str((await aiohttp_server(web.Application())).make_url("")))
    assert 2 == said.code
    assert "is not an itemstore" in said.text


async def test_a_key_that_may_read_is_enough(dsn: str, ask: Ask) -> None:
    """Where callers are asked, the doctor sees all with the role read; the key is not told."""
    async with deployed(dsn, access=KEYS) as service:
        await service.until(lambda: service.store.cache.hydrated)
        reader = await caller(service, Role.READ)
        said = await ask(service, reader.token)
    assert 0 == said.code, said.text
    assert "is ready, lease holder, 0 items in the cache" in said.text
    assert "memory in use" in said.text
    assert reader.token not in said.text


async def test_a_token_that_does_not_do(dsn: str, ask: Ask) -> None:
    """None, a wrong one and a confined one: what the server said, and how to get a better one."""
    async with deployed(dsn, access=KEYS) as service:
        confined = await caller(service, Role.READ, "a/")
        without = await ask(service)
        wrong = await ask(service, "wrong")
        lesser = await ask(service, confined.token)
    command = f"itemstore keys create doctor --role read --url {service.api.url}"
    finds(without, WARN, "asks for a key, and was shown none: /stats or /metrics answered", command)
    finds(wrong, WARN, "answered 401. The key is not one of this store.", command)
    finds(lesser, WARN, "answered 403. This tells of the whole store", "and no prefix")
    for each in (without, wrong, lesser):
        assert f"  ok  {service.api.url} is ready\n" in each.text
    assert confined.token not in lesser.text


async def test_a_stranger_is_told_everything(dsn: str) -> None:
    """Who is asked by nobody sees it; it is a warning where others than this machine ask."""
    async with deployed(dsn) as service:
        at = Server(service.api.url, "a token")
        assert (await doctor._look(Settings(), at)).is_open
    async with deployed(dsn, access=KEYS) as service:
        at = Server(service.api.url, (await caller(service, Role.READ)).token)
        assert not (await doctor._look(Settings(), at)).is_open
    told = [each.what for each in found(is_open=True, url="https://items.example.com")]
    assert ["https://items.example.com tells everything to a stranger: AUTH is none"] == told
    assert [] == found(is_open=True, url="http://localhost:8080")
    assert [] == found(is_open=False, url="https://items.example.com")


async def test_redis_is_lost(dsn: str, ask: Ask) -> None:
    """A Redis that does not answer is a warning: limits are counted, but not together."""
    shared = Shared("redis://127.0.0.1:1", library_logger())
    limited = Limits({Kind.HEAVY: Rate.parse("1000/s")}, shared=shared)
    async with service_over(Postgres(dsn), limited=limited) as service:
        said = await ask(service)
    finds(said, WARN, "Redis does not answer the server", 'redis-cli -u "$REDIS_URL" ping')


async def test_callers_take_all_connections(dsn: str, ask: Ask) -> None:
    """Above 80 % of CONNECTIONS_MAX it is said."""
    async with service_over(Postgres(dsn), door=Door(5)) as service:
        for _ in range(4):
            await (await service.raw()).check_usable()
        said = await ask(service)
    finds(said, WARN, "of the connections for callers in use", "raise CONNECTIONS_MAX")


async def test_a_store_that_is_starting(dsn: str, ask: Ask) -> None:
    """Not ready yet is a failure, with the command that says what a connection meets."""
    storage = Postgres(dsn)
    async with service_over(storage, start=False, around=Surroundings(storage)) as service:
        said = await ask(service)
    finds(said, FAIL, "the server is not ready", "itemstore check")


async def test_a_halted_persister(dsn: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing table halts the persister: mend it in PostgreSQL, and do not restart."""
    monkeypatch.setattr(persister, "HALT_RETRY_S", 0.05)
    async with deployed(dsn) as service:
        await service.until(lambda: service.store.cache.hydrated)
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE items RENAME TO gone")
        await make(service.api, "a", durability="memory")
        await service.until(lambda: service.store.persister.is_halted)
        said = await ask(service)
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE gone RENAME TO items")
    finds(said, FAIL, "the persister is halted", "do not restart")


async def test_an_item_in_quarantine(dsn: str, ask: Ask) -> None:
    """What PostgreSQL refused is counted, with the command that lists it there."""
    async with deployed(dsn) as service:
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE items ADD CHECK ((data ->> 'n')::int < 100)")
        await service.api("PUT", "/items/bad", {"data": {"n": 100}}, durability="commit")
        said = await ask(service)
        finds(said, FAIL, "1 items in quarantine", f"quarantine list --url {service.api.url}")


async def test_postgresql_is_away(dsn: str, ask: Ask) -> None:
    """It says since when, that the store is not to be restarted, and what a connection meets."""
    road = Road(dsn)
    await road.open()
    async with deployed(road.dsn) as service:
        await service.until(lambda: service.store.cache.hydrated)
        await road.cut()
        await make(service.api, "a", durability="memory")
        await service.until(lambda: service.store.persister.failure is not None)
        said = await ask(service, DATABASE_URL=road.dsn)
        await road.open()
        await service.store.flush()
        await road.cut()
    finds(said, FAIL, "PostgreSQL has not taken a batch for", "do not restart the store")
    finds(said, FAIL, "PostgreSQL cannot be asked from here: ", "check that it runs")


async def test_writes_that_are_not_committed(
    dsn: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The age of the oldest, how many wait, and that the room for them runs out."""
    monkeypatch.setattr(doctor, "DIRTY_AGE_MAX_S", 0.0)
    storage = Postgres(dsn)
    gate = Gate(storage.write)
    storage.write = gate  # type: ignore[method-assign]
    async with service_over(storage, Options(queue_items_max=4)) as service:
        for number in range(3):
            await make(service.api, f"{number}", durability="memory")
        said = await ask(service)
        gate.open.set()
    finds(said, FAIL, "s old, 3 items wait", "lock_waits")
    finds(said, WARN, "75% of the room for writes (items) in use: 3 of 4", "slow_queries")


async def test_a_standby(dsn: str, ask: Ask) -> None:
    """An instance that has handed the lease over says who has it, and what to look at."""
    async with deployed(dsn) as standby, deployed(dsn) as holder:
        await holder.until(lambda: holder.store.lease.is_holder)
        said = await ask(standby, DATABASE_URL=dsn)
    finds(said, WARN, "this instance is standby; the writer lease is with ", "TABLE writer_lease")


def test_nobody_holds_the_lease() -> None:
    """A lease that is free while an instance stands by is a failure."""
    free = Lease(1, None, None, True, 0, 0)
    [found] = doctor._lease(seen(lease=free))
    assert (found.verdict, found.what) == (FAIL, "no instance holds the writer lease")


async def test_a_journal_that_is_full(dsn: str, tmp_path: Path, ask: Ask) -> None:
    """A journal that refuses is a failure; it says what to look at."""
    async with deployed(dsn, journal_dir=tmp_path / "journal", journal_bytes_max=0) as service:
        answer = await service.api("PUT", "/items/a", {"data": {}}, durability="journal")
        answer.is_problem(503, "durability_unavailable")
        said = await ask(service)
    finds(said, FAIL, "the journal is full", 'df -h "$DATA_DIR"')


async def test_a_volume_without_a_journal(dsn: str, tmp_path: Path, ask: Ask) -> None:
    """There is a directory for data, and the store has no journal in it."""
    async with deployed(dsn) as service:
        said = await ask(service, RAILWAY_VOLUME_MOUNT_PATH=str(tmp_path))
    finds(said, WARN, "no journal in it", "itemstore check")


async def test_a_platform_that_kills_too_soon(dsn: str, ask: Ask) -> None:
    """Railway's time until SIGKILL is less than the queue may need."""
    async with deployed(dsn) as service:
        said = await ask(service, RAILWAY_ENVIRONMENT_NAME="production", DATABASE_URL=dsn)
    finds(said, WARN, "Railway's drain time is not set", "RAILWAY_DEPLOYMENT_DRAINING_SECONDS")


@pytest.fixture(scope="module")
def crowded(public_dir: Path) -> Iterator[str]:
    """A server of this module's own that takes few connections."""
    parameters = {**_FAST, "max_connections": "18"}
    server = EmbeddedPostgres(
        public_dir / "crowded", binaries=_FOUND[max(_FOUND)].bin, parameters=parameters
    )
    yield server.start()
    server.stop()


async def test_connections_that_run_out(crowded: str, ask: Ask) -> None:
    """Above 80 % of max_connections it is said, from the server's own numbers and from ours."""
    held = [psycopg.connect(crowded) for _ in range(10)]
    try:
        async with deployed(crowded) as service:
            await service.until(lambda: _used(service) > 14)
            said = await ask(service)
            finds(said, WARN, "of PostgreSQL's connections in use", "raise max_connections")
            said = await ask(service, DATABASE_URL=crowded)
            finds(said, WARN, "of 18 connections in use", "raise max_connections")
    finally:
        for each in held:
            each.close()


def _used(service: Service) -> int:
    server = service.around.server
    return 0 if server is None else server.connections


async def test_memory_and_disk_that_run_out(
    dsn: str, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 90 % of memory and 80 % of the disk it is said, with what to do."""
    usage = shutil._ntuple_diskusage(1_000, 801, 199)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    async with deployed(dsn, tmp_path) as service:
        monkeypatch.setattr(memory, "limit_bytes", lambda: memory.resident_bytes() * 21 // 20)
        await service.until(lambda: service.around.disk is not None)
        said = await ask(service)
    finds(said, WARN, "95% of memory in use", "CACHE_MAX_BYTES")
    finds(said, WARN, "80% of the disk of the data directory in use", "free space")


async def test_clocks_that_differ(dsn: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose clock is not PostgreSQL's is told by how much."""
    monkeypatch.setattr(
        aiohttp.web_response, "rfc822_formatted_time", lambda: "Thu, 01 Jan 2026 00:00:00 GMT"
    )
    async with deployed(dsn) as service:
        said = await ask(service, DATABASE_URL=dsn)
    finds(said, WARN, "the server's clock and PostgreSQL's are ", "timedatectl")


async def test_a_preload_that_runs(dsn: str, ask: Ask) -> None:
    """While the cache is filled it says how far that is."""
    storage = Postgres(dsn)
    gate = Gate(storage.page)
    storage.page = gate  # type: ignore[method-assign]
    options = Options(skip_items_preload=Preload.PRELOAD)
    async with service_over(storage, options) as service:
        await gate.reached.wait()
        said = await ask(service)
        gate.open.set()
        await service.until(lambda: service.store.cache.hydrated)
        assert "the preload has" not in (await ask(service)).text
    finds(said, WARN, "the preload has brought 0 of about", "/readyz")


# --- what is decided, whatever was asked


def seen(**known: Any) -> doctor.Seen:
    state = {"ready": True, "lease": "holder", "database": "ok", "journal": "none", "dirty": 0}
    return doctor.Seen(state={**state, "quarantined": 0, "loaded": 0, "estimate": 0}, **known)


def found(url: str = "http://x", **known: Any) -> list[Finding]:
    findings = doctor.findings(seen(**known), Settings(), url)
    return [each for each in findings if each.verdict > OK]


@pytest.mark.parametrize(("failed", "is_told"), [(1.0, False), (1.1, True)])
def test_errors_are_told_above_one_in_a_hundred(failed: float, is_told: bool) -> None:
    counted = [({"status": "200"}, 100 - failed), ({"status": "503"}, failed)]
    told = [each.what for each in found(samples={"itemstore_http_requests_total": counted})]
    assert is_told == any("got an error of ours" in each for each in told)


@pytest.mark.parametrize(("fast", "is_told"), [(95, False), (94, True)])
def test_slowness_is_told_by_kind(fast: float, is_told: bool) -> None:
    """More than one in twenty above a second."""
    buckets = [
        ({"kind": kind, "le": bound}, count)
        for kind, in_time in (("read", 100), ("write", fast))
        for bound, count in (("1.0", in_time), ("2.5", 100), ("+Inf", 100))
    ]
    samples = {"itemstore_http_request_duration_seconds_bucket": buckets}
    told = [each.what for each in found(samples=samples) if "took more than 1 s" in each.what]
    assert told == (
        ["one in twenty write requests since the start took more than 1 s"] if is_told else []
    )


def test_nothing_counted_is_not_slow() -> None:
    assert 0.0 == doctor.quantile_bound(0.95, [])
    assert 0.0 == doctor.quantile_bound(0.95, [(1.0, 0), (float("inf"), 0)])


# --- the command


async def test_the_command(dsn: str) -> None:
    """``itemstore doctor`` takes the address from --url, and ends with what it found."""
    async with deployed(dsn) as service:
        await service.until(lambda: service.store.cache.hydrated)
        command = (sys.executable, "-m", "itemstore", "doctor", "--url", service.api.url)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    assert 0 == process.returncode, out
    assert f"{service.api.url} is ready".encode() in out


async def test_a_redirect_is_not_followed(aiohttp_server: Any, ask: Ask) -> None:
    """The token is for the server that was named, and for no other."""
    sent = []

    async def elsewhere(request: web.Request) -> web.Response:
        sent.append(request.path)
        return web.Response(status=307, headers={"Location": "/other"})

    app = web.Application()
    app.router.add_get("/{path:.*}", elsewhere)
    url = str((await aiohttp_server(app)).make_url(""))
    assert 2 == (await ask(url, token="secret")).code
    assert "/other" not in sent
