-- Who takes part: organizations with their revenue share agreements, customers, agents with their versions,
-- members, and API keys; and the idempotency keys of everything in this schema.
--
-- Ids compare bytewise (COLLATE "C"), here as in the services. Their prefixes are checked, because policies
-- compare ids of organizations, ids of customers and 'platform' with one another.


-- Functions are executable by everybody unless that is taken away; here the owner grants each one it means to.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- Whether the current transaction may see what belongs to this organization, customer or 'platform'. Unset
-- settings show nothing. (A setting that was local to an earlier transaction of the connection reads as ''.)
-- Never NULL, so that a function may also ask IF NOT visible(...).
CREATE FUNCTION ledger.visible(owner_id text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(current_setting('tallystick.platform', true) = 'on', false)
        OR coalesce(owner_id = ANY (nullif(current_setting('tallystick.tenants', true), '')::text[]), false)
$$;
GRANT EXECUTE ON FUNCTION ledger.visible(text) TO ledger_reader, ledger_writer;


-- What was created under an idempotency key, for ever: the same key and request answer it again.
CREATE TABLE ledger.idempotency (
    -- Whose keys they are told apart by. Each operation puts its own name before the key.
    owner_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    -- The id of what was created.
    outcome text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner_id, key)
);


-- request_hash, in four of these tables, is the SHA-256 of the request that made the row: repeating that request
-- answers the row, even after the row was changed by others.

CREATE TABLE ledger.organization (
    organization_id text COLLATE "C" PRIMARY KEY CHECK (starts_with(organization_id, 'org_')),
    display_name text NOT NULL CHECK (char_length(display_name) <= 200),
    request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    create_time timestamptz NOT NULL
);

CREATE TABLE ledger.revenue_share_agreement (
    organization_id text COLLATE "C" NOT NULL REFERENCES ledger.organization,
    -- From when it applies, until the next one does. The first one of an organization has no beginning: -infinity.
    effective_time timestamptz NOT NULL,
    platform_fee_bps integer NOT NULL CHECK (platform_fee_bps >= 0),
    processing_fee_bps integer NOT NULL CHECK (processing_fee_bps >= 0),
    settlement_hold_days integer NOT NULL CHECK (settlement_hold_days BETWEEN 0 AND 365),
    -- What an idempotency key remembers it by.
    agreement_id text COLLATE "C" NOT NULL UNIQUE,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, effective_time),
    CHECK (platform_fee_bps::bigint + processing_fee_bps <= 10000)
);

CREATE TABLE ledger.customer (
    customer_id text COLLATE "C" PRIMARY KEY CHECK (starts_with(customer_id, 'cus_')),
    request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    create_time timestamptz NOT NULL
);

CREATE TABLE ledger.agent (
    agent_id text COLLATE "C" PRIMARY KEY CHECK (starts_with(agent_id, 'agt_')),
    organization_id text COLLATE "C" NOT NULL REFERENCES ledger.organization,
    display_name text NOT NULL CHECK (char_length(display_name) <= 200),
    request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    create_time timestamptz NOT NULL,
    UNIQUE (organization_id, agent_id)
);

CREATE TABLE ledger.agent_version (
    agent_id text COLLATE "C" NOT NULL,
    agent_version text COLLATE "C" NOT NULL CHECK (char_length(agent_version) BETWEEN 1 AND 64),
    -- The agent's, which never changes: the policy needs no join.
    organization_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (agent_id, agent_version),
    FOREIGN KEY (organization_id, agent_id) REFERENCES ledger.agent (organization_id, agent_id)
);

CREATE TABLE ledger.member (
    member_id text COLLATE "C" PRIMARY KEY CHECK (starts_with(member_id, 'mem_')),
    organization_id text COLLATE "C" NOT NULL REFERENCES ledger.organization,
    role text COLLATE "C" NOT NULL CHECK (role IN ('owner', 'billing_admin', 'member')),
    request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    create_time timestamptz NOT NULL,
    delete_time timestamptz,
    UNIQUE (organization_id, member_id)
);

