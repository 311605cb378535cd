"""A confined caller's store is the one that holds only its prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.caller import Caller, Role
from itemstore.core.confinement import (
    PREFIX_MAX_BYTES,
    check_confining,
    check_reach,
    narrowed,
    permitted,
)
from itemstore.core.operation import Create, Delete, Get, Import, Patch, Put
from itemstore.errors import Forbidden, InvalidId, ItemNotFound

#: So few letters that prefixes of each other are drawn often; two that look like SQL's wildcards,
#: and one letter as one code point and as two.
TEXTS = st.text("ab%_/é\u0301e", max_size=4)
IDS = st.text("ab%_/é\u0301e", min_size=1, max_size=6)


def confined(prefix: str, role: Role = Role.WRITE) -> Caller:
    return Caller("key:x", role, prefix)


@given(TEXTS, TEXTS, st.lists(IDS))
def test_a_narrowed_prefix_finds_what_both_find(own: str, asked: str, ids: list[str]) -> None:
    """The items of a list are those that the prefix asked for finds among one's own."""
    expected = [each for each in ids if each.startswith(own) and each.startswith(asked)]

    found = narrowed(confined(own), asked)

    assert expected == ([] if found is None else [each for each in ids if each.startswith(found)])


@given(TEXTS, IDS)
def test_operations_reach_exactly_ones_own(own: str, item_id: str) -> None:
    """Another's id does not exist to be read, changed or deleted, and must not be made."""
    caller = confined(own)
    is_own = item_id.encode().startswith(own.encode())
    for operation in (Get(item_id), Patch(item_id, {}), Delete(item_id)):
        if is_own:
            assert operation is permitted(caller, operation)
        else:
            with pytest.raises(ItemNotFound) as error:
                permitted(caller, operation)
            assert f"There is no item {item_id!r}." == error.value.detail
    for making in (Create({}, item_id), Put(item_id, {}), Import(item_id, {})):
        if is_own:
            assert making is permitted(caller, making)
        else:
            with pytest.raises(Forbidden) as forbidden:
                permitted(caller, making)
            assert item_id not in (forbidden.value.pointer or "")


@given(TEXTS)
def test_a_generated_id_will_be_ones_own(own: str) -> None:
    """Whoever leaves the id out gets one behind the prefix."""
    assert own == permitted(confined(own), Create({})).prefix
    assert own == permitted(confined(own), Import(None, {})).prefix


@pytest.mark.parametrize("making", [Create({}, "a"), Put("a", {}), Patch("a", {}), Delete("a")])
def test_a_reader_changes_nothing(making: Create | Put | Patch | Delete) -> None:
    """Also not in a batch, whose route readers may call."""
    with pytest.raises(Forbidden):
        permitted(confined("", Role.READ), making)


def test_a_reader_reads() -> None:
    """A get in a batch is reading."""
    permitted(confined("a", Role.READ), Get("a"))
    check_reach(confined("a", Role.READ), "a")


@pytest.mark.parametrize("prefix", ["", ".", "..", "a/", "%", "é", "a" * PREFIX_MAX_BYTES])
def test_what_ids_can_begin_with_confines(prefix: str) -> None:
    """A generated id fits behind each."""
    assert prefix == check_confining(prefix)


@pytest.mark.parametrize("prefix", ["\0", "a\n", "a" * (PREFIX_MAX_BYTES + 1), "é" * 253])
def test_what_no_id_begins_with_does_not(prefix: str) -> None:
    """Such a key could make nothing."""
    with pytest.raises(InvalidId):
        check_confining(prefix)
