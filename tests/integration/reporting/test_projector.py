"""Projections as a running service makes them: prompt, never wrong, and made anew while they answer."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from services.kit.errors import Unavailable
from services.kit.times import timestamp
from services.reporting import projector
from services.reporting.domain.projection import FeedGap
from tallystick.common.v1 import access_pb2
from tallystick.reporting.v1 import period_pb2, projection_pb2, revenue_pb2
from tallystick.reporting.v1 import projection_service_pb2 as pb
from tallystick.reporting.v1 import reporting_service_pb2 as reports
from tests.support.feeds import FakeFeed, FakeFeeds, running_feeds
from tests.support.ledger_server import running_ledger
from tests.support.reporting_server import ReportingServer, running_reporting
from tests.support.reporting_world import CATALOGUE, FeedWorld, ModelEvent, content
from tests.support.waiting import eventually

SERVING = projection_pb2.PROJECTION_STATE_SERVING
BUILDING = projection_pb2.PROJECTION_STATE_BUILDING
RETIRED = projection_pb2.PROJECTION_STATE_RETIRED


@pytest.fixture
async def feeds() -> AsyncIterator[FakeFeeds]:
    async with running_feeds() as running:
        yield running


@pytest.fixture
async def reporting(database_url: str, feeds: FakeFeeds) -> AsyncIterator[ReportingServer]:
    """Reporting without its workers: nothing happens by itself."""
    async with (
        running_ledger(database_url) as ledger,
        running_reporting(
            database_url,
            ledger,
            ledger_address=feeds.address,
            metering_address=feeds.address,
            catalogue=CATALOGUE,
            workers=False,
        ) as running,
    ):
        yield running


def busy_world(runs: int = 3) -> FeedWorld:
    """Some runs that were charged, one of them corrected."""
    world = FeedWorld()
    for number in range(runs):
        payees = (("org_x", "agt_x"),)
        charge = world.charge("cus_a", f"run-{number}", 0, 1000 + number, payees, paid=6, owed=1)
        world.record(
            ModelEvent(
                *("cus_a", charge.workflow_id, 0, "org_x", "agt_x", "1.0", "ticket.resolve", "gpt-x"),
                *((100, 10), "success", charge.gross, world.now),
            )
        )
    world.correct(world.charges[0], 500)
    return world


def show(world: FeedWorld, feeds: FakeFeeds) -> None:
    feeds.journal.records, feeds.usage.records = world.journal, world.usage


def count(metric: str, feed: str) -> float:
    return REGISTRY.get_sample_value(metric, {"feed": feed}) or 0.0


async def projections(reporting: ReportingServer) -> list[projection_pb2.Projection]:
    answer = await reporting.operator.projections.ListProjections(pb.ListProjectionsRequest())
    return list(answer.projections)


async def test_what_is_posted_is_seen_without_being_asked_for(database_url: str, feeds: FakeFeeds) -> None:
    world = busy_world()
    async with (
        running_ledger(database_url) as ledger,
        running_reporting(
            database_url,
            ledger,
            ledger_address=feeds.address,
            metering_address=feeds.address,
            catalogue=CATALOGUE,
        ) as reporting,
    ):

        async def caught_up() -> bool:
            found = await projections(reporting)
            return bool(found) and all(
                feed.position == head and feed.HasField("hear_time")
                for feed, head in zip(found[0].feeds, (len(world.journal), len(world.usage)), strict=True)
            )

        show(world, feeds)
        await eventually(caught_up)
        world.grant("cus_a", 5)
        await eventually(caught_up)
        [projection] = await projections(reporting)
        assert projection.state == SERVING
        assert [feed.feed for feed in projection.feeds] == ["journal", "usage"]
        assert [feed.log_id for feed in projection.feeds] == ["log_journal", "log_usage"]
        assert all(not feed.lag.ToMicroseconds() for feed in projection.feeds)
        assert content(reporting.query, projection.projection_id) == world.expected()
        [(as_of, heard)] = reporting.query(
            "SELECT as_of, (SELECT min(hear_time) FROM reporting.feed) FROM reporting.serving()"
        )
        assert as_of == heard


async def test_nothing_is_said_to_be_known_up_to_a_time_while_a_feed_was_never_heard(
    database_url: str, feeds: FakeFeeds, tmp_path: Path
) -> None:
    async with (
        running_ledger(database_url) as ledger,
        running_reporting(
            database_url,
            ledger,
            ledger_address=feeds.address,
            metering_address=f"unix:{tmp_path}/nobody",
            catalogue=CATALOGUE,
            workers=False,
        ) as reporting,
    ):
        show(busy_world(), feeds)
        with pytest.raises(Unavailable):
            await reporting.catch_up()
        answer = await reporting.operator.reporting.GetUsage(reports.GetUsageRequest(customer_id="cus_a"))
        assert answer.as_of.journal_position == len(feeds.journal.records)
        assert answer.as_of.usage_position == 0
        assert not answer.as_of.HasField("time")


async def test_a_feed_that_is_away_does_not_keep_the_other_from_its_end(
    database_url: str, feeds: FakeFeeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "_TURN", 2)
    async with (
        running_ledger(database_url) as ledger,
        running_reporting(
            database_url,
            ledger,
            ledger_address=feeds.address,
            metering_address=f"unix:{tmp_path}/nobody",
            catalogue=CATALOGUE,
            workers=False,
            feed_batch_size=1,
        ) as reporting,
    ):
        show(busy_world(), feeds)
        # A worker pauses after a step that fails: none does before all of the journal is read.
        with pytest.raises(Unavailable):
            await reporting.catch_up()
        assert reporting.query("SELECT position FROM reporting.feed WHERE feed = 'journal'") == [(4,)]


async def test_no_amount_is_large_enough_to_stop_the_feed(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = FeedWorld()

    def event(number: int, at: datetime) -> ModelEvent:
        return ModelEvent(
            *("cus_a", f"run-{number}", 0, "org_x", "agt_x", "1.0", "ticket.resolve", "gpt-x"),
            *((2**62, 2**62), "pending", 2**62, at),
        )

    most, later = 2**63 - 1, world.now + timedelta(minutes=20)
    for number, at in enumerate((world.now, world.now, later, later)):
        world.record(event(number, at))
        show(world, feeds)
        await reporting.catch_up()
    world.decide(world.events[0], "success", 2**61)
    await reporting.catch_up()
    periods = (
        period_pb2.Period(name="2026-10"),
        # Of quarter hours, and of rows.
        *(
            period_pb2.Period(start_time=timestamp(start), end_time=timestamp(later + timedelta(minutes=20)))
            for start in (world.now - timedelta(minutes=5), world.now)
        ),
    )
    for period in periods:
        usage = await reporting.operator.reporting.GetUsage(
            reports.GetUsageRequest(customer_id="cus_a", period=period)
        )
        assert (usage.total.cost.amount_micros, usage.total.input_tokens) == (most, most)
        assert usage.total.execution_count == 4
        for grouping in (revenue_pb2.MARGIN_GROUPING_MODEL, revenue_pb2.MARGIN_GROUPING_RUN):
            margin = await reporting.operator.reporting.GetMargin(
                reports.GetMarginRequest(organization_id="org_x", period=period, grouping=grouping)
            )
            assert margin.total.gross.amount_micros == most


async def test_what_is_missing_stops_the_feed_and_raises_an_alarm(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = busy_world()
    show(world, feeds)
    missing = feeds.journal.records.pop(1)
    alarms = count("tallystick_feed_gaps_total", "journal")
    for _ in range(2):
        with pytest.raises(FeedGap, match="position 3 came behind 1"):
            await reporting.catch_up()
    assert count("tallystick_feed_gaps_total", "journal") == alarms + 2
    # Nothing of the journal's batch; the other feed goes on.
    assert reporting.query("SELECT feed, position FROM reporting.feed ORDER BY feed") == [
        ("journal", 0),
        ("usage", len(world.usage)),
    ]
    feeds.journal.records.insert(1, missing)
    await reporting.catch_up()
    assert content(reporting.query, 1) == world.expected()


async def test_a_charge_that_the_feed_leaves_out_is_a_gap(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = busy_world()
    show(world, feeds)
    world.journal[0].ClearField("charge")
    with pytest.raises(FeedGap, match="the charge of position 1 is missing"):
        await reporting.catch_up()


@pytest.mark.parametrize("newer", ["type", "kind"])
async def test_what_only_a_newer_ledger_knows_stops_the_feed_and_raises_an_alarm(
    reporting: ReportingServer, feeds: FakeFeeds, newer: str
) -> None:
    world = busy_world()
    show(world, feeds)
    transaction = world.journal[0].transaction
    # An enum of proto3 is open: what is not known travels as its number.
    if newer == "type":
        transaction.type = 99  # type: ignore[assignment]
    else:
        transaction.entries[0].account.kind = 99  # type: ignore[assignment]
    alarms = count("tallystick_feed_gaps_total", "journal")
    with pytest.raises(FeedGap, match="is not known here: 99"):
        await reporting.catch_up()
    assert count("tallystick_feed_gaps_total", "journal") == alarms + 1


async def test_a_ledger_that_serves_no_columns_is_told_to_be_older(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    """It knows nothing of forms, and answers in the only one that it has."""
    show(busy_world(), feeds)
    feeds.journal.knows_columns = False
    with pytest.raises(FeedGap, match="not served as columns: upgrade the ledger"):
        await reporting.catch_up()


async def test_an_outcome_without_its_event_is_not_applied(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = busy_world()
    show(world, feeds)
    event = world.events[0]
    world.decide(event, "failure", 5)
    with pytest.raises(Exception, match="is not pending"):
        await reporting.catch_up()
    assert reporting.query("SELECT count(*) FROM reporting.usage") == [(0,)]


async def test_another_log_begins_a_projection_which_answers_when_it_is_read(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = busy_world()
    show(world, feeds)
    await reporting.catch_up()
    before = content(reporting.query, 1)

    # Both were restored from backups: there are other things at other positions.
    restored = busy_world(2)
    feeds.journal.log_id = feeds.usage.log_id = "log_restored"
    show(restored, feeds)
    await reporting.catch_up()
    found = await projections(reporting)
    assert [(one.projection_id, one.state) for one in found] == [(2, BUILDING), (1, SERVING)]
    # It answers what it knows, and asks in vain no more than once in a round.
    await reporting.catch_up()
    assert content(reporting.query, 1) == before

    projector = reporting.app.projector
    assert not await projector.build()
    found = await projections(reporting)
    assert [(one.projection_id, one.state) for one in found] == [(2, SERVING), (1, RETIRED)]
    assert content(reporting.query, 2) == restored.expected()
    # Its own feed goes on.
    restored.grant("cus_b", 7)
    await reporting.catch_up()
    assert content(reporting.query, 2) == restored.expected()


@pytest.mark.parametrize(("feed", "missing"), [("journal", 1), ("usage", 1), ("usage", 3)])
async def test_a_log_that_ends_before_what_was_read_of_it_is_lost(
    reporting: ReportingServer, feeds: FakeFeeds, feed: str, missing: int
) -> None:
    world = busy_world()
    show(world, feeds)
    await reporting.catch_up()
    before = content(reporting.query, 1)

    # Restored from a backup that was made earlier, under its old name.
    restored: FakeFeed = getattr(feeds, feed)
    restored.visible = restored.head - missing
    await reporting.catch_up()
    found = await projections(reporting)
    assert [(one.projection_id, one.state) for one in found] == [(2, BUILDING), (1, SERVING)]
    assert content(reporting.query, 1) == before
    del restored.records[restored.visible :]
    restored.visible = None
    projector = reporting.app.projector
    while await projector.build():
        pass
    found = await projections(reporting)
    assert [(one.projection_id, one.state) for one in found] == [(2, SERVING), (1, RETIRED)]
    rows = reporting.query("SELECT feed, position FROM reporting.feed WHERE projection_id = 2 ORDER BY feed")
    assert rows == [("journal", feeds.journal.head), ("usage", feeds.usage.head)]
    await reporting.catch_up()
    assert len(await projections(reporting)) == 2


async def test_a_projection_that_is_built_of_a_lost_log_is_given_up(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = busy_world()
    show(world, feeds)
    await reporting.catch_up()
    projector = reporting.app.projector
    feeds.usage.visible = 0
    assert await projector.begin() == 2
    await projector.build()
    feeds.usage.visible = None
    feeds.journal.log_id = "log_restored"
    await projector.build()
    states = reporting.query("SELECT projection_id, state FROM reporting.projection ORDER BY 1")
    assert states == [(1, "serving"), (2, "retired"), (3, "building")]
    await projector.build()
    states = reporting.query("SELECT projection_id, state FROM reporting.projection ORDER BY 1")
    assert states == [(1, "retired"), (2, "retired"), (3, "serving")]
    while await projector.build():
        pass
    states = reporting.query("SELECT projection_id, state FROM reporting.projection ORDER BY 1")
    assert states == [(3, "serving")]
    assert content(reporting.query, 3) == world.expected()


async def test_a_rebuild_answers_only_when_it_has_read_as_much(
    reporting: ReportingServer, feeds: FakeFeeds
) -> None:
    world = busy_world()
    show(world, feeds)
    await reporting.catch_up()
    rebuild = reporting.operator.projections.RebuildProjection
    begun = (await rebuild(pb.RebuildProjectionRequest())).projection
    assert (begun.projection_id, begun.state) == (2, BUILDING)
    assert (await rebuild(pb.RebuildProjectionRequest())).projection.projection_id == 2

    # The new one sees less than the old one has.
    feeds.journal.visible = len(world.journal) - 1
    await reporting.app.projector.build()
    assert [one.state for one in await projections(reporting)] == [BUILDING, SERVING]
    feeds.journal.visible = None
    await reporting.app.projector.build()
    states = reporting.query("SELECT state FROM reporting.projection ORDER BY projection_id")
    assert states == [("retired",), ("serving",)]
    assert content(reporting.query, 2) == content(reporting.query, 1)
    assert reporting.query("SELECT projection_id FROM reporting.serving()") == [(2,)]


@pytest.mark.parametrize("role", ["owner", "host"])
async def test_only_operators_read_everything_again(reporting: ReportingServer, role: str) -> None:
    organization: dict[str, Any] = {}
    if role == "owner":
        await reporting.ledger.create_organization("org_x")
        organization = {"organization_id": "org_x"}
    value = access_pb2.Role.Value(f"ROLE_{role.upper()}")
    caller = reporting.caller((await reporting.ledger.create_caller(value, role, **organization)).key)
    for call in (
        caller.projections.RebuildProjection(pb.RebuildProjectionRequest()),
        caller.projections.ListProjections(pb.ListProjectionsRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
