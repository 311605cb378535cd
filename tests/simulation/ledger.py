"""What is true of several instances over one database, and what may be answered by each.

The ledger listens where an instance accepts a write, where PostgreSQL applies it and where it is
refused. Of each write it knows the version it was decided on; so where a write reaches the disk it
is known whether it overtakes one that it does not know of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from itemstore.core.item import Item, pack, plain, version_of
from itemstore.core.operation import Write
from itemstore.core.queue import Change
from itemstore.core.record import Origin
from itemstore.options import Durability
from itemstore.storage import Claim, Standing
from itemstore.store import ItemStore
from tests.simulation.disk import Disk
from tests.simulation.world import World

HAND: Final = "hand"  # what the ids begin with that only other hands change


@dataclass
class Entry:
    """One accepted write."""

    change: Change
    base: int | None  #: the version it was decided on; None: of an absent item
    writer: str
    is_acked: bool = False
    is_refused: bool = False
    has_landed: bool = False


@dataclass(frozen=True)
class Floor:
    """What was certain of an item when a call began: no answer may be older."""

    committed: int  #: the newest version written under the lease
    own: int  #: the newest that this instance has acknowledged
    acked: int  #: the newest that any has acknowledged


class Ledger:
    def __init__(self, world: World, disk: Disk) -> None:
        self.world = world
        self.disk = disk
        self.initial = dict(disk.items)
        self.writes: dict[str, dict[int, Entry]] = defaultdict(dict)
        self._committed = {item_id: version_of(entry) for item_id, entry in disk.items.items()}
        self._acked: dict[str, int] = {}
        self._own: dict[tuple[str, str], int] = {}
        self._answers: dict[str, Item] = {}
        self._write = disk.write
        disk.write = self._listening_write  # type: ignore[method-assign]

    def ids(self) -> list[str]:
        return sorted({*self.initial, *self.writes})

    # --- as it happens

    def listen(self, name: str, store: ItemStore) -> None:
        """Every write this store accepts or refuses is noted."""
        apply, fence = store._apply, store.queue.fence

        def listening_apply(
            operation: Write,
            item_id: str,
            old: bytes | None,
            text: Any,
            level: Durability,
            origin: Origin | None,
            position: int,
        ) -> Any:
            pending = store.queue.get(item_id)
            known = old if old is not None else pending.entry if pending else None
            base = None if known is None else version_of(known)
            accepted = apply(operation, item_id, old, text, level, origin, position)
            change = accepted.change
            self.world.tell(f"{name} accepts {change} on {base} at {level}")
            is_unique = change.version not in self.writes[item_id]
            self.world.check(is_unique, f"no version is given out twice: {change}")
            self.writes[item_id][change.version] = Entry(change, base, name)
            return accepted

        def listening_fence(changes: Iterable[Change], reason: Exception) -> None:
            changes = list(changes)
            for change in changes:
                self.world.tell(f"{name} refuses {change}")
                self.writes[change.id][change.version].is_refused = True
            fence(changes, reason)

        store._apply = listening_apply  # type: ignore[method-assign]
        store.queue.fence = listening_fence  # type: ignore[method-assign]

    def change_by_hand(self, item_id: str, text: bytes | None) -> None:
        """Somebody in psql; no instance need know of it before it takes the change over."""
        old = self.disk.items.get(item_id)
        self.disk.change_by_hand(item_id, text, self.world.now_us())
        version = self.disk.version(item_id)
        entry = self.disk.items.get(item_id, pack(version, version, b""))
        change = Change(item_id, version, entry, deleted=text is None, now_s=0.0)
        base = None if old is None else version_of(old)
        self.writes[item_id][version] = Entry(change, base, HAND, has_landed=True)

    def _listening_write(self, changes: Sequence[Change], claim: Claim, now_us: int) -> Standing:
        disk = self.disk
        before = {each.id: (disk.version(each.id), each.id in disk.items) for each in changes}
        standing = self._write(changes, claim, now_us)
        for change in changes:
            version, is_live = before[change.id]
            if version < self.disk.version(change.id) == change.version:
                self.world.tell(f"written by {claim.holder}, held {standing.is_held}: {change}")
                self._land(change, version, is_live, is_held=standing.is_held)
        return standing

    def _land(self, change: Change, before: int, is_live: bool, *, is_held: bool) -> None:
        entry = self.writes[change.id][change.version]
        entry.has_landed = True
        is_due = is_held or change.is_acked
        self.world.check(is_due, f"what nobody was told of needs the lease: {change}")
        if before == self._committed.get(change.id):
            is_known = self._knows(change, before, is_live)
            about = f"{change} on {entry.base} overtakes {before}, unknown to it"
            self.world.check(is_known, about)
        if is_held:
            self._committed[change.id] = change.version

    def _knows(self, change: Change, version: int, is_live: bool) -> bool:
        """Whether the change was decided on this version, or on one decided on it."""
        writes, at = self.writes[change.id], change.version
        while at > version:
            base = writes[at].base if at in writes else None
            if base is None:
                return not is_live
            at = base
        return at == version

    # --- answers

    def floor(self, name: str, item_id: str) -> Floor:
        return Floor(
            self._committed.get(item_id, 0),
            self._own.get((name, item_id), 0),
            self._acked.get(item_id, 0),
        )

    def check_read(
        self, name: str, item_id: str, found: bytes | None, floor: Floor, *, is_standby: bool
    ) -> None:
        """The answer is a state there was, no older than what was certain when the read began."""
        oldest = max(floor.committed, floor.own)
        about = f"{name} answers {item_id}: {found!r}; {floor}"
        if found is None:
            deletes = [v for v, each in self.writes[item_id].items() if each.change.deleted]
            is_right = oldest == 0 or max(deletes, default=0) >= oldest
            self.world.check(is_right, f"a read sees what is committed: {about}")
            return
        version = version_of(found)
        self.world.check(version >= oldest, f"a read sees what is committed: {about}, {version}")
        entry = self.writes[item_id].get(version)
        known = self.initial.get(item_id) if entry is None else entry.change.entry
        self.world.check(found == known, f"what is read was written: {about}")
        is_sure = entry is None or entry.has_landed or entry.is_acked or entry.change.is_acked
        self.world.check(is_sure or not is_standby, f"a standby shows what may never be: {about}")

    def acknowledge(self, name: str, item_id: str, version: int, floor: Floor, level: str) -> None:
        """The client has its OK."""
        about = f"{name} acknowledges {item_id} {version} at {level}; {floor}"
        self.world.tell(about)
        self.world.check(version > floor.acked, f"versions grow from answer to call: {about}")
        if level == Durability.COMMIT:
            is_safe = self.disk.committed.get(item_id, -1) >= version
            self.world.check(is_safe, f"what is acknowledged at commit is there: {about}")
        self.writes[item_id][version].is_acked = True
        self._acked[item_id] = max(version, self._acked.get(item_id, 0))
        key = name, item_id
        self._own[key] = max(version, self._own.get(key, 0))

    def answer(self, key: str, item: Item) -> None:
        """The request with this key is answered, perhaps not for the first time."""
        self.world.tell(f"{key} is answered: {item.id} {item.version}")
        first = self._answers.setdefault(key, item)
        self.world.check(first == item, f"the same answer each time: {first}, {item}")
        is_safe = self.disk.committed.get(item.id, -1) >= item.version
        self.world.check(is_safe, f"what is acknowledged at commit is there: {item}")

    # --- at the end

    def check_records(self, excused: Sequence[tuple[str, str | None]]) -> None:
        """Every write that landed or was promised has its row, no other; each key has one item."""
        rows = {(item_id, version) for version, item_id in self.disk.audit}
        for item_id, writes in self.writes.items():
            for version, entry in writes.items():
                is_lost = {(entry.writer, None), (entry.writer, item_id)} & set(excused)
                is_due = entry.has_landed or (entry.is_acked and not is_lost)
                is_there = (item_id, version) in rows
                is_right = is_there if is_due else not (is_there and entry.is_refused)
                about = f"a row for each write: {entry}"
                self.world.check(is_right or entry.writer == HAND, about)
        unknown = [(each, version) for each, version in rows if version not in self.writes[each]]
        self.world.check(not unknown, f"no row for what nobody wrote: {unknown}")
        landed = (e.change for each in self.writes.values() for e in each.values() if e.has_landed)
        keys = Counter(each.data for each in landed if (each.data or b"").startswith(b'{"key"'))
        twice = [key for key, count in keys.items() if count > 1]
        self.world.check(not twice, f"a request with a key is carried out once: {twice}")

    def check_kept(self, excused: Sequence[tuple[str, str | None]]) -> None:
        """Every acknowledged write is on the disk, or a newer one; but of those who were killed."""
        for item_id, writes in self.writes.items():
            for version, entry in writes.items():
                is_excused = {(entry.writer, None), (entry.writer, item_id)} & set(excused)
                if entry.is_acked and not (is_excused and not entry.has_landed):
                    is_kept = self.disk.committed.get(item_id, -1) >= version
                    self.world.check(is_kept, f"what was acknowledged is kept: {entry}")

    def check_agreement(self, name: str, store: ItemStore) -> None:
        """What this instance has in memory is what the disk has."""
        cache, items = store.cache, self.disk.items
        self.world.check(not len(store.queue), f"{name} has written everything")
        cached = {item_id: plain(entry) for item_id, entry in cache.items()}
        wrong = [each for each, entry in cached.items() if items.get(each) != entry]
        self.world.check(not wrong, f"{name}, {store.lease.state}, has what the disk has: {wrong}")
        missing = items.keys() - cached.keys() if cache.hydrated else set()
        self.world.check(not missing, f"{name}, {store.lease.state}, has all: {missing}")
        absent = [each for each in cache._absent if each in items]
        self.world.check(not absent, f"{name} does not take {absent} for absent")
