"""``/metrics``: the table of ``metrics.py`` and the requests served, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from itemstore import metrics
from itemstore.store import ItemStore
from itemstore.web.limits import Limits
from itemstore.web.traffic import Traffic

__all__ = ["CONTENT_TYPE_LATEST", "expose"]


class _Store(Collector):
    def __init__(self, store: ItemStore, traffic: Traffic, limits: Limits) -> None:
        self._store = store
        self._traffic = traffic
        self._limits = limits

    def collect(self) -> Iterable[Metric]:
        for metric, value in metrics.read(self._store):
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            yield family(metric.name, metric.help, value=value)
        requests = CounterMetricFamily(
            "itemstore_http_requests_total", "Requests answered.", labels=("route", "status")
        )
        seconds = CounterMetricFamily(
            "itemstore_http_request_seconds_total",
            "Time spent answering them.",
            labels=("route", "status"),
        )
        for (route, status), served in self._traffic.served.items():
            labels = (route, str(status))
            requests.add_metric(labels, served.count)
            seconds.add_metric(labels, served.seconds)
        yield requests
        yield seconds
        yield from _of_limits(self._limits)


def _of_limits(limits: Limits) -> Iterable[Metric]:
    refused = CounterMetricFamily(
        "itemstore_rate_limited_total",
        "Requests refused by a rate limit, by its name.",
        labels=("limit",),
    )
    for name, count in limits.refused.items():
        refused.add_metric((name,), count)
    yield refused
    if limits.shared is not None:
        yield GaugeMetricFamily(
            "itemstore_redis_up",
            "1 if Redis counts for the rate limits; absent without REDIS_URL or a limit.",
            value=limits.shared.is_up,
        )
        yield CounterMetricFamily(
            "itemstore_redis_lost_total",
            "How often Redis was lost, and this instance counted by itself.",
            value=limits.shared.losses,
        )


def expose(store: ItemStore, traffic: Traffic, limits: Limits) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry()
    registry.register(_Store(store, traffic, limits))
    return generate_latest(registry)
