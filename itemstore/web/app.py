"""The routes, and the middleware around each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

from aiohttp import HttpVersion11, hdrs, web
from structlog.typing import FilteringBoundLogger

from itemstore.core.caller import NOBODY, Role
from itemstore.errors import (
    Forbidden,
    ItemStoreError,
    MalformedRequest,
    RouteNotFound,
    Unauthenticated,
    UnsupportedMediaType,
)
from itemstore.store import ItemStore
from itemstore.surroundings import Surroundings
from itemstore.tasks import end
from itemstore.web import (
    access,
    audit,
    bulk,
    contract,
    items,
    keys,
    limits,
    numbers,
    problems,
    quarantine,
    requests,
    streams,
    system,
    traffic,
)
from itemstore.web.bodies import BODIES, Bodies
from itemstore.web.browsers import BROWSERS, SAFE, Browsers, methods_of
from itemstore.web.door import DOOR, Door
from itemstore.web.limits import LIMITS, Limits
from itemstore.web.traffic import Kind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """``role`` is the least its caller has; None: anybody may call it.

    ``is_whole``: it is about the whole store, and not for who is confined to a prefix.
    """

    method: str
    path: str
    handler: Handler
    kind: Kind
    role: Role | None
    is_whole: bool = False


_ITEM: Final = "/items/{id:(?s:.+)}"
_PARKED: Final = "/quarantine/{id:(?s:.+)}"
_KEY: Final = "/keys/{id:(?s:.+)}"

#: docs/api.md and openapi.yaml describe each, which tests compare. GET answers HEAD too.
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
    Route("POST", "/keys", keys.create_key, Kind.HEAVY, Role.ADMIN),
    Route("GET", "/keys", keys.list_keys, Kind.HEAVY, Role.ADMIN),
    Route("DELETE", _KEY, keys.revoke_key, Kind.HEAVY, Role.ADMIN),
    Route("GET", "/audit", audit.list_rows, Kind.HEAVY, Role.ADMIN, is_whole=True),
    Route("GET", "/livez", system.livez, Kind.SYSTEM, None),
    Route("GET", "/readyz", system.readyz, Kind.SYSTEM, None),
    Route("GET", "/stats", system.stats, Kind.SYSTEM, Role.READ, is_whole=True),
    Route("GET", "/metrics", system.prometheus, Kind.SYSTEM, Role.READ, is_whole=True),
    Route("GET", contract.OPENAPI, contract.answer, Kind.SYSTEM, None),
    Route("GET", contract.DOCS, contract.answer, Kind.SYSTEM, None),
    Route("GET", contract.STYLE, contract.answer, Kind.SYSTEM, None),
)

_ROUTES: Final = {(each.method, each.path.replace(":(?s:.+)", "")): each for each in ROUTES}

#: The least role of each route that asks for one.
ROLE_OF: Final = {route: each.role for route, each in _ROUTES.items() if each.role is not None}

_KINDS: Final = {f"{method} {path}": each.kind for (method, path), each in _ROUTES.items()}

LOG: Final = web.AppKey("log", FilteringBoundLogger)
DOCS: Final = web.AppKey("docs", bool)


def make_app(
    store: ItemStore,
    *,
    guard: access.Guard | None = None,
    limited: Limits | None = None,
    around: Surroundings | None = None,
    door: Door | None = None,
    browsers: Browsers | None = None,
    bodies: Bodies | None = None,
    docs: bool = True,
) -> web.Application:
    """The application over a store, which may still be starting, and what it stands on.

    Without a guard it is for anybody, without ``limited`` at any rate; ``docs``: it describes
    itself.
    """
    app = web.Application(
        middlewares=[_answer_errors], client_max_size=requests.BATCH_BODY_MAX_BYTES
    )
    app[items.STORE] = store
    app[items.TELLING] = asyncio.Lock()
    app[access.GUARD] = guard or access.Guard()
    app[numbers.TRAFFIC] = traffic.Traffic(store.log, _KINDS)
    app[numbers.AROUND] = around or Surroundings()
    app.cleanup_ctx.extend((access.running, _look_around))
    app[LOG] = store.log
    app[DOCS] = docs
    app[LIMITS] = limited = limited or Limits()
    if limited.shared is not None:
        app.on_startup.append(limited.shared.start)
        app.on_cleanup.append(limited.shared.close)
    app[streams.STREAMS] = streams.Streams()
    app[DOOR] = door or Door()
    app[BROWSERS] = browsers or Browsers()
    app[BODIES] = bodies or Bodies()
    app.on_response_prepare.append(_prepare)
    app.on_shutdown.append(app[streams.STREAMS].stop)
    for route in ROUTES:
        if route.handler is contract.answer and not docs:
            continue
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, route.handler, expect_handler=_expect)
    return app


async def _look_around(app: web.Application) -> AsyncIterator[None]:
    looking = asyncio.create_task(app[numbers.AROUND].run(), name="around")
    yield
    await end([looking])


def route_of(request: web.Request) -> Route | None:
    """The route it is answered by; None if there is none."""
    resource = request.match_info.route.resource
    method = "GET" if request.method == hdrs.METH_HEAD else request.method
    return _ROUTES.get((method, resource.canonical)) if resource else None


async def _admit(request: web.Request) -> Route | None:
    """The route, if there is one and the caller may take it.

    Raises Unauthenticated, Forbidden, Unavailable; RateLimited if it fails too often.
    """
    route = route_of(request)
    if route is not None:
        try:
            await access.admit(request, route.role, is_whole=route.is_whole)
        except Unauthenticated as error:
            limits.failed(request, error)
            raise
        return route
    request[requests.CALLER] = NOBODY
    if request.match_info.http_exception is None:  # a route that says nothing of its role
        raise Forbidden("Nobody may call this.")
    return None


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer goes through, also one that is streamed."""
    request.app[BROWSERS].finish(request, response)
    request.app[DOOR].writes(request.protocol, _size(response))


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Invites a body (100 Continue) only if it will be read."""
    if request.version < HttpVersion11:  # to be ignored there: RFC 9110, section 10.1.1
        return None
    started = time.perf_counter()
    error: ItemStoreError | None = None
    try:
        await _admit(request)
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
    request_id = request[requests.REQUEST_ID] = _id_of(request)
    try:
        response = await _answer(request, handler)
        await _room(request, response)
    except ItemStoreError as error:
        response = problems.response(error, request_id)
        if isinstance(error, UnsupportedMediaType) and request.method == hdrs.METH_PATCH:
            response.headers["Accept-Patch"] = problems.ACCEPT_PATCH
        if isinstance(error, RouteNotFound):
            _show_the_way(request, response)
    except web.HTTPException as error:
        response = problems.response(
            problems.from_http(error, request.method, request.path), request_id
        )
        _show_the_way(request, response)
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers[hdrs.ALLOW] = ", ".join(methods_of(request))
    except Exception:
        failure = problems.internal(request.app[LOG], request_id, request.path)
        response = problems.response(failure, request_id)
    finally:
        request.app[BODIES].release(request)
    return _finish(request, response, started, request_id)


def _show_the_way(request: web.Request, response: web.StreamResponse) -> None:
    """Whoever asks for what there is not is told where it stands what there is."""
    if request.app[DOCS]:
        response.headers[hdrs.LINK] = contract.LINK


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    browsers = request.app[BROWSERS]
    if request.method == hdrs.METH_OPTIONS:  # before all else: a preflight carries no credentials
        return browsers.options(request)
    browsers.check(request)
    route = await _admit(request)
    limited = request.app[LIMITS]
    if limited.are_set and route is not None:
        await limited.check(request, route.kind, request[requests.CALLER])
    return await handler(request)


async def _room(request: web.Request, response: web.StreamResponse) -> None:
    """Waits until it may be written; a stream sees to that itself. Raises Overloaded."""
    if request.method != hdrs.METH_HEAD:
        is_done = request.method not in SAFE
        await request.app[DOOR].answers.room(_size(response), is_done=is_done)


def _size(response: web.StreamResponse) -> int:
    """Bytes of its body; 0 for a stream."""
    body = response.body if isinstance(response, web.Response) else None
    return len(body) if isinstance(body, bytes) else 0


def _finish(
    request: web.Request, response: web.StreamResponse, started: float, request_id: str
) -> web.StreamResponse:
    response.headers.update(limits.headers_of(request))
    response.headers[traffic.REQUEST_ID] = request_id
    response.headers[hdrs.SERVER] = traffic.SERVER
    resource = request.match_info.route.resource
    # Without a resource the method may be anything a caller makes up: it must not become a label.
    route = f"{request.method} {resource.canonical}" if resource else traffic.UNMATCHED
    served = request.app[numbers.TRAFFIC]
    if problems.CODE in response:
        served.errors[response[problems.CODE]] += 1
    served.note(
        request.method,
        request.rel_url.raw_path,
        route,
        started,
        request_id,
        response.status,
        is_stream=response.prepared,  # else its head is sent only now
    )
    return response


def _id_of(request: web.Request) -> str:
    headers = request.headers
    return traffic.request_id(
        headers.get(traffic.REQUEST_ID), headers.get(traffic.RAILWAY_REQUEST_ID)
    )
