"""Compares what the clients were told with what is left.

The rules, by number:

1. What was acknowledged at a level that survives the fault is in the final state, or superseded by
   a newer version that some client meant.
2. Versions respect real time: answered before another was sent, of a lower version than it. No two
   writes share one.
3. Nothing is invented: every state anybody ever saw was meant by a client, of that item, and not
   refused; the same version is the same bytes wherever it is seen.
4. A deleted item stays away until it is written again.
5. A read is never older than what was acknowledged, or read, before it was sent.
6. Nothing is overwritten unseen: acknowledged increments of a counter ≤ its final value ≤ those and
   the open ones, no two to one value; a patch changes the newest state there was.
7. The store's own books balance: accepted = committed + coalesced + quarantined + fenced
   + dirty.

An open operation (connection lost, 503 ``commit_unconfirmed``) may have happened or not, at any
time from its start to the death of its server. A *life* is the time between two kills.

    python -m tests.faults.checker DIRECTORY        judges a round that was kept
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import orjson

from tests.faults.history import NOT_SENT, VERSIONED, History, Kill, Op, State, read_directory
from tests.faults.orders import check_clock, check_unseen
from tests.faults.origins import Origins
from tests.faults.verdict import Rules, Verdict, told

_NO_CODE: Final = {NOT_SENT: "not sent"}


@dataclass(frozen=True, slots=True)
class _Known:
    """At ``end`` somebody knew of this version; its write did not begin before ``born``."""

    version: int
    born: float
    end: float
    life: int
    survives: bool
    what: str


@dataclass(frozen=True, slots=True)
class _View:
    """Somebody looks at the items: a read, or at the end the harness."""

    where: str
    rule: int
    begin: float
    end: float
    life: int


class Checker:
    """Judges one history, and what is left of it."""

    def __init__(self, history: History, rules: Rules) -> None:
        self.history = history
        self._rules = rules
        self.verdict = Verdict()
        self._origins = Origins(history, self.verdict)

    def check(self, final: State | None = None) -> Verdict:
        self._check_answers()
        check_clock(self.history, self.verdict)
        self._check_reads()
        check_unseen(self.history, self._rules, final, self.verdict)
        if final is not None:
            self.check_state(final, len(self._rules.kills), math.inf, "the final state")
        return self.verdict

    def check_state(
        self, state: State, life: int, at: float, where: str, *, but: Iterable[str] = ()
    ) -> None:
        """What was left at some time in this life; ``math.inf`` for its end; ``but`` these ids."""
        view = _View(where, 1, math.inf, at, life)
        for item_id in (self.history.ids() | state.newest.keys()).difference(but):
            before = [k for k in self._known[item_id] if k.life < life and k.survives]
            now = [k for k in self._known[item_id] if k.life == life and k.end < at]
            newest = max([*before, *now], key=lambda k: k.version, default=None)
            version, envelope = state.newest.get(item_id, (0, None))
            right = self._observe(item_id, newest, envelope, view)
            if right and envelope is None and newest is not None and version < newest.version:
                right = False
                self.verdict.add(1, f"{where} has no tombstone of {item_id} after {newest.version}")
            if not right:
                lost = sum(k.version > version and k.survives for k in (*before, *now))
                self.verdict.lost += max(1, lost)
        self._check_agreement(state)

    # --- who did what when

    def _end(self, op: Op) -> float:
        """When it has happened at the latest, if it has."""
        if op.fate == "acknowledged":
            return op.end
        deaths = (kill.died for kill in self._rules.kills if op.start < kill.died)
        return min(deaths, default=math.inf)

    @cached_property
    def _deletes(self) -> dict[str, list[Op]]:
        found: dict[str, list[Op]] = defaultdict(list)
        for op in self.history.ops:
            if op.kind == "delete" and op.id is not None and op.fate != "refused":
                found[op.id].append(op)
        return found

    @cached_property
    def _known(self) -> dict[str, list[_Known]]:
        """Of each item, in the order in which it became known."""
        found: dict[str, list[_Known]] = defaultdict(list)
        for op in self.history.ops:
            if not op.is_acknowledged or not op.version or op.id is None:
                continue
            life = self._rules.life(op.start)
            if op.is_write:
                what = f"operation {op.number} ({op.kind}), acknowledged at {op.level}"
                known = _Known(
                    op.version, op.start, op.end, life, self._rules.survives_kill(op), what
                )
            else:
                writer = self._origins.writer(op.body)
                born = writer.start if writer else -math.inf
                known = _Known(op.version, born, op.end, life, False, f"read by {op.number}")
            found[op.id].append(known)
        for each in found.values():
            each.sort(key=lambda known: known.end)
        return found

    # --- rules 1, 4 and 5

    def _observe(
        self, item_id: str, newest: _Known | None, envelope: str | None, view: _View
    ) -> bool:
        """Judges a state against the newest one known before. False if it is wrong."""
        if envelope is None:
            if newest is None or any(
                op.start < view.end and self._end(op) > newest.born
                for op in self._deletes.get(item_id, ())
            ):
                return True
            self.verdict.add(
                view.rule,
                f"{view.where} lacks {item_id}, of which version {newest.version} was known "
                f"({newest.what}) and which nobody deleted since",
            )
            return False
        version = orjson.loads(envelope)["version"]
        origin = self._origins.check(item_id, envelope, view.end, view.where)
        if newest is not None and version < newest.version:
            self.verdict.add(
                view.rule,
                f"{view.where} shows {item_id} version {version}, though {newest.version} was "
                f"known ({newest.what})",
            )
            return False
        return origin is None or self._is_alive(item_id, version, origin, view)

    def _is_alive(self, item_id: str, version: int, origin: Op, view: _View) -> bool:
        for op in self._deletes.get(item_id, ()):
            counts = self._rules.life(op.start) == view.life or self._rules.survives_kill(op)
            before = op.is_acknowledged and op.end < min(view.begin, view.end)
            if counts and before and self._end(origin) < op.start:
                self.verdict.add(
                    4,
                    f"{view.where} shows {item_id} version {version}, which operation "
                    f"{op.number} deleted, acknowledged at {op.level}",
                )
                return False
        return True

    def _check_reads(self) -> None:
        reads: dict[tuple[str, int], list[Op]] = defaultdict(list)
        for op in self.history.reads():
            if op.status in (200, 404) and op.id is not None:
                reads[op.id, self._rules.life(op.start)].append(op)
                self.verdict.reads += 1
        for (item_id, life), ops in reads.items():
            known = [k for k in self._known[item_id] if k.life == life or k.survives]
            self._check_reads_of(item_id, known, sorted(ops, key=lambda op: op.start), life)

    def _check_reads_of(
        self, item_id: str, known: list[_Known], ops: Iterable[Op], life: int
    ) -> None:
        newest, position = None, 0
        for op in ops:
            while position < len(known) and known[position].end < op.start:
                if newest is None or newest.version < known[position].version:
                    newest = known[position]
                position += 1
            envelope = op.body if op.status == 200 else None
            view = _View(f"read {op.number}", 5, op.start, op.end, life)
            self._observe(item_id, newest, envelope, view)

    def _check_agreement(self, state: State) -> None:
        for item_id in state.rows.keys() & state.tombstones.keys():
            self.verdict.add(4, f"{item_id} has both a row and a tombstone")
        for item_id, answer in (state.answers or {}).items():
            stored = state.newest.get(item_id, (0, None))[1]
            if answer != stored:
                self.verdict.add(1, f"{item_id} is {answer} over HTTP and {stored} in PostgreSQL")
        if state.listed is not None and state.listed != state.total:
            self.verdict.add(1, f"the list counts {state.listed} items of {state.total}")
        if state.quarantine and not self._rules.quarantine:
            self.verdict.add(1, f"in quarantine: {sorted(state.quarantine)[:10]}")

    # --- what was answered

    def _check_answers(self) -> None:
        if not self.history.is_complete:
            self.verdict.add(3, "the clients did not end by themselves: the history is not whole")
        strange: Counter[str] = Counter()
        for op in self.history.ops:
            if op.is_write:
                self._count(op)
            strange.update(self._strange(op))
        for sentence, count in strange.items():
            self.verdict.add(3, f"{sentence}, {count} times")

    def _strange(self, op: Op) -> Iterable[str]:
        parked = self._rules.quarantine and op.code == "item_quarantined"
        if op.status in (400, 405, 408, 413, 415, 422) or (
            op.status >= 500 and op.status != 503 and not parked
        ):
            yield f"{op.kind} was answered {op.status} {op.code}"
        if op.status == 503 and not op.retry_after:
            yield f"{op.kind} was answered 503 {op.code} without Retry-After"
        if op.is_write and op.is_acknowledged and op.given != op.level:
            yield f"{op.kind} asked for {op.level!r} and was given {op.given!r}"
        if op.is_acknowledged and op.kind in VERSIONED and not op.version:
            yield f"{op.kind} was answered {op.status} without a version"

    def _count(self, op: Op) -> None:
        match op.fate:
            case "acknowledged":
                self.verdict.acknowledged += 1
                if op.version and op.id is not None:
                    self._origins.check(op.id, op.body, op.end, f"the answer to {op.number}")
            case "open":
                self.verdict.open += 1
            case "refused":
                self.verdict.refused[op.code or _NO_CODE.get(op.status, str(op.status))] += 1


def judge_directory(directory: Path) -> Verdict:
    """A round that was kept: histories, rules.json, final.json."""
    read = orjson.loads((directory / "rules.json").read_bytes())
    rules = Rules(
        kills=tuple(Kill(**kill) for kill in read["kills"]),
        survives=frozenset(read["survives"]),
        quarantine=read["quarantine"],
    )
    final = directory / "final.json"
    checker = Checker(read_directory(directory), rules)
    return checker.check(State.read(final) if final.exists() else None)


if __name__ == "__main__":
    verdict = judge_directory(Path(sys.argv[1]))
    print(f"{verdict.acknowledged} acknowledged, {verdict.lost} lost")
    print(told(verdict.violations))
    sys.exit(1 if verdict.violations else 0)
