"""Rate limits in Redis, for all instances together: GCRA by throttled-py, a script in Redis.

    up ──an answer takes longer than WAIT_S, or fails──► lost ──a ping is answered──► up

While Redis is lost each instance counts by itself: a caller has its limit as often as there are
instances, but no request waits and nobody is turned away for a fault of ours.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from structlog.typing import FilteringBoundLogger

from itemstore.core.rate import Rate, Verdict
from itemstore.tasks import end

if TYPE_CHECKING:
    from throttled.asyncio.rate_limiter import BaseRateLimiter

WAIT_S: Final = 0.025  # of a request; on a private network a millisecond is usual
PING_INTERVAL_S: Final = 1.0  # while it is lost
PING_WAIT_S: Final = 1.0  # for a connection too
CONNECTIONS_MAX: Final = 32  # for one of which a request waits as it does for the answer
PREFIX: Final = "itemstore"  # of the keys, which end by themselves


class Shared:
    """The Redis at ``url``: ``start`` it, then ask it. Its failures are nobody's errors."""

    def __init__(self, url: str, log: FilteringBoundLogger, *, wait_s: float = WAIT_S) -> None:
        # Here, not above: it takes a tenth of a second, and few have a Redis.
        from throttled.asyncio import RedisStore

        self.is_up = False
        self.losses = 0  #: times it was lost
        self._log = log
        self._wait_s = wait_s
        pool = {"max_connections": CONNECTIONS_MAX, "timeout": None}
        options = {
            "CONNECTION_POOL_CLASS": "redis.asyncio.BlockingConnectionPool",
            "CONNECTION_POOL_KWARGS": pool,
        }
        self._store = RedisStore(url, options)
        self._limiters: dict[str, BaseRateLimiter] = {}
        self._pinging: asyncio.Task[None] | None = None

    async def start(self, _: object = None) -> None:
        """Begins to look for it; until it is found, requests are counted here."""
        self._pinging = asyncio.create_task(self._find(), name="find redis")

    async def close(self, _: object = None) -> None:
        """Ends all connections."""
        await end([self._pinging])
        self.is_up = False
        client: Any = self._store._backend.get_client()  # throttled-py itself ends no connection
        await client.aclose(close_connection_pool=True)

    async def take(self, name: str, rate: Rate, key: str) -> Verdict | None:
        """One request more of this caller; None if Redis does not tell, or not in time."""
        try:
            async with asyncio.timeout(self._wait_s):
                state = (await self._limiter(name, rate).limit(f"{name}:{key}")).state
        except Exception as error:
            self._lose(error)
            return None
        if state.retry_after > 2 * rate.period_s / rate.requests:
            # No bucket is that empty: the clock of Redis was set back, or the limit was another.
            return None
        policy = rate.policy(name)
        return Verdict(name, policy, state.remaining, state.reset_after, state.retry_after)

    def _limiter(self, name: str, rate: Rate) -> BaseRateLimiter:
        limiter = self._limiters.get(name)
        if limiter is None:
            from throttled.asyncio import per_duration
            from throttled.asyncio.rate_limiter.gcra import GCRARateLimiter

            quota = per_duration(timedelta(seconds=rate.period_s), rate.requests, rate.burst)
            limiter = GCRARateLimiter(quota, self._store, key_prefix=PREFIX)
            self._limiters[name] = limiter
        return limiter

    def _lose(self, error: Exception) -> None:
        """Told once, however many requests were waiting."""
        if not self.is_up:
            return
        self.is_up = False
        self.losses += 1
        self._log.warning("redis_lost", reason=_reason(error))
        self._pinging = asyncio.create_task(self._find(), name="find redis")

    async def _find(self) -> None:
        """Returns when it is found; tells so, and once that it is not there to begin with."""
        is_told = self.losses > 0
        if is_told:  # so that one that is slow, not gone, is not found and lost all the time
            await asyncio.sleep(PING_INTERVAL_S)
        while not self.is_up:
            try:
                async with asyncio.timeout(PING_WAIT_S):
                    await self._store.exists(PREFIX)
            except Exception as error:
                if not is_told:
                    self._log.warning("redis_lost", reason=_reason(error))
                is_told = True
                await asyncio.sleep(PING_INTERVAL_S)
            else:
                self.is_up = True
                self._log.info("redis_found")


def _reason(error: BaseException) -> str:
    """The kind of the error alone: its text may hold the address, and that a password."""
    return type(error.__cause__ or error).__name__
