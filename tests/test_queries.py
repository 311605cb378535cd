"""Lists with filters, orders and fields over PostgreSQL are what plain Python says they are."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemstore.core import listing
from itemstore.core.data import encode_parsed, loads
from itemstore.core.field import Field
from itemstore.core.index import parse_index
from itemstore.core.item import Item
from itemstore.core.listing import ORDERS, Page
from itemstore.core.query import Filters
from itemstore.errors import InvalidParameter, QueryTooSlow
from itemstore.storage import indexing
from itemstore.store import ItemStore
from tests import oracle
from tests.sql import make_database
from tests.sql import query as sql
from tests.strategies import EXACT_NUMBERS, json_objects

#: Few of each, so that much is equal, and of all that is odd.
NUMBERS: Final = (
    *("0", "-0.0", "1", "1.0", "1e2", "100", "-1.5", "0.1", "5e-324", "1.7976931348623157e+308"),
    *("9223372036854775807", "9.223372036854776e18", "12345678901234567"),
)
BIG: Final = ("1e400", "-1e400", "1e-400", "0.1000000000000000000001", "9223372036854775808")
TEXTS: Final = (
    *("", "a", "A", "ab", "é", "z", "\ud7ff", "\ue000", "\U0001f600", "10", "true", "%", "a'b"),
    *('a"b', "a\\b", "a,b", "(a)", "\x01\x7f", "\\u0000", "x" * 500, "x" * 501, "x" * 502),
)
KEYS: Final = ("a", "b", "a.b", "", "0", "1", "-1", "é", "x'y", 'q"q', "back\\slash", "%s", "{}")

numbers = st.sampled_from(NUMBERS)
texts = st.sampled_from(TEXTS)
spelled_texts = texts.map(json.dumps)
scalars = st.one_of(st.sampled_from(["null", "true", "false"]), numbers, spelled_texts)


def _array(elements: list[str]) -> str:
    return f"[{','.join(elements)}]"


def _object(members: dict[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in members.items()) + "}"


values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(_array)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3).map(_object)
    ),
    max_leaves=6,
)
#: Mostly under the same keys, or no filter would ever meet a value.
data = st.tuples(
    st.fixed_dictionaries({}, optional={"a": values, "b": scalars}),
    st.dictionaries(st.sampled_from(KEYS), values, max_size=2),
).map(lambda drawn: _object({**drawn[1], **drawn[0]}))

EXAMPLES: Final = 100

paths = st.one_of(
    st.sampled_from([("a",), ("b",), ("a", "a"), ("a", "0"), ("missing",)]),
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=3).map(tuple),
)
fields = paths.map(lambda path: str(Field("data", path)))


def _unspelled(text: str) -> str:
    """As a person would write it, where that is possible."""
    is_odd = not text or text[0] in "[{" or set(text) & {",", '"'}
    return json.dumps(text) if is_odd else text


asked_scalars = st.one_of(
    scalars, st.sampled_from(BIG), texts.filter(lambda text: len(text) <= 500).map(_unspelled)
).filter(lambda text: len(text) <= 500)
asked_values = st.one_of(asked_scalars, values.filter(lambda text: len(text) <= 500))
comparable = st.one_of(
    numbers, st.sampled_from(BIG), texts.filter(lambda t: len(t) <= 500).map(json.dumps)
)
conditions = st.one_of(
    st.tuples(st.sampled_from(["eq", "neq", "contains"]), asked_values).map(".".join),
    st.tuples(st.sampled_from(["lt", "lte", "gt", "gte"]), comparable).map(".".join),
    st.lists(asked_scalars.map(lambda v: v if "," not in v or v[0] == '"' else '"x"'), min_size=1)
    .filter(lambda some: len(some) <= 5)
    .map(lambda some: f"in.({','.join(some)})"),
    st.sampled_from(["exists.true", "exists.false"]),
    texts.filter(lambda text: len(text) <= 500).map(lambda text: f"prefix.{json.dumps(text)}"),
)
TIMES: Final = ["2020-01-01", "2035-01-01", "2026-11-01T12:00:00.000001Z", "9999-12-31T00:00:00Z"]
built_in = st.one_of(
    st.tuples(
        st.sampled_from(["created_at", "updated_at"]),
        st.tuples(st.sampled_from(["lt", "gte", "neq"]), st.sampled_from(TIMES)).map(".".join),
    ),
    st.tuples(
        st.just("id"), st.sampled_from(["prefix.i1", "gt.i2", "neq.i3", "in.(i4,i5,i10)", "lte.i4"])
    ),
)
filters = st.lists(st.one_of(st.tuples(fields, conditions), built_in), max_size=3)
orders = st.one_of(
    st.sampled_from(ORDERS), st.tuples(st.sampled_from(["", "-"]), fields).map("".join)
)


def grouped(pairs: list[tuple[str, str]]) -> Filters:
    """As ``list`` takes them."""
    return {name: [each for other, each in pairs if other == name] for name, _ in pairs}


def expected(items: list[Item], order: str, asked: Filters) -> list[str]:
    query = listing.understand(order=order, filters=asked).query
    return [item_id for item_id, _ in oracle.selected([(i.id, i.entry) for i in items], query)]


async def walked(store: ItemStore, limit: int, **asked: Any) -> list[Page]:
    """All pages, to the end."""
    pages = [await store.list(limit=limit, **asked)]
    while pages[-1].next is not None:
        pages.append(await store.list(limit=limit, cursor=pages[-1].next, **asked))
    return pages


async def fill(store: ItemStore, texts: list[str]) -> list[Item]:
    """These items and no others."""
    for item in (await store.list(limit=1_000)).items:
        await store.delete(item.id, durability="memory")
    return [
        await store.put(f"i{number}", json.loads(text), durability="memory")
        for number, text in enumerate(texts)
    ]


async def test_a_list_is_what_plain_python_says(store: ItemStore) -> None:
    """Any filters and any order over any items give the oracle's list, page by page, and count."""
    loop = asyncio.get_running_loop()

    async def compare(
        texts: list[str], queries: list[tuple[list[tuple[str, str]], str, int]]
    ) -> None:
        items = await fill(store, texts)
        for pairs, order, limit in queries:
            asked = grouped(pairs)
            pages = await walked(store, limit, order=order, filters=asked, count="exact")
            found = [item.id for page in pages for item in page.items]
            assert expected(items, order, asked) == found
            assert {page.count for page in pages} == {len(found)}
            assert all(len(page.items) <= limit for page in pages)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(
        st.lists(data, max_size=15),
        st.lists(st.tuples(filters, orders, st.integers(1, 4)), min_size=4, max_size=4),
    )
    def check(texts: list[str], queries: list[tuple[list[tuple[str, str]], str, int]]) -> None:
        asyncio.run_coroutine_threadsafe(compare(texts, queries), loop).result()

    await asyncio.to_thread(check)


