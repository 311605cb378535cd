"""Filters, fields, counts and hints over HTTP; tests/test_queries.py has what they mean."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson
import pytest
import pytest_asyncio

from itemstore.core.listing import Page
from itemstore.errors import QueryTooSlow
from tests.web.conftest import Api, Service, make
from tests.web.test_lists import walk

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def fruit(api: Api, name: str) -> str:
    """Four items, and the prefix they share."""
    await make(api, f"{name}a", {"name": "pear", "price": 2, "tags": ["red", "ripe"]})
    await make(api, f"{name}b", {"name": "a+b & c", "price": 10, "at": {"a.b": {"c": None}}})
    await make(api, f"{name}c", {"name": "plum", "price": "2", "tags": []})
    await make(api, f"{name}d", {"price": 2.0})
    return name


def ids(answer: Any, name: str) -> str:
    return "".join(item["id"].removeprefix(name) for item in answer.json["items"])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("data.price=eq.2", "ad"),
        ('data.price=eq."2"', "c"),
        ("data.price=gte.2&data.price=lt.10", "ad"),
        ("data.price=neq.2", "bc"),
        ("data.name=in.(pear,plum)", "ac"),
        ("data.name=exists.false", "d"),
        ("data.name=prefix.p&data.tags=exists.true", "ac"),
        ('data.tags=contains.["red"]', "a"),
        ("data.tags=contains.red", "a"),
        ("data.tags.1=eq.ripe", "a"),
        ("data.tags=eq.[]", "c"),
        ('data.at."a.b".c=eq.null', "b"),
        ("data.name=eq." + quote("a+b & c", safe=""), "b"),
        ("order=-data.price", "cbda"),
        ("order=data.price&data.price=gt.0", "adb"),
        ("created_at=gte.2020-01-01&updated_at=lt.2999-01-01T00:00:00%2B01:00&order=id", "abcd"),
        ("created_at=lt.2020-01-01", ""),
    ],
)
async def test_a_filter_selects(api: Api, fruit: str, query: str, expected: str) -> None:
    """What the query asks for, counted, and page by page the same."""
    target = f"/items?prefix={fruit}&count=exact&{query}"
    answer = await api("GET", target)
    assert (expected, len(expected)) == (ids(answer, fruit), answer.json["count"])
    items = await walk(api, f"{target}&limit=1")
    assert answer.json["items"] == items


async def test_fields_are_selected(api: Api, fruit: str) -> None:
    """Members of the envelope and of the data, in the order and the shape of the item."""
    answer = await api(
        "GET", f"/items?prefix={fruit}&fields=data.price,id,data.tags&order=id&limit=1"
    )
    assert (
        b'{"items":[{"id":"%ba","data":{"price":2,"tags":["red","ripe"]}}],"next":"'
        % (fruit.encode())
        == answer.body.partition(answer.json["next"].encode())[0]
    )
    answer = await api("GET", f"/items?id=eq.{fruit}b&fields=data.at.%22a.b%22.c,version")
    [item] = answer.json["items"]
    assert {"version", "data"} == set(item)
    assert {"at": {"a.b": {"c": None}}} == item["data"]
    whole = await api("GET", f"/items?id=eq.{fruit}b")
    same = await api("GET", f"/items?id=eq.{fruit}b&fields=data,updated_at,created_at,version,id")
    assert whole.body == same.body


async def test_a_count_is_exact_or_estimated(api: Api, fruit: str) -> None:
    """On the first page, where it is the only one, both are the number of items."""
    for count in ("exact", "estimated"):
        answer = await api("GET", f"/items?prefix={fruit}&data.price=eq.2&count={count}")
        assert 2 == answer.json["count"]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("name=eq.pear", "data.price=gte.10"),
        ("version=eq.1", "data.price=gte.10"),
        ("data=eq.1", "data.price=gte.10"),
        ("data.=eq.1", "path"),
        ("data.a=1", "operators eq, neq"),
        ("data.a=like.x", "contains"),
        ("id=exists.true", "prefix"),
        ("created_at=gt.1970-01-01T00:00:00+01:00", "%2B"),
        ("data.a=in.()", "1 to 100"),
        ("data.a=eq.%00", "u0000"),
        ("data.a=eq.%ED%A0%80", "UTF-8"),
        ("data.a%00=eq.1", "NUL"),
        ("data.a'=eq.[;", "JSON"),
        ("data.a=eq." + "x" * 501, "500"),
        ("&".join(["data.a=eq.1"] * 21), "at most 20"),
        ("&".join(["data.a=eq.1"] * 31), "too long"),
        ("order=data.", "path"),
        ("order=data", "data.price"),
        ("fields=", "field"),
        ("fields=name", "data.<path>"),
        ("fields=id&fields=id", "twice"),
        ("count=planned", "estimated"),
    ],
)
async def test_a_wrong_query_is_refused(api: Api, query: str, word: str) -> None:
    """400, and the answer says what there is."""
    answer = await api("GET", f"/items?{query}")
    assert word in answer.is_problem(400, "invalid_parameter")["detail"]


async def test_a_cursor_belongs_to_its_filters(api: Api, fruit: str) -> None:
    """With other filters, fields or another order it is refused; written otherwise it goes on."""
    query = f"prefix={fruit}&order=data.price&data.price=gte.1&data.price=lte.10"
    cursor = (await api("GET", f"/items?{query}&limit=1")).json["next"]
    for other in (
        query.replace("gte.1", "gte.2"),
        query.replace("order=", "order=-"),
        query + "&fields=id",
        query + "&id=neq.a",
        f"prefix={fruit}",
    ):
        answer = await api("GET", f"/items?{other}&cursor={cursor}")
        answer.is_problem(400, "invalid_cursor")
    turned = f"prefix={fruit}&data.price=lte.10&data.price=gte.1&order=data.price"
    assert "db" == ids(await api("GET", f"/items?{turned}&cursor={cursor}"), fruit)


async def test_hints_are_headers(
    service: Service, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line a command; they are ASCII whatever the fields are called."""
    commands = ("itemstore index create data.a", "itemstore index create 'data.\"b\\n\"'")

    async def page(asked: Any, *, hints: bool) -> Page:
        return Page([], None, hints=commands if hints else ())

    monkeypatch.setattr(service.store._lister, "page", page)
    answer = await api("GET", "/items?data.a=eq.1")
    assert list(commands) == answer.headers.getall("Itemstore-Hint")


