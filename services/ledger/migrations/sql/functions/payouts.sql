-- What is paid out of organizations' earnings. Each function begins with the organization's row, whose lock every
-- lowering of its earnings takes, and looks only behind it: two payouts never see the same money.


-- Takes an amount from the available earnings of an organization, whole or not at all: from the bucket that became
-- available first, then the next. What it owes for its promotions is settled before. A refusal stays: what was too much once, or came while payouts were frozen, is not
-- paid later by a retry.
--
-- duplicate: it had been asked for before, and `debit` is what became of it. SQLSTATE TL001 if that was for another
-- amount.
CREATE FUNCTION ledger.debit_payout(
    p_organization_id text,
    p_payout_id text,
    p_currency_code text,
    p_amount bigint,
    p_actor_api_key_id text,
    OUT duplicate boolean,
    OUT debit ledger.payout_debit
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    available bigint;
    frozen_because text;
    payout_transaction_id text := ledger.new_transaction_id();
BEGIN
    PERFORM ledger.lock_organization(p_organization_id);
    SELECT * INTO debit FROM ledger.payout_debit d
    WHERE d.organization_id = p_organization_id AND d.payout_id = p_payout_id;
    duplicate := FOUND;
    IF duplicate THEN
        IF (debit.currency_code, debit.amount) <> (p_currency_code, p_amount) THEN
            RAISE EXCEPTION 'payout id reused' USING ERRCODE = 'TL001';
        END IF;
        RETURN;
    END IF;

    -- What its own promotions bought until now is not its money.
    PERFORM ledger.settle_funder(p_organization_id, p_currency_code);
    SELECT coalesce(sum(b.balance), 0) INTO available
    FROM ledger.payable_buckets(p_organization_id, p_currency_code) AS b;
    -- Behind the lock, for which a freeze waits too: it is seen here, or comes after this payout.
    SELECT nullif(o.payouts_freeze_reason, '') INTO frozen_because FROM ledger.organization o
    WHERE o.organization_id = p_organization_id;
    IF p_amount > available OR frozen_because IS NOT NULL THEN
        INSERT INTO ledger.payout_debit (
            organization_id, payout_id, currency_code, amount, state, available, freeze_reason, create_time, end_time)
        VALUES (p_organization_id, p_payout_id, p_currency_code, p_amount, 'refused', available, frozen_because, now(),
                now())
        RETURNING * INTO debit;
        RETURN;
    END IF;

    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, payout_id, occur_time, create_time, actor_api_key_id)
    VALUES (payout_transaction_id, p_organization_id, 'payout', p_payout_id, now(), now(), p_actor_api_key_id);
    INSERT INTO ledger.entry
    SELECT payout_transaction_id, row_number() OVER (ORDER BY t.available_on, t.earned_on), p_organization_id,
           p_organization_id, 'organization_payable', p_currency_code, -t.part, true, t.earned_on, t.available_on, NULL
    FROM (
        SELECT b.earned_on, b.available_on,
               least(b.balance, p_amount - (sum(b.balance) OVER upto - b.balance))::bigint AS part
        FROM ledger.payable_buckets(p_organization_id, p_currency_code) AS b
        WHERE b.balance > 0
        WINDOW upto AS (ORDER BY b.available_on, b.earned_on ROWS UNBOUNDED PRECEDING)
    ) AS t
    WHERE t.part > 0;
    PERFORM ledger.insert_last_entry(
        payout_transaction_id, p_organization_id, p_organization_id, 'payouts_in_transit', p_currency_code, p_amount);
    PERFORM ledger.settle_entries(payout_transaction_id, p_organization_id);

    INSERT INTO ledger.payout_debit (
        organization_id, payout_id, currency_code, amount, state, available, transaction_id, create_time)
    VALUES (p_organization_id, p_payout_id, p_currency_code, p_amount, 'in_transit', available,
            payout_transaction_id, now())
    RETURNING * INTO debit;
END
$$;


-- The money of a payout left the platform.
CREATE FUNCTION ledger.complete_payout(
    p_organization_id text, p_payout_id text, p_actor_api_key_id text
) RETURNS ledger.payout_debit
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    debit ledger.payout_debit := ledger.lock_payout(p_organization_id, p_payout_id);
    completion_id text := ledger.new_transaction_id();
BEGIN
    IF debit.state = 'completed' THEN
        RETURN debit;
    END IF;
    PERFORM ledger.expect_payout(debit, 'in_transit');
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, payout_id, occur_time, create_time, actor_api_key_id)
    VALUES (completion_id, p_organization_id, 'payout_completion', p_payout_id, now(), now(), p_actor_api_key_id);
    PERFORM ledger.insert_last_entry(
        completion_id, p_organization_id, p_organization_id, 'payouts_in_transit', debit.currency_code, -debit.amount);
    PERFORM ledger.insert_last_entry(
        completion_id, p_organization_id, 'platform', 'stripe_clearing', debit.currency_code, debit.amount);
    PERFORM ledger.settle_entries(completion_id, p_organization_id);
    RETURN ledger.end_payout(debit, 'completed', completion_id);
