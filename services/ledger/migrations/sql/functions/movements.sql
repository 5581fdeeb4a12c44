-- Adds credits to a customer: 'purchase' against the money at Stripe, 'promotion' against what its funder, the platform
-- or an organization, gives away. Answers the transaction, and whether it had been posted before. Collecting what the
-- customer owes is collect(), which the caller runs next in the same database transaction. SQLSTATE TL065 if the
-- credits would have expired already.
CREATE FUNCTION ledger.grant_credits(
    p_customer_id text,
    p_currency_code text,
    p_amount bigint,
    p_type ledger.transaction_type,
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    -- An organization, for its promotion; else the platform's.
    p_funder_id text DEFAULT 'platform',
    p_priority smallint DEFAULT 50,
    p_expire_time timestamptz DEFAULT NULL,
    OUT transaction_id text,
    OUT duplicate boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    source ledger.account_kind := CASE p_type WHEN 'purchase' THEN 'stripe_clearing'
                                              WHEN 'promotion' THEN 'promotions' END;
    credits_version bigint;
BEGIN
    IF p_amount <= 0 OR source IS NULL OR (p_type = 'purchase' AND p_funder_id <> 'platform') THEN
        RAISE EXCEPTION 'a grant needs an amount and a source' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    PERFORM FROM ledger.organization WHERE organization_id = p_funder_id;
    IF NOT FOUND AND p_funder_id <> 'platform' THEN
        RAISE EXCEPTION 'unknown organization' USING ERRCODE = 'TL002', DETAIL = p_funder_id;
    END IF;
    transaction_id := ledger.new_transaction_id();
    DECLARE
        first_transaction_id text := ledger.claim_key(p_customer_id, p_key, p_request_hash, transaction_id);
    BEGIN
        duplicate := first_transaction_id IS NOT NULL;
        IF duplicate THEN
            transaction_id := first_transaction_id;
            RETURN;
        END IF;
    END;
    -- Only now: a request that comes again after that time is still the same one.
    IF p_expire_time <= now() THEN
        RAISE EXCEPTION 'expires in the past' USING ERRCODE = 'TL065';
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    UPDATE ledger.account SET credits = credits + p_amount, version = version + 1
    WHERE owner_id = p_customer_id AND kind = 'customer_credits' AND currency_code = p_currency_code
    RETURNING version INTO credits_version;
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, external_id, occur_time, create_time, reason, actor_api_key_id)
    -- The key as the caller knows it is what a purchase is reversed and reconciled by.
    VALUES (transaction_id, p_customer_id, p_type,
            CASE p_type WHEN 'purchase' THEN substr(p_key, length('grant/') + 1) END, now(), now(), p_reason,
            p_actor_api_key_id);
    INSERT INTO ledger.entry (
        transaction_id, entry_number, partition_id, owner_id, kind, currency_code, amount, account_version)
    VALUES
        (transaction_id, 1, p_customer_id, p_customer_id, 'customer_credits', p_currency_code, p_amount, credits_version),
        (transaction_id, 2, p_customer_id, p_funder_id, source, p_currency_code, -p_amount, NULL);
    INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)
    VALUES (p_funder_id, source, p_currency_code, 0, p_amount);
    -- For the lot that the background step opens.
    INSERT INTO ledger.credit_grant (customer_id, transaction_id, funder_id, priority, expire_time)
    VALUES (p_customer_id, transaction_id, CASE p_type WHEN 'promotion' THEN p_funder_id ELSE '' END, p_priority,
            p_expire_time);
    IF p_funder_id <> 'platform' THEN
        -- So that a payout of the organization knows where to look until there is a lot, and no longer.
        INSERT INTO ledger.promotion_due (customer_id, debit_id, funder_id, currency_code)
        VALUES (p_customer_id, transaction_id, p_funder_id, p_currency_code);
    END IF;
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_customer_id, transaction_id);
END
$$;


