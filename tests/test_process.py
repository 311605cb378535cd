"""Which process is gone: only one of this machine that surely runs no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from itemstore import process

TELL = "from itemstore import process; print(process.identity(), flush=True); input()"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that tells its identity and runs until its input ends."""
    started = subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with started:
        yield started
        started.kill()


def identity_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def own() -> list[str]:
    """Boot id, namespace, process id and start of this process."""
    identity = process.identity()
    assert identity is not None
    return identity.split()


def test_this_process_lives() -> None:
    """It has one identity that does not change, and it is not gone."""
    assert process.identity() == process.identity()
    assert not process.is_gone(process.identity())


def test_a_running_child_lives(child: subprocess.Popen[str]) -> None:
    """Another process of this machine is told apart from this one, and is not gone."""
    identity = identity_of(child)
    assert own()[:2] == identity.split()[:2]
    assert str(child.pid) == identity.split()[2]
    assert not process.is_gone(identity)


def test_a_child_that_ended_is_gone(child: subprocess.Popen[str]) -> None:
    """Once a process has ended and its parent took note of it, it is gone."""
    identity = identity_of(child)
    child.kill()
    child.wait()
    assert process.is_gone(identity)


def test_a_zombie_is_gone(child: subprocess.Popen[str]) -> None:
    """A process that has ended is gone, though its parent has not taken note of it."""
    identity = identity_of(child)
    child.kill()
    assert child.stdout is not None
    assert child.stdout.read() == ""  # returns when it has closed its end: it is dying
    while state_of(child.pid) != "Z":
        pass
    assert child.returncode is None  # nobody has waited for it
    assert process.is_gone(identity)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_id_used_again_is_another_process() -> None:
    """Of a process that started at another time, this one's id is only a number used again."""
    boot, namespace, pid, started = own()
    assert process.is_gone(f"{boot} {namespace} {pid} {int(started) - 1}")


@pytest.mark.parametrize("place", ["boot", "namespace"])
def test_of_another_machine_nothing_is_known(place: str, child: subprocess.Popen[str]) -> None:
    """A process of another boot or another namespace is never called gone, also a dead one's."""
    boot, namespace, pid, started = identity_of(child).split()
    child.kill()
    child.wait()
    other = (
        f"00000000-0000-0000-0000-000000000000 {namespace}"
        if place == "boot"
        else f"{boot} {int(namespace) + 1}"
    )
    assert not process.is_gone(f"{other} {pid} {started}")
    assert process.is_gone(f"{boot} {namespace} {pid} {started}")


@pytest.mark.parametrize("other", [None, "", " ", "x", "a b c", "a b c d", "a b c d e", "\x00"])
def test_nonsense_is_not_gone(other: str | None) -> None:
    """What is not an identity says nothing."""
    assert not process.is_gone(other)


def test_nonsense_of_this_place_is_not_gone() -> None:
    """Of this machine, too, what names no process says nothing."""
    boot, namespace, _, started = own()
    assert not process.is_gone(f"{boot} {namespace} somebody {started}")


def test_a_name_with_blanks_and_brackets_is_read_over() -> None:
    """The name in /proc/<pid>/stat may hold anything; the start is found behind it."""
    rename = "open('/proc/self/comm', 'w').write(') Z 1 (2'); "
    program = [sys.executable, "-c", rename + TELL]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as renamed:
        identity = identity_of(renamed)
        assert "() Z 1 (2)" in Path(f"/proc/{renamed.pid}/stat").read_text()
        assert not process.is_gone(identity)
        renamed.kill()
    assert process.is_gone(identity)


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc does not tell, a process has no identity, and none is gone."""
    identity = process.identity()
    boot, namespace, pid, started = own()
    dead = f"{boot} {namespace} {pid} {int(started) - 1}"
    monkeypatch.setattr(process, "_BOOT_ID", Path("/nowhere/boot_id"))
    assert process.identity() is None
    assert [False, False] == [process.is_gone(identity), process.is_gone(dead)]
