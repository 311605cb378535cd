"""``itemstore doctor``: what is wrong with a running deployment, why it matters, what to type.

It asks the server for /readyz, /stats and /metrics and, where DATABASE_URL is set, PostgreSQL; it
changes nothing. /readyz it asks as a stranger too, for what anybody would be told. What is found is
decided by plain functions over what was seen.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from itemstore import asking
from itemstore.access import is_loopback
from itemstore.asking import Answer, NoAnswer
from itemstore.check import mib, platform, server_settings
from itemstore.finding import Finding, Verdict, console, tell
from itemstore.settings import Settings
from itemstore.storage import Lease, Server, StorageError
from itemstore.storage.postgres import look

UNREACHABLE: Final = 2  # the exit code
SHARE_MAX: Final = 0.8  # of connections and disk, as in deploy/alerts.yml
ROOM_SHARE_MAX: Final = 0.7  # in the write queue: at three quarters writes wait
MEMORY_SHARE_MAX: Final = 0.9
DIRTY_AGE_MAX_S: Final = 5.0
ERROR_SHARE_MAX: Final = 0.01
P95_MAX_S: Final = 1.0
CLOCK_MAX_S: Final = 5.0

#: In /readyz for those who may know of the whole store.
_TOLD: Final = {"ready", "lease", "database", "journal"}

_WHY_AWAY: Final = "what is accepted is kept in memory and in the journal, and not in PostgreSQL"
_LEASE_QUERY: Final = "psql \"$DATABASE_URL\" -c 'TABLE writer_lease'"

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the deployment said; what it would not say is empty."""

    state: dict[str, Any]  #: /readyz; whether it is ready is what everybody is told
    numbers: dict[str, float] = field(default_factory=dict)  #: /stats
    samples: Samples = field(default_factory=dict)  #: /metrics: by name, labels and value
    refused: int = 0  #: the status of /stats or /metrics, if they were not to be had
    refusal: str = ""  #: why, in the server's words
    has_token: bool = False
    is_open: bool = False  #: whether strangers are told everything
    clock_s: float | None = None  #: the server's, since 1970
    server: Server | None = None
    lease: Lease | None = None
    server_failure: str = ""  #: why PostgreSQL could not be asked


def doctor(settings: Settings, where: asking.Server) -> int:
    """Prints what it finds, the worst first.

    Returns 0 if all is well, 1 if there is something to do, 2 if the server cannot be reached.
    """
    to, hide = console(), settings.redaction()
    try:
        seen = asyncio.run(_look(settings, where))
    except NoAnswer as reason:
        to.print(str(reason), style="red", markup=False)
        return UNREACHABLE
    found = sorted(findings(seen, settings, where.url), key=lambda each: -each.verdict)
    for each in found:
        tell(to, each, hide)
    return int(any(each.verdict > Verdict.OK for each in found))


async def _look(settings: Settings, where: asking.Server) -> Seen:
    """Raises NoAnswer."""
    stranger, ready, stats, metrics = [
        await asyncio.to_thread(asking.get, who, path)
        for who, path in (
            (asking.Server(where.url), "/readyz"),
            *((where, path) for path in ("/readyz", "/stats", "/metrics")),
        )
    ]
    seen: dict[str, Any] = {"state": _state(ready, where.url), "clock_s": _clock(ready)}
    seen |= {"is_open": _said(stranger).keys() >= _TOLD, "has_token": bool(where.token)}
    if stats.status == metrics.status == 200:
        seen |= {"numbers": json.loads(stats.body), "samples": _samples(metrics.body.decode())}
    else:
        worse = max(stats, metrics, key=lambda answer: answer.status)
        seen |= {"refused": worse.status, "refusal": str(_said(worse).get("detail", ""))}
    if settings.database_url is not None:
        try:
            seen["server"], seen["lease"] = await look(settings.database_url)
        except StorageError as error:
            seen["server_failure"] = str(error)
    return Seen(**seen)


