"""Every SQL statement of the store; ``schema.sql`` has the tables.

Each can be pasted into psql with its parameters filled in. Times go in as microseconds, exactly.
Arrays go in binary (``%b``): as texts, a thousand items cost 50 ms of the event loop. Rows come
out packed by the server (core/item.py). The statements need nothing that a pooler in transaction
mode breaks: no prepared statements, no session settings, no session locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg import sql

from itemstore.core.audit import AuditQuery
from itemstore.core.index import Index
from itemstore.core.listing import ListQuery
from itemstore.storage.conditions import (
    Parameters,
    audited,
    begins,
    beyond,
    json_column,
    key_columns,
    sort_columns,
    where,
)

_PACKED: Final = "int8send(version) || timestamptz_send(created_at) || json_send(data)"


def _time(microseconds: str) -> str:
    """SQL for a timestamptz from microseconds since 1970; exact, where to_timestamp() rounds."""
    return f"timestamptz '1970-01-01 00:00:00+00' + {microseconds} * interval '1 microsecond'"


#: PostgreSQL's clock, as a version.
_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

#: In every statement of the writer: what the lease was, and the heartbeat if it is still ours.
_LEASE: Final = """before AS MATERIALIZED (
    SELECT epoch, high_water FROM writer_lease
), lease AS (
    UPDATE writer_lease
       SET heartbeat = clock_timestamp(),
           expires_at = clock_timestamp() + %(lease_s)s::float8 * interval '1 second',
           clock = greatest(clock, %(clock)s::bigint),
           high_water = greatest(high_water, %(high_water)s::bigint),
           settled = greatest(settled, %(settled)s::bigint)
     WHERE epoch = %(epoch)s AND holder = %(holder)s
    RETURNING wanted_by IS NOT NULL AND wanted_at > clock_timestamp() - interval '5 seconds'
              AS is_wanted
)"""

#: What the holder is told of it: NULL if it is not the holder.
_STANDING: Final = "(SELECT is_wanted FROM lease), before.epoch, before.high_water"

#: True of every row, but the planner takes it for one in 200, and so looks them up by their keys.
#: Else it would read all of tombstones for each batch, up to 200,000 of them.
_FEW: Final = "version BETWEEN -9223372036854775808 AND 9223372036854775807"

#: The batch of an instance, whose newer rows win. Nobody else may write in between what its
#: snapshot shows and what it does, or an older row could come back over a deletion it does not see.
_WRITE: Final = f"""
WITH {_LEASE}, batch AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)b::text[], %(data)b::text[], %(versions)b::bigint[],
                         %(created)b::bigint[], %(acked)b::boolean[])
               AS b (id, data, version, created, acked)
     WHERE {{admitted}} AND {_FEW}
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
    RETURNING i.id, i.version
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
    RETURNING t.id, t.version
), revived AS (
    DELETE FROM tombstones t USING batch b
     WHERE b.data IS NOT NULL AND t.id = b.id AND t.version < b.version
), told AS (
    INSERT INTO foreign_changes (id, version)
    SELECT id, version FROM (SELECT * FROM upserted UNION ALL SELECT * FROM buried) AS changed
     WHERE NOT EXISTS (SELECT FROM lease)
){{records}}
SELECT {_STANDING} FROM before
"""  # noqa: S608 - built from constants above

#: What is kept of the changes beside the items (core/record.py). A repetition adds nothing.
_RECORDS: Final = f""", audited AS (
    INSERT INTO audit (version, id, at, what, caller, request_id, address)
    SELECT r.version, r.id, {_time("r.version")}, what, caller,
           NULLIF(request_id, ''), NULLIF(address, '')
      FROM unnest(%(audit_ids)b::text[], %(audit_versions)b::bigint[], %(audit_what)b::text[],
                  %(audit_callers)b::text[], %(audit_requests)b::text[],
                  %(audit_addresses)b::text[], %(audit_acked)b::boolean[])
               AS r (id, version, what, caller, request_id, address, acked)
     WHERE {{admitted}}
    ON CONFLICT DO NOTHING
), answered AS (
    INSERT INTO idempotency AS i (caller, key, position, payload, id, version, created_us, deleted,
                                  data, what)
    SELECT DISTINCT ON (caller, key, position) caller, key, position, payload, id, version, created,
           deleted, data, what
      FROM unnest(%(answer_callers)b::text[], %(answer_keys)b::text[], %(answer_positions)b::int[],
                  %(answer_payloads)b::text[], %(answer_ids)b::text[],
                  %(answer_versions)b::bigint[], %(answer_created)b::bigint[],
                  %(answer_deleted)b::boolean[], %(answer_data)b::text[],
                  %(answer_what)b::text[], %(answer_acked)b::boolean[])
               AS r (caller, key, position, payload, id, version, created, deleted, data, what,
                     acked)
     WHERE {{admitted}}
     ORDER BY caller, key, position, version DESC
    ON CONFLICT (caller, key, position) DO UPDATE
       SET payload = excluded.payload, id = excluded.id, version = excluded.version,
           created_us = excluded.created_us, deleted = excluded.deleted, data = excluded.data,
           what = excluded.what
     WHERE i.version < excluded.version
)"""  # noqa: S608 - built from constants above

#: For a direct connection of the writer, where PostgreSQL keeps its plans: they must hold also when
#: a table they were made for has grown. Without compilation, for a scan that cannot be avoided, of
#: the lease's one row, then passes for a very large one.
BY_KEYS: Final = "SET enable_seqscan = off; SET jit = off"

#: The process that serves this statement.
BACKEND: Final = "SELECT pg_backend_pid()"

#: Nothing goes in unless the epoch is valid. The lease's row is locked first, and whoever takes the
#: lease must lock it too: the batches of successive holders follow one another.
_HELD: Final = "EXISTS (SELECT FROM lease)"
WRITE: Final = _WRITE.format(admitted=_HELD, records="")
WRITE_RECORDED: Final = _WRITE.format(admitted=_HELD, records=_RECORDS.format(admitted=_HELD))

#: What was acknowledged goes in whoever holds the lease now, and the holder is told of it.
WRITE_LATE: Final = _WRITE.format(admitted="acked", records="")
WRITE_RECORDED_LATE: Final = _WRITE.format(
    admitted="acked", records=_RECORDS.format(admitted="acked")
)

#: For a late batch, in its transaction: with no holder's batch or heartbeat beside it, of which
#: every one locks this table before it takes its snapshot. Who may not have it soon tries later.
ALONE: Final = """
SET LOCAL lock_timeout = '1s';
LOCK TABLE writer_lease IN SHARE ROW EXCLUSIVE MODE
"""

RENEW: Final = f"WITH {_LEASE} SELECT {_STANDING} FROM before"  # noqa: S608 - constants

LEASE: Final = f"""
SELECT epoch, holder, process,
       holder IS NULL OR expires_at < clock_timestamp() AS is_free,
       settled, {_NOW} AS now
  FROM writer_lease
