"""The ledger, as payouts uses it. What it refuses raises TallystickError, and so does its absence."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import date, datetime
from typing import Final, TypeVar

import grpc

from services.kit.errors import Code, TallystickError
from services.kit.money import Money
from services.kit.status import from_rpc_error
from services.kit.times import optional_timestamp
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import (
    account_pb2,
    directory_pb2,
    directory_service_pb2,
    directory_service_pb2_grpc,
    earnings_service_pb2,
    earnings_service_pb2_grpc,
    funding_service_pb2,
    funding_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    payout_debit_pb2,
    purchase_reversal_pb2,
)

T = TypeVar("T")

_TIMEOUT_SECONDS: Final = 10.0
# The ledger judged the request, and would judge it so again.
_FINAL: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
    }
)


def is_final(error: TallystickError) -> bool:
    """Whether the ledger would answer the same again; otherwise the call may be repeated."""
    return error.code in _FINAL


class Ledger:
    """Calls of the ledger's services. All of them may be repeated. Each may raise TallystickError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._earnings = earnings_service_pb2_grpc.EarningsServiceStub(channel)
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        self._funding = funding_service_pb2_grpc.FundingServiceStub(channel)
        self._directory = directory_service_pb2_grpc.DirectoryServiceStub(channel)
        self._funding = funding_service_pb2_grpc.FundingServiceStub(channel)

    async def debit_payout(self, organization_id: str, payout_id: str, amount: Money) -> None:
        """Take a payout from the available earnings. FailedPrecondition if they do not cover it."""
        await _answer(
            self._earnings.DebitPayout(
                earnings_service_pb2.DebitPayoutRequest(
                    organization_id=organization_id, payout_id=payout_id, amount=to_proto(amount)
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def complete_payout(self, organization_id: str, payout_id: str) -> None:
        """The money of a payout left the platform."""
        await _answer(
            self._earnings.CompletePayout(
                earnings_service_pb2.CompletePayoutRequest(
                    organization_id=organization_id, payout_id=payout_id
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def return_payout(self, organization_id: str, payout_id: str, reason: str) -> None:
        """The money of a payout did not leave: it is earnings again."""
        await _answer(
            self._earnings.ReturnPayout(
                earnings_service_pb2.ReturnPayoutRequest(
                    organization_id=organization_id, payout_id=payout_id, reason=reason
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def reverse_payout(
        self, organization_id: str, payout_id: str, reversal_id: str, amount: Money
    ) -> None:
        """A part of a completed payout came back."""
        await _answer(
            self._earnings.ReversePayout(
                earnings_service_pb2.ReversePayoutRequest(
                    organization_id=organization_id,
                    payout_id=payout_id,
                    reversal_id=reversal_id,
                    amount=to_proto(amount),
                    reason="transfer reversed",
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def get_payout_debit(
        self, organization_id: str, payout_id: str
    ) -> earnings_service_pb2.GetPayoutDebitResponse:
        """A debit as it stands, with the earnings of its organization."""
        return await _answer(
            self._earnings.GetPayoutDebit(
                earnings_service_pb2.GetPayoutDebitRequest(
                    organization_id=organization_id, payout_id=payout_id
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def get_earnings(self, organization_id: str, currency_code: str) -> account_pb2.EarningsBalance:
        """What an organization has earned and not been paid."""
        response = await _answer(
            self._ledger.GetEarningsBalance(
                ledger_service_pb2.GetEarningsBalanceRequest(
                    organization_id=organization_id, currency_code=currency_code
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )
        return response.balance

    async def list_payable(
        self, organization_id: str, earned_before: date
    ) -> list[earnings_service_pb2.PayableEarnings]:
        """What was earned before a day and could be paid now, by currency."""
        request = earnings_service_pb2.ListPayableEarningsRequest(
            organization_id=organization_id, earned_before=earned_before.isoformat()
        )
        found: list[earnings_service_pb2.PayableEarnings] = []
        while True:
            page = await _answer(self._earnings.ListPayableEarnings(request, timeout=_TIMEOUT_SECONDS))
            found += page.earnings
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def clearing_pages(
        self, since: datetime | None
    ) -> AsyncIterator[Sequence[funding_service_pb2.ClearingMovement]]:
        """What moved the platform's money at the processor since a moment, the oldest first."""
        request = funding_service_pb2.ListClearingMovementsRequest(
            page_size=1000, create_time_from=optional_timestamp(since)
        )
        while True:
            page = await _answer(self._funding.ListClearingMovements(request, timeout=_TIMEOUT_SECONDS))
            yield page.movements
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_organization(self, organization_id: str) -> directory_pb2.Organization:
        """An organization; NotFound if there is none."""
        response = await _answer(
            self._directory.GetOrganization(
                directory_service_pb2.GetOrganizationRequest(organization_id=organization_id),
                timeout=_TIMEOUT_SECONDS,
            )
        )
        return response.organization

    async def get_customer_balance(self, customer_id: str, currency_code: str) -> account_pb2.CustomerBalance:
        """What a customer has and owes; NotFound if there is no such customer."""
        response = await _answer(
            self._ledger.GetCustomerBalance(
                ledger_service_pb2.GetCustomerBalanceRequest(
                    customer_id=customer_id, currency_code=currency_code
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )
        return response.balance

    async def grant_purchase(self, customer_id: str, purchase_id: str, amount: Money) -> str:
        """A customer has paid for credits, once per purchase; the transaction that granted them."""
        response = await _answer(
            self._ledger.GrantCredits(
                ledger_service_pb2.GrantCreditsRequest(
                    customer_id=customer_id,
                    amount=to_proto(amount),
                    source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                    reason="purchase",
                    idempotency_key=purchase_id,
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )
        return response.transaction_id

    async def reverse_purchase(
        self,
        customer_id: str,
        purchase_id: str,
        reversal_id: str,
        amount: Money,
        *,
        is_dispute: bool,
        reason: str,
    ) -> None:
        """Money of a purchase went back, once per reversal."""
        await _answer(
            self._funding.ReversePurchase(
                funding_service_pb2.ReversePurchaseRequest(
                    customer_id=customer_id,
                    purchase_key=purchase_id,
                    reversal_id=reversal_id,
                    amount=to_proto(amount),
                    kind=(
                        purchase_reversal_pb2.PURCHASE_REVERSAL_KIND_CHARGEBACK
                        if is_dispute
                        else purchase_reversal_pb2.PURCHASE_REVERSAL_KIND_REFUND
                    ),
                    reason=reason,
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def reinstate_purchase(
        self, customer_id: str, reversal_id: str, reinstatement_id: str, amount: Money, *, reason: str
    ) -> None:
        """Money that went back came again, once per reversal."""
        await _answer(
            self._funding.ReinstatePurchase(
                funding_service_pb2.ReinstatePurchaseRequest(
                    customer_id=customer_id,
                    reversal_id=reversal_id,
                    reinstatement_id=reinstatement_id,
                    amount=to_proto(amount),
                    reason=reason,
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def record_processor_fee(self, fee_id: str, amount: Money, reason: str) -> None:
        """The payment processor took a fee, or gave one back (negative), once per fee id."""
        await _answer(
            self._funding.RecordProcessorFee(
                funding_service_pb2.RecordProcessorFeeRequest(
                    fee_id=fee_id, amount=to_proto(amount), reason=reason
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )


def is_in_transit(debit: payout_debit_pb2.PayoutDebit) -> bool:
    """Whether the money of a debit is taken, and its end not known."""
    return debit.state == payout_debit_pb2.PAYOUT_DEBIT_STATE_IN_TRANSIT


def to_proto(money: Money) -> money_pb2.Money:
    """An amount as it travels."""
    return money_pb2.Money(currency_code=money.currency_code, amount_micros=money.amount_micros)


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
