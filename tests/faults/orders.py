"""Rules 2 and 6: the order of versions, and that nothing is overwritten unseen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import orjson

from tests.faults.history import History, Op, State
from tests.faults.verdict import Rules, Verdict


def check_clock(history: History, verdict: Verdict) -> None:
    """Rule 2, over all items: the store has one clock."""
    known = [op for op in history.ops if op.is_acknowledged and op.version]
    writes = [op for op in known if op.is_write]
    for version, count in Counter(op.version for op in writes).items():
        if count > 1:
            verdict.add(2, f"{count} writes were given the version {version}")
    by_end = sorted(known, key=lambda op: op.end)
    newest, position = None, 0
    for op in sorted(writes, key=lambda op: op.start):
        while by_end[position].end < op.start:
            if newest is None or newest.version < by_end[position].version:
                newest = by_end[position]
            position += 1
        if newest is not None and op.version <= newest.version:
            verdict.add(
                2,
                f"operation {op.number} was given version {op.version}, though "
                f"{newest.version} was answered before to operation {newest.number}",
            )


def check_unseen(history: History, rules: Rules, final: State | None, verdict: Verdict) -> None:
    """Rule 6. Where acknowledged writes may be lost, only what holds all the same."""
    counters: dict[str, list[Op]] = defaultdict(list)
    for op in history.ops:
        if op.kind == "add" and op.id is not None and op.fate != "refused":
            counters[op.id].append(op)
    for item_id, ops in counters.items():
        done = [op for op in ops if op.is_acknowledged]
        keeps = _keeps(rules, done)
        for value, count in Counter(orjson.loads(op.data)["n"] for op in done).items():
            if count > 1 and keeps:
                verdict.add(6, f"{count} increments of {item_id} to {value}: one is lost")
        if final is not None:
            least = len(done) if keeps else 0
            envelope = final.newest.get(item_id, (0, None))[1]
            value = orjson.loads(envelope)["data"]["n"] if envelope else 0
            if not least <= value <= len(ops):
                verdict.add(6, f"{item_id} is {value} after {least} to {len(ops)} increments")
    if _keeps(rules, history.acknowledged()):
        _check_patches(history, verdict)


def _keeps(rules: Rules, ops: Iterable[Op]) -> bool:
    """Whether none of them may be lost."""
    return all(rules.survives_kill(op) or rules.life(op.start) == len(rules.kills) for op in ops)


def _check_patches(history: History, verdict: Verdict) -> None:
    """Each acknowledged patch was made of the newest acknowledged PUT below its version."""
    puts: dict[str, list[Op]] = defaultdict(list)
    for op in history.acknowledged():
        if op.kind in ("put", "post") and op.id is not None:
            puts[op.id].append(op)
    for op in history.acknowledged():
        if op.kind != "patch" or op.id is None:
            continue
        base = orjson.loads(op.body)["data"].get("put")
        older = [put for put in puts[op.id] if put.version < op.version]
        newest = max(older, key=lambda put: put.version, default=None)
        mine = next((put for put in older if put.by == base), None)
        if newest is not None and mine is not None and newest is not mine:
            verdict.add(
                6,
                f"operation {op.number} patched {op.id} as it was at {mine.version}, and so "
                f"overwrote {newest.version}",
            )
