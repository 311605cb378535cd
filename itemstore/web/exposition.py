"""``/metrics``: the tables of metrics and the requests served, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import core
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from itemstore.core.histogram import Histogram
from itemstore.metrics import Metric, Value, read
from itemstore.web.numbers import TRAFFIC, tables

__all__ = ["CONTENT_TYPE_LATEST", "expose"]

_FAMILIES: dict[str, type[Any]] = {
    "counter": core.CounterMetricFamily,
    "gauge": core.GaugeMetricFamily,
    "histogram": core.HistogramMetricFamily,
}


class _Everything(Collector):
    def __init__(self, app: web.Application) -> None:
        self._app = app

    def collect(self) -> Iterable[core.Metric]:
        for table, of in tables(self._app):
            for metric, value in read(table, of):
                yield _family(metric, value)
        yield from self._requests()

    def _requests(self) -> Iterable[core.Metric]:
        labels = ("route", "status")
        requests = core.CounterMetricFamily(
            "itemstore_http_requests_total", "Requests answered.", labels=labels
        )
        seconds = core.CounterMetricFamily(
            "itemstore_http_request_seconds_total", "Time spent answering them.", labels=labels
        )
        for (route, status), served in self._app[TRAFFIC].served.items():
            requests.add_metric((route, str(status)), served.count)
            seconds.add_metric((route, str(status)), served.seconds)
        return requests, seconds


def _family(metric: Metric[Any], value: Value) -> core.Metric:
    labels = (metric.label,) if metric.label else ()
    family: core.Metric = _FAMILIES[metric.kind](metric.name, metric.help, labels=labels)
    values = value.items() if isinstance(value, Mapping) else (("", value),)
    for label, one in values:
        _add(family, (label,) if metric.label else (), one)
    return family


def _add(family: Any, labels: tuple[str, ...], value: float | Histogram) -> None:
    if isinstance(value, Histogram):
        family.add_metric(labels, buckets=list(value.buckets()), sum_value=value.sum)
    else:
        family.add_metric(labels, value)


def expose(app: web.Application) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry()
    registry.register(_Everything(app))
    return generate_latest(registry)
