"""The checks that compare different parts of the ledger with each other, by other ways than the rest."""

from typing import Final

from services.ledger.store.audit_check import Check

CHECKS: Final = (
    Check(
        "payable_is_earnings_less_payouts",
        "what an organization is owed is what its charges earned, less what payouts took, and adjustments",
        """
        SELECT organization_id, currency_code, sum(kept) AS kept, sum(earned) AS earned,
               sum(paid_out) AS paid_out, sum(adjusted) AS adjusted
        FROM (
            SELECT owner_id AS organization_id, currency_code, credits - debits AS kept,
                   0 AS earned, 0 AS paid_out, 0 AS adjusted
            FROM (
                SELECT owner_id, kind, currency_code, credits, debits FROM ledger.account
                UNION ALL
                SELECT owner_id, kind, currency_code, credits, debits FROM ledger.balance_delta
            ) AS part
            WHERE kind = 'organization_payable'
            UNION ALL
            -- Not from entries: from what charges agreed on, less what was taken back, given up or is unpaid.
            SELECT p.organization_id, c.currency_code, 0,
                   p.gross - p.platform_fee - p.processing_fee
                       - coalesce(x.legs[p.payee_number::integer * 3 - 2], 0)
                       - coalesce(x.written_off_legs[p.payee_number::integer * 3 - 2], 0)
                       - coalesce(o.unearned_legs[p.payee_number::integer * 3 - 2], 0), 0, 0
            FROM ledger.charge c
            LEFT JOIN ledger.corrected_charge x USING (charge_id, customer_id)
            LEFT JOIN ledger.open_charge o USING (charge_id, customer_id)
            CROSS JOIN LATERAL unnest(c.organization_ids, c.payee_gross, c.platform_fees, c.processing_fees)
                WITH ORDINALITY AS p (organization_id, gross, platform_fee, processing_fee, payee_number)
            UNION ALL
            SELECT organization_id, currency_code, 0, 0, amount - reversed, 0
            FROM ledger.payout_debit WHERE state IN ('in_transit', 'completed')
            UNION ALL
            -- Whatever else moves it, such as an adjustment, is of no charge and of no payout.
            SELECT n.owner_id, n.currency_code, 0, 0, 0, n.amount
            FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
            WHERE (t.charge_id IS NULL OR t.type = 'promotion_settlement') AND t.payout_id IS NULL
              AND n.kind = 'organization_payable'
        ) AS part
        GROUP BY organization_id, currency_code
        HAVING sum(kept) <> sum(earned) - sum(paid_out) + sum(adjusted)
        """,
    ),
    Check(
        "charges_are_posted_once",
        "no two charges are of the same component of the same work of a customer",
        """
        SELECT customer_id, workflow_id, component, ordinal, count(*) AS charges, min(charge_id) AS first
        FROM ledger.charge
        GROUP BY customer_id, workflow_id, component, ordinal HAVING count(*) > 1
        """,
    ),
    Check(
        "unpaid_has_its_offset",
        "what nobody paid and nobody earned stands on both sides of every customer's memorandum",
        """
        SELECT owner_id, currency_code, sum(credits - debits) AS off_by
        FROM (
            SELECT owner_id, kind, currency_code, credits, debits FROM ledger.account
            UNION ALL
            SELECT owner_id, kind, currency_code, credits, debits FROM ledger.balance_delta
        ) AS part
        WHERE kind IN ('customer_unpaid', 'unpaid_offset')
        GROUP BY owner_id, currency_code HAVING sum(credits) <> sum(debits)
        """,
    ),
    Check(
        "owners_are_known",
        "every account is of the platform, or of an organization or customer of the directory",
        """
        SELECT a.owner_id, a.kind, a.currency_code
        FROM (
            SELECT owner_id, kind, currency_code FROM ledger.account
            UNION
            SELECT owner_id, kind, currency_code FROM ledger.balance_delta
        ) AS a
        WHERE a.owner_id <> 'platform'
          AND NOT EXISTS (SELECT FROM ledger.organization o WHERE o.organization_id = a.owner_id)
          AND NOT EXISTS (SELECT FROM ledger.customer c WHERE c.customer_id = a.owner_id)
        """,
    ),
    Check(
        "keys_of_the_directory_have_outcomes",
        "every idempotency key of an API key or an agreement names one that exists, and no two the same",
        """
        SELECT k.owner_id, k.key, k.outcome
        FROM ledger.idempotency k
        LEFT JOIN ledger.api_key a ON a.api_key_id = k.outcome
        LEFT JOIN ledger.revenue_share_agreement g ON g.agreement_id = k.outcome
        WHERE (k.key LIKE 'api-key/%' AND a.api_key_id IS NULL)
           OR (k.key LIKE 'agreement/%' AND g.agreement_id IS NULL)
        UNION ALL
        SELECT min(owner_id), min(key), outcome FROM ledger.idempotency
        WHERE key LIKE 'api-key/%' OR key LIKE 'agreement/%'
        GROUP BY outcome HAVING count(*) > 1
        """,
    ),
)
