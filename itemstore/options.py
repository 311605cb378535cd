"""What a store can be told, with its defaults. ``settings.py`` fills this from the environment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MIB = 1024 * 1024


class Durability(StrEnum):
    """What an OK to a write means; docs/durability.md says what each survives."""

    MEMORY = "memory"  #: it is in the cache and in the write queue
    JOURNAL = "journal"  #: it is on this machine's disk
    COMMIT = "commit"  #: PostgreSQL has committed it


class Preload(StrEnum):
    """Whether the cache is filled at start: the values of SKIP_ITEMS_PRELOAD."""

    PRELOAD = "false"
    SKIP = "true"
    AUTO = "auto"  #: preload if the items are estimated to fit in ``cache_bytes_max``


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits and defaults of one store."""

    #: What an OK means unless a write says otherwise; None: journal with a journal, else commit.
    durability: Durability | None = None
    #: Where the journal lies; None: there is none. The disk must survive a restart.
    journal_dir: Path | None = None
    journal_bytes_max: int = 256 * MIB
    skip_items_preload: Preload = Preload.AUTO
    #: The memory of the cache, in bytes; None: what this process may use, less what the rest needs.
    cache_bytes_max: int | None = None
    #: Whether the cache keeps data compressed; None: if plain they would fill much of its memory.
    cache_compression: bool | None = None

    #: Above these a write gets Overloaded; above three quarters of them it waits for room first.
    queue_items_max: int = 50_000
    queue_bytes_max: int = 64 * MIB
    queue_wait_s: float = 5.0

    batch_items_max: int = 500  # beyond, a batch holds the event loop for longer than 3 ms
    batch_bytes_max: int = 4 * MIB

    #: How long a ``commit`` write and a barrier wait for PostgreSQL before they answer Unavailable.
    commit_timeout_s: float = 10.0
    #: How long a read waits for an item that is not cached.
    load_timeout_s: float = 10.0
    #: How long PostgreSQL may take for a page of a list, and for its count.
    query_timeout_s: float = 10.0
    #: How long deletes are remembered; must exceed any time a write can be late.
    tombstone_retention_s: float = 7 * 24 * 3600.0
    #: Whether each accepted write leaves a row in the table audit, and how long that is kept.
    audit: bool = False
    audit_retention_s: float = 90 * 24 * 3600.0
    #: How long a request with an idempotency key is remembered.
    idempotency_retention_s: float = 24 * 3600.0
    #: How long the writer lease lasts after the last sign of life of its holder.
    lease_s: float = 10.0
    #: How long a write waits for this instance to get the lease.
    hold_s: float = 5.0
    #: How long closing may take to empty the write queue.
    shutdown_timeout_s: float = 25.0
