"""Another itemstore over HTTP: rows to ``POST /import``, items from ``GET /export``."""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import orjson

from itemstore.asking import OPENER
from itemstore.core.cache import Row as Entry
from itemstore.core.item import pack, timestamp
from itemstore.core.operation import Conflict
from itemstore.errors import MovingError
from itemstore.moving.mapping import microseconds
from itemstore.moving.record import Record, Rejected, Row
from itemstore.moving.source import Source
from itemstore.moving.text import lines

ATTEMPTS: Final = 6  # without progress; with the pauses between them half a minute
PAUSE_S: Final = 1.0
SILENCE_MAX_S: Final = 60.0
NDJSON: Final = "application/x-ndjson"
#: As the server tells them → as a ``Tally`` counts them.
STATUSES: Final = {each: each for each in ("created", "replaced", "unchanged", "skipped")}
_RESULT_BYTES_MAX: Final = 64 * 1024
_ID: Final = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*")')
_DATA: Final = b',"data":'  # no string has it: there a quote is escaped


class Remote:
    """The target behind ``url``."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, conflict: Conflict, token: str
    ) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/import"
        self._conflict = conflict
        self._headers = {"Content-Type": NDJSON, **authorization(token)}
        self._turn = asyncio.Lock()

    async def put(self, rows: Sequence[Row]) -> list[str | Rejected]:
        """The promise of ``Target``: goes on after the last confirmed row if the line breaks."""
        async with self._turn:
            return await self._put(rows)

    async def _put(self, rows: Sequence[Row]) -> list[str | Rejected]:
        results: list[str | Rejected] = []
        failures = 0
        while len(results) < len(rows):
            confirmed = len(results)
            try:
                reason = await self._post(rows[confirmed:], results)
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            failures = 0 if len(results) > confirmed else failures + 1
            if failures >= ATTEMPTS:
                raise MovingError(f"{self._url} takes no more rows: {reason}")
            if len(results) < len(rows):
                await asyncio.sleep(PAUSE_S * failures)
        return results

    async def _post(self, rows: Sequence[Row], results: list[str | Rejected]) -> str:
        """Adds the results as they come. Returns why they ended, should there be too few."""
        body = io.BytesIO(b"".join(map(line, rows)))
        asked = {"conflict": str(self._conflict)}
        async with self._session.post(
            self._url, params=asked, data=body, headers=self._headers, allow_redirects=False
        ) as answer:
            if answer.status >= 500:
                raise aiohttp.ClientError(await _problem(answer))
            if answer.status != 200:
                raise MovingError(f"{self._url} refused the import: {await _problem(answer)}")
            numbers = iter(rows)
            try:
                async for told in answer.content:
                    result = orjson.loads(told)
                    if "done" in result:
                        return str(result.get("problem", {}).get("detail", "it ended early"))
                    results.append(_result(next(numbers).number, result))
            except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
                raise MovingError(f"What answers at {self._url} is no itemstore.") from None
        return "the connection ended early"


def line(row: Row) -> bytes:
    """The row as ``POST /import`` takes it."""
    times = b"".join(
        b',"%b":"%b"' % (name, timestamp(us))
        for name, us in ((b"created_at", row.item.created_us), (b"updated_at", row.item.updated_us))
        if us is not None
    )
    return b'{"id":%b%b,"data":%b}\n' % (orjson.dumps(row.id), times, row.item.text)


def _result(number: int, result: dict[str, Any]) -> str | Rejected:
    if result["status"] == "failed":
        return Rejected(number, str(result["problem"].get("detail", "it was refused")))
    return STATUSES[result["status"]]


async def _problem(answer: aiohttp.ClientResponse) -> str:
    text = await answer.content.read(_RESULT_BYTES_MAX)
    return _detail(text) or f"{answer.status} {answer.reason}"


def _detail(text: bytes) -> str | None:
    try:
        return str(orjson.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return None


def authorization(token: str) -> dict[str, str]:
    """The header that goes with each request."""
    return {"Authorization": f"Bearer {token}"} if token else {}


class ServerItems(Source):
    """The items of the server at ``url`` that match, in order of the id."""

    def __init__(
        self, url: str, token: str, prefix: str = "", filters: Sequence[tuple[str, str]] = ()
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise MovingError(f"{url} does not begin with http:// or https://")
        self._url = f"{url.rstrip('/')}/export"
        self._headers = {"Accept": NDJSON, **authorization(token)}
        self._asked = [("prefix", prefix), *filters]
        self.identity = {"url": self._url, "prefix": prefix}

    def records(self) -> Iterator[Record]:
        return self.lines()

    def records_after(self, number: int, key: str | None) -> Iterator[Record]:
        del number  # items may have come and gone before it
        return self.lines(key)

    def lines(self, after: str | None = None) -> Iterator[bytes]:
        """An item each, those after this id. Raises MovingError if the server gives no more."""
        self.key = after
        failures = 0
        while True:
            done = self.done
            try:
                yield from self._following()
            except (OSError, http.client.HTTPException) as error:
                failures = 0 if self.done > done else failures + 1
                if failures >= ATTEMPTS:
                    raise MovingError(f"No items from {self._url}: {_reason(error)}") from error
                time.sleep(PAUSE_S * failures)
            else:
                return

    def _following(self) -> Iterator[bytes]:
        """From after ``key`` on, until the end, or until the connection breaks."""
        asked = self._asked + ([] if self.key is None else [("after", self.key)])
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked
            f"{self._url}?{urlencode(asked)}", headers=self._headers
        )
        try:
            answer = OPENER.open(request, timeout=SILENCE_MAX_S)
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            told = _detail(error.read(_RESULT_BYTES_MAX)) or error.reason
            raise MovingError(f"{self._url} answered {error.code}: {told}") from error
        with answer:
            for found in lines(_parts(answer)):
                named = _ID.match(found or b"")
                if found is None or named is None:
                    raise MovingError(f"What answers at {self._url} is no itemstore.")
                self.key = orjson.loads(named[1])
                self.done += 1
                yield found


def _parts(answer: Any) -> Iterator[bytes]:
    """As they come. ``read1`` tells a cut connection from the end: IncompleteRead."""
    while part := answer.read1(64 * 1024):
        yield part


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return _detail(error.read(_RESULT_BYTES_MAX)) or f"{error.code} {error.reason}"
    return str(getattr(error, "reason", error))


def entry(found: bytes) -> Entry:
    """An exported line as the cache would keep it: its data byte for byte."""
    head, _, data = found.partition(_DATA)
    item = orjson.loads(head + b"}")
    packed = pack(item["version"], microseconds(item["created_at"]), data.rstrip()[:-1])
    return item["id"], packed
