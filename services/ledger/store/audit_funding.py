"""The checks of purchases that came back, and of who is frozen."""

from services.ledger.store.audit_check import Check

CHECKS = (
    Check(
        "purchases_come_back_as_recorded",
        "every reversal and reinstatement of a purchase is posted once, as its record says",
        """
        SELECT customer_id, type, external_id, transaction_id, currency_code, cleared,
               r.credits, t.credits AS posted_credits, r.debt, t.debt AS posted_debt,
               r.expired, t.expired AS posted_expired,
               r.recorded IS NULL AS unknown_to_records, t.posted IS NULL AS unknown_to_journal
        FROM (
            SELECT customer_id, type::text AS type, reversal_id AS external_id, transaction_id, currency_code,
                   amount AS cleared, -from_credits AS credits, from_credits + from_expired - amount AS debt,
                   -from_expired AS expired, true AS recorded
            FROM ledger.purchase_reversal
            UNION ALL
            -- What of it paid a debt only the journal knows.
            SELECT customer_id, 'purchase_reinstatement', reinstatement_id, reinstatement_transaction_id,
                   currency_code, -reinstated, NULL, NULL,
                   greatest(reinstated - (amount - from_expired), 0), true
            FROM ledger.purchase_reversal WHERE reinstated > 0
        ) AS r
        FULL JOIN (
            SELECT t.partition_id AS customer_id, t.type::text AS type, t.external_id, t.transaction_id,
                   e.currency_code, bool_and(e.owner_id IN (t.partition_id, 'platform')) AS is_own,
                   sum(CASE e.kind WHEN 'stripe_clearing' THEN e.amount ELSE 0 END)::bigint AS cleared,
                   sum(CASE e.kind WHEN 'customer_credits' THEN e.amount ELSE 0 END)::bigint AS credits,
                   sum(CASE e.kind WHEN 'customer_chargebacks' THEN e.amount ELSE 0 END)::bigint AS debt,
                   sum(CASE e.kind WHEN 'expired_credits' THEN e.amount ELSE 0 END)::bigint AS expired,
                   true AS posted
            FROM ledger.transaction t
            JOIN ledger.entry e USING (transaction_id, partition_id)
            WHERE t.type IN ('purchase_refund', 'purchase_chargeback', 'purchase_reinstatement')
            GROUP BY t.partition_id, t.type, t.external_id, t.transaction_id, e.currency_code
        ) AS t USING (customer_id, type, external_id, transaction_id, currency_code, cleared)
        WHERE r.recorded IS NULL OR t.posted IS NULL OR NOT t.is_own
           OR t.credits <> r.credits OR t.debt <> r.debt OR t.expired <> r.expired
        """,
    ),
    Check(
        "reversals_stay_within_purchases",
        "of every purchase is gone what its reversals took and did not come again, never more than was paid",
        """
        SELECT customer_id, purchase_key, currency_code, p.amount, e.amount AS paid, p.reversed,
               r.reversed AS of_reversals
        FROM ledger.reversed_purchase p
        LEFT JOIN (
            SELECT customer_id, purchase_key, currency_code, sum(amount - reinstated) AS reversed
            FROM ledger.purchase_reversal GROUP BY customer_id, purchase_key, currency_code
        ) AS r USING (customer_id, purchase_key, currency_code)
        LEFT JOIN (
            SELECT t.partition_id AS customer_id, t.external_id AS purchase_key, e.currency_code, e.amount
            FROM ledger.transaction t
            JOIN ledger.entry e USING (transaction_id, partition_id)
            WHERE t.type = 'purchase' AND e.kind = 'customer_credits'
        ) AS e USING (customer_id, purchase_key, currency_code)
        WHERE p.reversed > p.amount OR p.amount IS DISTINCT FROM e.amount
           OR p.reversed IS DISTINCT FROM r.reversed
        """,
    ),
    Check(
        "debts_come_from_reversals",
        "debts for chargebacks come from reversals, and are reinstated, collected or written off",
        """
        SELECT n.transaction_id, n.owner_id, n.amount, t.type
        FROM ledger.entry n JOIN ledger.transaction t USING (transaction_id, partition_id)
        WHERE n.kind = 'customer_chargebacks'
          AND NOT CASE WHEN n.amount < 0 THEN t.type IN ('purchase_refund', 'purchase_chargeback')
                       ELSE t.type IN ('purchase_reinstatement', 'collection', 'write_off') END
        """,
    ),
    Check(
        "purchases_know_their_keys",
        "every purchase says the key that it was granted with",
        """
        SELECT t.transaction_id, t.partition_id, t.external_id, k.key
        FROM ledger.transaction t
        LEFT JOIN ledger.idempotency k
            ON k.owner_id = t.partition_id AND k.outcome = t.transaction_id AND k.key LIKE 'grant/%'
        WHERE t.type = 'purchase' AND k.key IS DISTINCT FROM 'grant/' || t.external_id
        """,
    ),
    Check(
        "freezes_match_events",
        "who is frozen, and why, is what was last recorded of it",
        """
        SELECT owner_id, f.reason, f.freeze_time, e.frozen, e.reason AS recorded_reason, e.create_time
        FROM (
            SELECT organization_id AS owner_id, payouts_freeze_reason AS reason,
                   payouts_freeze_time AS freeze_time
            FROM ledger.organization
            UNION ALL
            SELECT customer_id, freeze_reason, freeze_time FROM ledger.customer
        ) AS f
        FULL JOIN (
            SELECT DISTINCT ON (owner_id) owner_id, frozen, reason, create_time
            FROM ledger.freeze_event ORDER BY owner_id, freeze_event_id DESC
        ) AS e USING (owner_id)
        WHERE coalesce(e.frozen, false) <> (f.freeze_time IS NOT NULL)
           OR (e.frozen AND (f.reason, f.freeze_time) IS DISTINCT FROM (e.reason, e.create_time))
        """,
    ),
)
