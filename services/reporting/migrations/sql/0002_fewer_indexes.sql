-- Fewer indexes: each one costs as much as the row itself, for every charge.

-- Charges whose usage did not come yet, by the event that they are for. Most usage comes before its charge, so that few
-- are ever here; an index of all charges by their events was only asked for these.
CREATE TABLE reporting.unnamed_charge (
    projection_id integer NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL,
    -- Of the transaction that posted it.
    position bigint NOT NULL,
    PRIMARY KEY (projection_id, customer_id, workflow_id, ordinal, position)
);
ALTER TABLE reporting.unnamed_charge ENABLE ROW LEVEL SECURITY;
ALTER TABLE reporting.unnamed_charge FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON reporting.unnamed_charge TO reporting_owner USING (true);
CREATE POLICY tenant_select ON reporting.unnamed_charge FOR SELECT TO reporting_reader, reporting_writer USING (
    (SELECT reporting.visible(NULL)) OR customer_id = ANY (ARRAY(SELECT reporting.visible_owners())));
GRANT SELECT ON reporting.unnamed_charge TO reporting_reader, reporting_writer;

-- Also keeps batches of the version before from being applied until the functions are new: they wait, and then call
-- these, which have the same arguments.
LOCK TABLE reporting.charge, reporting.usage, reporting.revenue IN ACCESS EXCLUSIVE MODE;
INSERT INTO reporting.unnamed_charge
SELECT c.projection_id, c.customer_id, c.workflow_id, c.ordinal, c.position
FROM reporting.charge c
WHERE NOT EXISTS (
    SELECT FROM reporting.usage u
    WHERE u.projection_id = c.projection_id AND u.customer_id = c.customer_id AND u.workflow_id = c.workflow_id
      AND u.ordinal = c.ordinal);
DROP INDEX reporting.charge_event;

-- What a charge itself brought is found by its position, which is in the charge. What was collected or taken back later
-- is little, and has an index of its own.
DROP INDEX reporting.revenue_charge;
CREATE INDEX revenue_later ON reporting.revenue (projection_id, charge_id) WHERE type <> 'charge';
