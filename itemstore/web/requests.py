"""Reads requests: id, query, headers, body, envelope. What is wrong is raised as InvalidInput."""

from __future__ import annotations

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import hdrs, web

from itemstore.core.caller import Caller
from itemstore.core.condition import Condition
from itemstore.core.confinement import permitted
from itemstore.core.data import Encoded, encode_parsed, loads
from itemstore.core.field import is_field
from itemstore.core.item import ID_MAX_BYTES, check_id, microseconds
from itemstore.core.operation import (
    Conflict,
    Create,
    Delete,
    Get,
    Import,
    Operation,
    Patch,
    Put,
)
from itemstore.core.record import Once, Origin
from itemstore.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidData,
    InvalidId,
    InvalidIdempotencyKey,
    InvalidItem,
    InvalidParameter,
    ItemStoreError,
    MalformedJSON,
    MalformedRequest,
    RouteNotFound,
    UnsupportedMediaType,
)
from itemstore.web.bodies import BODIES
from itemstore.web.limits import LIMITS

CALLER: Final = web.RequestKey("caller", Caller)
REQUEST_ID: Final = web.RequestKey("request_id", str)

BODY_MAX_BYTES: Final = 1024 * 1024
BATCH_BODY_MAX_BYTES: Final = 8 * 1024 * 1024
BATCH_OPERATIONS_MAX: Final = 1_000
BODY_TIMEOUT_S: Final = 10.0  # for the whole body; aiohttp itself would wait for ever
QUERY_FIELDS_MAX: Final = 30
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_STRING: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')

JSON: Final = ("application/json",)
NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
MERGE_PATCH: Final = ("application/merge-patch+json", "application/json")

#: What an item is answered with. A request may carry all of it: what was read can be written back.
_SERVER_MEMBERS: Final = frozenset({"version", "created_at", "updated_at"})
_OPS: Final = ("create", "get", "put", "patch", "delete")
#: Commas and brackets of an exported line beside those of its data: its own, and those in its id.
_ENVELOPE: Final = 5 + ID_MAX_BYTES
BATCH_LEVELS: Final = 3  # of JSON around the data of one operation


def item_id(request: web.Request) -> str:
    """The id in the path, percent-decoded once. Raises InvalidId, RouteNotFound."""
    segment = request.rel_url.raw_path.split("/", 2)[2]
    if "/" in segment:
        raise RouteNotFound("An id is one segment of the path; write a / in it as %2F.")
    try:
        return check_id(unquote_to_bytes(segment).decode())
    except UnicodeError:
        raise InvalidId("The id in the path is not percent-encoded UTF-8.") from None
    except InvalidId as error:
        raise InvalidId(error.detail) from None  # its pointer is that of an id in a body


def query(request: web.Request, allowed: Collection[str]) -> dict[str, str]:
    """The parameters. Raises InvalidParameter for one that is unknown, repeated or not UTF-8."""
    return _once_each(_pairs(request), allowed)


