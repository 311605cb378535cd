-- itemstore's tables, for PostgreSQL 15 to 18. Idempotent: run it as often as you like.
--
-- The rule of this file: an item's version only grows. Every statement of the store that writes an
-- item is guarded by "version <", so applying the same batch twice changes nothing the second time.
-- One integer clock gives the versions of all items: the microseconds since 1970 when the write was
-- accepted, or one more than the last one given, whichever is larger. The store's are even; a row
-- changed by hand gets an odd one, so that the two are never the same.

-- The checks keep other hands to what the store can answer: core/item.py has the same rules.
CREATE TABLE IF NOT EXISTS items (
    id         text COLLATE "C" PRIMARY KEY,
    data       json        NOT NULL,
    version    bigint      NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT items_id CHECK (octet_length(id) BETWEEN 1 AND 512 AND id NOT IN ('.', '..')
                               AND id !~ '[\u0001-\u001f\u007f-\u009f]'),
    CONSTRAINT items_created_at CHECK (created_at >= '0001-01-01 00:00:00+00'
                                       AND created_at < '10000-01-01 00:00:00+00')
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS items_created_at_id ON items (created_at, id);
CREATE INDEX IF NOT EXISTS items_version ON items (version);

COMMENT ON TABLE  items            IS 'The live items, and only those: SELECT count(*) FROM items is their number.';
COMMENT ON COLUMN items.id         IS 'Chosen by the client or generated; 1 to 512 bytes of UTF-8, compared byte by byte.';
COMMENT ON COLUMN items.data       IS 'The JSON object, byte for byte as the store answers it: json, not jsonb, which would reorder it.';
COMMENT ON COLUMN items.version    IS 'From the store''s one clock; the ETag, and the guard of every write.';
COMMENT ON COLUMN items.created_at IS 'When the item came into being; a re-created item gets a new one.';
COMMENT ON COLUMN items.updated_at IS 'The version as a time.';

-- Other hands can store JSON that PostgreSQL can keep but not read: \u0000, a lone surrogate, a number
-- beyond numeric. One such item must not make a whole list fail: lists that met one go by this.
CREATE OR REPLACE FUNCTION itemstore_is_sound(data json) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE AS $$
BEGIN
    RETURN data::jsonb IS NOT NULL;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN false;
END $$;

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

CREATE TABLE IF NOT EXISTS store_meta (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema_version integer NOT NULL,
    store_id       uuid    NOT NULL DEFAULT gen_random_uuid()
);

ALTER TABLE store_meta ADD COLUMN IF NOT EXISTS purged_before bigint NOT NULL DEFAULT 0;
ALTER TABLE store_meta ADD COLUMN IF NOT EXISTS audit boolean NOT NULL DEFAULT false;
ALTER TABLE store_meta ADD COLUMN IF NOT EXISTS audit_us bigint NOT NULL DEFAULT 7776000000000;
ALTER TABLE store_meta ADD COLUMN IF NOT EXISTS keys_revision bigint NOT NULL DEFAULT 0;

COMMENT ON TABLE  store_meta                IS 'One row about this store.';
COMMENT ON COLUMN store_meta.one            IS 'Keeps the table at one row.';
COMMENT ON COLUMN store_meta.schema_version IS 'The version of this file that was applied last.';
COMMENT ON COLUMN store_meta.store_id       IS 'Tells one store''s database from another''s.';
COMMENT ON COLUMN store_meta.purged_before  IS 'Deletes older than this version may be forgotten: an older write can no longer be judged.';
COMMENT ON COLUMN store_meta.audit          IS 'Whether changes by other hands are audited: the store''s setting AUDIT.';
COMMENT ON COLUMN store_meta.audit_us       IS 'How old an audit row must be before it can be deleted, in microseconds: AUDIT_RETENTION.';
COMMENT ON COLUMN store_meta.keys_revision  IS 'Grows with every change of api_keys: by it each instance sees that it must read them again.';

-- Who changed what: a row for every accepted write, committed with it, also for those that a newer
-- write replaced before they were written; where the setting AUDIT is on.
CREATE TABLE IF NOT EXISTS audit (
    version    bigint NOT NULL,
    id         text COLLATE "C" NOT NULL,
    at         timestamptz NOT NULL,
    what       text   NOT NULL,
    caller     text   NOT NULL,
    request_id text,
    address    text,
    PRIMARY KEY (version, id)
);

CREATE INDEX IF NOT EXISTS audit_id_version ON audit (id, version);
CREATE INDEX IF NOT EXISTS audit_caller_version ON audit (caller, version);

COMMENT ON TABLE  audit            IS 'Who changed what. Rows are only added; those older than AUDIT_RETENTION are purged.';
COMMENT ON COLUMN audit.version    IS 'The version that the change gave the item, or that its delete has.';
COMMENT ON COLUMN audit.id         IS 'The item; the empty string for a TRUNCATE, which means all items.';
COMMENT ON COLUMN audit.at         IS 'The version as a time.';
COMMENT ON COLUMN audit.what       IS 'create, put, patch, delete, import or repeat (out of quarantine); insert, update, delete or truncate by another hand.';
COMMENT ON COLUMN audit.caller     IS 'Who asked for it; of another hand sql: and the role.';
COMMENT ON COLUMN audit.request_id IS 'The id of the request; of another hand its application_name.';
COMMENT ON COLUMN audit.address    IS 'Where it came from, if that is known: an IPv4 address, or an IPv6 network of 64 bits.';

CREATE OR REPLACE FUNCTION itemstore_audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM gone, store_meta
                        WHERE version >= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - audit_us) THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION 'The audit is append-only: nobody changes it, and only rows older than AUDIT_RETENTION can be deleted.'
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE OR REPLACE TRIGGER itemstore_audit_delete AFTER DELETE ON audit
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION itemstore_audit_is_kept();
CREATE OR REPLACE TRIGGER itemstore_audit_update BEFORE UPDATE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION itemstore_audit_is_kept();

