"""Generated ids: eight base62 characters, from a counter, through a bijection.

The counter is leased from PostgreSQL in blocks, so that a create costs no query; the bijection
hides how far it has come. As a bijection maps different numbers to different ids, generated ids
never repeat; against ids that clients chose, a block is checked in the table when it is leased,
and a leased id that a client chooses meanwhile leaves the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 8
_HALF: Final = 62**4
_MASK: Final = 2**64 - 1
#: Odd constants of SplitMix64 (Steele, Lea, Flood 2014): one step of it mixes each round.
_STEP: Final = 0x9E3779B97F4A7C15
_MIX: Final = 0xBF58476D1CE4E5B9
_ROUNDS: Final = 4  # three make a pseudorandom permutation (Luby and Rackoff 1988); one to spare

IDS_MAX: Final = _HALF**2
_QUADS: Final = tuple(a + b for a in ALPHABET for b in ALPHABET)


def scramble(number: int, key: int) -> str:
    """The id of a number below 62^8: a Feistel network over two halves of four characters each."""
    left, right = divmod(number, _HALF)
    for round_ in range(1, _ROUNDS + 1):
        mixed = (right + key + round_ * _STEP) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * _MIX) & _MASK
        left, right = right, (left + (mixed >> 31)) % _HALF
    return _base62(left) + _base62(right)


def _base62(half: int) -> str:
    high, low = divmod(half, 62 * 62)
    return _QUADS[high] + _QUADS[low]


@dataclass(frozen=True, slots=True)
class IdBlock:
    """``count`` numbers from ``first``, leased to this process alone."""

    first: int
    count: int
    key: int

    def ids(self) -> list[str]:
        return [scramble(number, self.key) for number in range(self.first, self.first + self.count)]


class IdPool:
    """Ids that are leased and that no item has."""

    def __init__(self) -> None:
        self._free: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._free)

    def refill(self, ids: Iterable[str]) -> None:
        self._free.update(dict.fromkeys(ids))

    def take(self) -> str | None:
        """An id for a new item, or None if a block must be leased first."""
        return self._free.popitem()[0] if self._free else None

    def claim(self, item_id: str) -> None:
        """A client chose this id: it is not given out any more."""
        self._free.pop(item_id, None)