def list_query(
    request: web.Request, allowed: Collection[str]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The parameters of a list, and its filters: field → conditions. Raises InvalidParameter."""
    filters: dict[str, list[str]] = {}
    others = []
    for name, value in _pairs(request):
        if is_field(name):
            filters.setdefault(name, []).append(value)
        else:
            others.append((name, value))
    return _once_each(others, allowed, " and filters such as data.price=gte.10"), filters


def _pairs(request: web.Request) -> list[tuple[str, str]]:
    raw = request.rel_url.raw_query_string
    if not raw:
        return []
    try:
        return parse_qsl(
            raw, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX
        )
    except ValueError:
        raise InvalidParameter("The query is not percent-encoded UTF-8, or too long.") from None


def _once_each(
    pairs: Iterable[tuple[str, str]], allowed: Collection[str], others: str = ""
) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            known = f"known here: {', '.join(sorted(allowed))}" if allowed else "none is known here"
            raise InvalidParameter(f"The parameter {name[:40]!r} is unknown; {known}{others}.")
        if name in parameters:
            raise InvalidParameter(f"The parameter {name!r} is given twice.")
        parameters[name] = value
    return parameters


def integer(name: str, value: str) -> int:
    """Raises InvalidParameter unless it is a number of up to nine ASCII digits."""
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise InvalidParameter(f"{name} is a whole number, not {value[:40]!r}.")
    return int(value)


def condition(request: web.Request) -> Condition:
    """If-Match and If-None-Match. Raises InvalidETag."""
    return Condition.parse(_header(request, hdrs.IF_MATCH), _header(request, hdrs.IF_NONE_MATCH))


def durability(request: web.Request) -> str | None:
    """What the header Durability asks for, if anything."""
    return _header(request, "Durability")


def once(request: web.Request, raw: bytes) -> Once | None:
    """The request's Idempotency-Key, with all that it asks for; None if it has none.

    A string of RFC 9651, section 3.3.3, as the draft has it, or what is in one without its quotes:
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header. Raises
    InvalidIdempotencyKey.
    """
    given = _header(request, IDEMPOTENCY_KEY)
    if given is None:
        return None
    if (quoted := _STRING.fullmatch(given)) is not None:
        given = re.sub(r"\\(.)", r"\1", quoted[1])
    elif given.startswith('"'):
        raise InvalidIdempotencyKey("The Idempotency-Key begins with a quote and is no string.")
    return Once(given, request.path.encode() + b"\n" + raw)


def origin(request: web.Request, once: Once | None = None) -> Origin:
    """Who asks for what the request does."""
    network = request.app[LIMITS].network_of(request)
    return Origin(request[CALLER], request[REQUEST_ID], network, once)


def _header(request: web.Request, name: str) -> str | None:
    """Lines of the same name are one list (RFC 9110, section 5.3)."""
    values = request.headers.getall(name, None)
    return None if values is None else ", ".join(values)


def check_media_type(given: str | None, allowed: Collection[str]) -> None:
    """Raises UnsupportedMediaType. A body without a Content-Type is taken for JSON."""
    if given is not None:
        media_type, _, parameter = given.partition(";")
        charset = parameter.strip().lower().removeprefix("charset=").strip('"')
        if media_type.strip().lower() not in allowed or charset not in {"", "utf-8"}:
            raise UnsupportedMediaType(
                f"The Content-Type {given[:80]!r} is not accepted here; send "
                f"{' or '.join(allowed)} in UTF-8."
            )


def check_encoding(request: web.Request) -> None:
    """Raises UnsupportedMediaType for a compressed body."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(
            f"The Content-Encoding {encoding[:40]!r} is not accepted; send the body uncompressed."
        )


def check_length(request: web.Request, limit: int = BODY_MAX_BYTES) -> None:
    """Refuses a body that says it is too large, before any of it is read."""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)


async def json_body(request: web.Request, media_types: Collection[str] = JSON) -> Any:
    """The body's JSON value."""
    return parsed(await body(request, media_types))


async def body(
    request: web.Request, media_types: Collection[str] = JSON, *, limit: int = BODY_MAX_BYTES
) -> bytes:
    """The body, whole and not empty."""
    check_media_type(request.headers.get(hdrs.CONTENT_TYPE), media_types)
    check_encoding(request)
    check_length(request, limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _read(request, limit)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None
    except web.RequestPayloadError as error:
        raise MalformedRequest(f"The body's transfer coding is broken: {error}.") from None
    except OSError:  # nobody reads the answer any more, but the log does
        raise MalformedRequest("The connection ended before the body did.") from None
    if not raw:
        raise MalformedJSON('The body is empty; send an item: {"data": {…}}.')
    return raw


def parsed(raw: bytes, *, depth: int = 1) -> Any:
    """The body's JSON value. ``depth``: the levels around an item's data."""
    try:
        return loads(raw, wrapping=depth)
    except InvalidData as error:
        if depth == BATCH_LEVELS and error.pointer is not None:
            error.pointer = "/operations"  # which of them is not known
        raise


async def _read(request: web.Request, limit: int) -> bytes:
    body, bodies = bytearray(), request.app[BODIES]
    while chunk := await request.content.readany():
        bodies.hold(request, len(body) + len(chunk))
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit:,} bytes, the most accepted here.")


def create(value: Any) -> Create:
    """The operation of POST /items."""
    members = _members(value)
    given = members.get("id")
    return Create(_data(members), given if given is None else check_id(given))


def put(value: Any, in_path: str, when: Condition) -> Put:
    """The operation of PUT /items/{id}."""
    return Put(in_path, _data(_members(value, in_path)), when)