-- Collects what a customer owes from its available credits: chargebacks first, then receivables before unpaid charges,
-- oldest first, at most p_limit charges. Answers how much was collected, and whether more could be.
CREATE FUNCTION ledger.collect(
    p_customer_id text,
    p_currency_code text,
    p_limit integer,
    p_actor_api_key_id text,
    OUT collected bigint,
    OUT more boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    credits ledger.account;
    receivable ledger.account;
    available bigint;
    open record;
    amount bigint;
    collected_chargebacks bigint;
    collected_receivable bigint := 0;
    collected_unpaid bigint := 0;
    credits_entries bigint := 0;
    receivable_entries bigint := 0;
BEGIN
    collected := 0;
    more := false;
    -- The lock first: what is available, and what is open, is read behind it.
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    -- The platform has given that money back already; the charges may wait.
    collected_chargebacks := ledger.collect_chargebacks(p_customer_id, p_currency_code, p_actor_api_key_id);
    SELECT * INTO credits FROM ledger.account a
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code);
    SELECT * INTO receivable FROM ledger.account a
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_receivable', p_currency_code);
    available := credits.credits - credits.debits - credits.held;

    FOR open IN
        SELECT part.earned, o.open_number, o.charge_id,
               CASE WHEN part.earned THEN o.uncollected_legs ELSE o.unearned_legs END AS legs,
               CASE WHEN part.earned THEN o.receivable ELSE o.unpaid END AS outstanding
        FROM ledger.open_charge o CROSS JOIN (VALUES (true), (false)) AS part (earned)
        WHERE o.customer_id = p_customer_id AND o.currency_code = p_currency_code
          AND CASE WHEN part.earned THEN o.receivable ELSE o.unpaid END > 0
        ORDER BY part.earned DESC, o.open_number
        LIMIT p_limit + 1
    LOOP
        IF available = 0 THEN
            more := false;
            EXIT;
        END IF;
        IF credits_entries = p_limit THEN
            more := true;
            EXIT;
        END IF;
        amount := least(available, open.outstanding);
        available := available - amount;
        credits_entries := credits_entries + 1;
        IF open.earned THEN
            receivable_entries := receivable_entries + 1;
            collected_receivable := collected_receivable + amount;
        ELSE
            collected_unpaid := collected_unpaid + amount;
        END IF;
        PERFORM ledger.insert_collection(
            p_customer_id, open.open_number, open.charge_id, open.earned,
            ledger.allocate(amount, open.legs), amount,
            credits.version + credits_entries, receivable.version + receivable_entries, p_actor_api_key_id);
    END LOOP;

    collected := collected_receivable + collected_unpaid;
    UPDATE ledger.account a
    SET debits = a.debits + m.debits, credits = a.credits + m.credits, version = a.version + m.entries
    FROM (VALUES
        ('customer_credits'::ledger.account_kind, collected, 0::bigint, credits_entries),
        ('customer_receivable', 0, collected_receivable, receivable_entries),
        ('customer_unpaid', 0, collected_unpaid, 0),
        ('unpaid_offset', collected_unpaid, 0, 0)
    ) AS m (kind, debits, credits, entries)
    WHERE a.owner_id = p_customer_id AND a.kind = m.kind AND a.currency_code = p_currency_code
      AND m.debits + m.credits > 0;
    collected := collected + collected_chargebacks;
END
$$;


-- One collection: a part of one charge, paid from credits. `parts` divides the amount over the charge's legs. What
-- was owed as receivable only moves to the collected bucket; what was unpaid is earned now.
CREATE FUNCTION ledger.insert_collection(
    p_customer_id text,
    p_open_number bigint,
    p_charge_id text,
    p_earned boolean,
    p_parts bigint[],
    p_amount bigint,
    p_credits_version bigint,
    p_receivable_version bigint,
    p_actor_api_key_id text
) RETURNS void LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
DECLARE
    collection_id text := ledger.new_transaction_id();