"""  # noqa: S608 - built from constants above

#: Beyond any version the former holder can have given out since its heartbeat, however wrong its
#: clock is: its clock then, and the time since.
_NEXT_CLOCK: Final = f"""greatest(
           %(clock)s::bigint, {_NOW}, CASE WHEN holder IS NULL THEN clock ELSE
           clock + (extract(epoch FROM clock_timestamp() - heartbeat) * 1000000)::bigint END)"""

#: Granted if nobody has it and nobody else waits for it, if its time is over, if its holder is a
#: process of this machine that is gone, or if the row fell back behind an epoch that was ours.
#: What its new holder has found is settled: a walk need not read it a second time.
ACQUIRE: Final = f"""
UPDATE writer_lease
   SET epoch = greatest(epoch + 1, %(epoch)s + 1, {_NOW} / 1000000),
       holder = %(holder)s, process = %(process)s, heartbeat = clock_timestamp(),
       expires_at = clock_timestamp() + %(lease_s)s::float8 * interval '1 second',
       clock = {_NEXT_CLOCK}, settled = greatest(settled, %(settled)s::bigint),
       wanted_by = NULLIF(wanted_by, %(holder)s)
 WHERE (holder IS NULL AND (wanted_by IS NULL OR wanted_by = %(holder)s
                            OR wanted_at < clock_timestamp() - interval '5 seconds'))
    OR expires_at < clock_timestamp()
    OR holder = %(gone)s::text
    OR epoch < %(epoch)s
RETURNING epoch, clock, high_water
"""  # noqa: S608 - built from constants above

WANT: Final = "UPDATE writer_lease SET wanted_by = %(holder)s, wanted_at = clock_timestamp()"

UNWANT: Final = "UPDATE writer_lease SET wanted_by = NULL WHERE wanted_by = %(holder)s"

LET_GO: Final = """
UPDATE writer_lease
   SET holder = NULL, process = NULL, clock = greatest(clock, %(clock)s::bigint),
       high_water = greatest(high_water, %(high_water)s::bigint),
       settled = greatest(settled, %(clock)s::bigint)
 WHERE epoch = %(epoch)s AND holder = %(holder)s