async def test_a_query_too_slow_is_422(
    service: Service, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to do, and does not ask for a repetition."""

    async def page(asked: Any, *, hints: bool) -> Page:
        raise QueryTooSlow("PostgreSQL was given 10 s.")

    monkeypatch.setattr(service.store._lister, "page", page)
    (await api("GET", "/items?data.a=eq.1")).is_problem(422, "query_too_slow")


async def test_no_query_is_a_mistake_of_the_server(api: Api, fruit: str) -> None:
    """Fields and values that would break out of a statement find nothing, or what they say."""
    odd = [
        "'",
        "''",
        '"',
        "\\",
        "\\'",
        "%",
        "%s",
        "%(p0)s",
        "%%",
        "$1",
        ";--",
        "{",
        "}",
        "{}",
        ",",
        "é",
    ]
    await make(api, f"{fruit}odd", {each: each for each in odd})
    for key in odd:
        field = "data." + orjson.dumps(key).decode()
        value = orjson.dumps(key).decode()
        for condition in (f"eq.{value}", f"in.({value})", f"prefix.{value}", f"contains.{value}"):
            for order in ("id", field, f"-{field}"):
                answer = await api(
                    "GET",
                    f"/items?prefix={fruit}&{quote(field)}={quote(condition)}&order={quote(order)}"
                    f"&fields=id,{quote(field)}&count=exact",
                )
                assert [{"id": f"{fruit}odd", "data": {key: key}}] == answer.json["items"]
