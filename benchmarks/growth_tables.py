"""How ``benchmarks.scaling`` shows what it measured, beside what ``benchmarks.model`` predicts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.figure import Figure

from benchmarks import charts, model
from benchmarks.growth import (
    CONNECTIONS,
    ITEM_BYTES,
    LAZY,
    LISTS,
    PACKED,
    PLAIN,
    RATES,
    STORED,
    WRITES,
    Point,
)
from benchmarks.report import MB, Result, Table, Values, number, spread

#: Bytes of JSON whose number a gigabyte holds.
SHOWN_BYTES: Final = (100, 230, 1_000, 2_000, 20_000)


def tables(result: Result) -> list[Table]:
    return [*(table for part in PARTS.values() for table in part.tables(result)), gigabyte()]


def _points(result: Result) -> list[Point]:
    """Of the generated size."""
    return [Point(items) for items in result.sizes()]


def _sized(result: Result) -> list[Point]:
    """Of different sizes, as many of each."""
    [items] = {each.items for each in result.series if each.mode == f"rate {RATES[0]}"}
    points = [Point(items, item_bytes) for item_bytes in ITEM_BYTES]
    return [point for point in points if result.only(point.mode(STORED))]


#: A column: its title, the kind, the measure, and by what it is divided.
Column = tuple[str, str, str, float]

_STORAGE: Final[tuple[Column, ...]] = (
    ("table", STORED, "table_bytes", MB),
    ("index: id", STORED, "id_bytes", MB),
    ("created", STORED, "created_bytes", MB),
    ("version", STORED, "version_bytes", MB),
    ("process, plain", PLAIN, "resident_bytes", MB),
    ("compressed", PACKED, "resident_bytes", MB),
    ("lazy", LAZY, "resident_bytes", MB),
)
_TIMES: Final[tuple[Column, ...]] = (
    ("first answer", PLAIN, "first_answer_s", 1),
    ("hydrated", PLAIN, "hydrated_s", 1),
    ("hydrated, compressed", PACKED, "hydrated_s", 1),
)
_READS: Final[tuple[Column, ...]] = (
    ("GET, cached", LAZY, "hit_ms", 1),
    ("GET, from PostgreSQL", LAZY, "miss_ms", 1),
    ("first page", LISTS, "first_ms", 1),
    ("page in the middle", LISTS, "middle_ms", 1),
    ("exact count", LISTS, "count_ms", 1),
)
_PER_S: Final[tuple[Column, ...]] = (
    ("GET", PLAIN, "get_per_s", 1),
    ("PUT at memory", WRITES, "memory_per_s", 1),
    ("PUT at commit", WRITES, "commit_per_s", 1),
    ("log, bytes a PUT at memory", WRITES, "memory_log_bytes", 1),
    ("at commit", WRITES, "commit_log_bytes", 1),
)
_ASIDE: Final[Column] = ("TOAST", STORED, "aside_bytes", MB)


def _by_items(title: str, columns: Sequence[Column], result: Result) -> Table:
    points = _points(result)
    return _table(title, "items", columns, result, {f"{each.items:,}": each for each in points})


def _by_size(title: str, columns: Sequence[Column], result: Result) -> Table:
    named = {}
    for point in _sized(result):
        [json_bytes] = result.of(point.items, point.mode(STORED))["json_bytes"]
        named[f"{number(json_bytes / point.items)} bytes"] = point
    return _table(title, "JSON of an item", columns, result, named)


def _table(
    title: str, first: str, columns: Sequence[Column], result: Result, points: dict[str, Point]
) -> Table:
    lines = [
        (
            name,
            *(
                spread(_values(result, point, kind)[measure], per)
                for _, kind, measure, per in columns
            ),
        )
        for name, point in points.items()
    ]
    return Table(title, (first, *(title for title, *_ in columns)), lines)


def _values(result: Result, point: Point, kind: str) -> Values:
    return result.of(point.items, point.mode(kind))


def _items(result: Result) -> list[Table]:
    return [
        _by_items("MB in PostgreSQL and in the process", _STORAGE, result),
        _by_items("Seconds from exec", _TIMES, result),
        _by_items("Milliseconds, the median on one connection", _READS, result),
        _by_items(f"A second, over {CONNECTIONS} connections", _PER_S, result),
    ]


def _sizes(result: Result) -> list[Table]:
    [items] = {point.items for point in _sized(result)}
    return [
        _by_size(f"{items:,} items, MB", (_STORAGE[0], _ASIDE, *_STORAGE[1:]), result),
        _by_size("Seconds, milliseconds", (*_TIMES, *_READS[:2]), result),
        _by_size(f"A second, over {CONNECTIONS} connections", _PER_S, result),
    ]


_RATES: Final = {
    "oldest dirty, ms": ("oldest_age_s", 0.001),
    "server, cores": ("server_cores", 1),
    "PostgreSQL, cores": ("postgres_cores", 1),
    "log, bytes a write": ("log_bytes", 1),
    "p50, ms": ("p50_ms", 1),
    "p99, ms": ("p99_ms", 1),
}


def _rates(result: Result) -> list[Table]:
    [items] = {point.items for point in _sized(result)}
    lines = []
    for rate in RATES:
        values = result.of(items, f"rate {rate}")
        lines.append((f"{rate:,}", *(spread(values[name], per) for name, per in _RATES.values())))
    title = f"PUTs at memory, of {items:,} items"
    return [Table(title, ("a second", *_RATES), lines)]


# --- predictions


def _start(result: Result) -> model.Start:
    """Through the store with the most items, and that with the largest ones."""
    many, large = _points(result)[-1], _sized(result)[-1]
    first_s = statistics.median(_values(result, many, PLAIN)["first_answer_s"])
    return model.Start.through(first_s, _start_of(result, many), _start_of(result, large))


def _start_of(result: Result, point: Point) -> tuple[int, float, float]:
    hydrated_s = statistics.median(_values(result, point, PLAIN)["hydrated_s"])
    return point.items, _json_bytes(result, point), hydrated_s


def _json_bytes(result: Result, point: Point) -> float:
    """Of one item."""
    [json_bytes] = _values(result, point, STORED)["json_bytes"]
    return json_bytes / point.items


def _model(result: Result) -> list[Table]:
    """Predicted, and measured as multiples of it."""
    start, lines = _start(result), []
    for point in sorted({*_points(result), *_sized(result)}):
        json_bytes = _json_bytes(result, point)
        lines.append(
            (
                f"{point.items:,} × {number(json_bytes)} bytes",
                *_compared(
                    model.resident_bytes(point.items, model.plain_bytes(json_bytes)) / MB,
                    _values(result, point, PLAIN)["resident_bytes"],
                    MB,
                ),
                *_disk(result, point, json_bytes),
                *_compared(
                    start.hydrated_s(point.items, json_bytes),
                    _values(result, point, PLAIN)["hydrated_s"],
                ),
            )
        )
    columns = ("store", "MB of the process", "measured / it", "MB on disk", "measured / it")
    return [Table("Predicted", (*columns, "hydrated, s", "measured / it"), lines)]


def _disk(result: Result, point: Point, json_bytes: float) -> tuple[str, str]:
    if json_bytes > model.INLINE_MAX_BYTES:
        return "", ""
    stored = _values(result, point, STORED)
    measures = ("table_bytes", "id_bytes", "created_bytes", "version_bytes")
    found = [sum(each) for each in zip(*(stored[name] for name in measures), strict=True)]
    return _compared(point.items * model.disk_bytes(json_bytes) / MB, found, MB)


def _compared(predicted: float, values: Sequence[float], per: float = 1) -> tuple[str, str]:
    return number(predicted), spread(values, per * predicted)


def gigabyte() -> Table:
    """By the model alone: nothing of it is measured."""
    lines = [
        (
            f"{json_bytes:,} bytes",
            _held(model.plain_bytes(json_bytes)),
            _held(model.packed_bytes(json_bytes)),
            _held(model.disk_bytes(json_bytes)) if json_bytes <= model.INLINE_MAX_BYTES else "",
        )
        for json_bytes in SHOWN_BYTES
    ]
    share = f"compressed to {model.PACKED_SHARE:.0%} of the JSON"
    columns = ("JSON of an item", "in memory, plain", share, "on PostgreSQL's disk")
    return Table("Items a gigabyte holds, beyond those of the process", columns, lines)


def _held(each: float) -> str:
    return f"{number(1_000 / each)} M"  # a thousand million bytes


@dataclass(frozen=True, slots=True)
class Part:
    """Tables that stand together on the page."""

    tables: Callable[[Result], Sequence[Table]]


PARTS: Final = {
    "items": Part(_items),
    "sizes": Part(_sizes),
    "rates": Part(_rates),
    "model": Part(_model),
}


def plot(result: Result) -> Figure:
    figure, (stored, times) = charts.panels(2)
    sizes = result.sizes()
    for label, kind, measure, color in (
        ("table in PostgreSQL", STORED, "table_bytes", charts.PURPLE),
        ("process, plain", PLAIN, "resident_bytes", charts.ORANGE),
        ("process, compressed", PACKED, "resident_bytes", charts.BLUE),
        ("process, lazy", LAZY, "resident_bytes", charts.GREEN),
    ):
        values = [[each / MB for each in run] for run in result.values(kind, measure)]
        charts.runs(stored, sizes, values, label, color)
    charts.by_items(stored, "Memory and disk", "MB")

    for label, kind, measure, color in (
        ("all items in memory", PLAIN, "hydrated_s", charts.ORANGE),
        ("the same, compressed", PACKED, "hydrated_s", charts.BLUE),
        ("first answer", PLAIN, "first_answer_s", charts.GREEN),
    ):
        charts.runs(times, sizes, result.values(kind, measure), label, color)
    counts = [[each / 1_000 for each in run] for run in result.values(LISTS, "count_ms")]
    charts.runs(times, sizes, counts, "exact count", charts.PURPLE)
    charts.by_items(times, "Start, and a count", "seconds")
    return figure
