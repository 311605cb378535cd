"""Whether an answer is right: checked against the truth, the moment the client has it.

A single read has one right answer. A page of a list, a count or a batch was under way for a while
and may show an item as it was at any moment since the call began, but no earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from itemstore.core.cache import Row
from itemstore.core.item import Item, plain
from itemstore.core.listing import Position, position
from itemstore.core.operation import Get, Operation
from itemstore.core.queue import Change
from itemstore.errors import (
    CommitUnconfirmed,
    DatabaseUnavailable,
    ItemExists,
    ItemNotFound,
    ItemQuarantined,
    ItemStoreError,
    NotHolder,
    Overloaded,
    PreconditionFailed,
    Stopping,
)
from itemstore.options import Durability
from itemstore.storage import ListQuery
from tests.simulation.hand import IDS as HAND_IDS
from tests.simulation.truth import Moment, Truth

#: Errors that are right only in the item's state at that moment.
DECIDED: Final = (ItemExists, ItemNotFound, PreconditionFailed)
#: Errors of a write that is accepted all the same.
AFTERWARDS: Final = (CommitUnconfirmed, ItemQuarantined)
#: Errors that good weather gives no reason for.
BAD_WEATHER: Final = (CommitUnconfirmed, DatabaseUnavailable, NotHolder)
EXPECTED: Final = (*DECIDED, *AFTERWARDS, *BAD_WEATHER, Overloaded, Stopping)
LEASE_MAX_S: Final = 20.0  # that a lease of ids takes here in the worst weather
Result = Item | ItemStoreError | None


@dataclass
class Call:
    """A client's call under way, and the writes accepted for it so far: what was, what is."""

    operations: Sequence[Operation]
    begun: int  #: the number of writes accepted before it
    accepted: list[tuple[Moment, Moment]] = field(default_factory=list)
    accepted_at: float = 0.0


