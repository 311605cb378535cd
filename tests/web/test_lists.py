"""Lists: orders, pages, cursors, and what they promise while writes go on."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final
from urllib.parse import quote

import pytest
import pytest_asyncio

from itemstore.core.listing import LIMIT_DEFAULT, LIMIT_MAX, ORDERS
from tests.web.conftest import Api, Gate, count_of, make, path, run_batch

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def walk(api: Api, target: str) -> list[dict[str, Any]]:
    """All items from here to the end, by the Link header; its target is what ``next`` says."""
    items: list[dict[str, Any]] = []
    while True:
        answer = await api("GET", target)
        assert answer.status == 200
        items += answer.json["items"]
        if answer.json["next"] is None:
            assert "Link" not in answer.headers
            return items
        link = re.fullmatch('<(.+)>; rel="next"', answer.headers["Link"])
        assert link is not None
        target = link[1]
        assert f"cursor={answer.json['next']}" in target
        assert answer.json["items"]


@pytest_asyncio.fixture(loop_scope="module")
async def seven(api: Api, name: str) -> list[dict[str, Any]]:
    """Seven items whose order by creation, by change and by id all differ."""
    for letter in "gbdface":
        await make(api, name + letter)
    for letter in "dga":
        await make(api, name + letter, {"n": 2})
    return [(await api("GET", path(name + letter))).json for letter in "abcdefg"]


KEYS: Final = {"created": "created_at", "updated": "version", "id": "id"}


@pytest.mark.parametrize("order", ORDERS)
async def test_a_list_is_followed_to_its_end(
    api: Api, name: str, seven: list[dict[str, Any]], order: str
) -> None:
    """In each order and at each size, the pages together are all items once, in that order."""
    key = KEYS[order.removeprefix("-")]
    expected = sorted(seven, key=lambda item: item[key], reverse=order.startswith("-"))

    for limit in (1, 2, 3, 6, 7, 8):
        items = await walk(api, f"/items?order={order}&prefix={name}&limit={limit}")
        assert items == expected


async def test_a_list_without_parameters_is_all_items_by_creation(
    api: Api, seven: list[dict[str, Any]]
) -> None:
    """The whole list has every item once, oldest first, a hundred a page."""
    first = await api("GET", "/items")
    items = await walk(api, "/items")

    assert len(first.json["items"]) == min(LIMIT_DEFAULT, len(items))
    assert [item["created_at"] for item in items] == sorted(item["created_at"] for item in items)
    ids = [item["id"] for item in items]
    assert len(ids) == len(set(ids)) == await count_of(api, "")
    assert all(item in items for item in seven)


async def test_an_empty_list(api: Api, name: str) -> None:
    """A list of nothing is 200 with no items, and no next page."""
    answer = await api("GET", f"/items?prefix={name}&count=exact")

    assert answer.json == {"items": [], "next": None, "count": 0}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_count_is_told_when_asked_for(
    api: Api, name: str, seven: list[dict[str, Any]]
) -> None:
    """count=exact adds the number of all items that match, on each page; count=none does not."""
    answer = await api("GET", f"/items?prefix={name}&limit=2&count=exact")
    following = await api("GET", answer.headers["Link"][1:].partition(">")[0])

    assert list(answer.json) == ["items", "next", "count"]
    assert answer.json["count"] == following.json["count"] == len(seven)
    for target in (f"/items?prefix={name}&count=none", f"/items?prefix={name}"):
        assert list((await api("GET", target)).json) == ["items", "next"]


async def test_the_largest_page(api: Api, name: str) -> None:
    """A page of the largest limit holds as many items."""
    operations = [{"op": "put", "id": f"{name}{n:04}", "data": {}} for n in range(LIMIT_MAX)]
    await run_batch(api, *operations)
    await make(api, f"{name}more")

    answer = await api("GET", f"/items?prefix={name}&limit={LIMIT_MAX}&order=id")

    assert len(answer.json["items"]) == LIMIT_MAX
    assert len(await walk(api, f"/items?prefix={name}&limit={LIMIT_MAX}")) == LIMIT_MAX + 1


async def test_large_items_make_short_pages(api: Api, name: str) -> None:
    """A page ends with the item that passes 8 MiB, and the next one goes on after it."""
    for number in range(11):
        await make(api, f"{name}{number:02}", {"a": "x" * 1_000_000})

    answer = await api("GET", f"/items?prefix={name}&order=id")
    items = await walk(api, f"/items?prefix={name}&order=id")

    assert len(answer.json["items"]) == 9
    assert [item["id"] for item in items] == [f"{name}{number:02}" for number in range(11)]


ODD_PREFIXES: Final = [
    *("a b", "a+b", "a%2Bb", "a&b=c", "a;b", "a?b#c", "é", "😀", '"<>', "'", "%", "\\", "/", "."),
    *("_", "%%", "a%", "__"),  # what LIKE would take for a pattern
]


@pytest.mark.parametrize("prefix", ODD_PREFIXES)
async def test_any_prefix_is_followed_to_its_end(api: Api, name: str, prefix: str) -> None:
    """The prefix in Link means the same as in the first request, whatever characters it has."""
    begin = name + prefix
    for letter in "abc":
        await make(api, begin + letter)
    await make(api, name + "zz")

    items = await walk(api, f"/items?prefix={quote(begin, safe='')}&limit=1&order=-id")

    assert [item["id"] for item in items] == [begin + letter for letter in "cba"]


async def test_a_list_holds_every_write_accepted_before_it(
    api: Api, name: str, held_writes: Gate
) -> None:
    """A list waits until writes acknowledged at memory are committed, so that it has them."""
    await make(api, f"{name}old", durability="memory")
    await make(api, f"{name}new", durability="memory")
    await api("DELETE", path(f"{name}old"), durability="memory")
    listing = asyncio.create_task(api("GET", f"/items?prefix={name}&count=exact"))
    await held_writes.reached.wait()
    await api("GET", path(name))  # the loop turns
    assert not listing.done()
    held_writes.open.set()

    answer = await listing
    assert [item["id"] for item in answer.json["items"]] == [f"{name}new"]
    assert answer.json["count"] == 1


async def test_an_unchanged_item_is_seen_once_while_others_come_and_go(api: Api, name: str) -> None:
    """Writes before the cursor's place change nothing after it, in an order that never changes."""
    for letter in "bdfh":
        await make(api, name + letter)
    first = await api("GET", f"/items?prefix={name}&limit=2&order=id")

    await make(api, f"{name}a")
    await api("DELETE", path(f"{name}d"))
    await make(api, f"{name}g")
    rest = await walk(api, first.headers["Link"][1:].partition(">")[0])

    assert [item["id"] for item in first.json["items"]] == [f"{name}b", f"{name}d"]
    assert [item["id"] for item in rest] == [f"{name}f", f"{name}g", f"{name}h"]


