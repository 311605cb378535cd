"""The journal: what was acknowledged is found again, and nothing else is promised."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.errors import StartupError
from itemstore.storage import journal as journal_module
from itemstore.storage import journal_file, journal_records
from itemstore.storage.journal import Journal, Recovered, lasting
from itemstore.storage.journal_records import Log, Scan, Trail, encode, record_bytes
from tests.faults.journal_file import (
    MUST_BE_ZERO,
    STORE_ID,
    damage,
    files_in,
    recovered_from,
    state_of,
    written,
)

OTHER_ID = UUID("9d2f0c11-0000-4000-8000-000000000001")
ROOT = Path(__file__).parents[2]
FILES = (journal_file.FILE_NAME, journal_file.FILE_NAME + "-wal")


def change(item_id: str, version: int, data: bytes | None = b"{}") -> Change:
    """An upsert, or a delete if there is no data."""
    entry = pack(version, version - 1, data or b"")
    return Change(item_id, version, entry, deleted=data is None, now_s=0.0)


class Logged(list[dict[str, Any]]):
    """The events logged, with a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.log = structlog.wrap_logger(None, processors=[self._take])
        self._news = asyncio.Event()

    def _take(self, _: object, level: str, event: Any) -> str:
        self.append({**event, "level": level})
        self._news.set()
        raise structlog.DropEvent

    def count_of(self, name: str) -> int:
        return sum(event["event"] == name for event in self)

    async def wait_for(self, name: str) -> None:
        while not self.count_of(name):
            self._news.clear()
            await self._news.wait()


