-- The hot path. Each function takes arrays, one element per item, and runs as the owner, whatever the tenant
-- settings: the service has checked each item against its authenticated caller before it comes here.
--
-- A plan is kept for the session and may have been made while a table was nearly empty; enable_seqscan = off
-- keeps it from reading a whole table that has grown since. Where a function is called for each batch, it keeps its
-- plans, which connections of services do not by themselves.
--
-- The newest migration runs this file. What an older one made of it goes first, whatever its arguments were.

DO $$
DECLARE
    old regprocedure;
BEGIN
    FOR old IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'metering'::regnamespace
          AND proname IN ('record_usage', 'find_usage', 'confirm_charges', 'take_pending_charges',
                          'note_failed_charges', 'count_refused_charges', 'resolve_outcome', 'expire_outcomes',
                          'lock_due_outcomes', 'lock_outcome', 'decide_outcomes', 'sequence_usage',
                          'lock_price_counters', 'make_price_counters', 'move_price_counters')
    LOOP
        EXECUTE format('DROP FUNCTION %s', old);
    END LOOP;
    DROP VIEW IF EXISTS metering.recorded_usage;
END
$$;

-- Usage events with their outcomes, if these were deferred, and with what the ledger has yet to confirm of each.
-- Shows what the tables show to who asks.
CREATE VIEW metering.recorded_usage WITH (security_invoker = true) AS
SELECT u.customer_id, u.workflow_id, u.ordinal, u.organization_id, u.agent_id, u.occur_time, u.content,
       u.evidence_ref, u.evidence_hash, u.price_version_id, u.currency_code, u.amount_micros, u.lines,
       u.reservation_id, u.lease_epoch, u.reserved_micros, u.reservation_expire_time, u.create_time,
       u.contract_terms, u.period_start, u.opening, u.closing, d.outcome_id, d.api_key_id, d.expired_outcome, d.expire_time AS outcome_expire_time, d.bonuses,
       d.max_bonus_micros, d.state AS outcome_state, d.outcome, d.resolve_time,
       d.evidence_ref AS outcome_evidence_ref, d.evidence_hash AS outcome_evidence_hash,
       d.result AS outcome_result, d.opening AS outcome_opening, d.closing AS outcome_closing,
       EXISTS (
           SELECT FROM metering.pending_charge p
           WHERE p.customer_id = u.customer_id AND p.workflow_id = u.workflow_id AND p.ordinal = u.ordinal
             AND p.component = 'BASE'
       ) AS pending,
       d.outcome_id IS NOT NULL AND EXISTS (
           SELECT FROM metering.pending_charge p
           WHERE p.customer_id = u.customer_id AND p.workflow_id = u.workflow_id AND p.ordinal = u.ordinal
             AND p.component = 'OUTCOME'
       ) AS outcome_pending
FROM metering.usage_event u
LEFT JOIN metering.deferred_outcome d
  ON d.customer_id = u.customer_id AND d.workflow_id = u.workflow_id AND d.ordinal = u.ordinal;
GRANT SELECT ON metering.recorded_usage TO metering_reader, metering_writer;

-- Usage events by their keys, oldest work first.
CREATE FUNCTION metering.find_usage(p_customer_ids text[], p_workflow_ids text[], p_ordinals integer[])
RETURNS SETOF metering.recorded_usage
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    SELECT e.*
    FROM unnest(p_customer_ids, p_workflow_ids, p_ordinals) AS k (customer_id, workflow_id, ordinal)
    -- LIMIT keeps it a look-up of each key.
    CROSS JOIN LATERAL (
        SELECT *
        FROM recorded_usage r
        WHERE r.customer_id = k.customer_id AND r.workflow_id = k.workflow_id AND r.ordinal = k.ordinal
        LIMIT 1
    ) AS e
    ORDER BY e.create_time, e.customer_id, e.workflow_id, e.ordinal
$$;

