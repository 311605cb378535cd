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


#: Who calls where nobody is asked.
ANYBODY: Final = Caller("anybody", Role.ADMIN)