def patch(value: Any, in_path: str, when: Condition) -> Patch:
    """A merge patch of the item: only its ``data`` can change."""
    data = _members(value, in_path).get("data", {})
    if type(data) is not dict:
        raise InvalidItem('A patch changes members of data: {"data": {…}}.', pointer="/data")
    return Patch(in_path, data, when)


def line(raw: bytes) -> Any:
    """The JSON value of one line of POST /import."""
    if raw.startswith(BOM_UTF8):
        raise MalformedJSON("The line begins with a byte order mark; send UTF-8 without one.")
    return loads(raw, around=_ENVELOPE, what="line")


def imported(value: Any, conflict: Conflict) -> Import:
    """The operation of one line of POST /import: an item as GET answers it, or less of it."""
    members = _members(value)
    times = (_time(members, "created_at"), _time(members, "updated_at"))
    return Import(members.get("id"), _data(members), *times, conflict)


def _time(members: Mapping[str, Any], name: str) -> int | None:
    given = members.get(name)
    if given is None:
        return None
    try:
        return microseconds(given)
    except (TypeError, ValueError):
        raise InvalidItem(
            f"{name} is a time as RFC 3339 writes it, such as 2026-11-22T03:44:09.446162Z.",
            pointer=f"/{name}",
        ) from None


def operations(value: Any) -> list[Any]:
    """A batch's operations, each for ``operation_or_error``. Raises InvalidItem."""
    if type(value) is not dict or set(value) != {"operations"}:
        raise InvalidItem('A batch is {"operations": […]} and nothing else.')
    given = value["operations"]
    if type(given) is not list or not 1 <= len(given) <= BATCH_OPERATIONS_MAX:
        raise InvalidItem(
            f"operations is an array of 1 to {BATCH_OPERATIONS_MAX} operations.",
            pointer="/operations",
        )
    return given


def operation_or_error(caller: Caller, value: Any) -> Operation | ItemStoreError:
    """An operation, or what is wrong with it, or why the caller may not do it."""
    try:
        return permitted(caller, _operation(value))
    except ItemStoreError as error:
        return error


def _operation(value: Any) -> Operation:
    if type(value) is not dict or type(value.get("op")) is not str:
        raise InvalidItem(f'An operation is an object with "op": {", ".join(_OPS)}.', pointer="/op")
    rest = dict(value)
    op = rest.pop("op")
    if op not in _OPS:
        raise InvalidItem(f"op is one of {', '.join(_OPS)}, not {op[:40]!r}.", pointer="/op")
    if op == "create":
        return create(rest)
    when = Condition.parse(_tag(rest, "if_match"), _tag(rest, "if_none_match"))
    target = check_id(rest.pop("id", None))
    match op:
        case "put":
            return put(rest, target, when)
        case "patch":
            return patch(rest, target, when)
        case _:
            if rest:
                raise InvalidItem(f"{op} knows no member {next(iter(rest))[:40]!r}.")
            return Get(target) if op == "get" else Delete(target, when)


def _tag(members: dict[str, Any], name: str) -> str | None:
    value = members.pop(name, None)
    if value is not None and type(value) is not str:
        raise InvalidItem(f"{name} is a string, as the header would be.", pointer=f"/{name}")
    return value


def _members(value: Any, in_path: str | None = None) -> Mapping[str, Any]:
    """The envelope. Raises InvalidItem for a member it does not have, or another id."""
    if type(value) is not dict:
        raise InvalidItem('An item is a JSON object: {"data": {…}}.')
    for name in value:
        if name not in _SERVER_MEMBERS and name not in {"id", "data"}:
            escaped = name.replace("~", "~0").replace("/", "~1")
            raise InvalidItem(
                f"An item has no member {name[:40]!r}. Your own members belong inside data.",
                pointer=f"/{escaped}",
            )
    if in_path is not None and value.get("id", in_path) != in_path:
        raise InvalidItem("The id in the body is not the id in the path.", pointer="/id")
    return value


def _data(members: Mapping[str, Any]) -> Encoded:
    if "data" not in members:
        raise InvalidItem('The item has no data; send {"data": {…}}.', pointer="/data")
    return encode_parsed(members["data"])
