-- What charges claim of leases and holds, and the holds that they ask for. Parts of post_charges, behind its locks.


-- Judges the claim of each charge. A claim stands if nothing ended its reservation before: no release, not its time
-- (which holds have no end by), not the end of its lease. One reservation is captured once in a batch.
--
-- states: how the reservation has ended with this batch, NULL if it stands or there is none. settled_ids: the
-- reservation if the claim stands, else ''. For claims that stand also what is captured of credits, and what is no
-- longer held when they have ended: of a lease just that, of a hold all of it.
CREATE FUNCTION ledger.judge_claims(
    customer_ids text[],
    currency_codes text[],
    gross_amounts bigint[],
    is_fresh boolean[],
    reservation_ids text[],
    lease_epochs bigint[],
    claim_amounts bigint[],
    claim_expire_times timestamptz[],
    OUT paid_epochs bigint[],
    OUT states text[],
    OUT settled_ids text[],
    OUT taken_credits bigint[],
    OUT ended_credits bigint[],
    OUT ended_receivable bigint[]
) LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- Not now(), the time when this transaction began: somebody that held the lock until an instant ago may have
    -- answered that the reservation has expired.
    moment timestamptz := clock_timestamp();
BEGIN
    WITH claim AS (
        SELECT c.number, c.customer_id, c.currency_code, c.fresh, c.gross, c.reservation_id,
               CASE WHEN h.hold_id IS NULL THEN c.lease_epoch ELSE 0 END AS lease_epoch,
               CASE WHEN c.lease_epoch = 0 OR h.hold_id IS NOT NULL THEN c.gross
                    ELSE coalesce(c.amount, 0) END AS amount,
               l.remaining, h.credits AS hold_credits, h.receivable AS hold_receivable,
               CASE WHEN c.reservation_id = '' THEN NULL
                    WHEN p.reservation_id IS NOT NULL THEN 'settled'
                    WHEN c.lease_epoch = 0 OR h.hold_id IS NOT NULL THEN
                        CASE WHEN h.currency_code <> c.currency_code THEN 'expired'
                             WHEN h.state = 'held' THEN NULL
                             WHEN h.state IN ('settled', 'released') THEN h.state::text
                             ELSE 'expired' END
                    WHEN r.reservation_id IS NOT NULL THEN 'released'
                    WHEN l.epoch IS NULL OR moment >= c.expire_time THEN 'expired'
               END AS ended_as
        FROM unnest(
            customer_ids, currency_codes, gross_amounts, is_fresh, reservation_ids,
            lease_epochs, claim_amounts, claim_expire_times
        ) WITH ORDINALITY AS c (
            customer_id, currency_code, gross, fresh, reservation_id, lease_epoch, amount, expire_time, number)
        -- Whatever charge it paid: a reservation is captured once.
        LEFT JOIN ledger.charge p
            ON p.customer_id = c.customer_id AND p.reservation_id = c.reservation_id AND p.reservation_id <> ''
        LEFT JOIN ledger.credit_lease l
            ON (l.customer_id, l.currency_code, l.epoch) = (c.customer_id, c.currency_code, c.lease_epoch)
           AND NOT l.closed
        LEFT JOIN ledger.hold h
            ON c.reservation_id <> '' AND h.customer_id = c.customer_id AND h.hold_id = c.reservation_id
           -- What was refused never became a hold. What expired as one and took nothing over was placed for an earlier
           -- try of an attempt, of which Redis did not know when it promised this allocation: that ended by itself.
           AND (c.lease_epoch = 0 OR (
               h.purpose = 'run' AND h.state <> 'refused' AND (h.state <> 'expired' OR h.from_epoch > 0)))
        LEFT JOIN ledger.released_reservation r
            ON c.lease_epoch > 0 AND r.customer_id = c.customer_id AND r.reservation_id = c.reservation_id
    ), could_capture AS (
        SELECT c.*, c.fresh AND c.reservation_id <> '' AND c.ended_as IS NULL AS open FROM claim c
    ), in_turn AS (
        SELECT o.*, count(*) FILTER (WHERE o.open) OVER (
                   PARTITION BY o.customer_id, o.reservation_id, o.fresh
                   ORDER BY o.number ROWS UNBOUNDED PRECEDING
               ) AS captures
        FROM could_capture o
    ), judged AS (
        -- Of several in a batch the first that could capture it did.
        SELECT i.*, i.open AND i.captures = 1 AS stands,
               CASE WHEN i.captures > 0 THEN 'settled' ELSE i.ended_as END AS state
        FROM in_turn i
    ), claimed AS (
        SELECT j.*, CASE WHEN j.stands THEN least(j.gross, j.amount) ELSE 0 END AS wanted FROM judged j
    ), taking AS (
        SELECT w.*,
               CASE WHEN w.lease_epoch = 0 THEN least(w.wanted, w.hold_credits)
                    ELSE least(w.wanted, greatest(coalesce(w.remaining, 0) - (sum(w.wanted) OVER lease - w.wanted), 0))
               END::bigint AS taken
        FROM claimed w
        WINDOW lease AS (
            PARTITION BY w.customer_id, w.currency_code, w.lease_epoch ORDER BY w.number ROWS UNBOUNDED PRECEDING)
    )
    SELECT array_agg(t.lease_epoch ORDER BY t.number),
           array_agg(t.state ORDER BY t.number),
           array_agg(CASE WHEN t.stands THEN t.reservation_id ELSE '' END ORDER BY t.number),
           array_agg(t.taken ORDER BY t.number),
           array_agg(CASE WHEN NOT t.stands THEN 0
                          WHEN t.lease_epoch = 0 THEN t.hold_credits ELSE t.taken END ORDER BY t.number),
           array_agg(CASE WHEN t.stands AND t.lease_epoch = 0 THEN t.hold_receivable ELSE 0 END ORDER BY t.number)
    INTO paid_epochs, states, settled_ids, taken_credits, ended_credits, ended_receivable
    FROM taking t;
