"""A batch: many operations one after another, each of which stands alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from itemstore.accepted import Accepted, finished, outcome
from itemstore.core.item import Item
from itemstore.core.operation import Get, Operation, Patch
from itemstore.errors import ItemStoreError, Overloaded
from itemstore.lease import WriterLease
from itemstore.reader import UNKNOWN, Reader
from itemstore.tasks import give_way

#: Bytes of the items in one answer. Who reads or patches large items gets more than was sent.
ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024

#: Begins the operation that has this place in the batch.
Begin = Callable[[int, Operation], Awaitable[Accepted | Item]]


def writes(operations: Sequence[Operation | ItemStoreError]) -> bool:
    """Whether any of them needs the lease."""
    return any(not isinstance(each, Get | ItemStoreError) for each in operations)


async def run(
    operations: Sequence[Operation | ItemStoreError],
    begin: Begin,
    reader: Reader,
    lease: WriterLease,
) -> list[Item | ItemStoreError | None]:
    """The result of each, in their order; commits are waited for together.

    An error among the operations is its own result. Raises NotHolder.
    """
    valid = [each for each in operations if not isinstance(each, ItemStoreError)]
    failures = await reader.load_all(each.id for each in valid)
    if writes(operations):
        await lease.to_accept()  # the loads may have taken longer than it was known to be ours
    size = 0

    async def step(position: int, operation: Operation | ItemStoreError) -> Accepted | Item:
        if isinstance(operation, ItemStoreError):
            raise operation
        if size >= ANSWER_BYTES_MAX and isinstance(operation, Get | Patch):
            raise Overloaded(
                f"The items in the answer to this batch have {ANSWER_BYTES_MAX:,} bytes by now. "
                "Nothing was changed by this operation; send it again, in another batch."
            )
        failure = failures.get(operation.id or "")
        if failure is not None and operation.id and reader.known(operation.id) is UNKNOWN:
            raise failure  # not each operation is to wait for a load again
        return await begin(position, operation)

    begun: list[Accepted | Item | ItemStoreError] = []
    for position, operation in enumerate(operations):
        begun.append(await outcome(step(position, operation)))
        size += _size(begun[-1])
        await give_way(position + 1)
    return [await outcome(finished(each)) if isinstance(each, Accepted) else each for each in begun]


def _size(begun: Accepted | Item | ItemStoreError) -> int:
    match begun:
        case Accepted(change):
            return len(change.entry)
        case Item():
            return len(begun.entry)
        case _:
            return 0
