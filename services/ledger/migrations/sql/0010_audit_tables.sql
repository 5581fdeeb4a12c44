-- What audits found, for ever, and how far the one is that runs.

CREATE TABLE ledger.audit_run (
    audit_id text COLLATE "C" PRIMARY KEY,
    -- Of the snapshot: the log, its last position, and the moment.
    log_id text NOT NULL,
    position bigint NOT NULL CHECK (position >= 0),
    snapshot_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL CHECK (end_time >= snapshot_time),
    -- How many of the checks found differences.
    failed_checks integer NOT NULL CHECK (failed_checks >= 0),
    -- An array of objects, in the order in which they ran: name, promise, difference_count, differences, duration_us.
    checks jsonb NOT NULL CHECK (jsonb_typeof(checks) = 'array'),
    actor_api_key_id text NOT NULL
);
-- The newest first. Ids are made before the snapshot, and by different machines.
CREATE INDEX audit_run_time ON ledger.audit_run (snapshot_time DESC, audit_id DESC);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.audit_run
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.audit_run
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite();

-- One row, of the audit that began last. Whether that still runs is told by the lock that it holds, not by this row:
-- one that is killed lets go of its lock, and cannot tidy up.
CREATE TABLE ledger.audit_progress (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    audit_id text COLLATE "C" NOT NULL,
    log_id text NOT NULL,
    position bigint NOT NULL,
    snapshot_time timestamptz NOT NULL,
    check_count integer NOT NULL,
    done_check_count integer NOT NULL,
    failed_check_count integer NOT NULL,
    check_name text NOT NULL
) WITH (fillfactor = 50);

-- An audit sees what is everybody's, so only the platform reads or writes of one.
DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['audit_run', 'audit_progress'] LOOP
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', table_name);
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer'
            ' USING (ledger.visible(''platform''))', table_name);
        EXECUTE format(
            'CREATE POLICY tenant_insert ON ledger.%I FOR INSERT TO ledger_writer'
            ' WITH CHECK (ledger.visible(''platform''))', table_name);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', table_name);
        EXECUTE format('GRANT INSERT ON ledger.%I TO ledger_writer', table_name);
    END LOOP;
END
$$;
CREATE POLICY tenant_update ON ledger.audit_progress FOR UPDATE TO ledger_writer
    USING (ledger.visible('platform')) WITH CHECK (ledger.visible('platform'));
GRANT UPDATE ON ledger.audit_progress TO ledger_writer;