-- Requests with an Idempotency-Key: a row for each operation that was carried out, committed with it.
CREATE TABLE IF NOT EXISTS idempotency (
    caller     text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    position   integer NOT NULL,
    payload    text    NOT NULL,
    what       text    NOT NULL,
    id         text COLLATE "C" NOT NULL,
    version    bigint  NOT NULL,
    created_us bigint  NOT NULL,
    deleted    boolean NOT NULL,
    data       text,
    PRIMARY KEY (caller, key, position)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX IF NOT EXISTS idempotency_version ON idempotency (version);

COMMENT ON TABLE  idempotency            IS 'What requests with an Idempotency-Key came to, so that a repetition is answered and not carried out.';
COMMENT ON COLUMN idempotency.caller     IS 'Whose key it is.';
COMMENT ON COLUMN idempotency.key        IS 'The key.';
COMMENT ON COLUMN idempotency.position   IS 'Of the operation in a batch, from 0 on.';
COMMENT ON COLUMN idempotency.payload    IS 'A digest of the request: another one with this key is refused.';
COMMENT ON COLUMN idempotency.what       IS 'The operation.';
COMMENT ON COLUMN idempotency.id         IS 'The item it changed.';
COMMENT ON COLUMN idempotency.version    IS 'The version it gave the item; purged after IDEMPOTENCY_RETENTION.';
COMMENT ON COLUMN idempotency.created_us IS 'The item''s created_at, in microseconds since 1970.';
COMMENT ON COLUMN idempotency.deleted    IS 'Whether it deleted the item.';
COMMENT ON COLUMN idempotency.data       IS 'What the item became, where the request does not say so itself: a patch.';

-- Rows changed by another hand than the store's ----------------------------------------------------
--
-- You may INSERT, UPDATE, DELETE and TRUNCATE items in psql. Triggers give such a change a version and
-- note it here, and the running store takes it over within a second. The store's own statements are
-- told apart by what they always do: an UPDATE changes the version, an INSERT brings one, a DELETE
-- comes with a tombstone.

CREATE TABLE IF NOT EXISTS foreign_changes (
    seq     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id      text COLLATE "C" NOT NULL,
    version bigint NOT NULL
);

ALTER TABLE foreign_changes ADD COLUMN IF NOT EXISTS taken_at timestamptz;
CREATE INDEX IF NOT EXISTS foreign_changes_new ON foreign_changes (seq) WHERE taken_at IS NULL;
CREATE INDEX IF NOT EXISTS foreign_changes_taken_at ON foreign_changes (taken_at);

COMMENT ON TABLE  foreign_changes          IS 'Items changed by another hand than the holder''s, kept for an hour after it took them over.';
COMMENT ON COLUMN foreign_changes.seq      IS 'The order in which they are taken over.';
COMMENT ON COLUMN foreign_changes.id       IS 'The item; the empty string for a TRUNCATE, which means all items older than the version.';
COMMENT ON COLUMN foreign_changes.version  IS 'The version the change was given.';
COMMENT ON COLUMN foreign_changes.taken_at IS 'When the holder took it over; standbys go by it.';

CREATE OR REPLACE FUNCTION itemstore_version(previous bigint) RETURNS bigint
    LANGUAGE sql VOLATILE AS $$
    SELECT greatest(previous + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) | 1
$$;

-- What the audit says of such a change, if it is on.
CREATE OR REPLACE FUNCTION itemstore_foreign_audit(version bigint, id text, what text) RETURNS SETOF audit
    LANGUAGE sql STABLE AS $$
    SELECT $1, $2, timestamptz 'epoch' + $1 * interval '1 microsecond', $3, 'sql:' || session_user,
           NULLIF(current_setting('application_name'), ''), host(inet_client_addr())
      FROM store_meta WHERE audit
$$;

CREATE OR REPLACE FUNCTION itemstore_foreign_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version    := itemstore_version(greatest(
        CASE TG_OP WHEN 'UPDATE' THEN OLD.version ELSE 0 END,
        (SELECT version FROM tombstones WHERE id = NEW.id)));
    NEW.updated_at := timestamptz 'epoch' + NEW.version * interval '1 microsecond';
    NEW.created_at := coalesce(NEW.created_at, NEW.updated_at);
    IF TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN
        INSERT INTO tombstones (id, version, deleted_at) VALUES (OLD.id, NEW.version, NEW.updated_at)
            ON CONFLICT (id) DO UPDATE SET version = excluded.version, deleted_at = excluded.deleted_at;
        INSERT INTO foreign_changes (id, version) VALUES (OLD.id, NEW.version);
        INSERT INTO audit SELECT * FROM itemstore_foreign_audit(NEW.version, OLD.id, 'delete');
    END IF;
    DELETE FROM tombstones WHERE id = NEW.id;
    INSERT INTO foreign_changes (id, version) VALUES (NEW.id, NEW.version);
    INSERT INTO audit SELECT * FROM itemstore_foreign_audit(NEW.version, NEW.id, lower(TG_OP));
    NOTIFY itemstore_foreign_changes;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION itemstore_foreign_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH foreign_rows AS (
        SELECT id, itemstore_version(version) AS version FROM gone
         WHERE NOT EXISTS (SELECT FROM tombstones t WHERE t.id = gone.id AND t.version > gone.version)
    ), buried AS (
        INSERT INTO tombstones (id, version, deleted_at)
        SELECT id, version, timestamptz 'epoch' + version * interval '1 microsecond' FROM foreign_rows
            ON CONFLICT (id) DO UPDATE SET version = excluded.version, deleted_at = excluded.deleted_at
    ), audited AS (
        INSERT INTO audit SELECT row.* FROM foreign_rows f, itemstore_foreign_audit(f.version, f.id, 'delete') AS row
    )
    INSERT INTO foreign_changes (id, version) SELECT id, version FROM foreign_rows;
    IF FOUND THEN
        NOTIFY itemstore_foreign_changes;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION itemstore_foreign_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    end_version bigint := (SELECT itemstore_version(coalesce(max(version), 0)) FROM items);
BEGIN
    INSERT INTO foreign_changes (id, version) VALUES ('', end_version);
    INSERT INTO audit SELECT * FROM itemstore_foreign_audit(end_version, '', 'truncate');
    NOTIFY itemstore_foreign_changes;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER itemstore_foreign_insert BEFORE INSERT ON items
    FOR EACH ROW WHEN (NEW.version IS NULL) EXECUTE FUNCTION itemstore_foreign_row();
CREATE OR REPLACE TRIGGER itemstore_foreign_update BEFORE UPDATE ON items
    FOR EACH ROW WHEN (NEW.version = OLD.version) EXECUTE FUNCTION itemstore_foreign_row();
CREATE OR REPLACE TRIGGER itemstore_foreign_delete AFTER DELETE ON items
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION itemstore_foreign_delete();
CREATE OR REPLACE TRIGGER itemstore_foreign_truncate BEFORE TRUNCATE ON items
    FOR EACH STATEMENT EXECUTE FUNCTION itemstore_foreign_truncate();

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

-- The writer lease: of all instances that run over this database, one may answer from its cache and
-- accept writes. Every batch checks this row in its own statement. Times are PostgreSQL's own.
CREATE TABLE IF NOT EXISTS writer_lease (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch      bigint      NOT NULL DEFAULT 0,
    holder     text,
    process    text,
    heartbeat  timestamptz NOT NULL DEFAULT '-infinity',
    expires_at timestamptz NOT NULL DEFAULT '-infinity',
    clock      bigint      NOT NULL DEFAULT 0,
    high_water bigint      NOT NULL DEFAULT 0,
    settled    bigint      NOT NULL DEFAULT 0,
    wanted_by  text,
    wanted_at  timestamptz
) WITH (fillfactor = 50);

INSERT INTO writer_lease DEFAULT VALUES ON CONFLICT DO NOTHING;

COMMENT ON TABLE  writer_lease            IS 'One row: which instance may write.';
COMMENT ON COLUMN writer_lease.one        IS 'Keeps the table at one row.';
COMMENT ON COLUMN writer_lease.epoch      IS 'Grows with every holder; at least the time in seconds, so that it is new also after a failover that lost this row''s last change.';
COMMENT ON COLUMN writer_lease.holder     IS 'The instance that holds it; NULL if none does.';
COMMENT ON COLUMN writer_lease.process    IS 'Machine and process of the holder: a successor on the same machine sees that it is gone.';
COMMENT ON COLUMN writer_lease.heartbeat  IS 'When the holder was last heard of.';
COMMENT ON COLUMN writer_lease.expires_at IS 'From then on another instance may take the lease.';
COMMENT ON COLUMN writer_lease.clock      IS 'The holder''s version clock at its heartbeat: its successor''s versions begin beyond.';
COMMENT ON COLUMN writer_lease.high_water IS 'Grows with every batch: if it ever falls, PostgreSQL has lost its last commits.';
COMMENT ON COLUMN writer_lease.settled    IS 'Everything the holder accepted up to this version is committed.';
COMMENT ON COLUMN writer_lease.wanted_by  IS 'The instance that asks for it.';
COMMENT ON COLUMN writer_lease.wanted_at  IS 'When it last asked.';

-- Who may call. Of a key only a hash is here; whoever reads this table cannot use it to call. A row that
-- is deleted, in psql too, is a key that is revoked.
CREATE TABLE IF NOT EXISTS api_keys (
    id         text COLLATE "C" PRIMARY KEY,
    digest     bytea       NOT NULL,
    name       text        NOT NULL,
    role       text        NOT NULL,
    prefix     text COLLATE "C" NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    max_items  bigint,
    max_bytes  bigint,
    CONSTRAINT api_keys_id     CHECK (id ~ '^[0-9A-Za-z]{8}$'),
    CONSTRAINT api_keys_digest CHECK (octet_length(digest) = 32),
    CONSTRAINT api_keys_name   CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT api_keys_role   CHECK (role IN ('read', 'write') OR (role = 'admin' AND prefix = '')),
    CONSTRAINT api_keys_prefix CHECK (octet_length(prefix) <= 504),
    CONSTRAINT api_keys_items  CHECK (max_items BETWEEN 1 AND 9007199254740991),
    CONSTRAINT api_keys_bytes  CHECK (max_bytes BETWEEN 1 AND 9007199254740991)
);

COMMENT ON TABLE  api_keys            IS 'The keys by which callers show who they are; deleting a row revokes its key.';
COMMENT ON COLUMN api_keys.id         IS 'Stands in the key itself, and in logs.';
COMMENT ON COLUMN api_keys.digest     IS 'SHA-256 of the key, which is kept nowhere.';
COMMENT ON COLUMN api_keys.name       IS 'Whose it is, for people.';
COMMENT ON COLUMN api_keys.role       IS 'read, write or admin.';
COMMENT ON COLUMN api_keys.prefix     IS 'What the ids begin with that it is confined to; empty for none.';
COMMENT ON COLUMN api_keys.created_at IS 'When it was made.';
COMMENT ON COLUMN api_keys.expires_at IS 'From then on it lets nobody in; NULL for never.';
COMMENT ON COLUMN api_keys.max_items  IS 'Its quota: with how many items under its prefix it adds no more; NULL for none.';
COMMENT ON COLUMN api_keys.max_bytes  IS 'The same of the bytes of their data.';

CREATE OR REPLACE FUNCTION itemstore_keys_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE store_meta SET keys_revision = keys_revision + 1;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER itemstore_keys_changed
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION itemstore_keys_changed();

INSERT INTO store_meta (schema_version) VALUES (4)
    ON CONFLICT (one) DO UPDATE SET schema_version = greatest(store_meta.schema_version, excluded.schema_version);
