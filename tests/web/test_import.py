"""POST /import: each line is answered in its place, as soon as it is as durable as was asked."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest

from itemstore import bulk
from itemstore.core.lines import LINE_MAX_BYTES
from itemstore.options import Options
from itemstore.storage import StorageDown
from itemstore.web import streams
from tests.sql import query as sql
from tests.stores import Gated, gates, stores_over, take_away
from tests.test_races import no_pause
from tests.web.bulk import NDJSON, bring, check_last, exported, importing, ndjson, parsed, send
from tests.web.conftest import (
    ANSWER_LIMIT_S,
    Api,
    Service,
    count_of,
    head,
    make,
    path,
    request,
    run_batch,
    service_over,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

THEN: Final = "2001-09-09T01:46:40.000001Z"
LATER: Final = "2999-01-01T00:00:00.000000Z"


# --- lines and their results


async def test_each_line_is_answered_in_its_place(api: Api, name: str) -> None:
    """A result says what has become of the line, and which version the item has."""
    old = (await make(api, f"{name}old", {"n": 0})).json
    results = await bring(
        api,
        {"id": f"{name}a", "data": {"n": 1}, "created_at": THEN, "updated_at": THEN, "version": 7},
        {"id": f"{name}old", "data": {"n": 1}, "updated_at": THEN},
        {"id": f"{name}old", "data": {"n": 0}, "updated_at": LATER},
        {"id": f"{name}old", "data": {"n": 1}, "updated_at": LATER},
        {"data": {"n": 2}},
        {"id": None, "data": {}, "created_at": None, "updated_at": None},
    )

    statuses = ["created", "skipped", "unchanged", "replaced", "created", "created"]
    assert [each["status"] for each in results] == statuses
    assert [each["line"] for each in results] == [1, 2, 3, 4, 5, 6]
    assert results[1]["version"] == results[2]["version"] == old["version"]
    assert all(re.fullmatch("[0-9A-Za-z]{8}", each["id"]) for each in results[4:])
    made = (await api("GET", path(f"{name}a"))).json
    assert (made["created_at"], made["data"]) == (THEN, {"n": 1})
    assert made["version"] == results[0]["version"] > old["version"]
    replaced = (await api("GET", path(f"{name}old"))).json
    assert (replaced["created_at"], replaced["version"]) == (
        old["created_at"],
        results[3]["version"],
    )


async def test_later_lines_see_earlier_ones(api: Api, name: str) -> None:
    """An id that comes again finds what the line before has made of it."""
    lines = [{"id": name, "data": {"n": n}, "updated_at": LATER} for n in (1, 1, 2, 1)]

    results = await bring(api, *lines)

    statuses = ["created", "unchanged", "replaced", "replaced"]
    assert [each["status"] for each in results] == statuses
    assert (await api("GET", path(name))).json["data"] == {"n": 1}


@pytest.mark.parametrize(
    ("conflict", "status"), [("newer", "skipped"), ("skip", "skipped"), ("replace", "replaced")]
)
async def test_a_conflict_is_settled_as_asked(
    api: Api, name: str, conflict: str, status: str
) -> None:
    """What is there is replaced by older data only when told so."""
    await make(api, name, {"n": 1})
    line = {"id": name, "data": {"n": 2}, "updated_at": THEN}
    [result] = await bring(api, line, query=f"?conflict={conflict}")
    assert result["status"] == status


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \n"])
async def test_empty_lines_are_counted_and_ignored(api: Api, name: str, end: bytes) -> None:
    """Lines are numbered as an editor does, and need not end with a newline."""
    body = b'\n{"id":"%b1","data":{}}\r\n \t\r\n{"id":"%b2","data":{}}' % ((name.encode(),) * 2)
    *results, last = parsed((await send(api, body + end)).body)
    assert [(each["line"], each["id"]) for each in results] == [(2, f"{name}1"), (4, f"{name}2")]
    assert last["lines"] == 4 + 2 * (end == b"\n\n \n")


async def test_no_line_at_all(api: Api) -> None:
    """An empty body is an import of nothing."""
    answer = await send(api, b"")
    assert answer.json == {
        **dict.fromkeys(["lines", "created", "replaced", "unchanged", "skipped", "failed"], 0),
        "done": True,
    }


async def test_lines_are_numbered_from_where_it_is_resumed(api: Api, name: str) -> None:
    """first_line is the number of the body's first line in the file it is part of."""
    answer = await send(api, ndjson({"id": name, "data": {}}, b"x"), "?first_line=1000")
    first, second, last = parsed(answer.body)
    assert (first["line"], second["line"], last["lines"]) == (1000, 1001, 2)


