-- Customers at the payment processor, their saved payment methods, and the credits that they buy.
--
-- As in 0001_payouts.sql: amounts are micros of the row's currency, what will be asked is written down before it is
-- asked, and what belongs to the ledger stays there. No card number, name or address ever comes here.

CREATE TABLE payouts.stripe_customer (
    customer_id text COLLATE "C" PRIMARY KEY,
    -- Set once, when the payment processor has made the customer.
    stripe_customer_id text COLLATE "C" UNIQUE,
    -- Which attempt to make it is under way, and since when: its idempotency key is good for a day.
    call_number integer NOT NULL,
    call_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL
);

-- What is saved at the payment processor, in the few words by which its owner knows it.
CREATE TABLE payouts.payment_method (
    payment_method_id text COLLATE "C" PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL REFERENCES payouts.stripe_customer,
    type text NOT NULL,
    brand text NOT NULL,
    last4 text NOT NULL,
    expire_month text NOT NULL,
    is_default boolean NOT NULL,
    create_time timestamptz NOT NULL
);
CREATE INDEX payment_method_by_customer ON payouts.payment_method (customer_id, create_time, payment_method_id);
CREATE UNIQUE INDEX payment_method_default ON payouts.payment_method (customer_id) WHERE is_default;


CREATE TABLE payouts.purchase (
    purchase_id text COLLATE "C" PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros > 0),
    -- 'paid': the payment processor has the money, and the ledger is owed the grant of the credits.
    state text NOT NULL CHECK (state IN (
        'processing', 'requires_action', 'paid', 'succeeded', 'failed', 'cancelled')),
    origin text NOT NULL CHECK (origin IN ('request', 'auto_recharge')),
    request_hash bytea NOT NULL,
    requester text COLLATE "C" NOT NULL,
    payment_method_id text COLLATE "C" NOT NULL,

    -- The payment, frozen before it is first asked for: the same key must never go with another body.
    intent_body jsonb NOT NULL,
    intent_key text COLLATE "C" NOT NULL,
    intent_time timestamptz NOT NULL,
    payment_intent_id text COLLATE "C" UNIQUE,
    failure_code text NOT NULL DEFAULT '',
    failure_reason text NOT NULL DEFAULT '',
    -- Since when it shall not be paid any more, by its owner's wish or because it was declined.
    cancel_time timestamptz,
    -- The transaction in the ledger that granted the credits.
    transaction_id text COLLATE "C",

    -- What was read of it at the payment processor since; its fee is NULL until the processor says it.
    refunded_micros bigint NOT NULL DEFAULT 0 CHECK (refunded_micros >= 0),
    disputed_micros bigint NOT NULL DEFAULT 0 CHECK (disputed_micros >= 0),
    fee_micros bigint,
    -- Whether that is to be read again.
    look boolean NOT NULL DEFAULT false,

    -- Why it stands still; '' if it does not.
    hold text NOT NULL DEFAULT '' CHECK (hold IN ('', 'key_refused', 'key_conflict', 'unresolved')),
    attempt_count integer NOT NULL DEFAULT 0,
    -- When there is next something to do; NULL if nothing is. Also a lease: who takes it moves it ahead.
    next_attempt_time timestamptz,
    last_error text NOT NULL DEFAULT '',
    -- As that of connected_account.
    version bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,

    CHECK (state NOT IN ('requires_action', 'paid', 'succeeded') OR payment_intent_id IS NOT NULL),
    CHECK ((state = 'succeeded') = (transaction_id IS NOT NULL)),
    CHECK (refunded_micros = 0 AND disputed_micros = 0 OR state = 'succeeded')
);
CREATE INDEX purchase_by_customer ON payouts.purchase (customer_id, create_time, purchase_id);
CREATE INDEX purchase_by_time ON payouts.purchase (create_time, purchase_id);
CREATE INDEX purchase_due ON payouts.purchase (next_attempt_time) WHERE next_attempt_time IS NOT NULL;

-- Each step of a purchase. Append-only.
CREATE TABLE payouts.purchase_step (
    purchase_id text COLLATE "C" NOT NULL REFERENCES payouts.purchase,
    number integer NOT NULL CHECK (number > 0),
    customer_id text COLLATE "C" NOT NULL,
    state text NOT NULL,
    actor text COLLATE "C" NOT NULL,
    method text NOT NULL,
    reason text NOT NULL,
    stripe_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (purchase_id, number)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payouts.purchase_step
    FOR EACH ROW EXECUTE FUNCTION payouts.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payouts.purchase_step
    FOR EACH STATEMENT EXECUTE FUNCTION payouts.refuse_change();
-- The second wall: what may have been paid never goes away.
CREATE TRIGGER kept BEFORE DELETE ON payouts.purchase
    FOR EACH ROW EXECUTE FUNCTION payouts.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON payouts.purchase
    FOR EACH STATEMENT EXECUTE FUNCTION payouts.refuse_change();

-- What went back of a purchase, by the payment processor's id of the refund or dispute, and what of it came again.
-- Each side has a flag that says whether the ledger has it.
CREATE TABLE payouts.purchase_reversal (
    reversal_id text COLLATE "C" PRIMARY KEY,
    purchase_id text COLLATE "C" NOT NULL REFERENCES payouts.purchase,
    customer_id text COLLATE "C" NOT NULL,
    kind text NOT NULL CHECK (kind IN ('refund', 'dispute')),
    amount_micros bigint NOT NULL CHECK (amount_micros > 0),
    reason text NOT NULL,
    posted boolean NOT NULL DEFAULT false,
    -- The balance transaction by which it came again; '' if it has not.
    reinstatement_id text COLLATE "C" NOT NULL DEFAULT '',
    reinstated_micros bigint NOT NULL DEFAULT 0 CHECK (reinstated_micros BETWEEN 0 AND amount_micros),
    reinstatement_posted boolean NOT NULL DEFAULT false,
    create_time timestamptz NOT NULL,
    CHECK ((reinstatement_id = '') = (reinstated_micros = 0)),
    CHECK (posted OR NOT reinstatement_posted)
);
CREATE INDEX purchase_reversal_by_purchase ON payouts.purchase_reversal (purchase_id, create_time, reversal_id);

-- What the payment processor took, or gave back, by the balance transaction that it did it with.
CREATE TABLE payouts.purchase_fee (
    fee_id text COLLATE "C" PRIMARY KEY,
    purchase_id text COLLATE "C" NOT NULL REFERENCES payouts.purchase,
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros <> 0),
    reason text NOT NULL,
    posted boolean NOT NULL DEFAULT false
);
CREATE INDEX purchase_fee_by_purchase ON payouts.purchase_fee (purchase_id);

