"""The power fails: of the disk with journal and PostgreSQL stays what was synced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from itemstore.errors import StartupError
from tests.faults import disk
from tests.faults.bench import Bench
from tests.faults.disk import Disk
from tests.faults.history import Kill
from tests.faults.postgres import PostgresServer
from tests.faults.scenarios.base import Scenario, Skipped, Turn
from tests.faults.verdict import Rules, Verdict

DISK_MIB: Final = 1024
AFTER_S: Final = 0.3


class OnDisk(PostgresServer):
    """Its disk is mounted as long as it runs."""

    def __init__(self, disk: Disk, parameters: Mapping[str, str] = {}) -> None:
        super().__init__(disk.place / "pg", parameters)
        self.disk = disk

    async def start(self) -> None:
        await asyncio.to_thread(self.disk.mount)
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await asyncio.to_thread(self.disk.unmount)

    async def power_off(self) -> None:
        """The disk first: what the processes still do changes nothing any more."""
        postmaster = self._postmaster() if self.is_running else None
        self.disk.cut_power()
        self.is_running = False
        if postmaster is not None:
            os.kill(postmaster, signal.SIGQUIT)
        await asyncio.to_thread(self._embedded.stop)


class PowerLoss(Scenario):
    """One disk for all rounds."""

    name = "power_loss"
    about = (
        "a disk with journal and PostgreSQL goes down at once (EXT4_IOC_SHUTDOWN) under writers "
        "at `journal` and `commit`, in half of the rounds after a crash of PostgreSQL; everything "
        "is killed, mounted and started again"
    )
    full, short = 30, 2
    parameters: ClassVar[Mapping[str, str]] = {}
    levels: ClassVar[str] = "journal=2,commit=1"
    crashes: ClassVar[bool] = True  #: PostgreSQL, in half of the rounds: it would sync the disk

    async def prepare(self, bench: Bench) -> None:
        if refusal := disk.refusal():
            raise Skipped(refusal)
        if isinstance(bench.postgres, OnDisk):
            return
        await bench.postgres.stop()
        bench.postgres = await self._on_disk(bench.directory)

    async def _on_disk(self, directory: Path) -> OnDisk:
        made = await asyncio.to_thread(Disk, directory, DISK_MIB)
        postgres = OnDisk(made, self.parameters)
        await postgres.start()
        return postgres

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        chance = turn.chance
        postgres = bench.postgres
        assert isinstance(postgres, OnDisk)
        data_dir = postgres.disk.place / turn.tag
        data_dir.mkdir()
        await bench.forget()
        await bench.start(DATA_DIR=str(data_dir), COMMIT_TIMEOUT="2s")
        await asyncio.to_thread(os.sync)  # what is lost is of this round
        clients = await bench.clients(turn.tag, seed=turn.seed, levels=self.levels)
        await asyncio.sleep(chance.uniform(0.1, 2.0))
        if self.crashes and turn.number % 2:
            await postgres.crash()
            await asyncio.sleep(chance.uniform(0.1, 0.5))
        sent = time.monotonic()
        await _stand_still(bench)
        await postgres.power_off()
        await bench.kill()
        kill = Kill(sent, time.monotonic())
        await asyncio.to_thread(postgres.disk.unmount)
        await postgres.start()
        await bench.restart()
        await asyncio.sleep(AFTER_S)
        self.figures["s until it serves again"].append(time.monotonic() - kill.died - AFTER_S)
        rules = Rules((kill,), frozenset({"journal", "commit"}))
        checker = await self.judge(bench, clients, rules=rules)
        await bench.kill()
        return checker.verdict


async def _stand_still(bench: Bench) -> None:
    """Nothing is acknowledged after the power has gone, as on a real machine.

    An fdatasync that is under way when ext4 is shut down may report success: it finds its
    transaction neither running nor committing, and does not ask why (jbd2_complete_transaction).
    https://github.com/torvalds/linux/blob/v6.1/fs/jbd2/journal.c
    """
    assert bench.server.process is not None
    bench.server.signal(signal.SIGSTOP)
    stat = Path(f"/proc/{bench.server.process.pid}/stat")
    while await asyncio.to_thread(_state, stat) != "T":  # noqa: ASYNC110 - the kernel's doing
        await asyncio.sleep(0)


def _state(stat: Path) -> str:
    """One letter: proc(5)."""
    return stat.read_text().rpartition(")")[2].split()[0]


class PowerLossUnsynced(PowerLoss):
    """The negative control: a harness that finds nothing here would find nothing there."""

    name = "power_loss_control"
    about = "NEGATIVE CONTROL: the same at `commit` with PostgreSQL's fsync=off must lose writes"
    full, short = 5, 1
    parameters: ClassVar[Mapping[str, str]] = {"fsync": "off"}
    levels: ClassVar[str] = "commit=1"
    crashes: ClassVar[bool] = False

    async def round(self, bench: Bench, turn: Turn) -> Verdict:
        try:
            found = await super().round(bench, turn)
        except (StartupError, AssertionError) as error:  # not even the cluster is whole
            found = Verdict(acknowledged=1, lost=1, violations=[str(error)])
            await self._begin_again(bench)
        self.figures["lost of those acknowledged"].append(found.lost)
        verdict = Verdict(acknowledged=found.acknowledged, open=found.open, refused=found.refused)
        verdict.expect(found.lost > 0, "nothing was lost, though nothing was synced")
        return verdict

    async def _begin_again(self, bench: Bench) -> None:
        """A new disk: the old one may hold a cluster that does not start."""
        postgres = bench.postgres
        assert isinstance(postgres, OnDisk)
        bench.server.end()
        await postgres.stop()
        bench.postgres = await self._on_disk(bench.directory)
