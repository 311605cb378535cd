"""Requests in a file, as wrk's script and the open-loop generator read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SEPARATOR: Final = b"\0"  # in no request


def pack(requests: Iterable[bytes]) -> bytes:
    return _SEPARATOR.join(requests)


def unpack(packed: bytes) -> list[bytes]:
    return packed.split(_SEPARATOR)
