"""Damages copies of journal files and looks at what is recovered from them.

    python -m tests.faults.journal_file [count] [seed]
    python -m tests.faults.journal_file write DIRECTORY SEED    writes one until it is killed

The judge is independent of the code it judges: it knows the record's layout from its description
and finds in the undamaged files where each record's copies lie. A record is untouched if for each
of its parts one whole copy is; it must come back, byte for byte. If one that was still needed is
not untouched, that must be reported. Only a cut of the log's end may go unnoticed, as it looks like
a log that ended there.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog

from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.storage.journal import Journal, Recovered

STORE_ID = UUID("0f5b7a52-6e0c-4b59-9d3f-1d2c3b4a5968")
FILES = ("journal.sqlite3", "journal.sqlite3-wal")
MAGIC = b"\xff\xfeitem\xfe\xff"
HEAD = struct.Struct(">8sI16sqqqqHHH")

#: A record as it must come back: id, created_us, deleted, data.
State = tuple[str, int, bool, bytes]


def journal(directory: Path, store_id: UUID = STORE_ID, bytes_max: int = 2**28) -> Journal:
    """One whose failure is an error of the test."""

    def on_failure(reason: str) -> None:
        raise AssertionError(reason)

    log = structlog.wrap_logger(None, processors=[_no_log])
    return Journal(directory, store_id, bytes_max=bytes_max, log=log, on_failure=on_failure)


def _no_log(_: object, __: str, ___: object) -> str:
    raise structlog.DropEvent


def state_of(change: Change) -> State:
    return change.id, change.created_us, change.deleted, change.data or b""


@dataclass
class Corpus:
    """The files of a journal as a kill would leave them, and what is in them."""

    name: str
    files: dict[str, bytes]
    appended: dict[int, State]  # by version, trimmed ones too
    trimmed: int

    @property
    def live(self) -> set[int]:
        return {version for version in self.appended if version > self.trimmed}

    def places(self) -> dict[tuple[int, int], list[tuple[str, int, int]]]:
        """Where the copies of each (version, part) lie: file, start, end."""
        found: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
        for name, data in self.files.items():
            at = data.find(MAGIC)
            while at >= 0:
                if at + HEAD.size <= len(data):
                    *_, version, part, parts, length = HEAD.unpack_from(data, at)
                    if parts:
                        place = (name, at, at + HEAD.size + length)
                        found.setdefault((version, part), []).append(place)
                at = data.find(MAGIC, at + 1)
        return found


class _Maker:
    """Writes a journal with changes of every kind, each of an item of its own."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.journal = journal(directory)
        self.appended: dict[int, State] = {}
        self.version = 1_700_000_000_000_000
        self.trimmed = 0

    async def group(self, count: int, size_max: int = 600) -> None:
        for _ in range(count):
            self.version += self.random.randint(1, 1000)
            deleted = self.random.random() < 0.1
            data = (
                b""
                if deleted
                else b'{"a":"%b"}'
                % self.random.randbytes(self.random.randint(0, size_max) // 2).hex().encode()
            )
            item_id = self.random.choice("aäツ") * self.random.randint(1, 20) + str(self.version)
            entry = pack(self.version, self.version - 7, data)
            change = Change(item_id, self.version, entry, deleted=deleted, now_s=0.0)
            self.appended[self.version] = state_of(change)
            self.journal.append(change, None)
        assert await self.journal.flush()

    def trim(self, share: float) -> None:
        """Part of what is not trimmed."""
        live = sorted(version for version in self.appended if version > self.trimmed)
        self.trimmed = live[int(len(live) * share)]
        self.journal.trim(self.trimmed)

    def snapshot(self, name: str) -> Corpus:
        return Corpus(name, files_in(self.directory), dict(self.appended), self.trimmed)


def files_in(directory: Path) -> dict[str, bytes]:
    """The files of a running journal as a kill could leave them.

    As long as the log stays as it is, the file may be read amid a checkpoint.
    """
    file, log = (directory / name for name in FILES)
    while True:
        before = log.read_bytes() if log.exists() else None
        files = {FILES[0]: file.read_bytes()} if file.exists() else {}
        if before == (log.read_bytes() if log.exists() else None):
            return files if before is None else {**files, FILES[1]: before}


async def corpora(seed: int) -> list[Corpus]:
    """Journals in the states a kill finds them in."""
    with tempfile.TemporaryDirectory() as name:
        maker = _Maker(Path(name), seed)
        await maker.journal.open()
        await maker.journal.begin()
        await maker.group(40)
        made = [maker.snapshot("log only")]
        for _ in range(6):
            await maker.group(30, size_max=3_000)
            maker.trim(0.4)
            await maker.group(1)
        made.append(maker.snapshot("log, trimmed"))
        await maker.group(3, size_max=200_000)
        await maker.group(20)
        made.append(maker.snapshot("long items"))
        for _ in range(12):  # beyond the size at which a checkpoint is due
            await maker.group(60, size_max=15_000)
            maker.trim(0.7)
        await maker.group(25)
        made.append(maker.snapshot("file and log"))
        assert made[-1].files[FILES[0]].count(MAGIC) > 50
        for _ in range(3):
            await maker.group(1)
        made.append(maker.snapshot("single records"))
        await maker.journal.close(keep=True)
        made.append(maker.snapshot("closed"))
        assert FILES[1] not in made[-1].files
    return made


@dataclass
class _Hit:
    """One mutation: what is changed where."""

    kind: str
    file: str
    start: int
    end: int
    new: bytes | None  # None: the file ends at ``start``

    def apply(self, files: dict[str, bytes]) -> dict[str, bytes]:
        old = files[self.file]
        new = old[: self.start]
        if self.new is not None:
            new += self.new + old[self.end :]
        return {**files, self.file: new}

    def touches(self, file: str, start: int, end: int) -> bool:
        return file == self.file and start < self.end and self.start < end


def _hit(chance: random.Random, files: dict[str, bytes]) -> _Hit:
    file = chance.choice([name for name, data in files.items() if data])
    data = files[file]
    if chance.random() < 0.5 and (found := _magic_near(chance, data)) >= 0:
        at = min(len(data) - 1, found + chance.randint(0, HEAD.size + 40))  # in a record's head
    else:
        at = chance.randrange(len(data))
    kind = chance.choice(["bit", "bit", "byte", "zeros", "noise", "sector", "page", "cut"])
    if kind == "cut":
        return _Hit(kind, file, at, len(data), None)
    if kind == "bit":
        return _Hit(kind, file, at, at + 1, bytes([data[at] ^ 1 << chance.randrange(8)]))
    if kind == "byte":
        return _Hit(kind, file, at, at + 1, bytes([data[at] ^ chance.randint(1, 255)]))
    unit = {"sector": 512, "page": 4096}.get(kind, 1)
    size = unit if unit > 1 else chance.randint(1, 20_000)
    start = at - at % unit
    end = min(len(data), start + size)
    new = chance.randbytes(end - start) if kind == "noise" else bytes(end - start)
    return _Hit(kind, file, start, end, new)


def _magic_near(chance: random.Random, data: bytes) -> int:
    start = chance.randrange(len(data))
    return max(data.find(MAGIC, start), data.rfind(MAGIC, 0, start))


async def recovered_from(files: dict[str, bytes]) -> Recovered:
    """What a start finds in these files."""
    with tempfile.TemporaryDirectory() as name:
        for each, data in files.items():
            (Path(name) / each).write_bytes(data)
        opened = journal(Path(name))
        recovered = await opened.open()
        await opened.close(keep=True)
        return recovered


def _judge(corpus: Corpus, hits: list[_Hit], recovered: Recovered) -> Iterator[str]:
    """What there is to count."""
    lost: set[int] = set()
    for (version, _), copies in corpus.places().items():
        if all(any(hit.touches(*copy) for hit in hits) for copy in copies):
            lost.add(version)
    found = {change.version: state_of(change) for change in recovered.changes}
    for version in corpus.live:
        yield "records"
        if version not in lost:
            same = found.get(version) == corpus.appended[version]
            yield "recovered_untouched" if same else "lost_untouched"
    for version, state in found.items():
        if corpus.appended.get(version) != state:
            yield "invented"
    is_needed = bool(lost & corpus.live)
    cuts = [hit.kind == "cut" and hit.file == FILES[1] for hit in hits]
    is_cut = any(cuts)
    if all(cuts) and recovered.damaged:
        yield "reported_tail_cuts"  # what a kill leaves behind, too
    elif is_needed and recovered.damaged:
        yield "reported"
    elif is_needed:
        yield "unreported_tail_cuts" if is_cut else "unreported"
    elif recovered.damaged:
        yield "reported_without_loss"


#: What ``damage`` counts, mutations or records; those in MUST_BE_ZERO would be errors.
COUNTED = (
    "mutations",
    "records",
    "recovered_untouched",
    "lost_untouched",
    "invented",
    "reported",
    "reported_without_loss",
    "unreported",
    "unreported_tail_cuts",
    "reported_tail_cuts",
    "exceptions",
)
MUST_BE_ZERO = ("lost_untouched", "invented", "unreported", "reported_tail_cuts", "exceptions")


def damage(count: int, seed: int) -> dict[str, int]:
    """Damages journals ``count`` times, each in one to three places; counts what came of it."""
    return asyncio.run(_damage(count, seed))


async def _damage(count: int, seed: int) -> dict[str, int]:
    totals = Counter(dict.fromkeys(COUNTED, 0))
    chance = random.Random(seed)
    made = await corpora(seed)
    for corpus in made:
        recovered = await recovered_from(corpus.files)
        assert recovered.damaged == 0, (corpus.name, recovered.damaged)
        assert {c.version: state_of(c) for c in recovered.changes} == {
            version: corpus.appended[version] for version in corpus.live
        }, corpus.name
    for number in range(count):
        corpus = made[number % len(made)]
        hits = [_hit(chance, corpus.files)]
        while chance.random() < 0.2 and len(hits) < 3:
            hits.append(_hit(chance, corpus.files))
        hits.sort(key=lambda hit: hit.kind == "cut")  # the others assume the whole file
        files = corpus.files
        for hit in hits:
            files = hit.apply(files)
        totals["mutations"] += 1
        try:
            recovered = await recovered_from(files)
        except Exception as error:
            totals["exceptions"] += 1
            sys.stderr.write(f"{number} {corpus.name} {hits}: {error!r}\n")
            continue
        verdicts = Counter(_judge(corpus, hits, recovered))
        totals.update(verdicts)
        if any(verdicts[name] for name in MUST_BE_ZERO):
            places = [(hit.kind, hit.file, hit.start, hit.end) for hit in hits]
            sys.stderr.write(f"{number} {corpus.name} {places}: {dict(verdicts)}\n")
    return dict(totals)


def written(version: int) -> Change:
    """The change ``write`` makes of a version: the reader of its output knows it by that."""
    chance = random.Random(version)
    size = chance.choice([10, 200, 200, 200, 3_800, 4_000, 30_000])
    data = b"" if version % 17 == 0 else b'{"n":"%b"}' % (b"%d" % version * size)[:size]
    entry = pack(version, version - 3, data)
    return Change(f"{version}-é", version, entry, deleted=not data, now_s=0.0)


async def write(directory: Path, seed: int) -> None:
    """Appends and trims without end. Says ``t VERSION`` before a trim and ``a VERSION`` when done.

    Every line is one write(2), so that what is killed has told the truth.
    """
    chance = random.Random(seed)
    opened = journal(directory)
    recovered = await opened.open()
    version = max((change.version for change in recovered.changes), default=0)
    await opened.begin()
    version = max(version, seed * 1_000_000)
    while True:
        for _ in range(chance.choice([1, 1, 3, 40])):
            version += 1
            opened.append(written(version), partial(_say, b"a", version))
        if chance.random() < 0.3:
            assert await opened.flush()
        if chance.random() < 0.5:
            trimmed = version - chance.choice([0, 5, 100, 3_000])
            _say(b"t", trimmed)
            opened.trim(trimmed)
        await asyncio.sleep(0)


def _say(what: bytes, version: int) -> None:
    os.write(1, b"%b %d\n" % (what, version))


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        asyncio.run(write(Path(sys.argv[2]), int(sys.argv[3])))
    arguments = [int(argument) for argument in sys.argv[1:]]
    result = damage(arguments[0] if arguments else 200, arguments[1] if arguments[1:] else 1)
    sys.stdout.write("\n".join(f"{value:9} {name}" for name, value in result.items()) + "\n")
    sys.exit(any(result[name] for name in MUST_BE_ZERO))
