"""EarningsService: what is paid out of organizations' earnings, over gRPC. One transaction per call."""

import hashlib
from datetime import date
from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.db import Database, retry_transaction
from services.kit.errors import FailedPrecondition, InvalidArgument, PreconditionViolation
from services.kit.money import check_amount, check_currency
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope, tenants_of
from services.kit.text import check_text
from services.kit.times import timestamp
from services.ledger.domain.payouts import PayableEarnings, PayoutDebit, PayoutDebitState
from services.ledger.rpc.convert import earnings_balance_to_proto
from services.ledger.store import balances, organizations, payouts
from tallystick.common.v1 import error_reason_pb2, money_pb2
from tallystick.ledger.v1 import account_pb2, earnings_service_pb2_grpc, payout_debit_pb2
from tallystick.ledger.v1 import earnings_service_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_REVERSAL_ID_LENGTH: Final = 128
_MAX_REASON_LENGTH: Final = 500
_STATE_TO_PROTO: Final = {
    state: payout_debit_pb2.PayoutDebitState.Value(f"PAYOUT_DEBIT_STATE_{state.name}")
    for state in PayoutDebitState
}
_STATE_FROM_PROTO: Final[dict[int, PayoutDebitState]] = {
    number: state for state, number in _STATE_TO_PROTO.items()
}


class EarningsService(earnings_service_pb2_grpc.EarningsServiceServicer):
    """The debits of payouts, and their ends. All of it is idempotent, so lost connections are retried."""

    def __init__(self, writer: Database, reader: Database) -> None:
        self._writer = writer
        self._reader = reader

    async def DebitPayout(self, request: pb.DebitPayoutRequest, context: Context) -> pb.DebitPayoutResponse:
        organization_id, payout_id = _payout(request.organization_id, request.payout_id)
        currency = check_currency(request.amount.currency_code, field="amount.currency_code")
        amount = _positive(request.amount.amount_micros)
        actor = current_principal().api_key_id

        async def debit() -> payouts.Answered:
            async with self._writer.call() as connection:
                return await payouts.debit_payout(
                    connection,
                    organization_id=organization_id,
                    payout_id=payout_id,
                    currency_code=currency,
                    amount=amount,
                    actor_api_key_id=actor,
                )

        answered = await retry_transaction(debit, idempotent=True)
        if answered.debit.state is PayoutDebitState.REFUSED:
            raise _refused(answered.debit)
        return pb.DebitPayoutResponse(
            debit=debit_to_proto(answered.debit),
            balance=await self._balance(organization_id, currency),
            duplicate=answered.duplicate,
        )

    async def CompletePayout(
        self, request: pb.CompletePayoutRequest, context: Context
    ) -> pb.CompletePayoutResponse:
        organization_id, payout_id = _payout(request.organization_id, request.payout_id)
        actor = current_principal().api_key_id

        async def complete() -> PayoutDebit:
            async with self._writer.call() as connection:
                return await payouts.complete_payout(connection, organization_id, payout_id, actor)

        return pb.CompletePayoutResponse(
            debit=debit_to_proto(await retry_transaction(complete, idempotent=True))
        )

    async def ReturnPayout(
        self, request: pb.ReturnPayoutRequest, context: Context
    ) -> pb.ReturnPayoutResponse:
        organization_id, payout_id = _payout(request.organization_id, request.payout_id)
        reason = check_text(request.reason, "reason", shortest=0, longest=_MAX_REASON_LENGTH)
        actor = current_principal().api_key_id

        async def put_back() -> PayoutDebit:
            async with self._writer.call() as connection:
                return await payouts.return_payout(connection, organization_id, payout_id, reason, actor)

        debit = await retry_transaction(put_back, idempotent=True)
        return pb.ReturnPayoutResponse(
            debit=debit_to_proto(debit), balance=await self._balance(organization_id, debit.currency_code)
        )

    async def ReversePayout(
        self, request: pb.ReversePayoutRequest, context: Context
    ) -> pb.ReversePayoutResponse:
        organization_id, payout_id = _payout(request.organization_id, request.payout_id)
        reversal_id = check_text(
            request.reversal_id, "reversal_id", shortest=1, longest=_MAX_REVERSAL_ID_LENGTH
        )
        reason = check_text(request.reason, "reason", shortest=0, longest=_MAX_REASON_LENGTH)
        amount = _positive(request.amount.amount_micros)
        known = await self._debit(organization_id, payout_id)
        if request.amount.currency_code != known.currency_code:
            raise InvalidArgument.of("amount.currency_code", f"must be the payout's, {known.currency_code}")
        actor = current_principal().api_key_id
        content = f"{known.currency_code}:{amount}".encode()

        async def reverse() -> payouts.Answered:
            async with self._writer.call() as connection:
                return await payouts.reverse_payout(
                    connection,
                    organization_id=organization_id,
                    payout_id=payout_id,
                    reversal_id=reversal_id,
                    currency_code=known.currency_code,
                    amount=amount,
                    reason=reason,
                    actor_api_key_id=actor,
                    request_hash=hashlib.sha256(content).digest(),
                )

        answered = await retry_transaction(reverse, idempotent=True)
        return pb.ReversePayoutResponse(
            debit=debit_to_proto(answered.debit),
            balance=await self._balance(organization_id, known.currency_code),
            duplicate=answered.duplicate,
        )

    async def GetPayoutDebit(
        self, request: pb.GetPayoutDebitRequest, context: Context
    ) -> pb.GetPayoutDebitResponse:
        organization_id, payout_id = _payout(request.organization_id, request.payout_id)
        debit = await self._debit(organization_id, payout_id)
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            freeze = (await organizations.get_organization(connection, organization_id)).payouts_freeze
        return pb.GetPayoutDebitResponse(
            debit=debit_to_proto(debit),
            balance=await self._balance(organization_id, debit.currency_code),
            payouts_frozen=freeze is not None,
            payouts_freeze_reason="" if freeze is None else freeze.reason,
        )

    async def ListPayableEarnings(
        self, request: pb.ListPayableEarningsRequest, context: Context
    ) -> pb.ListPayableEarningsResponse:
        organization_id = ids.check_id(request.organization_id, ids.ORGANIZATION, field="organization_id")
        earned_before = _date(request.earned_before, "earned_before") if request.earned_before else None
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str,),
            filter={"organization_id": organization_id, "earned_before": request.earned_before},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await balances.check_owner(connection, organization_id)
            found = await payouts.list_payable_earnings(connection, organization_id, earned_before, page)
        shown, next_page_token = page.cut(found, lambda one: (one.currency_code,))
        return pb.ListPayableEarningsResponse(
            earnings=[_payable_to_proto(one) for one in shown], next_page_token=next_page_token
        )

    async def ListPayoutDebits(
        self, request: pb.ListPayoutDebitsRequest, context: Context
    ) -> pb.ListPayoutDebitsResponse:
        organization_id = (
            ids.check_id(request.organization_id, ids.ORGANIZATION, field="organization_id")
            if request.organization_id
            else ""
        )
        if request.state and request.state not in _STATE_FROM_PROTO:
            raise InvalidArgument.of("state", "must be a known state")
        state = _STATE_FROM_PROTO.get(request.state)
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str),
            filter={"organization_id": organization_id, "state": state},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await payouts.list_payout_debits(connection, organization_id, state, page)
        shown, next_page_token = page.cut(found, lambda one: (one.organization_id, one.payout_id))
        return pb.ListPayoutDebitsResponse(
            debits=[debit_to_proto(debit) for debit in shown], next_page_token=next_page_token
        )

    async def _debit(self, organization_id: str, payout_id: str) -> PayoutDebit:
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            return await payouts.get_payout_debit(connection, organization_id, payout_id)

    async def _balance(self, organization_id: str, currency_code: str) -> account_pb2.EarningsBalance:
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            balance = await balances.earnings_balance(connection, organization_id, currency_code)
        return earnings_balance_to_proto(balance)


