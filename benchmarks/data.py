"""Items to measure with: many different ones, the same again from the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import orjson
import psycopg

from benchmarks.client import Answer
from itemstore.core.ids import scramble
from itemstore.storage.postgres import schema_sql

SEED: Final = 20_240_101
SAMPLE_ITEMS_MAX: Final = 2_000  # kept to compare answers with

_FIRST_US: Final = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_STEP_US: Final = 20_000_000  # one new item every 20 s
_UPDATED_SHARE: Final = 0.25
_NOTED_SHARE: Final = 0.33
_FOREIGN_SHARE: Final = 0.08
_TEXT_WORDS: Final = 400_000  # 4 MB


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES: Final = _words(
    "amber brass copper dark early faded gentle hollow ivory jade knotted long mellow narrow old "
    "pale quiet round silver tall"
)
_NOUNS: Final = _words(
    "anchor basket candle drawer easel flask goblet hammer inkwell jar kettle lantern mirror "
    "needle oar pitcher quill ribbon saddle table"
)
_FOREIGN: Final = _words("Übertopf théière 茶碗 самовар piñata çaydanlık 🫖 żyrandol")
_KINDS: Final = _words("garden kitchen music office sport toy")
_TAGS: Final = _words("antique blue fragile gift handmade heavy import new rare sale spare used")
_UNITS: Final = _words("cm in mm")
_NOTE: Final = _words(
    "a and arrives at box by careful check damp desk dry edge for from glued handle in is it keep "
    "left lid marked needs never not of on one original packed paint repaired scratched second "
    "shelf side small still the to two under upright was with without"
)


class Row(NamedTuple):
    """One item as it lies in the table; times in microseconds since 1970."""

    id: str
    data: bytes
    version: int
    created_us: int


class WrongAnswer(Exception):
    """The server answered something else than what lies in the table."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A loaded table: its database, and what is known of its content."""

    dsn: str
    items: int
    json_bytes: int  #: of all ``data`` together
    sample: tuple[Row, ...]  #: spread evenly over the order of insertion


def rows(count: int, seed: int = SEED, *, item_bytes: int = 0) -> Iterator[Row]:
    """Items under ids as the store generates them; about 230 bytes of JSON on average.

    With ``item_bytes`` a member of text brings each up to so many.
    """
    chance = random.Random(seed)
    text = _text(random.Random(seed)) if item_bytes else b""
    for number in range(count):
        created_us = _FIRST_US + number * _STEP_US
        version = created_us
        if chance.random() < _UPDATED_SHARE:
            version += chance.randrange(1, _STEP_US)
        data = orjson.dumps(_body(chance))
        if (room := item_bytes - len(data) - len(b',"text":""')) > 0:
            start = chance.randrange(len(text) - room)
            data = b'%b,"text":"%b"}' % (data[:-1], text[start : start + room])
        yield Row(scramble(number, seed), data, version, created_us)


def item_id(number: int) -> str:
    """That of one of ``rows``, without making it."""
    return scramble(number, SEED)


def numbered(count: int) -> Iterator[Row]:
    """The same items under the ids 000000000000, 000000000001, … as redis-benchmark draws them."""
    return (row._replace(id=numbered_id(n)) for n, row in enumerate(rows(count)))


def numbered_id(number: int) -> str:
    return f"{number:012}"


def _body(chance: random.Random) -> dict[str, Any]:
    draw = chance.random
    body = {
        "name": _name(chance),
        "kind": _pick(draw, _KINDS),
        "price": int(draw() * 50_000) / 100,
        "stock": int(draw() * draw() * 1_000),
        "active": draw() < 0.9,
        "tags": [_pick(draw, _TAGS) for _ in range(int(draw() * 5))],
        "size": {
            "width": int(draw() * 900),
            "height": int(draw() * 2_000),
            "unit": _pick(draw, _UNITS),
        },
        "rating": None if draw() < 0.2 else int(draw() * 50) / 10,
        "owner": scramble(int(draw() * 5_000), SEED),
    }
    if draw() < _NOTED_SHARE:
        body["note"] = " ".join(chance.choices(_NOTE, k=int(2 + draw() * draw() * 80)))
    return body


def _text(chance: random.Random) -> bytes:
    """So long that what items take of it is seldom the same; with numbers, as texts have them."""
    words = chance.choices(_NOTE, k=_TEXT_WORDS)
    return " ".join(f"{word} {chance.randrange(10_000)}" for word in words).encode()


def _name(chance: random.Random) -> str:
    noun = _FOREIGN if chance.random() < _FOREIGN_SHARE else _NOUNS
    draw = chance.random
    return f"{_pick(draw, _ADJECTIVES)} {_pick(draw, noun)} {int(draw() * 10_000)}"


def _pick(draw: Callable[[], float], words: tuple[str, ...]) -> str:
    return words[int(draw() * len(words))]  # a quarter of what random.choice takes


def load(
    dsn: str,
    count: int,
    advance: Callable[[int], None] = lambda _: None,
    *,
    items: Iterable[Row] | None = None,
    schema: str | None = None,
) -> Dataset:
    """Fills an empty database with ``count`` items and lets it come to rest.

    ``items`` are by default ``rows(count)``; ``schema`` makes the table, by default itemstore's.
    """
    every = max(1, count // SAMPLE_ITEMS_MAX)
    sample, json_bytes = [], 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute((schema or schema_sql()).encode())
        with connection.cursor().copy(_COPY_IN) as copy:
            for number, row in enumerate(rows(count) if items is None else items):
                copy.write_row(_columns(row))
                json_bytes += len(row.data)
                if number % every == 0:
                    sample.append(row)
                if number % 1_000 == 999:
                    advance(1_000)
        for statement in _AT_REST:
            connection.execute(statement)
    return Dataset(dsn, count, json_bytes, tuple(sample))


_COPY_IN: Final = "COPY items (id, data, version, created_at, updated_at) FROM STDIN"

#: Or autovacuum and a checkpoint would run beside the first measurements.
_AT_REST: Final = (b"VACUUM (ANALYZE, FREEZE) items", b"CHECKPOINT")


def _columns(row: Row) -> tuple[object, ...]:
    return row.id, row.data.decode(), row.version, _time(row.created_us), _time(row.version)


def _time(us: int) -> datetime:
    seconds, fraction = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=fraction)


def check(answer: Answer, row: Row) -> None:
    """Raises WrongAnswer unless this is the item, its data byte for byte."""
    if answer.status != 200 or not answer.body.endswith(b'"data":%b}' % row.data):
        raise WrongAnswer(f"{row} was answered with {answer}")
    item = orjson.loads(answer.body)
    told = (item["id"], item["version"], datetime.fromisoformat(item["created_at"]))
    if told != (row.id, row.version, _time(row.created_us)):
        raise WrongAnswer(f"{row} was answered with {answer}")
