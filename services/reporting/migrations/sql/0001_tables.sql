-- Projections: read models that are made from the ledger's journal and metering's usage feed, and from nothing else. Each
-- can be thrown away and made again.
--
-- All amounts are micros of the row's currency. Ids compare bytewise (COLLATE "C"), here as in the services. Every row
-- belongs to a projection, so that a new one is made while another one answers.

-- Whether the current transaction may see what belongs to this organization or customer. Unset settings show
-- nothing. (A setting that was local to an earlier transaction of the connection reads as ''.) Of NULL: whether it may
-- see everybody's.
CREATE FUNCTION reporting.visible(owner_id text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(current_setting('tallystick.platform', true) = 'on', false)
        OR coalesce(owner_id = ANY (nullif(current_setting('tallystick.tenants', true), '')::text[]), false)
$$;

-- The organizations and customers whose rows it may see. Policies ask for it once per query instead of once per row:
-- reports read thousands of them.
CREATE FUNCTION reporting.visible_owners() RETURNS SETOF text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT unnest(nullif(current_setting('tallystick.tenants', true), '')::text[])
$$;


CREATE TABLE reporting.projection (
    projection_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('building', 'serving', 'retired')),
    create_time timestamptz NOT NULL DEFAULT now(),
    serve_time timestamptz,
    -- It is removed some time later: what is being read of it may be read to its end.
    retire_time timestamptz,
    CHECK (state <> 'serving' OR serve_time IS NOT NULL),
    CHECK ((state = 'retired') = (retire_time IS NOT NULL))
);
-- One answers, and at most one is being made.
CREATE UNIQUE INDEX projection_serving ON reporting.projection (state) WHERE state = 'serving';
CREATE UNIQUE INDEX projection_building ON reporting.projection (state) WHERE state = 'building';

-- How far a projection has read each feed. Whoever applies a batch locks the row of the projection first: one at a time,
-- and position and rows change in one transaction, so that a crash leaves both or neither.
CREATE TABLE reporting.feed (
    projection_id integer NOT NULL REFERENCES reporting.projection ON DELETE CASCADE,
    feed text NOT NULL CHECK (feed IN ('journal', 'usage')),
    -- '' until the first batch.
    log_id text COLLATE "C" NOT NULL DEFAULT '',
    position bigint NOT NULL DEFAULT 0 CHECK (position >= 0),
    head_position bigint NOT NULL DEFAULT 0 CHECK (head_position >= position),
    -- When the last thing that was applied had been posted or recorded.
    apply_time timestamptz,
    -- When the feed was last heard of.
    hear_time timestamptz,
    PRIMARY KEY (projection_id, feed)
);


-- What the journal says.

-- A charge as it was posted, and what corrections took back of it.
CREATE TABLE reporting.charge (
    projection_id integer NOT NULL,
    charge_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    component text COLLATE "C" NOT NULL CHECK (component IN ('base', 'outcome')),
    ordinal integer NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    gross_micros bigint NOT NULL CHECK (gross_micros >= 0),
    corrected_micros bigint NOT NULL DEFAULT 0 CHECK (corrected_micros BETWEEN 0 AND gross_micros),
    price_version_id text COLLATE "C" NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    -- Of that transaction: what is read in several pages ends with what was known at the first.
    position bigint NOT NULL,
    occur_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (projection_id, charge_id)
);
-- Lists of a customer, newest work first.
CREATE INDEX charge_customer ON reporting.charge (projection_id, customer_id, occur_time, charge_id);
-- From an event to the charges that are for it.
CREATE INDEX charge_event ON reporting.charge (projection_id, customer_id, workflow_id, ordinal);

-- What one transaction made an organization earn, or give back: one row for each payee of a charge, a collection, a
-- correction, or the settlement of its own promotion. Sums over it equal the ledger's accounts of earnings and fees,
-- without payouts, adjustments, and what it pays for others by its promotions.
CREATE TABLE reporting.revenue (
    projection_id integer NOT NULL,
    position bigint NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL CHECK (type IN ('charge', 'collection', 'correction', 'promotion_settlement')),
    charge_id text COLLATE "C" NOT NULL,
    -- '' if it is none.
    correction_id text COLLATE "C" NOT NULL DEFAULT '',
    agent_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    -- Those of the event, '' until the usage feed has said them: see reporting.usage.
    agent_version text COLLATE "C" NOT NULL DEFAULT '',
    action_type text COLLATE "C" NOT NULL DEFAULT '',
    currency_code text COLLATE "C" NOT NULL,
    -- What the customer was charged for this payee's work, whether it could pay or not; negative in a correction, zero in
    -- a collection or a settlement.
    billed_micros bigint NOT NULL,
    -- What was earned, and so not of what nobody has paid or owes.
    platform_fee_micros bigint NOT NULL,
    processing_fee_micros bigint NOT NULL,
    net_micros bigint NOT NULL,
    -- 1 in a charge, else 0.
    charge_count integer NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    occur_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (projection_id, position, organization_id)
);
CREATE INDEX revenue_organization ON reporting.revenue (projection_id, organization_id, occur_time, charge_id);
CREATE INDEX revenue_charge ON reporting.revenue (projection_id, charge_id);

