-- itemstore's tables, for PostgreSQL 15 to 18. Idempotent: run it as often as you like.
--
-- The rule of this file: an item's version only grows. Every statement of the store that writes an
-- item is guarded by "version <", so applying the same batch twice changes nothing the second time.
-- One integer clock gives the versions of all items: the microseconds since 1970 when the write was
-- accepted, or one more than the last one given, whichever is larger.

CREATE TABLE IF NOT EXISTS items (
    id         text COLLATE "C" PRIMARY KEY,
    data       json        NOT NULL,
    version    bigint      NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS items_created_at_id ON items (created_at, id);
CREATE INDEX IF NOT EXISTS items_version ON items (version);

COMMENT ON TABLE  items            IS 'The live items, and only those: SELECT count(*) FROM items is their number.';
COMMENT ON COLUMN items.id         IS 'Chosen by the client or generated; 1 to 512 bytes of UTF-8, compared byte by byte.';
COMMENT ON COLUMN items.data       IS 'The JSON object, byte for byte as the store answers it: json, not jsonb, which would reorder it.';
COMMENT ON COLUMN items.version    IS 'From the store''s one clock; the ETag, and the guard of every write.';
COMMENT ON COLUMN items.created_at IS 'When the item came into being; a re-created item gets a new one.';
COMMENT ON COLUMN items.updated_at IS 'The version as a time.';

CREATE TABLE IF NOT EXISTS tombstones (
    id         text COLLATE "C" PRIMARY KEY,
    version    bigint      NOT NULL,
    deleted_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS tombstones_version ON tombstones (version);

COMMENT ON TABLE  tombstones            IS 'Items that were deleted. Without it a late repetition of an older write would bring one back.';
COMMENT ON COLUMN tombstones.id         IS 'The id the item had.';
COMMENT ON COLUMN tombstones.version    IS 'The version of the delete.';
COMMENT ON COLUMN tombstones.deleted_at IS 'The version as a time; purged after the store''s TOMBSTONE_RETENTION.';

-- No key on id: what is parked here may be the very thing an index refuses.
CREATE TABLE IF NOT EXISTS quarantine (
    id      text COLLATE "C" NOT NULL,
    version bigint      NOT NULL,
    data    text,
    created_at timestamptz NOT NULL,
    error   text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE  quarantine            IS 'Accepted writes that PostgreSQL refused. The store serves them from memory; nothing here is dropped.';
COMMENT ON COLUMN quarantine.id         IS 'The item''s id.';
COMMENT ON COLUMN quarantine.version    IS 'The version that was refused.';
COMMENT ON COLUMN quarantine.data       IS 'The JSON text that was refused; NULL if it was a delete.';
COMMENT ON COLUMN quarantine.created_at IS 'The item''s created_at.';
COMMENT ON COLUMN quarantine.error      IS 'What PostgreSQL said.';
COMMENT ON COLUMN quarantine.at         IS 'When it was put here.';

CREATE TABLE IF NOT EXISTS id_blocks (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    next bigint  NOT NULL DEFAULT 0,
    key  bigint  NOT NULL DEFAULT (random() * 9007199254740991)::bigint
);

INSERT INTO id_blocks DEFAULT VALUES ON CONFLICT DO NOTHING;

COMMENT ON TABLE  id_blocks      IS 'One row: the counter behind the generated ids, leased in blocks.';
COMMENT ON COLUMN id_blocks.one  IS 'Keeps the table at one row.';
COMMENT ON COLUMN id_blocks.next IS 'The first number of the next block.';
COMMENT ON COLUMN id_blocks.key  IS 'Scrambles numbers into ids. Never change it: ids could repeat.';

CREATE TABLE IF NOT EXISTS store_meta (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema_version integer NOT NULL,
    store_id       uuid    NOT NULL DEFAULT gen_random_uuid()
);

COMMENT ON TABLE  store_meta                IS 'One row about this store.';
COMMENT ON COLUMN store_meta.one            IS 'Keeps the table at one row.';
COMMENT ON COLUMN store_meta.schema_version IS 'The version of this file that was applied last.';
COMMENT ON COLUMN store_meta.store_id       IS 'Tells one store''s database from another''s.';

INSERT INTO store_meta (schema_version) VALUES (1)
    ON CONFLICT (one) DO UPDATE SET schema_version = greatest(store_meta.schema_version, excluded.schema_version);
