-- Everything from before the queue was there goes to its front, by ids below those that it gives by itself: first the
-- events, then what was decided of them. What the triggers have queued since is left out.
INSERT INTO metering.unsequenced_usage (unsequenced_id, kind, customer_id, workflow_id, ordinal)
OVERRIDING SYSTEM VALUE
SELECT row_number() OVER (ORDER BY u.create_time, u.customer_id, u.workflow_id, u.ordinal) - (1::bigint << 62),
       'recorded', u.customer_id, u.workflow_id, u.ordinal
FROM metering.usage_event u
WHERE NOT EXISTS (
    SELECT FROM metering.unsequenced_usage q
    WHERE q.kind = 'recorded' AND q.customer_id = u.customer_id AND q.workflow_id = u.workflow_id
      AND q.ordinal = u.ordinal
);

INSERT INTO metering.unsequenced_usage (unsequenced_id, kind, customer_id, workflow_id, ordinal)
OVERRIDING SYSTEM VALUE
SELECT row_number() OVER (ORDER BY d.resolve_time, d.outcome_id) - (1::bigint << 61),
       'decided', d.customer_id, d.workflow_id, d.ordinal
FROM metering.deferred_outcome d
WHERE d.state <> 'pending' AND NOT EXISTS (
    SELECT FROM metering.unsequenced_usage q
    WHERE q.kind = 'decided' AND q.customer_id = d.customer_id AND q.workflow_id = d.workflow_id
      AND q.ordinal = d.ordinal
);

-- Last: as long as there is no log, nothing is sequenced, so that what was decided while this ran does not come before
-- its event.
INSERT INTO metering.usage_log (log_id) VALUES ('log_' || replace(gen_random_uuid()::text, '-', ''));
