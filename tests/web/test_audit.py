"""GET /audit: who changed what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from itemstore.core.item import timestamp
from itemstore.options import Options
from itemstore.storage.postgres import Postgres
from tests.web.conftest import Api, Service, make, request, run_batch, service_over


@pytest.fixture
async def audited(dsn: str) -> AsyncIterator[Service]:
    async with service_over(Postgres(dsn), Options(audit=True)) as service:
        yield service


async def rows(api: Api, parameters: str = "") -> list[dict[str, Any]]:
    answer = await api("GET", f"/audit?{parameters}")
    assert (200, "no-store") == (answer.status, answer.headers["Cache-Control"])
    assert ["rows", "next"] == list(answer.json)
    found: list[dict[str, Any]] = answer.json["rows"]
    return found


async def what(api: Api, parameters: str = "") -> list[tuple[str, str]]:
    return [(row["id"], row["what"]) for row in await rows(api, parameters)]


async def test_every_route_that_writes_leaves_rows(audited: Service) -> None:
    """Newest first, with the version the item got, who asked, the request and the address."""
    api = audited.api
    await make(api, "a", x_request_id="r-1", durability="memory")
    made = await api("PATCH", "/items/a", {"data": {"n": 2}}, x_request_id="r-2")
    await api("DELETE", "/items/a")
    await run_batch(api, {"op": "put", "id": "b", "data": {}}, {"op": "get", "id": "b"})
    lines = b'{"id":"c","data":{}}\n{"id":"b","data":{}}\n'
    await api("POST", "/import", body=lines, content_type="application/x-ndjson", check=False)
    await api("POST", "/items", {"id": "d", "data": {}})
    assert [
        *[("d", "create"), ("c", "import"), ("b", "put"), ("a", "delete"), ("a", "patch")],
        ("a", "put"),
    ] == await what(api)
    [*_, patch, _] = await rows(api)
    version = made.json["version"]
    assert {
        "at": timestamp(version).decode(),
        "version": version,
        "id": "a",
        "what": "patch",
        "caller": "anybody",
        "request_id": "r-2",
        "address": "127.0.0.1",
    } == patch


async def test_the_lane_leaves_the_same_rows(audited: Service) -> None:
    """A write that the lane answers has its row, as one of the ordinary route."""
    raw = await audited.raw()
    for fast in (True, False):
        line = "X-Request-Id: r" if fast else "X-Request-Id: r\r\nTE: trailers"
        put = request("PUT", "/items/a", b'{"data":{}}', line, "Durability: memory")
        assert (await raw.ask(put)).status in {200, 201}
    one, other = await rows(audited.api)
    assert one | {"at": 0, "version": 0} == other | {"at": 0, "version": 0}
    assert ("r", "127.0.0.1") == (one["request_id"], one["address"])


async def test_rows_are_found_by_what_they_say(audited: Service) -> None:
    """By id, prefix, caller and time, alone and together."""
    api = audited.api
    made = [await make(api, item_id) for item_id in ("a", "ab", "b", "ä/1")]
    times = [quote(each.json["updated_at"]) for each in made]
    for parameters, expected in {
        "id=a": ["a"],
        "prefix=a": ["ab", "a"],
        "id=%C3%A4%2F1": ["ä/1"],
        "caller=anybody": ["ä/1", "b", "ab", "a"],
        "caller=nobody": [],
        f"since={times[1]}": ["ä/1", "b", "ab"],
        f"until={times[1]}": ["a"],
        f"since={times[1]}&until={times[3]}&prefix=a": ["ab"],
        "id=none": [],
    }.items():
        assert expected == [item_id for item_id, _ in await what(api, parameters)], parameters


async def test_pages_lead_through_all_rows(audited: Service) -> None:
    """Each row once, also while others are added."""
    api = audited.api
    for number in range(7):
        await make(api, f"i{number}")
    seen: list[str] = []
    cursor = ""
    while True:
        answer = await api("GET", f"/audit?limit=2{cursor}")
        seen += [row["id"] for row in answer.json["rows"]]
        await make(api, "new")
        if answer.json["next"] is None:
            break
        cursor = f"&cursor={answer.json['next']}"
    assert [f"i{number}" for number in range(6, -1, -1)] == seen


@pytest.mark.parametrize(
    ("parameters", "code"),
    {
        "limit=0": "invalid_parameter",
        "limit=1001": "invalid_parameter",
        "id=": "invalid_parameter",
        "prefix=%00": "invalid_parameter",
        "since=yesterday": "invalid_parameter",
        "until=2026-13-01T00:00:00Z": "invalid_parameter",
        "caller=%00": "invalid_parameter",
        f"caller={'x' * 256}": "invalid_parameter",
        "cursor=x": "invalid_cursor",
        "cursor=WzEsMl0": "invalid_cursor",
        "cursor=WzEsIlx1MDAwMCJd": "invalid_cursor",
        f"cursor={'A' * 4_000}": "invalid_cursor",
    }.items(),
)
async def test_what_cannot_be_meant_is_400(audited: Service, parameters: str, code: str) -> None:
    """With what is allowed instead."""
    (await audited.api("GET", f"/audit?{parameters}")).is_problem(400, code)


async def test_without_the_setting_there_is_nothing(dsn: str) -> None:
    """The route answers, with no rows."""
    async with service_over(Postgres(dsn)) as service:
        await make(service.api, "a")
        assert [] == await rows(service.api)
