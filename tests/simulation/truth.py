"""What is true: every accepted write in its order, and what must follow from it.

The truth listens where a write joins the queue, the moment it is accepted, and checks it on the
spot. From then on it knows what every item is and was since any moment, and what the database
has to hold when the world is at rest, when the store is closed and after it crashed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from itemstore.core.item import created_us_of, data_of
from itemstore.core.queue import Change
from itemstore.core.table import Table
from itemstore.loader import LOADS_MAX
from itemstore.store import ItemStore
from tests.simulation.disk import Disk
from tests.simulation.hand import IDS as HAND_IDS
from tests.simulation.world import World

COUNTER: Final = "counter"  # what the ids begin with whose "n" only grows, by one


@dataclass
class Moment:
    """What an item was from the write number ``since`` on."""

    since: int
    entry: bytes | None  #: None: absent
    change: Change | None  #: that made it so; None for what a life found in the database
    is_promised: bool = False  #: acknowledged in a way that no crash may undo

    @property
    def version(self) -> int:
        return self.change.version if self.change is not None else 0


class Truth:
    """``on_accept`` is told each accepted write: the change, what was, what is."""

    on_accept: Callable[[Change, Moment, Moment], None]
    store: ItemStore

    def __init__(self, world: World, disk: Disk) -> None:
        self.world = world
        self.check = world.check
        self.writes = 0
        self._disk = disk
        self._newest_version = 0
        self._history: dict[str, list[Moment]] = {}
        self._dirty: dict[str, None] = {}  # queued ids, by when they first became dirty

    def begin(self, store: ItemStore) -> None:
        """A new life: what the disk holds is true; every write to this store is listened to."""
        self.store = store
        self._dirty.clear()
        parked = {each.change.id: each.change for each in self._disk.parked()}
        self._history = {
            item_id: [Moment(self.writes, entry, parked.get(item_id))]
            for item_id, entry in self._found().items()
        }
        put, take = store.queue.put, store.queue.take

        def listening_put(change: Change) -> None:
            put(change)
            self._accept(change)

        def listening_take(items_max: int, bytes_max: int) -> list[Change]:
            batch = take(items_max, bytes_max)
            self._take(batch)
            return batch

        store.queue.put = listening_put  # type: ignore[method-assign]
        store.queue.take = listening_take  # type: ignore[method-assign]
        self.world.at_rest = self._at_rest

    # --- what is, and what was

    def ids(self) -> list[str]:
        return list(self._history)

    def now(self, item_id: str) -> bytes | None:
        history = self._history.get(item_id)
        return history[-1].entry if history else None

    def began(self) -> int | None:
        """The number of writes so far, as long as reads go through the database."""
        return None if self.store.lease.is_holder else self.writes

    def since(self, item_id: str, write: int) -> list[Moment]:
        """What the item was at some moment from this write on."""
        history = self._of(item_id)
        first = max(place for place, moment in enumerate(history) if moment.since <= write)
        return history[first:]

    def is_refused(self, moments: Sequence[Moment]) -> bool:
        """Whether one of them is kept out of the database, so that lists may miss it."""
        return any(moment.change and self._disk.refuses(moment.change) for moment in moments)

    def is_safe(self, change: Change, *, or_parked: bool = False) -> bool:
        """Whether it is committed, or something newer of the same id."""
        parked = self._disk.quarantine.get(change.id)
        if or_parked and parked is not None and parked.version >= change.version:
            return True
        return self._disk.committed.get(change.id, -1) >= change.version

    def _of(self, item_id: str) -> list[Moment]:
        return self._history.setdefault(item_id, [Moment(0, None, None)])

    def _found(self) -> dict[str, bytes | None]:
        """What a new store would serve of every id."""
        found: dict[str, bytes | None] = dict.fromkeys(self._history)
        found |= {each: entry for each, entry in self._disk.items.items() if each not in HAND_IDS}
        for each in self._disk.parked():
            found[each.change.id] = None if each.change.deleted else each.change.entry
        return found

    # --- as it happens

    def _accept(self, change: Change) -> None:
        self.world.tell(f"accepted {change}")
        self.writes += 1
        old = self._of(change.id)[-1]
        new = Moment(self.writes, None if change.deleted else change.entry, change)
        self._history[change.id].append(new)
        self._dirty.setdefault(change.id)
        self._check_change(change, old.entry)
        self.on_accept(change, old, new)
        queue, options = self.store.queue, self.store.options
        items, size = len(queue), queue.bytes_used
        is_bounded = items <= options.queue_items_max and size <= options.queue_bytes_max
        self.check(is_bounded, f"the queue is bounded: {items} items, {size} bytes")

    def _check_change(self, change: Change, old: bytes | None) -> None:
        is_new_version = change.version > self._newest_version
        self.check(is_new_version, f"versions grow and are never reused: {change}")
        self._newest_version = change.version
        created = change.version if old is None else created_us_of(old)
        self.check(change.created_us == created, f"created_at is kept while it lives: {change}")
        self.check(not (change.deleted and old is None), f"only what exists is deleted: {change}")
        if change.id.startswith(COUNTER):
            is_next = _n(change.data) == (0 if old is None else _n(data_of(old)) + 1)
            self.check(is_next, f"no increment is lost: {change}")

    def _take(self, batch: list[Change]) -> None:
        self.world.tell(f"taken {batch}")
        oldest = sorted(list(self._dirty)[: len(batch)])
        self.check([change.id for change in batch] == oldest, "the oldest dirty is taken first")
        for change in batch:
            del self._dirty[change.id]

    def _at_rest(self) -> None:
        """All that could run has run: nobody waits for what is there."""
        queue, loader = self.store.queue, self.store.loader
        persister, admission = self.store.persister, self.store.admission
        known = persister.committed + queue.coalesced + persister.quarantined + len(queue)
        self.check(queue.accepted == known, f"the books agree: {queue.accepted}, {known}")
        lease = self.store.lease
        self.check(not (lease.lost or queue.fenced), "there is nobody to lose the lease to")
        is_fine = len(queue) > 0 or persister.failing_since is None
        self.check(is_fine, f"nothing fails when nothing is to be written: {persister.failure}")
        has_room = bool(admission._waiting) and admission._room() > 0
        self.check(not has_room, f"{len(admission._waiting)} writers wait though there is room")
        is_idle = bool(loader._wanted) and len(loader._tasks) < LOADS_MAX
        self.check(not is_idle, f"nobody loads {list(loader._wanted)}")
        for item_id in queue.parked:
            is_refused = self.is_refused(self._of(item_id))
            self.check(is_refused, f"only what is refused is parked: {item_id}")

    # --- at the end

    def check_drained(self) -> None:
        """Nothing is under way any more, and nothing of it is left."""
        queue, cache, loader = self.store.queue, self.store.cache, self.store.loader
        self.check(not len(queue) and queue.dirty_since() is None, "the queue is empty at last")
        parked = self._disk.quarantine
        self.check(queue.parked.keys() == parked.keys(), f"what is parked is known: {parked}")
        left = (queue._barriers, cache._loads, loader._wanted, loader._loading, loader._tasks)
        self.check(not any(left), f"nobody waits any more: {left}")
        overhead = Table.OVERHEAD_BYTES + 1
        size = sum(overhead + len(id.encode()) + len(entry) for id, entry in cache.items())
        self.check(
            (queue.bytes_used, cache._table.bytes_used) == (0, size), "all bytes are counted"
        )

    def check_closed(self, left: Sequence[str]) -> None:
        """After a clean close the database holds everything but what the close owned up to."""
        dirty = sorted(self.store.queue.dirty_ids())
        self.check(dirty == list(left), f"close tells what it left: {left}, not {dirty}")
        for item_id, history in self._history.items():
            if item_id not in left:
                self._check_kept(item_id, history[-1])
        self.check_survived()

    def _check_kept(self, item_id: str, newest: Moment) -> None:
        item, parked = self._disk.items.get(item_id), self._disk.quarantine.get(item_id)
        if newest.change is not None and self._disk.refuses(newest.change):
            change = newest.change
            is_kept = parked is not None and (parked.version, parked.entry) == (
                change.version,
                change.entry,
            )
        else:
            is_kept = item == newest.entry and parked is None
        self.check(is_kept, f"{item_id} is {newest}; in the database {item!r}, parked {parked}")

    def check_survived(self) -> None:
        """Each item is as it was at some time, and no earlier than was promised or committed."""
        found = self._found()
        for item_id, history in self._history.items():
            committed = self._disk.committed.get(item_id, -1)
            kept = max(
                place
                for place, moment in enumerate(history)
                if place == 0 or moment.is_promised or moment.version <= committed
            )
            is_kept = found[item_id] in [moment.entry for moment in history[kept:]]
            self.check(is_kept, f"{item_id} is {found[item_id]!r}, there was {history[kept]}")
        unknown = found.keys() - self._history.keys()
        self.check(not unknown, f"nothing comes from nowhere: {unknown}")


def _n(data: bytes | None) -> int:
    return int(orjson.loads(data or b"")["n"])