END
$$;


-- The money of a payout did not leave: it goes back to the buckets that it came from.
CREATE FUNCTION ledger.return_payout(
    p_organization_id text, p_payout_id text, p_reason text, p_actor_api_key_id text
) RETURNS ledger.payout_debit
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    debit ledger.payout_debit := ledger.lock_payout(p_organization_id, p_payout_id);
    return_id text := ledger.new_transaction_id();
BEGIN
    IF debit.state = 'returned' THEN
        RETURN debit;
    END IF;
    PERFORM ledger.expect_payout(debit, 'in_transit');
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, payout_id, occur_time, create_time, reason, actor_api_key_id)
    VALUES (return_id, p_organization_id, 'payout_return', p_payout_id, now(), now(), p_reason, p_actor_api_key_id);
    PERFORM ledger.insert_returned_earnings(return_id, debit, 0, debit.amount);
    PERFORM ledger.insert_last_entry(
        return_id, p_organization_id, p_organization_id, 'payouts_in_transit', debit.currency_code, -debit.amount);
    PERFORM ledger.settle_entries(return_id, p_organization_id);
    RETURN ledger.end_payout(debit, 'returned', return_id);
END
$$;


-- Money of a completed payout came back: it goes to the buckets that it came from, the first ones first, so that
-- several reversals together are like one. SQLSTATE TL005 if more would come back than was paid.
CREATE FUNCTION ledger.reverse_payout(
    p_organization_id text,
    p_payout_id text,
    p_key text,
    p_request_hash bytea,
    p_currency_code text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    OUT duplicate boolean,
    OUT debit ledger.payout_debit
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    reversal_id text := ledger.new_transaction_id();
BEGIN
    -- The key first, as everywhere; a refusal below undoes it.
    duplicate := ledger.claim_key(p_organization_id, p_key, p_request_hash, reversal_id) IS NOT NULL;
    debit := ledger.lock_payout(p_organization_id, p_payout_id);
    IF duplicate THEN
        RETURN;
    END IF;
    PERFORM ledger.expect_payout(debit, 'completed');
    IF p_currency_code <> debit.currency_code OR p_amount <= 0 THEN
        RAISE EXCEPTION 'not an amount of this payout' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_amount > debit.amount - debit.reversed THEN
        RAISE EXCEPTION 'more than was paid' USING ERRCODE = 'TL005', DETAIL = json_build_object(
            'payout_id', p_payout_id, 'amount_micros', debit.amount::text,
            'reversed_micros', debit.reversed::text, 'requested_micros', p_amount::text)::text;
    END IF;
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, payout_id, external_id, occur_time, create_time, reason, actor_api_key_id)
    -- The key as the caller knows it: the processor's own id of the reversal.
    VALUES (reversal_id, p_organization_id, 'payout_reversal', p_payout_id,
            substr(p_key, length('reversal/' || p_payout_id || '/') + 1), now(), now(), p_reason, p_actor_api_key_id);
    PERFORM ledger.insert_returned_earnings(reversal_id, debit, debit.reversed, debit.reversed + p_amount);
    PERFORM ledger.insert_last_entry(
        reversal_id, p_organization_id, 'platform', 'stripe_clearing', debit.currency_code, -p_amount);
    PERFORM ledger.settle_entries(reversal_id, p_organization_id);
    UPDATE ledger.payout_debit d SET reversed = d.reversed + p_amount
    WHERE d.organization_id = p_organization_id AND d.payout_id = p_payout_id
    RETURNING * INTO debit;
END
$$;


-- What an organization could be paid now, by bucket. With what is not folded yet: it was earned, and behind the
-- organization's lock nobody takes it. It is not folded first, since a fold takes deltas before accounts, and who
-- held accounts already could wait in a circle with one at its next fold.
CREATE FUNCTION ledger.payable_buckets(p_organization_id text, p_currency_code text)
RETURNS TABLE (earned_on date, available_on date, balance bigint) LANGUAGE sql STABLE AS $$
    SELECT part.earned_on, part.available_on, sum(part.amount)::bigint
    FROM (
        SELECT b.earned_on, b.available_on, b.credits - b.debits AS amount FROM ledger.earnings_bucket b
        WHERE b.owner_id = p_organization_id AND b.currency_code = p_currency_code
          AND b.collected AND b.available_on <= ledger.today()
        UNION ALL
        SELECT d.earned_on, d.available_on, d.credits - d.debits FROM ledger.balance_delta d
        WHERE d.owner_id = p_organization_id AND d.currency_code = p_currency_code
          AND d.kind = 'organization_payable' AND d.collected AND d.available_on <= ledger.today()
    ) AS part
    GROUP BY part.earned_on, part.available_on
