"""The table, against a plain dict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore.core import table as table_module
from itemstore.core.shards import Shards
from itemstore.core.table import END, Table
from tests.strategies import IDS

#: Few ids that meet, one the end of another, and any that are allowed.
SOME_IDS = st.sampled_from(["a", "b", "ab", "aab", "ÿ", "\xff"]) | IDS
ENTRIES = st.binary(max_size=40)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "setdefault", "pop"]), SOME_IDS, ENTRIES), max_size=200
)


def contents(table: Table) -> dict[str, bytes]:
    return {item_id: table.bare(record) for shard in table.shards() for item_id, record in shard}


def check(table: Table, expected: dict[str, bytes]) -> None:
    assert expected == contents(table)
    assert len(expected) == len(table)
    assert table.bytes_used == sum(
        len(entry) + 1 + len(item_id.encode()) + Table.OVERHEAD_BYTES
        for item_id, entry in expected.items()
    )


@settings(max_examples=300)
@given(STEPS)
def test_a_table_is_a_dict(steps: list[tuple[str, str, bytes]]) -> None:
    """Whatever is put in and taken out, a table holds and returns what a dict would."""
    play(steps)


@settings(max_examples=300)
@given(STEPS)
def test_items_that_meet_are_told_apart(steps: list[tuple[str, str, bytes]]) -> None:
    """The same where all lie in one shard, and many are passed on the way to one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "_MASK", 0)
        play(steps)


def play(steps: list[tuple[str, str, bytes]]) -> None:
    table, expected = Table(), dict[str, bytes]()
    for step, item_id, entry in steps:
        old = expected.get(item_id)
        record = old and old + END + item_id.encode()
        if step == "put":
            found = table.put(item_id, entry)
            expected[item_id] = entry
        elif step == "setdefault":
            found = table.setdefault(item_id, entry)
            expected.setdefault(item_id, entry)
        else:
            found = table.pop(item_id)
            expected.pop(item_id, None)
        assert (found and table.bare(found)) == old
        assert record is None or not old or found == record
        kept = table.get(item_id)
        assert (kept and table.bare(kept)) == expected.get(item_id)
    check(table, expected)


def test_a_table_grows_and_shrinks() -> None:
    """Ten thousand items come and go, some of them often, and each is found meanwhile."""
    table, expected = Table(), dict[str, bytes]()
    for number in range(10_000):
        item_id = f"{number % 7_000}é"
        table.put(item_id, b"%d" % number)
        expected[item_id] = b"%d" % number
        if number % 3:
            gone = f"{number * 7 % 7_000}é"
            table.pop(gone)
            expected.pop(gone, None)
    check(table, expected)
    for item_id in list(expected):
        assert table.pop(item_id) is not None
    check(table, {})


def test_removed_items_do_not_fill_a_table() -> None:
    """A place that was taken once is free again."""
    table = Table()
    for number in range(100_000):
        table.put(str(number), b"")
        table.pop(str(number))
    places = sum(map(len, table._shards))
    assert places == table_module._SLOTS_MIN * len(table._shards)


def test_what_can_be_no_id_is_not_found() -> None:
    """Lone surrogates, bytes and numbers are in no table, and no error either."""
    table = Table()
    for no_id in ("\ud800", b"a", 1, None):
        assert table.get(no_id) is None  # type: ignore[arg-type]


def test_a_cleared_table_returns_what_it_held() -> None:
    """clear() leaves an empty table, and gives the old one's parts to be freed at leisure."""
    table = Table()
    table.put("a", b"1")
    shards = table.clear()
    check(table, {})
    assert [b"1" + END + b"a"] == [record for slots in shards for record in slots if record]


@settings(max_examples=200)
@given(STEPS)
def test_shards_are_a_dict(steps: list[tuple[str, str, bytes]]) -> None:
    """Whatever is put in and taken out, shards hold and return what a dict would."""
    shards, expected = Shards(), dict[str, bytes]()
    for step, item_id, entry in steps:
        old = expected.get(item_id)
        if step == "put":
            assert shards.put(item_id, entry) == old
            expected[item_id] = entry
        elif step == "setdefault":
            assert shards.setdefault(item_id, entry) == old
            expected.setdefault(item_id, entry)
        else:
            assert shards.pop(item_id) == old
            expected.pop(item_id, None)
        assert shards.get(item_id) == expected.get(item_id)
    assert expected == {each: entry for shard in shards.shards() for each, entry in shard}
    assert len(expected) == len(shards)
    assert shards.bytes_used == sum(
        len(item_id) + len(entry) + Shards.OVERHEAD_BYTES for item_id, entry in expected.items()
    )
    assert sorted(expected) == sorted(id for n in range(Shards.SHARDS) for id in shards.ids(n))
    assert expected == {each: entry for shard in shards.clear() for each, entry in shard.items()}
    assert (0, 0) == (len(shards), shards.bytes_used)
