-- Connected accounts, payouts with their history, and the events of the payment processor.
--
-- Amounts are micros of the row's currency. Ids compare bytewise (COLLATE "C"), here as in the services. What belongs
-- to the ledger stays there: these tables say what was asked of the payment processor, and what it answered.

-- Whether the current transaction may see what belongs to this organization or customer. Unset settings show
-- nothing. (A setting that was local to an earlier transaction of the connection reads as ''.)
CREATE FUNCTION payouts.visible(owner_id text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(current_setting('tallystick.platform', true) = 'on', false)
        OR coalesce(owner_id = ANY (nullif(current_setting('tallystick.tenants', true), '')::text[]), false)
$$;

CREATE FUNCTION payouts.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of payouts.% is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;


-- Connected accounts.

-- What was last read of an organization's account at the payment processor. Nothing of who is behind it is kept.
CREATE TABLE payouts.connected_account (
    organization_id text COLLATE "C" PRIMARY KEY,
    country_code text NOT NULL,
    -- Set once, when the payment processor has made the account.
    stripe_account_id text COLLATE "C" UNIQUE,
    -- When making it was first tried under the present idempotency key, which is good for a day. NULL before that, and
    -- when it is certain that nothing was made: then the country may still change.
    create_attempt_time timestamptz,
    -- When the key turned out to be of no more use, without saying what it made. NULL while it is good.
    create_spent_time timestamptz,
    -- How many keys were used for that, this one included.
    create_number integer NOT NULL DEFAULT 1 CHECK (create_number > 0),
    -- The transfers capability: 'active', 'pending' or 'inactive'. It alone says whether money can be sent.
    transfers_status text NOT NULL DEFAULT 'inactive',
    bank_payouts_enabled boolean NOT NULL DEFAULT false,
    details_submitted boolean NOT NULL DEFAULT false,
    disabled_reason text NOT NULL DEFAULT '',
    -- [{"name": …, "past_due": …, "problem": …}, …], the most urgent first.
    requirements jsonb NOT NULL DEFAULT '[]',
    deauthorized boolean NOT NULL DEFAULT false,
    -- Raised by everything that is taken over from the payment processor: who has read there writes only if nobody
    -- wrote since before the reading.
    version bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    refresh_time timestamptz
);
CREATE INDEX connected_account_refresh_time ON payouts.connected_account (refresh_time)
    WHERE stripe_account_id IS NOT NULL;

-- The way back from the payment processor's pages: who holds the secret may have a new link for this organization.
CREATE TABLE payouts.onboarding_session (
    secret_hash bytea PRIMARY KEY,
    organization_id text COLLATE "C" NOT NULL,
    expire_time timestamptz NOT NULL,
    -- How often it was used: each time costs a call to the payment processor, so there is a most.
    use_count integer NOT NULL DEFAULT 0
);
CREATE INDEX onboarding_session_expire_time ON payouts.onboarding_session (expire_time);


-- Payouts.

CREATE TABLE payouts.payout (
    payout_id text COLLATE "C" PRIMARY KEY,
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros > 0),
    -- 'opening' until the ledger has answered whether the earnings cover it, then 'refused' or 'requested'. People see
    -- it from 'requested' on.
    state text NOT NULL CHECK (state IN (
        'opening', 'refused', 'requested', 'processing', 'completed', 'failed', 'cancelled')),
    -- The call that the ledger is owed for this state, made again until it is answered.
    owed text CHECK (owed IN ('debit', 'complete', 'return')),
    origin text NOT NULL CHECK (origin IN ('request', 'schedule')),
    -- The payout pays what was earned before this day. NULL unless scheduled.
    earned_before date,
    request_hash bytea NOT NULL,
    requester text COLLATE "C" NOT NULL,
    -- Why the ledger refused it: {"reason": …, "message": …, "metadata": {…}}.
    refusal jsonb,

    -- The transfer, frozen before it is first asked for: the same key must never go with another body.
    stripe_account_id text COLLATE "C",
    transfer_body jsonb,
    transfer_key text COLLATE "C",
    -- How many keys were frozen: an operator may let a new one be made.
    transfer_number integer NOT NULL DEFAULT 0,
    -- When the key was frozen. It is good for a day from then on at least.
    transfer_time timestamptz,
    transfer_id text COLLATE "C" UNIQUE,
    failure_code text NOT NULL DEFAULT '',
    failure_reason text NOT NULL DEFAULT '',
    reversed_micros bigint NOT NULL DEFAULT 0 CHECK (reversed_micros BETWEEN 0 AND amount_micros),

    -- The payout from the connected account to the bank, frozen likewise.
    bank_status text NOT NULL DEFAULT 'none' CHECK (bank_status IN (
        'none', 'waiting', 'pending', 'in_transit', 'paid', 'failed', 'canceled')),
    bank_body jsonb,
    bank_key text COLLATE "C",
    bank_number integer NOT NULL DEFAULT 0,
    bank_time timestamptz,
    bank_payout_id text COLLATE "C" UNIQUE,
    bank_failure_code text NOT NULL DEFAULT '',
    bank_arrival_time timestamptz,

    -- Why it stands still; '' if it does not.
    hold text NOT NULL DEFAULT '' CHECK (hold IN (
        '', 'frozen', 'negative_earnings', 'account_not_ready', 'key_refused', 'key_conflict', 'unresolved')),
    -- Attempts in a row that had no certain answer.
    attempt_count integer NOT NULL DEFAULT 0,
    -- When there is next something to do; NULL if nothing is.
    next_attempt_time timestamptz,
    last_error text NOT NULL DEFAULT '',
    -- As that of connected_account.
    version bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,

    CHECK ((state = 'refused') = (refusal IS NOT NULL)),
    CHECK (state NOT IN ('processing', 'completed', 'failed') OR transfer_body IS NOT NULL),
    CHECK (state <> 'completed' OR transfer_id IS NOT NULL),
    CHECK ((bank_status <> 'none') = (state = 'completed')),
    CHECK (reversed_micros = 0 OR state = 'completed'),
    CHECK ((transfer_body IS NULL) = (transfer_key IS NULL) AND (transfer_body IS NULL) = (transfer_time IS NULL))
);
CREATE INDEX payout_by_organization ON payouts.payout (organization_id, create_time, payout_id);
CREATE INDEX payout_by_time ON payouts.payout (create_time, payout_id);
CREATE INDEX payout_due ON payouts.payout (organization_id, next_attempt_time) WHERE next_attempt_time IS NOT NULL;
CREATE INDEX payout_held ON payouts.payout (create_time, payout_id) WHERE hold <> '';

