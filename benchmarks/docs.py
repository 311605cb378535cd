"""Writes the measured figures into the pages of docs/, from docs/benchmarks/*.json.

    python -m benchmarks.docs

Everything between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` is replaced, and the plots
are drawn anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from benchmarks import (
    bounded,
    charts,
    cities,
    growth_tables,
    guarded,
    importing,
    memory,
    peers,
    persisting,
    policies,
    preloading,
    startup,
    variants,
)
from benchmarks.report import MB, REPOSITORY, Result, Table, ratios, spread

PAGES: Final = [
    REPOSITORY / "docs" / name
    for name in ("benchmarks.md", "performance.md", "caching.md", "scaling.md")
]
RESULTS: Final = REPOSITORY / "docs" / "benchmarks"

BENCHMARKS: Final = {
    "startup": startup,
    "memory": memory,
    "cities": cities,
    "importing": importing,
    "peers": peers,
    "persisting": persisting,
    "policies": policies,
    "bounded": bounded,
    "preloading": preloading,
    "variants": variants,
    "guarded": guarded,
    "scaling": growth_tables,
}

_BLOCK: Final = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_LARGEST: Final = 1_000_000

Results = dict[str, Result]


class Part(Protocol):
    """A module with tables."""

    def tables(self, result: Result) -> Iterable[Table]: ...


def main() -> None:
    results = read()
    for page in PAGES:
        page.write_text(render(page.read_text("utf-8"), results), "utf-8")
    for name in results:
        charts.save(BENCHMARKS[name].plot(results[name]), RESULTS / f"{name}.svg")
    if "peers" in results:
        for name, figure in peers.more_plots(results["peers"]).items():
            charts.save(figure, RESULTS / f"peers-{name}.svg")


def read(directory: Path = RESULTS) -> Results:
    """What was measured; a benchmark without a file has not run yet."""
    files = {name: directory / f"{name}.json" for name in BENCHMARKS}
    return {name: Result.read(file) for name, file in files.items() if file.exists()}


def render(page: str, results: Results) -> str:
    """The page with every block filled anew."""

    def fill(block: re.Match[str]) -> str:
        return f"{block[1]}{_BLOCKS[block[2]](results)}\n{block[3]}"

    return _BLOCK.sub(fill, page)


def _tables(name: str, part: Part | None = None) -> Callable[[Results], str]:
    """Those of a benchmark, or of a part of it."""
    made = (part or BENCHMARKS[name]).tables

    def write(results: Results) -> str:
        if name not in results:
            file = f"docs/benchmarks/{name}.json"
            return f"Not measured yet: `python -m benchmarks.{name} --json {file}`."
        return "\n\n".join(table.markdown() for table in made(results[name]))

    return write


def _machine(results: Results) -> str:
    """A benchmark that ran elsewhere, or on another commit, says so."""
    rows = {name: result.environment for name, result in results.items()}
    names = dict.fromkeys(name for environment in rows.values() for name in environment)
    return "\n".join(
        f"- {name}: {_agreed([each[name] for each in rows.values() if name in each])}"
        for name in names
    )


def _agreed(values: list[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def _claims(results: Results) -> str:
    preload = [
        (f"preload of {items:,} items", f"{claimed:g} s", f"{_hydrated(results, items)} s")
        for items, claimed in startup.CLAIMED_S.items()
    ]
    resident = [
        (f"memory with {items:,} items", f"{claimed:g} MB", _resident(results, items, "preload"))
        for items, claimed in memory.CLAIMED_MB.items()
    ]
    lazy = results["startup"].of(_LARGEST, "lazy")["first_answer_s"]
    rows = [
        *preload,
        *resident,
        (f"start without preload, {_LARGEST:,} items", "< 5 s", f"{spread(lazy)} s"),
        (
            f"memory without preload, {_LARGEST:,} items",
            "< 500 MB above 200,000",
            _resident(results, _LARGEST, "lazy"),
        ),
    ]
    return Table("", ("what", "claimed for the predecessor", "measured"), rows).markdown()


def _hydrated(results: Results, items: int) -> str:
    return spread(results["startup"].of(items, "preload")["hydrated_s"])


def _resident(results: Results, items: int, mode: str) -> str:
    return f"{spread(results['memory'].of(items, mode)['resident_bytes'], MB)} MB"


def _targets(results: Results) -> str:
    preload = results["startup"].of(_LARGEST, "preload")
    copy = results["startup"].of(_LARGEST, "copy")
    ratio = ratios(preload["hydrated_s"], copy["total_s"])
    item = memory.item_bytes(results["memory"], _LARGEST)
    rows = [
        ("first correct answer", "1 s", f"{spread(preload['first_answer_s'])} s"),
        ("all items in memory", "4 × raw COPY", f"{spread(ratio)} × raw COPY"),
        ("memory of one item", "450 bytes", f"{spread(item)} bytes"),
        ("longest request during the preload", "50 ms", f"{spread(preload['preload_max_ms'])} ms"),
    ]
    return Table("", (f"with {_LARGEST:,} items", "target", "measured"), rows).markdown()


def _scaling_plot(results: Results) -> str:
    """In a block, so that there is no link to a plot that was not drawn yet."""
    return "![Memory, disk and start against items](benchmarks/scaling.svg)" * (
        "scaling" in results
    )


_BLOCKS: Final[dict[str, Callable[[Results], str]]] = {
    "machine": _machine,
    "claims": _claims,
    "targets": _targets,
    **{name: _tables(name) for name in BENCHMARKS},
    **{f"peers_{name}": _tables("peers", part) for name, part in peers.PARTS.items()},
    **{f"scaling_{name}": _tables("scaling", part) for name, part in growth_tables.PARTS.items()},
    "scaling_plot": _scaling_plot,
    "gigabyte": lambda _: growth_tables.gigabyte().markdown(),
}


if __name__ == "__main__":
    main()