"""

QUARANTINE: Final = f"""
WITH older AS (
    DELETE FROM quarantine WHERE id = %(id)s AND version < %(version)s
){_RECORDS.format(admitted="true")}
INSERT INTO quarantine (id, version, data, created_at, error)
SELECT %(id)s, %(version)s, %(data)s, {_time("%(created)s::bigint")}, %(error)s
 WHERE NOT EXISTS (SELECT FROM quarantine WHERE id = %(id)s AND version >= %(version)s)
"""  # noqa: S608 - built from constants above

RELEASE: Final = "DELETE FROM quarantine WHERE id = ANY(%(ids)b::text[])"

DISCARD: Final = "DELETE FROM quarantine WHERE id = %(id)s RETURNING id"

#: What a crash kept from being released: before tombstones are purged, or a deleted item would come
#: back from quarantine.
RELEASE_OVERTAKEN: Final = """
DELETE FROM quarantine q
 WHERE EXISTS (SELECT FROM items i WHERE i.id = q.id AND i.version > q.version)
    OR EXISTS (SELECT FROM tombstones t WHERE t.id = q.id AND t.version > q.version)
"""

PARKED: Final = """
SELECT id, version, data, (extract(epoch FROM created_at) * 1000000)::bigint,
       error, (extract(epoch FROM at) * 1000000)::bigint
  FROM quarantine q
 WHERE NOT EXISTS (SELECT FROM items i WHERE i.id = q.id AND i.version > q.version)
   AND NOT EXISTS (SELECT FROM tombstones t WHERE t.id = q.id AND t.version > q.version)
 ORDER BY version
"""

PURGE: Final = """
WITH gone AS (
    DELETE FROM tombstones WHERE id = ANY(ARRAY(
        SELECT id FROM tombstones WHERE version < %(before)s ORDER BY version LIMIT 1000))
    RETURNING 1
), known AS (
    UPDATE store_meta SET purged_before = %(before)s
     WHERE purged_before < %(before)s AND EXISTS (SELECT FROM gone)
), old_notes AS (
    DELETE FROM foreign_changes WHERE taken_at < clock_timestamp() - interval '1 hour'
)
SELECT count(*) FROM gone
"""

#: Audit rows are as old as schema.sql lets them go. Of both kinds more than a batch brings.
PURGE_RECORDS: Final = f"""
WITH answers AS (
    DELETE FROM idempotency WHERE (caller, key, position) IN (
        SELECT caller, key, position FROM idempotency WHERE version < %(before)s
         ORDER BY version LIMIT 5000)
    RETURNING 1
), rows AS (
    DELETE FROM audit WHERE (version, id) IN (
        SELECT version, id FROM audit
         WHERE version < (SELECT {_NOW} - audit_us FROM store_meta)
         ORDER BY version LIMIT 5000)
    RETURNING 1
)
SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM rows)
"""  # noqa: S608 - built from constants above

#: Whether changes by other hands are audited, and from what age on rows may be purged.
SET_AUDIT: Final = """
UPDATE store_meta
   SET audit = wanted.is_on, audit_us = coalesce(wanted.us, audit_us)
  FROM (SELECT %(audit_s)s::float8 IS NOT NULL, (%(audit_s)s::float8 * 1000000)::bigint)
       AS wanted (is_on, us)
 WHERE audit <> wanted.is_on OR audit_us <> wanted.us
"""

REPETITIONS: Final = """
SELECT id, version, what, caller, '', '', false, key, position, payload, created_us, deleted, data
  FROM idempotency
  JOIN unnest(%(callers)b::text[], %(keys)b::text[]) AS asked (caller, key) USING (caller, key)
 WHERE version >= %(since)s
"""


def audit(query: AuditQuery) -> tuple[str, Parameters]:
    """Rows of the audit, newest first."""
    given = Parameters()
    text = f"""
SELECT version, id, (extract(epoch FROM at) * 1000000)::bigint, what, caller, request_id, address
  FROM audit
 WHERE {audited(query, given)}
 ORDER BY version DESC, id DESC LIMIT {given.take(query.limit, "bigint")}
