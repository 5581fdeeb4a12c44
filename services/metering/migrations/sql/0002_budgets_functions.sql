-- Counting and reserving. Each function takes arrays, one element per item, and runs as the owner, whatever the
-- tenant settings: the service has found out which budgets a charge or a run matches. Budgets that are unknown or
-- deleted are passed over. A NULL among period starts means '-infinity'.
--
-- Locks are taken in one order everywhere: counters by (budget, period, workflow), then reservations likewise. So two
-- batches that share some wait for each other instead of deadlocking.

-- Adds to counters, and notes the thresholds that are newly reached. Answers each counter as it stands, and these
-- thresholds. Called in the transaction that records the usage, with new events only: a rolled back or repeated event
-- is not counted twice.
CREATE FUNCTION metering.count_spend(
    p_budget_ids text[], p_period_starts timestamptz[], p_workflow_ids text[], p_amounts bigint[]
) RETURNS TABLE (
    budget_id text, period_start timestamptz, workflow_id text, spent bigint, currency_code text, limit_micros bigint,
    thresholds integer[], count_time timestamptz
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        -- Several items of one counter are one. Sums beyond 64 bits stay at their end: finished work is recorded in
        -- any case, and such a budget is exceeded anyhow.
        SELECT i.budget_id COLLATE "C" AS budget_id, coalesce(i.period_start, '-infinity') AS period_start,
               i.workflow_id COLLATE "C" AS workflow_id, least(sum(i.amount), 9223372036854775807)::bigint AS amount
        FROM unnest(p_budget_ids, p_period_starts, p_workflow_ids, p_amounts)
            AS i (budget_id, period_start, workflow_id, amount)
        GROUP BY 1, 2, 3
    ), counted AS (
        INSERT INTO budget_counter AS c (budget_id, period_start, workflow_id, owner_id, spent)
        SELECT i.budget_id, i.period_start, i.workflow_id, b.owner_id, i.amount
        FROM item i
        JOIN budget b ON b.budget_id = i.budget_id
        WHERE b.delete_time IS NULL
        ORDER BY i.budget_id, i.period_start, i.workflow_id
        ON CONFLICT (budget_id, period_start, workflow_id) DO UPDATE
        SET spent = least(c.spent::numeric + excluded.spent, 9223372036854775807)::bigint
        RETURNING c.budget_id, c.period_start, c.workflow_id, c.spent
    ), reached AS (
        SELECT c.budget_id, c.period_start, c.workflow_id, t.threshold, b.owner_id, b.currency_code, c.spent,
               b.limit_micros
        FROM counted c
        JOIN budget b ON b.budget_id = c.budget_id
        CROSS JOIN LATERAL unnest(b.alert_thresholds) AS t (threshold)
        WHERE c.spent::numeric * 100 >= b.limit_micros::numeric * t.threshold
          -- Spares an attempt per charge, and a number, once a threshold was reached.
          AND NOT EXISTS (
              SELECT FROM budget_alert a
              WHERE a.budget_id = c.budget_id AND a.period_start = c.period_start
                AND a.workflow_id = c.workflow_id AND a.threshold = t.threshold
          )
    ), alerted AS (
        INSERT INTO budget_alert (
            budget_id, period_start, workflow_id, threshold, owner_id, currency_code, spent, limit_micros)
        SELECT r.budget_id, r.period_start, r.workflow_id, r.threshold, r.owner_id, r.currency_code, r.spent,
               r.limit_micros
        FROM reached r
        ORDER BY r.budget_id, r.period_start, r.workflow_id, r.threshold
        -- Reached by a transaction that this statement waited for.
        ON CONFLICT DO NOTHING
        RETURNING budget_id, period_start, workflow_id, threshold
    )
    SELECT c.budget_id, nullif(c.period_start, '-infinity'), c.workflow_id, c.spent, b.currency_code, b.limit_micros,
           ARRAY(
               SELECT a.threshold FROM alerted a
               WHERE a.budget_id = c.budget_id AND a.period_start = c.period_start AND a.workflow_id = c.workflow_id
               ORDER BY a.threshold
           ),
           now()
    FROM counted c
    JOIN budget b ON b.budget_id = c.budget_id;
END
$$;

