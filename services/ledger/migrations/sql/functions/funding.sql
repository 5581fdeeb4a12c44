-- What money at the payment processor does by itself: purchases come back, and fees are taken. It has happened already,
-- so it is posted whatever a customer has: what expired of the purchase goes first, which the platform had kept, then the
-- customer's credits, and the rest it owes on customer_chargebacks. Like all money of a customer, that account is guarded
-- by the lock on its credits.
--
-- And who is frozen. An organization's freeze is ordered with its payouts by the lock on the organization, a customer's
-- with what is set aside for its runs by the lock on its credits.


-- Posts that money of a purchase went back. SQLSTATE TL007 for a purchase that there is not, TL008 if more would come
-- back of it than was paid. duplicate: it had been posted before, and `reversal` is how it stands.
CREATE FUNCTION ledger.reverse_purchase(
    p_customer_id text,
    p_purchase_key text,
    p_reversal_id text,
    p_type ledger.transaction_type,
    p_currency_code text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_request_hash bytea,
    OUT duplicate boolean,
    OUT reversal ledger.purchase_reversal
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    purchase record;
    gone bigint;
    of_expired bigint;
    covered bigint;
    credits_version bigint;
    posted_id text := ledger.new_transaction_id();
BEGIN
    IF p_amount <= 0 OR p_type NOT IN ('purchase_refund', 'purchase_chargeback') THEN
        RAISE EXCEPTION 'not a reversal' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- The key first, as everywhere; a refusal below undoes it.
    duplicate := ledger.claim_key(
        p_customer_id, 'purchase-reversal/' || p_reversal_id, p_request_hash, posted_id) IS NOT NULL;
    IF duplicate THEN
        SELECT * INTO reversal FROM ledger.purchase_reversal r
        WHERE r.customer_id = p_customer_id AND r.reversal_id = p_reversal_id;
        RETURN;
    END IF;
    SELECT * INTO purchase FROM ledger.purchase(p_customer_id, p_purchase_key);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown purchase' USING ERRCODE = 'TL007', DETAIL = json_build_object(
            'purchase_key', p_purchase_key)::text;
    END IF;
    IF p_currency_code <> purchase.currency_code THEN
        RAISE EXCEPTION 'not an amount of this purchase' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_type = 'purchase_chargeback' THEN
        -- Before the customer's money: a freeze locks the customer's row first.
        PERFORM ledger.freeze_customer(
            p_customer_id, true, 'chargeback ' || p_reversal_id || coalesce(': ' || nullif(p_reason, ''), ''),
            p_actor_api_key_id);
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);

    -- Raised before anything is posted. All reversals of a customer wait for the lock above, so what is read here
    -- stays so; the CHECK of the table has the last word.
    INSERT INTO ledger.reversed_purchase (customer_id, purchase_key, currency_code, amount, reversed)
    VALUES (p_customer_id, p_purchase_key, p_currency_code, purchase.amount, 0)
    ON CONFLICT DO NOTHING;
    SELECT p.reversed INTO gone FROM ledger.reversed_purchase p
    WHERE p.customer_id = p_customer_id AND p.purchase_key = p_purchase_key;
    IF p_amount > purchase.amount - gone THEN
        RAISE EXCEPTION 'more than was paid' USING ERRCODE = 'TL008', DETAIL = json_build_object(
            'purchase_key', p_purchase_key, 'amount_micros', purchase.amount::text,
            'reversed_micros', gone::text, 'requested_micros', p_amount::text)::text;
    END IF;
    UPDATE ledger.reversed_purchase p SET reversed = p.reversed + p_amount
    WHERE p.customer_id = p_customer_id AND p.purchase_key = p_purchase_key;

    -- What expired of just these credits is gone for the customer already: it would pay for that twice.
    of_expired := ledger.take_expired(p_customer_id, p_currency_code, purchase.lot_id, p_amount);
    SELECT least(p_amount - of_expired, s.available) INTO covered FROM ledger.spendable(p_customer_id, p_currency_code) AS s;
    UPDATE ledger.account a SET debits = a.debits + covered, version = a.version + (covered > 0)::integer
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code)
    RETURNING a.version INTO credits_version;
    IF of_expired + covered < p_amount THEN
        INSERT INTO ledger.account AS a (owner_id, kind, currency_code, debits, upper_bound)
        VALUES (p_customer_id, 'customer_chargebacks', p_currency_code, p_amount - of_expired - covered, 0)
        ON CONFLICT (owner_id, kind, currency_code) DO UPDATE SET debits = a.debits + excluded.debits;
        -- What the current lease has free pays the debt as soon as it is back.
        PERFORM ledger.recall_lease(p_customer_id, p_currency_code);
    END IF;
    PERFORM ledger.insert_movement(
        posted_id, p_customer_id, p_type, p_reversal_id, p_reason, p_actor_api_key_id, p_currency_code,
        ARRAY[p_customer_id, p_customer_id, 'platform', 'platform'],
        ARRAY['customer_credits', 'customer_chargebacks', 'expired_credits', 'stripe_clearing']::ledger.account_kind[],
        ARRAY[-covered, of_expired + covered - p_amount, -of_expired, p_amount], credits_version);
    INSERT INTO ledger.purchase_reversal (
        customer_id, reversal_id, purchase_key, type, currency_code, amount, from_credits, from_expired, transaction_id,
        create_time)
    VALUES (p_customer_id, p_reversal_id, p_purchase_key, p_type, p_currency_code, p_amount, covered, of_expired,
            posted_id, now())
    RETURNING * INTO reversal;
