"""The feed of usage: complete, in order, from wherever a reader left off."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from alembic import command
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Code
from services.metering import migrations
from services.metering.store import usage_feed
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.metering.v1 import usage_feed_service_pb2 as pb
from tests.integration.metering.world import BONUS_MICROS, RUN_MICROS, World, fields_of, refused, run
from tests.support.sequencing import sequencers
from tests.support.waiting import eventually

PENDING, SUCCESS = usage_pb2.OUTCOME_PENDING, usage_pb2.OUTCOME_SUCCESS


async def read(world: World, **request: object) -> list[pb.ReadUsageResponse]:
    feed = world.server.operator.feed.ReadUsage(pb.ReadUsageRequest(**request))  # type: ignore[arg-type]
    return [batch async for batch in feed]


async def read_all(world: World, count: int, **request: object) -> list[pb.SequencedUsage]:
    """The whole feed, once it holds `count` records."""
    found: list[pb.SequencedUsage] = []

    async def complete() -> bool:
        found[:] = [one for batch in await read(world, **request) for one in batch.records]
        return len(found) >= count

    await eventually(complete)
    return found


async def resolve(
    world: World, outcome_id: str, outcome: usage_pb2.Outcome.ValueType = SUCCESS
) -> metering_service_pb2.ResolveOutcomeResponse:
    return await world.host.metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(
            outcome_id=outcome_id, outcome=outcome, evidence_ref="where", evidence_hash=b"d" * 32
        )
    )


def in_future(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return moment


async def test_events_come_as_they_were_recorded_and_priced(world: World) -> None:
    early = run("run-1", evidence_ref="here", evidence_hash=b"e" * 32, tool_name="search")
    ahead = run("run-2", occur_time=in_future(120))
    metered = await world.meter_batch(early, ahead)

    one, other = await read_all(world, 2)

    for sequenced, event, charged in zip((one, other), (early, ahead), metered, strict=True):
        assert isinstance(charged, metering_service_pb2.MeteredEvent)
        recorded = sequenced.recorded
        found = (await world.find(event)).event
        if event is ahead:
            # Kept as reported; recorded as when it came.
            assert recorded.event.occur_time.ToDatetime() < found.occur_time.ToDatetime()
            found.occur_time.CopyFrom(recorded.event.occur_time)
        assert recorded.event == found
        assert recorded.organization_id == "org_a"
        assert recorded.charge_id == charged.charge_id
        assert recorded.price == charged.price_charged
        assert recorded.price.amount_micros == RUN_MICROS
        assert list(recorded.lines) == list(charged.lines)
        assert recorded.price_version_id == charged.price_version_id
        assert recorded.create_time.ToDatetime() >= recorded.event.occur_time.ToDatetime()
    # The same event again is no news.
    await world.meter(early)
    assert await read_all(world, 2) == [one, other]


async def test_a_decided_outcome_comes_behind_its_event_with_what_it_adds(world: World) -> None:
    succeeded = await world.meter(run("run-1", outcome=PENDING))
    failed = await world.meter(run("run-2", outcome=PENDING))
    late = await world.meter(run("run-3", outcome=PENDING, outcome_expire_time=in_future(-1)))
    resolved = await resolve(world, succeeded.outcome_id)
    await resolve(world, failed.outcome_id, usage_pb2.OUTCOME_FAILURE)
    # The same resolution again is no news.
    await resolve(world, succeeded.outcome_id)

    records = await read_all(world, 6)

    assert [one.position for one in records] == list(range(1, 7))
    at = {one.recorded.charge_id: one.position for one in records if one.HasField("recorded")}
    decided = {one.decided.outcome.outcome_id: one for one in records if one.HasField("decided")}
    for metered in (succeeded, failed, late):
        assert decided[metered.outcome_id].position > at[metered.charge_id]
        assert decided[metered.outcome_id].decided.organization_id == "org_a"
    success = decided[succeeded.outcome_id].decided
    assert success.outcome == resolved.outcome
    assert [(line.component_name, line.amount.amount_micros) for line in success.lines] == [
        ("bonus", BONUS_MICROS)
    ]
    failure = decided[failed.outcome_id].decided
    assert (failure.outcome.charge_id, list(failure.lines)) == ("", [])
    assert decided[late.outcome_id].decided.outcome.outcome == usage_pb2.OUTCOME_UNKNOWN


async def test_a_reader_resumes_where_it_left_off_and_follows(world: World) -> None:
    await world.meter_batch(*(run(f"run-{number}") for number in range(5)))
    whole = await read_all(world, 5)

    batches = await read(world, batch_size=2)

    assert [(one.last_position, one.head_position) for one in batches] == [(2, 5), (4, 5), (5, 5)]
    log_id = batches[0].log_id
    (rest,) = await read(world, after_position=3, log_id=log_id)
    assert list(rest.records) == whole[3:]
    assert await read(world, after_position=5, log_id=log_id) == []
    follower = world.server.operator.feed.ReadUsage(
        pb.ReadUsageRequest(after_position=5, log_id=log_id, follow=True)
    )
    await world.meter(run("run-late"))
    async with asyncio.timeout(30):
        news = await anext(aiter(follower))
    assert [(one.position, one.recorded.event.workflow_id) for one in news.records] == [(6, "run-late")]
    follower.cancel()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"after_position": 1, "log_id": "log_of_another_life"}, "log_id"),
        ({"after_position": 1}, "log_id"),
        ({"after_position": -1}, "after_position"),
        ({"batch_size": -1}, "batch_size"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(
    world: World, request_: dict[str, object], field: str
) -> None:
    error = await refused(read(world, **request_))
    assert (error.code, fields_of(error)) == (Code.INVALID_ARGUMENT, [field])


async def test_the_feed_is_the_platforms_alone(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as denied:
        await anext(aiter(world.host.feed.ReadUsage(pb.ReadUsageRequest())))
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    service = world.server.caller(world.server.ledger.service.key)
    assert [batch async for batch in service.feed.ReadUsage(pb.ReadUsageRequest())] == []


async def test_the_feed_misses_nothing_whoever_records_and_sequences_at_once(world: World) -> None:
    recorded: list[tuple[int, str]] = []
    decided: dict[str, int] = {}

    async def follow() -> None:
        feed = world.server.operator.feed.ReadUsage(pb.ReadUsageRequest(follow=True, batch_size=9))
        async for batch in feed:
            for one in batch.records:
                if one.HasField("recorded"):
                    recorded.append((one.position, one.recorded.event.workflow_id))
                else:
                    decided[one.decided.outcome.workflow_id] = one.position
            if len(recorded) + len(decided) >= 75:
                feed.cancel()
                return

    async def report(number: int) -> None:
        events = [run(f"run-{number}-{step}", outcome=PENDING if step % 2 else SUCCESS) for step in range(10)]
        for metered in await world.meter_batch(*events):
            assert isinstance(metered, metering_service_pb2.MeteredEvent)
            if metered.HasField("deferred_outcome") and number % 2:
                await resolve(world, metered.outcome_id)

    async with (
        sequencers(world.server.database_url, "metering", usage_feed.sequence),
        asyncio.timeout(60),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(follow())
        for number in (0, 0, 1, 2, 2, 3, 4, 4, 5):
            group.create_task(report(number))

    assert sorted([*(position for position, _ in recorded), *decided.values()]) == list(range(1, 76))
    at = {workflow_id: position for position, workflow_id in recorded}
    assert sorted(at) == sorted(f"run-{number}-{step}" for number in range(6) for step in range(10))
    assert sorted(decided) == sorted(
        f"run-{number}-{step}" for number in (1, 3, 5) for step in range(1, 10, 2)
    )
    assert all(position > at[workflow_id] for workflow_id, position in decided.items())


OUTCOME = (
    "INSERT INTO metering.deferred_outcome (outcome_id, customer_id, workflow_id, ordinal, organization_id,"
    " api_key_id, expired_outcome, expire_time, bonuses, max_bonus_micros)"
    " VALUES ('out_' || %s, 'cus_1', %s, 0, 'org_a', '', 'unknown', now(), '{}', 0)"
)
DECISION = (
    "UPDATE metering.deferred_outcome SET state = 'resolved', outcome = 'success', resolve_time = now(),"
    " bonus_micros = 0 WHERE workflow_id = %s"
)


def test_what_was_there_before_the_feed_comes_first_and_in_order(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade

    def migrate(version: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(command, "upgrade", lambda config, revision: upgrade(config, version))
            migrations.migrate(empty_database_url)

    with psycopg.connect(empty_database_url, autocommit=True) as admin:

        def record(workflow_id: str, age: str) -> None:
            admin.execute(
                "INSERT INTO metering.usage_event VALUES ('cus_1', %s, 0, 'org_a', 'agt_a', now(), '', '',"
                " '', 'pv_1', 'USD', 5, '[]', now() - %s::interval)",
                (workflow_id, age),
            )

        def positions() -> list[tuple[object, ...]]:
            while admin.execute("SELECT metering.sequence_usage(2)").fetchone() != (0,):
                pass
            return admin.execute(
                "SELECT position, kind, workflow_id FROM metering.usage_position ORDER BY position"
            ).fetchall()

        migrate("0003")
        record("newer", "1 hour")
        record("older", "2 hours")
        admin.execute(OUTCOME, ("newer", "newer"))
        admin.execute(OUTCOME, ("older", "older"))
        admin.execute(DECISION, ("older",))
        migrate("0004")
        # What is recorded and decided while the rest is not there yet waits for it.
        record("now", "0 s")
        admin.execute(DECISION, ("newer",))
        # Without a log nothing is sequenced, by the functions of a version that has them already either.
        assert admin.execute("SELECT log_id FROM metering.usage_log").fetchall() == []

        migrate("head")

        assert positions() == [
            (1, "recorded", "older"),
            (2, "recorded", "newer"),
            (3, "decided", "older"),
            (4, "recorded", "now"),
            (5, "decided", "newer"),
        ]
        assert admin.execute("SELECT last_position FROM metering.usage_log").fetchall() == [(5,)]
