-- Credits that an organization gave away earn nobody anything: who funds them pays for what they buy. Charges do not know
-- which lot they spend, so that follows afterwards, from what the lots paid.
--
-- A settlement is a state and not an event: what the funder's lots have paid of a debit by now decides which entries
-- there should be in all, and what is posted is the difference to those that there are. So it does not matter whether a
-- correction, a collection or a reinstatement comes before, between or after: the same state leads to the same entries,
-- and a debit of which the lots got everything back is as if it had never been.


-- Settles debits that organizations' promotional credits paid, at most p_limit. Answers how many it looked at.
CREATE FUNCTION ledger.settle_promotions(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
DECLARE
    candidates ledger.promotion_due[];
    customer record;
    settled integer := 0;
BEGIN
    SELECT array_agg(d) INTO candidates FROM (
        SELECT * FROM ledger.promotion_due ORDER BY create_time LIMIT p_limit
    ) AS d;
    IF candidates IS NULL THEN
        RETURN 0;
    END IF;
    -- It lowers earnings, so it excludes every other lowering of the same organizations'. Then the customers, so that
    -- their charges do not change while it is decided what of them is to be settled, then their lots; all ascending.
    PERFORM FROM ledger.organization o
    WHERE o.organization_id = ANY (SELECT c.funder_id FROM unnest(candidates) AS c)
    ORDER BY o.organization_id FOR NO KEY UPDATE;
    PERFORM ledger.lock_customers(array_agg(c.customer_id), array_agg(c.currency_code)) FROM unnest(candidates) AS c;
    FOR customer IN
        SELECT DISTINCT c.customer_id, c.currency_code FROM unnest(candidates) AS c
        ORDER BY c.customer_id, c.currency_code
    LOOP
        BEGIN
            settled := settled + ledger.settle_customer(customer.customer_id, customer.currency_code, candidates);
        EXCEPTION WHEN raise_exception OR integrity_constraint_violation THEN
            -- Lots that contradict the journal: the audit finds them. The other customers must not wait.
            RAISE WARNING 'promotions of % in % are not settled: %',
                customer.customer_id, customer.currency_code, SQLERRM;
            PERFORM ledger.settle_later(customer.customer_id, customer.currency_code, candidates);
        END;
    END LOOP;
    -- Folded at once: what is lowered is lowered before anybody else can look.
    PERFORM ledger.fold(0, array_agg(DISTINCT c.funder_id)) FROM unnest(candidates) AS c;
    RETURN settled;
END
$$;


-- Settles all that an organization's promotional credits have paid by now, whether it is known already or not. SQLSTATE
-- 55P03, for which the caller asks again, if too much was spent since the lots were looked at. The caller holds the
-- organization's lock; what is lowered is in deltas, which it reads.
CREATE FUNCTION ledger.settle_funder(p_funder_id text, p_currency_code text) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
DECLARE
    customers text[];
    customer text;
    due ledger.promotion_due[];
BEGIN
    -- Who has something to settle, or has moved its credits since it was looked which lots paid.
    SELECT array_agg(DISTINCT w.customer_id) INTO customers FROM (
        SELECT d.customer_id FROM ledger.promotion_due d
        WHERE d.funder_id = p_funder_id AND d.currency_code = p_currency_code
        UNION ALL
        SELECT l.customer_id
        FROM ledger.credit_lot l
        JOIN ledger.lot_cursor c ON c.customer_id = l.customer_id AND c.currency_code = l.currency_code
        JOIN ledger.account a
            ON a.owner_id = l.customer_id AND a.kind = 'customer_credits' AND a.currency_code = l.currency_code
        WHERE l.funder_id = p_funder_id AND l.currency_code = p_currency_code
          AND l.is_open AND l.funder_id NOT IN ('', 'platform') AND a.version > c.allocated_version
    ) AS w;
    IF customers IS NULL THEN
        RETURN;
    END IF;
    PERFORM ledger.lock_customers(customers, array_fill(p_currency_code, ARRAY[cardinality(customers)]));
    FOR customer IN SELECT c FROM unnest(customers) AS c ORDER BY c LOOP
        BEGIN
            IF NOT ledger.catch_up_lots(customer, p_currency_code, 5000) THEN
                RAISE EXCEPTION 'lots of % are behind', customer USING ERRCODE = 'lock_not_available';
            END IF;
            SELECT array_agg(d) INTO due FROM ledger.promotion_due d
            WHERE d.customer_id = customer AND d.funder_id = p_funder_id AND d.currency_code = p_currency_code;
            PERFORM ledger.settle_customer(customer, p_currency_code, due);
        EXCEPTION WHEN raise_exception OR integrity_constraint_violation THEN
            -- Lots that contradict the journal: the audit finds them. An organization is not kept waiting for them.
            RAISE WARNING 'promotions of % in % are not settled: %', customer, p_currency_code, SQLERRM;
        END;
    END LOOP;
END
$$;


-- Settles those of the candidates that are of this customer and currency. Answers how many. The caller holds the locks of
-- the funders and of the customer.
CREATE FUNCTION ledger.settle_customer(
    p_customer_id text, p_currency_code text, candidates ledger.promotion_due[]
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    due record;
    settled integer := 0;
BEGIN
    -- What is corrected of a charge must be back in its lots before it is settled. If there is too much to do under the
    -- lock, the step that reads the log does it, and these come again, after the others.
    IF NOT ledger.catch_up_lots(p_customer_id, p_currency_code, 5000) THEN
        PERFORM ledger.settle_later(p_customer_id, p_currency_code, candidates);
        RETURN 0;
    END IF;
    FOR due IN
        -- Taken behind the locks: another replica may have settled it while this one waited.
        DELETE FROM ledger.promotion_due d USING unnest(candidates) AS c
        WHERE (d.customer_id, d.debit_id, d.funder_id, d.currency_code)
            = (c.customer_id, c.debit_id, c.funder_id, c.currency_code)
          AND (c.customer_id, c.currency_code) = (p_customer_id, p_currency_code)
        RETURNING d.debit_id, d.funder_id
    LOOP
        PERFORM ledger.settle_promotion(p_customer_id, p_currency_code, due.debit_id, due.funder_id);
        settled := settled + 1;
    END LOOP;
    RETURN settled;
END
$$;

-- Lets those of the candidates that are of this customer and currency come after all that wait by now.
CREATE FUNCTION ledger.settle_later(
    p_customer_id text, p_currency_code text, candidates ledger.promotion_due[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger.promotion_due d SET create_time = clock_timestamp()
    FROM unnest(candidates) AS c
    WHERE (d.customer_id, d.debit_id, d.funder_id, d.currency_code)
        = (c.customer_id, c.debit_id, c.funder_id, c.currency_code)
      AND (c.customer_id, c.currency_code) = (p_customer_id, p_currency_code);
END
$$;


-- Posts what is missing of the settlement of one debit with one funder, in up to two transactions: what the funder had
-- earned by the debit itself is taken back, and what it buys from others the funder pays for. The caller holds the locks
-- of the funder, of the customer and of its lots.
CREATE FUNCTION ledger.settle_promotion(
    p_customer_id text, p_currency_code text, p_debit_id text, p_funder_id text
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    charge ledger.charge;
    worked_on date;
    paid_on date;
    -- What the funder's lots paid, and how much of each leg of the charge that is.
    funded bigint := 0;
    collected bigint[];
    parts bigint[];
    lot record;
    own integer;
    earned bigint[] := '{0,0,0}';
    dates date[];
    nets bigint[];
BEGIN
    SELECT * INTO charge FROM ledger.charge c WHERE c.charge_id = p_debit_id AND c.customer_id = p_customer_id;
    IF FOUND THEN
        collected := ledger.collected_legs(charge);
        worked_on := (charge.occur_time AT TIME ZONE 'UTC')::date;
        paid_on := (charge.create_time AT TIME ZONE 'UTC')::date;
    ELSE
        SELECT (t.create_time AT TIME ZONE 'UTC')::date INTO STRICT worked_on
        FROM ledger.transaction t WHERE t.transaction_id = p_debit_id;
        paid_on := worked_on;
    END IF;
    -- Several funders share the legs one after the other, so that together they never take more than there is.
    FOR lot IN
        SELECT l.funder_id, sum(d.taken)::bigint AS taken
        FROM ledger.lots_of_debit(p_customer_id, p_currency_code, p_debit_id) AS d
        JOIN ledger.credit_lot l
            ON l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.lot_id = d.lot_id
        WHERE d.taken > 0 AND l.funder_id NOT IN ('', 'platform') AND l.funder_id <= p_funder_id
        GROUP BY l.funder_id ORDER BY l.funder_id
    LOOP
        parts := ledger.allocate(lot.taken, collected);
        collected := ledger.subtract(collected, parts);
        funded := CASE lot.funder_id WHEN p_funder_id THEN lot.taken ELSE 0 END;
    END LOOP;
    own := array_position(charge.organization_ids, p_funder_id);
    IF funded > 0 AND own IS NOT NULL THEN
        earned := parts[own * 3 - 2 : own * 3];
        -- Out of the buckets that the charge has filled, each in proportion.
        SELECT array_agg(b.available_on ORDER BY b.available_on),
               ledger.allocate(earned[1], array_agg(b.balance ORDER BY b.available_on))
        INTO dates, nets
        FROM (
            SELECT e.available_on, sum(e.amount)::bigint AS balance
            FROM ledger.charge_entries(charge.charge_id, p_customer_id) AS e
            WHERE e.owner_id = p_funder_id AND e.kind = 'organization_payable' AND e.collected
            GROUP BY e.available_on
        ) AS b;
    END IF;
    IF charge.charge_id IS NOT NULL THEN
        PERFORM ledger.post_settlement(
            p_customer_id, p_currency_code, p_debit_id, p_funder_id, charge.charge_id, worked_on, dates, nets,
            earned[2], earned[3]);
    END IF;
    PERFORM ledger.post_settlement(
        p_customer_id, p_currency_code, p_debit_id, p_funder_id, NULL, worked_on, ARRAY[paid_on],
        ARRAY[funded - ledger.total(earned)], 0, 0);
END
$$;


-- Posts the difference between what the settlement should have taken by now, net from these buckets and of both fees,
-- and what it has. p_charge_id: of what the funder had earned by this charge; NULL: what it pays for others.
CREATE FUNCTION ledger.post_settlement(
    p_customer_id text, p_currency_code text, p_debit_id text, p_funder_id text, p_charge_id text, p_earned_on date,
    p_available_on date[], p_nets bigint[], p_platform_fee bigint, p_processing_fee bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    settlement_id text := ledger.new_transaction_id();
    lines integer;
    moved bigint;
BEGIN
    WITH target AS (
        SELECT 'organization_payable'::ledger.account_kind AS kind, b.available_on, -b.net AS amount
        FROM unnest(p_available_on, p_nets) AS b (available_on, net)
        UNION ALL
        SELECT v.kind, NULL, v.amount
        FROM (VALUES
            ('platform_fees'::ledger.account_kind, -p_platform_fee),
            ('processing_fees', -p_processing_fee),
            ('promotions', coalesce(ledger.total(p_nets), 0) + p_platform_fee + p_processing_fee)
        ) AS v (kind, amount)
        UNION ALL
        SELECT e.kind, e.available_on, -e.amount
        FROM ledger.promotion_settlement s
        JOIN ledger.entry e ON e.transaction_id = s.transaction_id AND e.partition_id = s.customer_id
        WHERE s.customer_id = p_customer_id AND s.debit_id = p_debit_id AND s.funder_id = p_funder_id
          AND s.currency_code = p_currency_code AND s.of_earnings = (p_charge_id IS NOT NULL)
    ),
    line AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY t.kind, t.available_on) AS number, t.kind, t.available_on,
               sum(t.amount)::bigint AS amount
        FROM target t
        GROUP BY t.kind, t.available_on
        HAVING sum(t.amount) <> 0
    ),
    into_entry AS (
        INSERT INTO ledger.entry
        SELECT settlement_id, l.number, p_customer_id, p_funder_id, l.kind, p_currency_code, l.amount,
               CASE WHEN l.available_on IS NOT NULL THEN true END,
               CASE WHEN l.available_on IS NOT NULL THEN p_earned_on END, l.available_on, NULL
        FROM line l
    ),
    into_delta AS (
        INSERT INTO ledger.balance_delta (
            owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
        SELECT p_funder_id, l.kind, p_currency_code, CASE WHEN l.available_on IS NOT NULL THEN true END,
               CASE WHEN l.available_on IS NOT NULL THEN p_earned_on END, l.available_on,
               greatest(l.amount, 0), greatest(-l.amount, 0)
        FROM line l
    )
    SELECT count(*), coalesce(sum(l.amount) FILTER (WHERE l.kind = 'promotions'), 0) INTO lines, moved FROM line l;
    IF lines = 0 THEN
        RETURN;
    END IF;
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, charge_id, occur_time, create_time, reason, actor_api_key_id)
    VALUES (settlement_id, p_customer_id, 'promotion_settlement', p_charge_id, now(), now(),
            CASE WHEN p_charge_id IS NULL THEN 'promotional credits paid ' || p_debit_id ELSE '' END, 'ledger');
    INSERT INTO ledger.promotion_settlement (
        customer_id, debit_id, funder_id, transaction_id, of_earnings, currency_code, amount)
    VALUES (p_customer_id, p_debit_id, p_funder_id, settlement_id, p_charge_id IS NOT NULL, p_currency_code, moved);
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_customer_id, settlement_id);
END
$$;


-- What a charge has collected so far, by leg: all of it, less what is corrected, what is owed, unpaid or given up.
CREATE FUNCTION ledger.collected_legs(charge ledger.charge) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    collected bigint[] := ledger.legs(charge.payee_gross, charge.platform_fees, charge.processing_fees);
    lessened ledger.corrected_charge;
    open ledger.open_charge;
BEGIN
    SELECT * INTO lessened FROM ledger.corrected_charge c
    WHERE c.charge_id = charge.charge_id AND c.customer_id = charge.customer_id;
    IF FOUND THEN
        collected := ledger.subtract(collected, lessened.legs);
        IF lessened.written_off_legs IS NOT NULL THEN
            collected := ledger.subtract(collected, lessened.written_off_legs);
        END IF;
    END IF;
    SELECT * INTO open FROM ledger.open_charge o
    WHERE o.customer_id = charge.customer_id AND o.charge_id = charge.charge_id;
    IF FOUND THEN
        collected := ledger.subtract(ledger.subtract(collected, open.uncollected_legs), open.unearned_legs);
    END IF;
    RETURN collected;
END
$$;
