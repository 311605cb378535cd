"""strace at a running process: lets the Nth of its system calls fail, or be its last."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from types import TracebackType
from typing import Final

ATTACH_S: Final = 10.0


def refusal() -> str:
    """Why there is none here; empty if there is."""
    return "" if shutil.which("strace") else "strace is not installed"


class Tampering:
    """``what`` as strace's --inject has it; N is counted per thread, from now on."""

    def __init__(self, pid: int, what: str) -> None:
        self._pid = pid
        self._what = what
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Tampering:
        """Returns when it is attached, or the process has ended already."""
        call = self._what.split(":", 1)[0]
        self._process = await asyncio.create_subprocess_exec(
            *("strace", "-f", "-p", str(self._pid), "-o", "/dev/null"),
            *("-e", f"trace={call}", "-e", f"inject={self._what}"),
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(ATTACH_S):
            said = await self._process.stderr.readline()
        assert b"attached" in said or b"No such process" in said, said
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """It goes with the process, or lets go of it."""
        assert self._process is not None
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)  # Popen's would reap it, too
        await self._process.wait()
