-- Shadows: candidate versions that rate live traffic behind the usage feed, and what they would have charged.

CREATE TABLE metering.shadow (
    shadow_id text COLLATE "C" PRIMARY KEY,
    -- Whose it is: the owner of the candidate's book.
    owner_id text COLLATE "C" NOT NULL,
    price_version_id text COLLATE "C" NOT NULL REFERENCES metering.price_version,
    price_book_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- What the candidate said when the shadow began, in the form of store/price_format.py: {prices, meters, plans}. A draft
    -- may change.
    price_list jsonb NOT NULL,
    api_key_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    stop_time timestamptz,
    -- Everything up to this position of this log has been looked at.
    log_id text COLLATE "C" NOT NULL,
    position bigint NOT NULL
);
CREATE INDEX shadow_running ON metering.shadow (shadow_id) WHERE stop_time IS NULL;

-- Sums, moved in the transaction that moves the position: nothing is counted twice, and nothing is left out.
CREATE TABLE metering.shadow_divergence (
    shadow_id text COLLATE "C" NOT NULL REFERENCES metering.shadow,
    customer_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    agent_version text COLLATE "C" NOT NULL,
    -- The agent's organization.
    organization_id text COLLATE "C" NOT NULL,
    -- That of the shadow, which never changes: policies need no join.
    owner_id text COLLATE "C" NOT NULL,
    charge_count bigint NOT NULL,
    unpriced_charge_count bigint NOT NULL,
    differing_charge_count bigint NOT NULL,
    -- Of the charges that the candidate has a price for.
    charged_micros numeric NOT NULL,
    shadowed_micros numeric NOT NULL,
    PRIMARY KEY (shadow_id, customer_id, agent_id, agent_version)
);

-- The counters of a candidate that has any: by how much they are off from those that were charged with.
CREATE TABLE metering.shadow_counter (
    shadow_id text COLLATE "C" NOT NULL REFERENCES metering.shadow,
    customer_id text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    period_start timestamptz NOT NULL,
    name text COLLATE "C" NOT NULL,
    value bigint NOT NULL,
    owner_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shadow_id, customer_id, organization_id, period_start, name)
);

-- Where the candidate's stood for events whose outcome is still pending.
CREATE TABLE metering.shadow_pending (
    shadow_id text COLLATE "C" NOT NULL REFERENCES metering.shadow,
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL,
    opening jsonb NOT NULL,
    owner_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shadow_id, customer_id, workflow_id, ordinal)
);

DO $$
DECLARE
    -- table name, what the writer may do with rows besides reading them
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['shadow', 'INSERT, UPDATE (stop_time, log_id, position)'],
        ['shadow_divergence', 'INSERT, UPDATE'],
        ['shadow_counter', 'INSERT, UPDATE'],
        ['shadow_pending', 'INSERT, DELETE']
    ] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer'
            ' USING (metering.visible(owner_id))', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_insert ON metering.%I FOR INSERT TO metering_writer'
            ' WITH CHECK (metering.visible(owner_id))', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_update ON metering.%I FOR UPDATE TO metering_writer'
            ' USING (metering.visible(owner_id))', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_delete ON metering.%I FOR DELETE TO metering_writer'
            ' USING (metering.visible(owner_id))', rule[1]);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', rule[1]);
        EXECUTE format('GRANT %s ON metering.%I TO metering_writer', rule[2], rule[1]);
    END LOOP;
END
$$;
