"""Every SQL statement of the store; ``schema.sql`` has the tables.

Each can be pasted into psql with its parameters filled in. Times go in as microseconds, exactly;
rows come out packed by the server (core/item.py). The statements use nothing that a pooler in
transaction mode breaks: no prepared statements, no session settings, no session locks.
"""

from __future__ import annotations

from typing import Final

_PACKED: Final = "int8send(version) || timestamptz_send(created_at) || json_send(data)"


def _time(microseconds: str) -> str:
    """SQL for a timestamptz from microseconds since 1970; exact, where to_timestamp() rounds."""
    return f"timestamptz '1970-01-01 00:00:00+00' + {microseconds} * interval '1 microsecond'"


WRITE: Final = f"""
WITH batch AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::text[], %(data)s::text[], %(versions)s::bigint[],
                         %(created)s::bigint[]) AS b (id, data, version, created)
), upserted AS (
    INSERT INTO items AS i (id, data, version, created_at, updated_at)
    SELECT b.id, b.data::json, b.version, {_time("b.created")}, {_time("b.version")}
      FROM batch b
     WHERE b.data IS NOT NULL
       AND NOT EXISTS (SELECT FROM tombstones t WHERE t.id = b.id AND t.version >= b.version)
    ON CONFLICT (id) DO UPDATE
       SET data = excluded.data, version = excluded.version,
           created_at = excluded.created_at, updated_at = excluded.updated_at
     WHERE i.version < excluded.version
), deleted AS (
    DELETE FROM items i USING batch b
     WHERE b.data IS NULL AND i.id = b.id AND i.version < b.version
), buried AS (
    INSERT INTO tombstones AS t (id, version, deleted_at)
    SELECT b.id, b.version, {_time("b.version")}
      FROM batch b
     WHERE b.data IS NULL
       AND NOT EXISTS (SELECT FROM items i WHERE i.id = b.id AND i.version > b.version)
    ON CONFLICT (id) DO UPDATE
       SET version = excluded.version, deleted_at = excluded.deleted_at
     WHERE t.version < excluded.version
)
DELETE FROM tombstones t USING batch b
 WHERE b.data IS NOT NULL AND t.id = b.id AND t.version < b.version
"""  # noqa: S608 - built from constants above

QUARANTINE: Final = f"""
WITH older AS (
    DELETE FROM quarantine WHERE id = %(id)s AND version < %(version)s
)
INSERT INTO quarantine (id, version, data, created_at, error)
SELECT %(id)s, %(version)s, %(data)s, {_time("%(created)s::bigint")}, %(error)s
 WHERE NOT EXISTS (SELECT FROM quarantine WHERE id = %(id)s AND version >= %(version)s)
"""  # noqa: S608 - built from constants above

RELEASE: Final = "DELETE FROM quarantine WHERE id = ANY(%(ids)s::text[])"

#: What a crash kept from being released. At the next start, and not later: once the tombstone that
#: tells is purged, a deleted item would come back from quarantine.
RELEASE_OVERTAKEN: Final = """
DELETE FROM quarantine q
 WHERE EXISTS (SELECT FROM items i WHERE i.id = q.id AND i.version > q.version)
    OR EXISTS (SELECT FROM tombstones t WHERE t.id = q.id AND t.version > q.version)
"""

PARKED: Final = """
SELECT id, version, data, (extract(epoch FROM created_at) * 1000000)::bigint
  FROM quarantine ORDER BY version
"""

PURGE: Final = """
WITH gone AS (
    DELETE FROM tombstones WHERE id = ANY(ARRAY(
        SELECT id FROM tombstones WHERE version < %(before)s ORDER BY version LIMIT 1000))
    RETURNING 1
)
SELECT count(*) FROM gone
"""

LOAD: Final = f"SELECT id, {_PACKED} FROM items WHERE id = ANY(%(ids)s::text[])"  # noqa: S608 - constants

#: A walk over the table as it lies on disk, which reads each of its blocks once, in order. In the
#: order of the ids it would take three to eight times as long: each row lies in another block.
BLOCKS: Final = f"""
SELECT id, {_PACKED} FROM items
 WHERE ctid >= %(first)s::tid
   AND ctid < %(end)s::tid
"""  # noqa: S608 - built from constants above

#: What a walk must know: how far to go, whether the table is still the same file (VACUUM FULL and
#: TRUNCATE make a new one), and the newest version before it began.
WALK: Final = """
SELECT pg_relation_size('items') / current_setting('block_size')::int,
       pg_relation_filenode('items'),
       (SELECT coalesce(max(version), 0) FROM items)
"""

