"""The checks of the audit about what was taken back of charges."""

from services.ledger.store.audit_check import Check

CORRECTION_CHECKS = (
    Check(
        "corrections_add_up",
        "how much of a charge is corrected, in all and of each leg, is what its corrections add up to",
        """
        SELECT charge_id, customer_id, x.gross, x.amount, r.amount AS posted_amount, x.corrections,
               r.corrections AS posted_corrections, x.legs, l.legs AS posted_legs
        FROM ledger.corrected_charge x
        FULL JOIN (
            SELECT charge_id, customer_id, sum(amount) AS amount, count(*) AS corrections,
                   max(correction_number) AS last_number
            FROM ledger.correction GROUP BY charge_id, customer_id
        ) AS r USING (charge_id, customer_id)
        LEFT JOIN (
            SELECT charge_id, customer_id, array_agg(leg ORDER BY leg_number) AS legs
            FROM (
                SELECT k.charge_id, k.customer_id, u.leg_number, sum(u.leg)::bigint AS leg
                FROM ledger.correction k
                CROSS JOIN LATERAL unnest(k.legs) WITH ORDINALITY AS u (leg, leg_number)
                GROUP BY k.charge_id, k.customer_id, u.leg_number
            ) AS summed
            GROUP BY charge_id, customer_id
        ) AS l USING (charge_id, customer_id)
        LEFT JOIN ledger.charge c USING (charge_id, customer_id)
        -- A charge of which only something was written off has no corrections.
        WHERE (x.gross, x.amount, x.corrections, x.corrections, x.legs)
            IS DISTINCT FROM (
                c.gross, coalesce(r.amount, 0), coalesce(r.corrections, 0), coalesce(r.last_number, 0),
                coalesce(l.legs, array_fill(0::bigint, ARRAY[3 * cardinality(c.organization_ids)])))
           OR (r.charge_id IS NULL AND x.written_off = 0)
        """,
    ),
    Check(
        "corrections_stay_within_charges",
        "nothing that is corrected or written off of a leg is negative, nor both together more than the leg",
        """
        SELECT x.charge_id, p.organization_id, x.legs, x.written_off_legs, p.gross, p.platform_fee,
               p.processing_fee
        FROM ledger.corrected_charge x
        JOIN ledger.charge c USING (charge_id, customer_id)
        CROSS JOIN LATERAL unnest(c.organization_ids, c.payee_gross, c.platform_fees, c.processing_fees)
            WITH ORDINALITY AS p (organization_id, gross, platform_fee, processing_fee, payee_number)
        CROSS JOIN LATERAL (VALUES
            (2, p.gross - p.platform_fee - p.processing_fee), (1, p.platform_fee), (0, p.processing_fee)
        ) AS v (before_last, leg)
        CROSS JOIN LATERAL (
            SELECT x.legs[p.payee_number::integer * 3 - v.before_last] AS corrected,
                   coalesce(x.written_off_legs[p.payee_number::integer * 3 - v.before_last], 0) AS written_off
        ) AS gone
        WHERE (gone.corrected >= 0 AND gone.written_off >= 0
               AND gone.corrected + gone.written_off <= v.leg) IS NOT TRUE
        """,
    ),
    Check(
        "corrections_match_entries",
        "every correction has its transaction, whose entries give the customer what the correction says",
        """
        SELECT r.charge_id, r.correction_id, r.transaction_id, t.transaction_id AS posted, r.amount, r.legs,
               r.credits, e.credits AS posted_credits, r.receivable, e.receivable AS posted_receivable,
               r.unpaid, e.unpaid AS posted_unpaid
        FROM ledger.correction r
        FULL JOIN (SELECT * FROM ledger.transaction WHERE type = 'correction') AS t
            ON (t.transaction_id, t.partition_id, t.charge_id, t.correction_id)
             = (r.transaction_id, r.customer_id, r.charge_id, r.correction_id)
        LEFT JOIN (
            SELECT transaction_id, owner_id,
                   sum(amount) FILTER (WHERE kind = 'customer_credits') AS credits,
                   sum(amount) FILTER (WHERE kind = 'customer_receivable') AS receivable,
                   sum(amount) FILTER (WHERE kind = 'customer_unpaid') AS unpaid
            FROM ledger.entry GROUP BY transaction_id, owner_id
        ) AS e ON e.transaction_id = r.transaction_id AND e.owner_id = r.customer_id
        WHERE r.charge_id IS NULL OR t.transaction_id IS NULL
           OR (r.credits, r.receivable, r.unpaid)
           <> (coalesce(e.credits, 0), coalesce(e.receivable, 0), coalesce(e.unpaid, 0))
           OR r.amount <> (SELECT sum(leg) FROM unnest(r.legs) AS leg)
        """,
    ),
    Check(
        "corrections_take_from_their_charges_buckets",
        "a charge and all that was done to it together leave no earnings bucket less than it had",
        """
        SELECT t.charge_id, n.owner_id, n.collected, n.earned_on, n.available_on, sum(n.amount) AS left_over
        FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
        WHERE t.charge_id IS NOT NULL AND t.type <> 'promotion_settlement' AND n.kind = 'organization_payable'
        GROUP BY t.charge_id, n.owner_id, n.collected, n.earned_on, n.available_on
        HAVING sum(n.amount) < 0
        """,
    ),
)