-- Refunds that an operator asked for: frozen likewise. What becomes of their money is read into purchase_reversal.
CREATE TABLE payouts.refund_request (
    refund_request_id text COLLATE "C" PRIMARY KEY,
    purchase_id text COLLATE "C" NOT NULL REFERENCES payouts.purchase,
    customer_id text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros > 0),
    reason text NOT NULL,
    requester text COLLATE "C" NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'made', 'refused')),
    refund_body jsonb NOT NULL,
    refund_key text COLLATE "C" NOT NULL,
    refund_time timestamptz NOT NULL,
    refund_id text COLLATE "C",
    failure_code text NOT NULL DEFAULT '',
    failure_reason text NOT NULL DEFAULT '',
    CHECK ((state = 'made') = (refund_id IS NOT NULL))
);
CREATE INDEX refund_request_by_purchase ON payouts.refund_request (purchase_id, refund_time, refund_request_id);


-- Customers whose credits are bought by themselves.
CREATE TABLE payouts.auto_recharge (
    customer_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    enabled boolean NOT NULL,
    threshold_micros bigint NOT NULL CHECK (threshold_micros >= 0),
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    ceiling_micros bigint NOT NULL CHECK (ceiling_micros >= 0),
    cool_off_seconds integer NOT NULL CHECK (cool_off_seconds > 0),
    -- '' for the customer's default.
    payment_method_id text COLLATE "C" NOT NULL,
    -- What was bought in `month` (YYYY-MM, UTC); nothing in a later one.
    month text NOT NULL DEFAULT '',
    bought_micros bigint NOT NULL DEFAULT 0 CHECK (bought_micros >= 0),
    -- How often it bought: names the next purchase.
    recharge_number integer NOT NULL DEFAULT 0,
    last_purchase_id text COLLATE "C",
    -- Not before then.
    next_time timestamptz NOT NULL,
    -- Why it does not buy until it is set again; '' if nothing is in the way.
    stopped_reason text NOT NULL DEFAULT '',
    update_time timestamptz NOT NULL,
    PRIMARY KEY (customer_id, currency_code),
    CHECK (NOT enabled OR threshold_micros > 0 AND amount_micros > 0 AND ceiling_micros >= amount_micros)
);


DO $$
DECLARE
    -- table name, the columns that may be updated
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['stripe_customer', '*'],
        ['payment_method', '*'],
        ['purchase', '*'],
        ['purchase_step', ''],
        ['purchase_reversal', '(posted, reinstatement_id, reinstated_micros, reinstatement_posted)'],
        ['purchase_fee', '(posted)'],
        ['refund_request', '(state, refund_id, failure_code, failure_reason)'],
        ['auto_recharge', '*']
    ] LOOP
        EXECUTE format('ALTER TABLE payouts.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE payouts.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON payouts.%I TO payouts_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON payouts.%I FOR SELECT TO payouts_reader, payouts_writer'
            ' USING (payouts.visible(customer_id))', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_insert ON payouts.%I FOR INSERT TO payouts_writer'
            ' WITH CHECK (payouts.visible(customer_id))', rule[1]);
        EXECUTE format('GRANT SELECT ON payouts.%I TO payouts_reader, payouts_writer', rule[1]);
        EXECUTE format('GRANT INSERT ON payouts.%I TO payouts_writer', rule[1]);
        CONTINUE WHEN rule[2] = '';
        EXECUTE format(
            'CREATE POLICY tenant_update ON payouts.%I FOR UPDATE TO payouts_writer'
            ' USING (payouts.visible(customer_id))', rule[1]);
        EXECUTE format('GRANT UPDATE %s ON payouts.%I TO payouts_writer', replace(rule[2], '*', ''), rule[1]);
    END LOOP;
    -- A removed payment method is forgotten.
    CREATE POLICY tenant_delete ON payouts.payment_method FOR DELETE TO payouts_writer
        USING (payouts.visible(customer_id));
    GRANT DELETE ON payouts.payment_method TO payouts_writer;
END
$$;
