"""Indexes over fields of data: made, used by the planner for every operator, listed, dropped."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
import pytest

from itemstore.core import listing
from itemstore.core.index import KINDS, indexes_for, parse_index
from itemstore.core.item import ID_MAX_BYTES
from itemstore.storage import StorageBroken, StorageRefused, indexing, statements
from itemstore.storage.postgres import schema_sql
from tests.sql import Holder, query
from tests.storage.test_postgres import upsert

MANY: Final = 20_000  # rows: enough that reading them all costs more than an index does
FILL: Final = f"""
INSERT INTO items SELECT 'i' || n,
    json_build_object('n', n, 't', 'text ' || n, 'tags', json_build_array('tag ' || n, 'all'),
                      'flag', CASE WHEN n % 1000 = 0 THEN 'true'::json ELSE 'null'::json END,
                      'mixed', CASE WHEN n % 2 = 0 THEN to_json(n) ELSE to_json('t' || n) END,
                      'deep', json_build_object('it''s', n), 'pad', repeat('x', 100)),
    n, timestamptz 'epoch' + n * interval '1 second', timestamptz 'epoch'
  FROM generate_series(1, {MANY}) AS n;
UPDATE items SET data = '{{}}', version = version + {MANY} WHERE id = 'i77';
ANALYZE items
"""


async def opened(dsn: str) -> Holder:
    storage = Holder(dsn)
    await storage.open()
    return storage


def silent(percent: int) -> None:
    """Nobody watches."""


def plan(dsn: str, statement: tuple[str, Any]) -> str:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(f"EXPLAIN {statement[0]}".encode(), statement[1]).fetchall()
    return "\n".join(line for (line,) in rows)


#: Filters that leave few items, all by an index of the field.
SELECTIVE: Final = (
    ("data.n", "eq.7"),
    ("data.n", "in.(1,2,3.0)"),
    ("data.n", "lt.20"),
    ("data.n", "lte.20"),
    ("data.n", f"gt.{MANY - 20}"),
    ("data.n", f"gte.{MANY - 20}"),
    ("data.n", "exists.false"),
    ("data.t", "eq.text 7"),
    ("data.t", "in.(text 7,text 8)"),
    ("data.t", "lt.text 10"),
    ("data.t", "gt.text 9999"),
    ("data.t", "prefix.text 123"),
    ("data.flag", "eq.true"),
    ("data.mixed", "eq.10"),
    ("data.mixed", "eq.t11"),
    ("data.mixed", "in.(10,t11)"),
    ('data.deep."it\'s"', "eq.9"),
    ("data.tags", 'contains.["tag 7"]'),
    ("data.tags", "contains.tag 7"),
    ("data.tags", 'eq.["tag 7","all"]'),
)


async def test_every_operator_uses_its_index(each_dsn: str) -> None:
    """With the index that its hint names, no selective filter reads all items, nor any order."""
    await (await opened(each_dsn)).close()
    query(each_dsn, FILL)
    asked = {each: listing.understand(filters=dict([each]), order="id").query for each in SELECTIVE}
    orders = [
        listing.understand(order=order, cursor=cursor).query
        for order in ("data.n", "-data.n", "data.t", "-data.t")
        for cursor in (None, cursor_at(order))
    ]
    for each in asked.values():
        assert "Seq Scan on items" in plan(each_dsn, statements.count(each))
    wanted = {
        index
        for each in [*asked.values(), *orders]
        for index in indexes_for(each.filters, each.order)
    }
    for index in wanted:
        assert await indexing.create(each_dsn, index, silent)

    for name, each in asked.items():
        [index] = indexes_for(each.filters, each.order)
        for statement in (statements.count(each), statements.page(each)):
            found = plan(each_dsn, statement)
            assert re.search(rf"(using|on) {index.name}\b", found), (name, found)
    for each in orders:
        [index] = indexes_for(each.filters, each.order)
        found = plan(each_dsn, statements.page(each))
        assert f"using {index.name}" in found, found
        assert "Sort" not in found, found
    listed = await indexing.find(each_dsn)
    assert {index.name for index in wanted} == {each.name for each in listed}
    assert all(each.is_valid and each.size > 0 and each.building is None for each in listed)


def cursor_at(order: str) -> str:
    """Of a list in this order, somewhere in the middle."""
    asked = listing.understand(limit=1, order=order)
    row = ("i5000", upsert("i5000", 5000, b'{"n":5000,"t":"text 5000"}').entry)
    cursor = listing.page(asked, [row, row], None).next
    assert cursor is not None
    return cursor


async def test_the_longest_key_fits_in_an_index(dsn: str) -> None:
    """No text and no number is too large for the index: no write ever fails because of one."""
    storage = await opened(dsn)
    await indexing.create(dsn, parse_index("data.a", "value"), silent)
    await indexing.create(dsn, parse_index("data.a", "json"), silent)
    texts = [
        "".join(chr(0x10000 + (n * 7919 + m * 104729) % 0xFFFFF) for m in range(2000))
        for n in (1, 2)
    ]
    values = [*(f'"{text}"' for text in texts), "5e-324", "1.7976931348623157e+308", "9" * 18]
    values.append("[" + ",".join(f'"{n} {texts[0][:100]}"' for n in range(2_000)) + "]")
    ids = [chr(ord("a") + n) + "\U0001f600" * 127 + "abc" for n, _ in enumerate(values)]
    assert {len(each.encode()) for each in ids} == {ID_MAX_BYTES}
    await storage.write(
        [upsert(i, 1, b'{"a":%b}' % v.encode()) for i, v in zip(ids, values, strict=True)]
    )
    rows, _ = await storage.select(listing.understand(order="data.a").query)
    await storage.close()
    assert len(values) == len(rows)


MADE_FOR: Final = r"""data."it's"."gr\u00f6\u00dfe" value"""


async def test_an_index_is_made_once(dsn: str) -> None:
    """Made again it is left as it is; dropped, it is gone, and nothing else can be dropped."""
    await (await opened(dsn)).close()
    index = parse_index('data."it\'s".größe', "value")
    assert await indexing.create(dsn, index, silent)
    assert not await indexing.create(dsn, index, silent)
    [found] = await indexing.find(dsn)
    assert (found.name, found.made_for) == (index.name, MADE_FOR)
    query(dsn, schema_sql())
    assert [index.name] == [each.name for each in await indexing.find(dsn)]
    assert not await indexing.drop(dsn, "items_version")
    assert await indexing.drop(dsn, index.name)
    assert [] == await indexing.find(dsn)


async def test_what_a_failed_build_left_is_made_anew(dsn: str) -> None:
    """An invalid index serves nothing, is shown as such, and is replaced."""
    storage = await opened(dsn)
    index = parse_index("data.a", "value")
    query(dsn, r"""INSERT INTO items VALUES ('odd', '{"a":"\u0000"}', 1, now(), now())""")
    with pytest.raises(StorageRefused, match="22P05"):
        await indexing.create(dsn, index, silent)
    [found] = await indexing.find(dsn)
    assert not found.is_valid
    asked = listing.understand(filters={"data.a": "eq.1"}).query
    missing, _ = await storage.unserved(asked)
    assert [index] == list(missing)
    query(dsn, "DELETE FROM items WHERE id = 'odd'")
    assert await indexing.create(dsn, index, silent)
    [found] = await indexing.find(dsn)
    assert found.is_valid
    missing, _ = await storage.unserved(asked)
    assert [] == list(missing)
    await storage.close()


async def test_a_database_that_is_not_there_is_told(dsn: str) -> None:
    """No table and no server are errors in words."""
    with pytest.raises(StorageBroken, match="items"):
        await indexing.create(dsn, parse_index("data.a", "value"), silent)


def test_names_differ() -> None:
    """Each field and kind has a name of its own, readable and short enough."""
    fields = ["data.a.b", 'data."a.b"', "data.A.B", "data.ä", "data.ö", "data." + "x" * 400]
    fields.append("data." + "x" * 401)
    names = [parse_index(field, kind).name for field in fields for kind in KINDS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"items_by_[a-z0-9_]{1,54}", name) for name in names)
