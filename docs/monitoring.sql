-- Monitoring by SQL, for PostgreSQL 15 to 18. docs/monitoring.md says what each statement tells and
-- when to worry. Paste one into psql, or run them all: psql "$DATABASE_URL" -f docs/monitoring.sql
--
-- They only read. Those over pg_stat_activity and pg_stat_replication show other users' sessions to
-- a superuser or a member of pg_monitor: GRANT pg_monitor TO somebody;

-- ----------------------------------------------------------------------------------- the items

-- name: item_count
SELECT count(*) FROM items;

-- name: created_today
SELECT count(*) FROM items WHERE created_at >= CURRENT_DATE;

-- name: created_per_day
SELECT created_at::date AS day, count(*) AS items, pg_size_pretty(sum(pg_column_size(data))) AS data
  FROM items
 WHERE created_at >= CURRENT_DATE - 29
 GROUP BY day
 ORDER BY day;

-- name: updated_last_hour
SELECT count(*) AS items, pg_size_pretty(coalesce(sum(pg_column_size(data)), 0)) AS data
  FROM items
 WHERE version >= (extract(epoch FROM now() - interval '1 hour') * 1000000)::bigint;

-- name: biggest_items
SELECT id, pg_size_pretty(octet_length(data::text)::bigint) AS data, pg_size_pretty(stored::bigint) AS stored, updated_at
  FROM (SELECT *, pg_column_size(data) AS stored FROM items ORDER BY pg_column_size(data) DESC LIMIT 20) AS biggest
 ORDER BY stored DESC;

-- name: tombstones
SELECT count(*) AS tombstones, min(deleted_at) AS oldest, now() - min(deleted_at) AS oldest_age,
       pg_size_pretty(pg_total_relation_size('tombstones')) AS size
  FROM tombstones;

-- name: quarantine
SELECT id, version, at, error, pg_size_pretty(octet_length(data)::bigint) AS data
  FROM quarantine
 ORDER BY at DESC
 LIMIT 100;

-- name: keys
SELECT id, name, role, prefix, created_at, expires_at, expires_at < clock_timestamp() AS expired,
       max_items, pg_size_pretty(max_bytes) AS max_data
  FROM api_keys
 ORDER BY expires_at NULLS LAST, created_at;

-- name: contradictions
SELECT 'live, and deleted by a newer version' AS what, i.id, i.version
  FROM items i JOIN tombstones t ON t.id = i.id AND t.version >= i.version
UNION ALL
SELECT 'updated_at is not the version as a time', i.id, i.version
  FROM items i
 WHERE i.updated_at <> timestamptz 'epoch' + i.version * interval '1 microsecond'
UNION ALL
SELECT 'a version from the future', i.id, i.version
  FROM items i
 WHERE i.version > (extract(epoch FROM now() + interval '1 minute') * 1000000)::bigint
 LIMIT 100;

-- -------------------------------------------------------------------------------- what is written

-- name: last_write
SELECT timestamptz 'epoch' + newest * interval '1 microsecond' AS last_write,
       now() - (timestamptz 'epoch' + newest * interval '1 microsecond') AS age
  FROM (SELECT greatest((SELECT max(version) FROM items), (SELECT max(version) FROM tombstones)) AS newest) AS n;

-- name: wal_and_checkpoints
SELECT pg_size_pretty(w.wal_bytes) AS wal_written, w.stats_reset AS since,
       c.checkpoint_time AS last_checkpoint,
       pg_size_pretty(pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
           c.redo_lsn)) AS wal_since_checkpoint,
       current_setting('max_wal_size') AS max_wal_size,
       current_setting('checkpoint_timeout') AS checkpoint_timeout
  FROM pg_stat_wal w, pg_control_checkpoint() c;

-- name: safety_settings
SELECT name, setting, setting = 'off' AS can_lose_writes
  FROM pg_settings
 WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')
 ORDER BY name;

-- ---------------------------------------------------------------------------------------- space

-- name: database_size
SELECT pg_size_pretty(pg_database_size(current_database())) AS size, pg_database_size(current_database()) AS bytes;

-- name: table_sizes
SELECT c.relname AS table, c.reltuples::bigint AS rows_estimated,
       pg_size_pretty(pg_table_size(c.oid)) AS data, pg_size_pretty(pg_indexes_size(c.oid)) AS indexes,
       pg_size_pretty(pg_total_relation_size(c.oid)) AS total
  FROM pg_class c
 WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'items'::regclass)
 ORDER BY pg_total_relation_size(c.oid) DESC;

-- name: index_usage
SELECT relname AS table, indexrelname AS index, pg_size_pretty(pg_relation_size(indexrelid)) AS size,
       idx_scan AS scans, idx_tup_read AS rows_read
  FROM pg_stat_user_indexes
 WHERE schemaname = (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'items'::regclass)
 ORDER BY pg_relation_size(indexrelid) DESC;