"""  # noqa: S608 - built from constants and placeholders
    return text, given


#: No more rows than so many bytes as they are stored, but one at least; ``total`` is how many there
#: would be. To sum up their lengths as text would take twice the time where they are large.
_BY_SIZE: Final = f"""
SELECT id, {_PACKED}, at::text, total FROM (
    SELECT *, ctid AS at, count(*) OVER () AS total,
           sum(pg_column_size(data)) OVER ({{order}}) - pg_column_size(data) AS bytes_before
      FROM items WHERE {{which}}
  ) AS sized
 WHERE bytes_before < %(bytes_max)s
"""  # noqa: S608 - built from constants above

LOAD: Final = _BY_SIZE.format(order="ROWS UNBOUNDED PRECEDING", which="id = ANY(%(ids)b::text[])")

#: A walk over the table as it lies on disk, which reads each of its blocks once, in order. In the
#: order of the ids it would take three to eight times as long: each row lies in another block.
_IN_BLOCKS: Final = "ctid >= %(first)s::tid AND ctid < %(end)s::tid"
BLOCKS: Final = f"SELECT id, {_PACKED} FROM items WHERE {_IN_BLOCKS}"  # noqa: S608 - constants

#: The same where much is kept outside of the rows (TOAST), so that a block leads to many bytes.
BLOCKS_BY_SIZE: Final = (
    _BY_SIZE.format(order="ORDER BY ctid", which=_IN_BLOCKS) + "ORDER BY sized.at"
)

#: For a new connection that walks: libpq's buffer grows to half a megabyte, and stays so. With the
#: 16 KB it begins with, a page would wake the event loop three times as often.
WIDEN: Final = "SELECT repeat(' ', 500000)"

#: What a walk must know: how far to go, whether the table is still the same file (VACUUM FULL and
#: TRUNCATE make a new one), the version up to which everything is committed before it begins, and
#: how much is kept outside of the rows.
WALK: Final = """
SELECT pg_relation_size('items') / current_setting('block_size')::int,
       pg_relation_filenode('items'),
       (SELECT settled FROM writer_lease),
       (SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'items'::regclass)
"""

#: What changed after a version, deletes among it, oldest first. With ties, for a page must not end
#: between two rows of one version: other hands and former holders have clocks of their own.
CHANGES: Final = f"""
(SELECT id, {_PACKED} AS entry, version FROM items
  WHERE version > %(after)s ORDER BY version FETCH FIRST %(limit)s ROWS WITH TIES)
UNION ALL
(SELECT id, NULL, version FROM tombstones
  WHERE version > %(after)s ORDER BY version FETCH FIRST %(limit)s ROWS WITH TIES)
 ORDER BY version FETCH FIRST %(limit)s ROWS WITH TIES
"""  # noqa: S608 - built from constants above

#: Where lists look. An item that another hand stored may not be readable as jsonb (\u0000, a lone
#: surrogate, a huge number); where one is met, the sound ones are told apart first (schema.sql).
ITEMS: Final = "items"
SOUND_ITEMS: Final = "(SELECT * FROM items WHERE itemstore_is_sound(data) OFFSET 0) AS items"


def page(query: ListQuery, source: str = ITEMS) -> tuple[str, Parameters]:
    """A page ends after ``limit`` items, or after the item with which it passes ``bytes_max``."""
    given = Parameters()
    columns = sort_columns(query.order)
    names = [f"key_{number}" for number, _ in enumerate(columns)]
    direction = "DESC" if query.descending else "ASC"
    by_columns, by_names = (
        ", ".join(f"{each} {direction}" for each in some) for some in (columns, names)
    )
    keys = ", ".join(f"{column} AS {name}" for column, name in zip(columns, names, strict=True))
    text = f"""
SELECT id, entry FROM (
    SELECT *, sum(length(entry)) OVER (ORDER BY {by_names}) - length(entry) AS bytes_before
      FROM (
        SELECT id, {_PACKED} AS entry, {keys} FROM {source}
         WHERE {where(query, given)} AND {beyond(query, given)}
         ORDER BY {by_columns} LIMIT {given.take(query.limit, "bigint")}
      ) AS page
  ) AS sized
 WHERE bytes_before < {given.take(query.bytes_max, "bigint")}
 ORDER BY {by_names}
"""  # noqa: S608 - built from constants and placeholders
    return text, given


def count(query: ListQuery, source: str = ITEMS) -> tuple[str, Parameters]:
    """How many items are in the list, on all pages."""
    given = Parameters()
    return f"SELECT count(*) FROM {source} WHERE {where(query, given)}", given  # noqa: S608 - as above


def usage(prefix: str, ids: Sequence[str] | None = None) -> tuple[str, Parameters]:
    """How many items there are under the prefix, or of the ids, and how many bytes their data."""
    given = Parameters()
    some = begins("id", prefix, given) if ids is None else f"id = ANY({given.take(ids, 'text[]')})"
    text = f"""
