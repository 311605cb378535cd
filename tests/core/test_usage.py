"""Usage: counted while writes go on, and then kept by differences."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemstore.core.caller import Caller, Role
from itemstore.core.item import pack
from itemstore.core.usage import NONE, PREFIXES_MAX, Counting, Usage, Usages, of_text
from itemstore.errors import QuotaExceeded

IDS = ("a/1", "a/2", "a/3", "ab", "b/1", "a")
PREFIXES = ("", "a/", "a")


def entry(text: bytes | None) -> bytes | None:
    return None if text is None else pack(7, 7, text)


def counted(items: dict[str, bytes], prefix: str, without: object = ()) -> Usage:
    some = [
        of_text(text)
        for item_id, text in items.items()
        if item_id.startswith(prefix) and item_id not in without  # type: ignore[operator]
    ]
    return sum(some, NONE)


@dataclass
class World:
    """A store and its PostgreSQL, to which what is dirty comes one by one."""

    accepted: dict[str, bytes] = field(default_factory=dict)
    committed: dict[str, bytes] = field(default_factory=dict)
    dirty: dict[str, None] = field(default_factory=dict)
    usages: Usages = field(default_factory=Usages)

    def write(self, item_id: str, text: bytes | None) -> None:
        old = self.accepted.get(item_id)
        if self.usages.tracked:
            self.usages.note(item_id, entry(old), text)
        self._set(self.accepted, item_id, text)
        self.dirty[item_id] = None

    def commit(self) -> None:
        if self.dirty:
            item_id = next(iter(self.dirty))
            del self.dirty[item_id]
            self._set(self.committed, item_id, self.accepted.get(item_id))

    @staticmethod
    def _set(items: dict[str, bytes], item_id: str, text: bytes | None) -> None:
        items.pop(item_id, None)
        if text is not None:
            items[item_id] = text


WRITES = st.tuples(st.sampled_from(IDS), st.sampled_from([None, b"{}", b'{"a":1}', b'{"b":"xyz"}']))
STEPS = st.lists(st.one_of(WRITES, st.none()), max_size=12)


def play(world: World, steps: list[tuple[str, bytes | None] | None]) -> None:
    for step in steps:
        if step is None:
            world.commit()
        else:
            world.write(*step)


@settings(max_examples=300)
@given(st.sampled_from(PREFIXES), STEPS, STEPS, STEPS, STEPS, STEPS, st.booleans())
def test_a_count_is_exact_whatever_is_written_meanwhile(
    prefix: str,
    before: list[tuple[str, bytes | None] | None],
    under_way: list[tuple[str, bytes | None] | None],
    counting_goes_on: list[tuple[str, bytes | None] | None],
    answered: list[tuple[str, bytes | None] | None],
    after: list[tuple[str, bytes | None] | None],
    repeated: bool,
) -> None:
    """Before the snapshot, between it and the second query, before its answer, and afterwards."""
    world = World()
    play(world, before)
    counting = Counting(
        (each, world.accepted.get(each)) for each in world.dirty if each.startswith(prefix)
    )
    world.usages.begin(prefix, counting)
    play(world, under_way)
    if repeated:  # the connection was lost after the second query was sent
        counting.changed()
        play(world, counting_goes_on)
    snapshot = dict(world.committed)
    play(world, counting_goes_on)
    changed = counting.changed()
    play(world, answered)
    world.usages.finish(prefix, counting, counted(snapshot, prefix, changed))
    assert counted(world.accepted, prefix) == world.usages.of(prefix)
    play(world, after)
    assert counted(world.accepted, prefix) == world.usages.of(prefix)


def test_what_is_forgotten_during_a_count_is_not_known_after_it() -> None:
    """PostgreSQL may have counted before or after another hand's change."""
    usages, counting = Usages(), Counting([])
    usages.begin("a/", counting)
    usages.forget("a/1")
    usages.finish("a/", counting, Usage(3, 30))
    assert usages.of("a/") is None


def test_what_another_hand_changes_is_forgotten_of_its_prefixes_alone() -> None:
    """And of all, if nobody knows what it was."""
    usages = Usages()
    for prefix in ("", "a/", "b/"):
        usages.begin(prefix, counting := Counting([]))
        usages.finish(prefix, counting, Usage(1, 2))
    usages.forget("a/1")
    assert {"b/": Usage(1, 2)} == usages.tracked
    usages.forget()
    assert {} == usages.tracked


def test_prefixes_are_bounded() -> None:
    """Beyond the bound the first is forgotten, to be counted again."""
    usages = Usages()
    for number in range(PREFIXES_MAX + 1):
        usages.begin(f"{number}/", counting := Counting([]))
        usages.finish(f"{number}/", counting, NONE)
    assert PREFIXES_MAX == len(usages.tracked)
    assert usages.of("0/") is None


def known(usage: Usage) -> Usages:
    usages = Usages()
    usages.begin("a/", counting := Counting([]))
    usages.finish("a/", counting, usage)
    return usages


@pytest.mark.parametrize(
    ("usage", "old", "text", "allowed"),
    [
        (Usage(2, 90), None, b"1234567890", True),  # just fits
        (Usage(3, 50), None, b"12", False),  # an item too many
        (Usage(2, 90), None, b"12345678901", False),  # a byte too many
        (Usage(3, 50), b"12", b"123", True),  # a larger one in place of one that is there
        (Usage(3, 99), b"12", b"1234", False),
        (Usage(9, 999), b"12", b"1", True),  # less than before, though there is too much
        (Usage(9, 999), b"12", b"12", True),
        (Usage(9, 999), b"12", None, True),  # a delete
    ],
)
def test_a_quota(usage: Usage, old: bytes | None, text: bytes | None, allowed: bool) -> None:
    """What adds is refused beyond it; what does not is not."""
    caller = Caller("shop", Role.WRITE, "a/", max_items=3, max_bytes=100)
    usages = known(usage)
    if allowed:
        usages.check(caller, entry(old), text)
    else:
        with pytest.raises(QuotaExceeded, match="shop may have"):
            usages.check(caller, entry(old), text)
    assert usage == usages.of("a/")
