"""Queue, cache, loads and evictions together, in any order of events, against a plain dict.

The machine plays everything around them: writers, the persister (take, commit, the answer to it,
refusals, repetitions), PostgreSQL itself (rows and tombstones, each write guarded by its version),
read-through loads and a preload whose pages overlap. A load's snapshot is taken at any moment
between its beginning and its answer, and a commit takes effect before its answer arrives: in these
two gaps are all the races there are. After each step the invariants are checked, by number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from itemstore.core.cache import Cache, Load, Row
from itemstore.core.item import HEADER_BYTES, pack, plain
from itemstore.core.queue import CHANGE_OVERHEAD_BYTES, Change, WriteQueue
from itemstore.core.shards import Shards

IDS: Final = ("a", "b", "c")  # few, so that events meet
BEGINNING: Final = 100  # the first version of the run; what was there before is older
CREATED_US: Final = 1
BOUND: Final = 1_000_000  # bytes; but for ``evict`` it is never reached

item_ids = st.sampled_from(IDS)
sizes = st.integers(0, 300)
numbers = st.integers(0, 10)  # which of several: taken modulo their number


class State(NamedTuple):
    """An item as PostgreSQL or a reader sees it; ``entry`` None for a deleted one."""

    version: int
    entry: bytes | None


@dataclass(eq=False)
class Accepted:
    """A write that was acknowledged: what was told to its writer, and what should have been."""

    change: Change
    told: list[Exception | None] = field(default_factory=list)
    due: list[Exception | None] = field(default_factory=list)


@dataclass(eq=False)
class Barrier:
    version: int
    told: list[Exception | None] = field(default_factory=list)


@dataclass(eq=False)
class Query:
    """A read under way: of some ids, or the preload's page of all beyond ``after``."""

    load: Load
    ids: list[str]
    rows: list[Row] | None = None  # None until PostgreSQL has taken its snapshot


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = WriteQueue()
        self.cache = Cache()
        self.cache.bound(BOUND, self.queue.__contains__, lambda: None)
        self.version = BEGINNING
        self.postgres: dict[str, State] = {}
        #: What the newest accepted write of an item made of it: the truth all readers must see.
        self.newest: dict[str, State] = {}
        self.accepted: list[Accepted] = []
        self.barriers: list[Barrier] = []
        #: The ids that wait in the queue, in the order in which they became dirty.
        self.waiting: dict[str, Change] = {}
        self.in_flight: dict[str, Change] = {}
        self.committed: set[str] = set()  # in flight, in PostgreSQL, the answer still to come
        self.first_dirty: dict[Change, int] = {}
        self.parked: dict[str, Change] = {}
        self.queries: list[Query] = []
        self.sweep: list[Query] = []
        self.swept_to: str | None = ""  # None when the last page was read

    # --- what is there before the start

    @initialize(
        rows=st.dictionaries(item_ids, st.integers(1, BEGINNING // 2)),
        parked=st.dictionaries(item_ids, st.booleans(), max_size=2),
    )
    def begin(self, rows: dict[str, int], parked: dict[str, bool]) -> None:
        for item_id, version in rows.items():
            entry = pack(version, CREATED_US, b"old")
            self.postgres[item_id] = self.newest[item_id] = State(version, entry)
        for item_id, deleted in parked.items():
            entry = pack(BEGINNING, CREATED_US, b"" if deleted else b"parked")
            change = Change(item_id, BEGINNING, entry, deleted=deleted, now_s=0.0)
            if not deleted:
                self.cache.put(item_id, entry)
            self.parked[item_id] = change
            self.newest[item_id] = State(BEGINNING, None if deleted else entry)
        self.queue.restore_parked(self.parked.values())

    # --- writers: what ItemStore._apply does

    def write(self, item_id: str, data: bytes | None) -> None:
        self.version += 1
        entry = pack(self.version, CREATED_US, data or b"")
        change = Change(
            item_id, self.version, entry, deleted=data is None, now_s=float(self.version)
        )
        accepted = Accepted(change)
        change.settled += (accepted.told.append,)
        if data is None:
            self.cache.remove(item_id)
        else:
            self.cache.put(item_id, entry)
        self.queue.put(change)

        self.accepted.append(accepted)
        self.newest[item_id] = State(self.version, None if data is None else entry)
        older = self.waiting.get(item_id)
        self.first_dirty[change] = self.version if older is None else self.first_dirty[older]
        self.waiting[item_id] = change

    @rule(item_id=item_ids, size=sizes)
    def put(self, item_id: str, size: int) -> None:
        self.write(item_id, b"x" * size)

    @rule(item_id=item_ids)
    def delete(self, item_id: str) -> None:
        self.write(item_id, None)

    @rule()
    def wait_for_all(self) -> None:
        barrier = Barrier(self.version)
        self.barriers.append(barrier)
        self.queue.when_settled(self.version, barrier.told.append)

    # --- the persister

    @precondition(lambda self: not self.in_flight)
    @rule(items_max=st.integers(1, 4), bytes_max=st.integers(1, 2_000))
    def take(self, items_max: int, bytes_max: int) -> None:
        batch = self.queue.take(items_max, bytes_max)

        expected: list[Change] = []
        for change in islice(self.waiting.values(), items_max):
            if expected and recounted([*expected, change]) > bytes_max:
                break
            expected.append(change)
        assert sorted(batch, key=self.first_dirty.__getitem__) == expected  # 9
        assert [change.id for change in batch] == sorted({change.id for change in batch})  # 5
        self.in_flight = {change.id: change for change in batch}
        for item_id in self.in_flight:
            del self.waiting[item_id]

    @precondition(lambda self: self.in_flight)
    @rule(share=st.integers(1, 4))
    def commit(self, share: int) -> None:
        """PostgreSQL writes a part of the batch, or writes it again; nobody is told yet."""
        for change in islice(self.in_flight.values(), share):
            self.committed.add(change.id)
            old = self.postgres.get(change.id)
            if old is None or old.version < change.version:
                new = State(change.version, None if change.deleted else change.entry)
                self.postgres[change.id] = new

    @precondition(lambda self: self.committed)
    @rule()
    def settle(self) -> None:
        """The answer arrives: what the persister and ItemStore._on_settled do."""
        changes = [self.in_flight.pop(item_id) for item_id in sorted(self.committed)]
        self.committed.clear()
        self.queue.settle(changes)
        self.cache.touch(change.id for change in changes)

        for change in changes:
            self.told_of(change, None)
            self.parked.pop(change.id, None)

    @precondition(lambda self: self.in_flight.keys() - self.committed)
    @rule(which=numbers)
    def park(self, which: int) -> None:
        candidates = sorted(self.in_flight.keys() - self.committed)
        change = self.in_flight.pop(candidates[which % len(candidates)])
        reason = ValueError(change.version)
        self.queue.park(change, reason)
        self.cache.touch([change.id])

        self.told_of(change, reason)
        self.parked[change.id] = change

    @rule()
    def write_out(self) -> None:
        """The persister comes to the end of its work."""
        while self.waiting or self.in_flight:
            if not self.in_flight:
                self.take(4, 2_000)
            self.commit(4)
            self.settle()

    def told_of(self, change: Change, reason: Exception | None) -> None:
        for each in self.accepted:
            is_older = each.change.id == change.id and each.change.version <= change.version
            if is_older and not each.due:
                each.due.append(reason)

    # --- reads

    @rule(wanted=st.lists(item_ids, unique=True, min_size=1), at_once=st.booleans())
    def begin_load(self, wanted: list[str], at_once: bool) -> None:
        query = Query(self.cache.begin_load(), wanted)
        self.queries.append(query)
        if at_once:
            self.answer(query)

    @precondition(lambda self: any(query.rows is None for query in self.queries))
    @rule(which=numbers)
    def snapshot(self, which: int) -> None:
        waiting = [query for query in self.queries if query.rows is None]
        self.answer(waiting[which % len(waiting)])

    def answer(self, query: Query) -> None:
        states = ((item_id, self.postgres.get(item_id)) for item_id in query.ids)
        query.rows = [(item_id, state.entry) for item_id, state in states if state and state.entry]

    @precondition(lambda self: any(query.rows is not None for query in self.queries))
    @rule(which=numbers)
    def install(self, which: int) -> None:
        answered = [query for query in self.queries if query.rows is not None]
        query = answered[which % len(answered)]
        self.queries.remove(query)
        self.bring(query)
        absent = set(query.ids) - {item_id for item_id, _ in query.rows or ()}
        self.cache.note_absent(query.load, absent)
        self.cache.end_load(query.load)

    def bring(self, query: Query) -> None:
        before = len(self.cache)
        new = self.cache.install(query.load, query.rows or (), self.queue.pending_ids())
        assert new == len(self.cache) - before

    @precondition(lambda self: self.swept_to is not None and len(self.sweep) < 2)
    @precondition(lambda self: all(page.rows is not None for page in self.sweep))
    @rule()
    def sweep_on(self) -> None:
        """The preload asks for its next page, while the last one's rows may not be in yet."""
        self.sweep.append(Query(self.cache.begin_load(), []))

    @precondition(lambda self: any(page.rows is None for page in self.sweep))
    @rule(limit=st.integers(1, 3))
    def sweep_snapshot(self, limit: int) -> None:
        page = self.sweep[-1]
        page.ids = sorted(i for i in IDS if i > (self.swept_to or "") and self.is_row(i))[:limit]
        self.answer(page)
        self.swept_to = page.ids[-1] if page.ids else None

    def is_row(self, item_id: str) -> bool:
        state = self.postgres.get(item_id)
        return state is not None and state.entry is not None

    @precondition(lambda self: self.sweep and self.sweep[0].rows is not None)
    @rule()
    def sweep_in(self) -> None:
        query = self.sweep.pop(0)
        self.bring(query)
        self.cache.end_load(query.load)
        if not query.ids and not self.cache.overflows:
            self.cache.set_hydrated()

    @rule(room=st.integers(0, 1_000), looks=st.integers(1, 3_000))
    def evict(self, room: int, looks: int) -> None:
        """The cache may hold no more for a moment, and looks at so many items."""
        self.cache.exceed(BOUND - self.cache.bytes_used + self.cache.item_bytes - room)
        self.cache.evict(looks)
        self.cache.exceed(0)

    # --- the invariants

    @invariant()
    def reads_see_the_newest_accepted_state(self) -> None:
        for item_id in IDS:
            state = self.newest.get(item_id)
            truth = state.entry if state else None
            entry = self.cache.get(item_id)
            if entry is not None:
                assert plain(entry) == truth  # 1, 6
            elif self.cache.is_absent(item_id) or self.queue.get(item_id) is not None:
                assert truth is None  # 7
            else:  # unknown: a query must bring the truth
                row = self.postgres.get(item_id)
                assert (row.entry if row else None) == truth  # 7
                assert not self.cache.hydrated

    @invariant()
    def what_is_not_in_postgresql_is_pending(self) -> None:
        for item_id, state in self.newest.items():
            row = self.postgres.get(item_id)
            if row is None or row.version < state.version:
                change = self.queue.get(item_id)
                assert change is not None  # 3
                assert change.version == state.version  # 3
                assert item_id in self.queue.pending_ids()  # 6
                assert state.entry is None or dict(self.cache.items())[item_id] == state.entry  # 6

    @invariant()
    def the_books_are_right(self) -> None:
        dirty = [*self.waiting.values(), *self.in_flight.values()]
        assert len(self.queue) == len(dirty)
        assert self.queue.bytes_used == recounted(dirty)  # 10
        assert self.queue.has_queued == bool(self.waiting)
        assert self.queue.parked == self.parked  # 3
        assert self.queue.accepted == len(self.accepted)
        pending = self.waiting.keys() | self.in_flight.keys() | self.parked.keys()
        assert [each for each in IDS if each in self.queue.pending_ids()] == [
            each for each in IDS if each in pending
        ]
        oldest = min((self.first_dirty[change] for change in dirty), default=None)
        assert self.queue.dirty_since() == oldest  # 9
        assert self.cache.item_bytes == sum(  # 10
            Shards.OVERHEAD_BYTES + len(item_id) + len(entry)
            for item_id, entry in self.cache.items()
        )

    @invariant()
    def every_writer_is_told_once(self) -> None:
        for each in self.accepted:
            assert each.told == each.due  # 3

    @invariant()
    def barriers_pass_exactly_when_all_before_them_is_settled(self) -> None:
        oldest = min((each.change.version for each in self.accepted if not each.due), default=None)
        for barrier in self.barriers:
            is_due = oldest is None or oldest > barrier.version
            assert barrier.told == ([None] if is_due else [])  # 7
        settled = self.version if oldest is None else oldest - 1
        assert self.queue.settled_version(self.version) == settled

    def teardown(self) -> None:
        """Everything can be written out in the end, and is then in PostgreSQL as accepted."""
        self.write_out()
        self.every_writer_is_told_once()
        for item_id, state in self.newest.items():
            assert item_id in self.parked or self.postgres[item_id] == state  # 3, 4
        assert self.queue.bytes_used == 0
        assert all(barrier.told == [None] for barrier in self.barriers)


def recounted(changes: list[Change]) -> int:
    """The memory that changes pin, from scratch."""
    overhead = CHANGE_OVERHEAD_BYTES + HEADER_BYTES
    return sum(overhead + len(each.id) + len(each.data or b"") for each in changes)


def test_no_order_of_events_breaks_an_invariant() -> None:
    """Whatever writers, persister, PostgreSQL, loads and preload do, every invariant holds."""
    run_state_machine_as_test(Machine, settings=settings(max_examples=200, stateful_step_count=50))
