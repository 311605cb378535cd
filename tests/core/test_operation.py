"""The repetition of a write that PostgreSQL refused, as a decision."""

from __future__ import annotations

import pytest

from itemstore.core.data import Encoded
from itemstore.core.item import pack
from itemstore.core.operation import Repeat
from itemstore.errors import PreconditionFailed

TEXT = Encoded(b'{"n":1}')


def test_a_repetition_is_the_write_once_more() -> None:
    """An item that is as the refused write left it gets the same text, byte for byte, again."""
    assert TEXT is Repeat("a", TEXT, version=7).decide(pack(7, 1, TEXT))


def test_a_repeated_delete_deletes() -> None:
    """The repetition of a refused delete is a delete, of an item that is served as deleted."""
    assert Repeat("a", None, version=7).decide(None) is None


@pytest.mark.parametrize("text", [TEXT, None], ids=["upsert", "delete"])
@pytest.mark.parametrize("version", [6, 8])
def test_an_item_that_was_written_since_is_left_alone(text: Encoded | None, version: int) -> None:
    """A repetition never takes the place of another write; it tells which version there is."""
    with pytest.raises(PreconditionFailed, match=f"version {version}"):
        Repeat("a", text, version=7).decide(pack(version, 1, b"{}"))


def test_an_item_that_was_deleted_since_is_left_alone() -> None:
    """The repetition of a refused upsert does not bring back an item that was deleted since."""
    with pytest.raises(PreconditionFailed):
        Repeat("a", TEXT, version=7).decide(None)
