"""What schemathesis has to know beyond the schemas: what the contract says in words.

JSON Schema cannot say all of it: that the id in a body is the one in the path, that a text has no
U+0000, how many bytes an id has. A request that keeps the schema and breaks the words is rightly
refused; one that is refused without breaking them is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

import orjson
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import RejectedPositiveData

from itemstore.core.confinement import PREFIX_MAX_BYTES
from itemstore.core.data import DEPTH_MAX, INT_MAX, INT_MIN
from itemstore.core.item import ID_MAX_BYTES
from itemstore.core.query import parse_filters
from itemstore.errors import InvalidParameter
from itemstore.web.contract import contract

Case = schemathesis.Case[Any]


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """A body of an import: as it is, if it is a text."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@schemathesis.deserializer("application/x-ndjson", "text/csv")
def text(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> str:
    """Lines are a text to the contract."""
    return response.content.decode()


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,
    failure: Failure,
    case: Case,
    response: schemathesis.Response,
) -> bool:
    """Whether it is one: not if the request breaks the words, or is refused part by part."""
    if isinstance(failure, RejectedPositiveData):
        broken = WORDS.get(response.json()["code"])
        return broken is None or not broken(case)
    if isinstance(failure, AcceptedNegativeData):
        return not _is_refused_in_part(case, response)
    return True


def _is_refused_in_part(case: Case, response: schemathesis.Response) -> bool:
    """Batches and imports answer 200, and say of each part what is wrong with it."""
    if case.path == "/items:batch":
        return any(each["status"] >= 400 for each in response.json()["results"])
    if case.path == "/import":
        return bool(orjson.loads(response.content.splitlines()[-1])["failed"])
    return False


def _values(value: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    yield value, depth
    if isinstance(value, dict):
        yield from ((name, depth) for name in value)
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _values(each, depth + 1)


def _has_odd_data(case: Case) -> bool:
    """A number beyond 64 bits, U+0000, or too many levels."""
    return any(
        (isinstance(each, int) and not INT_MIN <= each <= INT_MAX)
        or (isinstance(each, str) and "\0" in each)
        or depth > DEPTH_MAX
        for each, depth in _values(case.body)
    )


def _has_odd_id(case: Case) -> bool:
    """More bytes than an id has, in the path or in the body."""
    body = case.body if isinstance(case.body, Mapping) else {}
    ids = [unquote(str(case.path_parameters.get("id", ""))), body.get("id"), body.get("prefix")]
    return any(isinstance(each, str) and len(each.encode()) > PREFIX_MAX_BYTES for each in ids)


def _has_another_id(case: Case) -> bool:
    """The id in the body is not the one in the path."""
    body = case.body if isinstance(case.body, Mapping) else {}
    given = case.path_parameters.get("id")
    return "id" in body and given is not None and body["id"] != unquote(str(given))


def _has_odd_key(case: Case) -> bool:
    """An admin with a prefix, a time that is none, or a name that cannot be shown."""
    body = case.body if isinstance(case.body, Mapping) else {}
    return case.path == "/keys" and (
        body.get("expires_at") is not None
        or (body.get("role") == "admin" and "prefix" in body)
        or not str(body.get("name")).isprintable()
    )


def _is_repeated(case: Case) -> bool:
    """The examples all have the same key."""
    return "Idempotency-Key" in case.headers


def _has_odd_tags(case: Case) -> bool:
    """Not what the schema says: schemathesis fills a header it has no value for with a 0."""
    tags = contract()["components"]["schemas"]["Tags"]["pattern"]
    given = [case.headers.get(name) for name in ("If-Match", "If-None-Match")]
    return any(each is not None and not re.search(tags, each) for each in given)


def _has_odd_parameters(case: Case) -> bool:
    """Of CSV where none is asked for, too long a prefix, or a filter whose value does not fit."""
    query = dict(case.query)
    if case.path == "/audit" and (
        {"since", "until"} & set(query) or not str(query.get("caller", "")).isprintable()
    ):
        return True
    if (
        case.path == "/export"
        and query.get("format") != "csv"
        and {"fields", "formulas"} & set(query)
    ):
        return True
    if any(len(str(query.get(name, "")).encode()) > ID_MAX_BYTES for name in ("prefix", "after")):
        return True
    known = {"limit", "cursor", "order", "prefix", "count", "fields", "after", "format", "formulas"}
    known |= {"id", "caller"} if case.path == "/audit" else set()
    try:
        parse_filters({name: value for name, value in query.items() if name not in known})
    except InvalidParameter:
        return True
    return False


#: Code → whether the request breaks what the contract says in words.
WORDS: Final[Mapping[str, Callable[[Case], bool]]] = {
    "invalid_data": _has_odd_data,
    "invalid_id": _has_odd_id,
    "invalid_item": lambda case: _has_another_id(case) or _has_odd_key(case),
    "idempotency_key_reused": _is_repeated,
    "invalid_parameter": _has_odd_parameters,
    "invalid_etag": _has_odd_tags,
    "invalid_cursor": lambda case: "cursor" in case.query,
}