class Bench:
    """Opens journals in one directory and closes what a test leaves open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.logged = Logged()
        self.failures: list[str] = []
        self.now_s = 100.0
        self.opened: list[Journal] = []

    def make(
        self, directory: Path | None = None, store_id: UUID = STORE_ID, bytes_max: int = 2**28
    ) -> Journal:
        made = Journal(
            directory or self.directory,
            store_id,
            bytes_max=bytes_max,
            log=self.logged.log,
            on_failure=self.failures.append,
            monotonic=lambda: self.now_s,
        )
        self.opened.append(made)
        return made

    async def begun(self, directory: Path | None = None, bytes_max: int = 2**28) -> Journal:
        made = self.make(directory, bytes_max=bytes_max)
        await made.open()
        await made.begin()
        return made

    async def recovered(self, directory: Path | None = None) -> Recovered:
        made = self.make(directory)
        recovered = await made.open()
        await made.close(keep=True)
        return recovered

    async def as_killed(self, directory: Path | None = None) -> Recovered:
        """What a start would find if this process were killed now."""
        return await recovered_from(files_in(directory or self.directory))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "data")
    yield made
    for each in made.opened:
        await each.close(keep=True)


def versions(recovered: Recovered) -> list[int]:
    return [each.version for each in recovered.changes]


# --- what comes back


async def test_a_new_journal_is_empty(bench: Bench) -> None:
    """A directory that is not there is made, for its owner alone; nothing is found in it."""
    assert Recovered((), 0, 0) == await bench.make().open()
    await bench.opened[0].begin()
    assert 0o700 == bench.directory.stat().st_mode & 0o777
    files = {path.name: path.stat().st_mode & 0o777 for path in bench.directory.iterdir()}
    assert dict.fromkeys([*FILES, "journal.lock"], 0o600) == files
    assert Recovered((), 0, 0) == await bench.as_killed()


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "closed"])
async def test_everything_comes_back_as_it_was(bench: Bench, is_killed: bool) -> None:
    """Long items, deletes, ids of any script and data of any length come back byte for byte."""
    journal = await bench.begun()
    part = journal_records.PART_BYTES
    lengths = [2, part - 14, part - 13, part - 12, part, part + 1, 2 * part, 100_000, 2**20]
    given = [change(f"{n}", n + 1, b"x" * length) for n, length in enumerate(lengths)]
    given += [change("gone", 90, None), change("ключ/ツ \U0001f600", 91, '{"é":"ü"}'.encode())]
    given += [change("i" * 512, 92, b'{"a":1}')]
    for each in given:
        journal.append(each, None)
    assert await journal.flush()
    if is_killed:
        recovered = await bench.as_killed()
    else:
        await journal.close(keep=True)
        assert not (bench.directory / FILES[1]).exists()
        recovered = await bench.recovered()
    assert (len(given), 0) == (recovered.records, recovered.damaged)
    assert [state_of(each) for each in given] == [state_of(each) for each in recovered.changes]
    assert [each.version for each in given] == versions(recovered)
    assert [each.entry for each in given] == [each.entry for each in recovered.changes]


async def test_the_newest_of_an_item_comes_back(bench: Bench) -> None:
    """Of several changes of one item the newest is found, in its place by version."""
    journal = await bench.begun()
    for version, item_id in enumerate("abacab", start=1):
        journal.append(change(item_id, version, b"%d" % version), None)
    assert await journal.flush()
    recovered = await bench.as_killed()
    assert [("c", b"4"), ("a", b"5"), ("b", b"6")] == [
        (each.id, each.data) for each in recovered.changes
    ]
    assert (6, 0) == (recovered.records, recovered.damaged)


async def test_versions_in_any_order_come_back(bench: Bench) -> None:
    """What is appended late with an older version is found, and not trimmed before its time."""
    journal = await bench.begun()
    for version in (5, 2, 9, 7):
        journal.append(change(f"{version}", version), None)
    assert await journal.flush()
    assert [2, 5, 7, 9] == versions(await bench.as_killed())
    journal.trim(5)
    assert 2 == journal.records
    journal.append(change("late", 10), None)
    assert await journal.flush()
    assert [7, 9, 10] == versions(await bench.as_killed())


async def test_what_is_on_disk_is_not_written_again(bench: Bench) -> None:
    """A change that is appended again is acknowledged, and takes no room."""
    journal = await bench.begun()
    journal.append(change("a", 1), None)
    assert await journal.flush()
    used, done = journal.bytes_used, asyncio.Event()
    journal.append(change("a", 1), done.set)
    await done.wait()
    assert (1, used) == (journal.records, journal.bytes_used)


# --- acknowledging


async def test_done_comes_after_the_commit(bench: Bench) -> None:
    """At the moment a change is acknowledged, a kill would not lose it."""
    journal = await bench.begun()
    for version in range(1, 40):
        found: list[bool] = []
        acknowledged = asyncio.Event()

        def done(version: int = version, found: list[bool] = found) -> None:
            log = (bench.directory / FILES[1]).read_bytes()
            scan = Scan(STORE_ID)
            scan.add((bench.directory / FILES[0]).read_bytes())
            scan.add(log[: Log(log).committed_bytes])
            result = scan.result(0.0, is_used=True, is_suspect=False)
            found.append(version in versions(result))

        journal.append(change(f"{version}", version), done)
        journal.append(change(f"after {version}", version + 1000), acknowledged.set)
        await acknowledged.wait()
        assert [True] == found


async def test_a_group_is_one_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is written in one transaction, and acknowledged in the order of appending."""
    journal = await bench.begun()
    statements = trace(monkeypatch, journal)
    order: list[int] = []
    for version in range(1, 2_001):
        journal.append(change(f"{version}", version), lambda v=version: order.append(v))  # type: ignore[misc]
    assert await journal.flush()
    assert list(range(1, 2_001)) == order
    # The first may have set out alone, and the second while the rest was still being appended.
    assert 1 <= statements.count("COMMIT") <= 20
    assert sum(each.startswith("INSERT") for each in statements) < 100
    assert 2_000 == (await bench.as_killed()).records


