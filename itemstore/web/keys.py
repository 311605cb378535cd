"""API keys over HTTP, for an admin."""

from __future__ import annotations

from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from itemstore.core.apikey import ApiKey
from itemstore.core.caller import ROLES
from itemstore.core.item import microseconds, timestamp
from itemstore.errors import InvalidItem
from itemstore.web import requests
from itemstore.web.access import keyring
from itemstore.web.system import momentary

_MEMBERS: Final = ("name", "role", "prefix", "expires_at", "max_items", "max_bytes")


async def create_key(request: web.Request) -> web.Response:
    """POST /keys: 201 with the key, which is never shown again."""
    requests.query(request, ())
    value = await requests.json_body(request)
    if type(value) is not dict or not set(value) <= set(_MEMBERS):
        raise InvalidItem(f"A key is an object with {', '.join(_MEMBERS)} and nothing else.")
    role = ROLES.get(_text(value, "role"))
    if role is None:
        raise InvalidItem(f"role is one of {', '.join(ROLES)}.", pointer="/role")
    key, token = await keyring(request).add(
        _text(value, "name"),
        role,
        _text(value, "prefix"),
        _expiry(value),
        max_items=_number(value, "max_items"),
        max_bytes=_number(value, "max_bytes"),
    )
    return web.Response(
        status=201,
        body=orjson.dumps({**shown(key), "key": token}),
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", hdrs.LOCATION: f"/keys/{key.id}"},
    )


async def list_keys(request: web.Request) -> web.Response:
    """GET /keys: all of them, without what they are."""
    requests.query(request, ())
    return momentary({"keys": [shown(key) for key in await keyring(request).all()]})


async def revoke_key(request: web.Request) -> web.Response:
    """DELETE /keys/{id}: 204, 404."""
    requests.query(request, ())
    await keyring(request).revoke(request.match_info["id"])
    return web.Response(status=204)


def shown(key: ApiKey) -> dict[str, Any]:
    """What is told of a key."""
    expires = None if key.expires_us is None else timestamp(key.expires_us).decode()
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role.name.lower(),
        "prefix": key.prefix,
        "created_at": timestamp(key.created_us).decode(),
        "expires_at": expires,
        "max_items": key.max_items,
        "max_bytes": key.max_bytes,
    }


def _text(value: dict[str, Any], member: str) -> str:
    given = value.get(member, "")
    if type(given) is not str:
        raise InvalidItem(f"{member} is a text.", pointer=f"/{member}")
    return given


def _number(value: dict[str, Any], member: str) -> int | None:
    given = value.get(member)
    if type(given) is float and given.is_integer():  # 1.0 is an integer to JSON Schema
        return int(given)
    if given is not None and type(given) is not int:
        raise InvalidItem(f"{member} is a whole number, or null.", pointer=f"/{member}")
    return given


def _expiry(value: dict[str, Any]) -> int | None:
    given = value.get("expires_at")
    if given is None:
        return None
    try:
        return microseconds(given)
    except (TypeError, ValueError):
        raise InvalidItem(
            "expires_at is a time as RFC 3339 writes it, such as 2027-01-31T00:00:00Z, or null.",
            pointer="/expires_at",
        ) from None
