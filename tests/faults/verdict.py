"""What a fault may do, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from tests.faults.history import History, Kill, Op, State

ALL: Final = frozenset({"memory", "journal", "commit"})
VIOLATIONS_MAX: Final = 20  # told; the rest is counted


@dataclass(frozen=True)
class Rules:
    """What the fault may do."""

    kills: tuple[Kill, ...] = ()
    survives: frozenset[str] = ALL  #: levels whose acknowledged writes outlive a kill
    quarantine: bool = False  #: whether rows may be refused

    def life(self, at: float) -> int:
        """Which life of the server it was, from 0."""
        return sum(kill.died < at for kill in self.kills)

    def survives_kill(self, op: Op) -> bool:
        return op.level in self.survives


@dataclass
class Verdict:
    """What the checker found; ``violations`` are sentences that begin with the rule's number."""

    acknowledged: int = 0
    open: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    lost: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, rule: int, sentence: str) -> None:
        self.violations.append(f"rule {rule}: {sentence}")

    def expect(self, condition: bool, sentence: str) -> None:
        """Something the scenario itself demands."""
        if not condition:
            self.violations.append(sentence)


def told(violations: Iterable[str]) -> str:
    lines = list(violations)
    more = [f"… and {len(lines) - VIOLATIONS_MAX} more"] if len(lines) > VIOLATIONS_MAX else []
    return "\n".join([*lines[:VIOLATIONS_MAX], *more])


def check_books(stats: Mapping[str, float], verdict: Verdict) -> None:
    """Rule 7, of a server that rests; the numbers are those of /stats."""

    def of(name: str) -> int:
        return int(stats.get(f"itemstore_{name}", 0))

    accepted = of("writes_accepted_total")
    parts = {
        "committed": of("writes_committed_total"),
        "coalesced": of("writes_coalesced_total"),
        "quarantined": of("writes_quarantined_total"),
        "fenced": of("writes_fenced_total"),
        "dirty": of("dirty_items"),
    }
    if accepted != sum(parts.values()):
        verdict.add(7, f"{accepted} writes were accepted, but {parts}")


def lost_ages_ms(history: History, left: State, kill: Kill) -> list[float]:
    """Of each acknowledged write that a kill lost: how old its acknowledgement was."""
    ages = []
    tokens = {op.by: op for op in history.ops if op.by}
    for op in history.acknowledged():
        if op.start > kill.died or op.id is None:
            continue
        version, envelope = left.newest.get(op.id, (0, None))
        lost = op.version > version
        if op.kind == "delete" and envelope is not None:
            writer = tokens.get(orjson.loads(envelope)["data"].get("by", ""))
            lost = writer is not None and writer.end < op.start
        if lost:
            ages.append(max(0.0, kill.sent - op.end) * 1000)
    return ages
