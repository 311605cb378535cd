"""The repetition of a refused write, and an import, as decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.data import Encoded, encode
from itemstore.core.item import TIME_END_US, TIME_MIN_US, pack
from itemstore.core.operation import KEEP, Conflict, Import, Repeat
from itemstore.errors import InvalidItem, PreconditionFailed

TEXT = Encoded(b'{"n":1}')
VERSION = 1_763_769_600_000_000


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


# --- import


@given(
    st.none() | st.integers(VERSION - 2, VERSION + 2),
    st.booleans(),
    st.sampled_from(Conflict),
)
def test_an_import_replaces_or_keeps(
    updated_us: int | None, is_equal: bool, conflict: Conflict
) -> None:
    """Equal data is kept; else the policy decides, and only ``newer`` looks at the times."""
    old = pack(VERSION, VERSION, b'{"a":1}')
    data = {"a": 1 if is_equal else 2}
    replaces = {
        Conflict.NEWER: updated_us is not None and updated_us > VERSION,
        Conflict.SKIP: False,
        Conflict.REPLACE: True,
    }

    operation = Import("x", data, updated_us=updated_us, conflict=conflict)

    assert encode(data) == operation.decide(None)
    expected = encode(data) if replaces[conflict] and not is_equal else KEEP
    assert expected == operation.decide(old)


@pytest.mark.parametrize("member", ["created", "updated"])
@pytest.mark.parametrize("us", [TIME_MIN_US - 1, TIME_END_US])
def test_an_import_has_times_that_postgresql_takes(member: str, us: int) -> None:
    """Outside the years 1 to 9999 there is no time."""
    with pytest.raises(InvalidItem) as error:
        Import("x", {}, **{f"{member}_us": us})  # type: ignore[arg-type]
    assert f"/{member}_at" == error.value.pointer
