"""The journal's records as bytes, and what can be found again in the bytes of its files.

A record says everything about itself. It lies in one piece in one page of the SQLite file: a cell
of a table's leaf is kept there whole up to the usable page size less 35 bytes, 4,061 here
(https://www.sqlite.org/fileformat2.html, section 1.6). A longer change is cut into parts.

    magic 8 | crc32 4 of all that follows | store id 16 | seq 8 | first 8 | trimmed 8
            | version 8 | part 2 | parts 2 | length 2 | payload
    payload, joined from the parts: created_us 8 | flags 1 | id length 2 | id | data
        with a record (core/record.py), behind the id: its length 4 | it

The flags are: deleted, with a record, nothing but a record. The last is of a write that a newer one
replaced in the queue.

``seq`` numbers the rows without a gap; ``first`` is the oldest row that was still needed when this
one was written, ``trimmed`` the version up to which PostgreSQL had everything. A **mark** has no
parts: it stands in row 0 and says that all rows below its ``seq`` were committed.

Recovery does not ask SQLite. SQLite ends a write-ahead log at the first frame with a wrong checksum
and refuses a damaged page with all its records; here each record stands or falls alone. What is
found beside the live records does no harm: old copies of pages hold the same records, or trimmed
ones; frames of a transaction that did not end hold records nobody was promised. The version guard
in PostgreSQL decides about them.

Damage is what a ``kill -9`` cannot leave behind:

- A row between the first that is needed and the last that is known and that is nowhere whole.
- A magic with a wrong CRC behind those. Before them it is a leftover that SQLite began to reuse.
- A frame with a wrong checksum in or after the log's last transaction, where no later row tells.
  The log is emptied after every checkpoint, never written from the top again: so whatever a kill
  leaves is whole frames and, at the end of the file, a piece of one.

What cannot be told: a log cut short looks like one that ended there. A power failure during a sync
can leave a last transaction that looks damaged though nobody was told that it was written.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from itemstore.core.item import HEADER_BYTES, pack
from itemstore.core.queue import Change

PAGE_BYTES: Final = 4096

#: 0xFF and 0xFE occur in no UTF-8, so in no id and no data.
MAGIC: Final = b"\xff\xfeitem\xfe\xff"
PART_BYTES: Final = 3_900  # with both headers below 4,061, and a little to spare

_HEAD: Final = struct.Struct(">8sI16sqqqqHHH")
_BODY: Final = struct.Struct(">16sqqqqHHH")  # the head without magic and CRC
_CRC_FROM: Final = _HEAD.size - _BODY.size
_PAYLOAD: Final = struct.Struct(">qBH")
_LENGTH: Final = struct.Struct(">I")
_DELETED, _RECORDED, _TRACE = 1, 2, 4
#: Where a magic may begin that was written over a head, by a cell with at most 15 bytes before it:
#: SQLite had let go of that head. Behind a whole record the next one begins at 84 bytes or later.
_OVERWRITTEN_BYTES: Final = _HEAD.size + 15

_LOG_HEAD_BYTES: Final = 32
_FRAME_HEAD_BYTES: Final = 24
FRAME_BYTES: Final = _FRAME_HEAD_BYTES + PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal holds when it is opened."""

    changes: tuple[Change, ...]  #: the newest record of each item, in the order of their versions
    records: int  #: whole records that were not trimmed
    damaged: int  #: places where something was that is not readable any more


