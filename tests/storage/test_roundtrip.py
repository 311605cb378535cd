"""Whatever the validator accepts PostgreSQL accepts, and gives back byte for byte."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from itemstore.core.cache import Row
from itemstore.core.data import encode_parsed, loads
from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.errors import InvalidInput
from itemstore.storage import ListQuery
from tests.sql import Holder, loaded
from tests.strategies import ANY_NUMBERS, IDS, TEXT, json_objects
from tests.walking import items

#: Many documents in one batch: a database trip costs more than drawing them.
BATCHES = st.dictionaries(
    IDS,
    st.one_of(json_objects(), json_objects(numbers=ANY_NUMBERS, texts=TEXT, depth_max=70)),
    min_size=8,
    max_size=16,
)
VERSIONS = count(1_000)


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[Holder]:
    """The storage over the newest server, open and empty."""
    storage = Holder(dsn)
    await storage.open()
    yield storage
    await storage.close()


def accepted(documents: dict[str, bytes]) -> list[Change]:
    """The upserts of those documents that the validator lets in."""
    changes = []
    for item_id, raw in documents.items():
        try:
            data = encode_parsed(loads(raw))
        except InvalidInput:
            event("refused")
            continue
        event("accepted")
        version = next(VERSIONS)
        entry = pack(version, version, data)
        changes.append(Change(item_id, version, entry, deleted=False, now_s=0.0))
    return sorted(changes, key=lambda change: change.id)


async def everything(storage: Holder) -> list[Row]:
    """All items, by pages."""
    return await items(storage)


@settings(
    max_examples=40,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # shrinking would ask the server for hours
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # the table goes on from example to example
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(documents=BATCHES)
async def test_what_is_accepted_comes_back_byte_for_byte(
    db: Holder, documents: dict[str, bytes]
) -> None:
    """Every id and every JSON text that the validator lets in is stored and read unchanged."""
    changes = accepted(documents)
    await db.write(changes)  # 2
    expected = [(change.id, change.entry) for change in changes]
    ids = [change.id for change in changes]
    assert sorted(await loaded(db, ids)) == expected  # 8
    assert [row for row in await everything(db) if row[0] in set(ids)] == expected  # 8
    latest = ListQuery(len(changes), 10**9, "updated", descending=True)
    rows, _ = await db.select(latest)
    assert sorted(rows) == expected  # 8


#: Refused texts, and who could not keep them: PostgreSQL, as json, as jsonb (which filters are
#: evaluated in) or as a size; or orjson, which would answer something else or nothing.
REFUSED = {
    "a NUL": (rb'{"a":"\u0000"}', "jsonb"),
    "a NUL in a key": (rb'{"a\u0000":1}', "jsonb"),
    "a lone surrogate": (rb'{"a":"\ud800"}', "jsonb"),
    "a surrogate out of order": (rb'{"a":"\udc00\ud800"}', "jsonb"),
    "invalid UTF-8": (b'{"a":"\xff"}', "json"),
    "a surrogate as UTF-8": (b'{"a":"\xed\xa0\x80"}', "json"),
    "a raw NUL": (b'{"a":"\x00"}', "json"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "json"),
    "a raw newline": (b'{"a":"\n"}', "json"),
    "NaN": (b'{"a":NaN}', "json"),
    "Infinity": (b'{"a":Infinity}', "json"),
    "a truncated object": (b'{"a":1', "json"),
    "a leading zero": (b'{"a":01}', "json"),
    "a comma too many": (b'{"a":1,}', "json"),
    "nothing": (b"", "json"),
    "2^64": (b'{"a":18446744073709551616}', "orjson"),
    "-2^63 - 1": (b'{"a":-9223372036854775809}', "orjson"),
    "a float that is rounded": (b'{"a":0.1234567890123456789}', "orjson"),
    "2^53 + 1 as a float": (b'{"a":9007199254740993.0}', "orjson"),
    "less than the least double": (b'{"a":4e-324}', "orjson"),
    "next to nothing": (b'{"a":1e-400}', "orjson"),
    "more than the greatest double": (b'{"a":1e400}', "orjson"),
    "far more": (b'{"a":1e99999999999999999999}', "orjson"),
    "255 levels": (b'{"a":' * 255 + b"1" + b"}" * 255, "orjson"),
    "1,025 levels": (b'{"a":' * 1025 + b"1" + b"}" * 1025, "orjson"),
    "100,000 levels": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "json"),
}


@pytest.mark.parametrize(("raw", "keeper"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_could_not_be_kept(dsn: str, raw: bytes, keeper: str) -> None:
    """The validator refuses nothing that PostgreSQL and orjson would both have kept."""
    with pytest.raises(InvalidInput):
        encode_parsed(loads(raw))
    if keeper == "orjson":
        assert not orjson_keeps(raw)
    else:
        assert not postgresql_takes(dsn, raw, keeper)


def orjson_keeps(raw: bytes) -> bool:
    """Whether reading and writing leaves every number as it is."""
    try:
        text = orjson.dumps(orjson.loads(raw))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False
    return bool(_numbers_as_text(text) == _numbers_as_text(raw))


def _numbers_as_text(text: bytes) -> Any:
    return json.loads(text, parse_int=str, parse_float=str)


def postgresql_takes(dsn: str, raw: bytes, kind: str) -> bool:
    try:
        with psycopg.connect(dsn) as connection:
            connection.execute(
                f"SELECT %s::{kind}".encode(), [raw.decode(errors="surrogateescape")]
            )
    except (psycopg.Error, UnicodeError):
        return False
    return True