-- Each step of a payout. Append-only.
CREATE TABLE payouts.payout_transition (
    payout_id text COLLATE "C" NOT NULL REFERENCES payouts.payout,
    number integer NOT NULL CHECK (number > 0),
    organization_id text COLLATE "C" NOT NULL,
    state text NOT NULL,
    bank_status text NOT NULL,
    actor text COLLATE "C" NOT NULL,
    method text NOT NULL,
    reason text NOT NULL,
    stripe_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (payout_id, number)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payouts.payout_transition
    FOR EACH ROW EXECUTE FUNCTION payouts.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payouts.payout_transition
    FOR EACH STATEMENT EXECUTE FUNCTION payouts.refuse_change();
-- The second wall: a payout that was begun never goes away.
CREATE TRIGGER kept BEFORE DELETE ON payouts.payout
    FOR EACH ROW EXECUTE FUNCTION payouts.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON payouts.payout
    FOR EACH STATEMENT EXECUTE FUNCTION payouts.refuse_change();

-- What came back of completed payouts, by the payment processor's id of it.
CREATE TABLE payouts.payout_reversal (
    reversal_id text COLLATE "C" PRIMARY KEY,
    payout_id text COLLATE "C" NOT NULL REFERENCES payouts.payout,
    organization_id text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros > 0),
    -- Whether the ledger has it.
    posted boolean NOT NULL DEFAULT false,
    create_time timestamptz NOT NULL
);
CREATE INDEX payout_reversal_by_payout ON payouts.payout_reversal (payout_id, create_time, reversal_id);

