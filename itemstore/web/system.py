"""What those who run the store ask it: is it alive, is it ready, how is it."""

from __future__ import annotations

from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from itemstore import metrics
from itemstore.store import ItemStore
from itemstore.web import requests
from itemstore.web.items import STORE
from itemstore.web.limits import LIMITS
from itemstore.web.traffic import Traffic

TRAFFIC: Final = web.AppKey("traffic", Traffic)


async def livez(request: web.Request) -> web.Response:
    """The event loop turns."""
    requests.query(request, ())
    return momentary({"alive": True})


async def readyz(request: web.Request) -> web.Response:
    """200 as soon as answers are exact: also of a standby, in a preload, with PostgreSQL away."""
    requests.query(request, ())
    store = request.app[STORE]
    return momentary(state(store), status=200 if store.is_ready else 503)


def state(store: ItemStore) -> dict[str, Any]:
    """What /readyz says."""
    failure = store.persister.failure
    database = "ok" if store.is_ready else "unknown"
    return {
        "ready": store.is_ready,
        "hydrated": store.cache.hydrated,
        "loaded": store.loader.preloaded,
        "estimate": store.loader.estimate,
        "lease": store.lease.state,
        "epoch": store.lease.epoch,
        "dirty": len(store.queue),
        "quarantined": len(store.queue.parked),
        "database": database if failure is None else failure.kind,
        "journal": _journal(store),
    }


def _journal(store: ItemStore) -> str:
    if store.journaling.journal is None:
        return "none"
    return "ok" if store.journaling.refusal() is None else "refusing"


async def flush(request: web.Request) -> web.Response:
    """POST /flush: 204 when everything accepted before it is committed."""
    requests.query(request, ())
    await request.app[STORE].flush()
    return web.Response(status=204)


async def stats(request: web.Request) -> web.Response:
    """The numbers for people: GET /stats."""
    requests.query(request, ())
    numbers = {metric.name: value for metric, value in metrics.read(request.app[STORE])}
    served = request.app[TRAFFIC].served
    numbers["itemstore_http_requests_total"] = sum(each.count for each in served.values())
    return momentary(numbers)


async def prometheus(request: web.Request) -> web.Response:
    """The numbers for Prometheus: GET /metrics."""
    # Here, not above: the first scrape pays for the import, not the start.
    from itemstore.web import exposition

    requests.query(request, ())
    body = exposition.expose(request.app[STORE], request.app[TRAFFIC], request.app[LIMITS])
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: exposition.CONTENT_TYPE_LATEST})


def momentary(value: dict[str, Any], status: int = 200) -> web.Response:
    """JSON that is true for this moment and is not to be kept."""
    return web.Response(
        status=status,
        body=orjson.dumps(value),
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store"},
    )