def debit_to_proto(debit: PayoutDebit) -> payout_debit_pb2.PayoutDebit:
    """A debit as it travels."""

    def money(amount: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=debit.currency_code, amount_micros=amount)

    return payout_debit_pb2.PayoutDebit(
        payout_id=debit.payout_id,
        organization_id=debit.organization_id,
        amount=money(debit.amount),
        state=_STATE_TO_PROTO[debit.state],
        reversed=money(debit.reversed),
        transaction_id=debit.transaction_id,
        end_transaction_id=debit.end_transaction_id,
        create_time=timestamp(debit.create_time),
        end_time=None if debit.end_time is None else timestamp(debit.end_time),
        refuse_reason=_refuse_reason(debit),
    )


def _payable_to_proto(earnings: PayableEarnings) -> pb.PayableEarnings:
    def money(amount: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=earnings.currency_code, amount_micros=amount)

    return pb.PayableEarnings(payable=money(earnings.payable), available=money(earnings.available))


def _date(text: str, field: str) -> date:
    """A date as the contract spells it; raises InvalidArgument naming the field."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    # Python reads other forms of ISO 8601 too.
    if day is None or day.isoformat() != text:
        raise InvalidArgument.of(field, 'must be a date, "YYYY-MM-DD"')
    return day


def _payout(organization_id: str, payout_id: str) -> tuple[str, str]:
    return (
        ids.check_id(organization_id, ids.ORGANIZATION, field="organization_id"),
        ids.check_id(payout_id, ids.PAYOUT, field="payout_id"),
    )


def _positive(amount: int) -> int:
    amount = check_amount(amount, field="amount.amount_micros")
    if amount == 0:
        raise InvalidArgument.of("amount.amount_micros", "must be above zero")
    return amount


def _refuse_reason(debit: PayoutDebit) -> error_reason_pb2.ErrorReason.ValueType:
    if debit.state is not PayoutDebitState.REFUSED:
        return error_reason_pb2.ERROR_REASON_UNSPECIFIED
    if debit.freeze_reason is not None:
        return error_reason_pb2.ERROR_REASON_PAYOUTS_FROZEN
    return error_reason_pb2.ERROR_REASON_INSUFFICIENT_EARNINGS


def _refused(debit: PayoutDebit) -> FailedPrecondition:
    """The error for a debit that was refused, now or before."""
    if debit.freeze_reason is not None:
        return FailedPrecondition(
            "the organization's payouts are frozen",
            reason="PAYOUTS_FROZEN",
            metadata={
                "organization_id": debit.organization_id,
                "payout_id": debit.payout_id,
                "freeze_reason": debit.freeze_reason,
            },
        )
    return FailedPrecondition(
        "the available earnings do not cover the payout",
        reason="INSUFFICIENT_EARNINGS",
        metadata={
            "organization_id": debit.organization_id,
            "payout_id": debit.payout_id,
            "currency_code": debit.currency_code,
            "available_micros": str(debit.available),
            "requested_micros": str(debit.amount),
        },
        precondition_violations=[
            PreconditionViolation(
                "BALANCE",
                f"{debit.organization_id}/organization_payable/{debit.currency_code}",
                f"{debit.available} micros were available, {debit.amount} were asked for",
            )
        ],
    )
