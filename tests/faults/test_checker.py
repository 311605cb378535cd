"""The checker catches what it is for: one small history per rule, made by hand."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from tests.faults.checker import Checker
from tests.faults.history import LOST, History, Kill, Op, State
from tests.faults.verdict import Rules, Verdict, check_books, lost_ages_ms

KILL = Kill(10.0, 11.0)


class Story:
    """Operations one after another, a second each unless told otherwise, and what is left."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.history = History(is_complete=True)
        self.state = State(answers={})
        self._rules = rules or Rules()
        self._now = 0.0

    def write(self, kind: str, item_id: str | None, version: int = 0, **more: Any) -> Op:
        """Acknowledged at commit as this version, or whatever ``more`` says."""
        number = len(self.history.ops)
        token = f"w-{number}"
        data = more.pop("data", {"by": token, "put": token})
        op = self._op(kind, item_id, version, by=token, data=orjson.dumps(data).decode())
        op.status, op.given, op.level = 200, "commit", "commit"
        op.body = envelope(item_id or "", version, more.pop("answered", data))
        for name, value in more.items():
            setattr(op, name, value)
        return op

    def delete(self, item_id: str, **more: Any) -> Op:
        op = self._op("delete", item_id, 0)
        op.status, op.given, op.level = 204, "commit", "commit"
        for name, value in more.items():
            setattr(op, name, value)
        return op

    def read(self, item_id: str, of: Op | None) -> Op:
        op = self._op("get", item_id, of.version if of else 0)
        op.status, op.body = (200, of.body) if of else (404, "")
        return op

    def leave(self, *writes: Op) -> None:
        """These are the rows in the end, and what the server answers."""
        for op in writes:
            assert op.id is not None
            self.state.rows[op.id] = op.body
        self.state.answers = dict(self.state.rows)
        self.state.total = self.state.listed = len(self.state.rows)

    def judge(self) -> Verdict:
        return Checker(self.history, self._rules).check(self.state)

    def _op(self, kind: str, item_id: str | None, version: int, **more: Any) -> Op:
        op = Op(len(self.history.ops), kind, item_id, self._now, version=version, **more)
        op.end = self._now + 0.5
        self._now += 1.0
        self.history.ops.append(op)
        return op


def envelope(item_id: str, version: int, data: dict[str, Any]) -> str:
    return orjson.dumps({"id": item_id, "version": version, "data": data}).decode()


def lost(op: Op) -> None:
    op.status, op.end, op.version, op.body = LOST, math.inf, 0, ""


def assert_caught(verdict: Verdict, rule: int, words: str) -> None:
    found = [each for each in verdict.violations if each.startswith(f"rule {rule}:")]
    assert any(words in each for each in found), verdict.violations


def test_right_history_passes() -> None:
    """Nothing is found in a history in which all is well."""
    story = Story()
    first = story.write("put", "a", 1)
    story.read("a", first)
    story.write("put", "b", 2)
    story.delete("b")
    story.read("b", None)
    story.write("add", "c", 3, data={"by": "w-5", "put": "w-5", "n": 1})
    second = story.write("add", "c", 4, data={"by": "w-6", "put": "w-6", "n": 2})
    patch = {"by": "w-7", "patch": "w-7"}
    patched = story.write("patch", "a", 5, data=patch, answered={"by": "w-7", "put": "w-0"} | patch)
    story.leave(patched, second)
    story.state.tombstones["b"] = 3

    verdict = story.judge()

    assert [] == verdict.violations
    assert (6, 2, 0) == (verdict.acknowledged, verdict.reads, verdict.lost)


def test_open_write_may_or_may_not_have_happened() -> None:
    """After a lost answer both the old and the new state are right."""
    story = Story()
    old = story.write("put", "a", 1)
    new = story.write("put", "a", 2)
    happened = new.body
    lost(new)
    story.leave(old)
    assert [] == story.judge().violations

    after = State(rows={"a": happened}, answers={"a": happened}, total=1, listed=1)
    assert [] == Checker(story.history, Rules()).check(after).violations


def test_lost_write_is_caught() -> None:
    """1: an older version is left than was acknowledged."""
    story = Story()
    old = story.write("put", "a", 1)
    story.write("put", "a", 2)
    story.leave(old)

    verdict = story.judge()

    assert_caught(verdict, 1, "shows a version 1, though 2 was known")
    assert 1 == verdict.lost


def test_vanished_item_is_caught() -> None:
    """1: nothing is left, and nobody deleted it since."""
    story = Story()
    story.delete("a")
    story.write("put", "a", 1)

    assert_caught(story.judge(), 1, "lacks a")


def test_missing_tombstone_is_caught() -> None:
    """1: a deleted item leaves a tombstone newer than its last version."""
    story = Story()
    story.write("put", "a", 1)
    story.delete("a")
    assert_caught(story.judge(), 1, "no tombstone of a")


def test_loss_by_a_kill_is_judged_by_level() -> None:
    """1: a kill may take what was acknowledged at memory, and nothing else."""
    for level, count in (("memory", 0), ("commit", 1)):
        story = Story(Rules(kills=(KILL,), survives=frozenset({"commit"})))
        story.write("put", "a", 1, level=level, given=level)
        assert count == story.judge().lost


