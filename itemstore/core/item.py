"""The item, and the entry in which the cache keeps it.

An entry is ``version (8 bytes) + created_at (8 bytes) + data (JSON text)``, both integers
signed and big-endian. ``created_at`` counts microseconds from 2000-01-01 UTC, PostgreSQL's own
epoch, so that the server can pack a row as it lies there (``timestamptz_send``) and a preload is
a copy. The cache may keep its data compressed (core/packing.py); all here but ``pack`` takes both
forms, and only ``data_of`` looks behind the header. An item's ``updated_at`` is its version as a
time; a new item's ``created_at`` too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import orjson

from itemstore.core import packing
from itemstore.core.packing import dictionary_of
from itemstore.core.table import END
from itemstore.errors import InvalidId, InvalidItem

ID_MAX_BYTES: Final = 512  # far below the 2,704 bytes a btree entry of PostgreSQL may have

#: Microseconds between 1970-01-01, where versions count from, and 2000-01-01.
PG_EPOCH_US: Final = 946_684_800_000_000

#: The times an item may have, in microseconds since 1970: the years 1 to 9999, as in schema.sql.
TIME_MIN_US: Final = -62_135_596_800_000_000
TIME_END_US: Final = 253_402_300_800_000_000

_HEADER: Final = struct.Struct(">qq")
HEADER_BYTES: Final = packing.HEADER_BYTES
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def pack(version: int, created_us: int, data: bytes) -> bytes:
    """One entry of the cache; ``created_us`` in microseconds since 1970."""
    return _HEADER.pack(version, created_us - PG_EPOCH_US) + data


def version_of(entry: bytes) -> int:
    """An entry's version: microseconds since 1970."""
    return int.from_bytes(entry[:8], "big", signed=True)


def created_us_of(entry: bytes) -> int:
    """Microseconds since 1970."""
    return int.from_bytes(entry[8:16], "big", signed=True) + PG_EPOCH_US


def following(old: bytes | None, version: int, text: bytes, created_us: int | None = None) -> bytes:
    """The entry that this version makes of an item, of which ``old`` is the one before.

    An item that lives keeps its ``created_at``; a new one has the given, or that of its version.
    """
    if old is not None:
        created_us = created_us_of(old)
    return pack(version, version if created_us is None else created_us, text)


def data_of(entry: bytes) -> bytes:
    """An entry's JSON text."""
    dictionary = dictionary_of(entry)
    if dictionary is not None:
        return dictionary.text(entry)
    end = entry.find(END, HEADER_BYTES)
    return entry[HEADER_BYTES:] if end < 0 else entry[HEADER_BYTES:end]


def plain(entry: bytes) -> bytes:
    """The entry as PostgreSQL would give it: the header and the JSON text."""
    return entry[:HEADER_BYTES] + data_of(entry)


def next_version(previous: int, now_us: int) -> int:
    """The store's clock: strictly increasing, and the time where time allows.

    Even: a row changed by hand gets an odd version (schema.sql). So the two are never the same,
    also where neither knows of the other yet.
    """
    version = previous + 1 if previous >= now_us else now_us
    return version + (version & 1)


class VersionClock:
    """Gives out the store's versions. ``now_us`` tells the time, in microseconds since 1970."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        #: The newest version given out or seen.
        self.newest = 0

    def next(self) -> int:
        """A version newer than any before."""
        self.newest = next_version(self.newest, self._now_us())
        return self.newest

    def saw(self, version: int) -> None:
        """Another gave out this version: the clock goes on after it."""
        self.newest = max(self.newest, version)

    def now(self) -> int:
        """No version beyond this one has been given out."""
        return max(self.newest, self._now_us())


def check_id(item_id: str) -> str:
    """The id itself.

    Raises InvalidId unless it has 1 to 512 bytes of UTF-8 and no control character. ``.`` and
    ``..`` are refused because no URL can carry them (RFC 3986, section 5.2.4).
    """
    if not isinstance(item_id, str):
        raise InvalidId(f"An id is a string, not {type(item_id).__name__}.", pointer="/id")
    if item_id.isascii():
        size, printable = len(item_id), item_id.isprintable()
    else:
        size, printable = _utf8_size(item_id), not any(_is_control(c) for c in item_id)
    if not 1 <= size <= ID_MAX_BYTES:
        raise InvalidId(f"An id has 1 to {ID_MAX_BYTES} bytes, this one has {size}.", pointer="/id")
    if not printable:
        raise InvalidId("An id must not contain control characters.", pointer="/id")
    if item_id in {".", ".."}:
        raise InvalidId("An id must not be '.' or '..': no URL can carry it.", pointer="/id")
    return item_id


def check_time(member: str, us: int | None) -> None:
    """Raises InvalidItem unless it is None, or microseconds since 1970 in the years 1 to 9999."""
    if us is not None and not TIME_MIN_US <= us < TIME_END_US:
        raise InvalidItem(
            f"{member} is outside the years 1 to 9999. Correct it, or leave it out.",
            pointer=f"/{member}",
        )


def _utf8_size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidId("An id must be valid UTF-8.", pointer="/id") from error


def _is_control(char: str) -> bool:
    """C0, DEL and C1: Unicode's category Cc."""
    return char < " " or "\x7f" <= char <= "\x9f"


