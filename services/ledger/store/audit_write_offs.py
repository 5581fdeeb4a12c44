"""The checks of the audit about what was given up, and about who approved adjustments."""

from services.ledger.store.audit_check import Check

WRITE_OFF_CHECKS = (
    Check(
        "write_offs_add_up",
        "how much of a charge is written off, in all and of each leg, is what its write-offs add up to",
        """
        SELECT charge_id, customer_id, x.written_off, w.amount AS posted, x.written_off_legs,
               l.legs AS posted_legs
        FROM (
            SELECT * FROM ledger.corrected_charge WHERE written_off <> 0 OR written_off_legs IS NOT NULL
        ) AS x
        FULL JOIN (
            SELECT charge_id, owner_id AS customer_id, sum(amount) AS amount
            FROM ledger.write_off WHERE charge_id <> '' GROUP BY charge_id, owner_id
        ) AS w USING (charge_id, customer_id)
        LEFT JOIN (
            SELECT charge_id, customer_id, array_agg(leg ORDER BY leg_number) AS legs
            FROM (
                SELECT k.charge_id, k.owner_id AS customer_id, u.leg_number, sum(u.leg)::bigint AS leg
                FROM ledger.write_off k
                CROSS JOIN LATERAL unnest(k.legs) WITH ORDINALITY AS u (leg, leg_number)
                GROUP BY k.charge_id, k.owner_id, u.leg_number
            ) AS summed
            GROUP BY charge_id, customer_id
        ) AS l USING (charge_id, customer_id)
        WHERE (x.written_off, x.written_off_legs) IS DISTINCT FROM (w.amount, l.legs)
           OR x.written_off <> (SELECT sum(leg) FROM unnest(x.written_off_legs) AS leg)
        """,
    ),
    Check(
        "write_offs_match_entries",
        "every write-off is posted once, as its record says: who need not pay, and who loses it",
        """
        SELECT transaction_id, owner_id, w.kind, w.charge_id, w.amount, w.legs, t.transaction_id AS posted,
               t.forgiven, t.lost, t.earned
        FROM ledger.write_off w
        FULL JOIN (
            SELECT t.transaction_id, t.partition_id AS owner_id, coalesce(t.charge_id, '') AS charge_id,
                   min(e.currency_code) AS currency_code, count(DISTINCT e.currency_code) AS currencies,
                   -- The account of who owed it, for each kind.
                   array_agg(DISTINCT e.kind::text ORDER BY e.kind::text) FILTER (WHERE e.amount > 0)
                       AS forgiven_kinds,
                   sum(e.amount) FILTER (WHERE e.amount > 0) AS forgiven,
                   sum(e.amount) FILTER (WHERE e.owner_id = 'platform') AS lost,
                   sum(e.amount) FILTER (
                       WHERE e.kind IN ('organization_payable', 'platform_fees', 'processing_fees')) AS earned
            FROM ledger.transaction t JOIN ledger.entry e USING (transaction_id, partition_id)
            WHERE t.type = 'write_off'
            GROUP BY t.transaction_id, t.partition_id, t.charge_id
        ) AS t USING (transaction_id, owner_id)
        WHERE w.kind IS NULL OR t.forgiven IS NULL OR t.currencies <> 1
           OR (w.charge_id, w.currency_code, w.amount) <> (t.charge_id, t.currency_code, t.forgiven)
           OR t.forgiven_kinds <> ARRAY[CASE w.kind
               WHEN 'unpaid' THEN 'customer_unpaid' WHEN 'receivable' THEN 'customer_receivable'
               WHEN 'chargebacks' THEN 'customer_chargebacks' ELSE 'organization_payable' END]
           OR coalesce(t.lost, 0) <> CASE WHEN w.kind IN ('chargebacks', 'clawback') THEN -w.amount ELSE 0 END
           OR coalesce(t.earned, 0) <> CASE w.kind
               WHEN 'receivable' THEN -w.amount WHEN 'clawback' THEN w.amount ELSE 0 END
           OR w.amount <> (SELECT sum(leg) FROM unnest(w.legs) AS leg)
        """,
    ),
    Check(
        "losses_come_from_write_offs",
        "what the platform lost is what was written off, and what operators adjusted",
        """
        SELECT n.transaction_id, n.kind, n.amount, t.type
        FROM ledger.entry n JOIN ledger.transaction t USING (transaction_id, partition_id)
        WHERE n.kind IN ('write_offs', 'clawback_losses') AND t.type NOT IN ('write_off', 'adjustment')
        """,
    ),
    Check(
        "adjustments_are_posted_as_decided",
        "an adjustment moves what was proposed, and another than its proposer approved it where that is due",
        """
        SELECT d.adjustment_id, d.decision, d.transaction_id, a.proposer_api_key_id, d.actor_api_key_id,
               d.create_time, a.expire_time, e.entries AS posted, p.postings
        FROM ledger.decided_adjustment d
        JOIN ledger.adjustment a USING (adjustment_id)
        LEFT JOIN ledger.transaction t
            ON t.transaction_id = d.transaction_id AND t.partition_id = 'platform' AND t.type = 'adjustment'
        LEFT JOIN LATERAL (
            SELECT array_agg((n.owner_id, n.kind, n.currency_code, n.amount)::text ORDER BY n.entry_number)
                AS entries
            FROM ledger.entry n WHERE n.transaction_id = t.transaction_id AND n.partition_id = t.partition_id
        ) AS e ON true
        CROSS JOIN LATERAL (
            SELECT array_agg((u.owner_id, u.kind, u.currency_code, u.amount)::text ORDER BY u.number)
                AS postings
            FROM unnest(a.owner_ids, a.kinds, a.currency_codes, a.amounts)
                WITH ORDINALITY AS u (owner_id, kind, currency_code, amount, number)
        ) AS p
        WHERE d.decision = 'posted' AND (
            e.entries IS DISTINCT FROM p.postings
            OR (t.reason, t.actor_api_key_id) <> (a.reason, d.actor_api_key_id)
            OR (d.approval = (a.proposer_api_key_id = d.actor_api_key_id))
            OR d.create_time >= a.expire_time)
        """,
    ),
    Check(
        "adjustments_were_proposed",
        "every adjustment with a decision is the only one of its transaction, and every proposal has one key",
        """
        SELECT adjustment_id, k.key, k.keys
        FROM ledger.adjustment
        FULL JOIN (
            SELECT outcome AS adjustment_id, min(key) AS key, count(*) AS keys FROM ledger.idempotency
            WHERE owner_id = 'platform' AND key LIKE 'adjustment-proposal/%' GROUP BY outcome
        ) AS k USING (adjustment_id)
        WHERE proposer_api_key_id IS NULL OR k.keys IS DISTINCT FROM 1
        UNION ALL
        SELECT adjustment_id, d.transaction_id, 0
        FROM ledger.decided_adjustment d LEFT JOIN ledger.adjustment a USING (adjustment_id)
        WHERE a.adjustment_id IS NULL
        UNION ALL
        SELECT min(adjustment_id), transaction_id, count(*) FROM ledger.decided_adjustment
        WHERE transaction_id <> '' GROUP BY transaction_id HAVING count(*) > 1
        """,
    ),
)
