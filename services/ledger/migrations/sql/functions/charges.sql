-- post_charges: charges for finished work, judged in the order given. Never refused for lack of money. What a batch
-- has to pay comes, one source after the other, each in the order of the charges, from
--   1. what was reserved: up to the claim's amount within its lease, or all that the claimed hold keeps of credits
--   2. available credits, to which the holds that end here have given back what their charges did not need
--   3. what the claimed hold keeps of the room under the credit limit
--   4. the rest of that room
-- and what is left is unpaid.
--
-- The arrays are parallel, one element per charge; payee_* are parallel too, one element per payee, and
-- payee_charge says to which charge (from 1) it belongs. charge_ids are distinct. The arrays of claims (what is
-- reserved; reservation_id '' for none, lease_epoch 0 for a hold) and of outcome holds (hold_id '' for none) are
-- NULL when no charge has any: then they cost nothing.
--
-- One row per charge comes back, in order. status: 'posted', 'duplicate' (same content came before), 'reused'
-- (other content came before), or 'unknown' with the id that does not exist. Unknown ones store nothing. The rest
-- of the row is the charge as it stands now (corrected_legs: NULL if it never was), what became of the reservation
-- that it claims (NULL: nothing, it stands) with its lease if that is current, the hold for its outcome, and the
-- customer's balance behind it all.
CREATE FUNCTION ledger.post_charges(
    charge_ids text[],
    customer_ids text[],
    workflow_ids text[],
    components smallint[],
    ordinals integer[],
    currency_codes text[],
    gross_amounts bigint[],
    occur_times timestamptz[],
    price_version_ids text[],
    evidence_hashes bytea[],
    content_hashes bytea[],
    payee_charge integer[],
    payee_organization_ids text[],
    payee_agent_ids text[],
    payee_weights bigint[],
    actor_api_key_id text,
    reservation_ids text[] DEFAULT NULL,
    lease_epochs bigint[] DEFAULT NULL,
    claim_amounts bigint[] DEFAULT NULL,
    claim_expire_times timestamptz[] DEFAULT NULL,
    outcome_hold_ids text[] DEFAULT NULL,
    outcome_amounts bigint[] DEFAULT NULL,
    outcome_expire_times timestamptz[] DEFAULT NULL
) RETURNS TABLE (
    status text,
    unknown_id text,
    transaction_id text,
    create_time timestamptz,
    evidence_hash bytea,
    receivable bigint,
    unpaid bigint,
    payee_gross bigint[],
    platform_fees bigint[],
    processing_fees bigint[],
    platform_fee_bps integer[],
    processing_fee_bps integer[],
    corrected_legs bigint[],
    written_off bigint,
    reservation_id text,
    captured_credits bigint,
    captured_receivable bigint,
    reservation_state text,
    lease_epoch bigint,
    lease_remaining bigint,
    lease_version bigint,
    lease_expire_time timestamptz,
    lease_recall boolean,
    lease_create_time timestamptz,
    hold_state text,
    hold_purpose text,
    hold_credits bigint,
    hold_receivable bigint,
    hold_captured_credits bigint,
    hold_captured_receivable bigint,
    hold_charge_id text,
    hold_expire_time timestamptz,
    hold_create_time timestamptz,
    hold_end_time timestamptz,
    balance_available bigint,
    balance_held bigint,
    balance_receivable bigint,
    balance_held_receivable bigint,
    balance_unpaid bigint,
    balance_credit_limit bigint,
    balance_chargebacks bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    unknown_ids text[];
    fresh_ids text[];
    is_fresh boolean[];
    paid_credits bigint[];
    paid_receivable bigint[];
    left_unpaid bigint[];
    credits_versions bigint[];
    receivable_versions bigint[];
    -- NULL, all of them, if no charge claims anything.
    paid_epochs bigint[];
    reservation_states text[];
    settled_ids text[];
    taken_credits bigint[];
    ended_credits bigint[];
    ended_receivable bigint[];
    taken_receivable bigint[];
    posted integer;
BEGIN
    -- A charge that nobody earns would not balance.
    IF (SELECT count(DISTINCT number) FROM unnest(payee_charge) AS number) <> cardinality(charge_ids) THEN
        RAISE EXCEPTION 'a charge needs a payee' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- Who does not exist cannot be charged. Checked before anything is written, so that nothing is stored. Which
    -- charges name somebody unknown is only asked when somebody is: for a batch of 500 that takes longer than all
    -- of these look-ups. Whoever has an agent is an organization.
    IF EXISTS (
        SELECT FROM unnest(customer_ids) AS c (customer_id)
        WHERE NOT EXISTS (SELECT FROM ledger.customer k WHERE k.customer_id = c.customer_id)
    ) OR EXISTS (
        SELECT FROM unnest(payee_organization_ids, payee_agent_ids) AS p (organization_id, agent_id)
        WHERE NOT EXISTS (
            SELECT FROM ledger.agent a
            WHERE a.agent_id = p.agent_id AND a.organization_id = p.organization_id)
    ) THEN
        SELECT array_agg(coalesce(p.unknown_id, CASE WHEN k.customer_id IS NULL THEN c.customer_id END) ORDER BY c.number)
        INTO unknown_ids
        FROM unnest(customer_ids) WITH ORDINALITY AS c (customer_id, number)
        LEFT JOIN ledger.customer k ON k.customer_id = c.customer_id
        LEFT JOIN (
            SELECT t.charge_number,
                   min(CASE WHEN o.organization_id IS NULL THEN t.organization_id
                            WHEN a.agent_id IS NULL THEN t.agent_id END) AS unknown_id
            FROM unnest(payee_charge, payee_organization_ids, payee_agent_ids)
                AS t (charge_number, organization_id, agent_id)
            LEFT JOIN ledger.organization o ON o.organization_id = t.organization_id
            LEFT JOIN ledger.agent a ON a.agent_id = t.agent_id AND a.organization_id = t.organization_id
            GROUP BY t.charge_number
        ) AS p ON p.charge_number = c.number;
    ELSE
        unknown_ids := array_fill(NULL::text, ARRAY[cardinality(charge_ids)]);
    END IF;

    -- The key is claimed in the transaction that posts the charge: a concurrent duplicate waits here until this
    -- transaction ends, and then finds it. Sorted, so that two batches never wait for each other in a circle.
    WITH claimed AS (
        INSERT INTO ledger.idempotency (owner_id, key, request_hash, outcome)
        SELECT c.customer_id, c.charge_id, c.content_hash, c.charge_id
        FROM unnest(customer_ids, charge_ids, content_hashes, unknown_ids)
            AS c (customer_id, charge_id, content_hash, unknown_id)
        WHERE c.unknown_id IS NULL
        ORDER BY c.customer_id, c.charge_id
        ON CONFLICT DO NOTHING
        RETURNING key
    )
    SELECT array_agg(key) INTO fresh_ids FROM claimed;

    IF cardinality(fresh_ids) = cardinality(charge_ids) THEN
        is_fresh := array_fill(true, ARRAY[cardinality(charge_ids)]);
    ELSE
        SELECT array_agg(f.charge_id IS NOT NULL ORDER BY c.number)
        INTO is_fresh
        FROM unnest(charge_ids) WITH ORDINALITY AS c (charge_id, number)
        LEFT JOIN unnest(fresh_ids) AS f (charge_id) USING (charge_id);
    END IF;

    IF fresh_ids IS NOT NULL THEN
        PERFORM ledger.lock_customers(
            array_agg(c.customer_id), array_agg(c.currency_code)
        ) FROM unnest(customer_ids, currency_codes, is_fresh) AS c (customer_id, currency_code, fresh)
        WHERE c.fresh;
    END IF;

    -- The usual batch is new from its first to its last charge, has one payee for each, claims nothing, and the
    -- credits pay for all of it. It takes a third of the time of one that has to be divided.
    IF cardinality(fresh_ids) = cardinality(charge_ids)
        AND reservation_ids IS NULL AND outcome_hold_ids IS NULL
        AND payee_charge = ARRAY(SELECT generate_series(1, cardinality(charge_ids)))
        AND (
            SELECT bool_and(a.credits - a.debits - a.held >= d.gross)
            FROM (
                SELECT customer_id, currency_code, sum(gross) AS gross
                FROM unnest(customer_ids, currency_codes, gross_amounts) AS c (customer_id, currency_code, gross)
                GROUP BY customer_id, currency_code
            ) AS d
            JOIN ledger.account a
                ON (a.owner_id, a.kind, a.currency_code) = (d.customer_id, 'customer_credits', d.currency_code)
        )
    THEN
        UPDATE ledger.account a
        SET debits = a.debits + d.gross, version = a.version + d.entries
        FROM (
            SELECT customer_id, currency_code, sum(gross) AS gross, count(*) AS entries
            FROM unnest(customer_ids, currency_codes, gross_amounts) AS c (customer_id, currency_code, gross)
            WHERE gross > 0
            GROUP BY customer_id, currency_code
        ) AS d
        WHERE (a.owner_id, a.kind, a.currency_code) = (d.customer_id, 'customer_credits', d.currency_code);

        RETURN QUERY
        WITH item AS MATERIALIZED (
            SELECT *, i.gross - i.platform_fee - i.processing_fee AS net
            FROM (
                SELECT c.*, ledger.new_transaction_id() AS transaction_id,
                       c.gross * s.platform_fee_bps / 10000 AS platform_fee,
                       c.gross * s.processing_fee_bps / 10000 AS processing_fee,
                       s.platform_fee_bps, s.processing_fee_bps, s.settlement_hold_days, s.dispute_window_days,
                       (c.occur_time AT TIME ZONE 'UTC')::date AS earned_on,
                       ledger.today() + greatest(s.settlement_hold_days, s.dispute_window_days) AS available_on,
                       a.credits - a.debits - a.held AS available, a.held,
                       -- The account has counted all charges of the batch by now.
                       a.version - count(nullif(c.gross, 0)) OVER (
                           PARTITION BY c.customer_id, c.currency_code ORDER BY c.number
                           ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS credits_version
                FROM unnest(
                    charge_ids, customer_ids, workflow_ids, components, ordinals, currency_codes, gross_amounts,
                    occur_times, price_version_ids, evidence_hashes, payee_organization_ids, payee_agent_ids
                ) WITH ORDINALITY AS c (
                    charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross,
                    occur_time, price_version_id, evidence_hash, organization_id, agent_id, number)
                CROSS JOIN LATERAL (
                    SELECT * FROM ledger.revenue_share_agreement r
                    WHERE r.organization_id = c.organization_id AND r.effective_time <= c.occur_time
                    ORDER BY r.effective_time DESC LIMIT 1
                ) AS s
                JOIN ledger.account a
                    ON (a.owner_id, a.kind, a.currency_code) = (c.customer_id, 'customer_credits', c.currency_code)
            ) AS i
        ),
        into_charge AS (
            INSERT INTO ledger.charge
            SELECT charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross,
                   ARRAY[organization_id], ARRAY[agent_id], ARRAY[gross], ARRAY[platform_fee], ARRAY[processing_fee],
                   ARRAY[platform_fee_bps], ARRAY[processing_fee_bps], ARRAY[settlement_hold_days],
                   gross, 0, 0, occur_time, now(), price_version_id, evidence_hash, transaction_id, '', 0, 0,
                   ARRAY[dispute_window_days]
            FROM item
        ),
        into_transaction AS (
            INSERT INTO ledger.transaction (
                transaction_id, partition_id, type, charge_id, occur_time, create_time, actor_api_key_id)
            SELECT transaction_id, customer_id, 'charge', charge_id, occur_time, now(), actor_api_key_id FROM item
        ),
        into_entry AS (
            INSERT INTO ledger.entry
            SELECT i.transaction_id, e.entry_number, i.customer_id, e.owner_id, e.kind, i.currency_code, e.amount,
                   e.collected, e.earned_on, e.available_on, e.version
            FROM item i
            CROSS JOIN LATERAL (VALUES
                (1, i.customer_id, 'customer_credits'::ledger.account_kind, -i.gross,
                 NULL::boolean, NULL::date, NULL::date, i.credits_version),
                (2, i.organization_id, 'organization_payable', i.net, true, i.earned_on, i.available_on, NULL),
                (2 + (i.net <> 0)::integer,
                 i.organization_id, 'platform_fees', i.platform_fee, NULL, NULL, NULL, NULL),
                (2 + (i.net <> 0)::integer + (i.platform_fee <> 0)::integer,
                 i.organization_id, 'processing_fees', i.processing_fee, NULL, NULL, NULL, NULL)
            ) AS e (entry_number, owner_id, kind, amount, collected, earned_on, available_on, version)
            WHERE e.amount <> 0
        ),
        into_delta AS (
            -- One row per account and bucket for the whole batch: the folder has less to do, nobody has to wait.
            INSERT INTO ledger.balance_delta (
                owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
            SELECT o.organization_id, e.kind, o.currency_code, e.collected, e.earned_on, e.available_on, e.amount, 0
            FROM (
                SELECT organization_id, currency_code, earned_on, available_on, sum(net)::bigint AS net,
                       sum(platform_fee)::bigint AS platform_fees, sum(processing_fee)::bigint AS processing_fees
                FROM item
                GROUP BY organization_id, currency_code, earned_on, available_on
            ) AS o
            CROSS JOIN LATERAL (VALUES
                ('organization_payable'::ledger.account_kind, o.net, true, o.earned_on, o.available_on),
                ('platform_fees', o.platform_fees, NULL, NULL, NULL),
                ('processing_fees', o.processing_fees, NULL, NULL, NULL)
            ) AS e (kind, amount, collected, earned_on, available_on)
            WHERE e.amount <> 0
        ),
        into_unsequenced AS (
            INSERT INTO ledger.unsequenced (partition_id, transaction_id)
            SELECT customer_id, transaction_id FROM item ORDER BY number
        )
        SELECT 'posted', NULL::text, i.transaction_id, now(), i.evidence_hash, 0::bigint, 0::bigint,
               ARRAY[i.gross], ARRAY[i.platform_fee], ARRAY[i.processing_fee],
               ARRAY[i.platform_fee_bps], ARRAY[i.processing_fee_bps], NULL::bigint[], 0::bigint,
               '', 0::bigint, 0::bigint, NULL::text,
               NULL::bigint, NULL::bigint, NULL::bigint, NULL::timestamptz, NULL::boolean, NULL::timestamptz,
               NULL::text, NULL::text, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::text,
               NULL::timestamptz, NULL::timestamptz, NULL::timestamptz,
               i.available, i.held, r.debits - r.credits, r.held, u.debits - u.credits, r.credit_limit,
               coalesce(b.debits - b.credits, 0)
        FROM item i
        LEFT JOIN ledger.account r
            ON (r.owner_id, r.kind, r.currency_code) = (i.customer_id, 'customer_receivable', i.currency_code)
        LEFT JOIN ledger.account u
            ON (u.owner_id, u.kind, u.currency_code) = (i.customer_id, 'customer_unpaid', i.currency_code)
        LEFT JOIN ledger.account b
            ON (b.owner_id, b.kind, b.currency_code) = (i.customer_id, 'customer_chargebacks', i.currency_code)
        ORDER BY i.number;
        GET DIAGNOSTICS posted = ROW_COUNT;
        -- Every organization has an agreement without a beginning. One that had none would drop out of the split,
        -- and its money with it.
        IF posted <> cardinality(charge_ids) THEN
            RAISE EXCEPTION 'a payee has no agreement' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        RETURN;
    END IF;

    IF reservation_ids IS NOT NULL THEN
        -- Behind the locks: what ends a reservation has ended it by now, or waits for this transaction.
        SELECT j.paid_epochs, j.states, j.settled_ids, j.taken_credits, j.ended_credits, j.ended_receivable
        INTO paid_epochs, reservation_states, settled_ids, taken_credits, ended_credits, ended_receivable
        FROM ledger.judge_claims(
            customer_ids, currency_codes, gross_amounts, is_fresh, reservation_ids, lease_epochs, claim_amounts,
            claim_expire_times) AS j;
    END IF;

    IF fresh_ids IS NOT NULL THEN
        -- The waterfall, from its second stage on: what is left of each charge by one stage goes to the next one.
        SELECT array_agg(w.paid_credits ORDER BY w.number),
               array_agg(w.paid_receivable ORDER BY w.number),
               array_agg(w.taken_receivable ORDER BY w.number),
               array_agg(w.gross - w.paid_credits - w.paid_receivable ORDER BY w.number),
               array_agg(w.credits_version + w.credits_entries ORDER BY w.number),
               array_agg(w.receivable_version + w.receivable_entries ORDER BY w.number)
        INTO paid_credits, paid_receivable, taken_receivable, left_unpaid, credits_versions, receivable_versions
        FROM (
            SELECT p.*,
                   count(nullif(p.paid_credits, 0)) OVER customer AS credits_entries,
                   count(nullif(p.paid_receivable, 0)) OVER customer AS receivable_entries
            FROM (
                SELECT r.*,
                       r.taken_receivable + least(r.rest, greatest(
                           r.room - (sum(r.rest) OVER customer - r.rest), 0))::bigint AS paid_receivable
                FROM (
                    SELECT s.*, s.owed - s.taken_receivable AS rest,
                           greatest(s.unheld_room + sum(s.ended_receivable - s.taken_receivable) OVER whole, 0) AS room
                    FROM (
                        SELECT q.*, q.gross - q.paid_credits AS owed,
                               least(q.gross - q.paid_credits, q.ended_receivable) AS taken_receivable
                        FROM (
                            SELECT f.*,
                                   f.taken_credits + least(f.due, greatest(
                                       f.available - (sum(f.due) OVER customer - f.due), 0))::bigint AS paid_credits
                            FROM (
                                SELECT c.*, c.gross - c.taken_credits AS due,
                                       a.version AS credits_version, r.version AS receivable_version,
                                       a.credits - a.debits - a.held
                                           + sum(c.ended_credits - c.taken_credits) OVER whole AS available,
                                       r.credit_limit + r.credits - r.debits - r.held AS unheld_room
                                FROM (
                                    SELECT number, customer_id, currency_code,
                                           CASE WHEN fresh THEN gross ELSE 0 END AS gross,
                                           coalesce(taken_credits, 0) AS taken_credits,
                                           coalesce(ended_credits, 0) AS ended_credits,
                                           coalesce(ended_receivable, 0) AS ended_receivable
                                    FROM unnest(
                                        customer_ids, currency_codes, gross_amounts, is_fresh,
                                        taken_credits, ended_credits, ended_receivable
                                    ) WITH ORDINALITY AS i (
                                        customer_id, currency_code, gross, fresh,
                                        taken_credits, ended_credits, ended_receivable, number)
                                ) AS c
                                LEFT JOIN ledger.account a
                                    ON (a.owner_id, a.kind, a.currency_code)
                                     = (c.customer_id, 'customer_credits', c.currency_code)
                                LEFT JOIN ledger.account r
                                    ON (r.owner_id, r.kind, r.currency_code)
                                     = (c.customer_id, 'customer_receivable', c.currency_code)
                                -- In the order of the next window, so that one sort serves both.
                                WINDOW whole AS (
                                    PARTITION BY c.customer_id, c.currency_code ORDER BY c.number
                                    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
                            ) AS f
                            WINDOW customer AS (
                                PARTITION BY f.customer_id, f.currency_code
                                ORDER BY f.number ROWS UNBOUNDED PRECEDING)
                        ) AS q
                    ) AS s
                    WINDOW whole AS (
                        PARTITION BY s.customer_id, s.currency_code ORDER BY s.number
                        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
                ) AS r
                WINDOW customer AS (
                    PARTITION BY r.customer_id, r.currency_code ORDER BY r.number ROWS UNBOUNDED PRECEDING)
            ) AS p
            WINDOW customer AS (
                PARTITION BY p.customer_id, p.currency_code ORDER BY p.number ROWS UNBOUNDED PRECEDING)
        ) AS w;

        -- Debits of the customers' own accounts, inline: the CHECK is the last word on overdrawing.
        UPDATE ledger.account a
        SET debits = a.debits + m.debits, credits = a.credits + m.credits, held = a.held - m.ended,
            version = a.version + m.entries
        FROM (
            SELECT v.owner_id, v.kind, v.currency_code,
                   sum(v.debit) AS debits, sum(v.credit) AS credits, sum(v.ended) AS ended,
                   count(*) FILTER (
                       WHERE v.debit > 0 AND v.kind IN ('customer_credits', 'customer_receivable')) AS entries
            FROM unnest(
                customer_ids, currency_codes, paid_credits, paid_receivable, left_unpaid,
                ended_credits, ended_receivable
            ) AS c (
                customer_id, currency_code, paid_credits, paid_receivable, left_unpaid, ended_credits, ended_receivable)
            CROSS JOIN LATERAL (VALUES
                (c.customer_id, 'customer_credits'::ledger.account_kind, c.currency_code, c.paid_credits, 0::bigint,
                 coalesce(c.ended_credits, 0)),
                (c.customer_id, 'customer_receivable', c.currency_code, c.paid_receivable, 0,
                 coalesce(c.ended_receivable, 0)),
                (c.customer_id, 'customer_unpaid', c.currency_code, c.left_unpaid, 0, 0),
                (c.customer_id, 'unpaid_offset', c.currency_code, 0, c.left_unpaid, 0)
            ) AS v (owner_id, kind, currency_code, debit, credit, ended)
            WHERE v.debit + v.credit + v.ended > 0
            GROUP BY v.owner_id, v.kind, v.currency_code
        ) AS m
        WHERE a.owner_id = m.owner_id AND a.kind = m.kind AND a.currency_code = m.currency_code;

        PERFORM ledger.insert_charges(
            charge_ids, customer_ids, workflow_ids, components, ordinals, currency_codes, gross_amounts,
            occur_times, price_version_ids, evidence_hashes, payee_charge, payee_organization_ids,
            payee_agent_ids, payee_weights, actor_api_key_id, is_fresh, paid_credits, paid_receivable,
            left_unpaid, credits_versions, receivable_versions,
            settled_ids, taken_credits, taken_receivable
        );

        IF reservation_ids IS NOT NULL THEN
            PERFORM ledger.end_claims(
                charge_ids, customer_ids, currency_codes, settled_ids, paid_epochs,
                taken_credits, taken_receivable);
        END IF;
        -- Credits ran out while a lease keeps some: whoever allocates in it is to return what it can.
        IF 0 < ANY (paid_receivable) OR 0 < ANY (left_unpaid) THEN
            UPDATE ledger.credit_lease l SET recall = true
            FROM unnest(customer_ids, currency_codes, paid_receivable, left_unpaid)
                AS c (customer_id, currency_code, paid_receivable, left_unpaid)
            WHERE c.paid_receivable + c.left_unpaid > 0
              AND l.customer_id = c.customer_id AND l.currency_code = c.currency_code
              AND NOT l.draining AND NOT l.recall AND l.remaining > 0;
        END IF;
        IF outcome_hold_ids IS NOT NULL THEN
            PERFORM ledger.place_outcome_holds(
                customer_ids, currency_codes, is_fresh, settled_ids, paid_epochs, claim_amounts,
                taken_credits, outcome_hold_ids, outcome_amounts, outcome_expire_times);
        END IF;
    END IF;

    RETURN QUERY
    SELECT CASE WHEN i.unknown_id IS NOT NULL THEN 'unknown'
                WHEN i.fresh THEN 'posted'
                WHEN k.request_hash = i.content_hash THEN 'duplicate'
                ELSE 'reused' END,
           i.unknown_id, c.transaction_id, c.create_time, c.evidence_hash,
           coalesce(o.receivable, 0), coalesce(o.unpaid, 0),
           c.payee_gross, c.platform_fees, c.processing_fees, c.platform_fee_bps, c.processing_fee_bps, x.legs,
           coalesce(x.written_off, 0),
           c.reservation_id, c.captured_credits, c.captured_receivable, i.reservation_state,
           l.epoch, l.remaining, l.version, l.expire_time, l.recall, l.create_time,
           h.state::text, h.purpose::text, h.credits, h.receivable, h.captured_credits, h.captured_receivable,
           h.charge_id, h.expire_time, h.create_time, h.end_time,
           a.credits - a.debits - a.held, a.held, r.debits - r.credits, r.held, u.debits - u.credits, r.credit_limit,
           coalesce(b.debits - b.credits, 0)
    FROM unnest(
        customer_ids, charge_ids, currency_codes, content_hashes, unknown_ids, is_fresh,
        reservation_states, lease_epochs, outcome_hold_ids
    ) WITH ORDINALITY AS i (
        customer_id, charge_id, currency_code, content_hash, unknown_id, fresh,
        reservation_state, lease_epoch, outcome_hold_id, number)
    LEFT JOIN ledger.charge c ON c.charge_id = i.charge_id AND c.customer_id = i.customer_id
    LEFT JOIN ledger.open_charge o ON o.customer_id = i.customer_id AND o.charge_id = i.charge_id
    LEFT JOIN ledger.corrected_charge x ON x.charge_id = i.charge_id AND x.customer_id = i.customer_id
    LEFT JOIN ledger.idempotency k ON NOT i.fresh AND k.owner_id = i.customer_id AND k.key = i.charge_id
    LEFT JOIN ledger.credit_lease l
        ON (l.customer_id, l.currency_code, l.epoch) = (i.customer_id, i.currency_code, i.lease_epoch)
       AND NOT l.draining AND NOT l.closed
    LEFT JOIN ledger.hold h ON h.customer_id = i.customer_id AND h.hold_id = i.outcome_hold_id
    LEFT JOIN ledger.account a
        ON (a.owner_id, a.kind, a.currency_code) = (i.customer_id, 'customer_credits', i.currency_code)
    LEFT JOIN ledger.account r
        ON (r.owner_id, r.kind, r.currency_code) = (i.customer_id, 'customer_receivable', i.currency_code)
    LEFT JOIN ledger.account u
        ON (u.owner_id, u.kind, u.currency_code) = (i.customer_id, 'customer_unpaid', i.currency_code)
    LEFT JOIN ledger.account b
        ON (b.owner_id, b.kind, b.currency_code) = (i.customer_id, 'customer_chargebacks', i.currency_code)
    ORDER BY i.number;
END
$$;


-- The inserts of post_charges: for each fresh charge its transaction, entries, balance deltas, charge row, the row
-- of what stays open, and its place in the queue for the sequence.
CREATE FUNCTION ledger.insert_charges(
    charge_ids text[],
    customer_ids text[],
    workflow_ids text[],
    components smallint[],
    ordinals integer[],
    currency_codes text[],
    gross_amounts bigint[],
    occur_times timestamptz[],
    price_version_ids text[],
    evidence_hashes bytea[],
    payee_charge integer[],
    payee_organization_ids text[],
    payee_agent_ids text[],
    payee_weights bigint[],
    actor_api_key_id text,
    is_fresh boolean[],
    paid_credits bigint[],
    paid_receivable bigint[],
    left_unpaid bigint[],
    credits_versions bigint[],
    receivable_versions bigint[],
    settled_ids text[],
    taken_credits bigint[],
    taken_receivable bigint[]
) RETURNS void LANGUAGE plpgsql SET search_path = ledger, pg_temp
-- Here the sides of a join are the batch itself, not tables that grow.
SET enable_hashjoin = on SET enable_mergejoin = on AS $$
#variable_conflict use_column
BEGIN
    -- Every organization has an agreement without a beginning. One that had none would drop out of the split, and
    -- its money with it.
    IF EXISTS (
        SELECT FROM unnest(payee_charge, payee_organization_ids) AS p (charge_number, organization_id)
        WHERE is_fresh[p.charge_number] AND NOT EXISTS (
            SELECT FROM ledger.revenue_share_agreement r
            WHERE r.organization_id = p.organization_id AND r.effective_time <= occur_times[p.charge_number]
        )
    ) THEN
        RAISE EXCEPTION 'a payee has no agreement' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    WITH item AS MATERIALIZED (
        SELECT *, ledger.new_transaction_id() AS transaction_id
        FROM unnest(
            charge_ids, customer_ids, workflow_ids, components, ordinals, currency_codes, gross_amounts,
            occur_times, price_version_ids, evidence_hashes, is_fresh, paid_credits, paid_receivable,
            left_unpaid, credits_versions, receivable_versions, settled_ids, taken_credits, taken_receivable
        ) WITH ORDINALITY AS i (
            charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross,
            occur_time, price_version_id, evidence_hash, fresh, from_credits, from_receivable,
            unpaid, credits_version, receivable_version, reservation_id, captured_credits,
            captured_receivable, number
        )
        WHERE i.fresh
    ),
    weighed AS (
        SELECT charge_number, array_agg(weight ORDER BY payee_number) AS weights
        FROM unnest(payee_charge, payee_weights) WITH ORDINALITY AS p (charge_number, weight, payee_number)
        GROUP BY charge_number
        HAVING count(*) > 1
    ),
    -- The gross amount is divided among the payees first; each share is then split by its payee's own agreement.
    payee AS (
        SELECT p.number, p.payee_number, p.organization_id, p.agent_id, p.gross,
               p.gross * s.platform_fee_bps / 10000 AS platform_fee,
               p.gross * s.processing_fee_bps / 10000 AS processing_fee,
               s.platform_fee_bps, s.processing_fee_bps, s.settlement_hold_days, s.dispute_window_days
        FROM (
            SELECT i.number, i.occur_time, t.organization_id, t.agent_id, t.payee_number,
                   CASE WHEN w.weights IS NULL THEN i.gross
                        ELSE (ledger.allocate(i.gross, w.weights))[t.payee_number] END AS gross
            FROM (
                SELECT charge_number, organization_id, agent_id,
                       row_number() OVER (PARTITION BY charge_number ORDER BY input_number) AS payee_number
                FROM unnest(payee_charge, payee_organization_ids, payee_agent_ids)
                    WITH ORDINALITY AS u (charge_number, organization_id, agent_id, input_number)
            ) AS t
            JOIN item i ON i.number = t.charge_number
            LEFT JOIN weighed w ON w.charge_number = t.charge_number
        ) AS p
        CROSS JOIN LATERAL (
            SELECT * FROM ledger.revenue_share_agreement r
            WHERE r.organization_id = p.organization_id AND r.effective_time <= p.occur_time
            ORDER BY r.effective_time DESC LIMIT 1
        ) AS s
    ),
    split AS (
        SELECT number,
               array_agg(organization_id ORDER BY payee_number) AS organization_ids,
               array_agg(agent_id ORDER BY payee_number) AS agent_ids,
               array_agg(gross ORDER BY payee_number) AS payee_gross,
               array_agg(platform_fee ORDER BY payee_number) AS platform_fees,
               array_agg(processing_fee ORDER BY payee_number) AS processing_fees,
               array_agg(platform_fee_bps ORDER BY payee_number) AS platform_fee_bps,
               array_agg(processing_fee_bps ORDER BY payee_number) AS processing_fee_bps,
               array_agg(settlement_hold_days ORDER BY payee_number) AS settlement_hold_days,
               array_agg(dispute_window_days ORDER BY payee_number) AS dispute_window_days
        FROM payee
        GROUP BY number
    ),
    -- What part of each leg is earned and collected, earned but owed, and not yet earned. A charge that credits
    -- pay in full needs no division; that is the usual one.
    divided AS MATERIALIZED (
        SELECT number, customer_id, charge_id, currency_code, legs, collected, uncollected,
               CASE WHEN unpaid > 0
                    THEN ledger.subtract(ledger.subtract(legs, collected), uncollected) END AS unearned
        FROM (
            SELECT *, CASE WHEN from_receivable > 0
                           THEN ledger.allocate(from_receivable, ledger.subtract(legs, collected))
                           ELSE array_fill(0::bigint, ARRAY[cardinality(legs)]) END AS uncollected
            FROM (
                SELECT *, ledger.allocate(from_credits, legs) AS collected
                FROM (
                    SELECT i.number, i.customer_id, i.charge_id, i.currency_code, i.from_credits,
                           i.from_receivable, i.unpaid, ledger.legs(s.payee_gross, s.platform_fees, s.processing_fees) AS legs
                    FROM item i JOIN split s USING (number)
                    WHERE i.from_credits < i.gross
                ) AS open
            ) AS paid
        ) AS owed
    ),
    leg AS (
        SELECT p.number, (p.payee_number - 1) * 3 + v.leg_number AS leg_number, p.organization_id, v.kind,
               v.amount, greatest(p.settlement_hold_days, p.dispute_window_days) AS hold_days
        FROM payee p
        CROSS JOIN LATERAL (VALUES
            (1, 'organization_payable'::ledger.account_kind, p.gross - p.platform_fee - p.processing_fee),
            (2, 'platform_fees', p.platform_fee),
            (3, 'processing_fees', p.processing_fee)
        ) AS v (leg_number, kind, amount)
    ),
    line AS (
        SELECT i.number, v.line_number, i.customer_id AS owner_id, v.kind, v.amount,
               NULL::boolean AS collected, NULL::integer AS hold_days, v.version
        FROM item i
        CROSS JOIN LATERAL (VALUES
            (1, 'customer_credits'::ledger.account_kind, -i.from_credits, i.credits_version),
            (2, 'customer_receivable', -i.from_receivable, i.receivable_version),
            (3, 'customer_unpaid', -i.unpaid, NULL),
            (4, 'unpaid_offset', i.unpaid, NULL)
        ) AS v (line_number, kind, amount, version)
        WHERE v.amount <> 0
        UNION ALL
        SELECT l.number, 4 + l.leg_number, l.organization_id, l.kind,
               CASE WHEN d.number IS NULL THEN l.amount ELSE d.collected[l.leg_number] END,
               CASE WHEN l.kind = 'organization_payable' THEN true END, l.hold_days, NULL
        FROM leg l LEFT JOIN divided d USING (number)
        UNION ALL
        SELECT l.number, 100 + l.leg_number, l.organization_id, l.kind, d.uncollected[l.leg_number],
               CASE WHEN l.kind = 'organization_payable' THEN false END, l.hold_days, NULL
        FROM leg l JOIN divided d USING (number)
    ),
    posted AS MATERIALIZED (
        SELECT i.transaction_id, i.customer_id AS partition_id,
               row_number() OVER (PARTITION BY n.number ORDER BY n.line_number) AS entry_number,
               n.owner_id, n.kind, i.currency_code, n.amount, n.collected,
               CASE WHEN n.collected IS NOT NULL THEN (i.occur_time AT TIME ZONE 'UTC')::date END AS earned_on,
               CASE WHEN n.collected IS NOT NULL THEN ledger.today() + n.hold_days END AS available_on,
               n.version
        FROM line n JOIN item i USING (number)
        WHERE n.amount <> 0
    ),
    into_charge AS (
        INSERT INTO ledger.charge
        SELECT i.charge_id, i.customer_id, i.workflow_id, i.component, i.ordinal, i.currency_code, i.gross,
               s.organization_ids, s.agent_ids, s.payee_gross, s.platform_fees, s.processing_fees,
               s.platform_fee_bps, s.processing_fee_bps, s.settlement_hold_days,
               i.from_credits, i.from_receivable, i.unpaid, i.occur_time, now(), i.price_version_id,
               i.evidence_hash, i.transaction_id,
               coalesce(i.reservation_id, ''), coalesce(i.captured_credits, 0), coalesce(i.captured_receivable, 0),
               s.dispute_window_days
        FROM item i JOIN split s USING (number)
    ),
    into_transaction AS (
        INSERT INTO ledger.transaction (
            transaction_id, partition_id, type, charge_id, occur_time, create_time, actor_api_key_id)
        SELECT transaction_id, customer_id, 'charge', charge_id, occur_time, now(), actor_api_key_id FROM item
    ),
    into_entry AS (
        INSERT INTO ledger.entry
        SELECT transaction_id, entry_number, partition_id, owner_id, kind, currency_code, amount,
               collected, earned_on, available_on, version
        FROM posted
    ),
    into_delta AS (
        -- One row per account and bucket for the whole batch: the folder has less to do, nobody has to wait.
        INSERT INTO ledger.balance_delta (
            owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
        SELECT owner_id, kind, currency_code, collected, earned_on, available_on, sum(amount), 0
        FROM posted
        WHERE kind IN ('organization_payable', 'platform_fees', 'processing_fees')
        GROUP BY owner_id, kind, currency_code, collected, earned_on, available_on
    ),
    into_open AS (
        INSERT INTO ledger.open_charge (
            customer_id, charge_id, currency_code, uncollected_legs, receivable, unearned_legs, unpaid)
        SELECT customer_id, charge_id, currency_code, uncollected, ledger.total(uncollected),
               coalesce(unearned, array_fill(0::bigint, ARRAY[cardinality(legs)])), ledger.total(coalesce(unearned, '{}'))
        FROM divided
        ORDER BY number
    )
    INSERT INTO ledger.unsequenced (partition_id, transaction_id)
    SELECT customer_id, transaction_id FROM item ORDER BY number;
END
$$;
