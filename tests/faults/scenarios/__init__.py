"""Every scenario, in the order of the report.

A new one is a subclass of ``base.Scenario`` that says what it is called, what it does, how many
rounds it takes, and what a round is: have clients write, break something, ``judge``. Listed here it
is in the command, the tests and the report.
"""

from __future__ import annotations

from tests.faults.scenarios.base import Scenario
from tests.faults.scenarios.by_hand import ByHand
from tests.faults.scenarios.database import Away, Backends, PostgresCrash
from tests.faults.scenarios.deploy import RollingDeploy
from tests.faults.scenarios.drain import Drain
from tests.faults.scenarios.failover import FailoverTail
from tests.faults.scenarios.frozen import FrozenHolder
from tests.faults.scenarios.full import DiskFull
from tests.faults.scenarios.journal_damage import JournalDamage
from tests.faults.scenarios.kills import KillCommit, KillJournal, KillMemory
from tests.faults.scenarios.limits import Overload
from tests.faults.scenarios.network import Network
from tests.faults.scenarios.partition import PartitionedHolder
from tests.faults.scenarios.pooler import Pooler
from tests.faults.scenarios.power import PowerLoss, PowerLossUnsynced
from tests.faults.scenarios.rows import BadRows
from tests.faults.scenarios.stop import StopJournaled
from tests.faults.scenarios.syscalls import FsyncError, Syscalls

SCENARIOS: tuple[type[Scenario], ...] = (
    KillCommit,
    KillMemory,
    KillJournal,
    PostgresCrash,
    Backends,
    Away,
    Network,
    BadRows,
    Overload,
    Drain,
    StopJournaled,
    ByHand,
    RollingDeploy,
    FrozenHolder,
    PartitionedHolder,
    FailoverTail,
    Pooler,
    Syscalls,
    FsyncError,
    DiskFull,
    PowerLoss,
    PowerLossUnsynced,
    JournalDamage,
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