-- Reserves an amount against all of some budgets, or none. Answers no row if it did; otherwise the first counter that
-- has no room, with what is spent and what others have reserved. The same reservation again keeps the higher amount
-- and the later expiry, if they fit; what it has is not taken from it.
CREATE FUNCTION metering.reserve_budgets(
    p_reservation_id text, p_budget_ids text[], p_period_starts timestamptz[], p_workflow_ids text[],
    p_limits bigint[], p_amount bigint, p_expire_time timestamptz, p_freeze boolean
) RETURNS TABLE (budget_id text, period_start timestamptz, workflow_id text, spent bigint, reserved bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_starts timestamptz[] := ARRAY(
        SELECT coalesce(s.period_start, '-infinity')
        FROM unnest(p_period_starts) WITH ORDINALITY AS s (period_start, position)
        ORDER BY s.position
    );
    v_refusal record;
BEGIN
    -- A counter must exist to be locked.
    INSERT INTO budget_counter (budget_id, period_start, workflow_id, owner_id, spent)
    SELECT k.budget_id, k.period_start, k.workflow_id, b.owner_id, 0
    FROM unnest(p_budget_ids, v_starts, p_workflow_ids) AS k (budget_id, period_start, workflow_id)
    JOIN budget b ON b.budget_id = k.budget_id
    WHERE b.delete_time IS NULL
    ORDER BY k.budget_id COLLATE "C", k.period_start, k.workflow_id COLLATE "C"
    ON CONFLICT DO NOTHING;
    PERFORM
    FROM unnest(p_budget_ids, v_starts, p_workflow_ids) AS k (budget_id, period_start, workflow_id)
    JOIN budget_counter c
      ON c.budget_id = k.budget_id AND c.period_start = k.period_start AND c.workflow_id = k.workflow_id
    ORDER BY c.budget_id, c.period_start, c.workflow_id
    FOR NO KEY UPDATE OF c;
    -- A statement of its own, because only a new snapshot sees what the locks waited for.
    SELECT c.budget_id, c.period_start, c.workflow_id, c.owner_id, c.spent,
           least(o.amount, 9223372036854775807)::bigint AS reserved
    INTO v_refusal
    FROM unnest(p_budget_ids, v_starts, p_workflow_ids, p_limits)
        AS k (budget_id, period_start, workflow_id, limit_micros)
    JOIN budget b ON b.budget_id = k.budget_id
    JOIN budget_counter c
      ON c.budget_id = k.budget_id AND c.period_start = k.period_start AND c.workflow_id = k.workflow_id
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(r.amount) FILTER (WHERE r.reservation_id <> p_reservation_id), 0) AS amount,
               coalesce(max(r.amount) FILTER (WHERE r.reservation_id = p_reservation_id), -1) AS own,
               coalesce(bool_or(r.refused AND r.reservation_id = p_reservation_id), false) AS refused
        FROM budget_reservation r
        WHERE r.budget_id = c.budget_id AND r.period_start = c.period_start AND r.workflow_id = c.workflow_id
          AND r.expire_time > clock_timestamp()
    ) o
    WHERE b.delete_time IS NULL
      AND (
          o.refused
          -- What it has already needs no room, even if the limit was lowered since.
          OR (p_amount > o.own AND c.spent::numeric + o.amount + p_amount > k.limit_micros)
      )
    ORDER BY o.refused DESC, c.budget_id, c.period_start, c.workflow_id
    LIMIT 1;
    IF FOUND THEN
        -- On the counter that refused, which is the one that a repeated request is to hear of.
        INSERT INTO budget_reservation (
            budget_id, period_start, workflow_id, reservation_id, owner_id, amount, refused, expire_time)
        SELECT v_refusal.budget_id, v_refusal.period_start, v_refusal.workflow_id, p_reservation_id,
               v_refusal.owner_id, 0, true, p_expire_time
        WHERE p_freeze
        ON CONFLICT DO NOTHING;
        RETURN QUERY
        SELECT v_refusal.budget_id, nullif(v_refusal.period_start, '-infinity'), v_refusal.workflow_id,
               v_refusal.spent, v_refusal.reserved;
        RETURN;
    END IF;
    INSERT INTO budget_reservation AS r (
        budget_id, period_start, workflow_id, reservation_id, owner_id, amount, expire_time)
    SELECT k.budget_id, k.period_start, k.workflow_id, p_reservation_id, b.owner_id, p_amount, p_expire_time
    FROM unnest(p_budget_ids, v_starts, p_workflow_ids) AS k (budget_id, period_start, workflow_id)
    JOIN budget b ON b.budget_id = k.budget_id
    WHERE b.delete_time IS NULL
    ORDER BY k.budget_id COLLATE "C", k.period_start, k.workflow_id COLLATE "C"
    ON CONFLICT (budget_id, period_start, workflow_id, reservation_id) DO UPDATE
    SET amount = CASE
            -- An amount that has expired was not looked at above.
            WHEN r.expire_time > clock_timestamp() THEN greatest(r.amount, excluded.amount)
            ELSE excluded.amount
        END,
        expire_time = greatest(r.expire_time, excluded.expire_time);
