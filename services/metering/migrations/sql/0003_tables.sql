-- Reservations that usage is paid from, and outcomes that are decided later.

-- The reservation that an event was settled with, all of these or none: what the ledger is told, so that recovery
-- asks for the same as the first attempt did. The first report's stands.
ALTER TABLE metering.usage_event
    ADD COLUMN reservation_id text COLLATE "C",
    -- The lease that it was allocated in; 0 for a hold.
    ADD COLUMN lease_epoch bigint,
    ADD COLUMN reserved_micros bigint,
    ADD COLUMN reservation_expire_time timestamptz,
    ADD CHECK (num_nulls(reservation_id, lease_epoch, reserved_micros, reservation_expire_time) IN (0, 4));

-- Outcomes of events that were reported as pending. Each is decided once: by somebody, or by its time.
CREATE TABLE metering.deferred_outcome (
    outcome_id text COLLATE "C" PRIMARY KEY,
    -- The event.
    customer_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    ordinal integer NOT NULL,
    -- That of the event, which never changes: policies need no join.
    organization_id text COLLATE "C" NOT NULL,
    -- The API key that reported the event: budgets count by it.
    api_key_id text COLLATE "C" NOT NULL,
    -- What it falls to, and when.
    expired_outcome text COLLATE "C" NOT NULL
        CHECK (expired_outcome IN ('success', 'failure', 'partial', 'unknown')),
    expire_time timestamptz NOT NULL,
    -- What each outcome adds, of those that add anything, by the event's own price:
    -- {outcome: [micros, [line, ...]]}, lines as in usage_event.
    bonuses jsonb NOT NULL,
    -- The most that any of them adds: what is held for it.
    max_bonus_micros bigint NOT NULL CHECK (max_bonus_micros >= 0),
    create_time timestamptz NOT NULL DEFAULT now(),
    -- All of these change when it is decided, and never again.
    state text COLLATE "C" NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'resolved', 'expired')),
    outcome text COLLATE "C" NOT NULL DEFAULT 'pending'
        CHECK (outcome IN ('success', 'failure', 'partial', 'unknown', 'pending')),
    resolve_time timestamptz,
    bonus_micros bigint CHECK (bonus_micros BETWEEN 0 AND max_bonus_micros),
    evidence_ref text NOT NULL DEFAULT '',
    evidence_hash bytea NOT NULL DEFAULT '',
    UNIQUE (customer_id, workflow_id, ordinal),
    CHECK ((state = 'pending') = (outcome = 'pending')),
    CHECK ((state = 'pending') = (resolve_time IS NULL)),
    CHECK ((state = 'pending') = (bonus_micros IS NULL))
);
CREATE INDEX deferred_outcome_due ON metering.deferred_outcome (expire_time) WHERE state = 'pending';

-- The second wall, for every role: what was decided stays, and nothing goes away.
CREATE TRIGGER decided BEFORE UPDATE ON metering.deferred_outcome
    FOR EACH ROW WHEN (OLD.state <> 'pending') EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept BEFORE DELETE ON metering.deferred_outcome
    FOR EACH ROW EXECUTE FUNCTION metering.refuse_change();
CREATE TRIGGER kept_truncate BEFORE TRUNCATE ON metering.deferred_outcome
    FOR EACH STATEMENT EXECUTE FUNCTION metering.refuse_change();

ALTER TABLE metering.deferred_outcome ENABLE ROW LEVEL SECURITY;
ALTER TABLE metering.deferred_outcome FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON metering.deferred_outcome TO metering_owner USING (true);
CREATE POLICY tenant_select ON metering.deferred_outcome FOR SELECT TO metering_reader, metering_writer
    USING (metering.visible(customer_id) OR metering.visible(organization_id));
GRANT SELECT ON metering.deferred_outcome TO metering_reader, metering_writer;

-- An event has a charge for what was known when the work ended, and maybe one for its outcome: that of a decided
-- outcome is in the queue even if it adds nothing, until what is held for it is released.
ALTER TABLE metering.pending_charge
    ADD COLUMN component text COLLATE "C" NOT NULL DEFAULT 'BASE' CHECK (component IN ('BASE', 'OUTCOME')),
    DROP CONSTRAINT pending_charge_pkey,
    ADD PRIMARY KEY (customer_id, workflow_id, ordinal, component);
