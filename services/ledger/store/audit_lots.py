"""The checks of the audit about credit lots, what expired of them, and who pays for promotions."""

from services.ledger.store.audit_check import Check

LOT_CHECKS = (
    Check(
        "lots_are_the_balance",
        "what the lots of a customer have left is its balance at the version up to which they are allocated",
        """
        SELECT c.customer_id, c.currency_code, c.allocated_version, l.remaining, e.balance
        FROM ledger.lot_cursor c
        LEFT JOIN (
            SELECT customer_id, currency_code, sum(remaining) AS remaining
            FROM ledger.credit_lot GROUP BY customer_id, currency_code
        ) AS l USING (customer_id, currency_code)
        LEFT JOIN LATERAL (
            SELECT sum(n.amount) AS balance, max(n.account_version) AS version FROM ledger.entry n
            WHERE n.owner_id = c.customer_id AND n.kind = 'customer_credits'
              AND n.currency_code = c.currency_code AND n.account_version <= c.allocated_version
        ) AS e ON true
        WHERE coalesce(l.remaining, 0) <> coalesce(e.balance, 0)
           OR c.allocated_version <> coalesce(e.version, 0)
        """,
    ),
    Check(
        "lots_match_allocations",
        "every lot has left what its allocations add up to, and has expired what expiry took and stayed",
        """
        SELECT customer_id, currency_code, lot_id, l.amount, l.remaining, a.remaining AS allocated,
               l.expired, e.expired AS taken, g.returned, a.opened, l.expire_time, l.check_time, l.is_open
        FROM ledger.credit_lot l
        FULL JOIN (
            SELECT customer_id, currency_code, lot_id, sum(amount) AS remaining,
                   sum(amount) FILTER (WHERE amount > 0 AND last_version = (
                       SELECT o.opened_version FROM ledger.credit_lot o
                       WHERE (o.customer_id, o.currency_code, o.lot_id)
                           = (x.customer_id, x.currency_code, x.lot_id))) AS opened
            FROM ledger.lot_allocation x GROUP BY customer_id, currency_code, lot_id
        ) AS a USING (customer_id, currency_code, lot_id)
        LEFT JOIN (
            SELECT x.customer_id, x.currency_code, x.lot_id, -sum(x.amount) AS expired
            FROM ledger.transaction t
            JOIN ledger.entry n USING (transaction_id, partition_id)
            JOIN ledger.lot_allocation x
                ON x.customer_id = n.owner_id AND x.currency_code = n.currency_code
               AND x.last_version = n.account_version
            WHERE t.type = 'credit_expiry' AND n.kind = 'customer_credits'
            GROUP BY x.customer_id, x.currency_code, x.lot_id
        ) AS e USING (customer_id, currency_code, lot_id)
        LEFT JOIN (
            -- Of what went back, and did not come again.
            SELECT r.customer_id, r.currency_code, k.outcome AS lot_id,
                   sum(r.from_expired - greatest(r.reinstated - (r.amount - r.from_expired), 0)) AS returned
            FROM ledger.purchase_reversal r
            JOIN ledger.idempotency k ON k.owner_id = r.customer_id AND k.key = 'grant/' || r.purchase_key
            WHERE r.from_expired > 0
            GROUP BY r.customer_id, r.currency_code, k.outcome
        ) AS g USING (customer_id, currency_code, lot_id)
        WHERE l.lot_id IS NULL OR l.remaining IS DISTINCT FROM a.remaining
           OR l.amount IS DISTINCT FROM a.opened
           OR l.expired <> coalesce(e.expired, 0) - coalesce(g.returned, 0)
           OR l.remaining NOT BETWEEN 0 AND l.amount
           OR (l.expire_time IS NULL) <> (l.check_time IS NULL)
        """,
    ),
    Check(
        "allocations_match_entries",
        "every entry of credits up to that version is allocated once and wholly, and none beyond",
        """
        SELECT c.customer_id, c.currency_code, c.allocated_version, a.versions, a.distinct_versions,
               a.highest,
               d.account_version, d.amount AS posted, d.allocated
        FROM ledger.lot_cursor c
        LEFT JOIN (
            SELECT customer_id, currency_code, max(last_version) AS highest,
                   sum(last_version - first_version + 1) FILTER (WHERE number = 1) AS versions,
                   count(DISTINCT last_version) + sum(last_version - first_version) AS distinct_versions
            FROM ledger.lot_allocation GROUP BY customer_id, currency_code
        ) AS a USING (customer_id, currency_code)
        LEFT JOIN (
            -- The entries of a row that covers several add up to it, those of rows of one version too.
            SELECT r.customer_id, r.currency_code, r.last_version AS account_version, r.allocated,
                   sum(n.amount) AS amount
            FROM (
                SELECT customer_id, currency_code, min(first_version) AS first_version, last_version,
                       sum(amount) AS allocated
                FROM ledger.lot_allocation GROUP BY customer_id, currency_code, last_version
            ) AS r
            LEFT JOIN ledger.entry n
                ON n.owner_id = r.customer_id AND n.kind = 'customer_credits'
               AND n.currency_code = r.currency_code
               AND n.account_version BETWEEN r.first_version AND r.last_version
            GROUP BY r.customer_id, r.currency_code, r.last_version, r.allocated
            HAVING r.allocated IS DISTINCT FROM sum(n.amount)
        ) AS d ON d.customer_id = c.customer_id AND d.currency_code = c.currency_code
        WHERE d.customer_id IS NOT NULL OR c.allocated_version <> coalesce(a.versions, 0)
           OR c.allocated_version <> coalesce(a.distinct_versions, 0)
           OR c.allocated_version <> coalesce(a.highest, 0)
        """,
    ),
    Check(
        "lots_keep_up_with_the_log",
        "no lots are behind what has been read of the log",
        """
        SELECT e.owner_id, e.currency_code, max(e.account_version) AS read, c.allocated_version
        FROM ledger.lot_feed f
        JOIN ledger.journal_position p ON p.log_id = f.log_id AND p.position <= f.position
        JOIN ledger.entry e USING (transaction_id, partition_id)
        LEFT JOIN ledger.lot_cursor c ON c.customer_id = e.owner_id AND c.currency_code = e.currency_code
        WHERE e.kind = 'customer_credits'
        GROUP BY e.owner_id, e.currency_code, c.allocated_version
        HAVING max(e.account_version) > coalesce(c.allocated_version, 0)
        """,
    ),
    Check(
        "lots_are_as_granted",
        "every lot was added by an entry that adds credits and is no correction, on the terms of its grant",
        """
        SELECT l.customer_id, l.lot_id, l.source, l.funder_id, l.priority, l.expire_time, t.type,
               g.funder_id AS granted_by, n.amount AS granted, l.amount
        FROM ledger.credit_lot l
        LEFT JOIN ledger.transaction t ON t.transaction_id = l.lot_id
        LEFT JOIN ledger.entry n
            ON n.transaction_id = l.lot_id AND n.owner_id = l.customer_id AND n.kind = 'customer_credits'
           AND n.currency_code = l.currency_code AND n.account_version = l.opened_version
        LEFT JOIN ledger.credit_grant g ON g.customer_id = l.customer_id AND g.transaction_id = l.lot_id
        WHERE t.transaction_id IS NULL OR n.amount IS NULL OR l.amount > n.amount
           OR (l.source <> 'reinstatement' AND l.amount <> n.amount)
           OR t.type::text <> CASE l.source::text WHEN 'reinstatement' THEN 'purchase_reinstatement'
                                                  ELSE l.source::text END
           OR (g.customer_id IS NOT NULL
               AND (l.funder_id, l.priority, l.expire_time)
                   IS DISTINCT FROM (g.funder_id, g.priority, g.expire_time))
        """,
    ),
    Check(
        "expiry_takes_from_lots_whose_time_is_over",
        "what expired was of a lot whose time was over, and went to whoever had funded it",
        """
        SELECT t.transaction_id, t.create_time, l.lot_id, l.expire_time, l.funder_id, o.owner_id, o.kind
        FROM ledger.transaction t
        LEFT JOIN ledger.entry n
            ON n.transaction_id = t.transaction_id AND n.partition_id = t.partition_id
           AND n.kind = 'customer_credits'
        LEFT JOIN ledger.lot_allocation a
            ON a.customer_id = n.owner_id AND a.currency_code = n.currency_code
           AND a.last_version = n.account_version
        LEFT JOIN ledger.credit_lot l
            ON l.customer_id = a.customer_id AND l.currency_code = a.currency_code AND l.lot_id = a.lot_id
        LEFT JOIN ledger.entry o
            ON o.transaction_id = t.transaction_id AND o.partition_id = t.partition_id
           AND o.kind IN ('promotions', 'expired_credits')
        WHERE t.type = 'credit_expiry'
          AND (l.expire_time IS NULL OR n.owner_id <> t.partition_id OR n.amount >= 0
               OR o.owner_id IS DISTINCT FROM CASE l.funder_id WHEN '' THEN 'platform' ELSE l.funder_id END
               OR o.kind::text IS DISTINCT FROM
                  CASE l.funder_id WHEN '' THEN 'expired_credits' ELSE 'promotions' END)
        """,
    ),
    Check(
        "promotions_are_settled",
        "every organization has paid for what its promotional credits bought, or that waits to be settled",
        """
        SELECT customer_id, currency_code, funder_id, spent, settled
        FROM (
            SELECT customer_id, currency_code, funder_id,
                   sum(amount - remaining - expired) AS spent
            FROM ledger.credit_lot WHERE funder_id NOT IN ('', 'platform')
            GROUP BY customer_id, currency_code, funder_id
        ) AS l
        FULL JOIN (
            SELECT customer_id, currency_code, funder_id, sum(amount) AS settled
            FROM ledger.promotion_settlement GROUP BY customer_id, currency_code, funder_id
        ) AS s USING (customer_id, currency_code, funder_id)
        WHERE coalesce(spent, 0) <> coalesce(settled, 0)
          AND NOT EXISTS (
              SELECT FROM ledger.promotion_due d
              WHERE (d.customer_id, d.currency_code, d.funder_id)
                  = (l.customer_id, l.currency_code, l.funder_id))
        """,
    ),
    Check(
        "settlements_match_entries",
        "every settlement is posted once as it is recorded, and moves the accounts of its funder alone",
        """
        SELECT customer_id, transaction_id, funder_id, currency_code, s.amount, t.amount AS posted, t.owners
        FROM ledger.promotion_settlement s
        FULL JOIN (
            SELECT t.partition_id AS customer_id, t.transaction_id, n.currency_code,
                   min(n.owner_id) AS funder_id,
                   count(DISTINCT n.owner_id) AS owners,
                   coalesce(sum(n.amount) FILTER (WHERE n.kind = 'promotions'), 0) AS amount
            FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
            WHERE t.type = 'promotion_settlement'
            GROUP BY t.partition_id, t.transaction_id, n.currency_code
        ) AS t USING (customer_id, transaction_id, funder_id, currency_code)
        WHERE s.amount IS DISTINCT FROM t.amount OR t.owners <> 1
        """,
    ),
    Check(
        "settlements_stay_within_charges",
        "settlements take of what an organization earned by a charge no more than it has of that",
        """
        SELECT t.charge_id, n.owner_id, n.kind, n.available_on, sum(n.amount) AS left_over
        FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
        WHERE t.charge_id IS NOT NULL
          AND n.kind IN ('organization_payable', 'platform_fees', 'processing_fees')
          -- What has just been corrected is given back an instant later.
          AND NOT EXISTS (
              SELECT FROM ledger.promotion_due d
              WHERE d.customer_id = t.partition_id AND d.debit_id = t.charge_id AND d.funder_id = n.owner_id)
          AND NOT EXISTS (
              SELECT FROM ledger.correction r
              JOIN ledger.entry e ON e.transaction_id = r.transaction_id AND e.kind = 'customer_credits'
              LEFT JOIN ledger.lot_cursor c
                  ON c.customer_id = r.customer_id AND c.currency_code = e.currency_code
              WHERE r.charge_id = t.charge_id AND e.account_version > coalesce(c.allocated_version, 0))
        GROUP BY t.charge_id, n.owner_id, n.kind, n.collected, n.earned_on, n.available_on
        HAVING sum(n.amount) < 0
        """,
    ),
    Check(
        "promotions_are_what_is_unspent",
        "what an organization gave away and has not paid for is what its lots have left or is not settled",
        """
        SELECT owner_id, currency_code, p.balance, l.remaining, l.unsettled
        FROM (
            SELECT owner_id, currency_code, sum(amount) AS balance FROM ledger.entry
            WHERE kind = 'promotions' AND owner_id <> 'platform' GROUP BY owner_id, currency_code
        ) AS p
        FULL JOIN (
            SELECT funder_id AS owner_id, currency_code, sum(remaining) AS remaining,
                   sum(amount - remaining - expired) - coalesce((
                       SELECT sum(s.amount) FROM ledger.promotion_settlement s
                       WHERE s.funder_id = o.funder_id AND s.currency_code = o.currency_code), 0) AS unsettled
            FROM ledger.credit_lot o WHERE funder_id NOT IN ('', 'platform')
            GROUP BY funder_id, currency_code
        ) AS l USING (owner_id, currency_code)
        WHERE coalesce(p.balance, 0) <> -coalesce(l.remaining, 0) - coalesce(l.unsettled, 0)
          -- Of what was granted an instant ago there is no lot yet.
          AND NOT EXISTS (
              SELECT FROM ledger.credit_grant g
              WHERE g.funder_id = p.owner_id AND NOT EXISTS (
                  SELECT FROM ledger.credit_lot n
                  WHERE n.customer_id = g.customer_id AND n.lot_id = g.transaction_id))
        """,
    ),
)