END
$$;

-- Ends reservations; unknown ones are fine. In a transaction that also counts, the counters come first.
CREATE FUNCTION metering.end_budgets(p_reservation_ids text[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    WITH ended AS MATERIALIZED (
        SELECT r.budget_id, r.period_start, r.workflow_id, r.reservation_id
        FROM budget_reservation r
        WHERE r.reservation_id = ANY (p_reservation_ids)
        ORDER BY r.budget_id, r.period_start, r.workflow_id, r.reservation_id
        FOR UPDATE
    )
    DELETE FROM budget_reservation r
    USING ended e
    WHERE r.budget_id = e.budget_id AND r.period_start = e.period_start AND r.workflow_id = e.workflow_id
      AND r.reservation_id = e.reservation_id
$$;

-- Deletes up to p_limit reservations that have expired; how many it did. They no longer count: this is only for room.
CREATE FUNCTION metering.purge_budget_reservations(p_limit integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    WITH expired AS MATERIALIZED (
        SELECT r.budget_id, r.period_start, r.workflow_id, r.reservation_id
        FROM budget_reservation r
        WHERE r.expire_time <= clock_timestamp()
        ORDER BY r.expire_time
        LIMIT p_limit
        -- In the order of expiry, so waiting for locks could deadlock. What somebody holds is being prolonged or ended.
        FOR UPDATE SKIP LOCKED
    ), purged AS (
        DELETE FROM budget_reservation r
        USING expired e
        WHERE r.budget_id = e.budget_id AND r.period_start = e.period_start AND r.workflow_id = e.workflow_id
          AND r.reservation_id = e.reservation_id
        RETURNING 1
    )
    SELECT count(*) FROM purged
$$;

-- What counters hold, and the reservations against them that have not expired, in one snapshot. A counter of which
-- nothing is known yet is answered as zero.
CREATE FUNCTION metering.load_budget_counters(
    p_budget_ids text[], p_period_starts timestamptz[], p_workflow_ids text[]
) RETURNS TABLE (
    budget_id text, period_start timestamptz, workflow_id text, spent bigint, reservation_ids text[], amounts bigint[],
    expire_times timestamptz[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
BEGIN
    RETURN QUERY
    SELECT k.budget_id, k.period_start, k.workflow_id, coalesce(c.spent, 0), o.reservation_ids, o.amounts,
           o.expire_times
    FROM unnest(p_budget_ids, p_period_starts, p_workflow_ids) AS k (budget_id, period_start, workflow_id)
    LEFT JOIN budget_counter c
      ON c.budget_id = k.budget_id AND c.period_start = coalesce(k.period_start, '-infinity')
     AND c.workflow_id = k.workflow_id
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(r.reservation_id ORDER BY r.reservation_id), '{}') AS reservation_ids,
               coalesce(array_agg(r.amount ORDER BY r.reservation_id), '{}') AS amounts,
               coalesce(array_agg(r.expire_time ORDER BY r.reservation_id), '{}') AS expire_times
        FROM budget_reservation r
        WHERE r.budget_id = k.budget_id AND r.period_start = coalesce(k.period_start, '-infinity')
          AND r.workflow_id = k.workflow_id AND r.expire_time > clock_timestamp() AND NOT r.refused
    ) o;
END
$$;

DO $$
DECLARE
    hot regprocedure;
BEGIN
    FOR hot IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'metering'::regnamespace AND prosecdef
          AND proname IN ('number_budget_change', 'count_spend', 'reserve_budgets', 'end_budgets',
                          'purge_budget_reservations', 'load_budget_counters')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', hot);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO metering_writer', hot);
    END LOOP;
END
$$;