WRONG: Final[list[tuple[Any, str, str | None]]] = [
    (b"{", "malformed_json", None),
    (b"[1", "malformed_json", None),
    (b'{"data":{}} {"data":{}}', "malformed_json", None),
    (b'{"data":{"a":NaN}}', "malformed_json", None),
    (b'{"data":{"a":"\xff"}}', "malformed_json", None),
    (b'\xef\xbb\xbf{"data":{}}', "malformed_json", None),
    (b"\x1f\x8b\x08\x00", "malformed_json", None),
    (b"{" * 100_518, "invalid_data", None),
    (b'{"data":{"a":9223372036854775808}}', "invalid_data", "/data"),
    (b'{"data":' + b'{"a":' * 65 + b"1" + b"}" * 66, "invalid_data", "/data"),
    ([], "invalid_item", None),
    (None, "invalid_item", None),
    ({}, "invalid_item", "/data"),
    ({"data": []}, "invalid_data", "/data"),
    ({"data": {"a": "\0"}}, "invalid_data", "/data/a"),
    ({"data": {}, "n/m": 1}, "invalid_item", "/n~1m"),
    ({"data": {}, "id": 7}, "invalid_id", "/id"),
    ({"data": {}, "id": ""}, "invalid_id", "/id"),
    ({"data": {}, "id": "x" * 513}, "invalid_id", "/id"),
    ({"data": {}, "created_at": 1}, "invalid_item", "/created_at"),
    ({"data": {}, "created_at": "yesterday"}, "invalid_item", "/created_at"),
    ({"data": {}, "created_at": "0001-01-01T00:00:00+00:01"}, "invalid_item", "/created_at"),
    ({"data": {}, "updated_at": "9999-12-31T23:59:59-00:01"}, "invalid_item", "/updated_at"),
    ({"data": {}, "updated_at": "2021-02-29T00:00:00Z"}, "invalid_item", "/updated_at"),
    ({"data": {"a": "x" * (1024 * 1024 - 6)}}, "body_too_large", "/data"),
    (b" " * LINE_MAX_BYTES + b"{}", "body_too_large", None),
]


async def test_a_wrong_line_stops_no_other(api: Api, name: str) -> None:
    """Each wrong line is answered with its problem, and the ones around it are carried out."""
    lines: list[Any] = []
    for number, (wrong, *_) in enumerate(WRONG):
        lines += [wrong, {"id": f"{name}{number}", "data": {"n": number}}]

    results = await bring(api, *lines)

    for number, (_, code, pointer) in enumerate(WRONG):
        failed, made = results[2 * number : 2 * number + 2]
        problem = failed["problem"]
        assert (failed["line"], failed["status"]) == (2 * number + 1, "failed")
        assert (problem["code"], problem.get("pointer")) == (code, pointer), problem
        assert problem["detail"].endswith((".", ".)"))
        assert "request_id" not in problem
        assert (made["id"], made["status"]) == (f"{name}{number}", "created")
    assert await count_of(api, name) == len(WRONG)


async def test_a_wrong_line_says_whose_it_is(api: Api, name: str) -> None:
    """The id is told where it could be read, and is one."""
    results = await bring(api, {"id": name}, {"id": "."}, {"id": 1}, b'{"id":"a"', [name])
    assert [each.get("id") for each in results] == [name, None, None, None, None]


async def test_an_import_is_many_puts(api: Api, name: str) -> None:
    """The same items by /items:batch and by /import are the same items."""
    data = [{"n": n, "text": f"ä{n}" * n, "f": n / 7} for n in range(60)]
    await run_batch(
        api, *({"op": "put", "id": f"{name}b{n:02}", "data": each} for n, each in enumerate(data))
    )
    await bring(api, *({"id": f"{name}i{n:02}", "data": each} for n, each in enumerate(data)))

    batch, imported = [await exported(api, f"?prefix={name}{kind}") for kind in "bi"]
    assert [each["data"] for each in batch] == [each["data"] for each in imported] == data
    assert all(each["created_at"] == each["updated_at"] for each in batch + imported)


