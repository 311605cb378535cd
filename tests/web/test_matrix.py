"""Every path × verb × role × prefix, from the contract: allowed exactly where it should be.

What is expected is worked out here from the contract alone, not from the code that decides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson
import pytest
import pytest_asyncio

from itemstore.core.caller import ROLES, Role
from itemstore.storage.postgres import Postgres
from tests.conftest import _FOUND
from tests.sql import make_database
from tests.web import contract
from tests.web.callers import KEYS, Calling, admin, caller
from tests.web.conftest import Answer, Service, service_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
OPERATIONS: Final = contract.operations()
PATHS: Final = sorted({path for _, path in OPERATIONS})
MINE: Final = "mine-"  # plain ids, which the lane answers
#: There is an item under the first of each, and none under the second.
OWN: Final = (f"{MINE}x", f"{MINE}none")
FOREIGN: Final = ("theirs-x", "theirs-none")

#: What is sent, by operationId; an id in it is the one that is asked about.
BODIES: Final[dict[str, Callable[[str], Any]]] = {
    "createItem": lambda item_id: {"id": item_id, "data": {}},
    "runBatch": lambda item_id: {"operations": [{"op": "get", "id": item_id}]},
    "putItem": lambda _: {"data": {"n": 2}},
    "patchItem": lambda _: {"data": {"n": 3}},
    "importItems": lambda item_id: {"id": item_id, "data": {"n": 4}},
    "createKey": lambda _: {"name": "made", "role": "read"},
}


class Who(NamedTuple):
    """A caller: without a role, somebody who shows no key or a wrong one."""

    name: str
    role: Role = Role.NONE
    prefix: str = ""


STRANGERS: Final = (Who("no key"), Who("a wrong key"))
CALLERS: Final = (
    *STRANGERS,
    *(
        Who(f"{name} {prefix or 'of all'}", role, prefix)
        for name, role in ROLES.items()
        for prefix in ("", MINE)
        if not (prefix and role is Role.ADMIN)  # an admin is never confined
    ),
)


def expected(who: Who, method: str, path: str, item_id: str) -> set[int]:
    """The statuses that may be; nothing else may."""
    operation = OPERATIONS.get(("GET" if method == "HEAD" else method, path))
    if operation is None:
        return {204} if method == "OPTIONS" else {405}
    role = operation.get("x-role")
    if role is None:
        return _succeeding(operation)
    if who in STRANGERS:
        return {401}
    if who.role < ROLES[role] or (who.prefix and operation.get("x-whole")):
        return {403}
    if "{id}" not in path and operation["operationId"] != "createItem":
        return _succeeding(operation)
    is_foreign = not item_id.startswith(who.prefix)
    return _of_item(operation["operationId"], item_id, is_foreign)


def _of_item(operation_id: str, item_id: str, is_foreign: bool) -> set[int]:
    is_there = item_id in {OWN[0], FOREIGN[0]}
    match operation_id:
        case "createItem" | "putItem" if is_foreign:
            return {403}
        case "createItem":
            return {409} if is_there else {201}
        case "putItem":
            return {200} if is_there else {201}
        case "getItem" | "patchItem":
            return {200} if is_there and not is_foreign else {404}
        case "deleteItem":
            return {204} if is_there and not is_foreign else {404}
        case _:
            return {404}  # no write is in quarantine, and no key has such an id


def _succeeding(operation: contract.Node) -> set[int]:
    return {int(status) for status in operation["responses"] if status < "300"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(server: Callable[[int], str]) -> AsyncIterator[Service]:
    async with service_over(Postgres(make_database(server(max(_FOUND)))), access=KEYS) as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tokens(service: Service) -> dict[Who, str]:
    """What each of the callers shows."""
    made = {who: (await caller(service, who.role, who.prefix)).token for who in CALLERS[2:]}
    forged = [*made[CALLERS[-1]]]
    forged[40] = "a" if forged[40] != "a" else "b"  # in the secret: its checksum does not fit
    return {STRANGERS[0]: "", STRANGERS[1]: "".join(forged), **made}


@pytest.mark.parametrize("path", PATHS)
async def test_allowed_exactly_where_it_should_be(
    service: Service, tokens: dict[Who, str], path: str
) -> None:
    """Nothing of another's is changed on the way."""
    ids = (*OWN, *FOREIGN) if "{id}" in path or path == "/items" else OWN[:1]
    for method in METHODS:
        for who in CALLERS:
            for item_id in ids:
                await _renew(admin(service.api))
                before = await _states(admin(service.api))
                status = await _asked(service, tokens[who], method, path, item_id)
                assert status in expected(who, method, path, item_id), (
                    f"{method} {path} of {item_id} by {who.name} is {status}; the contract has "
                    f"{expected(who, method, path, item_id)}"
                )
                changed = {each for each, state in (await _states(admin(service.api))) - before}
                assert changed <= _changeable(who, status), (method, path, who.name, item_id)


