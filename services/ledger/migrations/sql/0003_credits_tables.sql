-- Credits that are set aside before work is done: leases, within which metering allocates, and holds, one per piece
-- of work. Neither is a movement of money, so neither has entries: account.held says how much of an account they
-- keep, on customer_credits (leases and holds) and on customer_receivable (holds alone).

CREATE TYPE ledger.hold_purpose AS ENUM ('run', 'outcome');
CREATE TYPE ledger.hold_state AS ENUM ('held', 'refused', 'settled', 'released', 'expired');

CREATE TABLE ledger.credit_lease (
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- Numbers the leases of this customer and currency, from 1, for ever: allocations name it.
    epoch bigint NOT NULL CHECK (epoch > 0),
    -- Still set aside: granted, minus captured, minus returned.
    remaining bigint NOT NULL CHECK (remaining >= 0),
    -- Counts the changes of remaining, so that of two answers the newer is known.
    version bigint NOT NULL,
    -- The highest number of a return that took effect: none takes effect again, and none that comes after it late.
    return_number bigint NOT NULL DEFAULT 0,
    -- Somebody was refused money that this lease holds.
    recall boolean NOT NULL DEFAULT false,
    -- A later epoch is current.
    draining boolean NOT NULL DEFAULT false,
    -- Its time is over and what remained went back. The newest row of a customer is kept for its epoch.
    closed boolean NOT NULL DEFAULT false,
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (customer_id, currency_code, epoch),
    CHECK (remaining = 0 OR NOT closed)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX credit_lease_current ON ledger.credit_lease (customer_id, currency_code) WHERE NOT draining;
-- Neither column changes when a charge captures, so that its update stays within the page.
CREATE INDEX credit_lease_expire ON ledger.credit_lease (expire_time) WHERE NOT closed;

CREATE TABLE ledger.hold (
    customer_id text COLLATE "C" NOT NULL,
    hold_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    purpose ledger.hold_purpose NOT NULL,
    state ledger.hold_state NOT NULL,
    -- What it holds, or held when it ended, and what a charge took of that.
    credits bigint NOT NULL CHECK (credits >= 0),
    receivable bigint NOT NULL CHECK (receivable >= 0),
    captured_credits bigint NOT NULL DEFAULT 0 CHECK (captured_credits BETWEEN 0 AND credits),
    captured_receivable bigint NOT NULL DEFAULT 0 CHECK (captured_receivable BETWEEN 0 AND receivable),
    -- Of what it was asked for with; empty for what a charge asked for.
    content_hash bytea NOT NULL,
    charge_id text COLLATE "C" NOT NULL DEFAULT '',
    -- What the work will be charged by, as its maker says; empty if that is not known yet.
    price_version_id text COLLATE "C" NOT NULL DEFAULT '',
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    end_time timestamptz,
    PRIMARY KEY (customer_id, hold_id),
    CHECK ((state = 'held') = (end_time IS NULL)),
    CHECK (state = 'settled' OR (captured_credits = 0 AND captured_receivable = 0 AND charge_id = ''))
) WITH (fillfactor = 70);
CREATE INDEX hold_expire ON ledger.hold (purpose, expire_time) WHERE state = 'held';
CREATE INDEX hold_ended ON ledger.hold (expire_time) WHERE state <> 'held';

-- Allocations of a lease that were given back: no charge captures them any more. Kept until well after they would
-- have expired, which is as good a reason to capture nothing.
CREATE TABLE ledger.released_reservation (
    customer_id text COLLATE "C" NOT NULL,
    reservation_id text COLLATE "C" NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (customer_id, reservation_id)
);
CREATE INDEX released_reservation_expire ON ledger.released_reservation (expire_time);

-- What a charge was paid from first, and how much of its payment came from there. Empty if it had no reservation,
-- or one that had ended.
ALTER TABLE ledger.charge
    ADD COLUMN reservation_id text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN captured_credits bigint NOT NULL DEFAULT 0,
    ADD COLUMN captured_receivable bigint NOT NULL DEFAULT 0,
    ADD CHECK (captured_credits BETWEEN 0 AND from_credits),
    ADD CHECK (captured_receivable BETWEEN 0 AND from_receivable),
    ADD CHECK (reservation_id <> '' OR (captured_credits = 0 AND captured_receivable = 0));
-- A reservation that a charge was paid from has ended, whoever asks and whatever for: it pays no other. The functions
-- see to that behind the customer's lock; here it cannot be otherwise.
CREATE UNIQUE INDEX charge_reservation ON ledger.charge (customer_id, reservation_id) WHERE reservation_id <> '';

CREATE OR REPLACE VIEW ledger.customer_charge WITH (security_barrier) AS
SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code, c.gross,
       coalesce(o.receivable, 0) AS receivable, coalesce(o.unpaid, 0) AS unpaid,
       c.occur_time, c.create_time, c.price_version_id, c.evidence_hash, c.transaction_id,
       c.reservation_id, c.captured_credits, c.captured_receivable
FROM ledger.charge c
LEFT JOIN ledger.open_charge o ON o.customer_id = c.customer_id AND o.charge_id = c.charge_id
WHERE ledger.visible(c.customer_id);

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['credit_lease', 'hold', 'released_reservation'] LOOP
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', table_name);
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer'
            ' USING (ledger.visible(customer_id))', table_name);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', table_name);
    END LOOP;
END
$$;
