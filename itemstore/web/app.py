"""The routes, and the middleware around each of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from structlog.typing import FilteringBoundLogger

from itemstore.errors import (
    ItemStoreError,
    MalformedRequest,
    UnsupportedMediaType,
)
from itemstore.store import ItemStore
from itemstore.web import bulk, items, problems, quarantine, requests, streams, system, traffic

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Method, path, handler; docs/api.md describes each, which a test compares. GET answers HEAD too.
ROUTES: Final = (
    ("GET", "/items", items.list_items),
    ("POST", "/items", items.create_item),
    ("POST", "/items:batch", items.batch),
    ("GET", "/items/{id:(?s:.+)}", items.get_item),
    ("PUT", "/items/{id:(?s:.+)}", items.put_item),
    ("PATCH", "/items/{id:(?s:.+)}", items.patch_item),
    ("DELETE", "/items/{id:(?s:.+)}", items.delete_item),
    ("POST", "/import", bulk.import_items),
    ("GET", "/export", bulk.export_items),
    ("POST", "/flush", system.flush),
    ("GET", "/quarantine", quarantine.list_parked),
    ("GET", "/quarantine/{id:(?s:.+)}", quarantine.get_parked),
    ("POST", "/quarantine/{id:(?s:.+)}", quarantine.retry),
    ("DELETE", "/quarantine/{id:(?s:.+)}", quarantine.discard),
    ("GET", "/livez", system.livez),
    ("GET", "/readyz", system.readyz),
    ("GET", "/stats", system.stats),
    ("GET", "/metrics", system.prometheus),
)

LOG: Final = web.AppKey("log", FilteringBoundLogger)


def make_app(store: ItemStore) -> web.Application:
    """The application over a store, which may still be starting."""
    app = web.Application(
        middlewares=[_answer_errors], client_max_size=requests.BATCH_BODY_MAX_BYTES
    )
    app[items.STORE] = store
    app[system.TRAFFIC] = traffic.Traffic(store.log)
    app[LOG] = store.log
    app[streams.STREAMS] = streams.Streams()
    app.on_shutdown.append(app[streams.STREAMS].stop)
    for method, path, handler in ROUTES:
        methods = ("GET", "HEAD") if method == "GET" else (method,)
        for each in methods:
            app.router.add_route(each, path, handler, expect_handler=_expect)
    return app


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Invites a body (100 Continue) only if it will be read."""
    if request.version < HttpVersion11:  # to be ignored there: RFC 9110, section 10.1.1
        return None
    started = time.perf_counter()
    error: ItemStoreError | None = None
    try:
        if request.headers[hdrs.EXPECT].lower() != "100-continue":
            raise MalformedRequest("Expect is 100-continue; leave anything else out.")
        if request.path != "/import":  # of any length
            limit = (
                requests.BATCH_BODY_MAX_BYTES
                if request.path == "/items:batch"
                else requests.BODY_MAX_BYTES
            )
            requests.check_length(request, limit)
    except ItemStoreError as refusal:
        error = refusal
    if error is None:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None
    request_id = _id_of(request)
    response = problems.response(error, request_id)
    response.force_close()  # what comes now could be the body or a request
    return _finish(request, response, started, request_id)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into a problem document; names, times, counts and logs the request."""
    started = time.perf_counter()
    request_id = request[streams.REQUEST_ID] = _id_of(request)
    try:
        response = await handler(request)
    except ItemStoreError as error:
        response = problems.response(error, request_id)
        if isinstance(error, UnsupportedMediaType) and request.method == hdrs.METH_PATCH:
            response.headers["Accept-Patch"] = problems.ACCEPT_PATCH
    except web.HTTPException as error:
        response = problems.response(
            problems.from_http(error, request.method, request.path), request_id
        )
        if hdrs.ALLOW in error.headers:
            response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    except Exception:
        failure = problems.internal(request.app[LOG], request_id, request.path)
        response = problems.response(failure, request_id)
    return _finish(request, response, started, request_id)


def _finish(
    request: web.Request, response: web.StreamResponse, started: float, request_id: str
) -> web.StreamResponse:
    response.headers[traffic.REQUEST_ID] = request_id
    response.headers[hdrs.SERVER] = traffic.SERVER
    resource = request.match_info.route.resource
    # Without a resource the method may be anything a caller makes up: it must not become a label.
    route = f"{request.method} {resource.canonical}" if resource else "unmatched"
    request.app[system.TRAFFIC].note(
        request.method, request.rel_url.raw_path, route, started, request_id, response.status
    )
    return response


def _id_of(request: web.Request) -> str:
    headers = request.headers
    return traffic.request_id(
        headers.get(traffic.REQUEST_ID), headers.get(traffic.RAILWAY_REQUEST_ID)
    )