def trace(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> list[str]:
    """The statements the journal executes from now on."""
    statements: list[str] = []
    write = journal_file.JournalFile.write

    def traced(file: journal_file.JournalFile, *args: Any) -> None:
        assert file._connection is not None
        file._connection.set_trace_callback(statements.append)
        write(file, *args)

    monkeypatch.setattr(journal_file.JournalFile, "write", traced)
    return statements


async def test_an_error_in_done_stops_no_other(bench: Bench) -> None:
    """A callback that raises is logged without a text that could hold data; the next is called."""
    journal = await bench.begun()
    called = asyncio.Event()

    def fail() -> None:
        raise ValueError("secret")

    journal.append(change("a", 1), fail)
    journal.append(change("b", 2), called.set)
    await called.wait()
    await bench.logged.wait_for("journal_done_failed")
    assert "secret" not in str(bench.logged)
    assert journal.refusal() is None


# --- trimming


async def test_trimmed_records_are_gone(bench: Bench) -> None:
    """Everything up to the version goes, nothing after it; the numbers follow at once."""
    journal = await bench.begun()
    for version in range(10, 20):
        bench.now_s += 1
        journal.append(change(f"{version}", version), None)
    assert await journal.flush()
    size = journal.bytes_used // 10
    assert (10, 9.0) == (journal.records, journal.oldest_age_s)
    journal.trim(14)
    assert (5, 5 * size, 4.0) == (journal.records, journal.bytes_used, journal.oldest_age_s)
    journal.append(change("next", 20), None)
    assert await journal.flush()
    recovered = await bench.as_killed()
    assert [*range(15, 21)] == versions(recovered)
    assert (6, 0) == (recovered.records, recovered.damaged)
    journal.trim(13)  # an older one changes nothing
    assert 6 == journal.records


async def test_an_idle_journal_is_trimmed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a further append the records leave the file by themselves."""
    journal = await bench.begun()
    for version in range(1, 10):
        journal.append(change(f"{version}", version), None)
    assert await journal.flush()
    is_written = asyncio.Event()
    write, loop = journal_file.JournalFile.write, asyncio.get_running_loop()

    def telling(file: journal_file.JournalFile, *args: Any) -> None:
        write(file, *args)
        loop.call_soon_threadsafe(is_written.set)

    monkeypatch.setattr(journal_file.JournalFile, "write", telling)
    journal.trim(9)
    assert (0, 0, 0.0) == (journal.records, journal.bytes_used, journal.oldest_age_s)
    await is_written.wait()
    assert Recovered((), 0, 0) == await bench.as_killed()


async def test_trims_and_checkpoints_leave_no_damage(bench: Bench) -> None:
    """Whatever is appended and trimmed, a kill finds what is live, and no damage."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    journal = await bench.begun()
    version = trimmed = 0
    for _ in range(60):
        for _ in range(chance.choice([1, 5, 100])):
            version += 1
            size = chance.choice([10, 300, 3_700, 4_100, 20_000])
            journal.append(change(f"{version}", version, b"x" * size), None)
        assert await journal.flush()
        if chance.random() < 0.7:
            trimmed = chance.randint(trimmed, version)
            journal.trim(trimmed)
        journal.append(change("mark", version := version + 1), None)
        assert await journal.flush()
        recovered = await bench.as_killed()
        live = [each for each in range(trimmed + 1, version + 1) if each > 0]
        assert (len(live), 0) == (recovered.records, recovered.damaged), f"seed {seed}"
        assert live[-1:] == versions(recovered)[-1:], f"seed {seed}"


async def test_closing_without_keeping_removes_the_files(bench: Bench) -> None:
    """What PostgreSQL has need not stay; the lock file does, empty of meaning."""
    journal = await bench.begun()
    journal.append(change("a", 1), None)
    await journal.close(keep=False)
    assert ["journal.lock"] == [path.name for path in bench.directory.iterdir()]
    assert Recovered((), 0, 0) == await bench.recovered()


async def test_closing_writes_what_waits(bench: Bench) -> None:
    """A change appended just before the end is acknowledged and kept."""
    journal = await bench.begun()
    done: list[bool] = []
    journal.append(change("a", 1), lambda: done.append(True))
    await journal.close(keep=True)
    assert [True] == done
    assert [1] == versions(await bench.recovered())
    assert journal.refusal() is not None


# --- bounds


async def test_the_bound_is_kept(bench: Bench) -> None:
    """At its bound the journal says so and takes nothing; a trim makes room."""
    size = record_bytes(change("1", 1))
    journal = await bench.begun(bytes_max=10 * size)
    done: list[int] = []
    for version in range(1, 13):
        item_id = chr(96 + version)
        journal.append(change(item_id, version), lambda v=version: done.append(v))  # type: ignore[misc]
    assert f"{10 * size} of {10 * size} bytes" in (journal.refusal() or "")
    assert not await journal.flush()  # two are nowhere
    assert (10, 10 * size) == (journal.records, journal.bytes_used)
    assert [*range(1, 11)] == done
    journal.trim(5)
    assert journal.refusal() is None
    assert not await journal.flush()
    for version in (11, 12):
        journal.append(change(chr(96 + version), version), None)
    assert await journal.flush()
    assert [*range(6, 13)] == versions(await bench.as_killed())


async def test_an_item_that_does_not_fit_is_a_bound_too(bench: Bench) -> None:
    """When one finds no room the next is told, until something was trimmed."""
    journal = await bench.begun(bytes_max=1_000)
    journal.append(change("a", 1, b"x" * 500), None)
    journal.append(change("b", 2, b"x" * 500), None)
    assert "bytes that PostgreSQL does not have yet" in (journal.refusal() or "")
    journal.trim(1)
    assert journal.refusal() is None
    assert not await journal.flush()
    journal.trim(2)
    assert await journal.flush()


async def test_before_it_begins_it_takes_nothing(bench: Bench) -> None:
    """A journal that is only open refuses, without an error."""
    journal = bench.make()
    await journal.open()
    journal.append(change("a", 1), None)
    assert "The journal is not open." == journal.refusal()
    assert not await journal.flush()
    assert (0, 0) == (journal.records, journal.bytes_used)


# --- whose it is


async def test_one_process_one_journal(bench: Bench) -> None:
    """A second journal in the same directory is refused, here and in another process."""
    await bench.begun()
    with pytest.raises(StartupError, match="DATA_DIR of its own"):
        await bench.make().open()
    script = f"""
        import asyncio
        from pathlib import Path
        from tests.faults.journal_file import journal
        asyncio.run(journal(Path({str(bench.directory)!r})).open())
    """
    ended = run([sys.executable, "-c", textwrap.dedent(script)])
    assert ended.returncode == 1
    assert f"process {os.getpid()}, uses the journal in" in ended.stderr
    await bench.opened[0].close(keep=True)
    assert Recovered((), 0, 0) == await bench.recovered()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


async def test_another_stores_journal_is_refused(bench: Bench) -> None:
    """The error names the file and both stores, and nothing is changed."""
    journal = await bench.begun()
    journal.append(change("a", 1), None)
    await journal.close(keep=True)
    with pytest.raises(StartupError) as raised:
        await bench.make(store_id=OTHER_ID).open()
    for part in (str(STORE_ID), str(OTHER_ID), str(bench.directory / FILES[0]), "DATABASE_URL"):
        assert part in str(raised.value)
    assert [1] == versions(await bench.recovered())


async def test_a_directory_that_cannot_be_used_is_refused(bench: Bench) -> None:
    """A file in the place of the directory, or a directory in the place of the file."""
    bench.directory.parent.joinpath("file").write_text("")
    with pytest.raises(StartupError, match="cannot be opened"):
        await bench.make(bench.directory.parent / "file").open()
    (bench.directory / FILES[0]).mkdir(parents=True)
    with pytest.raises(StartupError, match="cannot be read"):
        await bench.make().open()
    (bench.directory / FILES[0]).rmdir()
    journal = bench.make()
    await journal.open()
    (bench.directory / FILES[0]).mkdir(parents=True)
    with pytest.raises(StartupError, match="cannot be created"):
        await journal.begin()


# --- kill -9


async def test_kills_lose_nothing(bench: Bench) -> None:
    """After a SIGKILL at any moment every acknowledged record is there, and no damage."""
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    for number in range(10):
        lines = write_and_kill(bench.directory, seed * 10 + number, chance.randint(0, 1_500))
        acknowledged = [int(line[2:]) for line in lines if line.startswith(b"a")]
        trimmed = max((int(line[2:]) for line in lines if line.startswith(b"t")), default=0)
        recovered = await bench.recovered()
        found = {each.version: state_of(each) for each in recovered.changes}
        assert 0 == recovered.damaged, f"seed {seed}, kill {number}"
        for version in acknowledged:
            if version > trimmed:
                assert state_of(written(version)) == found.get(version), f"seed {seed}"
        for version, state in found.items():
            assert state_of(written(version)) == state, f"seed {seed}"


def write_and_kill(directory: Path, seed: int, lines_max: int) -> list[bytes]:
    """The lines of a child that wrote and trimmed until it was killed."""
    arguments = ["-m", "tests.faults.journal_file", "write", str(directory), str(seed)]
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(lines_max)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    assert -signal.SIGKILL == child.returncode
    return lines


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def fill(bench: Bench, journal: Journal, versions: Iterator[int]) -> list[int]:
    """Appends until the disk is full; the versions that were acknowledged."""
    done: list[int] = []
    while journal.refusal() is None:
        version = next(versions)
        data = b"x" * 20_000
        journal.append(change(f"{version}", version, data), lambda v=version: done.append(v))  # type: ignore[misc]
        await journal.flush()
    assert journal.refusal() == "The journal's disk is full."
    assert not journal.is_failed
    return done


def whole_numbers() -> Iterator[int]:
    return iter(range(1, 10**9))


async def test_a_full_disk_passes_with_a_trim(bench: Bench, small_disk: Path) -> None:
    """What is acknowledged is safe, the rest is dropped; when PostgreSQL has all, it goes on."""
    journal = await bench.begun(small_disk)
    numbers = whole_numbers()
    for _ in range(2):
        done = await fill(bench, journal, numbers)
        assert 5 < len(done) == journal.records
        recovered = await bench.as_killed(small_disk)
        assert 0 == recovered.damaged
        assert set(done) <= set(versions(recovered))
        assert not await journal.flush()
        last = next(numbers)
        journal.trim(last)
        await bench.logged.wait_for("journal_back")
        assert journal.refusal() is None
        done_again = asyncio.Event()
        journal.append(change("again", next(numbers)), done_again.set)
        await done_again.wait()
        assert await journal.flush()
        recovered = await bench.as_killed(small_disk)
        assert (["again"], 0) == ([each.id for each in recovered.changes], recovered.damaged)
        assert [("journal_full", "warning"), ("journal_back", "info")] == [
            (event["event"], event["level"]) for event in bench.logged
        ]
        bench.logged.clear()
        journal.trim(next(numbers))
    assert [] == bench.failures


async def test_a_full_disk_passes_by_itself(bench: Bench, small_disk: Path) -> None:
    """When somebody else frees the disk, the journal tries again without being asked."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(700_000))
    journal = await bench.begun(small_disk)
    numbers = whole_numbers()
    done = await fill(bench, journal, numbers)
    ballast.unlink()
    await bench.logged.wait_for("journal_back")
    assert {"journal_full": 1, "journal_back": 1} == {
        name: bench.logged.count_of(name) for name in ("journal_full", "journal_back")
    }
    last = next(numbers)
    journal.append(change("again", last), None)
    await journal.flush()
    recovered = await bench.as_killed(small_disk)
    assert ([*done, last], 0) == (versions(recovered), recovered.damaged)
    await journal.close(keep=True)
    assert [*done, last] == versions(await bench.recovered(small_disk))


@pytest.mark.parametrize("ballast", [0, 300_000, 600_000])
async def test_a_full_disk_keeps_what_was_acknowledged(
    bench: Bench, small_disk: Path, ballast: int
) -> None:
    """Closing on a full disk loses nothing and looks like no damage, whichever file is the last."""
    journal = await bench.begun(small_disk)
    (small_disk / "ballast").write_bytes(bytes(ballast))
    done = await fill(bench, journal, whole_numbers())
    await journal.close(keep=True)
    recovered = await bench.recovered(small_disk)
    assert set(done) <= set(versions(recovered))
    assert 0 == recovered.damaged


# --- failures

FAILING = """
    import asyncio, hashlib, json, logging, sys
    from pathlib import Path
    import structlog
    from itemstore.storage.journal import Journal
    from tests.faults.journal_file import STORE_ID, written

    directory = Path(sys.argv[1])

    def digest():
        files = sorted(directory.glob("journal.sqlite3*"))
        return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}

    async def main():
        failures, acknowledged, late = [], [], []
        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        journal = Journal(directory, STORE_ID, bytes_max=2**28, log=log, on_failure=failures.append)
        await journal.open()
        await journal.begin()
        version = 0
        while not journal.is_failed and version < 200:
            version += 1
            done = acknowledged if not failures else late
            journal.append(written(version), lambda v=version, to=done: to.append(v))
            await journal.flush()
        before = digest()
        for version in range(900, 905):
            journal.append(written(version), lambda v=version: late.append(v))
        flushed = await journal.flush()
        await asyncio.sleep(0)
        refusal = journal.refusal()
        await journal.close(keep=True)
        told = dict(acknowledged=acknowledged, late=late, failures=failures, refusal=refusal)
        print(json.dumps(dict(told, flushed=flushed, before=before, after=digest())))

    asyncio.run(main())
