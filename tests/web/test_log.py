"""Request ids, and the log: one line a request, one a batch, and never in the way."""

from __future__ import annotations

import io
import re
import threading
from typing import Final

import pytest

from itemstore import log as log_module
from itemstore.storage.postgres import Postgres
from tests.web.conftest import make, path, request, run_batch, service_over

# --- request ids


async def test_every_request_has_an_id(dsn: str) -> None:
    """Each answer has an id of its own; a problem repeats it, and so does the log."""
    async with service_over(Postgres(dsn)) as service:
        good = [await service.api("GET", "/livez") for _ in range(3)]
        bad = await service.api("GET", "/nowhere")
        events = service.events()

    ids = [answer.headers["X-Request-Id"] for answer in [*good, bad]]
    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9]+", each) for each in ids)
    assert bad.json["request_id"] == ids[3]
    assert [event["request_id"] for event in events if event["message"] == "request"] == ids


@pytest.mark.parametrize("header", ["X-Request-Id", "X-Railway-Request-Id"])
@pytest.mark.parametrize("given", ["a", "0" * 128, "trace:1/2+3=4_5.6-7", "Ab9"])
async def test_a_harmless_request_id_is_passed_on(dsn: str, header: str, given: str) -> None:
    """The caller's or the proxy's request id is answered, told in problems, and logged."""
    async with service_over(Postgres(dsn), start=False) as service:
        answer = await service.api("GET", "/nowhere", lines=[(header, given)])
        [event] = service.events()

    assert answer.headers["X-Request-Id"] == given
    assert answer.json["request_id"] == given
    assert event["request_id"] == given


@pytest.mark.parametrize(
    "given",
    [
        *(b"", b" ", b"a b", b"<script>", b'"', b"'", b"a\tb", b"{}", b"%0a", b"\\n", b"a,b"),
        *(b"0" * 129, b"\xff", "é".encode(), "\u202e".encode(), b"a;b", b"$(id)"),
    ],
)
async def test_a_hostile_request_id_is_replaced(dsn: str, given: bytes) -> None:
    """A request id that could do harm in a log or a page is replaced by one of ours."""
    async with service_over(Postgres(dsn), start=False) as service:
        raw = await service.raw()

        answer = await raw.ask(
            b"GET /nowhere HTTP/1.1\r\nHost: test\r\nX-Request-Id: " + given + b"\r\n\r\n"
        )

    answer.check()
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9]+", answer.headers["X-Request-Id"])


# --- the log


async def test_the_log_has_one_line_a_request_and_one_a_batch(dsn: str) -> None:
    """Each request is one JSON line with what was asked and answered, and each commit is one."""
    async with service_over(Postgres(dsn)) as service:
        api = service.api
        asked = [
            await make(api, "a b"),
            await api("GET", "/items/a%20b"),
            await api("GET", "/items?limit=0"),
            await api("DELETE", "/nowhere?secret=1"),
            await api("PUT", "/items/c", body=b"{"),
            await api("PUT", "/items/c", body=b" " * 2_000_000),
        ]
        raw = await service.raw()
        length = "Content-Length: 2000000"
        asked.append(await raw.ask(request("PUT", "/items/d", b"", "Expect: 100-continue", length)))
        await run_batch(api, *({"op": "put", "id": f"{n}", "data": {}} for n in range(100)))
        batches = service.store.persister.batches
        events = service.events()

    lines = [event for event in events if event["message"] == "request"]
    assert [(line["request_id"], line["status"]) for line in lines[:-1]] == [
        (answer.headers["X-Request-Id"], answer.status) for answer in asked
    ]
    assert len(lines) == len(asked) + 1
    for line in lines:
        assert set(line) == {
            *("message", "level", "at", "method", "path", "status", "ms", "request_id")
        }
        assert line["level"] == "debug"
        assert isinstance(line["ms"], float)
    assert [line["path"] for line in lines[:4]] == [
        *("/items/a%20b", "/items/a%20b", "/items", "/nowhere")
    ]
    commits = [event for event in events if event["message"] == "batch"]
    assert len(commits) == batches
    assert sum(line["items"] for line in commits) == 101
    assert all({"items", "bytes", "ms", "oldest_ms", "queued"} < set(line) for line in commits)


async def test_a_mistake_of_the_server_is_logged_and_not_told(dsn: str) -> None:
    """An error nobody foresaw is 500 without its details, which stand in the log with the id."""
    async with service_over(Postgres(dsn)) as service:

        async def fail(item_id: str) -> None:
            raise ZeroDivisionError(f"the secret of {item_id}")

        service.store.reader.find = fail  # type: ignore[method-assign]
        raw = await service.raw()
        answer = await raw.ask(request("GET", "/items/a"))
        await raw.check_usable()
        events = service.events()
        service.mistakes = 1

    answer.check()
    answer.is_problem(500, "internal_error")
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body
    [mistake] = [event for event in events if event["message"] == "internal_error"]
    assert mistake["request_id"] == answer.headers["X-Request-Id"]
    assert "ZeroDivisionError: the secret of a" in mistake["exception"]
    assert [event["status"] for event in events if event["message"] == "request"] == [500, 200]


STUCK_MAX_S: Final = 10.0  # so that a server that waits for it fails a test, not hangs it


class Stuck(io.StringIO):
    """Standard output whose reader has stopped reading, until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()
        self.reads.set()

    def write(self, text: str) -> int:
        if not self.reads.wait(STUCK_MAX_S):
            self.reads.set()
        return super().write(text)


async def test_a_log_that_nobody_reads_holds_up_no_request(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With standard output stuck requests go on; lines that do not fit are dropped and counted."""
    monkeypatch.setattr(log_module, "LINES_MAX", 8)
    stream = Stuck()
    async with service_over(Postgres(dsn), stream=stream) as service:
        await service.until(lambda: '"hydrated"' in stream.getvalue())
        before = sum(each.count for each in service.traffic.served.values())
        stream.reads.clear()

        for number in range(30):
            assert (await make(service.api, f"{number}", durability="memory")).status == 201
            assert (await service.api("GET", path(f"{number}"))).status == 200
        dropped = service.writer.dropped
        stream.reads.set()
        await service.store.flush()  # the last batch's line is written as well
        events = service.events()
        text = stream.getvalue()

    assert dropped > 0
    told = [int(number) for number in re.findall(r'"log_lines_dropped".*"lines":(\d+)', text)]
    assert sum(told) == service.writer.dropped
    written = [event for event in events if event["message"] in {"request", "batch"}]
    assert len(written) + sum(told) == before + 60 + service.store.persister.batches
