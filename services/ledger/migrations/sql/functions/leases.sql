-- Credit leases: credits set aside in a lump, within which metering allocates by itself. A lease has no entries; what
-- remains of it is a part of account.held. Its rows are guarded by the lock on the customer's account, like all money.


-- What a customer could spend now: credits that nobody holds, and the room under its credit limit.
CREATE FUNCTION ledger.spendable(
    p_customer_id text, p_currency_code text, OUT available bigint, OUT credit_room bigint
) LANGUAGE sql STABLE AS $$
    SELECT a.credits - a.debits - a.held, greatest(r.credit_limit + r.credits - r.debits - r.held, 0)
    FROM ledger.account a
    JOIN ledger.account r
        ON (r.owner_id, r.kind, r.currency_code) = (p_customer_id, 'customer_receivable', p_currency_code)
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code)
$$;

-- How much a lease is to get: what is wanted if there is as much, and beyond that up to half of what is free, so that
-- others find something; all of it when little is left. One lease never holds more than a billion units.
CREATE FUNCTION ledger.lease_grant(free bigint, wanted bigint, remaining bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN wanted > 0 THEN greatest(0, least(
        free,
        greatest(wanted, CASE WHEN free <= 1000000 THEN free ELSE free / 2 END),
        1000000000000000 - remaining
    )) ELSE 0 END
$$;

-- Whether a customer runs nothing. Asked behind the lock on its money, for which a freeze waits too.
CREATE FUNCTION ledger.is_frozen(p_customer_id text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT freeze_time IS NOT NULL FROM ledger.customer WHERE customer_id = p_customer_id
$$;

-- Asks for the return of what a customer's current lease does not need.
CREATE FUNCTION ledger.recall_lease(p_customer_id text, p_currency_code text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
    UPDATE ledger.credit_lease SET recall = true
    WHERE customer_id = p_customer_id AND currency_code = p_currency_code
      AND NOT draining AND NOT recall AND remaining > 0
$$;


-- Opens the lease after p_seen_epoch unless there is a later one, and lets the one before drain for p_drain. Answers
-- the newest lease, and whether it was opened here. (An epoch that was seen but is not here was lost with a restored
-- backup; its number is not given out again.)
CREATE FUNCTION ledger.open_lease(
    p_customer_id text,
    p_currency_code text,
    p_seen_epoch bigint,
    p_wanted bigint,
    p_duration interval,
    p_drain interval
) RETURNS TABLE (
    opened boolean,
    epoch bigint,
    remaining bigint,
    version bigint,
    expire_time timestamptz,
    recall boolean,
    draining boolean,
    create_time timestamptz,
    available bigint,
    credit_room bigint,
    frozen boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    newest bigint;
    moment timestamptz;
    granted bigint;
BEGIN
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    moment := clock_timestamp();
    SELECT max(l.epoch) INTO newest FROM ledger.credit_lease l
    WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code;
    opened := p_seen_epoch >= coalesce(newest, 0);
    IF opened THEN
        -- Of a lease that is over only its number was kept.
        DELETE FROM ledger.credit_lease l
        WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.closed;
        UPDATE ledger.credit_lease l
        -- Nothing that was allocated in it outlives it.
        SET draining = true, expire_time = least(l.expire_time, moment + p_drain)
        WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND NOT l.draining;
        SELECT CASE WHEN ledger.is_frozen(p_customer_id) THEN 0
                    ELSE ledger.lease_grant(s.available, p_wanted, 0) END INTO granted
        FROM ledger.spendable(p_customer_id, p_currency_code) AS s;
        newest := p_seen_epoch + 1;
        INSERT INTO ledger.credit_lease (
            customer_id, currency_code, epoch, remaining, version, expire_time, create_time)
        VALUES (p_customer_id, p_currency_code, newest, granted, 1, moment + p_duration, moment);
        UPDATE ledger.account a SET held = a.held + granted
        WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code)
          AND granted > 0;
    END IF;
    RETURN QUERY
    SELECT opened, l.epoch, l.remaining, l.version, l.expire_time, l.recall, l.draining, l.create_time,
           s.available, s.credit_room, ledger.is_frozen(p_customer_id)
    FROM ledger.credit_lease l
    CROSS JOIN ledger.spendable(p_customer_id, p_currency_code) AS s
    WHERE (l.customer_id, l.currency_code, l.epoch) = (p_customer_id, p_currency_code, newest);
END
$$;


-- Prolongs leases and grants more to those that want it. The arrays are parallel, one element per lease, each
-- customer and currency once. One row per lease comes back, in order; status: 'renewed', 'superseded' (another epoch
-- is current, or this one is over), or 'unknown' for a customer that does not exist.
--
-- What is recalled gets nothing until something was returned, or nothing is left to return; the lease of a frozen
-- customer gets nothing at all. Where nothing is wanted or recalled and most of the time is still to come, the lease is
-- answered as it stands, or not at all if its version and what is available are the known ones, and its customer is not
-- frozen. number says which element a row is of.
CREATE FUNCTION ledger.renew_leases(
    customer_ids text[],
    currency_codes text[],
    epochs bigint[],
    wanted_amounts bigint[],
    p_duration interval,
    known_versions bigint[] DEFAULT NULL,
    known_available bigint[] DEFAULT NULL
) RETURNS TABLE (
    status text,
    epoch bigint,
    remaining bigint,
    version bigint,
    expire_time timestamptz,
    recall boolean,
    draining boolean,
    create_time timestamptz,
    available bigint,
    credit_room bigint,
    frozen boolean,
    number bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    began CONSTANT timestamptz := clock_timestamp();
    due_customers text[];
    due_currencies text[];
    due_epochs bigint[];
    due_amounts bigint[];
BEGIN
    IF EXISTS (
        SELECT FROM unnest(customer_ids, currency_codes) AS i (customer_id, currency_code)
        GROUP BY i.customer_id, i.currency_code HAVING count(*) > 1
    ) THEN
        RAISE EXCEPTION 'a lease comes twice' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- The caller asks for every lease it uses every few seconds: most of them need neither a lock nor a write.
    SELECT array_agg(i.customer_id), array_agg(i.currency_code), array_agg(i.epoch), array_agg(i.wanted)
    INTO due_customers, due_currencies, due_epochs, due_amounts
    FROM unnest(customer_ids, currency_codes, epochs, wanted_amounts) AS i (customer_id, currency_code, epoch, wanted)
    JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (i.customer_id, i.currency_code, i.epoch)
    WHERE i.wanted > 0 OR l.recall OR l.expire_time <= began + p_duration * 0.75;
    IF due_customers IS NOT NULL THEN
        PERFORM ledger.lock_customers(due_customers, due_currencies);
    END IF;

    WITH renewed AS (
        UPDATE ledger.credit_lease l
        SET expire_time = clock_timestamp() + p_duration, remaining = l.remaining + g.granted,
            version = l.version + (g.granted > 0)::integer, recall = l.recall AND l.remaining > 0
        FROM (
            SELECT k.customer_id, k.currency_code, k.epoch,
                   CASE WHEN (k.recall AND k.remaining > 0) OR ledger.is_frozen(k.customer_id) THEN 0
                        ELSE ledger.lease_grant(a.credits - a.debits - a.held, i.wanted, k.remaining) END AS granted
            FROM unnest(due_customers, due_currencies, due_epochs, due_amounts)
                AS i (customer_id, currency_code, epoch, wanted)
            JOIN ledger.credit_lease k
                ON (k.customer_id, k.currency_code, k.epoch) = (i.customer_id, i.currency_code, i.epoch)
               AND NOT k.draining AND NOT k.closed
            JOIN ledger.account a
                ON (a.owner_id, a.kind, a.currency_code) = (i.customer_id, 'customer_credits', i.currency_code)
        ) AS g
        WHERE (l.customer_id, l.currency_code, l.epoch) = (g.customer_id, g.currency_code, g.epoch)
        RETURNING l.customer_id, l.currency_code, g.granted
    )
    UPDATE ledger.account a SET held = a.held + r.granted
    FROM renewed r
    WHERE (a.owner_id, a.kind, a.currency_code) = (r.customer_id, 'customer_credits', r.currency_code)
      AND r.granted > 0;

    RETURN QUERY
    SELECT n.status, n.epoch, n.remaining, n.version, n.expire_time, n.recall, n.draining, n.create_time,
           s.available, s.credit_room, n.frozen, n.number
    FROM (
        SELECT CASE WHEN c.customer_id IS NULL THEN 'unknown' WHEN l.epoch IS NULL THEN 'superseded' ELSE 'renewed' END
                   AS status,
               l.epoch, l.remaining, l.version, l.expire_time,
               -- As long as the customer owes anything, what comes free in its lease is wanted for that; and as long as
               -- it is frozen, nobody is to have it.
               l.recall OR (l.remaining > 0 AND (c.freeze_time IS NOT NULL OR EXISTS (
                   SELECT FROM ledger.open_charge o
                   WHERE o.customer_id = i.customer_id AND o.currency_code = i.currency_code
               ) OR EXISTS (
                   SELECT FROM ledger.account b
                   WHERE (b.owner_id, b.kind, b.currency_code) = (i.customer_id, 'customer_chargebacks', i.currency_code)
                     AND b.debits > b.credits
               ))) AS recall,
               l.draining, l.create_time, c.freeze_time IS NOT NULL AS frozen, i.customer_id, i.currency_code, i.number
        FROM unnest(customer_ids, currency_codes, epochs)
            WITH ORDINALITY AS i (customer_id, currency_code, epoch, number)
        LEFT JOIN ledger.customer c ON c.customer_id = i.customer_id
        LEFT JOIN ledger.credit_lease l
            ON (l.customer_id, l.currency_code, l.epoch) = (i.customer_id, i.currency_code, i.epoch)
           AND NOT l.draining AND NOT l.closed
    ) AS n
    LEFT JOIN LATERAL ledger.spendable(n.customer_id, n.currency_code) AS s ON n.epoch IS NOT NULL
    -- Only what was prolonged just now has all of its time.
    WHERE known_versions IS NULL OR n.version IS DISTINCT FROM known_versions[n.number] OR n.recall OR n.frozen
       OR n.expire_time >= began + p_duration OR s.available IS DISTINCT FROM known_available[n.number]
    ORDER BY n.number;
END
$$;


-- Takes back a part of a lease. The returns of a lease are numbered upwards: one that does not exceed the last one that
-- took effect has done so itself, or comes too late, and changes nothing. A part of nothing says that all of it is
-- allocated, and ends a recall as well; it needs no number. What the customer owes is paid from it first, at most
-- p_limit charges, before it could be granted to a lease again. status: 'returned', or 'superseded' if the lease is
-- over, so that all of it has gone back.
CREATE FUNCTION ledger.return_lease(
    p_customer_id text,
    p_currency_code text,
    p_epoch bigint,
    p_return_number bigint,
    p_amount bigint,
    p_limit integer,
    p_actor_api_key_id text
) RETURNS TABLE (
    status text,
    epoch bigint,
    remaining bigint,
    version bigint,
    expire_time timestamptz,
    recall boolean,
    draining boolean,
    create_time timestamptz,
    available bigint,
    credit_room bigint,
    frozen boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    returned bigint;
BEGIN
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    IF p_amount < 0 THEN
        RAISE EXCEPTION 'a return is not negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    SELECT least(p_amount, l.remaining) INTO returned FROM ledger.credit_lease l
    WHERE (l.customer_id, l.currency_code, l.epoch) = (p_customer_id, p_currency_code, p_epoch)
      AND NOT l.closed AND (p_amount = 0 OR p_return_number > l.return_number);
    IF FOUND THEN
        UPDATE ledger.credit_lease l
        SET remaining = l.remaining - returned, version = l.version + (returned > 0)::integer,
            return_number = CASE WHEN p_amount = 0 THEN l.return_number ELSE p_return_number END, recall = false
        WHERE (l.customer_id, l.currency_code, l.epoch) = (p_customer_id, p_currency_code, p_epoch);
        UPDATE ledger.account a SET held = a.held - returned
        WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code)
          AND returned > 0;
        PERFORM FROM ledger.collect(p_customer_id, p_currency_code, p_limit, p_actor_api_key_id);
        -- Then what should have expired while the lease kept it goes, before it is granted to a lease again.
        IF returned > 0 AND EXISTS (
            SELECT FROM ledger.credit_lot l
            WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.is_open
              AND l.expire_time <= clock_timestamp()
        ) THEN
            BEGIN
                PERFORM ledger.expire_lots_of(p_customer_id, p_currency_code, 100);
            EXCEPTION WHEN raise_exception OR integrity_constraint_violation THEN
                -- Lots that contradict the journal: the audit finds them. What is returned is the customer's all the same.
                RAISE WARNING 'lots of % in % do not expire: %', p_customer_id, p_currency_code, SQLERRM;
            END;
        END IF;
    END IF;
    RETURN QUERY
    SELECT CASE WHEN l.epoch IS NULL THEN 'superseded' ELSE 'returned' END,
           l.epoch, l.remaining, l.version, l.expire_time, l.recall, l.draining, l.create_time,
           s.available, s.credit_room, ledger.is_frozen(p_customer_id)
    FROM ledger.spendable(p_customer_id, p_currency_code) AS s
    LEFT JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (p_customer_id, p_currency_code, p_epoch) AND NOT l.closed;
END
$$;
