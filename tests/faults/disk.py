"""A disk of our own: ext4 on a loop device, which can be full, and lose its power."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

#: _IOR('X', 125, __u32): the file system stops at once.
#: https://github.com/torvalds/linux/blob/v6.1/fs/ext4/ext4.h
_EXT4_IOC_SHUTDOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2  # not even its own journal reaches the disk
_UNMOUNT_S: Final = 20.0
_POLL_S: Final = 0.05
_BALLAST: Final = "ballast"
_CHUNK: Final = bytes(64 * 1024)


class Disk:
    """Mounted at ``place`` while it has power."""

    def __init__(self, directory: Path, mib: int) -> None:
        self._image = directory / "disk.img"
        self.place = directory / "disk"
        with self._image.open("wb") as image:
            image.truncate(mib * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self.place.mkdir(exist_ok=True)

    @property
    def is_mounted(self) -> bool:
        return self.place.is_mount()

    def mount(self) -> None:
        """Replays the file system's journal, after a power cut."""
        if not self.is_mounted:
            _run("mount", "-o", "loop", str(self._image), str(self.place))

    def unmount(self) -> None:
        """Waits for the processes that were killed."""
        until = time.monotonic() + _UNMOUNT_S
        while self.is_mounted:
            try:
                _run("umount", str(self.place))
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_S)

    def cut_power(self) -> None:
        """What was not synced is gone after the next ``mount``."""
        directory = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(directory)

    def fill(self, left_bytes: int = 0) -> None:
        """But for so many bytes, as if somebody else had."""
        with (self.place / _BALLAST).open("ab", buffering=0) as ballast:
            try:
                while (space := shutil.disk_usage(self.place).free - left_bytes) > 0:
                    ballast.write(_CHUNK[:space])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        (self.place / _BALLAST).unlink(missing_ok=True)


def refusal() -> str:
    """Why there can be no such disk here; empty if there can."""
    if os.geteuid() != 0:
        return "only root may mount a disk"
    try:
        with tempfile.TemporaryDirectory(prefix="itemstore-faults-") as name:
            disk = Disk(Path(name), 8)
            disk.mount()
            disk.unmount()
    except OSError as error:
        return f"no disk can be mounted: {error}"
    return ""


def _run(*command: str) -> None:
    """Raises OSError."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
