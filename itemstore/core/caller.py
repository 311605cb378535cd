"""Who sends a request, and what that caller may do.

A caller may be confined to the ids that begin with a prefix. To it the store is as if it held no
other items: ``core/confinement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """What a caller may do; each may do what those before it may."""

    NONE = 0  #: what anybody may
    READ = 1
    WRITE = 2
    ADMIN = 3


#: By the names under which keys and tokens give them.
ROLES: Final = {role.name.lower(): role for role in (Role.READ, Role.WRITE, Role.ADMIN)}


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
#: Who calls without saying who it is, where callers are asked.
NOBODY: Final = Caller("nobody", Role.NONE)
