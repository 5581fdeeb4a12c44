-- What was taken back of charges. A charge itself never changes.

ALTER TYPE ledger.transaction_type ADD VALUE 'correction';

-- Of a correction, its name within the charge.
ALTER TABLE ledger.transaction ADD COLUMN correction_id text COLLATE "C";

-- How much of a charge is corrected so far. Raised before a correction is posted: the CHECK is the last word on
-- taking back more than was charged.
CREATE TABLE ledger.corrected_charge (
    charge_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    -- The charge's.
    gross bigint NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    -- How much of each leg, in the order of ledger.legs.
    legs bigint[] NOT NULL,
    -- How many corrections that were.
    corrections integer NOT NULL,
    PRIMARY KEY (charge_id, customer_id),
    CONSTRAINT corrected_within_charge CHECK (amount <= gross)
) WITH (fillfactor = 70);

-- A correction as it was posted.
CREATE TABLE ledger.correction (
    charge_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    correction_id text COLLATE "C" NOT NULL,
    -- Numbers those of a charge from 1, in the order in which they were posted.
    correction_number integer NOT NULL CHECK (correction_number > 0),
    amount bigint NOT NULL CHECK (amount > 0),
    -- What the customer got: how much less of the charge is unpaid, how much less is receivable, and credits.
    unpaid bigint NOT NULL CHECK (unpaid >= 0),
    receivable bigint NOT NULL CHECK (receivable >= 0),
    credits bigint NOT NULL CHECK (credits >= 0),
    -- How much was taken of each leg, of all that was earned or not.
    legs bigint[] NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (charge_id, customer_id, correction_id),
    UNIQUE (charge_id, customer_id, correction_number),
    CHECK (unpaid + receivable + credits = amount)
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.correction
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.correction
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite();

-- Both hold the legs of all parties side by side, so only the platform reads them; the others read the views below.
DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['corrected_charge', 'correction'] LOOP
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

CREATE OR REPLACE VIEW ledger.customer_charge WITH (security_barrier) AS
SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code, c.gross,
       coalesce(o.receivable, 0) AS receivable, coalesce(o.unpaid, 0) AS unpaid,
       c.occur_time, c.create_time, c.price_version_id, c.evidence_hash, c.transaction_id,
       c.reservation_id, c.captured_credits, c.captured_receivable, coalesce(x.amount, 0) AS corrected
FROM ledger.charge c
LEFT JOIN ledger.open_charge o ON o.customer_id = c.customer_id AND o.charge_id = c.charge_id
LEFT JOIN ledger.corrected_charge x ON x.customer_id = c.customer_id AND x.charge_id = c.charge_id
WHERE ledger.visible(c.customer_id);

CREATE OR REPLACE VIEW ledger.earning WITH (security_barrier) AS
SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code,
       p.payee_number, p.organization_id, p.agent_id, p.gross, p.platform_fee, p.processing_fee,
       p.platform_fee_bps, p.processing_fee_bps,
       c.occur_time, c.create_time, c.price_version_id, c.transaction_id,
       coalesce(x.legs[p.payee_number * 3 - 2], 0) AS corrected_net,
       coalesce(x.legs[p.payee_number * 3 - 1], 0) AS corrected_platform_fee,
       coalesce(x.legs[p.payee_number * 3], 0) AS corrected_processing_fee
FROM ledger.charge c
CROSS JOIN LATERAL unnest(
    c.organization_ids, c.agent_ids, c.payee_gross, c.platform_fees, c.processing_fees,
    c.platform_fee_bps, c.processing_fee_bps
) WITH ORDINALITY AS p (
    organization_id, agent_id, gross, platform_fee, processing_fee,
    platform_fee_bps, processing_fee_bps, payee_number
)
LEFT JOIN ledger.corrected_charge x ON x.customer_id = c.customer_id AND x.charge_id = c.charge_id
WHERE ledger.visible(p.organization_id);

-- A correction as the payer of the charge sees it.
CREATE VIEW ledger.customer_correction WITH (security_barrier) AS
SELECT r.charge_id, r.correction_id, r.correction_number, t.reason, r.transaction_id, r.create_time,
       r.amount, r.unpaid, r.receivable, r.credits
FROM ledger.correction r
JOIN ledger.transaction t ON t.transaction_id = r.transaction_id AND t.partition_id = r.customer_id
WHERE ledger.visible(r.customer_id);

-- What a correction took of one payee's share, as that payee sees it.
CREATE VIEW ledger.corrected_earning WITH (security_barrier) AS
SELECT r.charge_id, r.correction_id, r.correction_number, t.reason, r.transaction_id, r.create_time,
       p.payee_number, p.organization_id,
       r.legs[p.payee_number * 3 - 2] AS net,
       r.legs[p.payee_number * 3 - 1] AS platform_fee,
       r.legs[p.payee_number * 3] AS processing_fee
FROM ledger.correction r
JOIN ledger.transaction t ON t.transaction_id = r.transaction_id AND t.partition_id = r.customer_id
JOIN ledger.charge c ON c.charge_id = r.charge_id AND c.customer_id = r.customer_id
CROSS JOIN LATERAL unnest(c.organization_ids) WITH ORDINALITY AS p (organization_id, payee_number)
WHERE ledger.visible(p.organization_id);

GRANT SELECT ON ledger.customer_correction, ledger.corrected_earning TO ledger_reader, ledger_writer;