class Answers:
    def __init__(self, truth: Truth, *, is_calm: bool) -> None:
        self._truth = truth
        self._check = truth.check
        self._calls: dict[object, Call] = {}
        self.is_calm = is_calm
        truth.on_accept = self._attribute

    def begin_call(self, *operations: Operation) -> Call:
        call = self._calls[asyncio.current_task()] = Call(operations, self._truth.writes)
        return call

    def end_call(self) -> None:
        """The caller has its answer, or has given up."""
        del self._calls[asyncio.current_task()]

    def _attribute(self, change: Change, old: Moment, new: Moment) -> None:
        """The write is what an operation of a call under way makes of what was."""
        call = self._calls.get(asyncio.current_task())
        is_asked = call is not None and any(_makes(op, old, change) for op in call.operations)
        self._check(is_asked, f"somebody has asked for {change}")
        assert call is not None
        call.accepted.append((old, new))
        call.accepted_at = self._truth.world.time()

    # --- one item

    def check_error(self, error: ItemStoreError, about: str) -> None:
        self._check(isinstance(error, EXPECTED), f"an error that can be: {about}")
        is_closing = not self._truth.store.is_ready
        is_fair = is_closing or not (self.is_calm and isinstance(error, BAD_WEATHER))
        self._check(is_fair, f"in good weather the database is there: {about}")
        self._check(not isinstance(error, Stopping) or is_closing, f"nobody closes it: {about}")

    def check_get(self, item_id: str, item: Item | None, began: int | None) -> None:
        """The answer has just been given: nothing has happened since.

        ``began``: the number of writes before it, if it began before the store had the lease.
        """
        moments = self._truth.since(item_id, self._truth.writes if began is None else began)
        is_newest = _entry(item) in [moment.entry for moment in moments]
        self._check(is_newest, f"a read sees the newest write of {item_id}: {item!r}, {moments}")

    def check_results(self, call: Call, results: Sequence[Result], level: Durability) -> None:
        accepted = iter(call.accepted)
        rest = 0  # operations that came to nothing, after the last that did not
        self._check(len(results) == len(call.operations), "there is one result an operation")
        for operation, result in zip(call.operations, results, strict=True):
            rest += 1
            if isinstance(result, ItemStoreError):
                self._check_failure(call, operation, result)
            if isinstance(operation, Get):
                self._check_read(call, operation, result)
            elif isinstance(result, AFTERWARDS) or not isinstance(result, ItemStoreError):
                rest = 0
                self._check_applied(operation, result, next(accepted, None), level)
        self._check(next(accepted, None) is None, f"what failed is not applied: {results}")
        self._check_prompt(call, rest)

    def _check_prompt(self, call: Call, rest: int) -> None:
        """However many commits are waited for, they are waited for together."""
        options = self._truth.store.options
        one_s = options.load_timeout_s + options.queue_wait_s + LEASE_MAX_S
        waited_s = self._truth.world.time() - call.accepted_at if call.accepted else 0.0
        is_prompt = waited_s <= options.commit_timeout_s + rest * one_s + 0.001
        self._check(is_prompt, f"the wait for commits is bounded: {waited_s} s")

    def _check_read(self, call: Call, operation: Get, result: Result) -> None:
        if not isinstance(result, ItemStoreError):
            moments = self._truth.since(operation.id, call.begun)
            is_true = _entry(result) in [moment.entry for moment in moments]
            self._check(is_true, f"a read sees the newest write: {operation} → {result!r}")

    def _check_applied(
        self,
        operation: Operation,
        result: Result,
        accepted: tuple[Moment, Moment] | None,
        level: Durability,
    ) -> None:
        check, about = self._check, f"{operation} → {result!r}, accepted {accepted}"
        check(accepted is not None, f"what is acknowledged is applied: {about}")
        assert accepted is not None
        old, new = accepted
        assert new.change is not None
        check(_makes(operation, old, new.change), f"what is applied was asked for: {about}")
        if isinstance(result, ItemQuarantined):
            check(self._truth.is_safe(new.change, or_parked=True), f"it is kept: {about}")
        elif not isinstance(result, ItemStoreError):
            check(new.entry == _entry(result), f"the answer is what is applied: {about}")
            check(result is None or result.is_new == (old.entry is None), f"is_new: {about}")
            if level is Durability.COMMIT:
                check(self._truth.is_safe(new.change), f"what is committed is there: {about}")
                new.is_promised = True

    def _check_failure(self, call: Call, operation: Operation, error: ItemStoreError) -> None:
        about = f"{operation} → {error!r}"
        self.check_error(error, about)
        if isinstance(error, DECIDED):
            is_due = self._could_fail(call, operation, error)
            self._check(is_due, f"the item's state says no: {about}")

    def _could_fail(self, call: Call, operation: Operation, error: ItemStoreError) -> bool:
        """A single call failed on the item as it is now; one in a batch, since that began."""
        assert operation.id is not None
        moments = self._truth.since(operation.id, call.begun)
        if isinstance(operation, Get):
            return any(moment.entry is None for moment in moments)
        is_single = len(call.operations) == 1
        considered = moments[-1:] if is_single else moments
        return any(isinstance(error, type(_refusal(operation, each))) for each in considered)

    # --- many items

    def check_flushed(self, call: Call) -> None:
        for item_id in self._truth.ids():
            moment = self._truth.since(item_id, call.begun)[0]
            if moment.change is not None:
                is_safe = self._truth.is_safe(moment.change, or_parked=True)
                self._check(is_safe, f"the barrier waits for {moment.change}")
                moment.is_promised = True

    def check_count(self, call: Call, prefix: str, count: int) -> None:
        """It lies between the items that were there all the time and those there at some time."""
        always, sometimes = 0, sum(item_id.startswith(prefix) for item_id in HAND_IDS)
        for item_id in self._truth.ids():
            if item_id.startswith(prefix):
                moments = self._truth.since(item_id, call.begun)
                is_certain = not self._truth.is_refused(moments)
                lives = [moment.entry is not None for moment in moments]
                always += is_certain and all(lives)
                sometimes += not is_certain or any(lives)
        self._check(always <= count <= sometimes, f"{always} ≤ {count} ≤ {sometimes}")

    def check_page(
        self, call: Call, query: ListQuery, rows: Sequence[Row], *, is_end: bool
    ) -> None:
        """Each item on the page was so; each item not on it was not to be there."""
        keys = [position(query.order, row) for row in rows]
        found = {item_id: entry for item_id, entry in rows if item_id not in HAND_IDS}
        self._check(keys == sorted(keys, reverse=query.descending), f"a page is in order: {keys}")
        self._check(len(set(keys)) == len(rows) <= query.limit, f"it repeats nothing: {keys}")
        end = None if is_end else keys[-1]
        for item_id in dict.fromkeys([*self._truth.ids(), *found]):
            moments = self._truth.since(item_id, call.begun)
            if self._truth.is_refused(moments):
                continue  # what is quarantined is in the lists as it was before, if at all
            entry = found.get(item_id)
            if entry is None:
                is_right = any(not _is_on(query, end, item_id, each.entry) for each in moments)
            else:
                was_so = entry in [moment.entry for moment in moments]
                is_right = was_so and _is_on(query, end, item_id, entry)
            self._check(is_right, f"a list is exact: {item_id}: {entry!r}, not {moments}; {query}")


def _is_on(query: ListQuery, end: Position | None, item_id: str, entry: bytes | None) -> bool:
    """Whether an item in this state belongs on the page that ends there."""
    if entry is None or not item_id.startswith(query.prefix):
        return False
    key = position(query.order, (item_id, entry))
    if query.descending:
        return (query.after is None or key < query.after) and (end is None or key >= end)
    return (query.after is None or key > query.after) and (end is None or key <= end)


def _entry(item: Item | None) -> bytes | None:
    return None if item is None else plain(item.entry)


def _makes(operation: Operation, old: Moment, change: Change) -> bool:
    """Whether the change is what the operation makes of what was."""
    if isinstance(operation, Get) or operation.id not in {None, change.id}:
        return False
    return _refusal(operation, old) is None and operation.decide(old.entry) == change.data


def _refusal(operation: Operation, moment: Moment) -> ItemStoreError | None:
    """Why the operation cannot be done to the item as it was then."""
    assert not isinstance(operation, Get)
    try:
        operation.decide(moment.entry)
    except ItemStoreError as error:
        return error
    return None
