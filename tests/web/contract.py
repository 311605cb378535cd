"""The contract as a judge: holds answers against itemstore/web/openapi.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import jsonschema_rs
import orjson

from itemstore.web.contract import contract

Node = Mapping[str, Any]

PROBLEM: Final = "application/problem+json"
#: What HTTP itself adds, and the name of the server.
OF_HTTP: Final = frozenset(
    {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
)


def seen(node: Node) -> Node:
    """The node itself, or what it refers to."""
    while "$ref" in node:
        found: Any = contract()
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/")]
        node = found
    return node


def operations() -> dict[tuple[str, str], Node]:
    """(method, path) → the operation, with the parameters of its path."""
    return {
        (method.upper(), path): each
        | {"parameters": [*item.get("parameters", []), *each.get("parameters", [])]}
        for path, item in contract()["paths"].items()
        for method, each in item.items()
        if method != "parameters"
    }


def problem_codes(answer: Node) -> set[str]:
    """The codes a response in the contract may carry; none if it is no problem."""
    media = seen(answer).get("content", {}).get(PROBLEM)
    return set(media["schema"]["properties"]["code"]["enum"]) if media else set()


def codes_of(operation: Node) -> set[str]:
    """The codes of the problems that an operation may be answered with."""
    of_any = contract()["x-codes"]["asked" if "x-role" in operation else "open"]
    return {*operation["x-codes"], *of_any}


def template(path: str) -> str:
    """The path of a route as OpenAPI writes it: ``/items/{id}``."""
    return re.sub(r"{(\w+):[^}]+}", r"{\1}", path)


def matching(method: str, target: str) -> tuple[str, Node] | None:
    """The operation that a request asks for, with its name."""
    path = target.partition("?")[0]
    method = "GET" if method == "HEAD" else method
    for (known, named), operation in operations().items():
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(named))
        if known == method and re.fullmatch(pattern, path):
            return f"{method} {named}", operation
    return None


def problems_of(value: Any, schema: Node) -> list[str]:
    """What is wrong with the value by the schema."""
    return [each.message for each in _validator(orjson.dumps(schema)).iter_errors(value)]


@cache
def _validator(schema: bytes) -> Any:
    inner = orjson.loads(schema)
    return jsonschema_rs.Draft202012Validator(
        {"allOf": [inner], "components": {"schemas": contract()["components"]["schemas"]}}
    )


def check(method: str, target: str, status: int, headers: Any, body: bytes) -> None:
    """Fails with a sentence that says what to do unless the contract has this answer."""
    found = matching(method, target)
    if found is None:
        assert status in {400, 404, 405} or method == "OPTIONS", (
            f"{method} {target} is answered {status}: add the operation to openapi.yaml"
        )
        return
    name, operation = found
    answer = operation["responses"].get(str(status))
    assert answer, f"{name} is answered {status}: add it to the responses in openapi.yaml"
    answer = seen(answer)
    _check_headers(f"{name}, {status}", answer.get("headers", {}), headers)
    _check_body(f"{name}, {status}", operation, answer, headers, body, method)


def _check_headers(name: str, known: Node, headers: Any) -> None:
    by_name = {each.lower(): seen(node) for each, node in known.items()}
    for each, value in headers.items():
        if each.lower() in OF_HTTP:
            continue
        assert each.lower() in by_name, f"{name}: add the header {each} to openapi.yaml"
        schema = by_name[each.lower()]["schema"]
        given = int(value) if schema.get("type") == "integer" else value
        assert not problems_of(given, schema), f"{name}: {each}: {value} is not what it says"
    missing = {
        each for each, node in by_name.items() if node.get("required") and each not in headers
    }
    assert not missing, f"{name}: openapi.yaml promises {missing}, which are not there"


def _check_body(
    name: str, operation: Node, answer: Node, headers: Any, body: bytes, method: str
) -> None:
    content = answer.get("content", {})
    if not content:
        assert not body, f"{name} has a body that openapi.yaml does not know"
        return
    media_type = headers["Content-Type"].partition(";")[0]
    assert media_type in content, f"{name}: add the media type {media_type} to openapi.yaml"
    if method == "HEAD" or not media_type.endswith("json"):
        return
    schema = content[media_type]["schema"]
    if "contentSchema" in schema:
        for line in body.splitlines():
            assert [] == problems_of(orjson.loads(line), schema["contentSchema"]), (
                f"{name}: {line!r}"
            )
        return
    value = orjson.loads(body)
    assert [] == problems_of(value, schema), f"{name}: {body[:200]!r}"
    if media_type == PROBLEM:
        code = value["code"]
        assert code in codes_of(operation), f"{name}: add {code} to its x-codes in openapi.yaml"