async def test_an_order_by_a_field_goes_through_all_types(store: ItemStore) -> None:
    """Page by page, both ways: numbers, texts, false, true, null, the rest, missing; and by id."""
    spelled = [*NUMBERS, *map(json.dumps, TEXTS), "false", "true", "null", "[]", "{}", "[1]"]
    items = await fill(store, [_object({"a": value}) for value in [*spelled, *spelled]] + ["{}"])
    for order in ("data.a", "-data.a"):
        pages = await walked(store, 1, order=order)
        assert expected(items, order, {}) == [item.id for page in pages for item in page.items]


async def test_texts_are_compared_by_bytes_whatever_the_database_does(
    server: Callable[[int], str],
) -> None:
    """In a database that sorts as people do, too."""
    dsn = make_database(server(15), "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'")
    async with ItemStore.open(dsn) as store:
        texts = ["Z", "b", "z", "é"]
        items = await fill(store, [_object({"a": json.dumps(text)}) for text in reversed(texts)])
        assert texts == [item.data["a"] for item in (await store.list(order="data.a")).items]
        for condition in ("gt.Z", "lt.z", "prefix.z", "gte.é"):
            found = (await store.list(filters={"data.a": condition})).items
            assert expected(items, "created", {"data.a": condition}) == [item.id for item in found]


