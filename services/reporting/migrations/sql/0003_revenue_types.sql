-- What is written off of a charge lowers what was earned by it, and so does what an organization's own promotional
-- credits paid of it.

ALTER TABLE reporting.revenue
    DROP CONSTRAINT revenue_type_check,
    ADD CONSTRAINT revenue_type_check
        CHECK (type IN ('charge', 'collection', 'correction', 'write_off', 'promotion_settlement'));
