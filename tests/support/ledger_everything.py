"""A ledger in which everything has happened: every transaction type and kind of account, two currencies."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import psycopg

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import account_pb2, write_off_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import funding_service_pb2 as funding_pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_credits import OUTCOME, allocation, hold_request, intent, of_hold, release_of, usd
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_lots import Lots
from tests.support.ledger_server import LedgerServer
from tests.support.waiting import eventually

# Ids with everything that ids may have.
CUSTOMERS: Final = ("cus_a", "cus_A-b_c.d", "cus_a-ub", "cus_9--_-", "cus_a_b")
# Has promotional credits.
GIFTED: Final = "cus_gift"
ORGANIZATIONS: Final = ("org_x", "org_lark-Labs_2.eu", "org_u")


def eur(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="EUR", amount_micros=micros)


async def play_everything(server: LedgerServer) -> None:
    """Let all of it happen, and wait until it is folded and in the journal."""
    await server.create_organization("org_x")
    await server.create_organization("org_lark-Labs_2.eu", 1_000, 0, hold_days=7)
    await server.create_organization("org_u", 0, 0)
    for customer in CUSTOMERS:
        await server.create_customer(customer)
    funding = Funding(server)
    await funding.grant(50_000_000)
    await _work(funding)
    await _owe(server, funding)
    await _pay_out(server)
    await _take_back(server, funding)
    await _give_up(server, funding)
    await _give_away(server)
    await _in_euros(server)
    await server.create_caller(access_pb2.ROLE_OWNER, "owner", organization_id="org_x")
    await _set_aside(funding)
    await settled(server)


async def settled(server: LedgerServer) -> None:
    """Wait until everything is folded and sequenced."""

    async def quiet() -> bool:
        async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
            cursor = await superuser.execute(
                "SELECT EXISTS (SELECT FROM ledger.balance_delta) OR EXISTS (SELECT FROM ledger.unsequenced)"
            )
            return await cursor.fetchone() == (False,)

    await eventually(quiet)


async def _work(funding: Funding) -> None:
    """Charges that credits pay, of one payee and of several, and of a name that is awkward."""
    shared = intent("shared", 1_001)
    shared.payees.add(organization_id="org_u", agent_id="agt_u", weight=2)
    await funding.post(intent("paid", 30_000), intent("free", 0), shared)
    await funding.grant(5_000, "grant-1", customer="cus_A-b_c.d")
    await funding.post(
        intent("odd", 4_999, customer="cus_A-b_c.d", organization="org_lark-Labs_2.eu"),
        intent("odd", 7, customer="cus_9--_-", organization="org_lark-Labs_2.eu"),
    )


async def _owe(server: LedgerServer, funding: Funding) -> None:
    """Debts: one that is open, one that a promotion collects in part."""
    for customer in ("cus_a_b", "cus_a-ub"):
        await server.operator.directory.SetCreditLimit(
            directory.SetCreditLimitRequest(customer_id=customer, credit_limit=usd(100))
        )
        await funding.post(intent("owed", 300, customer=customer))
    await server.operator.ledger.GrantCredits(
        ledger.GrantCreditsRequest(
            customer_id="cus_a_b",
            amount=usd(150),
            source=ledger.CREDIT_SOURCE_PLATFORM_PROMOTION,
            idempotency_key="welcome",
            reason='a "welcome", with a comma; and a semicolon',
        )
    )
    await server.operator.ledger.AdjustBalances(
        ledger.AdjustBalancesRequest(
            postings=[
                _posting("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, 500),
                _posting("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -500),
            ],
            reason="made up for \\ an outage",
            idempotency_key="adjustment-1",
        )
    )


def _posting(owner_id: str, kind: account_pb2.AccountKind.ValueType, amount: int) -> ledger.Posting:
    account = account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD")
    return ledger.Posting(account=account, amount=usd(amount))


async def _pay_out(server: LedgerServer) -> None:
    """Payouts: under way, sent, returned, and one of which a part came back."""
    service = server.service.earnings
    for payout_id in ("po_open", "po_sent", "po_returned", "po_back"):
        await service.DebitPayout(
            earnings.DebitPayoutRequest(organization_id="org_x", payout_id=payout_id, amount=usd(1_000))
        )
    for payout_id in ("po_sent", "po_back"):
        await service.CompletePayout(
            earnings.CompletePayoutRequest(organization_id="org_x", payout_id=payout_id)
        )
    await service.ReturnPayout(earnings.ReturnPayoutRequest(organization_id="org_x", payout_id="po_returned"))
    await service.ReversePayout(
        earnings.ReversePayoutRequest(
            organization_id="org_x", payout_id="po_back", reversal_id="trr_1", amount=usd(400)
        )
    )


async def _take_back(server: LedgerServer, funding: Funding) -> None:
    """Corrections of what was paid and of what is owed; a refund, a chargeback, a fee, a freeze."""
    (posted,) = await funding.post(intent("wrong", 2_000))
    (owed,) = await funding.post(intent("wrong", 500, customer="cus_a-ub"))
    for correction_id, charge_id, amount in (
        ("rf_1", posted.charge.charge_id, 333),
        ("rf_2", posted.charge.charge_id, 667),
        ("rf_1", owed.charge.charge_id, 100),
    ):
        await server.operator.ledger.CorrectCharge(
            ledger.CorrectChargeRequest(
                charge_id=charge_id, correction_id=correction_id, amount=usd(amount), reason="a wrong answer"
            )
        )
    await funding.reverse("re_1", 1_000)
    await funding.grant(3_000, "disputed", customer="cus_9--_-")
    await funding.post(
        intent("spent", 2_900, customer="cus_9--_-", organization="org_lark-Labs_2.eu"),
    )
    await funding.reverse("dp_1", 3_000, CHARGEBACK, purchase="disputed", customer="cus_9--_-")
    await funding.reinstate("dp_1", "adj_1", 1_200, customer="cus_9--_-")
    await funding.fee("fee_1", 59)


async def _give_up(server: LedgerServer, funding: Funding) -> None:
    """Write-offs of what is unpaid, of what is owed, of a chargeback, of earnings below zero."""
    await funding.post(intent("small", 5, customer="cus_9--_-"))
    (unpaid,) = await funding.post(intent("given-up", 40, customer="cus_A-b_c.d"))
    await server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a-ub", credit_limit=usd(1_000))
    )
    (owed,) = await funding.post(intent("given-up", 60, customer="cus_a-ub"))
    (wrong,) = await funding.post(intent("paid-out", 800, organization="org_u"))
    await server.service.earnings.DebitPayout(
        earnings.DebitPayoutRequest(organization_id="org_u", payout_id="po_all", amount=usd(1_400))
    )
    await server.operator.ledger.CorrectCharge(
        ledger.CorrectChargeRequest(
            charge_id=wrong.charge.charge_id, correction_id="rf_1", amount=usd(800), reason="a wrong answer"
        )
    )
    for kind, of, amount in (
        (write_off_pb2.WRITE_OFF_KIND_UNPAID, {"charge_id": unpaid.charge.charge_id}, 11),
        (write_off_pb2.WRITE_OFF_KIND_RECEIVABLE, {"charge_id": owed.charge.charge_id}, 22),
        (write_off_pb2.WRITE_OFF_KIND_CHARGEBACKS, {"owner_id": "cus_9--_-"}, 33),
        (write_off_pb2.WRITE_OFF_KIND_CLAWBACK, {"owner_id": "org_u"}, 44),
    ):
        await server.operator.funding.WriteOff(
            funding_pb.WriteOffRequest(
                kind=kind,
                amount=usd(amount),
                reason="will not be paid any more",
                idempotency_key=f"{kind}",
                **of,
            )
        )


async def _give_away(server: LedgerServer) -> None:
    """Credits that an organization gave away and pays for, and credits that expire."""
    await server.create_customer(GIFTED)
    lots = Lots(server)
    await lots.give(500, "gift", funder="org_u", customer=GIFTED)
    await lots.charge(120, "gift", GIFTED)
    await lots.charge(30, "own", GIFTED, "org_u")
    await lots.settle(GIFTED)
    await lots.give(70, "soon", expires=timedelta(hours=1), customer=GIFTED)
    await lots.end_time(customer=GIFTED)
    await lots.expire(GIFTED)


async def _in_euros(server: LedgerServer) -> None:
    await server.operator.ledger.GrantCredits(
        ledger.GrantCreditsRequest(
            customer_id="cus_a",
            amount=eur(9_000_001),
            source=ledger.CREDIT_SOURCE_PURCHASE,
            idempotency_key="euros",
        )
    )
    charge = intent("euros", 0, organization="org_lark-Labs_2.eu")
    charge.gross.CopyFrom(eur(1_234_567))
    await server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=charge))


async def _set_aside(funding: Funding) -> None:
    """Leases and holds: some that stand, some that a charge or a release ended."""
    await funding.open(100)
    await funding.open(100, seen=1)
    await funding.hold(
        hold_request("hold_1", 100), hold_request("hold_2", 100), hold_request("bonus", 50, OUTCOME)
    )
    await funding.release(release_of(allocation("rsv_2", 2, 10)))
    await funding.post(
        intent("held", 60, of_hold("hold_1")), intent("leased", 60, allocation("rsv_1", 2, 40))
    )
