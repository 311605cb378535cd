"""The header Durability: what is asked for is given and told, or refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.web.conftest import Api, Gate, count_of, make, path

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("level", ["memory", "commit"])
async def test_the_answer_tells_the_durability(api: Api, name: str, level: str) -> None:
    """A write is answered with the durability it was asked for and has."""
    for method, target, body in (
        ("PUT", path(name), {"data": {}}),
        ("PATCH", path(name), {"data": {}}),
        ("POST", "/items", {"data": {}}),
        ("POST", "/items:batch", {"operations": [{"op": "get", "id": name}]}),
        ("DELETE", path(name), None),
    ):
        answer = await api(method, target, body, durability=level)

        assert answer.status < 300
        assert answer.headers["Durability"] == level


async def test_without_a_wish_the_default_durability_is_told(api: Api, name: str) -> None:
    """A write that asks for nothing has the store's durability, commit, and a read tells none."""
    assert (await make(api, name)).headers["Durability"] == "commit"
    assert "Durability" not in (await api("GET", path(name))).headers


async def test_commit_waits_for_postgresql_and_memory_does_not(
    api: Api, name: str, held_writes: Gate
) -> None:
    """A write at commit is answered when it is committed, one at memory before; both are read."""
    answer = await make(api, name, {"n": 1}, durability="memory")
    await held_writes.reached.wait()
    assert answer.status == 201

    waiting = asyncio.create_task(make(api, name, {"n": 2}, durability="commit"))
    while (read := await api("GET", path(name))).json["data"] == {"n": 1}:
        pass
    assert read.json["data"] == {"n": 2}
    assert not waiting.done()
    held_writes.open.set()
    assert (await waiting).body == read.body


@pytest.mark.parametrize(
    ("level", "status", "code"),
    [
        ("journal", 503, "durability_unavailable"),
        ("disk", 400, "invalid_durability"),
        ("Memory", 400, "invalid_durability"),
        ("memory, commit", 400, "invalid_durability"),
        ("", 400, "invalid_durability"),
        ("0", 400, "invalid_durability"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "batch"])
async def test_a_durability_that_cannot_be_given_is_refused(
    api: Api, name: str, method: str, level: str, status: int, code: str
) -> None:
    """An unknown level is 400 and one without its means 503; nothing is written at a lesser one."""
    before = await make(api, name)
    target = path(name)
    body: dict[str, Any] = {"data": {"other": 1}}
    if method == "POST":
        target, body = "/items", {"id": f"{name}new", **body}
    elif method == "batch":
        method, target = "POST", "/items:batch"
        body = {"operations": [{"op": "delete", "id": name}]}

    answer = await api(method, target, None if method == "DELETE" else body, durability=level)

    assert "memory" in answer.is_problem(status, code)["detail"]
    assert (await api("GET", path(name))).body == before.body
    assert await count_of(api, name) == 1


async def test_two_durability_lines_are_refused(api: Api, name: str) -> None:
    """Two levels at once are none."""
    lines = [("Durability", "memory"), ("Durability", "memory")]

    answer = await api("PUT", path(name), {"data": {}}, lines=lines)

    answer.is_problem(400, "invalid_durability")
