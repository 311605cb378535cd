"""How each system is asked for the same: the bytes of a request, and of a good answer."""

from __future__ import annotations

from typing import Final, Protocol

from benchmarks.client import item_path, request

_JSON: Final = {"Content-Type": "application/json"}


class Api(Protocol):
    """How one kind of system is asked."""

    is_http: bool

    def get(self, item_id: str, etag: str = "") -> bytes:
        """Reads an item; with an ETag, only if it has another one by now."""
        ...

    def put(self, item_id: str, data: bytes) -> bytes:
        """Writes an item whole."""
        ...

    def post(self, data: bytes) -> bytes:
        """Creates an item under an id of the server's."""
        ...


class ItemsApi:
    """itemstore's own, and that of the services written like it."""

    is_http = True

    def __init__(self, durability: str = "") -> None:
        self._headers = _JSON | ({"Durability": durability} if durability else {})

    def get(self, item_id: str, etag: str = "") -> bytes:
        return request("GET", item_path(item_id), {"If-None-Match": etag} if etag else {})

    def put(self, item_id: str, data: bytes) -> bytes:
        return _with_body("PUT", item_path(item_id), b'{"data":%b}' % data, self._headers)

    def post(self, data: bytes) -> bytes:
        return _with_body("POST", "/items", b'{"data":%b}' % data, self._headers)


class WebdisApi:
    """A Redis command in the path; the type keeps Webdis from wrapping the value."""

    is_http = True

    def get(self, item_id: str, etag: str = "") -> bytes:
        headers = {"If-None-Match": etag} if etag else {}
        return request("GET", f"/GET/{item_id}?type=application/json", headers)

    def put(self, item_id: str, data: bytes) -> bytes:
        return _with_body("PUT", f"/SET/{item_id}", data, {})

    def post(self, data: bytes) -> bytes:
        raise NotImplementedError("Redis gives no ids")


class RedisApi:
    """RESP, for what Redis itself is asked by the open-loop generator."""

    is_http = False

    def get(self, item_id: str, etag: str = "") -> bytes:
        return resp(b"GET", item_id.encode())

    def put(self, item_id: str, data: bytes) -> bytes:
        return resp(b"SET", item_id.encode(), data)

    def post(self, data: bytes) -> bytes:
        raise NotImplementedError("Redis gives no ids")


def resp(*words: bytes) -> bytes:
    """A command as Redis takes it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def _with_body(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    return request(method, path, headers | {"Content-Length": str(len(body))}) + body
