"""The numbers of a running store: one table, read when somebody asks.

The store counts in plain integers at the spot; ``/metrics`` and ``/stats`` read them here.
docs/metrics.md describes each row, which a test compares. ``surroundings.py`` and
``web/exposition.py`` have tables like it, of what the process stands on and of its requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from itemstore.core.histogram import Histogram
from itemstore.store import ItemStore

if TYPE_CHECKING:
    from itemstore.storage.journal import Journal

T = TypeVar("T")
Value = float | Histogram | Mapping[str, float] | Mapping[str, Histogram]


@dataclass(frozen=True, slots=True)
class Metric(Generic[T]):
    """``read`` gives its value now; None leaves it out.

    With a ``label``, that is several values by the label's own.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[T], Value | None]
    label: str = ""


def _oldest_dirty_age(store: ItemStore) -> float:
    since = store.queue.dirty_since()
    return 0.0 if since is None else max(0.0, store.monotonic() - since)


def _since_last_commit(store: ItemStore) -> float | None:
    at = store.persister.last_commit_at
    return None if at is None else store.monotonic() - at


def _failing(store: ItemStore) -> float:
    since = store.persister.failing_since
    return 0.0 if since is None else store.monotonic() - since


def _journal(read: Callable[[Journal], float]) -> Callable[[ItemStore], float | None]:
    """A number of the journal; absent without one."""

    def of(store: ItemStore) -> float | None:
        journal = store.journaling.journal
        return None if journal is None else read(journal)

    return of


