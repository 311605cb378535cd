"""One item over HTTP: created, replaced, read, patched and deleted."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import Any, Final

import pytest

from tests.web.conftest import Api, Service, count_of, make, path, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


DATA: Final = {"name": "Ada", "tags": ["a", "b"], "price": 1.5, "none": None, "deep": {"π": "ß"}}
ENVELOPE: Final = ["id", "version", "created_at", "updated_at", "data"]


def microseconds(time: str) -> int:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    moment = datetime.fromisoformat(time)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


# --- creating


async def test_create_gives_the_item_an_id_of_eight_base62_characters(api: Api) -> None:
    """POST without an id answers 201 with the item under a generated id, and where it is."""
    answer = await api("POST", "/items", {"data": DATA})

    assert answer.status == 201
    assert list(answer.json) == ENVELOPE
    assert re.fullmatch("[0-9A-Za-z]{8}", answer.json["id"])
    assert answer.headers["Location"] == f"/items/{answer.json['id']}"
    assert answer.json["data"] == DATA
    assert (await api("GET", answer.headers["Location"])).body == answer.body


async def test_generated_ids_differ(api: Api) -> None:
    """Two creates never get the same id."""
    answers = await asyncio.gather(*(api("POST", "/items", {"data": {}}) for _ in range(20)))

    assert {answer.status for answer in answers} == {201}
    assert len({answer.json["id"] for answer in answers}) == 20


async def test_create_takes_the_id_it_is_given(api: Api, name: str) -> None:
    """POST with an id creates the item under this id."""
    answer = await api("POST", "/items", {"id": name, "data": DATA})

    assert answer.status == 201
    assert answer.json["id"] == name
    assert (await api("GET", path(name))).body == answer.body


async def test_an_id_of_null_is_no_id(api: Api) -> None:
    """POST with an id of null generates one."""
    answer = await api("POST", "/items", {"id": None, "data": {}})

    assert answer.status == 201
    assert re.fullmatch("[0-9A-Za-z]{8}", answer.json["id"])


async def test_create_does_not_replace(api: Api, name: str) -> None:
    """POST with an id that is taken is 409 and changes nothing."""
    before = await make(api, name)

    answer = await api("POST", "/items", {"id": name, "data": {"other": 1}})

    assert "PUT" in answer.is_problem(409, "item_exists")["detail"]
    assert (await api("GET", path(name))).body == before.body


async def test_a_deleted_id_can_be_created_again(api: Api, name: str) -> None:
    """An item created again under the id of a deleted one has a new created_at."""
    first = await make(api, name)
    await api("DELETE", path(name))

    second = await api("POST", "/items", {"id": name, "data": {}})

    assert second.status == 201
    assert second.json["created_at"] > first.json["created_at"]


# --- replacing


async def test_put_creates(api: Api, name: str) -> None:
    """PUT of an absent item is 201 with its Location, and created_at is updated_at."""
    answer = await api("PUT", path(name), {"data": DATA})

    assert answer.status == 201
    assert answer.headers["Location"] == path(name)
    assert answer.json["created_at"] == answer.json["updated_at"]
    assert answer.json["data"] == DATA


async def test_put_replaces(api: Api, name: str) -> None:
    """PUT of an item is 200 without Location: all data is new, created_at stays."""
    before = await make(api, name, {"a": 1, "b": 2})

    answer = await api("PUT", path(name), {"data": {"c": 3}})

    assert answer.status == 200
    assert "Location" not in answer.headers
    assert answer.json["data"] == {"c": 3}
    assert answer.json["created_at"] == before.json["created_at"]
    assert answer.json["version"] > before.json["version"]
    assert (await api("GET", path(name))).body == answer.body


async def test_the_version_is_the_time_of_the_update_and_the_etag(api: Api, name: str) -> None:
    """updated_at is the version in microseconds since 1970, and the ETag is the version quoted."""
    await make(api, name)
    for method, body in (("PUT", {"data": {}}), ("PATCH", {"data": {"a": 1}}), ("GET", None)):
        answer = await api(method, path(name), body)

        assert answer.headers["ETag"] == f'"{answer.json["version"]}"'
        assert microseconds(answer.json["updated_at"]) == answer.json["version"]
        assert microseconds(answer.json["created_at"]) < answer.json["version"]


async def test_a_write_of_the_same_data_is_a_new_version(api: Api, name: str) -> None:
    """PUT of what is there already gives the item a new version all the same."""
    before = await make(api, name, {"a": 1})

    answer = await make(api, name, {"a": 1})

    assert answer.json["version"] > before.json["version"]


async def test_what_was_read_can_be_written_back(api: Api, name: str) -> None:
    """A body that was read is accepted by PUT and PATCH; its version and times are ignored."""
    await make(api, name, DATA)
    read = await api("GET", path(name))

    for method in ("PUT", "PATCH"):
        answer = await api(method, path(name), body=read.body, content_type="application/json")

        assert answer.status == 200
        assert answer.json["version"] > read.json["version"]
        assert answer.json["created_at"] == read.json["created_at"]
    copy = await api("POST", "/items", {**read.json, "id": f"{name}copy"})
    assert copy.status == 201
    assert copy.json["created_at"] > read.json["created_at"]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("item_id", ["other", "", None, 7, ["x"]])
async def test_the_id_in_the_body_must_be_that_of_the_path(
    api: Api, name: str, method: str, item_id: Any
) -> None:
    """An id in the body that is not the path's is 422, and nothing is changed."""
    before = await make(api, name)

    answer = await api(method, path(name), {"id": item_id, "data": {"other": 1}})

    assert answer.is_problem(422, "invalid_item")["pointer"] == "/id"
    assert (await api("GET", path(name))).body == before.body


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        ({"data": {}, "colour": "red"}, "/colour"),
        ({"data": {}, "a/b~c": 1}, "/a~1b~0c"),
        ({"data": {}, "": 1}, "/"),
        ({"name": "Ada"}, "/name"),
        ({"data": {}, "op": "put"}, "/op"),
        ({}, "/data"),
        ({"id": None}, "/data"),
        ([], None),
        ("text", None),
        (17, None),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_an_envelope_has_no_other_members(
    api: Api, name: str, method: str, value: Any, pointer: str | None
) -> None:
    """A member the envelope does not have, or no data, is 422 with a pointer to it."""
    if isinstance(value, dict) and method == "PUT":
        value = {key: each for key, each in value.items() if key != "id"}

    answer = await api(method, "/items" if method == "POST" else path(name), value)

    assert answer.is_problem(422, "invalid_item").get("pointer") == pointer
    assert (await api("GET", path(name))).status == 404