-- Organizations that have payouts with something to do. Who leases one works through its payouts one after another:
-- the payment processor locks accounts, and answers 429 to calls for one account at once.
CREATE TABLE payouts.payout_work (
    organization_id text COLLATE "C" PRIMARY KEY,
    due_time timestamptz NOT NULL,
    -- Names the one who works on it now; its writes ask for it.
    lease_id text COLLATE "C",
    lease_until timestamptz,
    CHECK ((lease_id IS NULL) = (lease_until IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX payout_work_due_time ON payouts.payout_work (due_time);

-- When organizations are paid by themselves. A row is made with the connected account.
CREATE TABLE payouts.payout_schedule (
    organization_id text COLLATE "C" PRIMARY KEY,
    payout_interval text NOT NULL CHECK (payout_interval IN ('manual', 'daily', 'weekly', 'monthly')),
    time_zone text NOT NULL,
    -- {"USD": micros, …}
    minimums jsonb NOT NULL DEFAULT '{}',
    next_run_time timestamptz,
    update_time timestamptz,
    CHECK ((next_run_time IS NULL) = (payout_interval = 'manual'))
);
CREATE INDEX payout_schedule_next_run_time ON payouts.payout_schedule (next_run_time);


-- Events of the payment processor: an inbox. The event's id makes it unique; its content is not kept, since whoever
-- handles it reads the object as it is then.
CREATE TABLE payouts.processor_event (
    event_id text COLLATE "C" PRIMARY KEY,
    type text NOT NULL,
    -- The connected account that it is of; '' for the platform's own.
    stripe_account_id text COLLATE "C" NOT NULL,
    object_id text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'done', 'ignored', 'quarantined', 'failing')),
    note text NOT NULL DEFAULT '',
    attempt_count integer NOT NULL DEFAULT 0,
    -- When it is handled (again); NULL once that is over. Also its lease: who takes it moves it ahead.
    next_attempt_time timestamptz,
    caught_up boolean NOT NULL,
    create_time timestamptz NOT NULL,
    receive_time timestamptz NOT NULL,
    CHECK ((next_attempt_time IS NOT NULL) = (state IN ('pending', 'failing')))
);
CREATE INDEX processor_event_next_attempt_time ON payouts.processor_event (next_attempt_time)
    WHERE next_attempt_time IS NOT NULL;
CREATE INDEX processor_event_by_time ON payouts.processor_event (receive_time, event_id);

-- How far the payment processor's list of events was read, per account ('' for the platform).
CREATE TABLE payouts.event_cursor (
    stripe_account_id text COLLATE "C" PRIMARY KEY,
    -- The newest event that was seen there.
    event_id text COLLATE "C" NOT NULL,
    read_time timestamptz NOT NULL
);


-- Tenants see what is theirs; the service's own tables are the platform's.

DO $$
DECLARE
    -- table name, what a row must satisfy to be seen or written, the columns that may be updated
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['connected_account', 'payouts.visible(organization_id)', '*'],
        ['onboarding_session', 'payouts.visible(organization_id)', '(use_count)'],
        ['payout', 'payouts.visible(organization_id)', '*'],
        ['payout_transition', 'payouts.visible(organization_id)', ''],
        ['payout_reversal', 'payouts.visible(organization_id)', '(posted)'],
        ['payout_work', 'payouts.visible(organization_id)', '*'],
        ['payout_schedule', 'payouts.visible(organization_id)', '*'],
        ['processor_event', 'payouts.visible(''platform'')', '*'],
        ['event_cursor', 'payouts.visible(''platform'')', '*']
    ] LOOP
        EXECUTE format('ALTER TABLE payouts.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE payouts.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON payouts.%I TO payouts_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON payouts.%I FOR SELECT TO payouts_reader, payouts_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format(
            'CREATE POLICY tenant_insert ON payouts.%I FOR INSERT TO payouts_writer WITH CHECK (%s)', rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON payouts.%I TO payouts_reader, payouts_writer', rule[1]);
        EXECUTE format('GRANT INSERT ON payouts.%I TO payouts_writer', rule[1]);
        CONTINUE WHEN rule[3] = '';
        EXECUTE format(
            'CREATE POLICY tenant_update ON payouts.%I FOR UPDATE TO payouts_writer USING (%s)', rule[1], rule[2]);
        EXECUTE format('GRANT UPDATE %s ON payouts.%I TO payouts_writer', replace(rule[3], '*', ''), rule[1]);
    END LOOP;
    -- What is over goes away.
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['onboarding_session', 'payouts.visible(organization_id)'],
        ['payout_work', 'payouts.visible(organization_id)']
    ] LOOP
        EXECUTE format(
            'CREATE POLICY tenant_delete ON payouts.%I FOR DELETE TO payouts_writer USING (%s)', rule[1], rule[2]);
        EXECUTE format('GRANT DELETE ON payouts.%I TO payouts_writer', rule[1]);
    END LOOP;
END
$$;
