"""How a charge of 1,000 may stand, and what may have become of the payout of what its payee earned.

The payee earns by the charge that stands so, and by one of 777 of another customer, which stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.ledger.v1.write_off_pb2 import WRITE_OFF_KIND_RECEIVABLE, WRITE_OFF_KIND_UNPAID
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import usd

GROSS, STAYS = 1000, 777
# What the split leaves of the other charge: 15 % and 2.9 %.
STAYS_LEGS = (STAYS - 116 - 22, 116, 22)

# Each makes the charge stand so, and answers how many credits the customer got.
Standing = Callable[[Corrections], Awaitable[int]]


async def paid_by_credits(books: Corrections) -> int:
    await books.grant(GROSS)
    await books.charge(GROSS)
    return GROSS


async def receivable(books: Corrections) -> int:
    await books.limit(GROSS)
    await books.charge(GROSS)
    return 0


async def unpaid(books: Corrections) -> int:
    await books.charge(GROSS)
    return 0


async def collected_later(books: Corrections) -> int:
    await books.limit(400)
    await books.charge(GROSS)
    await books.grant(300)
    await books.grant(700, "second")
    return GROSS


async def unpaid_collected_later(books: Corrections) -> int:
    """Nobody had earned any of it before."""
    await books.charge(GROSS)
    await books.grant(300)
    await books.grant(700, "second")
    return GROSS


async def mixed(books: Corrections) -> int:
    """Each part, and one that was collected."""
    await books.grant(200)
    await books.limit(500)
    await books.charge(GROSS)
    await books.grant(150, "second")
    return 350


async def partly_corrected(books: Corrections) -> int:
    """Of each part."""
    granted = await mixed(books)
    for number, amount in enumerate([1, 2, 330, 417]):
        await books.correct(f"before-{number}", amount)
    return granted


async def written_off(books: Corrections) -> int:
    """Of what is receivable and of what is unpaid a part, in two steps."""
    granted = await mixed(books)
    await books.write_off(WRITE_OFF_KIND_UNPAID, 100, "first")
    await books.write_off(WRITE_OFF_KIND_RECEIVABLE, 133, "second")
    await books.write_off(WRITE_OFF_KIND_UNPAID, 17, "third")
    return granted


async def under_settlement_hold(books: Corrections) -> int:
    """Paid, and not available for a week."""
    await books.server.operator.directory.CreateRevenueShareAgreement(
        directory.CreateRevenueShareAgreementRequest(
            organization_id=books.payee,
            platform_fee_bps=1500,
            processing_fee_bps=290,
            settlement_hold_days=7,
            idempotency_key=f"hold of {books.payee}",
        )
    )
    await books.grant(GROSS)
    await books.charge(GROSS, now=True)
    return GROSS


async def promotional_credit(books: Corrections) -> int:
    """The platform gave what paid it."""
    await books.grant(GROSS, source=pb.CREDIT_SOURCE_PLATFORM_PROMOTION)
    await books.charge(GROSS)
    return GROSS


STANDINGS: tuple[Standing, ...] = (
    paid_by_credits,
    receivable,
    unpaid,
    collected_later,
    unpaid_collected_later,
    mixed,
    partly_corrected,
    written_off,
    under_settlement_hold,
    promotional_credit,
)
PAYOUTS = ("none", "in_transit", "completed", "returned", "reversed")


def shown(name: str) -> str:
    """A standing or a payout as the document writes it."""
    return name.replace("_", " ")


async def begin(books: Corrections, other: str) -> None:
    """Make everybody, and the charge that stays."""
    await books.server.create_organization(books.payee)
    for customer_id in (books.payer, other):
        await books.server.create_customer(customer_id)
    await books.grant(STAYS, "other", other)
    await books.charge(STAYS, "run-other", other)


async def pay_out(books: Corrections, how: str) -> int:
    """A payout of all that is available; answers how much of it has not come back."""
    available = await books.available()
    service = books.server.service.earnings
    ids = {"organization_id": books.payee, "payout_id": "po_1"}
    if how == "none":
        return 0
    await books.debit("po_1", available)
    if how == "in_transit":
        return available
    if how == "returned":
        await service.ReturnPayout(earnings.ReturnPayoutRequest(**ids))
        return 0
    await service.CompletePayout(earnings.CompletePayoutRequest(**ids))
    if how == "completed":
        return available
    await service.ReversePayout(
        earnings.ReversePayoutRequest(**ids, reversal_id="trr_1", amount=usd(available // 3))
    )
    return available - available // 3


async def left_of(books: Corrections) -> int:
    """What corrections and write-offs have left of the charge."""
    charge = await books.get()
    return GROSS - charge.corrected.amount_micros - charge.written_off.amount_micros


async def conserved(books: Corrections, granted: int, gone: int, left: int) -> bool:
    """What came in is what the customer has and what somebody earned; the latter is in, or still owed."""
    available, owed, unpaid = await books.customer()
    earned = sum(await books.legs()) + gone - STAYS
    return granted - available + owed == earned == left - unpaid
