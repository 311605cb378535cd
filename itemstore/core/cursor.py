"""Cursors: a place in a list, as a text that callers hand back without looking into it."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from typing import Any

import orjson


def packed(place: Any) -> str:
    """The place as a cursor, for a URL as it stands."""
    return urlsafe_b64encode(orjson.dumps(place)).rstrip(b"=").decode()


def unpacked(cursor: str, length_max: int) -> Any:
    """The place, of which nothing is checked yet. Raises ValueError for what is no cursor."""
    if len(cursor) > length_max:
        raise ValueError("too long")
    return orjson.loads(b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
