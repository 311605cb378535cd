"""Recent commits: what may have to be written again, and no more than that."""

from __future__ import annotations

from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.core.recent import RECENT_S, Recent


def change(item_id: str, version: int, *, size: int = 2, deleted: bool = False) -> Change:
    data = b"" if deleted else b"x" * size
    return Change(item_id, version, pack(version, 1, data), deleted=deleted, now_s=0.0)


def versions(kept: Recent) -> list[tuple[str, int]]:
    return [(each.id, each.version) for each in kept.changes()]


def test_nothing_is_recent_at_first() -> None:
    """A new store has nothing to write again."""
    kept = Recent()
    kept.forget(0.0)
    assert ([], 0, 0) == (kept.changes(), len(kept), kept.bytes_used)


def test_the_newest_commit_of_an_item_is_kept() -> None:
    """Of an item that was committed twice the later commit is kept, also if that was a delete."""
    kept = Recent()
    kept.note([change("a", 1, size=100), change("b", 2)], 0.0)
    gone = change("a", 3, deleted=True)
    kept.note([gone], 1.0)
    assert [("a", 3), ("b", 2)] == versions(kept)
    assert kept.changes()[0].deleted
    assert gone.entry is kept.changes()[0].entry
    assert sum(each.size for each in kept.changes()) == kept.bytes_used


def test_they_come_sorted_by_id() -> None:
    """They come as a batch must be, whatever order they were committed in."""
    kept = Recent()
    for version, item_id in enumerate(("b", "\u00e9", "a", "Z", "\U0001f34f", "\uffff"), 1):
        kept.note([change(item_id, version)], float(version))
    assert ["Z", "a", "b", "\u00e9", "\uffff", "\U0001f34f"] == [each.id for each in kept.changes()]


def test_what_is_too_old_is_forgotten() -> None:
    """A commit is kept for less than RECENT_S; what was committed again counts from then."""
    kept = Recent()
    kept.note([change("old", 1), change("renewed", 2)], 0.0)
    kept.note([change("renewed", 3)], 1.0)
    kept.forget(RECENT_S - 0.5)
    assert [("old", 1), ("renewed", 3)] == versions(kept)
    kept.forget(RECENT_S)
    assert [("renewed", 3)] == versions(kept)
    kept.note([change("new", 4)], RECENT_S + 1.0)
    assert [("new", 4)] == versions(kept)
    kept.forget(2 * RECENT_S + 1.0)
    assert (0, 0) == (len(kept), kept.bytes_used)


def test_beyond_the_bound_the_oldest_are_forgotten() -> None:
    """What is kept never takes more bytes than its bound; the oldest commits go first."""
    size = change("0", 0).size
    kept = Recent(3 * size)
    kept.note([change(str(number), number) for number in range(3)], 0.0)
    assert 3 * size == kept.bytes_used
    kept.note([change("0", 10)], 1.0)  # again: it is the newest now
    kept.note([change("3", 11)], 1.0)
    assert [("0", 10), ("2", 2), ("3", 11)] == versions(kept)
    assert 3 * size == kept.bytes_used


def test_a_commit_larger_than_the_bound_is_not_kept() -> None:
    """The bound holds also for a single change that is larger."""
    kept = Recent(change("a", 1).size)
    kept.note([change("a", 1), change("b", 2, size=1_000)], 0.0)
    assert ([], 0) == (versions(kept), kept.bytes_used)
