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
               s.platform_fee_bps, s.processing_fee_bps, s.settlement_hold_days
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
               array_agg(settlement_hold_days ORDER BY payee_number) AS settlement_hold_days
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
               v.amount, p.settlement_hold_days
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
               CASE WHEN l.kind = 'organization_payable' THEN true END, l.settlement_hold_days, NULL
        FROM leg l LEFT JOIN divided d USING (number)
        UNION ALL
        SELECT l.number, 100 + l.leg_number, l.organization_id, l.kind, d.uncollected[l.leg_number],
               CASE WHEN l.kind = 'organization_payable' THEN false END, l.settlement_hold_days, NULL
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
               coalesce(i.reservation_id, ''), coalesce(i.captured_credits, 0), coalesce(i.captured_receivable, 0)
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
