-- Which grant paid for what. A charge moves one number, customer_credits; here the entries of that account are gone
-- through in the order of its versions: a credit opens a lot, or refills those whose spending it gives back, and a debit
-- takes from the lots that there were then.
--
-- The row of ledger.lot_cursor is the lock: whoever holds it is alone in allocating for that customer and currency, and
-- goes on where the last one committed. It comes after the customer's accounts in the order of locks, several in
-- ascending order. The background step needs no other: entries never change, so it reads what has been committed while
-- charges go on. Who is about to post by what the lots say (expiry, settlement) holds the customer's lock first, so that
-- no version comes after those that it has allocated.


-- Locks the lots of a customer in one currency; answers up to which version they are allocated.
CREATE FUNCTION ledger.lock_lots(p_customer_id text, p_currency_code text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    allocated bigint;
BEGIN
    LOOP
        SELECT c.allocated_version INTO allocated FROM ledger.lot_cursor c
        WHERE c.customer_id = p_customer_id AND c.currency_code = p_currency_code
        FOR NO KEY UPDATE;
        IF FOUND THEN
            RETURN allocated;
        END IF;
        INSERT INTO ledger.lot_cursor (customer_id, currency_code) VALUES (p_customer_id, p_currency_code)
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;


-- Allocates what has come to the newest log, or one before it, since the last time: at most p_limit positions. Answers
-- how many. One replica reads at a time; who finds it at work leaves it to that one. A step that dies changes nothing.
CREATE FUNCTION ledger.allocate_lots(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
DECLARE
    feed record;
    upto bigint;
    batch record;
    -- The entries to allocate, in the order in which lots are locked, and then by version.
    owner_ids text[];
    currency_codes text[];
    versions bigint[];
    amounts bigint[];
    transaction_ids text[];
    are_charges boolean[];
    customers integer;
    done integer := 0;
BEGIN
    INSERT INTO ledger.lot_feed (log_id)
    SELECT l.log_id FROM ledger.journal_log l
    WHERE NOT EXISTS (SELECT FROM ledger.lot_feed f WHERE f.log_id = l.log_id)
    ON CONFLICT DO NOTHING;
    SELECT f.log_id, f.position, l.last_position INTO feed
    FROM ledger.lot_feed f JOIN ledger.journal_log l ON l.log_id = f.log_id
    WHERE f.position < l.last_position
    ORDER BY l.create_time LIMIT 1
    FOR NO KEY UPDATE OF f SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    upto := least(feed.position + p_limit, feed.last_position);
    SELECT array_agg(r.owner_id), array_agg(r.currency_code), array_agg(r.account_version), array_agg(r.amount),
           array_agg(r.transaction_id), array_agg(r.is_charge)
    INTO owner_ids, currency_codes, versions, amounts, transaction_ids, are_charges
    FROM (
        SELECT e.owner_id, e.currency_code, e.account_version, e.amount, e.transaction_id, t.type = 'charge' AS is_charge
        FROM ledger.journal_position p
        JOIN ledger.entry e ON e.transaction_id = p.transaction_id AND e.partition_id = p.partition_id
        JOIN ledger.transaction t ON t.transaction_id = p.transaction_id AND t.partition_id = p.partition_id
        WHERE p.log_id = feed.log_id AND p.position > feed.position AND p.position <= upto
          AND e.kind = 'customer_credits'
        ORDER BY e.owner_id, e.currency_code, e.account_version
    ) AS r;
    IF owner_ids IS NOT NULL THEN
        customers := ledger.lock_all_lots(owner_ids, currency_codes);
        BEGIN
            done := ledger.allocate_charges(owner_ids, currency_codes, versions, amounts, are_charges);
        EXCEPTION WHEN integrity_constraint_violation THEN
            -- Whose lots contradict the journal is found out below, one by one.
        END;
    END IF;
    IF done < customers THEN
        FOR batch IN
            SELECT e.owner_id, e.currency_code,
                   array_agg(e.version ORDER BY e.version) AS versions,
                   array_agg(e.amount ORDER BY e.version) AS amounts,
                   array_agg(e.transaction_id ORDER BY e.version) AS transaction_ids
            FROM unnest(owner_ids, currency_codes, versions, amounts, transaction_ids)
                AS e (owner_id, currency_code, version, amount, transaction_id)
            GROUP BY e.owner_id, e.currency_code
            HAVING max(e.version) > (
                SELECT c.allocated_version FROM ledger.lot_cursor c
                WHERE c.customer_id = e.owner_id AND c.currency_code = e.currency_code)
            ORDER BY e.owner_id, e.currency_code
        LOOP
            BEGIN
                PERFORM ledger.allocate_batch(
                    batch.owner_id, batch.currency_code, batch.versions, batch.amounts, batch.transaction_ids);
            EXCEPTION WHEN raise_exception OR integrity_constraint_violation THEN
                -- Lots that contradict the journal: the audit finds them behind. The other customers must not wait.
                RAISE WARNING 'lots of % in % are not allocated: %', batch.owner_id, batch.currency_code, SQLERRM;
            END;
        END LOOP;
    END IF;
    UPDATE ledger.lot_feed f SET position = upto WHERE f.log_id = feed.log_id;
    RETURN upto - feed.position;
END
$$;


-- Locks the lots of all these customers, in ascending order; answers how many different ones there are.
CREATE FUNCTION ledger.lock_all_lots(p_customer_ids text[], p_currency_codes text[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    customers integer;
BEGIN
    INSERT INTO ledger.lot_cursor (customer_id, currency_code)
    SELECT DISTINCT i.customer_id, i.currency_code
    FROM unnest(p_customer_ids, p_currency_codes) AS i (customer_id, currency_code)
    WHERE NOT EXISTS (
        SELECT FROM ledger.lot_cursor c
        WHERE c.customer_id = i.customer_id AND c.currency_code = i.currency_code)
    ORDER BY i.customer_id, i.currency_code
    ON CONFLICT DO NOTHING;
    SELECT count(*) INTO customers FROM (
        SELECT FROM (
            SELECT DISTINCT i.customer_id, i.currency_code
            FROM unnest(p_customer_ids, p_currency_codes) AS i (customer_id, currency_code)
        ) AS d
        JOIN ledger.lot_cursor c ON c.customer_id = d.customer_id AND c.currency_code = d.currency_code
        ORDER BY c.customer_id, c.currency_code
        FOR NO KEY UPDATE OF c
    ) AS locked;
    RETURN customers;
END
$$;


-- Allocates what is usual, all at once: the entries of customers that are charges only, go on where the cursor is, and
-- are paid wholly by the lot that is spent first, which no organization has to settle. Answers of how many customers.
-- It does what allocate_entries does, at a tenth of the cost for a customer with one charge. The caller holds the
-- cursors; the arrays are sorted by customer, currency and version.
CREATE FUNCTION ledger.allocate_charges(
    p_customer_ids text[], p_currency_codes text[], p_versions bigint[], p_amounts bigint[], p_are_charges boolean[]
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    done integer;
BEGIN
    WITH batch AS (
        SELECT e.customer_id, e.currency_code, min(e.version) AS first_version, max(e.version) AS last_version,
               sum(e.amount)::bigint AS amount
        FROM unnest(p_customer_ids, p_currency_codes, p_versions, p_amounts, p_are_charges)
            AS e (customer_id, currency_code, version, amount, is_charge)
        GROUP BY e.customer_id, e.currency_code
        HAVING bool_and(e.is_charge) AND max(e.amount) < 0 AND max(e.version) - min(e.version) + 1 = count(*)
    ),
    paid AS MATERIALIZED (
        SELECT b.*, l.lot_id
        FROM batch b
        JOIN ledger.lot_cursor c
            ON c.customer_id = b.customer_id AND c.currency_code = b.currency_code
           AND c.allocated_version = b.first_version - 1
        CROSS JOIN LATERAL (
            SELECT o.lot_id, o.funder_id, o.remaining FROM ledger.credit_lot o
            WHERE o.customer_id = b.customer_id AND o.currency_code = b.currency_code AND o.is_open
            ORDER BY o.priority, o.expire_time NULLS LAST, o.source <> 'promotion', o.opened_version LIMIT 1
        ) AS l
        WHERE l.remaining >= -b.amount AND l.funder_id IN ('', 'platform')
    ),
    into_allocation AS (
        INSERT INTO ledger.lot_allocation (
            customer_id, currency_code, first_version, last_version, number, lot_id, amount)
        SELECT p.customer_id, p.currency_code, p.first_version, p.last_version, 1, p.lot_id, p.amount FROM paid p
    ),
    into_lot AS (
        UPDATE ledger.credit_lot l
        SET remaining = l.remaining + p.amount, is_open = l.remaining + p.amount > 0
        FROM paid p
        WHERE l.customer_id = p.customer_id AND l.currency_code = p.currency_code AND l.lot_id = p.lot_id
    )
    UPDATE ledger.lot_cursor c SET allocated_version = p.last_version
    FROM paid p
    WHERE c.customer_id = p.customer_id AND c.currency_code = p.currency_code;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END
$$;


-- Allocates these entries of a customer, sorted by version, as far as that has not been done yet.
CREATE FUNCTION ledger.allocate_batch(
    p_customer_id text, p_currency_code text, p_versions bigint[], p_amounts bigint[], p_transaction_ids text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    allocated bigint := ledger.lock_lots(p_customer_id, p_currency_code);
    known integer := 0;
    entries integer := cardinality(p_versions);
BEGIN
    WHILE known < entries AND p_versions[known + 1] <= allocated LOOP
        known := known + 1;
    END LOOP;
    IF known = entries THEN
        RETURN;
    END IF;
    -- A log has the transactions of a customer in the order of their versions, so there is no gap. If there were one,
    -- a log that was restored for example, the missing ones are looked for.
    IF p_versions[known + 1] <> allocated + 1 OR p_versions[entries] <> allocated + entries - known THEN
        PERFORM ledger.catch_up_lots(p_customer_id, p_currency_code, 2147483647);
        RETURN;
    END IF;
    PERFORM ledger.allocate_entries(
        p_customer_id, p_currency_code, p_versions[known + 1:], p_amounts[known + 1:], p_transaction_ids[known + 1:]);
END
$$;


-- Allocates all that has been posted for a customer, if that is at most p_limit entries. Answers whether it is
-- allocated now. Versions are counted without gaps, so it is known how many entries to look for: the newest ones.
CREATE FUNCTION ledger.catch_up_lots(p_customer_id text, p_currency_code text, p_limit integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
DECLARE
    allocated bigint := ledger.lock_lots(p_customer_id, p_currency_code);
    newest bigint;
    missing record;
BEGIN
    SELECT a.version INTO newest FROM ledger.account a
    WHERE (a.owner_id, a.kind, a.currency_code) = (p_customer_id, 'customer_credits', p_currency_code);
    IF coalesce(newest, 0) <= allocated THEN
        RETURN true;
    ELSIF newest - allocated > p_limit THEN
        RETURN false;
    END IF;
    SELECT array_agg(e.account_version ORDER BY e.account_version) AS versions,
           array_agg(e.amount ORDER BY e.account_version) AS amounts,
           array_agg(e.transaction_id ORDER BY e.account_version) AS transaction_ids
    INTO missing
    FROM (
        -- From the end of the owner's index: transaction ids grow with time, if not strictly. The limit ends the walk
        -- once all of them are found.
        SELECT n.account_version, n.amount, n.transaction_id FROM ledger.entry n
        WHERE n.owner_id = p_customer_id AND n.kind = 'customer_credits' AND n.currency_code = p_currency_code
          AND n.account_version > allocated AND n.account_version <= newest
        ORDER BY n.transaction_id DESC, n.entry_number DESC
        LIMIT newest - allocated
    ) AS e;
    IF coalesce(cardinality(missing.versions), 0) <> newest - allocated THEN
        RAISE EXCEPTION 'entries of versions % to % are not there', allocated + 1, newest;
    END IF;
    PERFORM ledger.allocate_entries(
        p_customer_id, p_currency_code, missing.versions, missing.amounts, missing.transaction_ids);
    RETURN true;
END
$$;


-- Goes through entries whose versions follow on the cursor without a gap, and moves the cursor behind them. The caller
-- holds the cursor.
CREATE FUNCTION ledger.allocate_entries(
    p_customer_id text, p_currency_code text, p_versions bigint[], p_amounts bigint[], p_transaction_ids text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    item record;
    is_loaded boolean := false;
    -- The open lots, in the order in which they are spent, and the first of them that has something left.
    lot_ids text[];
    funders text[];
    remaining bigint[];
    lot integer;
    -- What goes to ledger.lot_allocation, and to ledger.promotion_due.
    rows integer := 0;
    first_versions bigint[] := '{}';
    last_versions bigint[] := '{}';
    numbers smallint[] := '{}';
    lots text[] := '{}';
    amounts bigint[] := '{}';
    due integer := 0;
    due_debits text[] := '{}';
    due_funders text[] := '{}';
    -- Charges of which something was collected.
    collected text[] := '{}';
    -- Of one debit.
    own_lot integer;
    need bigint;
    taken bigint;
    chosen integer;
    number smallint;
BEGIN
    FOR item IN
        SELECT e.version, e.amount, e.transaction_id, t.type, coalesce(t.charge_id, e.transaction_id) AS debit_id
        FROM unnest(p_versions, p_amounts, p_transaction_ids) AS e (version, amount, transaction_id)
        JOIN ledger.transaction t ON t.transaction_id = e.transaction_id
        ORDER BY e.version
    LOOP
        IF item.amount > 0 OR NOT is_loaded THEN
            IF rows > 0 THEN
                PERFORM ledger.write_allocations(
                    p_customer_id, p_currency_code, first_versions, last_versions, numbers, lots, amounts,
                    due_debits, due_funders, collected);
                rows := 0;
                first_versions := '{}';
                last_versions := '{}';
                numbers := '{}';
                lots := '{}';
                amounts := '{}';
                due := 0;
                due_debits := '{}';
                due_funders := '{}';
                collected := '{}';
            END IF;
            IF item.amount > 0 THEN
                PERFORM ledger.credit_lots(
                    p_customer_id, p_currency_code, item.version, item.amount, item.transaction_id, item.debit_id,
                    item.type);
                is_loaded := false;
                CONTINUE;
            END IF;
            SELECT array_agg(l.lot_id), array_agg(l.funder_id), array_agg(l.remaining)
            INTO lot_ids, funders, remaining
            FROM (
                SELECT o.* FROM ledger.credit_lot o
                WHERE o.customer_id = p_customer_id AND o.currency_code = p_currency_code AND o.is_open
                ORDER BY o.priority, o.expire_time NULLS LAST, o.source <> 'promotion', o.opened_version
            ) AS l;
            lot := 1;
            is_loaded := true;
        END IF;

        own_lot := NULL;
        IF item.type IN ('purchase_refund', 'purchase_chargeback') THEN
            -- What goes back is taken out of what it had bought, as far as that is there.
            own_lot := array_position(lot_ids, ledger.reversed_lot(p_customer_id, item.transaction_id));
        ELSIF item.type = 'collection' AND item.debit_id <> item.transaction_id THEN
            collected := collected || item.debit_id;
        END IF;
        need := -item.amount;
        number := 0;
        WHILE need > 0 LOOP
            IF number = 0 AND own_lot IS NOT NULL AND remaining[own_lot] > 0 THEN
                chosen := own_lot;
            ELSE
                WHILE remaining[lot] = 0 LOOP
                    lot := lot + 1;
                END LOOP;
                chosen := lot;
            END IF;
            IF remaining[chosen] IS NULL THEN
                RAISE EXCEPTION 'no lot has what version % took', item.version;
            END IF;
            taken := least(need, remaining[chosen]);
            remaining[chosen] := remaining[chosen] - taken;
            need := need - taken;
            number := number + 1;
            IF number = 1 AND need = 0 AND rows > 0 AND lots[rows] = lot_ids[chosen] AND numbers[rows] = 1 THEN
                -- The debit before was paid wholly by the same lot: one row for both.
                last_versions[rows] := item.version;
                amounts[rows] := amounts[rows] - taken;
            ELSE
                rows := rows + 1;
                first_versions[rows] := item.version;
                last_versions[rows] := item.version;
                numbers[rows] := number;
                lots[rows] := lot_ids[chosen];
                amounts[rows] := -taken;
            END IF;
            IF funders[chosen] NOT IN ('', 'platform') THEN
                due := due + 1;
                due_debits[due] := item.debit_id;
                due_funders[due] := funders[chosen];
            END IF;
        END LOOP;
    END LOOP;
    IF rows > 0 THEN
        PERFORM ledger.write_allocations(
            p_customer_id, p_currency_code, first_versions, last_versions, numbers, lots, amounts,
            due_debits, due_funders, collected);
    END IF;
    UPDATE ledger.lot_cursor c SET allocated_version = p_versions[cardinality(p_versions)]
    WHERE c.customer_id = p_customer_id AND c.currency_code = p_currency_code;
END
$$;


-- Writes what debits took, and marks for settlement what they took of organizations' promotions.
CREATE FUNCTION ledger.write_allocations(
    p_customer_id text, p_currency_code text, p_first_versions bigint[], p_last_versions bigint[],
    p_numbers smallint[], p_lot_ids text[], p_amounts bigint[], p_due_debits text[], p_due_funders text[],
    p_collected text[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.lot_allocation (
        customer_id, currency_code, first_version, last_version, number, lot_id, amount)
    SELECT p_customer_id, p_currency_code, a.* FROM unnest(
        p_first_versions, p_last_versions, p_numbers, p_lot_ids, p_amounts) AS a;
    UPDATE ledger.credit_lot l
    SET remaining = l.remaining + a.amount, is_open = l.remaining + a.amount > 0
    FROM (
        SELECT t.lot_id, sum(t.amount)::bigint AS amount FROM unnest(p_lot_ids, p_amounts) AS t (lot_id, amount)
        GROUP BY t.lot_id
    ) AS a
    WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.lot_id = a.lot_id;
    IF p_due_debits <> '{}' THEN
        INSERT INTO ledger.promotion_due (customer_id, debit_id, funder_id, currency_code)
        SELECT DISTINCT p_customer_id, d.debit_id, d.funder_id, p_currency_code
        FROM unnest(p_due_debits, p_due_funders) AS d (debit_id, funder_id)
        ON CONFLICT DO NOTHING;
    END IF;
    IF p_collected <> '{}' AND EXISTS (
        SELECT FROM ledger.credit_lot l
        WHERE l.customer_id = p_customer_id AND l.currency_code = p_currency_code
          AND l.funder_id NOT IN ('', 'platform')
    ) THEN
        PERFORM ledger.mark_due(p_customer_id, p_currency_code, c.debit_id) FROM unnest(p_collected) AS c (debit_id);
    END IF;
END
$$;

-- Marks a debit for settlement with all organizations whose promotions have paid any of it: what each has to take of its
-- legs depends on how much of the legs is collected, and on what the others take.
CREATE FUNCTION ledger.mark_due(p_customer_id text, p_currency_code text, p_debit_id text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.promotion_due (customer_id, debit_id, funder_id, currency_code)
    SELECT DISTINCT p_customer_id, p_debit_id, l.funder_id, p_currency_code
    FROM ledger.lots_of_debit(p_customer_id, p_currency_code, p_debit_id) AS d
    JOIN ledger.credit_lot l
        ON l.customer_id = p_customer_id AND l.currency_code = p_currency_code AND l.lot_id = d.lot_id
    WHERE d.last_taken IS NOT NULL AND l.funder_id NOT IN ('', 'platform')
    ON CONFLICT DO NOTHING;
END
$$;


-- What a credit does: it gives back to the lots that had paid what it corrects or reinstates, the one that paid last
-- first; whatever else it is, it opens a lot of its own.
CREATE FUNCTION ledger.credit_lots(
    p_customer_id text, p_currency_code text, p_version bigint, p_amount bigint, p_transaction_id text,
    p_debit_id text, p_type ledger.transaction_type
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    given_back text := CASE p_type
        WHEN 'correction' THEN p_debit_id
        WHEN 'purchase_reinstatement' THEN ledger.reinstated_reversal(p_customer_id, p_transaction_id) END;
    opened bigint := p_amount;
    numbers integer := 0;
BEGIN
    IF given_back IS NOT NULL THEN
        WITH part AS (
            SELECT d.lot_id, row_number() OVER latest AS number,
                   least(d.taken, p_amount - (sum(d.taken) OVER latest - d.taken))::bigint AS amount
            FROM ledger.lots_of_debit(p_customer_id, p_currency_code, given_back) AS d
            WHERE d.taken > 0
            WINDOW latest AS (ORDER BY d.last_taken DESC ROWS UNBOUNDED PRECEDING)
        ),
        refilled AS (
            UPDATE ledger.credit_lot l SET remaining = l.remaining + p.amount, is_open = true
            FROM part p
            WHERE p.amount > 0 AND l.customer_id = p_customer_id AND l.currency_code = p_currency_code
              AND l.lot_id = p.lot_id
            RETURNING l.lot_id, p.number, p.amount
        ),
        written AS (
            INSERT INTO ledger.lot_allocation (
                customer_id, currency_code, first_version, last_version, number, lot_id, amount)
            SELECT p_customer_id, p_currency_code, p_version, p_version, r.number, r.lot_id, r.amount
            FROM refilled r
            RETURNING amount
        )
        SELECT p_amount - coalesce(sum(w.amount), 0), count(*) INTO opened, numbers FROM written w;
        PERFORM ledger.mark_due(p_customer_id, p_currency_code, given_back);
    END IF;
    IF opened > 0 THEN
        INSERT INTO ledger.credit_lot (
            customer_id, currency_code, lot_id, source, funder_id, priority, expire_time, check_time, amount, remaining,
            opened_version, create_time)
        SELECT p_customer_id, p_currency_code, p_transaction_id,
               (CASE p_type WHEN 'purchase' THEN 'purchase' WHEN 'promotion' THEN 'promotion'
                    WHEN 'purchase_reinstatement' THEN 'reinstatement' ELSE 'adjustment' END)::ledger.lot_source,
               coalesce(g.funder_id, CASE p_type WHEN 'promotion' THEN 'platform' ELSE '' END),
               coalesce(g.priority, 50), g.expire_time, g.expire_time, opened, opened, p_version, t.create_time
        FROM ledger.transaction t
        LEFT JOIN ledger.credit_grant g ON g.customer_id = p_customer_id AND g.transaction_id = p_transaction_id
        WHERE t.transaction_id = p_transaction_id;
        INSERT INTO ledger.lot_allocation (
            customer_id, currency_code, first_version, last_version, number, lot_id, amount)
        VALUES (p_customer_id, p_currency_code, p_version, p_version, numbers + 1, p_transaction_id, opened);
        -- As grant_credits had marked it.
        DELETE FROM ledger.promotion_due d
        WHERE p_type = 'promotion' AND d.customer_id = p_customer_id AND d.debit_id = p_transaction_id;
    END IF;
END
$$;


-- What lots paid of a debit and did not get back, and when each paid last: (version, number of the lot in that entry).
-- A debit is a charge with its collections and corrections, or another transaction with its reinstatement.
CREATE FUNCTION ledger.lots_of_debit(p_customer_id text, p_currency_code text, p_debit_id text)
RETURNS TABLE (lot_id text, taken bigint, last_taken bigint[]) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT p.lot_id, -sum(p.amount)::bigint, max(ARRAY[p.version, p.number]) FILTER (WHERE p.amount < 0)
    FROM (
        SELECT a.lot_id, e.account_version AS version, a.number::bigint AS number,
               -- One of several debits in a row that a lot paid wholly.
               CASE WHEN a.first_version < a.last_version THEN e.amount ELSE a.amount END AS amount
        FROM ledger.debit_entries(p_customer_id, p_currency_code, p_debit_id) AS e
        CROSS JOIN LATERAL (
            SELECT min(x.last_version) AS version FROM ledger.lot_allocation x
            WHERE x.customer_id = p_customer_id AND x.currency_code = p_currency_code
              AND x.last_version >= e.account_version
        ) AS upto
        JOIN ledger.lot_allocation a
            ON a.customer_id = p_customer_id AND a.currency_code = p_currency_code AND a.last_version = upto.version
           AND a.first_version <= e.account_version
    ) AS p
    GROUP BY p.lot_id;
END
$$;

-- The entries of customer_credits of a debit.
CREATE FUNCTION ledger.debit_entries(p_customer_id text, p_currency_code text, p_debit_id text)
RETURNS SETOF ledger.entry LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_debit_id NOT LIKE 'txn\_%' THEN
        RETURN QUERY
        SELECT e.* FROM ledger.charge_entries(p_debit_id, p_customer_id) AS e
        WHERE e.owner_id = p_customer_id AND e.kind = 'customer_credits' AND e.currency_code = p_currency_code;
    ELSE
        RETURN QUERY
        SELECT e.* FROM (
            SELECT p_debit_id AS transaction_id
            UNION ALL
            SELECT r.reinstatement_transaction_id FROM ledger.purchase_reversal r
            WHERE r.customer_id = p_customer_id AND r.transaction_id = p_debit_id AND r.reinstated > 0
        ) AS t
        JOIN ledger.entry e ON e.transaction_id = t.transaction_id
        WHERE e.owner_id = p_customer_id AND e.kind = 'customer_credits' AND e.currency_code = p_currency_code;
    END IF;
END
$$;

-- The lot of the purchase that a refund or chargeback is about.
CREATE FUNCTION ledger.reversed_lot(p_customer_id text, p_transaction_id text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT k.outcome
    FROM ledger.purchase_reversal r
    JOIN ledger.idempotency k ON k.owner_id = r.customer_id AND k.key = 'grant/' || r.purchase_key
    WHERE r.customer_id = p_customer_id AND r.transaction_id = p_transaction_id
$$;

-- The transaction of the reversal that a reinstatement is about.
CREATE FUNCTION ledger.reinstated_reversal(p_customer_id text, p_transaction_id text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT r.transaction_id FROM ledger.purchase_reversal r
    WHERE r.customer_id = p_customer_id AND r.reinstatement_transaction_id = p_transaction_id
$$;


-- Allocates what has been posted for a customer in every currency, except where that is more than p_limit entries.
CREATE FUNCTION ledger.refresh_lots(p_customer_id text, p_limit integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    currency text;
BEGIN
    FOR currency IN
        SELECT a.currency_code FROM ledger.account a
        WHERE a.owner_id = p_customer_id AND a.kind = 'customer_credits' ORDER BY a.currency_code
    LOOP
        PERFORM ledger.catch_up_lots(p_customer_id, currency, p_limit);
    END LOOP;
END
$$;
