"""How much memory there is, and how much the items would take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from itemstore.core.item import HEADER_BYTES
from itemstore.core.recent import RECENT_BYTES_MAX, RECENT_SHARE
from itemstore.core.shards import Shards

MIB: Final = 1024 * 1024
CACHE_BYTES_MIN: Final = 4 * MIB
SERVER_BYTES: Final = 128 * MIB  # the interpreter, its libraries, connections and requests
SPARE: Final = 10  # one in so many bytes of the cache: it may take as much more than it counts
ID_BYTES: Final = 8  # of a generated id

#: Where Linux tells a container's limit: cgroup v2, then v1.
_CGROUP_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def limit_bytes() -> int:
    """What this process may use: the container's limit, or the machine's memory if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUP_FILES:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # else "max": no limit
            return min(machine, int(text))
    return machine


def cache_bytes(given: int | None, queue_bytes_max: int) -> int:
    """What the cache may take: as given, or what is left of the limit.

    That is the limit less what the server and the queue need; of the rest the cache has its part,
    and what was committed lately another.
    """
    if given is not None:
        return given
    rest = limit_bytes() - SERVER_BYTES - queue_bytes_max
    return max(CACHE_BYTES_MIN, int(rest / (1 + 1 / SPARE + 1 / RECENT_SHARE)))


def recent_bytes(cache_bytes: int) -> int:
    """What is to be kept of recent commits, beside a cache of so many bytes."""
    return min(RECENT_BYTES_MAX, cache_bytes // RECENT_SHARE)


def estimate(items: int, data_bytes: int) -> int:
    """Bytes of memory for so many items with so much data in all."""
    return items * (Shards.OVERHEAD_BYTES + HEADER_BYTES + ID_BYTES) + data_bytes


def resident_bytes() -> int:
    """What this process has in memory now (RSS); 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
