-- Closing billing periods.
--
-- All amounts are micros of the period's currency.

-- Every billing period in which something is counted. A trigger makes the row with the first counter: nobody has to
-- search all counters for periods that are over.
CREATE TABLE metering.counted_period (
    customer_id text COLLATE "C" NOT NULL,
    -- The organization that earns.
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    period_start timestamptz NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- When to see whether there is something to close; NULL once the window for that is over.
    next_check_time timestamptz,
    -- How often it was closed, and what that came to: changed under the row's lock.
    closing_count integer NOT NULL DEFAULT 0,
    closed_micros bigint NOT NULL DEFAULT 0 CHECK (closed_micros >= 0),
    PRIMARY KEY (customer_id, organization_id, currency_code, period_start)
);
CREATE INDEX counted_period_next_check ON metering.counted_period (next_check_time)
    WHERE next_check_time IS NOT NULL;
CREATE TRIGGER kept BEFORE DELETE ON metering.counted_period
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.counted_period
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- The closings of periods. What is to be charged is posted to the ledger afterwards, as often as it takes: the run and
-- the ordinal make the same charge of it each time.
CREATE TABLE metering.period_closing (
    period_closing_id text COLLATE "C" PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    period_start timestamptz NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    price_version_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    -- The period's last instant.
    occur_time timestamptz NOT NULL,
    -- What credit pays; negative for what becomes credit. Credit is what these add up to, the other way round.
    from_credit_micros bigint NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    -- The tallystick.metering.v1.PeriodClosing, serialized.
    content bytea NOT NULL,
    create_time timestamptz NOT NULL,
    -- When it may be posted (again): NULL once the ledger has it, or if nothing is to be charged; infinity once the
    -- ledger refused it for good.
    next_attempt_time timestamptz,
    attempt_count integer NOT NULL DEFAULT 0,
    -- Why the last attempt failed.
    last_error text NOT NULL DEFAULT '',
    FOREIGN KEY (customer_id, organization_id, currency_code, period_start) REFERENCES metering.counted_period,
    UNIQUE (customer_id, organization_id, currency_code, period_start, ordinal)
);
CREATE INDEX period_closing_organization ON metering.period_closing (organization_id, period_closing_id);
CREATE INDEX period_closing_customer ON metering.period_closing (customer_id, period_closing_id);
CREATE INDEX period_closing_next_attempt ON metering.period_closing (next_attempt_time)
    WHERE next_attempt_time IS NOT NULL;
CREATE TRIGGER kept BEFORE DELETE ON metering.period_closing
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.period_closing
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- The latest work of a period says who is paid.
CREATE INDEX usage_event_period ON metering.usage_event
    (customer_id, organization_id, currency_code, period_start, occur_time) WHERE period_start IS NOT NULL;

CREATE FUNCTION metering.note_counted_periods() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
BEGIN
    INSERT INTO counted_period (customer_id, organization_id, currency_code, period_start, next_check_time)
    -- No billing period is shorter than 28 days, or an hour less where clocks change.
    SELECT DISTINCT c.customer_id, c.organization_id, c.currency_code, c.period_start, c.period_start + interval '27 days'
    FROM made c
    -- In one order, so that two who make the same ones wait for each other and never for ever.
    ORDER BY 1, 2, 3, 4
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION metering.note_counted_periods() FROM PUBLIC;
CREATE TRIGGER noted AFTER INSERT ON metering.price_counter
    REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION metering.note_counted_periods();

INSERT INTO metering.counted_period (customer_id, organization_id, currency_code, period_start, next_check_time)
SELECT DISTINCT customer_id, organization_id, currency_code, period_start, period_start + interval '27 days'
FROM metering.price_counter;


-- Tenants. A customer and an organization see theirs; only the platform closes periods.

DO $$
DECLARE
    -- table name, and the columns that change
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['counted_period', 'next_check_time, closing_count, closed_micros'],
        ['period_closing', 'next_attempt_time, attempt_count, last_error']
    ] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer'
            ' USING (metering.visible(customer_id) OR metering.visible(organization_id))', rule[1]);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', rule[1]);
        EXECUTE format(
            'CREATE POLICY platform_update ON metering.%I FOR UPDATE TO metering_writer'
            ' USING (metering.visible(''platform''))', rule[1]);
        EXECUTE format('GRANT UPDATE (%s) ON metering.%I TO metering_writer', rule[2], rule[1]);
    END LOOP;
    CREATE POLICY platform_insert ON metering.period_closing FOR INSERT TO metering_writer
        WITH CHECK (metering.visible('platform'));
    GRANT INSERT ON metering.period_closing TO metering_writer;
END
$$;
