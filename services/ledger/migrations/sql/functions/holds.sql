-- Holds: money kept for one piece of work. Like leases they have no entries; what they keep is a part of account.held,
-- of credits and of the room under the credit limit.


-- Sets up to p_amount aside, behind the lock: from available credits, then from the room under the credit limit.
CREATE FUNCTION ledger.set_aside(
    p_customer_id text, p_currency_code text, p_amount bigint, OUT from_credits bigint, OUT from_receivable bigint
) LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
BEGIN
    SELECT least(p_amount, s.available), least(p_amount - least(p_amount, s.available), s.credit_room)
    INTO from_credits, from_receivable
    FROM ledger.spendable(p_customer_id, p_currency_code) AS s;
    UPDATE ledger.account a SET held = a.held + m.amount
    FROM (VALUES
        ('customer_credits'::ledger.account_kind, from_credits), ('customer_receivable', from_receivable)
    ) AS m (kind, amount)
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, m.kind, p_currency_code) AND m.amount > 0;
END
$$;


-- Places holds, raises and prolongs them, judged in the order given. The arrays are parallel, one element per hold.
-- A hold for a run is placed or raised wholly or not at all, one for an outcome as far as there is money. Nothing is
-- ever lowered. content_hash: what a hold is asked for with, which repeated answers it as it stands; or empty, to raise
-- one that is there.
--
-- A run's id that has ended gets no hold any more. from_epoch is the lease that it was allocated in until now (0 for
-- none), with what was allocated until when. That allocation ends with the hold's beginning: as much of it as the hold
-- needs changes from the lease to the hold, the rest stays in the lease.
--
-- One row per hold comes back, in order. status: 'placed', 'insufficient' (spendable says what it could have been at
-- most) or 'frozen' (the customer is, and its run lacks something), both final if the hold is new and was not allocated
-- in a lease, 'reused' (the id came before with other content), 'settled', 'released' or 'expired' (there is nothing to
-- raise, or to convert, any more), or 'unknown' for a customer that does not exist. Then the hold, the lease that it
-- came from if that is current, and the customer's balance behind the whole batch.
CREATE FUNCTION ledger.place_holds(
    customer_ids text[],
    hold_ids text[],
    purposes ledger.hold_purpose[],
    currency_codes text[],
    amounts bigint[],
    expire_times timestamptz[],
    content_hashes bytea[],
    price_version_ids text[],
    from_epochs bigint[],
    from_amounts bigint[],
    from_expire_times timestamptz[]
) RETURNS TABLE (
    status text,
    duplicate boolean,
    spendable bigint,
    state text,
    purpose text,
    credits bigint,
    receivable bigint,
    captured_credits bigint,
    captured_receivable bigint,
    charge_id text,
    price_version_id text,
    expire_time timestamptz,
    create_time timestamptz,
    end_time timestamptz,
    lease_epoch bigint,
    lease_remaining bigint,
    lease_version bigint,
    lease_expire_time timestamptz,
    lease_recall boolean,
    lease_create_time timestamptz,
    balance_available bigint,
    balance_held bigint,
    balance_receivable bigint,
    balance_held_receivable bigint,
    balance_unpaid bigint,
    balance_credit_limit bigint,
    balance_chargebacks bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    item record;
    known ledger.hold;
    free record;
    aside record;
    lacking bigint;
    -- What a new hold takes over from its lease.
    from_lease bigint;
    ended_as text;
    moment timestamptz;
    verdict text;
    statuses text[] := '{}';
    duplicates boolean[] := '{}';
    spendables bigint[] := '{}';
BEGIN
    PERFORM ledger.lock_customers(array_agg(i.customer_id), array_agg(i.currency_code))
    FROM unnest(customer_ids, currency_codes) AS i (customer_id, currency_code)
    JOIN ledger.customer c ON c.customer_id = i.customer_id
    HAVING count(*) > 0;
    moment := clock_timestamp();

    FOR item IN
        SELECT i.*, c.customer_id IS NOT NULL AS is_known, c.freeze_time IS NOT NULL AS is_frozen
        FROM unnest(
            customer_ids, hold_ids, purposes, currency_codes, amounts, expire_times, content_hashes,
            price_version_ids, from_epochs, from_amounts, from_expire_times
        ) WITH ORDINALITY AS i (
            customer_id, hold_id, purpose, currency_code, amount, expire_time, content_hash,
            price_version_id, from_epoch, from_amount, from_expire_time, number)
        LEFT JOIN ledger.customer c ON c.customer_id = i.customer_id
        ORDER BY i.number
    LOOP
        SELECT * INTO known FROM ledger.hold h
        WHERE h.customer_id = item.customer_id AND h.hold_id = item.hold_id
          -- What was allocated beside one that has expired since may become a hold itself.
          AND NOT (h.state = 'expired' AND h.from_epoch = 0 AND item.from_epoch > 0);
        SELECT * INTO free FROM ledger.spendable(item.customer_id, item.currency_code);
        from_lease := 0;
        ended_as := NULL;
        IF item.is_known AND known.hold_id IS NULL AND item.purpose = 'run' AND item.content_hash <> '' THEN
            SELECT CASE WHEN c.charge_id IS NOT NULL THEN 'settled'
                        WHEN r.reservation_id IS NOT NULL THEN 'released'
                        WHEN moment >= item.expire_time THEN 'expired'
                        -- As a charge or a release would judge it that came now instead.
                        WHEN item.from_epoch > 0 AND (l.epoch IS NULL OR moment >= item.from_expire_time)
                            THEN 'expired' END,
                   CASE WHEN item.from_epoch > 0 THEN least(item.amount, item.from_amount, l.remaining) ELSE 0 END
            INTO ended_as, from_lease
            FROM (VALUES (true)) AS one
            LEFT JOIN ledger.charge c
                ON c.customer_id = item.customer_id AND c.reservation_id = item.hold_id AND c.reservation_id <> ''
            LEFT JOIN ledger.released_reservation r
                ON r.customer_id = item.customer_id AND r.reservation_id = item.hold_id
            LEFT JOIN ledger.credit_lease l
                ON (l.customer_id, l.currency_code, l.epoch)
                 = (item.customer_id, item.currency_code, item.from_epoch) AND NOT l.closed;
        END IF;
        duplicates := duplicates || (known.hold_id IS NOT NULL);
        spendables := spendables || from_lease + free.available + free.credit_room
            + CASE WHEN known.state = 'held' THEN known.credits + known.receivable ELSE 0 END;
        IF NOT item.is_known THEN
            verdict := 'unknown';
        ELSIF known.hold_id IS NULL AND item.content_hash = '' THEN
            verdict := 'expired';
        ELSIF ended_as IS NOT NULL THEN
            verdict := ended_as;
        ELSIF known.hold_id IS NULL THEN
            lacking := item.amount - from_lease;
            verdict := CASE WHEN item.purpose = 'run' AND item.is_frozen AND lacking > 0 THEN 'frozen'
                            WHEN item.purpose = 'outcome' OR lacking <= free.available + free.credit_room
                            THEN 'placed' ELSE 'insufficient' END;
            -- What is allocated in a lease goes on there when it is refused more: that must not end it.
            IF verdict = 'placed' OR item.from_epoch = 0 THEN
                DELETE FROM ledger.hold h
                WHERE h.customer_id = item.customer_id AND h.hold_id = item.hold_id
                  AND h.state = 'expired' AND h.from_epoch = 0 AND item.from_epoch > 0;
                INSERT INTO ledger.hold (
                    customer_id, hold_id, currency_code, purpose, state, credits, receivable, content_hash,
                    price_version_id, frozen, expire_time, create_time, end_time, from_epoch)
                SELECT item.customer_id, item.hold_id, item.currency_code, item.purpose,
                       CASE verdict WHEN 'placed' THEN 'held' ELSE 'refused' END::ledger.hold_state, 0, 0,
                       item.content_hash, item.price_version_id, verdict = 'frozen', item.expire_time, moment,
                       CASE verdict WHEN 'placed' THEN NULL ELSE moment END, item.from_epoch
                ON CONFLICT DO NOTHING;
                IF NOT FOUND THEN
                    -- Made in another currency, behind another lock, since we looked.
                    verdict := 'reused';
                END IF;
            END IF;
        ELSIF (known.currency_code, known.purpose) <> (item.currency_code, item.purpose)
              OR (item.content_hash <> '' AND item.content_hash <> known.content_hash) THEN
            verdict := 'reused';
        ELSIF known.state = 'held' AND item.content_hash = '' THEN
            lacking := greatest(item.amount - known.credits - known.receivable, 0);
            verdict := CASE WHEN item.purpose = 'run' AND item.is_frozen AND lacking > 0 THEN 'frozen'
                            WHEN item.purpose = 'outcome' OR lacking <= free.available + free.credit_room
                            THEN 'placed' ELSE 'insufficient' END;
        ELSE
            -- Asked for again, or ended: as it stands.
            lacking := 0;
            verdict := CASE WHEN known.state <> 'refused' THEN 'known'
                            WHEN known.frozen THEN 'frozen' ELSE 'insufficient' END;
        END IF;
        IF verdict = 'placed' THEN
            -- Held already; it only changes by what.
            UPDATE ledger.credit_lease l SET remaining = l.remaining - from_lease, version = l.version + 1
            WHERE (l.customer_id, l.currency_code, l.epoch) = (item.customer_id, item.currency_code, item.from_epoch)
              AND from_lease > 0;
            SELECT * INTO aside FROM ledger.set_aside(item.customer_id, item.currency_code, lacking);
            UPDATE ledger.hold h
            SET credits = h.credits + from_lease + aside.from_credits,
                receivable = h.receivable + aside.from_receivable,
                expire_time = greatest(h.expire_time, item.expire_time)
            WHERE h.customer_id = item.customer_id AND h.hold_id = item.hold_id;
            lacking := lacking - aside.from_credits - aside.from_receivable;
        END IF;
        IF verdict IN ('placed', 'insufficient') AND lacking > 0 THEN
            PERFORM ledger.recall_lease(item.customer_id, item.currency_code);
        END IF;
        statuses := statuses || CASE verdict WHEN 'known' THEN 'placed' ELSE verdict END;
    END LOOP;

    RETURN QUERY
    SELECT i.status, i.duplicate, i.spendable, h.state::text, h.purpose::text, h.credits, h.receivable,
           h.captured_credits, h.captured_receivable, h.charge_id, h.price_version_id,
           h.expire_time, h.create_time, h.end_time,
           l.epoch, l.remaining, l.version, l.expire_time, l.recall, l.create_time,
           b.available, b.held, b.receivable, b.held_receivable, b.unpaid, b.credit_limit, b.chargebacks
    FROM unnest(customer_ids, hold_ids, currency_codes, from_epochs, statuses, duplicates, spendables)
        WITH ORDINALITY AS i (
            customer_id, hold_id, currency_code, from_epoch, status, duplicate, spendable, number)
    LEFT JOIN ledger.hold h ON h.customer_id = i.customer_id AND h.hold_id = i.hold_id
    LEFT JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (i.customer_id, i.currency_code, i.from_epoch)
       AND NOT l.draining AND NOT l.closed
    LEFT JOIN LATERAL ledger.balance(i.customer_id, i.currency_code) AS b ON true
    ORDER BY i.number;
END
$$;


-- Ends reservations for which no charge comes. The arrays are parallel, one element per reservation; lease_epoch 0
-- means a hold, and so does any other once the reservation became one. Neither touches what a charge has captured:
-- charges, releases and time meet behind the same lock.
--
-- One row per reservation comes back, in order: its state, 'settled', 'released' or 'expired' (NULL: the customer does
-- not exist), what was captured of it, its lease if that is current, and the customer's balance behind the batch.
CREATE FUNCTION ledger.release_reservations(
    customer_ids text[],
    currency_codes text[],
    reservation_ids text[],
    lease_epochs bigint[],
    expire_times timestamptz[]
) RETURNS TABLE (
    state text,
    captured_credits bigint,
    captured_receivable bigint,
    lease_epoch bigint,
    lease_remaining bigint,
    lease_version bigint,
    lease_expire_time timestamptz,
    lease_recall boolean,
    lease_create_time timestamptz,
    balance_available bigint,
    balance_held bigint,
    balance_receivable bigint,
    balance_held_receivable bigint,
    balance_unpaid bigint,
    balance_credit_limit bigint,
    balance_chargebacks bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz;
    states text[];
    are_holds boolean[];
    from_credits bigint[];
    from_receivable bigint[];
BEGIN
    PERFORM ledger.lock_customers(array_agg(i.customer_id), array_agg(i.currency_code))
    FROM unnest(customer_ids, currency_codes) AS i (customer_id, currency_code)
    JOIN ledger.customer c ON c.customer_id = i.customer_id
    HAVING count(*) > 0;
    -- Behind the locks, as for a claim: whoever says that it expired is right for all who come later.
    moment := clock_timestamp();

    SELECT array_agg(
               CASE WHEN k.customer_id IS NULL THEN NULL
                    WHEN c.charge_id IS NOT NULL THEN 'settled'
                    WHEN i.lease_epoch = 0 OR h.hold_id IS NOT NULL THEN
                        CASE WHEN h.currency_code <> i.currency_code THEN 'expired'
                             WHEN h.state = 'held' THEN 'released'
                             WHEN h.state IN ('settled', 'released') THEN h.state::text
                             ELSE 'expired' END
                    WHEN r.reservation_id IS NOT NULL THEN 'released'
                    WHEN l.epoch IS NULL OR moment >= i.expire_time THEN 'expired'
                    ELSE 'released' END ORDER BY i.number),
           array_agg(i.lease_epoch = 0 OR h.hold_id IS NOT NULL ORDER BY i.number),
           -- In the currency that was asked for, or nothing.
           array_agg(coalesce(
               CASE WHEN c.currency_code = i.currency_code THEN c.captured_credits END,
               CASE WHEN h.currency_code = i.currency_code THEN h.captured_credits END, 0) ORDER BY i.number),
           array_agg(coalesce(
               CASE WHEN c.currency_code = i.currency_code THEN c.captured_receivable END,
               CASE WHEN h.currency_code = i.currency_code THEN h.captured_receivable END, 0) ORDER BY i.number)
    INTO states, are_holds, from_credits, from_receivable
    FROM unnest(customer_ids, currency_codes, reservation_ids, lease_epochs, expire_times)
        WITH ORDINALITY AS i (customer_id, currency_code, reservation_id, lease_epoch, expire_time, number)
    LEFT JOIN ledger.customer k ON k.customer_id = i.customer_id
    LEFT JOIN ledger.charge c
        ON c.customer_id = i.customer_id AND c.reservation_id = i.reservation_id AND c.reservation_id <> ''
    LEFT JOIN ledger.hold h
        ON h.customer_id = i.customer_id AND h.hold_id = i.reservation_id
       -- As judge_claims says.
       AND (i.lease_epoch = 0 OR (
           h.purpose = 'run' AND h.state <> 'refused' AND (h.state <> 'expired' OR h.from_epoch > 0)))
    LEFT JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (i.customer_id, i.currency_code, i.lease_epoch)
       AND NOT l.closed
    LEFT JOIN ledger.released_reservation r
        ON i.lease_epoch > 0 AND r.customer_id = i.customer_id AND r.reservation_id = i.reservation_id;

    INSERT INTO ledger.released_reservation (customer_id, reservation_id, expire_time)
    SELECT i.customer_id, i.reservation_id, i.expire_time
    FROM unnest(customer_ids, reservation_ids, are_holds, expire_times, states)
        AS i (customer_id, reservation_id, is_hold, expire_time, state)
    WHERE NOT i.is_hold AND i.state = 'released'
    ON CONFLICT DO NOTHING;
    PERFORM ledger.end_holds(array_agg(i.customer_id), array_agg(i.reservation_id), array_agg(i.currency_code),
                             'released')
    FROM unnest(customer_ids, reservation_ids, currency_codes, are_holds, states)
        AS i (customer_id, reservation_id, currency_code, is_hold, state)
    WHERE i.is_hold AND i.state = 'released'
    HAVING count(*) > 0;

    RETURN QUERY
    SELECT i.state, i.captured_credits, i.captured_receivable,
           l.epoch, l.remaining, l.version, l.expire_time, l.recall, l.create_time,
           b.available, b.held, b.receivable, b.held_receivable, b.unpaid, b.credit_limit, b.chargebacks
    FROM unnest(customer_ids, currency_codes, lease_epochs, states, from_credits, from_receivable)
        WITH ORDINALITY AS i (
            customer_id, currency_code, lease_epoch, state, captured_credits, captured_receivable, number)
    LEFT JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (i.customer_id, i.currency_code, i.lease_epoch)
       AND NOT l.draining AND NOT l.closed
    LEFT JOIN LATERAL ledger.balance(i.customer_id, i.currency_code) AS b ON true
    ORDER BY i.number;
END
$$;


-- Ends those of these holds that stand, behind the lock, and gives back what they keep. Answers what that was.
CREATE FUNCTION ledger.end_holds(
    customer_ids text[], hold_ids text[], currency_codes text[], p_state ledger.hold_state
) RETURNS TABLE (purpose ledger.hold_purpose, currency_code text, holds bigint, credits bigint)
LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
#variable_conflict use_column
DECLARE
    ended ledger.hold[];
BEGIN
    WITH changed AS (
        UPDATE ledger.hold h SET state = p_state, end_time = clock_timestamp()
        FROM unnest(customer_ids, hold_ids, currency_codes) AS i (customer_id, hold_id, currency_code)
        WHERE h.customer_id = i.customer_id AND h.hold_id = i.hold_id AND h.currency_code = i.currency_code
          AND h.state = 'held'
        RETURNING h
    )
    SELECT array_agg(h) INTO ended FROM changed;
    UPDATE ledger.account a SET held = a.held - m.amount
    FROM (
        SELECT e.customer_id, e.currency_code, v.kind, sum(v.amount) AS amount
        FROM unnest(ended) AS e
        CROSS JOIN LATERAL (VALUES
            ('customer_credits'::ledger.account_kind, e.credits), ('customer_receivable', e.receivable)
        ) AS v (kind, amount)
        WHERE v.amount > 0
        GROUP BY e.customer_id, e.currency_code, v.kind
    ) AS m
    WHERE (a.owner_id, a.kind, a.currency_code) = (m.customer_id, m.kind, m.currency_code);
    RETURN QUERY
    SELECT e.purpose, e.currency_code, count(*), sum(e.credits)::bigint
    FROM unnest(ended) AS e GROUP BY e.purpose, e.currency_code;
END
$$;

-- A customer's balance in one currency. No row if the currency was never used.
CREATE FUNCTION ledger.balance(
    p_customer_id text,
    p_currency_code text
) RETURNS TABLE (
    available bigint,
    held bigint,
    receivable bigint,
    held_receivable bigint,
    unpaid bigint,
    credit_limit bigint,
    chargebacks bigint
) LANGUAGE sql STABLE AS $$
    SELECT a.credits - a.debits - a.held, a.held, r.debits - r.credits, r.held, u.debits - u.credits, r.credit_limit,
           ledger.chargebacks(p_customer_id, p_currency_code)
    FROM ledger.account a
    JOIN ledger.account r
        ON (r.owner_id, r.kind, r.currency_code) = (p_customer_id, 'customer_receivable', p_currency_code)
    JOIN ledger.account u
        ON (u.owner_id, u.kind, u.currency_code) = (p_customer_id, 'customer_unpaid', p_currency_code)
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code)
$$;
