"""GET /export: every item once, in order, and never a part that looks like the whole."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemstore.options import Options, Preload
from itemstore.storage import StorageAway
from itemstore.web import streams
from itemstore.web.bulk import _prefers_csv
from tests.sql import query as sql
from tests.stores import Gated
from tests.strategies import IDS, json_objects
from tests.web.bulk import NDJSON, bring, exported, ndjson, parsed, talk
from tests.web.conftest import ANSWER_LIMIT_S, Api, Service, head, make, path, service_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS: Final = "INSERT INTO items (id, data) SELECT 'i' || lpad(n::text, 5, '0'), "
CSV: Final = "text/csv; charset=utf-8; header=present"


def fill(dsn: str, count: int, data: str = """'{"n":1}'""") -> None:
    sql(dsn, f"{NUMBERS} {data}::json FROM generate_series(1, {count}) AS n")


async def test_items_come_as_they_are_read_and_in_order(api: Api, name: str) -> None:
    """A line is what GET answers; the order is that of the ids, byte by byte."""
    ids = [f"{name}{each}" for each in ("a", "A", "é", "z", "a/b", "=1")]
    for each in ids:
        await make(api, each, {"id": each})

    found = await exported(api, f"?prefix={name}")

    assert [each["id"] for each in found] == sorted(ids, key=str.encode)
    assert found == [(await api("GET", path(each["id"]))).json for each in found]


async def test_it_sees_every_accepted_write(api: Api, name: str) -> None:
    """What is not committed yet is committed first, and what is deleted is not there."""
    for each in "abc":
        await make(api, f"{name}{each}", durability="memory")
    await api("DELETE", path(f"{name}b"), durability="memory")
    found = await exported(api, f"?prefix={name}")
    assert [each["id"] for each in found] == [f"{name}a", f"{name}c"]


async def test_it_goes_on_after_an_id(api: Api, name: str) -> None:
    """after is the last id that arrived, whether it is still there or not."""
    for each in "abc":
        await make(api, f"{name}{each}")
    for after, expected in (("a", "bc"), ("aa", "bc"), ("c", "")):
        found = await exported(api, f"?prefix={name}&after={name}{after}&order=id")
        assert [each["id"] for each in found] == [f"{name}{each}" for each in expected]


async def test_filters_apply(api: Api, name: str) -> None:
    """As in a list, also when it goes on after an id, and as a table."""
    for n in range(6):
        await make(api, f"{name}{n}", {"n": n})
    wanted = f"?prefix={name}&data.n=gte.2&data.n=neq.4"
    found = await exported(api, wanted)
    assert [2, 3, 5] == [each["data"]["n"] for each in found]
    found = await exported(api, f"{wanted}&after={name}2")
    assert [3, 5] == [each["data"]["n"] for each in found]
    table = await api("GET", f"/export{wanted}&format=csv&fields=data.n")
    assert "data.n\r\n2\r\n3\r\n5\r\n" == table.body.decode()


@pytest.mark.parametrize(
    "query",
    [
        *("order=created", "order=-id", "format=xml", "limit=1", "after=", "after=%00"),
        *("prefix=%00", "fields=id", "formulas=keep", "format=csv&fields=", "format=csv&fields=x"),
        *("format=csv&fields=id.x", "format=csv&fields=data..a", "format=csv&formulas=no"),
        "format=csv&fields=" + "id," * 100 + "id",
    ],
)
async def test_wrong_parameters(api: Api, query: str) -> None:
    """What is not understood is refused, and told how it is to be."""
    (await api("GET", f"/export?{query}")).is_problem(400, "invalid_parameter")


async def test_head_and_other_methods(api: Api) -> None:
    """HEAD answers as GET does, without the items; an export is nothing else."""
    answer = await api("HEAD", "/export")
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, NDJSON, b"")
    answer = await api("POST", "/export")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


# --- CSV


async def table(api: Api, query: str, **headers: Any) -> list[list[str]]:
    answer = await api("GET", f"/export?{query}", **headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, CSV)
    assert answer.headers["Vary"] == "Accept"
    assert answer.body.endswith(b"\r\n")
    return list(csv.reader(io.StringIO(answer.body.decode(), newline="")))


async def test_a_table(api: Api, name: str) -> None:
    """A column for each field; what an item does not have is an empty cell."""
    texts = {"quoted": 'say "a,b"\r\nand c', "ä": "ö", "empty": ""}
    item = (await make(api, name, {**texts, "n": -1.5, "t": True, "o": {"p": [1, None]}})).json

    columns = ["id", "version", "created_at", "updated_at", "data"]
    [header, row] = await table(api, f"prefix={name}&format=csv")
    assert header == columns
    assert row[:4] == [str(item[each]) for each in columns[:4]]
    assert parsed(row[4].encode()) == [item["data"]]

    inside = ["quoted", "ä", "empty", "n", "t", "o", "o.p", "o.p.q", "none"]
    fields = quote(",".join(f"data.{each}" for each in inside))
    [header, row] = await table(api, f"prefix={name}&fields={fields}", accept="text/csv")
    assert header == [f"data.{each}" for each in inside]
    assert row == [*texts.values(), "-1.5", "true", '{"p":[1,null]}', "[1,null]", "", ""]


async def test_formulas(api: Api, name: str) -> None:
    """A text that a spreadsheet would run is quoted, unless it is to be kept; a number never."""
    texts = ["=1+1", "+1", "-1", "@a", "\tx", "\rx", "a=1", "'", " =1"]
    await make(api, name, {"n": -1, **{str(n): text for n, text in enumerate(texts)}})
    query = f"prefix={name}&format=csv&fields=data.n," + ",".join(
        f"data.{n}" for n in range(len(texts))
    )
    [_, quoted] = await table(api, query)
    [_, kept] = await table(api, f"{query}&formulas=keep")
    assert quoted == ["-1", *(f"'{text}" for text in texts[:6]), *texts[6:]]
    assert kept == ["-1", *texts]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/csv", True),
        ("Text/CSV; charset=utf-8", True),
        ("application/x-ndjson, text/csv", False),
        ("application/x-ndjson;q=0.5, text/csv;q=0.9, */*", True),
        ("text/csv;q=0", False),
        ("text/csv;q=x", False),
        ("text/csv;q=", False),
        ("text/html, */*", False),
        (",;,", False),
    ],
)
async def test_what_is_accepted(accept: str, expected: bool) -> None:
    """CSV is for those who name it."""
    assert expected == _prefers_csv(accept)


# --- as a stream


async def test_it_goes_page_by_page_and_leaves_the_cache_alone(dsn: str) -> None:
    """Every item of many pages is there once, and none of them is cached."""
    options = Options(skip_items_preload=Preload.SKIP)
    async with service_over(Gated(dsn), options) as service:
        fill(dsn, 2500)
        found = await exported(service.api)
        assert [each["id"] for each in found] == [f"i{n:05}" for n in range(1, 2501)]
        assert len(service.store.cache) == 0


async def test_what_is_there_throughout_is_there_once(dsn: str) -> None:
    """Items are created, changed and deleted between the pages, before and behind them."""
    storage = Gated(dsn)
    async with service_over(storage) as service:
        fill(dsn, 2500)
        first, second = storage.hold("select"), storage.hold("select")
        first.open()
        export = asyncio.ensure_future(exported(service.api))
        await second.reached()
        for n in (0, 150, 1500, 3000):
            await make(service.api, f"i{n:05}", {"new": n})
        for n in (100, 1400):
            await service.api("DELETE", path(f"i{n:05}"))
        second.open()
        found = {each["id"]: each["data"] for each in await export}
    expected = [n for n in range(1, 2501) if n != 1400] + [3000]
    assert list(found) == [f"i{n:05}" for n in expected]
    assert [found[f"i{n:05}"] for n in (150, 1500)] == [{"n": 1}, {"new": 1500}]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_without_postgresql_it_is_cut(dsn: str, version: str) -> None:
    """A failure on the way resets the connection, so that no client takes a part for the whole."""
    storage = Gated(dsn)
    async with service_over(storage) as service:
        fill(dsn, 2500)
        storage.hold("select").open()
        gate = storage.hold("select", failing=StorageAway("gone"))
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(head("GET", "/export", version=version))
        assert (await reader.readline()).split()[1] == b"200"
        await gate.reached()
        gate.open()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await reader.read()
        writer.close()
        storage.hold("select", failing=StorageAway("gone")).open()
        (await service.api("GET", "/export")).is_problem(503, "database_unavailable")
        [ended] = [event for event in service.events() if event["message"] == "stream_ended"]
    assert ended["path"] == "/export"


async def test_a_client_that_reads_nothing_is_cut_off(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who does not read, no page is asked for either, and in the end it is cut."""
    monkeypatch.setattr(streams, "IDLE_S", 0.5)
    storage = Gated(dsn)
    async with service_over(storage) as service:
        fill(dsn, 4000, "json_build_object('a', repeat('x', 20000))")
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1)
        writer.write(head("GET", "/export"))
        await reader.readexactly(1)
        await service.until(lambda: not service.streams.under_way)
        assert storage.counts["select"] < 5
        writer.close()


