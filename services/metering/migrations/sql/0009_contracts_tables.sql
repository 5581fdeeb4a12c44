-- Contracts with customers, and price books that only contracts use.
--
-- All amounts are micros of the contract's currency.

ALTER TABLE metering.price_book ADD COLUMN for_contracts boolean NOT NULL DEFAULT false;
-- An owner has one book per currency, besides those that only contracts use.
ALTER TABLE metering.price_book DROP CONSTRAINT price_book_owner_id_currency_code_key;
CREATE UNIQUE INDEX price_book_of_owner ON metering.price_book (owner_id, currency_code) WHERE NOT for_contracts;
CREATE INDEX price_book_owner ON metering.price_book (owner_id, price_book_id);

CREATE TABLE metering.contract (
    contract_id text COLLATE "C" PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL,
    -- '' stands for all.
    organization_id text COLLATE "C" NOT NULL,
    currency_code text COLLATE "C" NOT NULL,
    -- The tallystick.metering.v1.BillingPeriod, serialized; NULL if the contract does not say.
    billing_period bytea,
    start_time timestamptz NOT NULL,
    -- That of the newest version: contracts about the same do not overlap. The lock of `lock_contracts` guards it.
    end_time timestamptz NOT NULL DEFAULT 'infinity' CHECK (end_time >= start_time),
    -- How many versions there are. Raising it takes the row's lock, so that numbers are given one at a time.
    version_count integer NOT NULL DEFAULT 1
);
CREATE INDEX contract_about ON metering.contract (customer_id, organization_id, currency_code, start_time);
CREATE INDEX contract_organization ON metering.contract (organization_id, contract_id);
CREATE TRIGGER kept BEFORE DELETE ON metering.contract
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.contract
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- What a contract said from when on. Append-only.
CREATE TABLE metering.contract_version (
    contract_id text COLLATE "C" NOT NULL REFERENCES metering.contract,
    version_number integer NOT NULL CHECK (version_number > 0),
    -- Those of the contract, which never change: policies need no join.
    customer_id text COLLATE "C" NOT NULL,
    organization_id text COLLATE "C" NOT NULL,
    -- The tallystick.metering.v1.ContractContent, serialized.
    content bytea NOT NULL,
    effective_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    api_key_id text COLLATE "C" NOT NULL,
    -- Rises with every version of any contract: whoever remembers contracts asks for what came since.
    change_number bigint NOT NULL UNIQUE,
    PRIMARY KEY (contract_id, version_number)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON metering.contract_version
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON metering.contract_version
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

-- The number of the last change, as of budgets: the lock on this row, held until the commit, makes the order of
-- numbers that of commits. It is also what makes changes of contracts come one after the other.
CREATE TABLE metering.contract_change (
    change_number bigint NOT NULL
);
INSERT INTO metering.contract_change VALUES (0);

-- Makes other changes of contracts wait for the end of the transaction: until then nobody else makes one about the
-- same at the same time. Contracts change seldom.
CREATE FUNCTION metering.lock_contracts() RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
    SELECT FROM contract_change FOR UPDATE
$$;
REVOKE ALL ON FUNCTION metering.lock_contracts() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metering.lock_contracts() TO metering_writer;

CREATE FUNCTION metering.number_contract_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
BEGIN
    UPDATE contract_change c SET change_number = c.change_number + 1
    RETURNING c.change_number INTO NEW.change_number;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION metering.number_contract_change() FROM PUBLIC;
CREATE TRIGGER numbered BEFORE INSERT ON metering.contract_version
    FOR EACH ROW EXECUTE FUNCTION metering.number_contract_change();


-- Tenants.

DO $$
DECLARE
    -- table name, and what a row must satisfy to be seen or written
    rule text[];
BEGIN
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['contract', 'metering.visible(customer_id) OR metering.visible(organization_id)'],
        ['contract_version', 'metering.visible(customer_id) OR metering.visible(organization_id)'],
        ['contract_change', 'metering.visible(''platform'')']
    ] LOOP
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('ALTER TABLE metering.%I FORCE ROW LEVEL SECURITY', rule[1]);
        EXECUTE format('CREATE POLICY owner_all ON metering.%I TO metering_owner USING (true)', rule[1]);
        EXECUTE format(
            'CREATE POLICY tenant_select ON metering.%I FOR SELECT TO metering_reader, metering_writer USING (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT SELECT ON metering.%I TO metering_reader, metering_writer', rule[1]);
    END LOOP;
    -- A customer sees its contracts and changes none.
    FOREACH rule SLICE 1 IN ARRAY ARRAY[
        ['contract', 'metering.visible(organization_id)'],
        ['contract_version', 'metering.visible(organization_id)']
    ] LOOP
        EXECUTE format(
            'CREATE POLICY tenant_insert ON metering.%I FOR INSERT TO metering_writer WITH CHECK (%s)',
            rule[1], rule[2]);
        EXECUTE format('GRANT INSERT ON metering.%I TO metering_writer', rule[1]);
    END LOOP;
END
$$;
CREATE POLICY tenant_update ON metering.contract FOR UPDATE TO metering_writer
    USING (metering.visible(organization_id));
-- What a contract is about never changes.
GRANT UPDATE (version_count, end_time) ON metering.contract TO metering_writer;
