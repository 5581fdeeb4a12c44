"""Meter and MeterBatch: finished work becomes charges, once."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Code, TallystickError
from tallystick.metering.v1 import metering_service_pb2, price_book_pb2, usage_pb2
from tests.integration.metering.world import RUN_MICROS, World, fields_of, refused, run
from tests.support.metering_server import fee, price
from tests.support.waiting import eventually


def at(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def metered(
    verdict: metering_service_pb2.MeteredEvent | TallystickError,
) -> metering_service_pb2.MeteredEvent:
    assert isinstance(verdict, metering_service_pb2.MeteredEvent), verdict
    return verdict


def error(verdict: metering_service_pb2.MeteredEvent | TallystickError) -> TallystickError:
    assert isinstance(verdict, TallystickError), verdict
    return verdict


async def test_one_call_answers_what_a_run_cost_and_how_it_was_paid(world: World) -> None:
    answer = await world.meter(run("run-1"))

    assert answer.charge_id.startswith("ch_")
    assert answer.outcome_id == answer.charge_id.replace("ch_", "out_")
    assert answer.price_version_id.startswith("pv_")
    assert (answer.price_charged.currency_code, answer.price_charged.amount_micros) == ("USD", RUN_MICROS)
    assert [(line.component_name, line.quantity, line.amount.amount_micros) for line in answer.lines] == [
        ("fee", 1, 5_000),
        ("input", 1_000, 600),
        ("output", 500, 1_200),
        ("bonus", 1, 200_000),
    ]
    assert answer.lines[1].unit_price == price_book_pb2.UnitPrice(amount="0.60", per_units=1_000_000)
    assert answer.from_credits.amount_micros == RUN_MICROS
    assert (answer.from_receivable.amount_micros, answer.unpaid.amount_micros) == (0, 0)
    assert answer.available_balance.amount_micros == 100_000_000 - RUN_MICROS
    assert not answer.duplicate
    await eventually(world.nothing_is_pending)


async def test_work_of_a_customer_without_credits_is_recorded_as_unpaid(world: World) -> None:
    answer = await world.meter(run("run-1", "cus_2"))

    assert answer.from_credits.amount_micros == 0
    assert answer.unpaid.amount_micros == RUN_MICROS
    assert answer.available_balance.amount_micros == 0


async def test_reporting_again_changes_nothing_and_answers_the_first_charge(world: World) -> None:
    first = await world.meter(run("run-1"))
    again = await world.meter(run("run-1"))

    assert again.duplicate
    again.duplicate = False
    assert again == first
    assert world.charge_count() == 1
    assert await world.available() == 100_000_000 - RUN_MICROS


async def test_a_report_without_a_time_is_the_same_when_it_comes_again_later(world: World) -> None:
    first = await world.meter(run("run-1"))
    recorded = (await world.find(run("run-1"))).event.occur_time

    assert (await world.meter(run("run-1"))).charge_id == first.charge_id
    assert (await world.find(run("run-1"))).event.occur_time == recorded


async def test_the_ordinal_tells_the_events_of_a_run_apart(world: World) -> None:
    first = await world.meter(run("run-1"))
    second = await world.meter(run("run-1", ordinal=1))

    assert not second.duplicate
    assert second.charge_id != first.charge_id


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": usage_pb2.Usage(input_tokens=1)},
        {"agent_id": "agt_b"},
        {"outcome": usage_pb2.OUTCOME_FAILURE},
        {"request_id": "other"},
        {"occur_time": at(datetime.now(UTC) - timedelta(hours=1))},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_other_content_under_the_same_identity_is_refused(
    world: World, changes: dict[str, object]
) -> None:
    await world.meter(run("run-1"))
    before = await world.find(run("run-1"))

    answer = await refused(world.meter(run("run-1", **changes)))

    assert (answer.code, answer.reason) == (Code.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert answer.metadata == {"key": "cus_1/run-1/0"}
    assert await world.find(run("run-1")) == before


async def test_other_evidence_is_flagged_and_the_first_stands(world: World) -> None:
    await world.meter(run("run-1", evidence_ref="s3://first", evidence_hash=b"\x01" * 32))

    same = await world.meter(run("run-1", evidence_ref="s3://first", evidence_hash=b"\x01" * 32))
    other_hash = await world.meter(run("run-1", evidence_ref="s3://first", evidence_hash=b"\x02" * 32))
    other_ref = await world.meter(run("run-1", evidence_hash=b"\x01" * 32))

    assert (same.duplicate, same.evidence_differs) == (True, False)
    assert (other_hash.duplicate, other_hash.evidence_differs) == (True, True)
    assert (other_ref.duplicate, other_ref.evidence_differs) == (True, True)
    event = (await world.find(run("run-1"))).event
    assert (event.evidence_ref, event.evidence_hash) == ("s3://first", b"\x01" * 32)


@pytest.mark.parametrize(
    ("changes", "reason", "metadata"),
    [
        ({"customer_id": "cus_none"}, "CUSTOMER_NOT_FOUND", {"customer_id": "cus_none"}),
        ({"agent_id": "agt_none"}, "AGENT_NOT_FOUND", {"agent_id": "agt_none"}),
        (
            {"agent_version": "9"},
            "AGENT_VERSION_NOT_FOUND",
            {"agent_id": "agt_a", "agent_version": "9"},
        ),
        (
            {"currency_code": "EUR"},
            "PRICE_NOT_FOUND",
            {
                "agent_id": "agt_a",
                "action_type": "run",
                "currency_code": "EUR",
                "organization_id": "org_a",
            },
        ),
    ],
    ids=["customer", "agent", "version", "price"],
)
async def test_a_stranger_is_named_and_nothing_is_stored(
    world: World, changes: dict[str, str], reason: str, metadata: dict[str, str]
) -> None:
    event = run("run-1")
    event.MergeFrom(usage_pb2.UsageEvent(**changes))  # type: ignore[arg-type]

    answer = await refused(world.meter(event))

    assert (answer.code, answer.reason) == (Code.NOT_FOUND, reason)
    assert {key: answer.metadata[key] for key in metadata} == metadata
    assert world.event_count() == 0


async def test_who_is_created_after_being_refused_is_known_at_once(world: World) -> None:
    assert (await refused(world.meter(run("run-1", "cus_new")))).reason == "CUSTOMER_NOT_FOUND"
    await world.server.ledger.create_customer("cus_new")

    assert (await world.meter(run("run-1", "cus_new"))).unpaid.amount_micros == RUN_MICROS


async def test_malformed_fields_are_named_together_and_nothing_is_stored(world: World) -> None:
    future = at(datetime.now(UTC) + timedelta(hours=1))
    bad = run("run 1", occur_time=future, usage=usage_pb2.Usage(input_tokens=-1), currency_code="usd")

    answer = await refused(world.meter(bad))

    assert (answer.code, answer.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert fields_of(answer) == [
        "event.workflow_id",
        "event.usage.input_tokens",
        "event.occur_time",
        "event.currency_code",
    ]
    # The message names them by the same paths.
    assert [part.partition(":")[0] for part in answer.message.split("; ")] == fields_of(answer)
    assert world.event_count() == 0


async def test_usage_that_costs_more_than_any_amount_is_refused(world: World) -> None:
    most = usage_pb2.Usage(input_tokens=10**12, output_tokens=10**12)
    await world.server.publish(price(fee("100000001"), action_types=["dear"]), organization_id="org_b")

    # 10**12 tokens are 600,000 and 2,400,000 USD: dear, but possible.
    assert (await world.meter(run("run-1", usage=most))).price_charged.amount_micros == 3_000_000_205_000
    answer = await refused(world.meter(run("run-2", agent_id="agt_b", action_type="dear")))
    assert fields_of(answer) == ["event.usage"]
    assert world.event_count() == 1


async def test_a_clock_that_is_a_little_ahead_is_set_back_to_ours(world: World) -> None:
    ahead = datetime.now(UTC) + timedelta(minutes=2)

    first = await world.meter(run("run-1", occur_time=at(ahead)))

    assert (await world.meter(run("run-1", occur_time=at(ahead)))).charge_id == first.charge_id
    ((occurred,),) = world.server.query("SELECT occur_time FROM metering.usage_event")
    assert isinstance(occurred, datetime)
    assert occurred < ahead


async def test_free_work_is_a_charge_like_any_other(world: World) -> None:
    await world.server.publish(price(fee("0")), organization_id="org_b")

    answer = await world.meter(run("run-1", agent_id="agt_b"))

    assert answer.price_charged.amount_micros == 0
    assert [line.amount.amount_micros for line in answer.lines] == [0]
    assert world.charge_count() == 1


class TestBatch:
    async def test_a_bad_event_never_fails_its_neighbours(self, world: World) -> None:
        verdicts = await world.meter_batch(
            run("run-1"),
            run("bad id"),
            run("run-2", "cus_none"),
            run("run-3", usage=usage_pb2.Usage(output_tokens=-5)),
            run("run-4", "cus_2"),
        )

        assert metered(verdicts[0]).from_credits.amount_micros == RUN_MICROS
        assert fields_of(error(verdicts[1])) == ["workflow_id"]
        assert error(verdicts[2]).reason == "CUSTOMER_NOT_FOUND"
        assert fields_of(error(verdicts[3])) == ["usage.output_tokens"]
        assert metered(verdicts[4]).unpaid.amount_micros == RUN_MICROS
        assert world.event_count() == 2

    async def test_an_event_twice_in_a_batch_is_charged_once(self, world: World) -> None:
        verdicts = await world.meter_batch(
            run("run-1"),
            run("run-1"),
            run("run-1", usage=usage_pb2.Usage(input_tokens=7)),
            run("run-1", evidence_ref="other"),
        )

        first, second, _, fourth = verdicts
        assert (metered(first).duplicate, metered(second).duplicate) == (False, True)
        assert metered(second).charge_id == metered(first).charge_id
        assert error(verdicts[2]).reason == "IDEMPOTENCY_KEY_REUSED"
        assert (metered(fourth).duplicate, metered(fourth).evidence_differs) == (True, True)
        assert await world.available() == 100_000_000 - RUN_MICROS

    async def test_only_what_was_accepted_counts_as_the_first(self, world: World) -> None:
        refused_one, accepted = await world.meter_batch(run("run-1", agent_id="agt_none"), run("run-1"))

        assert error(refused_one).reason == "AGENT_NOT_FOUND"
        assert not metered(accepted).duplicate

    async def test_old_and_new_events_mix(self, world: World) -> None:
        await world.meter(run("run-1"))

        verdicts = await world.meter_batch(
            run("run-0"), run("run-1"), run("run-1", request_id="x"), run("run-2")
        )

        assert metered(verdicts[0]).duplicate is False
        assert metered(verdicts[1]).duplicate is True
        assert error(verdicts[2]).code is Code.ALREADY_EXISTS
        assert metered(verdicts[3]).duplicate is False

    async def test_credits_pay_in_the_order_of_the_batch(self, world: World) -> None:
        # 100 USD pay for 483 runs, and for a part of the next one.
        verdicts = await world.meter_batch(*(run(f"run-{number:03}") for number in range(999, 499, -1)))

        unpaid = [metered(verdict).unpaid.amount_micros for verdict in verdicts]
        paid_runs = 100_000_000 // RUN_MICROS
        assert unpaid[:paid_runs] == [0] * paid_runs
        assert 0 < unpaid[paid_runs] < RUN_MICROS
        assert unpaid[paid_runs + 1 :] == [RUN_MICROS] * (499 - paid_runs)

    @pytest.mark.parametrize("count", [0, 1_001])
    async def test_a_batch_holds_one_to_a_thousand_events(self, world: World, count: int) -> None:
        answer = await refused(world.meter_batch(*(run(f"run-{number}") for number in range(count))))

        assert fields_of(answer) == ["events"]
        assert world.event_count() == 0

    async def test_a_thousand_events_fit(self, world: World) -> None:
        verdicts = await world.meter_batch(*(run(f"run-{number}") for number in range(1_000)))

        assert len({metered(verdict).charge_id for verdict in verdicts}) == 1_000
        await eventually(world.nothing_is_pending)


async def test_calls_in_flight_are_each_charged_once(world: World) -> None:
    events = [run(f"run-{number % 150}") for number in range(300)]

    answers = await asyncio.gather(*(world.meter(event) for event in events))

    assert sum(not answer.duplicate for answer in answers) == 150
    assert world.charge_count() == 150
    assert await world.available() == 100_000_000 - 150 * RUN_MICROS
    await eventually(world.nothing_is_pending)


async def test_batches_that_share_events_do_not_deadlock(world: World) -> None:
    events = [run(f"run-{number}") for number in range(100)]

    answers = await asyncio.gather(
        *(world.meter_batch(*(events if turn % 2 else reversed(events))) for turn in range(8))
    )

    flat = [metered(verdict) for verdicts in answers for verdict in verdicts]
    assert sum(not verdict.duplicate for verdict in flat) == 100
    assert world.charge_count() == 100


class TestWhoMayReport:
    async def test_a_host_of_an_organization_reports_its_own_agents(self, world: World) -> None:
        host = await world.new_host("host-a", organization_id="org_a")

        assert (await world.meter(run("run-1"), host)).price_charged.amount_micros == RUN_MICROS
        answer = await refused(world.meter(run("run-2", agent_id="agt_b"), host))
        assert (answer.reason, answer.metadata["agent_id"]) == ("AGENT_NOT_FOUND", "agt_b")
        assert world.event_count() == 1

    async def test_an_organization_never_learns_what_a_customer_has_left(self, world: World) -> None:
        host = await world.new_host("host-a", organization_id="org_a")

        recorded = await world.meter(run("run-1"), host)
        again = await world.meter(run("run-1"), host)
        (in_batch,) = await world.meter_batch(run("run-1"), host=host)
        found = await world.find(run("run-1"), host)

        for answer in (recorded, again, metered(in_batch), found.metered):
            assert answer.price_charged.amount_micros == RUN_MICROS
            assert not answer.HasField("available_balance")
        # The platform's own host does.
        assert (await world.meter(run("run-1"))).HasField("available_balance")
        assert (await world.find(run("run-1"))).metered.HasField("available_balance")

    async def test_a_restricted_key_reaches_no_further(self, world: World) -> None:
        host = await world.new_host("narrow", agent_ids=("agt_a",), customer_ids=("cus_1",))

        verdicts = await world.meter_batch(
            run("run-1"), run("run-2", agent_id="agt_b"), run("run-3", "cus_2"), host=host
        )

        assert metered(verdicts[0]).price_charged.amount_micros == RUN_MICROS
        assert error(verdicts[1]).reason == "AGENT_NOT_FOUND"
        assert error(verdicts[2]).reason == "CUSTOMER_NOT_FOUND"

    async def test_only_hosts_report(self, world: World) -> None:
        owner = await world.new_owner("org_a")

        with pytest.raises(Exception, match="may not call") as raised:
            await world.meter(run("run-1"), owner)
        assert raised.value.code().name == "PERMISSION_DENIED"  # type: ignore[attr-defined]


class TestGetUsageEvent:
    async def test_it_answers_the_event_as_recorded_and_its_charge_as_it_stands(self, world: World) -> None:
        event = run("run-1", request_id="r-1", evidence_ref="s3://x", span_id="0123456789abcdef")
        answer = await world.meter(event)

        found = await world.find(event)

        assert found.metered == answer
        assert found.event.HasField("occur_time")
        found.event.ClearField("occur_time")
        assert found.event == event

    async def test_an_unknown_event_is_not_found(self, world: World) -> None:
        answer = await refused(world.find(run("run-1")))

        assert (answer.code, answer.reason) == (Code.NOT_FOUND, "USAGE_EVENT_NOT_FOUND")

    async def test_another_organizations_event_is_not_found(self, world: World) -> None:
        await world.meter(run("run-1"))
        own = await world.new_host("host-a", organization_id="org_a")
        other = await world.new_host("host-b", organization_id="org_b")
        narrow = await world.new_host("narrow", agent_ids=("agt_b",))

        assert (await world.find(run("run-1"), own)).metered.price_charged.amount_micros == RUN_MICROS
        for stranger in (other, narrow):
            assert (await refused(world.find(run("run-1"), stranger))).reason == "USAGE_EVENT_NOT_FOUND"
