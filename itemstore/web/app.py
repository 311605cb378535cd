"""The routes, and the middleware around each of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from aiohttp import HttpVersion11, hdrs, web
from structlog.typing import FilteringBoundLogger

from itemstore.core.caller import ANYBODY, Role
from itemstore.errors import ItemStoreError, MalformedRequest, UnsupportedMediaType
from itemstore.store import ItemStore
from itemstore.web import bulk, items, problems, quarantine, requests, streams, system, traffic
from itemstore.web.bodies import BODIES, Bodies
from itemstore.web.browsers import BROWSERS, Browsers, methods_of
from itemstore.web.connection import Connection
from itemstore.web.door import DOOR, Door
from itemstore.web.traffic import Kind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """``role`` is the least its caller has; None: anybody may call it."""

    method: str
    path: str
    handler: Handler
    kind: Kind
    role: Role | None


_ITEM: Final = "/items/{id:(?s:.+)}"
_PARKED: Final = "/quarantine/{id:(?s:.+)}"

#: docs/api.md describes each, which a test compares. GET answers HEAD too.
ROUTES: Final = (
    Route("GET", "/items", items.list_items, Kind.HEAVY, Role.READ),
    Route("POST", "/items", items.create_item, Kind.WRITE, Role.WRITE),
    Route("POST", "/items:batch", items.batch, Kind.HEAVY, Role.READ),
    Route("GET", _ITEM, items.get_item, Kind.READ, Role.READ),
    Route("PUT", _ITEM, items.put_item, Kind.WRITE, Role.WRITE),
    Route("PATCH", _ITEM, items.patch_item, Kind.WRITE, Role.WRITE),
    Route("DELETE", _ITEM, items.delete_item, Kind.WRITE, Role.WRITE),
    Route("POST", "/import", bulk.import_items, Kind.HEAVY, Role.WRITE),
    Route("GET", "/export", bulk.export_items, Kind.HEAVY, Role.READ),
    Route("POST", "/flush", system.flush, Kind.HEAVY, Role.WRITE),
    Route("GET", "/quarantine", quarantine.list_parked, Kind.HEAVY, Role.ADMIN),
    Route("GET", _PARKED, quarantine.get_parked, Kind.HEAVY, Role.ADMIN),
    Route("POST", _PARKED, quarantine.retry, Kind.HEAVY, Role.ADMIN),
    Route("DELETE", _PARKED, quarantine.discard, Kind.HEAVY, Role.ADMIN),
    Route("GET", "/livez", system.livez, Kind.SYSTEM, None),
    Route("GET", "/readyz", system.readyz, Kind.SYSTEM, None),
    Route("GET", "/stats", system.stats, Kind.SYSTEM, Role.ADMIN),
    Route("GET", "/metrics", system.prometheus, Kind.SYSTEM, Role.ADMIN),
)

_ROUTES: Final = {(each.method, each.path.replace(":(?s:.+)", "")): each for each in ROUTES}

LOG: Final = web.AppKey("log", FilteringBoundLogger)


def make_app(
    store: ItemStore,
    *,
    door: Door | None = None,
    browsers: Browsers | None = None,
    bodies: Bodies | None = None,
) -> web.Application:
    """The application over a store, which may still be starting."""
    app = web.Application(
        middlewares=[_answer_errors], client_max_size=requests.BATCH_BODY_MAX_BYTES
    )
    app[items.STORE] = store
    app[system.TRAFFIC] = traffic.Traffic(store.log)
    app[LOG] = store.log
    app[streams.STREAMS] = streams.Streams()
    app[DOOR] = door or Door()
    app[BROWSERS] = browsers or Browsers()
    app[BODIES] = bodies or Bodies()
    app.on_response_prepare.append(_prepare)
    app.on_shutdown.append(app[streams.STREAMS].stop)
    for route in ROUTES:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, route.handler, expect_handler=_expect)
    return app


def route_of(request: web.Request) -> Route | None:
    """The route it is answered by; None if there is none."""
    resource = request.match_info.route.resource
    method = "GET" if request.method == hdrs.METH_HEAD else request.method
    return _ROUTES.get((method, resource.canonical)) if resource else None


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer goes through, also one that is streamed."""
    request.app[BROWSERS].finish(request, response)
    body = response.body if isinstance(response, web.Response) else None
    if isinstance(body, bytes) and isinstance(request.protocol, Connection):
        request.protocol.answer_bytes = len(body)


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
    request[requests.CALLER] = ANYBODY
    try:
        response = await _answer(request, handler)
    except ItemStoreError as error:
        response = problems.response(error, request_id)
        if isinstance(error, UnsupportedMediaType) and request.method == hdrs.METH_PATCH:
            response.headers["Accept-Patch"] = problems.ACCEPT_PATCH
    except web.HTTPException as error:
        response = problems.response(
            problems.from_http(error, request.method, request.path), request_id
        )
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers[hdrs.ALLOW] = ", ".join(methods_of(request))
    except Exception:
        failure = problems.internal(request.app[LOG], request_id, request.path)
        response = problems.response(failure, request_id)
    finally:
        request.app[BODIES].release(request)
    return _finish(request, response, started, request_id)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    browsers = request.app[BROWSERS]
    if request.method == hdrs.METH_OPTIONS:  # before all else: a preflight carries no credentials
        return browsers.options(request)
    browsers.check(request)
    return await handler(request)


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
