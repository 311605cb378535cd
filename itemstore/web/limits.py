"""Rate limits: how many requests each caller may send, by the class of the route.

A caller with a name is limited by it, anybody else by address; counted in the memory of this
process (``core/rate.py``), or in Redis for all instances together (``shared.py``). Nothing is
counted, and no more than one attribute looked at, where no limit is set.

Addresses are kept apart from names: whoever has many addresses displaces nothing but such.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from itemstore.core import address
from itemstore.core.caller import ANYBODY, NOBODY, Caller
from itemstore.core.rate import Buckets, Rate, Verdict
from itemstore.errors import RateLimited, Unauthenticated
from itemstore.web.shared import Shared
from itemstore.web.traffic import Kind

CALLERS_MAX: Final = 10_000  # remembered by name, and as many by address, in each class
FAILURES: Final = "failures"

POLICY: Final = "RateLimit-Policy"
LEFT: Final = "RateLimit"

#: What was said of a request, if it is limited.
VERDICT: Final = web.RequestKey("verdict", Verdict)


def headers_of(request: web.Request) -> dict[str, str]:
    """What its answer says of the limit, if it has one."""
    verdict = request.get(VERDICT)
    return {} if verdict is None else {POLICY: verdict.policy, LEFT: verdict.left}


class Limits:
    """The limits of one server. ``are_set`` tells whether any request has to be counted."""

    def __init__(
        self,
        rates: Mapping[Kind, Rate] | None = None,
        *,
        failures: Rate | None = None,
        trust: address.Trust = None,
        shared: Shared | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``failures`` is the rate of failed authentications, by address."""
        self.trust = trust
        self._now_ns = now_ns
        self._rates = {kind.value: rate for kind, rate in (rates or {}).items()}
        named = self._rates | ({FAILURES: failures} if failures else {})
        self._callers, self._addresses = (
            {name: Buckets(name, rate, CALLERS_MAX) for name, rate in named.items()}
            for _ in range(2)
        )
        self.are_set = bool(self._rates)
        self.shared = shared if self.are_set else None
        #: Requests refused, by the name of the policy.
        self.refused = dict.fromkeys(named, 0)

    # --- a request

    @property
    def are_shared(self) -> bool:
        """Whether a verdict has to be waited for, because Redis is asked for it."""
        return self.shared is not None and self.shared.is_up

    def take_now(self, kind: Kind, caller: Caller, network: str) -> Verdict | None:
        """Counts one request more by this process alone; None if its class has no limit."""
        name = kind.value
        if name not in self._rates:
            return None
        if _has_name(caller):
            verdict = self._callers[name].take(caller.name, self._now_ns())
        else:
            verdict = self._addresses[name].take(network, self._now_ns())
        return self._noted(verdict) if verdict.retry_after_s else verdict

    async def take(self, kind: Kind, caller: Caller, network: str) -> Verdict | None:
        """Counts one request more, with the other instances where there is Redis."""
        rate = self._rates.get(kind.value)
        if rate is not None and self.shared is not None and self.shared.is_up:
            # No caller's name can be taken for an address, nor the other way round.
            key = f"caller:{caller.name}" if _has_name(caller) else f"address:{network}"
            verdict = await self.shared.take(kind.value, rate, key)
            if verdict is not None:
                return self._noted(verdict)
        return self.take_now(kind, caller, network)

    def punish(self, network: str) -> None:
        """One more failed authentication from there. Raises RateLimited if there were too many.

        To be called where the answer would be 401: who authenticates is never held up by others
        behind the same address.
        """
        buckets = self._addresses.get(FAILURES)
        if buckets is not None:
            verdict = self._noted(buckets.take(network, self._now_ns()))
            if verdict.retry_after_s:
                raise refusal(verdict)

    def _noted(self, verdict: Verdict) -> Verdict:
        if verdict.retry_after_s:
            self.refused[verdict.name] += 1
        return verdict

    # --- whose it is

    async def check(self, request: web.Request, kind: Kind, caller: Caller) -> None:
        """Counts the request. Raises RateLimited if it is one too many."""
        verdict = await self.take(kind, caller, self.network_of(request))
        if verdict is not None:
            request[VERDICT] = verdict
            if verdict.retry_after_s:
                raise refusal(verdict)

    def network_of(self, request: web.Request) -> str:
        """The network a request is from, as far as that is known for sure."""
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        if self.trust is None:
            return address.of_peer(peer)
        headers = request.headers
        real_ip, forwarded_for = (
            ", ".join(headers.getall(name, ())) for name in ("X-Real-IP", "X-Forwarded-For")
        )
        return address.told(self.trust, real_ip, forwarded_for) or address.of_peer(peer)


def _has_name(caller: Caller) -> bool:
    """Whether it is known by more than its address."""
    return caller is not ANYBODY and caller is not NOBODY


def failed(request: web.Request, error: Unauthenticated) -> None:
    """Counts it as a failed authentication, unless nothing was tried. Raises as ``punish`` does."""
    if error.is_wrong:
        limits = request.app[LIMITS]
        limits.punish(limits.network_of(request))


def refusal(verdict: Verdict) -> RateLimited:
    """The error that tells of it."""
    retry_after_s = math.ceil(verdict.retry_after_s)
    error = RateLimited(
        f"The limit {verdict.policy} is used up: q requests at once, and as many in w seconds. "
        f"Repeat after {retry_after_s} s, and send fewer."
    )
    error.retry_after_s = retry_after_s
    return error


LIMITS: Final = web.AppKey("limits", Limits)
