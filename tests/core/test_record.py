"""Records: what goes along with a change, and how it is kept apart from the item."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.caller import Caller, Role
from itemstore.core.item import pack
from itemstore.core.queue import RECORD_OVERHEAD_BYTES, Change, WriteQueue, size_of
from itemstore.core.recent import RECENT_S, Recent
from itemstore.core.record import Once, Origin, Record, record_of, unpacked
from itemstore.errors import InvalidIdempotencyKey

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)


ME = Origin(Caller("me", Role.ADMIN))


def change(version: int, item_id: str = "a", *, recorded: bool = True) -> Change:
    made = Change(item_id, version, pack(version, 1, b"{}"), deleted=False, now_s=0.0)
    if recorded:
        made.keep(record_of("put", made, ME, 0, is_audited=True, keeps_data=False))
    return made


def versions(one: Change) -> list[int]:
    return [unpacked(each).version for each in one.records]


NUMBERS = st.integers(-(2**53), 2**53)


@given(st.builds(Record, version=NUMBERS, position=NUMBERS, created_us=NUMBERS, id=TEXT, data=TEXT))
def test_a_record_comes_back_as_it_was_packed(record: Record) -> None:
    """Whatever an id or a name holds."""
    assert record == unpacked(record.packed())


@given(TEXT, st.text(max_size=300))
def test_a_name_is_shown_bounded_and_printable(caller: str, other: str) -> None:
    """Names that cannot be shown are replaced; two of them are never taken for one."""
    names = [Origin(Caller(each, Role.ADMIN)).name for each in (caller, other)]
    assert all(len(name) <= 255 and name.isprintable() for name in names)
    assert (caller == other) == (names[0] == names[1])


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "a" * 256])
def test_a_key_is_visible_ascii(key: str) -> None:
    """A key of no characters, too many, or any that cannot be seen is refused."""
    with pytest.raises(InvalidIdempotencyKey):
        Once(key, b"")
    assert "!~" * 100 == Once("!~" * 100, b"").key


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=30), st.data())
def test_no_record_is_lost_in_the_queue(
    writes: list[tuple[str, bool]], data: st.DataObject
) -> None:
    """Of coalesced writes the item is written once, and every record; the bytes add up."""
    queue = WriteQueue()
    expected: list[int] = []
    taken: list[int] = []
    for version, (item_id, recorded) in enumerate(writes, 1):
        queue.put(change(version, item_id, recorded=recorded))
        expected += [version] if recorded else []
        if data.draw(st.booleans()):
            batch = queue.take(10, 10**9)
            if data.draw(st.booleans()):
                queue.put(change(100 + version, batch[0].id))
                expected.append(100 + version)
            taken += [each for one in batch for each in versions(one)]
            queue.settle(batch)
    if queue.has_queued:
        batch = queue.take(10, 10**9)
        taken += [each for one in batch for each in versions(one)]
        queue.settle(batch)
    assert sorted(expected) == sorted(taken)
    assert (0, 0) == (queue.bytes_used, len(queue))


def test_a_record_counts_in_the_bytes_of_the_queue() -> None:
    """What a write of a busy item leaves behind fills the queue as other writes do."""
    queue = WriteQueue()
    for version in range(1, 11):
        queue.put(change(version))
    [one] = queue.take(10, 10**9)
    kept = sum(len(each) + RECORD_OVERHEAD_BYTES for each in one.records)
    assert size_of("a", one.entry) + kept == one.size == queue.bytes_used


def test_the_change_that_bears_a_version_is_found() -> None:
    """It is the first that brings the version, or a newer one of the item, to PostgreSQL."""
    queue = WriteQueue()
    queue.put(change(1))
    [first] = queue.take(10, 10**9)
    queue.put(change(2))
    second = queue.get("a")
    assert [first, second, None] == [queue.bearing("a", version) for version in (1, 2, 3)]
    queue.settle([first])
    assert second is queue.bearing("a", 1)
    assert queue.bearing("b", 1) is None


def test_records_of_older_commits_are_recent_too() -> None:
    """What is written again has the records of all commits of the item, as long as they count."""
    kept = Recent()
    kept.note([change(1), change(2, "b", recorded=False)], 0.0)
    kept.note([change(3)], 1.0)
    assert [[1, 3], []] == [versions(each) for each in kept.changes()]
    assert sum(each.size for each in kept.changes()) == kept.bytes_used
    kept.forget(RECENT_S + 0.5)
    assert [[3]] == [versions(each) for each in kept.changes()]
    kept.forget(RECENT_S + 1.0)
    assert (0, 0) == (len(kept), kept.bytes_used)


def test_recent_records_are_bounded_with_their_items() -> None:
    """Beyond the bytes the oldest goes first, be it a record or an item."""
    size = change(1).size
    kept = Recent(bytes_max=2 * size)
    for number, item_id in enumerate("abc", 1):
        kept.note([change(number, item_id)], float(number))
    assert [("b", [2]), ("c", [3])] == [(each.id, versions(each)) for each in kept.changes()]
    assert kept.bytes_used <= 2 * size
