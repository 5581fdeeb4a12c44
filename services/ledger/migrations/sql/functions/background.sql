-- Moves balance deltas into the totals of their accounts. With owners, it takes all of theirs and waits for a
-- concurrent fold; without, it takes at most p_limit that nobody else is folding. Answers how many it took.
CREATE FUNCTION ledger.fold(p_limit integer, p_owner_ids text[] DEFAULT NULL) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    taken ledger.balance_delta[];
BEGIN
    -- Deleted and added in one transaction: a fold that dies changes nothing.
    IF p_owner_ids IS NULL THEN
        WITH deleted AS (
            DELETE FROM ledger.balance_delta
            -- By row address: a join would be planned for the size that the queue had when it was last analyzed.
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM ledger.balance_delta
                ORDER BY owner_id, delta_id LIMIT p_limit FOR UPDATE SKIP LOCKED
            ))
            RETURNING *
        )
        SELECT array_agg(deleted) INTO taken FROM deleted;
    ELSE
        WITH deleted AS (
            DELETE FROM ledger.balance_delta WHERE owner_id = ANY (p_owner_ids) RETURNING *
        )
        SELECT array_agg(deleted) INTO taken FROM deleted;
    END IF;
    IF taken IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO ledger.account AS a (owner_id, kind, currency_code, credits, debits)
    SELECT owner_id, kind, currency_code, sum(credits), sum(debits)
    FROM unnest(taken)
    GROUP BY owner_id, kind, currency_code
    ORDER BY owner_id, kind, currency_code
    ON CONFLICT (owner_id, kind, currency_code) DO UPDATE
    SET credits = a.credits + excluded.credits, debits = a.debits + excluded.debits;
    INSERT INTO ledger.earnings_bucket AS b (
        owner_id, currency_code, collected, earned_on, available_on, credits, debits)
    SELECT owner_id, currency_code, collected, earned_on, available_on, sum(credits), sum(debits)
    FROM unnest(taken)
    WHERE kind = 'organization_payable'
    GROUP BY owner_id, currency_code, collected, earned_on, available_on
    ORDER BY owner_id, currency_code, collected, earned_on, available_on
    ON CONFLICT (owner_id, currency_code, collected, earned_on, available_on) DO UPDATE
    SET credits = b.credits + excluded.credits, debits = b.debits + excluded.debits;
    RETURN cardinality(taken);
END
$$;


-- Gives the next positions of the log to waiting transactions, at most p_limit; answers how many. Any number of
-- sequencers may run: whoever finds the log's row locked leaves the work to its holder. Positions are taken in the
-- order of commits of this function, never by comparing ids, because ids become visible out of order. A log never goes
-- on in another cluster than the one it began in: there the answer is -1, and the caller begins a new one.
CREATE FUNCTION ledger.sequence(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    log ledger.journal_log;
    taken integer;
BEGIN
    -- The newest log or none: skipping it because it is locked must not lead to an older one.
    SELECT * INTO log FROM ledger.journal_log
    WHERE log_id = (SELECT newest.log_id FROM ledger.journal_log newest ORDER BY newest.create_time DESC LIMIT 1)
    FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    IF EXISTS (SELECT FROM ledger.journal_log WHERE create_time > log.create_time) THEN
        -- A newer one was begun between finding this one and locking it.
        RETURN 0;
    END IF;
    IF log.cluster <> ledger.present_cluster() THEN
        RETURN -1;
    END IF;
    WITH deleted AS (
        DELETE FROM ledger.unsequenced
        WHERE unsequenced_id = ANY (ARRAY(
            SELECT unsequenced_id FROM ledger.unsequenced ORDER BY unsequenced_id LIMIT p_limit FOR UPDATE SKIP LOCKED
        ))
        RETURNING *
    )
    INSERT INTO ledger.journal_position (log_id, position, partition_id, transaction_id)
    SELECT log.log_id, log.last_position + row_number() OVER (ORDER BY unsequenced_id), partition_id, transaction_id
    FROM deleted;
    GET DIAGNOSTICS taken = ROW_COUNT;
    UPDATE ledger.journal_log SET
        last_position = last_position + taken, cluster = coalesce(cluster, ledger.present_cluster())
    WHERE log_id = log.log_id AND taken > 0;
    RETURN taken;
END
$$;
