-- Credit lots: what each grant has left. Charges spend one number, customer_credits; which lot paid for what is derived
-- from the order of that account's entries, their account_version, by a background step.

ALTER TYPE ledger.account_kind ADD VALUE 'expired_credits';
ALTER TYPE ledger.transaction_type ADD VALUE 'credit_expiry';
ALTER TYPE ledger.transaction_type ADD VALUE 'promotion_settlement';

CREATE TYPE ledger.lot_source AS ENUM ('purchase', 'promotion', 'adjustment', 'reinstatement');

-- The terms that credits were granted on. Grants from before have none: the defaults hold for them.
CREATE TABLE ledger.credit_grant (
    customer_id text COLLATE "C" NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    -- Who pays for what a promotion buys: an organization or 'platform'. Empty for credits that were bought.
    funder_id text COLLATE "C" NOT NULL,
    -- Lower is spent first.
    priority smallint NOT NULL CHECK (priority BETWEEN 0 AND 100),
    expire_time timestamptz,
    PRIMARY KEY (customer_id, transaction_id)
);

-- One per entry that added credits, except those that give back what a lot had paid.
CREATE TABLE ledger.credit_lot (
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- The transaction that added it.
    lot_id text COLLATE "C" NOT NULL,
    source ledger.lot_source NOT NULL,
    funder_id text COLLATE "C" NOT NULL,
    priority smallint NOT NULL,
    expire_time timestamptz,
    -- When to look whether it can be expired: its expire_time, and later again if its credits were held then.
    check_time timestamptz,
    amount bigint NOT NULL CHECK (amount > 0),
    remaining bigint NOT NULL CHECK (remaining BETWEEN 0 AND amount),
    -- How much expiry took, in all.
    expired bigint NOT NULL DEFAULT 0 CHECK (expired >= 0),
    -- The version of customer_credits that added it.
    opened_version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    -- Whether anything remains: indexes go by this, so that taking a part of a lot stays within the page.
    is_open boolean NOT NULL DEFAULT true,
    PRIMARY KEY (customer_id, currency_code, lot_id),
    CHECK (is_open = (remaining > 0)),
    CHECK ((source = 'promotion') = (funder_id <> ''))
) WITH (fillfactor = 70);
CREATE INDEX credit_lot_open ON ledger.credit_lot (customer_id, currency_code) WHERE is_open;
CREATE INDEX credit_lot_check ON ledger.credit_lot (check_time) WHERE is_open AND check_time IS NOT NULL;

-- Which lot paid for, or got, which entries of customer_credits. A row is either one entry's part in one lot (number
-- counts the lots of an entry), or, first_version < last_version, several debits in a row that this lot paid wholly.
CREATE TABLE ledger.lot_allocation (
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    last_version bigint NOT NULL,
    number smallint NOT NULL CHECK (number > 0),
    first_version bigint NOT NULL CHECK (first_version BETWEEN 1 AND last_version),
    lot_id text COLLATE "C" NOT NULL,
    -- Positive into the lot, negative out of it.
    amount bigint NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (customer_id, currency_code, last_version, number),
    CHECK (first_version = last_version OR (number = 1 AND amount < 0))
);

-- How far the lots of a customer have come: up to which version of its customer_credits.
CREATE TABLE ledger.lot_cursor (
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    allocated_version bigint NOT NULL DEFAULT 0 CHECK (allocated_version >= 0),
    PRIMARY KEY (customer_id, currency_code)
) WITH (fillfactor = 70);

-- How far each log has been read for entries to allocate.
CREATE TABLE ledger.lot_feed (
    log_id text PRIMARY KEY,
    position bigint NOT NULL DEFAULT 0
);

-- What an organization's promotional credits paid for, or got back, and is not settled yet. The debit is a charge with
-- its collections and corrections, or another transaction by itself.
CREATE TABLE ledger.promotion_due (
    customer_id text COLLATE "C" NOT NULL,
    debit_id text COLLATE "C" NOT NULL,
    funder_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- An adjustment may take credits of several currencies in one transaction.
    PRIMARY KEY (customer_id, debit_id, funder_id, currency_code)
);
CREATE INDEX promotion_due_time ON ledger.promotion_due (create_time);

-- How a debit was settled with a funder: once, and again after each change. The amounts add up to what that funder's lots
-- have paid of it.
CREATE TABLE ledger.promotion_settlement (
    customer_id text COLLATE "C" NOT NULL,
    debit_id text COLLATE "C" NOT NULL,
    funder_id text COLLATE "C" NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    -- Whether it took back what the funder had earned by the debit itself, or pays for what that bought from others.
    of_earnings boolean NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    PRIMARY KEY (customer_id, debit_id, funder_id, transaction_id)
);

DO $$
DECLARE
    -- table name, and what a row must satisfy to be read
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['credit_grant', 'ledger.visible(customer_id)'],
        ['credit_lot', 'ledger.visible(customer_id)'],
        ['lot_allocation', 'ledger.visible(''platform'')'],
        ['lot_cursor', 'ledger.visible(''platform'')'],
        ['lot_feed', 'ledger.visible(''platform'')'],
        ['promotion_due', 'ledger.visible(''platform'')'],
        ['promotion_settlement', 'ledger.visible(''platform'')']
    ] LOOP
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', rule[1]);
    END LOOP;
    FOREACH rule SLICE 1 IN ARRAY ARRAY[['credit_grant'], ['lot_allocation'], ['promotion_settlement']] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.%I'
            ' FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite()', rule[1]);
        EXECUTE format(
            'CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.%I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite()', rule[1]);
    END LOOP;
END
$$;