BEGIN
    WITH charge AS (
        SELECT * FROM ledger.charge WHERE charge_id = p_charge_id AND customer_id = p_customer_id
    ),
    payee AS (
        SELECT p.*, c.currency_code, (c.occur_time AT TIME ZONE 'UTC')::date AS earned_on,
               c.charged_on + greatest(p.hold_days, p.window_days) AS charged_available_on,
               -- The hold counts from the collection, the dispute window from the charge.
               greatest(ledger.today() + p.hold_days, c.charged_on + p.window_days) AS available_on
        FROM (SELECT *, (create_time AT TIME ZONE 'UTC')::date AS charged_on FROM charge) AS c
        CROSS JOIN LATERAL unnest(c.organization_ids, c.settlement_hold_days, c.dispute_window_days)
            WITH ORDINALITY AS p (organization_id, hold_days, window_days, payee_number)
    ),
    line AS (
        SELECT v.line_number, p_customer_id AS owner_id, v.kind, v.amount, NULL::boolean AS collected,
               NULL::date AS earned_on, NULL::date AS available_on, v.version
        FROM (VALUES
            (1, 'customer_credits'::ledger.account_kind, -p_amount, p_credits_version),
            (2, 'customer_receivable', CASE WHEN p_earned THEN p_amount ELSE 0 END, p_receivable_version),
            (3, 'customer_unpaid', CASE WHEN p_earned THEN 0 ELSE p_amount END, NULL),
            (4, 'unpaid_offset', CASE WHEN p_earned THEN 0 ELSE -p_amount END, NULL)
        ) AS v (line_number, kind, amount, version)
        UNION ALL
        SELECT 4 + (p.payee_number - 1) * 3 + v.leg_number, p.organization_id, v.kind,
               p_parts[(p.payee_number - 1) * 3 + v.leg_number],
               CASE v.leg_number WHEN 1 THEN true END, CASE v.leg_number WHEN 1 THEN p.earned_on END,
               CASE v.leg_number WHEN 1 THEN p.available_on END, NULL
        FROM payee p
        CROSS JOIN (VALUES
            (1, 'organization_payable'::ledger.account_kind), (2, 'platform_fees'), (3, 'processing_fees')
        ) AS v (leg_number, kind)
        -- Fees of a receivable were earned with the charge: collecting it only moves the net part.
        WHERE NOT p_earned OR v.leg_number = 1
        UNION ALL
        SELECT 100 + p.payee_number, p.organization_id, 'organization_payable',
               -p_parts[(p.payee_number - 1) * 3 + 1], false, p.earned_on, p.charged_available_on, NULL
        FROM payee p
        WHERE p_earned
    ),
    posted AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY line_number) AS entry_number, line.*, charge.currency_code
        FROM line CROSS JOIN charge
        WHERE amount <> 0
    ),
    into_transaction AS (
        INSERT INTO ledger.transaction (
            transaction_id, partition_id, type, charge_id, occur_time, create_time, actor_api_key_id)
        VALUES (collection_id, p_customer_id, 'collection', p_charge_id, now(), now(), p_actor_api_key_id)
    ),
    into_entry AS (
        INSERT INTO ledger.entry
        SELECT collection_id, entry_number, p_customer_id, owner_id, kind, currency_code, amount,
               collected, earned_on, available_on, version
        FROM posted
    ),
    into_delta AS (
        INSERT INTO ledger.balance_delta (
            owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
        SELECT owner_id, kind, currency_code, collected, earned_on, available_on,
               greatest(amount, 0), greatest(-amount, 0)
        FROM posted
        WHERE kind IN ('organization_payable', 'platform_fees', 'processing_fees')
    )
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_customer_id, collection_id);

    IF p_earned THEN
        UPDATE ledger.open_charge
        SET uncollected_legs = ledger.subtract(uncollected_legs, p_parts), receivable = receivable - p_amount
        WHERE customer_id = p_customer_id AND open_number = p_open_number AND receivable + unpaid > p_amount;
    ELSE
        UPDATE ledger.open_charge
        SET unearned_legs = ledger.subtract(unearned_legs, p_parts), unpaid = unpaid - p_amount
        WHERE customer_id = p_customer_id AND open_number = p_open_number AND receivable + unpaid > p_amount;
    END IF;
    IF NOT FOUND THEN
        DELETE FROM ledger.open_charge WHERE customer_id = p_customer_id AND open_number = p_open_number;
    END IF;
