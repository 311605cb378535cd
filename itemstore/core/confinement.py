"""What a confined caller may do: the store is to it as if it held only ids that begin so.

Another's id is answered as one that no item has, before anything is looked up; nor may an item be
made under one, whether or not there is one. So no answer tells what others keep.
"""

from __future__ import annotations

from typing import Final, TypeVar

from itemstore.core.caller import Caller, Role
from itemstore.core.ids import ID_LENGTH
from itemstore.core.item import ID_MAX_BYTES
from itemstore.core.listing import check_prefix
from itemstore.core.operation import Create, Delete, Get, Import, Patch, Put
from itemstore.errors import Forbidden, InvalidId, ItemNotFound

#: So that a generated id fits behind it.
PREFIX_MAX_BYTES: Final = ID_MAX_BYTES - ID_LENGTH

O = TypeVar("O", bound=Create | Put | Patch | Delete | Get | Import)  # noqa: E741 - of operations


def check_confining(prefix: str) -> str:
    """The prefix itself. Raises InvalidId unless ids, also generated ones, can begin with it."""
    check_prefix(prefix)
    if len(prefix.encode()) > PREFIX_MAX_BYTES:
        raise InvalidId(f"A prefix to be confined to has at most {PREFIX_MAX_BYTES} bytes.")
    return prefix


def check_reach(caller: Caller, item_id: str) -> None:
    """Raises ItemNotFound for another's id, as if there were no such item."""
    if not item_id.startswith(caller.prefix):
        raise ItemNotFound(f"There is no item {item_id!r}.")


def narrowed(caller: Caller, prefix: str) -> str | None:
    """The prefix of those ids that begin so and are the caller's; None if there can be none."""
    if prefix.startswith(caller.prefix):
        return prefix
    return caller.prefix if caller.prefix.startswith(prefix) else None


def permitted(caller: Caller, operation: O) -> O:
    """The operation, if the caller may do it; an id that the store generates will be the caller's.

    Raises Forbidden for a write by who may only read, and for what makes an item under another's
    id; else, for another's id, ItemNotFound.
    """
    if caller.role < Role.WRITE and not isinstance(operation, Get):
        raise Forbidden(f"{caller.name} may only read. Use a key or a token with the role write.")
    if not caller.prefix:
        return operation
    if isinstance(operation, Create | Import) and operation.id is None:
        operation.prefix = caller.prefix
    elif isinstance(operation, Get | Patch | Delete):
        check_reach(caller, operation.id)
    elif not (operation.id or "").startswith(caller.prefix):
        raise Forbidden(
            f"{caller.name} is confined to ids that begin with {caller.prefix!r}. Choose such an "
            "id, or leave it out and one is generated."
        )
    return operation
