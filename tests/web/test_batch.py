"""Many operations in one request, each answered as a request of its own."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from itemstore.web import requests
from tests.web.conftest import Api, count_of, make, path, run_batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: An entity tag this store never gave.
OTHER: Final = '"1"'


async def test_a_batch_answers_each_operation_in_its_place(api: Api, name: str) -> None:
    """A batch carries out every kind of operation and answers each as a request of its own."""
    here, there = f"{name}here", f"{name}there"
    await make(api, there, {"a": 1})

    results = await run_batch(
        api,
        {"op": "create", "data": {}},
        {"op": "create", "id": here, "data": {"n": 1}},
        {"op": "put", "id": there, "data": {"a": 2, "b": 3}},
        {"op": "patch", "id": there, "data": {"b": None}},
        {"op": "get", "id": there},
        {"op": "delete", "id": here},
        {"op": "get", "id": here},
    )

    assert [result["status"] for result in results] == [201, 201, 200, 200, 200, 204, 404]
    assert re.fullmatch("[0-9A-Za-z]{8}", results[0]["item"]["id"])
    assert results[4] == results[3]
    assert results[4]["item"]["data"] == {"a": 2}
    assert results[5] == {"status": 204}
    assert results[6]["problem"]["code"] == "item_not_found"
    assert (await api("GET", path(there))).json == results[4]["item"]
    assert (await api("GET", path(here))).status == 404


async def test_operations_on_one_id_happen_in_their_order(api: Api, name: str) -> None:
    """Each operation of a batch sees what those before it did to the same item."""
    results = await run_batch(
        api,
        {"op": "put", "id": name, "data": {"n": 1}},
        {"op": "get", "id": name},
        {"op": "patch", "id": name, "data": {"m": 2}},
        {"op": "create", "id": name, "data": {}},
        {"op": "delete", "id": name},
        {"op": "delete", "id": name},
        {"op": "get", "id": name},
        {"op": "create", "id": name, "data": {"n": 3}},
        {"op": "put", "id": name, "data": {"n": 4}},
    )

    assert [result["status"] for result in results] == [
        *(201, 200, 200, 409, 204, 404, 404, 201, 200)
    ]
    assert results[1]["item"]["data"] == {"n": 1}
    assert results[2]["item"]["data"] == {"n": 1, "m": 2}
    versions = [result["item"]["version"] for result in results if "item" in result]
    assert versions == sorted(versions)
    assert (await api("GET", path(name))).json == results[8]["item"]


async def test_an_error_stops_its_own_operation_alone(api: Api, name: str) -> None:
    """Wrong operations get a problem that points at them; the right ones are carried out."""
    await make(api, name, {"n": 1})
    wrong: list[tuple[Any, int, str, str]] = [
        (17, 422, "invalid_item", "/op"),
        ({"id": name}, 422, "invalid_item", "/op"),
        ({"op": "upsert", "id": name}, 422, "invalid_item", "/op"),
        ({"op": "put", "data": {}}, 400, "invalid_id", "/id"),
        ({"op": "put", "id": "..", "data": {}}, 400, "invalid_id", "/id"),
        ({"op": "get", "id": 7}, 400, "invalid_id", "/id"),
        ({"op": "put", "id": name}, 422, "invalid_item", "/data"),
        ({"op": "put", "id": name, "data": []}, 422, "invalid_data", "/data"),
        ({"op": "put", "id": name, "data": {"a": ["\0"]}}, 422, "invalid_data", "/data/a/0"),
        ({"op": "create", "data": {"a/b": "\0"}}, 422, "invalid_data", "/data/a~1b"),
        ({"op": "create", "id": "", "data": {}}, 400, "invalid_id", "/id"),
        ({"op": "patch", "id": name, "data": {"a": "\0"}}, 422, "invalid_data", "/data/a"),
        ({"op": "patch", "id": name, "data": 1}, 422, "invalid_item", "/data"),
        ({"op": "put", "id": name, "data": {}, "x": 1}, 422, "invalid_item", "/x"),
        ({"op": "get", "id": name, "x": 1}, 422, "invalid_item", ""),
        ({"op": "delete", "id": name, "if_match": 1}, 422, "invalid_item", "/if_match"),
        ({"op": "delete", "id": name, "if_match": "1"}, 400, "invalid_etag", ""),
        ({"op": "delete", "id": name, "if_match": OTHER}, 412, "precondition_failed", ""),
        ({"op": "create", "id": name, "data": {}}, 409, "item_exists", ""),
        ({"op": "patch", "id": f"{name}no", "data": {}}, 404, "item_not_found", ""),
    ]
    operations: list[Any] = []
    for number, (each, *_) in enumerate(wrong):
        operations += [each, {"op": "put", "id": f"{name}{number}", "data": {"n": number}}]

    results = await run_batch(api, *operations)

    for number, (_, status, code, pointer) in enumerate(wrong):
        result, following = results[2 * number : 2 * number + 2]
        problem = result["problem"]
        assert set(result) == {"status", "problem"}
        assert (result["status"], problem["status"], problem["code"]) == (status, status, code)
        assert problem["pointer"] == f"/operations/{2 * number}{pointer}"
        assert problem["detail"]
        assert "request_id" not in problem
        assert following["status"] == 201
    assert (await api("GET", path(name))).json["data"] == {"n": 1}
    assert await count_of(api, name) == 1 + len(wrong)


async def test_a_batch_has_conditions(api: Api, name: str) -> None:
    """if_match and if_none_match of an operation are what the headers are to a request."""
    etag = (await make(api, name)).etag

    results = await run_batch(
        api,
        {"op": "put", "id": name, "data": {}, "if_match": etag},
        {"op": "put", "id": name, "data": {}, "if_match": etag},
        {"op": "patch", "id": name, "data": {}, "if_match": f"{etag}, *"},
        {"op": "patch", "id": name, "data": {}, "if_match": "*"},
        {"op": "put", "id": name, "data": {}, "if_none_match": "*"},
        {"op": "put", "id": f"{name}new", "data": {}, "if_none_match": "*"},
        {"op": "delete", "id": name, "if_match": f"W/{etag}"},
        {"op": "delete", "id": name, "if_match": None},
    )

    assert [result["status"] for result in results] == [200, 412, 400, 200, 412, 201, 412, 204]


async def test_what_was_read_can_be_written_back_in_a_batch(api: Api, name: str) -> None:
    """An item as it was read is accepted as an operation."""
    item = (await make(api, name)).json

    results = await run_batch(api, {"op": "put", **item}, {"op": "patch", **item})

    assert [result["status"] for result in results] == [200, 200]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], None),
        ({}, None),
        ({"operations": [], "more": 1}, None),
        ({"operations": None}, "/operations"),
        ({"operations": {}}, "/operations"),
        ({"operations": []}, "/operations"),
        ({"operations": [{"op": "create", "data": {}}] * 1001}, "/operations"),
    ],
    ids=["array", "empty", "more", "null", "object", "none", "1001"],
)
async def test_a_batch_has_1_to_1000_operations(api: Api, body: Any, pointer: str | None) -> None:
    """A body that is not an array of 1 to 1000 operations is 422, and none is carried out."""
    before = await count_of(api, "")

    answer = await api("POST", "/items:batch", body)

    assert answer.is_problem(422, "invalid_item").get("pointer") == pointer
    assert await count_of(api, "") == before


async def test_a_batch_of_1000_operations(api: Api, name: str) -> None:
    """A batch of the most operations allowed is carried out whole."""
    operations = [{"op": "put", "id": f"{name}{n:04}", "data": {"n": n}} for n in range(1000)]

    results = await run_batch(api, *operations)

    assert {result["status"] for result in results} == {201}
    assert requests.BATCH_OPERATIONS_MAX == 1000
    assert await count_of(api, name) == 1000


@pytest.mark.parametrize(
    "data", ['{"a":9223372036854775808}', '{"a":' * 65 + "1" + "}" * 65], ids=["number", "depth"]
)
async def test_what_cannot_be_read_exactly_stops_the_whole_batch(
    api: Api, name: str, data: str
) -> None:
    """A number or a depth that reading would lose refuses the batch before its first operation."""
    body = (
        '{"operations":[{"op":"put","id":"NAME","data":{}},{"op":"put","id":"NAME","data":'
        + f"{data}}}]}}"
    ).replace("NAME", name)

    answer = await api("POST", "/items:batch", body=body.encode())

    assert answer.is_problem(422, "invalid_data")["pointer"] == "/operations"
    assert (await api("GET", path(name))).status == 404


async def test_a_batch_may_be_larger_than_an_item(api: Api, name: str) -> None:
    """Items of nearly a mebibyte each fit in one batch; each is bounded by itself."""
    operations = [
        {"op": "put", "id": f"{name}{number}", "data": {"a": "x" * 1024 * size}}
        for number, size in enumerate((1023, 1024, 1023))
    ]

    results = await run_batch(api, *operations)

    assert [result["status"] for result in results] == [201, 413, 201]
    assert results[1]["problem"]["pointer"] == "/operations/1/data"
    assert await count_of(api, name) == 2


LARGE: Final = {"a": "x" * 1_000_000}


async def test_the_answer_to_a_batch_is_bounded(api: Api, name: str) -> None:
    """When its items have 8 MiB nothing more is read or patched; what is small to send goes on."""
    await make(api, name, LARGE)
    get = {"op": "get", "id": name}
    patch = {"op": "patch", "id": name, "data": {"b": 1}}
    put = {"op": "put", "id": f"{name}put", "data": {}}
    delete = {"op": "delete", "id": f"{name}put"}

    results = await run_batch(api, *[get] * 4, *[patch] * 5, put, *[get, patch] * 494, delete)

    statuses = [result["status"] for result in results]
    assert statuses == [200] * 9 + [201] + [503] * 988 + [204]
    problem = results[10]["problem"]
    assert (problem["code"], problem["pointer"]) == ("overloaded", "/operations/10")
    assert (await api("GET", path(name))).json == results[8]["item"]