@pytest.mark.parametrize("data", [None, [], "text", 1, 1.5, True])
async def test_data_is_an_object(api: Api, name: str, data: Any) -> None:
    """Data that is not an object is 422."""
    answer = await api("PUT", path(name), {"data": data})

    assert answer.is_problem(422, "invalid_data")["pointer"] == "/data"
    assert (await api("GET", path(name))).status == 404


async def test_data_comes_back_as_it_went_in(api: Api, name: str) -> None:
    """The text of the data is answered compact, with its members in the order given."""
    body = '{ "data" : {"z": 1, "a": [ 1.0, -0.0, 1e3, 0.1, 9007199254740993 ], "é": "\\u00e9" } }'

    answer = await api("PUT", path(name), body=body.encode())

    text = '"data":{"z":1,"a":[1.0,-0.0,1000.0,0.1,9007199254740993],"é":"é"}}'
    assert answer.body.decode().endswith(text)
    assert (await api("GET", path(name))).body.decode().endswith(text)


async def test_of_a_member_given_twice_the_last_counts(api: Api, name: str) -> None:
    """A name that stands twice in an object keeps its last value, as JSON readers do."""
    answer = await api("PUT", path(name), body=b'{"data":{"a":1,"b":2,"a":3}}')

    assert answer.json["data"] == {"a": 3, "b": 2}


# --- reading


async def test_an_absent_item_is_404(api: Api, name: str) -> None:
    """GET of an item that is not there is 404 and tells its id."""
    answer = await api("GET", path(name))

    assert name in answer.is_problem(404, "item_not_found")["detail"]


