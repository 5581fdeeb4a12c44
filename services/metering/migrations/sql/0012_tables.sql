-- Who made drafts, charges that the ledger refused and is asked for again, and periods that are shorter than a month.

ALTER TABLE metering.price_version
    -- '' for versions from before it was kept.
    ADD COLUMN creator_api_key_id text COLLATE "C" NOT NULL DEFAULT '';

-- Whether the ledger refused the charge the last time that it judged it. It is asked again, seldom: what stood in the way
-- may be gone.
ALTER TABLE metering.subscription_fee ADD COLUMN refused boolean NOT NULL DEFAULT false;
ALTER TABLE metering.period_closing ADD COLUMN refused boolean NOT NULL DEFAULT false;
CREATE INDEX subscription_fee_refused ON metering.subscription_fee (subscription_id) WHERE refused;
CREATE INDEX period_closing_refused ON metering.period_closing (period_closing_id) WHERE refused;
GRANT UPDATE (refused) ON metering.subscription_fee TO metering_writer;
GRANT UPDATE (refused) ON metering.period_closing TO metering_writer;
UPDATE metering.subscription_fee SET refused = true, next_attempt_time = now() WHERE next_attempt_time = 'infinity';
UPDATE metering.period_closing SET refused = true, next_attempt_time = now() WHERE next_attempt_time = 'infinity';

CREATE OR REPLACE FUNCTION metering.note_counted_periods() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
BEGIN
    INSERT INTO counted_period (customer_id, organization_id, currency_code, period_start, next_check_time)
    -- When it ends takes contracts and subscriptions to say: who looks at it the first time sets the next one.
    SELECT DISTINCT c.customer_id, c.organization_id, c.currency_code, c.period_start, c.period_start + interval '1 day'
    FROM made c
    -- In one order, so that two who make the same ones wait for each other and never for ever.
    ORDER BY 1, 2, 3, 4
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