$$;

-- Locks an organization against every other lowering of its earnings.
CREATE FUNCTION ledger.lock_organization(p_organization_id text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ledger.organization WHERE organization_id = p_organization_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown organization' USING ERRCODE = 'TL002', DETAIL = p_organization_id;
    END IF;
END
$$;

-- Locks the organization of a payout, and answers its debit as it stands behind the lock.
CREATE FUNCTION ledger.lock_payout(p_organization_id text, p_payout_id text) RETURNS ledger.payout_debit
LANGUAGE plpgsql AS $$
DECLARE
    debit ledger.payout_debit;
BEGIN
    PERFORM ledger.lock_organization(p_organization_id);
    SELECT * INTO debit FROM ledger.payout_debit d
    WHERE d.organization_id = p_organization_id AND d.payout_id = p_payout_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown payout' USING ERRCODE = 'TL006', DETAIL = p_payout_id;
    END IF;
    RETURN debit;
END
$$;

-- Refuses what cannot be done to a payout in the state that it is in: SQLSTATE TL004.
CREATE FUNCTION ledger.expect_payout(debit ledger.payout_debit, expected text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF debit.state::text <> expected THEN
        RAISE EXCEPTION 'payout in another state' USING ERRCODE = 'TL004', DETAIL = json_build_object(
            'payout_id', debit.payout_id, 'state', debit.state)::text;
    END IF;
END
$$;

-- Records the one end of a debit. The caller holds the organization's lock.
CREATE FUNCTION ledger.end_payout(debit ledger.payout_debit, end_state text, p_end_transaction_id text)
RETURNS ledger.payout_debit LANGUAGE plpgsql AS $$
DECLARE
    ended ledger.payout_debit;
BEGIN
    UPDATE ledger.payout_debit d
    SET state = end_state::ledger.payout_debit_state, end_transaction_id = p_end_transaction_id, end_time = now()
    WHERE d.organization_id = debit.organization_id AND d.payout_id = debit.payout_id
    RETURNING * INTO ended;
    RETURN ended;
END
$$;

-- Entries that put a part of what a debit took back into its buckets: what lies between the two marks, when all it
-- took is laid end to end in the order of its entries.
CREATE FUNCTION ledger.insert_returned_earnings(
    p_transaction_id text, debit ledger.payout_debit, p_from bigint, p_to bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.entry
    SELECT p_transaction_id, row_number() OVER (ORDER BY t.entry_number), debit.organization_id,
           debit.organization_id, 'organization_payable', debit.currency_code, t.part,
           true, t.earned_on, t.available_on, NULL
    FROM (
        SELECT p.entry_number, p.earned_on, p.available_on,
               least(p.upper, p_to) - greatest(p.upper - p.taken, p_from) AS part
        FROM (
            SELECT e.entry_number, e.earned_on, e.available_on, -e.amount AS taken,
                   sum(-e.amount) OVER (ORDER BY e.entry_number ROWS UNBOUNDED PRECEDING)::bigint AS upper
            FROM ledger.entry e
            WHERE e.transaction_id = debit.transaction_id AND e.partition_id = debit.organization_id
              AND e.kind = 'organization_payable'
        ) AS p
    ) AS t
    WHERE t.part > 0;
END
$$;

-- Adds an entry after those that a transaction has.
CREATE FUNCTION ledger.insert_last_entry(
    p_transaction_id text,
    p_partition_id text,
    p_owner_id text,
    p_kind ledger.account_kind,
    p_currency_code text,
    p_amount bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.entry (transaction_id, entry_number, partition_id, owner_id, kind, currency_code, amount)
    SELECT p_transaction_id, coalesce(max(e.entry_number), 0) + 1, p_partition_id, p_owner_id, p_kind,
           p_currency_code, p_amount
    FROM ledger.entry e WHERE e.transaction_id = p_transaction_id AND e.partition_id = p_partition_id;
END
$$;

-- Takes the entries of a new transaction into the totals. What is the organization's is folded at once, so that what
-- it lowers is lowered before anybody else can look; the platform's accounts are shared, and wait for the worker.
CREATE FUNCTION ledger.settle_entries(p_transaction_id text, p_organization_id text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.balance_delta (
        owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
    SELECT e.owner_id, e.kind, e.currency_code, e.collected, e.earned_on, e.available_on,
           greatest(e.amount, 0), greatest(-e.amount, 0)
    FROM ledger.entry e
    WHERE e.transaction_id = p_transaction_id AND e.partition_id = p_organization_id;
    PERFORM ledger.fold(0, ARRAY[p_organization_id]);
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_organization_id, p_transaction_id);
END
$$;
