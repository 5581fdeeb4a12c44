-- What time ends. Each call takes a bounded number of rows. It looks for them without a lock, then locks the
-- customers in their order, as every movement of money does, and looks again: what a charge captured meanwhile is
-- gone, and nobody waits for longer than it takes to write these rows.


-- Closes leases whose time is over, and gives back what remains of them. The newest row of a customer and currency
-- stays, for its epoch. Answers how many, and how much, by currency.
CREATE FUNCTION ledger.reap_leases(p_limit integer) RETURNS TABLE (currency_code text, reaped bigint, credits bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    candidates ledger.credit_lease[];
    ended ledger.credit_lease[];
BEGIN
    SELECT array_agg(l) INTO candidates FROM (
        SELECT * FROM ledger.credit_lease
        WHERE NOT closed AND expire_time <= clock_timestamp()
        ORDER BY expire_time LIMIT p_limit
    ) AS l;
    IF candidates IS NULL THEN
        RETURN;
    END IF;
    PERFORM ledger.lock_customers(array_agg(c.customer_id), array_agg(c.currency_code)) FROM unnest(candidates) AS c;
    -- As they are behind the locks.
    SELECT array_agg(l) INTO ended
    FROM unnest(candidates) AS c
    JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (c.customer_id, c.currency_code, c.epoch)
    WHERE NOT l.closed AND l.expire_time <= clock_timestamp();

    DELETE FROM ledger.credit_lease l USING unnest(ended) AS e
    WHERE (l.customer_id, l.currency_code, l.epoch) = (e.customer_id, e.currency_code, e.epoch) AND l.draining;
    UPDATE ledger.credit_lease l
    SET closed = true, remaining = 0, version = l.version + (l.remaining > 0)::integer, recall = false
    FROM unnest(ended) AS e
    WHERE (l.customer_id, l.currency_code, l.epoch) = (e.customer_id, e.currency_code, e.epoch) AND NOT l.draining;
    UPDATE ledger.account a SET held = a.held - m.remaining
    FROM (
        SELECT e.customer_id, e.currency_code, sum(e.remaining) AS remaining
        FROM unnest(ended) AS e WHERE e.remaining > 0 GROUP BY e.customer_id, e.currency_code
    ) AS m
    WHERE (a.owner_id, a.kind, a.currency_code) = (m.customer_id, 'customer_credits', m.currency_code);
    RETURN QUERY
    SELECT e.currency_code, count(*), sum(e.remaining)::bigint FROM unnest(ended) AS e GROUP BY e.currency_code;
END
$$;


-- Ends holds that nobody has ended: for runs when their time is over, for outcomes a day later, since metering ends
-- those by itself. Answers how many, and how much of credits, by purpose and currency.
CREATE FUNCTION ledger.reap_holds(p_limit integer) RETURNS TABLE (
    purpose ledger.hold_purpose, currency_code text, reaped bigint, credits bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    candidates ledger.hold[];
BEGIN
    SELECT array_agg(h) INTO candidates FROM (
        (SELECT * FROM ledger.hold
         WHERE state = 'held' AND purpose = 'run' AND expire_time <= clock_timestamp()
         ORDER BY expire_time LIMIT p_limit)
        UNION ALL
        (SELECT * FROM ledger.hold
         WHERE state = 'held' AND purpose = 'outcome' AND expire_time <= clock_timestamp() - interval '1 day'
         ORDER BY expire_time LIMIT p_limit)
        LIMIT p_limit
    ) AS h;
    IF candidates IS NULL THEN
        RETURN;
    END IF;
    PERFORM ledger.lock_customers(array_agg(c.customer_id), array_agg(c.currency_code)) FROM unnest(candidates) AS c;
    RETURN QUERY
    SELECT e.purpose, e.currency_code, e.holds, e.credits
    FROM (
        SELECT array_agg(h.customer_id) AS customer_ids, array_agg(h.hold_id) AS hold_ids,
               array_agg(h.currency_code) AS currency_codes
        FROM unnest(candidates) AS c
        JOIN ledger.hold h ON h.customer_id = c.customer_id AND h.hold_id = c.hold_id
        -- Not those that were prolonged while we waited.
        WHERE h.state = 'held' AND h.expire_time = c.expire_time
    ) AS due
    CROSS JOIN LATERAL ledger.end_holds(due.customer_ids, due.hold_ids, due.currency_codes, 'expired') AS e;
END
$$;


-- Deletes what nobody asks for any more: ended and refused holds a day after their time and their end, released
-- reservations an hour after theirs. A hold may still be named by a token of the lease that it came from: those are
-- good for minutes. Answers how many rows.
CREATE FUNCTION ledger.forget_ended(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    holds integer;
    reservations integer;
BEGIN
    DELETE FROM ledger.hold
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM ledger.hold
        WHERE state <> 'held' AND expire_time <= clock_timestamp() - interval '1 day'
          AND end_time <= clock_timestamp() - interval '1 day'
        ORDER BY expire_time LIMIT p_limit FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS holds = ROW_COUNT;
    DELETE FROM ledger.released_reservation
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM ledger.released_reservation
        WHERE expire_time <= clock_timestamp() - interval '1 hour'
        ORDER BY expire_time LIMIT p_limit FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS reservations = ROW_COUNT;
    RETURN holds + reservations;
END
$$;