"""


async def test_a_failed_fsync_is_final(bench: Bench) -> None:
    """After one failed fsync nothing is acknowledged or written, though the next would succeed."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    bench.directory.mkdir()
    inject = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=25"]
    command = [sys.executable, "-c", textwrap.dedent(FAILING), str(bench.directory)]
    strace = ["strace", "-f", "-o", str(bench.directory / "trace"), *inject]
    ended = run([*strace, *command])
    if "ptrace" in ended.stderr:
        pytest.skip("this process may not be traced")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert 5 < len(told["acknowledged"]) < 100
    assert [] == told["late"]
    assert ["SQLITE_IOERR_FSYNC: disk I/O error"] == told["failures"]
    assert "The journal failed: SQLITE_IOERR_FSYNC: disk I/O error." == told["refusal"]
    assert told["flushed"] is False
    assert 1 == ended.stderr.count("journal_failed")
    assert set(FILES) == set(told["before"])
    assert told["before"] == told["after"] == digests(bench.directory)  # also not by its exit
    found = {each.version: state_of(each) for each in (await bench.recovered()).changes}
    for version in told["acknowledged"]:
        assert state_of(written(version)) == found.get(version)


def digests(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in FILES}


async def test_what_nobody_foresaw_is_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of our own in the thread is told once, without a text that could hold data."""
    journal = await bench.begun()
    journal.append(change("safe", 1), None)
    assert await journal.flush()

    def fail(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(journal_file, "encode", fail)
    done: list[int] = []
    journal.append(change("a", 2), lambda: done.append(2))
    assert not await journal.flush()
    journal.append(change("b", 3), lambda: done.append(3))
    assert not await journal.flush()
    assert ([], 1) == (done, len(bench.failures))
    assert bench.failures[0].startswith("ValueError in test_journal.py, line ")
    assert journal.is_failed
    assert (1, "critical") == (bench.logged.count_of("journal_failed"), bench.logged[-1]["level"])
    assert "secret" not in str(bench.logged)
    await journal.close(keep=True)
    assert [1] == versions(await bench.recovered())


@pytest.mark.parametrize(
    ("code", "is_final"), [(sqlite3.SQLITE_FULL, False), (sqlite3.SQLITE_IOERR_WRITE, True)]
)
def test_only_a_full_disk_passes(code: int, is_final: bool) -> None:
    """Which errors are final is told by SQLite's code and the system's number."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    assert is_final != journal_file.is_full(error)
    assert not journal_file.is_full(sqlite3.ProgrammingError("x"))
    assert not journal_file.is_full(OSError(5, "EIO"))
    assert journal_file.is_full(OSError(28, "ENOSPC"))