SELECT count(*), coalesce(sum(octet_length(data::text)), 0)::bigint FROM items WHERE {some}
"""  # noqa: S608 - built from constants and placeholders
    return text, given


def export(query: ListQuery) -> tuple[str, Parameters]:
    """All items that match, in order of the id, for a cursor."""
    given = Parameters()
    text = f"SELECT id, {_PACKED} FROM {ITEMS} WHERE {where(query, given)} ORDER BY id"  # noqa: S608 - as above
    return text, given


def estimate(query: ListQuery) -> tuple[str, Parameters]:
    """The planner's plan for finding them; its ``Plan Rows`` is how many it expects."""
    given = Parameters()
    text = f"EXPLAIN (FORMAT JSON) SELECT FROM items WHERE {where(query, given)}"
    return text, given


def limits(time_limit_s: float) -> str:
    """For a list's transaction, behind a pooler too: one snapshot, a limit on each statement."""
    return (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; "
        f"SET LOCAL statement_timeout = {round(time_limit_s * 1_000)}"
    )


INDEXES_AMONG: Final = """
SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = 'items'::regclass AND i.indisvalid AND c.relname = ANY(%(names)b::text[])
"""


def create_index(index: Index) -> str:
    """``fillfactor`` and the rest are PostgreSQL's own."""
    if index.kind == "json":
        columns = f"USING gin ({json_column(index.field)} jsonb_path_ops)"
    else:
        columns = f"({', '.join(key_columns(index.field))}, id)"
    return f"CREATE INDEX CONCURRENTLY {_quoted(index.name)} ON items {columns}".replace("%%", "%")


def describe_index(index: Index) -> str:
    """Its comment tells what it was made for."""
    field = sql.Literal(f"{index.field} {index.kind}").as_string(None)
    return f"COMMENT ON INDEX {_quoted(index.name)} IS {field}"


def drop_index(name: str) -> str:
    """Waits for those who use it, and holds up nobody."""
    return f"DROP INDEX CONCURRENTLY {_quoted(name)}"


def _quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string(None)


#: ``building`` is how far a build under way is, in percent; NULL if none is.
INDEXES: Final = """
SELECT c.relname::text, coalesce(obj_description(c.oid, 'pg_class'), ''), i.indisvalid,
       pg_relation_size(c.oid), pg_stat_get_numscans(c.oid),
       (SELECT coalesce(100 * blocks_done / nullif(blocks_total, 0), 0)
          FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid) AS building
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = 'items'::regclass AND starts_with(c.relname::text, %(prefix)s)
 ORDER BY 1
"""

#: The planner knows how a field's values are spread only from the statistics of its index.
ANALYZE: Final = "ANALYZE items"

LEASE_IDS: Final = """
UPDATE id_blocks SET next = next + %(count)s RETURNING next - %(count)s, key
"""

EXISTING: Final = "SELECT id FROM items WHERE id = ANY(%(ids)b::text[])"

FOREIGN_CHANGES: Final = """
SELECT seq, id, version FROM foreign_changes WHERE taken_at IS NULL ORDER BY seq LIMIT 1000
"""

#: For a standby, which forgets none: those not taken over, and those taken over lately.
FOREIGN_CHANGES_SINCE: Final = """
SELECT seq, id, version FROM foreign_changes
 WHERE (taken_at IS NULL OR taken_at >= timestamptz '1970-01-01 00:00:00+00'
                                        + %(since)s::bigint * interval '1 microsecond')
   AND seq > %(after)s
 ORDER BY seq LIMIT 1000
"""

#: The newest state of each id: a live row's entry, or what is known of its deletion.
STATES: Final = """
SELECT asked.id,
       CASE WHEN i.id IS NOT NULL
            THEN int8send(i.version) || timestamptz_send(i.created_at) || json_send(i.data) END,
       greatest(i.version, t.version)
  FROM unnest(%(ids)b::text[]) AS asked (id)
  LEFT JOIN items i ON i.id = asked.id
  LEFT JOIN tombstones t ON t.id = asked.id
"""

FORGET_FOREIGN_CHANGES: Final = """
UPDATE foreign_changes SET taken_at = clock_timestamp()
 WHERE seq = ANY(%(seqs)b::bigint[])
   AND EXISTS (SELECT FROM writer_lease WHERE epoch = %(epoch)s AND holder IS NOT NULL)
"""