-- Records usage events, the outcomes of those that were reported as pending, and queues their charges. Answers only
-- the events that were there before, as they were recorded first; nothing was changed for these. Keys are distinct.
CREATE FUNCTION metering.record_usage(
    p_customer_ids text[],
    p_workflow_ids text[],
    p_ordinals integer[],
    p_organization_ids text[],
    p_agent_ids text[],
    p_occur_times timestamptz[],
    p_contents bytea[],
    p_evidence_refs text[],
    p_evidence_hashes bytea[],
    p_price_version_ids text[],
    p_currency_codes text[],
    p_amounts bigint[],
    p_lines jsonb[],
    -- NULL where nothing was reserved.
    p_reservation_ids text[],
    p_lease_epochs bigint[],
    p_reserved_amounts bigint[],
    p_reservation_expire_times timestamptz[],
    -- The deferred outcomes, as an array of objects with the names of the columns.
    p_outcomes jsonb,
    p_recovery_delay interval,
    -- NULL where no contract adds anything, and where the price depends on no counters.
    p_contract_terms jsonb[] DEFAULT NULL,
    p_period_starts timestamptz[] DEFAULT NULL,
    p_openings jsonb[] DEFAULT NULL,
    p_closings jsonb[] DEFAULT NULL
) RETURNS SETOF metering.recorded_usage
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    new_customer_ids text[];
    new_workflow_ids text[];
    new_ordinals integer[];
    known_customer_ids text[];
    known_workflow_ids text[];
    known_ordinals integer[];
BEGIN
    -- In the order of keys, so that two batches that share events wait for each other instead of deadlocking:
    -- an event that another transaction is inserting is waited for here.
    WITH recorded AS (
        INSERT INTO usage_event (
            customer_id, workflow_id, ordinal, organization_id, agent_id, occur_time, content,
            evidence_ref, evidence_hash, price_version_id, currency_code, amount_micros, lines,
            reservation_id, lease_epoch, reserved_micros, reservation_expire_time, contract_terms, period_start,
            opening, closing)
        SELECT *
        FROM unnest(
            p_customer_ids, p_workflow_ids, p_ordinals, p_organization_ids, p_agent_ids, p_occur_times, p_contents,
            p_evidence_refs, p_evidence_hashes, p_price_version_ids, p_currency_codes, p_amounts, p_lines,
            p_reservation_ids, p_lease_epochs, p_reserved_amounts, p_reservation_expire_times,
            p_contract_terms, p_period_starts, p_openings, p_closings
        ) AS i (
            customer_id, workflow_id, ordinal, organization_id, agent_id, occur_time, content,
            evidence_ref, evidence_hash, price_version_id, currency_code, amount_micros, lines,
            reservation_id, lease_epoch, reserved_micros, reservation_expire_time, contract_terms, period_start,
            opening, closing
        )
        ORDER BY customer_id COLLATE "C", workflow_id COLLATE "C", ordinal
        ON CONFLICT DO NOTHING
        RETURNING customer_id, workflow_id, ordinal
    ), queued AS (
        INSERT INTO pending_charge (customer_id, workflow_id, ordinal, component, next_attempt_time)
        SELECT customer_id, workflow_id, ordinal, 'BASE', now() + p_recovery_delay FROM recorded
    )
    SELECT array_agg(customer_id), array_agg(workflow_id), array_agg(ordinal)
    INTO new_customer_ids, new_workflow_ids, new_ordinals
    FROM recorded;
    -- What follows is asked only of batches that have any of it: most have neither outcomes that are pending nor
    -- events that were there before, and then a single event is recorded in two thirds of the time.
    IF p_outcomes <> '[]' THEN
        INSERT INTO deferred_outcome (
            outcome_id, customer_id, workflow_id, ordinal, organization_id, api_key_id, expired_outcome,
            expire_time, bonuses, max_bonus_micros)
        SELECT o.outcome_id, e.customer_id, e.workflow_id, e.ordinal, e.organization_id, o.api_key_id,
               o.expired_outcome, o.expire_time, o.bonuses, o.max_bonus_micros
        FROM jsonb_to_recordset(p_outcomes) AS o (
            outcome_id text, customer_id text, workflow_id text, ordinal integer, api_key_id text,
            expired_outcome text, expire_time timestamptz, bonuses jsonb, max_bonus_micros bigint
        )
        JOIN unnest(new_customer_ids, new_workflow_ids, new_ordinals) AS n (customer_id, workflow_id, ordinal)
          ON n.customer_id = o.customer_id AND n.workflow_id = o.workflow_id AND n.ordinal = o.ordinal
        JOIN unnest(p_customer_ids, p_workflow_ids, p_ordinals, p_organization_ids)
                AS e (customer_id, workflow_id, ordinal, organization_id)
          ON e.customer_id = o.customer_id AND e.workflow_id = o.workflow_id AND e.ordinal = o.ordinal;
    END IF;
    IF cardinality(new_ordinals) = cardinality(p_ordinals) THEN
        RETURN;
    END IF;
    SELECT array_agg(k.customer_id), array_agg(k.workflow_id), array_agg(k.ordinal)
    INTO known_customer_ids, known_workflow_ids, known_ordinals
    FROM (
        SELECT * FROM unnest(p_customer_ids, p_workflow_ids, p_ordinals)
        EXCEPT
        SELECT * FROM unnest(new_customer_ids, new_workflow_ids, new_ordinals)
    ) AS k (customer_id, workflow_id, ordinal);
    -- A statement of its own, because only a new snapshot sees what the insert waited for.
    RETURN QUERY SELECT * FROM find_usage(known_customer_ids, known_workflow_ids, known_ordinals);
