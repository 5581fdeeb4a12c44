-- Fees of subscriptions and what closing a billing period charges are told apart from work.

-- Only what is no work has sums of its own; what is left of all is work.
ALTER TABLE reporting.revenue_sum
    DROP CONSTRAINT revenue_sum_dimension_check,
    ADD CONSTRAINT revenue_sum_dimension_check CHECK (dimension IN ('all', 'agent', 'customer', 'kind'));
