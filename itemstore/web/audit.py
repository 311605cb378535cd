"""The audit over HTTP: who changed what, for those who run the store."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from itemstore.core.audit import LIMIT_DEFAULT, AuditRow
from itemstore.core.item import microseconds, timestamp
from itemstore.errors import InvalidId, InvalidParameter
from itemstore.web import requests
from itemstore.web.items import STORE
from itemstore.web.system import momentary

PARAMETERS: Final = frozenset({"id", "prefix", "caller", "since", "until", "limit", "cursor"})


async def list_rows(request: web.Request) -> web.Response:
    """GET /audit: a page of rows, newest first, exact as of the request."""
    given = requests.query(request, PARAMETERS)
    try:
        page = await request.app[STORE].audit.page(
            limit=requests.integer("limit", given.get("limit", str(LIMIT_DEFAULT))),
            item_id=given.get("id"),
            prefix=given.get("prefix", ""),
            caller=given.get("caller"),
            since_us=_moment("since", given.get("since")),
            until_us=_moment("until", given.get("until")),
            cursor=given.get("cursor"),
        )
    except InvalidId as error:
        raise InvalidParameter(f"No id is or begins so. {error.detail}") from None
    return momentary({"rows": [_shown(row) for row in page.rows], "next": page.next})


def _shown(row: AuditRow) -> dict[str, Any]:
    return {
        "at": timestamp(row.at_us).decode(),
        "version": row.version,
        "id": row.id,
        "what": row.what,
        "caller": row.caller,
        "request_id": row.request_id,
        "address": row.address,
    }


def _moment(name: str, given: str | None) -> int | None:
    if given is None:
        return None
    try:
        return microseconds(given)
    except ValueError:
        raise InvalidParameter(
            f"{name} is a time as RFC 3339 writes it, such as 2026-11-22T03:44:09Z."
        ) from None