CREATE TABLE ledger.api_key (
    api_key_id text COLLATE "C" PRIMARY KEY CHECK (starts_with(api_key_id, 'key_')),
    -- SHA-256 of the whole text of the key. The text itself is nowhere.
    key_hash bytea NOT NULL UNIQUE CHECK (octet_length(key_hash) = 32),
    visible_prefix text NOT NULL,
    role text COLLATE "C" NOT NULL,
    -- Neither, for a key of the platform.
    organization_id text COLLATE "C" REFERENCES ledger.organization,
    customer_id text COLLATE "C" REFERENCES ledger.customer,
    member_id text COLLATE "C",
    -- Empty arrays do not restrict.
    agent_ids text[] NOT NULL,
    customer_ids text[] NOT NULL,
    description text NOT NULL CHECK (char_length(description) <= 200),
    create_time timestamptz NOT NULL,
    expire_time timestamptz,
    revoke_time timestamptz,
    -- The member's organization is the key's. (Not checked for keys without a member.)
    FOREIGN KEY (organization_id, member_id) REFERENCES ledger.member (organization_id, member_id),
    CHECK (
        CASE role
            WHEN 'operator' THEN organization_id IS NULL AND customer_id IS NULL AND member_id IS NULL
            WHEN 'service' THEN organization_id IS NULL AND customer_id IS NULL AND member_id IS NULL
            WHEN 'customer' THEN organization_id IS NULL AND customer_id IS NOT NULL AND member_id IS NULL
            WHEN 'owner' THEN organization_id IS NOT NULL AND customer_id IS NULL
            WHEN 'billing_admin' THEN organization_id IS NOT NULL AND customer_id IS NULL
            WHEN 'member' THEN organization_id IS NOT NULL AND customer_id IS NULL
            WHEN 'host' THEN customer_id IS NULL AND member_id IS NULL
            ELSE false
        END
    ),
    CHECK (role = 'host' OR (cardinality(agent_ids) = 0 AND cardinality(customer_ids) = 0))
);
CREATE INDEX api_key_organization ON ledger.api_key (organization_id, api_key_id);
CREATE INDEX api_key_member ON ledger.api_key (member_id) WHERE member_id IS NOT NULL;


-- Append-only, whatever rights a role has: what an agreement said when a charge was posted, and what an idempotency
-- key stands for, never changes.
CREATE FUNCTION ledger.refuse_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger.% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.revenue_share_agreement
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.revenue_share_agreement
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.idempotency
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.idempotency
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_rewrite();


-- Tenants.

DO $$
DECLARE
    -- table name, and what a row must satisfy to be seen or written
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['idempotency', 'ledger.visible(owner_id)'],
        ['organization', 'ledger.visible(organization_id)'],
        ['revenue_share_agreement', 'ledger.visible(organization_id)'],
        ['customer', 'ledger.visible(customer_id)'],
        ['agent', 'ledger.visible(organization_id)'],
        ['agent_version', 'ledger.visible(organization_id)'],
        ['member', 'ledger.visible(organization_id)'],
        ['api_key', 'ledger.visible(coalesce(organization_id, customer_id, ''platform''))']
    ] LOOP
        EXECUTE format('ALTER TABLE ledger.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE ledger.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON ledger.%I TO ledger_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON ledger.%I FOR SELECT TO ledger_reader, ledger_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format(
            'CREATE POLICY tenant_insert ON ledger.%I FOR INSERT TO ledger_writer WITH CHECK (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON ledger.%I TO ledger_reader, ledger_writer', rule[1]);
        EXECUTE format('GRANT INSERT ON ledger.%I TO ledger_writer', rule[1]);
    END LOOP;
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        -- Nobody renames an organization yet: the right to lock its row is what this is for.
        ['organization', 'ledger.visible(organization_id)', 'display_name'],
        ['member', 'ledger.visible(organization_id)', 'delete_time'],
        ['api_key', 'ledger.visible(coalesce(organization_id, customer_id, ''platform''))', 'revoke_time']
    ] LOOP
        EXECUTE format(
            'CREATE POLICY tenant_update ON ledger.%I FOR UPDATE TO ledger_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT UPDATE (%s) ON ledger.%I TO ledger_writer', rule[3], rule[1]);
    END LOOP;
END
$$;