class Item:
    """One version of one item. Immutable: a change makes a new one."""

    __slots__ = ("entry", "id")

    def __init__(self, item_id: str, entry: bytes) -> None:
        self.id = item_id
        self.entry = entry

    @property
    def version(self) -> int:
        """From the store's one strictly increasing clock; the number in the ETag."""
        return version_of(self.entry)

    @property
    def created_at(self) -> datetime:
        """When the item came into being, UTC."""
        return _UNIX_EPOCH + timedelta(microseconds=created_us_of(self.entry))

    @property
    def updated_at(self) -> datetime:
        """The version as a time, UTC."""
        return _UNIX_EPOCH + timedelta(microseconds=self.version)

    @property
    def data(self) -> dict[str, Any]:
        """The JSON object, parsed anew at each access: yours to change."""
        parsed: dict[str, Any] = orjson.loads(self.data_json)
        return parsed

    @property
    def data_json(self) -> bytes:
        """The JSON text, byte for byte as the store keeps it."""
        return data_of(self.entry)

    @property
    def is_new(self) -> bool:
        """Whether this is the version that created the item."""
        return self.version == created_us_of(self.entry)

    def json(self) -> bytes:
        """The envelope as the HTTP API answers it."""
        return envelope(self.id, self.entry)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Item):
            return NotImplemented
        return (self.id, plain(self.entry)) == (other.id, plain(other.entry))

    def __hash__(self) -> int:
        return hash((self.id, self.version))

    def __repr__(self) -> str:
        return f"Item(id={self.id!r}, version={self.version}, data={self.data_json!r})"


def envelope(item_id: str, entry: bytes) -> bytes:
    """The item as JSON text, with no JSON work done on its data."""
    version, created = _HEADER.unpack_from(entry)
    updated_at = timestamp(version)
    created_us = created + PG_EPOCH_US
    created_at = updated_at if created_us == version else timestamp(created_us)
    return b'{"id":%b,"version":%d,"created_at":"%b","updated_at":"%b","data":%b}' % (
        orjson.dumps(item_id),
        version,
        created_at,
        updated_at,
        data_of(entry),
    )


def timestamp(us: int) -> bytes:
    """RFC 3339 in UTC with microseconds, from microseconds since 1970."""
    day, of_day = divmod(us, 86_400_000_000)
    minute, of_minute = divmod(of_day, 60_000_000)
    return b"%b%b%02d.%06dZ" % (_day(day), _MINUTES[minute], *divmod(of_minute, 1_000_000))


def microseconds(text: str) -> int:
    """Microseconds since 1970 of a time as RFC 3339 writes it; digits beyond them are cut off.

    Raises ValueError. A leap second is refused: the system's clock has none.
    """
    if _RFC_3339.fullmatch(text) is None:
        raise ValueError("not a time of RFC 3339")
    return since_1970(datetime.fromisoformat(text.upper()))


def since_1970(moment: datetime) -> int:
    """Microseconds; a moment without a time zone is taken for UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _UNIX_EPOCH) // timedelta(microseconds=1)


#: Section 5.6, which ``fromisoformat`` does not check: it takes any time of ISO 8601.
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,12})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)

_MINUTES: Final = tuple(b"%02d:%02d:" % divmod(minute, 60) for minute in range(24 * 60))


@lru_cache(maxsize=4096)
def _day(day: int) -> bytes:
    """Items are of few days, beside how many they are."""
    moment = _UNIX_EPOCH + timedelta(days=day)
    return moment.isoformat()[:11].encode()  # strftime writes the year 999 with three digits