async def test_when_the_server_stops_it_is_cut(dsn: str) -> None:
    """A stop does not wait for a long export."""
    storage = Gated(dsn)
    async with service_over(storage) as service:
        fill(dsn, 2500)
        storage.hold("select").open()
        gate = storage.hold("select")
        async with talk(service.port) as one:
            await one.begin("GET", "/export")
            await gate.reached()
            await service.streams.stop()
            gate.open()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await one.rest()


# --- and back


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.dictionaries(IDS, json_objects(), max_size=8),
    created=st.lists(st.datetimes().map(lambda at: at.isoformat() + "Z"), min_size=8, max_size=8),
)
async def test_what_was_exported_is_imported_as_it_was(
    service: Service, documents: dict[str, bytes], created: list[str]
) -> None:
    """An export, imported where nothing is, gives the same ids, data byte for byte, and times."""
    api = service.api
    for item_id in [each["id"] for each in await exported(api)]:
        await api("DELETE", path(item_id), durability="memory")
    lines = [  # a newline in JSON is white space
        b'{"id":%b,"data":%b,"created_at":"%b"}'
        % (ndjson(item_id).strip(), data.replace(b"\n", b" "), at.encode())
        for (item_id, data), at in zip(documents.items(), created, strict=False)
    ]
    await bring(api, *lines, durability="memory")
    before = (await api("GET", "/export")).body
    for item_id in documents:
        assert (await api("DELETE", path(item_id), durability="memory")).status == 204
    assert await exported(api) == []

    results = parsed((await api("POST", "/import", body=before, content_type=NDJSON)).body)

    assert [each.get("status", "end") for each in results] == ["created"] * len(documents) + ["end"]
    after = (await api("GET", "/export")).body
    for old, new in zip(before.splitlines(), after.splitlines(), strict=True):
        assert _lasting(old) == _lasting(new)


def _lasting(line: bytes) -> tuple[bytes, bytes, bytes]:
    """The id, created_at and data of an exported line, as they stand there."""
    item_id, rest = line.split(b',"version":', 1)
    created, data = rest.split(b',"created_at":"', 1)[1].split(b'","updated_at":"', 1)
    return item_id, created, data.split(b',"data":', 1)[1]
