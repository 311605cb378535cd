"""Predicts what a store takes, from the number of its items and the size of their JSON.

Memory and disk follow from how CPython and PostgreSQL lay out what is kept; the time of a start
from two measured points. ``benchmarks.scaling`` sets the predictions beside what it measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

#: A process without items: what a lazy one takes, which has read a thousand.
PROCESS_BYTES: Final = 73_000_000

# CPython 3.11, 64 bits: the head of an object, and steps in which memory is given out.
_BYTES_HEAD: Final = 33
_STR_HEAD: Final = 49
_STEP: Final = 16
_DICT_PLACE: Final = 27  # of a key and its value, in a dict that is two thirds full on average

_STAMPS: Final = 16  # version and created_at
_ID: Final = 8  # a generated one

#: A packed item beyond its frame: measured, 168 bytes of which 68 are the frame (performance.md).
_PACKED_ASIDE: Final = 100
#: What zstd leaves of the generated items' JSON with a trained dictionary (performance.md).
PACKED_SHARE: Final = 0.30

# PostgreSQL: a page and its head (storage-page-layout), a row's head and its pointer, its columns
# but for data, what an index entry takes, and how full its pages are.
_PAGE, _PAGE_HEAD, _ROW_HEAD, _POINTER, _COLUMNS = 8192, 24, 24, 4, 40
_ALIGNMENT = 3.5  # of the columns after data, to eight bytes, on average
_ID_ENTRY, _CREATED_ENTRY, _VERSION_ENTRY = 28, 36, 20
_SPLIT, _APPENDED = 0.70, 0.90

#: Bytes of JSON above which PostgreSQL compresses a row or keeps it aside (storage-toast).
INLINE_MAX_BYTES: Final = 1_900


def plain_bytes(json_bytes: float) -> float:
    """Of one item in the cache: a key, its place, and the entry."""
    return _object(_STR_HEAD + _ID) + _DICT_PLACE + _object(_BYTES_HEAD + _STAMPS + json_bytes)


def packed_bytes(json_bytes: float, share: float = PACKED_SHARE) -> float:
    """Of one item in the compressed cache, if zstd leaves that share of its JSON."""
    return _PACKED_ASIDE + share * json_bytes


def resident_bytes(items: int, each: float) -> float:
    """Of the process."""
    return PROCESS_BYTES + items * each


def disk_bytes(json_bytes: float) -> float:
    """Of one row and its index entries, where nothing is old; up to INLINE_MAX_BYTES."""
    row = _ROW_HEAD + _COLUMNS + json_bytes + _ALIGNMENT + _POINTER
    rows = (_PAGE - _PAGE_HEAD) / row - 0.5  # of a page, at whose end half a row does not fit
    return _PAGE / rows + _ID_ENTRY / _SPLIT + (_CREATED_ENTRY + _VERSION_ENTRY) / _APPENDED


def _object(size: float) -> float:
    """On average over sizes, half a step is given away."""
    return size + _STEP / 2


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from exec until every item is in memory."""

    first_s: float  #: until the first answer: nearly all imports
    item_s: float
    byte_s: float  #: of JSON

    def hydrated_s(self, items: int, json_bytes: float) -> float:
        """``json_bytes`` of one item."""
        return self.first_s + items * (self.item_s + json_bytes * self.byte_s)

    @classmethod
    def through(
        cls, first_s: float, many: tuple[int, float, float], large: tuple[int, float, float]
    ) -> Self:
        """Through two measured points: (items, JSON bytes of one, seconds until hydrated).

        ``many`` has the most items, ``large`` the largest ones.
        """
        (some, small, some_s), (few, big, few_s) = many, large
        each, each_large = (some_s - first_s) / some, (few_s - first_s) / few
        byte_s = max(0.0, (each_large - each) / (big - small))
        return cls(first_s, max(0.0, each - small * byte_s), byte_s)