LISTEN: Final = "LISTEN itemstore_foreign_changes"

INSTALLED: Final = """
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
       to_regclass('store_meta') IS NOT NULL
"""

INSTALLED_VERSION: Final = "SELECT schema_version FROM store_meta"

IDENTITY: Final = "SELECT store_id, purged_before FROM store_meta"

KEYS_REVISION: Final = "SELECT keys_revision FROM store_meta"

KEYS: Final = """
SELECT id, digest, name, role, prefix,
       (extract(epoch FROM created_at) * 1000000)::bigint,
       (extract(epoch FROM expires_at) * 1000000)::bigint, max_items, max_bytes
  FROM api_keys ORDER BY created_at, id LIMIT %(limit)s
"""

#: Adding a key again changes nothing. No row, if there are as many as there may be.
ADD_KEY: Final = """
INSERT INTO api_keys (id, digest, name, role, prefix, created_at, expires_at, max_items, max_bytes)
SELECT %(id)s, %(digest)s, %(name)s, %(role)s, %(prefix)s,
       timestamptz '1970-01-01 00:00:00+00' + %(created)s::bigint * interval '1 microsecond',
       timestamptz '1970-01-01 00:00:00+00' + %(expires)s::bigint * interval '1 microsecond',
       %(max_items)s, %(max_bytes)s
 WHERE (SELECT count(*) FROM api_keys) < %(most)s
    ON CONFLICT (id) DO UPDATE SET digest = excluded.digest WHERE api_keys.digest = excluded.digest
RETURNING id
"""

REMOVE_KEY: Final = "DELETE FROM api_keys WHERE id = %(id)s RETURNING id"

#: Two instances starting at once must not make the same table twice.
SCHEMA_LOCK: Final = "SELECT pg_advisory_xact_lock(7516193);"

#: The clock must not fall behind anything it has given out, nor behind PostgreSQL's own.
NEWEST_VERSION: Final = f"""
SELECT greatest(
    (SELECT max(version) FROM items),
    (SELECT max(version) FROM tombstones),
    (SELECT max(version) FROM quarantine),
    (SELECT clock FROM writer_lease),
    {_NOW})
"""  # noqa: S608 - built from constants above

#: reltuples is -1 until the first ANALYZE; then a row is taken to fill 300 bytes of the table.
ESTIMATE: Final = """
SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint
            ELSE pg_relation_size(oid) / 300 END,
       pg_table_size(oid)
  FROM pg_class WHERE oid = 'items'::regclass
"""

#: A session whose connection was lost may still be executing our last statement. It is ended
#: and waited for before the statement is sent again, or it could write an item back that was
#: deleted meanwhile: its snapshot would not show the tombstone. Only older ones are: this may
#: itself be a call that was given up, and whose successor is at work.
END_LOST_SESSIONS: Final = """
SELECT coalesce(bool_and(pg_terminate_backend(lost.pid, %(wait_ms)s)), true)
  FROM pg_stat_activity lost, pg_stat_activity own
 WHERE own.pid = pg_backend_pid()
   AND lost.pid <> own.pid AND lost.backend_start <= own.backend_start
   AND lost.application_name = %(name)s AND lost.datname = current_database()
"""

#: pg_stat_activity would show a role without pg_read_all_stats only its own connections.
SERVER: Final = """
SELECT current_setting('server_version'),
       current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('synchronous_commit'), current_setting('max_connections')::int,
       (SELECT sum(numbackends)::int FROM pg_stat_database),
       pg_is_in_recovery(), pg_database_size(current_database()),
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
"""


def source_rows(table: str | None, query: str | None, id_column: str, *, after: bool) -> str:
    """The rows of another's table (``schema.table``) or query as (id, JSON), in order of the id.

    With ``after``, only those beyond the parameter of this name, which takes the column's type.
    """
    rows = _named(*(table or "").split(".")) if query is None else f"({_as_it_is(query)})"
    key = f"source.{_named(id_column)}"
    beyond = f"WHERE {key} > %(after)s" if after else ""
    return f"""
SELECT {key}::text, row_to_json(source)::text FROM {rows} AS source
 {beyond} ORDER BY {key}
"""  # noqa: S608 - names are quoted, and a query is its giver's own


def _named(*names: str) -> str:
    """In a statement with parameters."""
    return _quoted(*names).replace("%", "%%")


def _as_it_is(query: str) -> str:
    """No end, and no parameters in it."""
    return query.strip().rstrip(";").replace("%", "%%")
