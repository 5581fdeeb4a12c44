-- What is taken back of charges: for the customer, from the payees and the fees. The legs are those of the charge, in
-- their fixed order. What is neither taken back nor written off of them is at any time in three parts: unearned
-- (unpaid), uncollected (receivable) and collected.


-- Takes back an amount of a charge, once per correction id. The customer gets it in the opposite order of how it pays:
-- first what is unpaid shrinks, then what is owed as receivable, and the rest is credits again, available at once.
-- Collecting what else the customer owes is collect(), which the caller runs next in the same database transaction.
--
-- What payees and fees lose is taken from where it is: the net leg from the buckets that it was earned or collected
-- into, whether or not these were paid out since. So available earnings may go below zero here.
--
-- duplicate: it had been posted before, and `correction` is what was. SQLSTATE TL001 if that was another request, TL020
-- if no such charge is there, TL021 if more would be taken back than is left of the charge.
CREATE FUNCTION ledger.correct_charge(
    p_charge_id text,
    p_correction_id text,
    p_currency_code text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_request_hash bytea,
    OUT duplicate boolean,
    OUT correction ledger.correction
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    correction_transaction_id text := ledger.new_transaction_id();
    charge ledger.charge;
    corrected ledger.corrected_charge;
    open ledger.open_charge;
    legs bigint[];
    surplus bigint[];
    unearned bigint[];
    uncollected bigint[];
    collected bigint[];
BEGIN
    SELECT * INTO charge FROM ledger.charge c WHERE c.charge_id = p_charge_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown charge' USING ERRCODE = 'TL020', DETAIL = p_charge_id;
    END IF;
    IF p_amount <= 0 OR p_currency_code <> charge.currency_code THEN
        RAISE EXCEPTION 'not an amount of this charge' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- The key first, as everywhere; a refusal below undoes it.
    duplicate := ledger.claim_key(
        charge.customer_id, 'correction/' || p_charge_id || '/' || p_correction_id, p_request_hash,
        correction_transaction_id) IS NOT NULL;
    IF duplicate THEN
        SELECT * INTO correction FROM ledger.correction c
        WHERE c.charge_id = p_charge_id AND c.customer_id = charge.customer_id AND c.correction_id = p_correction_id;
        RETURN;
    END IF;

    -- Lowering earnings excludes every other lowering of the same organizations', from here to the commit. Whether there
    -- is any is known only behind the customer's lock, which comes after these: so all payees are locked. Sorted, so
    -- that two corrections never wait for each other in a circle.
    PERFORM FROM ledger.organization o WHERE o.organization_id = ANY (charge.organization_ids)
    ORDER BY o.organization_id FOR NO KEY UPDATE;
    -- What is open and what is corrected of the charge is read behind this one: collections and other corrections have
    -- ended, or wait.
    PERFORM ledger.lock_customers(ARRAY[charge.customer_id], ARRAY[charge.currency_code]);

    corrected := ledger.raise_corrected(charge, p_amount);
    -- Of the legs, what corrections and write-offs have left.
    legs := ledger.subtract(
        ledger.legs(charge.payee_gross, charge.platform_fees, charge.processing_fees), corrected.legs);
    IF corrected.written_off > 0 THEN
        legs := ledger.subtract(legs, corrected.written_off_legs);
    END IF;
    SELECT * INTO open FROM ledger.open_charge o
    WHERE o.customer_id = charge.customer_id AND o.charge_id = p_charge_id;
    IF NOT FOUND THEN
        open.unpaid := 0;
        open.receivable := 0;
        open.unearned_legs := array_fill(0::bigint, ARRAY[cardinality(legs)]);
        open.uncollected_legs := open.unearned_legs;
    END IF;

    correction.unpaid := least(p_amount, open.unpaid);
    correction.receivable := least(p_amount - correction.unpaid, open.receivable);
    correction.credits := p_amount - correction.unpaid - correction.receivable;

    -- What each leg has beyond what the split leaves it of a charge that is smaller by all corrections and write-offs.
    -- Each part gives of that what it has; the collected part is what the other two left of the legs.
    surplus := ledger.subtract(
        legs,
        ledger.split(
            charge.gross - corrected.amount - corrected.written_off, charge.payee_gross, charge.platform_fee_bps,
            charge.processing_fee_bps));
    unearned := ledger.take_legs(correction.unpaid, open.unearned_legs, surplus);
    surplus := ledger.subtract(surplus, unearned);
    uncollected := ledger.take_legs(correction.receivable, open.uncollected_legs, surplus);
    surplus := ledger.subtract(surplus, uncollected);
    collected := ledger.take_legs(
        correction.credits,
        ledger.subtract(ledger.subtract(legs, open.unearned_legs), open.uncollected_legs),
        surplus);

    correction.charge_id := p_charge_id;
    correction.customer_id := charge.customer_id;
    correction.correction_id := p_correction_id;
    correction.correction_number := corrected.corrections;
    correction.amount := p_amount;
    correction.legs := ledger.add(ledger.add(unearned, uncollected), collected);
    correction.transaction_id := correction_transaction_id;
    correction.create_time := now();

    UPDATE ledger.corrected_charge c SET legs = ledger.add(c.legs, correction.legs)
    WHERE c.charge_id = p_charge_id AND c.customer_id = charge.customer_id;
    PERFORM ledger.lower_open(open, unearned, uncollected);
    UPDATE ledger.account a
    SET credits = a.credits + m.credits, debits = a.debits + m.debits, version = a.version + m.entries
    FROM (VALUES
        ('customer_credits'::ledger.account_kind, correction.credits, 0::bigint, 1),
        ('customer_receivable', correction.receivable, 0, 1),
        ('customer_unpaid', correction.unpaid, 0, 0),
        ('unpaid_offset', 0, correction.unpaid, 0)
    ) AS m (kind, credits, debits, entries)
    WHERE a.owner_id = charge.customer_id AND a.kind = m.kind AND a.currency_code = charge.currency_code
      AND m.credits + m.debits > 0;

    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, charge_id, correction_id, occur_time, create_time, reason, actor_api_key_id)
    VALUES (correction_transaction_id, charge.customer_id, 'correction', p_charge_id, p_correction_id, now(), now(),
            p_reason, p_actor_api_key_id);
    PERFORM ledger.insert_correction_entries(charge, correction, uncollected, collected);
    -- After the entries, which come out of what the corrections before this one have left.
    INSERT INTO ledger.correction SELECT (correction).*;
    INSERT INTO ledger.unsequenced (partition_id, transaction_id)
    VALUES (charge.customer_id, correction_transaction_id);
    -- Folded at once: what is lowered is lowered before anybody else can look.
    PERFORM ledger.fold(0, charge.organization_ids);
