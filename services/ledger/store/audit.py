"""The audit: everything that is kept for speed, recomputed from the journal.

Each check looks for differences; a sound ledger gives none. They share one snapshot (REPEATABLE READ), so
they may run while charges come in.
"""

from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.store import audit_across, audit_funding, audit_walls
from services.ledger.store.audit_check import SHOWN, Check, Finding, run_check
from services.ledger.store.audit_corrections import CORRECTION_CHECKS
from services.ledger.store.audit_lots import LOT_CHECKS
from services.ledger.store.audit_seal import SEAL_CHECKS
from services.ledger.store.audit_write_offs import WRITE_OFF_CHECKS

__all__ = ["CHECKS", "SHOWN", "Finding", "prepare", "run_check", "run_checks"]

# All checks, in the order in which they run. A module of more is one line at the end.
CHECKS: Final = (
    Check(
        "transactions_balance",
        "the entries of every transaction add up to zero per currency",
        """
        SELECT transaction_id, currency_code, sum(amount) AS off_by
        FROM ledger.entry GROUP BY transaction_id, currency_code HAVING sum(amount) <> 0
        """,
    ),
    Check(
        "entries_have_transactions",
        "every entry belongs to a transaction of the same partition, numbered from 1 without gaps",
        """
        SELECT e.transaction_id, e.partition_id, count(*) AS entries, max(e.entry_number) AS last_number
        FROM ledger.entry e LEFT JOIN ledger.transaction t USING (transaction_id, partition_id)
        GROUP BY e.transaction_id, e.partition_id, t.transaction_id
        HAVING t.transaction_id IS NULL OR count(*) <> max(e.entry_number)
        """,
    ),
    Check(
        "accounts_match_entries",
        "the credits and debits of every account, with its deltas, are those of its entries",
        """
        SELECT owner_id, kind, currency_code, kept.credits AS kept_credits, posted.credits AS posted_credits,
               kept.debits AS kept_debits, posted.debits AS posted_debits
        FROM (
            SELECT owner_id, kind, currency_code, sum(credits) AS credits, sum(debits) AS debits
            FROM (
                SELECT owner_id, kind, currency_code, credits, debits FROM ledger.account
                UNION ALL
                SELECT owner_id, kind, currency_code, credits, debits FROM ledger.balance_delta
            ) AS part
            GROUP BY owner_id, kind, currency_code
        ) AS kept
        FULL JOIN (
            SELECT owner_id, kind, currency_code,
                   sum(greatest(amount, 0)) AS credits, sum(greatest(-amount, 0)) AS debits
            FROM ledger.entry GROUP BY owner_id, kind, currency_code
        ) AS posted USING (owner_id, kind, currency_code)
        WHERE (coalesce(kept.credits, 0), coalesce(kept.debits, 0))
           <> (coalesce(posted.credits, 0), coalesce(posted.debits, 0))
        """,
    ),
    Check(
        "buckets_match_entries",
        "every earnings bucket, with its deltas, holds what the entries of that bucket add up to",
        """
        SELECT owner_id, currency_code, collected, earned_on, available_on,
               kept.balance AS kept_balance, posted.balance AS posted_balance
        FROM (
            SELECT owner_id, currency_code, collected, earned_on, available_on,
                   sum(credits - debits) AS balance
            FROM (
                SELECT owner_id, currency_code, collected, earned_on, available_on, credits, debits
                FROM ledger.earnings_bucket
                UNION ALL
                SELECT owner_id, currency_code, collected, earned_on, available_on, credits, debits
                FROM ledger.balance_delta WHERE kind = 'organization_payable'
            ) AS part
            GROUP BY owner_id, currency_code, collected, earned_on, available_on
        ) AS kept
        FULL JOIN (
            SELECT owner_id, currency_code, collected, earned_on, available_on, sum(amount) AS balance
            FROM ledger.entry WHERE kind = 'organization_payable'
            GROUP BY owner_id, currency_code, collected, earned_on, available_on
        ) AS posted USING (owner_id, currency_code, collected, earned_on, available_on)
        WHERE coalesce(kept.balance, 0) <> coalesce(posted.balance, 0)
        """,
    ),
    Check(
        "nothing_overdrawn",
        "no debit-limited account is below its bound, and no debt is more than paid",
        """
        SELECT owner_id, kind, currency_code, credits, debits, held, lower_bound, upper_bound
        FROM ledger.account
        WHERE credits - debits - held < lower_bound OR credits - debits > upper_bound
           OR (kind = 'customer_chargebacks' AND upper_bound IS DISTINCT FROM 0)
           OR (kind = 'customer_credits' AND lower_bound IS DISTINCT FROM 0)
           OR (kind = 'customer_receivable' AND lower_bound IS NULL)
        """,
    ),
    Check(
        "held_by_leases_and_holds",
        "what is held of every account is what its leases and its standing holds keep",
        """
        SELECT owner_id, kind, currency_code, a.held, k.kept
        FROM (SELECT * FROM ledger.account WHERE held <> 0) AS a
        FULL JOIN (
            SELECT owner_id, kind, currency_code, sum(amount) AS kept
            FROM (
                SELECT customer_id AS owner_id, 'customer_credits'::ledger.account_kind AS kind,
                       currency_code, remaining AS amount
                FROM ledger.credit_lease
                UNION ALL
                SELECT customer_id, 'customer_credits', currency_code, credits
                FROM ledger.hold WHERE state = 'held'
                UNION ALL
                SELECT customer_id, 'customer_receivable', currency_code, receivable
                FROM ledger.hold WHERE state = 'held'
            ) AS part
            GROUP BY owner_id, kind, currency_code
            HAVING sum(amount) <> 0
        ) AS k USING (owner_id, kind, currency_code)
        WHERE coalesce(a.held, 0) <> coalesce(k.kept, 0)
        """,
    ),
    Check(
        "one_lease_is_current",
        "of the leases of a customer in one currency only the newest is not draining",
        """
        SELECT customer_id, currency_code, count(*) FILTER (WHERE NOT draining) AS current_leases,
               max(epoch) AS newest, max(epoch) FILTER (WHERE NOT draining) AS newest_current
        FROM ledger.credit_lease GROUP BY customer_id, currency_code
        HAVING count(*) FILTER (WHERE NOT draining) <> 1
            OR max(epoch) FILTER (WHERE NOT draining) <> max(epoch)
        """,
    ),
    Check(
        "captures_are_paid",
        "a charge captured no more than it was paid, and of a hold no more than that kept, each hold once",
        """
        SELECT c.charge_id, c.reservation_id, c.from_credits, c.captured_credits, c.from_receivable,
               c.captured_receivable, h.state, h.credits AS hold_credits, h.receivable AS hold_receivable,
               h.captured_credits AS hold_captured_credits, h.captured_receivable AS hold_captured_receivable
        FROM ledger.charge c
        FULL JOIN (SELECT * FROM ledger.hold WHERE state = 'settled') AS h
            ON h.customer_id = c.customer_id AND h.charge_id = c.charge_id
        WHERE c.charge_id IS NULL
           OR c.captured_credits > c.from_credits OR c.captured_receivable > c.from_receivable
           OR (c.reservation_id = '' AND c.captured_credits + c.captured_receivable > 0)
           OR (h.hold_id IS NOT NULL AND (
               (h.hold_id, h.currency_code, h.captured_credits, h.captured_receivable)
                   <> (c.reservation_id, c.currency_code, c.captured_credits, c.captured_receivable)
               OR h.captured_credits > h.credits OR h.captured_receivable > h.receivable))
        """,
    ),
    Check(
        "reservations_end_once",
        "no charge captured a reservation that was released or is held, and no two charges the same one",
        """
        SELECT customer_id, reservation_id, count(*) AS ends
        FROM (
            SELECT customer_id, reservation_id FROM ledger.charge WHERE reservation_id <> ''
            UNION ALL
            SELECT customer_id, reservation_id FROM ledger.released_reservation
            UNION ALL
            -- Those that are settled are there by their charges. Beside one that expired, its attempt may
            -- have been allocated in a lease, unless that is where it came from.
            SELECT customer_id, hold_id FROM ledger.hold
            WHERE purpose = 'run'
              AND (state IN ('held', 'released') OR (state = 'expired' AND from_epoch > 0))
        ) AS ended
        GROUP BY customer_id, reservation_id HAVING count(*) > 1
        """,
    ),
    Check(
        "versions_count_entries",
        "the entries of a debit-limited account carry the versions 1, 2, 3… up to the account's",
        """
        SELECT a.owner_id, a.kind, a.currency_code, a.version, e.entries, e.first_version, e.last_version
        FROM ledger.account a
        LEFT JOIN (
            SELECT owner_id, kind, currency_code,
                   count(*) AS entries, count(DISTINCT account_version) AS versions,
                   min(account_version) AS first_version, max(account_version) AS last_version
            FROM ledger.entry WHERE kind IN ('customer_credits', 'customer_receivable')
            GROUP BY owner_id, kind, currency_code
        ) AS e USING (owner_id, kind, currency_code)
        WHERE a.kind IN ('customer_credits', 'customer_receivable')
          AND (a.version <> coalesce(e.entries, 0) OR e.entries <> e.versions
               OR e.first_version <> 1 OR e.last_version <> a.version)
        """,
    ),
    Check(
        "charges_add_up",
        "the shares and fees of every charge add up to its gross amount, to the micro",
        """
        SELECT c.charge_id, c.gross, s.gross AS shares
        FROM ledger.charge c
        CROSS JOIN LATERAL (
            SELECT sum(p.gross) AS gross,
                   bool_and(p.platform_fee = p.gross * p.platform_bps / 10000
                            AND p.processing_fee = p.gross * p.processing_bps / 10000
                            AND p.platform_fee + p.processing_fee <= p.gross) AS split_right
            FROM unnest(
                c.payee_gross, c.platform_fees, c.processing_fees, c.platform_fee_bps, c.processing_fee_bps
            ) AS p (gross, platform_fee, processing_fee, platform_bps, processing_bps)
        ) AS s
        WHERE c.gross <> s.gross OR NOT s.split_right
           OR c.gross <> c.from_credits + c.from_receivable + c.unpaid
        """,
    ),
    Check(
        "charges_match_entries",
        "every charge has its transaction, whose entries debit the customer as the charge says",
        """
        SELECT c.charge_id, c.transaction_id, c.from_credits, c.from_receivable, c.unpaid,
               e.from_credits AS posted_from_credits, e.from_receivable AS posted_from_receivable,
               e.unpaid AS posted_unpaid
        FROM ledger.charge c
        FULL JOIN (SELECT * FROM ledger.transaction WHERE type = 'charge') AS t
            ON t.transaction_id = c.transaction_id AND t.charge_id = c.charge_id
           AND t.partition_id = c.customer_id
        LEFT JOIN (
            SELECT transaction_id, owner_id, currency_code,
                   sum(-amount) FILTER (WHERE kind = 'customer_credits') AS from_credits,
                   sum(-amount) FILTER (WHERE kind = 'customer_receivable') AS from_receivable,
                   sum(-amount) FILTER (WHERE kind = 'customer_unpaid') AS unpaid
            FROM ledger.entry GROUP BY transaction_id, owner_id, currency_code
        ) AS e ON e.transaction_id = c.transaction_id AND e.owner_id = c.customer_id
              AND e.currency_code = c.currency_code
        WHERE c.charge_id IS NULL OR t.transaction_id IS NULL
           OR (c.from_credits, c.from_receivable, c.unpaid)
           <> (coalesce(e.from_credits, 0), coalesce(e.from_receivable, 0), coalesce(e.unpaid, 0))
        """,
    ),
    Check(
        "collected_charges_pay_their_legs",
        "a charge of which nothing is open paid each payee and fee what is not corrected or written off",
        """
        SELECT c.charge_id, p.organization_id, p.net, e.net AS posted_net,
               p.platform_fee, e.platform_fee AS posted_platform_fee,
               p.processing_fee, e.processing_fee AS posted_processing_fee
        FROM ledger.charge c
        LEFT JOIN ledger.corrected_charge x USING (charge_id, customer_id)
        CROSS JOIN LATERAL (
            SELECT u.organization_id,
                   u.gross - u.platform_fee - u.processing_fee - coalesce(x.legs[u.number * 3 - 2], 0)
                       - coalesce(x.written_off_legs[u.number * 3 - 2], 0) AS net,
                   u.platform_fee - coalesce(x.legs[u.number * 3 - 1], 0)
                       - coalesce(x.written_off_legs[u.number * 3 - 1], 0) AS platform_fee,
                   u.processing_fee - coalesce(x.legs[u.number * 3], 0)
                       - coalesce(x.written_off_legs[u.number * 3], 0) AS processing_fee
            FROM unnest(c.organization_ids, c.payee_gross, c.platform_fees, c.processing_fees)
                WITH ORDINALITY AS u (organization_id, gross, platform_fee, processing_fee, number)
        ) AS p
        LEFT JOIN (
            SELECT t.charge_id, n.owner_id,
                   sum(n.amount) FILTER (WHERE n.kind = 'organization_payable' AND n.collected) AS net,
                   sum(n.amount) FILTER (WHERE n.kind = 'platform_fees') AS platform_fee,
                   sum(n.amount) FILTER (WHERE n.kind = 'processing_fees') AS processing_fee
            FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
            WHERE t.charge_id IS NOT NULL AND t.type <> 'promotion_settlement'
            GROUP BY t.charge_id, n.owner_id
        ) AS e ON e.charge_id = c.charge_id AND e.owner_id = p.organization_id
        WHERE NOT EXISTS (
                SELECT FROM ledger.open_charge o
                WHERE o.customer_id = c.customer_id AND o.charge_id = c.charge_id)
          AND (p.net, p.platform_fee, p.processing_fee)
           <> (coalesce(e.net, 0), coalesce(e.platform_fee, 0), coalesce(e.processing_fee, 0))
        """,
    ),
    Check(
        "open_charges_match_entries",
        "what is open of a charge is what the entries of it, and of all that was done to it, leave open",
        """
        SELECT charge_id, o.receivable AS kept_receivable, e.receivable AS posted_receivable,
               o.unpaid AS kept_unpaid, e.unpaid AS posted_unpaid
        FROM ledger.open_charge o
        FULL JOIN (
            SELECT t.charge_id,
                   coalesce(-sum(n.amount) FILTER (WHERE n.kind = 'customer_receivable'), 0) AS receivable,
                   coalesce(-sum(n.amount) FILTER (WHERE n.kind = 'customer_unpaid'), 0) AS unpaid
            FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
            WHERE t.charge_id IS NOT NULL AND n.kind IN ('customer_receivable', 'customer_unpaid')
            GROUP BY t.charge_id
            HAVING sum(n.amount) <> 0
        ) AS e USING (charge_id)
        WHERE (coalesce(o.receivable, 0), coalesce(o.unpaid, 0))
           <> (coalesce(e.receivable, 0), coalesce(e.unpaid, 0))
           OR o.receivable <> (SELECT sum(leg) FROM unnest(o.uncollected_legs) AS leg)
           OR o.unpaid <> (SELECT sum(leg) FROM unnest(o.unearned_legs) AS leg)
        """,
    ),
    Check(
        "open_legs_match_entries",
        "what is open of each payee's net amount and fees is what entries, corrections and write-offs leave",
        """
        SELECT o.charge_id, p.organization_id, o.unearned_legs, o.uncollected_legs,
               e.net AS posted_net, e.platform_fee AS posted_platform_fee,
               e.processing_fee AS posted_processing_fee, e.uncollected AS posted_uncollected
        FROM ledger.open_charge o
        JOIN ledger.charge c USING (charge_id, customer_id)
        LEFT JOIN (
            SELECT charge_id, customer_id,
                   CASE WHEN written_off_legs IS NULL THEN legs ELSE ARRAY(
                       SELECT coalesce(u.leg, 0) + coalesce(u.written_off, 0)
                       FROM unnest(legs, written_off_legs) WITH ORDINALITY AS u (leg, written_off, number)
                       ORDER BY u.number) END AS legs
            FROM ledger.corrected_charge
        ) AS x USING (charge_id, customer_id)
        CROSS JOIN LATERAL unnest(c.organization_ids, c.payee_gross, c.platform_fees, c.processing_fees)
            WITH ORDINALITY AS p (organization_id, gross, platform_fee, processing_fee, payee_number)
        LEFT JOIN (
            SELECT t.charge_id, n.owner_id,
                   sum(n.amount) FILTER (WHERE n.kind = 'organization_payable') AS net,
                   sum(n.amount) FILTER (WHERE n.kind = 'organization_payable' AND NOT n.collected)
                       AS uncollected,
                   sum(n.amount) FILTER (WHERE n.kind = 'platform_fees') AS platform_fee,
                   sum(n.amount) FILTER (WHERE n.kind = 'processing_fees') AS processing_fee
            FROM ledger.transaction t JOIN ledger.entry n USING (transaction_id, partition_id)
            WHERE t.charge_id IS NOT NULL AND t.type <> 'promotion_settlement'
            GROUP BY t.charge_id, n.owner_id
        ) AS e ON e.charge_id = o.charge_id AND e.owner_id = p.organization_id
        WHERE (
            o.unearned_legs[p.payee_number::integer * 3 - 2],
            o.unearned_legs[p.payee_number::integer * 3 - 1],
            o.unearned_legs[p.payee_number::integer * 3],
            o.uncollected_legs[p.payee_number::integer * 3 - 2]
        ) IS DISTINCT FROM (
            (p.gross - p.platform_fee - p.processing_fee
                - coalesce(x.legs[p.payee_number::integer * 3 - 2], 0) - coalesce(e.net, 0))::bigint,
            (p.platform_fee
                - coalesce(x.legs[p.payee_number::integer * 3 - 1], 0) - coalesce(e.platform_fee, 0))::bigint,
            (p.processing_fee
                - coalesce(x.legs[p.payee_number::integer * 3], 0) - coalesce(e.processing_fee, 0))::bigint,
            coalesce(e.uncollected, 0)::bigint
        )
        """,
    ),
    Check(
        "customers_pay_their_own",
        "a charge, and what is done to it, moves the accounts of no other customer than who pays",
        """
        SELECT n.transaction_id, n.entry_number, n.owner_id, t.partition_id
        FROM ledger.entry n JOIN ledger.transaction t USING (transaction_id, partition_id)
        WHERE t.type IN ('charge', 'collection', 'correction', 'write_off') AND n.owner_id <> t.partition_id
          AND n.kind IN ('customer_credits', 'customer_receivable', 'customer_unpaid', 'unpaid_offset',
                         'customer_chargebacks')
        """,
    ),
    Check(
        "earnings_are_held_as_agreed",
        "earnings of a charge become available after the hold and the dispute window pinned on it",
        """
        SELECT n.transaction_id, n.owner_id, n.available_on
        FROM ledger.entry n
        JOIN ledger.transaction t USING (transaction_id, partition_id)
        JOIN ledger.charge c ON c.charge_id = t.charge_id AND c.customer_id = t.partition_id
        WHERE n.kind = 'organization_payable' AND t.type NOT IN ('correction', 'promotion_settlement')
          AND n.available_on IS DISTINCT FROM greatest(
              (CASE WHEN n.collected THEN t.create_time ELSE c.create_time END AT TIME ZONE 'UTC')::date
                  + c.settlement_hold_days[array_position(c.organization_ids, n.owner_id)],
              -- NULL, and so nothing, for a charge of before there were such windows.
              (c.create_time AT TIME ZONE 'UTC')::date
                  + c.dispute_window_days[array_position(c.organization_ids, n.owner_id)])
        """,
    ),
    Check(
        "payouts_end_once",
        "every payout took its amount once and ended at most once, in the transactions that its debit names",
        """
        SELECT organization_id, payout_id, type, transaction_id, currency_code, in_transit,
               d.named IS NULL AS unknown_to_debits, t.posted IS NULL AS unknown_to_journal
        FROM (
            SELECT organization_id, payout_id, 'payout' AS type, transaction_id, currency_code,
                   amount AS in_transit, true AS named
            FROM ledger.payout_debit WHERE state <> 'refused'
            UNION ALL
            SELECT organization_id, payout_id,
                   CASE state WHEN 'completed' THEN 'payout_completion' ELSE 'payout_return' END,
                   end_transaction_id, currency_code, -amount, true
            FROM ledger.payout_debit WHERE state IN ('completed', 'returned')
        ) AS d
        FULL JOIN (
            SELECT t.partition_id AS organization_id, t.payout_id, t.type::text AS type, t.transaction_id,
                   e.currency_code, sum(e.amount)::bigint AS in_transit, true AS posted
            FROM ledger.transaction t
            JOIN ledger.entry e USING (transaction_id, partition_id)
            WHERE e.kind = 'payouts_in_transit'
            GROUP BY t.partition_id, t.payout_id, t.type, t.transaction_id, e.currency_code
        ) AS t USING (organization_id, payout_id, type, transaction_id, currency_code, in_transit)
        WHERE d.named IS NULL OR t.posted IS NULL
        """,
    ),
    Check(
        "reversals_add_up",
        "of every payout came back what its debit says, and only of those that were completed",
        """
        SELECT organization_id, payout_id, currency_code, d.reversed, t.reversed AS posted
        FROM (SELECT * FROM ledger.payout_debit WHERE reversed > 0) AS d
        FULL JOIN (
            SELECT t.partition_id AS organization_id, t.payout_id, e.currency_code,
                   sum(e.amount) AS reversed
            FROM ledger.transaction t
            JOIN ledger.entry e USING (transaction_id, partition_id)
            WHERE t.type = 'payout_reversal' AND e.kind = 'organization_payable'
            GROUP BY t.partition_id, t.payout_id, e.currency_code
        ) AS t USING (organization_id, payout_id, currency_code)
        WHERE coalesce(d.reversed, 0) <> coalesce(t.reversed, 0)
        """,
    ),
    Check(
        "in_transit_is_what_payouts_took",
        "what is in transit of every organization is what its payouts took that have not ended",
        """
        SELECT owner_id, currency_code, a.balance, d.in_transit
        FROM (
            SELECT owner_id, currency_code, credits - debits AS balance FROM ledger.account
            WHERE kind = 'payouts_in_transit' AND credits <> debits
        ) AS a
        FULL JOIN (
            SELECT organization_id AS owner_id, currency_code, sum(amount) AS in_transit
            FROM ledger.payout_debit WHERE state = 'in_transit' GROUP BY organization_id, currency_code
        ) AS d USING (owner_id, currency_code)
        WHERE coalesce(a.balance, 0) <> coalesce(d.in_transit, 0)
        """,
    ),
    Check(
        "idempotency_matches_journal",
        "every transaction that somebody asked for has one key, and every such key its transaction",
        """
        SELECT k.owner_id, k.key, k.outcome, t.transaction_id, t.type
        FROM (
            SELECT owner_id, key, outcome FROM ledger.idempotency
            WHERE key LIKE 'ch\\_%' OR key LIKE 'grant/%' OR key LIKE 'adjustment/%'
               OR key LIKE 'reversal/%' OR key LIKE 'purchase-reversal/%' OR key LIKE 'reinstatement/%'
               OR key LIKE 'processor-fee/%' OR key LIKE 'correction/%' OR key LIKE 'write-off%'
        ) AS k
        -- Collections are what was open, payouts are known by their debits, expiries and settlements by lots.
        FULL JOIN (
            SELECT * FROM ledger.transaction
            WHERE type NOT IN ('collection', 'payout', 'payout_completion', 'payout_return',
                               'credit_expiry', 'promotion_settlement')
        ) AS t
            ON t.partition_id = k.owner_id
           AND k.outcome = CASE t.type WHEN 'charge' THEN t.charge_id ELSE t.transaction_id END
           AND (t.type <> 'charge' OR k.key = t.charge_id)
        WHERE k.key IS NULL OR t.transaction_id IS NULL
        UNION ALL
        SELECT owner_id, min(key), outcome, NULL, NULL
        FROM ledger.idempotency
        WHERE key LIKE 'ch\\_%' OR key LIKE 'grant/%' OR key LIKE 'adjustment/%'
               OR key LIKE 'reversal/%' OR key LIKE 'purchase-reversal/%' OR key LIKE 'reinstatement/%'
               OR key LIKE 'processor-fee/%' OR key LIKE 'correction/%' OR key LIKE 'write-off%'
        GROUP BY owner_id, outcome HAVING count(*) > 1
        """,
    ),
    Check(
        "positions_are_gap_free",
        "the positions of a log run from 1 to its last without gaps",
        """
        SELECT l.log_id, l.last_position, p.positions, p.highest
        FROM ledger.journal_log l
        LEFT JOIN (
            SELECT log_id, count(*) AS positions, max(position) AS highest, min(position) AS lowest
            FROM ledger.journal_position GROUP BY log_id
        ) AS p USING (log_id)
        WHERE l.last_position <> coalesce(p.positions, 0) OR l.last_position <> coalesce(p.highest, 0)
           OR coalesce(p.lowest, 1) <> 1
        """,
    ),
    Check(
        "every_transaction_is_sequenced_once",
        "every transaction has one position in the newest log, or waits for it",
        """
        SELECT transaction_id, partition_id, t.type, s.places
        FROM ledger.transaction t
        FULL JOIN (
            SELECT transaction_id, partition_id, count(*) AS places
            FROM (
                SELECT transaction_id, partition_id FROM ledger.journal_position
                WHERE log_id = (SELECT log_id FROM ledger.journal_log ORDER BY create_time DESC LIMIT 1)
                UNION ALL
                SELECT transaction_id, partition_id FROM ledger.unsequenced
            ) AS place
            GROUP BY transaction_id, partition_id
        ) AS s USING (transaction_id, partition_id)
        WHERE t.transaction_id IS NULL OR s.places IS DISTINCT FROM 1
        """,
    ),
    *audit_funding.CHECKS,
    *CORRECTION_CHECKS,
    *audit_across.CHECKS,
    *audit_walls.CHECKS,
    *WRITE_OFF_CHECKS,
    *LOT_CHECKS,
    *SEAL_CHECKS,
)


async def prepare(connection: AsyncConnection) -> None:
    """Let the transaction of an audit take as long as it takes, and sort in memory what fits."""
    await connection.execute(text("SET LOCAL statement_timeout = 0"))
    await connection.execute(text("SET LOCAL work_mem = '64MB'"))


async def run_checks(connection: AsyncConnection) -> AsyncIterator[Finding]:
    """The checks one after the other. The caller has opened the snapshot and scoped it to the platform."""
    await prepare(connection)
    for check in CHECKS:
        yield await run_check(connection, check)
