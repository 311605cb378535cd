"""What the clients noted: every operation before it was sent, and what became of it.

A history is a file of JSON lines. An intent is written before the request is sent, an outcome when
the answer is there; the last line says that the clients ended by themselves. Times are those of
CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import orjson

Fate = Literal["acknowledged", "refused", "open"]

#: Statuses of an outcome that is no answer.
LOST: Final = 0  #: sent, perhaps, but no answer came: it may have happened
NOT_SENT: Final = -1  #: nobody listened

#: Errors of status 5xx that have changed nothing (docs/api.md, Errors); others may have.
_REFUSALS: Final = {
    "overloaded",
    "database_unavailable",
    "durability_unavailable",
    "not_holder",
    "starting",
    "stopping",
}
#: PUT, POST, PATCH and the increment of a counter carry a token and get a version; DELETE neither.
VERSIONED: Final = {"put", "post", "patch", "add"}


@dataclass(slots=True)
class Op:
    """One operation of one client."""

    number: int
    kind: str  #: put, post, patch, delete, add (increment a counter) or get
    id: str | None  #: None for a POST whose generated id is not known yet
    start: float
    level: str = ""
    by: str = ""  #: the token of this write, nobody else's
    data: str = ""  #: what it asks to be stored, as JSON
    end: float = math.inf
    status: int = LOST
    code: str = ""
    given: str = ""  #: the durability the answer claims
    retry_after: bool = False
    body: str = ""  #: the envelope that was answered
    version: int = 0

    @property
    def fate(self) -> Fate:
        if 200 <= self.status < 300:
            return "acknowledged"
        if self.status == LOST or (self.status >= 500 and self.code not in _REFUSALS):
            return "open"
        return "refused"

    @property
    def is_write(self) -> bool:
        return self.kind != "get"

    @property
    def is_acknowledged(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Kill:
    """The death of a server: the signal was sent, the process was gone."""

    sent: float
    died: float


@dataclass(slots=True)
class History:
    ops: list[Op] = field(default_factory=list)
    is_complete: bool = False  #: the clients ended by themselves

    def writes(self) -> list[Op]:
        return [op for op in self.ops if op.is_write]

    def reads(self) -> list[Op]:
        return [op for op in self.ops if not op.is_write]

    def acknowledged(self) -> list[Op]:
        return [op for op in self.ops if op.is_write and op.is_acknowledged]

    def ids(self) -> set[str]:
        return {op.id for op in self.ops if op.id is not None}


@dataclass
class State:
    """What is left: read from PostgreSQL by SQL, and over HTTP from the server that recovered."""

    rows: dict[str, str] = field(default_factory=dict)  #: id → envelope
    tombstones: dict[str, int] = field(default_factory=dict)  #: id → version
    #: id → (version, envelope, or None for a delete that was refused)
    quarantine: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    answers: dict[str, str | None] | None = None  #: id → envelope, None for 404; None: not asked
    total: int = 0  #: rows of items, those that nobody looks at included
    listed: int | None = None  #: how many the list says there are; None: not asked

    @cached_property
    def newest(self) -> dict[str, tuple[int, str | None]]:
        """id → (version, envelope or None if deleted), whichever table it stands in."""
        found: dict[str, tuple[int, str | None]] = {}
        claims: list[tuple[str, int, str | None]] = [
            *((item_id, version_of(text), text) for item_id, text in self.rows.items()),
            *((item_id, version, None) for item_id, version in self.tombstones.items()),
            *((item_id, *parked) for item_id, parked in self.quarantine.items()),
        ]
        for item_id, version, text in claims:
            if item_id not in found or found[item_id][0] < version:
                found[item_id] = version, text
        return found

    def write(self, path: Path) -> None:
        names = ("rows", "tombstones", "quarantine", "answers", "total", "listed")
        path.write_bytes(orjson.dumps({name: getattr(self, name) for name in names}))

    @classmethod
    def read(cls, path: Path) -> State:
        read = orjson.loads(path.read_bytes())
        read["quarantine"] = {item_id: tuple(both) for item_id, both in read["quarantine"].items()}
        return cls(**read)


def version_of(envelope: str) -> int:
    return int(orjson.loads(envelope)["version"])


def read_history(path: Path) -> History:
    history = History()
    by_number: dict[int, Op] = {}
    for line in path.read_bytes().splitlines():
        entry: dict[str, Any] = orjson.loads(line)
        if "kind" in entry:
            op = Op(**entry)
            by_number[op.number] = op
            history.ops.append(op)
        elif "status" in entry:
            _answer(by_number[entry.pop("number")], entry)
        else:
            history.is_complete = True
    return history


def read_directory(directory: Path) -> History:
    """A round's: what all its clients noted, and the scenario's own operations."""
    histories = [read_history(path) for path in sorted(directory.glob("**/history.jsonl"))]
    ops = [op for history in histories for op in history.ops]
    if (directory / "own.json").exists():
        ops += [Op(**each) for each in orjson.loads((directory / "own.json").read_bytes())]
    for op in ops:
        op.end = math.inf if op.end is None else op.end  # which JSON does not know
    return History(ops, all(history.is_complete for history in histories))


def _answer(op: Op, outcome: dict[str, Any]) -> None:
    for name, value in outcome.items():
        setattr(op, name, value)
    if op.status in (LOST, NOT_SENT):
        op.end = math.inf if op.status == LOST else op.end
        return
    if not op.body.startswith("{"):
        return
    answer = orjson.loads(op.body)
    if 200 <= op.status < 300:
        op.version = answer["version"]
        if op.kind == "post":
            op.id = answer["id"]
    else:
        op.code = answer.get("code", "")
        if op.fate == "open":
            op.end = math.inf
