"""Subscriptions: their fees in the ledger, once each, whoever renews them and whatever dies meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from services.kit.auth import Principal, Role
from services.kit.client import connect
from services.kit.clock import SystemClock
from services.kit.db import Database
from services.kit.errors import Code
from services.kit.tenancy import PLATFORM, scope
from services.kit.times import timestamp
from services.metering.domain import subscription as domain
from services.metering.domain.billing_period import BillingPeriod
from services.metering.domain.subscription import Segment, Subscription
from services.metering.domain.usage_record import IntendedCharge
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.ledger import Ledger, PostVerdict
from services.metering.rpc.parties import Directory
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.subscription_convert import (
    fee_to_stored,
    segment_to_stored,
    subscription_from_stored,
    subscription_to_stored,
)
from services.metering.rpc.subscription_fees import SubscriptionFees
from services.metering.rpc.subscription_steps import catch_up
from services.metering.rpc.terms import Terms, TermsFinder, Work
from services.metering.store import subscriptions as store
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2
from tallystick.metering.v1 import price_book_pb2, subscription_pb2
from tallystick.metering.v1 import pricing_service_pb2 as pricing
from tallystick.metering.v1 import subscription_service_pb2 as pb
from tests.integration.metering.test_contracts import a_contract, explain, is_denied, usd
from tests.integration.metering.test_contracts import create as create_contract
from tests.integration.metering.world import World, fields_of, refused
from tests.support.metering_server import Caller, fee, price
from tests.support.waiting import eventually

NOW = subscription_pb2.CHANGE_TIMING_NOW
PERIOD_END = subscription_pb2.CHANGE_TIMING_PERIOD_END


def plan(
    name: str, amount: str, seat: str = "0", tokens: int = 0, unit: str = "MONTH"
) -> price_book_pb2.Plan:
    return price_book_pb2.Plan(
        name=name,
        fee=price_book_pb2.UnitPrice(amount=amount),
        seat_fee=price_book_pb2.UnitPrice(amount=seat),
        allowances=[price_book_pb2.Allowance(meter="input_tokens", quantity=tokens)] if tokens else [],
        period_unit=price_book_pb2.PeriodUnit.Value(f"PERIOD_UNIT_{unit}"),
    )


PLANS = (plan("small", "1"), plan("team", "2.5", "0.5", 1_000), plan("yearly", "20", unit="YEAR"))


async def offer(world: World, *plans: price_book_pb2.Plan, first: bool = True) -> str:
    """Publish plans in org_a's book, by its owner; the version's id."""
    operator = world.server.operator.pricing
    await operator.CreatePriceBook(
        pricing.CreatePriceBookRequest(
            price_book_id="pb_plans", organization_id="org_a", currency_code="USD", display_name="Plans"
        )
    )
    draft = await operator.CreatePriceVersion(
        pricing.CreatePriceVersionRequest(
            price_book_id="pb_plans",
            prices=[price(fee("0.01"))],
            plans=plans,
            idempotency_key=str(len(plans)) + plans[0].fee.amount,
        )
    )
    request = pricing.PublishPriceVersionRequest(price_version_id=draft.price_version.price_version_id)
    if first:
        request.effective_time.FromSeconds(0)
    return (await operator.PublishPriceVersion(request)).price_version.price_version_id


async def subscribe(
    caller: Caller, plan_name: str = "team", *, seats: int = 2, days_ago: int = 0, key: str = "k", **more: str
) -> subscription_pb2.Subscription:
    fields: dict[str, Any] = {"customer_id": "cus_1", "agent_id": "agt_a", "price_book_id": "pb_plans"}
    request = pb.CreateSubscriptionRequest(
        plan_name=plan_name, seats=seats, idempotency_key=key, **{**fields, **more}
    )
    if days_ago:
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days_ago)
        request.start_time.FromDatetime(start)
    return (await caller.subscriptions.CreateSubscription(request)).subscription


async def fees_of(caller: Caller, subscription_id: str) -> list[subscription_pb2.SubscriptionFee]:
    response = await caller.subscriptions.ListSubscriptionFees(
        pb.ListSubscriptionFeesRequest(subscription_id=subscription_id, page_size=1_000)
    )
    return list(response.fees)


async def posted_fees_of(caller: Caller, subscription_id: str) -> list[subscription_pb2.SubscriptionFee]:
    """All its fees when they are posted: a worker may have one in hand while a call posts the others."""
    fees: list[subscription_pb2.SubscriptionFee] = []

    async def all_posted() -> bool:
        fees[:] = await fees_of(caller, subscription_id)
        return all(one.posted for one in fees)

    await eventually(all_posted)
    return fees


def charged(world: World) -> list[tuple[object, ...]]:
    """The charges in the ledger: run, ordinal, amount."""
    return world.server.query(
        "SELECT workflow_id, ordinal, gross FROM ledger.charge ORDER BY workflow_id, ordinal"
    )


class TestLife:
    async def test_fees_of_past_periods_are_charged_and_earned(self, world: World) -> None:
        version = await offer(world, *PLANS)
        subscription = await subscribe(world.server.operator, days_ago=70)
        fees = await posted_fees_of(world.server.operator, subscription.subscription_id)

        # 70 days are two months and some days, whatever months these are.
        assert len(fees) == 3
        assert [one.amount.amount_micros for one in fees] == [3_500_000] * 3
        assert all(one.posted and one.charge_id and one.price_version_id == version for one in fees)
        assert [
            (line.component_name, line.quantity, line.amount.amount_micros) for line in fees[0].lines
        ] == [
            ("team", 1, 2_500_000),
            ("seats", 2, 1_000_000),
        ]
        periods = [(one.service_start_time.seconds, one.service_end_time.seconds) for one in fees[::-1]]
        assert [start for start, _ in periods[1:]] == [end for _, end in periods[:-1]]
        assert fees[0].create_time.seconds >= fees[0].service_start_time.seconds
        assert charged(world) == [(one.workflow_id, 0, 3_500_000) for one in fees[::-1]]
        assert await world.available() == 100_000_000 - 3 * 3_500_000
        charge = await world.server.ledger.operator.ledger.GetCharge(
            ledger_service_pb2.GetChargeRequest(charge_id=fees[0].charge_id)
        )
        (earning,) = charge.charge.earnings
        assert (earning.organization_id, earning.agent_id) == ("org_a", "agt_a")
        assert charge.charge.occur_time == fees[0].service_start_time

    async def test_an_upgrade_is_charged_now_as_its_preview_said(self, world: World) -> None:
        await offer(world, *PLANS)
        operator = world.server.operator
        subscription = await subscribe(operator, "small", seats=0, days_ago=10)
        asked: dict[str, Any] = {
            "subscription_id": subscription.subscription_id, "plan_name": "team", "seats": 4
        }  # fmt: skip
        before = datetime.now(UTC)
        preview = await operator.subscriptions.PreviewSubscriptionChange(
            pb.PreviewSubscriptionChangeRequest(**asked)
        )
        assert len(await fees_of(operator, subscription.subscription_id)) == 1
        request = pb.ChangeSubscriptionRequest(**asked, idempotency_key="up")
        changed = await operator.subscriptions.ChangeSubscription(request)
        # A second costs less than two micros of the difference.
        passed = (datetime.now(UTC) - before).total_seconds() + 1
        difference = preview.fee.amount.amount_micros - changed.fee.amount.amount_micros
        assert 0 <= difference <= 2 * passed
        length = subscription.period_end_time.seconds - subscription.period_start_time.seconds
        rest = changed.fee.service_end_time.seconds - changed.fee.service_start_time.seconds
        exact = (1_000_000 * (length - rest) + 4_500_000 * rest) / length
        assert abs(changed.subscription.period_fees.amount_micros - exact) <= 1
        assert (
            sum(line.amount.amount_micros for line in changed.fee.lines) == changed.fee.amount.amount_micros
        )
        # Once, however often it is sent.
        again = await operator.subscriptions.ChangeSubscription(request)
        assert (again.subscription, again.HasField("fee")) == (changed.subscription, False)
        fees = await posted_fees_of(operator, subscription.subscription_id)
        assert [one.ordinal for one in fees] == [1, 0]
        assert fees[0].posted
        total = sum(one.amount.amount_micros for one in fees)
        assert total == changed.subscription.period_fees.amount_micros
        assert await world.available() == 100_000_000 - total
        request.seats = 5
        assert (await refused(operator.subscriptions.ChangeSubscription(request))).reason == (
            "IDEMPOTENCY_KEY_REUSED"
        )

    async def test_a_downgrade_waits_or_becomes_credit(self, world: World) -> None:
        await offer(world, *PLANS)
        operator = world.server.operator
        subscription = await subscribe(operator, days_ago=10)
        id_ = subscription.subscription_id

        async def change(
            key: str, timing: subscription_pb2.ChangeTiming.ValueType, name: str = "small"
        ) -> pb.ChangeSubscriptionResponse:
            request = pb.ChangeSubscriptionRequest(
                subscription_id=id_, plan_name=name, timing=timing, idempotency_key=key
            )
            return await operator.subscriptions.ChangeSubscription(request)

        later = await change("later", subscription_pb2.CHANGE_TIMING_UNSPECIFIED)
        assert later.subscription.pending_plan_name == "small"
        assert not later.HasField("fee")
        now = await change("now", NOW)
        assert now.subscription.pending_plan_name == ""
        assert now.fee.amount.amount_micros == 0
        assert now.fee.charge_id == ""
        credit = now.subscription.credit.amount_micros
        assert 0 < credit == -now.fee.from_credit.amount_micros
        up = await change("up", NOW, "team")
        assert up.fee.amount.amount_micros == 0 or up.subscription.credit.amount_micros == 0
        answer = await refused(change("year", NOW, "yearly"))
        assert fields_of(answer) == ["plan_name"]

    async def test_cancel_and_resume(self, world: World) -> None:
        await offer(world, *PLANS)
        operator = world.server.operator
        subscription = await subscribe(operator)
        id_ = subscription.subscription_id
        cancel = pb.CancelSubscriptionRequest(subscription_id=id_)
        ending = (await operator.subscriptions.CancelSubscription(cancel)).subscription
        assert ending.cancel_at_period_end
        assert ending.state == subscription_pb2.SUBSCRIPTION_STATE_ACTIVE
        resume = pb.ResumeSubscriptionRequest(subscription_id=id_)
        assert (await operator.subscriptions.ResumeSubscription(resume)).subscription == subscription
        cancel.now = True
        ended = (await operator.subscriptions.CancelSubscription(cancel)).subscription
        assert ended.state == subscription_pb2.SUBSCRIPTION_STATE_CANCELED
        assert (await operator.subscriptions.CancelSubscription(cancel)).subscription == ended
        for call in (
            operator.subscriptions.ResumeSubscription(resume),
            operator.subscriptions.ChangeSubscription(
                pb.ChangeSubscriptionRequest(subscription_id=id_, plan_name="small", idempotency_key="x")
            ),
        ):
            answer = await refused(call)
            assert (answer.reason, answer.metadata["state"]) == ("AGREEMENT_STATE_CONFLICT", "canceled")
        # Fees that were charged stay.
        assert len(charged(world)) == 1
        again = await subscribe(operator, key="again")
        assert again.subscription_id != id_

    async def test_one_at_a_time_and_once_per_key(self, world: World) -> None:
        await offer(world, *PLANS)
        operator = world.server.operator
        first, *others = await asyncio.gather(*(subscribe(operator) for _ in range(3)))
        assert all(other.subscription_id == first.subscription_id for other in others)
        answer = await refused(subscribe(operator, key="other"))
        assert (answer.code, answer.metadata["resource_id"]) == (Code.ALREADY_EXISTS, first.subscription_id)
        await posted_fees_of(operator, first.subscription_id)
        assert len(charged(world)) == 1
        answer = await refused(subscribe(operator, "small"))
        assert answer.reason == "IDEMPOTENCY_KEY_REUSED"

    @pytest.mark.parametrize(
        ("field", "changes"),
        [
            ("plan_name", {"plan_name": "none"}),
            ("seats", {"seats": 1_000_001}),
            ("billing_period.time_zone", {"time_zone": "Nowhere"}),
            ("start_time", {"days_ago": 401}),
            ("idempotency_key", {"key": ""}),
        ],
    )
    async def test_what_makes_no_sense_is_refused(
        self, world: World, field: str, changes: dict[str, Any]
    ) -> None:
        await offer(world, *PLANS)
        answer = await refused(subscribe(world.server.operator, **changes))
        assert fields_of(answer) == [field]

    async def test_tenants(self, world: World) -> None:
        await offer(world, *PLANS)
        owner_a, owner_b = await world.new_owner("org_a"), await world.new_owner("org_b")
        subscription = await subscribe(owner_a)
        id_ = subscription.subscription_id
        assert (await refused(subscribe(owner_b, key="b"))).reason == "AGENT_NOT_FOUND"
        # Its own agent, but a book of another organization.
        answer = await refused(subscribe(owner_b, key="b", agent_id="agt_b"))
        assert answer.reason == "PRICE_BOOK_NOT_FOUND"
        key = await world.server.ledger.create_caller(
            access_pb2.ROLE_CUSTOMER, "customer", customer_id="cus_1"
        )
        customer = world.server.caller(key.key)
        for caller, count in ((owner_a, 1), (owner_b, 0), (customer, 1)):
            listed = await caller.subscriptions.ListSubscriptions(pb.ListSubscriptionsRequest())
            assert len(listed.subscriptions) == count
        for call in (
            owner_b.subscriptions.GetSubscription(pb.GetSubscriptionRequest(subscription_id=id_)),
            owner_b.subscriptions.CancelSubscription(pb.CancelSubscriptionRequest(subscription_id=id_)),
            fees_of(owner_b, id_),
        ):
            assert (await refused(call)).reason == "SUBSCRIPTION_NOT_FOUND"
        cancel = customer.subscriptions.CancelSubscription(pb.CancelSubscriptionRequest(subscription_id=id_))
        assert await is_denied(cancel)


class TestTerms:
    async def test_what_it_includes_and_its_periods_are_terms_of_work(
        self, world: World, database_url: str
    ) -> None:
        await offer(world, *PLANS)
        operator = world.server.operator
        subscription = await subscribe(operator, days_ago=3, time_zone="Europe/Rome")
        answer = await explain(operator)
        assert answer.subscription_id == subscription.subscription_id
        assert answer.period_start_time == subscription.period_start_time
        contract = a_contract(start=datetime(2020, 1, 1, tzinfo=UTC))
        contract.content.allowances.add(meter="input_tokens", quantity=500)
        contract.content.allowances.add(meter="output_tokens", quantity=7)
        await create_contract(operator, contract)

        reader = Database(database_url, role="metering_reader", schema="metering")
        await reader.open()
        async with connect(world.server.ledger.address, world.server.ledger.service.key) as channel:
            finder = TermsFinder(
                Directory(Ledger(channel)),
                PriceCatalog(reader),
                ContractCatalog(reader),
                SubscriptionCatalog(reader),
            )
            now = datetime.now(UTC)

            async def terms_at(at: datetime) -> Terms:
                work = Work("cus_1", "agt_a", "", "run", "", at, Principal("key_1", Role.OPERATOR))
                (terms,) = await finder.find([work], now)
                assert isinstance(terms, Terms)
                return terms

            terms = await terms_at(now)
            assert terms.agreed.terms.allowances == {"input_tokens": 1_500, "output_tokens": 7}
            assert terms.agreed.compiled.allowances == terms.agreed.terms.allowances
            assert terms.billing_period.time_zone == "Europe/Rome"
            earlier = await terms_at(now - timedelta(days=4))
            assert earlier.agreed.terms.allowances == {"input_tokens": 500, "output_tokens": 7}
            assert earlier.billing_period == BillingPeriod()
        await reader.close()

    async def test_the_contract_cuts_the_periods(self, world: World) -> None:
        await offer(world, *PLANS)
        operator = world.server.operator
        contract = a_contract(start=datetime(2020, 1, 1, tzinfo=UTC))
        contract.billing_period.time_zone = "UTC"
        await create_contract(operator, contract)
        assert fields_of(await refused(subscribe(operator, "yearly"))) == ["plan_name"]
        subscription = await subscribe(operator)
        start = subscription.period_start_time.ToDatetime()
        assert (start.day, start.hour, start.minute) == (1, 0, 0)
        length = subscription.period_end_time.seconds - subscription.period_start_time.seconds
        rest = subscription.period_end_time.seconds - subscription.start_time.seconds
        (first,) = await fees_of(operator, subscription.subscription_id)
        assert abs(first.amount.amount_micros - 3_500_000 * rest / length) <= 1


class FailingLedger(Ledger):
    """Posts, and then is cut off before the answer: as a process that is killed in between."""

    failures = 0

    async def post_charges(self, charges: Sequence[IntendedCharge]) -> list[PostVerdict]:
        verdicts = await super().post_charges(charges)
        if self.failures:
            self.failures -= 1
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut off"
            )
        return verdicts


class TestRenewals:
    @pytest.fixture
    async def writer(self, database_url: str) -> AsyncIterator[Database]:
        writer = Database(database_url, role="metering_writer", schema="metering")
        await writer.open()
        yield writer
        await writer.close()

    async def backlog(
        self, writer: Database, count: int, version_id: str, start: datetime | None = None
    ) -> list[str]:
        """Subscriptions that began 70 days ago and were never renewed since, each in its own transaction."""
        start = start or datetime.now(UTC).replace(microsecond=0) - timedelta(days=70)
        billing = BillingPeriod(anchor=start)
        made = []
        for number in range(count):
            first = Segment(start, "team", 0, 2_500_000, 0, (), version_id)
            step = domain.start(
                Subscription(
                    subscription_id=f"sub_{number:03}",
                    # About something else each: there may be one of a customer, organization and currency.
                    customer_id="cus_1",
                    organization_id="org_a",
                    agent_id="agt_a",
                    currency_code="USD",
                    price_book_id="pb_plans",
                    billing_period=billing,
                    start_time=start,
                    period=billing.period_containing(start),
                    segments=(first,),
                )
            )
            assert step.fee is not None
            stored = subscription_to_stored(step.subscription)
            async with writer.begin() as connection:
                await scope(connection, PLATFORM)
                assert await store.create(connection, stored._replace(currency_code=f"X{number:02}"))
                await store.add_segment(connection, segment_to_stored(step.subscription, "key_1"))
                await store.add_fee(connection, fee_to_stored(step.fee, start))
            made.append(stored.subscription_id)
        return made

    async def test_two_replicas_and_a_cut_charge_each_fee_once(self, world: World, writer: Database) -> None:
        """The worker of the server runs, too: that makes three."""
        version = await offer(world, *PLANS)
        made = await self.backlog(writer, 12, version)
        async with connect(world.server.ledger.address, world.server.ledger.service.key) as channel:
            ledger = FailingLedger(channel)
            ledger.failures = 3
            replicas = [
                SubscriptionFees(
                    writer=writer, ledger=ledger, clock=SystemClock(), delay=timedelta(seconds=1)
                )
                for _ in range(2)
            ]

            async def step(replica: SubscriptionFees) -> None:
                try:
                    await replica.step()
                except grpc.aio.AioRpcError:
                    return

            async def all_posted() -> bool:
                await asyncio.gather(*map(step, replicas))
                ((waiting,),) = world.server.query(
                    "SELECT count(*) FROM metering.subscription_fee WHERE next_attempt_time IS NOT NULL"
                )
                ((fees,),) = world.server.query("SELECT count(*) FROM metering.subscription_fee")
                return waiting == 0 and fees == 3 * len(made)

            await eventually(all_posted)
            found = charged(world)
            assert len(found) == 3 * len(made)
            assert {amount for _, _, amount in found} == {2_500_000}
            assert len({(run, ordinal) for run, ordinal, _ in found}) == len(found)
            await asyncio.gather(*map(step, replicas))
            assert charged(world) == found
        assert await world.available() == 100_000_000 - 3 * len(made) * 2_500_000

    async def test_a_fee_that_the_ledger_refuses_is_kept_and_seen(
        self, world: World, writer: Database
    ) -> None:
        """Somebody charged the same run before, past metering. The other fees are posted."""
        version = await offer(world, *PLANS)
        start = (datetime.now(UTC) - timedelta(days=70)).replace(microsecond=0)
        await world.server.ledger.service.ledger.PostCharge(
            ledger_service_pb2.PostChargeRequest(
                intent=charge_pb2.ChargeIntent(
                    customer_id="cus_1",
                    workflow_id=f"sub_000/{start:%Y-%m-%dT%H:%M:%SZ}",
                    component=charge_pb2.CHARGE_COMPONENT_BASE,
                    gross=usd(1),
                    payees=[charge_pb2.Payee(organization_id="org_a", agent_id="agt_a", weight=1)],
                    occur_time=timestamp(start),
                    price_version_id=version,
                )
            )
        )
        (id_,) = await self.backlog(writer, 1, version, start)

        async def tried() -> bool:
            fees = await fees_of(world.server.operator, id_)
            rows = world.server.query("SELECT last_error FROM metering.subscription_fee WHERE fee_number = 1")
            return [one.posted for one in fees] == [True, True, False] and rows != [("",)]

        await eventually(tried)
        rows = world.server.query(
            "SELECT last_error, next_attempt_time = 'infinity' FROM metering.subscription_fee"
            " WHERE next_attempt_time IS NOT NULL"
        )
        ((error, is_refused),) = rows
        assert str(error).startswith("IDEMPOTENCY_KEY_REUSED")
        assert is_refused

    async def test_a_renewal_takes_the_plan_as_it_is_offered_then(
        self, world: World, writer: Database
    ) -> None:
        """A new price counts from the next period on; what is not offered any more stays as it was."""
        await offer(world, *PLANS)
        operator = world.server.operator
        team = await subscribe(operator, days_ago=10)
        small = await subscribe(operator, "small", customer_id="cus_2", key="small")
        await offer(world, plan("team", "9", "1"), first=False)
        assert team.segments[0].fee.amount_micros == 2_500_000

        async def next_fee(subscription: subscription_pb2.Subscription) -> int:
            """What the renewal at the end of the period charges, which is then undone."""
            after = subscription.period_end_time.ToDatetime(UTC)
            async with writer.begin() as connection:
                await scope(connection, PLATFORM)
                content = await store.find(connection, subscription.subscription_id, lock=True)
                assert content is not None
                renewed = await catch_up(connection, subscription_from_stored(content), now=after)
                await connection.rollback()
            assert renewed.period.start == after
            return renewed.fees_micros

        assert await next_fee(team) == 9_000_000 + 2 * 1_000_000
        assert await next_fee(small) == 1_000_000