def _changeable(who: Who, status: int) -> set[str]:
    if status >= 300 or who.role < Role.WRITE:
        return set()
    return {each for each in (*OWN, *FOREIGN) if each.startswith(who.prefix)}


async def _renew(everybody: Calling) -> None:
    """The first of each two ids is there, and the second is not."""
    for there, missing in (OWN, FOREIGN):
        await everybody("PUT", f"/items/{quote(there, safe='')}", {"data": {}}, If_None_Match="*")
        await everybody("DELETE", f"/items/{quote(missing, safe='')}")


async def _states(everybody: Calling) -> set[tuple[str, int | None]]:
    """Each id with the version of its item, None if there is none."""
    states = set()
    for item_id in (*OWN, *FOREIGN):
        answer = await everybody("GET", f"/items/{quote(item_id, safe='')}")
        states.add((item_id, answer.json.get("version")))
    return states


async def _asked(service: Service, token: str, method: str, path: str, item_id: str) -> int:
    operation = OPERATIONS.get((method, path), {})
    headers: dict[str, Any] = {}
    value, body = None, None
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if "requestBody" in operation:
        assert operation["operationId"] in BODIES, f"say in BODIES what {method} {path} is sent"
        value = BODIES[operation["operationId"]](item_id)
        media_type = next(iter(contract.seen(operation["requestBody"])["content"]))
        if media_type.endswith("ndjson"):
            value, body = None, orjson.dumps(value) + b"\n"
        headers["Content-Type"] = media_type
    target = path.replace("{id}", quote(item_id, safe=""))
    return (await service.api(method, target, value, body=body, **headers)).status


async def test_a_batch_is_allowed_operation_by_operation(
    service: Service, tokens: dict[Who, str]
) -> None:
    """Each as if it were a request of its own."""
    for who in CALLERS[2:]:
        for item_id in (*OWN, *FOREIGN):
            for op, by_itself in (("get", "GET"), ("put", "PUT"), ("delete", "DELETE")):
                await _renew(admin(service.api))
                operation = {"op": op, "id": item_id, **({"data": {}} if op == "put" else {})}
                answer = await Calling(service.api, tokens[who])(
                    "POST", "/items:batch", {"operations": [operation]}
                )
                assert 200 == answer.status
                [result] = answer.json["results"]
                assert result["status"] in expected(who, by_itself, "/items/{id}", item_id), (
                    who.name,
                    operation,
                    result,
                )


@pytest.mark.parametrize(
    "target", ["/items", "/export", "/items?order=id&count=exact", "/items?fields=id"]
)
async def test_what_is_listed_is_ones_own(
    service: Service, tokens: dict[Who, str], target: str
) -> None:
    for who in CALLERS[2:]:
        await _renew(admin(service.api))
        answer = await Calling(service.api, tokens[who])("GET", target)
        expected_ids = {each for each in (OWN[0], FOREIGN[0]) if each.startswith(who.prefix)}
        assert expected_ids == _listed(answer)
        if "count" in target:
            assert len(expected_ids) == answer.json["count"]


def _listed(answer: Answer) -> set[str]:
    if answer.headers["Content-Type"].startswith("application/json"):
        return {each["id"] for each in answer.json["items"]}
    return {orjson.loads(line)["id"] for line in answer.body.splitlines()}
