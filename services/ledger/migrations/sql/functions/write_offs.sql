-- What is given up. Like a correction it leaves what was posted as it is, and unlike one nobody gets anything: who owes
-- it need not pay it any more, and whoever had earned it, or had paid it already, loses it.
--
-- Each takes an amount, or all that is owed for NULL, once per key. SQLSTATE TL001 if the key came with another request,
-- TL030 if less is owed than that, or nothing. duplicate: it had been posted before, and `written` is what was.


-- Of a charge, what is unpaid or what is owed as receivable. What was unpaid nobody had earned; of a receivable payees
-- and fees lose their part, out of the uncollected buckets that it was in. SQLSTATE TL020 if no such charge is there.
CREATE FUNCTION ledger.write_off_charge(
    p_charge_id text,
    p_kind ledger.write_off_kind,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    OUT duplicate boolean,
    OUT written ledger.write_off
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    charge ledger.charge;
    open ledger.open_charge;
    lost ledger.correction;
    nothing bigint[];
    unearned bigint[];
    uncollected bigint[];
BEGIN
    SELECT * INTO charge FROM ledger.charge c WHERE c.charge_id = p_charge_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown charge' USING ERRCODE = 'TL020', DETAIL = p_charge_id;
    END IF;
    written := ledger.begin_write_off(
        charge.customer_id, p_kind, p_charge_id, charge.currency_code, p_key, p_request_hash);
    duplicate := written.amount IS NOT NULL;
    IF duplicate THEN
        RETURN;
    END IF;
    IF p_kind = 'receivable' THEN
        -- It lowers earnings: that excludes every other lowering of the same organizations', from here to the commit.
        PERFORM FROM ledger.organization o WHERE o.organization_id = ANY (charge.organization_ids)
        ORDER BY o.organization_id FOR NO KEY UPDATE;
    END IF;
    -- What is open of the charge is read behind this one: collections and corrections have ended, or wait.
    PERFORM ledger.lock_customers(ARRAY[charge.customer_id], ARRAY[charge.currency_code]);
    -- Credits that came free since somebody looked: what they can pay is not given up.
    PERFORM FROM ledger.collect(charge.customer_id, charge.currency_code, 100, p_actor_api_key_id);
    SELECT * INTO open FROM ledger.open_charge o
    WHERE o.customer_id = charge.customer_id AND o.charge_id = p_charge_id;
    written.amount := ledger.expect_owed(
        written, CASE p_kind WHEN 'unpaid' THEN open.unpaid ELSE open.receivable END, p_amount);

    nothing := array_fill(0::bigint, ARRAY[3 * cardinality(charge.organization_ids)]);
    unearned := nothing;
    uncollected := nothing;
    IF p_kind = 'unpaid' THEN
        unearned := ledger.allocate(written.amount, open.unearned_legs);
    ELSE
        uncollected := ledger.allocate(written.amount, open.uncollected_legs);
    END IF;
    written.legs := ledger.add(unearned, uncollected);
    -- Raised before anything is posted: the CHECK is the last word on more than the charge.
    PERFORM ledger.begin_corrected(charge);
    UPDATE ledger.corrected_charge c
    SET written_off = c.written_off + written.amount,
        written_off_legs = ledger.add(coalesce(c.written_off_legs, nothing), written.legs)
    WHERE c.charge_id = p_charge_id AND c.customer_id = charge.customer_id;
    PERFORM ledger.lower_open(open, unearned, uncollected);
    UPDATE ledger.account a
    SET credits = a.credits + m.credits, debits = a.debits + m.debits, version = a.version + m.entries
    FROM (VALUES
        ('customer_receivable'::ledger.account_kind, ledger.total(uncollected), 0::bigint, 1),
        ('customer_unpaid', ledger.total(unearned), 0, 0),
        ('unpaid_offset', 0, ledger.total(unearned), 0)
    ) AS m (kind, credits, debits, entries)
    WHERE a.owner_id = charge.customer_id AND a.kind = m.kind AND a.currency_code = charge.currency_code
      AND m.credits + m.debits > 0;

    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, charge_id, occur_time, create_time, reason, actor_api_key_id)
    VALUES (written.transaction_id, charge.customer_id, 'write_off', p_charge_id, now(), now(), p_reason,
            p_actor_api_key_id);
    -- Its entries are those of a correction that gives back nothing that was paid.
    lost.transaction_id := written.transaction_id;
    lost.unpaid := ledger.total(unearned);
    lost.receivable := ledger.total(uncollected);
    lost.credits := 0;
    PERFORM ledger.insert_correction_entries(charge, lost, uncollected, nothing);
    INSERT INTO ledger.write_off SELECT (written).*;
    INSERT INTO ledger.unsequenced (partition_id, transaction_id)
    VALUES (charge.customer_id, written.transaction_id);
    IF p_kind = 'receivable' THEN
        -- Folded at once: what is lowered is lowered before anybody else can look.
        PERFORM ledger.fold(0, charge.organization_ids);
    END IF;
END
$$;


