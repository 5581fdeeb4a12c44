-- What money at the payment processor does by itself: purchases that come back, and fees. And who is frozen.

ALTER TYPE ledger.account_kind ADD VALUE 'customer_chargebacks';
ALTER TYPE ledger.account_kind ADD VALUE 'stripe_fees';
ALTER TYPE ledger.transaction_type ADD VALUE 'purchase_refund';
ALTER TYPE ledger.transaction_type ADD VALUE 'purchase_chargeback';
ALTER TYPE ledger.transaction_type ADD VALUE 'purchase_reinstatement';
ALTER TYPE ledger.transaction_type ADD VALUE 'processor_fee';

-- A debt never becomes more than paid. NULL for accounts that may have any balance above their lower bound.
ALTER TABLE ledger.account
    ADD COLUMN upper_bound bigint,
    ADD CONSTRAINT account_not_overpaid CHECK (upper_bound IS NULL OR credits - debits <= upper_bound);
-- Who owes for chargebacks. The bound never changes, so an update of the balance stays within the page.
CREATE INDEX account_upper_bound ON ledger.account (owner_id, currency_code) WHERE upper_bound IS NOT NULL;

-- What a transaction is known by outside: the key of a purchase, or the processor's own id.
ALTER TABLE ledger.transaction ADD COLUMN external_id text COLLATE "C";
-- Purchases know their key from now on; those that were posted before learn it here. Nothing that was posted changes.
ALTER TABLE ledger.transaction DISABLE TRIGGER append_only;
UPDATE ledger.transaction t SET external_id = substr(k.key, length('grant/') + 1)
FROM ledger.idempotency k
WHERE t.type = 'purchase' AND k.owner_id = t.partition_id AND k.key LIKE 'grant/%' AND k.outcome = t.transaction_id;
ALTER TABLE ledger.transaction ENABLE TRIGGER append_only;
-- What can move the platform's money at the processor, in the order of time. The usual transactions cannot.
CREATE INDEX transaction_create_time ON ledger.transaction (create_time, transaction_id)
    WHERE type NOT IN ('charge', 'collection');

-- A purchase of which something came back: how much of it is gone.
CREATE TABLE ledger.reversed_purchase (
    customer_id text COLLATE "C" NOT NULL,
    purchase_key text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    reversed bigint NOT NULL,
    PRIMARY KEY (customer_id, purchase_key),
    CONSTRAINT reversed_within_purchase CHECK (reversed BETWEEN 0 AND amount)
) WITH (fillfactor = 70);

-- Each time that money of a purchase went back. Kept for ever: an id has one outcome.
CREATE TABLE ledger.purchase_reversal (
    customer_id text COLLATE "C" NOT NULL,
    reversal_id text COLLATE "C" NOT NULL,
    purchase_key text COLLATE "C" NOT NULL,
    type ledger.transaction_type NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    -- What the customer's credits covered; the rest became debt.
    from_credits bigint NOT NULL CHECK (from_credits BETWEEN 0 AND amount),
    transaction_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    -- What came again of it, once.
    reinstated bigint NOT NULL DEFAULT 0 CHECK (reinstated BETWEEN 0 AND amount),
    reinstatement_id text COLLATE "C" NOT NULL DEFAULT '',
    reinstatement_transaction_id text COLLATE "C" NOT NULL DEFAULT '',
    PRIMARY KEY (customer_id, reversal_id),
    FOREIGN KEY (customer_id, purchase_key) REFERENCES ledger.reversed_purchase,
    CHECK ((reinstated > 0) = (reinstatement_id <> '')),
    CHECK ((reinstated > 0) = (reinstatement_transaction_id <> ''))
);

-- Who is frozen now: an organization's payouts, a customer's runs.
ALTER TABLE ledger.organization
    ADD COLUMN payouts_freeze_reason text NOT NULL DEFAULT '',
    ADD COLUMN payouts_freeze_time timestamptz,
    ADD CHECK ((payouts_freeze_reason <> '') = (payouts_freeze_time IS NOT NULL));
ALTER TABLE ledger.customer
    ADD COLUMN freeze_reason text NOT NULL DEFAULT '',
    ADD COLUMN freeze_time timestamptz,
    ADD CHECK ((freeze_reason <> '') = (freeze_time IS NOT NULL));

-- Who froze whom, and who let go, for ever.
CREATE TABLE ledger.freeze_event (
    owner_id text COLLATE "C" NOT NULL,
    freeze_event_id bigint GENERATED ALWAYS AS IDENTITY,
    frozen boolean NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    actor_api_key_id text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (owner_id, freeze_event_id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.freeze_event
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.freeze_event
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite();

-- Whether it was refused because its customer was frozen, and not for lack of money.
ALTER TABLE ledger.hold
    ADD COLUMN frozen boolean NOT NULL DEFAULT false,
    ADD CHECK (state = 'refused' OR NOT frozen);

-- Why payouts were frozen when this one was refused for it; NULL for any other.
ALTER TABLE ledger.payout_debit
    ADD COLUMN freeze_reason text,
    ADD CHECK (freeze_reason IS NULL OR state = 'refused');

DO $$
DECLARE
    -- table name, and what a row must satisfy to be read
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['reversed_purchase', 'ledger.visible(customer_id)'],
        ['purchase_reversal', 'ledger.visible(customer_id)'],
        -- It names API keys of the platform.
        ['freeze_event', 'ledger.visible(''platform'')']
    ] LOOP
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', rule[1]);
    END LOOP;
END
$$;
