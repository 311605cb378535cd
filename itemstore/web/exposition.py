"""``/metrics``: the table of ``metrics.py`` and the requests served, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from itemstore import metrics
from itemstore.store import ItemStore
from itemstore.web.traffic import Traffic

__all__ = ["CONTENT_TYPE_LATEST", "expose"]


class _Store(Collector):
    def __init__(self, store: ItemStore, traffic: Traffic) -> None:
        self._store = store
        self._traffic = traffic

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


def expose(store: ItemStore, traffic: Traffic) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry()
    registry.register(_Store(store, traffic))
    return generate_latest(registry)
