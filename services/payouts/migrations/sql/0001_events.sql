-- Taking in events of the payment processor.

-- Store events that are new, and answer how many were. One that is there already stays as it is: nothing is handled
-- twice because it was sent twice. All arrays have one element per event; a state is 'pending' or 'ignored'.
--
-- SECURITY DEFINER, because an event is nobody's request: there is no tenant to scope it by.
CREATE FUNCTION payouts.receive_events(
    event_ids text[],
    types text[],
    stripe_account_ids text[],
    object_ids text[],
    livemodes boolean[],
    states text[],
    notes text[],
    caught_up boolean[],
    create_times timestamptz[],
    receive_times timestamptz[]
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = payouts, pg_temp AS $$
DECLARE
    new_count bigint;
BEGIN
    IF NOT states <@ ARRAY['pending', 'ignored'] THEN
        RAISE EXCEPTION 'an event comes to be handled or to be ignored' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO payouts.processor_event AS event (
        event_id, type, stripe_account_id, object_id, livemode, state, note, next_attempt_time, caught_up, create_time,
        receive_time)
    SELECT
        given.event_id, given.type, given.stripe_account_id, given.object_id, given.livemode, given.state, given.note,
        CASE given.state WHEN 'pending' THEN given.receive_time END, given.caught_up, given.create_time,
        given.receive_time
    FROM unnest(
        event_ids, types, stripe_account_ids, object_ids, livemodes, states, notes, caught_up, create_times,
        receive_times
    ) AS given (
        event_id, type, stripe_account_id, object_id, livemode, state, note, caught_up, create_time, receive_time)
    -- Each insertion locks its id until the end, and whoever has the same id waits for it: in one order for all, so
    -- that two batches with the same events never wait for each other.
    ORDER BY given.event_id
    ON CONFLICT (event_id) DO NOTHING;
    GET DIAGNOSTICS new_count = ROW_COUNT;
    RETURN new_count;
END
$$;
REVOKE EXECUTE ON FUNCTION payouts.receive_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION payouts.receive_events TO payouts_writer;