async def test_whatever_is_stored_can_be_exported_and_imported(api: Api, name: str) -> None:
    """The largest data there may be, under an id of brackets, is no larger in a line."""
    most = {"a": [0] * 99_999}  # 100,000 brackets and commas
    longest = {"a": "x" * (1024 * 1024 - 8)}
    ids = [name.ljust(512, ","), name.ljust(512, '"')]
    lines = [{"id": each, "data": data} for each in ids for data in (most, longest)]
    results = await bring(api, *lines, query="?conflict=replace")
    assert [each["status"] for each in results] == ["created", "replaced"] * 2
    answer = await api("GET", f"/export?prefix={name}")
    *again, _ = parsed((await send(api, answer.body)).body)
    assert [each["status"] for each in again] == ["unchanged"] * 2
    await bring(api, *reversed(lines), query="?conflict=replace")
    answer = await api("GET", f"/export?prefix={name}")
    *again, _ = parsed((await send(api, answer.body)).body)
    assert [each["status"] for each in again] == ["unchanged"] * 2


# --- what is refused before a line is read


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("?conflict=older", {}, 400, "invalid_parameter"),
        ("?conflict=", {}, 400, "invalid_parameter"),
        ("?first_line=0", {}, 400, "invalid_parameter"),
        ("?first_line=-1", {}, 400, "invalid_parameter"),
        ("?after=a", {}, 400, "invalid_parameter"),
        ("", {"durability": "paper"}, 400, "invalid_durability"),
        ("", {"durability": "journal"}, 503, "durability_unavailable"),
        ("", {"content_type": "application/json"}, 415, "unsupported_media_type"),
        ("", {"content_encoding": "gzip"}, 415, "unsupported_media_type"),
        ("", {"content_encoding": "deflate"}, 415, "unsupported_media_type"),
    ],
)
async def test_refused_as_a_whole(
    api: Api, name: str, query: str, headers: dict[str, Any], status: int, code: str
) -> None:
    """What is wrong with the request is an answer like any other; nothing was changed."""
    body = ndjson({"id": name, "data": {}})
    sent: dict[str, Any] = {"content_type": NDJSON, **headers}
    answer = await api("POST", f"/import{query}", body=body, **sent)
    answer.is_problem(status, code)
    assert (await api("GET", path(name))).status == 404


@pytest.mark.parametrize("given", ["application/ndjson", "application/jsonl; charset=utf-8"])
async def test_media_types(api: Api, name: str, given: str) -> None:
    """NDJSON has several names."""
    answer = await api("POST", "/import", body=ndjson({"id": name, "data": {}}), content_type=given)
    assert answer.status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_other_methods(api: Api, method: str) -> None:
    """An import is a POST."""
    answer = await api(method, "/import")
    assert (answer.status, answer.headers["Allow"]) == (405, "OPTIONS, POST")


async def test_a_body_of_any_length_is_invited(service: Service, name: str) -> None:
    """With Expect: 100-continue, no Content-Length is too large for an import."""
    raw = await service.raw()
    lines = ("Expect: 100-continue", f"Content-Length: {10**12}", f"Content-Type: {NDJSON}")
    assert (await raw.ask(head("POST", "/import", *lines))).status == 100
    await raw.close()


async def test_durability_is_told_and_kept(api: Api, name: str) -> None:
    """The answer says at which level the lines are confirmed; the connection can be used again."""
    answer = await send(api, ndjson({"id": name, "data": {}}), durability="memory")
    assert answer.headers["Durability"] == "memory"
    assert answer.headers["Cache-Control"] == "no-store"


# --- as a stream


async def test_a_line_is_answered_while_the_body_goes_on(service: Service, name: str) -> None:
    """Results come before the body has ended, each as soon as its line is committed."""
    async with importing(service.port) as sender:
        for number in range(3):
            sender.send({"id": f"{name}{number}", "data": {}})
            assert (await sender.line())["id"] == f"{name}{number}"
        sender.end()
        assert (await sender.line())["done"] is True


async def test_nothing_is_told_before_it_is_committed(
    service: Service, name: str, held_writes: Any
) -> None:
    """At commit, a line is answered when PostgreSQL has it, and not before."""
    async with importing(service.port) as sender:
        sender.send({"id": name, "data": {}}, {"id": name, "data": {}})
        line = asyncio.ensure_future(sender.line())
        await held_writes.reached.wait()
        await service.api("GET", "/livez")
        assert not line.done()
        held_writes.open.set()
        assert ((await line)["status"], (await sender.line())["status"]) == ("created", "unchanged")
        sender.end()


