-- Budgets, what they have counted, and what is reserved against them while Valkey is away.
--
-- All amounts are micros of the budget's currency. The period of a budget that never starts again begins at
-- '-infinity'; functions and queries say NULL for it, since that is what Python can hold.

CREATE TABLE metering.budget (
    budget_id text COLLATE "C" PRIMARY KEY,
    -- A customer, an organization, or 'platform'.
    owner_id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    -- What it counts; '' matches every charge.
    customer_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    api_key_id text COLLATE "C" NOT NULL,
    per_workflow boolean NOT NULL,
    period text COLLATE "C" NOT NULL CHECK (period IN ('day', 'month', 'total')),
    time_zone text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    limit_micros bigint NOT NULL CHECK (limit_micros > 0),
    hard boolean NOT NULL,
    -- In per cent of the limit.
    alert_thresholds integer[] NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    -- A deleted budget neither counts nor refuses. Its row stays, for its alerts.
    delete_time timestamptz,
    -- Rises with every change of any budget: whoever remembers budgets asks for those that changed since.
    change_number bigint NOT NULL UNIQUE,
    CHECK (customer_id <> '' OR agent_id <> '' OR api_key_id <> ''),
    CHECK (NOT per_workflow OR (customer_id <> '' AND period = 'total'))
);
CREATE INDEX budget_owner ON metering.budget (owner_id, budget_id) WHERE delete_time IS NULL;

-- The number of the last change. Not a sequence: its numbers become visible out of order, and a change that
-- commits after one of a higher number would never be noticed. The lock on this row, held until the commit,
-- makes the order of numbers that of commits. Budgets change seldom.
CREATE TABLE metering.budget_change (
    change_number bigint NOT NULL
);
INSERT INTO metering.budget_change VALUES (0);

CREATE FUNCTION metering.number_budget_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
BEGIN
    UPDATE budget_change c SET change_number = c.change_number + 1 RETURNING c.change_number INTO NEW.change_number;
    RETURN NEW;
END
$$;
CREATE TRIGGER numbered BEFORE INSERT OR UPDATE ON metering.budget
    FOR EACH ROW EXECUTE FUNCTION metering.number_budget_change();
CREATE TRIGGER kept BEFORE DELETE ON metering.budget
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.budget
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- What was charged. The row's lock also orders reservations against it. No foreign key to budget here and below:
-- the functions that insert look the budget up, and checking each row would lock it.
CREATE TABLE metering.budget_counter (
    budget_id text COLLATE "C" NOT NULL,
    period_start timestamptz NOT NULL,
    -- '' unless the budget counts every workflow by itself.
    workflow_id text COLLATE "C" NOT NULL,
    -- That of the budget, which never changes: policies need no join.
    owner_id text COLLATE "C" NOT NULL,
    spent bigint NOT NULL CHECK (spent >= 0),
    PRIMARY KEY (budget_id, period_start, workflow_id)
-- Room in each page, so that a counter is raised in place, without new index entries.
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);

-- Thresholds that were reached: once each, per counter.
CREATE TABLE metering.budget_alert (
    budget_id text COLLATE "C" NOT NULL,
    period_start timestamptz NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    threshold integer NOT NULL CHECK (threshold > 0),
    -- Tells which came later.
    alert_number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    owner_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- What they were then.
    spent bigint NOT NULL,
    limit_micros bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (budget_id, period_start, workflow_id, threshold)
);
CREATE INDEX budget_alert_owner ON metering.budget_alert (owner_id, alert_number);
CREATE INDEX budget_alert_budget ON metering.budget_alert (budget_id, alert_number);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON metering.budget_alert
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON metering.budget_alert
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- What is reserved for runs under way, where Valkey does not know it. Rows come and go, so it is vacuumed by number
-- and not by share.
CREATE TABLE metering.budget_reservation (
    budget_id text COLLATE "C" NOT NULL,
    period_start timestamptz NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    reservation_id text COLLATE "C" NOT NULL,
    owner_id text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    -- There was no room for it: it counts nothing, and stays refused.
    refused boolean NOT NULL DEFAULT false CHECK (amount = 0 OR NOT refused),
    -- From then on it no longer counts.
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (budget_id, period_start, workflow_id, reservation_id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX budget_reservation_id ON metering.budget_reservation (reservation_id);
CREATE INDEX budget_reservation_expire_time ON metering.budget_reservation (expire_time);


-- Tenants. The writer counts and reserves only by calling functions of the owner.

DO $$
DECLARE
    -- table name, and what a row must satisfy to be seen or written
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['budget', 'metering.visible(owner_id)'],
        ['budget_change', 'metering.visible(''platform'')'],
        ['budget_counter', 'metering.visible(owner_id)'],
        ['budget_alert', 'metering.visible(owner_id)'],
        ['budget_reservation', 'metering.visible(owner_id)']
    ] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', rule[1]);
    END LOOP;
END
$$;

CREATE POLICY tenant_insert ON metering.budget FOR INSERT TO metering_writer
    WITH CHECK (metering.visible(owner_id));
GRANT INSERT ON metering.budget TO metering_writer;
CREATE POLICY tenant_update ON metering.budget FOR UPDATE TO metering_writer USING (metering.visible(owner_id));
-- What a budget counts never changes.
GRANT UPDATE (display_name, limit_micros, hard, alert_thresholds, update_time, delete_time)
    ON metering.budget TO metering_writer;
