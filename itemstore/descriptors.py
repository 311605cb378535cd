"""File descriptors: a connection takes one, and without a free one nothing can be opened."""

from __future__ import annotations

import resource
from typing import Final

RESERVED: Final = 128  # for PostgreSQL, the journal, the log and what is opened in passing


def room() -> int:
    """How many connections there are descriptors for, the limit being raised as far as it may.

    The soft limit is often 1,024 out of regard for select(2), which nothing here uses; see
    getrlimit(2).
    getrlimit(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # as on macOS, where the hard limit is no number
            pass
    return 1 << 30 if soft == resource.RLIM_INFINITY else max(1, soft - RESERVED)
