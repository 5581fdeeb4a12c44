"""Organizations that are paid: onboarding, the weekly schedule, three mishaps, and Stripe's books compared.

It acts as owners, operator and bank would, with the stand-in in Stripe's place, whose clock payouts follows.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from sandbox.calls import TIMEOUT_SECONDS, in_flight, until
from sandbox.register import CURRENCY
from sandbox.report import PayoutRow
from sandbox.shop import MICROS_PER_CENT
from sandbox.stripe.client import StripeControl
from sandbox.stripe.values import Json
from services.kit.client import connect
from tallystick.payouts.v1.connect_service_pb2 import (
    CreateOnboardingLinkRequest,
    GetConnectedAccountRequest,
)
from tallystick.payouts.v1.connect_service_pb2_grpc import ConnectServiceStub
from tallystick.payouts.v1.connected_account_pb2 import CONNECTED_ACCOUNT_STATE_ACTIVE
from tallystick.payouts.v1.payout_pb2 import (
    BANK_STATUS_FAILED,
    BANK_STATUS_PAID,
    BANK_STATUS_PENDING,
    PAYOUT_STATE_COMPLETED,
    PAYOUT_STATE_FAILED,
    PAYOUT_STATE_PROCESSING,
    PAYOUT_STATE_REQUESTED,
    BankStatus,
    Payout,
    PayoutState,
)
from tallystick.payouts.v1.payout_schedule_pb2 import (
    PAYOUT_INTERVAL_MANUAL,
    PAYOUT_INTERVAL_WEEKLY,
    PayoutInterval,
    PayoutSchedule,
)
from tallystick.payouts.v1.payout_service_pb2 import ListPayoutsRequest
from tallystick.payouts.v1.payout_service_pb2_grpc import PayoutServiceStub
from tallystick.payouts.v1.reconciliation_service_pb2 import ReconcileRequest
from tallystick.payouts.v1.reconciliation_service_pb2_grpc import ReconciliationServiceStub
from tallystick.payouts.v1.schedule_service_pb2 import SetPayoutScheduleRequest
from tallystick.payouts.v1.schedule_service_pb2_grpc import ScheduleServiceStub

if TYPE_CHECKING:
    import grpc

    from sandbox.books import Books
    from tallystick.payouts.v1.connect_service_pb2_grpc import ConnectServiceAsyncStub
    from tallystick.payouts.v1.payout_service_pb2_grpc import PayoutServiceAsyncStub
    from tallystick.payouts.v1.reconciliation_service_pb2_grpc import ReconciliationServiceAsyncStub
    from tallystick.payouts.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub

_WEDNESDAY = 2
# Midnight of a Wednesday has passed everywhere in the Americas when it is noon in Greenwich.
_FAR_WEST = "America/New_York"
_HALF_A_DAY = 12 * 3600
_BANK_SECONDS = 2 * 86_400
_CALLS_IN_FLIGHT = 8
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Mishaps:
    """To whom what happens: to nobody where there are fewer organizations to be paid than mishaps."""

    failing: str | None
    bank_failing: str | None
    reversed: str | None

    @classmethod
    def among(cls, organization_ids: Iterable[str]) -> Mishaps:
        """One each to the first three by name."""
        first = [*sorted(organization_ids), None, None, None]
        return cls(*first[:3])


@dataclass(slots=True)
class Paid:
    """What came of it, as payouts, the stand-in and their comparison answer."""

    payouts: list[Payout] = field(default_factory=list)
    # What each organization could be paid before, in micros.
    payable: dict[str, int] = field(default_factory=dict)
    mishaps: Mishaps = field(default_factory=lambda: Mishaps.among(()))
    # Of all transfers at the stand-in, less what was reversed, in micros.
    transferred: int = 0
    differences: int = 0

    @property
    def paid_out(self) -> int:
        return sum(map(paid_out, self.payouts))

    def paid_out_to(self, organization_id: str) -> int:
        return sum(paid_out(one) for one in self.payouts if one.organization_id == organization_id)

    def counts(self) -> dict[str, int]:
        """How many payouts ended in which way."""
        completed = [one for one in self.payouts if one.state == PAYOUT_STATE_COMPLETED]
        return {
            "completed": len(completed),
            "failed": sum(one.state == PAYOUT_STATE_FAILED for one in self.payouts),
            "unfinished": sum(
                one.state in (PAYOUT_STATE_REQUESTED, PAYOUT_STATE_PROCESSING) for one in self.payouts
            ),
            "reversed": sum(one.reversed.amount_micros > 0 for one in completed),
            "bank_paid": sum(one.bank_status == BANK_STATUS_PAID for one in completed),
            "bank_failed": sum(one.bank_status == BANK_STATUS_FAILED for one in completed),
        }

    @property
    def as_intended(self) -> bool:
        """Whether everybody was paid once what is whole cents, but for the mishaps, which all happened."""
        mishaps = self.mishaps
        wanted = sorted(
            (
                owner,
                micros,
                PAYOUT_STATE_FAILED if owner == mishaps.failing else PAYOUT_STATE_COMPLETED,
                owner == mishaps.bank_failing,
                owner == mishaps.reversed,
            )
            for owner, micros in self.payable.items()
            if micros > 0
        )
        found = sorted(
            (
                one.organization_id,
                one.amount.amount_micros,
                one.state,
                one.bank_status == BANK_STATUS_FAILED,
                one.reversed.amount_micros > 0,
            )
            for one in self.payouts
        )
        return wanted == found

    def rows(self) -> list[PayoutRow]:
        """A row per payout, for people."""
        return [
            PayoutRow(
                organization_id=one.organization_id,
                state=_word(PayoutState.Name(one.state), "PAYOUT_STATE_"),
                bank=_word(BankStatus.Name(one.bank_status), "BANK_STATUS_") if one.bank_status else "",
                amount=one.amount.amount_micros,
                paid_out=paid_out(one),
            )
            for one in sorted(self.payouts, key=lambda one: one.organization_id)
        ]


class Payday:
    """Pays the organizations of a ledger, over the operator's channel to payouts. `address` is where owners
    find payouts, `stripe` where the stand-in is; `owners` are API keys by organization.
    """

    def __init__(self, payouts: grpc.aio.Channel, address: str, stripe: str, books: Books) -> None:
        self._address = address
        self._control = StripeControl(f"http://{stripe}")
        self._books = books
        self._connect: ConnectServiceAsyncStub = ConnectServiceStub(payouts)
        self._payouts: PayoutServiceAsyncStub = PayoutServiceStub(payouts)
        self._schedules: ScheduleServiceAsyncStub = ScheduleServiceStub(payouts)
        self._reconciliation: ReconciliationServiceAsyncStub = ReconciliationServiceStub(payouts)
        # Connected accounts at the stand-in.
        self._accounts: dict[str, str] = {}

    async def onboard(self, owners: Mapping[str, str]) -> None:
        """Every organization goes through onboarding at Stripe, until it can be paid."""

        async def one(organization_id: str) -> None:
            account = await self._open_link(organization_id, owners[organization_id])
            self._accounts[organization_id] = account
            await self._run("account onboard", account=account)
            asked = GetConnectedAccountRequest(organization_id=organization_id)

            async def ready() -> bool:
                found = (await self._connect.GetConnectedAccount(asked)).account
                return found.state == CONNECTED_ACCOUNT_STATE_ACTIVE and found.bank_payouts_enabled

            await until(f"{organization_id} can be paid", ready)

        await in_flight(_CALLS_IN_FLIGHT, owners, one)

    async def onboard_again(self, owners: Mapping[str, str]) -> bool:
        """Ask for every link again. Whether each leads to the same account."""
        again = {owner: await self._open_link(owner, key) for owner, key in owners.items()}
        return again == self._accounts

    async def pay(self) -> Paid:
        """Let the weekly schedule pay everybody, and three of them have their mishaps."""
        paid = Paid(payable=await self._payable())
        due = [owner for owner, micros in paid.payable.items() if micros > 0]
        paid.mishaps = mishaps = Mishaps.among(due)
        for owner in self._accounts:
            interval = PAYOUT_INTERVAL_MANUAL if owner == mishaps.failing else PAYOUT_INTERVAL_WEEKLY
            await self._set_schedule(owner, interval)
        # The customers' payments of today have settled by then, so that there is money to transfer.
        await self._run("clock set", at=payday_after(time.time()))
        await self._until_sent([owner for owner in due if owner != mishaps.failing])
        if mishaps.failing is not None:
            await self._fail(mishaps.failing, paid.payable[mishaps.failing])
        if mishaps.reversed is not None:
            await self._reverse(mishaps.reversed)
        await self._let_banks_pay(mishaps.bank_failing)
        paid.differences = await self._reconcile()
        paid.payouts = await self.list_payouts()
        paid.transferred = await self._transferred()
        return paid

    async def list_payouts(self) -> list[Payout]:
        """All payouts there are."""
        found: list[Payout] = []
        token = ""
        while True:
            page = await self._payouts.ListPayouts(ListPayoutsRequest(page_size=1000, page_token=token))
            found += page.payouts
            token = page.next_page_token
            if not token:
                return found

    async def _open_link(self, organization_id: str, owner_key: str) -> str:
        """The connected account that an owner's link leads to."""
        # A channel of its own: to nobody else does the service give a link.
        async with connect(self._address, owner_key) as channel:
            link = await ConnectServiceStub(channel).CreateOnboardingLink(
                CreateOnboardingLinkRequest(organization_id=organization_id)
            )
        return link.account.stripe_account_id

    async def _payable(self) -> dict[str, int]:
        """What each organization can be paid: whole cents, once nothing of it is on its way any more."""
        found = {}
        for owner in self._accounts:

            async def at_rest(owner: str = owner) -> bool:
                return (await self._books.earnings(owner)).pending.amount_micros == 0

            await until(f"all that {owner} earned is available", at_rest)
            available = (await self._books.earnings(owner)).available.amount_micros
            found[owner] = available - available % MICROS_PER_CENT
        return found

    async def _set_schedule(
        self, owner: str, interval: PayoutInterval.ValueType, time_zone: str = ""
    ) -> None:
        schedule = PayoutSchedule(organization_id=owner, interval=interval, time_zone=time_zone)
        await self._schedules.SetPayoutSchedule(SetPayoutScheduleRequest(schedule=schedule))

    async def _fail(self, owner: str, payable: int) -> None:
        """A transfer that Stripe refuses: what was taken for it returns to the earnings."""
        await self._run("faults add", kind="refused", operation="transfers.create", code="account_closed")
        # Where its Wednesday has not begun yet: alone, so that the refusal meets its transfer.
        await self._set_schedule(owner, PAYOUT_INTERVAL_WEEKLY, _FAR_WEST)
        await self._run("clock advance", seconds=_HALF_A_DAY)

        async def returned() -> bool:
            failed = [one.state for one in await self._payouts_of(owner)] == [PAYOUT_STATE_FAILED]
            return failed and (await self._books.earnings(owner)).available.amount_micros >= payable

        await until(f"the failed transfer to {owner} has returned", returned)

    async def _reverse(self, owner: str) -> None:
        """Half of a transfer that was made is taken back, as from Stripe's dashboard."""
        (payout,) = await self._payouts_of(owner)
        cents = payout.amount.amount_micros // MICROS_PER_CENT
        # The rest is on its way to the bank: the platform's reserves answer for the account.
        await self._run("account reserves", account=self._accounts[owner])
        await self._run("transfer reverse", transfer=payout.transfer_id, amount=-(-cents // 2))
        wanted = -(-cents // 2) * MICROS_PER_CENT

        async def known() -> bool:
            return (await self._payouts_of(owner))[0].reversed.amount_micros == wanted

        await until(f"the reversal of {owner}'s transfer is known", known)

    async def _let_banks_pay(self, failing: str | None) -> None:
        """All that was sent arrives; then one bank gives back what it had paid already."""
        await self._run("clock advance", seconds=_BANK_SECONDS)
        await self._until_bank_has(BANK_STATUS_PAID, list(self._accounts))
        if failing is not None:
            (payout,) = await self._payouts_of(failing)
            await self._run("payout fail", payout=payout.bank_payout_id, code="account_closed")
            await self._until_bank_has(BANK_STATUS_FAILED, [failing])

    async def _reconcile(self) -> int:
        """How many differences are left when the ledger has heard of everything; they go to stderr."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TIMEOUT_SECONDS
        # Up to now by Stripe's clock: without an end, what happened a moment ago is left out.
        everything = ReconcileRequest(end_time=Timestamp(seconds=(await self._run("clock get"))["now"]))
        while True:
            found = await self._reconciliation.Reconcile(everything)
            if found.difference_count == 0 or loop.time() > deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
        for difference in found.differences:
            print(f"{difference.stripe_id}: {difference.explanation}", file=sys.stderr)
        return found.difference_count

    async def _transferred(self) -> int:
        state = await self._run("state get")
        cents: int = sum(account[CURRENCY.lower()]["net"] for account in state["transfers"].values())
        return cents * MICROS_PER_CENT

    async def _until_sent(self, owners: Sequence[str]) -> None:
        """Wait until each has one payout, and its bank has been asked to take it."""

        async def sent() -> bool:
            states = [(one.organization_id, one.state, one.bank_status) for one in await self.list_payouts()]
            return sorted(states) == sorted(
                (owner, PAYOUT_STATE_COMPLETED, BANK_STATUS_PENDING) for owner in owners
            )

        await until("the weekly schedule has paid everybody", sent)

    async def _until_bank_has(self, status: BankStatus.ValueType, owners: Sequence[str]) -> None:
        async def ended() -> bool:
            return all(
                one.bank_status == status
                for one in await self.list_payouts()
                if one.organization_id in owners and one.state == PAYOUT_STATE_COMPLETED
            )

        await until(f"all banks have answered {BankStatus.Name(status)}", ended)

    async def _payouts_of(self, organization_id: str) -> list[Payout]:
        return [one for one in await self.list_payouts() if one.organization_id == organization_id]

    async def _run(self, words: str, **arguments: object) -> Json:
        """One command of the stand-in, which answers after it has told payouts what happened."""
        return await asyncio.to_thread(self._control.run, words, **arguments)


def payday_after(now: float) -> int:
    """When the first weekly run begins that pays what is earned at `now`: on the Wednesday after its week.

    All in seconds since 1970; weeks are those of UTC, as the ledger's days are.
    """
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monday = today + timedelta(days=7 - today.weekday())
    return int((monday + timedelta(days=_WEDNESDAY, minutes=1)).timestamp())


def paid_out(payout: Payout) -> int:
    """What of a payout is the organization's for good, in micros."""
    if payout.state != PAYOUT_STATE_COMPLETED:
        return 0
    return payout.amount.amount_micros - payout.reversed.amount_micros


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")
