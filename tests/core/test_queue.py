"""The write queue, invariant by invariant; the numbers are those of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from itemstore.core.item import pack
from itemstore.core.queue import CHANGE_OVERHEAD_BYTES, Change, WriteQueue

ITEMS = BYTES = 1_000_000  # limits that do not matter


class Calls(list[Exception | None]):
    """What a callback was called with, in order."""

    def __call__(self, reason: Exception | None) -> None:
        self.append(reason)


@pytest.fixture
def queue() -> WriteQueue:
    return WriteQueue()


@pytest.fixture
def put(queue: WriteQueue) -> Callable[..., Change]:
    """Puts the next change of an item, one version and one second after the last."""
    versions = count(1)

    def put(
        item_id: str, *, size: int = 2, deleted: bool = False, settled: object = None
    ) -> Change:
        version = next(versions)
        entry = pack(version, 1, b"" if deleted else b"x" * size)
        change = Change(item_id, version, entry, deleted=deleted, now_s=float(version))
        if settled is not None:
            change.settled += (settled,)  # type: ignore[operator]
        queue.put(change)
        return change

    return put


def ids(batch: list[Change]) -> list[str]:
    return [change.id for change in batch]


def sizes(*changes: Change) -> int:
    return sum(CHANGE_OVERHEAD_BYTES + len(each.id) + len(each.entry) for each in changes)


# --- a change


def test_a_change_tells_what_is_written(put: Callable[..., Change]) -> None:
    """An upsert has its JSON text, a delete has none; both have their creation time and size."""
    upsert, delete = put("a", size=3), put("b", deleted=True)
    assert (upsert.data, upsert.created_us, upsert.size) == (b"xxx", 1, sizes(upsert))
    assert (delete.data, delete.created_us, delete.size) == (None, 1, sizes(delete))
    assert repr(upsert) == "Change(upsert 'a' version=1)"
    assert repr(delete) == "Change(delete 'b' version=2)"


# --- 3. nothing leaves but by settle or park


def test_an_empty_queue_is_clean(queue: WriteQueue) -> None:
    """Nothing is dirty in a new queue, and everything accepted so far is settled."""
    assert (len(queue), queue.bytes_used, queue.has_queued) == (0, 0, False)
    assert queue.get("a") is None
    assert "a" not in queue.pending_ids()
    assert queue.dirty_since() is None
    assert queue.settled_version(7) == 7
    assert queue.take(ITEMS, BYTES) == []


def test_a_taken_change_is_still_there(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """Taking a batch changes neither what is dirty nor what it pins; only settling does."""
    change = put("a")
    for _ in range(2):
        assert (len(queue), queue.bytes_used) == (1, sizes(change))  # 3
        assert queue.get("a") is change  # 3
        assert "a" in queue.pending_ids()
        if queue.has_queued:
            queue.take(ITEMS, BYTES)
    queue.settle([change])
    assert (len(queue), queue.bytes_used) == (0, 0)
    assert queue.get("a") is None


def test_part_of_a_batch_can_be_settled(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """What is not settled of a batch stays in flight."""
    first, second = put("a"), put("b")
    queue.take(ITEMS, BYTES)
    queue.settle([second])
    assert (len(queue), queue.bytes_used) == (1, sizes(first))
    assert queue.get("a") is first  # 3
    assert queue.get("b") is None


def test_what_is_dirty_is_queued_or_in_flight(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """Ids are dirty until committed; a parked one is pending, but not dirty."""
    for item_id in ("in flight", "parked", "committed"):
        put(item_id)
    batch = {change.id: change for change in queue.take(ITEMS, BYTES)}
    put("queued")
    queue.park(batch["parked"], ValueError())
    queue.settle([batch["committed"]])
    assert queue.dirty_ids() == {"queued", "in flight"}
    pending = queue.pending_ids()
    assert all(each in pending for each in ("queued", "in flight", "parked"))
    assert "committed" not in pending


def test_a_parked_change_is_kept(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A refused change is no longer dirty, but pending, and told to its writer with the reason."""
    told, reason = Calls(), ValueError("refused")
    change = put("a", settled=told)
    queue.take(ITEMS, BYTES)
    queue.park(change, reason)
    assert (len(queue), queue.bytes_used) == (0, 0)
    assert queue.get("a") is change  # 3
    assert queue.parked == {"a": change}
    assert "a" in queue.pending_ids()
    assert told == [reason]


