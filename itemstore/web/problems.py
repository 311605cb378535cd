"""Errors as problem documents (RFC 9457), with a stable ``code``."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from structlog.typing import FilteringBoundLogger

from itemstore.errors import (
    BodyTimeout,
    BodyTooLarge,
    InternalError,
    ItemStoreError,
    MalformedRequest,
    MethodNotAllowed,
    RouteNotFound,
)
from itemstore.web import traffic

CONTENT_TYPE: Final = "application/problem+json"
#: Where the answer has the code of what it tells.
CODE: Final = web.ResponseKey("code", str)
#: What PATCH understands; sent when it was given something else (RFC 5789, section 3.1).
ACCEPT_PATCH: Final = "application/merge-patch+json, application/json"


def problem(error: ItemStoreError, request_id: str) -> dict[str, Any]:
    """The document's members, those without a value left out."""
    members = {
        "type": f"urn:itemstore:problem:{error.code}",
        "title": error.title(),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "pointer": error.pointer,
        "request_id": request_id or None,
    }
    return {name: value for name, value in members.items() if value is not None}


def response(error: ItemStoreError, request_id: str) -> web.Response:
    """The answer that tells it."""
    headers: dict[str, str] = {hdrs.CACHE_CONTROL: "no-store"}
    if error.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(error.retry_after_s)
    if error.challenge is not None:
        headers[hdrs.WWW_AUTHENTICATE] = error.challenge
    answer = web.Response(
        status=error.status,
        body=orjson.dumps(problem(error, request_id)),
        content_type=CONTENT_TYPE,
        headers=headers,
    )
    answer[CODE] = error.code
    if isinstance(error, BodyTimeout):
        answer.force_close()  # what comes now could be the rest of the body or a request
    return answer


def bare(error: ItemStoreError) -> bytes:
    """The whole answer to a connection on which no request is answered; it ends with that."""
    body = orjson.dumps(problem(error, ""))
    retry = "" if error.retry_after_s is None else f"Retry-After: {error.retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"Cache-Control: no-store\r\n{retry}Content-Type: {CONTENT_TYPE}\r\n"
        f"Server: {traffic.SERVER}\r\nContent-Length: {len(body)}\r\n"
        f"Date: {formatdate(usegmt=True)}\r\nX-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def internal(log: FilteringBoundLogger, request_id: str, path: str) -> InternalError:
    """What is said of the exception at hand, a mistake of ours; the log gets the rest."""
    log.exception("internal_error", request_id=request_id, path=path)
    return InternalError("This is a mistake of the server; its log has the request id.")


def from_http(error: web.HTTPException, method: str, path: str) -> ItemStoreError:
    """Our error for one of aiohttp's own."""
    match error:
        case web.HTTPNotFound():
            return RouteNotFound(f"There is nothing at {path}. docs/api.md lists what there is.")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods | {hdrs.METH_OPTIONS}))
            return MethodNotAllowed(f"{path} does not know {method}; it knows {allowed}.")
        case web.HTTPRequestEntityTooLarge():
            return BodyTooLarge()
        case web.HTTPClientError():
            return MalformedRequest(f"{error.status} {error.reason}")
        case _:
            return InternalError()