async def test_a_read_may_be_kept_but_must_be_asked_about(api: Api, name: str) -> None:
    """An item is answered as JSON that a client must revalidate."""
    await make(api, name)

    answer = await api("GET", path(name))

    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "target", ["/items/{name}", "/items?prefix={name}&limit=1", "/livez", "/readyz", "/nowhere"]
)
async def test_head_has_the_headers_of_get(service: Service, name: str, target: str) -> None:
    """HEAD answers what GET answers, without the body."""
    await make(service.api, f"{name}a")
    await make(service.api, f"{name}b")
    for each in (target.format(name=name), target.format(name=f"{name}a")):
        get, head = [await service.api(m, each, x_request_id="one") for m in ("GET", "HEAD")]

        assert head.status == get.status
        assert {**head.headers, "Date": ""} == {**get.headers, "Date": ""}
        assert head.body == b""
    # No byte of a body comes, or the next answer would be read wrongly.
    raw = await service.raw()
    await raw.ask(request("HEAD", target.format(name=f"{name}a")), "HEAD")
    await raw.check_usable()


# --- patching


@pytest.mark.parametrize(
    ("data", "patch", "expected"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": 1}, {"b": None}, {"a": 1}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": 3}}, {"a": {"c": 2, "d": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [1, 2]}, {"a": [None]}, {"a": [None]}),
        ({"a": 1}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
        ({"a": {"b": 1}}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {"a": None}, {}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ],
)
async def test_patch_merges(
    api: Api, name: str, data: Any, patch: Any, expected: dict[str, Any]
) -> None:
    """PATCH changes the data as a merge patch does (RFC 7396): null removes, arrays replace."""
    before = await make(api, name, data)

    answer = await api(
        "PATCH", path(name), {"data": patch}, content_type="application/merge-patch+json"
    )

    assert answer.status == 200
    assert answer.json["data"] == expected
    assert list(answer.json["data"]) == list(expected)
    assert answer.json["created_at"] == before.json["created_at"]
    assert answer.json["version"] > before.json["version"]
    assert (await api("GET", path(name))).body == answer.body


@pytest.mark.parametrize("body", [{}, {"id": "ID"}, {"version": 1, "created_at": "x"}])
async def test_a_patch_without_data_changes_no_data(api: Api, name: str, body: Any) -> None:
    """A patch that names no data leaves it as it is, under a new version."""
    before = await make(api, name, DATA)

    answer = await api("PATCH", path(name), {k: name if v == "ID" else v for k, v in body.items()})

    assert answer.status == 200
    assert answer.json["data"] == DATA
    assert answer.json["version"] > before.json["version"]


@pytest.mark.parametrize("data", [None, [], 1, "x"])
async def test_a_patch_cannot_make_data_something_else(api: Api, name: str, data: Any) -> None:
    """A patch that would remove or replace the data as a whole is 422."""
    before = await make(api, name)

    answer = await api("PATCH", path(name), {"data": data})

    assert answer.is_problem(422, "invalid_item")["pointer"] == "/data"
    assert (await api("GET", path(name))).body == before.body


async def test_patching_an_absent_item_is_404(api: Api, name: str) -> None:
    """PATCH never creates."""
    answer = await api("PATCH", path(name), {"data": {}})

    answer.is_problem(404, "item_not_found")
    assert (await api("GET", path(name))).status == 404


async def test_a_patch_is_refused_if_its_result_cannot_be_stored(api: Api, name: str) -> None:
    """A patch whose result is too large is 413, and the item stays."""
    before = await make(api, name, {"a": "x" * 600_000})

    answer = await api("PATCH", path(name), {"data": {"b": "x" * 600_000}})

    assert answer.is_problem(413, "body_too_large")["pointer"] == "/data"
    assert (await api("GET", path(name))).body == before.body


# --- deleting


async def test_delete(api: Api, name: str) -> None:
    """DELETE is 204 without a body; then the item is gone, and a second DELETE is 404."""
    await make(api, name)

    answer = await api("DELETE", path(name))

    assert (answer.status, answer.body) == (204, b"")
    assert "Content-Type" not in answer.headers
    assert (await api("GET", path(name))).status == 404
    (await api("DELETE", path(name))).is_problem(404, "item_not_found")
    assert await count_of(api, name) == 0
