"""Callers with keys, for the tests of who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from itemstore.access import Access
from itemstore.core.caller import Role
from tests.web.conftest import Answer, Api, Service

API_KEY: Final = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
KEYS: Final = Access(host=None, keys=True, api_key=API_KEY, issuer=None)


@dataclass(frozen=True)
class Calling:
    """An ``Api`` that shows a key: ``await calling("GET", "/items/a")``."""

    api: Api
    token: str

    async def __call__(self, method: str, path: str, value: Any = None, **named: Any) -> Answer:
        named.setdefault("Authorization", f"Bearer {self.token}")
        return await self.api(method, path, value, **named)


def admin(api: Api) -> Calling:
    return Calling(api, API_KEY)


async def caller(service: Service, role: Role, prefix: str = "", **quota: int | None) -> Calling:
    """With a new key."""
    guard_keys = service.keyring
    assert guard_keys is not None
    _, token = await guard_keys.add("a test", role, prefix, **quota)
    return Calling(service.api, token)
