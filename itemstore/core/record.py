"""What an accepted write leaves behind beside its item: a line of the audit, an answer to repeat.

A record travels with the change it belongs to, is committed in the same transaction, and is as
durable as that: in the queue, in the journal, through a failover. In memory it is a text of JSON,
for nothing that the garbage collector would look at.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

import orjson

from itemstore.core.caller import Caller, Role
from itemstore.core.item import pack
from itemstore.core.queue import Change
from itemstore.errors import InvalidIdempotencyKey

KEY_LENGTH_MAX: Final = 255  # characters
LEGIBLE_LENGTH_MAX: Final = 255  # characters


class Record(NamedTuple):
    """One accepted write. ``what`` was asked for: create, put, patch, delete, import or repeat."""

    id: str
    version: int
    what: str
    caller: str
    request_id: str
    address: str
    is_audited: bool  #: whether it goes into the audit
    key: str | None = None  #: the idempotency key of the request, if it had one
    position: int = 0  #: of the operation in a batch
    payload: str = ""  #: of the request with this key, as a digest
    created_us: int = 0  #: the item's ``created_at``, in microseconds since 1970
    deleted: bool = False
    data: str | None = None  #: what the item became, where the request does not say so itself

    def packed(self) -> bytes:
        """What a change carries."""
        return orjson.dumps(tuple(self))

    def entry(self, text: bytes) -> bytes:
        """The item as the write has made it; ``text`` is what the request asked for."""
        data = text if self.data is None else self.data.encode()
        return pack(self.version, self.created_us, b"" if self.deleted else data)


def unpacked(packed: bytes) -> Record:
    """The record that a change carries."""
    return Record(*orjson.loads(packed))


@dataclass(slots=True, eq=False)
class Once:
    """A request to be carried out once, however often it is sent; for one call at a time.

    Raises InvalidIdempotencyKey unless ``key`` has 1 to 255 visible characters of ASCII.
    """

    key: str
    payload: InitVar[bytes]  #: all that the request asks for, or a digest of it; not kept
    #: Operations that were answered as an earlier request was, and not carried out again.
    replayed: int = field(default=0, init=False)
    #: What earlier requests with the key came to, by position, and the epoch for which it is known.
    found: dict[int, Record] = field(default_factory=dict, init=False)
    epoch: int = field(default=0, init=False)
    digest: str = field(init=False)

    def __post_init__(self, payload: bytes) -> None:
        if not (1 <= len(self.key) <= KEY_LENGTH_MAX and is_visible(self.key)):
            raise InvalidIdempotencyKey(
                f"An idempotency key is 1 to {KEY_LENGTH_MAX} visible characters of ASCII, such as "
                "a UUID."
            )
        self.digest = blake2b(payload, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for a write, and where from; what cannot be shown is replaced."""

    caller: Caller
    request_id: str = ""
    address: str = ""
    once: Once | None = None
    name: str = field(init=False)  #: the caller's, as records have it

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.caller.name)
        for name in ("name", "request_id", "address"):
            value = getattr(self, name)
            if not _is_legible(value):
                object.__setattr__(self, name, _legible(value))


def record_of(
    what: str, change: Change, origin: Origin, position: int, *, is_audited: bool, keeps_data: bool
) -> bytes:
    """The record of this change, packed."""
    record = Record(
        change.id,
        change.version,
        what,
        origin.name,
        origin.request_id,
        origin.address,
        is_audited,
    )
    once = origin.once
    if once is None:
        return record.packed()
    data = change.data if keeps_data else None
    return record._replace(
        key=once.key,
        position=position,
        payload=once.digest,
        created_us=change.created_us,
        deleted=change.deleted,
        data=None if data is None else data.decode(),
    ).packed()


def is_visible(text: str) -> bool:
    """Whether all of it is visible ASCII: VCHAR of RFC 5234."""
    return all("!" <= char <= "~" for char in text)


def _is_legible(text: str) -> bool:
    return len(text) <= LEGIBLE_LENGTH_MAX and text.isprintable()


def _legible(text: str) -> str:
    """Bounded and printable, and another text for another name."""
    raw = text.encode(errors="backslashreplace")
    shown = "".join(char if char.isprintable() else "?" for char in raw.decode()[:200])
    return f"{shown}#{blake2b(raw, digest_size=16).hexdigest()}"


#: Who asks where nobody says so: the program that the store runs in.
UNNAMED: Final = Origin(Caller("library", Role.ADMIN))
