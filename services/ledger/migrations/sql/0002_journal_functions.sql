-- Every movement of money is one call of one of these functions. They are VOLATILE PL/pgSQL on purpose: each
-- statement inside sees what the locks taken before it waited for, which a single statement would not.
--
-- Lock order, everywhere: idempotency keys (sorted) -> organization rows -> customer accounts (ascending; the row
-- of customer_credits stands for all money of that customer and currency) -> balance_delta -> folded accounts
-- (ascending) -> earnings buckets (ascending) -> inserts.
--
-- force_generic_plan: the plans do not depend on what is in the arrays, but the planner, seeing their lengths, would
-- make a new one for every call. Keeping them is 2.5 times as fast for single charges and for batches of 16.


-- amount divided in proportion to the weights by largest remainder, ties to the earlier one. The parts add up to
-- the amount, and none exceeds its weight when the amount does not exceed their sum.
CREATE FUNCTION ledger.allocate(amount bigint, weights bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT array_agg(floor_part + (rank <= amount - floor_sum)::integer ORDER BY number)
    FROM (
        SELECT number, floor_part, row_number() OVER (ORDER BY remainder DESC, number) AS rank,
               sum(floor_part) OVER () AS floor_sum
        FROM (
            SELECT number,
                   coalesce(div(amount::numeric * weight, nullif(total, 0)), 0)::bigint AS floor_part,
                   coalesce(mod(amount::numeric * weight, nullif(total, 0)), 0) AS remainder
            FROM (
                SELECT number, weight, sum(weight) OVER () AS total
                FROM unnest(weights) WITH ORDINALITY AS w (weight, number)
            ) AS weighted
        ) AS divided
    ) AS ranked
$$;

CREATE FUNCTION ledger.subtract(minuend bigint[], subtrahend bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT array_agg(m - s ORDER BY number) FROM unnest(minuend, subtrahend) WITH ORDINALITY AS t (m, s, number)
$$;

CREATE FUNCTION ledger.total(amounts bigint[]) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT coalesce(sum(amount), 0)::bigint FROM unnest(amounts) AS amount
$$;

CREATE FUNCTION ledger.new_transaction_id() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT 'txn_' || lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
        || left(replace(gen_random_uuid()::text, '-', ''), 16)
$$;

-- Today in UTC, at the time of the transaction: the date that earnings are held from.
CREATE FUNCTION ledger.today() RETURNS date LANGUAGE sql STABLE AS $$
    SELECT (now() AT TIME ZONE 'UTC')::date
$$;


-- Locks the customers' money in these currencies, in ascending order, so that two calls never wait for each other
-- in a circle; the lock on customer_credits is what every later step relies on.
CREATE FUNCTION ledger.lock_customers(customer_ids text[], currency_codes text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- First use of a currency by a customer: rare, and then never again. All rows are made before the first is
    -- locked: who waits here for a row that another call is making holds no lock yet.
    INSERT INTO ledger.account (owner_id, kind, currency_code, lower_bound)
    SELECT DISTINCT p.customer_id, k.kind, p.currency_code, k.lower_bound
    FROM unnest(customer_ids, currency_codes) AS p (customer_id, currency_code)
    CROSS JOIN (VALUES
        ('customer_credits'::ledger.account_kind, 0::bigint),
        ('customer_receivable', 0),
        ('customer_unpaid', NULL),
        ('unpaid_offset', NULL)
    ) AS k (kind, lower_bound)
    WHERE NOT EXISTS (
        SELECT FROM ledger.account a
        WHERE a.owner_id = p.customer_id AND a.kind = 'customer_credits' AND a.currency_code = p.currency_code
    )
    ORDER BY p.customer_id, p.currency_code, k.kind
    ON CONFLICT DO NOTHING;

    PERFORM FROM ledger.account a
    WHERE (a.owner_id, a.kind, a.currency_code) IN (
        SELECT DISTINCT p.customer_id, 'customer_credits'::ledger.account_kind, p.currency_code
        FROM unnest(customer_ids, currency_codes) AS p (customer_id, currency_code)
    )
    ORDER BY a.owner_id, a.currency_code
    FOR NO KEY UPDATE;
END
$$;


-- post_charges: charges for finished work, judged in the order given. Never refused for lack of money: paid from
-- available credits, then owed as receivable up to the credit limit, and the rest recorded as unpaid.
--
-- The arrays are parallel, one element per charge; payee_* are parallel too, one element per payee, and
-- payee_charge says to which charge (from 1) it belongs. charge_ids are distinct.
--
-- One row per charge comes back, in order. status: 'posted', 'duplicate' (same content came before), 'reused'
-- (other content came before), or 'unknown' with the id that does not exist. Unknown ones store nothing. The rest
-- of the row is the charge as it stands now, and the customer's balance behind it.
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
    actor_api_key_id text
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
    balance_available bigint,
    balance_held bigint,
    balance_receivable bigint,
    balance_unpaid bigint,
    balance_credit_limit bigint
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
BEGIN
    -- A charge that nobody earns would not balance.
    IF (SELECT count(DISTINCT number) FROM unnest(payee_charge) AS number) <> cardinality(charge_ids) THEN
        RAISE EXCEPTION 'a charge needs a payee' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- Who does not exist cannot be charged. Checked before anything is written, so that nothing is stored.
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

    SELECT array_agg(f.charge_id IS NOT NULL ORDER BY c.number)
    INTO is_fresh
    FROM unnest(charge_ids) WITH ORDINALITY AS c (charge_id, number)
    LEFT JOIN unnest(fresh_ids) AS f (charge_id) USING (charge_id);

    IF fresh_ids IS NOT NULL THEN
        PERFORM ledger.lock_customers(
            array_agg(c.customer_id), array_agg(c.currency_code)
        ) FROM unnest(customer_ids, currency_codes, is_fresh) AS c (customer_id, currency_code, fresh)
        WHERE c.fresh;

        -- The waterfall. Credits go to the charges in their order until they are used up; what is left of each
        -- charge goes to the room under the credit limit in the same way; what is still left is unpaid.
        SELECT array_agg(w.paid_credits ORDER BY w.number),
               array_agg(w.paid_receivable ORDER BY w.number),
               array_agg(w.gross - w.paid_credits - w.paid_receivable ORDER BY w.number),
               array_agg(w.credits_version + w.credits_entries ORDER BY w.number),
               array_agg(w.receivable_version + w.receivable_entries ORDER BY w.number)
        INTO paid_credits, paid_receivable, left_unpaid, credits_versions, receivable_versions
        FROM (
            SELECT r.*,
                   count(nullif(r.paid_credits, 0)) OVER customer AS credits_entries,
                   count(nullif(r.paid_receivable, 0)) OVER customer AS receivable_entries
            FROM (
                SELECT s.*,
                       least(s.rest, greatest(
                           s.room - (sum(s.rest) OVER customer - s.rest), 0))::bigint AS paid_receivable
                FROM (
                    SELECT q.*, q.gross - q.paid_credits AS rest
                    FROM (
                        SELECT c.number, c.customer_id, c.currency_code, c.gross,
                               a.version AS credits_version, r.version AS receivable_version,
                               greatest(r.credit_limit + r.credits - r.debits, 0) AS room,
                               least(c.gross, greatest(
                                   a.credits - a.debits - a.held - (sum(c.gross) OVER customer - c.gross), 0
                               ))::bigint AS paid_credits
                        FROM (
                            SELECT number, customer_id, currency_code, CASE WHEN fresh THEN gross ELSE 0 END AS gross
                            FROM unnest(customer_ids, currency_codes, gross_amounts, is_fresh)
                                WITH ORDINALITY AS i (customer_id, currency_code, gross, fresh, number)
                        ) AS c
                        LEFT JOIN ledger.account a
                            ON (a.owner_id, a.kind, a.currency_code)
                             = (c.customer_id, 'customer_credits', c.currency_code)
                        LEFT JOIN ledger.account r
                            ON (r.owner_id, r.kind, r.currency_code)
                             = (c.customer_id, 'customer_receivable', c.currency_code)
                        WINDOW customer AS (
                            PARTITION BY c.customer_id, c.currency_code ORDER BY c.number ROWS UNBOUNDED PRECEDING)
                    ) AS q
                ) AS s
                WINDOW customer AS (
                    PARTITION BY s.customer_id, s.currency_code ORDER BY s.number ROWS UNBOUNDED PRECEDING)
            ) AS r
            WINDOW customer AS (
                PARTITION BY r.customer_id, r.currency_code ORDER BY r.number ROWS UNBOUNDED PRECEDING)
        ) AS w;

        -- Debits of the customers' own accounts, inline: the CHECK is the last word on overdrawing.
        UPDATE ledger.account a
        SET debits = a.debits + m.debits, credits = a.credits + m.credits, version = a.version + m.entries
        FROM (
            SELECT v.owner_id, v.kind, v.currency_code,
                   sum(v.debit) AS debits, sum(v.credit) AS credits,
                   count(*) FILTER (WHERE v.kind IN ('customer_credits', 'customer_receivable')) AS entries
            FROM unnest(customer_ids, currency_codes, paid_credits, paid_receivable, left_unpaid)
                AS c (customer_id, currency_code, paid_credits, paid_receivable, left_unpaid)
            CROSS JOIN LATERAL (VALUES
                (c.customer_id, 'customer_credits'::ledger.account_kind, c.currency_code, c.paid_credits, 0::bigint),
                (c.customer_id, 'customer_receivable', c.currency_code, c.paid_receivable, 0),
                (c.customer_id, 'customer_unpaid', c.currency_code, c.left_unpaid, 0),
                (c.customer_id, 'unpaid_offset', c.currency_code, 0, c.left_unpaid)
            ) AS v (owner_id, kind, currency_code, debit, credit)
            WHERE v.debit + v.credit > 0
            GROUP BY v.owner_id, v.kind, v.currency_code
        ) AS m
        WHERE a.owner_id = m.owner_id AND a.kind = m.kind AND a.currency_code = m.currency_code;

        PERFORM ledger.insert_charges(
            charge_ids, customer_ids, workflow_ids, components, ordinals, currency_codes, gross_amounts,
            occur_times, price_version_ids, evidence_hashes, payee_charge, payee_organization_ids,
            payee_agent_ids, payee_weights, actor_api_key_id, is_fresh, paid_credits, paid_receivable,
            left_unpaid, credits_versions, receivable_versions
        );
    END IF;

    RETURN QUERY
    SELECT CASE WHEN i.unknown_id IS NOT NULL THEN 'unknown'
                WHEN i.fresh THEN 'posted'
                WHEN k.request_hash = i.content_hash THEN 'duplicate'
                ELSE 'reused' END,
           i.unknown_id, c.transaction_id, c.create_time, c.evidence_hash,
           coalesce(o.receivable, 0), coalesce(o.unpaid, 0),
           c.payee_gross, c.platform_fees, c.processing_fees, c.platform_fee_bps, c.processing_fee_bps,
           a.credits - a.debits - a.held, a.held, r.debits - r.credits, u.debits - u.credits, r.credit_limit
    FROM unnest(customer_ids, charge_ids, currency_codes, content_hashes, unknown_ids, is_fresh)
        WITH ORDINALITY AS i (customer_id, charge_id, currency_code, content_hash, unknown_id, fresh, number)
    LEFT JOIN ledger.charge c ON c.charge_id = i.charge_id AND c.customer_id = i.customer_id
    LEFT JOIN ledger.open_charge o ON o.customer_id = i.customer_id AND o.charge_id = i.charge_id
    LEFT JOIN ledger.idempotency k ON NOT i.fresh AND k.owner_id = i.customer_id AND k.key = i.charge_id
    LEFT JOIN ledger.account a
        ON (a.owner_id, a.kind, a.currency_code) = (i.customer_id, 'customer_credits', i.currency_code)
    LEFT JOIN ledger.account r
        ON (r.owner_id, r.kind, r.currency_code) = (i.customer_id, 'customer_receivable', i.currency_code)
    LEFT JOIN ledger.account u
        ON (u.owner_id, u.kind, u.currency_code) = (i.customer_id, 'customer_unpaid', i.currency_code)
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
    receivable_versions bigint[]
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
            left_unpaid, credits_versions, receivable_versions
        ) WITH ORDINALITY AS i (
            charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross,
            occur_time, price_version_id, evidence_hash, fresh, from_credits, from_receivable,
            unpaid, credits_version, receivable_version, number
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
               i.evidence_hash, i.transaction_id
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

-- The legs of a charge in their fixed order.
CREATE FUNCTION ledger.legs(payee_gross bigint[], platform_fees bigint[], processing_fees bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT array_agg(v.leg ORDER BY p.number, v.leg_number)
    FROM unnest(payee_gross, platform_fees, processing_fees)
        WITH ORDINALITY AS p (gross, platform_fee, processing_fee, number)
    CROSS JOIN LATERAL (VALUES
        (1, p.gross - p.platform_fee - p.processing_fee), (2, p.platform_fee), (3, p.processing_fee)
    ) AS v (leg_number, leg)
$$;


-- Claims an idempotency key for an operation that is not a charge. Answers NULL when the key is new, and the
-- outcome of the first request when the same one came before.
CREATE FUNCTION ledger.claim_key(
    p_owner_id text, p_key text, p_request_hash bytea, p_outcome text
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    first ledger.idempotency;
BEGIN
    INSERT INTO ledger.idempotency (owner_id, key, request_hash, outcome)
    VALUES (p_owner_id, p_key, p_request_hash, p_outcome)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO first FROM ledger.idempotency WHERE owner_id = p_owner_id AND key = p_key;
    IF first.request_hash <> p_request_hash THEN
        RAISE EXCEPTION 'idempotency key reused' USING ERRCODE = 'TL001';
    END IF;
    RETURN first.outcome;
END
$$;


-- Adds credits to a customer: 'purchase' against the money at Stripe, 'promotion' against what the platform gives
-- away. Answers the transaction, and whether it had been posted before. Collecting what the customer owes is
-- collect(), which the caller runs next in the same database transaction.
CREATE FUNCTION ledger.grant_credits(
    p_customer_id text,
    p_currency_code text,
    p_amount bigint,
    p_type ledger.transaction_type,
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    OUT transaction_id text,
    OUT duplicate boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    source ledger.account_kind := CASE p_type WHEN 'purchase' THEN 'stripe_clearing'
                                              WHEN 'promotion' THEN 'promotions' END;
    credits_version bigint;
BEGIN
    IF p_amount <= 0 OR source IS NULL THEN
        RAISE EXCEPTION 'a grant needs an amount and a source' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    transaction_id := ledger.new_transaction_id();
    DECLARE
        first_transaction_id text := ledger.claim_key(p_customer_id, p_key, p_request_hash, transaction_id);
    BEGIN
        duplicate := first_transaction_id IS NOT NULL;
        IF duplicate THEN
            transaction_id := first_transaction_id;
            RETURN;
        END IF;
    END;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    UPDATE ledger.account SET credits = credits + p_amount, version = version + 1
    WHERE owner_id = p_customer_id AND kind = 'customer_credits' AND currency_code = p_currency_code
    RETURNING version INTO credits_version;
    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, occur_time, create_time, reason, actor_api_key_id)
    VALUES (transaction_id, p_customer_id, p_type, now(), now(), p_reason, p_actor_api_key_id);
    INSERT INTO ledger.entry (
        transaction_id, entry_number, partition_id, owner_id, kind, currency_code, amount, account_version)
    VALUES
        (transaction_id, 1, p_customer_id, p_customer_id, 'customer_credits', p_currency_code, p_amount, credits_version),
        (transaction_id, 2, p_customer_id, 'platform', source, p_currency_code, -p_amount, NULL);
    INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)
    VALUES ('platform', source, p_currency_code, 0, p_amount);
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_customer_id, transaction_id);
END
$$;


-- Collects what a customer owes from its available credits: receivables before unpaid charges, oldest first, at
-- most p_limit charges. Answers how much was collected, and whether more could be.
CREATE FUNCTION ledger.collect(
    p_customer_id text,
    p_currency_code text,
    p_limit integer,
    p_actor_api_key_id text,
    OUT collected bigint,
    OUT more boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    credits ledger.account;
    receivable ledger.account;
    available bigint;
    open record;
    amount bigint;
    collected_receivable bigint := 0;
    collected_unpaid bigint := 0;
    credits_entries bigint := 0;
    receivable_entries bigint := 0;
BEGIN
    collected := 0;
    more := false;
    -- The lock first: what is available, and what is open, is read behind it.
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    SELECT * INTO credits FROM ledger.account a
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code);
    SELECT * INTO receivable FROM ledger.account a
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_receivable', p_currency_code);
    available := credits.credits - credits.debits - credits.held;

    FOR open IN
        SELECT part.earned, o.open_number, o.charge_id,
               CASE WHEN part.earned THEN o.uncollected_legs ELSE o.unearned_legs END AS legs,
               CASE WHEN part.earned THEN o.receivable ELSE o.unpaid END AS outstanding
        FROM ledger.open_charge o CROSS JOIN (VALUES (true), (false)) AS part (earned)
        WHERE o.customer_id = p_customer_id AND o.currency_code = p_currency_code
          AND CASE WHEN part.earned THEN o.receivable ELSE o.unpaid END > 0
        ORDER BY part.earned DESC, o.open_number
        LIMIT p_limit + 1
    LOOP
        IF available = 0 THEN
            more := false;
            EXIT;
        END IF;
        IF credits_entries = p_limit THEN
            more := true;
            EXIT;
        END IF;
        amount := least(available, open.outstanding);
        available := available - amount;
        credits_entries := credits_entries + 1;
        IF open.earned THEN
            receivable_entries := receivable_entries + 1;
            collected_receivable := collected_receivable + amount;
        ELSE
            collected_unpaid := collected_unpaid + amount;
        END IF;
        PERFORM ledger.insert_collection(
            p_customer_id, open.open_number, open.charge_id, open.earned,
            ledger.allocate(amount, open.legs), amount,
            credits.version + credits_entries, receivable.version + receivable_entries, p_actor_api_key_id);
    END LOOP;

    collected := collected_receivable + collected_unpaid;
    UPDATE ledger.account a
    SET debits = a.debits + m.debits, credits = a.credits + m.credits, version = a.version + m.entries
    FROM (VALUES
        ('customer_credits'::ledger.account_kind, collected, 0::bigint, credits_entries),
        ('customer_receivable', 0, collected_receivable, receivable_entries),
        ('customer_unpaid', 0, collected_unpaid, 0),
        ('unpaid_offset', collected_unpaid, 0, 0)
    ) AS m (kind, debits, credits, entries)
    WHERE a.owner_id = p_customer_id AND a.kind = m.kind AND a.currency_code = p_currency_code
      AND m.debits + m.credits > 0;
END
$$;


-- One collection: a part of one charge, paid from credits. `parts` divides the amount over the charge's legs. What
-- was owed as receivable only moves to the collected bucket; what was unpaid is earned now.
CREATE FUNCTION ledger.insert_collection(
    p_customer_id text,
    p_open_number bigint,
    p_charge_id text,
    p_earned boolean,
    p_parts bigint[],
    p_amount bigint,
    p_credits_version bigint,
    p_receivable_version bigint,
    p_actor_api_key_id text
) RETURNS void LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
DECLARE
    collection_id text := ledger.new_transaction_id();
BEGIN
    WITH charge AS (
        SELECT * FROM ledger.charge WHERE charge_id = p_charge_id AND customer_id = p_customer_id
    ),
    payee AS (
        SELECT p.*, c.currency_code, (c.occur_time AT TIME ZONE 'UTC')::date AS earned_on,
               (c.create_time AT TIME ZONE 'UTC')::date + p.hold_days AS charged_available_on,
               ledger.today() + p.hold_days AS available_on
        FROM charge c
        CROSS JOIN LATERAL unnest(c.organization_ids, c.settlement_hold_days)
            WITH ORDINALITY AS p (organization_id, hold_days, payee_number)
    ),
    line AS (
        SELECT v.line_number, p_customer_id AS owner_id, v.kind, v.amount, NULL::boolean AS collected,
               NULL::date AS earned_on, NULL::date AS available_on, v.version
        FROM (VALUES
            (1, 'customer_credits'::ledger.account_kind, -p_amount, p_credits_version),
            (2, 'customer_receivable', CASE WHEN p_earned THEN p_amount ELSE 0 END, p_receivable_version),
            (3, 'customer_unpaid', CASE WHEN p_earned THEN 0 ELSE p_amount END, NULL),
            (4, 'unpaid_offset', CASE WHEN p_earned THEN 0 ELSE -p_amount END, NULL)
        ) AS v (line_number, kind, amount, version)
        UNION ALL
        SELECT 4 + (p.payee_number - 1) * 3 + v.leg_number, p.organization_id, v.kind,
               p_parts[(p.payee_number - 1) * 3 + v.leg_number],
               CASE v.leg_number WHEN 1 THEN true END, CASE v.leg_number WHEN 1 THEN p.earned_on END,
               CASE v.leg_number WHEN 1 THEN p.available_on END, NULL
        FROM payee p
        CROSS JOIN (VALUES
            (1, 'organization_payable'::ledger.account_kind), (2, 'platform_fees'), (3, 'processing_fees')
        ) AS v (leg_number, kind)
        -- Fees of a receivable were earned with the charge: collecting it only moves the net part.
        WHERE NOT p_earned OR v.leg_number = 1
        UNION ALL
        SELECT 100 + p.payee_number, p.organization_id, 'organization_payable',
               -p_parts[(p.payee_number - 1) * 3 + 1], false, p.earned_on, p.charged_available_on, NULL
        FROM payee p
        WHERE p_earned
    ),
    posted AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY line_number) AS entry_number, line.*, charge.currency_code
        FROM line CROSS JOIN charge
        WHERE amount <> 0
    ),
    into_transaction AS (
        INSERT INTO ledger.transaction (
            transaction_id, partition_id, type, charge_id, occur_time, create_time, actor_api_key_id)
        VALUES (collection_id, p_customer_id, 'collection', p_charge_id, now(), now(), p_actor_api_key_id)
    ),
    into_entry AS (
        INSERT INTO ledger.entry
        SELECT collection_id, entry_number, p_customer_id, owner_id, kind, currency_code, amount,
               collected, earned_on, available_on, version
        FROM posted
    ),
    into_delta AS (
        INSERT INTO ledger.balance_delta (
            owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
        SELECT owner_id, kind, currency_code, collected, earned_on, available_on,
               greatest(amount, 0), greatest(-amount, 0)
        FROM posted
        WHERE kind IN ('organization_payable', 'platform_fees', 'processing_fees')
    )
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES (p_customer_id, collection_id);

    IF p_earned THEN
        UPDATE ledger.open_charge
        SET uncollected_legs = ledger.subtract(uncollected_legs, p_parts), receivable = receivable - p_amount
        WHERE customer_id = p_customer_id AND open_number = p_open_number AND receivable + unpaid > p_amount;
    ELSE
        UPDATE ledger.open_charge
        SET unearned_legs = ledger.subtract(unearned_legs, p_parts), unpaid = unpaid - p_amount
        WHERE customer_id = p_customer_id AND open_number = p_open_number AND receivable + unpaid > p_amount;
    END IF;
    IF NOT FOUND THEN
        DELETE FROM ledger.open_charge WHERE customer_id = p_customer_id AND open_number = p_open_number;
    END IF;
END
$$;


-- Sets how much a customer may owe. Below what it owes already, only more is refused: the bound of the CHECK stays
-- where the balance is.
CREATE FUNCTION ledger.set_credit_limit(p_customer_id text, p_currency_code text, p_limit bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM ledger.customer WHERE customer_id = p_customer_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown customer' USING ERRCODE = 'TL002', DETAIL = p_customer_id;
    END IF;
    PERFORM ledger.lock_customers(ARRAY[p_customer_id], ARRAY[p_currency_code]);
    UPDATE ledger.account
    SET credit_limit = p_limit, lower_bound = least(-p_limit, credits - debits - held)
    WHERE owner_id = p_customer_id AND kind = 'customer_receivable' AND currency_code = p_currency_code;
END
$$;


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


-- Posts an operator's adjustment. The arrays are parallel, one element per posting, each account once; amounts are
-- signed as entries are and add up to zero per currency. It takes neither a customer's credits nor an
-- organization's available earnings below zero: SQLSTATE TL003, with the account in the detail.
CREATE FUNCTION ledger.adjust(
    p_owner_ids text[],
    p_kinds ledger.account_kind[],
    p_currency_codes text[],
    p_amounts bigint[],
    p_reason text,
    p_actor_api_key_id text,
    p_key text,
    p_request_hash bytea,
    OUT transaction_id text,
    OUT duplicate boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    adjustment_id text := ledger.new_transaction_id();
    stranger text;
    short record;
BEGIN
    -- What the service has checked already is checked here too: these are the books.
    IF EXISTS (
        SELECT FROM unnest(p_currency_codes, p_amounts) AS p (currency_code, amount)
        GROUP BY p.currency_code HAVING sum(p.amount) <> 0
    ) OR EXISTS (
        SELECT FROM unnest(p_owner_ids, p_kinds, p_currency_codes) AS p (owner_id, kind, currency_code)
        GROUP BY p.owner_id, p.kind, p.currency_code HAVING count(*) > 1
    ) OR EXISTS (
        SELECT FROM unnest(p_kinds) AS kind
        WHERE kind IN ('customer_receivable', 'customer_unpaid', 'unpaid_offset')
    ) THEN
        RAISE EXCEPTION 'not an adjustment that balances' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT p.owner_id INTO stranger FROM unnest(p_owner_ids) AS p (owner_id)
    WHERE p.owner_id <> 'platform'
      AND NOT EXISTS (SELECT FROM ledger.customer c WHERE c.customer_id = p.owner_id)
      AND NOT EXISTS (SELECT FROM ledger.organization o WHERE o.organization_id = p.owner_id)
    ORDER BY p.owner_id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'unknown owner' USING ERRCODE = 'TL002', DETAIL = stranger;
    END IF;

    transaction_id := ledger.claim_key('platform', p_key, p_request_hash, adjustment_id);
    duplicate := transaction_id IS NOT NULL;
    IF duplicate THEN
        RETURN;
    END IF;
    transaction_id := adjustment_id;

    -- Lowering earnings excludes every other lowering of the same organization's, from here to the commit.
    PERFORM FROM ledger.organization o
    WHERE o.organization_id IN (
        SELECT p.owner_id FROM unnest(p_owner_ids, p_kinds, p_amounts) AS p (owner_id, kind, amount)
        WHERE p.kind = 'organization_payable' AND p.amount < 0
    )
    ORDER BY o.organization_id FOR NO KEY UPDATE;
    PERFORM ledger.lock_customers(array_agg(p.owner_id), array_agg(p.currency_code))
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes) AS p (owner_id, kind, currency_code)
    WHERE p.kind = 'customer_credits'
    HAVING count(*) > 0;

    -- Everything but customers' credits goes through a delta and is folded at once, in this transaction: what was
    -- waiting becomes visible, and what is lowered is lowered before anybody else can look.
    INSERT INTO ledger.balance_delta (
        owner_id, kind, currency_code, collected, earned_on, available_on, credits, debits)
    SELECT p.owner_id, p.kind, p.currency_code, b.collected, b.day, b.day, greatest(p.amount, 0), greatest(-p.amount, 0)
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts) AS p (owner_id, kind, currency_code, amount)
    LEFT JOIN (SELECT true AS collected, ledger.today() AS day) AS b ON p.kind = 'organization_payable'
    WHERE p.kind <> 'customer_credits';
    PERFORM ledger.fold(0, array_agg(DISTINCT p.owner_id))
    FROM unnest(p_owner_ids, p_kinds, p_amounts) AS p (owner_id, kind, amount)
    WHERE p.kind = 'organization_payable' AND p.amount < 0
    HAVING count(*) > 0;

    SELECT p.owner_id, p.kind, p.currency_code, p.amount, have.available INTO short
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts) AS p (owner_id, kind, currency_code, amount)
    CROSS JOIN LATERAL (
        SELECT CASE p.kind
            WHEN 'customer_credits' THEN (
                SELECT a.credits - a.debits - a.held FROM ledger.account a
                WHERE (a.owner_id, a.kind, a.currency_code) = (p.owner_id, p.kind, p.currency_code))
            -- The adjustment is in there already: what was available is that much more.
            ELSE ledger.available_earnings(p.owner_id, p.currency_code) - p.amount
        END AS available
    ) AS have
    WHERE p.amount < 0 AND p.kind IN ('customer_credits', 'organization_payable') AND have.available + p.amount < 0
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'insufficient balance' USING ERRCODE = 'TL003', DETAIL = json_build_object(
            'owner_id', short.owner_id, 'account', short.kind, 'currency_code', short.currency_code,
            'available_micros', short.available::text, 'requested_micros', (-short.amount)::text)::text;
    END IF;

    UPDATE ledger.account a
    SET credits = a.credits + greatest(p.amount, 0), debits = a.debits + greatest(-p.amount, 0), version = a.version + 1
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts) AS p (owner_id, kind, currency_code, amount)
    WHERE p.kind = 'customer_credits'
      AND a.owner_id = p.owner_id AND a.kind = p.kind AND a.currency_code = p.currency_code;

    INSERT INTO ledger.transaction (
        transaction_id, partition_id, type, occur_time, create_time, reason, actor_api_key_id)
    VALUES (adjustment_id, 'platform', 'adjustment', now(), now(), p_reason, p_actor_api_key_id);
    INSERT INTO ledger.entry
    SELECT adjustment_id, p.number, 'platform', p.owner_id, p.kind, p.currency_code, p.amount,
           b.collected, b.day, b.day, a.version
    FROM unnest(p_owner_ids, p_kinds, p_currency_codes, p_amounts)
        WITH ORDINALITY AS p (owner_id, kind, currency_code, amount, number)
    LEFT JOIN (SELECT true AS collected, ledger.today() AS day) AS b ON p.kind = 'organization_payable'
    LEFT JOIN ledger.account a ON p.kind = 'customer_credits'
        AND a.owner_id = p.owner_id AND a.kind = p.kind AND a.currency_code = p.currency_code;
    INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES ('platform', adjustment_id);
