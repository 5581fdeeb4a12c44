"""Frozen organizations are not paid out, frozen customers run nothing; over real gRPC and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import error_reason_pb2
from tallystick.ledger.v1 import directory_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tests.support.ledger_credits import OUTCOME, allocation, hold_request, intent, reason_of, usd
from tests.support.ledger_funding import Funding
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import Refusal, refusal


@pytest.fixture
async def funding(database_url: str) -> AsyncIterator[Funding]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x", 0, 0)
        await server.create_customer("cus_a")
        yield Funding(server)
        assert not await audit(database_url)


async def refused(call: Any) -> Refusal:
    """The refusal, without the id that every request has."""
    answer = await refusal(call)
    answer.metadata.pop("request_id", None)
    return answer


async def freeze_payouts(funding: Funding, reason: str = "under review") -> directory_pb2.Organization:
    answer = await funding.server.operator.directory.FreezePayouts(
        directory.FreezePayoutsRequest(organization_id="org_x", reason=reason)
    )
    return answer.organization


async def unfreeze_payouts(funding: Funding) -> directory_pb2.Organization:
    answer = await funding.server.operator.directory.UnfreezePayouts(
        directory.UnfreezePayoutsRequest(organization_id="org_x", reason="reviewed")
    )
    return answer.organization


async def debit(funding: Funding, payout_id: str, amount: int = 10) -> earnings.DebitPayoutResponse:
    return await funding.service.earnings.DebitPayout(
        earnings.DebitPayoutRequest(organization_id="org_x", payout_id=payout_id, amount=usd(amount))
    )


async def get_debit(funding: Funding, payout_id: str) -> earnings.GetPayoutDebitResponse:
    return await funding.service.earnings.GetPayoutDebit(
        earnings.GetPayoutDebitRequest(organization_id="org_x", payout_id=payout_id)
    )


async def earn(funding: Funding, amount: int) -> None:
    await funding.grant(amount)
    await funding.post(intent("run-earn", amount))


def events(database_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as admin:
        return admin.execute(
            "SELECT owner_id, frozen, reason FROM ledger.freeze_event ORDER BY freeze_event_id"
        ).fetchall()


async def test_frozen_payouts_are_refused_for_good(funding: Funding) -> None:
    await earn(funding, 1000)
    await debit(funding, "po_before")
    frozen = await freeze_payouts(funding)
    assert (frozen.payouts_frozen, frozen.payouts_freeze_reason) == (True, "under review")
    assert frozen.HasField("payouts_freeze_time")
    answer = await refused(debit(funding, "po_1"))
    assert (answer.reason, answer.metadata) == (
        "PAYOUTS_FROZEN",
        {"organization_id": "org_x", "payout_id": "po_1", "freeze_reason": "under review"},
    )
    # More than there is, while frozen: the freeze is why.
    assert (await refused(debit(funding, "po_2", 5000))).reason == "PAYOUTS_FROZEN"
    # What was taken before is for payouts to stop: it asks before money moves.
    before = await get_debit(funding, "po_before")
    assert (before.payouts_frozen, before.payouts_freeze_reason) == (True, "under review")
    assert before.debit.refuse_reason == error_reason_pb2.ERROR_REASON_UNSPECIFIED
    thawed = await unfreeze_payouts(funding)
    assert (thawed.payouts_frozen, thawed.payouts_freeze_reason) == (False, "")
    assert not thawed.HasField("payouts_freeze_time")
    # A retry of what was refused does not pay later.
    assert (await refused(debit(funding, "po_1"))).reason == "PAYOUTS_FROZEN"
    one = await get_debit(funding, "po_1")
    assert (one.payouts_frozen, one.debit.refuse_reason) == (
        False,
        error_reason_pb2.ERROR_REASON_PAYOUTS_FROZEN,
    )
    await debit(funding, "po_3", 990)
    assert (await refused(debit(funding, "po_4"))).reason == "INSUFFICIENT_EARNINGS"
    four = await get_debit(funding, "po_4")
    assert four.debit.refuse_reason == error_reason_pb2.ERROR_REASON_INSUFFICIENT_EARNINGS


async def test_freezes_are_recorded_once_each_with_who_and_why(funding: Funding) -> None:
    first = await freeze_payouts(funding)
    assert await freeze_payouts(funding, "another reason") == first
    await unfreeze_payouts(funding)
    await unfreeze_payouts(funding)
    frozen = await funding.freeze()
    assert (frozen.frozen, frozen.freeze_reason) == (True, "suspicious")
    assert await funding.freeze(reason="another reason") == frozen
    assert not (await funding.unfreeze()).frozen
    await funding.unfreeze()
    database_url = funding.server.database_url
    assert events(database_url) == [
        ("org_x", True, "under review"),
        ("org_x", False, "reviewed"),
        ("cus_a", True, "suspicious"),
        ("cus_a", False, "cleared"),
    ]
    with psycopg.connect(database_url) as admin:
        actors = admin.execute("SELECT DISTINCT actor_api_key_id FROM ledger.freeze_event").fetchall()
        assert len(actors) == 1
        with pytest.raises(psycopg.errors.RestrictViolation):
            admin.execute("UPDATE ledger.freeze_event SET reason = 'nothing'")


async def test_of_a_freeze_and_a_debit_at_once_one_is_first(funding: Funding) -> None:
    await earn(funding, 1000)
    for number in range(5):
        frozen_and_debits: Sequence[Any] = await asyncio.gather(
            freeze_payouts(funding),
            *(debit(funding, f"po_{number}-{one}") for one in range(4)),
            return_exceptions=True,
        )
        # Whoever asks now is refused.
        assert (await refused(debit(funding, f"po_{number}-late"))).reason == "PAYOUTS_FROZEN"
        for one, answer in enumerate(frozen_and_debits[1:]):
            stored = (await get_debit(funding, f"po_{number}-{one}")).debit
            refused_for = stored.refuse_reason == error_reason_pb2.ERROR_REASON_PAYOUTS_FROZEN
            assert refused_for == isinstance(answer, BaseException)
        await unfreeze_payouts(funding)


async def test_malformed_and_unknown(funding: Funding) -> None:
    directories = funding.server.operator.directory
    for call in (
        freeze_payouts(funding, ""),
        freeze_payouts(funding, "x" * 501),
        funding.freeze("org_x"),
        funding.freeze(reason=""),
        directories.FreezePayouts(directory.FreezePayoutsRequest(organization_id="cus_a", reason="why")),
    ):
        assert (await refused(call)).reason == "INVALID_FIELD"
    assert (await refused(funding.freeze("cus_nobody"))).reason == "CUSTOMER_NOT_FOUND"
    unknown = directory.UnfreezePayoutsRequest(organization_id="org_nobody", reason="why")
    assert (await refused(directories.UnfreezePayouts(unknown))).reason == "ORGANIZATION_NOT_FOUND"
    service = funding.service.directory
    denied = service.FreezeCustomer(directory.FreezeCustomerRequest(customer_id="cus_a", reason="why"))
    assert (await refused(denied)).reason == "ROLE_NOT_ALLOWED"


async def test_a_frozen_customer_gets_no_holds_for_runs(funding: Funding) -> None:
    await funding.grant(1000)
    await funding.hold(hold_request("before", 100))
    await funding.freeze()
    (verdict,) = await funding.hold(hold_request("hold-1", 100))
    assert (reason_of(verdict.error), dict(verdict.error.metadata)) == (
        "CUSTOMER_FROZEN",
        {"customer_id": "cus_a"},
    )
    # What stands is answered, and prolonged; it is not raised.
    again, prolonged, raised = [
        (await funding.hold(request))[0]
        for request in (
            hold_request("before", 100),
            hold_request("before", 100, content=None),
            hold_request("before", 101, content=None),
        )
    ]
    assert again.placed.duplicate
    assert prolonged.HasField("placed")
    assert reason_of(raised.error) == "CUSTOMER_FROZEN"
    # Work that is done is charged, and what its outcome may cost is held.
    (outcome,) = await funding.hold(hold_request("out-1", 100, OUTCOME))
    assert outcome.placed.hold.from_credits == usd(100)
    await funding.post(intent("run-1", 700))
    assert (await funding.held()).available == 100
    # The refusal stands for its id, as one for lack of money does.
    await funding.unfreeze()
    refused_before, new = await funding.hold(hold_request("hold-1", 100), hold_request("hold-2", 100))
    assert reason_of(refused_before.error) == "CUSTOMER_FROZEN"
    assert new.placed.hold.from_credits == usd(100)


async def test_a_frozen_customers_lease_gets_nothing_and_is_asked_back(funding: Funding) -> None:
    await funding.grant(3_000_000)
    opened = await funding.open(1_000_000)
    assert not opened.granted.customer_frozen
    leased = opened.granted.lease.remaining.amount_micros
    await funding.freeze()
    renewed = (await funding.renew(1, 500_000)).granted
    assert (renewed.customer_frozen, renewed.lease.recall) == (True, True)
    assert renewed.lease.remaining.amount_micros == leased
    # What was allocated in it may become a hold, without anything more.
    taken, more = [
        (await funding.hold(hold_request(name, amount, of=allocation(name, 1, 1000))))[0]
        for name, amount in (("rsv-1", 1000), ("rsv-2", 1001))
    ]
    assert taken.placed.hold.from_credits == usd(1000)
    assert reason_of(more.error) == "CUSTOMER_FROZEN"
    returned = await funding.give_back(1, 1, leased)
    assert (returned.customer_frozen, returned.lease.remaining) == (True, usd(0))
    again = await funding.open(1_000_000, seen=1)
    assert (again.opened, again.granted.customer_frozen) == (True, True)
    assert again.granted.lease.remaining == usd(0)
    await funding.unfreeze()
    renewed = (await funding.renew(2, 500_000)).granted
    assert not renewed.customer_frozen
    assert renewed.lease.remaining.amount_micros >= 500_000


async def test_of_a_freeze_and_a_hold_at_once_one_is_first(funding: Funding) -> None:
    await funding.grant(1_000_000)
    for number in range(5):
        await asyncio.gather(
            funding.freeze(), *(funding.hold(hold_request(f"hold-{number}-{one}", 10)) for one in range(5))
        )
        (late,) = await funding.hold(hold_request(f"hold-{number}-late", 10))
        assert reason_of(late.error) == "CUSTOMER_FROZEN"
        await funding.unfreeze()
