-- The hot path. Each function takes arrays, one element per item, and runs as the owner, whatever the tenant
-- settings: the service has checked each item against its authenticated caller before it comes here.
--
-- A plan is kept for the session and may have been made while a table was nearly empty; enable_seqscan = off
-- keeps it from reading a whole table that has grown since.

-- Records usage events and queues their charges. Answers only the events that were there before, as they were
-- recorded first, and whether their charge is still pending; nothing was changed for these. Keys are distinct.
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
    p_recovery_delay interval
) RETURNS TABLE (
    customer_id text,
    workflow_id text,
    ordinal integer,
    organization_id text,
    agent_id text,
    occur_time timestamptz,
    content bytea,
    evidence_ref text,
    evidence_hash bytea,
    price_version_id text,
    currency_code text,
    amount_micros bigint,
    lines jsonb,
    pending boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    known_customer_ids text[];
    known_workflow_ids text[];
    known_ordinals integer[];
BEGIN
    -- In the order of keys, so that two batches that share events wait for each other instead of deadlocking:
    -- an event that another transaction is inserting is waited for here.
    WITH item AS MATERIALIZED (
        SELECT *
        FROM unnest(
            p_customer_ids, p_workflow_ids, p_ordinals, p_organization_ids, p_agent_ids, p_occur_times, p_contents,
            p_evidence_refs, p_evidence_hashes, p_price_version_ids, p_currency_codes, p_amounts, p_lines
        ) AS i (
            customer_id, workflow_id, ordinal, organization_id, agent_id, occur_time, content,
            evidence_ref, evidence_hash, price_version_id, currency_code, amount_micros, lines
        )
    ), recorded AS (
        INSERT INTO usage_event (
            customer_id, workflow_id, ordinal, organization_id, agent_id, occur_time, content,
            evidence_ref, evidence_hash, price_version_id, currency_code, amount_micros, lines)
        SELECT customer_id, workflow_id, ordinal, organization_id, agent_id, occur_time, content,
               evidence_ref, evidence_hash, price_version_id, currency_code, amount_micros, lines
        FROM item
        ORDER BY customer_id COLLATE "C", workflow_id COLLATE "C", ordinal
        ON CONFLICT DO NOTHING
        RETURNING customer_id, workflow_id, ordinal
    ), queued AS (
        INSERT INTO pending_charge (customer_id, workflow_id, ordinal, next_attempt_time)
        SELECT customer_id, workflow_id, ordinal, now() + p_recovery_delay FROM recorded
    ), known AS (
        SELECT customer_id COLLATE "C", workflow_id COLLATE "C", ordinal FROM item
        EXCEPT
        SELECT customer_id, workflow_id, ordinal FROM recorded
    )
    SELECT array_agg(customer_id), array_agg(workflow_id), array_agg(ordinal)
    INTO known_customer_ids, known_workflow_ids, known_ordinals
    FROM known;
    IF known_ordinals IS NULL THEN
        RETURN;
    END IF;
    -- A statement of its own, because only a new snapshot sees what the insert waited for. LIMIT keeps it a
    -- look-up of each key.
    RETURN QUERY
    SELECT e.*
    FROM unnest(known_customer_ids, known_workflow_ids, known_ordinals) AS k (customer_id, workflow_id, ordinal)
    CROSS JOIN LATERAL (
        SELECT u.customer_id, u.workflow_id, u.ordinal, u.organization_id, u.agent_id, u.occur_time, u.content,
               u.evidence_ref, u.evidence_hash, u.price_version_id, u.currency_code, u.amount_micros, u.lines,
               EXISTS (
                   SELECT FROM pending_charge p
                   WHERE p.customer_id = u.customer_id AND p.workflow_id = u.workflow_id AND p.ordinal = u.ordinal
               )
        FROM usage_event u
        WHERE u.customer_id = k.customer_id AND u.workflow_id = k.workflow_id AND u.ordinal = k.ordinal
        LIMIT 1
    ) AS e;
END
$$;

-- Takes charges from the queue that the ledger has confirmed.
CREATE FUNCTION metering.confirm_charges(p_customer_ids text[], p_workflow_ids text[], p_ordinals integer[])
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
BEGIN
    -- Losing this in a crash costs no more than posting the charge again, which changes nothing: no reason to
    -- wait for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    WITH done AS MATERIALIZED (
        SELECT p.customer_id, p.workflow_id, p.ordinal
        FROM unnest(p_customer_ids, p_workflow_ids, p_ordinals) AS k (customer_id, workflow_id, ordinal)
        JOIN pending_charge p
          ON p.customer_id = k.customer_id AND p.workflow_id = k.workflow_id AND p.ordinal = k.ordinal
        -- Keys come in no order, so waiting for locks could deadlock. A row that recovery holds right now is
        -- left to it.
        FOR UPDATE OF p SKIP LOCKED
    )
    DELETE FROM pending_charge p
    USING done
    WHERE p.customer_id = done.customer_id AND p.workflow_id = done.workflow_id AND p.ordinal = done.ordinal;
END
$$;

-- Takes up to p_limit due charges for one attempt: no other replica takes them before their next one, which
-- comes after p_first_delay, then twice as long each time, up to p_longest_delay.
CREATE FUNCTION metering.take_pending_charges(
    p_limit integer, p_first_delay interval, p_longest_delay interval
) RETURNS TABLE (
    customer_id text,
    workflow_id text,
    ordinal integer,
    organization_id text,
    agent_id text,
    occur_time timestamptz,
    evidence_hash bytea,
    price_version_id text,
    currency_code text,
    amount_micros bigint
)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = metering, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    WITH due AS MATERIALIZED (
        SELECT p.customer_id, p.workflow_id, p.ordinal
        FROM pending_charge p
        WHERE p.next_attempt_time <= now()
        ORDER BY p.next_attempt_time
        LIMIT p_limit
        -- Several replicas look at once: each takes what no other is taking.
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE pending_charge p
        SET next_attempt_time = now() + least(p_first_delay * power(2, least(p.attempt_count, 30)), p_longest_delay),
            attempt_count = p.attempt_count + 1
        FROM due
        WHERE p.customer_id = due.customer_id AND p.workflow_id = due.workflow_id AND p.ordinal = due.ordinal
        RETURNING p.customer_id, p.workflow_id, p.ordinal
    )
    SELECT u.customer_id, u.workflow_id, u.ordinal, u.organization_id, u.agent_id, u.occur_time, u.evidence_hash,
           u.price_version_id, u.currency_code, u.amount_micros
    FROM taken
    JOIN usage_event u
      ON u.customer_id = taken.customer_id AND u.workflow_id = taken.workflow_id AND u.ordinal = taken.ordinal
    -- Oldest work first, as far as one attempt goes: credits pay for it in this order.
    ORDER BY u.create_time, u.customer_id, u.workflow_id, u.ordinal
$$;

-- Keeps why attempts of recovery failed. A refused charge is not tried again, and stays.
CREATE FUNCTION metering.note_failed_charges(
    p_customer_ids text[], p_workflow_ids text[], p_ordinals integer[], p_errors text[], p_refused boolean[]
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
    FROM unnest(p_customer_ids, p_workflow_ids, p_ordinals, p_errors, p_refused)
        AS f (customer_id, workflow_id, ordinal, error, refused)
    WHERE p.customer_id = f.customer_id AND p.workflow_id = f.workflow_id AND p.ordinal = f.ordinal
$$;

-- How many charges the ledger has refused for good.
CREATE FUNCTION metering.count_refused_charges() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metering, pg_temp
AS $$
    SELECT count(*) FROM pending_charge WHERE next_attempt_time = 'infinity'
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
