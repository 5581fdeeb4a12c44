-- Which run charges are for. A charge is its payer's; its payees see their own shares, in `revenue`, and of the charge no
-- more than this: not what others share in it.
CREATE FUNCTION reporting.charge_identities(p_projection_id integer, p_charge_ids text[])
RETURNS TABLE (
    charge_id text, customer_id text, workflow_id text, component text, ordinal integer, price_version_id text,
    post_time timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = reporting, pg_temp AS $$
    SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.price_version_id,
           c.create_time
    FROM charge AS c
    WHERE c.projection_id = p_projection_id AND c.charge_id = ANY (p_charge_ids)
      AND ((SELECT visible(NULL))
           OR c.customer_id = ANY (ARRAY(SELECT visible_owners()))
           OR EXISTS (
               SELECT FROM revenue AS r
               WHERE r.projection_id = c.projection_id AND r.charge_id = c.charge_id
                 AND r.organization_id = ANY (ARRAY(SELECT visible_owners()))))
$$;
REVOKE EXECUTE ON FUNCTION reporting.charge_identities FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.charge_identities TO reporting_reader, reporting_writer;
