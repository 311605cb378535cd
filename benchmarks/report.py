"""What was measured, on what, and how it is shown: tables, JSON, plots.

A result keeps the value of every run. What is shown of them is the median, and in brackets the
least and the greatest.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

import orjson
import psycopg
import rich.box
import rich.table

REPOSITORY: Final = Path(__file__).resolve().parents[1]

GIB: Final = 1024**3
MB: Final = 1_000_000


#: Measure → its value in each run, in order.
Values = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one configuration."""

    items: int
    mode: str
    values: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    benchmark: str
    environment: dict[str, str]
    series: list[Series] = field(default_factory=list)

    def add(self, items: int, mode: str, **values: float) -> None:
        """One more run of a configuration."""
        series = self._find(items, mode)
        if series is None:
            series = Series(items, mode)
            self.series.append(series)
        for measure, value in values.items():
            series.values.setdefault(measure, []).append(value)

    def of(self, items: int, mode: str) -> Values:
        """Raises LookupError if that was not measured."""
        series = self._find(items, mode)
        if series is None:
            raise LookupError(f"{self.benchmark}: {items:,} items, {mode}, were not measured")
        return series.values

    def only(self, mode: str) -> Values | None:
        """What was measured with one number of items, whichever; None if it was not."""
        return next((each.values for each in self.series if each.mode == mode), None)

    def _find(self, items: int, mode: str) -> Series | None:
        for each in self.series:
            if (each.items, each.mode) == (items, mode):
                return each
        return None

    def sizes(self) -> list[int]:
        """The numbers of items measured, smallest first; without the empty store."""
        return sorted({each.items for each in self.series} - {0})

    def values(self, mode: str, measure: str) -> list[list[float]]:
        """Size by size, the value of each run."""
        return [self.of(items, mode)[measure] for items in self.sizes()]

    def write(self, file: Path) -> None:
        file.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        content = orjson.loads(file.read_bytes())
        series = [Series(**each) for each in content.pop("series")]
        return cls(**content, series=series)


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> rich.table.Table:
        shown = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for place, column in enumerate(self.columns):
            shown.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in self.rows:
            shown.add_row(*row)
        return shown

    def markdown(self) -> str:
        rule = [":--", *["--:"] * (len(self.columns) - 1)]
        lines = (f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows))
        return "\n".join([*([f"**{self.title}**", ""] if self.title else ()), *lines])


def spread(values: Sequence[float], per: float = 1.0) -> str:
    """``median (least–greatest)``, each divided by ``per``; one figure if they are the same."""
    scaled = [value / per for value in values]
    middle, least, greatest = map(number, (statistics.median(scaled), min(scaled), max(scaled)))
    return middle if least == greatest else f"{middle} ({least}–{greatest})"


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Run by run, so that what slowed the machine down for both cancels out."""
    return [value / other for value, other in zip(values, others, strict=True)]


def environment(server_dsn: str | None = None) -> dict[str, str]:
    """What the figures depend on; nothing that tells whose machine it is."""
    server = {} if server_dsn is None else {"postgresql": _postgresql(server_dsn)}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": f"{os.cpu_count()} × {_cpu_model()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        **server,
        "itemstore": f"{version('itemstore')}, commit {_commit()}",
    }


_PACKAGES: Final = ("aiohttp", "orjson", "psycopg")
_PG_SETTINGS: Final = ("fsync", "synchronous_commit", "shared_buffers")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _postgresql(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        shown = [
            f"{name} {connection.execute(f'SHOW {name}'.encode()).fetchall()[0][0]}"
            for name in _PG_SETTINGS
        ]
        major = connection.info.server_version
    return f"{major // 10_000}.{major % 10_000}, {', '.join(shown)}"


def _commit() -> str:
    """The commit, with a + if what ran is not exactly that."""
    sha = _git("rev-parse", "--short=10", "HEAD")
    return sha + ("+" if _git("status", "--porcelain", "--", "itemstore", "schema.sql") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
