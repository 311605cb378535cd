"""How far it has come: a bar with rate and time left on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_INTERVAL_S: Final = 5.0


class Display:
    """On standard error. ``done`` and ``total`` are in any one unit; total None: not known."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._began = self._told_at = time.monotonic()
        self._before: int | None = None
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn(title),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f}/s"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, rows=0, rate=0.0)

    def update(self, rows: int, done: int) -> None:
        """So many rows are through, and the source is read so far."""
        now = time.monotonic()
        if self._before is None:
            self._before = rows
        rate = (rows - self._before) / max(1e-3, now - self._began)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rows=rows, rate=rate)
        elif now >= self._told_at + LINE_INTERVAL_S:
            self._told_at = now
            self.tell(f"{self._title}: {rows:,} rows, {rate:,.0f}/s{self._left(done, now)}")

    def _left(self, done: int, now: float) -> str:
        if not self._total or not done:
            return ""
        left_s = (now - self._began) * max(0, self._total - done) / done
        return f", {done / self._total:.0%}, {left_s:,.0f} s left"

    def tell(self, text: str, style: str | None = None) -> None:
        """A line above the bar."""
        self._console.print(text, style=style, markup=False)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
