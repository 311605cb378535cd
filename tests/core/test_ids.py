"""Generated ids: they never repeat, and do not tell how many there are."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from itemstore.core.ids import IDS_MAX, IdBlock, IdPool, scramble

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HALF = 62**4
KEYS = st.integers(0, 2**53 - 1)  # what schema.sql's id_blocks.key can be
NUMBERS = st.integers(0, IDS_MAX - 1)
KEY = 86_753_098_675_309


def unscramble(item_id: str, key: int) -> int:
    """The number behind an id: the network's rounds backwards, in arithmetic of its own."""
    value = 0
    for char in item_id:
        value = value * 62 + ALPHABET.index(char)
    left, right = divmod(value, HALF)
    for round_ in (4, 3, 2, 1):
        mixed = (left + key + round_ * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        left, right = (right - (mixed >> 31)) % HALF, left
    return left * HALF + right


def shared(one: str, other: str) -> int:
    """In how many places two ids have the same character."""
    return sum(a == b for a, b in zip(one, other, strict=True))


@given(NUMBERS, KEYS)
def test_every_id_leads_back_to_its_number(number: int, key: int) -> None:
    """Scrambling has an inverse over all of 62^8, under any key: so no two numbers share an id."""
    assert unscramble(scramble(number, key), key) == number


@given(NUMBERS, KEYS)
def test_an_id_is_eight_base62_characters(number: int, key: int) -> None:
    """Every id has the same length and only letters and digits."""
    assert re.fullmatch(r"[0-9A-Za-z]{8}", scramble(number, key))


def test_no_id_repeats_over_many_numbers() -> None:
    """The first 100,000 numbers, the last 100,000 and 100,000 random ones have as many ids."""
    chance = random.Random(7)
    numbers = {*range(100_000), *range(IDS_MAX - 100_000, IDS_MAX)}
    numbers.update(chance.randrange(IDS_MAX) for _ in range(100_000))
    assert len({scramble(number, KEY) for number in numbers}) == len(numbers)


def test_the_ends_of_the_range_have_ids() -> None:
    """The least and the greatest number lead back to themselves."""
    for number in (0, 1, HALF - 1, HALF, IDS_MAX - 1):
        assert unscramble(scramble(number, KEY), KEY) == number


def test_neighbours_do_not_look_alike() -> None:
    """Ids of consecutive numbers share no more characters than ids drawn at random would."""
    ids = [scramble(number, KEY) for number in range(20_000)]
    alike = [shared(one, other) for one, other in pairwise(ids)]
    assert sum(alike) / len(alike) < 0.15  # at random 8/62 = 0.129
    assert max(alike) <= 4


def test_ids_do_not_come_in_order() -> None:
    """About half of all neighbours descend: nothing of the counter shows in the order."""
    ids = [scramble(number, KEY) for number in range(20_000)]
    descents = sum(one > other for one, other in pairwise(ids))
    assert 0.48 < descents / len(ids) < 0.52


def test_every_place_uses_the_whole_alphabet() -> None:
    """No character of an id is fixed or rare."""
    ids = [scramble(number, KEY) for number in range(20_000)]
    for place in range(8):
        counts = [sum(item_id[place] == char for item_id in ids) for char in ALPHABET]
        assert min(counts) > 200  # of 323 expected
        assert max(counts) < 450


def test_the_key_changes_every_id() -> None:
    """Two stores give the same number different ids."""
    one = [scramble(number, 1) for number in range(1_000)]
    other = [scramble(number, 2) for number in range(1_000)]
    assert max(map(shared, one, other)) <= 4


def test_ids_of_a_key_never_change() -> None:
    """Numbers and ids belong together for ever: another network would repeat ids given out."""
    ids = [scramble(number, KEY) for number in (0, 1, HALF, IDS_MAX - 1)]
    assert ids == ["WXFQ8qaG", "1lcC5qhb", "qnCU8Lt1", "Vd7c526Q"]


def test_a_block_has_the_ids_of_its_numbers() -> None:
    """A block of numbers holds their ids, and shares none with the next block."""
    block, following = IdBlock(10, 5, KEY), IdBlock(15, 5, KEY)
    assert block.ids() == [scramble(number, KEY) for number in range(10, 15)]
    assert not set(block.ids()) & set(following.ids())


@pytest.mark.parametrize("count", [0, 1, 1_024])
def test_a_pool_gives_each_id_once(count: int) -> None:
    """Each id that was put in comes out once; then there is none."""
    pool = IdPool()
    ids = IdBlock(0, count, KEY).ids()
    pool.refill(ids)
    assert len(pool) == count
    assert sorted(str(pool.take()) for _ in range(count)) == sorted(ids)
    assert pool.take() is None
    assert len(pool) == 0


def test_a_claimed_id_is_not_given_out() -> None:
    """An id that a client chose leaves the pool; one that is not in it is no matter."""
    pool = IdPool()
    pool.refill(["a", "b"])
    pool.claim("a")
    pool.claim("c")
    assert (pool.take(), pool.take()) == ("b", None)


class PoolMachine(RuleBasedStateMachine):
    """The pool agrees with a plain set, whatever is refilled, taken and claimed."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = IdPool()
        self.free: set[str] = set()
        self.next = 0

    @rule(count=st.integers(0, 5))
    def refill(self, count: int) -> None:
        ids = IdBlock(self.next, count, KEY).ids()
        self.next += count
        self.pool.refill(ids)
        self.free.update(ids)

    @rule()
    def take(self) -> None:
        taken = self.pool.take()
        assert (taken is None) == (not self.free)
        if taken is not None:
            self.free.remove(taken)

    @rule(number=st.integers(0, 30))
    def claim(self, number: int) -> None:
        item_id = scramble(number, KEY)
        self.pool.claim(item_id)
        self.free.discard(item_id)

    @invariant()
    def is_counted(self) -> None:
        assert len(self.pool) == len(self.free)


TestPool = PoolMachine.TestCase