END
$$;

-- What an organization could be paid now: collected, and past every hold. The caller holds its row and has folded.
CREATE FUNCTION ledger.available_earnings(p_owner_id text, p_currency_code text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(credits - debits), 0)::bigint FROM ledger.earnings_bucket
    WHERE owner_id = p_owner_id AND currency_code = p_currency_code
      AND collected AND available_on <= ledger.today()
$$;


-- Gives the next positions of the log to waiting transactions, at most p_limit; answers how many. Any number of
-- sequencers may run: whoever finds the log's row locked leaves the work to its holder. Positions are taken in the
-- order of commits of this function, never by comparing ids, because ids become visible out of order.
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
    UPDATE ledger.journal_log SET last_position = last_position + taken WHERE log_id = log.log_id AND taken > 0;
    RETURN taken;
END
$$;


-- Only what the writer is meant to call. Functions are executable by everybody unless that is taken away.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA ledger FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.visible(text) TO ledger_reader, ledger_writer;
GRANT EXECUTE ON FUNCTION ledger.today() TO ledger_reader, ledger_writer;
GRANT EXECUTE ON FUNCTION
    ledger.post_charges, ledger.grant_credits, ledger.collect, ledger.set_credit_limit, ledger.adjust,
    ledger.fold, ledger.sequence
TO ledger_writer;
