"""The numbers of the requests, and where those of everything else are read."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from itemstore.metrics import METRICS, Metric
from itemstore.surroundings import SURROUNDINGS, Surroundings
from itemstore.web.door import DOOR
from itemstore.web.items import STORE
from itemstore.web.limits import LIMITS
from itemstore.web.streams import STREAMS
from itemstore.web.traffic import Traffic

TRAFFIC: Final = web.AppKey("traffic", Traffic)
AROUND: Final = web.AppKey("around", Surroundings)

HTTP: Final[tuple[Metric[web.Application], ...]] = (
    Metric(
        "itemstore_http_request_duration_seconds",
        "histogram",
        "How long requests took to be answered; imports and exports once begun are left out.",
        lambda app: {str(kind): each for kind, each in app[TRAFFIC].latency.items()},
        label="kind",
    ),
    Metric(
        "itemstore_http_errors_total",
        "counter",
        "Errors answered, by code.",
        lambda app: app[TRAFFIC].errors,
        label="code",
    ),
    Metric(
        "itemstore_http_connections",
        "gauge",
        "Connections of clients, open now.",
        lambda app: app[DOOR].connections,
    ),
    Metric(
        "itemstore_http_connections_max",
        "gauge",
        "How many there may be.",
        lambda app: app[DOOR].connections_max,
    ),
    Metric(
        "itemstore_http_connections_refused_total",
        "counter",
        "Connections for which there was no room.",
        lambda app: app[DOOR].refused,
    ),
    Metric(
        "itemstore_http_connections_cut_total",
        "counter",
        "Connections ended because they were too slow.",
        lambda app: app[DOOR].cut,
    ),
    Metric(
        "itemstore_http_streams",
        "gauge",
        "Imports and exports under way.",
        lambda app: app[STREAMS].under_way,
    ),
    Metric(
        "itemstore_rate_limited_total",
        "counter",
        "Requests refused by a rate limit, by its name.",
        lambda app: app[LIMITS].refused,
        label="limit",
    ),
    Metric(
        "itemstore_redis_up",
        "gauge",
        "1 if Redis counts for the rate limits; absent without REDIS_URL or a limit.",
        lambda app: None if (shared := app[LIMITS].shared) is None else shared.is_up,
    ),
    Metric(
        "itemstore_redis_lost_total",
        "counter",
        "How often Redis was lost, and this instance counted by itself.",
        lambda app: None if (shared := app[LIMITS].shared) is None else shared.losses,
    ),
)


def tables(app: web.Application) -> tuple[tuple[tuple[Metric[Any], ...], Any], ...]:
    """Each table of metrics, with what its rows read."""
    return (METRICS, app[STORE]), (SURROUNDINGS, app[AROUND]), (HTTP, app)
