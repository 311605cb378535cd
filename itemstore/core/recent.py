"""Recent commits: kept for a while, in case PostgreSQL loses them.

A managed PostgreSQL fails over to a standby that may lack the last commits. What was committed
within ``RECENT_S`` is kept, newest per item, and can be applied again through the version guard.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from itemstore.core.queue import RECORD_OVERHEAD_BYTES, Change, size_of

#: Longer than a failover takes: Patroni's default is a lease of 30 s, and up to 40 s to act on it.
#: https://patroni.readthedocs.io/en/latest/dynamic_configuration.html
RECENT_S: Final = 120.0
RECENT_BYTES_MAX: Final = 64 * 1024 * 1024
RECENT_RECORDS_MAX: Final = 200_000  # what one statement can take, were all of one item
RECENT_SHARE: Final = 8  # and no more than one in so many bytes of what the cache may take


class Recent:
    """The newest commit of each item in the last ``RECENT_S`` seconds, as far as bytes allow."""

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        #: By id: when, version, entry, whether deleted. Nothing that the garbage collector looks
        #: at: of some hundred thousand changes it would take a tenth of a second.
        self._kept: OrderedDict[str, tuple[float, int, bytes, bool]] = OrderedDict()
        #: What was recorded of them and of the writes they replaced: when, id, record.
        self._records: deque[tuple[float, str, bytes]] = deque()
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
            self.bytes_used += size_of(change.id, change.entry)
            for record in change.records:
                self._records.append((now_s, change.id, record))
                self.bytes_used += len(record) + RECORD_OVERHEAD_BYTES
        self.forget(now_s)

    def forget(self, now_s: float) -> None:
        """Drops what was committed too long ago, and the oldest beyond the bounds."""
        while self._kept or self._records:
            item_id = next(iter(self._kept), "")
            item_s = self._kept[item_id][0] if self._kept else float("inf")
            record_s = self._records[0][0] if self._records else float("inf")
            is_over = self.bytes_used > self._bytes_max or len(self._records) > RECENT_RECORDS_MAX
            if min(item_s, record_s) > now_s - RECENT_S and not is_over:
                return
            if record_s <= item_s or len(self._records) > RECENT_RECORDS_MAX:
                _, _, record = self._records.popleft()
                self.bytes_used -= len(record) + RECORD_OVERHEAD_BYTES
            else:
                _, _, entry, _ = self._kept.pop(item_id)
                self.bytes_used -= size_of(item_id, entry)

    def changes(self) -> list[Change]:
        """What is kept, sorted by id as a batch must be."""
        changes = {
            item_id: Change(item_id, version, entry, deleted=deleted, now_s=now_s)
            for item_id, (now_s, version, entry, deleted) in sorted(self._kept.items())
        }
        records: dict[str, list[bytes]] = {}
        for _, item_id, record in self._records:
            records.setdefault(item_id, []).append(record)
        for item_id in records.keys() & changes.keys():
            changes[item_id].keep_earlier(records[item_id])
        return list(changes.values())
