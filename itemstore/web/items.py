"""The items over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import orjson
from aiohttp import hdrs, web

from itemstore.batch import writes
from itemstore.core.condition import etag
from itemstore.core.confinement import check_reach, narrowed, permitted
from itemstore.core.field import split_fields
from itemstore.core.item import Item
from itemstore.core.listing import LIMIT_DEFAULT, Page, understand
from itemstore.core.operation import Delete, Get, Operation
from itemstore.core.record import Origin
from itemstore.core.selection import parse_fields
from itemstore.errors import InvalidId, InvalidParameter, ItemNotFound, ItemStoreError
from itemstore.store import ItemStore
from itemstore.tasks import in_turns
from itemstore.web import problems, requests
from itemstore.web.door import DOOR
from itemstore.web.requests import CALLER

ETAG: Final = "ETag"  # as RFC 9110 spells it; aiohttp has Etag
#: As others call it, for the draft names no such header.
REPLAYED: Final = "Idempotent-Replayed"
#: The answer to one batch is made at a time: that takes its bytes twice.
TELLING: Final = web.AppKey("telling", asyncio.Lock)
STORE: Final = web.AppKey("store", ItemStore)

#: A client may keep what it read, and must ask whether it still holds (RFC 9111, section 5.2.2.4).
_CACHE_CONTROL: Final = "no-cache"
#: The command that would make a list faster: Warning, which HTTP once had, is obsolete (RFC 9111,
#: section 5.5), and was about caching.
HINT: Final = "Itemstore-Hint"
#: The Durability of an item that is read and whose newest state is not committed yet.
PENDING: Final = "pending"


async def get_item(request: web.Request) -> web.Response:
    """GET and HEAD /items/{id}: 200, 304, 404, 412."""
    item_id = requests.item_id(request)
    requests.query(request, ())
    store = request.app[STORE]
    check_reach(request[CALLER], item_id)
    item = await store.get(item_id)
    if item is None:
        raise ItemNotFound(f"There is no item {item_id!r}.")
    when = requests.condition(request)
    when.check_match(item.entry)
    headers = {ETAG: etag(item.version), hdrs.CACHE_CONTROL: _CACHE_CONTROL}
    if store.is_pending(item_id):
        headers["Durability"] = PENDING
    if when.is_unmodified(item.entry):
        return web.Response(status=304, headers=headers)
    return web.Response(body=item.json(), content_type="application/json", headers=headers)


async def create_item(request: web.Request) -> web.Response:
    """POST /items: 201, 409."""
    requests.query(request, ())
    store = request.app[STORE]
    level = store.level(requests.durability(request))
    raw = await requests.body(request)
    origin = requests.origin(request, requests.once(request, raw))
    operation = permitted(request[CALLER], requests.create(requests.parsed(raw)))
    return _marked(_answer(await store.write(operation, level, origin), durability=level), origin)


async def put_item(request: web.Request) -> web.Response:
    """PUT /items/{id}: 201 for a new item, 200 for a replaced one, 412."""
    requests.query(request, ())
    store, item_id = request.app[STORE], requests.item_id(request)
    level, when = store.level(requests.durability(request)), requests.condition(request)
    operation = requests.put(await requests.json_body(request), item_id, when)
    permitted(request[CALLER], operation)
    item = await store.write(operation, level, requests.origin(request))
    return _answer(item, durability=level)


async def patch_item(request: web.Request) -> web.Response:
    """PATCH /items/{id}, a JSON merge patch: 200, 404, 412."""
    requests.query(request, ())
    store, item_id = request.app[STORE], requests.item_id(request)
    level, when = store.level(requests.durability(request)), requests.condition(request)
    body = await requests.json_body(request, requests.MERGE_PATCH)
    operation = requests.patch(body, item_id, when)
    permitted(request[CALLER], operation)
    item = await store.write(operation, level, requests.origin(request))
    return _answer(item, durability=level)


async def delete_item(request: web.Request) -> web.Response:
    """DELETE /items/{id}: 204, 404, 412."""
    requests.query(request, ())
    store, item_id = request.app[STORE], requests.item_id(request)
    level = store.level(requests.durability(request))
    operation = permitted(request[CALLER], Delete(item_id, requests.condition(request)))
    await store.write(operation, level, requests.origin(request))
    return web.Response(status=204, headers={"Durability": level})


async def list_items(request: web.Request) -> web.Response:
    """GET /items: a page, exact as of the request."""
    parameters, filters = requests.list_query(request, LIST_PARAMETERS)
    fields = parameters.get("fields")
    selected = None if fields is None else split_fields(fields)
    try:
        page = await _page(
            request,
            limit=requests.integer("limit", parameters.get("limit", str(LIMIT_DEFAULT))),
            order=parameters.get("order", "created"),
            cursor=parameters.get("cursor"),
            prefix=parameters.get("prefix", ""),
            count=parameters.get("count", "none"),
            filters=filters,
            fields=selected,
        )
    except InvalidId as error:
        raise InvalidParameter(f"No id begins with this prefix. {error.detail}") from None
    as_json = Item.json if selected is None else parse_fields(selected).json
    body = b'{"items":[%b],"next":%b' % (
        b",".join(as_json(item) for item in page.items),
        orjson.dumps(page.next),
    )
    body += b"}" if page.count is None else b',"count":%d}' % page.count
    headers: list[tuple[str, str]] = [(hdrs.CACHE_CONTROL, "no-store")]  # it has no validator
    if page.next is not None:
        target = request.rel_url.update_query(cursor=page.next)
        headers.append((hdrs.LINK, f'<{target.raw_path_qs}>; rel="next"'))
    headers += [(HINT, command) for command in page.hints]
    return web.Response(body=body, content_type="application/json", headers=headers)


async def _page(request: web.Request, *, prefix: str, count: str, **asked: Any) -> Page:
    """The page of a list; to a confined caller as if there were no others' items.

    An estimate, and which indexes are missing, would depend on those.
    """
    caller = request[CALLER]
    own = narrowed(caller, prefix)
    if own is None:
        understand(prefix=prefix, count=count, **asked)
        return Page([], None, None if count == "none" else 0)
    if caller.prefix and count == "estimated":
        count = "exact"
    return await request.app[STORE].list(prefix=own, count=count, hints=not caller.prefix, **asked)


LIST_PARAMETERS: Final = frozenset({"limit", "cursor", "order", "prefix", "count", "fields"})


async def batch(request: web.Request) -> web.Response:
    """POST /items:batch: 200 with one result an operation."""
    requests.query(request, ())
    store = request.app[STORE]
    level = store.level(requests.durability(request))
    raw = await requests.body(request, limit=requests.BATCH_BODY_MAX_BYTES)
    origin = requests.origin(request, requests.once(request, raw))
    body = requests.parsed(raw, depth=requests.BATCH_LEVELS)
    parse = partial(requests.operation_or_error, request[CALLER])
    given = await in_turns(parse, requests.operations(body))
    outcomes = await store.batch(given, durability=level, origin=origin)
    async with request.app[TELLING]:
        answer = await _told(given, outcomes)
    if not writes(given):
        await request.app[DOOR].answers.room(len(answer))  # it may still be refused
    response = web.Response(
        body=answer,
        content_type="application/json",
        headers={"Durability": level, hdrs.CACHE_CONTROL: "no-store"},
    )
    return _marked(response, origin)


async def _told(
    operations: Sequence[Operation | ItemStoreError],
    outcomes: Sequence[Item | ItemStoreError | None],
) -> bytes:
    """The answer to a batch."""
    told = list(zip(range(len(operations)), operations, outcomes, strict=True))
    return orjson.dumps({"results": await in_turns(lambda each: _result(*each), told)})


def _marked(response: web.Response, origin: Origin) -> web.Response:
    """Says so if any of it is what an earlier request with the same key was answered."""
    if origin.once is not None and origin.once.replayed:
        response.headers[REPLAYED] = "true"
    return response


def _result(
    index: int, operation: Operation | ItemStoreError, outcome: Item | ItemStoreError | None
) -> dict[str, Any]:
    """What the operation would have been answered with as a request of its own."""
    if isinstance(outcome, ItemStoreError):
        problem = problems.problem(outcome, "")
        problem["pointer"] = f"/operations/{index}{outcome.pointer or ''}"
        return {"status": outcome.status, "problem": problem}
    if isinstance(operation, Delete) or outcome is None:
        return {"status": 204}
    is_new = not isinstance(operation, Get) and outcome.is_new
    return {"status": 201 if is_new else 200, "item": orjson.Fragment(outcome.json())}


def _answer(item: Item, *, durability: str) -> web.Response:
    """The item as a write has made it, with the durability the write has."""
    headers: dict[str, str] = {
        ETAG: etag(item.version),
        hdrs.CACHE_CONTROL: _CACHE_CONTROL,
        "Durability": durability,
    }
    status = 200
    if item.is_new:
        status = 201
        headers[hdrs.LOCATION] = f"/items/{quote(item.id, safe='')}"
    return web.Response(
        status=status, body=item.json(), content_type="application/json", headers=headers
    )
