"""The one row of ``writer_lease``, by the rules of ``itemstore/storage/statements.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from itemstore.storage import Claim, Grant, Lease, Standing

WANTED_US: Final = 5_000_000  # how long a wish counts that is not repeated


@dataclass
class LeaseRow:
    """Times are the database's own, in microseconds since 1970; 0 is long ago."""

    epoch: int = 0
    holder: str | None = None
    process: str | None = None
    heartbeat_us: int = 0
    expires_us: int = 0
    clock: int = 0
    high_water: int = 0
    settled: int = 0
    wanted_by: str | None = None
    wanted_us: int = 0

    def is_held(self, claim: Claim) -> bool:
        return (self.epoch, self.holder) == (claim.epoch, claim.holder)

    def beat(self, claim: Claim, now_us: int) -> Standing:
        """What every statement of the writer does: a heartbeat if the claim holds."""
        is_held, epoch, high_water = self.is_held(claim), self.epoch, self.high_water
        if is_held:
            self.heartbeat_us = now_us
            self.expires_us = now_us + round(claim.lease_s * 1_000_000)
            self.clock = max(self.clock, claim.clock)
            self.high_water = max(self.high_water, claim.high_water)
            self.settled = max(self.settled, claim.settled)
        is_wanted = self.wanted_by is not None and self.wanted_us > now_us - WANTED_US
        return Standing(is_held, is_held and is_wanted, epoch, high_water)

    def seen(self, now_us: int) -> Lease:
        is_free = self.holder is None or self.expires_us < now_us
        return Lease(self.epoch, self.holder, self.process, is_free, self.settled, now_us)

    def acquire(self, claim: Claim, process: str, gone: str | None, now_us: int) -> Grant | None:
        if not self._is_to_be_had(claim, gone, now_us):
            return None
        passed_us = 0 if self.holder is None else now_us - self.heartbeat_us
        self.clock = max(claim.clock, now_us, self.clock + passed_us)
        self.settled = max(self.settled, claim.settled)
        self.epoch = max(self.epoch + 1, claim.epoch + 1, now_us // 1_000_000)
        self.holder, self.process, self.heartbeat_us = claim.holder, process, now_us
        self.expires_us = now_us + round(claim.lease_s * 1_000_000)
        if self.wanted_by == claim.holder:
            self.wanted_by = None
        return Grant(self.epoch, self.clock, self.high_water)

    def _is_to_be_had(self, claim: Claim, gone: str | None, now_us: int) -> bool:
        is_wish_over = self.wanted_us < now_us - WANTED_US
        is_for_all = self.wanted_by in {None, claim.holder} or is_wish_over
        return (
            (self.holder is None and is_for_all)
            or self.expires_us < now_us
            or (gone is not None and self.holder == gone)
            or self.epoch < claim.epoch
        )

    def want(self, holder: str, now_us: int, *, wanted: bool) -> None:
        if wanted:
            self.wanted_by, self.wanted_us = holder, now_us
        elif self.wanted_by == holder:
            self.wanted_by = None

    def let_go(self, claim: Claim) -> None:
        if self.is_held(claim):
            self.holder = self.process = None
            self.clock = max(self.clock, claim.clock)
            self.high_water = max(self.high_water, claim.high_water)
            self.settled = max(self.settled, claim.clock)