-- name: dead_rows
SELECT relname AS table, n_live_tup AS live, n_dead_tup AS dead,
       round(100.0 * n_dead_tup / nullif(n_live_tup + n_dead_tup, 0), 1) AS dead_percent,
       last_autovacuum, last_vacuum, last_autoanalyze, autovacuum_count
  FROM pg_stat_user_tables
 WHERE relid IN ('items'::regclass, 'tombstones'::regclass, 'audit'::regclass, 'idempotency'::regclass)
 ORDER BY relname;

-- name: transaction_ids
SELECT datname AS database, age(datfrozenxid) AS transactions_old,
       round(100.0 * age(datfrozenxid) / 2000000000, 1) AS percent_of_limit
  FROM pg_database
 ORDER BY age(datfrozenxid) DESC;

-- -------------------------------------------------------------------------- sessions and queries

-- name: connections
SELECT coalesce(nullif(application_name, ''), '(no name)') AS application, state, count(*) AS connections,
       sum(count(*)) OVER () AS all_connections, current_setting('max_connections')::int AS max_connections
  FROM pg_stat_activity
 WHERE backend_type = 'client backend'
 GROUP BY application, state
 ORDER BY connections DESC, application;

-- name: instances
SELECT right(application_name, 8) AS instance, min(backend_start) AS since, count(*) AS connections
  FROM pg_stat_activity
 WHERE application_name ~ '^itemstore [a-z]+ [0-9a-f]{8}$' AND datname = current_database()
 GROUP BY instance
 ORDER BY since;

-- name: writer_lease
SELECT epoch, holder, clock_timestamp() - heartbeat AS last_heard_of,
       expires_at < clock_timestamp() AS expired, wanted_by, wanted_at
  FROM writer_lease;

-- name: slow_queries
SELECT pid, now() - query_start AS running, state, wait_event_type, wait_event, application_name,
       left(regexp_replace(query, '\s+', ' ', 'g'), 120) AS query
  FROM pg_stat_activity
 WHERE state = 'active' AND now() - query_start > interval '1 second' AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
 ORDER BY query_start;

-- name: old_transactions
SELECT pid, now() - xact_start AS open_for, state, application_name,
       left(regexp_replace(query, '\s+', ' ', 'g'), 120) AS last_query
  FROM pg_stat_activity
 WHERE xact_start IS NOT NULL AND now() - xact_start > interval '1 minute' AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
 ORDER BY xact_start;

-- name: lock_waits
SELECT waiting.pid, now() - waiting.query_start AS waits_for, waiting.application_name AS application,
       left(regexp_replace(waiting.query, '\s+', ' ', 'g'), 80) AS query,
       holder.pid AS held_by_pid, holder.application_name AS held_by, holder.state AS holder_state,
       left(regexp_replace(holder.query, '\s+', ' ', 'g'), 80) AS holder_query
  FROM pg_stat_activity waiting
 CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS blocking (pid)
  LEFT JOIN pg_stat_activity holder ON holder.pid = blocking.pid
 ORDER BY waits_for DESC;

-- A function of this session, because a plain statement over pg_stat_statements fails where that
-- extension is not installed or not loaded. It returns no rows there.
-- name: slow_statements
CREATE OR REPLACE FUNCTION pg_temp.slow_statements()
    RETURNS TABLE (calls bigint, total_s numeric, mean_ms numeric, rows bigint, query text)
    LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT s.calls, round((s.total_exec_time / 1000)::numeric, 1), round(s.mean_exec_time::numeric, 2),
                s.rows, left(regexp_replace(s.query, ''\s+'', '' '', ''g''), 120)
           FROM pg_stat_statements s
           JOIN pg_database d ON d.oid = s.dbid AND d.datname = current_database()
          ORDER BY s.total_exec_time DESC LIMIT 20';
EXCEPTION WHEN undefined_table OR object_not_in_prerequisite_state THEN
    RETURN;
END $$;
SELECT * FROM pg_temp.slow_statements();

-- --------------------------------------------------------------------------------------- health

-- name: cache_hit_ratio
SELECT relname AS table,
       round(100.0 * heap_blks_hit / nullif(heap_blks_hit + heap_blks_read, 0), 1) AS table_hit_percent,
       round(100.0 * idx_blks_hit / nullif(idx_blks_hit + idx_blks_read, 0), 1) AS index_hit_percent,
       round(100.0 * toast_blks_hit / nullif(toast_blks_hit + toast_blks_read, 0), 1) AS big_values_hit_percent
  FROM pg_statio_user_tables
 WHERE relid IN ('items'::regclass, 'tombstones'::regclass)
 ORDER BY relname;

-- name: database_counters
SELECT xact_commit AS commits, xact_rollback AS rollbacks, deadlocks, temp_files,
       pg_size_pretty(temp_bytes) AS temp, stats_reset AS since
  FROM pg_stat_database
 WHERE datname = current_database();

-- name: replication_lag
SELECT application_name AS standby, client_addr, state, sync_state, replay_lag,
       pg_size_pretty(pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
           replay_lsn)) AS behind
  FROM pg_stat_replication
 ORDER BY behind DESC;

-- name: replication_slots
SELECT slot_name, slot_type, active,
       pg_size_pretty(pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
           restart_lsn)) AS wal_kept
  FROM pg_replication_slots
 ORDER BY slot_name;
