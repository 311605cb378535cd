"""Packing: every entry comes back byte for byte, whatever it was packed with."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data import rows
from itemstore.core import packing
from itemstore.core.cache import Cache
from itemstore.core.data import encode_parsed, loads
from itemstore.core.item import (
    Item,
    created_us_of,
    data_of,
    envelope,
    pack,
    plain,
    version_of,
)
from itemstore.core.packing import (
    SAMPLE_ITEMS_MIN,
    TEXT_MAX_BYTES,
    WINDOW_ITEMS,
    Dictionary,
    Trainer,
    dictionary_of,
    know,
    retrain,
    train,
)
from tests.strategies import IDS, json_objects

SHOP = [pack(row.version, row.created_us, row.data) for row in rows(3_000)]


def planet(number: int) -> bytes:
    chance = random.Random(number)
    body = {"planet": number, "moons": [chance.choice(("Io", "Rhea", "Titan")) for _ in range(9)]}
    return pack(number, number, orjson.dumps(body))


PLANETS = [planet(number) for number in range(3_000)]


def known(entries: list[bytes]) -> Dictionary:
    dictionary = train(entries)
    assert dictionary is not None
    assert know(dictionary)
    return dictionary


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return known(SHOP)


OBJECTS = json_objects().map(lambda raw: encode_parsed(loads(raw)))
TEXTS = st.one_of(
    OBJECTS,
    st.integers(0, 2_900).map(lambda number: data_of(SHOP[number])),
    st.text(max_size=200).map(lambda text: orjson.dumps({"note": text * 3})),
)


@given(IDS, st.integers(0, 2**53), st.integers(0, 2**53), TEXTS)
def test_what_is_packed_comes_back(
    dictionary: Dictionary, item_id: str, version: int, created_us: int, text: bytes
) -> None:
    """In every form an entry has its version, its time and its text, byte for byte."""
    entry = pack(version, created_us, text)
    [form] = dictionary.pack([entry])
    cache = Cache()
    cache.put(item_id, entry)
    cache.pack([(item_id, entry)], [form])
    kept = cache.get(item_id)
    assert kept is not None
    assert len(kept) <= len(entry) + 1 + len(item_id.encode())
    for each in (entry, form, kept):
        assert (version, created_us, text) == (version_of(each), created_us_of(each), data_of(each))
        assert entry == plain(each)
        assert envelope(item_id, entry) == envelope(item_id, each)
        assert Item(item_id, entry) == Item(item_id, each)
        assert Item(item_id, each).data_json == text


def test_packing_makes_entries_smaller(dictionary: Dictionary) -> None:
    """Entries like those it was trained on take less than half; each is packed, in its place."""
    packed = dictionary.pack(SHOP)
    assert sum(map(len, packed)) < sum(map(len, SHOP)) / 2
    assert SHOP == [plain(entry) for entry in packed]
    assert {dictionary} == {dictionary_of(entry) for entry in packed}


def test_what_would_save_nothing_is_left_alone(dictionary: Dictionary) -> None:
    """Small, huge and incompressible texts stay as they are, and so does what is packed."""
    noise = random.Random(1).randbytes(1_000).hex().encode()
    [packed] = dictionary.pack(SHOP[:1])
    entries = [
        pack(1, 1, b"{}"),
        pack(1, 1, b'{"n":"%b"}' % noise[:60]),
        pack(1, 1, b'{"n":"%b"}' % (b"x" * TEXT_MAX_BYTES)),
        packed,
    ]
    assert entries == dictionary.pack(entries)
    mixed = [entries[0], SHOP[0], entries[1], SHOP[1]]
    assert [entries[0], packed, entries[1]] == dictionary.pack(mixed)[:3]


def test_nothing_can_be_trained_on_too_little() -> None:
    """Without enough in common there is no dictionary, and no error."""
    assert train(SHOP[:3]) is None
    assert train([]) is None
    assert retrain(SHOP[:2], None).ratio > 0


def test_old_entries_stay_readable() -> None:
    """Whatever is trained later, each entry is read with the dictionary it was packed with."""
    first, second = known(SHOP), known(PLANETS)
    old, new = first.pack(SHOP[:100]), second.pack(PLANETS[:100])
    item = Item("a", old[0])
    known(SHOP[::2])
    assert SHOP[:100] == [plain(entry) for entry in old]
    assert PLANETS[:100] == [plain(entry) for entry in new]
    assert data_of(SHOP[0]) == item.data_json
    assert first.mark != second.mark


def test_marks_run_out(monkeypatch: pytest.MonkeyPatch, dictionary: Dictionary) -> None:
    """When all marks are given, what is known is used on."""
    monkeypatch.setattr(packing, "_MARKS", tuple(packing.KNOWN))
    unknown = train(PLANETS)
    assert unknown is not None
    assert not know(unknown)
    assert retrain(SHOP, dictionary).dictionary in packing.KNOWN.values()


def test_a_dictionary_serves_threads(dictionary: Dictionary) -> None:
    """Packing and reading in several threads at once mixes nothing up."""

    def there_and_back(start: int) -> list[bytes]:
        part = SHOP[start::8]
        return [plain(entry) for _ in range(20) for entry in dictionary.pack(part)]

    with ThreadPoolExecutor(4) as threads:
        for start, found in enumerate(threads.map(there_and_back, range(8))):
            assert SHOP[start::8] * 20 == found


# --- when one is due


def seen(trainer: Trainer, entries: list[bytes]) -> None:
    dictionary = trainer.dictionary
    trainer.saw(entries, entries if dictionary is None else dictionary.pack(entries))


def trained(entries: list[bytes]) -> Trainer:
    trainer = Trainer()
    seen(trainer, entries)
    trainer.adopt(retrain(trainer.sample(), None))
    return trainer


def test_a_dictionary_is_due_when_there_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is trained on 1,000 entries, the next when there are ten times as many."""
    monkeypatch.setattr(packing, "KNOWN", {})
    trainer = Trainer()
    seen(trainer, SHOP[: SAMPLE_ITEMS_MIN - 1])
    assert not trainer.is_due
    seen(trainer, SHOP[:1])
    assert trainer.is_due
    trainer.adopt(retrain(trainer.sample(), None))
    assert trainer.dictionary is not None
    for _ in range(7):
        assert not trainer.is_due
        seen(trainer, SHOP)
    assert trainer.is_due


def test_a_dictionary_is_due_when_the_data_change() -> None:
    """Entries of another kind make a new one due, which is better at them."""
    trainer = trained(SHOP)
    old = trainer.dictionary
    seen(trainer, PLANETS)
    seen(trainer, PLANETS[: WINDOW_ITEMS - len(PLANETS)])
    assert trainer.is_due
    trainer.adopt(retrain(trainer.sample(), old))
    assert trainer.dictionary not in (None, old)
    assert 2 == trainer.trained
    seen(trainer, PLANETS + PLANETS)
    assert not trainer.is_due


def test_what_no_dictionary_helps_is_tried_once() -> None:
    """Noise gets none, and none is due until there is ten times as much."""
    noise = random.Random(2)
    entries = [pack(1, 1, b'{"n":"%b"}' % noise.randbytes(20).hex().encode()) for _ in range(2_000)]
    trainer = Trainer()
    seen(trainer, entries)
    trainer.adopt(retrain(trainer.sample(), None))
    seen(trainer, entries)
    assert not trainer.is_due


def test_data_seen_before_need_no_new_dictionary() -> None:
    """Another store of the same data packs with what is known."""
    first = trained(PLANETS)
    second = trained(PLANETS[::-1])
    assert first.dictionary is not None
    assert first.dictionary is second.dictionary
