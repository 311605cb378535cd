"""API keys: a mistyped one is known without a look-up, and nothing kept of one lets in."""

from __future__ import annotations

import re

import hypothesis.strategies as st
from hypothesis import given

from itemstore.core.apikey import ApiKey, compose, digest, id_in, is_meant
from itemstore.core.caller import Caller, Role
from itemstore.core.ids import ALPHABET

random_bytes = st.tuples(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32))


@given(random_bytes)
def test_a_key_has_the_form_that_scanners_look_for(drawn: tuple[bytes, bytes]) -> None:
    """The word, the id, 43 characters of secret and 6 of checksum, all of one alphabet."""
    key_id, token = compose(*drawn)

    assert re.fullmatch(r"itemkey_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}", token)
    assert key_id == id_in(token)
    assert is_meant(token)


@given(random_bytes, st.integers(0, 65), st.sampled_from(ALPHABET))
def test_a_key_with_another_character_is_none(
    drawn: tuple[bytes, bytes], place: int, other: str
) -> None:
    """Whichever character is mistyped, the checksum tells."""
    _, token = compose(*drawn)
    typed = token[:place] + other + token[place + 1 :]

    assert (typed == token) == (id_in(typed) is not None)


@given(random_bytes, st.integers(0, 65))
def test_a_key_that_is_cut_is_none(drawn: tuple[bytes, bytes], length: int) -> None:
    """Nor is one with something behind it."""
    _, token = compose(*drawn)

    assert id_in(token[:length]) is None
    assert id_in(token + token[length]) is None
    assert id_in(token + "\n") is None


@given(random_bytes, random_bytes)
def test_secrets_are_told_apart(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> None:
    """Two secrets make two keys, and each shows itself only."""
    key_id, token = compose(*one)
    _, another = compose(one[0], other[1])
    key = ApiKey(key_id, digest(token), "x", Role.READ, "", 0, None)

    assert key.is_shown_by(token)
    assert key.is_shown_by(another) == (one[1] == other[1])


def test_the_largest_secret_fits() -> None:
    """43 characters of base62 hold 32 bytes."""
    _, token = compose(b"\xff" * 8, b"\xff" * 32)

    assert 66 == len(token)
    assert id_in(token) is not None


def test_what_is_kept_does_not_let_in() -> None:
    """Neither the id nor the hash is the key, and the caller's name is no secret."""
    key_id, token = compose(bytes(8), bytes(range(32)))
    key = ApiKey(key_id, digest(token), "x", Role.WRITE, "a/", 0, None)

    assert not key.is_shown_by(key.digest.hex())
    assert Caller(f"key:{key_id}", Role.WRITE, "a/") == key.caller
    assert not key.caller.has_quota
    assert token[17:] not in repr(key)
