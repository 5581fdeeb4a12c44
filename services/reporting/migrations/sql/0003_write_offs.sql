-- What is written off of a charge lowers what was earned by it.

ALTER TABLE reporting.revenue
    DROP CONSTRAINT revenue_type_check,
    ADD CONSTRAINT revenue_type_check CHECK (type IN ('charge', 'collection', 'correction', 'write_off'));
