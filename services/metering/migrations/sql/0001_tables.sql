-- Prices, usage events, and the charges that the ledger has not confirmed yet.
--
-- All amounts are micros of the row's currency. Ids compare bytewise (COLLATE "C"), here as in the services.

-- Whether the current transaction may see what belongs to this organization or customer. Unset settings show
-- nothing. (A setting that was local to an earlier transaction of the connection reads as ''.)
CREATE FUNCTION metering.visible(owner_id text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(current_setting('tallystick.platform', true) = 'on', false)
        OR coalesce(owner_id = ANY (nullif(current_setting('tallystick.tenants', true), '')::text[]), false)
$$;


-- Prices.

CREATE TABLE metering.price_book (
    price_book_id text COLLATE "C" PRIMARY KEY,
    -- An organization, or 'platform'.
    owner_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    -- How many versions were drafted. Raising it takes the row's lock, so that numbers are given one at a time.
    version_count integer NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    UNIQUE (owner_id, currency_code)
);

CREATE TABLE metering.price_version (
    price_version_id text COLLATE "C" PRIMARY KEY,
    price_book_id text COLLATE "C" NOT NULL REFERENCES metering.price_book,
    -- Those of the book, which never change there: policies and the index of versions need no join.
    owner_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    version_number integer NOT NULL CHECK (version_number > 0),
    -- The prices in the form of store/price_format.py.
    prices jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    -- All three are set by publishing.
    effective_time timestamptz,
    publish_time timestamptz,
    publisher_api_key_id text COLLATE "C",
    UNIQUE (price_book_id, version_number),
    -- Two versions never start at once, so the one in force is always decided.
    UNIQUE (price_book_id, effective_time),
    CHECK ((publish_time IS NULL) = (effective_time IS NULL)),
    CHECK ((publish_time IS NULL) = (publisher_api_key_id IS NULL))
);
CREATE INDEX price_version_published ON metering.price_version (publish_time) WHERE publish_time IS NOT NULL;

CREATE FUNCTION metering.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of metering.% is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

-- The second wall, for every role: a published version never changes, and no version goes away.
CREATE TRIGGER published BEFORE UPDATE ON metering.price_version
    FOR EACH ROW WHEN (OLD.publish_time IS NOT NULL) EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept BEFORE DELETE ON metering.price_version
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.price_version
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- What was created under an idempotency key: the same key and request answer it again.
CREATE TABLE metering.idempotency (
    owner_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    -- The id of what was created.
    outcome text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner_id, key)
);


-- Usage events: what was reported, and how it was priced. Append-only.

CREATE TABLE metering.usage_event (
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    -- The agent's organization at that time: it earns.
    organization_id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    -- When the work ended: as reported, but not later than its arrival; the time of arrival if not reported.
    occur_time timestamptz NOT NULL,
    -- The tallystick.metering.v1.UsageEvent as it came, without its evidence, serialized.
    content bytea NOT NULL,
    evidence_ref text NOT NULL,
    evidence_hash bytea NOT NULL,
    price_version_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    -- How the price came about, one element per line:
    -- [component name, quantity, amount of the unit price, per how many units, amount in micros].
    lines jsonb NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (customer_id, workflow_id, ordinal)
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON metering.usage_event
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON metering.usage_event
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON metering.idempotency
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON metering.idempotency
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- Usage events whose charge the ledger has not confirmed. A row is made with its event and goes away with the
-- confirmation; what is left is posted by the recovery worker. A queue: rows come and go, so it is vacuumed by
-- number and not by share.
CREATE TABLE metering.pending_charge (
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL,
    -- When recovery may post it (again); infinity once the ledger refused it for good.
    next_attempt_time timestamptz NOT NULL,
    attempt_count integer NOT NULL DEFAULT 0,
    -- Why the last attempt of recovery failed, "" if it did not.
    last_error text NOT NULL DEFAULT '',
    -- No foreign key to usage_event: the one function that inserts here inserts both, and checking each row
    -- would cost more than inserting it.
    PRIMARY KEY (customer_id, workflow_id, ordinal)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX pending_charge_next_attempt ON metering.pending_charge (next_attempt_time);


-- Tenants. The writer changes usage events and pending charges only by calling functions of the owner.

DO $$
DECLARE
    -- table name, and what a row must satisfy to be seen or written
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['price_book', 'metering.visible(owner_id)'],
        ['price_version', 'metering.visible(owner_id)'],
        ['idempotency', 'metering.visible(owner_id)'],
        ['usage_event', 'metering.visible(customer_id) OR metering.visible(organization_id)'],
        ['pending_charge', 'metering.visible(customer_id)']
    ] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', rule[1]);
    END LOOP;
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['price_book', 'metering.visible(owner_id)'],
        ['price_version', 'metering.visible(owner_id)'],
        ['idempotency', 'metering.visible(owner_id)']
    ] LOOP
        EXECUTE format(
            'CREATE POLICY tenant_insert ON metering.%I FOR INSERT TO metering_writer WITH CHECK (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT INSERT ON metering.%I TO metering_writer', rule[1]);
    END LOOP;
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['price_book', 'metering.visible(owner_id)', 'version_count'],
        ['price_version', 'metering.visible(owner_id)',
            'prices, effective_time, publish_time, publisher_api_key_id']
    ] LOOP
        EXECUTE format(
            'CREATE POLICY tenant_update ON metering.%I FOR UPDATE TO metering_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT UPDATE (%s) ON metering.%I TO metering_writer', rule[3], rule[1]);
    END LOOP;
END
$$;
