-- Every movement of money is one call of one of these functions. They are VOLATILE PL/pgSQL on purpose: each
-- statement inside sees what the locks taken before it waited for, which a single statement would not.
--
-- Lock order, everywhere: idempotency keys (sorted) -> organization rows -> customer rows -> customer accounts
-- (ascending; the row of customer_credits stands for all money of that customer and currency) -> balance_delta ->
-- folded accounts (ascending) -> earnings buckets (ascending) -> inserts.
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


-- Locks the customers' money, in ascending order, so that two calls never wait for each other in a circle, and makes
-- their accounts in these currencies; the lock on customer_credits is what every later step relies on.
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

    -- In every currency: a reservation ends once, whatever currency it is named in.
    PERFORM FROM ledger.account a
    WHERE a.owner_id = ANY (customer_ids) AND a.kind = 'customer_credits'
    ORDER BY a.owner_id, a.currency_code
    FOR NO KEY UPDATE;
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
