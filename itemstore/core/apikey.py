"""API keys: how they look, and what is kept of them.

    itemkey_1pvviFaV_mJ2…43 characters of secret…k9XQ3Tz81
            └─ id ─┘ └────── 32 random bytes ─────┘└ crc ┘

In base62, so that a double click selects the whole. The word at the front is what scanners for
leaked secrets look for. By the checksum a mistyped or cut key is known without a look-up. Only a
hash of it is kept: of 32 random bytes a fast one is enough, for there is nothing to guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Final
from zlib import crc32

from itemstore.core.caller import Caller, Role
from itemstore.core.ids import ALPHABET

SECRET_BYTES: Final = 32
ID_BYTES: Final = 8
NAME_LENGTH_MAX: Final = 100  # characters
QUOTA_MAX: Final = 2**53 - 1  # beyond it JSON's numbers are not exact everywhere (RFC 8259, 6)

_ID_LENGTH: Final = 8
_SECRET_LENGTH: Final = 43  # 62^43 > 2^256
_CRC_LENGTH: Final = 6  # 62^6 > 2^32
_FORM: Final = re.compile(r"itemkey_([0-9A-Za-z]{8})_[0-9A-Za-z]{49}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept."""

    id: str
    digest: bytes
    name: str  #: for people
    role: Role
    prefix: str  #: of the ids it is confined to
    created_us: int
    expires_us: int | None = None  #: microseconds since 1970; None: never
    max_items: int | None = None  #: its quota; None: none
    max_bytes: int | None = None

    @property
    def caller(self) -> Caller:
        return Caller(f"key:{self.id}", self.role, self.prefix, self.max_items, self.max_bytes)

    def is_shown_by(self, token: str) -> bool:
        """Whether the token is this key. Takes as long for a wrong one as for the right one."""
        return compare_digest(self.digest, digest(token))


def compose(id_bytes: bytes, secret: bytes) -> tuple[str, str]:
    """A key's id, and the key: from ID_BYTES and SECRET_BYTES random ones."""
    key_id = _base62(int.from_bytes(id_bytes) % 62**_ID_LENGTH, _ID_LENGTH)
    body = f"itemkey_{key_id}_{_base62(int.from_bytes(secret), _SECRET_LENGTH)}"
    return key_id, body + _checksum(body)


def is_meant(token: str) -> bool:
    """Whether it is meant to be a key: true as well of a mistyped one."""
    return token.startswith("itemkey_")


def id_in(token: str) -> str | None:
    """The id of the key; None if it was mistyped, or cut."""
    found = _FORM.fullmatch(token)
    if found is None or _checksum(token[:-_CRC_LENGTH]) != token[-_CRC_LENGTH:]:
        return None
    return found[1]


def digest(token: str) -> bytes:
    """What is kept of a key."""
    return sha256(token.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(crc32(body.encode()), _CRC_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = ""
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits
