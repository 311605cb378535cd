"""If-Match and If-None-Match (RFC 9110, section 13), on every method."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from tests.web.conftest import Answer, Api, make, path

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: An entity tag this store never gave.
OTHER: Final = '"1"'


def filled(value: str, etag: str) -> str:
    return value.replace("OTHER", OTHER).replace("WEAK", f"W/{etag}").replace("THIS", etag)


MATCHES: Final = ["THIS", "*", " * ", "OTHER, THIS", "OTHER,THIS ,WEAK", "THIS,", 'THIS, "a-b_{é}"']
MISMATCHES: Final = ["OTHER", "WEAK", "WEAK, OTHER", '""', '"x"', '"99999999999999999999999"']
WRITES: Final = (("PUT", 200), ("PATCH", 200), ("DELETE", 204))


async def write(api: Api, method: str, item_id: str, **headers: Any) -> Answer:
    body = None if method == "DELETE" else {"data": {"written": 1}}
    return await api(method, path(item_id), body, **headers)


@pytest.mark.parametrize(("method", "status"), WRITES)
@pytest.mark.parametrize("value", MATCHES)
async def test_if_match_lets_the_named_version_pass(
    api: Api, name: str, method: str, status: int, value: str
) -> None:
    """A write with If-Match is carried out if the item has one of the versions named."""
    etag = (await make(api, name)).etag

    assert (await write(api, method, name, if_match=filled(value, etag))).status == status


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize("value", MISMATCHES)
async def test_if_match_stops_at_another_version(
    api: Api, name: str, method: str, value: str
) -> None:
    """If-Match without the item's version is 412, weak tags never match, nothing is changed."""
    before = await make(api, name)
    sent = filled(value, before.etag)

    answer = (
        await api("GET", path(name), if_match=sent)
        if method == "GET"
        else await write(api, method, name, if_match=sent)
    )

    problem = answer.is_problem(412, "precondition_failed")
    assert str(before.json["version"]) in problem["detail"]
    assert (await api("GET", path(name))).body == before.body


async def test_a_version_with_a_zero_before_it_is_another_tag(api: Api, name: str) -> None:
    """Entity tags are compared as text: a leading zero makes another one."""
    before = await make(api, name)

    answer = await write(api, "PUT", name, if_match=f'"0{before.json["version"]}"')

    assert answer.status == 412


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_header_lines_of_one_name_are_one_list(api: Api, name: str, header: str) -> None:
    """Two If-Match lines name the versions of both, and so do two If-None-Match lines."""
    etag = (await make(api, name)).etag

    answer = await api("GET", path(name), lines=[(header, OTHER), (header, etag)])

    assert answer.status == (200 if header == "If-Match" else 304)


@pytest.mark.parametrize("value", ["*", "OTHER, THIS", "THIS", "WEAK"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_known_version_is_not_sent_again(
    api: Api, name: str, method: str, value: str
) -> None:
    """GET and HEAD with If-None-Match are 304 for the item's version, weak or strong, or ``*``."""
    etag = (await make(api, name)).etag

    answer = await api(method, path(name), if_none_match=filled(value, etag))

    assert (answer.status, answer.body) == (304, b"")
    assert answer.etag == etag
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("value", ["OTHER", 'W/"1"', '"x"', '""'])
async def test_an_unknown_version_is_sent(api: Api, name: str, value: str) -> None:
    """GET with If-None-Match is 200 if the item has none of the versions."""
    before = await make(api, name)

    answer = await api("GET", path(name), if_none_match=filled(value, before.etag))

    assert (answer.status, answer.body) == (200, before.body)


async def test_if_none_match_any_makes_put_a_create(api: Api, name: str) -> None:
    """PUT with ``If-None-Match: *`` creates, and is 412 if there is the item already."""
    created = await write(api, "PUT", name, if_none_match="*")
    again = await write(api, "PUT", name, if_none_match="*")

    assert created.status == 201
    again.is_problem(412, "precondition_failed")
    assert (await api("GET", path(name))).body == created.body


@pytest.mark.parametrize(("method", "status"), WRITES)
async def test_writes_with_if_none_match(api: Api, name: str, method: str, status: int) -> None:
    """A write with If-None-Match is 412 if the item has the version, even weakly named."""
    etag = (await make(api, name)).etag

    for value in (etag, f"W/{etag}", "*"):
        (await write(api, method, name, if_none_match=value)).is_problem(412, "precondition_failed")
    assert (await write(api, method, name, if_none_match=OTHER)).status == status


@pytest.mark.parametrize(
    ("method", "if_match", "if_none_match", "status"),
    [
        ("GET", "OTHER", "THIS", 412),
        ("GET", "THIS", "THIS", 304),
        ("GET", "THIS", "OTHER", 200),
        ("HEAD", "OTHER", "*", 412),
        ("PUT", "THIS", "OTHER", 200),
        ("PUT", "THIS", "THIS", 412),
        ("PUT", "OTHER", "OTHER", 412),
        ("PATCH", "*", "*", 412),
        ("DELETE", "OTHER", "OTHER", 412),
    ],
)
async def test_if_match_comes_before_if_none_match(
    api: Api, name: str, method: str, if_match: str, if_none_match: str, status: int
) -> None:
    """Of both conditions If-Match is evaluated first (RFC 9110, section 13.2.2)."""
    etag = (await make(api, name)).etag

    answer = await api(
        method,
        path(name),
        {"data": {}} if method in {"PUT", "PATCH"} else None,
        if_match=filled(if_match, etag),
        if_none_match=filled(if_none_match, etag),
    )

    assert answer.status == status


@pytest.mark.parametrize(
    ("method", "status"), [("PUT", 412), ("PATCH", 404), ("DELETE", 404), ("GET", 404)]
)
@pytest.mark.parametrize("value", ["*", "OTHER", 'W/"1"'])
async def test_conditions_on_an_absent_item(
    api: Api, name: str, method: str, status: int, value: str
) -> None:
    """If-Match of an absent item is 412 where PUT would create it, and 404 elsewhere."""
    answer = await api(
        method,
        path(name),
        {"data": {}} if method in {"PUT", "PATCH"} else None,
        if_match=filled(value, ""),
    )

    answer.is_problem(status, "precondition_failed" if status == 412 else "item_not_found")
    assert (await api("GET", path(name))).status == 404


async def test_of_two_writers_with_the_same_etag_one_wins(api: Api, name: str) -> None:
    """Of many writes that demand the same version exactly one is carried out."""
    etag = (await make(api, name)).etag

    answers = await asyncio.gather(
        *(api("PUT", path(name), {"data": {"by": n}}, if_match=etag) for n in range(8))
    )

    assert sorted(answer.status for answer in answers) == [200] + [412] * 7
    winner = next(answer for answer in answers if answer.status == 200)
    assert (await api("GET", path(name))).body == winner.body
