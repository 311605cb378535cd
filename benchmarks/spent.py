"""What a process and PostgreSQL have spent since they began; the difference of two is a cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

#: PostgreSQL's write-ahead log since its first start.
LOG_BYTES: Final = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8"

_PROCESSES: Final = b"SELECT pid FROM pg_stat_activity"


def cpu_s(pid: int) -> float:
    """0 if the process runs elsewhere, or no more. In hundredths: proc(5), utime and stime."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(numbers[11]) + int(numbers[12])) / 100


@dataclass(slots=True)
class Spent:
    """Of a server and of the PostgreSQL behind it; filled when the time is over."""

    server_cpu_s: float = 0.0
    postgres_cpu_s: float = 0.0  #: without processes that began or ended meanwhile, as autovacuum's
    log_bytes: float = 0.0


@contextmanager
def measured(dsn: str, pid: int) -> Iterator[Spent]:
    """While the body runs."""
    spent = Spent()
    with psycopg.connect(dsn, autocommit=True) as connection:
        log_bytes, cpu = _now(connection, pid)
        yield spent
        log_bytes_after, cpu_after = _now(connection, pid)
    spent.log_bytes = log_bytes_after - log_bytes
    spent.server_cpu_s = cpu_after.pop(pid) - cpu.pop(pid)
    spent.postgres_cpu_s = sum(cpu_after[each] - cpu[each] for each in cpu.keys() & cpu_after)


def _now(connection: psycopg.Connection, pid: int) -> tuple[float, dict[int, float]]:
    """The log, and the CPU time of each process, the server's among them."""
    [(log_bytes,)] = connection.execute(LOG_BYTES.encode()).fetchall()
    pids = [pid, *(each for (each,) in connection.execute(_PROCESSES))]
    return log_bytes, {each: cpu_s(each) for each in pids}