METRICS: tuple[Metric[ItemStore], ...] = (
    Metric("itemstore_ready", "gauge", "1 if requests are answered.", lambda s: s.is_ready),
    Metric(
        "itemstore_hydrated",
        "gauge",
        "1 if the cache holds every item, so that a miss needs no query.",
        lambda s: s.cache.hydrated,
    ),
    Metric("itemstore_cache_items", "gauge", "Items in the cache.", lambda s: len(s.cache)),
    Metric(
        "itemstore_cache_bytes",
        "gauge",
        "Bytes of memory the cached items take, estimated.",
        lambda s: s.cache.bytes_used,
    ),
    Metric(
        "itemstore_cache_max_bytes",
        "gauge",
        "Bytes of memory they may take.",
        lambda s: s.cache.bytes_max,
    ),
    Metric(
        "itemstore_cache_hits_total",
        "counter",
        "Items looked for of which all was known in memory.",
        lambda s: s.reader.hits,
    ),
    Metric(
        "itemstore_cache_misses_total",
        "counter",
        "Items looked for that had to be asked for in PostgreSQL.",
        lambda s: s.reader.misses,
    ),
    Metric(
        "itemstore_cache_evictions_total",
        "counter",
        "Items that left the cache to make room.",
        lambda s: s.cache.evictions,
    ),
    Metric(
        "itemstore_cache_packed_items",
        "gauge",
        "Items in the cache that are compressed.",
        lambda s: s.cache.packed,
    ),
    Metric(
        "itemstore_cache_dictionaries_total",
        "counter",
        "Dictionaries trained to compress them.",
        lambda s: s.packer.trainer.trained,
    ),
    Metric(
        "itemstore_preload_running",
        "gauge",
        "1 while the preload fills the cache.",
        lambda s: s.loader.is_preloading,
    ),
    Metric(
        "itemstore_preload_items",
        "gauge",
        "Items the preload has brought so far.",
        lambda s: s.loader.preloaded,
    ),
    Metric(
        "itemstore_load_queries_total",
        "counter",
        "Queries for items that were not cached.",
        lambda s: s.loader.queries,
    ),
    Metric(
        "itemstore_load_items_total",
        "counter",
        "Items those queries brought.",
        lambda s: s.loader.loaded,
    ),
    Metric("itemstore_dirty_items", "gauge", "Items not yet committed.", lambda s: len(s.queue)),
    Metric(
        "itemstore_dirty_max_items",
        "gauge",
        "How many may wait; beyond that writes are refused.",
        lambda s: s.options.queue_items_max,
    ),
    Metric(
        "itemstore_dirty_bytes",
        "gauge",
        "Bytes of memory they take in the write queue.",
        lambda s: s.queue.bytes_used,
    ),
    Metric(
        "itemstore_dirty_max_bytes",
        "gauge",
        "Bytes of memory they may take there.",
        lambda s: s.options.queue_bytes_max,
    ),
    Metric(
        "itemstore_oldest_dirty_age_seconds",
        "gauge",
        "Age of the oldest write that is not committed: what a crash could lose.",
        _oldest_dirty_age,
    ),
    Metric(
        "itemstore_writes_accepted_total", "counter", "Writes accepted.", lambda s: s.queue.accepted
    ),
    Metric(
        "itemstore_writes_coalesced_total",
        "counter",
        "Writes replaced by a newer one of the same item before they were written.",
        lambda s: s.queue.coalesced,
    ),
    Metric(
        "itemstore_writes_replayed_total",
        "counter",
        "Writes answered as an earlier request with the same Idempotency-Key was.",
        lambda s: s.repetitions.replayed,
    ),
    Metric(
        "itemstore_writes_refused_total",
        "counter",
        "Writes refused because the queue was full.",
        lambda s: s.admission.refused,
    ),
    Metric(
        "itemstore_writes_committed_total",
        "counter",
        "Writes committed in PostgreSQL.",
        lambda s: s.persister.committed,
    ),
    Metric(
        "itemstore_batches_total", "counter", "Batches committed.", lambda s: s.persister.batches
    ),
    Metric(
        "itemstore_batch_items",
        "histogram",
        "Items of a batch.",
        lambda s: s.persister.batch_items,
    ),
    Metric(
        "itemstore_batch_duration_seconds",
        "histogram",
        "How long a batch took, from sending it to its commit.",
        lambda s: s.persister.batch_seconds,
    ),
    Metric(
        "itemstore_last_batch_seconds",
        "gauge",
        "How long the last batch took.",
        lambda s: s.persister.last_batch_s,
    ),
    Metric(
        "itemstore_last_commit_age_seconds",
        "gauge",
        "Time since the last commit; absent before the first.",
        _since_last_commit,
    ),
    Metric(
        "itemstore_retries_away_total",
        "counter",
        "Batches repeated because PostgreSQL was away.",
        lambda s: s.persister.retries["away"],
    ),
    Metric(
        "itemstore_retries_down_total",
        "counter",
        "Batches repeated because PostgreSQL was stopped or starting.",
        lambda s: s.persister.retries["down"],
    ),
    Metric(
        "itemstore_retries_slow_total",
        "counter",
        "Batches repeated in halves after a time-out or a lock.",
        lambda s: s.persister.retries["slow"],
    ),
    Metric(
        "itemstore_retries_broken_total",
        "counter",
        "Attempts while the persister was halted.",
        lambda s: s.persister.retries["broken"],
    ),
    Metric(
        "itemstore_database_failing_seconds",
        "gauge",
        "How long PostgreSQL has not taken a batch; 0 while it does.",
        _failing,
    ),
    Metric(
        "itemstore_persister_halted",
        "gauge",
        "1 if nothing can be written until somebody mends the cause.",
        lambda s: s.persister.is_halted,
    ),
    Metric(
        "itemstore_quarantined_items",
        "gauge",
        "Items PostgreSQL refused, served from memory.",
        lambda s: len(s.queue.parked),
    ),
    Metric(
        "itemstore_writes_quarantined_total",
        "counter",
        "Writes PostgreSQL refused.",
        lambda s: s.persister.quarantined,
    ),
    Metric(
        "itemstore_writes_fenced_total",
        "counter",
        "Writes not made, and not acknowledged, because another instance took the lease.",
        lambda s: s.queue.fenced,
    ),
    Metric(
        "itemstore_writes_reapplied_total",
        "counter",
        "Committed writes that PostgreSQL had lost in a failover, written again.",
        lambda s: s.persister.reapplied,
    ),
    Metric(
        "itemstore_lease_held",
        "gauge",
        "1 if this instance holds the writer lease; 0 for a standby.",
        lambda s: s.lease.is_holder,
    ),
    Metric(
        "itemstore_lease_epoch",
        "gauge",
        "The lease's epoch; 0 for a standby.",
        lambda s: s.lease.epoch,
    ),
    Metric(
        "itemstore_lease_taken_total",
        "counter",
        "How often this instance has taken the lease.",
        lambda s: s.lease.taken,
    ),
    Metric(
        "itemstore_lease_lost_total",
        "counter",
        "How often another instance took the lease without its being handed over.",
        lambda s: s.lease.lost,
    ),
    Metric(
        "itemstore_journal_bytes",
        "gauge",
        "Bytes of records in the journal; absent without one.",
        _journal(lambda journal: journal.bytes_used),
    ),
    Metric(
        "itemstore_journal_records",
        "gauge",
        "Records in the journal.",
        _journal(lambda journal: journal.records),
    ),
    Metric(
        "itemstore_journal_oldest_age_seconds",
        "gauge",
        "Age of the oldest record in the journal.",
        _journal(lambda journal: journal.oldest_age_s),
    ),
    Metric(
        "itemstore_journal_max_bytes",
        "gauge",
        "Bytes of records it may hold.",
        lambda s: s.options.journal_bytes_max if s.journaling.journal else None,
    ),
    Metric(
        "itemstore_journal_refusing",
        "gauge",
        "1 if writes at journal get 503: it is full, or its disk has failed.",
        _journal(lambda journal: journal.refusal() is not None),
    ),
    Metric(
        "itemstore_journal_failed",
        "gauge",
        "1 if the journal's disk has failed: the process drains and ends.",
        _journal(lambda journal: journal.is_failed),
    ),
    Metric(
        "itemstore_foreign_changes_total",
        "counter",
        "Rows changed by another hand than the store's and taken over.",
        lambda s: s.watcher.taken_over,
    ),
)


def read(metrics: Iterable[Metric[T]], of: T) -> Iterator[tuple[Metric[T], Value]]:
    """Every metric of the table that has a value now, with it."""
    for metric in metrics:
        value = metric.read(of)
        if value is not None:
            yield metric, value


def numbers(metrics: Iterable[Metric[T]], of: T) -> dict[str, float]:
    """Those that are one number, by name: what a person reads."""
    return {
        metric.name: float(value)
        for metric, value in read(metrics, of)
        if isinstance(value, int | float)
    }
