"""Contracts: who keeps them, what never changes, and which price and terms apply to work."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from services.kit.errors import Code
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.metering.v1 import contract_pb2, price_book_pb2
from tallystick.metering.v1 import contract_service_pb2 as pb
from tallystick.metering.v1 import pricing_service_pb2 as pricing
from tests.integration.metering.world import RUN_MICROS, World, fields_of, refused, run
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import Caller, fee, price, running_metering
from tests.support.waiting import eventually

HOUR = timedelta(hours=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def a_contract(
    contract_id: str = "con_1",
    *,
    customer_id: str = "cus_1",
    organization_id: str = "org_a",
    start: datetime | None = None,
    content: contract_pb2.ContractContent | None = None,
) -> contract_pb2.Contract:
    contract = contract_pb2.Contract(
        contract_id=contract_id,
        customer_id=customer_id,
        organization_id=organization_id,
        currency_code="USD",
        content=content,
    )
    if start is not None:
        contract.start_time.FromDatetime(start)
    return contract


async def create(caller: Caller, contract: contract_pb2.Contract) -> contract_pb2.Contract:
    response = await caller.contracts.CreateContract(pb.CreateContractRequest(contract=contract))
    return response.contract


async def change(
    caller: Caller, contract_id: str, replaced: int, content: contract_pb2.ContractContent
) -> contract_pb2.Contract:
    response = await caller.contracts.UpdateContract(
        pb.UpdateContractRequest(contract_id=contract_id, replaced_version_number=replaced, content=content)
    )
    return response.contract


async def end(caller: Caller, contract_id: str, at: datetime | None = None) -> contract_pb2.Contract:
    request = pb.EndContractRequest(contract_id=contract_id)
    if at is not None:
        request.end_time.FromDatetime(at)
    return (await caller.contracts.EndContract(request)).contract


async def get(caller: Caller, contract_id: str, version: int = 0) -> contract_pb2.Contract:
    request = pb.GetContractRequest(contract_id=contract_id, version_number=version)
    return (await caller.contracts.GetContract(request)).contract


async def explain(
    caller: Caller, *, at: datetime | None = None, pinned: str = "", customer_id: str = "cus_1"
) -> pb.ExplainPriceResponse:
    request = pb.ExplainPriceRequest(
        customer_id=customer_id, agent_id="agt_a", action_type="run", price_version_id=pinned
    )
    if at is not None:
        request.time.FromDatetime(at)
    return await caller.contracts.ExplainPrice(request)


def verdicts(answer: pb.ExplainPriceResponse) -> list[str]:
    return [
        contract_pb2.PriceVerdict.Name(one.verdict).removeprefix("PRICE_VERDICT_")
        for one in answer.candidates
    ]


async def contract_book(
    world: World,
    book_id: str,
    amount: str,
    *,
    organization_id: str = "",
    action_types: tuple[str, ...] = (),
) -> str:
    """A book that only contracts use, with one price, in force from the beginning of time; its version."""
    operator = world.server.operator.pricing
    await operator.CreatePriceBook(
        pricing.CreatePriceBookRequest(
            price_book_id=book_id,
            organization_id=organization_id,
            currency_code="USD",
            for_contracts=True,
        )
    )
    return await publish(world, book_id, amount, first=True, action_types=action_types)


async def publish(
    world: World, book_id: str, amount: str, *, first: bool = False, action_types: tuple[str, ...] = ()
) -> str:
    operator = world.server.operator.pricing
    draft = await operator.CreatePriceVersion(
        pricing.CreatePriceVersionRequest(
            price_book_id=book_id,
            prices=[price(fee(amount), name=f"of-{book_id}", action_types=action_types)],
            idempotency_key=f"{book_id}/{amount}",
        )
    )
    request = pricing.PublishPriceVersionRequest(price_version_id=draft.price_version.price_version_id)
    if first:
        request.effective_time.FromSeconds(0)
    return (await operator.PublishPriceVersion(request)).price_version.price_version_id


async def is_denied(call: Awaitable[object]) -> bool:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def cost(world: World, workflow_id: str, **changes: object) -> int:
    metered = await world.meter(run(workflow_id, **changes))
    return metered.price_charged.amount_micros


class TestKeeping:
    async def test_a_contract_is_kept_as_it_was_made(self, world: World) -> None:
        operator = world.server.operator
        version = await contract_book(world, "pb_deal", "0.01", organization_id="org_a")
        content = contract_pb2.ContractContent(
            price_version_id=version,
            discounts=[
                price_book_pb2.Discount(
                    name="much",
                    volume=price_book_pb2.VolumeDiscount(
                        steps=[
                            price_book_pb2.VolumeDiscountStep(
                                from_amount=price_book_pb2.UnitPrice(amount=amount, per_units=1),
                                basis_points=points,
                            )
                            for amount, points in (("9.5", 100), ("10", 200))
                        ]
                    ),
                ),
                price_book_pb2.Discount(name="loyal", basis_points=500),
                price_book_pb2.Discount(
                    name="off", amount=price_book_pb2.UnitPrice(amount="0.5", per_units=1)
                ),
            ],
            allowances=[price_book_pb2.Allowance(meter="input_tokens", quantity=1_000_000)],
            period_maximum=usd(50_000_000),
            credit_limit=usd(0),
            recorded_terms={"sla": "99.9 %\nmeasured monthly", "guardrails": "No advice on medicine."},
        )
        wanted = a_contract(content=content, start=LONG_AGO)
        wanted.billing_period.unit = price_book_pb2.PERIOD_UNIT_QUARTER
        wanted.billing_period.anchor_time.FromDatetime(LONG_AGO)
        wanted.billing_period.time_zone = "Europe/Rome"
        made = await create(operator, wanted)

        assert (made.content, made.billing_period) == (content, wanted.billing_period)
        assert (made.version_number, made.effective_time) == (1, made.start_time)
        assert made.api_key_id
        assert await get(operator, "con_1") == made
        assert await create(operator, wanted) == made

    async def test_each_change_is_a_version_with_its_actor(self, world: World) -> None:
        operator, owner = world.server.operator, await world.new_owner("org_a")
        first = await create(operator, a_contract())
        content = contract_pb2.ContractContent(recorded_terms={"sla": "gold"})
        second = await change(owner, "con_1", 1, content)
        assert (second.version_number, second.content, second.start_time) == (2, content, first.start_time)
        assert second.effective_time.ToDatetime() > first.effective_time.ToDatetime()
        assert second.api_key_id not in ("", first.api_key_id)
        # A repeated request changes nothing, one that knows only the first version neither.
        assert await change(owner, "con_1", 1, content) == second
        answer = await refused(change(operator, "con_1", 1, contract_pb2.ContractContent()))
        assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "AGREEMENT_STATE_CONFLICT")
        assert answer.metadata["state"] == "version 2"

        ended = await end(owner, "con_1")
        assert ended.version_number == 3
        assert ended.content.end_time.ToDatetime() >= second.effective_time.ToDatetime()
        assert await end(owner, "con_1") == ended
        answer = await refused(change(operator, "con_1", 3, content))
        assert (answer.reason, answer.metadata["state"]) == ("AGREEMENT_STATE_CONFLICT", "ended")

        history = await owner.contracts.ListContractVersions(
            pb.ListContractVersionsRequest(contract_id="con_1", page_size=2)
        )
        rest = await owner.contracts.ListContractVersions(
            pb.ListContractVersionsRequest(
                contract_id="con_1", page_size=2, page_token=history.next_page_token
            )
        )
        assert [*history.contracts, *rest.contracts] == [ended, second, first]
        assert await get(owner, "con_1", 2) == second
        answer = await refused(get(owner, "con_1", 4))
        assert (answer.code, answer.reason) == (Code.NOT_FOUND, "CONTRACT_NOT_FOUND")

    async def test_contracts_about_the_same_do_not_overlap(self, world: World) -> None:
        operator = world.server.operator
        now = datetime.now(UTC)
        await create(operator, a_contract(start=LONG_AGO))
        answer = await refused(create(operator, a_contract("con_2")))
        assert (answer.code, answer.metadata["resource_id"]) == (Code.ALREADY_EXISTS, "con_1")
        # About something else it may.
        await create(operator, a_contract("con_3", organization_id=""))
        await create(operator, a_contract("con_4", organization_id="org_b"))

        await end(operator, "con_1", now + HOUR)
        await create(operator, a_contract("con_2", start=now + HOUR))
        longer = contract_pb2.ContractContent()
        longer.end_time.FromDatetime(now + 2 * HOUR)
        answer = await refused(change(operator, "con_1", 2, longer))
        assert (answer.code, answer.metadata["resource_id"]) == (Code.ALREADY_EXISTS, "con_2")

    async def test_of_two_created_at_once_one_is_refused(self, world: World) -> None:
        operator = world.server.operator
        made = await asyncio.gather(
            *(create(operator, a_contract(f"con_{number}", start=LONG_AGO)) for number in range(5)),
            return_exceptions=True,
        )
        kept = {one.contract_id for one in made if isinstance(one, contract_pb2.Contract)}
        # Equal in all but the id that was chosen: no repetition.
        assert len(kept) == 1
        listed = await operator.contracts.ListContracts(pb.ListContractsRequest())
        assert {one.contract_id for one in listed.contracts} == kept

    @pytest.mark.parametrize(
        ("field", "content"),
        [
            ("price_version_id", contract_pb2.ContractContent(price_version_id="x")),
            ("discounts[0]", contract_pb2.ContractContent(discounts=[price_book_pb2.Discount(name="x")])),
            (
                "discounts[0].basis_points",
                contract_pb2.ContractContent(
                    discounts=[price_book_pb2.Discount(name="x", basis_points=10_001)]
                ),
            ),
            (
                "discounts[1].name",
                contract_pb2.ContractContent(
                    discounts=[price_book_pb2.Discount(name="x", basis_points=1)] * 2
                ),
            ),
            (
                "discounts[0].amount.amount",
                contract_pb2.ContractContent(
                    discounts=[
                        price_book_pb2.Discount(name="x", amount=price_book_pb2.UnitPrice(amount="-1"))
                    ]
                ),
            ),
            (
                "allowances[0].quantity",
                contract_pb2.ContractContent(allowances=[price_book_pb2.Allowance(meter="input_tokens")]),
            ),
            (
                "allowances[0].quantity_per_seat",
                contract_pb2.ContractContent(
                    allowances=[price_book_pb2.Allowance(meter="m", quantity=1, quantity_per_seat=1)]
                ),
            ),
            (
                "period_maximum.currency_code",
                contract_pb2.ContractContent(
                    period_maximum=money_pb2.Money(currency_code="EUR", amount_micros=1)
                ),
            ),
            ("period_maximum.amount_micros", contract_pb2.ContractContent(period_maximum=usd(-1))),
            ("credit_limit.amount_micros", contract_pb2.ContractContent(credit_limit=usd(-1))),
            ("recorded_terms", contract_pb2.ContractContent(recorded_terms={"": "x"})),
            ("recorded_terms[sla]", contract_pb2.ContractContent(recorded_terms={"sla": "x\0"})),
        ],
    )
    async def test_what_makes_no_sense_is_refused(
        self, world: World, field: str, content: contract_pb2.ContractContent
    ) -> None:
        answer = await refused(create(world.server.operator, a_contract(content=content)))
        assert answer.code is Code.INVALID_ARGUMENT
        assert fields_of(answer) == [f"contract.content.{field}"]

    async def test_who_is_unknown_has_no_contract(self, world: World) -> None:
        for contract, reason in (
            (a_contract(customer_id="cus_none"), "CUSTOMER_NOT_FOUND"),
            (a_contract(organization_id="org_none"), "ORGANIZATION_NOT_FOUND"),
            (
                a_contract(content=contract_pb2.ContractContent(price_book_id="pb_none")),
                "PRICE_BOOK_NOT_FOUND",
            ),
            (
                a_contract(content=contract_pb2.ContractContent(price_version_id="pv_none")),
                "PRICE_VERSION_NOT_FOUND",
            ),
        ):
            answer = await refused(create(world.server.operator, contract))
            assert (answer.code, answer.reason) == (Code.NOT_FOUND, reason)

    async def test_prices_of_another_organization_or_currency_are_refused(self, world: World) -> None:
        operator = world.server.operator
        version = await contract_book(world, "pb_b", "1", organization_id="org_b")
        await operator.pricing.CreatePriceBook(
            pricing.CreatePriceBookRequest(price_book_id="pb_eur", currency_code="EUR", for_contracts=True)
        )
        for content in (
            contract_pb2.ContractContent(price_version_id=version),
            contract_pb2.ContractContent(price_book_id="pb_b"),
            contract_pb2.ContractContent(price_book_id="pb_eur"),
        ):
            answer = await refused(create(operator, a_contract(content=content)))
            assert fields_of(answer) == ["content.prices"]


class TestTenants:
    async def test_an_owner_keeps_contracts_with_its_own_organization(self, world: World) -> None:
        owner_a, owner_b = await world.new_owner("org_a"), await world.new_owner("org_b")
        made = await create(owner_a, a_contract())
        assert await get(owner_a, "con_1") == made
        for call in (
            get(owner_b, "con_1"),
            change(owner_b, "con_1", 1, contract_pb2.ContractContent()),
            end(owner_b, "con_1"),
        ):
            assert (await refused(call)).reason == "CONTRACT_NOT_FOUND"
        assert (await refused(create(owner_b, a_contract("con_2")))).reason == "ORGANIZATION_NOT_FOUND"
        assert await is_denied(create(owner_a, a_contract("con_2", organization_id="")))
        # What is agreed for all organizations is none of theirs.
        await create(world.server.operator, a_contract("con_all", organization_id=""))
        assert (await refused(get(owner_a, "con_all"))).reason == "CONTRACT_NOT_FOUND"
        listed = await owner_a.contracts.ListContracts(pb.ListContractsRequest())
        assert [one.contract_id for one in listed.contracts] == ["con_1"]

    async def test_a_customer_sees_its_own_and_changes_none(self, world: World) -> None:
        for contract in (
            a_contract(),
            a_contract("con_all", organization_id=""),
            a_contract("con_other", customer_id="cus_2"),
        ):
            await create(world.server.operator, contract)
        key = await world.server.ledger.create_caller(
            access_pb2.ROLE_CUSTOMER, "customer", customer_id="cus_1"
        )
        customer = world.server.caller(key.key)
        listed = await customer.contracts.ListContracts(pb.ListContractsRequest())
        assert [one.contract_id for one in listed.contracts] == ["con_1", "con_all"]
        assert (await refused(get(customer, "con_other"))).reason == "CONTRACT_NOT_FOUND"
        assert await is_denied(end(customer, "con_1"))
        assert (await refused(explain(customer, customer_id="cus_2"))).reason == "CUSTOMER_NOT_FOUND"


class TestBillingPeriods:
    """What is counted over a period is counted once: periods of the past stay as they are."""

    @pytest.fixture
    async def counted(self, world: World) -> datetime:
        """Work of ten days ago that was counted, in a month of UTC."""
        of = price(fee("0.001"))
        of.period_maximum.amount = "1"
        await world.server.publish(of, organization_id="org_a")
        at = datetime.now(UTC) - timedelta(days=10)
        event = run("counted")
        event.occur_time.FromDatetime(at)
        await world.meter(event)
        return at

    async def test_a_contract_does_not_cut_what_was_counted(self, world: World, counted: datetime) -> None:
        operator = world.server.operator
        for organization_id in ("org_a", ""):
            contract = a_contract(start=counted - HOUR, organization_id=organization_id)
            contract.billing_period.unit = price_book_pb2.PERIOD_UNIT_MONTH
            contract.billing_period.anchor_time.FromDatetime(LONG_AGO + 13 * HOUR)
            answer = await refused(create(operator, contract))
            assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "BILLING_PERIODS_COUNTED")
            assert answer.metadata["organization_id"] == "org_a"
        # From behind that work on it may, and one that cuts them as they are may begin whenever it likes.
        contract.start_time.FromDatetime(counted + HOUR)
        await create(operator, contract)
        contract = a_contract("con_2", start=counted - HOUR, organization_id="")
        contract.content.end_time.FromDatetime(counted + HOUR)
        contract.billing_period.time_zone = "UTC"
        await create(operator, contract)

    async def test_periods_that_a_contract_cuts_off_are_looked_at(
        self, world: World, counted: datetime
    ) -> None:
        contract = a_contract()
        contract.billing_period.unit = price_book_pb2.PERIOD_UNIT_YEAR
        await create(world.server.operator, contract)
        assert world.server.query(
            "SELECT next_check_time <= now() + interval '1 hour' FROM metering.counted_period"
        ) == [(True,)]


class TestPrices:
    async def test_the_order_of_resolution(self, world: World) -> None:
        """From the last place to the first: each that is added overrules those behind it."""
        operator = world.server.operator
        platform_version = await world.server.publish(price(fee("0.05")))

        assert await cost(world, "by-platform") == 50_000
        assert verdicts(await explain(operator)) == [
            "NOT_PINNED", "NO_CONTRACT", "NO_CONTRACT", "NOT_IN_FORCE", "CHOSEN",
        ]  # fmt: skip

        await world.server.publish(price(fee("0.04")), organization_id="org_a")
        assert await cost(world, "by-organization") == 40_000

        await contract_book(world, "pb_all", "0.03")
        await create(
            operator,
            a_contract(
                "con_all",
                organization_id="",
                content=contract_pb2.ContractContent(price_book_id="pb_all"),
            ),
        )
        assert await cost(world, "by-customer") == 30_000
        # Somebody else has no contract.
        assert await cost(world, "other", customer_id="cus_2") == 40_000

        await contract_book(world, "pb_a", "0.02", organization_id="org_a")
        made = await create(operator, a_contract(content=contract_pb2.ContractContent(price_book_id="pb_a")))
        assert await cost(world, "by-contract") == 20_000
        answer = await explain(operator)
        assert verdicts(answer) == ["NOT_PINNED", "CHOSEN", "NOT_NEEDED", "NOT_NEEDED", "NOT_NEEDED"]
        assert [one.price_name for one in answer.candidates] == ["", "of-pb_a", "of-pb_all", "run", "run"]
        assert (answer.contract_id, answer.contract_version_number) == ("con_1", made.version_number)
        assert answer.price.components[0].base_fee.price.amount == "0.02"
        assert answer.price_version_id == answer.candidates[1].price_version_id

        pinned = await explain(operator, pinned=platform_version)
        assert verdicts(pinned) == ["CHOSEN", *["OVERRULED_BY_PIN"] * 4]
        assert pinned.price_version_id == platform_version
        # What was agreed applies to pinned prices, too.
        assert pinned.contract_id == "con_1"

    async def test_a_contract_without_a_price_for_the_work_leaves_it_to_the_next(self, world: World) -> None:
        operator = world.server.operator
        await world.server.publish(price(fee("0.05")))
        await contract_book(world, "pb_a", "0.02", organization_id="org_a", action_types=("search",))
        await create(operator, a_contract(content=contract_pb2.ContractContent(price_book_id="pb_a")))
        await create(operator, a_contract("con_all", organization_id=""))
        assert await cost(world, "run") == 50_000
        assert await cost(world, "search", action_type="search") == 20_000
        assert verdicts(await explain(operator)) == [
            "NOT_PINNED", "NO_PRICE_MATCHES", "NO_OWN_PRICES", "NOT_IN_FORCE", "CHOSEN",
        ]  # fmt: skip

    async def test_a_pinned_version_stays_and_a_book_moves_on(self, world: World) -> None:
        operator = world.server.operator
        version = await contract_book(world, "pb_a", "0.02", organization_id="org_a")
        await create(operator, a_contract(content=contract_pb2.ContractContent(price_version_id=version)))
        await create(
            operator,
            a_contract(
                "con_2", customer_id="cus_2", content=contract_pb2.ContractContent(price_book_id="pb_a")
            ),
        )
        await publish(world, "pb_a", "0.01")
        assert await cost(world, "pinned") == 20_000
        assert await cost(world, "moves", customer_id="cus_2") == 10_000

    async def test_work_has_the_terms_of_its_own_time(self, world: World) -> None:
        operator = world.server.operator
        await world.server.publish(price(fee("0.05")))
        old = await contract_book(world, "pb_old", "0.02", organization_id="org_a")
        new = await contract_book(world, "pb_new", "0.01", organization_id="org_a")
        start = datetime.now(UTC) - HOUR
        await create(
            operator,
            a_contract(start=start, content=contract_pb2.ContractContent(price_version_id=old)),
        )
        await change(operator, "con_1", 1, contract_pb2.ContractContent(price_version_id=new))

        async def cost_at(name: str, moment: datetime) -> int:
            event = run(name)
            event.occur_time.FromDatetime(moment)
            return (await world.meter(event)).price_charged.amount_micros

        assert await cost_at("before", start - HOUR) == RUN_MICROS
        assert await cost_at("then", start + HOUR / 2) == 20_000
        assert await cost(world, "now") == 10_000
        ended = await end(operator, "con_1")
        assert await cost(world, "after") == 50_000
        assert (
            await cost_at("late", ended.effective_time.ToDatetime(UTC) - timedelta(microseconds=1)) == 10_000
        )
        assert (await explain(operator)).contract_id == ""
        assert (await explain(operator, at=start)).contract_version_number == 1

    async def test_the_billing_period_is_that_of_the_contract(self, world: World) -> None:
        operator = world.server.operator
        at = datetime(2026, 3, 30, tzinfo=UTC)
        answer = await explain(operator, at=at)
        assert answer.period_start_time.ToDatetime() == datetime(2026, 3, 1)  # noqa: DTZ001
        contract = a_contract(start=LONG_AGO)
        contract.billing_period.anchor_time.FromDatetime(datetime(2025, 12, 31, 9, tzinfo=UTC))
        contract.billing_period.time_zone = "Europe/Rome"
        await create(operator, contract)
        answer = await explain(operator, at=at)
        # Rome's summer time begins on the 29th: the same time of day is an hour earlier.
        assert answer.period_start_time.ToDatetime() == datetime(2026, 2, 28, 9)  # noqa: DTZ001
        assert answer.period_end_time.ToDatetime() == datetime(2026, 3, 31, 8)  # noqa: DTZ001
        assert answer.billing_period == contract_pb2.BillingPeriod(
            unit=price_book_pb2.PERIOD_UNIT_MONTH,
            anchor_time=contract.billing_period.anchor_time,
            time_zone="Europe/Rome",
        )

    async def test_an_organization_does_not_see_what_was_agreed_for_all(self, world: World) -> None:
        await create(world.server.operator, a_contract("con_all", organization_id=""))
        seen = await explain(world.server.operator)
        hidden = await explain(await world.new_owner("org_a"))
        assert (seen.contract_id, hidden.contract_id) == ("con_all", "")
        assert [one.contract_id for one in hidden.candidates] == [""] * 5
        answer = await refused(explain(await world.new_owner("org_b")))
        assert answer.reason == "AGENT_NOT_FOUND"

    async def test_nobody_learns_prices_of_others_by_naming_their_version(self, world: World) -> None:
        """As if it was pinned: an organization those of another one, a customer those of another customer."""
        operator = world.server.operator
        of_b = await contract_book(world, "pb_b", "0.07", organization_id="org_b")
        of_other = await contract_book(world, "pb_other", "0.06", organization_id="org_a")
        own = await contract_book(world, "pb_own", "0.05", organization_id="org_a")
        newer = await publish(world, "pb_own", "0.04")
        await create(operator, a_contract(content=contract_pb2.ContractContent(price_book_id="pb_own")))
        owner = await world.new_owner("org_a")
        key = await world.server.ledger.create_caller(
            access_pb2.ROLE_CUSTOMER, "customer", customer_id="cus_1"
        )
        customer = world.server.caller(key.key)
        for caller, pinned, is_told in (
            (operator, of_b, True),
            (owner, of_b, False),
            (owner, of_other, True),
            (customer, of_b, False),
            (customer, of_other, False),
            (customer, own, True),
            (customer, newer, True),
        ):
            answer = await explain(caller, pinned=pinned)
            assert (answer.candidates[0].price_name, answer.HasField("price")) == (
                ("of-" + {of_b: "pb_b", of_other: "pb_other"}.get(pinned, "pb_own"), True)
                if is_told
                else ("", False)
            )

    async def test_another_replica_goes_by_a_contract_soon(
        self, world: World, database_url: str, ledger: LedgerServer, host_key: str
    ) -> None:
        async with running_metering(database_url, ledger) as other_server:
            other = other_server.caller(host_key)
            version = await contract_book(world, "pb_a", "0.02", organization_id="org_a")
            assert (await world.meter(run("before"), other)).price_charged.amount_micros == RUN_MICROS
            await create(
                world.server.operator,
                a_contract(start=LONG_AGO, content=contract_pb2.ContractContent(price_version_id=version)),
            )
            numbers = iter(range(1_000))

            async def applies() -> bool:
                metered = await world.meter(run(f"later-{next(numbers)}"), other)
                return metered.price_charged.amount_micros == 20_000

            await eventually(applies)


async def test_books_for_contracts_price_nothing_by_themselves(world: World) -> None:
    """And do not count when the currency of an event is looked for."""
    operator = world.server.operator
    answer = await refused(
        operator.pricing.CreatePriceBook(
            pricing.CreatePriceBookRequest(currency_code="USD", for_contracts=True)
        )
    )
    assert fields_of(answer) == ["price_book_id"]
    before = await cost(world, "before")
    await contract_book(world, "pb_a", "0.02", organization_id="org_a")
    await contract_book(world, "pb_b", "0.02", organization_id="org_a")
    assert await cost(world, "after") == before
    book = pricing.CreatePriceBookRequest(
        price_book_id="pb_a", organization_id="org_a", currency_code="USD", for_contracts=True
    )
    assert (await operator.pricing.CreatePriceBook(book)).price_book.for_contracts
    book.for_contracts = False
    assert (await refused(operator.pricing.CreatePriceBook(book))).code is Code.ALREADY_EXISTS
