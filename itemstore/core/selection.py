"""Field selection: an item cut down to what was asked for, in the shape it has.

``fields=id,data.name,data.at.city`` answers ``{"id":…,"data":{"name":…,"at":{"city":…}}}``. What
an item does not have is left out. A path leads through objects; of an array there is all or
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from itemstore.core.field import parse_field
from itemstore.core.item import Item, created_us_of, pack, timestamp
from itemstore.errors import InvalidParameter

MEMBERS: Final = ("id", "version", "created_at", "updated_at", "data")
SELECTED_MAX: Final = 100  # fields

#: Key → what is wanted of its value; None: all of it.
Tree = dict[str, "Tree | None"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted of an item: members of the envelope, and of its data."""

    members: frozenset[str]
    data: Tree | None

    def of(self, item: Item) -> Item:
        """The item with what is wanted of its data."""
        if self.data is None:
            return item
        try:
            data = _pick(orjson.loads(item.data_json), self.data)
        except orjson.JSONDecodeError:  # stored by another hand, and deeper than we read
            data = {}
        return Item(item.id, pack(item.version, created_us_of(item.entry), orjson.dumps(data)))

    def json(self, item: Item) -> bytes:
        """The wanted members of an item that ``of`` made."""
        envelope = {
            "id": item.id,
            "version": item.version,
            "created_at": timestamp(created_us_of(item.entry)).decode(),
            "updated_at": timestamp(item.version).decode(),
            "data": orjson.Fragment(item.data_json),
        }
        return orjson.dumps({name: envelope[name] for name in MEMBERS if name in self.members})


def parse_fields(fields: Sequence[str]) -> Selection:
    """The selection. Raises InvalidParameter."""
    if not 1 <= len(fields) <= SELECTED_MAX:
        raise InvalidParameter(f"fields names 1 to {SELECTED_MAX} fields, not {len(fields)}.")
    tree: Tree = {}
    members = {each for each in fields if each in MEMBERS}
    for each in fields:
        if each not in MEMBERS:
            _add(tree, parse_field(each).path)
    if "data" in members:
        return Selection(frozenset(members), None)
    return Selection(frozenset(members | {"data"} if tree else members), tree)


def _add(tree: Tree, path: tuple[str, ...]) -> None:
    *above, last = path
    for key in above:
        below = tree.setdefault(key, {})
        if below is None:  # all of it is wanted already
            return
        tree = below
    tree[last] = None


def _pick(value: Any, wanted: Tree | None) -> Any:
    if wanted is None:
        return value
    found = {}
    for key in value if type(value) is dict else ():
        if key in wanted:
            below = wanted[key]
            if below is None or type(value[key]) is dict:
                found[key] = _pick(value[key], below)
    return found