-- What a customer owes for chargebacks: the platform had paid it already, and loses it. SQLSTATE TL002 if there is no
-- such customer.
CREATE FUNCTION ledger.write_off_chargebacks(
    p_customer_id text,
    p_currency_code text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    OUT duplicate boolean,
    OUT written ledger.write_off
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM ledger.customer c WHERE c.customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    written := ledger.begin_write_off(p_customer_id, 'chargebacks', '', p_currency_code, p_key, p_request_hash);
    duplicate := written.amount IS NOT NULL;
    IF duplicate THEN
        RETURN;
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    -- Credits that came free since somebody looked: what they can pay is not given up.
    PERFORM ledger.collect_chargebacks(p_customer_id, p_currency_code, p_actor_api_key_id);
    written.amount := ledger.expect_owed(written, ledger.chargebacks(p_customer_id, p_currency_code), p_amount);
    UPDATE ledger.account a SET credits = a.credits + written.amount
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_chargebacks', p_currency_code);
    PERFORM ledger.insert_movement(
        written.transaction_id, p_customer_id, 'write_off', NULL, p_reason, p_actor_api_key_id, p_currency_code,
        ARRAY[p_customer_id, 'platform'], ARRAY['customer_chargebacks', 'write_offs']::ledger.account_kind[],
        ARRAY[written.amount, -written.amount], NULL);
    INSERT INTO ledger.write_off SELECT (written).*;
END
$$;


-- What an organization's available earnings are below zero. It goes into the buckets that are, the first ones first.
-- SQLSTATE TL002 if there is no such organization.
CREATE FUNCTION ledger.write_off_clawback(
    p_organization_id text,
    p_currency_code text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    OUT duplicate boolean,
    OUT written ledger.write_off
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    available bigint;
BEGIN
    written := ledger.begin_write_off(p_organization_id, 'clawback', '', p_currency_code, p_key, p_request_hash);
    duplicate := written.amount IS NOT NULL;
    IF duplicate THEN
        RETURN;
    END IF;
    -- Behind the lock nobody lowers earnings. Who raises them meanwhile makes it up, and leaves a part of this available.
    PERFORM ledger.lock_organization(p_organization_id);
    SELECT coalesce(sum(b.balance), 0) INTO available
    FROM ledger.payable_buckets(p_organization_id, p_currency_code) AS b;
    written.amount := ledger.expect_owed(written, greatest(-available, 0), p_amount);
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, occur_time, create_time, reason, actor_api_key_id)
    VALUES (written.transaction_id, p_organization_id, 'write_off', now(), now(), p_reason, p_actor_api_key_id);
    INSERT INTO ledger.entry
    SELECT written.transaction_id, row_number() OVER (ORDER BY t.available_on, t.earned_on), p_organization_id,
           p_organization_id, 'organization_payable', p_currency_code, t.part, true, t.earned_on, t.available_on, NULL
    FROM (
        SELECT b.earned_on, b.available_on,
               least(-b.balance, written.amount - (sum(-b.balance) OVER upto + b.balance))::bigint AS part
        FROM ledger.payable_buckets(p_organization_id, p_currency_code) AS b
        WHERE b.balance < 0
        WINDOW upto AS (ORDER BY b.available_on, b.earned_on ROWS UNBOUNDED PRECEDING)
    ) AS t
    WHERE t.part > 0;
    PERFORM ledger.insert_last_entry(
        written.transaction_id, p_organization_id, 'platform', 'clawback_losses', p_currency_code, -written.amount);
    PERFORM ledger.settle_entries(written.transaction_id, p_organization_id);
    INSERT INTO ledger.write_off SELECT (written).*;
END
$$;


-- Claims the key of a write-off, and answers it without its amount; or the one that was posted with that key.
CREATE FUNCTION ledger.begin_write_off(
    p_owner_id text,
    p_kind ledger.write_off_kind,
    p_charge_id text,
    p_currency_code text,
    p_key text,
    p_request_hash bytea
) RETURNS ledger.write_off LANGUAGE plpgsql AS $$
DECLARE
    posted_id text := ledger.new_transaction_id();
    first_id text := ledger.claim_key(p_owner_id, p_key, p_request_hash, posted_id);
    written ledger.write_off;
BEGIN
    IF first_id IS NOT NULL THEN
        SELECT * INTO written FROM ledger.write_off w WHERE w.transaction_id = first_id AND w.owner_id = p_owner_id;
        RETURN written;
    END IF;
    written.owner_id := p_owner_id;
    written.transaction_id := posted_id;
    written.kind := p_kind;
    written.charge_id := p_charge_id;
    written.currency_code := p_currency_code;
    written.create_time := now();
    RETURN written;
END
$$;

-- How much to write off of what is owed: the amount that was asked for, or all of it.
CREATE FUNCTION ledger.expect_owed(written ledger.write_off, p_owed bigint, p_amount bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    owed bigint := coalesce(p_owed, 0);
BEGIN
    IF owed = 0 OR p_amount > owed OR p_amount <= 0 THEN
        RAISE EXCEPTION 'more than is owed' USING ERRCODE = 'TL030', DETAIL = json_strip_nulls(json_build_object(
            'owner_id', written.owner_id, 'kind', written.kind, 'charge_id', nullif(written.charge_id, ''),
            'owed_micros', owed::text, 'requested_micros', coalesce(p_amount, 0)::text))::text;
    END IF;
    RETURN coalesce(p_amount, owed);
END
$$;