def _state(answer: Answer, url: str) -> dict[str, Any]:
    state = _said(answer)
    if state.keys() == {"ready"} or state.keys() >= _TOLD:
        return state
    raise NoAnswer(
        f"What answers at {url} is not an itemstore, or not this version: /readyz is "
        f"{answer.status}. Name the server with --url http://host:port."
    )


def _said(answer: Answer) -> dict[str, Any]:
    """The answer's JSON object; empty if it is none."""
    try:
        said = json.loads(answer.body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _clock(answer: Answer) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return None


def _samples(text: str) -> Samples:
    from prometheus_client.parser import text_string_to_metric_families  # 50 ms to import

    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


# --- what is found


def findings(seen: Seen, settings: Settings, url: str) -> Iterator[Finding]:
    """Everything that was looked at, in no order."""
    yield _overall(seen, url)
    yield from _callers(seen, url)
    if seen.state.keys() >= _TOLD:
        yield from _database(seen)
        yield from _lease(seen)
        yield from _kept(seen, settings, url)
        yield from _preload(seen, url)
    yield from _room(seen)
    yield from _redis(seen)
    yield from _answers(seen, url)
    yield from platform(settings)
    if seen.server is not None:
        yield from server_settings(seen.server)
        yield from _clocks(seen.server, seen.clock_s)


def _overall(seen: Seen, url: str) -> Finding:
    if seen.state["ready"]:
        items = seen.numbers.get("itemstore_cache_items")
        cached = "" if items is None else f", {items:,.0f} items in the cache"
        lease = f", lease {seen.state['lease']}" if "lease" in seen.state else ""
        return Finding(Verdict.OK, f"{url} is ready{lease}{cached}")
    return Finding(
        Verdict.FAIL,
        "the server is not ready: it is starting or stopping",
        "itemstore check; it says what a new connection to PostgreSQL meets",
        "every request for items gets 503",
    )


def _callers(seen: Seen, url: str) -> Iterator[Finding]:
    if seen.is_open and not is_loopback(urlsplit(url).hostname or ""):
        yield Finding(
            Verdict.WARN,
            f"{url} tells everything to a stranger: AUTH is none",
            "set API_KEY to the output of openssl rand -hex 32, then itemstore keys create --help; "
            "nothing, if only those reach it whom you trust",
            "whoever reaches it may read, change and delete every item",
        )
    if not seen.refused:
        return
    make = f"an admin makes one: itemstore keys create doctor --role read --url {url}"
    if seen.refused == 401 and seen.has_token:
        what, advice = "the server does not take the token", f"ITEMSTORE_TOKEN=another; {make}"
    elif seen.refused == 401:
        what, advice = "the server asks for a key, and was shown none", f"ITEMSTORE_TOKEN=…; {make}"
    elif seen.refused == 403:
        what = "the token is for less than the whole store"
        advice = f"ITEMSTORE_TOKEN of a key with the role read and no prefix; {make}"
    else:
        what, advice = "the server does not tell its numbers", "read what its log says of it"
    yield Finding(
        Verdict.WARN,
        f"{what}: /stats or /metrics answered {seen.refused}. {seen.refusal}".rstrip(),
        advice,
        "neither its numbers nor its state could be looked at",
    )


def _redis(seen: Seen) -> Iterator[Finding]:
    if seen.numbers.get("itemstore_redis_up") == 0:
        yield Finding(
            Verdict.WARN,
            "Redis does not answer the server, which counts for the rate limits by itself",
            'redis-cli -u "$REDIS_URL" ping, where the server runs; redis_lost in its log says why',
            "callers have their limits as often as there are instances",
        )


def _database(seen: Seen) -> Iterator[Finding]:
    kind = seen.state["database"]
    if kind == "broken":
        yield Finding(
            Verdict.FAIL,
            "the persister is halted: PostgreSQL refuses what waiting does not mend",
            "read `reason` of `halted` in the log, mend that in PostgreSQL, do not restart; "
            'missing tables: psql "$DATABASE_URL" -f schema.sql',
            _WHY_AWAY,
        )
    elif kind not in {"ok", "unknown"}:
        failing_s = seen.numbers.get("itemstore_database_failing_seconds", 0.0)
        yield Finding(
            Verdict.FAIL,
            f"PostgreSQL has not taken a batch for {failing_s:.0f} s: {kind}",
            "bring PostgreSQL back, do not restart the store; itemstore check says what a new "
            "connection meets",
            _WHY_AWAY,
        )
    if seen.server_failure:
        yield Finding(
            Verdict.FAIL,
            f"PostgreSQL cannot be asked from here: {seen.server_failure}",
            "check that it runs, and that DATABASE_URL is the store's",
        )
    age_s = seen.numbers.get("itemstore_oldest_dirty_age_seconds", 0.0)
    if age_s > DIRTY_AGE_MAX_S:
        yield Finding(
            Verdict.FAIL,
            f"the oldest write that is not committed is {age_s:.0f} s old, "
            f"{seen.state['dirty']:,} items wait",
            'psql "$DATABASE_URL" -f docs/monitoring.sql; look at lock_waits and slow_queries',
            "so much a crash could lose of what was answered at memory",
        )


def _lease(seen: Seen) -> Iterator[Finding]:
    if seen.lease is not None and seen.lease.is_free:
        yield Finding(
            Verdict.FAIL,
            "no instance holds the writer lease",
            f"{_LEASE_QUERY}; then the log of the instance that should take it",
            "no write is accepted: 503 not_holder",
        )
    elif seen.state["ready"] and seen.state["lease"] in {"standby", "unsure"}:
        holder = seen.lease.holder if seen.lease else "another instance"
        yield Finding(
            Verdict.WARN,
            f"this instance is {seen.state['lease']}; the writer lease is with {holder}",
            f"nothing in a deploy; else lead requests to the holder, or stop it: {_LEASE_QUERY}",
            "writes sent here wait, and then get 503 not_holder",
        )


def _kept(seen: Seen, settings: Settings, url: str) -> Iterator[Finding]:
    if seen.state["quarantined"]:
        yield Finding(
            Verdict.FAIL,
            f"{seen.state['quarantined']} items in quarantine: accepted, but refused by PostgreSQL",
            f"itemstore quarantine list --url {url}; then correct, retry or discard each",
            "lists and SQL do not have them as they were accepted",
        )
    if seen.state["journal"] == "refusing":
        yield Finding(
            Verdict.FAIL,
            "the journal is full, or its disk has failed",
            'df -h "$DATA_DIR"; free space or raise JOURNAL_MAX_BYTES; journal_failed in the log: '
            "see to the disk",
            "writes at journal get 503",
        )
    if seen.state["journal"] == "none" and settings.embedded_dir is not None:
        yield Finding(
            Verdict.WARN,
            f"there is a directory for data, {settings.embedded_dir}, and no journal in it",
            "itemstore check, on the server's machine, says why: it may be no disk that lasts",
            "writes wait for PostgreSQL, or at memory are lost in a crash",
        )


def _preload(seen: Seen, url: str) -> Iterator[Finding]:
    if seen.numbers.get("itemstore_preload_running"):
        yield Finding(
            Verdict.WARN,
            f"the preload has brought {seen.state['loaded']:,} of about "
            f"{seen.state['estimate']:,} items",
            f"wait; curl {url}/readyz says how far it is",
            "until then a read may have to ask PostgreSQL",
        )


#: Of what is used of what: how it is called, the two numbers, the most, what to do and why.
_SHARES: Final = (
    (
        "memory",
        "itemstore_memory_resident_bytes",
        "itemstore_memory_limit_bytes",
        MEMORY_SHARE_MAX,
        "set CACHE_MAX_BYTES lower, or give it more memory",
        "beyond its limit the process is killed, and what is at memory is lost",
    ),
    (
        "the disk of the data directory",
        "itemstore_disk_used_bytes",
        "itemstore_disk_size_bytes",
        SHARE_MAX,
        'du -xh "$DATA_DIR" | sort -h | tail; free space or enlarge the disk',
        "on a full disk neither the journal nor an embedded PostgreSQL writes",
    ),
    (
        "the room for writes (bytes)",
        "itemstore_dirty_bytes",
        "itemstore_dirty_max_bytes",
        ROOM_SHARE_MAX,
        "see whether PostgreSQL is slow: docs/monitoring.sql, lock_waits and slow_queries",
        "writes wait, and then get 503 overloaded",
    ),
    (
        "the room for writes (items)",
        "itemstore_dirty_items",
        "itemstore_dirty_max_items",
        ROOM_SHARE_MAX,
        "see whether PostgreSQL is slow: docs/monitoring.sql, lock_waits and slow_queries",
        "writes wait, and then get 503 overloaded",
    ),
    (
        "the connections for callers",
        "itemstore_http_connections",
        "itemstore_http_connections_max",
        SHARE_MAX,
        "have callers keep theirs, or raise CONNECTIONS_MAX",
        "beyond them callers get 503 too_many_connections",
    ),
    (
        "PostgreSQL's connections",
        "itemstore_postgres_connections",
        "itemstore_postgres_max_connections",
        SHARE_MAX,
        "close other clients, or raise max_connections; docs/monitoring.sql, connections",
        "without one left the store cannot connect again after a break",
    ),
)


def _room(seen: Seen) -> Iterator[Finding]:
    for what, used_by, most_by, share_max, advice, why in _SHARES:
        used, most = seen.numbers.get(used_by), seen.numbers.get(most_by)
        if used is None or not most:
            continue
        size = _bytes if used_by.endswith("_bytes") else _number
        told = f"{used / most:.0%} of {what} in use: {size(used)} of {size(most)}"
        if used > share_max * most:
            yield Finding(Verdict.WARN, told, advice, why)
        else:
            yield Finding(Verdict.OK, told)


def _bytes(size: float) -> str:
    return mib(int(size))


def _number(count: float) -> str:
    return f"{count:,.0f}"


def _answers(seen: Seen, url: str) -> Iterator[Finding]:
    counted = [
        (labels, count)
        for labels, count in seen.samples.get("itemstore_http_requests_total", [])
        if not labels.get("route", "").endswith("/readyz")  # its 503 is an answer, not an error
    ]
    total = sum(count for _, count in counted)
    failed = sum(count for labels, count in counted if labels["status"].startswith("5"))
    if failed > ERROR_SHARE_MAX * total:
        yield Finding(
            Verdict.WARN,
            f"{failed / total:.1%} of {total:,.0f} requests since the start got an error of ours",
            f"curl {url}/metrics | grep http_errors_total; docs/troubleshooting.md has each code",
        )
    buckets = seen.samples.get("itemstore_http_request_duration_seconds_bucket", [])
    for kind in sorted({labels["kind"] for labels, _ in buckets}):
        of_kind = [(float(each["le"]), n) for each, n in buckets if each["kind"] == kind]
        bound_s = quantile_bound(0.95, of_kind)
        if bound_s > P95_MAX_S:
            yield Finding(
                Verdict.WARN,
                f"one in twenty {kind} requests since the start took more than {P95_MAX_S:g} s",
                'psql "$DATABASE_URL" -f docs/monitoring.sql; look at slow_queries',
            )


def quantile_bound(share: float, buckets: list[tuple[float, float]]) -> float:
    """The least bound that holds this share of what was counted; 0 if nothing was."""
    total = max((count for _, count in buckets), default=0.0)
    if not total:
        return 0.0
    return min((bound for bound, count in buckets if count >= share * total), default=math.inf)


def _clocks(server: Server, clock_s: float | None) -> Iterator[Finding]:
    if clock_s is None:
        return
    apart_s = clock_s - server.now_us / 1e6
    if abs(apart_s) > CLOCK_MAX_S:
        yield Finding(
            Verdict.WARN,
            f"the server's clock and PostgreSQL's are {abs(apart_s):.0f} s apart",
            "timedatectl, on both machines: let NTP set the clocks",
            "between the store and psql the later write of an item wins, by these clocks",
        )
