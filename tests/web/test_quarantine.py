"""Quarantine over HTTP, and by the commands ``itemstore quarantine …`` against that server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from typer.testing import CliRunner

from itemstore import cli
from itemstore.web.server import listening_socket
from tests.sql import query
from tests.stores import Gated
from tests.web.conftest import Service, make, path, service_over

REFUSE = "ALTER TABLE items ADD CONSTRAINT no_negative CHECK (data ->> 'n' NOT LIKE '-%')"
ALLOW = "ALTER TABLE items DROP CONSTRAINT no_negative"
#: Ids that a terminal, a URL or a shell could mistake for something else.
ODD = ("[red]x", "[/]", "a/b", "a b", "ä?#%2F", "[bold]a/../b[/bold]")


def parked_path(item_id: str) -> str:
    return f"/quarantine/{quote(item_id, safe='')}"


@pytest.fixture
async def refusing(dsn: str) -> AsyncIterator[Service]:
    """A service of "old", with a newer write in quarantine, and "new", which is only there."""
    async with service_over(Gated(dsn)) as service:
        await make(service.api, "old", {"n": 0}, durability="commit")
        query(dsn, REFUSE)
        await park(service, "old")
        await park(service, "new")
        yield service


async def park(service: Service, item_id: str) -> None:
    answer = await service.api("PUT", path(item_id), {"data": {"n": -1}}, durability="commit")
    answer.is_problem(500, "item_quarantined")


def storage(service: Service) -> Gated:
    assert isinstance(service.store._storage, Gated)
    return service.store._storage


async def ids(service: Service) -> list[str]:
    answer = await service.api("GET", "/quarantine")
    assert (200, "no-store") == (answer.status, answer.headers["Cache-Control"])
    return [each["id"] for each in answer.json["items"]]


# --- over HTTP


async def test_what_was_refused_is_listed_and_shown(refusing: Service) -> None:
    """The list has id, version, reason and time of each; one alone has its data as well."""
    api = refusing.api
    [old, new] = (await api("GET", "/quarantine")).json["items"]
    assert {"id", "version", "deleted", "error", "at"} == set(old) == set(new)
    assert ("old", False) == (old["id"], old["deleted"])
    assert "no_negative" in old["error"]
    shown = await api("GET", "/quarantine/old")
    assert old | {"data": {"n": -1}} == shown.json
    assert old["version"] == (await api("GET", "/items/old")).json["version"]
    assert b"" == (await api("HEAD", "/quarantine")).body


async def test_a_retry_while_the_rule_stands_is_refused(refusing: Service) -> None:
    """POST is 500 item_quarantined as long as PostgreSQL refuses; the item stays parked, served."""
    answer = await refusing.api("POST", "/quarantine/old")
    assert "no_negative" in answer.is_problem(500, "item_quarantined")["detail"]
    assert ["new", "old"] == sorted(await ids(refusing))
    assert {"n": -1} == (await refusing.api("GET", "/items/old")).json["data"]


async def test_a_retry_after_that_is_written(refusing: Service, dsn: str) -> None:
    """Once the rule is gone POST is 204: in SQL, readable, and gone from quarantine."""
    query(dsn, ALLOW)
    for item_id in ("old", "new"):
        answer = await refusing.api("POST", parked_path(item_id))
        assert (204, b"") == (answer.status, answer.body)
        read = await refusing.api("GET", path(item_id))
        assert ({"n": -1}, None) == (read.json["data"], read.headers.get("Durability"))
    assert [] == await ids(refusing)
    assert ["new", "old"] == query(dsn, "SELECT id FROM items WHERE data ->> 'n' = '-1' ORDER BY 1")
    assert 0 == (await refusing.api("GET", "/readyz")).json["quarantined"]


async def test_what_is_discarded_is_as_postgresql_has_it(refusing: Service) -> None:
    """DELETE is 204; then the item is the older one, or 404."""
    for item_id in ("old", "new"):
        assert 204 == (await refusing.api("DELETE", parked_path(item_id))).status
    assert [] == await ids(refusing)
    read = await refusing.api("GET", "/items/old")
    assert ({"n": 0}, None) == (read.json["data"], read.headers.get("Durability"))
    (await refusing.api("GET", "/items/new")).is_problem(404, "item_not_found")


async def test_a_newer_write_is_not_undone(refusing: Service) -> None:
    """POST is 412 if the item was written since."""
    write = storage(refusing).hold("write")
    await make(refusing.api, "old", {"n": 3}, durability="memory")
    await write.reached()
    (await refusing.api("POST", "/quarantine/old")).is_problem(412, "precondition_failed")
    write.open()
    assert 204 == (await refusing.api("POST", "/flush")).status
    assert {"n": 3} == (await refusing.api("GET", "/items/old")).json["data"]
    assert ["new"] == await ids(refusing)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_id_that_is_not_in_it_is_not_found(refusing: Service, method: str) -> None:
    """What is not in quarantine is 404, and the item is left alone."""
    await make(refusing.api, "fine", {"n": 1}, durability="commit")
    for item_id in ("fine", "none", "a/b"):
        answer = await refusing.api(method, parked_path(item_id))
        assert item_id in answer.is_problem(404, "item_not_found")["detail"]
    assert {"n": 1} == (await refusing.api("GET", "/items/fine")).json["data"]


async def test_without_postgresql_it_is_unavailable(refusing: Service) -> None:
    """While PostgreSQL is away each call is 503 with a time, and nothing is given up."""
    storage(refusing).cut_off()
    for method, target in (
        ("GET", "/quarantine"),
        ("GET", "/quarantine/old"),
        ("DELETE", "/quarantine/old"),
    ):
        answer = await refusing.api(method, target)
        answer.is_problem(503, "database_unavailable")
        assert "2" == answer.headers["Retry-After"]
    assert {"n": -1} == (await refusing.api("GET", "/items/old")).json["data"]
    storage(refusing).join()
    assert ["new", "old"] == sorted(await ids(refusing))


async def test_a_restart_keeps_everything(dsn: str) -> None:
    """A new process has the same in quarantine and serves it."""
    async with service_over(Gated(dsn)) as first:
        query(dsn, REFUSE)
        await park(first, "a/b")
        listed = (await first.api("GET", "/quarantine")).json
    async with service_over(Gated(dsn)) as second:
        assert listed == (await second.api("GET", "/quarantine")).json
        assert {"n": -1} == (await second.api("GET", "/items/a%2Fb")).json["data"]
        watches = storage(second).counts
        await second.until(lambda: watches["await_foreign_changes"] > 0)  # it is connected
        assert 204 == (await second.api("DELETE", "/quarantine/a%2Fb")).status
        (await second.api("GET", "/items/a%2Fb")).is_problem(404, "item_not_found")


async def test_a_refused_delete_is_shown_as_one(refusing: Service, dsn: str) -> None:
    """A delete in quarantine is listed as deleted, without data; discarded, the item is back."""
    await make(refusing.api, "gone", {"n": 1}, durability="commit")
    query(dsn, "CREATE TABLE reference AS SELECT 'gone'::text COLLATE \"C\" AS id")
    query(dsn, "ALTER TABLE reference ADD FOREIGN KEY (id) REFERENCES items")
    answer = await refusing.api("DELETE", "/items/gone", durability="commit")
    answer.is_problem(500, "item_quarantined")
    shown = (await refusing.api("GET", "/quarantine/gone")).json
    assert (True, None) == (shown["deleted"], shown["data"])
    assert 404 == (await refusing.api("GET", "/items/gone")).status
    assert 204 == (await refusing.api("DELETE", "/quarantine/gone")).status
    assert {"n": 1} == (await refusing.api("GET", "/items/gone")).json["data"]


# --- by command


async def run(*arguments: str, answers: str | None = None) -> Any:
    """``itemstore quarantine`` with these arguments, on a thread: the server is on this one."""
    return await asyncio.to_thread(
        CliRunner().invoke,
        cli.app,
        ["quarantine", *arguments],
        input=answers,
        env={"COLUMNS": "250", "NO_COLOR": "1"},
    )


async def test_the_commands_show_retry_and_discard(refusing: Service, dsn: str) -> None:
    """list, show, retry and discard do what they say, say it, and end with 0."""
    url = ("--url", refusing.api.url)
    listed = await run("list", *url)
    assert 0 == listed.exit_code
    for each in ("old", "new", "no_negative"):
        assert each in listed.output
    shown = await run("show", "old", *url)
    assert (0, {"n": -1}) == (shown.exit_code, orjson.loads(shown.output)["data"])
    refused = await run("retry", "old", *url)
    assert 1 == refused.exit_code
    assert "no_negative" in refused.output
    query(dsn, ALLOW)
    retried = await run("retry", "old", *url)
    assert (0, "old is written.\n") == (retried.exit_code, retried.output)
    discarded = await run("discard", "new", "--yes", *url)
    assert (0, "new is again as PostgreSQL has it.\n") == (discarded.exit_code, discarded.output)
    assert "Nothing is in quarantine." in (await run("list", *url)).output
    assert {"n": -1} == (await refusing.api("GET", "/items/old")).json["data"]
    assert 404 == (await refusing.api("GET", "/items/new")).status


async def test_the_command_asks_before_it_gives_up(refusing: Service) -> None:
    """Without --yes discard asks; any other answer than yes gives nothing up."""
    url = ("--url", refusing.api.url)
    for answers in ("n\n", "\n", ""):
        refused = await run("discard", "new", *url, answers=answers)
        assert 1 == refused.exit_code
        assert "'new'" in refused.output
    assert "new" in await ids(refusing)
    assert 0 == (await run("discard", "new", *url, answers="y\n")).exit_code
    assert "new" not in await ids(refusing)


@pytest.mark.parametrize("item_id", ODD)
async def test_the_commands_take_any_id(refusing: Service, dsn: str, item_id: str) -> None:
    """An id with a slash, or that looks like markup, is shown and sent as it is."""
    url = ("--url", refusing.api.url)
    await park(refusing, item_id)
    assert item_id in (await run("list", *url)).output
    assert item_id == orjson.loads((await run("show", item_id, *url)).output)["id"]
    query(dsn, ALLOW)
    assert f"{item_id} is written.\n" == (await run("retry", item_id, *url)).output
    query(dsn, "DELETE FROM items WHERE data ->> 'n' LIKE '-%'")
    missing = await run("discard", item_id, "--yes", *url)
    assert 1 == missing.exit_code
    assert item_id in missing.output


async def test_what_is_not_there_is_told(refusing: Service) -> None:
    """An id that is not in quarantine ends with 1 and the server's sentence."""
    for command in (("show", "none"), ("retry", "none"), ("discard", "none", "--yes")):
        told = await run(*command, "--url", refusing.api.url)
        assert 1 == told.exit_code
        assert "Nothing of an item 'none' is in quarantine." in told.output


@pytest.mark.parametrize("command", [("list",), ("show", "a"), ("retry", "a"), ("discard", "a")])
async def test_without_a_server_the_command_says_what_to_do(command: tuple[str, ...]) -> None:
    """No server, or an address that is none, ends with 1 and a sentence that helps."""
    with closing(listening_socket("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yes = ("--yes",) if command[0] == "discard" else ()
    for url in (f"http://127.0.0.1:{port}", "localhost:8080", "http://[red]/", "ftp://x"):
        told = await run(*command, *yes, "--url", url)
        assert (1, True) == (told.exit_code, isinstance(told.exception, SystemExit))
        assert "Is it running? Name it with --url http://host:port." in told.output
        assert url in told.output


@pytest.mark.parametrize(
    "answer",
    [b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"],
    ids=["not HTTP", "not an itemstore"],
)
async def test_another_server_at_the_address_is_told(answer: bytes) -> None:
    """A server that is no itemstore ends with 1 and a sentence, not with a traceback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        told = await run("list", "--url", f"http://127.0.0.1:{port}")
    assert isinstance(told.exception, SystemExit)
    assert 1 == told.exit_code
