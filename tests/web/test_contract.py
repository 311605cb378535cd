"""openapi.yaml is the contract: complete, valid, and what the code does.

Beyond what is compared here, every answer that the tests of this directory get is held against it
(tests/web/contract.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import jsonschema_rs
import pytest

import itemstore
from itemstore import errors
from itemstore.core import item, listing
from itemstore.core.operation import Conflict
from itemstore.options import Durability
from itemstore.web import app, audit, bulk, items
from itemstore.web.contract import contract
from itemstore.web.reference import METHODS
from tests.web.contract import (
    Node,
    codes_of,
    operations,
    problem_codes,
    problems_of,
    seen,
    template,
)

OPERATIONS: Final = operations()
IDS: Final = [" ".join(each) for each in OPERATIONS]


def leaves(error: type[errors.ItemStoreError]) -> Iterator[type[errors.ItemStoreError]]:
    """The errors that can be an answer: those with no other below them, but those of commands."""
    below = error.__subclasses__()
    if not below and not issubclass(error, errors.StartupError | errors.MovingError):
        yield error
    for each in below:
        yield from leaves(each)


ERRORS: Final = {each.code: each.status for each in leaves(errors.ItemStoreError)}


def parameters(operation: Node, place: str) -> dict[str, Node]:
    return {
        each["name"]: each for each in map(seen, operation["parameters"]) if each["in"] == place
    }


# --- the file


def test_it_is_openapi() -> None:
    """Every schema is one, every reference leads somewhere, every name is used once."""

    def walk(node: Any) -> Iterator[Any]:
        yield node
        for each in node.values() if isinstance(node, dict) else node:
            if isinstance(each, dict | list):
                yield from walk(each)

    for node in walk(contract()):
        if isinstance(node, dict) and isinstance(node.get("$ref"), str):
            assert seen(node) is not None
    for schema in contract()["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    named = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(named) == len(set(named))


def test_it_holds_nothing_json_does_not_have() -> None:
    """No time and no number was read where a text was meant: YAML has more types than JSON."""

    def walk(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            assert all(type(name) is str for name in node), list(node)
            for each in node.values():
                yield from walk(each)
        elif isinstance(node, list):
            for each in node:
                yield from walk(each)
        else:
            yield node

    assert {type(each) for each in walk(contract())} <= {str, int, float, bool, type(None)}


def test_its_version_is_the_package_s() -> None:
    """The contract is that of this version."""
    assert contract()["info"]["version"] == itemstore.__version__


# --- routes


def test_it_has_every_route() -> None:
    """Each route of app.ROUTES is an operation in openapi.yaml, and there is no other."""
    routes = {(each.method, template(each.path)) for each in app.ROUTES}

    assert set() == routes - set(OPERATIONS), "add these to openapi.yaml"
    assert set() == set(OPERATIONS) - routes, "openapi.yaml has what app.ROUTES does not"
    assert {method.lower() for method, _ in routes} <= set(METHODS)


@pytest.mark.parametrize("route", app.ROUTES, ids=lambda each: f"{each.method} {each.path}")
def test_roles_and_kinds_are_those_of_the_routes(route: app.Route) -> None:
    """x-role and x-kind are the route's; where anybody may call, no credential is asked for."""
    operation = OPERATIONS[route.method, template(route.path)]

    role = None if route.role is None else route.role.name.lower()
    assert operation.get("x-role") == role
    assert operation["x-kind"] == route.kind
    assert ([] if role is None else None) == operation.get("security")


# --- parameters


@pytest.mark.parametrize("name", OPERATIONS, ids=IDS)
def test_the_id_is_a_parameter_of_its_paths(name: tuple[str, str]) -> None:
    """What stands in braces in a path, and nothing else, is a parameter of it."""
    assert set(re.findall(r"{(\w+)}", name[1])) == set(parameters(OPERATIONS[name], "path"))


QUERIES: Final = {
    ("GET", "/items"): {*items.LIST_PARAMETERS, "filters"},
    ("GET", "/export"): {*bulk.EXPORT_PARAMETERS, "filters"},
    ("POST", "/import"): bulk.IMPORT_PARAMETERS,
    ("GET", "/audit"): audit.PARAMETERS,
}


@pytest.mark.parametrize("name", OPERATIONS, ids=IDS)
def test_the_query_parameters_are_those_of_the_code(name: tuple[str, str]) -> None:
    """Each parameter that a handler knows is in openapi.yaml, and no other."""
    assert set(parameters(OPERATIONS[name], "query")) == QUERIES.get(name, set())


def test_the_limits_are_those_of_the_code() -> None:
    """Bounds, defaults and choices of parameters are the code's."""
    known = parameters(OPERATIONS["GET", "/items"], "query")
    limit = known["limit"]["schema"]
    assert (limit["maximum"], limit["default"]) == (listing.LIMIT_MAX, listing.LIMIT_DEFAULT)
    assert known["count"]["schema"]["enum"] == list(listing.COUNTS)
    schemas = contract()["components"]["schemas"]
    assert schemas["Id"]["maxLength"] == known["prefix"]["schema"]["maxLength"] == item.ID_MAX_BYTES
    assert set(schemas["Durability"]["enum"]) == set(Durability)
    conflict = parameters(OPERATIONS["POST", "/import"], "query")["conflict"]["schema"]
    assert conflict["enum"] == list(Conflict)


# --- errors


def test_it_has_every_error() -> None:
    """The problems of a status list each code with that status, and no other."""
    told = {
        code: int(status)
        for status, answer in contract()["components"]["responses"].items()
        for code in problem_codes(answer)
    }
    assert ERRORS == told, "the responses under components of openapi.yaml list each code"


@pytest.mark.parametrize("name", OPERATIONS, ids=IDS)
def test_the_codes_of_an_operation_have_their_answers(name: tuple[str, str]) -> None:
    """An operation has a response for the status of each of its codes, and none without a code."""
    operation = OPERATIONS[name]
    problems = {status for status, each in operation["responses"].items() if problem_codes(each)}

    assert {str(ERRORS[code]) for code in codes_of(operation)} == problems
    for status in problems:
        assert problem_codes(operation["responses"][status]) <= set(ERRORS)


def test_every_code_is_of_some_operation() -> None:
    """No error is listed that nothing is answered with, but for those of no operation."""
    used = set().union(*map(codes_of, OPERATIONS.values()))
    assert set(ERRORS) - used == {"method_not_allowed", "head_timeout", "too_many_connections"}


# --- examples


def media(operation: Node) -> Iterator[tuple[str, Node]]:
    """Every media type of an operation, of its body and of its answers."""
    yield from operation.get("requestBody", {}).get("content", {}).items()
    for answer in operation["responses"].values():
        yield from seen(answer).get("content", {}).items()


@pytest.mark.parametrize("name", OPERATIONS, ids=IDS)
def test_examples_are_what_their_schemas_say(name: tuple[str, str]) -> None:
    """Each example, of a body, of an answer and of a parameter, is valid."""
    operation = OPERATIONS[name]
    given = [(each["example"], each["schema"]) for _, each in media(operation) if "example" in each]
    for _, each in media(operation):
        given += [(seen(one)["value"], each["schema"]) for one in each.get("examples", {}).values()]
    for each in map(seen, operation["parameters"]):
        given += [(each["example"], each["schema"])] if "example" in each else []

    for example, schema in given:
        assert [] == problems_of(example, schema), example
