"""The recorder: what is kept of each accepted write beside its item, where anything is."""

from __future__ import annotations

from itemstore.core.operation import Patch, Write
from itemstore.core.queue import Change, WriteQueue
from itemstore.core.record import UNNAMED, Origin, record_of
from itemstore.errors import Overloaded
from itemstore.repetitions import Repetitions


class Recorder:
    """Without an audit, only of requests with an idempotency key."""

    def __init__(self, queue: WriteQueue, repetitions: Repetitions, *, audits: bool) -> None:
        self._queue = queue
        self._repetitions = repetitions
        self._audits = audits

    def is_due(self, item_id: str, origin: Origin | None) -> bool:
        """Whether the item's next write leaves a record. Raises Overloaded if it has too many."""
        if not self._audits and (origin is None or origin.once is None):
            return False
        if not self._queue.has_room_for_record(item_id):
            raise Overloaded(
                f"The item {item_id!r} was written so often that PostgreSQL has yet to take the "
                "records of that. Nothing was changed; repeat later."
            )
        return True

    def record(
        self, operation: Write, change: Change, origin: Origin | None, position: int
    ) -> None:
        """Gives the change its record, before it joins the queue."""
        origin = origin or UNNAMED
        change.keep(
            record_of(
                type(operation).__name__.lower(),
                change,
                origin,
                position,
                is_audited=self._audits,
                keeps_data=isinstance(operation, Patch),  # whose request does not say what it makes
            )
        )
        if origin.once is not None:
            self._repetitions.note(origin, position, change)
