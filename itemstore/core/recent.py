"""Recent commits: kept for a while, in case PostgreSQL loses them.

A managed PostgreSQL fails over to a standby that may lack the last commits. What was committed
within ``RECENT_S`` is kept, newest per item, and can be applied again through the version guard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from itemstore.core.queue import Change

#: Longer than a failover takes: Patroni's default is a lease of 30 s, and up to 40 s to act on it.
#: https://patroni.readthedocs.io/en/latest/dynamic_configuration.html
RECENT_S: Final = 120.0
RECENT_BYTES_MAX: Final = 64 * 1024 * 1024


class Recent:
    """The newest commit of each item in the last ``RECENT_S`` seconds, as far as bytes allow."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Change]] = OrderedDict()
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, changes: Iterable[Change], now_s: float) -> None:
        """These are committed now; forgets what is too old or too much."""
        for change in changes:
            old = self._kept.pop(change.id, None)
            if old is not None:
                self.bytes_used -= old[1].size
            self._kept[change.id] = (now_s, change)
            self.bytes_used += change.size
        self.forget(now_s)

    def forget(self, now_s: float) -> None:
        """Drops what was committed too long ago, and the oldest beyond the bound."""
        while self._kept:
            committed_s, change = next(iter(self._kept.values()))
            if committed_s > now_s - RECENT_S and self.bytes_used <= RECENT_BYTES_MAX:
                return
            del self._kept[change.id]
            self.bytes_used -= change.size

    def changes(self) -> list[Change]:
        """What is kept, sorted by id as a batch must be."""
        return sorted((change for _, change in self._kept.values()), key=lambda each: each.id)
