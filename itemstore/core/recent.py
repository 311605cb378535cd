"""Recent commits: kept for a while, in case PostgreSQL loses them.

A managed PostgreSQL fails over to a standby that may lack the last commits. What was committed
within ``RECENT_S`` is kept, newest per item, and can be applied again through the version guard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from itemstore.core.queue import Change, size_of

#: Longer than a failover takes: Patroni's default is a lease of 30 s, and up to 40 s to act on it.
#: https://patroni.readthedocs.io/en/latest/dynamic_configuration.html
RECENT_S: Final = 120.0
RECENT_BYTES_MAX: Final = 64 * 1024 * 1024
RECENT_SHARE: Final = 8  # and no more than one in so many bytes of what the cache may take


class Recent:
    """The newest commit of each item in the last ``RECENT_S`` seconds, as far as bytes allow."""

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        #: By id: when, version, entry, whether deleted. Nothing that the garbage collector looks
        #: at: of some hundred thousand changes it would take a tenth of a second.
        self._kept: OrderedDict[str, tuple[float, int, bytes, bool]] = OrderedDict()
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, changes: Iterable[Change], now_s: float) -> None:
        """These are committed now; forgets what is too old or too much."""
        for change in changes:
            old = self._kept.pop(change.id, None)
            if old is not None:
                self.bytes_used -= size_of(change.id, old[2])
            self._kept[change.id] = (now_s, change.version, change.entry, change.deleted)
            self.bytes_used += change.size
        self.forget(now_s)

    def forget(self, now_s: float) -> None:
        """Drops what was committed too long ago, and the oldest beyond the bound."""
        while self._kept:
            item_id, (committed_s, _, entry, _) = next(iter(self._kept.items()))
            if committed_s > now_s - RECENT_S and self.bytes_used <= self._bytes_max:
                return
            del self._kept[item_id]
            self.bytes_used -= size_of(item_id, entry)

    def changes(self) -> list[Change]:
        """What is kept, sorted by id as a batch must be."""
        return [
            Change(item_id, version, entry, deleted=deleted, now_s=now_s)
            for item_id, (now_s, version, entry, deleted) in sorted(self._kept.items())
        ]