# --- damage


def test_damage_is_survived_and_reported() -> None:
    """Whole records come back, damage to a live one is reported, and none is made up."""
    result = damage(200, random.randrange(2**32))
    assert dict.fromkeys(MUST_BE_ZERO, 0) == {name: result[name] for name in MUST_BE_ZERO}, result
    assert 200 == result["mutations"]
    assert result["reported"] > 10
    assert result["recovered_untouched"] > 1_000


async def test_a_damaged_file_is_set_aside(bench: Bench) -> None:
    """A journal that could not all be read is kept beside the new one."""
    journal = await bench.begun()
    for version in range(1, 200):
        journal.append(change(f"{version}", version, b"x" * 300), None)
    await journal.close(keep=True)
    path = bench.directory / FILES[0]
    data = bytearray(path.read_bytes())
    data[5 * 4096 : 6 * 4096] = bytes(4096)
    path.write_bytes(data)
    journal = bench.make()
    recovered = await journal.open()
    assert recovered.damaged == 199 - recovered.records > 5
    await journal.begin()
    assert data == (bench.directory / "journal.damaged").read_bytes()
    assert Recovered((), 0, 0) == await bench.as_killed()


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "zeros"])
async def test_damage_to_the_end_of_a_closed_journal_is_reported(
    bench: Bench, is_cut: bool
) -> None:
    """Without a log, too, it is known which record was the last."""
    journal = await bench.begun()
    for version in range(1, 200):
        journal.append(change(f"{version}", version, b"x" * 300), None)
    journal.append(change("last", 200, b'"the last"'), None)
    await journal.close(keep=True)
    path = bench.directory / FILES[0]
    data = path.read_bytes()
    page = data.index(b'"the last"') // 4096 * 4096
    path.write_bytes(data[:page] + (b"" if is_cut else bytes(4096) + data[page + 4096 :]))
    recovered = await bench.recovered()
    assert 0 < recovered.damaged == 200 - recovered.records