def record_bytes(change: Change) -> int:
    """What ``encode`` will make of it, in bytes."""
    item_id = change.id
    size = _PAYLOAD.size + (len(item_id) if item_id.isascii() else len(item_id.encode()))
    if change.record is not None:
        size += _LENGTH.size + len(change.record)
    if change.entry and not change.deleted:
        size += len(change.entry) - HEADER_BYTES
    return size + _HEAD.size * -(-size // PART_BYTES)


def encode(change: Change, store_id: bytes, seq: int, first: int, trimmed: int) -> list[bytes]:
    """The rows of a change, the first of them with this seq."""
    item_id = change.id.encode()
    record, is_trace = change.record, not change.entry
    flags = change.deleted * _DELETED | (record is not None) * _RECORDED | is_trace * _TRACE
    head = _PAYLOAD.pack(0 if is_trace else change.created_us, flags, len(item_id))
    kept = b"" if record is None else _LENGTH.pack(len(record)) + record
    payload = head + item_id + kept + (change.data or b"")
    parts = -(-len(payload) // PART_BYTES)
    rows = []
    for part in range(parts):
        piece = payload[part * PART_BYTES : (part + 1) * PART_BYTES] if parts > 1 else payload
        place = (store_id, seq + part, first, trimmed)
        rows.append(_sealed(_BODY.pack(*place, change.version, part, parts, len(piece)) + piece))
    return rows


def encode_mark(store_id: bytes, seq: int, first: int, trimmed: int) -> bytes:
    """Says that all rows below ``seq`` are committed, and which of them are still needed."""
    return _sealed(_BODY.pack(store_id, seq, first, trimmed, 0, 0, 0, 0))


def _sealed(body: bytes) -> bytes:
    return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


class Scan:
    """Collects the records in the bytes it is shown, whichever file or page they come from."""

    def __init__(self, store_id: UUID) -> None:
        self._store_id = store_id.bytes
        self._first = 1
        self._last = 0
        self._trimmed = 0
        self._seqs: set[int] = set()
        self._pieces: dict[int, dict[int, bytes]] = {}  # by version, by part
        self._whole: dict[int, bytes] = {}  # payloads by version
        self._broken: set[int] = set()
        self._has_mark = False
        #: Ids of other stores that wrote here.
        self.foreign: set[UUID] = set()

    def add(self, data: bytes, *, is_committed: bool = True) -> None:
        """Takes every record in these bytes.

        Of a transaction that did not end (``is_committed`` False) nothing need be there.
        """
        at = data.find(MAGIC)
        while at >= 0:
            end = self._take(data, at, is_committed)
            at = data.find(MAGIC, end)

    def _take(self, data: bytes, at: int, is_committed: bool) -> int:
        """Where to look on."""
        after_magic: int = at + len(MAGIC)
        if at + _HEAD.size > len(data):
            return after_magic
        _, crc, store_id, seq, first, trimmed, version, part, parts, length = _HEAD.unpack_from(
            data, at
        )
        end: int = at + _HEAD.size + length
        if end > len(data) or zlib.crc32(data[at + _CRC_FROM : end]) != crc:
            # A mark is rewritten again and again: the copies it leaves behind mean nothing.
            if is_committed and parts and not _is_overwritten(data, at):
                self._broken.add(seq)
            return after_magic
        if store_id != self._store_id:
            self.foreign.add(UUID(bytes=store_id))
            return end
        self._first = max(self._first, first)
        self._trimmed = max(self._trimmed, trimmed)
        if not parts:
            self._has_mark = True
            self._last = max(self._last, seq - 1)
            return end
        self._seqs.add(seq)
        if is_committed:
            self._last = max(self._last, seq + parts - 1 - part)
        if version > self._trimmed:
            self._keep(version, part, parts, data[at + _HEAD.size : end])
        return end

    def _keep(self, version: int, part: int, parts: int, piece: bytes) -> None:
        if version in self._whole:
            return
        pieces = self._pieces.setdefault(version, {})
        pieces[part] = piece
        if len(pieces) == parts:
            self._whole[version] = b"".join(pieces[number] for number in range(parts))
            del self._pieces[version]

    def result(self, now_s: float, *, is_used: bool, is_suspect: bool) -> Recovered:
        """What was found.

        ``is_used`` says that something was committed to the files, ``is_suspect`` that the end of
        the log is not as a kill would leave it.
        """
        newest: dict[str, Change] = {}
        live = sorted(version for version in self._whole if version > self._trimmed)
        records: dict[str, list[bytes]] = {}
        for version in live:
            change = _decode(version, self._whole[version], now_s)
            if change.entry:
                newest.pop(change.id, None)
                newest[change.id] = change
            if change.record is not None:
                records.setdefault(change.id, []).append(change.record)
        for change in newest.values():
            of_item = records.get(change.id, [])
            change.keep_earlier(of_item if change.record is None else of_item[:-1])
        damaged = self._missing()
        if is_suspect or (is_used and not self._seqs and not self._has_mark):
            damaged = max(damaged, 1)
        return Recovered(tuple(newest.values()), len(live), damaged)

    def _missing(self) -> int:
        wanted = max(0, self._last - self._first + 1)
        found = sum(self._first <= seq <= self._last for seq in self._seqs)
        beyond = sum(seq > self._last and seq not in self._seqs for seq in self._broken)
        return wanted - found + beyond


def _is_overwritten(data: bytes, at: int) -> bool:
    end = at + _OVERWRITTEN_BYTES + len(MAGIC) - 1
    return data.find(MAGIC, at + len(MAGIC), end) >= 0


def _decode(version: int, payload: bytes, now_s: float) -> Change:
    created_us, flags, length = _PAYLOAD.unpack_from(payload)
    end = _PAYLOAD.size + length
    item_id = payload[_PAYLOAD.size : end].decode()
    record = None
    if flags & _RECORDED:
        (length,) = _LENGTH.unpack_from(payload, end)
        record = payload[end + _LENGTH.size : end + _LENGTH.size + length]
        end += _LENGTH.size + length
    entry = b"" if flags & _TRACE else pack(version, created_us, payload[end:])
    deleted = bool(flags & _DELETED)
    return Change(item_id, version, entry, deleted=deleted, now_s=now_s, record=record)


class Log:
    """A write-ahead log taken apart by the rules of SQLite.

    https://www.sqlite.org/fileformat2.html, section 4: a head of 32 bytes, then frames, each a head
    of 24 bytes and a page. A frame belongs to the log if it repeats the head's salts; one that says
    how many pages the database has ends a transaction; its checksum goes over all before it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._salts = data[16:24]
        self._word = ">" if data[3:4] == b"\x83" else "<"
        ends = [at + FRAME_BYTES for at in self._frames() if self._ends_transaction(at)]
        #: Where the last transaction that ended does.
        self.committed_bytes = ends[-1] if ends else 0
        self._last_start = ends[-2] if len(ends) > 1 else _LOG_HEAD_BYTES

    @property
    def is_suspect(self) -> bool:
        """Whether a frame of the last transaction, or after it, is not as SQLite wrote it."""
        checks = (self._is_whole(at) for at in self._frames() if at >= self._last_start)
        return not all(checks)

    def _frames(self) -> Iterator[int]:
        """Where the frames begin that are there to their end."""
        return iter(range(_LOG_HEAD_BYTES, len(self._data) - FRAME_BYTES + 1, FRAME_BYTES))

    def _ends_transaction(self, at: int) -> bool:
        return self._has_salts(at) and self._data[at + 4 : at + 8] != bytes(4)

    def _has_salts(self, at: int) -> bool:
        return self._data[at + 8 : at + 16] == self._salts

    def _is_whole(self, at: int) -> bool:
        before = _LOG_HEAD_BYTES if at == _LOG_HEAD_BYTES else at - PAGE_BYTES
        seed = struct.unpack(">II", self._data[before - 8 : before])
        page = self._data[at + _FRAME_HEAD_BYTES : at + FRAME_BYTES]
        words = struct.unpack(f"{self._word}1026I", self._data[at : at + 8] + page)
        stored = struct.unpack(">II", self._data[at + 16 : at + 24])
        return self._has_salts(at) and stored == _checksum(words, *seed)


def _checksum(words: tuple[int, ...], s0: int, s1: int) -> tuple[int, int]:
    """SQLite's, section 4.2."""
    for even, odd in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + even + s1) & 0xFFFFFFFF
        s1 = (s1 + odd + s0) & 0xFFFFFFFF
    return s0, s1


class Trail:
    """What was written, oldest first, in 24 bytes a record: version, size and a number to it."""

    def __init__(self) -> None:
        self._versions = array("q")
        self._sizes = array("q")
        self._tags = array("q")
        self._start = 0

    def __len__(self) -> int:
        return len(self._versions) - self._start

    def add(self, version: int, size: int, tag: int) -> None:
        """Versions rise; one that does not counts as the one before it, so is kept as long."""
        self._versions.append(max(version, self._versions[-1]) if len(self) else version)
        self._sizes.append(size)
        self._tags.append(tag)

    def has(self, version: int) -> bool:
        """Whether it is there for certain: one that did not rise may be missed."""
        index = bisect_left(self._versions, version, self._start)
        return index < len(self._versions) and self._versions[index] == version

    def tag(self, index: int) -> int:
        return self._tags[self._start + index]

    def count_to(self, version: int) -> int:
        """How many there are up to this version."""
        return bisect_right(self._versions, version, self._start) - self._start

    def fitting(self, count: int, bytes_max: int) -> int:
        """How many of the first ``count`` make up these bytes; the one that passes them counts."""
        total = 0
        for index in range(count):
            total += self._sizes[self._start + index]
            if total >= bytes_max:
                return index + 1
        return count

    def drop(self, count: int) -> int:
        """Forgets the oldest; returns their bytes."""
        end = self._start + count
        dropped = sum(self._sizes[self._start : end])
        self._start = end
        if end > 1_000 and end > len(self._versions) // 2:  # amortized: each moves once
            for column in (self._versions, self._sizes, self._tags):
                del column[:end]
            self._start = 0
        return dropped