END
$$;


-- Posts that money which had gone back came again, once per reversal: it pays what the customer owes for chargebacks,
-- the rest is credits; what the reversal had taken of expired credits comes last, and is expired again. p_amount NULL
-- means all of it. Collecting what else the customer owes is collect(), which the
-- caller runs next in the same database transaction. SQLSTATE TL007 for a reversal that there is not, TL009 if it has
-- been reinstated under another id.
CREATE FUNCTION ledger.reinstate_purchase(
    p_customer_id text,
    p_reversal_id text,
    p_reinstatement_id text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_request_hash bytea,
    OUT duplicate boolean,
    OUT reversal ledger.purchase_reversal
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    came_again bigint;
    of_expired bigint;
    debt bigint;
    credits_version bigint;
    posted_id text := ledger.new_transaction_id();
BEGIN
    duplicate := ledger.claim_key(
        p_customer_id, 'reinstatement/' || p_reinstatement_id, p_request_hash, posted_id) IS NOT NULL;
    -- Without the lock only to learn its currency, which never changes.
    SELECT * INTO reversal FROM ledger.purchase_reversal r
    WHERE r.customer_id = p_customer_id AND r.reversal_id = p_reversal_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown reversal' USING ERRCODE = 'TL007', DETAIL = json_build_object(
            'reversal_id', p_reversal_id)::text;
    END IF;
    IF duplicate THEN
        RETURN;
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[reversal.currency_code]);
    -- Again, behind the lock: of two reinstatements the second sees the first.
    SELECT * INTO reversal FROM ledger.purchase_reversal r
    WHERE r.customer_id = p_customer_id AND r.reversal_id = p_reversal_id;
    IF reversal.reinstated > 0 THEN
        RAISE EXCEPTION 'already reinstated' USING ERRCODE = 'TL009', DETAIL = json_build_object(
            'reversal_id', p_reversal_id, 'reinstatement_id', reversal.reinstatement_id)::text;
    END IF;
    came_again := coalesce(p_amount, reversal.amount);
    IF came_again NOT BETWEEN 1 AND reversal.amount THEN
        RAISE EXCEPTION 'not an amount of this reversal' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- What is there again may go back again.
    UPDATE ledger.reversed_purchase p SET reversed = p.reversed - came_again
    WHERE p.customer_id = p_customer_id AND p.purchase_key = reversal.purchase_key;

    of_expired := greatest(came_again - (reversal.amount - reversal.from_expired), 0);
    PERFORM ledger.expire_again(
        p_customer_id, reversal.currency_code, p.lot_id, of_expired)
    FROM ledger.purchase(p_customer_id, reversal.purchase_key) AS p WHERE of_expired > 0;
    debt := least(came_again - of_expired, ledger.chargebacks(p_customer_id, reversal.currency_code));
    UPDATE ledger.account a SET credits = a.credits + debt
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_chargebacks', reversal.currency_code)
      AND debt > 0;
    UPDATE ledger.account a
    SET credits = a.credits + came_again - of_expired - debt,
        version = a.version + (came_again > of_expired + debt)::integer
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', reversal.currency_code)
    RETURNING a.version INTO credits_version;
    PERFORM ledger.insert_movement(
        posted_id, p_customer_id, 'purchase_reinstatement', p_reinstatement_id, p_reason,
        p_actor_api_key_id, reversal.currency_code,
        ARRAY[p_customer_id, p_customer_id, 'platform', 'platform'],
        ARRAY['customer_credits', 'customer_chargebacks', 'expired_credits', 'stripe_clearing']::ledger.account_kind[],
        ARRAY[came_again - of_expired - debt, debt, of_expired, -came_again], credits_version);
    UPDATE ledger.purchase_reversal r
    SET reinstated = came_again, reinstatement_id = p_reinstatement_id, reinstatement_transaction_id = posted_id
    WHERE r.customer_id = p_customer_id AND r.reversal_id = p_reversal_id
    RETURNING * INTO reversal;
