-- The seal: leaves of the Merkle log, and what is stored about its tree. docs/seal.md specifies the canonical form that
-- is hashed here; tallystick/seal/canonical.py is the other half of the tally, and tests compare the two.
--
-- record_send writes a row as PostgreSQL sends it: the number of fields, then each field's type number, its length and
-- its bytes. That is an unambiguous form, it is fixed by the wire protocol, and it costs a fifth of putting it together
-- in SQL. Only types whose numbers never change appear in it: bool 16, bytea 17, int8 20, text 25, date 1082,
-- timestamptz 1184.


-- Where the database lives: the cluster's own number and its timeline, which changes when a backup is recovered to a
-- point in time and when a standby is promoted.
CREATE FUNCTION ledger.present_cluster() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) FROM pg_control_system()
$$;


-- Begins a log that continues p_log_id: every transaction gets its place in it, in the order of the old one. Whoever
-- follows the old one's feed is told to read again from the start. Answers the new log, or NULL if p_log_id is no longer
-- the newest because somebody else was faster.
CREATE FUNCTION ledger.begin_log(p_log_id text, p_reason text, p_lost_log_id text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    old ledger.journal_log;
    new_log_id text := 'log_' || replace(gen_random_uuid()::text, '-', '');
BEGIN
    -- Nobody gives positions of the old log while its positions are copied.
    SELECT * INTO old FROM ledger.journal_log WHERE log_id = p_log_id FOR NO KEY UPDATE;
    IF NOT FOUND OR EXISTS (
        -- A later statement than the lock, so it sees what the lock waited for.
        SELECT FROM ledger.journal_log WHERE create_time > old.create_time
    ) THEN
        RETURN NULL;
    END IF;
    -- The newest by its time, whatever the clock of this machine says.
    INSERT INTO ledger.journal_log (
        log_id, last_position, create_time, cluster, previous_log_id, lost_log_id,
        begin_reason)
    VALUES (
        new_log_id, old.last_position, greatest(clock_timestamp(), old.create_time + interval '1 microsecond'),
        ledger.present_cluster(), old.log_id, p_lost_log_id, p_reason);
    INSERT INTO ledger.journal_position (log_id, position, partition_id, transaction_id)
    SELECT new_log_id, position, partition_id, transaction_id
    FROM ledger.journal_position WHERE log_id = old.log_id;
    INSERT INTO ledger.seal_state (log_id) VALUES (new_log_id);
    RETURN new_log_id;
END
$$;


-- An entry, salted and hashed. Ids, kinds and currencies are ASCII, so it does not depend on the client's encoding. Its
-- columns come one by one: taken out of a row they would cost twice as much as the hash.
CREATE FUNCTION ledger.entry_commitment(
    salt bytea, entry_number smallint, owner_id text, kind ledger.account_kind, currency_code text, amount bigint,
    collected boolean, earned_on date, available_on date, account_version bigint
) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(salt || record_send(ROW(
        'tallystick/entry/v1'::text, entry_number::bigint, owner_id, kind::text, currency_code, amount,
        collected, earned_on, available_on, coalesce(account_version, 0))))
$$;

-- Another detail of a transaction that not everybody may see, salted and hashed.
CREATE FUNCTION ledger.detail_commitment(salt bytea, name text, content bytea) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(salt || record_send(ROW('tallystick/detail/v1'::text, name, content)))
$$;


-- Makes the leaves of the next positions of the newest log, at most p_limit; answers how many. Any number of sealers may
-- run: whoever finds the log's state locked leaves the work to its holder. Only positions that are committed are seen
-- here, and a checkpoint is only made of leaves that are: nothing is signed that could still be undone.
CREATE FUNCTION ledger.hash_leaves(p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET plan_cache_mode = force_generic_plan
-- Texts are hashed as they are sent.
SET client_encoding = 'UTF8' SET enable_seqscan = off AS $$
DECLARE
    log ledger.journal_log;
    state ledger.seal_state;
    until bigint;
    seed bytea;
    erased record;
    none CONSTANT bytea := '\x00000000000000000000000000000000';
BEGIN
    SELECT * INTO state FROM ledger.seal_state
    WHERE log_id = (SELECT newest.log_id FROM ledger.journal_log newest ORDER BY newest.create_time DESC LIMIT 1)
    FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    SELECT * INTO log FROM ledger.journal_log WHERE log_id = state.log_id;
    until := least(log.last_position, state.hashed_position + p_limit);
    IF until <= state.hashed_position THEN
        RETURN 0;
    END IF;
    -- Salts are random and nobody can derive them again: they come from 244 random bits that are forgotten with this call.
    -- A call of gen_random_uuid for each would cost as much as all the hashing.
    seed := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
    WITH placed AS MATERIALIZED (
        SELECT p.position, t.*, c.evidence_hash,
               -- Each has four salts: of the three details and the first entry, and of the next four entries.
               sha512(seed || int8send(p.position)) AS first_salts,
               sha512(int8send(p.position) || seed) AS second_salts
        FROM ledger.journal_position p
        JOIN ledger.transaction t USING (transaction_id, partition_id)
        LEFT JOIN ledger.charge c
          ON t.type = 'charge' AND c.charge_id = t.charge_id AND c.customer_id = t.partition_id
        WHERE p.log_id = state.log_id AND p.position > state.hashed_position AND p.position <= until
    ), leaf AS MATERIALIZED (
        SELECT p.position,
               CASE WHEN p.reason <> '' AND p.evidence_hash <> '' THEN substring(p.first_salts, 1, 48)
                   ELSE substring(p.first_salts, 1, 16)
                       || CASE WHEN p.reason <> '' THEN substring(p.first_salts, 17, 16) ELSE none END
                       || CASE WHEN p.evidence_hash <> '' THEN substring(p.first_salts, 33, 16) ELSE none END
               END || e.salts AS salts,
               sha256('\x00' || record_send(ROW(
                   'tallystick/transaction/v1'::text, state.log_id, p.position, p.transaction_id, p.partition_id,
                   p.type::text, coalesce(p.charge_id, ''), coalesce(p.payout_id, ''), coalesce(p.external_id, ''),
                   coalesce(p.correction_id, ''), p.occur_time, p.create_time, e.entries, e.commitments,
                   ledger.detail_commitment(
                       substring(p.first_salts, 1, 16), 'actor', convert_to(p.actor_api_key_id, 'UTF8')),
                   CASE WHEN p.reason <> '' THEN ledger.detail_commitment(
                       substring(p.first_salts, 17, 16), 'reason', convert_to(p.reason, 'UTF8')) END,
                   CASE WHEN p.evidence_hash <> '' THEN ledger.detail_commitment(
                       substring(p.first_salts, 33, 16), 'evidence', p.evidence_hash) END
               ))) AS hash
        FROM placed p
        CROSS JOIN LATERAL (
            -- A charge of nothing has no entries.
            SELECT count(*) AS entries, coalesce(string_agg(s.salt, ''), '') AS salts,
                   coalesce(string_agg(ledger.entry_commitment(
                       s.salt, s.entry_number, s.owner_id, s.kind, s.currency_code, s.amount, s.collected,
                       s.earned_on, s.available_on, s.account_version), ''), '') AS commitments
            FROM (
                SELECT e.*,
                       CASE WHEN e.entry_number = 1 THEN substring(p.first_salts, 49, 16)
                           WHEN e.entry_number <= 5 THEN
                               substring(p.second_salts, (e.entry_number - 2) * 16 + 1, 16)
                           ELSE substring(sha256(seed || int8send(p.position) || int2send(e.entry_number)), 1, 16)
                       END AS salt
                FROM ledger.entry e
                WHERE e.transaction_id = p.transaction_id AND e.partition_id = p.partition_id
                ORDER BY e.entry_number
                OFFSET 0
            ) AS s
        ) AS e
    ), block AS (
        SELECT min(position) AS first_position, string_agg(hash, '' ORDER BY position) AS leaf_hashes,
               array_agg(salts ORDER BY position) AS salts
        FROM leaf GROUP BY (position - 1) / 256
    ), salted AS (
        INSERT INTO ledger.seal_salt (log_id, first_position, salts)
        SELECT state.log_id, first_position, salts FROM block
    )
    INSERT INTO ledger.seal_block (log_id, first_position, leaf_hashes)
    SELECT state.log_id, first_position, leaf_hashes FROM block;
    UPDATE ledger.seal_state SET hashed_position = until WHERE log_id = state.log_id;
    IF log.previous_log_id IS NOT NULL THEN
        -- What was erased in an earlier log stays so: its new salt is forgotten as soon as it is used.
        FOR erased IN
            SELECT DISTINCT e.transaction_id, e.item
            FROM ledger.journal_position p
            JOIN ledger.erased_salt e USING (transaction_id)
            WHERE p.log_id = state.log_id AND p.position > state.hashed_position AND p.position <= until
        LOOP
            PERFORM ledger.erase_salt(erased.transaction_id, erased.item, state.log_id);
        END LOOP;
    END IF;
    RETURN until - state.hashed_position;
END
$$;


-- Forgets the salt of an entry of a transaction, or of its actor (item 0), reason (-1) or evidence (-2), in one log. Its
-- commitment stays, so everything beside it can still be proven, but nobody can show any more what it was of. Answers
-- whether there was something to forget.
CREATE FUNCTION ledger.erase_salt(p_transaction_id text, p_item integer, p_log_id text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET client_encoding = 'UTF8' AS $$
DECLARE
    place ledger.journal_position;
    block ledger.seal_salt;
    number integer;
    start integer;
    salt bytea;
    commitment bytea;
BEGIN
    SELECT * INTO place FROM ledger.journal_position WHERE transaction_id = p_transaction_id AND log_id = p_log_id;
    -- Locked: two erasures in one block would each put back what the other erased.
    SELECT * INTO block FROM ledger.seal_salt
    WHERE log_id = place.log_id AND first_position <= place.position
    ORDER BY first_position DESC LIMIT 1
    FOR NO KEY UPDATE;
    number := place.position - block.first_position + 1;
    -- Nothing is computed with an item that there cannot be: it might not fit into an integer.
    IF p_item BETWEEN -2 AND octet_length(block.salts[number]) / 16 THEN
        start := CASE WHEN p_item > 0 THEN p_item + 2 ELSE -p_item END * 16 + 1;
        salt := substring(block.salts[number], start, 16);
    END IF;
    IF coalesce(octet_length(salt), 0) <> 16 OR salt = '\x00000000000000000000000000000000' THEN
        RETURN false;
    END IF;
    IF p_item > 0 THEN
        SELECT ledger.entry_commitment(
            salt, e.entry_number, e.owner_id, e.kind, e.currency_code, e.amount, e.collected, e.earned_on,
            e.available_on, e.account_version)
        INTO commitment
        FROM ledger.entry e
        WHERE e.transaction_id = place.transaction_id AND e.partition_id = place.partition_id
          AND e.entry_number = p_item;
    ELSE
        SELECT CASE p_item
            WHEN 0 THEN ledger.detail_commitment(salt, 'actor', convert_to(t.actor_api_key_id, 'UTF8'))
            WHEN -1 THEN ledger.detail_commitment(salt, 'reason', convert_to(t.reason, 'UTF8'))
            ELSE ledger.detail_commitment(salt, 'evidence', c.evidence_hash) END
        INTO commitment
        FROM ledger.transaction t
        LEFT JOIN ledger.charge c ON c.charge_id = t.charge_id AND c.customer_id = t.partition_id
        WHERE t.transaction_id = place.transaction_id AND t.partition_id = place.partition_id;
    END IF;
    INSERT INTO ledger.erased_salt (log_id, position, item, transaction_id, commitment)
    VALUES (place.log_id, place.position, p_item, place.transaction_id, commitment);
    block.salts[number] := overlay(
        block.salts[number] PLACING '\x00000000000000000000000000000000' FROM start FOR 16);
    UPDATE ledger.seal_salt SET salts = block.salts
    WHERE log_id = block.log_id AND first_position = block.first_position;
    RETURN true;
END
$$;


-- Stores a checkpoint of p_size leaves, signed on top of one of p_from_size, with the nodes that became complete between
-- them. Answers false if another sealer was there first, or another log has begun: the caller looks again.
CREATE FUNCTION ledger.store_checkpoint(
    p_log_id text, p_from_size bigint, p_size bigint, p_root bytea, p_origin text, p_note text,
    p_levels smallint[], p_node_indexes bigint[], p_hashes bytea[]
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
BEGIN
    -- The CHECK of seal_state refuses a size beyond the leaves. A log that another one continues gets no more: after a
    -- restore, what is still in the hands of a slow sealer may contradict what the old log once signed.
    UPDATE ledger.seal_state SET sealed_size = p_size
    WHERE log_id = p_log_id AND sealed_size = p_from_size AND sealed_size < p_size
      AND log_id = (SELECT newest.log_id FROM ledger.journal_log newest ORDER BY newest.create_time DESC LIMIT 1);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO ledger.seal_node (log_id, level, node_index, hash)
    SELECT p_log_id, level, node_index, hash
    FROM unnest(p_levels, p_node_indexes, p_hashes) AS n (level, node_index, hash);
    INSERT INTO ledger.seal_checkpoint (log_id, size, root, origin, note)
    VALUES (p_log_id, p_size, p_root, p_origin, p_note);
    RETURN true;
END
$$;


-- The header of a sealed transaction, and its details as far as the caller may see them: of those it may not, their
-- commitments only. No row if the caller sees no entry of it. (Views of this file go and come with its functions.)
CREATE VIEW ledger.sealed_transaction WITH (security_barrier) AS
SELECT p.log_id, p.transaction_id, p.position,
       substring(b.leaf_hashes, ((p.position - b.first_position) * 32 + 1)::integer, 32) AS leaf_hash,
       t.partition_id, t.type::text AS type, coalesce(t.charge_id, '') AS charge_id,
       coalesce(t.payout_id, '') AS payout_id, coalesce(t.external_id, '') AS external_id,
       coalesce(t.correction_id, '') AS correction_id, t.occur_time, t.create_time,
       CASE WHEN ledger.visible('platform') THEN t.actor_api_key_id END AS actor,
       CASE WHEN ledger.visible('platform') THEN s.actor END AS actor_salt,
       coalesce(x.actor, ledger.detail_commitment(s.actor, 'actor', convert_to(t.actor_api_key_id, 'UTF8')))
           AS actor_commitment,
       t.reason, s.reason AS reason_salt,
       CASE WHEN t.reason <> '' THEN
           coalesce(x.reason, ledger.detail_commitment(s.reason, 'reason', convert_to(t.reason, 'UTF8')))
       END AS reason_commitment,
       -- The payer's, as in GetCharge.
       CASE WHEN ledger.visible(t.partition_id) THEN c.evidence_hash END AS evidence_hash,
       CASE WHEN ledger.visible(t.partition_id) THEN s.evidence END AS evidence_salt,
       CASE WHEN c.evidence_hash <> '' THEN
           coalesce(x.evidence, ledger.detail_commitment(s.evidence, 'evidence', c.evidence_hash))
       END AS evidence_commitment
FROM ledger.journal_position p
JOIN ledger.transaction t USING (transaction_id, partition_id)
LEFT JOIN ledger.charge c ON t.type = 'charge' AND c.charge_id = t.charge_id AND c.customer_id = t.partition_id
CROSS JOIN LATERAL (
    SELECT * FROM ledger.seal_block
    WHERE log_id = p.log_id AND first_position <= p.position ORDER BY first_position DESC LIMIT 1
) AS b
JOIN ledger.seal_salt k ON k.log_id = b.log_id AND k.first_position = b.first_position
CROSS JOIN LATERAL (
    SELECT substring(salts, 1, 16) AS actor, substring(salts, 17, 16) AS reason, substring(salts, 33, 16) AS evidence
    FROM (SELECT k.salts[p.position - k.first_position + 1] AS salts) AS own
) AS s
CROSS JOIN LATERAL (
    SELECT (array_agg(commitment) FILTER (WHERE item = 0))[1] AS actor,
           (array_agg(commitment) FILTER (WHERE item = -1))[1] AS reason,
           (array_agg(commitment) FILTER (WHERE item = -2))[1] AS evidence
    FROM ledger.erased_salt WHERE log_id = p.log_id AND position = p.position
) AS x
WHERE p.position < b.first_position + octet_length(b.leaf_hashes) / 32
  AND (ledger.visible(t.partition_id) OR EXISTS (
      SELECT FROM ledger.entry e WHERE e.transaction_id = t.transaction_id AND ledger.visible(e.owner_id)));

-- The entries of a sealed transaction: the caller's own with their salts, of the others only the commitments.
CREATE VIEW ledger.sealed_entry WITH (security_barrier) AS
SELECT p.log_id, p.transaction_id, e.entry_number,
       coalesce(x.commitment, ledger.entry_commitment(
           s.salt, e.entry_number, e.owner_id, e.kind, e.currency_code, e.amount, e.collected, e.earned_on,
           e.available_on, e.account_version)) AS commitment,
       o.salt, o.owner_id, o.kind, o.currency_code, o.amount, o.collected, o.earned_on, o.available_on,
       o.account_version
FROM ledger.journal_position p
JOIN ledger.entry e USING (transaction_id, partition_id)
CROSS JOIN LATERAL (
    SELECT * FROM ledger.seal_salt
    WHERE log_id = p.log_id AND first_position <= p.position ORDER BY first_position DESC LIMIT 1
) AS k
CROSS JOIN LATERAL (
    SELECT substring(k.salts[p.position - k.first_position + 1], (e.entry_number + 2) * 16 + 1, 16) AS salt
) AS s
LEFT JOIN ledger.erased_salt x ON x.log_id = p.log_id AND x.position = p.position AND x.item = e.entry_number
LEFT JOIN LATERAL (
    SELECT s.salt, e.owner_id, e.kind::text, e.currency_code, e.amount, e.collected, e.earned_on, e.available_on,
           coalesce(e.account_version, 0) AS account_version
    WHERE ledger.visible(e.owner_id)
) AS o ON true
-- Who sees nothing of the transaction learns nothing of it here either.
WHERE ledger.visible(p.partition_id) OR EXISTS (
    SELECT FROM ledger.entry own WHERE own.transaction_id = p.transaction_id AND ledger.visible(own.owner_id));
