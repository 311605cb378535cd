"""Who is at the other end: the peer's address, or that in a proxy's header if the proxy is trusted.

Anybody can send such a header. So it says nothing unless TRUST_PROXY names who sets it, and even
then it is for limits and logs, never for what a caller may do.
"""

from __future__ import annotations

import ipaddress
from typing import Final

RAILWAY: Final = "railway"
HOPS_MAX: Final = 10
LOCAL: Final = "local"  # a socket without addresses
_IPV6_NETWORK_BITS: Final = 64  # what one customer is given, at the least: RFC 6177, section 2

#: Trusts nobody; X-Real-IP, which Railway's edge overwrites; or so many proxies, each of which
#: appends the address it sees to X-Forwarded-For.
Trust = str | int | None


def trust(text: str) -> Trust:
    """From ``none``, ``railway`` or a number of proxies. Raises ValueError."""
    word = text.strip().lower()
    if word == RAILWAY:
        return RAILWAY
    if word == "none":
        return None
    if word.isascii() and word.isdigit() and 1 <= int(word) <= HOPS_MAX:
        return int(word)
    raise ValueError("trusts none, railway or a number of proxies")


def network(address: str) -> str | None:
    """What is limited as one caller: an IPv4 address, or an IPv6 network; None if it is neither."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _IPV6_NETWORK_BITS), strict=False))


def of_peer(peername: object) -> str:
    """The network of a socket's peer; of a socket without addresses, one for all."""
    known = peername[0] if isinstance(peername, tuple | list) and peername else None
    return (network(known) if isinstance(known, str) else None) or LOCAL


def told(trusted: Trust, real_ip: str | None, forwarded_for: str | None) -> str | None:
    """The network that the trusted proxy's header names; None if none is trusted, or it is not one.

    The headers are given as they came, several lines of one name joined by commas.
    """
    if trusted is None:
        return None
    if trusted == RAILWAY:
        return network(real_ip.strip()) if real_ip else None
    hops = (forwarded_for or "").split(",")
    # Each proxy appends: what stands before those that are trusted, the caller may have made up.
    return network(hops[-int(trusted)].strip()) if len(hops) >= int(trusted) else None
