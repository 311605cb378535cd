"""A database made of dicts: what survives a crash, by the rules of the SQL in ``statements.py``."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from itemstore.core.audit import AuditQuery, AuditRow
from itemstore.core.cache import Row
from itemstore.core.ids import IdBlock
from itemstore.core.item import created_us_of, pack, version_of
from itemstore.core.queue import Change
from itemstore.core.record import Record, unpacked
from itemstore.storage import (
    Claim,
    ForeignChange,
    ListQuery,
    Parked,
    Standing,
    State,
    StorageRefused,
)
from tests import oracle
from tests.simulation.lease_row import LeaseRow

PURGE_MAX: Final = 1_000  # tombstones forgotten in one call
NOTES_KEPT_US: Final = 3_600_000_000  # how long a standby may ask for what is taken over
PAGE_ITEMS: Final = 2  # few, so that much happens between two pages of a walk
LOAD_ITEMS: Final = 2  # that one load brings
CHANGED_ITEMS: Final = 5
NOTES: Final = 5  # foreign changes on a page for a standby


@dataclass
class Disk:
    """The tables. ``refuses`` says which rows break a rule that somebody made in SQL."""

    items: dict[str, bytes] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    quarantine: dict[str, Change] = field(default_factory=dict)
    foreign: list[ForeignChange] = field(default_factory=list)
    audit: dict[tuple[int, str], Record] = field(default_factory=dict)
    answers: dict[tuple[str, str, int], Record] = field(default_factory=dict)
    lease: LeaseRow = field(default_factory=LeaseRow)
    purged_before: int = 0
    next_id: int = 0
    key: int = 4711
    refuses: Callable[[Change], bool] = lambda change: False
    #: The newest version that was ever committed of each id; no purge forgets it.
    committed: dict[str, int] = field(default_factory=dict)
    _foreign_seq: int = 0
    _taken_us: dict[int, int] = field(default_factory=dict)
    _reasons: dict[str, tuple[str, int]] = field(default_factory=dict)

    def version(self, item_id: str) -> int:
        """Of the item or its tombstone; -1 if there is neither."""
        entry = self.items.get(item_id)
        return self.tombstones.get(item_id, -1) if entry is None else version_of(entry)

    def newest_version(self) -> int:
        parked = (change.version for change in self.quarantine.values())
        live = map(version_of, self.items.values())
        return max([self.lease.clock, *live, *self.tombstones.values(), *parked])

    # --- writing

    def write(self, changes: Sequence[Change], claim: Claim, now_us: int) -> Standing:
        is_held = self.lease.is_held(claim)
        batch = [change for change in changes if change.is_acked or is_held]
        refused = [change.id for change in batch if self.refuses(change)]
        if refused:
            raise StorageRefused(f"a rule is broken by {refused}")
        for change in batch:
            if change.version > self.version(change.id):
                self._put(change.id, change.version, None if change.deleted else change.entry)
                if not is_held:
                    self._note(change.id, change.version)
            self._record(change)
        return self.lease.beat(claim, now_us)

    def _record(self, change: Change) -> None:
        for record in map(unpacked, change.records):
            if record.is_audited:
                self.audit.setdefault((record.version, record.id), record)
            if record.key is not None:
                place = record.caller, record.key, record.position
                old = self.answers.get(place)
                if old is None or old.version < record.version:
                    self.answers[place] = record

    def repetitions(self, scopes: Sequence[tuple[str, str]], since: int) -> list[Record]:
        return [
            record
            for (caller, key, _), record in self.answers.items()
            if (caller, key) in scopes and record.version >= since
        ]

    def audited(self, query: AuditQuery) -> list[AuditRow]:
        """Without the filters: their SQL has tests of its own."""
        rows = (
            AuditRow(v, item_id, v, each.what, each.caller, each.request_id, each.address)
            for (v, item_id), each in sorted(self.audit.items(), reverse=True)
        )
        return [row for row in rows if query.after is None or row[:2] < query.after][: query.limit]

    def purge_records(self, before: int) -> int:
        old = [place for place, record in self.answers.items() if record.version < before]
        for place in old:
            del self.answers[place]
        return len(old)

    def _put(self, item_id: str, version: int, entry: bytes | None) -> None:
        if entry is None:
            self.items.pop(item_id, None)
            self.tombstones[item_id] = version
        else:
            self.items[item_id] = entry
            self.tombstones.pop(item_id, None)
        self.committed[item_id] = max(version, self.committed.get(item_id, -1))

    def park(self, change: Change, reason: str, now_us: int) -> None:
        old = self.quarantine.get(change.id)
        if old is None or old.version < change.version:
            self.quarantine[change.id] = change
            self._reasons[change.id] = reason, now_us
        self._record(change)

    def release(self, ids: Sequence[str]) -> None:
        for item_id in ids:
            self.quarantine.pop(item_id, None)

    def release_overtaken(self) -> None:
        """What a crash kept from being released."""
        for change in list(self.quarantine.values()):
            if self._is_overtaken(change):
                del self.quarantine[change.id]

    def _is_overtaken(self, change: Change) -> bool:
        return self.version(change.id) > change.version

    def parked(self) -> tuple[Parked, ...]:
        """Copies of all but what a newer write has overtaken."""
        parked = [each for each in self.quarantine.values() if not self._is_overtaken(each)]
        return tuple(
            Parked(
                Change(change.id, change.version, change.entry, deleted=change.deleted, now_s=0.0),
                *self._reasons[change.id],
            )
            for change in sorted(parked, key=lambda change: change.version)
        )

    def purge(self, before: int, now_us: int) -> int:
        old = sorted((v, item_id) for item_id, v in self.tombstones.items() if v < before)
        for _, item_id in old[:PURGE_MAX]:
            del self.tombstones[item_id]
        if old:
            self.purged_before = max(self.purged_before, before)
        ended = {seq for seq, us in self._taken_us.items() if us < now_us - NOTES_KEPT_US}
        self.foreign = [change for change in self.foreign if change.seq not in ended]
        return len(old[:PURGE_MAX])

    def lease_ids(self, count: int) -> IdBlock:
        self.next_id += count
        return IdBlock(self.next_id - count, count, self.key)

    # --- reading

    def load(self, ids: Sequence[str]) -> list[Row]:
        return [(item_id, self.items[item_id]) for item_id in ids if item_id in self.items]

    def select(self, query: ListQuery) -> list[Row]:
        page: list[Row] = []
        size = 0
        for row in oracle.selected(list(self.items.items()), query):
            if len(page) == query.limit or size >= query.bytes_max:
                break
            page.append(row)
            size += len(row[1])
        return page

    def count(self, query: ListQuery) -> int:
        return sum(oracle.matches(row, query) for row in self.items.items())

    def states(self, ids: Sequence[str]) -> list[State]:
        return [State(each, self.items.get(each), max(0, self.version(each))) for each in ids]

    def changes(self, after: int) -> tuple[list[State], int | None]:
        changed = [State(item_id, e, version_of(e)) for item_id, e in self.items.items()]
        changed += [State(item_id, None, version) for item_id, version in self.tombstones.items()]
        changed = [state for state in changed if state.version > after]
        changed.sort(key=lambda state: state.version)
        if len(changed) < CHANGED_ITEMS:
            return changed, None
        end = changed[CHANGED_ITEMS - 1].version
        return [state for state in changed if state.version <= end], end

    # --- another hand than the holder's

    def change_by_hand(self, item_id: str, text: bytes | None, now_us: int) -> None:
        """INSERT, UPDATE or, without a text, DELETE in psql; the triggers do the rest."""
        old = self.items.get(item_id)
        version = max(now_us, self.version(item_id) + 1) | 1
        created = version if old is None else created_us_of(old)
        self._put(item_id, version, None if text is None else pack(version, created, text))
        self._note(item_id, version)

    def truncate(self, now_us: int) -> None:
        """TRUNCATE leaves no tombstones: its note says what is gone."""
        version = max([now_us, *(version_of(entry) + 1 for entry in self.items.values())]) | 1
        self.items.clear()
        self._note("", version)

    def _note(self, item_id: str, version: int) -> None:
        self._foreign_seq += 1
        self.foreign.append(ForeignChange(self._foreign_seq, item_id, version))

    def foreign_changes(self) -> list[ForeignChange]:
        return [change for change in self.foreign if change.seq not in self._taken_us]

    def foreign_changes_since(self, since_us: int, after_seq: int) -> list[ForeignChange]:
        return [
            change
            for change in self.foreign
            if change.seq > after_seq and self._taken_us.get(change.seq, since_us) >= since_us
        ][:NOTES]

    def forget_foreign_changes(self, seqs: Sequence[int], now_us: int) -> None:
        self._taken_us.update(dict.fromkeys(seqs, now_us))


class Walk:
    """``Storage.page``, as ``walk.py`` does it: first all rows as they lie, then what changed.

    A row that changes while it is walked moves, perhaps to where the walk has been already; and
    the table may be written anew, so that all begins again.
    """

    def __init__(self, disk: Disk, chance: random.Random) -> None:
        self._disk = disk
        self._chance = chance
        self._ids: list[str] = []
        self._found: dict[str, bytes] = {}
        self._since = 0

    def page(self, position: int) -> tuple[list[Row], int | None]:
        if position == 0:
            self._found = dict(self._disk.items)
            self._ids = self._chance.sample(list(self._found), len(self._found))
            self._since = max(1, self._disk.lease.settled)
        if 0 <= position < len(self._ids):
            end = position + PAGE_ITEMS
            rows = self._disk.load(self._ids[position:end])
            lying = [row for row in rows if not (self._is_changed(row) and self._moves())]
            return lying, end if end < len(self._ids) else -self._since
        changed, following = self._disk.changes(-position if position < 0 else self._since)
        rows = [(state.id, state.entry) for state in changed if state.entry is not None]
        if following is not None:
            return rows, -following
        return rows, 0 if self._chance.random() < 0.1 else None

    def _is_changed(self, row: Row) -> bool:
        return row[1] != self._found[row[0]]

    def _moves(self) -> bool:
        return self._chance.random() < 0.5
