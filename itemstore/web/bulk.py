"""Imports and exports over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from itemstore import bulk
from itemstore.bulk import Entry, Importing, Result
from itemstore.core.item import Item, check_id
from itemstore.core.lines import LINE_MAX_BYTES, Line, Lines
from itemstore.core.operation import Conflict
from itemstore.errors import BodyTooLarge, InvalidId, InvalidParameter, ItemStoreError
from itemstore.tasks import in_turns
from itemstore.web import columns, problems, requests
from itemstore.web.items import STORE
from itemstore.web.streams import REQUEST_ID, STREAMS, Stream

CSV: Final = "text/csv"
IMPORT_PARAMETERS: Final = frozenset({"conflict", "first_line"})
EXPORT_PARAMETERS: Final = frozenset({"prefix", "after", "order", "format", "fields", "formulas"})
ITEMS_AT_ONCE: Final = 50  # written: about 1 ms of the event loop

Written = Callable[[Sequence[Item]], bytes]


# --- in


async def import_items(request: web.Request) -> web.StreamResponse:
    """POST /import: 200, with a line for each line as soon as it is as durable as was asked."""
    parameters = requests.query(request, IMPORT_PARAMETERS)
    conflict = Conflict(_choice(parameters, "conflict", tuple(Conflict)))
    lines = Lines(requests.integer("first_line", parameters.get("first_line", "1")))
    if not lines.first:
        raise InvalidParameter("first_line is the number of the body's first line, from 1 on.")
    requests.check_media_type(request.headers.get(hdrs.CONTENT_TYPE), requests.NDJSON)
    requests.check_encoding(request)
    store = request.app[STORE]
    level = store.level(requests.durability(request))
    store.check_accepting(level)
    await store.lease.to_accept()
    with request.app[STREAMS].one(request) as stream:
        try:
            # A proxy that gathers the answer would keep the confirmations to itself.
            await stream.begin(requests.NDJSON[0], Durability=level, X_Accel_Buffering="no")
            await _import(
                request, stream, Importing(store, level, request[requests.CALLER]), lines, conflict
            )
        except OSError as error:  # nobody takes the results
            stream.cut(error)
    return stream.response


async def _import(
    request: web.Request, stream: Stream, importing: Importing, lines: Lines, conflict: Conflict
) -> None:
    """Sends the results, and in the last line what they come to and why it ended, if too early."""

    async def tell(results: Sequence[Result]) -> None:
        await stream.send(b"".join(map(_line, results)))

    error: ItemStoreError | None = None
    try:
        await importing.run(_entries(stream, lines, conflict), tell)
    except ItemStoreError as reason:
        error = reason
    except OSError:
        raise
    except Exception:
        error = problems.internal(request.app[STORE].log, request[REQUEST_ID], request.path)
    count = lines.count if error is None else max(0, importing.last_line + 1 - lines.first)
    end: dict[str, Any] = {"lines": count, **importing.counts}
    if error is not None:
        end["problem"] = problems.problem(error, request[REQUEST_ID])
        stream.fail(error)
    await stream.send(orjson.dumps(end | {"done": error is None}) + b"\n")


async def _entries(
    stream: Stream, lines: Lines, conflict: Conflict
) -> AsyncIterator[Sequence[Entry]]:
    """The lines of the body, parsed, in parts."""
    parse = partial(_entry, conflict)
    async for chunk in stream.chunks():
        split = lines.split(chunk)
        while part := list(islice(split, bulk.PART_LINES_MAX)):
            yield [entry for entry in await in_turns(parse, part) if entry is not None]
    for line in lines.last():
        if (entry := parse(line)) is not None:
            yield [entry]


def _entry(conflict: Conflict, line: Line) -> Entry | None:
    """None for an empty line."""
    value: Any = None
    try:
        if line.text is None:
            raise BodyTooLarge(
                f"The line is longer than {LINE_MAX_BYTES:,} bytes, so that it can be no item. "
                "Split it into several items."
            )
        if not line.text or line.text.isspace():
            return None
        value = requests.line(line.text)
        operation = requests.imported(value, conflict)
        return Entry(line.number, operation.id, operation)
    except ItemStoreError as error:
        return Entry(line.number, _legible_id(value), error)


def _legible_id(value: Any) -> str | None:
    try:
        return check_id(value["id"])
    except (TypeError, LookupError, InvalidId):
        return None


def _line(result: Result) -> bytes:
    line: dict[str, Any] = {"line": result.line}
    if result.id is not None:
        line["id"] = result.id
    line["status"] = result.status
    if result.error is None:
        line["version"] = result.version
    else:
        line["problem"] = problems.problem(result.error, "")
    return orjson.dumps(line) + b"\n"


# --- out


async def export_items(request: web.Request) -> web.StreamResponse:
    """GET and HEAD /export: 200, all items in the order of their ids, as NDJSON or CSV."""
    parameters, filters = requests.list_query(request, EXPORT_PARAMETERS)
    _choice(parameters, "order", ("id",))
    content_type, head, written = _form(request, parameters)
    pages = bulk.export(
        request.app[STORE],
        prefix=parameters.get("prefix", ""),
        filters=filters,
        after=parameters.get("after"),
    )
    with request.app[STREAMS].one(request) as stream:
        try:
            page = await anext(pages, None)  # what fails here is an answer like any other
        except InvalidId as error:
            raise InvalidParameter(f"No id is or begins so. {error.detail}") from None
        try:
            await stream.begin(content_type, Vary=hdrs.ACCEPT)
            if request.method == hdrs.METH_HEAD:
                return stream.response
            await stream.send(head)
            while page is not None:
                await _send(stream, page, written)
                page = await anext(pages, None)
        except (ItemStoreError, OSError) as error:
            stream.cut(error)
        except Exception:
            log = request.app[STORE].log
            stream.cut(problems.internal(log, request[REQUEST_ID], request.path))
    return stream.response


async def _send(stream: Stream, page: Sequence[Item], written: Written) -> None:
    for start in range(0, len(page), ITEMS_AT_ONCE):
        stream.check()
        await stream.send(written(page[start : start + ITEMS_AT_ONCE]))
        await asyncio.sleep(0)


def _form(request: web.Request, parameters: Mapping[str, str]) -> tuple[str, bytes, Written]:
    """The media type, what comes before all items, and how items are written."""
    accepted = "csv" if _prefers_csv(request.headers.get(hdrs.ACCEPT, "")) else "ndjson"
    if _choice(parameters, "format", ("ndjson", "csv"), accepted) == "ndjson":
        for name in ("fields", "formulas"):
            if name in parameters:
                raise InvalidParameter(f"{name} is for CSV: add format=csv, or leave it out.")
        return requests.NDJSON[0], b"", _ndjson
    table = columns.parse(parameters.get("fields", columns.FIELDS_DEFAULT))
    keeps_formulas = _choice(parameters, "formulas", ("quote", "keep")) == "keep"
    written = partial(columns.rows, columns=table, keeps_formulas=keeps_formulas)
    return f"{CSV}; charset=utf-8; header=present", columns.header(table), written


def _ndjson(items: Sequence[Item]) -> bytes:
    return b"".join(item.json() + b"\n" for item in items)


def _prefers_csv(accept: str) -> bool:
    """Whether CSV is named with more weight than NDJSON (RFC 9110, section 12.5.1)."""
    weights: dict[str, float] = {}
    for each in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in each.split(";"))
        q = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[media_type] = float(q) if q.replace(".", "", 1).isdecimal() else 0.0
    return weights.get(CSV, 0.0) > max(weights.get(name, 0.0) for name in requests.NDJSON)


def _choice(
    parameters: Mapping[str, str], name: str, known: Sequence[str], default: str | None = None
) -> str:
    """The parameter's value, by default the first known one. Raises InvalidParameter."""
    value = parameters.get(name, default or known[0])
    if value not in known:
        raise InvalidParameter(f"{name} is {' or '.join(known)}, not {value[:40]!r}.")
    return value
