"""The writer lease: which of the instances over one database answers from its cache and writes.

    standby ──the lease is to be had──► preparing ──what changed is loaded──► holder
       ▲                                                                       │
       ├──────── drained, released ◄── yielding ◄── another instance asks ◄────┤
       └──────── its epoch is over: another holds the lease ◄──────────────────┘

The truth is one row in PostgreSQL (``writer_lease``), which every batch checks and every heartbeat
extends. The holder stops trusting it a little before it runs out, counted from when the last
successful call was *sent*, by a clock that also runs while the machine sleeps:

    1. holder A sends a heartbeat at 0 s; the lease is A's until 10 s, and A trusts it until 9 s
    2. A is frozen; at 10 s B takes the next epoch
    3. A wakes at 12 s and finds its time over: it asks before it answers or accepts anything
    4. PostgreSQL names B; A is a standby. What A had acknowledged is still written, through the
       version guard, and noted for B; what A had not acknowledged is refused

While PostgreSQL cannot be asked, cached items are still read: there is no better answer. Only who
has slept past its time reads nothing until it is answered, for it may have missed anything. Writes
are accepted until the lease runs out; beyond that only as long as the server itself says that it
lets nobody in, for then nobody can have taken it. If it is silent they are held, and refused.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from structlog.typing import FilteringBoundLogger

from itemstore import process
from itemstore.errors import NotHolder
from itemstore.options import Options
from itemstore.storage import (
    Claim,
    Grant,
    Lease,
    Standing,
    Storage,
    StorageBroken,
    StorageDown,
    StorageError,
    as_failure,
)
from itemstore.tasks import end

HEARTBEAT_SHARE: Final = 0.1  # of the lease's time
TRUST_SHARE: Final = 0.9  # the rest is for clocks that run at different speeds
#: How far a failed call extends what may go on without PostgreSQL: to well after the next call.
GRACE_SHARE: Final = 0.8
RETRY_S: Final = 0.5
#: A holder hears that the server is down, and may accept for so long before it asks again. So a
#: lease that ran out is taken only when it has been free for as long: its holder asks first.
DOWN_SHARE: Final = 0.2
DOWN_MIN_S: Final = 2 * RETRY_S
INTERVAL_MIN_S: Final = 0.01
ASK_INTERVAL_S: Final = 0.1  # of a standby that wants the lease
STANDBY_INTERVAL_S: Final = 0.5
HELD_MAX: Final = 10_000  # writes that wait for the lease


class Owner(Protocol):
    """What the lease asks of the store it is for."""

    def version_clock(self) -> int:
        """No version beyond this one has been given out."""

    def settled_version(self) -> int:
        """Everything accepted up to this version is committed."""

    def has_dirty(self) -> bool:
        """Whether something accepted is not committed yet."""

    def is_warm(self) -> bool:
        """Whether its cache is as full as it will be, so that it may ask for the lease."""

    async def take(self, grant: Grant) -> None:
        """Loads what others changed: from now on the cache must be exact. May be called again."""

    def lose(self) -> None:
        """Another instance has taken the lease: what is cached is worth nothing any more."""

    def hand_over(self) -> None:
        """The lease is released, with nothing dirty: what is cached was exact until now."""

    def heal(self) -> None:
        """PostgreSQL has lost its last commits (``tail_lost``): they are to be written again."""

    async def follow(self, lease: Lease) -> None:
        """As a standby: keeps up with what the holder commits."""


class Sent(NamedTuple):
    """A claim under way; ``known`` is the high water that was surely committed when it was sent."""

    claim: Claim
    at: float
    known: int


class WriterLease:
    """``run`` is its life. ``epoch`` is 0 unless the lease is this instance's."""

    owner: Owner

    def __init__(
        self,
        storage: Storage,
        options: Options,
        log: FilteringBoundLogger,
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._lease_s = options.lease_s
        self._hold_s = options.hold_s
        self._log = log
        self._monotonic = monotonic
        self.name = f"{socket.gethostname()}/{secrets.token_hex(4)}"
        self._process = process.identity()
        self.epoch = 0
        self.is_holder = False
        #: Until when the cache may be answered from without asking, and writes be accepted.
        self.reads_until = self.writes_until = float("-inf")
        #: PostgreSQL has lost commits it had confirmed: they are to be written again.
        self.tail_lost = False
        self._is_tail_unsure = False
        self.taken = 0  #: how often this instance has taken the lease
        self.lost = 0  #: how often another took it away
        self._grant: Grant | None = None
        self._wants = True
        self._is_wanted = False
        self._fell_back = False
        self._is_refusing = False
        self._is_elsewhere = False
        self._high_water = self._known = 0
        self._heard_at = float("-inf")
        self._followed_at = float("-inf")
        self._held = 0
        self._down_s = max(DOWN_MIN_S, DOWN_SHARE * options.lease_s)
        self._free_since: float | None = None
        self._woken = asyncio.Event()
        self._accepting = asyncio.Event()
        self._turn: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def held_epoch(self) -> int:
        """The epoch while this instance acts as holder; 0 otherwise."""
        return self.epoch if self.is_holder else 0

    @property
    def state(self) -> str:
        """One word: holder, yielding, preparing, standby; unsure if its time is over."""
        if not self.epoch:
            return "standby"
        if not self.is_holder:
            return "preparing"
        if self._is_wanted:
            return "yielding"
        return "holder" if self._monotonic() < self.writes_until else "unsure"

    # --- what the store asks

    @property
    def is_yielding(self) -> bool:
        """Whether it is to be handed over as soon as nothing is dirty."""
        return self.is_holder and self._is_wanted

    def may_accept(self) -> bool:
        """Whether a write may be accepted at this moment."""
        return self._monotonic() < self.writes_until and not self._is_wanted

    async def to_accept(self, hold_s: float | None = None) -> None:
        """Returns when writes may be accepted. Raises NotHolder if that takes too long (5 s)."""
        if self.may_accept():
            return
        limit_s = self._hold_s if hold_s is None else hold_s
        if self._held >= HELD_MAX or limit_s <= 0 or self._is_hopeless():
            raise self._not_holder()
        self._held += 1
        try:
            async with asyncio.timeout(limit_s):
                while not self.may_accept():
                    if self._is_hopeless():
                        raise self._not_holder()
                    self._accepting.clear()
                    self._woken.set()
                    await self._accepting.wait()
        except TimeoutError:
            raise self._not_holder() from None
        finally:
            self._held -= 1

    def _is_hopeless(self) -> bool:
        """Waiting gains nothing: this instance is stopping, or has passed the lease on."""
        return self._is_refusing or (self._is_elsewhere and not (self.epoch or self._wants))

    def refuse(self) -> None:
        """The store is about to close: nobody waits for the lease any more."""
        self._is_refusing = True
        self._accepting.set()

    def _not_holder(self) -> NotHolder:
        return NotHolder(
            "Another instance holds the writer lease, or PostgreSQL cannot be asked who does. "
            "Nothing was changed; repeat in a moment."
        )

    async def to_answer(self) -> bool:
        """Whether the cache may be answered from; asks PostgreSQL if the lease's time is over."""
        while self.is_holder and self._monotonic() >= self.reads_until:
            if self._turn is None:
                self._turn = asyncio.get_running_loop().create_future()
            self._woken.set()
            await asyncio.shield(self._turn)
        return self.is_holder

    # --- what the persister asks

    def send_batch(self) -> Sent:
        """The claim that goes with a batch."""
        self._high_water = max(self._high_water + 1, self.owner.version_clock())
        return self._sent(self._high_water)

    def heard(self, sent: Sent, standing: Standing) -> bool:
        """Takes note of PostgreSQL's answer; whether the claim was valid."""
        if not self.epoch or sent.claim.epoch != self.epoch:
            return False  # of an epoch that is over
        if standing.is_held:
            self._note_held(sent, standing)
        elif standing.epoch < self.epoch:
            self._fell_back = True
            self._woken.set()
        else:
            self._lose(standing.epoch)
        return standing.is_held

    @property
    def is_tail_open(self) -> bool:
        """Whether the last commits are, or may be, lost. Who loses the lease cannot know."""
        return self.tail_lost or self._is_tail_unsure

    def close_tail(self) -> None:
        """They are written again."""
        self.tail_lost = self._is_tail_unsure = False

    def wake(self) -> None:
        """Something the lease waits for may have happened."""
        self._woken.set()

    def _sent(self, high_water: int) -> Sent:
        claim = Claim(
            holder=self.name,
            epoch=self.epoch,
            lease_s=self._lease_s,
            clock=self.owner.version_clock(),
            settled=self.owner.settled_version(),
            high_water=high_water,
        )
        return Sent(claim, self._monotonic(), self._known)

    def _note_held(self, sent: Sent, standing: Standing) -> None:
        self._note_high_water(sent.known, standing.high_water)
        self._known = max(self._known, sent.claim.high_water)
        self._heard_at = max(self._heard_at, sent.at)
        if self.is_holder:
            self._trust(sent.at)
        if standing.is_wanted != self._is_wanted:
            self._is_wanted = standing.is_wanted
            self._woken.set()

    def _trust(self, sent_at: float) -> None:
        until = sent_at + self._lease_s * TRUST_SHARE
        self.reads_until = max(self.reads_until, until)
        self.writes_until = max(self.writes_until, until)

    def _note_high_water(self, known: int, found: int) -> None:
        if found < known:
            self.tail_lost = True
            self._log.error("tail_lost", high_water=found, committed=known)
            self.owner.heal()

    # --- its life

    async def begin(self) -> None:
        """Takes the lease if it is to be had at once; else this instance begins as a standby.

        Raises StorageError.
        """
        if not self.epoch:  # else this is a repetition
            await self._stand_by()
        if self.epoch:
            await self._prepare()

    def start(self) -> None:
        """From here on the lease looks after itself."""
        self._task = asyncio.create_task(self.run(), name="lease")

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._woken.clear()
            asked_at = self._monotonic()
            try:
                await self._step()
                interval_s = self._interval_s()
            except Exception as error:
                interval_s = self._doubt(as_failure(error), asked_at)
            self._tell_turn()
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._woken.wait()

    async def close(self, time_limit_s: float) -> None:
        """Gives the lease back, if it is ours and PostgreSQL can be told within the limit."""
        await end([self._task])
        try:
            async with asyncio.timeout(time_limit_s):
                if self.epoch:
                    await self._let_go()
                elif self._wants:
                    await self._storage.want(self.name, wanted=False)
        except (StorageError, TimeoutError) as failure:
            self._log.warning("lease_not_released", reason=str(failure), lease_s=self._lease_s)
        self._resign()
        self._tell_turn()

    async def _step(self) -> None:
        if not self.epoch:
            await self._stand_by()
        elif self._fell_back:
            await self._regain()
        elif not self.is_holder:
            await self._prepare()
        elif self._is_wanted and not self.owner.has_dirty():
            await self._hand_over()
        elif self._is_due():
            await self._beat()

    def _interval_s(self) -> float:
        if self.epoch:
            due = self._heard_at + self._lease_s * HEARTBEAT_SHARE
            return max(INTERVAL_MIN_S, due - self._monotonic())
        return ASK_INTERVAL_S if self._wants else STANDBY_INTERVAL_S

    def _is_due(self) -> bool:
        """A batch is a heartbeat too."""
        return self._monotonic() >= min(
            self._heard_at + self._lease_s * HEARTBEAT_SHARE, self.reads_until, self.writes_until
        )

    def _tell_turn(self) -> None:
        """Wakes who waits for the lease: those that read, and those that write if they may."""
        turn, self._turn = self._turn, None
        if turn is not None and not turn.done():
            turn.set_result(None)
        if self.may_accept():
            self._accepting.set()

    async def _beat(self) -> None:
        sent = self._sent(self._known)
        self.heard(sent, await self._storage.renew(sent.claim))

    async def _stand_by(self) -> None:
        lease = await self._storage.lease()
        self._is_elsewhere = not lease.is_free
        is_ours = lease.holder == self.name  # granted in a call whose answer was lost
        gone = lease.holder if is_ours or process.is_gone(lease.process) else None
        if (gone or self._is_over(lease)) and not self.owner.has_dirty():
            grant = await self._acquire(gone)
            if grant is not None:
                self._known = grant.high_water  # what was sent without the lease is not counted
                self._woken.set()  # to prepare at once
                return
        if self._wants and self.owner.is_warm():
            await self._storage.want(self.name)
        if self._monotonic() >= self._followed_at + STANDBY_INTERVAL_S:
            self._followed_at = self._monotonic()
            await self.owner.follow(lease)

    def _is_over(self, lease: Lease) -> bool:
        """Whether it is given back, or ran out and its holder has had the time to ask for it."""
        if not lease.is_free:
            self._free_since = None
        elif self._free_since is None:
            self._free_since = self._monotonic()
        if lease.holder is None or self._free_since is None:
            return lease.is_free
        return self._monotonic() > self._free_since + self._down_s

    async def _acquire(self, gone: str | None = None) -> Grant | None:
        sent = self._sent(self._high_water)
        grant = await self._storage.acquire(sent.claim, self._process or "", gone)
        if grant is not None:
            self._grant, self.epoch = grant, grant.epoch
            self._heard_at = sent.at
            self._high_water = max(self._high_water, grant.high_water)
        return grant

    async def _prepare(self) -> None:
        """Between taking the lease and acting on it, with heartbeats however long it takes."""
        assert self._grant is not None  # noqa: S101 - our own error, not a caller's
        started = self._monotonic()
        preparing = asyncio.create_task(self.owner.take(self._grant), name="take the lease")
        try:
            while not preparing.done():
                await asyncio.wait([preparing], timeout=self._lease_s * HEARTBEAT_SHARE)
                await self._beat()
                if not self.epoch:
                    return
            await preparing
        finally:
            await end([preparing])
        self.is_holder, self._wants, self._is_wanted = True, False, False
        self.taken += 1
        await self._beat()
        if not self.epoch:
            return
        self._log.info(
            "lease_taken",
            epoch=self.epoch,
            s=round(self._monotonic() - started, 3),
            instance=self.name,
        )

    async def _regain(self) -> None:
        """The row went back behind our epoch: whoever it names lost the lease before we took it."""
        former = self.epoch
        grant = await self._acquire()
        self._fell_back = False  # without a grant, the next heartbeat tells who has it
        if grant is not None:
            self._note_high_water(self._known, grant.high_water)
            self._log.error("lease_regained", epoch=self.epoch, from_epoch=former)

    async def _hand_over(self) -> None:
        await self._let_go()
        self._log.info("lease_handed_over", epoch=self.epoch)
        self._resign()
        self.owner.hand_over()

    async def _let_go(self) -> None:
        self.is_holder = False  # from here on another may have it, whatever becomes of the answer
        self.reads_until = self.writes_until = float("-inf")
        await self._storage.let_go(self._sent(self._high_water).claim)

    def _lose(self, epoch: int) -> None:
        self.lost += 1
        self._log.error("lease_lost", epoch=self.epoch, to_epoch=epoch)
        self._resign()
        self.owner.lose()
        self._is_tail_unsure = True
        self.owner.heal()
        self._woken.set()

    def _resign(self) -> None:
        self.epoch, self.is_holder, self._wants, self._is_wanted = 0, False, False, False
        self._fell_back = False
        self.reads_until = self.writes_until = float("-inf")
        self._is_elsewhere = True
        self._accepting.set()  # who waits is told

    def _doubt(self, failure: StorageError, asked_at: float) -> float:
        """PostgreSQL could not be asked: what may go on meanwhile. When to ask again, in seconds.

        Whoever was frozen before the call or during it learns nothing from its failing.
        """
        self._free_since = None
        tell = self._log.error if isinstance(failure, StorageBroken) else self._log.debug
        tell("lease_unsure", reason=str(failure), kind=failure.kind)
        now = self._monotonic()
        if now >= asked_at + self._lease_s * GRACE_SHARE:
            return 0.0
        if self.is_holder and asked_at < self.reads_until:
            self.reads_until = max(self.reads_until, now + self._lease_s * GRACE_SHARE)
            if isinstance(failure, StorageDown) and now < self.writes_until:
                self.writes_until = max(self.writes_until, asked_at + self._down_s)
        return RETRY_S