@pytest.mark.parametrize(
    ("query", "code", "word"),
    [
        *((f"limit={n}", "invalid_parameter", "limit") for n in (0, 1001, -1, "+1", "1e2", "1.0")),
        *((f"limit={n}", "invalid_parameter", "limit") for n in ("", "x", "%D9%A3", "9" * 400)),
        ("limit=%2010", "invalid_parameter", "limit"),
        ("limit", "invalid_parameter", "limit"),
        ("order=", "invalid_parameter", "order"),
        ("order=name", "invalid_parameter", "order"),
        ("order=Created", "invalid_parameter", "order"),
        ("order=--id", "invalid_parameter", "order"),
        ("order=+id", "invalid_parameter", "order"),
        ("count=", "invalid_parameter", "count"),
        ("count=true", "invalid_parameter", "count"),
        ("count=1", "invalid_parameter", "count"),
        ("prefix=%00", "invalid_parameter", "prefix"),
        ("prefix=a%0A", "invalid_parameter", "prefix"),
        ("prefix=" + "a" * 513, "invalid_parameter", "prefix"),
        ("cursor=", "invalid_cursor", "cursor"),
        ("cursor=x", "invalid_cursor", "cursor"),
        ("cursor=W10", "invalid_cursor", "cursor"),
        ("cursor=e30", "invalid_cursor", "cursor"),
        ("cursor=%00", "invalid_cursor", "cursor"),
        ("cursor=%C3%A9", "invalid_cursor", "cursor"),
        ("cursor=" + "A" * 7000, "invalid_cursor", "cursor"),
        ("prefix=%FF", "invalid_parameter", "UTF-8"),
        ("%FF=1", "invalid_parameter", "UTF-8"),
        ("limit=1&" * 30, "invalid_parameter", "too long"),
        ("q=1", "invalid_parameter", "limit"),
        ("Limit=1", "invalid_parameter", "limit"),
        ("limit=1&limit=1", "invalid_parameter", "twice"),
        ("limit=1&prefix=a&limit=2", "invalid_parameter", "twice"),
        ("limit=1;prefix=a", "invalid_parameter", "limit"),
        ("=", "invalid_parameter", "unknown"),
    ],
)
async def test_a_wrong_list_parameter_is_refused(
    api: Api, query: str, code: str, word: str
) -> None:
    """A parameter or a value the list does not know is 400 and named."""
    answer = await api("GET", f"/items?{query}")

    problem = answer.is_problem(400, code)
    assert word in problem["detail"]
    assert "pointer" not in problem


async def test_a_cursor_belongs_to_its_list(api: Api, name: str, seven: Any) -> None:
    """A cursor with another order or prefix is 400; with another limit it goes on."""
    first = await api("GET", f"/items?prefix={name}&order=id&limit=2")
    cursor = first.json["next"]

    for query in (f"prefix={name}", f"prefix={name}&order=-id", "order=id", f"prefix={name}a"):
        answer = await api("GET", f"/items?{query}&cursor={cursor}")
        assert "order or prefix" in answer.is_problem(400, "invalid_cursor")["detail"]
    answer = await api("GET", f"/items?prefix={name}&order=id&limit=5&cursor={cursor}")
    assert [item["id"] for item in answer.json["items"]] == [name + each for each in "cdefg"]


async def test_a_cursor_that_was_changed_is_never_a_mistake_of_the_server(
    api: Api, name: str, seven: Any
) -> None:
    """A cursor with one character changed is 400, or leads to another place of the same list."""
    cursor = (await api("GET", f"/items?prefix={name}&limit=2")).json["next"]
    for position in range(len(cursor)):
        for character in "A_9":
            changed = cursor[:position] + character + cursor[position + 1 :]

            answer = await api("GET", f"/items?prefix={name}&cursor={changed}")

            if answer.status == 200:
                assert all(item in seven for item in answer.json["items"])
            else:
                answer.is_problem(400, "invalid_cursor")
