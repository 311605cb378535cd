"""What bodies may be: Content-Type, for each method that has a body."""

from __future__ import annotations

from typing import Final

import pytest

from tests.web.conftest import Api, make, path

pytestmark = pytest.mark.asyncio(loop_scope="module")


JSON_TYPES: Final = [
    "application/json",
    "application/json; charset=utf-8",
    "Application/JSON;charset=UTF-8",
    'application/json; charset="utf-8"',
]
OTHER_TYPES: Final = [
    "application/x-www-form-urlencoded",
    "text/plain",
    "application/json; charset=latin-1",
    "application/json; boundary=x",
    "application/json-patch+json",
    "multipart/form-data; boundary=x",
    "json",
    "*/*",
]


@pytest.mark.parametrize("media_type", JSON_TYPES)
async def test_json_is_accepted_however_it_is_spelt(api: Api, name: str, media_type: str) -> None:
    """POST, PUT and PATCH take application/json in UTF-8."""
    await make(api, name)
    for method in ("PUT", "PATCH"):
        assert (await api(method, path(name), {"data": {}}, content_type=media_type)).status == 200
    assert (await api("POST", "/items", {"data": {}}, content_type=media_type)).status == 201


async def test_a_body_without_a_type_is_json(api: Api, name: str) -> None:
    """A body that says nothing of its type is taken for JSON."""
    assert (await api("PUT", path(name), body=b'{"data":{}}')).status == 201


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("media_type", OTHER_TYPES)
async def test_other_types_are_refused(api: Api, name: str, method: str, media_type: str) -> None:
    """Another Content-Type is 415, says what is accepted, and changes nothing."""
    before = await make(api, name)

    target = "/items" if method == "POST" else path(name)
    answer = await api(method, target, {"data": {"a": 1}}, content_type=media_type)

    problem = answer.is_problem(415, "unsupported_media_type")
    assert "application/json" in problem["detail"]
    assert (await api("GET", path(name))).body == before.body


async def test_patch_tells_what_it_accepts(api: Api, name: str) -> None:
    """415 for a PATCH carries Accept-Patch (RFC 5789), and both types in it are accepted."""
    await make(api, name)
    answer = await api("PATCH", path(name), {"data": {}}, content_type="text/plain")
    accepted = answer.headers["Accept-Patch"].split(", ")

    assert accepted == ["application/merge-patch+json", "application/json"]
    for each in accepted:
        assert (await api("PATCH", path(name), {"data": {}}, content_type=each)).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_merge_patch_is_no_item(api: Api, name: str, method: str) -> None:
    """Only PATCH takes application/merge-patch+json."""
    target = "/items" if method == "POST" else path(name)

    answer = await api(method, target, {"data": {}}, content_type="application/merge-patch+json")

    answer.is_problem(415, "unsupported_media_type")