async def test_a_client_that_sends_nothing_is_given_up(
    service: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is confirmed, the last line says why it ended, and the connection closes."""
    monkeypatch.setattr(streams, "IDLE_S", 0.2)
    monkeypatch.setattr("itemstore.web.server.LINGERING_TIME_S", 0.02)
    async with importing(service.port) as sender:
        sender.send({"id": name, "data": {}}, b"")
        result, last = await sender.rest()
    check_last([result], last, done=False)
    assert (last["lines"], last["problem"]["code"]) == (1, "body_timeout")
    assert last["problem"]["request_id"] == sender.headers["X-Request-Id"]


async def test_a_client_that_reads_nothing_is_cut_off(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends without reading is not read from without end, and loses its connection in time.

    1. the client sends lines, and reads none of the results
    2. the results fill its window; nothing more is read of the body, and it cannot send either
    3. after the time for that it is cut off
    """
    monkeypatch.setattr(streams, "IDLE_S", 1.0)
    lines = (b"x" * 10 + b"\n") * 1000  # a problem document for eleven bytes
    async with service_over(Gated(dsn)) as service:
        _, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1)
        writer.write(head("POST", "/import", f"Content-Length: {10**9}", f"Content-Type: {NDJSON}"))
        sent = 0
        with suppress(ConnectionError):
            async with asyncio.timeout(ANSWER_LIMIT_S):
                while True:  # 1
                    writer.write(lines)
                    await writer.drain()  # 2
                    sent += len(lines)
        assert 0 < sent < 50_000_000  # 3
        await service.until(lambda: not service.streams.under_way)
        events = [event for event in service.events() if event["message"] == "stream_ended"]
        writer.close()
    assert len(events) == 1


async def test_what_was_cut_off_is_no_line(service: Service, name: str) -> None:
    """A body that ends too early is an error; the part of a line at its end is not carried out."""
    raw = await service.raw()
    whole, part = ndjson({"id": f"{name}1", "data": {}}), b'{"id":"%b2","data":{}}' % name.encode()
    await raw.send(head("POST", "/import", "Content-Length: 1000", f"Content-Type: {NDJSON}"))
    await raw.send(whole + part)
    await service.until(lambda: f"{name}1" in service.store.cache)
    await raw.close()
    await service.until(lambda: not service.streams.under_way)
    assert await count_of(service.api, name) == 1


async def test_broken_chunks_end_the_import(service: Service, name: str) -> None:
    """A transfer coding that cannot be read is told in the last line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    line = ndjson({"id": name, "data": {}})
    lines = ("Transfer-Encoding: chunked", f"Content-Type: {NDJSON}")
    writer.write(head("POST", "/import", *lines) + b"%x\r\n%b\r\nxyz\r\n" % (len(line), line))
    async with asyncio.timeout(ANSWER_LIMIT_S):
        answer = await reader.read()
    writer.close()
    assert b"malformed_request" in answer


async def test_so_many_streams_at_a_time(
    service: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One import more than the most is refused, until another has ended."""
    monkeypatch.setattr(streams, "STREAMS_MAX", 1)
    async with importing(service.port) as sender:
        (await send(service.api, b"")).is_problem(503, "overloaded")
        (await service.api("GET", "/export")).is_problem(503, "overloaded")
        sender.end()
        await sender.rest()
    assert (await send(service.api, b"")).status == 200


