"""The commands: keys made, shown and revoked, straight in the database and through a server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from typer.testing import CliRunner

from itemstore import cli
from itemstore.core.apikey import id_in
from itemstore.core.caller import Role
from itemstore.keyring import Keyring
from itemstore.storage.postgres import Postgres
from tests.acceptance.process import ServerProcess
from tests.acceptance.test_drain import until_logged
from tests.stores import Logged, soon, until
from tests.web.callers import API_KEY, KEYS, Calling, admin, caller
from tests.web.conftest import Service, service_over


async def run(dsn: str, *arguments: str, **environment: str) -> Any:
    """``itemstore`` with these arguments, on a thread: the server is on this one."""
    settings = {"DATABASE_URL": dsn, "COLUMNS": "250", "NO_COLOR": "1", **environment}
    return await asyncio.to_thread(CliRunner().invoke, cli.app, arguments, env=settings)


async def run_apart(said: str, *arguments: str, **environment: str) -> tuple[int | None, bool]:
    """The same as a process: its exit code, and whether it says this. It handles signals."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "itemstore", *arguments),
        env={"PATH": os.environ["PATH"], "NO_COLOR": "1", "COLUMNS": "250", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await soon(process.communicate())
    return process.returncode, said in output.decode()


@pytest.fixture
async def service(dsn: str) -> AsyncIterator[Service]:
    """A server that asks for keys."""
    async with service_over(Postgres(dsn), access=KEYS) as one:
        yield one


@pytest.mark.parametrize("way", ["database", "server"])
async def test_a_key_is_made_listed_and_revoked(service: Service, dsn: str, way: str) -> None:
    """Both ways alike; what is printed on standard output is the key and nothing else."""
    to = ("--url", service.api.url, "--token", API_KEY) if way == "server" else ()
    asked: tuple[str, ...] = ("shop", "--role", "write", "--prefix", "shop/", "--expires", "90d")
    asked += ("--max-items", "1", "--max-bytes", "10MiB")
    made = await run(dsn, "keys", "create", *asked, *to)
    assert 0 == made.exit_code, made.output
    token = made.stdout.strip()
    key_id = id_in(token)
    assert key_id is not None
    assert key_id in made.stderr
    listed = await run(dsn, "keys", "list", *to)
    for each in (key_id, "shop", "write", "shop/", "up to 1 ", "up to 10,485,760"):
        assert each in listed.stdout
    assert token not in listed.stdout
    calling = Calling(service.api, token)
    assert service.keyring is not None
    keyring = service.keyring
    await until(lambda: keyring.find(token) is not None or not keyring.is_known)
    assert 201 == (await calling("PUT", "/items/shop%2Fa", {"data": {}})).status
    assert 403 == (await calling("PUT", "/items/shop%2Fb", {"data": {}})).status

    revoked = await run(dsn, "keys", "revoke", key_id, *to)

    assert 0 == revoked.exit_code
    await until(lambda: keyring.find(token) is None)
    assert 401 == (await calling("GET", "/items/shop%2Fa")).status
    again = await run(dsn, "keys", "revoke", key_id, *to)
    assert (1, True) == (again.exit_code, "no key" in again.stdout)
    assert "There is no key yet" in (await run(dsn, "keys", "list", *to)).stdout


@pytest.mark.parametrize(
    "wrong",
    [
        *(("a", "--role", "root"), ("a", "--expires", "soon"), ("a" * 101,), ("",)),
        ("a", "--role", "admin", "--prefix", "b"),
        ("a", "--expires", "9999999d"),
        *(("a", "--max-items", "0"), ("a", "--max-bytes", "much"), ("a", "--max-bytes", "0")),
        *(("a", "--max-bytes", "-1"), ("a", "--max-bytes", "9" * 400)),
    ],
    ids=str,
)
async def test_a_wrong_wish_makes_no_key(dsn: str, wrong: tuple[str, ...]) -> None:
    """It ends with 1, and says what is allowed."""
    done = await run(dsn, "keys", "create", *wrong)

    assert 1 == done.exit_code
    assert isinstance(done.exception, SystemExit)
    assert "itemkey_" not in done.output
    assert "There is no key yet" in (await run(dsn, "keys", "list")).stdout


async def test_the_first_key_can_be_made_before_there_is_a_server(dsn: str) -> None:
    """In an empty database: the command makes the tables."""
    made = await run(dsn, "keys", "create", "first", "--role", "admin")

    async with service_over(Postgres(dsn), access=KEYS) as service:
        assert 200 == (await Calling(service.api, made.stdout.strip())("GET", "/keys")).status


async def test_commands_show_their_token(service: Service, dsn: str, tmp_path: Path) -> None:
    """stats, quarantine, import and export against a server that asks, by option or variable."""
    reader = (await caller(service, Role.READ)).token
    writer = (await caller(service, Role.WRITE)).token
    url = service.api.url
    source, target = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_bytes(b'{"id":"a","data":{"n":1}}\n')

    for token in ("", "itemkey_wrong"):
        done = await run(dsn, "stats", "--url", url, "--token", token)
        assert 1 == done.exit_code
        assert "key" in done.output
    assert 0 == (await run(dsn, "stats", "--url", url, "--token", reader)).exit_code
    assert 0 == (await run(dsn, "stats", "--url", url, ITEMSTORE_TOKEN=reader)).exit_code
    assert 1 == (await run(dsn, "quarantine", "list", "--url", url, "--token", reader)).exit_code
    listed = await run(dsn, "quarantine", "list", "--url", url, "--token", API_KEY)
    assert (0, "Nothing is in quarantine.\n") == (listed.exit_code, listed.stdout)
    put = ("import", str(source), "--server", url)
    assert (1, True) == await run_apart("needs the role write", *put, "--token", reader)
    assert (0, True) == await run_apart("", *put, ITEMSTORE_TOKEN=writer)
    got = ("export", str(target), "--server", url)
    assert (1, True) == await run_apart("Say who you are", *got)
    assert (0, True) == await run_apart("", *got, "--token", reader)
    assert {"n": 1} == orjson.loads(target.read_bytes())["data"]


# --- the process


async def test_a_key_is_shown_to_no_log(dsn: str) -> None:
    """By the keyring itself: the id only."""
    logged = Logged()
    storage = Postgres(dsn)
    await storage.open()
    try:
        _, token = await Keyring(storage.keys, logged.log).add("a", Role.READ)
    finally:
        await storage.close()

    assert ["key_created"] == logged.names()
    assert token not in str(logged)


@pytest.mark.parametrize(
    "environment",
    [{"HOST": "0.0.0.0"}, {"RAILWAY_ENVIRONMENT_NAME": "production"}],
    ids=["HOST", "Railway"],
)
def test_a_server_that_others_reach_does_not_start_unasked(
    environment: dict[str, str], dsn: str, tmp_path: Path
) -> None:
    """It exits with 1 and what to set; its port was never open."""
    server = ServerProcess(tmp_path / "log", DATABASE_URL=dsn, **environment).start(wait=False)
    try:
        assert 1 == server.wait()
    finally:
        server.end()
    for each in ("API_KEY", "openssl rand -hex 32", "AUTH=none"):
        assert each in server.output()


def test_a_server_says_who_reaches_it(dsn: str, tmp_path: Path) -> None:
    """Without HOST and without a word it serves this machine, and says what to set for others."""
    server = ServerProcess(tmp_path / "log", DATABASE_URL=dsn, HOST="")
    try:
        server.start()
        until_logged(server, "serving")
        [serving] = [each for each in server.events() if each["message"] == "serving"]
    finally:
        server.end()
    assert "none" == serving["auth"]
    assert "set API_KEY" in serving["reach"]


async def test_an_admin_of_the_environment_is_known_at_once(dsn: str) -> None:
    """API_KEY needs no table."""
    async with service_over(Postgres(dsn), access=KEYS) as service:
        assert {"keys": []} == (await admin(service.api)("GET", "/keys")).json


async def test_a_token_does_not_go_along_to_another_address(dsn: str, tmp_path: Path) -> None:
    """A redirect is an error: for the commands that ask, and for an export."""
    asked = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path.startswith("/taken"):
            return web.Response(body=b"{}")
        raise web.HTTPFound(f"/taken{request.path}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    source = tmp_path / "in.ndjson"
    source.write_bytes(b'{"id":"a","data":{"n":1}}\n')
    try:
        assert 1 == (await run(dsn, "stats", "--url", url, "--token", API_KEY)).exit_code
        for command in (("export", str(tmp_path / "out.ndjson")), ("import", str(source))):
            code, _ = await run_apart("", *command, "--server", url, "--token", API_KEY)
            assert 1 == code
    finally:
        await runner.cleanup()

    assert ["/stats", "/export", "/import"] == asked
