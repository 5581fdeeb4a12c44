-- All functions of the schema but those that policies stand on; the newest migration makes all of them anew.
--
-- How projections are made. The writer calls these functions and has no other rights: what is in a projection follows
-- from the feeds, batch by batch, and every function moves position and rows together or neither.
--
-- SECURITY DEFINER, because a feed is nobody's request: there is no tenant to scope it by. Times travel as micros since
-- 1970, which a driver writes without a look at the calendar.
--
-- The planner knows little of tables that are being filled, and takes them for small. So rows are looked up one by
-- one, in subqueries with a limit, which it cannot turn into a join that reads all of a table; and rows that change are
-- found like that first, and then changed where they are. Nobody moves them in between: see move_feed and lock_revenue.
-- Groups, of which it expects one, are found by hashing and not by sorting, which takes three times as long of such
-- keys. Arrays become rows in SELECT: in FROM each column would be stored by itself first.

-- Not IMMUTABLE, which adding to a timestamptz is not: as STABLE it becomes a part of the statements that call it.
CREATE FUNCTION reporting.from_micros(micros bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'epoch'::timestamptz + micros * interval '1 microsecond'
$$;


-- Sums of bigint as bigint, which sum() makes numbers of any length: several times as dear where groups are small.
CREATE AGGREGATE reporting.total(bigint) (SFUNC = int8pl, STYPE = bigint, INITCOND = '0');


-- A sum of what is not negative, which ends at the largest number there is. Prices are an organization's own, and tokens
-- what a host says: nobody may stop the feed for all by making a sum too large. What the ledger posts is within its own.
CREATE FUNCTION reporting.add_up(so_far bigint, more bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN so_far > 9223372036854775807 - more THEN 9223372036854775807 ELSE so_far + more END
$$;


-- What the charges of a run are for: work, the fees of a subscription, or what closing a billing period charges. The
-- names of runs say it, as services/kit/runs.py makes them; hosts may not name theirs like that.
CREATE FUNCTION reporting.charge_kind(workflow_id text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN workflow_id LIKE 'period/%' THEN 'period_close'
        WHEN workflow_id LIKE 'sub\_%' AND workflow_id
            ~ '^sub_[A-Za-z0-9_.-]+(/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z){2}$' THEN 'subscription'
        ELSE 'usage' END
$$;


-- Moves a feed on from exactly p_after to p_last; false, and nothing is changed, if it is not there. The caller applies
-- what lies between in the same transaction.
CREATE FUNCTION reporting.move_feed(
    p_projection_id integer,
    p_feed text,
    p_log_id text,
    p_after bigint,
    p_last bigint,
    p_head bigint,
    p_apply_time timestamptz,
    p_hear_time timestamptz
) RETURNS boolean LANGUAGE plpgsql SET search_path = reporting, pg_temp AS $$
BEGIN
    -- One batch of a feed at a time. Who retires the projection takes these locks, too. Held to the commit.
    PERFORM FROM feed f WHERE f.projection_id = p_projection_id AND f.feed = p_feed FOR NO KEY UPDATE;
    -- In statements of their own, so that they see what a replica that we waited for has done.
    PERFORM FROM projection p WHERE p.projection_id = p_projection_id AND p.state <> 'retired';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE feed f
    SET log_id = p_log_id, position = p_last, head_position = greatest(f.head_position, p_head, p_last),
        apply_time = p_apply_time, hear_time = greatest(f.hear_time, p_hear_time)
    WHERE f.projection_id = p_projection_id AND f.feed = p_feed AND f.position = p_after
      AND (f.log_id = p_log_id OR f.log_id = '');
    RETURN FOUND;
END
$$;


-- Both feeds change revenue: the journal brings it, and usage says what the work was; whichever comes second looks up
-- the first. So these parts of two batches do not overlap: the second one waits here, and its statements behind this
-- see what the first one committed. Everything else of a batch concerns its own feed alone and goes before. Always
-- behind the lock of the feed.
CREATE FUNCTION reporting.lock_revenue(p_projection_id integer) RETURNS void
LANGUAGE sql SET search_path = reporting, pg_temp AS $$
    SELECT FROM projection p WHERE p.projection_id = p_projection_id FOR NO KEY UPDATE
$$;


-- Whether a feed has become four times as long between two positions. Then the planner is told anew what is in the
-- tables that are looked up in: autovacuum comes minutes later, when millions of rows may have been looked up by an
-- index that finds all rows of a customer.
--
-- The functions that ask have a small statistics target: a sample of some thousand rows says as much about which index
-- finds few rows, and takes a tenth of the time.
CREATE FUNCTION reporting.has_grown(p_after bigint, p_last bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT floor(log(4, p_last)) > floor(log(4, greatest(p_after, 1))) OR p_after = 0
$$;


-- Applies transactions of the journal to a projection that has read it up to exactly p_after. Answers whether it did:
-- false says that another replica was there first, or that the projection is no longer wanted.
--
-- t: the transactions. c: of those that post a charge, the charge. r: what each payee of a charge, a collection or a
-- correction got or gave back; '' for an agent is that of the charge. m: entries of customers and organizations. These
-- three name their transaction by its position. k: how much of which charges corrections took back.
--
-- It waits for the other feed's batch, which is thousands of rows: longer than for a lock of a request.
CREATE FUNCTION reporting.apply_journal(
    p_projection_id integer, p_log_id text, p_after bigint, p_last bigint, p_head bigint,
    p_apply_time bigint, p_hear_time timestamptz,
    t_positions bigint[], t_transaction_ids text[], t_types text[], t_charge_ids text[], t_correction_ids text[],
    t_payout_ids text[], t_reasons text[], t_occur_times bigint[], t_create_times bigint[],
    c_positions bigint[], c_customer_ids text[], c_workflow_ids text[], c_components text[], c_ordinals integer[],
    c_currency_codes text[], c_gross bigint[], c_price_version_ids text[],
    k_charge_ids text[], k_amounts bigint[],
    r_positions bigint[], r_organization_ids text[], r_agent_ids text[], r_currency_codes text[], r_billed bigint[],
    r_platform_fees bigint[], r_processing_fees bigint[], r_net bigint[],
    m_positions bigint[], m_entry_numbers integer[], m_owner_ids text[], m_currency_codes text[], m_kinds text[],
    m_amounts bigint[], m_collected boolean[], m_available_on date[]
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = reporting, pg_temp SET lock_timeout = '25s'
SET default_statistics_target = 10
SET enable_seqscan = off SET enable_sort = off AS $$
BEGIN
    IF NOT move_feed(p_projection_id, 'journal', p_log_id, p_after, p_last, p_head, from_micros(p_apply_time),
                     p_hear_time) THEN
        RETURN false;
    END IF;

    INSERT INTO charge (
        projection_id, charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross_micros,
        price_version_id, transaction_id, position, occur_time, create_time)
    SELECT p_projection_id, t.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code, c.gross,
           c.price_version_id, t.transaction_id, t.position, from_micros(t.occur_time), from_micros(t.create_time)
    FROM (
        SELECT unnest(c_positions) AS position, unnest(c_customer_ids) AS customer_id,
               unnest(c_workflow_ids) AS workflow_id, unnest(c_components) AS component,
               unnest(c_ordinals) AS ordinal, unnest(c_currency_codes) AS currency_code, unnest(c_gross) AS gross,
               unnest(c_price_version_ids) AS price_version_id
    ) AS c
    JOIN (
        SELECT unnest(t_positions) AS position, unnest(t_transaction_ids) AS transaction_id,
               unnest(t_charge_ids) AS charge_id, unnest(t_occur_times) AS occur_time,
               unnest(t_create_times) AS create_time
    ) AS t USING (position);

    WITH given AS MATERIALIZED (
        SELECT m.*, t.transaction_id, t.type, t.charge_id, t.correction_id, t.payout_id, t.reason,
               from_micros(t.occur_time) AS occur_time, from_micros(t.create_time) AS create_time
        FROM (
            SELECT unnest(m_positions) AS position, unnest(m_entry_numbers) AS entry_number,
                   unnest(m_owner_ids) AS owner_id, unnest(m_currency_codes) AS currency_code,
                   unnest(m_kinds) AS kind, unnest(m_amounts) AS amount, unnest(m_collected) AS collected,
                   unnest(m_available_on) AS available_on
        ) AS m
        JOIN (
            SELECT unnest(t_positions) AS position, unnest(t_transaction_ids) AS transaction_id,
                   unnest(t_types) AS type, unnest(t_charge_ids) AS charge_id,
                   unnest(t_correction_ids) AS correction_id, unnest(t_payout_ids) AS payout_id,
                   unnest(t_reasons) AS reason, unnest(t_occur_times) AS occur_time,
                   unnest(t_create_times) AS create_time
        ) AS t USING (position)
    ),
    into_movement AS (
        INSERT INTO movement (
            projection_id, owner_id, currency_code, kind, position, entry_number, transaction_id, type, amount_micros,
            charge_id, correction_id, payout_id, reason, occur_time, create_time)
        SELECT p_projection_id, g.owner_id, g.currency_code, g.kind, g.position, g.entry_number, g.transaction_id,
               g.type, g.amount, g.charge_id, g.correction_id, g.payout_id, g.reason, g.occur_time, g.create_time
        FROM given g
    ),
    into_day AS (
        INSERT INTO movement_day AS d (projection_id, owner_id, currency_code, kind, day, amount_micros)
        SELECT p_projection_id, g.owner_id, g.currency_code, g.kind, (g.create_time AT TIME ZONE 'UTC')::date,
               total(g.amount)
        FROM given g
        GROUP BY 2, 3, 4, 5
        ON CONFLICT (projection_id, owner_id, currency_code, kind, day)
            DO UPDATE SET amount_micros = d.amount_micros + excluded.amount_micros
    )
    INSERT INTO payable_bucket AS b (
        projection_id, organization_id, currency_code, collected, available_on, amount_micros)
    SELECT p_projection_id, g.owner_id, g.currency_code, g.collected, g.available_on, total(g.amount)
    FROM given g
    WHERE g.collected IS NOT NULL
    GROUP BY 2, 3, 4, 5
    ON CONFLICT (projection_id, organization_id, currency_code, collected, available_on)
        DO UPDATE SET amount_micros = b.amount_micros + excluded.amount_micros;
    DELETE FROM payable_bucket b
    WHERE b.projection_id = p_projection_id AND b.amount_micros = 0
      AND b.organization_id = ANY (ARRAY(
          SELECT DISTINCT m.owner_id FROM unnest(m_owner_ids, m_collected) AS m (owner_id, collected)
          WHERE m.collected IS NOT NULL));

    PERFORM lock_revenue(p_projection_id);
    -- Of the event, if usage has said it. Bounded, so that it is looked up row by row and never by reading all usage.
    WITH posted AS MATERIALIZED (
        SELECT c.position, c.customer_id, c.workflow_id, c.ordinal, u.agent_id, u.agent_version, u.action_type,
               charge_kind(c.workflow_id) AS kind
        FROM (
            SELECT unnest(c_positions) AS position, unnest(c_customer_ids) AS customer_id,
                   unnest(c_workflow_ids) AS workflow_id, unnest(c_ordinals) AS ordinal
        ) AS c
        LEFT JOIN LATERAL (
            SELECT u.agent_id, u.agent_version, u.action_type FROM usage u
            WHERE u.projection_id = p_projection_id AND u.customer_id = c.customer_id AND u.workflow_id = c.workflow_id
              AND u.ordinal = c.ordinal
            LIMIT 1
        ) AS u ON true
    ),
    -- Of other work, usage looks up here what it must be told to.
    unnamed AS (
        INSERT INTO unnamed_charge (projection_id, customer_id, workflow_id, ordinal, position)
        SELECT p_projection_id, p.customer_id, p.workflow_id, p.ordinal, p.position FROM posted p
        WHERE p.agent_id IS NULL AND p.kind = 'usage'
    )
    INSERT INTO revenue (
        projection_id, position, organization_id, type, charge_id, agent_id, customer_id, agent_version, action_type,
        currency_code, billed_micros, platform_fee_micros, processing_fee_micros, net_micros, charge_count,
        transaction_id, occur_time, create_time)
    SELECT p_projection_id, r.position, r.organization_id, 'charge', t.charge_id, r.agent_id, p.customer_id,
           CASE p.agent_id WHEN r.agent_id THEN p.agent_version ELSE '' END,
           -- What is no work has a name that no host's action has: there is a space in it.
           CASE WHEN p.kind = 'subscription' THEN 'subscription fee' WHEN p.kind = 'period_close' THEN 'period close'
                WHEN p.agent_id = r.agent_id THEN p.action_type ELSE '' END,
           r.currency_code, r.billed, r.platform_fee, r.processing_fee, r.net, 1, t.transaction_id,
           from_micros(t.occur_time), from_micros(t.create_time)
    FROM (
        SELECT unnest(r_positions) AS position, unnest(r_organization_ids) AS organization_id,
               unnest(r_agent_ids) AS agent_id, unnest(r_currency_codes) AS currency_code, unnest(r_billed) AS billed,
               unnest(r_platform_fees) AS platform_fee, unnest(r_processing_fees) AS processing_fee,
               unnest(r_net) AS net
    ) AS r
    JOIN (
        SELECT unnest(t_positions) AS position, unnest(t_transaction_ids) AS transaction_id,
               unnest(t_charge_ids) AS charge_id, unnest(t_occur_times) AS occur_time,
               unnest(t_create_times) AS create_time
    ) AS t USING (position)
    JOIN posted p USING (position);

    IF '' = ANY (r_agent_ids) THEN
        -- In a statement of its own, since the charge may have come with this very batch.
        INSERT INTO revenue (
            projection_id, position, organization_id, type, charge_id, correction_id, agent_id, customer_id,
            agent_version, action_type, currency_code, billed_micros, platform_fee_micros, processing_fee_micros,
            net_micros, charge_count, transaction_id, occur_time, create_time)
        SELECT p_projection_id, r.position, r.organization_id, t.type, t.charge_id, t.correction_id, o.agent_id,
               o.customer_id, o.agent_version, o.action_type, r.currency_code, r.billed, r.platform_fee,
               r.processing_fee, r.net, 0, t.transaction_id, from_micros(t.occur_time), from_micros(t.create_time)
        FROM (
            SELECT unnest(r_positions) AS position, unnest(r_organization_ids) AS organization_id,
                   unnest(r_agent_ids) AS agent_id, unnest(r_currency_codes) AS currency_code,
                   unnest(r_billed) AS billed, unnest(r_platform_fees) AS platform_fee,
                   unnest(r_processing_fees) AS processing_fee, unnest(r_net) AS net
        ) AS r
        JOIN (
            SELECT unnest(t_positions) AS position, unnest(t_transaction_ids) AS transaction_id,
                   unnest(t_types) AS type, unnest(t_charge_ids) AS charge_id,
                   unnest(t_correction_ids) AS correction_id, unnest(t_occur_times) AS occur_time,
                   unnest(t_create_times) AS create_time
        ) AS t USING (position)
        -- Left joins: what has no charge violates a constraint, and does not go missing.
        LEFT JOIN LATERAL (
            SELECT c.position FROM charge c
            WHERE c.projection_id = p_projection_id AND c.charge_id = t.charge_id
            LIMIT 1
        ) AS c ON true
        LEFT JOIN LATERAL (
            SELECT o.agent_id, o.customer_id, o.agent_version, o.action_type FROM revenue o
            WHERE o.projection_id = p_projection_id AND o.position = c.position
              AND o.organization_id = r.organization_id
            LIMIT 1
        ) AS o ON true
        WHERE r.agent_id = '';
    END IF;

    PERFORM correct_charges(p_projection_id, k_charge_ids, k_amounts);
    PERFORM roll_revenue(p_projection_id, p_after, p_last);
    IF has_grown(p_after, p_last) THEN
        ANALYZE charge, revenue;
    END IF;
    RETURN true;
END
$$;


-- Adds what corrections took back to their charges, each of which is named once.
CREATE FUNCTION reporting.correct_charges(p_projection_id integer, charge_ids text[], amounts bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = reporting, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    found_count integer;
BEGIN
    UPDATE charge c SET corrected_micros = c.corrected_micros + k.amount
    FROM (
        SELECT f.place, k.amount
        FROM unnest(charge_ids, amounts) AS k (charge_id, amount)
        CROSS JOIN LATERAL (
            SELECT c.ctid AS place FROM charge c
            WHERE c.projection_id = p_projection_id AND c.charge_id = k.charge_id
            LIMIT 1
        ) AS f
    ) AS k
    WHERE c.ctid = k.place;
    GET DIAGNOSTICS found_count = ROW_COUNT;
    IF found_count <> cardinality(charge_ids) THEN
        RAISE EXCEPTION 'a correction of a charge that did not come' USING ERRCODE = 'foreign_key_violation';
    END IF;
END
$$;


-- Adds the revenue of these positions to the sums of their quarter hours, days and months: those that tell everything
-- apart, and those of reporting.revenue_sum.
CREATE FUNCTION reporting.roll_revenue(p_projection_id integer, p_after bigint, p_last bigint) RETURNS void
LANGUAGE plpgsql SET search_path = reporting, pg_temp SET enable_seqscan = off SET enable_sort = off AS $$
BEGIN
    WITH quarter AS MATERIALIZED (
        SELECT r.organization_id, r.currency_code,
               date_bin(interval '15 minutes', r.occur_time, 'epoch'::timestamptz) AS start_time,
               r.customer_id, r.agent_id, r.agent_version, r.action_type,
               total(r.platform_fee_micros) AS platform_fee,
               total(r.processing_fee_micros) AS processing_fee,
               total(r.net_micros) AS net, total(r.charge_count) AS charges, count(*) AS rows
        FROM revenue r
        WHERE r.projection_id = p_projection_id AND r.position > p_after AND r.position <= p_last
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ),
    into_sum AS (
        INSERT INTO revenue_sum AS o (
            projection_id, organization_id, currency_code, dimension, grain, start_time, key, platform_fee_micros,
            processing_fee_micros, net_micros, charge_count)
        SELECT p_projection_id, q.organization_id, q.currency_code, d.dimension, d.grain,
               CASE d.grain WHEN 'quarter' THEN q.start_time ELSE date_trunc(d.grain, q.start_time, 'UTC') END,
               CASE d.dimension WHEN 'agent' THEN q.agent_id WHEN 'customer' THEN q.customer_id
                                WHEN 'kind' THEN q.action_type ELSE '' END,
               total(q.platform_fee), total(q.processing_fee), total(q.net), total(q.charges)
        FROM quarter q
        CROSS JOIN (VALUES
            ('all', 'quarter'), ('all', 'day'), ('all', 'month'),
            ('agent', 'quarter'), ('agent', 'day'), ('agent', 'month'),
            ('customer', 'day'), ('customer', 'month'),
            ('kind', 'quarter'), ('kind', 'day'), ('kind', 'month')) AS d (dimension, grain)
        -- Of kinds, only what is no work: what is left of all is work.
        WHERE d.dimension <> 'kind' OR q.action_type IN ('subscription fee', 'period close')
        GROUP BY 2, 3, 4, 5, 6, 7
        ON CONFLICT (projection_id, organization_id, currency_code, dimension, grain, start_time, key)
            DO UPDATE SET
                platform_fee_micros = o.platform_fee_micros + excluded.platform_fee_micros,
                processing_fee_micros = o.processing_fee_micros + excluded.processing_fee_micros,
                net_micros = o.net_micros + excluded.net_micros,
                charge_count = o.charge_count + excluded.charge_count
    )
    INSERT INTO revenue_rollup AS o (
        projection_id, grain, organization_id, currency_code, start_time, customer_id, agent_id, agent_version,
        action_type, platform_fee_micros, processing_fee_micros, net_micros, charge_count, revenue_count)
    SELECT p_projection_id, 'quarter', q.* FROM quarter q
    UNION ALL
    SELECT p_projection_id, g.grain, q.organization_id, q.currency_code, date_trunc(g.grain, q.start_time, 'UTC'),
           q.customer_id, q.agent_id, q.agent_version, q.action_type,
           total(q.platform_fee), total(q.processing_fee), total(q.net), total(q.charges), total(q.rows)
    FROM quarter q CROSS JOIN (VALUES ('day'), ('month')) AS g (grain)
    GROUP BY 2, 3, 4, 5, 6, 7, 8, 9
    ON CONFLICT (projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id,
                 agent_version, action_type)
        DO UPDATE SET
            platform_fee_micros = o.platform_fee_micros + excluded.platform_fee_micros,
            processing_fee_micros = o.processing_fee_micros + excluded.processing_fee_micros,
            net_micros = o.net_micros + excluded.net_micros,
            charge_count = o.charge_count + excluded.charge_count,
            revenue_count = o.revenue_count + excluded.revenue_count;
END
$$;


-- Applies usage to a projection that has read it up to exactly p_after, as apply_journal does.
--
-- e: the events. o: outcomes that were decided, of events of this batch or of earlier ones. `lines` are in hexadecimal.
CREATE FUNCTION reporting.apply_usage(
    p_projection_id integer, p_log_id text, p_after bigint, p_last bigint, p_head bigint,
    p_apply_time bigint, p_hear_time timestamptz,
    e_customer_ids text[], e_workflow_ids text[], e_ordinals integer[], e_organization_ids text[], e_agent_ids text[],
    e_agent_versions text[], e_action_types text[], e_models text[], e_input_tokens bigint[], e_output_tokens bigint[],
    e_outcomes text[], e_currency_codes text[], e_prices bigint[], e_lines text[], e_model_costs numeric[],
    e_occur_times bigint[],
    o_customer_ids text[], o_workflow_ids text[], o_ordinals integer[], o_outcomes text[], o_bonuses bigint[],
    o_lines text[]
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = reporting, pg_temp SET lock_timeout = '25s'
SET default_statistics_target = 10
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off AS $$
DECLARE
    decided_count integer;
BEGIN
    IF NOT move_feed(p_projection_id, 'usage', p_log_id, p_after, p_last, p_head, from_micros(p_apply_time),
                     p_hear_time) THEN
        RETURN false;
    END IF;

    WITH recorded AS (
        INSERT INTO usage (
            projection_id, customer_id, workflow_id, ordinal, organization_id, agent_id, agent_version, action_type,
            model, input_tokens, output_tokens, outcome, currency_code, price_micros, price_lines, model_cost_usd,
            occur_time)
        SELECT p_projection_id, e.customer_id, e.workflow_id, e.ordinal, e.organization_id, e.agent_id, e.agent_version,
               e.action_type, e.model, e.input_tokens, e.output_tokens, e.outcome, e.currency_code, e.price,
               decode(e.lines, 'hex'), e.model_cost, from_micros(e.occur_time)
        FROM (
            SELECT unnest(e_customer_ids) AS customer_id, unnest(e_workflow_ids) AS workflow_id,
                   unnest(e_ordinals) AS ordinal, unnest(e_organization_ids) AS organization_id,
                   unnest(e_agent_ids) AS agent_id, unnest(e_agent_versions) AS agent_version,
                   unnest(e_action_types) AS action_type, unnest(e_models) AS model,
                   unnest(e_input_tokens) AS input_tokens, unnest(e_output_tokens) AS output_tokens,
                   unnest(e_outcomes) AS outcome, unnest(e_currency_codes) AS currency_code,
                   unnest(e_prices) AS price, unnest(e_lines) AS lines, unnest(e_model_costs) AS model_cost,
                   unnest(e_occur_times) AS occur_time
        ) AS e
        RETURNING organization_id, currency_code, customer_id, agent_id, agent_version, action_type, model,
                  input_tokens, output_tokens, outcome, price_micros, model_cost_usd, occur_time
    ),
    quarter AS MATERIALIZED (
        SELECT u.organization_id, u.currency_code,
               date_bin(interval '15 minutes', u.occur_time, 'epoch'::timestamptz) AS start_time,
               u.customer_id, u.agent_id, u.agent_version, u.action_type, u.model,
               count(*) AS executions, total(u.input_tokens) AS input_tokens,
               total(u.output_tokens) AS output_tokens, total(u.price_micros) AS cost,
               count(*) FILTER (WHERE u.outcome = 'success') AS success,
               count(*) FILTER (WHERE u.outcome = 'failure') AS failure,
               count(*) FILTER (WHERE u.outcome = 'partial') AS partial,
               count(*) FILTER (WHERE u.outcome = 'unknown') AS unknown,
               count(*) FILTER (WHERE u.outcome = 'pending') AS pending,
               count(u.model_cost_usd) AS priced,
               total(u.price_micros) FILTER (WHERE u.model_cost_usd IS NOT NULL) AS priced_cost,
               coalesce(sum(u.model_cost_usd), 0) AS model_cost
        FROM recorded u
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    )
    INSERT INTO usage_rollup AS o (
        projection_id, grain, organization_id, currency_code, start_time, customer_id, agent_id, agent_version,
        action_type, model, execution_count, input_tokens, output_tokens, cost_micros, success_count, failure_count,
        partial_count, unknown_count, pending_count, priced_count, priced_cost_micros, model_cost_usd)
    SELECT p_projection_id, 'quarter', q.* FROM quarter q
    UNION ALL
    SELECT p_projection_id, g.grain, q.organization_id, q.currency_code, date_trunc(g.grain, q.start_time, 'UTC'),
           q.customer_id, q.agent_id, q.agent_version, q.action_type, q.model,
           total(q.executions), total(q.input_tokens), total(q.output_tokens), total(q.cost), total(q.success),
           total(q.failure), total(q.partial), total(q.unknown), total(q.pending), total(q.priced),
           total(q.priced_cost), sum(q.model_cost)
    FROM quarter q CROSS JOIN (VALUES ('day'), ('month')) AS g (grain)
    GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10
    ON CONFLICT (projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id,
                 agent_version, action_type, model)
        DO UPDATE SET
            execution_count = o.execution_count + excluded.execution_count,
            input_tokens = add_up(o.input_tokens, excluded.input_tokens),
            output_tokens = add_up(o.output_tokens, excluded.output_tokens),
            cost_micros = add_up(o.cost_micros, excluded.cost_micros),
            success_count = o.success_count + excluded.success_count,
            failure_count = o.failure_count + excluded.failure_count,
            partial_count = o.partial_count + excluded.partial_count,
            unknown_count = o.unknown_count + excluded.unknown_count,
            pending_count = o.pending_count + excluded.pending_count,
            priced_count = o.priced_count + excluded.priced_count,
            priced_cost_micros = add_up(o.priced_cost_micros, excluded.priced_cost_micros),
            model_cost_usd = o.model_cost_usd + excluded.model_cost_usd;

    IF cardinality(o_customer_ids) > 0 THEN
        -- Counted at the time of the event: its rollup rows are there, and change.
        WITH decided AS (
            UPDATE usage u
            SET outcome = d.outcome, bonus_micros = d.bonus, bonus_lines = decode(d.lines, 'hex')
            FROM (
                SELECT f.place, o.outcome, o.bonus, o.lines
                FROM (
                    SELECT unnest(o_customer_ids) AS customer_id, unnest(o_workflow_ids) AS workflow_id,
                           unnest(o_ordinals) AS ordinal, unnest(o_outcomes) AS outcome, unnest(o_bonuses) AS bonus,
                           unnest(o_lines) AS lines
                ) AS o
                CROSS JOIN LATERAL (
                    SELECT u.ctid AS place FROM usage u
                    WHERE u.projection_id = p_projection_id AND u.customer_id = o.customer_id
                      AND u.workflow_id = o.workflow_id AND u.ordinal = o.ordinal AND u.outcome = 'pending'
                    LIMIT 1
                ) AS f
            ) AS d
            WHERE u.ctid = d.place
            RETURNING u.*
        ),
        change AS (
            SELECT u.organization_id, u.currency_code, g.grain,
                   CASE g.grain WHEN 'quarter'
                        THEN date_bin(interval '15 minutes', u.occur_time, 'epoch'::timestamptz)
                        ELSE date_trunc(g.grain, u.occur_time, 'UTC') END AS start_time,
                   u.customer_id, u.agent_id, u.agent_version, u.action_type, u.model,
                   count(*) AS decided, total(u.bonus_micros) AS bonus,
                   count(*) FILTER (WHERE u.outcome = 'success') AS success,
                   count(*) FILTER (WHERE u.outcome = 'failure') AS failure,
                   count(*) FILTER (WHERE u.outcome = 'partial') AS partial,
                   count(*) FILTER (WHERE u.outcome = 'unknown') AS unknown,
                   total(u.bonus_micros) FILTER (WHERE u.model_cost_usd IS NOT NULL) AS priced_bonus
            FROM decided u CROSS JOIN (VALUES ('quarter'), ('day'), ('month')) AS g (grain)
            GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
        ),
        changed AS (
            INSERT INTO usage_rollup AS o (
                projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id, agent_version,
                action_type, model, execution_count, input_tokens, output_tokens, cost_micros, success_count,
                failure_count, partial_count, unknown_count, pending_count, priced_count, priced_cost_micros,
                model_cost_usd)
            SELECT p_projection_id, c.organization_id, c.currency_code, c.grain, c.start_time, c.customer_id,
                   c.agent_id, c.agent_version, c.action_type, c.model, 0, 0, 0, c.bonus, c.success, c.failure,
                   c.partial, c.unknown, -c.decided, 0, c.priced_bonus, 0
            FROM change c
            ON CONFLICT (projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id,
                         agent_version, action_type, model)
                DO UPDATE SET
                    cost_micros = add_up(o.cost_micros, excluded.cost_micros),
                    success_count = o.success_count + excluded.success_count,
                    failure_count = o.failure_count + excluded.failure_count,
                    partial_count = o.partial_count + excluded.partial_count,
                    unknown_count = o.unknown_count + excluded.unknown_count,
                    pending_count = o.pending_count + excluded.pending_count,
                    priced_cost_micros = add_up(o.priced_cost_micros, excluded.priced_cost_micros)
        )
        SELECT count(*) INTO decided_count FROM decided;
        IF decided_count <> cardinality(o_customer_ids) THEN
            RAISE EXCEPTION 'an outcome of an event that did not come, or is not pending'
                USING ERRCODE = 'foreign_key_violation';
        END IF;
    END IF;

    PERFORM lock_revenue(p_projection_id);
    PERFORM name_revenue(p_projection_id, e_customer_ids, e_workflow_ids, e_ordinals, e_agent_ids, e_agent_versions,
                         e_action_types);
    IF has_grown(p_after, p_last) THEN
        ANALYZE usage;
    END IF;
    RETURN true;
END
$$;


-- Tells revenue that was there before its usage what version did what, and moves it in the sums accordingly.
CREATE FUNCTION reporting.name_revenue(
    p_projection_id integer, e_customer_ids text[], e_workflow_ids text[], e_ordinals integer[], e_agent_ids text[],
    e_agent_versions text[], e_action_types text[]
) RETURNS void LANGUAGE plpgsql SET search_path = reporting, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    places tid[];
    agent_versions text[];
    action_types text[];
    emptied tid[];
BEGIN
    WITH charged AS (
        -- The base's charge and the outcome's have the same event.
        DELETE FROM unnamed_charge n USING (
            SELECT f.place, e.agent_id, e.agent_version, e.action_type
            FROM (
                SELECT unnest(e_customer_ids) AS customer_id, unnest(e_workflow_ids) AS workflow_id,
                       unnest(e_ordinals) AS ordinal, unnest(e_agent_ids) AS agent_id,
                       unnest(e_agent_versions) AS agent_version, unnest(e_action_types) AS action_type
            ) AS e
            CROSS JOIN LATERAL (
                SELECT n.ctid AS place FROM unnamed_charge n
                WHERE n.projection_id = p_projection_id AND n.customer_id = e.customer_id
                  AND n.workflow_id = e.workflow_id AND n.ordinal = e.ordinal
                LIMIT 1000000
            ) AS f
        ) AS e
        WHERE n.ctid = e.place
        RETURNING n.position, e.agent_id, e.agent_version, e.action_type
    ),
    posted AS (
        SELECT r.place, r.charge_id, e.agent_id, e.agent_version, e.action_type
        FROM charged e
        CROSS JOIN LATERAL (
            SELECT r.ctid AS place, r.charge_id FROM revenue r
            WHERE r.projection_id = p_projection_id AND r.position = e.position AND r.agent_id = e.agent_id
            LIMIT 1000000
        ) AS r
        WHERE e.agent_version <> '' OR e.action_type <> ''
    ),
    found AS (
        SELECT p.place, p.agent_version, p.action_type FROM posted p
        UNION ALL
        -- What was collected or taken back since.
        SELECT r.place, p.agent_version, p.action_type
        FROM (SELECT DISTINCT p.charge_id, p.agent_id, p.agent_version, p.action_type FROM posted p) AS p
        CROSS JOIN LATERAL (
            SELECT r.ctid AS place FROM revenue r
            WHERE r.projection_id = p_projection_id AND r.charge_id = p.charge_id AND r.agent_id = p.agent_id
              AND r.type <> 'charge'
            LIMIT 1000000
        ) AS r
    )
    SELECT array_agg(f.place), array_agg(f.agent_version), array_agg(f.action_type)
    INTO places, agent_versions, action_types
    FROM found f;
    IF places IS NULL THEN
        RETURN;
    END IF;
    WITH named AS (
        UPDATE revenue r SET agent_version = f.agent_version, action_type = f.action_type
        FROM (
            SELECT unnest(places) AS place, unnest(agent_versions) AS agent_version,
                   unnest(action_types) AS action_type
        ) AS f
        WHERE r.ctid = f.place
        RETURNING r.*
    ),
    -- Out of the sum of what has no name, into that of its name.
    moved AS (
        SELECT n.organization_id, n.currency_code, g.grain,
               CASE g.grain WHEN 'quarter'
                    THEN date_bin(interval '15 minutes', n.occur_time, 'epoch'::timestamptz)
                    ELSE date_trunc(g.grain, n.occur_time, 'UTC') END AS start_time,
               n.customer_id, n.agent_id,
               CASE s.sign WHEN 1 THEN n.agent_version ELSE '' END AS agent_version,
               CASE s.sign WHEN 1 THEN n.action_type ELSE '' END AS action_type,
               total(s.sign * n.platform_fee_micros) AS platform_fee,
               total(s.sign * n.processing_fee_micros) AS processing_fee,
               total(s.sign * n.net_micros) AS net, total(s.sign * n.charge_count) AS charges, total(s.sign) AS rows
        FROM named n
        CROSS JOIN (VALUES ('quarter'), ('day'), ('month')) AS g (grain)
        CROSS JOIN (VALUES (1), (-1)) AS s (sign)
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    ),
    summed AS (
        INSERT INTO revenue_rollup AS o (
            projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id, agent_version,
            action_type, platform_fee_micros, processing_fee_micros, net_micros, charge_count, revenue_count)
        SELECT p_projection_id, m.organization_id, m.currency_code, m.grain, m.start_time, m.customer_id, m.agent_id,
               m.agent_version, m.action_type, m.platform_fee, m.processing_fee, m.net, m.charges, m.rows
        FROM moved m
        ON CONFLICT (projection_id, organization_id, currency_code, grain, start_time, customer_id, agent_id,
                     agent_version, action_type)
            DO UPDATE SET
                platform_fee_micros = o.platform_fee_micros + excluded.platform_fee_micros,
                processing_fee_micros = o.processing_fee_micros + excluded.processing_fee_micros,
                net_micros = o.net_micros + excluded.net_micros,
                charge_count = o.charge_count + excluded.charge_count,
                revenue_count = o.revenue_count + excluded.revenue_count
        RETURNING o.ctid AS place, o.revenue_count
    )
    SELECT array_agg(s.place) INTO emptied FROM summed s WHERE s.revenue_count = 0;
    -- Nobody moves them before the commit: see lock_revenue.
    DELETE FROM revenue_rollup o WHERE o.ctid = ANY (emptied);
END
$$;


-- Notes that a feed was asked at p_hear_time and had nothing behind this position.
CREATE FUNCTION reporting.hear(
    p_projection_id integer, p_feed text, p_position bigint, p_hear_time timestamptz
) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
    -- Not if a batch was applied meanwhile: that knows more.
    UPDATE feed f SET hear_time = greatest(f.hear_time, p_hear_time)
    WHERE f.projection_id = p_projection_id AND f.feed = p_feed AND f.position = p_position
$$;


-- Notes that what a projection has read of a feed is no longer there. The log may go by the same name, as in a restored
-- backup that ends before what was read: then its positions say nothing of how far another projection must read to know
-- as much, and its new records must never be applied behind the old ones.
CREATE FUNCTION reporting.lose_feed(p_projection_id integer, p_feed text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
    UPDATE feed f SET log_id = 'lost:' || f.log_id
    WHERE f.projection_id = p_projection_id AND f.feed = p_feed AND f.log_id NOT LIKE 'lost:%'
$$;


-- The projection that is being built, begun if there is none; the first one of all answers from the beginning. One
-- whose feeds are no longer what it has read of, p_lost, is retired if it was being built; if it answers, it goes on.
-- With p_first, only for want of any: the one that answers, if there is one.
CREATE FUNCTION reporting.begin_projection(p_lost integer, p_first boolean) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
DECLARE
    found_id integer;
BEGIN
    -- Before the lock of the table, as everywhere: batches that are being applied end first, and none begins.
    PERFORM FROM feed f WHERE f.projection_id = p_lost ORDER BY f.feed FOR UPDATE;
    -- Two replicas that find out at the same time begin one projection: the second one waits, and finds the first
    -- one's. Batches, which only lock rows of it, go on.
    LOCK TABLE projection IN SHARE ROW EXCLUSIVE MODE;
    IF p_first THEN
        SELECT p.projection_id INTO found_id FROM projection p WHERE p.state = 'serving';
        IF FOUND THEN
            RETURN found_id;
        END IF;
    END IF;
    UPDATE projection p SET state = 'retired', retire_time = clock_timestamp()
    WHERE p.projection_id = p_lost AND p.state = 'building';
    SELECT p.projection_id INTO found_id FROM projection p WHERE p.state = 'building';
    IF found_id IS NULL THEN
        INSERT INTO projection (state, serve_time)
        SELECT CASE WHEN answers THEN 'building' ELSE 'serving' END, CASE WHEN NOT answers THEN now() END
        FROM (SELECT EXISTS (SELECT FROM projection p WHERE p.state = 'serving') AS answers) AS other
        RETURNING projection_id INTO found_id;
        INSERT INTO feed (projection_id, feed) VALUES (found_id, 'journal'), (found_id, 'usage');
    END IF;
    RETURN found_id;
END
$$;


-- Lets a projection answer that has read as far as the one that does, and retires that. Answers whether it did. Where
-- they have read different logs, it must have come to the end of its own, of which it has heard.
CREATE FUNCTION reporting.serve_projection(p_projection_id integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
BEGIN
    -- Both stand still from here to the commit: neither is applied to, and nobody else swaps them.
    PERFORM FROM feed f JOIN projection p USING (projection_id) WHERE p.state IN ('serving', 'building')
    ORDER BY f.projection_id, f.feed FOR UPDATE OF f;
    -- Behind the locks, in a statement of its own.
    PERFORM FROM projection p
    WHERE p.projection_id = p_projection_id AND p.state = 'building' AND NOT EXISTS (
        SELECT FROM feed built
        JOIN feed served ON served.feed = built.feed
        JOIN projection s ON s.projection_id = served.projection_id AND s.state = 'serving'
        WHERE built.projection_id = p_projection_id
          AND CASE WHEN built.log_id IN (served.log_id, '') AND served.log_id NOT LIKE 'lost:%'
                   THEN built.position < served.position
                   ELSE built.hear_time IS NULL OR built.position < built.head_position END);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE projection p SET state = 'retired', retire_time = clock_timestamp() WHERE p.state = 'serving';
    UPDATE projection p SET state = 'serving', serve_time = clock_timestamp() WHERE p.projection_id = p_projection_id;
    RETURN true;
END
$$;


-- Removes up to p_limit rows of each table of projections that were retired before p_retired_before. Answers whether
-- something is left of them.
CREATE FUNCTION reporting.remove_projections(p_retired_before timestamptz, p_limit integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = reporting, pg_temp SET enable_seqscan = off AS $$
DECLARE
    gone_id integer;
    table_name text;
    removed integer;
    more boolean := false;
BEGIN
    -- Another replica that removes it has it locked; there is nothing to wait for.
    SELECT p.projection_id INTO gone_id FROM projection p
    WHERE p.state = 'retired' AND p.retire_time <= p_retired_before
    ORDER BY p.projection_id LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    FOREACH table_name IN ARRAY ARRAY[
        'charge', 'unnamed_charge', 'revenue', 'movement', 'movement_day', 'payable_bucket', 'usage', 'revenue_rollup',
        'revenue_sum', 'usage_rollup'
    ] LOOP
        EXECUTE format(
            'DELETE FROM reporting.%I WHERE ctid = ANY (ARRAY('
                || 'SELECT ctid FROM reporting.%I WHERE projection_id = $1 LIMIT $2))', table_name, table_name)
        USING gone_id, p_limit;
        GET DIAGNOSTICS removed = ROW_COUNT;
        more := more OR removed = p_limit;
    END LOOP;
    IF NOT more THEN
        DELETE FROM projection p WHERE p.projection_id = gone_id;
    END IF;
    RETURN true;
END
$$;


-- Which run charges are for. A charge is its payer's; its payees see their own shares, in `revenue`, and of the charge no
-- more than this: not what others share in it.
CREATE FUNCTION reporting.charge_identities(p_projection_id integer, p_charge_ids text[])
RETURNS TABLE (
    charge_id text, customer_id text, workflow_id text, component text, ordinal integer, price_version_id text,
    work_time timestamptz, post_time timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
    SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.price_version_id,
           c.occur_time, c.create_time
    FROM charge AS c
    WHERE c.projection_id = p_projection_id AND c.charge_id = ANY (p_charge_ids)
      AND ((SELECT visible(NULL))
           OR c.customer_id = ANY (ARRAY(SELECT visible_owners()))
           -- Its payees have revenue of the transaction that posted it.
           OR EXISTS (
               SELECT FROM revenue AS r
               WHERE r.projection_id = c.projection_id AND r.position = c.position
                 AND r.organization_id = ANY (ARRAY(SELECT visible_owners()))))
$$;


-- Only what the writer is meant to call. Functions are executable by everybody unless that is taken away.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA reporting FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    reporting.visible, reporting.visible_owners, reporting.serving, reporting.charge_identities
TO reporting_reader, reporting_writer;
GRANT EXECUTE ON FUNCTION
    reporting.apply_journal, reporting.apply_usage, reporting.hear, reporting.lose_feed,
    reporting.begin_projection, reporting.serve_projection, reporting.remove_projections
TO reporting_writer;
