"""The fast lane: hot requests for items, answered from their bytes before aiohttp parses them.

A chunk that arrives on an idle connection and is exactly one plain request is answered here: GET
and HEAD of an item, PUT and POST of a small one; at once, where nothing must be waited for.
Whatever is unusual in any way is not the lane's business: it returns None, and aiohttp gets the
untouched bytes. So the lane answers nothing otherwise than the ordinary route would, byte for byte;
tests/web/test_lane.py compares the two.

What makes it fast is what it leaves out: a task, a request and a response object for each request,
and most of the parsing, for a client sends the same headers again and again (``Lane._head``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson

from itemstore.core import address
from itemstore.core.caller import Caller
from itemstore.core.condition import Condition
from itemstore.core.confinement import permitted
from itemstore.core.data import loads
from itemstore.core.item import ID_MAX_BYTES, Item, envelope, version_of
from itemstore.core.operation import Create, Put
from itemstore.core.record import Origin
from itemstore.errors import ItemNotFound, ItemStoreError
from itemstore.options import Durability
from itemstore.reader import UNKNOWN
from itemstore.store import ItemStore
from itemstore.web import problems, requests, traffic
from itemstore.web.access import Guard
from itemstore.web.answers import SMALL_BYTES
from itemstore.web.app import ROLE_OF
from itemstore.web.browsers import HEADERS, Browsers
from itemstore.web.limits import LEFT, POLICY, Limits, refusal
from itemstore.web.traffic import Kind

CHUNK_MAX_BYTES: Final = 64 * 1024
HEAD_MAX_BYTES: Final = 2_048
HEADS_MAX: Final = 512  # header blocks remembered, 1 MB at most

_LINE: Final = re.compile(rb"[A-Z]{3,7} /[!-~]{0,2000} HTTP/1\.[01](?=\r\n)")
_FIELD: Final = re.compile(rb"\r\n([A-Za-z0-9_-]{1,64}):[ \t]*([ -~\t]*)(?=\r\n)")
_ID: Final = re.compile(rb"[A-Za-z0-9_~.-]+")
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]_-]+")
_LENGTH: Final = re.compile(r"[0-9]{1,9}")

#: Headers by which a connection or the bounds of a request are not what they usually are.
_FRAMING: Final = frozenset(
    {"connection", "expect", "keep-alive", "proxy-connection", "sec-websocket-key1"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)

_STATUS: Final = {each.value: b"%d %b" % (each, each.phrase.encode()) for each in HTTPStatus}
_IDENTITY: Final = b"HTTP/1.1 %b\r\n%b%bX-Request-Id: %b\r\nServer: " + traffic.SERVER.encode()
_BODILESS: Final = _IDENTITY + b"\r\nDate: %b\r\n%b\r\n"
_RESPONSE: Final = _IDENTITY + b"\r\nContent-Length: %d\r\nDate: %b\r\n%b\r\n%b"
_UNMODIFIED: Final = b'ETag: "%d"\r\nCache-Control: no-cache\r\n%b'
_ITEM: Final = _UNMODIFIED + b"%bContent-Type: application/json\r\n"
_LIMIT: Final = f"{POLICY}: %s\r\n{LEFT}: %s\r\n"
_PROBLEM: Final = (
    b"Cache-Control: no-store\r\n%bContent-Type: " + problems.CONTENT_TYPE.encode() + b"\r\n"
)


#: As the ordinary routes have them; PUT and POST have the same one.
_READS: Final = ROLE_OF["GET", "/items/{id}"]
_WRITES: Final = max(ROLE_OF["PUT", "/items/{id}"], ROLE_OF["POST", "/items"])


class Head(NamedTuple):
    """What the headers of a request say, as far as the lane wants to know."""

    length: int  #: of the body, in bytes
    when: Condition
    durability: str | None
    is_once: bool  #: whether there is an Idempotency-Key
    request_id: str | None
    railway_request_id: str | None
    authorization: str | None
    network: str | None  #: that a trusted proxy names
    tail: bytes  #: the headers of its answer that browsers need
    may_write: bool  #: as far as the page goes that it comes from


class Asked(NamedTuple):
    """A request, as it is counted and logged."""

    method: str
    path: str
    route: str
    started: float  #: by time.perf_counter()
    request_id: str
    limit: bytes  #: headers that tell of the rate limit
    tail: bytes  #: of the answer's headers


class Pending(NamedTuple):
    """A request that is answered when ``done`` is settled."""

    asked: Asked
    done: asyncio.Future[Any]
    answer: Callable[[Any], bytes]  #: to what ``done`` tells

    def size(self) -> int:
        """Bytes of the item that is to be sent, if one was found."""
        done = self.done
        if self.asked.method != "GET" or done.cancelled() or done.exception():
            return 0
        return len(done.result() or b"")


class Lane:
    """Answers for one store."""

    def __init__(
        self,
        store: ItemStore,
        served: traffic.Traffic,
        *,
        guard: Guard | None = None,
        limits: Limits | None = None,
        browsers: Browsers | None = None,
    ) -> None:
        self._store = store
        self._browsers = browsers or Browsers()
        self._traffic = served
        self._guard = guard or Guard()
        self._limits = limits or Limits()
        self._heads: dict[bytes, Head | None] = {}
        self._second, self._date = 0, b""

    def answer(self, chunk: bytes, peer: str = "") -> bytes | Pending | None:
        """The response; or what it waits for; or None if the lane does not answer.

        The chunk is all that has arrived on the connection since it last was idle; ``peer`` is the
        network at its other end.
        """
        started = time.perf_counter()
        end = chunk.find(b" HTTP/1.1\r\n", 0, HEAD_MAX_BYTES) + 9
        if end < 9 or len(chunk) > CHUNK_MAX_BYTES or not self._store.is_ready:
            return None
        if chunk.startswith(b"GET /items/"):
            return self._read("GET", chunk[11 : end - 9], chunk[end:], peer, started)
        if chunk.startswith(b"HEAD /items/"):
            return self._read("HEAD", chunk[12 : end - 9], chunk[end:], peer, started)
        begin = chunk.find(b"\r\n\r\n", end) + 4
        if begin < 4:
            return None
        if chunk.startswith(b"PUT /items/"):
            in_path = chunk[11 : end - 9]
            return self._write(in_path, chunk[end:begin], chunk[begin:], peer, started)
        if chunk.startswith(b"POST /items HTTP"):
            return self._write(None, chunk[end:begin], chunk[begin:], peer, started)
        return None

    def settled(self, pending: Pending) -> bytes:
        """The response, now that what it waits for is settled."""
        asked, done, answer = pending
        try:
            return answer(done.result())
        except ItemStoreError as error:
            return self._problem(error, asked)
        except Exception:
            mistake = problems.internal(self._store.log, asked.request_id, asked.path)
            return self._problem(mistake, asked)

    # --- reading

    def _read(
        self, method: str, in_path: bytes, block: bytes, peer: str, started: float
    ) -> bytes | Pending | None:
        head, store = self._head(block), self._store
        if head is None or head.length or head.when.if_match is not None or not _is_plain(in_path):
            return None
        item_id, caller = in_path.decode(), self._guard.seen(head.authorization)
        if caller is None or caller.role < _READS or not item_id.startswith(caller.prefix):
            return None
        limit, refused = b"", None
        if self._limits.are_set:
            if self._limits.are_shared:
                return None
            limit, refused = self._limit(Kind.READ, caller, head.network or peer)
        asked = Asked(
            method,
            f"/items/{item_id}",
            "GET /items/{id}" if method == "GET" else "HEAD /items/{id}",
            started,
            traffic.request_id(head.request_id, head.railway_request_id),
            limit,
            head.tail,
        )
        if refused is not None:
            return self._problem(refused, asked)
        entry = store.reader.known(item_id)
        finding: asyncio.Future[bytes | None]
        if entry is UNKNOWN or store.monotonic() >= store.lease.reads_until:
            finding = asyncio.get_running_loop().create_task(store.reader.find(item_id))
        elif entry is None or len(entry) <= SMALL_BYTES:
            return self._found(asked, head, item_id, entry)
        else:  # it may have to wait for room
            finding = asyncio.get_running_loop().create_future()
            finding.set_result(entry)
        return Pending(asked, finding, partial(self._found, asked, head, item_id))

    def _found(self, asked: Asked, head: Head, item_id: str, entry: bytes | None) -> bytes:
        if entry is None:
            return self._problem(ItemNotFound(f"There is no item {item_id!r}."), asked)
        version = version_of(entry)
        pending = b"Durability: pending\r\n" if self._store.is_pending(item_id) else b""
        if head.when.is_unmodified(entry):
            return self._response(304, _UNMODIFIED % (version, pending), asked, None)
        headers = _ITEM % (version, pending, b"")
        return self._response(200, headers, asked, envelope(item_id, entry))

    # --- writing

    def _write(
        self, in_path: bytes | None, block: bytes, body: bytes, peer: str, started: float
    ) -> bytes | Pending | None:
        head = self._head(block)
        if head is None or head.length != len(body) or not head.may_write:
            return None
        if in_path is not None and not _is_plain(in_path):
            return None
        store, caller = self._store, self._guard.seen(head.authorization)
        if caller is None or caller.role < _WRITES:
            return None
        if self._limits.are_set and self._limits.are_shared:
            return None
        try:
            level, value = store.level(head.durability), loads(body)
            operation: Create | Put
            if in_path is None:
                if head.is_once:
                    return None
                method, path, route = "POST", "/items", "POST /items"
                operation = requests.create(value)
            else:
                item_id = in_path.decode()
                method, path, route = "PUT", f"/items/{item_id}", "PUT /items/{id}"
                operation = requests.put(value, item_id, head.when)
            permitted(caller, operation)
        except ItemStoreError:
            return None  # the ordinary route says what is wrong
        limit, refused = b"", None
        if self._limits.are_set:
            limit, refused = self._limit(Kind.WRITE, caller, head.network or peer)
        request_id = traffic.request_id(head.request_id, head.railway_request_id)
        asked = Asked(method, path, route, started, request_id, limit, head.tail)
        if refused is not None:
            return self._problem(refused, asked)
        origin = None
        if store.options.audit or caller.has_quota:
            origin = Origin(caller, request_id, head.network or peer)
        try:
            accepted = store.accept_now(operation, level, origin)
        except ItemStoreError as error:
            return self._problem(error, asked)
        if accepted is None:
            writing = asyncio.get_running_loop().create_task(store.write(operation, level, origin))
            return Pending(asked, writing, partial(self._written, asked, level))
        if accepted.done is None:
            return self._written(asked, level, accepted.item)
        return Pending(asked, accepted.done, lambda _: self._written(asked, level, accepted.item))

    def _written(self, asked: Asked, level: Durability, item: Item) -> bytes:
        durability, location, status = b"Durability: %b\r\n" % level.encode(), b"", 200
        if item.is_new:
            location = b"Location: /items/%b\r\n" % quote(item.id, safe="").encode()
            status = 201
        headers = _ITEM % (item.version, durability, location)
        return self._response(status, headers, asked, item.json())

    # --- what both need

    def _limit(
        self, kind: Kind, caller: Caller, network: str
    ) -> tuple[bytes, ItemStoreError | None]:
        """The headers that tell of the limit, and the refusal if the request is one too many."""
        verdict = self._limits.take_now(kind, caller, network)
        if verdict is None:
            return b"", None
        told = (_LIMIT % (verdict.policy, verdict.left)).encode()
        return told, refusal(verdict) if verdict.retry_after_s else None

    def _problem(self, error: ItemStoreError, asked: Asked) -> bytes:
        self._traffic.errors[error.code] += 1
        body = orjson.dumps(problems.problem(error, asked.request_id))
        retry = b"" if error.retry_after_s is None else b"Retry-After: %d\r\n" % error.retry_after_s
        return self._response(error.status, _PROBLEM % retry, asked, body)

    def _response(self, status: int, headers: bytes, asked: Asked, body: bytes | None) -> bytes:
        method, path, route, started, request_id, limit, tail = asked
        self._traffic.note(method, path, route, started, request_id, status)
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
        identity = (_STATUS[status], headers, limit, request_id.encode())
        if body is None:
            return _BODILESS % (*identity, self._date, tail)
        sent = b"" if method == "HEAD" else body
        return _RESPONSE % (*identity, len(body), self._date, tail, sent)

    def _head(self, block: bytes) -> Head | None:
        """What a header block says, with the line ends around it; None: not for the lane."""
        try:
            return self._heads[block]
        except KeyError:
            head = self._parse(block)
            if len(block) <= HEAD_MAX_BYTES:
                if len(self._heads) >= HEADS_MAX:
                    self._heads.clear()
                self._heads[block] = head
            return head

    def _parse(self, block: bytes) -> Head | None:
        fields = _fields(block)
        if fields is None or "content-encoding" in fields or not _HOST.fullmatch(fields["host"]):
            return None
        try:
            when = Condition.parse(fields.get("if-match"), fields.get("if-none-match"))
            requests.check_media_type(fields.get("content-type"), requests.JSON)
        except ItemStoreError:
            return None
        told = HEADERS | self._browsers.headers(fields.get("origin"))
        return Head(
            int(fields.get("content-length", "0")),
            when,
            fields.get("durability"),
            "idempotency-key" in fields,
            fields.get("x-request-id"),
            fields.get("x-railway-request-id"),
            fields.get("authorization"),
            address.told(
                self._limits.trust, fields.get("x-real-ip"), fields.get("x-forwarded-for")
            ),
            "".join(f"{name}: {value}\r\n" for name, value in told.items()).encode(),
            self._browsers.may_write(
                fields.get("origin"), fields.get("sec-fetch-site"), fields["host"]
            ),
        )


def length_of(chunk: bytes) -> int | None:
    """How many bytes the request has that begins the chunk; None if that cannot be told simply."""
    line = _LINE.match(chunk)
    begin = chunk.find(b"\r\n\r\n") + 4
    if line is None or begin < 4:
        return None
    fields = _fields(chunk[line.end() : begin])
    return None if fields is None else begin + int(fields.get("content-length", "0"))


def _fields(block: bytes) -> dict[str, str] | None:
    """The headers by their names in lower case; None if any is unusual, or there twice."""
    fields: dict[str, str] = {}
    end = 0
    while (field := _FIELD.match(block, end)) is not None:
        name = field[1].lower().decode()
        if name in fields:
            return None
        fields[name] = field[2].rstrip(b" \t").decode()
        end = field.end()
    length = fields.get("content-length", "0")
    if block[end:] != b"\r\n\r\n" or "host" not in fields or not _LENGTH.fullmatch(length):
        return None
    if fields.get("connection", "").lower() == "keep-alive":
        del fields["connection"]  # what HTTP/1.1 does anyway
    return fields if _FRAMING.isdisjoint(fields) else None


def _is_plain(in_path: bytes) -> bool:
    """Whether this segment of a path is the id as it stands."""
    if len(in_path) > ID_MAX_BYTES:
        return False
    return in_path.isalnum() or (
        _ID.fullmatch(in_path) is not None and in_path not in {b".", b".."}
    )