END
$$;


-- Takes from what is open of a charge; its row ends when nothing is. `open` may be of a charge of which nothing was.
CREATE FUNCTION ledger.lower_open(open ledger.open_charge, p_unearned bigint[], p_uncollected bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF open.unpaid + open.receivable > ledger.total(p_unearned) + ledger.total(p_uncollected) THEN
        UPDATE ledger.open_charge o
        SET unearned_legs = ledger.subtract(o.unearned_legs, p_unearned), unpaid = o.unpaid - ledger.total(p_unearned),
            uncollected_legs = ledger.subtract(o.uncollected_legs, p_uncollected),
            receivable = o.receivable - ledger.total(p_uncollected)
        WHERE o.customer_id = open.customer_id AND o.charge_id = open.charge_id;
    ELSE
        DELETE FROM ledger.open_charge o WHERE o.customer_id = open.customer_id AND o.charge_id = open.charge_id;
    END IF;
END
$$;


-- Raises how much of a charge is corrected, and answers the row with the legs as they were before. The caller holds the
-- customer's lock. SQLSTATE TL021 if that is more than the charge.
CREATE FUNCTION ledger.raise_corrected(charge ledger.charge, p_amount bigint) RETURNS ledger.corrected_charge
LANGUAGE plpgsql AS $$
DECLARE
    corrected ledger.corrected_charge;
BEGIN
    PERFORM ledger.begin_corrected(charge);
    UPDATE ledger.corrected_charge c SET amount = c.amount + p_amount, corrections = c.corrections + 1
    WHERE c.charge_id = charge.charge_id AND c.customer_id = charge.customer_id
      AND p_amount <= c.gross - c.amount - c.written_off
    RETURNING * INTO corrected;
    IF NOT FOUND THEN
        SELECT * INTO corrected FROM ledger.corrected_charge c
        WHERE c.charge_id = charge.charge_id AND c.customer_id = charge.customer_id;
        RAISE EXCEPTION 'more than is left of the charge' USING ERRCODE = 'TL021', DETAIL = json_strip_nulls(json_build_object(
            'charge_id', charge.charge_id, 'gross_micros', charge.gross::text,
            'corrected_micros', corrected.amount::text, 'written_off_micros', nullif(corrected.written_off, 0)::text,
            'requested_micros', p_amount::text))::text;
    END IF;
    RETURN corrected;
END
$$;

-- Makes the row of what is gone of a charge, unless there is one. The caller holds the customer's lock.
CREATE FUNCTION ledger.begin_corrected(charge ledger.charge) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.corrected_charge (charge_id, customer_id, gross, amount, legs, corrections)
    VALUES (charge.charge_id, charge.customer_id, charge.gross, 0,
            array_fill(0::bigint, ARRAY[3 * cardinality(charge.organization_ids)]), 0)
    ON CONFLICT DO NOTHING;
END
$$;


-- The legs of a charge of this amount, divided among the payees as the gross amounts are and split by these agreements.
CREATE FUNCTION ledger.split(
    amount bigint, payee_gross bigint[], platform_fee_bps integer[], processing_fee_bps integer[]
) RETURNS bigint[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ledger.legs(
        array_agg(p.share ORDER BY p.number),
        array_agg(p.share * p.platform_bps / 10000 ORDER BY p.number),
        array_agg(p.share * p.processing_bps / 10000 ORDER BY p.number))
    FROM unnest(ledger.allocate(amount, payee_gross), platform_fee_bps, processing_fee_bps)
        WITH ORDINALITY AS p (share, platform_bps, processing_bps, number)
$$;


-- Takes an amount from legs: of each its surplus, as far as it has that. When that is not enough, the rest comes from
-- what is left of the legs; when it is too much, the excess stays with those that would give; both by largest
-- remainder. No part is negative or exceeds its leg, and the parts add up to the amount, which must not exceed the legs.
CREATE FUNCTION ledger.take_legs(amount bigint, legs bigint[], surplus bigint[]) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    taken bigint[];
    lacking bigint;
BEGIN
    SELECT array_agg(least(greatest(t.over, 0), t.leg) ORDER BY t.number) INTO taken
    FROM unnest(legs, surplus) WITH ORDINALITY AS t (leg, over, number);
    lacking := amount - ledger.total(taken);
    IF lacking < 0 THEN
        RETURN ledger.subtract(taken, ledger.allocate(-lacking, taken));
    END IF;
    RETURN ledger.add(taken, ledger.allocate(lacking, ledger.subtract(legs, taken)));
END
$$;

CREATE FUNCTION ledger.add(augend bigint[], addend bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT array_agg(a + b ORDER BY number) FROM unnest(augend, addend) WITH ORDINALITY AS t (a, b, number)
$$;


-- The entries of a correction (or of a write-off, which gives no credits), one per account and bucket, and the deltas of what they lower. p_uncollected
-- and p_collected are what it takes of the legs that were earned.
CREATE FUNCTION ledger.insert_correction_entries(
    charge ledger.charge, correction ledger.correction, p_uncollected bigint[], p_collected bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH payee AS (
        SELECT p.*, (charge.occur_time AT TIME ZONE 'UTC')::date AS earned_on,
               (charge.create_time AT TIME ZONE 'UTC')::date + greatest(p.hold_days, p.window_days) AS available_on,
               (p.payee_number * 3 - 2)::integer AS net_leg
        FROM unnest(charge.organization_ids, charge.settlement_hold_days, charge.dispute_window_days)
            WITH ORDINALITY AS p (organization_id, hold_days, window_days, payee_number)
    ),
    line AS (
        SELECT 0::bigint AS payee_number, v.line_number, charge.customer_id AS owner_id, v.kind, v.amount,
               NULL::boolean AS collected, NULL::date AS earned_on, NULL::date AS available_on, a.version
        FROM (VALUES
            (1, 'customer_credits'::ledger.account_kind, correction.credits),
            (2, 'customer_receivable', correction.receivable),
            (3, 'customer_unpaid', correction.unpaid),
            (4, 'unpaid_offset', -correction.unpaid)
        ) AS v (line_number, kind, amount)
        LEFT JOIN ledger.account a ON v.line_number <= 2
            AND (a.owner_id, a.kind, a.currency_code) = (charge.customer_id, v.kind, charge.currency_code)
        UNION ALL
        -- Of what is collected, what came last goes first: it is the least likely to have been paid out.
        SELECT p.payee_number, 1, p.organization_id, 'organization_payable',
               -least(b.balance, p_collected[p.net_leg] - (b.upto - b.balance)),
               true, p.earned_on, b.available_on, NULL
        FROM payee p
        JOIN (
            SELECT e.owner_id, e.available_on, sum(e.amount)::bigint AS balance,
                   (sum(sum(e.amount)) OVER (PARTITION BY e.owner_id ORDER BY e.available_on DESC))::bigint AS upto
            FROM ledger.charge_entries(charge.charge_id, charge.customer_id) AS e
            WHERE e.kind = 'organization_payable' AND e.collected
            GROUP BY e.owner_id, e.available_on
        ) AS b ON b.owner_id = p.organization_id
        WHERE b.upto - b.balance < p_collected[p.net_leg]
        UNION ALL
        SELECT p.payee_number, v.line_number, p.organization_id, v.kind, v.amount,
               CASE v.line_number WHEN 2 THEN false END, CASE v.line_number WHEN 2 THEN p.earned_on END,
               CASE v.line_number WHEN 2 THEN p.available_on END, NULL
        FROM payee p
        CROSS JOIN LATERAL (VALUES
            (2, 'organization_payable'::ledger.account_kind, -p_uncollected[p.net_leg]),
            (3, 'platform_fees', -p_uncollected[p.net_leg + 1] - p_collected[p.net_leg + 1]),
            (4, 'processing_fees', -p_uncollected[p.net_leg + 2] - p_collected[p.net_leg + 2])
        ) AS v (line_number, kind, amount)
    ),
    posted AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY payee_number, line_number, available_on DESC) AS entry_number, line.*
        FROM line
        WHERE amount <> 0
    ),
    into_entry AS (
        INSERT INTO ledger.entry
        SELECT correction.transaction_id, p.entry_number, charge.customer_id, p.owner_id, p.kind, charge.currency_code,
               p.amount, p.collected, p.earned_on, p.available_on, p.version
        FROM posted p
    )
    INSERT INTO ledger.balance_delta (
        owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
    SELECT p.owner_id, p.kind, charge.currency_code, p.collected, p.earned_on, p.available_on, 0, -p.amount
    FROM posted p
    WHERE p.payee_number > 0;
END
$$;


-- The entries of a charge's own transaction, its collections and its corrections.
CREATE FUNCTION ledger.charge_entries(p_charge_id text, p_customer_id text) RETURNS SETOF ledger.entry
LANGUAGE sql STABLE AS $$
    SELECT e.*
    FROM (
        SELECT c.transaction_id FROM ledger.charge c
        WHERE c.charge_id = p_charge_id AND c.customer_id = p_customer_id
        UNION ALL
        SELECT t.transaction_id FROM ledger.transaction t
        WHERE t.charge_id = p_charge_id AND t.partition_id = p_customer_id AND t.type = 'collection'
        UNION ALL
        SELECT r.transaction_id FROM ledger.correction r
        WHERE r.charge_id = p_charge_id AND r.customer_id = p_customer_id
    ) AS t
    JOIN ledger.entry e ON e.transaction_id = t.transaction_id AND e.partition_id = p_customer_id
$$;
