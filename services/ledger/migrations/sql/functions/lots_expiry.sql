-- What time ends of credits. Only what is free: what a lease or a hold keeps stays until it is, and leases are asked to
-- return it.


-- Expires lots whose time has come, at most p_limit. Answers how many, and how much, of each customer.
CREATE FUNCTION ledger.expire_lots(p_limit integer) RETURNS TABLE (currency_code text, lots bigint, credits bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    candidates ledger.credit_lot[];
    due record;
BEGIN
    SELECT array_agg(l) INTO candidates FROM (
        SELECT * FROM ledger.credit_lot
        WHERE is_open AND check_time <= clock_timestamp()
        ORDER BY check_time LIMIT p_limit
    ) AS l;
    IF candidates IS NULL THEN
        RETURN;
    END IF;
    -- All customers first, then their lots one after the other, both ascending.
    PERFORM ledger.lock_customers(array_agg(c.customer_id), array_agg(c.currency_code)) FROM unnest(candidates) AS c;
    FOR due IN
        SELECT c.customer_id, c.currency_code, count(*)::integer AS lots FROM unnest(candidates) AS c
        GROUP BY c.customer_id, c.currency_code ORDER BY c.customer_id, c.currency_code
    LOOP
        BEGIN
            SELECT due.currency_code, x.expired_lots, x.expired_amount INTO currency_code, lots, credits
            FROM ledger.expire_lots_of(due.customer_id, due.currency_code, due.lots) AS x;
            RETURN NEXT;
        EXCEPTION WHEN raise_exception OR integrity_constraint_violation THEN
            -- Lots that contradict the journal: the audit finds them. The other customers must not wait.
            RAISE WARNING 'lots of % in % do not expire: %', due.customer_id, due.currency_code, SQLERRM;
            PERFORM ledger.lock_lots(due.customer_id, due.currency_code);
            UPDATE ledger.credit_lot l SET check_time = clock_timestamp() + interval '1 minute'
            WHERE l.customer_id = due.customer_id AND l.currency_code = due.currency_code AND l.is_open
              AND l.check_time <= clock_timestamp();
        END;
    END LOOP;
END
$$;


-- Expires lots of one customer, at most p_limit, the one whose time came first before the others. The caller holds the
-- customer's lock.
CREATE FUNCTION ledger.expire_lots_of(
    p_customer_id text, p_currency_code text, p_limit integer, OUT expired_lots bigint, OUT expired_amount bigint
) LANGUAGE plpgsql AS $$
DECLARE
    account ledger.account;
    free bigint;
BEGIN
    expired_lots := 0;
    expired_amount := 0;
    -- What was spent until now is taken out of the lots first. If that is too much to do under the customer's lock, the
    -- step that reads the log does it, and these lots come again.
    IF ledger.catch_up_lots(p_customer_id, p_currency_code, 5000) THEN
        SELECT * INTO account FROM ledger.account a
        WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code);
        free := account.credits - account.debits - account.held;
        WITH due AS (
            SELECT l.place, l.lot_id, l.funder_id, ledger.new_transaction_id() AS transaction_id,
                   account.version + row_number() OVER soonest AS version,
                   least(l.remaining, free - (sum(l.remaining) OVER soonest - l.remaining))::bigint AS amount
            FROM (
                SELECT o.ctid AS place, o.* FROM ledger.credit_lot o
                WHERE o.customer_id = p_customer_id AND o.currency_code = p_currency_code AND o.is_open
                  AND o.expire_time <= clock_timestamp()
                ORDER BY o.expire_time, o.lot_id LIMIT p_limit
            ) AS l
            WINDOW soonest AS (ORDER BY l.expire_time, l.lot_id ROWS UNBOUNDED PRECEDING)
        ),
        taken AS MATERIALIZED (
            SELECT * FROM due WHERE amount > 0
        ),
        into_transaction AS (
            INSERT INTO ledger.transaction (
                transaction_id, partition_id, type, occur_time, create_time, reason, actor_api_key_id)
            SELECT t.transaction_id, p_customer_id, 'credit_expiry', now(), now(), 'of the credits of ' || t.lot_id,
                   'ledger'
            FROM taken t
        ),
        line AS MATERIALIZED (
            SELECT t.transaction_id, v.number, v.owner_id, v.kind, v.amount, v.version
            FROM taken t
            CROSS JOIN LATERAL (VALUES
                (1, p_customer_id, 'customer_credits'::ledger.account_kind, -t.amount, t.version),
                (2, CASE t.funder_id WHEN '' THEN 'platform' ELSE t.funder_id END,
                 (CASE t.funder_id WHEN '' THEN 'expired_credits' ELSE 'promotions' END)::ledger.account_kind,
                 t.amount, NULL)
            ) AS v (number, owner_id, kind, amount, version)
        ),
        into_entry AS (
            INSERT INTO ledger.entry (
                transaction_id, entry_number, partition_id, owner_id, kind, currency_code, amount, account_version)
            SELECT l.transaction_id, l.number, p_customer_id, l.owner_id, l.kind, p_currency_code, l.amount, l.version
            FROM line l
        ),
        into_delta AS (
            INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)
            SELECT l.owner_id, l.kind, p_currency_code, sum(l.amount), 0 FROM line l WHERE l.number = 2
            GROUP BY l.owner_id, l.kind
        ),
        into_unsequenced AS (
            INSERT INTO ledger.unsequenced (partition_id, transaction_id)
            SELECT p_customer_id, t.transaction_id FROM taken t ORDER BY t.version
        ),
        -- Allocated at once: these debits say themselves which lots they take from.
        into_allocation AS (
            INSERT INTO ledger.lot_allocation (
                customer_id, currency_code, first_version, last_version, number, lot_id, amount)
            SELECT p_customer_id, p_currency_code, t.version, t.version, 1, t.lot_id, -t.amount FROM taken t
        ),
        into_lot AS (
            UPDATE ledger.credit_lot l
            SET remaining = l.remaining - t.amount, expired = l.expired + t.amount, is_open = l.remaining > t.amount
            FROM taken t
            -- Where it is: a join by keys would be planned for a customer of few lots.
            WHERE l.ctid = t.place
        )
        SELECT count(*), coalesce(sum(t.amount), 0)::bigint INTO expired_lots, expired_amount FROM taken t;
        UPDATE ledger.account a SET debits = a.debits + expired_amount, version = a.version + expired_lots
        WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code) AND expired_lots > 0;
        UPDATE ledger.lot_cursor c SET allocated_version = account.version + expired_lots
        WHERE c.customer_id = p_customer_id AND c.currency_code = p_currency_code AND expired_lots > 0;
    END IF;
    IF expired_lots = p_limit AND expired_amount < free THEN
        -- Others, if there are any, come with the next call.
        RETURN;
    END IF;
    UPDATE ledger.credit_lot l SET check_time = clock_timestamp() + interval '1 second'
    WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.is_open
      AND l.check_time <= clock_timestamp();
    IF FOUND THEN
        PERFORM ledger.recall_lease(p_customer_id, p_currency_code);
    END IF;
END
$$;
