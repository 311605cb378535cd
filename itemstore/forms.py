"""The short forms of a write: one method an operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from itemstore.core.condition import ALWAYS, Condition
from itemstore.core.data import Encoded
from itemstore.core.item import Item
from itemstore.core.operation import Create, Delete, Patch, Put, Write
from itemstore.core.record import Origin
from itemstore.options import Durability


class ShortForms(ABC):
    """``origin`` is who asks for the write; the other arguments are the operation's."""

    @abstractmethod
    async def write(
        self,
        operation: Write,
        durability: Durability | str | None = None,
        origin: Origin | None = None,
    ) -> Item:
        """Carries out one operation."""

    async def create(
        self,
        data: Mapping[str, Any] | Encoded,
        *,
        item_id: str | None = None,
        durability: Durability | str | None = None,
        origin: Origin | None = None,
    ) -> Item:
        """A new item, under the given id or a generated one.

        Raises ItemExists if there is one with this id, InvalidId, InvalidData, Unavailable.
        """
        return await self.write(Create(data, item_id), durability, origin)

    async def put(
        self,
        item_id: str,
        data: Mapping[str, Any] | Encoded,
        *,
        when: Condition = ALWAYS,
        durability: Durability | str | None = None,
        origin: Origin | None = None,
    ) -> Item:
        """Creates or replaces the item; its ``is_new`` tells which.

        Raises PreconditionFailed if ``when`` does not hold, InvalidId, InvalidData, Unavailable.
        """
        return await self.write(Put(item_id, data, when), durability, origin)

    async def patch(
        self,
        item_id: str,
        patch: Mapping[str, Any],
        *,
        when: Condition = ALWAYS,
        durability: Durability | str | None = None,
        origin: Origin | None = None,
    ) -> Item:
        """Changes the item's data by a JSON merge patch (RFC 7396).

        Raises ItemNotFound, PreconditionFailed, InvalidData if the result cannot be stored,
        Unavailable.
        """
        return await self.write(Patch(item_id, patch, when), durability, origin)

    async def delete(
        self,
        item_id: str,
        *,
        when: Condition = ALWAYS,
        durability: Durability | str | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Deletes the item. Raises ItemNotFound, PreconditionFailed, InvalidId, Unavailable."""
        await self.write(Delete(item_id, when), durability, origin)
