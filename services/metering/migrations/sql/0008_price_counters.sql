-- Counters: what a customer used before in a billing period, as far as prices depend on it.

CREATE TABLE metering.price_counter (
    -- A hash of all that says which counter it is (domain/price_counter.py): half of what it costs to lock and move one
    -- would go into comparing that.
    counter_id bytea PRIMARY KEY CHECK (octet_length(counter_id) = 16),
    customer_id text COLLATE "C" NOT NULL,
    -- The organization that earns: two that charge by the same book count apart.
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- When the billing period began that the work falls into.
    period_start timestamptz NOT NULL,
    -- What is counted, as domain/rating.py names it: units of a tier, of an allowance, or micros.
    name text COLLATE "C" NOT NULL,
    -- NULL as long as nothing was counted: a counter is made before it is locked, and what it is for may be refused.
    value bigint CHECK (value >= 0)
-- Room in each page, so that a counter is moved in place, without new index entries.
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX price_counter_period
    ON metering.price_counter (customer_id, organization_id, currency_code, period_start);

ALTER TABLE metering.price_counter ENABLE ROW LEVEL SECURITY;
ALTER TABLE metering.price_counter FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON metering.price_counter TO metering_owner USING (true);
CREATE POLICY tenant_select ON metering.price_counter FOR SELECT TO metering_reader, metering_writer
    USING (metering.visible(customer_id) OR metering.visible(organization_id));
GRANT SELECT ON metering.price_counter TO metering_reader, metering_writer;

-- What an event was rated with, so that rating it again gives the same.
ALTER TABLE metering.usage_event
    -- What a contract added to the price, in the form of store/price_format.py; NULL without one.
    ADD COLUMN contract_terms jsonb,
    -- Of which period, and {name: value} of every counter that the price reads, and of those that the event moved. All
    -- three or none: most prices depend on nothing.
    ADD COLUMN period_start timestamptz,
    ADD COLUMN opening jsonb,
    ADD COLUMN closing jsonb,
    ADD CHECK (num_nulls(period_start, opening, closing) IN (0, 3));

-- What some outcomes add is known only when they are decided: it depends on their result, or moves counters. Then
-- `bonuses` is NULL until it says what the decision added, under its outcome alone.
ALTER TABLE metering.deferred_outcome
    ALTER COLUMN bonuses DROP NOT NULL,
    -- What the decision was rated with, likewise: of counters of charged money those of its time, of all others those
    -- of the event.
    ADD COLUMN opening jsonb,
    ADD COLUMN closing jsonb,
    -- The tallystick.metering.v1.ResolveOutcomeRequest.result, serialized; NULL where that of the event counts.
    ADD COLUMN result bytea,
    ADD CHECK (bonuses IS NOT NULL OR state = 'pending'),
    ADD CHECK (num_nulls(opening, closing) IN (0, 2));
