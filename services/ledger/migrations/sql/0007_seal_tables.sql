-- The seal: a Merkle log over the positions of the journal. docs/seal.md says what it proves, and how.

-- A log belongs to the cluster that gives its positions: its system identifier and timeline. A database that wakes up in
-- another one was restored, or promoted, and what it had last said may be lost: it begins a new log. Without one, it is
-- the cluster that gives the next positions.
ALTER TABLE ledger.journal_log ADD COLUMN cluster text COLLATE "C";
-- The log that this one continues after a restore: all its transactions are in this one, in the same order.
ALTER TABLE ledger.journal_log ADD COLUMN previous_log_id text REFERENCES ledger.journal_log (log_id);
-- A log that was signed once, but that the database had never heard of when this one began: a backup from before it was
-- restored.
ALTER TABLE ledger.journal_log ADD COLUMN lost_log_id text COLLATE "C";
-- What made this log begin: '' for the first, 'cluster' or 'anchor' for one after a restore.
ALTER TABLE ledger.journal_log ADD COLUMN begin_reason text NOT NULL DEFAULT '';
UPDATE ledger.journal_log
SET cluster = (SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
               FROM pg_control_system());

-- Where a transaction is: proofs are asked for by transaction. Ids grow with time, so inserts stay at one end.
CREATE INDEX journal_position_transaction ON ledger.journal_position (transaction_id, log_id);

-- How far a log is hashed and sealed. Apart from journal_log, whose row the sequencer locks: they never wait for each
-- other.
CREATE TABLE ledger.seal_state (
    log_id text PRIMARY KEY REFERENCES ledger.journal_log (log_id),
    -- Leaves stand up to this position.
    hashed_position bigint NOT NULL DEFAULT 0,
    -- The size of the newest checkpoint.
    sealed_size bigint NOT NULL DEFAULT 0,
    CHECK (0 <= sealed_size AND sealed_size <= hashed_position)
);
INSERT INTO ledger.seal_state (log_id) SELECT log_id FROM ledger.journal_log;

-- Leaf hashes, 32 bytes each, of consecutive positions. No block reaches over a multiple of 256 positions.
CREATE TABLE ledger.seal_block (
    log_id text NOT NULL,
    first_position bigint NOT NULL CHECK (first_position > 0),
    leaf_hashes bytea NOT NULL CHECK (octet_length(leaf_hashes) % 32 = 0 AND octet_length(leaf_hashes) BETWEEN 32 AND 8192),
    PRIMARY KEY (log_id, first_position),
    CHECK ((first_position - 1) / 256 = (first_position + octet_length(leaf_hashes) / 32 - 2) / 256)
);

-- The salts of a block's commitments, one element for each of its transactions: 16 bytes each for the actor, the reason,
-- the evidence and the entries in their order. Zeros stand for one that was never there, or was erased: this table
-- alone of them may change, and only by erase_salt.
CREATE TABLE ledger.seal_salt (
    log_id text NOT NULL,
    first_position bigint NOT NULL,
    salts bytea[] NOT NULL,
    PRIMARY KEY (log_id, first_position)
);
-- Random bytes do not compress: do not try.
ALTER TABLE ledger.seal_block ALTER COLUMN leaf_hashes SET STORAGE EXTERNAL;
ALTER TABLE ledger.seal_salt ALTER COLUMN salts SET STORAGE EXTERNAL;

-- What is left of a commitment whose salt was erased: enough for the proofs of everything beside it.
CREATE TABLE ledger.erased_salt (
    log_id text NOT NULL,
    position bigint NOT NULL,
    -- The number of an entry, or 0 for the actor, -1 for the reason, -2 for the evidence.
    item smallint NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    commitment bytea NOT NULL CHECK (octet_length(commitment) = 32),
    erase_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, position, item)
);
CREATE INDEX erased_salt_transaction ON ledger.erased_salt (transaction_id);

-- Inner nodes of the tree: the root of every 256 leaves (level 8), of every 256 of those (level 16), and so on. What lies
-- between is computed from at most 256 of them.
CREATE TABLE ledger.seal_node (
    log_id text NOT NULL,
    level smallint NOT NULL CHECK (level > 0 AND level % 8 = 0),
    node_index bigint NOT NULL CHECK (node_index >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (log_id, level, node_index)
);

-- Everything that was ever signed, as it was signed.
CREATE TABLE ledger.seal_checkpoint (
    log_id text NOT NULL REFERENCES ledger.journal_log (log_id),
    size bigint NOT NULL CHECK (size > 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    -- The first line of the note: which log this is, for those who look from outside.
    origin text NOT NULL,
    note text NOT NULL,
    sign_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, size)
);

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['seal_block', 'erased_salt', 'seal_node', 'seal_checkpoint'] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.%I'
            ' FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite()', table_name);
        EXECUTE format(
            'CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.%I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite()', table_name);
    END LOOP;
    -- Hashes and signatures say nothing about anybody, but salts do: all of it is the platform's, who answers for
    -- others what is theirs.
    FOREACH table_name IN ARRAY ARRAY[
        'seal_state', 'seal_block', 'seal_salt', 'erased_salt', 'seal_node', 'seal_checkpoint'
    ] LOOP
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', table_name);
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer'
            ' USING (ledger.visible(''platform''))', table_name);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', table_name);
    END LOOP;
END
$$;
