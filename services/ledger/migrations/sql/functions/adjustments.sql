-- What operators adjust. Somebody proposes an adjustment, and somebody else approves it: only then it moves anything. Rows
-- of both are never changed; how an adjustment stands follows from whether there is a decision, and from the time.


-- Records a proposal, once per key; unless it needs approval it is posted in the same transaction. Answers the
-- adjustment, or for a key of the time before there were proposals, '' and the transaction that it posted then.
-- SQLSTATE TL001 for another request of the same key, and those of ledger.adjust.
CREATE FUNCTION ledger.propose_adjustment(
    p_owner_ids text[],
    p_kinds ledger.account_kind[],
    p_currency_codes text[],
    p_amounts bigint[],
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    p_lasts interval,
    p_needs_approval boolean,
    OUT adjustment_id text,
    OUT transaction_id text,
    OUT duplicate boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    proposed_id text := 'adj_' || substr(ledger.new_transaction_id(), 5);
    before ledger.idempotency;
BEGIN
    SELECT * INTO before FROM ledger.idempotency k WHERE k.owner_id = 'platform' AND k.key = 'adjustment/' || p_key;
    IF FOUND THEN
        IF before.request_hash <> p_request_hash THEN
            RAISE EXCEPTION 'idempotency key reused' USING ERRCODE = 'TL001';
        END IF;
        adjustment_id := '';
        transaction_id := before.outcome;
        duplicate := true;
        RETURN;
    END IF;
    adjustment_id := ledger.claim_key('platform', 'adjustment-proposal/' || p_key, p_request_hash, proposed_id);
    duplicate := adjustment_id IS NOT NULL;
    IF duplicate THEN
        SELECT d.transaction_id INTO transaction_id FROM ledger.decided_adjustment d
        WHERE d.adjustment_id = propose_adjustment.adjustment_id;
        RETURN;
    END IF;
    adjustment_id := proposed_id;
    INSERT INTO ledger.adjustment (
        adjustment_id, owner_ids, kinds, currency_codes, amounts, reason, proposer_api_key_id, create_time, expire_time)
    VALUES (proposed_id, p_owner_ids, p_kinds, p_currency_codes, p_amounts, p_reason, p_actor_api_key_id, now(),
            now() + p_lasts);
    IF NOT p_needs_approval THEN
        transaction_id := ledger.post_adjustment(proposed_id, p_actor_api_key_id, false);
    END IF;
END
$$;


-- Approves an adjustment: posts it, once. SQLSTATE TL031 if there is none, TL032 for whoever proposed it, TL033 if it
-- was rejected or its time is over, and those of ledger.adjust: then it stays proposed. posted_now: false if it had been
-- approved before.
CREATE FUNCTION ledger.approve_adjustment(
    p_adjustment_id text, p_actor_api_key_id text, OUT posted_now boolean, OUT transaction_id text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    proposal ledger.adjustment := ledger.lock_adjustment(p_adjustment_id);
    decided ledger.decided_adjustment;
BEGIN
    IF proposal.proposer_api_key_id = p_actor_api_key_id THEN
        RAISE EXCEPTION 'approved by its proposer' USING ERRCODE = 'TL032', DETAIL = p_adjustment_id;
    END IF;
    -- Behind the lock: of two approvals, or an approval and a rejection, the second sees the first.
    SELECT * INTO decided FROM ledger.decided_adjustment d WHERE d.adjustment_id = p_adjustment_id;
    posted_now := NOT FOUND;
    IF decided.decision = 'rejected' OR (posted_now AND proposal.expire_time <= now()) THEN
        RAISE EXCEPTION 'not proposed any more' USING ERRCODE = 'TL033', DETAIL = json_build_object(
            'adjustment_id', p_adjustment_id, 'state', coalesce(decided.decision::text, 'expired'))::text;
    END IF;
    transaction_id := decided.transaction_id;
    IF posted_now THEN
        transaction_id := ledger.post_adjustment(p_adjustment_id, p_actor_api_key_id, true);
    END IF;
END
$$;


-- Ends a proposal without posting it; one that was rejected before stays as it is. SQLSTATE TL031 if there is none,
-- TL033 if it was posted or its time is over.
CREATE FUNCTION ledger.reject_adjustment(p_adjustment_id text, p_actor_api_key_id text, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    proposal ledger.adjustment := ledger.lock_adjustment(p_adjustment_id);
    decided ledger.decided_adjustment;
BEGIN
    SELECT * INTO decided FROM ledger.decided_adjustment d WHERE d.adjustment_id = p_adjustment_id;
    IF decided.decision = 'rejected' THEN
        RETURN;
    END IF;
    IF decided.decision = 'posted' OR proposal.expire_time <= now() THEN
        RAISE EXCEPTION 'not proposed any more' USING ERRCODE = 'TL033', DETAIL = json_build_object(
            'adjustment_id', p_adjustment_id, 'state', coalesce(decided.decision::text, 'expired'))::text;
    END IF;
    INSERT INTO ledger.decided_adjustment (
        adjustment_id, decision, approval, actor_api_key_id, reason, transaction_id, create_time)
    VALUES (p_adjustment_id, 'rejected', false, p_actor_api_key_id, p_reason, '', now());
END
$$;


-- Locks a proposal against every other decision on it. It comes first, like an idempotency key, whose place it takes.
CREATE FUNCTION ledger.lock_adjustment(p_adjustment_id text) RETURNS ledger.adjustment LANGUAGE plpgsql AS $$
DECLARE
    proposal ledger.adjustment;
BEGIN
    SELECT * INTO proposal FROM ledger.adjustment a WHERE a.adjustment_id = p_adjustment_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown adjustment' USING ERRCODE = 'TL031', DETAIL = p_adjustment_id;
    END IF;
    RETURN proposal;
END
$$;

-- Posts a proposal and records the decision. The caller has made or locked it.
CREATE FUNCTION ledger.post_adjustment(p_adjustment_id text, p_actor_api_key_id text, p_approval boolean) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    proposal ledger.adjustment;
    posted_id text;
BEGIN
    SELECT * INTO proposal FROM ledger.adjustment a WHERE a.adjustment_id = p_adjustment_id;
    -- Nobody else has this key: a proposal is posted behind its lock.
    SELECT a.transaction_id INTO posted_id
    FROM ledger.adjust(
        proposal.owner_ids, proposal.kinds, proposal.currency_codes, proposal.amounts, proposal.reason,
        p_actor_api_key_id, 'adjustment/' || p_adjustment_id, sha256(p_adjustment_id::bytea)) AS a;
    INSERT INTO ledger.decided_adjustment (
        adjustment_id, decision, approval, actor_api_key_id, reason, transaction_id, create_time)
    VALUES (p_adjustment_id, 'posted', p_approval, p_actor_api_key_id, '', posted_id, now());
    RETURN posted_id;
END
$$;
