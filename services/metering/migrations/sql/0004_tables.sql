-- The feed of usage: what becomes known waits in unsequenced_usage until sequence_usage() gives it its position in the
-- log.

-- A queue: rows come and go, so it is vacuumed by number and not by share.
CREATE TABLE metering.unsequenced_usage (
    unsequenced_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- An event was recorded, or its deferred outcome was decided.
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('recorded', 'decided')),
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);

CREATE TABLE metering.usage_log (
    log_id text COLLATE "C" PRIMARY KEY,
    last_position bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE metering.usage_position (
    log_id text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL,
    PRIMARY KEY (log_id, position)
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON metering.usage_position
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON metering.usage_position
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();


-- Whatever records or decides queues it in its own transaction. By triggers, not in record_usage() and its like: a call
-- of the version before that is under way while this runs would otherwise record usage that no reader ever sees.

-- Once per statement, which records up to a thousand events.
CREATE FUNCTION metering.queue_recorded() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metering.unsequenced_usage (kind, customer_id, workflow_id, ordinal)
    SELECT 'recorded', customer_id, workflow_id, ordinal FROM recorded;
    RETURN NULL;
END
$$;
CREATE TRIGGER queue_recorded AFTER INSERT ON metering.usage_event
    REFERENCING NEW TABLE AS recorded
    FOR EACH STATEMENT EXECUTE FUNCTION metering.queue_recorded();

CREATE FUNCTION metering.queue_decided() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metering.unsequenced_usage (kind, customer_id, workflow_id, ordinal)
    VALUES ('decided', NEW.customer_id, NEW.workflow_id, NEW.ordinal);
    RETURN NULL;
END
$$;
CREATE TRIGGER queue_decided AFTER UPDATE ON metering.deferred_outcome
    FOR EACH ROW WHEN (OLD.state = 'pending' AND NEW.state <> 'pending')
    EXECUTE FUNCTION metering.queue_decided();


-- Only the platform reads the feed.

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['unsequenced_usage', 'usage_log', 'usage_position'] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', table_name);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer'
            ' USING (metering.visible(''platform''))', table_name);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', table_name);
    END LOOP;
END
$$;
