"""docs/api.md says what is so: its examples are run, its tables compared with the code.

The examples are one session. What differs from run to run (versions, times, generated ids …) is
recognised by its shape: each sample value of the document stands for one value of this run, the
same wherever it stands, in answers and in commands.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web, web_protocol

from itemstore import admission, batch, bulk, errors, settings
from itemstore.core import data, field, item, lines, listing, query, record, selection
from itemstore.core import queue as write_queue
from itemstore.options import Options
from itemstore.storage.postgres import Postgres
from itemstore.web import answers, app, audit, bodies, door, items, requests, streams
from itemstore.web import bulk as web_bulk
from itemstore.web import server as web_server
from tests.web.conftest import Service, service_over

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "api.md"
ADDRESS: Final = "localhost:8080"

#: What differs from run to run, by how it looks; ``…`` is anything within a line.
SAMPLE: Final = re.compile(
    r"""(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)
      | (?P<date>(?<=Date:\ )\w{3},\ \d\d\ \w{3}\ \d{4}\ \d\d:\d\d:\d\d\ GMT)
      | (?P<version>(?<!\d)\d{16}(?!\d))
      | (?P<epoch>(?<="epoch":)\d{10})
      | (?P<request>(?<!\w)[0-9a-f]{8}-\d+)
      | (?P<cursor>Wy[A-Za-z0-9_-]{20,})
      | (?P<id>(?<=items/|/keys/|"id":")[0-9A-Za-z]{8}(?=\W|$))
      | (?P<gap>…)
    """,
    re.VERBOSE,
)
SHAPES: Final = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
    "date": r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT",
    "version": r"\d{16}",
    "epoch": r"\d{10}",
    "request": r"[0-9a-f]{8}-\d+",
    "cursor": r"[A-Za-z0-9_-]+",
    "id": r"[0-9A-Za-z]{8}",
    "gap": r".*?",
}


class Session:
    """The document's sample values, and what they are in this run."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def command(self, text: str) -> str:
        """The command as it is to be run: with this run's values."""
        return SAMPLE.sub(lambda match: self._values.get(match[0], match[0]), text)

    def compare(self, expected: str, answered: str) -> None:
        """The answer must be the document's, but for the sample values."""
        samples: list[re.Match[str]] = list(SAMPLE.finditer(expected))
        pattern, end = "", 0
        for sample in samples:
            pattern += re.escape(expected[end : sample.start()])
            pattern += f"({SHAPES[str(sample.lastgroup)]})"
            end = sample.end()
        found = re.fullmatch(pattern + re.escape(expected[end:]), answered)
        assert found, f"the document says\n{expected}\nbut the answer is\n{answered}"
        for sample, value in zip(samples, found.groups(), strict=True):
            if sample.lastgroup not in {"gap", "date"}:
                assert self._values.setdefault(sample[0], value) == value, sample[0]
        versions = [self._values[each] for each in self._values if re.fullmatch(r"\d{16}", each)]
        assert len(versions) == len(set(versions)), "two samples are one version"


def examples(text: str) -> list[tuple[str, str]]:
    """(command, answer) of the console blocks; a line that begins with a space goes on with it."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = []
    for block in blocks:
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command = re.match(r".*\n(?:[ ].*\n)*", example)
            assert command is not None
            found.append((command[0].rstrip("\n"), example[command.end() :].rstrip("\n")))
    return found


async def run(command: str, **settings: str) -> str:
    """What the command prints, as a person would see it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        env={"PATH": path, "HOME": "/nonexistent", "NO_PROXY": "*", **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode().replace("\r\n", "\n").rstrip("\n")


def section(heading: str) -> str:
    """The text below a heading, up to the next one of its rank or above."""
    level = len(heading.partition(" ")[0])
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)",
        DOCUMENT.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's body."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl in PATH")
@pytest.mark.parametrize(("name", "least"), [("api", 30), ("queries", 10)])
async def test_the_examples_are_answered_as_the_document_says(
    dsn: str, name: str, least: int
) -> None:
    """Every command of the document, run in order, prints what stands below it."""
    session = Session()
    async with service_over(Postgres(dsn), Options(audit=True)) as service:
        commands = examples((DOCUMENT.parent / f"{name}.md").read_text())
        for command, expected in commands:
            typed = address(session.command(command), service)
            session.compare(expected, await run(typed, DATABASE_URL=dsn))

    assert len(commands) > least


def address(command: str, service: Service) -> str:
    assert ADDRESS in command or command.startswith("itemstore ")
    return command.replace(ADDRESS, f"127.0.0.1:{service.port}")


@pytest.mark.parametrize(
    ("expected", "answered"),
    [
        ('{"a":1}', '{"a":2}'),
        ('{"a":1}', '{"a":1} '),
        ('"version":1234567890123456', '"version":"1234567890123456"'),
        ("1234567890123456 1234567890123456", "1234567890123456 1234567890123457"),
        ("1234567890123456 1234567890123457", "1234567890123456 1234567890123456"),
        ("a\n…\nb", "a\nc\nd\nb"),
        ('"id":"Ab3Ab3Ab"', '"id":"Ab3Ab3A"'),
    ],
)
def test_the_comparison_notices_differences(expected: str, answered: str) -> None:
    """An answer that differs from the document in more than the sample values fails."""
    with pytest.raises(AssertionError):
        Session().compare(expected, answered)


def test_a_sample_value_stands_for_the_same_in_the_next_command() -> None:
    """A value seen in an answer is put in where the document's commands use it."""
    session = Session()

    session.compare('{"version":1234567890123456}', '{"version":1795317139086542}')

    assert session.command('If-Match: "1234567890123456"') == 'If-Match: "1795317139086542"'


def test_every_route_has_its_section() -> None:
    """docs/api.md has a heading for each route, and for no other."""
    paths = [(method, re.sub(r"{(\w+):.+}", r"{\1}", path)) for method, path, *_ in app.ROUTES]
    routes = [f"{method} {path}" for method, path in paths]
    headings = re.findall(r"^### ((?:GET|POST|PUT|PATCH|DELETE) .+)$", DOCUMENT.read_text(), re.M)

    assert sorted(headings) == sorted(routes)


def leaves(error: type[errors.ItemStoreError]) -> set[type[errors.ItemStoreError]]:
    """The errors that are raised: those with no other below them."""
    below = error.__subclasses__()
    return set().union(*map(leaves, below)) if below else {error}


def test_every_error_stands_in_the_table() -> None:
    """docs/api.md has each code that can be an answer, with its status and what to do."""
    never = leaves(errors.StartupError) | leaves(errors.MovingError)
    answered = leaves(errors.ItemStoreError) - never
    text = section("## Errors")
    table = {
        code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text, re.M)
    }

    assert table == {error.code: error.status for error in answered}


HTTP: Final = inspect.signature(web.RequestHandler.__init__).parameters
OPTIONS: Final = Options()

#: A limit's row → what the code says.
LIMITS: Final = {
    "id, `prefix`": (item.ID_MAX_BYTES, "bytes"),
    "body of POST, PUT, PATCH": (requests.BODY_MAX_BYTES, "bytes"),
    "data of one item, as stored": (data.DATA_MAX_BYTES, "bytes"),
    "body of a batch": (requests.BATCH_BODY_MAX_BYTES, "bytes"),
    "operations of a batch": (requests.BATCH_OPERATIONS_MAX, ""),
    "items in the answer to a batch": (batch.ANSWER_BYTES_MAX, "bytes"),
    "line of an import": (lines.LINE_MAX_BYTES, "bytes"),
    "imports and exports at a time": (streams.STREAMS_MAX, ""),
    "time without a byte of an import's body": (streams.IDLE_S, "s"),
    f"time in which a client takes {answers.TAKE_BYTES:,} bytes of any answer": (
        *(answers.TAKE_S, "s"),
    ),
    f"the same, while answers of others that are larger than {answers.SMALL_BYTES:,} bytes wait": (
        *(answers.TAKE_CROWDED_S, "s"),
    ),
    "answers written and not taken, all together": (answers.BYTES_MAX, "bytes"),
    "answers that wait, all together": (answers.BYTES_MAX, "bytes"),
    "time an answer waits": (answers.WAIT_S, "s"),
    "connections at a time": (door.CONNECTIONS_MAX, "(`CONNECTIONS_MAX`)"),
    "time for the first byte on a new connection": (door.FIRST_BYTE_S, "s"),
    "time for the headers, from their first byte": (door.HEAD_S, "s"),
    "bodies of requests under way, all together, of each what is beyond "
    f"{bodies.FREE_BYTES:,} bytes": (bodies.BYTES_MAX, "bytes (`BODIES_MAX_BYTES`)"),
    "nesting of data, itself included": (data.DEPTH_MAX, "levels"),
    "commas, `[` and `{` in a body, those in texts included": (data.STRUCTURE_MAX, ""),
    "items of a page": (listing.LIMIT_MAX, ""),
    "data of a page": (listing.PAGE_BYTES_MAX, "bytes"),
    "cursor": (listing._CURSOR_LENGTH_MAX, "characters"),
    "query parameters": (requests.QUERY_FIELDS_MAX, ""),
    "filters of a list": (query.FILTERS_MAX, ""),
    "a text or a number in a filter": (query.VALUE_LENGTH_MAX, "characters"),
    "an array or an object in a filter": (query.JSON_LENGTH_MAX, "characters"),
    "values of `in`": (query.IN_MAX, ""),
    "a field, as it is written": (field.FIELD_LENGTH_MAX, "characters"),
    "fields selected, columns of an export": (selection.SELECTED_MAX, ""),
    "time for a page of a list, and as long again for its count": (
        *(OPTIONS.query_timeout_s, "s (`QUERY_TIMEOUT`)"),
    ),
    "time for a body to arrive": (requests.BODY_TIMEOUT_S, "s"),
    "request line, header line": (HTTP["max_line_size"].default, "bytes"),
    "header lines": (HTTP["max_headers"].default, ""),
    "idle connection, after an answer": (web_server.KEEPALIVE_TIMEOUT_S, "s"),
    "idempotency key": (record.KEY_LENGTH_MAX, "characters"),
    ("writes of one item that were replaced before PostgreSQL took them, with an audit or a key"): (
        write_queue.RECORDS_MAX,
        "",
    ),
    "request id": (128, "characters"),
    "time for a commit to be confirmed": (OPTIONS.commit_timeout_s, "s (`COMMIT_TIMEOUT`)"),
    "time for a list to wait for accepted writes": (
        *(OPTIONS.commit_timeout_s, "s (`COMMIT_TIMEOUT`)"),
    ),
    "time for an item that is not cached": (OPTIONS.load_timeout_s, "s"),
    "items waiting to be written": (OPTIONS.queue_items_max, "(`QUEUE_MAX_ITEMS`)"),
    "bytes waiting to be written": (OPTIONS.queue_bytes_max, "bytes (`QUEUE_MAX_BYTES`)"),
    "time a write waits for room, from three quarters of these on": (OPTIONS.queue_wait_s, "s"),
    "time an import waits for it": (bulk.ROOM_WAIT_S, "s"),
    "time a write waits for the writer lease": (OPTIONS.hold_s, "s"),
    "bytes in the journal": (OPTIONS.journal_bytes_max, "bytes (`JOURNAL_MAX_BYTES`)"),
}


def test_the_limits_are_those_of_the_code() -> None:
    """The table of limits in docs/api.md has each limit, with its value and unit."""
    table = {limit: value for limit, value, _ in rows(section("## Limits"))}

    assert table.pop("lines of an import") == "no limit"
    assert table.pop("requests of a caller").startswith("no limit (`RATE_LIMIT_READ`")
    assert table.pop("items and bytes of a caller").startswith("no limit")
    of_one = table.pop("connections of one address, or one IPv6 network of 64 bits")
    assert of_one == "no limit (`CONNECTIONS_MAX_PER_ADDRESS`)"
    ahead = table.pop("requests sent ahead on a connection")
    assert ahead.startswith(f"{web_protocol.MAX_MSG_QUEUE_SIZE}, ")
    assert (streams.PIECE_BYTES, streams.IDLE_S) == (answers.TAKE_BYTES, answers.TAKE_S)
    given = settings.load({})
    assert given.connections_max == door.CONNECTIONS_MAX
    assert given.bodies_max_bytes == bodies.BYTES_MAX
    assert table == {
        limit: f"{number:,.0f} {unit}".strip() for limit, (number, unit) in LIMITS.items()
    }
    assert admission.SOFT == 0.75
    assert HTTP["max_field_size"].default == HTTP["max_line_size"].default


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("### POST /import", web_bulk.IMPORT_PARAMETERS),
        ("### GET /export", web_bulk.EXPORT_PARAMETERS),
        ("### GET /audit", audit.PARAMETERS),
    ],
)
def test_the_parameters_of_streams_are_those_of_the_code(heading: str, known: set[str]) -> None:
    """docs/api.md has each parameter of an import, an export and the audit."""
    text = section(heading).partition("| parameter |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == known


def test_the_list_parameters_are_those_of_the_code() -> None:
    """The parameters of GET /items in docs/api.md are those the code knows, with their limits."""
    table = re.findall(r"^\| `(\w+)` \| (.+) \|$", section("### GET /items"), re.MULTILINE)
    parameters = dict(table)

    assert set(parameters) == items.LIST_PARAMETERS
    assert f"1 to {listing.LIMIT_MAX}; {listing.LIMIT_DEFAULT} if not" in parameters["limit"]
