"""What can be done to one item, as decisions: the item as it is goes in, what it becomes comes out.

An operation checks its own input when it is made. ``decide`` is called once, with the packed entry
or None for an absent item, and returns the new data, None to delete, or KEEP to leave the item
as it is; it raises what stops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Final

from itemstore.core.condition import ALWAYS, Condition
from itemstore.core.data import Encoded, decode, encode, merge_patch
from itemstore.core.item import check_id, check_time, data_of, version_of
from itemstore.errors import (
    InvalidData,
    InvalidItem,
    ItemExists,
    ItemNotFound,
    PreconditionFailed,
)


class Conflict(StrEnum):
    """What an import does with an item that is there already, and has other data."""

    NEWER = "newer"  #: replaces it if what is imported was updated later
    SKIP = "skip"  #: leaves it alone
    REPLACE = "replace"  #: replaces it


class _Keep(Enum):
    KEEP = 0


#: What ``decide`` returns where nothing is to be written.
KEEP: Final = _Keep.KEEP


@dataclass(slots=True)
class Create:
    """A new item; with ``id`` None the store generates one, which begins with ``prefix``."""

    data: Mapping[str, Any] | Encoded
    id: str | None = None
    prefix: str = ""
    text: Encoded = field(init=False)
    is_named: bool = field(init=False, default=False)  #: by the store

    def __post_init__(self) -> None:
        if self.id is not None:
            check_id(self.id)
        self.text = encode(self.data)

    def decide(self, old: bytes | None) -> Encoded:
        if old is not None:
            raise ItemExists(
                f"There is an item {self.id!r} already, version {version_of(old)}. "
                "Replace it with PUT, or choose another id."
            )
        return self.text


@dataclass(slots=True)
class Put:
    """Creates the item or replaces its data."""

    id: str
    data: Mapping[str, Any] | Encoded
    when: Condition = ALWAYS
    text: Encoded = field(init=False)

    def __post_init__(self) -> None:
        check_id(self.id)
        self.text = encode(self.data)

    def decide(self, old: bytes | None) -> Encoded:
        self.when.check(old)
        return self.text


@dataclass(frozen=True, slots=True)
class Patch:
    """Changes the data by a JSON merge patch (RFC 7396)."""

    id: str
    patch: Mapping[str, Any]
    when: Condition = ALWAYS

    def __post_init__(self) -> None:
        check_id(self.id)
        if type(self.patch) is not dict:
            raise InvalidItem("A patch is a JSON object (RFC 7396).", pointer="/data")

    def decide(self, old: bytes | None) -> Encoded:
        entry = _existing(self.id, old)
        self.when.check(entry)
        try:
            return encode(merge_patch(decode(data_of(entry)), self.patch))
        except RecursionError:
            raise InvalidData("The patch is nested too deeply.", pointer="/data") from None


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes the item."""

    id: str
    when: Condition = ALWAYS

    def __post_init__(self) -> None:
        check_id(self.id)

    def decide(self, old: bytes | None) -> None:
        self.when.check(_existing(self.id, old))


@dataclass(frozen=True, slots=True)
class Repeat:
    """A write that PostgreSQL refused, once more; ``text`` is None for a delete."""

    id: str
    text: Encoded | None
    version: int  #: of the write that was refused

    def decide(self, old: bytes | None) -> Encoded | None:
        if old is not None and version_of(old) != self.version:
            raise PreconditionFailed(
                f"The item {self.id!r} was written since: it has the version {version_of(old)}."
            )
        if old is None and self.text is not None:
            raise PreconditionFailed(f"The item {self.id!r} was deleted since.")
        return self.text


@dataclass(slots=True)
class Import:
    """An item from elsewhere, with its times there, in microseconds since 1970.

    ``created_us`` becomes the ``created_at`` of a new item; an item that lives here keeps its own.
    """

    id: str | None  #: None: the store generates one, which begins with ``prefix``
    data: Mapping[str, Any] | Encoded
    created_us: int | None = None
    updated_us: int | None = None
    conflict: Conflict = Conflict.NEWER
    prefix: str = ""
    text: Encoded = field(init=False)
    is_named: bool = field(init=False, default=False)  #: by the store

    def __post_init__(self) -> None:
        if self.id is not None:
            check_id(self.id)
        check_time("created_at", self.created_us)
        check_time("updated_at", self.updated_us)
        self.text = encode(self.data)

    def decide(self, old: bytes | None) -> Encoded | _Keep:
        return self.text if old is None or self._replaces(old) else KEEP

    def status_of(self, kept: bytes) -> str:
        """What is told of an item that was left as it is."""
        return "unchanged" if data_of(kept) == self.text else "skipped"

    def _replaces(self, old: bytes) -> bool:
        if data_of(old) == self.text:
            return False
        if self.conflict is Conflict.NEWER:
            return self.updated_us is not None and self.updated_us > version_of(old)
        return self.conflict is Conflict.REPLACE


@dataclass(frozen=True, slots=True)
class Get:
    """Reads the item, in a batch."""

    id: str

    def __post_init__(self) -> None:
        check_id(self.id)


Write = Create | Put | Patch | Delete | Repeat | Import
Operation = Create | Put | Patch | Delete | Get


def _existing(item_id: str, old: bytes | None) -> bytes:
    """A condition on an item that is not there is a 404, not a 412: RFC 9110, section 13.2.1."""
    if old is None:
        raise ItemNotFound(f"There is no item {item_id!r}.")
    return old


def named(operation: Write, generated: str | None) -> str | None:
    """The id of the new item: the generated one, behind the operation's prefix.

    There a client may have chosen the same: so it is looked for like one that was given.
    """
    if isinstance(operation, Create | Import) and operation.prefix and generated is not None:
        operation.id, operation.is_named = operation.prefix + generated, True
        return operation.id
    return generated


def is_unnamed(operation: Write) -> bool:
    """Takes the id back, for another is needed; False if it is not a generated one."""
    if not (isinstance(operation, Create | Import) and operation.is_named):
        return False
    operation.id, operation.is_named = None, False
    return True