END
$$;


-- Posts what the processor took from the platform's money; a negative amount is what it gave back. Both accounts are the
-- platform's and shared, so they wait for the worker that folds: only the key is locked.
CREATE FUNCTION ledger.record_processor_fee(
    p_fee_id text,
    p_currency_code text,
    p_amount bigint,
    p_reason text,
    p_actor_api_key_id text,
    p_request_hash bytea,
    OUT transaction_id text,
    OUT duplicate boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    posted_id text := ledger.new_transaction_id();
BEGIN
    IF p_amount = 0 THEN
        RAISE EXCEPTION 'a fee is not zero' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    transaction_id := ledger.claim_key('platform', 'processor-fee/' || p_fee_id, p_request_hash, posted_id);
    duplicate := transaction_id IS NOT NULL;
    IF duplicate THEN
        RETURN;
    END IF;
    transaction_id := posted_id;
    PERFORM ledger.insert_movement(
        posted_id, 'platform', 'processor_fee', p_fee_id, p_reason, p_actor_api_key_id, p_currency_code,
        ARRAY['platform', 'platform'], ARRAY['stripe_fees', 'stripe_clearing']::ledger.account_kind[],
        ARRAY[-p_amount, p_amount], NULL);
END
$$;


-- Pays what a customer owes for chargebacks from its available credits. Answers how much. The caller holds the
-- customer's lock.
CREATE FUNCTION ledger.collect_chargebacks(
    p_customer_id text, p_currency_code text, p_actor_api_key_id text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    paid bigint;
    credits_version bigint;
BEGIN
    SELECT least(s.available, ledger.chargebacks(p_customer_id, p_currency_code)) INTO paid
    FROM ledger.spendable(p_customer_id, p_currency_code) AS s;
    IF paid = 0 THEN
        RETURN 0;
    END IF;
    UPDATE ledger.account a SET debits = a.debits + paid, version = a.version + 1
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code)
    RETURNING a.version INTO credits_version;
    UPDATE ledger.account a SET credits = a.credits + paid
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_chargebacks', p_currency_code);
    PERFORM ledger.insert_movement(
        ledger.new_transaction_id(), p_customer_id, 'collection', NULL, '', p_actor_api_key_id, p_currency_code,
        ARRAY[p_customer_id, p_customer_id],
        ARRAY['customer_credits', 'customer_chargebacks']::ledger.account_kind[],
        ARRAY[-paid, paid], credits_version);
    RETURN paid;
END
$$;


-- Freezes an organization's payouts, or lets them go on; what is so already stays as it is. Behind the organization's
-- lock: a payout that was debited before has been, and none is afterwards.
CREATE FUNCTION ledger.freeze_payouts(
    p_organization_id text, p_frozen boolean, p_reason text, p_actor_api_key_id text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
BEGIN
    PERFORM ledger.lock_organization(p_organization_id);
    UPDATE ledger.organization
    SET payouts_freeze_reason = CASE WHEN p_frozen THEN p_reason ELSE '' END,
        payouts_freeze_time = CASE WHEN p_frozen THEN now() END
    WHERE organization_id = p_organization_id AND (payouts_freeze_time IS NOT NULL) <> p_frozen;
    IF FOUND THEN
        INSERT INTO ledger.freeze_event (owner_id, frozen, reason, actor_api_key_id, create_time)
        VALUES (p_organization_id, p_frozen, p_reason, p_actor_api_key_id, now());
    END IF;
END
$$;

-- Freezes a customer, or lets it run again; who is so already stays as it is. The customer's row first, which orders
-- freezes among themselves, then all of its money: a run that was given something before has it, none is given anything
-- afterwards. What leases have free renew_leases asks back.
CREATE FUNCTION ledger.freeze_customer(
    p_customer_id text, p_frozen boolean, p_reason text, p_actor_api_key_id text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
BEGIN
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    PERFORM FROM ledger.account a
    WHERE a.owner_id = p_customer_id AND a.kind = 'customer_credits'
    ORDER BY a.currency_code FOR NO KEY UPDATE;
    UPDATE ledger.customer
    SET freeze_reason = CASE WHEN p_frozen THEN p_reason ELSE '' END, freeze_time = CASE WHEN p_frozen THEN now() END
    WHERE customer_id = p_customer_id AND (freeze_time IS NOT NULL) <> p_frozen;
    IF FOUND THEN
        INSERT INTO ledger.freeze_event (owner_id, frozen, reason, actor_api_key_id, create_time)
        VALUES (p_customer_id, p_frozen, p_reason, p_actor_api_key_id, now());
    END IF;
END
$$;


-- Takes what expired of a lot that was bought, and did not go back yet, up to an amount. Answers how much. The caller holds
-- the customer's lock, behind which credits expire; the lots' own keeps away who allocates.
CREATE FUNCTION ledger.take_expired(
    p_customer_id text, p_currency_code text, p_lot_id text, p_limit bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    taken bigint;
BEGIN
    SELECT least(l.expired, p_limit) INTO taken FROM ledger.credit_lot l
    WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.lot_id = p_lot_id;
    IF coalesce(taken, 0) = 0 THEN
        RETURN 0;
    END IF;
    PERFORM ledger.lock_lots(p_customer_id, p_currency_code);
    UPDATE ledger.credit_lot l SET expired = l.expired - taken
    WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.lot_id = p_lot_id;
    RETURN taken;
END
$$;

-- Lets be expired again of a lot what take_expired had taken of it. The caller holds the customer's lock.
CREATE FUNCTION ledger.expire_again(
    p_customer_id text, p_currency_code text, p_lot_id text, p_amount bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM ledger.lock_lots(p_customer_id, p_currency_code);
    UPDATE ledger.credit_lot l SET expired = l.expired + p_amount
    WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.lot_id = p_lot_id;
END
$$;


-- The purchase that was granted with a key, and the lot that it opened; no row if there is none. It never changes.
CREATE FUNCTION ledger.purchase(p_customer_id text, p_purchase_key text)
RETURNS TABLE (currency_code text, amount bigint, lot_id text) LANGUAGE sql STABLE AS $$
    SELECT e.currency_code, e.amount, t.transaction_id
    FROM ledger.idempotency k
    JOIN ledger.transaction t
        ON t.transaction_id = k.outcome AND t.partition_id = k.owner_id AND t.type = 'purchase'
    JOIN ledger.entry e
        ON e.transaction_id = t.transaction_id AND e.partition_id = t.partition_id AND e.kind = 'customer_credits'
    WHERE k.owner_id = p_customer_id AND k.key = 'grant/' || p_purchase_key
$$;

-- What a customer owes for chargebacks. (PL/pgSQL, because the migration that makes it cannot use the account's kind yet.)
CREATE FUNCTION ledger.chargebacks(p_customer_id text, p_currency_code text) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce((
        SELECT a.debits - a.credits FROM ledger.account a
        WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_chargebacks', p_currency_code)), 0);
END
$$;

-- One transaction of few entries: those that are not zero, in order. p_credits_version goes with customer_credits. The
-- caller has moved the customer's accounts; what is the platform's waits for the worker that folds.
CREATE FUNCTION ledger.insert_movement(
    p_transaction_id text,
    p_partition_id text,
    p_type ledger.transaction_type,
    p_external_id text,
    p_reason text,
    p_actor_api_key_id text,
    p_currency_code text,
    p_owner_ids text[],
    p_kinds ledger.account_kind[],
    p_amounts bigint[],
    p_credits_version bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, external_id, occur_time, create_time, reason, actor_api_key_id)
    VALUES (p_transaction_id, p_partition_id, p_type, p_external_id, now(), now(), p_reason, p_actor_api_key_id);
    INSERT INTO ledger.entry (
        transaction_id, entry_number, partition_id, owner_id, kind, currency_code, amount, account_version)
    SELECT p_transaction_id, row_number() OVER (ORDER BY m.number), p_partition_id, m.owner_id, m.kind,
           p_currency_code, m.amount, CASE m.kind WHEN 'customer_credits' THEN p_credits_version END
    FROM unnest(p_owner_ids, p_kinds, p_amounts) WITH ORDINALITY AS m (owner_id, kind, amount, number)
    WHERE m.amount <> 0;
    INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)
    SELECT m.owner_id, m.kind, p_currency_code, greatest(m.amount, 0), greatest(-m.amount, 0)
    FROM unnest(p_owner_ids, p_kinds, p_amounts) AS m (owner_id, kind, amount)
    WHERE m.owner_id = 'platform' AND m.amount <> 0;
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_partition_id, p_transaction_id);
END
$$;