#: With ties: versions are one clock's, but other hands and instances have clocks of their own.
CHANGED: Final = f"""
SELECT id, {_PACKED}, version FROM items WHERE version > %(after)s
 ORDER BY version FETCH FIRST %(limit)s ROWS WITH TIES
"""  # noqa: S608 - built from constants above

_IN_PREFIX: Final = (
    "id >= %(prefix)s AND (%(prefix_end)s::text IS NULL OR id < %(prefix_end)s::text)"
)

COUNT: Final = f"SELECT count(*) FROM items WHERE {_IN_PREFIX}"  # noqa: S608 - constants


def _list(sort: str, after: str, *, descending: bool) -> str:
    """A page ends after ``limit`` items, or after the item with which it passes ``bytes_max``."""
    direction, beyond = ("DESC", "<") if descending else ("ASC", ">")
    columns = ", ".join(f"{column} {direction}" for column in sort.split(", "))
    return f"""
SELECT id, entry FROM (
    SELECT *, sum(length(entry)) OVER (ORDER BY {columns}) - length(entry) AS bytes_before
      FROM (
        SELECT id, created_at, version, {_PACKED} AS entry FROM items
         WHERE {_IN_PREFIX} AND (%(after_id)s::text IS NULL OR ({sort}) {beyond} ({after}))
         ORDER BY {columns} LIMIT %(limit)s
      ) AS page
  ) AS sized
 WHERE bytes_before < %(bytes_max)s
 ORDER BY {columns}
"""  # noqa: S608 - built from constants above


_SORTS: Final = {
    "created": ("created_at, id", f"{_time('%(after_key)s::bigint')}, %(after_id)s::text"),
    "updated": ("version, id", "%(after_key)s::bigint, %(after_id)s::text"),
    "id": ("id", "%(after_id)s::text"),
}

#: (order, descending) → statement.
LISTS: Final = {
    (order, descending): _list(sort, after, descending=descending)
    for order, (sort, after) in _SORTS.items()
    for descending in (False, True)
}

LEASE_IDS: Final = """
UPDATE id_blocks SET next = next + %(count)s RETURNING next - %(count)s, key
"""

EXISTING: Final = "SELECT id FROM items WHERE id = ANY(%(ids)s::text[])"

FOREIGN_CHANGES: Final = """
SELECT seq, id, version FROM foreign_changes ORDER BY seq LIMIT 1000
"""

#: The newest state of each id: a live row's entry, or what is known of its deletion.
STATES: Final = """
SELECT asked.id,
       CASE WHEN i.id IS NOT NULL
            THEN int8send(i.version) || timestamptz_send(i.created_at) || json_send(i.data) END,
       greatest(i.version, t.version)
  FROM unnest(%(ids)s::text[]) AS asked (id)
  LEFT JOIN items i ON i.id = asked.id
  LEFT JOIN tombstones t ON t.id = asked.id
"""

FORGET_FOREIGN_CHANGES: Final = "DELETE FROM foreign_changes WHERE seq = ANY(%(seqs)s::bigint[])"

LISTEN: Final = "LISTEN itemstore_foreign_changes"

INSTALLED: Final = """
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
       to_regclass('store_meta') IS NOT NULL
"""

INSTALLED_VERSION: Final = "SELECT schema_version FROM store_meta"

#: Two instances starting at once must not make the same table twice.
SCHEMA_LOCK: Final = "SELECT pg_advisory_xact_lock(7516193);"

#: The clock must not fall behind anything it has given out, nor behind PostgreSQL's own.
NEWEST_VERSION: Final = """
SELECT greatest(
    (SELECT max(version) FROM items),
    (SELECT max(version) FROM tombstones),
    (SELECT max(version) FROM quarantine),
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
"""

#: reltuples is -1 until the first ANALYZE; then a row is taken to fill 300 bytes of the table.
ESTIMATE: Final = """
SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint
            ELSE pg_relation_size(oid) / 300 END,
       pg_table_size(oid)
  FROM pg_class WHERE oid = 'items'::regclass
"""

#: A session whose connection was lost may still be executing our last statement. It is ended
#: and waited for before the statement is sent again, or it could write an item back that was
#: deleted meanwhile: its snapshot would not show the tombstone.
END_LOST_SESSIONS: Final = """
SELECT coalesce(bool_and(pg_terminate_backend(pid, %(wait_ms)s)), true)
  FROM pg_stat_activity
 WHERE application_name = %(name)s AND datname = current_database() AND pid <> pg_backend_pid()
"""

SERVER: Final = """
SELECT current_setting('server_version'),
       current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('synchronous_commit'), current_setting('max_connections')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       pg_is_in_recovery()
"""
