"""FundingService: money at the processor that moves by itself, over gRPC. One transaction per call.

What is given up is in write_offs.py.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.db import retry_transaction
from services.kit.errors import InvalidArgument
from services.kit.money import check_amount, check_currency
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope, tenants_of
from services.kit.text import check_text
from services.kit.times import optional_time_from_proto, time_from_page_key, timestamp
from services.ledger.domain.funding import ClearingMovement, PurchaseReversal, ReversalKind
from services.ledger.rpc.convert import type_to_proto
from services.ledger.rpc.credits_convert import customer_balance_to_proto
from services.ledger.rpc.write_offs import WriteOffRpcs
from services.ledger.store import balances, funding, movements
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, funding_service_pb2_grpc, purchase_reversal_pb2
from tallystick.ledger.v1 import funding_service_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_ID_LENGTH: Final = 128
_MAX_REASON_LENGTH: Final = 500
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
_KIND_TO_PROTO: Final = {
    kind: purchase_reversal_pb2.PurchaseReversalKind.Value(f"PURCHASE_REVERSAL_KIND_{kind.name}")
    for kind in ReversalKind
}
_KIND_FROM_PROTO: Final[dict[int, ReversalKind]] = {number: kind for kind, number in _KIND_TO_PROTO.items()}


class FundingService(WriteOffRpcs, funding_service_pb2_grpc.FundingServiceServicer):
    """Reversals, reinstatements and fees. All of it is idempotent, so lost connections are retried."""

    async def ReversePurchase(
        self, request: pb.ReversePurchaseRequest, context: Context
    ) -> pb.ReversePurchaseResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        purchase_key = _external_id(request.purchase_key, "purchase_key")
        reversal_id = _external_id(request.reversal_id, "reversal_id")
        amount = _positive(request.amount.amount_micros)
        reason = _reason(request.reason)
        kind = _KIND_FROM_PROTO.get(request.kind)
        if kind is None:
            raise InvalidArgument.of("kind", "must be a known kind")
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            await balances.check_owner(connection, customer_id)
            purchase = await funding.get_purchase(connection, customer_id, purchase_key)
        if request.amount.currency_code != purchase.currency_code:
            raise InvalidArgument.of(
                "amount.currency_code", f"must be the purchase's, {purchase.currency_code}"
            )
        actor = current_principal().api_key_id

        async def reverse() -> funding.Answered:
            async with self._writer.call() as connection:
                return await funding.reverse_purchase(
                    connection,
                    purchase=purchase,
                    reversal_id=reversal_id,
                    kind=kind,
                    amount=amount,
                    reason=reason,
                    actor_api_key_id=actor,
                    request_hash=_content_hash(purchase_key, kind, purchase.currency_code, amount),
                )

        answered = await retry_transaction(reverse, idempotent=True)
        return pb.ReversePurchaseResponse(
            reversal=_reversal_to_proto(answered.reversal),
            balance=await self._balance(answered.reversal),
            duplicate=answered.duplicate,
        )

    async def ReinstatePurchase(
        self, request: pb.ReinstatePurchaseRequest, context: Context
    ) -> pb.ReinstatePurchaseResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        reversal_id = _external_id(request.reversal_id, "reversal_id")
        reinstatement_id = _external_id(request.reinstatement_id, "reinstatement_id")
        reason = _reason(request.reason)
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            await balances.check_owner(connection, customer_id)
            known = await funding.get_reversal(connection, customer_id, reversal_id)
        amount = _part_of(known, request.amount) if request.HasField("amount") else known.amount
        actor = current_principal().api_key_id

        async def reinstate() -> funding.Answered:
            async with self._writer.hot() as connection:
                answered = await funding.reinstate_purchase(
                    connection,
                    customer_id=customer_id,
                    reversal_id=reversal_id,
                    reinstatement_id=reinstatement_id,
                    amount=amount,
                    reason=reason,
                    actor_api_key_id=actor,
                    request_hash=_content_hash(reversal_id, amount),
                )
                if not answered.duplicate:
                    # What the customer owes comes first, as with a grant; the worker collects the rest.
                    await movements.collect(
                        connection, customer_id, known.currency_code, movements.COLLECT_LIMIT, actor
                    )
                return answered

        answered = await retry_transaction(reinstate, idempotent=True)
        return pb.ReinstatePurchaseResponse(
            reversal=_reversal_to_proto(answered.reversal),
            balance=await self._balance(answered.reversal),
            duplicate=answered.duplicate,
        )

    async def RecordProcessorFee(
        self, request: pb.RecordProcessorFeeRequest, context: Context
    ) -> pb.RecordProcessorFeeResponse:
        fee_id = _external_id(request.fee_id, "fee_id")
        currency = check_currency(request.amount.currency_code, field="amount.currency_code")
        amount = request.amount.amount_micros
        # Signed: what is given back is as large as what is taken.
        check_amount(abs(amount), field="amount.amount_micros")
        reason = _reason(request.reason)
        actor = current_principal().api_key_id

        async def record() -> movements.Posted:
            async with self._writer.call() as connection:
                return await funding.record_processor_fee(
                    connection,
                    fee_id=fee_id,
                    currency_code=currency,
                    amount=amount,
                    reason=reason,
                    actor_api_key_id=actor,
                    request_hash=_content_hash(currency, amount),
                )

        posted = await retry_transaction(record, idempotent=True)
        return pb.RecordProcessorFeeResponse(transaction_id=posted.transaction_id, duplicate=posted.duplicate)

    async def ListClearingMovements(
        self, request: pb.ListClearingMovementsRequest, context: Context
    ) -> pb.ListClearingMovementsResponse:
        earliest = optional_time_from_proto(request, "create_time_from") or _BEGINNING
        until = optional_time_from_proto(request, "create_time_until") or _END
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str, int),
            filter={"create_time_from": earliest.isoformat(), "create_time_until": until.isoformat()},
        )
        after = None
        if page.after is not None:
            time, transaction_id, entry_number = page.after
            after = (time_from_page_key(time), str(transaction_id), int(entry_number))
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await funding.list_clearing_movements(connection, earliest, until, after, page)
        shown, next_page_token = page.cut(
            found, lambda one: (one.create_time.isoformat(), one.transaction_id, one.entry_number)
        )
        return pb.ListClearingMovementsResponse(
            movements=[_movement_to_proto(movement) for movement in shown], next_page_token=next_page_token
        )

    async def _balance(self, reversal: PurchaseReversal) -> account_pb2.CustomerBalance:
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            balance = await balances.customer_balance(
                connection, reversal.customer_id, reversal.currency_code
            )
        return customer_balance_to_proto(balance)


def _reversal_to_proto(reversal: PurchaseReversal) -> purchase_reversal_pb2.PurchaseReversal:
    def money(amount: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=reversal.currency_code, amount_micros=amount)

    return purchase_reversal_pb2.PurchaseReversal(
        reversal_id=reversal.reversal_id,
        customer_id=reversal.customer_id,
        purchase_key=reversal.purchase_key,
        kind=_KIND_TO_PROTO[reversal.kind],
        amount=money(reversal.amount),
        from_credits=money(reversal.from_credits),
        from_expired=money(reversal.from_expired),
        transaction_id=reversal.transaction_id,
        create_time=timestamp(reversal.create_time),
        reinstatement_id=reversal.reinstatement_id,
        reinstated=money(reversal.reinstated),
        reinstatement_transaction_id=reversal.reinstatement_transaction_id,
    )


def _movement_to_proto(movement: ClearingMovement) -> pb.ClearingMovement:
    return pb.ClearingMovement(
        transaction_id=movement.transaction_id,
        type=type_to_proto(movement.type),
        owner_id=movement.owner_id,
        external_id=movement.external_id,
        payout_id=movement.payout_id,
        amount=money_pb2.Money(currency_code=movement.currency_code, amount_micros=movement.amount),
        create_time=timestamp(movement.create_time),
    )


def _external_id(value: str, field: str) -> str:
    return check_text(value, field, shortest=1, longest=_MAX_ID_LENGTH)


def _reason(reason: str) -> str:
    return check_text(reason, "reason", shortest=0, longest=_MAX_REASON_LENGTH)


def _positive(amount: int) -> int:
    return check_amount(amount, field="amount.amount_micros")


def _part_of(reversal: PurchaseReversal, amount: money_pb2.Money) -> int:
    if amount.currency_code != reversal.currency_code:
        raise InvalidArgument.of("amount.currency_code", f"must be the reversal's, {reversal.currency_code}")
    if _positive(amount.amount_micros) > reversal.amount:
        raise InvalidArgument.of("amount.amount_micros", f"must be at most {reversal.amount}, the reversal's")
    return amount.amount_micros


def _content_hash(*parts: str | int) -> bytes:
    """What must be equal for a request with the same id to be the same one. No part has a NUL in it."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
