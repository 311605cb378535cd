"""Who sends a request, and what that caller may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """What a caller may do; each may do what those before it may."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """``name`` is what logs, limits and the audit call it; it is no secret."""

    name: str
    role: Role
    prefix: str = ""  #: of the ids it is confined to
    #: How many items there may be under ``prefix`` for it to add more, and bytes of their data;
    #: None: as many as will be.
    max_items: int | None = None
    max_bytes: int | None = None

    @property
    def has_quota(self) -> bool:
        """Whether what it writes has to be counted."""
        return self.max_items is not None or self.max_bytes is not None


#: Who calls where nobody is asked.
ANYBODY: Final = Caller("anybody", Role.ADMIN)