-- The entries of customers' and organizations' own accounts (not those of fees, which are the platform's): what
-- statements consist of.
CREATE TABLE reporting.movement (
    projection_id integer NOT NULL,
    owner_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    entry_number integer NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL,
    -- '' where there is none.
    charge_id text COLLATE "C" NOT NULL,
    correction_id text COLLATE "C" NOT NULL,
    payout_id text COLLATE "C" NOT NULL,
    reason text NOT NULL,
    occur_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    -- In the order of statements.
    PRIMARY KEY (projection_id, owner_id, currency_code, create_time, position, entry_number)
);
-- The transactions of a payout.
CREATE INDEX movement_payout ON reporting.movement (projection_id, payout_id) WHERE payout_id <> '';

-- What the movements of a UTC day add up to, by the time of posting: a balance is a sum of days and a part of one.
CREATE TABLE reporting.movement_day (
    projection_id integer NOT NULL,
    owner_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    day date NOT NULL,
    amount_micros bigint NOT NULL,
    PRIMARY KEY (projection_id, owner_id, currency_code, kind, day)
) WITH (fillfactor = 70);

-- Organizations' payable by what must still happen before it can be paid out, as in the ledger's entries. What adds up to
-- nothing has no row: most of it has been paid out.
CREATE TABLE reporting.payable_bucket (
    projection_id integer NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    collected boolean NOT NULL,
    available_on date NOT NULL,
    amount_micros bigint NOT NULL,
    PRIMARY KEY (projection_id, organization_id, currency_code, collected, available_on)
) WITH (fillfactor = 70);


-- What the usage feed says: one row per event, with its outcome as it stands.
CREATE TABLE reporting.usage (
    projection_id integer NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    agent_version text COLLATE "C" NOT NULL,
    action_type text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    outcome text COLLATE "C" NOT NULL CHECK (outcome IN ('success', 'failure', 'partial', 'unknown', 'pending')),
    currency_code text COLLATE "C" NOT NULL,
    -- What was charged for the event, and what its outcome added when it was decided later.
    price_micros bigint NOT NULL,
    bonus_micros bigint NOT NULL DEFAULT 0,
    -- Serialized tallystick.reporting.v1.ReportedCharge messages of which only `lines` is set.
    price_lines bytea NOT NULL,
    bonus_lines bytea NOT NULL DEFAULT '',
    -- By list price; NULL when the model is not in the catalogue.
    model_cost_usd numeric,
    occur_time timestamptz NOT NULL,
    PRIMARY KEY (projection_id, customer_id, workflow_id, ordinal)
);
CREATE INDEX usage_organization ON reporting.usage (projection_id, organization_id, occur_time);
CREATE INDEX usage_customer ON reporting.usage (projection_id, customer_id, occur_time);


-- Rollups: sums of `revenue` and `usage` by everything that reports tell apart, over UTC quarter hours, days and months
-- of occur_time. Every quarter hour is a boundary of days in some time zone, and no other moment is. A report adds up
-- whole months, days and quarter hours; only a period that ends within a quarter hour reads rows. Sums change for as long
-- as their time lasts: there is room for that on their pages.

CREATE TABLE reporting.revenue_rollup (
    projection_id integer NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    grain text COLLATE "C" NOT NULL CHECK (grain IN ('quarter', 'day', 'month')),
    start_time timestamptz NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    agent_version text COLLATE "C" NOT NULL,
    action_type text COLLATE "C" NOT NULL,
    platform_fee_micros bigint NOT NULL,
    processing_fee_micros bigint NOT NULL,
    net_micros bigint NOT NULL,
    charge_count bigint NOT NULL,
    -- How many rows of reporting.revenue it is the sum of: a sum of none is no row.
    revenue_count bigint NOT NULL,
    PRIMARY KEY (projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id,
        agent_version, action_type)
) WITH (fillfactor = 70);

-- What people look at most must not cost more where there is more to tell apart: all revenue of an organization, that of
-- its agents, and that of its customers. None of these changes when usage says what the work was. By quarter hours
-- customers are as many as everything above, so that is not kept.
CREATE TABLE reporting.revenue_sum (
    projection_id integer NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    dimension text COLLATE "C" NOT NULL CHECK (dimension IN ('all', 'agent', 'customer')),
    grain text COLLATE "C" NOT NULL CHECK (grain IN ('quarter', 'day', 'month')),
    start_time timestamptz NOT NULL,
    -- The agent or the customer; '' of all.
    key text COLLATE "C" NOT NULL,
    platform_fee_micros bigint NOT NULL,
    processing_fee_micros bigint NOT NULL,
    net_micros bigint NOT NULL,
    charge_count bigint NOT NULL,
    PRIMARY KEY (projection_id, organization_id, currency_code, dimension, grain, start_time, key),
    CHECK (dimension <> 'customer' OR grain <> 'quarter')
) WITH (fillfactor = 70);

CREATE TABLE reporting.usage_rollup (
    projection_id integer NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    grain text COLLATE "C" NOT NULL CHECK (grain IN ('quarter', 'day', 'month')),
    start_time timestamptz NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    agent_version text COLLATE "C" NOT NULL,
    action_type text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    execution_count bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_micros bigint NOT NULL,
    success_count bigint NOT NULL,
    failure_count bigint NOT NULL,
    partial_count bigint NOT NULL,
    unknown_count bigint NOT NULL,
    pending_count bigint NOT NULL,
    -- Of the events whose model cost is known.
    priced_count bigint NOT NULL,
    priced_cost_micros bigint NOT NULL,
    model_cost_usd numeric NOT NULL,
    PRIMARY KEY (projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id,
        agent_version, action_type, model)
) WITH (fillfactor = 70);
CREATE INDEX usage_rollup_customer ON reporting.usage_rollup
    (projection_id, customer_id, currency_code, grain, start_time);


-- Tenants. Nothing is written but by functions of the owner: what is in a projection follows from the feeds alone.

DO $$
DECLARE
    -- table name, and the columns by any of which a row is a tenant's own
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['projection', '', ''],
        ['feed', '', ''],
        ['charge', 'customer_id', ''],
        ['revenue', 'organization_id', ''],
        ['movement', 'owner_id', ''],
        ['movement_day', 'owner_id', ''],
        ['payable_bucket', 'organization_id', ''],
        ['usage', 'organization_id', 'customer_id'],
        ['revenue_rollup', 'organization_id', ''],
        ['revenue_sum', 'organization_id', ''],
        ['usage_rollup', 'organization_id', 'customer_id']
    ] LOOP
        EXECUTE format('ALTER TABLE reporting.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE reporting.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON reporting.%I TO reporting_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON reporting.%I FOR SELECT TO reporting_reader, reporting_writer USING ('
                || '(SELECT reporting.visible(NULL))%s%s)',
            rule[1],
            CASE rule[2] WHEN '' THEN '' ELSE
                format(' OR %I = ANY (ARRAY(SELECT reporting.visible_owners()))', rule[2]) END,
            CASE rule[3] WHEN '' THEN '' ELSE
                format(' OR %I = ANY (ARRAY(SELECT reporting.visible_owners()))', rule[3]) END);
        EXECUTE format('GRANT SELECT ON reporting.%I TO reporting_reader, reporting_writer', rule[1]);
    END LOOP;
END
$$;

-- The projection that answers, and how far it has read: who may see only its own rows needs to know that, too.
-- `as_of` is up to when everything is in it; NULL as long as one of the feeds was never heard of.
CREATE FUNCTION reporting.serving()
RETURNS TABLE (projection_id integer, journal_position bigint, usage_position bigint, as_of timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
    -- Not least(), which leaves NULL out.
    SELECT p.projection_id, j.position, u.position,
           CASE WHEN j.known_until < u.known_until THEN j.known_until
                WHEN j.known_until IS NOT NULL THEN u.known_until END
    FROM projection p
    CROSS JOIN LATERAL (
        SELECT f.position, CASE WHEN f.position < f.head_position THEN f.apply_time ELSE f.hear_time END AS known_until
        FROM feed f WHERE f.projection_id = p.projection_id AND f.feed = 'journal') AS j
    CROSS JOIN LATERAL (
        SELECT f.position, CASE WHEN f.position < f.head_position THEN f.apply_time ELSE f.hear_time END AS known_until
        FROM feed f WHERE f.projection_id = p.projection_id AND f.feed = 'usage') AS u
    WHERE p.state = 'serving'
$$;
