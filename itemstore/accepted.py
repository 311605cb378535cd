"""What a write comes to before it is as durable as was asked, and how that is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from itemstore.core.item import Item
from itemstore.core.queue import Change
from itemstore.errors import ItemStoreError

T = TypeVar("T")


class Accepted(NamedTuple):
    """A write that is in the cache and in the queue, or that had nothing to change."""

    change: Change
    is_new: bool  #: whether this version created the item
    #: Settled when the write is as durable as was asked; None if it is already.
    done: asyncio.Future[None] | None
    is_kept: bool = False  #: whether the item was left as it is; ``change`` is its state

    @property
    def item(self) -> Item:
        """As the write has made it; of a deleted item what is left: its id and version."""
        return Item(self.change.id, self.change.entry)


async def finished(accepted: Accepted) -> Item | None:
    """The item, or None for a delete, as soon as the write is as durable as was asked."""
    if accepted.done is not None:
        await accepted.done
    return None if accepted.change.deleted else accepted.item


async def outcome(step: Awaitable[T]) -> T | ItemStoreError:
    """What the step returns, or the error of ours that stopped it."""
    try:
        return await step
    except ItemStoreError as error:
        return error


def settle(future: asyncio.Future[None], failure: Exception | None) -> None:
    """Tells who waits for it; who waited may have given up."""
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
        future.exception()  # its writer may be gone: that is no news