# --- a walk while others write


@pytest.mark.parametrize("order", ["created", "-created", "id", "-id"])
async def test_an_item_that_stays_is_seen_exactly_once(store: ItemStore, order: str) -> None:
    """With a filter on what does not change, whatever is created, changed or deleted meanwhile."""

    async def check(seed: int) -> None:
        chance = random.Random(seed)
        stays = {f"{chance.randrange(10**6):06}" for _ in range(30)}
        for item_id in sorted(stays, key=lambda _: chance.random()):
            await store.put(item_id, {"kind": "stays", "n": 0}, durability="memory")
            await store.put(f"{item_id}-", {"kind": "other"}, durability="memory")
        seen: list[str] = []
        cursor = None
        while True:
            page = await store.list(
                limit=chance.randint(1, 7),
                order=order,
                cursor=cursor,
                filters={"data.kind": "in.(stays,comes)"},
            )
            seen += [item.id for item in page.items]
            if (cursor := page.next) is None:
                break
            await disturb(chance, sorted(stays))
        assert sorted(stays) == sorted(each for each in seen if each in stays), seed
        assert len(seen) == len(set(seen)), seed
        assert not any(each.endswith("-") for each in seen), seed

    async def disturb(chance: random.Random, stays: list[str]) -> None:
        for _ in range(8):
            item_id = chance.choice(stays)
            match chance.randrange(4):
                case 0:
                    await store.patch(
                        item_id, {"n": chance.random(), "pad": "x" * chance.randrange(2_000)}
                    )
                case 1:
                    come = f"come {chance.random()}"
                    await store.put(come, {"kind": "comes"}, durability="memory")
                case 2:
                    await store.put(f"{item_id}-", {"kind": "other"}, durability="memory")
                case _:
                    gone = await store.list(limit=1, prefix="come", order="id")
                    for item in gone.items:
                        await store.delete(item.id)

    for _ in range(3):
        await fill(store, [])
        await check(random.randrange(2**32))


# --- what cannot be read, what takes too long, what would help

