"""Closing billing periods: charged once, whoever closes them, and whatever dies meanwhile or comes late."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from services.kit.client import connect
from services.kit.clock import Clock, SystemClock
from services.kit.db import Database
from services.kit.errors import Code
from services.kit.times import timestamp
from services.metering.domain.billing_period import BillingPeriod
from services.metering.domain.price_book import PeriodUnit
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.period_closer import CloseTimes, PeriodCloser
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.store import period_tables
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.metering.v1 import period_closing_pb2, price_book_pb2, pricing_service_pb2, usage_pb2
from tallystick.metering.v1 import period_service_pb2 as pb
from tests.integration.metering.test_contracts import a_contract, is_denied, usd
from tests.integration.metering.test_contracts import create as create_contract
from tests.integration.metering.test_subscriptions import FailingLedger, RefusingLedger
from tests.integration.metering.world import World, refused, run
from tests.support.metering_server import Caller, fee, price

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
FEE = 1_000
THIS_MONTH = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
LAST_MONTH = (THIS_MONTH - timedelta(days=1)).replace(day=1)
MONTH_BEFORE = (LAST_MONTH - timedelta(days=1)).replace(day=1)


def unit(amount: str) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount)


def volume(*ends_and_amounts: tuple[int, str], name: str = "input") -> price_book_pb2.PriceComponent:
    """Input tokens, all at the price of the tier that the last one of the period falls into."""
    return price_book_pb2.PriceComponent(
        name=name,
        meter_rate=price_book_pb2.MeterRate(
            meter="input_tokens",
            tier_mode=price_book_pb2.TIER_MODE_VOLUME,
            tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
            tiers=[price_book_pb2.Tier(up_to=end, price=unit(amount)) for end, amount in ends_and_amounts],
        ),
    )


# A token is 10 micros, or, if there are more than a thousand in the month, 4.
TIERS = volume((1_000, "0.00001"), (0, "0.000004"))


def tokens_cost(tokens: int) -> int:
    return tokens * (10 if tokens <= 1_000 else 4)


def priced(*components: price_book_pb2.PriceComponent, minimum: str = "") -> price_book_pb2.Price:
    found = price(fee("0.001"), *components, name="run")
    if minimum:
        found.period_minimum.amount = minimum
    return found


def used(workflow_id: str, tokens: int, at: datetime, customer_id: str = "cus_1") -> usage_pb2.UsageEvent:
    return run(workflow_id, customer_id, usage=usage_pb2.Usage(input_tokens=tokens), occur_time=timestamp(at))


async def close(
    caller: Caller, at: datetime = LAST_MONTH, customer_id: str = "cus_1", *, now: bool = True
) -> period_closing_pb2.PeriodClosing | None:
    response = await caller.periods.ClosePeriod(
        pb.ClosePeriodRequest(customer_id=customer_id, organization_id="org_a", time=timestamp(at), now=now)
    )
    return response.period_closing if response.HasField("period_closing") else None


async def preview(
    caller: Caller, at: datetime = LAST_MONTH, customer_id: str = "cus_1"
) -> period_closing_pb2.PeriodClosing:
    response = await caller.periods.PreviewPeriodClose(
        pb.PreviewPeriodCloseRequest(customer_id=customer_id, organization_id="org_a", time=timestamp(at))
    )
    return response.period_closing


def closing_charges(world: World) -> list[tuple[object, ...]]:
    """What closings charged, in the ledger: run, ordinal, amount."""
    return world.server.query(
        "SELECT workflow_id, ordinal, gross FROM ledger.charge WHERE workflow_id LIKE 'period/%'"
        " ORDER BY workflow_id, ordinal"
    )


def charged(world: World, customer_id: str = "cus_1") -> int:
    ((total,),) = world.server.query(
        f"SELECT coalesce(sum(gross), 0)::bigint FROM ledger.charge WHERE customer_id = '{customer_id}'"
    )
    assert isinstance(total, int)
    return total


@dataclass
class At(Clock):
    """A clock that stands."""

    time: datetime

    def now(self) -> datetime:
        return self.time


Closers = Callable[..., PeriodCloser]


@pytest.fixture
async def closers(world: World, database_url: str) -> AsyncIterator[Closers]:
    """Makes the worker of another replica. That of the server looks once a minute, and finds nothing new."""
    async with AsyncExitStack() as stack:
        databases = []
        for role in ("metering_writer", "metering_reader"):
            database = Database(database_url, role=role, schema="metering")
            await database.open()
            stack.push_async_callback(database.close)
            databases.append(database)
        writer, reader = databases
        channel = await stack.enter_async_context(
            connect(world.server.ledger.address, world.server.ledger.service.key)
        )
        failing = FailingLedger(channel)

        def make(
            clock: Clock | None = None,
            *,
            times: CloseTimes | None = None,
            failures: int = 0,
            refuses: bool = False,
        ) -> PeriodCloser:
            failing.failures = failures
            ledger = RefusingLedger(channel) if refuses else failing
            return PeriodCloser(
                writer=writer,
                catalog=PriceCatalog(reader),
                contracts=ContractCatalog(reader),
                subscriptions=SubscriptionCatalog(reader),
                ledger=ledger,
                clock=clock or SystemClock(),
                delay=timedelta(seconds=1),
                times=times or CloseTimes(timedelta(0), timedelta(days=400)),
            )

        yield make


@pytest.mark.parametrize("table", [period_tables.counted_period, period_tables.period_closing], ids=str)
def test_queries_and_migrations_agree(database_url: str, table: Table) -> None:
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "SELECT attname, attnotnull, format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (f"metering.{table.name}",),
        ).fetchall()
    assert {name: (kind, required) for name, required, kind in columns} == {
        column.name: (
            str(column.type.compile(_DIALECT)).lower().replace("blob", "bytea"),
            not column.nullable,
        )
        for column in table.columns
    }


class TestClosing:
    @pytest.mark.parametrize(
        ("of", "amounts"),
        [
            (priced(TIERS), [8_000]),
            (priced(minimum="0.05"), [48_000]),
            (priced(TIERS, minimum="0.05"), [8_000, 40_000]),
            (priced(TIERS, minimum="0.005"), [8_000]),
        ],
        ids=["volume", "minimum", "both", "reached"],
    )
    async def test_charges_what_is_known_at_the_end_only(
        self, world: World, of: price_book_pb2.Price, amounts: list[int]
    ) -> None:
        version = await world.server.publish(of, organization_id="org_a")
        operator = world.server.operator
        await world.meter(used("run-1", 1_500, LAST_MONTH))
        await world.meter(used("run-2", 500, THIS_MONTH - timedelta(seconds=1)))
        assert charged(world) == 2 * FEE
        ahead = await preview(operator)
        made = await close(operator)

        assert made is not None
        assert made.posted
        (closed,) = made.prices
        assert [line.amount.amount_micros for line in closed.lines] == amounts
        assert made.total == made.amount == closed.amount == usd(sum(amounts))
        assert (closed.price_name, closed.price_version_id) == ("run", version)
        assert made.period_start_time.ToDatetime(UTC) == LAST_MONTH
        assert made.period_end_time.ToDatetime(UTC) == THIS_MONTH
        assert made.create_time.ToDatetime(UTC) > THIS_MONTH
        for field in ("prices", "amount", "charge_id", "counters", "agent_id", "workflow_id", "ordinal"):
            assert getattr(ahead, field) == getattr(made, field)
        charge = await world.server.ledger.operator.ledger.GetCharge(
            ledger_service_pb2.GetChargeRequest(charge_id=made.charge_id)
        )
        # The service period in the charge, the accounting date beside it.
        assert charge.charge.occur_time.ToDatetime(UTC) == THIS_MONTH - timedelta(microseconds=1)
        (earning,) = charge.charge.earnings
        assert (earning.organization_id, earning.agent_id) == ("org_a", "agt_a")
        assert charged(world) == 2 * FEE + sum(amounts)
        # Once, however often it is asked for, and whatever is delivered again.
        assert await close(operator) is None
        await world.meter(used("run-1", 1_500, LAST_MONTH))
        assert await close(operator) is None
        assert charged(world) == 2 * FEE + sum(amounts)
        assert (await preview(operator)).amount == usd(0)

    async def test_prices_without_such_parts_close_nothing(self, world: World) -> None:
        of = priced()
        of.period_maximum.amount = "0.0015"
        await world.server.publish(of, organization_id="org_a")
        await world.meter(used("run-1", 1, LAST_MONTH))
        await world.meter(used("run-2", 1, LAST_MONTH))
        assert charged(world) == 1_500
        assert await close(world.server.operator) is None
        assert closing_charges(world) == []

    async def test_what_is_not_over_is_not_closed(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        answer = await refused(close(world.server.operator))
        assert answer.reason == "BILLING_PERIOD_NOT_FOUND"
        now = datetime.now(UTC)
        await world.meter(used("run-1", 1_500, now))
        answer = await refused(close(world.server.operator, now))
        assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "PERIOD_NOT_OVER")
        assert (await preview(world.server.operator, now)).amount == usd(6_000)
        # Nothing was counted in the one before.
        assert (await refused(preview(world.server.operator))).reason == "BILLING_PERIOD_NOT_FOUND"

    async def test_the_version_and_terms_of_the_last_instant_close(self, world: World) -> None:
        """A version that was published later counts later; the contract's maximum counts for all prices."""
        other = price(volume((0, "0.00002"), name="other"), name="other", action_types=["other"])
        first = await world.server.publish(other, priced(TIERS), organization_id="org_a")
        await world.server.publish(priced(volume((0, "0.5"))), organization_id="org_a")
        contract = a_contract(start=datetime(2020, 1, 1, tzinfo=UTC))
        contract.content.period_maximum.CopyFrom(usd(9_000))
        contract.content.discounts.add(name="loyal", basis_points=5_000)
        await create_contract(world.server.operator, contract)
        await world.meter(used("run-1", 2_000, LAST_MONTH))
        event = used("run-2", 500, LAST_MONTH)
        event.action_type = "other"
        await world.meter(event)
        assert charged(world) == FEE // 2

        made = await close(world.server.operator)
        assert made is not None
        # Half of 500 × 20 and of 2,000 × 4; the second one has what the fee and the first one left.
        assert [(one.price_name, one.amount.amount_micros) for one in made.prices] == [
            ("other", 5_000),
            ("run", 3_500),
        ]
        assert {one.price_version_id for one in made.prices} == {first}
        assert (made.contract_id, made.contract_version_number) == ("con_1", 1)
        assert charged(world) == 9_000

    async def test_what_was_done_by_a_contract_is_closed_by_it(self, world: World) -> None:
        """It ended in mid-period, and its version is not the newest of its book."""
        operator = world.server.operator
        await world.server.publish(priced(volume((0, "0.5"))), organization_id="org_a")
        await operator.pricing.CreatePriceBook(
            pricing_service_pb2.CreatePriceBookRequest(
                price_book_id="pb_deal", organization_id="org_a", currency_code="USD", for_contracts=True
            )
        )
        versions = []
        for number, amount in enumerate(("0.00001", "0.3")):
            draft = await operator.pricing.CreatePriceVersion(
                pricing_service_pb2.CreatePriceVersionRequest(
                    price_book_id="pb_deal",
                    prices=[priced(volume((0, amount)))],
                    idempotency_key=f"deal-{number}",
                )
            )
            versions.append(draft.price_version.price_version_id)
            request = pricing_service_pb2.PublishPriceVersionRequest(price_version_id=versions[-1])
            if not number:
                request.effective_time.FromSeconds(0)
            await operator.pricing.PublishPriceVersion(request)
        contract = a_contract(start=datetime(2020, 1, 1, tzinfo=UTC))
        contract.content.price_version_id = versions[0]
        contract.content.discounts.add(name="loyal", basis_points=5_000)
        contract.content.end_time.FromDatetime(LAST_MONTH + timedelta(days=9))
        await create_contract(operator, contract)
        await world.meter(used("run-1", 1_000, LAST_MONTH))
        for later in (0, 10):
            made = await preview(operator)
            amounts = {one.price_version_id: one.amount.amount_micros for one in made.prices}
            assert amounts[versions[0]] == 5_000
            assert made.total.amount_micros == 5_000 + later * 500_000
            assert made.contract_id == ("" if later else "con_1")
            await world.meter(used(f"later-{later}", 10, LAST_MONTH + timedelta(days=9 + later)))

    async def test_the_contract_cuts_the_period(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        contract = a_contract(start=datetime(2020, 1, 1, tzinfo=UTC))
        contract.billing_period.anchor_time.FromDatetime(datetime(2020, 1, 15, 9, tzinfo=UTC))
        contract.billing_period.time_zone = "Europe/Rome"
        await create_contract(world.server.operator, contract)
        await world.meter(used("run-1", 100, LAST_MONTH))
        made = await close(world.server.operator)
        assert made is not None
        cut = BillingPeriod(anchor=datetime(2020, 1, 15, 9, tzinfo=UTC), time_zone="Europe/Rome")
        period = cut.period_containing(LAST_MONTH)
        assert made.period_start_time.ToDatetime(UTC) == period.start
        assert made.period_end_time.ToDatetime(UTC) == period.end
        assert made.workflow_id == f"period/org_a/USD/{period.start:%Y-%m-%dT%H:%M:%SZ}"

    async def test_a_contract_that_cuts_periods_otherwise_ends_the_one_that_runs(self, world: World) -> None:
        """Two periods that follow each other, with the part of the minimum that each is of a whole one."""
        await world.server.publish(priced(TIERS, minimum="0.1"), organization_id="org_a")
        operator = world.server.operator
        contract = a_contract(start=LAST_MONTH + timedelta(days=9, microseconds=5))
        # With the second.
        start = LAST_MONTH + timedelta(days=9, seconds=1)
        contract.billing_period.unit = price_book_pb2.PERIOD_UNIT_QUARTER
        contract.content.end_time.FromDatetime(LAST_MONTH + timedelta(days=20))
        await create_contract(operator, contract)
        # The quarter may have begun with the month: what tells the periods apart is not that.
        moments = [
            LAST_MONTH,
            start - timedelta(microseconds=1),
            start,
            LAST_MONTH + timedelta(days=19),
            LAST_MONTH + timedelta(days=20),
        ]
        for number, at in enumerate(moments):
            await world.meter(used(f"run-{number}", 600, at))
        made = [await close(operator, at) for at in (moments[0], moments[2], moments[4])]
        bounds = [
            (one.period_start_time.ToDatetime(UTC), one.period_end_time.ToDatetime(UTC))
            for one in made
            if one is not None
        ]
        assert bounds == [(LAST_MONTH, start), (start, moments[4]), (moments[4], THIS_MONTH)]
        assert len({one.workflow_id for one in made if one is not None}) == 3
        month = (THIS_MONTH - LAST_MONTH).total_seconds()
        quarter = BillingPeriod(PeriodUnit.QUARTER).period_containing(start).length.total_seconds()
        spent = [2 * FEE + 4 * 1_200, 2 * FEE + 4 * 1_200, FEE + 10 * 600]
        least = [
            round(100_000 * (end - begin).total_seconds() / whole)
            for (begin, end), whole in zip(bounds, (month, quarter, month), strict=True)
        ]
        found = [FEE * 2 + made[0].total.amount_micros, FEE * 2 + made[1].total.amount_micros]  # type: ignore[union-attr]
        found.append(FEE + made[2].total.amount_micros)  # type: ignore[union-attr]
        assert found == [max(one, other) for one, other in zip(spent, least, strict=True)]

    async def test_a_minimum_is_due_for_as_long_as_there_was_one(self, world: World) -> None:
        """What was charged before a price had a minimum does not count towards it, nor does that time."""
        await world.server.publish(priced(), organization_id="org_a")
        operator = world.server.operator
        await world.meter(used("run-1", 1, datetime.now(UTC)))
        version = await world.server.publish(priced(minimum="100"), organization_id="org_a")
        found = await operator.pricing.GetPriceVersion(
            pricing_service_pb2.GetPriceVersionRequest(price_version_id=version)
        )
        since = found.price_version.effective_time.ToDatetime(UTC)
        await world.meter(used("run-2", 1, datetime.now(UTC)))
        ahead = await preview(operator, datetime.now(UTC))
        begin = ahead.period_start_time.ToDatetime(UTC)
        end = ahead.period_end_time.ToDatetime(UTC)
        assert ahead.total.amount_micros + FEE == round(100_000_000 * ((end - since) / (end - begin)))


class TestLateEvents:
    async def test_more_is_an_adjustment(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        operator = world.server.operator
        await world.meter(used("run-1", 100, LAST_MONTH))
        await close(operator)
        await world.meter(used("late", 300, LAST_MONTH))
        made = await close(operator)
        assert made is not None
        assert (made.ordinal, made.total, made.closed_before) == (1, usd(4_000), usd(1_000))
        assert made.amount == usd(3_000)
        assert [(ordinal, amount) for _, ordinal, amount in closing_charges(world)] == [
            (0, 1_000),
            (1, 3_000),
        ]
        assert charged(world) == 2 * FEE + tokens_cost(400)

    async def test_less_becomes_credit_of_later_closings(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        operator = world.server.operator
        await world.meter(used("run-1", 1_000, MONTH_BEFORE))
        await close(operator, MONTH_BEFORE)
        await world.meter(used("late", 500, MONTH_BEFORE))
        # 10,000 were charged, 1,500 × 4 are owed.
        less = await close(operator, MONTH_BEFORE)
        assert less is not None
        assert (less.amount, less.from_credit, less.charge_id) == (usd(0), usd(-4_000), "")
        assert not less.posted
        await world.meter(used("run-2", 300, LAST_MONTH))
        assert (await preview(operator)).from_credit == usd(3_000)
        first = await close(operator)
        assert first is not None
        assert (first.amount, first.from_credit) == (usd(0), usd(3_000))
        await world.meter(used("run-3", 200, LAST_MONTH))
        second = await close(operator)
        assert second is not None
        assert (second.amount, second.from_credit) == (usd(1_000), usd(1_000))
        assert charged(world) == 4 * FEE + tokens_cost(1_500) + tokens_cost(500)

    async def test_credit_is_taken_once_by_who_closes_at_once(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        operator = world.server.operator
        months = [MONTH_BEFORE - timedelta(days=31 * number) for number in range(4)]
        await world.meter(used("run-1", 1_000, LAST_MONTH))
        await close(operator)
        await world.meter(used("late", 500, LAST_MONTH))
        await close(operator)
        await world.meter_batch(*(used(f"run-{at:%Y-%m}", 300, at) for at in months))
        made = await asyncio.gather(*(close(operator, at) for at in months))
        assert sum(one.from_credit.amount_micros for one in made if one is not None) == 4_000
        assert charged(world) == 6 * FEE + tokens_cost(1_500) + 4 * tokens_cost(300)


class TestWorker:
    async def test_it_waits_for_late_events_and_then_for_no_more(
        self, world: World, closers: Closers
    ) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        await world.meter(used("run-1", 100, LAST_MONTH))
        clock = At(THIS_MONTH - timedelta(seconds=1))
        times = CloseTimes(timedelta(days=2), timedelta(days=60), timedelta(days=1))
        closer = closers(clock, times=times)
        days = timedelta(days=1)

        async def after(moment: datetime) -> list[object]:
            clock.time = moment
            await closer.step()
            return [amount for _, _, amount in closing_charges(world)]

        assert await after(clock.time) == []
        assert await after(THIS_MONTH + 2 * days - timedelta(seconds=1)) == []
        assert await after(THIS_MONTH + 2 * days) == [1_000]
        await world.meter(used("late", 100, LAST_MONTH))
        # Not before the interval has passed.
        assert await after(THIS_MONTH + 2 * days + timedelta(hours=1)) == [1_000]
        assert await after(THIS_MONTH + 3 * days) == [1_000, 1_000]
        await world.meter(used("later", 50, LAST_MONTH))
        assert await after(THIS_MONTH + 60 * days) == [1_000, 1_000, 500]
        await world.meter(used("too-late", 50, LAST_MONTH))
        assert await after(THIS_MONTH + 90 * days) == [1_000, 1_000, 500]
        # It is charged as it is reported all the same.
        assert charged(world) == 4 * FEE + 2_500

    async def test_a_period_that_was_first_heard_of_too_late_is_not_closed(
        self, world: World, closers: Closers
    ) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        await world.meter(used("run-1", 100, MONTH_BEFORE - timedelta(days=100)))
        await closers(times=CloseTimes(timedelta(0), timedelta(days=1))).step()
        assert closing_charges(world) == []
        assert world.server.query(
            "SELECT count(*) FROM metering.counted_period WHERE next_check_time IS NOT NULL"
        ) == [(0,)]

    async def test_two_replicas_and_cuts_charge_once(self, world: World, closers: Closers) -> None:
        """An answer of the ledger that never comes is what a process leaves that is killed after posting."""
        await world.server.publish(priced(TIERS), organization_id="org_a")
        for number in range(6):
            at = LAST_MONTH - timedelta(days=31 * number)
            await world.meter_batch(*(used(f"run-{number}-{one}", 100, at) for one in range(3)))
        replicas = [closers(failures=3) for _ in range(3)]

        async def step(replica: PeriodCloser) -> None:
            try:
                await replica.step()
            except grpc.aio.AioRpcError:
                return

        for _ in range(4):
            await asyncio.gather(*map(step, replicas))
            # As if all waits were over.
            world.server.execute(
                "UPDATE metering.period_closing SET next_attempt_time = now()"
                " WHERE next_attempt_time IS NOT NULL"
            )
            world.server.execute("UPDATE metering.counted_period SET next_check_time = now()")
        found = closing_charges(world)
        assert [(ordinal, amount) for _, ordinal, amount in found] == [(0, 3_000)] * 6
        assert charged(world) == 18 * FEE + 6 * 3_000
        listed = await world.server.operator.periods.ListPeriodClosings(pb.ListPeriodClosingsRequest())
        assert [one.posted for one in listed.period_closings] == [True] * 6

    async def test_a_period_that_cannot_be_closed_keeps_no_other_from_it(
        self, world: World, closers: Closers
    ) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        for customer_id in ("cus_1", "cus_2"):
            await world.meter(used("run-1", 100, LAST_MONTH, customer_id))
        world.server.execute(
            "UPDATE metering.price_counter SET value = 9223372036854775807 WHERE customer_id = 'cus_1'"
        )
        world.server.execute("UPDATE metering.counted_period SET next_check_time = now()")
        await closers().step()
        assert [amount for _, _, amount in closing_charges(world)] == [1_000]
        answer = await refused(preview(world.server.operator))
        assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "BALANCE_OUT_OF_RANGE")

    async def test_what_the_ledger_refuses_is_seen_and_tried_again(
        self, world: World, closers: Closers
    ) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        await world.meter(used("run-1", 100, LAST_MONTH))
        world.server.execute("UPDATE metering.counted_period SET next_check_time = now()")
        closer = closers(refuses=True)
        await closer.step()

        async def listed() -> list[tuple[bool, str]]:
            found = await world.server.operator.periods.ListPeriodClosings(pb.ListPeriodClosingsRequest())
            return [(one.posted, one.last_error) for one in found.period_closings]

        assert await listed() == [(False, "BALANCE_OUT_OF_RANGE: no room")]
        assert world.server.query(
            "SELECT refused, next_attempt_time BETWEEN now() + interval '50 minutes'"
            " AND now() + interval '2 hours' FROM metering.period_closing"
        ) == [(True, True)]
        world.server.execute("UPDATE metering.period_closing SET next_attempt_time = now()")
        await closers().step()
        assert await listed() == [(True, "")]
        assert world.server.query("SELECT refused FROM metering.period_closing") == [(False,)]
        assert [amount for _, _, amount in closing_charges(world)] == [1_000]

    async def test_it_is_closed_by_one_at_a_time(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        await world.meter(used("run-1", 100, LAST_MONTH))
        made = await asyncio.gather(*(close(world.server.operator) for _ in range(6)))
        assert sorted(one is not None for one in made) == [False] * 5 + [True]
        assert len(closing_charges(world)) == 1


class TestTenants:
    async def test_each_sees_its_own(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        await world.meter(used("run-1", 100, LAST_MONTH))
        made = await close(world.server.operator)
        assert made is not None
        id_ = made.period_closing_id
        create = world.server.ledger.create_caller
        owner_a, owner_b = await world.new_owner("org_a"), await world.new_owner("org_b")
        customers = [
            world.server.caller(
                (await create(access_pb2.ROLE_CUSTOMER, customer_id, customer_id=customer_id)).key
            )
            for customer_id in ("cus_1", "cus_2")
        ]
        for caller, sees in ((owner_a, True), (owner_b, False), (customers[0], True), (customers[1], False)):
            listed = await caller.periods.ListPeriodClosings(pb.ListPeriodClosingsRequest())
            assert [one.period_closing_id for one in listed.period_closings] == [id_] * sees
            for workflow_id, has_any in ((made.workflow_id, sees), ("period/another", False)):
                request = pb.ListPeriodClosingsRequest(workflow_id=workflow_id)
                of_run = await caller.periods.ListPeriodClosings(request)
                assert [one.period_closing_id for one in of_run.period_closings] == [id_] * has_any
            get = caller.periods.GetPeriodClosing(pb.GetPeriodClosingRequest(period_closing_id=id_))
            if sees:
                assert (await get).period_closing == made
                assert (await preview(caller)).total == made.total
            else:
                assert (await refused(get)).reason == "PERIOD_CLOSING_NOT_FOUND"
                assert (await refused(preview(caller))).reason == "BILLING_PERIOD_NOT_FOUND"
            assert await is_denied(
                caller.periods.ClosePeriod(
                    pb.ClosePeriodRequest(
                        customer_id="cus_1", organization_id="org_a", time=timestamp(LAST_MONTH), now=True
                    )
                )
            )

    async def test_an_organization_does_not_learn_of_a_contract_for_all(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        contract = a_contract(start=datetime(2020, 1, 1, tzinfo=UTC), organization_id="")
        await create_contract(world.server.operator, contract)
        await world.meter(used("run-1", 100, LAST_MONTH))
        owner = await world.new_owner("org_a")
        assert (await preview(owner)).contract_id == ""
        made = await close(world.server.operator)
        assert made is not None
        assert made.contract_id == "con_1"
        listed = await owner.periods.ListPeriodClosings(pb.ListPeriodClosingsRequest())
        got = await owner.periods.GetPeriodClosing(
            pb.GetPeriodClosingRequest(period_closing_id=made.period_closing_id)
        )
        for one in (*listed.period_closings, got.period_closing):
            assert (one.contract_id, one.contract_version_number) == ("", 0)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE metering.period_closing SET amount_micros = 0",
            "UPDATE metering.period_closing SET content = ''",
            "DELETE FROM metering.period_closing",
            "TRUNCATE metering.period_closing",
            "DELETE FROM metering.counted_period",
            "UPDATE metering.counted_period SET period_start = now()",
            "INSERT INTO metering.counted_period VALUES ('cus_1', 'org_a', 'USD', now(), now(), NULL, 0, 0)",
        ],
    )
    def test_the_writer_may_not(self, database_url: str, statement: str) -> None:
        with psycopg.connect(database_url) as admin:
            admin.execute("SET ROLE metering_writer")
            admin.execute("SELECT set_config('tallystick.platform', 'on', true)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute(statement.encode())

    async def test_nothing_goes_away_and_only_the_platform_closes(self, world: World) -> None:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        await world.meter(used("run-1", 100, LAST_MONTH))
        await close(world.server.operator)
        for table in ("period_closing", "counted_period"):
            for statement in (f"DELETE FROM metering.{table}", f"TRUNCATE metering.{table} CASCADE"):
                with pytest.raises(psycopg.errors.RestrictViolation):
                    world.server.execute(statement)
        with psycopg.connect(world.server.database_url) as admin:
            admin.execute("SET ROLE metering_writer")
            admin.execute("SELECT set_config('tallystick.tenants', '{org_a,cus_1}', true)")
            for changed in (
                "UPDATE metering.counted_period SET closed_micros = 0 RETURNING 1",
                "UPDATE metering.period_closing SET next_attempt_time = now() RETURNING 1",
            ):
                assert admin.execute(changed.encode()).fetchall() == []


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.integers(0, 700)),
        st.tuples(st.just("close"), st.just(0)),
        st.tuples(st.just("again"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, minimum=st.booleans())
async def test_whenever_it_is_closed_the_period_costs_the_same(
    world: World, steps: Sequence[Step], minimum: bool
) -> None:
    """Charges and closings, without what is left as credit, are what the whole period costs at once."""
    server = world.server
    ((number,),) = server.query("SELECT count(*) FROM ledger.customer")
    if number == 2:
        await server.publish(
            price(fee("0.001"), TIERS, name="plain", action_types=["plain"]),
            _with_minimum(price(fee("0.001"), TIERS, name="least", action_types=["least"])),
            organization_id="org_a",
        )
    customer_id = f"cus_{number}_more"
    await server.ledger.create_customer(customer_id)
    events: list[usage_pb2.UsageEvent] = []

    async def closed() -> None:
        if events:
            await close(server.operator, customer_id=customer_id)

    actions: dict[str, Callable[[int], Awaitable[object]]] = {}

    async def use(tokens: int) -> None:
        event = used(f"run-{len(events)}", tokens, LAST_MONTH, customer_id)
        event.action_type = "least" if minimum else "plain"
        events.append(event)
        await world.meter(event)

    async def again(position: int) -> None:
        if events:
            await world.meter(events[position % len(events)])

    actions = {"use": use, "close": lambda _: closed(), "again": again}
    for name, argument in steps:
        await actions[name](argument)
    await closed()
    if not events:
        return
    owed = len(events) * FEE + tokens_cost(sum(event.usage.input_tokens for event in events))
    if minimum:
        owed = max(owed, 9_000)
    ((credit,),) = server.query(
        "SELECT coalesce(-sum(from_credit_micros), 0)::bigint FROM metering.period_closing"
        f" WHERE customer_id = '{customer_id}'"
    )
    assert isinstance(credit, int)
    assert credit >= 0
    assert charged(world, customer_id) - credit == owed


def _with_minimum(of: price_book_pb2.Price) -> price_book_pb2.Price:
    of.period_minimum.amount = "0.009"
    return of
