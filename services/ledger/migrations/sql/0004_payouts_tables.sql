-- What payouts take from organizations' earnings. Rows are kept for ever: a payout id has one outcome.

ALTER TYPE ledger.account_kind ADD VALUE 'payouts_in_transit';
ALTER TYPE ledger.transaction_type ADD VALUE 'payout';
ALTER TYPE ledger.transaction_type ADD VALUE 'payout_completion';
ALTER TYPE ledger.transaction_type ADD VALUE 'payout_return';
ALTER TYPE ledger.transaction_type ADD VALUE 'payout_reversal';

-- Of the four types above, what it moves the money of.
ALTER TABLE ledger.transaction ADD COLUMN payout_id text COLLATE "C";

CREATE TYPE ledger.payout_debit_state AS ENUM ('in_transit', 'completed', 'returned', 'refused');

CREATE TABLE ledger.payout_debit (
    organization_id text COLLATE "C" NOT NULL,
    payout_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    state ledger.payout_debit_state NOT NULL,
    -- What came back after it was completed.
    reversed bigint NOT NULL DEFAULT 0 CHECK (reversed BETWEEN 0 AND amount),
    -- What could have been paid when it was asked for: why it was refused, if it was.
    available bigint NOT NULL,
    transaction_id text COLLATE "C" NOT NULL DEFAULT '',
    -- The one transaction that ended it.
    end_transaction_id text COLLATE "C" NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    end_time timestamptz,
    PRIMARY KEY (organization_id, payout_id),
    CHECK ((state = 'in_transit') = (end_time IS NULL)),
    CHECK ((state = 'refused') = (transaction_id = '')),
    CHECK ((state IN ('completed', 'returned')) = (end_transaction_id <> '')),
    CHECK (state = 'completed' OR reversed = 0)
) WITH (fillfactor = 70);
CREATE INDEX payout_debit_in_transit ON ledger.payout_debit (organization_id) WHERE state = 'in_transit';

ALTER TABLE ledger.payout_debit ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger.payout_debit FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON ledger.payout_debit TO ledger_owner USING (true);
CREATE POLICY tenant_select ON ledger.payout_debit FOR SELECT TO ledger_reader, ledger_writer
    USING (ledger.visible(organization_id));
GRANT SELECT ON ledger.payout_debit TO ledger_reader, ledger_writer;