async def test_it_waits_for_room(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full write queue slows an import down, and fails none of its lines."""
    storage = Gated(dsn)
    options = Options(queue_items_max=8, queue_wait_s=0.01)
    async with service_over(storage, options) as service:
        gate = storage.hold("write")
        async with importing(service.port) as sender:
            sender.send(*({"id": f"i{n}", "data": {}} for n in range(100)))
            sender.end()
            await service.until(lambda: service.store.admission.refused > 3)
            gate.open()
            *results, last = await sender.rest()
    check_last(results, last, done=True)
    assert {"created"} == {each["status"] for each in results}


# --- when the store cannot go on


async def test_without_postgresql_the_import_ends(dsn: str) -> None:
    """What is not confirmed in time is not told; resumed after the last line, all is there."""
    storage = Gated(dsn)
    async with service_over(storage, Options(commit_timeout_s=0.3)) as service:
        service.store.persister._sleep = no_pause
        lines = [{"id": f"i{n}", "data": {"n": n}} for n in range(1200)]
        async with importing(service.port) as sender:
            sender.send(*lines[:100])
            told = [await sender.line() for _ in range(100)]
            storage.cut_off(StorageDown("Connection refused"))
            sender.send(*lines[100:])
            *more, last = await sender.rest()
        check_last(told + more, last, done=False)
        assert last["problem"]["code"] in {"commit_unconfirmed", "database_unavailable"}
        assert last["lines"] == 100
        storage.join()
        await service.until(lambda: not len(service.store.queue))
        store = service.store
        store.options = replace(store.options, commit_timeout_s=ANSWER_LIMIT_S)
        store._deadlines.limit_s = ANSWER_LIMIT_S

        results = await bring(service.api, *lines[100:], query="?first_line=101")
        assert [each["line"] for each in results] == list(range(101, 1201))
        assert await count_of(service.api, "i") == 1200
        service.writer.close()


async def test_a_refused_row_is_a_failed_line(dsn: str) -> None:
    """What PostgreSQL refuses is told of its line, and the import goes on."""
    async with service_over(Gated(dsn)) as service:
        sql(dsn, "ALTER TABLE items ADD CHECK (data ->> 'n' NOT LIKE '-%')")
        results = await bring(
            service.api, *({"id": f"i{n}", "data": {"n": n}} for n in (1, -2, 3)), {"data": {}}
        )
    assert [each["status"] for each in results] == ["created", "failed", "created", "created"]
    assert (results[1]["id"], results[1]["problem"]["code"]) == ("i-2", "item_quarantined")


async def test_a_lease_lost_in_the_middle_ends_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the new holder may not know of is not confirmed, and it is resumed there.

    1. some lines are confirmed
    2. more are accepted; their batch is on its way when another instance takes the lease
    3. the last line says that the lease is lost; none of those lines was told
    """
    async with stores_over(dsn, monkeypatch) as stores, service_over(Gated(dsn)) as service:
        other = await stores.open()
        async with importing(service.port) as sender:
            sender.send({"id": "a", "data": {}})
            first = await sender.line()  # 1
            gate = gates(service.store).hold("write")
            sender.send({"id": "b", "data": {}}, {"id": "c", "data": {}})
            await gate.reached()  # 2
            await take_away(stores, service.store, other)
            gates(service.store).join()
            gate.open()
            *more, last = await sender.rest()  # 3
        check_last([first, *more], last, done=False)
        assert (more, last["lines"], last["problem"]["code"]) == ([], 1, "lease_lost")
        (await send(service.api, b"")).is_problem(503, "not_holder")
        assert [await other.get(each) is not None for each in "abc"] == [True, False, False]
        service.writer.close()


async def test_when_the_server_stops_the_import_ends_in_order(dsn: str) -> None:
    """At a stop what was read is confirmed, and the last line says that the rest is to come."""
    async with service_over(Gated(dsn)) as service:
        async with importing(service.port) as sender:
            sender.send({"id": "a", "data": {}})
            await sender.line()
            await service.streams.stop()
            [last] = await sender.rest()
        assert (last["done"], last["problem"]["code"]) == (False, "stopping")
        (await send(service.api, b"")).is_problem(503, "stopping")


async def test_a_mistake_of_the_server_is_told_in_the_last_line(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also then the answer has its end, and the log the reason."""
    monkeypatch.setattr(bulk, "_result", None)
    async with service_over(Gated(dsn)) as service:
        answer = await send(service.api, ndjson({"id": "a", "data": {}}))
        service.mistakes = 1
    [last] = parsed(answer.body)
    assert (last["done"], last["problem"]["code"]) == (False, "internal_error")


async def test_http_1_0(service: Service, name: str) -> None:
    """A client of HTTP/1.0 gets its results, and the end of the connection for their end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    body = ndjson({"id": name, "data": {}})
    asked = request("POST", "/import", body, f"Content-Type: {NDJSON}")
    writer.write(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))
    async with asyncio.timeout(ANSWER_LIMIT_S):
        answer = await reader.read()
    writer.close()
    assert answer.endswith(b'"done":true}\n')