async def test_an_unreadable_page_costs_its_records(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk gives an error, what lies beside it is recovered and the damage reported."""
    journal = await bench.begun()
    for version in range(1, 200):
        journal.append(change(f"{version}", version, b"x" * 300), None)
    await journal.close(keep=True)
    pread = os.pread

    def failing(descriptor: int, size: int, at: int) -> bytes:
        if at <= 5 * 4096 < at + size:
            raise OSError(5, "Input/output error")
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", failing)
    recovered = await bench.recovered()
    assert 5 < recovered.damaged < 15
    assert 199 - recovered.damaged == recovered.records


async def test_files_without_any_record_are_damage(bench: Bench) -> None:
    """A journal of which nothing can be read is not taken for an empty one."""
    journal = await bench.begun()
    journal.append(change("a", 1), None)
    await journal.close(keep=True)
    path = bench.directory / FILES[0]
    path.write_bytes(bytes(path.stat().st_size))
    assert Recovered((), 0, 1) == await bench.recovered()


async def test_a_log_without_its_file_promises_nothing(bench: Bench) -> None:
    """A kill amid the removal leaves the log alone: its records are taken, gaps do not count."""
    journal = await bench.begun()
    for version in range(1, 4):
        journal.append(change(f"{version}", version), None)
    assert await journal.flush()
    log = (bench.directory / FILES[1]).read_bytes()
    await journal.close(keep=False)
    (bench.directory / FILES[1]).write_bytes(log)
    recovered = await bench.recovered()
    assert ([1, 2, 3], 0) == (versions(recovered), recovered.damaged)


# --- the format


@pytest.mark.parametrize("length", [0, 1, 3_800, 3_887, 3_888, 3_889, 7_787, 7_788, 50_000])
def test_the_size_is_known_beforehand(length: int) -> None:
    """What a record takes is what it was counted for, and each row fits in one page."""
    for each in (change("é", 7, b"x" * length), change("a" * 512, 7, b"x" * length)):
        rows = encode(each, STORE_ID.bytes, 1, 1, 0)
        assert sum(map(len, rows)) == record_bytes(each)
        # https://www.sqlite.org/fileformat2.html: 4,061 in one piece, 4 of them SQLite's head
        assert max(map(len, rows)) <= 4061 - 4


async def test_a_row_lies_whole_in_its_page(bench: Bench) -> None:
    """No row has an overflow page: each record is found in one piece."""
    journal = await bench.begun()
    journal.append(change("long", 1, b"x" * 100_000), None)
    await journal.close(keep=True)
    with sqlite3.connect(bench.directory / FILES[0]) as connection:
        rows = connection.execute("SELECT seq, record FROM records WHERE seq > 0").fetchall()
    connection.close()
    data = (bench.directory / FILES[0]).read_bytes()
    places = [data.index(record) for _, record in rows]
    assert 26 == len(rows)
    assert all(
        at // 4096 == (at + len(r) - 1) // 4096 for at, (_, r) in zip(places, rows, strict=True)
    )


def test_a_trail_forgets_from_its_start() -> None:
    """However much went through it, it holds what was not dropped."""
    trail = Trail()
    for number in range(5_000):
        trail.add(number, 10, number * 2)
        if number >= 100:
            assert 1 == trail.count_to(number - 100)
            assert 10 == trail.drop(1)
    assert (100, 4_900 * 2) == (len(trail), trail.tag(0))
    assert [False, True, True, False] == [trail.has(n) for n in (4_899, 4_900, 4_999, 5_000)]
    assert 3 == trail.fitting(100, 25)
    assert 2 == trail.fitting(2, 10**6)


# --- whether files last


async def test_memory_does_not_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory on tmpfs or ramfs does not last; whichever mount lies nearest decides."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "23 22 0:5 / /data rw,nosuid shared:7 - tmpfs tmpfs rw\n"
        "24 23 0:6 / /data/my\\040disk rw - xfs /dev/vdb rw\n"
        "25 22 0:7 / /covered rw - ext4 /dev/vdc rw\n"
        "26 25 0:8 / /covered rw - ramfs none rw\n"
    )
    monkeypatch.setattr(journal_module, "_MOUNTS", mounts)
    assert lasting(Path("/srv/items")) is None
    assert lasting(Path("/data/my disk/journal")) is None
    assert lasting(Path("/database")) is None
    assert "tmpfs, mounted at /data" in (lasting(Path("/data/items")) or "")
    assert "ramfs" in (lasting(Path("/covered")) or "")
    monkeypatch.setattr(journal_module, "_MOUNTS", tmp_path / "none")
    assert lasting(Path("/data/items")) is None