def test_server_and_database_must_agree() -> None:
    """1: what the server answers is what PostgreSQL has, byte for byte."""
    story = Story()
    story.leave(story.write("put", "a", 1))
    story.state.answers = {"a": story.state.rows["a"].replace(":", ": ")}

    assert_caught(story.judge(), 1, "over HTTP")


def test_clock_going_back_is_caught() -> None:
    """2: a later write of any item has a higher version."""
    story = Story()
    story.leave(story.write("put", "a", 2), story.write("put", "b", 1))

    assert_caught(story.judge(), 2, "operation 1 was given version 1, though 2")


def test_version_given_twice_is_caught() -> None:
    """2: two writes do not share a version."""
    story = Story()
    story.leave(story.write("put", "a", 1), story.write("put", "b", 1))

    assert_caught(story.judge(), 2, "2 writes were given the version 1")


def test_invented_value_is_caught() -> None:
    """3: a state nobody wrote."""
    story = Story()
    story.state.rows["a"] = envelope("a", 1, {"by": "nobody", "put": "nobody"})

    assert_caught(story.judge(), 3, "nobody wrote that")


def test_changed_value_is_caught() -> None:
    """3: a state other than the one that was acknowledged, or sent."""
    story = Story()
    op = story.write("put", "a", 1)
    op.body = envelope("a", 1, {"by": op.by, "put": op.by, "more": 1})
    story.leave(op)

    assert_caught(story.judge(), 3, "the data are not")


def test_refused_write_that_happened_is_caught() -> None:
    """3: what was refused has changed nothing."""
    story = Story()
    op = story.write("put", "a", 1)
    story.leave(op)
    op.status, op.code, op.retry_after = 503, "overloaded", True

    assert_caught(story.judge(), 3, "it was refused with 503 overloaded")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 500, "code": "internal_error"}, "was answered 500 internal_error"),
        ({"status": 503, "code": "overloaded"}, "without Retry-After"),
        ({"given": "memory"}, "asked for 'commit' and was given 'memory'"),
    ],
)
def test_strange_answer_is_caught(answer: dict[str, Any], words: str) -> None:
    """3: a mistake of the server, a 503 that does not say when, a level weakened in silence."""
    story = Story()
    story.write("put", "a", 1, **answer)

    assert_caught(story.judge(), 3, words)


def test_returned_delete_is_caught() -> None:
    """4: a deleted item is back in the end, or in a read."""
    story = Story()
    op = story.write("put", "a", 1)
    story.delete("a")
    story.leave(op)
    assert_caught(story.judge(), 4, "the final state shows a version 1")

    story = Story()
    op = story.write("put", "a", 1)
    story.delete("a")
    story.read("a", op)
    assert_caught(story.judge(), 4, "read 2 shows a version 1")


def test_stale_read_is_caught() -> None:
    """5: a read shows less than was acknowledged, or read, before."""
    story = Story()
    old = story.write("put", "a", 1)
    story.leave(story.write("put", "a", 2))
    story.read("a", old)
    assert_caught(story.judge(), 5, "shows a version 1, though 2 was known")

    story = Story()
    story.leave(story.write("put", "a", 1))
    story.read("a", None)
    assert_caught(story.judge(), 5, "read 1 lacks a")


def test_lost_increment_is_caught() -> None:
    """6: two increments to one value, or a counter below what was acknowledged."""
    story = Story()
    story.write("add", "c", 1, data={"by": "w-0", "put": "w-0", "n": 1})
    story.leave(story.write("add", "c", 2, data={"by": "w-1", "put": "w-1", "n": 1}))

    verdict = story.judge()

    assert_caught(verdict, 6, "2 increments of c to 1")
    assert_caught(verdict, 6, "c is 1 after 2 to 2")


def test_patch_of_an_older_state_is_caught() -> None:
    """6: a patch overwrites a PUT it has not seen."""
    story = Story()
    story.write("put", "a", 1)
    story.write("put", "a", 2)
    patch = {"by": "w-2", "patch": "w-2"}
    story.leave(story.write("patch", "a", 3, data=patch, answered={"put": "w-0"} | patch))

    assert_caught(story.judge(), 6, "as it was at 1, and so overwrote 2")


def test_books_that_do_not_balance_are_caught() -> None:
    """7: a write was accepted and is nowhere."""
    verdict = Verdict()
    check_books({"itemstore_writes_accepted_total": 3, "itemstore_dirty_items": 2}, verdict)

    assert_caught(verdict, 7, "3 writes were accepted")


def test_unfinished_history_is_caught() -> None:
    """A history whose clients did not end by themselves may lack acknowledgements."""
    story = Story()
    story.history.is_complete = False

    assert_caught(story.judge(), 3, "not whole")


def test_age_of_what_a_kill_took() -> None:
    """A lost write is as old as the time from its acknowledgement to the kill."""
    story = Story()
    story.leave(story.write("put", "a", 1))
    story.write("put", "a", 2)
    story.write("put", "b", 3)

    assert [8_500.0, 7_500.0] == lost_ages_ms(story.history, story.state, KILL)
