"""Packing: the JSON text of a cached entry, compressed by a dictionary trained on texts like it.

    plain    version (8) + created_at (8) + JSON text
    packed   version (8) + created_at (8) + mark (1) + zstd frame

The mark names the dictionary. It is 0x80 or above, with which no JSON text begins. A dictionary
that was once packed with is never forgotten, so that whoever has an entry can read it. They stay
few: one is made only when none of those there are does as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import zstandard as zstd

HEADER_BYTES: Final = 16  # version and created_at: see core/item.py

#: Texts outside are left alone: shorter ones save too little, longer ones hold up who reads them.
TEXT_MIN_BYTES: Final = 40
TEXT_MAX_BYTES: Final = 64 * 1024
SAVED_MIN_BYTES: Final = 16  # what an allocation is rounded up to

LEVEL: Final = 3
DICTIONARY_BYTES: Final = 64 * 1024
SAMPLE_ITEMS: Final = 2_000  # entries a dictionary is trained on
SAMPLE_ITEMS_MIN: Final = 1_000  # of the first
SAMPLE_EVERY: Final = 2  # one entry in so many: a full sample is as old as a window
SAMPLE_TEXT_BYTES: Final = 4 * 1024  # the most used of one
HELD_OUT: Final = 4  # one entry of the sample in so many tells what the dictionary is worth

WINDOW_ITEMS: Final = 4_000  # over so many, a change of the data is told from chance
DRIFT: Final = 1.15  # so much larger than expected, and a new dictionary is due
GROWTH: Final = 10  # it is also due when so many times the entries have been seen
BETTER: Final = 0.97  # what a new one must make of the entries held out, against the old one's

_ENTRY_MIN_BYTES: Final = HEADER_BYTES + TEXT_MIN_BYTES
_ENTRY_MAX_BYTES: Final = HEADER_BYTES + TEXT_MAX_BYTES
_MARKS: Final = tuple(bytes([mark]) for mark in range(0x80, 0x100))


class Dictionary:
    """One trained dictionary. May be used by several threads at once."""

    __slots__ = ("_compressors", "_decompressors", "_parameters", "_trained", "mark")

    def __init__(self, trained: zstd.ZstdCompressionDict) -> None:
        self.mark = b""  # see ``know``
        self._trained = trained
        self._parameters = zstd.ZstdCompressionParameters.from_level(
            LEVEL,
            format=zstd.FORMAT_ZSTD1_MAGICLESS,
            write_checksum=False,
            write_dict_id=False,
            write_content_size=True,
        )
        trained.precompute_compress(compression_params=self._parameters)
        # Idle ones: each may be used by one thread at a time only, and lets the others run.
        self._compressors: list[zstd.ZstdCompressor] = []
        self._decompressors: list[zstd.ZstdDecompressor] = []

    def pack(self, entries: Sequence[bytes]) -> list[bytes]:
        """Each entry packed, or as it is where that saves nothing."""
        worth = [
            entry
            for entry in entries
            if _ENTRY_MIN_BYTES <= len(entry) <= _ENTRY_MAX_BYTES and entry[HEADER_BYTES] < 0x80
        ]
        packed = self._compressed(worth) if worth else []
        if len(packed) == len(entries):
            return packed
        form = dict(zip(map(id, worth), packed, strict=True))
        return [form.get(id(entry), entry) for entry in entries]

    def _compressed(self, entries: Sequence[bytes]) -> list[bytes]:
        try:
            compressor = self._compressors.pop()
        except IndexError:
            compressor = zstd.ZstdCompressor(
                dict_data=self._trained, compression_params=self._parameters
            )
        texts: list[Any] = [entry[HEADER_BYTES:] for entry in entries]
        frames: Iterable[Any] = compressor.multi_compress_to_buffer(texts)  # type: ignore[assignment]
        self._compressors.append(compressor)
        mark = self.mark
        return [
            b"%b%b%b" % (entry[:HEADER_BYTES], mark, frame)
            if len(entry) - len(frame) > HEADER_BYTES + SAVED_MIN_BYTES
            else entry
            for entry, frame in zip(entries, frames, strict=True)
        ]

    def text(self, entry: bytes) -> bytes:
        """The JSON text of an entry packed with this dictionary."""
        try:
            decompressor = self._decompressors.pop()
        except IndexError:
            decompressor = zstd.ZstdDecompressor(
                dict_data=self._trained, format=zstd.FORMAT_ZSTD1_MAGICLESS
            )
        text = decompressor.decompress(entry[HEADER_BYTES + 1 :])
        self._decompressors.append(decompressor)
        return text


#: All of this process, by their marks.
KNOWN: Final[dict[bytes, Dictionary]] = {}


def dictionary_of(entry: bytes) -> Dictionary | None:
    """The dictionary this entry was packed with; None of a plain one."""
    return KNOWN.get(entry[HEADER_BYTES : HEADER_BYTES + 1])


def train(entries: Sequence[bytes]) -> Dictionary | None:
    """A dictionary for plain entries like these; None if they are too few, or too different.

    Takes some tenths of a second, in which other threads run.
    """
    texts: list[Any] = [entry[HEADER_BYTES : HEADER_BYTES + SAMPLE_TEXT_BYTES] for entry in entries]
    try:
        return Dictionary(zstd.train_dictionary(DICTIONARY_BYTES, texts, level=LEVEL))
    except zstd.ZstdError:
        return None


def know(dictionary: Dictionary) -> bool:
    """Gives it a mark, so that it can be packed with; False if there is none left."""
    for mark in _MARKS:
        dictionary.mark = mark
        if KNOWN.setdefault(mark, dictionary) is dictionary:  # at once, for threads
            return True
    return False


class Training(NamedTuple):
    """What came of one: the dictionary to use from now on, and what is left of an entry by it."""

    dictionary: Dictionary | None
    ratio: float


def retrain(sample: Sequence[bytes], old: Dictionary | None) -> Training:
    """Trains on the sample; the new dictionary is taken if it is clearly the best there is."""
    held_out = sample[::HELD_OUT]
    best = Training(old, _ratio(old, held_out))
    for known in list(KNOWN.values()):
        best = _better(best, Training(known, _ratio(known, held_out)))
    new = train([entry for number, entry in enumerate(sample) if number % HELD_OUT])
    trained = _better(best, Training(new, _ratio(new, held_out)))
    if trained is best or new is None or not know(new):
        return best
    return trained


def _better(one: Training, other: Training) -> Training:
    return other if other.ratio < BETTER * one.ratio else one


def _ratio(dictionary: Dictionary | None, entries: Sequence[bytes]) -> float:
    if dictionary is None or not entries:
        return 1.0
    return sum(map(len, dictionary.pack(entries))) / sum(map(len, entries))


class Trainer:
    """Which dictionary entries are packed with now, and when a better one is due."""

    def __init__(self) -> None:
        self.dictionary: Dictionary | None = None
        self.trained = 0  #: dictionaries
        self._sample: deque[bytes] = deque(maxlen=SAMPLE_ITEMS)
        self._ratio = 1.0
        self._seen = 0
        self._due_at = SAMPLE_ITEMS_MIN
        self._window = _Window()

    def saw(self, entries: Sequence[bytes], kept: Sequence[bytes]) -> None:
        """These plain entries are kept like this."""
        every = SAMPLE_EVERY if len(self._sample) >= SAMPLE_ITEMS else 1
        self._sample.extend(entries[::every])
        self._seen += len(entries)
        self._window = self._window.after(entries, kept)

    @property
    def is_due(self) -> bool:
        """Whether to ``retrain`` with the ``sample``."""
        return self._seen >= self._due_at or self._has_drifted()

    def _has_drifted(self) -> bool:
        return self._window.ratio > DRIFT * self._ratio

    def sample(self) -> list[bytes]:
        """The entries seen of late."""
        return list(self._sample)

    def adopt(self, training: Training) -> None:
        """What came of training; it is not due again before the data change or have multiplied."""
        if training.dictionary is not self.dictionary:
            self.dictionary = training.dictionary
            self.trained += 1
        self._ratio = training.ratio
        self._due_at = GROWTH * max(self._seen, SAMPLE_ITEMS)
        self._window = _Window()


class _Window(NamedTuple):
    """The newest entries: the last that were full, until the next are."""

    items: int = 0
    plain_bytes: int = 0
    kept_bytes: int = 0
    ratio: float = 0.0

    def after(self, entries: Sequence[bytes], kept: Sequence[bytes]) -> _Window:
        items = self.items + len(entries)
        plain_bytes = self.plain_bytes + sum(map(len, entries))
        kept_bytes = self.kept_bytes + sum(map(len, kept))
        if items < WINDOW_ITEMS:
            return _Window(items, plain_bytes, kept_bytes, self.ratio)
        return _Window(ratio=kept_bytes / plain_bytes)