def test_a_newer_commit_frees_the_parked_change(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """A corrected item, once committed, takes the parked one's place; until then both are kept."""
    bad = put("a", settled=(told := Calls()))
    queue.take(ITEMS, BYTES)
    queue.park(bad, ValueError())
    good = put("a")
    assert queue.get("a") is good
    assert queue.parked == {"a": bad}
    queue.take(ITEMS, BYTES)
    queue.settle([good])
    assert queue.parked == {}
    assert queue.get("a") is None
    assert len(told) == 1  # told once, when it was refused


def test_a_newer_refusal_replaces_the_parked_change(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """Of one item only the newest refused change is kept."""
    for _ in range(2):
        bad = put("a")
        queue.take(ITEMS, BYTES)
        queue.park(bad, ValueError())
    assert queue.parked == {"a": bad}
    assert queue.get("a") is bad


def test_a_restored_change_is_parked(queue: WriteQueue) -> None:
    """What was in quarantine at start is pending, not dirty; an older commit does not free it."""
    change = Change("a", 9, pack(9, 1, b"{}"), deleted=False, now_s=0.0)
    queue.restore_parked([change])
    assert queue.get("a") is change
    assert (len(queue), queue.bytes_used, queue.dirty_since()) == (0, 0, None)
    assert queue.settled_version(9) == 9
    older = Change("a", 8, pack(8, 1, b"{}"), deleted=False, now_s=0.0)
    queue.put(older)
    queue.take(ITEMS, BYTES)
    queue.settle([older])
    assert queue.get("a") is change


# --- 5. one batch in flight, one change per id in it, sorted by id


def test_changes_of_one_item_are_one(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A newer change of a queued item takes the older one's place in the queue and in the books."""
    put("a", size=100)
    put("b")
    newer = put("a", size=1)
    assert (len(queue), queue.accepted, queue.coalesced) == (2, 3, 1)
    assert queue.get("a") is newer
    batch = queue.take(ITEMS, BYTES)
    assert ids(batch) == ["a", "b"]  # 5
    assert batch[0] is newer
    assert queue.bytes_used == sizes(*batch)


def test_a_batch_is_sorted_by_id(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A batch is in the order of ids, whatever order the items became dirty in."""
    for item_id in ("b", "\u00e9", "a", "Z", "\U0001f34f", "\uffff"):
        put(item_id)
    assert ids(queue.take(ITEMS, BYTES)) == ["Z", "a", "b", "\u00e9", "\uffff", "\U0001f34f"]  # 5


def test_two_batches_at_once_are_a_bug(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A second batch cannot be taken before the first has settled."""
    put("a")
    queue.take(ITEMS, BYTES)
    put("b")
    with pytest.raises(AssertionError):  # 5
        queue.take(ITEMS, BYTES)
    assert len(queue) == 2


def test_a_change_during_the_flight_waits_its_turn(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """Settling a batch leaves a newer change of the same item dirty."""
    older = put("a")
    queue.take(ITEMS, BYTES)
    newer = put("a", deleted=True)
    assert queue.get("a") is newer
    assert (len(queue), queue.coalesced) == (2, 0)
    assert queue.bytes_used == sizes(older, newer)
    queue.settle([older])
    assert queue.get("a") is newer  # 5
    assert (len(queue), queue.bytes_used) == (1, sizes(newer))
    assert queue.take(ITEMS, BYTES) == [newer]


def test_parking_leaves_a_newer_change_queued(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """An older change that is refused hides no newer one of the same item."""
    older = put("a")
    queue.take(ITEMS, BYTES)
    newer = put("a")
    queue.park(older, ValueError())
    assert queue.get("a") is newer
    assert queue.take(ITEMS, BYTES) == [newer]


# --- 9. ordered by when each first became dirty


def test_the_oldest_dirty_items_are_taken_first(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """A batch is the items that have been dirty longest, up to its limit of items."""
    for item_id in ("d", "c", "b", "a"):
        put(item_id)
    batch = queue.take(2, BYTES)
    assert ids(batch) == ["c", "d"]  # 9
    queue.settle(batch)
    assert ids(queue.take(2, BYTES)) == ["a", "b"]


def test_a_batch_is_limited_in_bytes(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A batch ends before the change with which it would exceed its bytes, but has one at least."""
    first, second = put("a", size=10), put("b", size=20)
    batch = queue.take(ITEMS, sizes(first, second))
    assert ids(batch) == ["a", "b"]
    queue.settle(batch)
    first, second = put("a", size=10), put("b", size=20)
    batch = queue.take(ITEMS, sizes(first, second) - 1)
    assert ids(batch) == ["a"]
    queue.settle(batch)
    assert ids(queue.take(1, 1)) == ["b"]


def test_a_hot_item_keeps_its_place(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """An item that is written again and again is written out when its turn comes."""
    for item_id in ("hot", "a", "b"):
        put(item_id)
    newest = [put("hot") for _ in range(5)][-1]
    assert queue.take(1, BYTES) == [newest]  # 9
    assert newest.first_version == 1
    assert newest.dirty_since == 1.0


def test_a_hot_item_does_not_push_ahead(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """An item that becomes dirty again during its flight queues up behind the others."""
    for item_id in ("hot", "a", "b"):
        put(item_id)
    order = []
    for _ in range(6):
        [change] = queue.take(1, BYTES)
        order.append(change.id)
        put(change.id)
        queue.settle([change])
    assert order == ["hot", "a", "b", "hot", "a", "b"]  # 9


def test_the_age_is_that_of_the_oldest_dirty_item(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """The loss window begins when the oldest dirty item became dirty, queued or in flight."""
    first, second = put("b"), put("a")
    put("b")
    assert queue.dirty_since() == first.dirty_since == 1.0  # 9
    batch = queue.take(ITEMS, BYTES)
    put("b")
    assert queue.dirty_since() == 1.0
    queue.settle([change for change in batch if change.id == "b"])
    assert queue.dirty_since() == second.dirty_since == 2.0
    queue.settle([second])
    assert queue.dirty_since() == 4.0


# --- callbacks and barriers


def test_all_writers_of_an_item_are_told(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A commit answers every writer whose change it contains or supersedes, once and in order."""
    told = Calls()
    heard: list[int] = []
    for number in range(3):
        change = put("a", settled=lambda _, number=number: heard.append(number))
        change.settled += (told,)
    [change] = queue.take(ITEMS, BYTES)
    later = Calls()
    put("a", settled=later)
    queue.settle([change])
    assert heard == [0, 1, 2]
    assert told == [None] * 3
    assert later == []


def test_a_refusal_is_told_to_all_writers_of_the_item(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """A refused change takes those it superseded with it: their writers are told as well."""
    told, reason = Calls(), ValueError("refused")
    put("a", settled=told)
    bad = put("a", settled=told)
    queue.take(ITEMS, BYTES)
    queue.park(bad, reason)
    assert told == [reason, reason]


def test_a_barrier_waits_for_what_was_accepted_before_it(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """A barrier passes when every change up to its version is committed or parked, no later."""
    first, second = put("a"), put("b")
    queue.when_settled(2, passed := Calls())
    later = put("c")
    assert queue.settled_version(3) == 0
    queue.take(ITEMS, BYTES)
    queue.settle([first])
    assert queue.settled_version(3) == 1
    assert passed == []
    queue.park(second, ValueError())
    assert passed == [None]
    assert queue.settled_version(3) == 2
    queue.settle([later])
    assert queue.settled_version(3) == 3
    assert passed == [None]


def test_a_barrier_is_not_held_up_by_newer_changes(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """A change of the same item that came after the barrier does not delay it."""
    first = put("a")
    queue.when_settled(1, passed := Calls())
    queue.take(ITEMS, BYTES)
    put("a")
    queue.settle([first])
    assert passed == [None]


def test_a_barrier_is_held_up_by_what_superseded_its_changes(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """A change that was superseded is settled when the newer one in its place is."""
    put("a")
    queue.when_settled(1, passed := Calls())
    newer = put("a")
    assert passed == []
    queue.take(ITEMS, BYTES)
    queue.settle([newer])
    assert passed == [None]


def test_a_barrier_with_nothing_before_it_passes_at_once(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """With nothing dirty, or nothing as old, a barrier does not wait."""
    queue.when_settled(5, at_once := Calls())
    assert at_once == [None]
    put("a")
    queue.when_settled(0, at_once)
    assert at_once == [None, None]


def test_barriers_pass_together(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """One commit lets every barrier pass that waited for nothing else, in their order."""
    order: list[str] = []
    changes = [put("a"), put("b")]
    queue.when_settled(1, lambda _: order.append("first"))
    queue.when_settled(2, lambda _: order.append("second"))
    queue.when_settled(2, lambda _: order.append("third"))
    queue.take(ITEMS, BYTES)
    queue.settle(changes)
    assert order == ["first", "second", "third"]


# --- the lease is lost


class Doubt(Exception):
    """Why a commit is not confirmed."""


def unacked(queue: WriteQueue, item_id: str, version: int, settled: object = None) -> Change:
    """Puts a change whose writer waits for the commit."""
    entry = pack(version, 1, b"{}")
    change = Change(item_id, version, entry, deleted=False, now_s=float(version), is_acked=False)
    if settled is not None:
        change.settled += (settled,)  # type: ignore[operator]
    queue.put(change)
    return change


def test_what_is_fenced_is_gone_and_its_writers_are_told(queue: WriteQueue) -> None:
    """A change that was not written, for the lease is lost, is forgotten; barriers pass."""
    told, reason = Calls(), Doubt()
    change = unacked(queue, "a", 1, told)
    queue.when_settled(1, passed := Calls())
    queue.take(ITEMS, BYTES)
    queue.fence([change], reason)
    assert [reason] == told
    assert [None] == passed
    assert (0, 0, None, 1) == (len(queue), queue.bytes_used, queue.get("a"), queue.fenced)
    assert "a" not in queue


def test_fencing_leaves_a_newer_change_queued(queue: WriteQueue) -> None:
    """A change accepted after the fenced one went out takes its own turn."""
    older = unacked(queue, "a", 1)
    queue.take(ITEMS, BYTES)
    newer = unacked(queue, "a", 2, later := Calls())
    queue.fence([older], Doubt())
    assert newer is queue.get("a")
    assert [] == later
    assert [newer] == queue.take(ITEMS, BYTES)


def test_fencing_leaves_what_is_parked(queue: WriteQueue) -> None:
    """A refused write of the same item stays in quarantine: nothing took its place."""
    parked = Change("a", 1, pack(1, 1, b"{}"), deleted=False, now_s=0.0)
    queue.restore_parked([parked])
    change = unacked(queue, "a", 2)
    queue.take(ITEMS, BYTES)
    queue.fence([change], Doubt())
    assert {"a": parked} == queue.parked
    assert parked is queue.get("a")


def test_nothing_acknowledged_is_fenced(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """Fencing what somebody was told OK for is a bug, and takes nothing away."""
    change = put("a")
    queue.take(ITEMS, BYTES)
    with pytest.raises(AssertionError):  # 3
        queue.fence([change], Doubt())
    assert change is queue.get("a")
    assert (1, 0) == (len(queue), queue.fenced)


def test_a_commit_in_doubt_is_settled_and_told_so(queue: WriteQueue) -> None:
    """What was written without the lease is clean, frees what is parked, and is not confirmed."""
    told, doubt = Calls(), Doubt()
    queue.restore_parked([Change("a", 1, pack(1, 1, b"{}"), deleted=False, now_s=0.0)])
    change = unacked(queue, "a", 2, told)
    queue.when_settled(2, passed := Calls())
    queue.take(ITEMS, BYTES)
    queue.settle([change], doubt)
    assert [doubt] == told
    assert [None] == passed
    assert (0, {}, None, 0) == (len(queue), queue.parked, queue.get("a"), queue.fenced)


def test_an_acknowledgment_is_inherited(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """A change that takes the place of an acknowledged one must be written as that one must."""
    put("a")
    newer = unacked(queue, "a", 2)
    assert newer.is_acked  # 3
    assert not unacked(queue, "b", 3).is_acked
    assert put("b").is_acked
    assert unacked(queue, "b", 5).is_acked


def test_an_acknowledgment_in_flight_is_not_inherited(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """What is in flight is written for itself: a later change of the item stands alone."""
    put("a")
    queue.take(ITEMS, BYTES)
    assert not unacked(queue, "a", 2).is_acked


# --- quarantine


def test_what_is_unparked_is_forgotten(queue: WriteQueue, put: Callable[..., Change]) -> None:
    """Unparking returns the change and leaves nothing of it, once; others stay parked."""
    changes = [put("a"), put("b")]
    queue.take(ITEMS, BYTES)
    for change in changes:
        queue.park(change, ValueError())
    assert changes[0] is queue.unpark("a")
    assert queue.unpark("a") is None
    assert queue.get("a") is None
    assert "a" not in queue
    assert {"b": changes[1]} == queue.parked


def test_restoring_takes_the_place_of_what_was_parked(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """After a time as standby only what the table has is parked; what is dirty stays."""
    stale = put("stale")
    queue.take(ITEMS, BYTES)
    queue.park(stale, ValueError())
    dirty = put("dirty")
    found = Change("found", 9, pack(9, 1, b"{}"), deleted=False, now_s=0.0)
    queue.restore_parked(iter([found]))
    assert {"found": found} == queue.parked
    assert queue.get("stale") is None
    assert [dirty] == queue.dirty()


def test_dirty_is_what_is_queued_and_in_flight(
    queue: WriteQueue, put: Callable[..., Change]
) -> None:
    """An item with a change in flight and a newer one queued is dirty with both."""
    older = put("a")
    queue.take(ITEMS, BYTES)
    newer = put("a")
    assert {older, newer} == set(queue.dirty())
    queue.settle([older])
    assert [newer] == queue.dirty()