END
$$;


-- Ends what the charges of a batch were paid from. The accounts no longer hold it: post_charges has seen to that.
CREATE FUNCTION ledger.end_claims(
    charge_ids text[],
    customer_ids text[],
    currency_codes text[],
    settled_ids text[],
    paid_epochs bigint[],
    taken_credits bigint[],
    taken_receivable bigint[]
) RETURNS void LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
#variable_conflict use_column
BEGIN
    UPDATE ledger.credit_lease l
    SET remaining = l.remaining - m.taken, version = l.version + 1
    FROM (
        SELECT c.customer_id, c.currency_code, c.lease_epoch, sum(c.taken) AS taken
        FROM unnest(customer_ids, currency_codes, paid_epochs, taken_credits)
            AS c (customer_id, currency_code, lease_epoch, taken)
        WHERE c.lease_epoch > 0 AND c.taken > 0
        GROUP BY c.customer_id, c.currency_code, c.lease_epoch
    ) AS m
    WHERE l.customer_id = m.customer_id AND l.currency_code = m.currency_code AND l.epoch = m.lease_epoch;

    UPDATE ledger.hold h
    SET state = 'settled', charge_id = c.charge_id, captured_credits = c.taken_credits,
        captured_receivable = c.taken_receivable, end_time = clock_timestamp()
    FROM unnest(charge_ids, customer_ids, settled_ids, paid_epochs, taken_credits, taken_receivable)
        AS c (charge_id, customer_id, settled_id, lease_epoch, taken_credits, taken_receivable)
    WHERE c.settled_id <> '' AND c.lease_epoch = 0
      AND h.customer_id = c.customer_id AND h.hold_id = c.settled_id;
END
$$;


-- Places the holds that charges ask for, for outcomes not decided yet: as much as there is, first of what their own
-- claims leave of a lease. That part is held already; it only changes what for.
CREATE FUNCTION ledger.place_outcome_holds(
    customer_ids text[],
    currency_codes text[],
    is_fresh boolean[],
    settled_ids text[],
    paid_epochs bigint[],
    claim_amounts bigint[],
    taken_credits bigint[],
    outcome_hold_ids text[],
    outcome_amounts bigint[],
    outcome_expire_times timestamptz[]
) RETURNS void LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
#variable_conflict use_column
DECLARE
    asked record;
    from_lease bigint;
    aside record;
BEGIN
    FOR asked IN
        SELECT c.*, CASE WHEN c.settled_id <> '' AND c.lease_epoch > 0
                         THEN c.claim_amount - c.taken END AS left_of_claim
        FROM unnest(
            customer_ids, currency_codes, is_fresh, settled_ids, paid_epochs, claim_amounts, taken_credits,
            outcome_hold_ids, outcome_amounts, outcome_expire_times
        ) WITH ORDINALITY AS c (
            customer_id, currency_code, fresh, settled_id, lease_epoch, claim_amount, taken,
            hold_id, amount, expire_time, number)
        WHERE c.fresh AND c.hold_id <> ''
        ORDER BY c.number
    LOOP
        INSERT INTO ledger.hold (
            customer_id, hold_id, currency_code, purpose, state, credits, receivable, content_hash, expire_time,
            create_time)
        SELECT asked.customer_id, asked.hold_id, asked.currency_code, 'outcome', 'held', 0, 0, '', asked.expire_time,
               clock_timestamp()
        -- An id that was captured has ended: what is held under it could not end again.
        WHERE NOT EXISTS (
            SELECT FROM ledger.charge c
            WHERE c.customer_id = asked.customer_id AND c.reservation_id = asked.hold_id AND c.reservation_id <> ''
        )
        ON CONFLICT DO NOTHING;
        -- Somebody else's work has this id: that hold is answered as it stands.
        CONTINUE WHEN NOT FOUND;
        from_lease := 0;
        IF asked.left_of_claim > 0 THEN
            SELECT least(asked.amount, asked.left_of_claim, l.remaining) INTO from_lease
            FROM ledger.credit_lease l
            WHERE (l.customer_id, l.currency_code, l.epoch)
                = (asked.customer_id, asked.currency_code, asked.lease_epoch);
            UPDATE ledger.credit_lease l SET remaining = l.remaining - from_lease, version = l.version + 1
            WHERE (l.customer_id, l.currency_code, l.epoch)
                = (asked.customer_id, asked.currency_code, asked.lease_epoch) AND from_lease > 0;
        END IF;
        SELECT * INTO aside
        FROM ledger.set_aside(asked.customer_id, asked.currency_code, asked.amount - from_lease);
        UPDATE ledger.hold SET credits = from_lease + aside.from_credits, receivable = aside.from_receivable
        WHERE customer_id = asked.customer_id AND hold_id = asked.hold_id;
        IF from_lease + aside.from_credits + aside.from_receivable < asked.amount THEN
            PERFORM ledger.recall_lease(asked.customer_id, asked.currency_code);
        END IF;
    END LOOP;
END
$$;
