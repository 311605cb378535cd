"""Usage: how many items there are under a prefix, and how many bytes their data take.

A prefix is counted in PostgreSQL once, while writes go on, and then kept by the differences that
writes make. The count is of one moment that is known only in hindsight:

    1. ``Counting`` begins with the ids whose newest state PostgreSQL does not have yet
    2. PostgreSQL takes its snapshot and counts                        (writes add their ids)
    3. ``changed``: the ids there are by now, of which PostgreSQL tells, in the same snapshot,
       what it counted; that is taken off                              (writes add their ids)
    4. ``total`` puts in the newest state of those, and of those that came later the difference

What other hands change is not known exactly; whatever counted it is forgotten, and counted anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from itemstore.core.caller import Caller
from itemstore.core.item import data_of
from itemstore.errors import QuotaExceeded

PREFIXES_MAX: Final = 1_000  # counted; beyond, the one counted first is forgotten


class Usage(NamedTuple):
    """Items, and bytes of their data."""

    items: int = 0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]
        return Usage(self.items + other.items, self.bytes + other.bytes)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.items - other.items, self.bytes - other.bytes)


NONE: Final = Usage()


def of_text(text: bytes | None) -> Usage:
    """What one item takes, or none."""
    return NONE if text is None else Usage(1, len(text))


@dataclass(slots=True)
class _Change:
    """Of one id since a count began: what it was before, and is now."""

    before: Usage
    now: Usage


class Counting:
    """A count under way. ``dirty`` is what PostgreSQL does not have yet: ids with their text."""

    def __init__(self, dirty: Iterable[tuple[str, bytes | None]]) -> None:
        self._changes = {each: _Change(NONE, of_text(text)) for each, text in dirty}
        self._asked: frozenset[str] = frozenset()

    def note(self, item_id: str, before: Usage, now: Usage) -> None:
        """The item was changed."""
        change = self._changes.get(item_id)
        if change is None:
            self._changes[item_id] = _Change(before, now)
        else:
            change.now = now

    def changed(self) -> list[str]:
        """What is not to be counted; each call is for a new snapshot, and undoes the last one."""
        self._asked = frozenset(self._changes)
        return list(self._asked)

    def total(self, others: Usage) -> Usage:
        """The usage by now, where PostgreSQL has counted ``others``: all but those ``changed``."""
        total = others
        for item_id, change in self._changes.items():
            total += change.now if item_id in self._asked else change.now - change.before
        return total


class Usages:
    """The usage of each prefix that somebody has a quota for. ``tracked`` tells if there is any."""

    def __init__(self) -> None:
        self.tracked: dict[str, Usage | Counting] = {}
        self._lengths: tuple[int, ...] = ()

    def of(self, prefix: str) -> Usage | None:
        """None if it is not known (yet)."""
        usage = self.tracked.get(prefix)
        return usage if isinstance(usage, Usage) else None

    def begin(self, prefix: str, counting: Counting) -> None:
        """The prefix is being counted."""
        while len(self.tracked) >= PREFIXES_MAX and prefix not in self.tracked:
            del self.tracked[next(iter(self.tracked))]
        self.tracked[prefix] = counting
        self._measure()

    def finish(self, prefix: str, counting: Counting, others: Usage) -> None:
        """It is counted, unless the count was forgotten meanwhile."""
        if self.tracked.get(prefix) is counting:
            self.tracked[prefix] = counting.total(others)

    def check(self, caller: Caller, old: bytes | None, text: bytes | None) -> None:
        """Raises QuotaExceeded if the item, changed so, would take more than there may be.

        What makes the items no more, or the bytes, is allowed however many there are.
        """
        usage = self.of(caller.prefix)
        assert usage is not None, "it is counted first"  # noqa: S101 - our own error
        more = of_text(text) - _of_entry(old)
        then = usage + more
        for unit, most, used, needed, added in (
            ("items", caller.max_items, usage.items, then.items, more.items),
            ("bytes", caller.max_bytes, usage.bytes, then.bytes, more.bytes),
        ):
            if most is not None and added > 0 and needed > most:
                raise QuotaExceeded(
                    f"{caller.name} may have {most:,} {unit}, has {used:,} and would have "
                    f"{needed:,}. Nothing was changed. Delete what is not needed, or ask for more."
                )

    def note(self, item_id: str, old: bytes | None, text: bytes | None) -> None:
        """The item was changed; to be called only where something is ``tracked``."""
        for length in self._lengths:
            if len(item_id) < length:
                continue
            prefix = item_id[:length]
            usage = self.tracked.get(prefix)
            if usage is None:
                continue
            before, now = _of_entry(old), of_text(text)
            if isinstance(usage, Counting):
                usage.note(item_id, before, now)
            else:
                self.tracked[prefix] = usage + now - before

    def forget(self, item_id: str = "") -> None:
        """Another hand changed the item, or without one any: what it is part of is unknown."""
        for prefix in [each for each in self.tracked if not item_id or item_id.startswith(each)]:
            del self.tracked[prefix]
        self._measure()

    def _measure(self) -> None:
        self._lengths = tuple({len(prefix) for prefix in self.tracked})


def _of_entry(entry: bytes | None) -> Usage:
    return NONE if entry is None else Usage(1, len(data_of(entry)))
