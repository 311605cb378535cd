"""Which process of which machine this is, so that a successor here sees that its holder is gone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_START_FIELD: Final = 19  # of /proc/<pid>/stat, counted after the name: proc(5), starttime


def identity() -> str | None:
    """This process among all that ever ran; None where /proc does not tell."""
    try:
        return f"{_place()} {os.getpid()} {_started(os.getpid())}"
    except (OSError, IndexError):
        return None


def is_gone(other: str | None) -> bool:
    """Whether that process surely runs no more: it was one of this machine's."""
    if other is None or len(parts := other.split()) != 4 or not parts[2].isdecimal():
        return False
    try:
        is_here = " ".join(parts[:2]) == _place()
    except OSError:
        return False
    return is_here and not _runs(int(parts[2]), parts[3])


def _place() -> str:
    """The machine since it booted, and the namespace that process ids are counted in."""
    return f"{_BOOT_ID.read_text().strip()} {os.stat(_PID_NAMESPACE).st_ino}"


def _runs(pid: int, started: str) -> bool:
    try:
        return _started(pid) == started
    except FileNotFoundError:
        return False
    except (OSError, IndexError):
        return True


def _started(pid: int) -> str:
    """When it started, in clock ticks since the boot; a process id alone is used again."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    if fields[0] == "Z":  # dead, and only not yet taken note of by its parent
        raise FileNotFoundError(pid)
    return fields[_START_FIELD]