ODD: Final = {
    "a NUL": r'{"a":"\u0000","n":1}',
    "a lone surrogate": r'{"a":"\ud800","n":1}',
    "a huge number": '{"a":1e200000,"n":1}',
    "a tiny number": '{"a":1e-20000,"n":1}',
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
async def test_an_odd_item_makes_no_list_fail(
    dsn: str, open_store: Callable[..., Any], text: str
) -> None:
    """What another hand stored, and jsonb cannot hold, matches no filter; the others do."""
    store: ItemStore = await open_store()
    await store.put("good", {"a": "text", "n": 1})
    sql(dsn, "INSERT INTO items VALUES ('odd', %s, 1, now(), now())", text)
    assert {"good", "odd"} == {item.id for item in (await store.list()).items}
    for filters in ({"data.a": "neq.1"}, {"data.a": 'contains."text"'}, {"data.a": "exists.true"}):
        page = await store.list(filters=filters, order="data.a", count="exact")
        assert (["good"], 1) == ([item.id for item in page.items], page.count)


def test_what_is_accepted_can_be_filtered(dsn: str) -> None:
    """Whatever the validator accepts is good jsonb, and every number in it a good numeric."""
    with psycopg.connect(dsn, autocommit=True) as connection:

        @settings(max_examples=300, print_blob=True)
        @given(json_objects(), st.lists(EXACT_NUMBERS))
        def check(text: bytes, numbers: list[str]) -> None:
            for each in (text, b'{"a":[%b]}' % ",".join(numbers).encode()):
                accepted = encode_parsed(loads(each)).decode()
                assert connection.execute(READABLE, (accepted,)).fetchone() == (True, True)

        check()


READABLE: Final = """
SELECT data::jsonb IS NOT NULL,
       (SELECT coalesce(bool_and(each::text::numeric IS NOT NULL), true)
          FROM json_array_elements(
                   CASE json_typeof(data #> '{a}') WHEN 'array' THEN data #> '{a}' END
               ) AS elements (each)
         WHERE json_typeof(each) = 'number')
  FROM (SELECT %s::json) AS given (data)
"""


async def test_a_query_that_takes_too_long_is_ended(
    dsn: str, open_store: Callable[..., Any]
) -> None:
    """The answer says that it was not enough time, and what to do; others go on."""
    store: ItemStore = await open_store(query_timeout_s=0.001)
    sql(dsn, MANY_ITEMS)
    with pytest.raises(QueryTooSlow, match=r"0\.001 s \(QUERY_TIMEOUT\).* create data\.n"):
        await store.list(filters={"data.n": "eq.1"}, count="exact")
    assert (await store.get("i1")) is not None


MANY_ITEMS: Final = """
INSERT INTO items SELECT 'i' || n, json_build_object('n', n, 'text', repeat('x', 100)), n,
    timestamptz 'epoch' + n * interval '1 second', timestamptz 'epoch'
  FROM generate_series(1, 20000) AS n;
ANALYZE items
"""


async def test_a_missing_index_is_told(dsn: str, store: ItemStore) -> None:
    """A list that may read more than 10,000 items one by one says which index it lacks."""
    await store.put("a", {"n": 1})
    few = await store.list(filters={"data.n": "eq.1"})
    sql(dsn, MANY_ITEMS)

    async def hints(**asked: Any) -> tuple[str, ...]:
        return (await store.list(limit=1, **asked)).hints

    assert () == few.hints
    assert () == await hints(filters={"data.n": "eq.1"}), "it is remembered for a minute"
    assert ("itemstore index create data.n",) == await hints(filters={"data.n": "gt.19999"})
    assert ("itemstore index create data.n",) == await hints(order="-data.n")
    assert ("itemstore index create 'data.\"o d\"' --type json",) == await hints(
        filters={'data."o d"': "contains.1"}
    )
    for free in ({"data.n": "neq.1"}, {"id": "eq.i1", "data.n": "lt.2"}, {"id": "prefix.i1"}):
        assert () == await hints(filters=free)
    assert () == await hints(filters={"data.n": "lt.3"}, prefix="i1999")
    await indexing.create(dsn, parse_index("data.n", "value"), lambda percent: None)
    assert () == await hints(filters={"data.n": "lte.19999"})


async def test_counts_are_estimated(dsn: str, store: ItemStore) -> None:
    """An estimate is near where the planner knows the field, and exact where the page shows all."""
    sql(dsn, MANY_ITEMS)
    await indexing.create(dsn, parse_index("data.n", "value"), lambda percent: None)
    for filters, number in (({}, 20_000), ({"data.n": "lte.5000"}, 5_000)):
        count = (await store.list(filters=filters, limit=1, count="estimated")).count
        assert count is not None
        assert number * 0.8 <= count <= number * 1.2
    assert 7 == (await store.list(filters={"data.n": "lte.7"}, count="estimated")).count


# --- fields


async def test_fields_cut_items_down(store: ItemStore) -> None:
    """Only what was asked for is in the data, in the shape it has; what is missing is left out."""
    data = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None, "f.g": "x"}
    await store.put("a", data)
    await store.put("b", {"a": [1]})

    async def cut(*fields: str) -> list[dict[str, Any]]:
        return [item.data for item in (await store.list(fields=fields, order="id")).items]

    assert [{"a": {"b": 1}, "e": None}, {}] == await cut("data.e", "data.a.b")
    assert [{"a": data["a"]}, {"a": [1]}] == await cut("data.a.b", "data.a", "data.a.c")
    assert [{"a": {}, "f.g": "x"}, {}] == await cut('data."f.g"', "data.a.c.0")
    assert [data, {"a": [1]}] == await cut("data", "data.a.b")
    assert [{}, {}] == await cut("id")
    with pytest.raises(InvalidParameter):
        await cut("name")
