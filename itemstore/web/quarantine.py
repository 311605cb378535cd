"""Quarantine over HTTP: accepted writes that PostgreSQL refused, for those who run the store."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from itemstore.core.item import timestamp
from itemstore.storage import Parked
from itemstore.web import requests
from itemstore.web.items import STORE
from itemstore.web.system import momentary


async def list_parked(request: web.Request) -> web.Response:
    """GET /quarantine: what is in it, without the data."""
    requests.query(request, ())
    parked = await request.app[STORE].quarantine.list()
    return momentary({"items": [_summary(each) for each in parked]})


async def get_parked(request: web.Request) -> web.Response:
    """GET /quarantine/{id}: with the data that was refused."""
    requests.query(request, ())
    each = await request.app[STORE].quarantine.get(requests.item_id(request))
    return momentary(_summary(each) | {"data": _shown(each.change.data)})


async def retry(request: web.Request) -> web.Response:
    """POST /quarantine/{id}: writes it again; 204, or 500 if PostgreSQL refuses it again."""
    requests.query(request, ())
    origin = requests.origin(request)
    await request.app[STORE].quarantine.retry(requests.item_id(request), origin)
    return web.Response(status=204)


async def discard(request: web.Request) -> web.Response:
    """DELETE /quarantine/{id}: gives the write up; the item is again as PostgreSQL has it."""
    requests.query(request, ())
    await request.app[STORE].quarantine.discard(requests.item_id(request))
    return web.Response(status=204)


def _shown(data: bytes | None) -> Any:
    """As JSON; as text, should it not even be that."""
    if data is None:
        return None
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return data.decode(errors="replace")
    return orjson.Fragment(data)


def _summary(each: Parked) -> dict[str, Any]:
    return {
        "id": each.change.id,
        "version": each.change.version,
        "deleted": each.change.deleted,
        "error": each.reason,
        "at": timestamp(each.at_us).decode(),
    }
