-- What is given up, adjustments that wait for a second operator, and how long earnings may be disputed.

ALTER TYPE ledger.account_kind ADD VALUE 'write_offs';
ALTER TYPE ledger.account_kind ADD VALUE 'clawback_losses';
ALTER TYPE ledger.transaction_type ADD VALUE 'write_off';


-- Write-offs.

CREATE TYPE ledger.write_off_kind AS ENUM ('unpaid', 'receivable', 'chargebacks', 'clawback');

-- Of the charge as well is gone what was written off: corrections and write-offs together never exceed it.
ALTER TABLE ledger.corrected_charge
    ADD COLUMN written_off bigint NOT NULL DEFAULT 0 CHECK (written_off >= 0),
    -- How much of each leg, in the order of ledger.legs. NULL if nothing was written off.
    ADD COLUMN written_off_legs bigint[],
    DROP CONSTRAINT corrected_within_charge,
    ADD CONSTRAINT corrected_within_charge CHECK (amount + written_off <= gross);

-- A write-off as it was posted.
CREATE TABLE ledger.write_off (
    -- Who need not pay any more: the customer or the organization. Its partition.
    owner_id text COLLATE "C" NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    kind ledger.write_off_kind NOT NULL,
    -- '' if it is not of a charge.
    charge_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    -- Of a charge, how much of each leg.
    legs bigint[],
    create_time timestamptz NOT NULL,
    -- Newest first is backwards along this: ids grow with time.
    PRIMARY KEY (transaction_id, owner_id),
    CHECK ((kind IN ('unpaid', 'receivable')) = (charge_id <> '')),
    CHECK ((charge_id <> '') = (legs IS NOT NULL))
);
CREATE INDEX write_off_owner ON ledger.write_off (owner_id, transaction_id);
CREATE INDEX write_off_charge ON ledger.write_off (charge_id, transaction_id) WHERE charge_id <> '';

-- What is open, the oldest first, whoever owes it: age writes it off.
CREATE INDEX open_charge_age ON ledger.open_charge (open_number);


-- Adjustments. What an operator proposed, and what became of it; neither row ever changes.

CREATE TABLE ledger.adjustment (
    adjustment_id text COLLATE "C" PRIMARY KEY CHECK (starts_with(adjustment_id, 'adj_')),
    -- Parallel, one element per posting.
    owner_ids text[] NOT NULL,
    kinds ledger.account_kind[] NOT NULL,
    currency_codes text[] NOT NULL,
    amounts bigint[] NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    proposer_api_key_id text NOT NULL,
    create_time timestamptz NOT NULL,
    -- From then on nobody can approve it.
    expire_time timestamptz NOT NULL CHECK (expire_time > create_time),
    CHECK (cardinality(owner_ids) = cardinality(kinds) AND cardinality(owner_ids) = cardinality(currency_codes)
           AND cardinality(owner_ids) = cardinality(amounts))
);

CREATE TYPE ledger.adjustment_decision AS ENUM ('posted', 'rejected');

CREATE TABLE ledger.decided_adjustment (
    -- One decision each.
    adjustment_id text COLLATE "C" PRIMARY KEY,
    decision ledger.adjustment_decision NOT NULL,
    -- Whether it had to be somebody else than who proposed it.
    approval boolean NOT NULL,
    actor_api_key_id text NOT NULL,
    reason text NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    CHECK ((decision = 'posted') = (transaction_id <> ''))
);


-- The dispute window, pinned on charges like the rest of an agreement. Older charges have none: an array that ends
-- before a payee says 0.

ALTER TABLE ledger.revenue_share_agreement
    ADD COLUMN dispute_window_days integer NOT NULL DEFAULT 0 CHECK (dispute_window_days BETWEEN 0 AND 365);
ALTER TABLE ledger.charge ADD COLUMN dispute_window_days integer[] NOT NULL DEFAULT '{}';


DO $$
DECLARE
    journal_table text;
BEGIN
    FOREACH journal_table IN ARRAY ARRAY['write_off', 'adjustment', 'decided_adjustment'] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.%I'
            ' FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite()', journal_table);
        EXECUTE format(
            'CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.%I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite()', journal_table);
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', journal_table);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', journal_table);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', journal_table);
        -- They hold the legs of all parties side by side, or name API keys of the platform.
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer'
            ' USING (ledger.visible(''platform''))', journal_table);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', journal_table);
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW ledger.customer_charge WITH (security_barrier) AS
SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code, c.gross,
       coalesce(o.receivable, 0) AS receivable, coalesce(o.unpaid, 0) AS unpaid,
       c.occur_time, c.create_time, c.price_version_id, c.evidence_hash, c.transaction_id,
       c.reservation_id, c.captured_credits, c.captured_receivable, coalesce(x.amount, 0) AS corrected,
       coalesce(x.written_off, 0) AS written_off
FROM ledger.charge c
LEFT JOIN ledger.open_charge o ON o.customer_id = c.customer_id AND o.charge_id = c.charge_id
LEFT JOIN ledger.corrected_charge x ON x.customer_id = c.customer_id AND x.charge_id = c.charge_id
WHERE ledger.visible(c.customer_id);
