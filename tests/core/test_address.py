"""Whose request it is: what a header says counts only from a proxy that is trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itemstore.core.address import RAILWAY, Trust, network, told, trust


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),  # as a socket for both tells of IPv4
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("192.0.2.7:80", None),
        ("192.0.2.07", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_an_ipv6_network_is_one_caller(address: str, expected: str | None) -> None:
    """One customer has 2^64 addresses of it."""
    assert expected == network(address)


@pytest.mark.parametrize(
    ("trusted", "real_ip", "forwarded", "expected"),
    [
        (None, "192.0.2.1", "192.0.2.2", None),
        (RAILWAY, "192.0.2.1", "192.0.2.2", "192.0.2.1"),
        (RAILWAY, "192.0.2.1, 192.0.2.9", None, None),  # two lines: one is made up
        (RAILWAY, None, "192.0.2.2", None),
        (1, "192.0.2.1", "198.51.100.9, 192.0.2.2", "192.0.2.2"),
        (2, "192.0.2.1", "198.51.100.9,192.0.2.2 , 10.0.0.1", "192.0.2.2"),
        (2, None, "10.0.0.1", None),  # it did not come by both of them
        (1, None, None, None),
        (1, None, "", None),
        (1, None, "192.0.2.2, nonsense", None),
    ],
)
def test_what_a_header_says(
    trusted: Trust, real_ip: str | None, forwarded: str | None, expected: str | None
) -> None:
    """Only what the trusted proxy itself has written."""
    assert expected == told(trusted, real_ip, forwarded)


@given(st.lists(st.text(st.characters(exclude_characters=","), max_size=40), max_size=5))
def test_what_a_caller_prepends_changes_nothing(made_up: list[str]) -> None:
    """Whatever stands before what the proxy appends."""
    assert "192.0.2.2" == told(1, ",".join(made_up), ",".join([*made_up, " 192.0.2.2"]))


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    """A header may hold anything."""
    assert told(RAILWAY, text, text) is None or network(text.strip()) is not None


@pytest.mark.parametrize(("text", "expected"), [("None", None), (" railway", RAILWAY), ("2", 2)])
def test_who_is_trusted(text: str, expected: Trust) -> None:
    """As TRUST_PROXY says."""
    assert expected == trust(text)


@pytest.mark.parametrize("text", ["", "0", "11", "-1", "yes", "*", "²"])
def test_nobody_else_is_trusted(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="trusts"):
        trust(text)
