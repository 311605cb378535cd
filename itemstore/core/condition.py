"""Conditions on the state an item must be in, as HTTP's If-Match and If-None-Match put them.

RFC 9110, section 13.1. An entity tag is the version in double quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from itemstore.core.item import version_of
from itemstore.errors import InvalidETag, PreconditionFailed

#: With the comma after it, and any empty elements of the list around it (section 5.6.1.2). Bytes
#: beyond ASCII come here decoded, as any character.
_TAG: Final = re.compile(r'[ \t,]*(W/)?"([^\x00-\x20"\x7f]*)"[ \t]*(?:,[ \t,]*|$)')
_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class _Tags:
    """A header's list: ``any`` for ``*``, else the versions named strongly and weakly."""

    any: bool = False
    strong: frozenset[int] = frozenset()
    weak: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold of the item as it is now for a request to be carried out."""

    if_match: _Tags | None = None
    if_none_match: _Tags | None = None

    @classmethod
    def version(cls, *versions: int) -> Condition:
        """The item exists and has one of these versions."""
        return cls(if_match=_Tags(strong=frozenset(versions)))

    @classmethod
    def exists(cls) -> Condition:
        return cls(if_match=_Tags(any=True))

    @classmethod
    def absent(cls) -> Condition:
        return cls(if_none_match=_Tags(any=True))

    @classmethod
    def parse(cls, if_match: str | None, if_none_match: str | None) -> Condition:
        """From the headers' values. Raises InvalidETag."""
        if if_match is None and if_none_match is None:
            return ALWAYS
        return cls(
            if_match=None if if_match is None else _parse("If-Match", if_match),
            if_none_match=None if if_none_match is None else _parse("If-None-Match", if_none_match),
        )

    def is_unmodified(self, entry: bytes) -> bool:
        """Whether If-None-Match names this state, so that a GET is answered with 304."""
        tags = self.if_none_match
        return tags is not None and (tags.any or version_of(entry) in tags.strong | tags.weak)

    def check(self, entry: bytes | None) -> None:
        """Raises PreconditionFailed unless the item's state, None for absent, is as demanded.

        If-Match compares strongly, If-None-Match weakly (RFC 9110, section 8.8.3.2).
        """
        self.check_match(entry)
        if entry is not None and self.is_unmodified(entry):
            raise PreconditionFailed(
                f"If-None-Match is not met: the item has the version {version_of(entry)}."
            )

    def check_match(self, entry: bytes | None) -> None:
        """The part of If-Match alone: for a GET, If-None-Match asks for a 304, not a 412."""
        if self.if_match is not None and (
            entry is None or not (self.if_match.any or version_of(entry) in self.if_match.strong)
        ):
            state = "does not exist" if entry is None else f"has the version {version_of(entry)}"
            raise PreconditionFailed(
                f"If-Match is not met: the item {state}. Read it again and repeat."
            )


ALWAYS: Final = Condition()


def etag(version: int) -> str:
    """The entity tag of a version, as a header carries it."""
    return f'"{version}"'


def _parse(header: str, value: str) -> _Tags:
    if value.strip() == "*":
        return _Tags(any=True)
    strong: set[int] = set()
    weak: set[int] = set()
    position = 0
    while position < len(value):
        match = _TAG.match(value, position)
        if match is None:
            raise InvalidETag(
                f"{header} is * or a list of entity tags, each in double quotes: "
                '"1763769600000000".'
            )
        position = match.end()
        # A tag this store did not give is valid but names no version: it never matches.
        if _VERSION.fullmatch(match[2]):
            (weak if match[1] else strong).add(int(match[2]))
    if not value.strip():
        raise InvalidETag(f"{header} is empty; leave it out, or name an entity tag.")
    return _Tags(strong=frozenset(strong), weak=frozenset(weak))