END
$$;

-- Takes charges from the queue that the ledger has confirmed.
CREATE FUNCTION metering.confirm_charges(
    p_customer_ids text[], p_workflow_ids text[], p_ordinals integer[], p_components text[]
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    places tid[];
BEGIN
    -- Losing this in a crash costs no more than posting the charge again, which changes nothing: no reason to
    -- wait for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    -- A look-up of each key, and then by row address. Joins are planned for the size that the queue had when it was last
    -- analyzed: with a queue that was empty then, each of 500 keys was compared with everything that waited in it.
    SELECT array_agg(locked.place) INTO places
    FROM unnest(p_customer_ids, p_workflow_ids, p_ordinals, p_components)
        AS k (customer_id, workflow_id, ordinal, component)
    CROSS JOIN LATERAL (
        SELECT p.ctid AS place FROM pending_charge p
        WHERE p.customer_id = k.customer_id AND p.workflow_id = k.workflow_id AND p.ordinal = k.ordinal
          AND p.component = k.component
        -- Keys come in no order, so waiting for locks could deadlock. A row that recovery holds right now is
        -- left to it.
        FOR UPDATE SKIP LOCKED
    ) AS locked;
    -- A statement of its own, which sees the row that is locked also when recovery has just changed it.
    DELETE FROM pending_charge WHERE ctid = ANY (places);
END
$$;

-- Takes up to p_limit due charges for one attempt: no other replica takes them before their next one, which
-- comes after p_first_delay, then twice as long each time, up to p_longest_delay.
CREATE FUNCTION metering.take_pending_charges(
    p_limit integer, p_first_delay interval, p_longest_delay interval
) RETURNS TABLE (customer_id text, workflow_id text, ordinal integer, component text)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    WITH due AS MATERIALIZED (
        SELECT p.customer_id, p.workflow_id, p.ordinal, p.component
        FROM pending_charge p
        WHERE p.next_attempt_time <= now()
          -- The base charge places the hold that the outcome is paid from: posted after it, it would place the
          -- hold again, for an outcome that is decided.
          AND (
              p.component = 'BASE'
              OR NOT EXISTS (
                  SELECT FROM pending_charge base
                  WHERE base.customer_id = p.customer_id AND base.workflow_id = p.workflow_id
                    AND base.ordinal = p.ordinal AND base.component = 'BASE'
              )
          )
        ORDER BY p.next_attempt_time
        LIMIT p_limit
        -- Several replicas look at once: each takes what no other is taking.
        FOR UPDATE OF p SKIP LOCKED
    )
    UPDATE pending_charge p
    SET next_attempt_time = now() + least(p_first_delay * power(2, least(p.attempt_count, 30)), p_longest_delay),
        attempt_count = p.attempt_count + 1
    FROM due
    WHERE p.customer_id = due.customer_id AND p.workflow_id = due.workflow_id AND p.ordinal = due.ordinal
      AND p.component = due.component
    RETURNING p.customer_id, p.workflow_id, p.ordinal, p.component
$$;

-- Keeps why attempts of recovery failed. A refused charge is not tried again, and stays.
CREATE FUNCTION metering.note_failed_charges(
    p_customer_ids text[], p_workflow_ids text[], p_ordinals integer[], p_components text[], p_errors text[],
    p_refused boolean[]
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    UPDATE pending_charge p
    SET last_error = f.error,
        next_attempt_time = CASE WHEN f.refused THEN 'infinity' ELSE p.next_attempt_time END
    FROM unnest(p_customer_ids, p_workflow_ids, p_ordinals, p_components, p_errors, p_refused)
        AS f (customer_id, workflow_id, ordinal, component, error, refused)
    WHERE p.customer_id = f.customer_id AND p.workflow_id = f.workflow_id AND p.ordinal = f.ordinal
      AND p.component = f.component
$$;

-- How many charges the ledger has refused for good.
CREATE FUNCTION metering.count_refused_charges() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
    SELECT count(*) FROM pending_charge WHERE next_attempt_time = 'infinity'
$$;

-- Decides a pending outcome in time, and queues what is to be charged or released for it. Answers whether this
-- call decided it. Not one that is rated when it is decided: decide_outcomes() does that.
CREATE FUNCTION metering.resolve_outcome(
    p_outcome_id text, p_outcome text, p_evidence_ref text, p_evidence_hash bytea, p_recovery_delay interval,
    -- NULL where the result of the event counts.
    p_result bytea DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    decided boolean;
BEGIN
    -- One statement decides: who else is deciding it holds the row's lock, and the conditions are judged again
    -- once it is free.
    WITH resolved AS (
        UPDATE deferred_outcome
        SET state = 'resolved', outcome = p_outcome, resolve_time = now(), evidence_ref = p_evidence_ref,
            evidence_hash = p_evidence_hash, result = p_result,
            bonus_micros = coalesce((bonuses #>> ARRAY[p_outcome, '0'])::bigint, 0)
        WHERE outcome_id = p_outcome_id AND state = 'pending' AND now() < expire_time AND bonuses IS NOT NULL
        RETURNING customer_id, workflow_id, ordinal, max_bonus_micros
    ), queued AS (
        INSERT INTO pending_charge (customer_id, workflow_id, ordinal, component, next_attempt_time)
        SELECT customer_id, workflow_id, ordinal, 'OUTCOME', now() + p_recovery_delay
        FROM resolved
        -- Otherwise nothing is held for it, and nothing to charge.
        WHERE max_bonus_micros > 0
    )
    SELECT count(*) > 0 INTO decided FROM resolved;
    RETURN decided;
END
$$;

-- Lets up to p_limit due outcomes fall to their defaults, first those that were due first, and queues what is to be
-- charged or released for them. Answers their events. Not those that are rated when they are decided.
CREATE FUNCTION metering.expire_outcomes(p_limit integer, p_recovery_delay interval)
RETURNS SETOF metering.recorded_usage
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    expired_customer_ids text[];
    expired_workflow_ids text[];
    expired_ordinals integer[];
BEGIN
    WITH due AS MATERIALIZED (
        SELECT outcome_id
        FROM deferred_outcome
        WHERE state = 'pending' AND expire_time <= now() AND bonuses IS NOT NULL
        ORDER BY expire_time
        LIMIT p_limit
        -- Several replicas look at once: each takes what no other is taking. One that is being resolved is left
        -- alone: it was in time.
        FOR UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE deferred_outcome d
        SET state = 'expired', outcome = d.expired_outcome, resolve_time = now(),
            bonus_micros = coalesce((d.bonuses #>> ARRAY[d.expired_outcome, '0'])::bigint, 0)
        FROM due
        WHERE d.outcome_id = due.outcome_id
        RETURNING d.customer_id, d.workflow_id, d.ordinal, d.max_bonus_micros
    ), queued AS (
        INSERT INTO pending_charge (customer_id, workflow_id, ordinal, component, next_attempt_time)
        SELECT customer_id, workflow_id, ordinal, 'OUTCOME', now() + p_recovery_delay
        FROM expired
        WHERE max_bonus_micros > 0
    )
    SELECT array_agg(customer_id), array_agg(workflow_id), array_agg(ordinal)
    INTO expired_customer_ids, expired_workflow_ids, expired_ordinals
    FROM expired;
    -- A statement of its own, which sees what the one before has changed.
    RETURN QUERY SELECT * FROM find_usage(expired_customer_ids, expired_workflow_ids, expired_ordinals);
END
$$;

-- Takes a pending outcome, in time, that is rated when it is decided: nobody else decides it before the transaction
-- ends. Answers its event, or nothing if it was decided or its time is over.
CREATE FUNCTION metering.lock_outcome(p_outcome_id text) RETURNS SETOF metering.recorded_usage
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    locked deferred_outcome;
BEGIN
    SELECT * INTO locked
    FROM deferred_outcome
    WHERE outcome_id = p_outcome_id AND state = 'pending' AND now() < expire_time AND bonuses IS NULL
    FOR NO KEY UPDATE;
    IF FOUND THEN
        RETURN QUERY SELECT * FROM find_usage(
            ARRAY[locked.customer_id], ARRAY[locked.workflow_id], ARRAY[locked.ordinal]);
    END IF;
END
$$;

-- Takes up to p_limit due outcomes that are rated when they are decided, first those that were due first. Answers their
-- events.
CREATE FUNCTION metering.lock_due_outcomes(p_limit integer) RETURNS SETOF metering.recorded_usage
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    due_customer_ids text[];
    due_workflow_ids text[];
    due_ordinals integer[];
BEGIN
    SELECT array_agg(d.customer_id), array_agg(d.workflow_id), array_agg(d.ordinal)
    INTO due_customer_ids, due_workflow_ids, due_ordinals
    FROM (
        SELECT customer_id, workflow_id, ordinal
        FROM deferred_outcome
        WHERE state = 'pending' AND expire_time <= now() AND bonuses IS NULL
        ORDER BY expire_time
        LIMIT p_limit
        -- As in expire_outcomes().
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS d;
    RETURN QUERY SELECT * FROM find_usage(due_customer_ids, due_workflow_ids, due_ordinals);
END
$$;

-- Decides outcomes that this transaction has taken, and queues what is to be charged or released for them. p_bonuses
-- says what each adds, {} for nothing.
CREATE FUNCTION metering.decide_outcomes(
    p_state text, p_outcome_ids text[], p_outcomes text[], p_bonuses jsonb[], p_openings jsonb[], p_closings jsonb[],
    p_evidence_ref text, p_evidence_hash bytea, p_result bytea, p_recovery_delay interval
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    WITH decided AS (
        UPDATE deferred_outcome d
        SET state = p_state, outcome = i.outcome, resolve_time = now(), evidence_ref = p_evidence_ref,
            evidence_hash = p_evidence_hash, result = p_result, bonuses = i.bonuses, opening = i.opening,
            closing = i.closing, bonus_micros = coalesce((i.bonuses #>> ARRAY[i.outcome, '0'])::bigint, 0)
        FROM unnest(p_outcome_ids, p_outcomes, p_bonuses, p_openings, p_closings)
            AS i (outcome_id, outcome, bonuses, opening, closing)
        WHERE d.outcome_id = i.outcome_id
        RETURNING d.customer_id, d.workflow_id, d.ordinal, d.max_bonus_micros
    )
    INSERT INTO pending_charge (customer_id, workflow_id, ordinal, component, next_attempt_time)
    SELECT customer_id, workflow_id, ordinal, 'OUTCOME', now() + p_recovery_delay
    FROM decided
    WHERE max_bonus_micros > 0
$$;

-- Locks counters of prices until the transaction ends, and answers their values, in the order of their ids: 0 for one in
-- which nothing was counted. Answers NULL if one does not exist: make_price_counters() makes it, in a transaction of its
-- own. Counters are distinct.
--
-- All locks of metering are taken in one order: deferred outcomes, counters of prices, usage events, counters of budgets,
-- and of one kind in the order of keys. A transaction takes all its counters of prices by one call.
CREATE FUNCTION metering.lock_price_counters(p_counter_ids bytea[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    counted bigint[];
BEGIN
    SELECT array_agg(coalesce(l.value, 0))
    INTO counted
    FROM (
        -- Of a row that it has to wait for it reads the value that the other one left.
        SELECT c.value
        FROM unnest(p_counter_ids) AS k (counter_id)
        JOIN price_counter c ON c.counter_id = k.counter_id
        ORDER BY c.counter_id
        FOR NO KEY UPDATE OF c
    ) AS l;
    RETURN CASE WHEN cardinality(counted) = cardinality(p_counter_ids) THEN counted END;
END
$$;

-- Makes counters of prices that do not exist yet.
CREATE FUNCTION metering.make_price_counters(
    p_counter_ids bytea[], p_customer_ids text[], p_organization_ids text[], p_currency_codes text[],
    p_period_starts timestamptz[], p_names text[]
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
    INSERT INTO price_counter (counter_id, customer_id, organization_id, currency_code, period_start, name)
    SELECT *
    FROM unnest(p_counter_ids, p_customer_ids, p_organization_ids, p_currency_codes, p_period_starts, p_names)
        AS k (counter_id, customer_id, organization_id, currency_code, period_start, name)
    ORDER BY counter_id
    ON CONFLICT DO NOTHING
$$;

-- Moves counters of prices, which this transaction has locked, to new values.
CREATE FUNCTION metering.move_price_counters(p_counter_ids bytea[], p_values bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
BEGIN
    UPDATE price_counter c
    SET value = k.value
    FROM unnest(p_counter_ids, p_values) AS k (counter_id, value)
    WHERE c.counter_id = k.counter_id;
END
$$;

-- Gives the next positions of the log to waiting usage, at most p_limit; answers how many. Any number of sequencers may
-- run: whoever finds the log's row locked leaves the work to its holder. Positions are taken in the order of commits of
-- this function, never by comparing ids, because ids become visible out of order. An outcome comes behind its event: who
-- decides it has seen the event, which was queued by then, under a smaller id.
CREATE FUNCTION metering.sequence_usage(p_limit integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    log usage_log;
    taken integer;
BEGIN
    -- The newest log or none: skipping it because it is locked must not lead to an older one.
    SELECT * INTO log FROM usage_log
    WHERE log_id = (SELECT newest.log_id FROM usage_log newest ORDER BY newest.create_time DESC LIMIT 1)
    FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    WITH deleted AS (
        DELETE FROM unsequenced_usage
        WHERE unsequenced_id = ANY (ARRAY(
            SELECT unsequenced_id FROM unsequenced_usage ORDER BY unsequenced_id LIMIT p_limit FOR UPDATE SKIP LOCKED
        ))
        RETURNING *
    )
    INSERT INTO usage_position (log_id, position, kind, customer_id, workflow_id, ordinal)
    SELECT log.log_id, log.last_position + row_number() OVER (ORDER BY unsequenced_id), kind, customer_id, workflow_id,
           ordinal
    FROM deleted;
    GET DIAGNOSTICS taken = ROW_COUNT;
    UPDATE usage_log SET last_position = last_position + taken WHERE log_id = log.log_id AND taken > 0;
    RETURN taken;
END
$$;

DO $$
DECLARE
    hot regprocedure;
BEGIN
    FOR hot IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'metering'::regnamespace AND prosecdef
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', hot);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO metering_writer', hot);
    END LOOP;
END
$$;
