-- A projection that has read such charges told them from no work: another one is made, and this one answers meanwhile.
-- One that is being made has read some of them, too, and is given up.
DO $$
BEGIN
    IF EXISTS (SELECT FROM reporting.charge c WHERE reporting.charge_kind(c.workflow_id) <> 'usage') THEN
        PERFORM reporting.begin_projection(
            (SELECT p.projection_id FROM reporting.projection p WHERE p.state = 'building'), false);
    END IF;
END
$$;
