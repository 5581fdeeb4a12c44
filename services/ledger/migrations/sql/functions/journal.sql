-- The journal for readers of all of it, column by column: what stands at the positions behind p_after, up to p_until, and
-- passes the filter (an empty list lets everything through). It sees what its caller may see, and that is one round trip
-- and a plan that is kept, for a thousand transactions.
--
-- Columns come packed: numbers as they travel, one behind the other, and ids between commas, which no id has. As arrays
-- they would cost half as much again, here and where they are read; arrays are what may have any text in it. Times are
-- micros and dates days since 2000-01-01.
--
-- positions and transaction_ids are in the order of positions. The columns of transactions are in the order of
-- sorted_transaction_ids, those of entries in that of entered_transaction_ids, which have any, and then of their numbers
-- (1, 2, 3 and so on in each transaction), those of charges and payees in that of sorted_charge_ids. These are the orders
-- of indexes; positions may have another one where several wrote at once.
CREATE FUNCTION ledger.read_journal(
    p_log_id text, p_after bigint, p_until bigint, p_types text[], p_owner_ids text[], p_include_charges boolean,
    OUT positions bytea,
    OUT transaction_ids text,
    OUT sorted_transaction_ids text,
    OUT types text,
    OUT partition_ids text,
    OUT charge_ids text,
    OUT correction_ids text[],
    OUT payout_ids text,
    OUT external_ids text[],
    OUT occur_times bytea,
    OUT create_times bytea,
    OUT reasons text[],
    OUT actor_api_key_ids text,
    OUT entered_transaction_ids text,
    OUT entry_numbers bytea,
    OUT owner_ids text,
    OUT kinds text,
    OUT currency_codes text,
    OUT amounts bytea,
    OUT collected bytea,
    OUT earned_on bytea,
    OUT available_on bytea,
    OUT account_versions bytea,
    OUT sorted_charge_ids text,
    OUT customer_ids text,
    OUT workflow_ids text,
    OUT components bytea,
    OUT ordinals bytea,
    OUT charge_currency_codes text,
    OUT gross bytea,
    OUT price_version_ids text,
    OUT evidence_hashes bytea[],
    OUT reservation_ids text,
    OUT payee_counts bytea,
    OUT organization_ids text,
    OUT agent_ids text,
    OUT payee_gross text,
    OUT platform_fees text,
    OUT processing_fees text,
    OUT platform_fee_bps text,
    OUT processing_fee_bps text
)
-- Each row is looked up in an index: a plan that reads all of a large table would do so for every slice of the log.
LANGUAGE plpgsql STABLE SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    found_ids text[];
    found_charge_ids text[];
BEGIN
    -- The range is bounded before the filter is applied, so a filter that lets little through neither scans the whole log
    -- in one statement nor hides how far it has read.
    IF p_types = '{}' AND p_owner_ids = '{}' THEN
        SELECT string_agg(int8send(f.position), ''), array_agg(f.transaction_id)
        INTO positions, found_ids
        FROM (
            SELECT p.position, p.transaction_id FROM ledger.journal_position p
            WHERE p.log_id = p_log_id AND p.position > p_after AND p.position <= p_until
            ORDER BY p.position
        ) AS f;
    ELSE
        SELECT string_agg(int8send(f.position), ''), array_agg(f.transaction_id)
        INTO positions, found_ids
        FROM (
            SELECT p.position, p.transaction_id
            FROM ledger.journal_position p
            JOIN ledger.transaction t USING (transaction_id, partition_id)
            WHERE p.log_id = p_log_id AND p.position > p_after AND p.position <= p_until
              AND (p_types = '{}' OR t.type::text = ANY (p_types))
              AND (p_owner_ids = '{}' OR EXISTS (
                  SELECT FROM ledger.entry e
                  WHERE e.transaction_id = t.transaction_id AND e.owner_id = ANY (p_owner_ids)))
            ORDER BY p.position
        ) AS f;
    END IF;
    IF found_ids IS NULL THEN
        RETURN;
    END IF;
    transaction_ids := array_to_string(found_ids, ',');
    SELECT string_agg(f.transaction_id, ','), string_agg(f.type::text, ','), string_agg(f.partition_id, ','),
           string_agg(coalesce(f.charge_id, ''), ','), array_agg(f.correction_id),
           string_agg(coalesce(f.payout_id, ''), ','), array_agg(f.external_id),
           string_agg(timestamptz_send(f.occur_time), ''), string_agg(timestamptz_send(f.create_time), ''),
           array_agg(nullif(f.reason, '')), string_agg(f.actor_api_key_id, ','),
           array_agg(f.charge_id) FILTER (WHERE p_include_charges AND f.type = 'charge')
    INTO sorted_transaction_ids, types, partition_ids, charge_ids, correction_ids, payout_ids, external_ids,
         occur_times, create_times, reasons, actor_api_key_ids, found_charge_ids
    FROM (
        SELECT * FROM ledger.transaction t WHERE t.transaction_id = ANY (found_ids) ORDER BY t.transaction_id
    ) AS f;
    SELECT string_agg(f.transaction_id, ',') FILTER (WHERE f.entry_number = 1),
           string_agg(int2send(f.entry_number), ''), string_agg(f.owner_id, ','), string_agg(f.kind::text, ','),
           string_agg(f.currency_code, ','), string_agg(int8send(f.amount), ''),
           string_agg(boolsend(coalesce(f.collected, false)), ''),
           -- No earnings are of this day.
           string_agg(date_send(coalesce(f.earned_on, '-infinity')), ''),
           string_agg(date_send(coalesce(f.available_on, '-infinity')), ''),
           string_agg(int8send(coalesce(f.account_version, 0)), '')
    INTO entered_transaction_ids, entry_numbers, owner_ids, kinds, currency_codes, amounts, collected, earned_on,
         available_on, account_versions
    FROM (
        SELECT * FROM ledger.entry e
        WHERE e.transaction_id = ANY (found_ids) ORDER BY e.transaction_id, e.entry_number
    ) AS f;
    IF found_charge_ids IS NULL THEN
        RETURN;
    END IF;
    SELECT string_agg(f.charge_id, ','), string_agg(f.customer_id, ','), string_agg(f.workflow_id, ','),
           string_agg(int2send(f.component), ''), string_agg(int4send(f.ordinal), ''),
           string_agg(f.currency_code, ','), string_agg(int8send(f.gross), ''), string_agg(f.price_version_id, ','),
           array_agg(f.evidence_hash), string_agg(f.reservation_id, ','),
           string_agg(int4send(cardinality(f.organization_ids)), ''),
           string_agg(array_to_string(f.organization_ids, ','), ','), string_agg(array_to_string(f.agent_ids, ','), ','),
           -- As text: of so short arrays that is done in one step.
           string_agg(array_to_string(f.payee_gross, ','), ','), string_agg(array_to_string(f.platform_fees, ','), ','),
           string_agg(array_to_string(f.processing_fees, ','), ','),
           string_agg(array_to_string(f.platform_fee_bps, ','), ','),
           string_agg(array_to_string(f.processing_fee_bps, ','), ',')
    INTO sorted_charge_ids, customer_ids, workflow_ids, components, ordinals, charge_currency_codes, gross,
         price_version_ids, evidence_hashes, reservation_ids, payee_counts, organization_ids, agent_ids, payee_gross,
         platform_fees, processing_fees, platform_fee_bps, processing_fee_bps
    FROM (
        SELECT * FROM ledger.charge c WHERE c.charge_id = ANY (found_charge_ids) ORDER BY c.charge_id
    ) AS f;
END
$$;
