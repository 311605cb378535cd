"""The API keys in memory: a check of one costs no query.

Every instance looks twice a second whether the table has changed, and then reads it again: a key
that is revoked, by whichever hand, is so everywhere within REVOKED_WITHIN_S. While PostgreSQL is
away nobody can revoke, and the keys that are known go on; a process that starts then knows none.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from structlog.typing import FilteringBoundLogger

from itemstore.core.apikey import (
    ID_BYTES,
    NAME_LENGTH_MAX,
    QUOTA_MAX,
    SECRET_BYTES,
    ApiKey,
    compose,
    digest,
    id_in,
)
from itemstore.core.caller import Role
from itemstore.core.confinement import check_confining
from itemstore.core.item import TIME_END_US
from itemstore.errors import (
    DatabaseUnavailable,
    InvalidId,
    InvalidItem,
    KeyNotFound,
    Starting,
    TooManyKeys,
)
from itemstore.storage import StorageError, as_failure
from itemstore.storage.key_table import KEYS_MAX, KeyTable
from itemstore.tasks import end

POLL_INTERVAL_S: Final = 0.5
REVOKED_WITHIN_S: Final = 5.0  # while PostgreSQL answers; promised, not aimed at
_FAILURES_TOLD: Final = 10  # a failure is told once in so many: every 5 s

T = TypeVar("T")


class Keyring:
    """Knows the keys while ``running``; ``add`` and ``revoke`` also change the table."""

    def __init__(
        self,
        table: KeyTable,
        log: FilteringBoundLogger,
        *,
        now_s: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._table = table
        self._log = log
        self._now_s = now_s
        self._sleep = sleep
        self._keys: dict[str, ApiKey] = {}
        self._revision: int | None = None
        self._reading = asyncio.Lock()
        #: Called when a key is no longer what it was.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def is_known(self) -> bool:
        """Whether the keys have been read."""
        return self._revision is not None

    def find(self, token: str) -> ApiKey | None:
        """The key, if it lets in now."""
        key = self._keys.get(id_in(token) or "")
        if key is None or not key.is_shown_by(token):
            return None
        return key if key.expires_us is None or self._now_s() * 1e6 < key.expires_us else None

    async def know(self) -> None:
        """Returns when the keys are known. Raises Starting if PostgreSQL does not tell them."""
        try:
            async with self._reading:
                if not self.is_known:
                    await self._read()
        except Exception as error:
            raise Starting(
                "The keys are not read yet, for PostgreSQL does not answer. Repeat in a moment."
            ) from as_failure(error)

    async def all(self) -> list[ApiKey]:
        """Those in the table, oldest first. Raises DatabaseUnavailable."""
        return await _asked(self._table.all())

    async def add(
        self,
        name: str,
        role: Role,
        prefix: str = "",
        expires_us: int | None = None,
        *,
        max_items: int | None = None,
        max_bytes: int | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key: as it is kept, and as it is shown this once.

        Raises InvalidItem, TooManyKeys, DatabaseUnavailable.
        """
        now_us = int(self._now_s() * 1e6)
        _check(name, role, prefix, expires_us, now_us)
        _check_quota("max_items", max_items)
        _check_quota("max_bytes", max_bytes)
        key_id, token = compose(secrets.token_bytes(ID_BYTES), secrets.token_bytes(SECRET_BYTES))
        key = ApiKey(
            *(key_id, digest(token), name, role, prefix, now_us, expires_us, max_items, max_bytes)
        )
        async with self._reading:  # or what is being read would be older, and take its place
            if not await _asked(self._table.add(key)):
                raise TooManyKeys(
                    f"There are {KEYS_MAX:,} keys, the most there may be. Revoke some; those that "
                    "are expired count too."
                )
            self._keys[key_id] = key
        self._log.info("key_created", key=key_id, role=role.name.lower(), prefix=prefix)
        return key, token

    async def revoke(self, key_id: str) -> None:
        """From now on the key lets nobody in here. Raises KeyNotFound, DatabaseUnavailable."""
        async with self._reading:
            is_gone = await _asked(self._table.remove(key_id))
            self._keys.pop(key_id, None)
        self.on_change()
        if not is_gone:
            raise KeyNotFound(f"There is no key {key_id[:40]!r}. GET /keys lists those there are.")
        self._log.info("key_revoked", key=key_id)

    # --- its life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the keys fresh until it is left."""
        task = asyncio.create_task(self._run(), name="keyring")
        try:
            yield
        finally:
            await end([task])

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._sleep(POLL_INTERVAL_S)
            if not self.is_known:
                continue  # whoever needs them first has them read
            try:
                async with self._reading:
                    await self._read()
                failures = 0
            except Exception as error:
                if failures % _FAILURES_TOLD == 0:
                    self._log.warning("keys_unread", reason=str(as_failure(error)))
                failures += 1

    async def _read(self) -> None:
        """The revision first: what is changed meanwhile is read the next time."""
        revision = await self._table.revision()
        if revision == self._revision:
            return
        self._keys = {key.id: key for key in await self._table.all()}
        self._revision = revision
        self.on_change()


def _check(name: str, role: Role, prefix: str, expires_us: int | None, now_us: int) -> None:
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not name.isprintable():
        raise InvalidItem(
            f"name has 1 to {NAME_LENGTH_MAX} printable characters, and says whose key it is.",
            pointer="/name",
        )
    try:
        check_confining(prefix)
    except InvalidId as error:
        said = f"No id begins with this prefix. {error.detail}"
        raise InvalidItem(said, pointer="/prefix") from None
    if prefix and role is Role.ADMIN:
        raise InvalidItem(
            "An admin is for the whole store, as whoever may make keys is. Leave the prefix out, "
            "or give the role write.",
            pointer="/prefix",
        )
    if expires_us is not None and not now_us < expires_us < TIME_END_US:
        raise InvalidItem("expires_at is over already.", pointer="/expires_at")


def _check_quota(member: str, most: int | None) -> None:
    if most is not None and not 1 <= most <= QUOTA_MAX:
        raise InvalidItem(
            f"{member} is from 1 to {QUOTA_MAX:,}; without it there is no such quota. A key that "
            "is to add nothing has the role read.",
            pointer=f"/{member}",
        )


async def _asked(call: Awaitable[T]) -> T:
    """Its answer. Raises DatabaseUnavailable."""
    try:
        return await call
    except StorageError as error:
        raise DatabaseUnavailable(
            f"The keys are in PostgreSQL, which cannot be asked now ({error.kind}). Repeat later."
        ) from error