END
$$;


-- Sets how much a customer may owe. Below what it owes already, only more is refused: the bound of the CHECK stays
-- where the balance is.
CREATE FUNCTION ledger.set_credit_limit(p_customer_id text, p_currency_code text, p_limit bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    UPDATE ledger.account
    SET credit_limit = p_limit, lower_bound = least(-p_limit, credits - debits - held)
    WHERE owner_id = p_customer_id AND kind = 'customer_receivable' AND currency_code = p_currency_code;
END
$$;


-- Posts an operator's adjustment, for adjustments.sql, which sees to its approval. The arrays are parallel, one element per posting, each account once; amounts are
-- signed as entries are and add up to zero per currency. It takes neither a customer's credits nor an
-- organization's available earnings below zero: SQLSTATE TL003, with the account in the detail.
CREATE FUNCTION ledger.adjust(
    p_owner_ids text[],
    p_kinds ledger.account_kind[],
    p_currency_codes text[],
    p_amounts bigint[],
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    OUT transaction_id text,
    OUT duplicate boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    adjustment_id text := ledger.new_transaction_id();
    stranger text;
    short record;
BEGIN
    -- What the service has checked already is checked here too: these are the books.
    IF EXISTS (
        SELECT FROM unnest(p_currency_codes, p_amounts) AS p (currency_code, amount)
        GROUP BY p.currency_code HAVING sum(p.amount) <> 0
    ) OR EXISTS (
        SELECT FROM unnest(p_owner_ids, p_kinds, p_currency_codes) AS p (owner_id, kind, currency_code)
        GROUP BY p.owner_id, p.kind, p.currency_code HAVING count(*) > 1
    ) OR EXISTS (
        SELECT FROM unnest(p_kinds) AS kind
        WHERE kind IN ('customer_receivable', 'customer_unpaid', 'unpaid_offset', 'payouts_in_transit',
                       'customer_chargebacks')
    ) THEN
        RAISE EXCEPTION 'not an adjustment that balances' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT p.owner_id INTO stranger FROM unnest(p_owner_ids) AS p (owner_id)
    WHERE p.owner_id <> 'platform'
      AND NOT EXISTS (SELECT FROM ledger.customer c WHERE c.customer_id = p.owner_id)
      AND NOT EXISTS (SELECT FROM ledger.organization o WHERE o.organization_id = p.owner_id)
    ORDER BY p.owner_id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'unknown owner' USING ERRCODE = 'TL002', DETAIL = stranger;
    END IF;

    transaction_id := ledger.claim_key('platform', p_key, p_request_hash, adjustment_id);
    duplicate := transaction_id IS NOT NULL;
    IF duplicate THEN
        RETURN;
    END IF;
    transaction_id := adjustment_id;

    -- Lowering earnings excludes every other lowering of the same organization's, from here to the commit.
    PERFORM FROM ledger.organization o
    WHERE o.organization_id IN (
        SELECT p.owner_id FROM unnest(p_owner_ids, p_kinds, p_amounts) AS p (owner_id, kind, amount)
        WHERE p.kind = 'organization_payable' AND p.amount < 0
    )
    ORDER BY o.organization_id FOR NO KEY UPDATE;
    PERFORM ledger.lock_customers(array_agg(p.owner_id), array_agg(p.currency_code))
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes) AS p (owner_id, kind, currency_code)
    WHERE p.kind = 'customer_credits'
    HAVING count(*) > 0;

    -- Everything but customers' credits goes through a delta and is folded at once, in this transaction: what was
    -- waiting becomes visible, and what is lowered is lowered before anybody else can look.
    INSERT INTO ledger.balance_delta (
        owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
    SELECT p.owner_id, p.kind, p.currency_code, b.collected, b.day, b.day, greatest(p.amount, 0), greatest(-p.amount, 0)
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts) AS p (owner_id, kind, currency_code, amount)
    LEFT JOIN (SELECT true AS collected, ledger.today() AS day) AS b ON p.kind = 'organization_payable'
    WHERE p.kind <> 'customer_credits';
    PERFORM ledger.fold(0, array_agg(DISTINCT p.owner_id))
    FROM unnest(p_owner_ids, p_kinds, p_amounts) AS p (owner_id, kind, amount)
    WHERE p.kind = 'organization_payable' AND p.amount < 0
    HAVING count(*) > 0;

    SELECT p.owner_id, p.kind, p.currency_code, p.amount, have.available INTO short
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts) AS p (owner_id, kind, currency_code, amount)
    CROSS JOIN LATERAL (
        SELECT CASE p.kind
            WHEN 'customer_credits' THEN (
                SELECT a.credits - a.debits - a.held FROM ledger.account a
                WHERE (a.owner_id, a.kind, a.currency_code) = (p.owner_id, p.kind, p.currency_code))
            -- The adjustment is in there already: what was available is that much more.
            ELSE ledger.available_earnings(p.owner_id, p.currency_code) - p.amount
        END AS available
    ) AS have
    WHERE p.amount < 0 AND p.kind IN ('customer_credits', 'organization_payable') AND have.available + p.amount < 0
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'insufficient balance' USING ERRCODE = 'TL003', DETAIL = json_strip_nulls(json_build_object(
            'owner_id', short.owner_id, 'account', short.kind, 'currency_code', short.currency_code,
            'available_micros', short.available::text, 'requested_micros', (-short.amount)::text,
            -- With what the current lease keeps it would do: the caller has it recalled.
            'recall', (
                SELECT 'true' FROM ledger.credit_lease l
                WHERE short.kind = 'customer_credits' AND l.customer_id = short.owner_id
                  AND l.currency_code = short.currency_code AND NOT l.draining
                  AND l.remaining + short.available + short.amount >= 0)
        ))::text;
    END IF;

    UPDATE ledger.account a
    SET credits = a.credits + greatest(p.amount, 0), debits = a.debits + greatest(-p.amount, 0), version = a.version + 1
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts) AS p (owner_id, kind, currency_code, amount)
    WHERE p.kind = 'customer_credits'
      AND a.owner_id = p.owner_id AND a.kind = p.kind AND a.currency_code = p.currency_code;

    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, occur_time, create_time, reason, actor_api_key_id)
    VALUES (adjustment_id, 'platform', 'adjustment', now(), now(), p_reason, p_actor_api_key_id);
    INSERT INTO ledger.entry
    SELECT adjustment_id, p.number, 'platform', p.owner_id, p.kind, p.currency_code, p.amount,
           b.collected, b.day, b.day, a.version
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts)
        WITH ORDINALITY AS p (owner_id, kind, currency_code, amount, number)
    LEFT JOIN (SELECT true AS collected, ledger.today() AS day) AS b ON p.kind = 'organization_payable'
    LEFT JOIN ledger.account a ON p.kind = 'customer_credits'
        AND a.owner_id = p.owner_id AND a.kind = p.kind AND a.currency_code = p.currency_code;
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES ('platform', adjustment_id);
END
$$;

-- What an organization could be paid now: collected, and past every hold. The caller holds its row and has folded.
CREATE FUNCTION ledger.available_earnings(p_owner_id text, p_currency_code text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(credits - debits), 0)::bigint FROM ledger.earnings_bucket
    WHERE owner_id = p_owner_id AND currency_code = p_currency_code
      AND collected AND available_on <= ledger.today()
$$;
