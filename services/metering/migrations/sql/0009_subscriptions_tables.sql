-- Subscriptions, what was subscribed to from when on, and their fees.
--
-- All amounts are micros of the subscription's currency.

CREATE TABLE metering.subscription (
    subscription_id text COLLATE "C" PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL,
    -- The organization that earns the fees.
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('active', 'canceled')),
    start_time timestamptz NOT NULL,
    -- When its billing period ends, or when it ended.
    renew_time timestamptz NOT NULL,
    -- The tallystick.metering.v1.Subscription, serialized.
    content bytea NOT NULL,
    -- How many segments and fees there are: numbers are given under the row's lock.
    segment_count integer NOT NULL DEFAULT 0,
    fee_total integer NOT NULL DEFAULT 0
);
-- One at a time, whoever subscribes at the same moment.
CREATE UNIQUE INDEX subscription_active ON metering.subscription (customer_id, organization_id, currency_code)
    WHERE state = 'active';
CREATE INDEX subscription_about ON metering.subscription (customer_id, organization_id, currency_code, renew_time);
CREATE INDEX subscription_organization ON metering.subscription (organization_id, subscription_id);
CREATE INDEX subscription_due ON metering.subscription (renew_time) WHERE state = 'active';
CREATE TRIGGER kept BEFORE DELETE ON metering.subscription
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.subscription
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- What was subscribed to from when on, and who made it so. Append-only.
CREATE TABLE metering.subscription_segment (
    subscription_id text COLLATE "C" NOT NULL REFERENCES metering.subscription,
    segment_number integer NOT NULL CHECK (segment_number > 0),
    -- Those of the subscription, which never change: policies need no join.
    customer_id text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    start_time timestamptz NOT NULL,
    -- The tallystick.metering.v1.BillingPeriod, serialized.
    billing_period bytea NOT NULL,
    -- The tallystick.metering.v1.SubscriptionSegment, serialized; NULL where the subscription ended.
    content bytea,
    -- '' where a billing period began or ended by itself.
    api_key_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- Rises with every segment of any subscription: whoever remembers them asks for what came since.
    change_number bigint NOT NULL UNIQUE,
    PRIMARY KEY (subscription_id, segment_number)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON metering.subscription_segment
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON metering.subscription_segment
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- The number of the last segment, as of budgets: the lock on this row makes the order of numbers that of commits.
CREATE TABLE metering.subscription_change (
    change_number bigint NOT NULL
);
INSERT INTO metering.subscription_change VALUES (0);

CREATE FUNCTION metering.number_subscription_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
BEGIN
    UPDATE subscription_change c SET change_number = c.change_number + 1
    RETURNING c.change_number INTO NEW.change_number;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION metering.number_subscription_change() FROM PUBLIC;
CREATE TRIGGER numbered BEFORE INSERT ON metering.subscription_segment
    FOR EACH ROW EXECUTE FUNCTION metering.number_subscription_change();

-- The fees, made in the transaction that begins a period or changes it. What is to be charged is posted to the ledger
-- afterwards, as often as it takes: the run and the ordinal make the same charge of it each time.
CREATE TABLE metering.subscription_fee (
    subscription_id text COLLATE "C" NOT NULL REFERENCES metering.subscription,
    fee_number integer NOT NULL CHECK (fee_number > 0),
    customer_id text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    price_version_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    -- When the service begins that it is for.
    occur_time timestamptz NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    -- The tallystick.metering.v1.SubscriptionFee, serialized.
    content bytea NOT NULL,
    create_time timestamptz NOT NULL,
    -- When it may be posted (again): NULL once the ledger has it, or if nothing is to be charged; infinity once the
    -- ledger refused it for good.
    next_attempt_time timestamptz,
    attempt_count integer NOT NULL DEFAULT 0,
    -- Why the last attempt failed.
    last_error text NOT NULL DEFAULT '',
    PRIMARY KEY (subscription_id, fee_number),
    UNIQUE (workflow_id, ordinal)
);
CREATE INDEX subscription_fee_next_attempt ON metering.subscription_fee (next_attempt_time)
    WHERE next_attempt_time IS NOT NULL;
CREATE TRIGGER kept BEFORE DELETE ON metering.subscription_fee
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.subscription_fee
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();


-- Tenants.

DO $$
DECLARE
    -- table name, and what a row must satisfy to be seen
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['subscription', 'metering.visible(customer_id) OR metering.visible(organization_id)'],
        ['subscription_segment', 'metering.visible(customer_id) OR metering.visible(organization_id)'],
        ['subscription_fee', 'metering.visible(customer_id) OR metering.visible(organization_id)'],
        ['subscription_change', 'metering.visible(''platform'')']
    ] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', rule[1]);
    END LOOP;
    -- A customer sees its subscriptions and changes none.
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['subscription', 'state, renew_time, content, segment_count, fee_total'],
        ['subscription_segment', ''],
        ['subscription_fee', 'next_attempt_time, attempt_count, last_error']
    ] LOOP
        EXECUTE format(
            'CREATE POLICY tenant_insert ON metering.%I FOR INSERT TO metering_writer'
            ' WITH CHECK (metering.visible(organization_id))', rule[1]);
        EXECUTE format('GRANT INSERT ON metering.%I TO metering_writer', rule[1]);
        CONTINUE WHEN rule[2] = '';
        EXECUTE format(
            'CREATE POLICY tenant_update ON metering.%I FOR UPDATE TO metering_writer'
            ' USING (metering.visible(organization_id))', rule[1]);
        EXECUTE format('GRANT UPDATE (%s) ON metering.%I TO metering_writer', rule[2], rule[1]);
    END LOOP;
END
$$;
