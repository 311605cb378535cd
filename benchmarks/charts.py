"""Plots, all with one look: medians as lines, least and greatest as whiskers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

#: Told apart also by who does not see all colours (Okabe and Ito 2008).
BLUE: Final = "#0072b2"
ORANGE: Final = "#d55e00"
GREEN: Final = "#009e73"
PURPLE: Final = "#cc79a7"
GREY: Final = "#666666"

_LOOK: Final[Any] = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "svg.hashsalt": "itemstore",  # the same figure, the same bytes
}
_MARKED: Final[Any] = {"marker": "o", "ms": 4, "lw": 1.6, "capsize": 3}
_PANEL_IN: Final = (5.4, 4.6)
_BESIDE: Final = 1.035  # from one line's points to the next one's, so that whiskers do not hide


class Look(NamedTuple):
    """How one of several is told from the others; ``line`` as matplotlib names it."""

    color: str
    line: str = "-"


def panels(count: int, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with so many plots side by side, in rows of so many."""
    columns = columns or count
    rows = -(-count // columns)
    with mpl.rc_context(_LOOK):
        figure = Figure((_PANEL_IN[0] * columns, _PANEL_IN[1] * rows), layout="constrained")
        return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def runs(
    axes: Axes, sizes: Sequence[int], values: Sequence[Sequence[float]], label: str, color: str
) -> None:
    """A line through the medians; ``values``: size by size, the value of each run."""
    shifted = [size * _BESIDE ** (len(axes.containers) - 1.5) for size in sizes]
    middles = [statistics.median(each) for each in values]
    below = [middle - min(each) for middle, each in zip(middles, values, strict=True)]
    above = [max(each) - middle for middle, each in zip(middles, values, strict=True)]
    axes.errorbar(shifted, middles, (below, above), label=label, color=color, **_MARKED)


def bars(
    axes: Axes, title: str, unit: str, values: dict[str, list[float]], looks: Sequence[Look]
) -> None:
    """A bar to each name's median, the first on top, with its figure beside it."""
    names = list(values)
    middles = [statistics.median(each) for each in values.values()]
    below = [middle - min(each) for middle, each in zip(middles, values.values(), strict=True)]
    above = [max(each) - middle for middle, each in zip(middles, values.values(), strict=True)]
    whiskers = {"ecolor": "#333333", "elinewidth": 1.0, "capsize": 2}
    drawn = axes.barh(
        names, middles, xerr=(below, above), color=[each.color for each in looks], error_kw=whiskers
    )
    axes.bar_label(drawn, [_count(float(f"{middle:.3g}")) for middle in middles], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    with mpl.rc_context(_LOOK):
        axes.set_title(title)
        axes.set(xlabel=unit)


def claims(axes: Axes, points: dict[int, float], label: str) -> None:
    """Somebody's figures that were not measured here."""
    axes.plot(
        list(points), list(points.values()), label=label, color=GREY, marker="x", ls=":", lw=1.2
    )


def curve(
    axes: Axes, percentiles: Sequence[float], values: Sequence[float], label: str, look: Look
) -> None:
    """A latency at each percentile, the last of them 100, which is drawn as the maximum."""
    places = [_nines(each) for each in percentiles]
    axes.plot(places, values, label=label, color=look.color, ls=look.line, lw=1.6)


def _nines(percentile: float) -> float:
    """1 at 90 %, 2 at 99 %, 3 at 99.9 %; the maximum half a nine beyond 99.99 %."""
    return 4.5 if percentile == 100 else -math.log10(1 - percentile / 100)


def by_percentile(axes: Axes, title: str, unit: str) -> None:
    """Dresses axes with curves."""
    shown = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
    names = [f"{each:g} %" for each in shown[:-1]]
    axes.set_xticks([_nines(each) for each in shown], [*names, "max"])
    _log_y(axes)
    _name(axes, title, "of the requests", unit)


def limit(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, label=label, color=GREY, ls="--", lw=1.0)


def by_items(axes: Axes, title: str, unit: str, *, log_y: bool = True) -> None:
    """Dresses axes whose x is the number of items; to be called when everything is drawn."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if log_y:
        _log_y(axes)
    else:
        axes.set_ylim(bottom=0)
    _name(axes, title, "items", unit)


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())


def by_time(axes: Axes, title: str, unit: str) -> None:
    """The same for axes whose x is the time."""
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(_count))
    _name(axes, title, "seconds", unit)


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    with mpl.rc_context(_LOOK):
        axes.set_title(title)
        axes.set(xlabel=x, ylabel=y)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _count(value: float, _: object = None) -> str:
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _plain(value: float, _: object = None) -> str:
    return f"{value:,g}"


def save(figure: Figure, file: Path) -> None:
    """In the format of the file's suffix: .svg, .png."""
    with mpl.rc_context(_LOOK):
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
