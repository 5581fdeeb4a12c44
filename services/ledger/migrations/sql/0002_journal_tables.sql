-- The journal and the balances that follow from it.
--
-- Signs: an amount is positive for a credit and negative for a debit; balance = credits - debits. All amounts
-- are micros of the row's currency. Ids compare bytewise (COLLATE "C"), here as in the services.

CREATE TYPE ledger.account_kind AS ENUM (
    'customer_credits',
    'customer_receivable',
    'customer_unpaid',
    'unpaid_offset',
    'organization_payable',
    'platform_fees',
    'processing_fees',
    'stripe_clearing',
    'promotions',
    'adjustments'
);

CREATE TYPE ledger.transaction_type AS ENUM ('charge', 'collection', 'purchase', 'promotion', 'adjustment');


-- Accounts: totals kept beside the journal, so that a balance is one row. They can be recomputed from entry.

CREATE TABLE ledger.account (
    owner_id text COLLATE "C" NOT NULL,
    kind ledger.account_kind NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    credits bigint NOT NULL DEFAULT 0 CHECK (credits >= 0),
    debits bigint NOT NULL DEFAULT 0 CHECK (debits >= 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    -- What a customer_receivable may grow to; 0 for every other kind.
    credit_limit bigint NOT NULL DEFAULT 0 CHECK (credit_limit >= 0),
    -- Debit-limited accounts never fall below this; NULL for the others.
    lower_bound bigint,
    -- Counts the entries of a debit-limited account, so that the order of spending is derivable.
    version bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (owner_id, kind, currency_code),
    CONSTRAINT account_not_overdrawn CHECK (lower_bound IS NULL OR credits - debits - held >= lower_bound)
) WITH (fillfactor = 70);

-- Earnings of an organization by what must still happen before they can be paid out.
CREATE TABLE ledger.earnings_bucket (
    owner_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    collected boolean NOT NULL,
    earned_on date NOT NULL,
    available_on date NOT NULL,
    credits bigint NOT NULL DEFAULT 0 CHECK (credits >= 0),
    debits bigint NOT NULL DEFAULT 0 CHECK (debits >= 0),
    PRIMARY KEY (owner_id, currency_code, collected, earned_on, available_on)
) WITH (fillfactor = 70);

-- What was posted to accounts without a lower bound and is not yet in their totals. Charges insert here instead
-- of updating a shared row, so they never wait for each other at an organization; fold() moves it on.
CREATE TABLE ledger.balance_delta (
    delta_id bigint GENERATED ALWAYS AS IDENTITY,
    owner_id text COLLATE "C" NOT NULL,
    kind ledger.account_kind NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    collected boolean,
    earned_on date,
    available_on date,
    credits bigint NOT NULL,
    debits bigint NOT NULL,
    PRIMARY KEY (owner_id, delta_id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);


-- The journal. Append-only: see the triggers at the end.

CREATE TABLE ledger.transaction (
    transaction_id text COLLATE "C" NOT NULL,
    -- The customer or organization in whose partition all rows of the transaction are, or 'platform'.
    partition_id text COLLATE "C" NOT NULL,
    type ledger.transaction_type NOT NULL,
    charge_id text COLLATE "C",
    occur_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    reason text NOT NULL DEFAULT '',
    actor_api_key_id text NOT NULL,
    -- The id comes first because it grows with time: inserts stay at one end of the index.
    PRIMARY KEY (transaction_id, partition_id)
);
CREATE INDEX transaction_charge ON ledger.transaction (charge_id) WHERE type = 'collection';

CREATE TABLE ledger.entry (
    transaction_id text COLLATE "C" NOT NULL,
    entry_number smallint NOT NULL,
    partition_id text COLLATE "C" NOT NULL,
    owner_id text COLLATE "C" NOT NULL,
    kind ledger.account_kind NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount <> 0),
    -- The earnings bucket, for organization_payable only.
    collected boolean,
    earned_on date,
    available_on date,
    -- The account's version after this entry, for debit-limited accounts only.
    account_version bigint,
    PRIMARY KEY (transaction_id, entry_number, partition_id),
    CHECK ((kind = 'organization_payable') = (collected IS NOT NULL)),
    CHECK ((collected IS NULL) = (earned_on IS NULL) AND (collected IS NULL) = (available_on IS NULL))
);
CREATE INDEX entry_owner ON ledger.entry (owner_id, transaction_id, entry_number);

-- A charge as it was posted. The arrays have one element per payee, in the order of the request.
CREATE TABLE ledger.charge (
    charge_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text NOT NULL,
    component smallint NOT NULL,
    ordinal integer NOT NULL,
    currency_code text NOT NULL,
    gross bigint NOT NULL CHECK (gross >= 0),
    organization_ids text[] NOT NULL,
    agent_ids text[] NOT NULL,
    -- Gross share of each payee, and the fees taken from it; net is the rest.
    payee_gross bigint[] NOT NULL,
    platform_fees bigint[] NOT NULL,
    processing_fees bigint[] NOT NULL,
    -- The agreements, pinned.
    platform_fee_bps integer[] NOT NULL,
    processing_fee_bps integer[] NOT NULL,
    settlement_hold_days integer[] NOT NULL,
    -- How it was paid when it was posted.
    from_credits bigint NOT NULL CHECK (from_credits >= 0),
    from_receivable bigint NOT NULL CHECK (from_receivable >= 0),
    unpaid bigint NOT NULL CHECK (unpaid >= 0),
    occur_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    price_version_id text NOT NULL,
    evidence_hash bytea NOT NULL,
    transaction_id text NOT NULL,
    PRIMARY KEY (charge_id, customer_id),
    CHECK (from_credits + from_receivable + unpaid = gross)
);

-- What is still open of a charge. "Legs" are the parts of a charge in a fixed order: net, platform fee and
-- processing fee of the first payee, then of the second, and so on. Rows end when nothing is open.
CREATE TABLE ledger.open_charge (
    customer_id text COLLATE "C" NOT NULL,
    -- Grows with time, so that the oldest is collected first.
    open_number bigint GENERATED ALWAYS AS IDENTITY,
    charge_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- Earned but not collected, by leg; the sum is what the customer owes as receivable.
    uncollected_legs bigint[] NOT NULL,
    receivable bigint NOT NULL CHECK (receivable >= 0),
    -- Not even earned, by leg; the sum is what is unpaid.
    unearned_legs bigint[] NOT NULL,
    unpaid bigint NOT NULL CHECK (unpaid >= 0),
    PRIMARY KEY (customer_id, open_number),
    UNIQUE (customer_id, charge_id),
    CHECK (receivable + unpaid > 0)
);


-- The sequence: transactions wait in unsequenced until sequence() gives each its position in the log.

CREATE TABLE ledger.unsequenced (
    unsequenced_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partition_id text COLLATE "C" NOT NULL,
    transaction_id text COLLATE "C" NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);

CREATE TABLE ledger.journal_log (
    log_id text PRIMARY KEY,
    last_position bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger.journal_position (
    log_id text NOT NULL,
    position bigint NOT NULL,
    partition_id text COLLATE "C" NOT NULL,
    transaction_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (log_id, position)
);

INSERT INTO ledger.journal_log (log_id) VALUES ('log_' || replace(gen_random_uuid()::text, '-', ''));


-- The second wall: whatever rights a role has, nobody changes what was posted.

DO $$
DECLARE
    journal_table text;
BEGIN
    FOREACH journal_table IN ARRAY ARRAY['transaction', 'entry', 'charge', 'journal_position'] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.%I'
            ' FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite()', journal_table);
        EXECUTE format(
            'CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.%I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite()', journal_table);
    END LOOP;
END
$$;


-- Tenants. The writer changes the journal only by calling functions of the owner; it has no rights on these
-- tables beyond reading what its settings let it see. Only the platform reads the tables that hold all parties'
-- legs side by side; customers and organizations read the views below.

DO $$
DECLARE
    -- table name, and what a row must satisfy to be read
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['account', 'ledger.visible(owner_id)'],
        ['earnings_bucket', 'ledger.visible(owner_id)'],
        ['balance_delta', 'ledger.visible(owner_id)'],
        ['entry', 'ledger.visible(owner_id)'],
        ['transaction', 'ledger.visible(partition_id) OR EXISTS (SELECT FROM ledger.entry e'
            ' WHERE e.transaction_id = transaction.transaction_id AND ledger.visible(e.owner_id))'],
        ['charge', 'ledger.visible(''platform'')'],
        ['open_charge', 'ledger.visible(''platform'')'],
        ['unsequenced', 'ledger.visible(''platform'')'],
        ['journal_log', 'ledger.visible(''platform'')'],
        ['journal_position', 'ledger.visible(''platform'')']
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

-- A charge as its payer sees it: no word of how it is split.
CREATE VIEW ledger.customer_charge WITH (security_barrier) AS
SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code, c.gross,
       coalesce(o.receivable, 0) AS receivable, coalesce(o.unpaid, 0) AS unpaid,
       c.occur_time, c.create_time, c.price_version_id, c.evidence_hash, c.transaction_id
FROM ledger.charge c
LEFT JOIN ledger.open_charge o ON o.customer_id = c.customer_id AND o.charge_id = c.charge_id
WHERE ledger.visible(c.customer_id);

-- A payee's share of a charge, as that payee sees it: no word of the other payees.
CREATE VIEW ledger.earning WITH (security_barrier) AS
SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code,
       p.payee_number, p.organization_id, p.agent_id, p.gross, p.platform_fee, p.processing_fee,
       p.platform_fee_bps, p.processing_fee_bps,
       c.occur_time, c.create_time, c.price_version_id, c.transaction_id
FROM ledger.charge c
CROSS JOIN LATERAL unnest(
    c.organization_ids, c.agent_ids, c.payee_gross, c.platform_fees, c.processing_fees,
    c.platform_fee_bps, c.processing_fee_bps
) WITH ORDINALITY AS p (
    organization_id, agent_id, gross, platform_fee, processing_fee,
    platform_fee_bps, processing_fee_bps, payee_number
)
WHERE ledger.visible(p.organization_id);

CREATE VIEW ledger.credit_limit WITH (security_barrier) AS
SELECT owner_id AS customer_id, currency_code, credit_limit AS limit_micros
FROM ledger.account
WHERE kind = 'customer_receivable' AND credit_limit > 0 AND ledger.visible(owner_id);

GRANT SELECT ON ledger.customer_charge, ledger.earning, ledger.credit_limit TO ledger_reader, ledger_writer;
