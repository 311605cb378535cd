"""Indexes over fields of data: which would serve a query, and what each is called.

There are two kinds. ``value`` holds the key of a field (core/field.py): it serves every comparison
of numbers, texts, true, false and null, and the order by the field. ``json`` serves ``contains``,
and equality of arrays and objects.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from itemstore.core.field import Field, parse_field
from itemstore.core.query import Filter, Json
from itemstore.errors import InvalidParameter

KINDS: Final = ("value", "json")
NAME_PREFIX: Final = "items_by_"
_THERE: Final = ("exists", True)
_SLUG_LENGTH_MAX: Final = 30  # characters; a name of PostgreSQL has at most 63 bytes


@dataclass(frozen=True, slots=True)
class Index:
    """An index over a field of data."""

    field: Field
    kind: str = "value"

    @property
    def name(self) -> str:
        """Its name in PostgreSQL: readable, and another one for every field and kind."""
        whole = f"{self.field} {self.kind}"
        slug = re.sub(r"[^a-z0-9]+", "_", "_".join(self.field.path).lower()).strip("_")
        digest = blake2b(whole.encode(), digest_size=5).hexdigest()
        return f"{NAME_PREFIX}{slug[:_SLUG_LENGTH_MAX]}_{self.kind}_{digest}"

    @property
    def command(self) -> str:
        """What makes it, for a shell."""
        option = "" if self.kind == "value" else f" --type {self.kind}"
        return f"itemstore index create {shlex.quote(str(self.field))}{option}"


def parse_index(field: str, kind: str) -> Index:
    """The index. Raises InvalidParameter."""
    if kind not in KINDS:
        raise InvalidParameter(f"An index is of type {' or '.join(KINDS)}, not {kind[:40]!r}.")
    parsed = parse_field(field)
    if not parsed.path:
        raise InvalidParameter(f"{parsed} has an index already; make one for a field of data.")
    return Index(parsed, kind)


def index_for(condition: Filter) -> Index | None:
    """What would serve the filter; None if nothing would, or it is there from the beginning."""
    leaves_most_in = condition.operator == "neq" or (condition.operator, condition.value) == _THERE
    if not condition.field.path or leaves_most_in:
        return None
    return Index(condition.field, "json" if isinstance(condition.value, Json) else "value")


def indexes_for(filters: Sequence[Filter], order: str | Field) -> tuple[Index, ...]:
    """What would serve the query, each once."""
    wanted = [index for each in filters if (index := index_for(each)) is not None]
    if isinstance(order, Field):
        wanted.append(Index(order))
    return tuple(dict.fromkeys(wanted))
