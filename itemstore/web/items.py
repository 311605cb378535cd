"""The items over HTTP."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import orjson
from aiohttp import hdrs, web

from itemstore.core.condition import etag
from itemstore.core.field import split_fields
from itemstore.core.item import Item
from itemstore.core.listing import LIMIT_DEFAULT
from itemstore.core.operation import Delete, Get, Operation
from itemstore.core.selection import parse_fields
from itemstore.errors import InvalidId, InvalidParameter, ItemNotFound, ItemStoreError
from itemstore.store import ItemStore
from itemstore.tasks import in_turns
from itemstore.web import problems, requests

ETAG: Final = "ETag"  # as RFC 9110 spells it; aiohttp has Etag
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
    item = await store.write(
        requests.create(await requests.json_body(request)), level, request[requests.CALLER]
    )
    return _answer(item, durability=level)


async def put_item(request: web.Request) -> web.Response:
    """PUT /items/{id}: 201 for a new item, 200 for a replaced one, 412."""
    requests.query(request, ())
    store, item_id = request.app[STORE], requests.item_id(request)
    level, when = store.level(requests.durability(request)), requests.condition(request)
    operation = requests.put(await requests.json_body(request), item_id, when)
    item = await store.write(operation, level, request[requests.CALLER])
    return _answer(item, durability=level)


async def patch_item(request: web.Request) -> web.Response:
    """PATCH /items/{id}, a JSON merge patch: 200, 404, 412."""
    requests.query(request, ())
    store, item_id = request.app[STORE], requests.item_id(request)
    level, when = store.level(requests.durability(request)), requests.condition(request)
    body = await requests.json_body(request, requests.MERGE_PATCH)
    item = await store.write(requests.patch(body, item_id, when), level, request[requests.CALLER])
    return _answer(item, durability=level)


async def delete_item(request: web.Request) -> web.Response:
    """DELETE /items/{id}: 204, 404, 412."""
    requests.query(request, ())
    store, item_id = request.app[STORE], requests.item_id(request)
    level = store.level(requests.durability(request))
    await store.delete(item_id, when=requests.condition(request), durability=level)
    return web.Response(status=204, headers={"Durability": level})


async def list_items(request: web.Request) -> web.Response:
    """GET /items: a page, exact as of the request."""
    parameters, filters = requests.list_query(request, LIST_PARAMETERS)
    fields = parameters.get("fields")
    selected = None if fields is None else split_fields(fields)
    try:
        page = await request.app[STORE].list(
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
    headers: list[tuple[str, str]] = [(hdrs.CACHE_CONTROL, _CACHE_CONTROL)]
    if page.next is not None:
        target = request.rel_url.update_query(cursor=page.next)
        headers.append((hdrs.LINK, f'<{target.raw_path_qs}>; rel="next"'))
    headers += [(HINT, command) for command in page.hints]
    return web.Response(body=body, content_type="application/json", headers=headers)


LIST_PARAMETERS: Final = frozenset({"limit", "cursor", "order", "prefix", "count", "fields"})


async def batch(request: web.Request) -> web.Response:
    """POST /items:batch: 200 with one result an operation."""
    requests.query(request, ())
    store = request.app[STORE]
    level = store.level(requests.durability(request))
    body = await requests.json_body(
        request, limit=requests.BATCH_BODY_MAX_BYTES, depth=requests.BATCH_LEVELS
    )
    given = await in_turns(requests.operation_or_error, requests.operations(body))
    outcomes = iter(
        await store.batch(
            [each for each in given if not isinstance(each, ItemStoreError)],
            durability=level,
            caller=request[requests.CALLER],
        )
    )

    def result(numbered: tuple[int, Operation | ItemStoreError]) -> dict[str, Any]:
        index, each = numbered
        if isinstance(each, ItemStoreError):
            return _result(index, None, each)
        return _result(index, each, next(outcomes))

    results = await in_turns(result, list(enumerate(given)))
    return web.Response(
        body=orjson.dumps({"results": results}),
        content_type="application/json",
        headers={"Durability": level, hdrs.CACHE_CONTROL: "no-store"},
    )


def _result(
    index: int, operation: Operation | None, outcome: Item | ItemStoreError | None
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
