-- What a reversal of a purchase takes of expired credits, and what a payout must know of an organization's promotions.

ALTER TABLE ledger.purchase_reversal
    -- What had expired of the purchase: the platform gave back what it had kept. Comes again last.
    ADD COLUMN from_expired bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT from_expired_within_reversal CHECK (from_expired BETWEEN 0 AND amount - from_credits);

-- Before a payout: what waits to be settled with this organization, and whose lots of it may have paid since.
CREATE INDEX promotion_due_funder ON ledger.promotion_due (funder_id, currency_code);
CREATE INDEX credit_lot_funder ON ledger.credit_lot (funder_id, currency_code)
    WHERE is_open AND funder_id NOT IN ('', 'platform');
-- Grants of organizations that have no lot yet, as if they were made now (grant_credits marks them).
INSERT INTO ledger.promotion_due (customer_id, debit_id, funder_id, currency_code)
SELECT g.customer_id, g.transaction_id, g.funder_id, e.currency_code
FROM ledger.credit_grant g
JOIN ledger.entry e
    ON e.transaction_id = g.transaction_id AND e.partition_id = g.customer_id AND e.kind = 'customer_credits'
WHERE g.funder_id NOT IN ('', 'platform') AND NOT EXISTS (
    SELECT FROM ledger.credit_lot l
    WHERE (l.customer_id, l.currency_code, l.lot_id) = (g.customer_id, e.currency_code, g.transaction_id))
ON CONFLICT DO NOTHING;
