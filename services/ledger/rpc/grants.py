"""GrantCredits: credits that are bought, or given away by the platform or an organization."""

from typing import Final

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.db import retry_transaction
from services.kit.errors import InvalidArgument
from services.kit.money import check_amount, check_currency
from services.kit.tenancy import PLATFORM
from services.kit.text import check_text
from services.kit.times import optional_time_from_proto
from services.ledger.domain.accounts import PLATFORM_OWNER, TransactionType
from services.ledger.domain.lots import DEFAULT_PRIORITY, MAX_PRIORITY, GrantTerms
from services.ledger.rpc.credits_convert import customer_balance_to_proto
from services.ledger.rpc.ledger_base import Context, LedgerBase, content_hash
from services.ledger.store import movements
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb

_MAX_REASON_LENGTH: Final = 500
_MAX_KEY_LENGTH: Final = 128
_TYPES: Final = {
    pb.CREDIT_SOURCE_PURCHASE: TransactionType.PURCHASE,
    pb.CREDIT_SOURCE_PLATFORM_PROMOTION: TransactionType.PROMOTION,
    pb.CREDIT_SOURCE_ORGANIZATION_PROMOTION: TransactionType.PROMOTION,
}


class GrantRpcs(LedgerBase):
    """The grants of LedgerService."""

    async def GrantCredits(
        self, request: pb.GrantCreditsRequest, context: Context
    ) -> pb.GrantCreditsResponse:
        actor = current_principal().api_key_id
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        currency = check_currency(request.amount.currency_code, field="amount.currency_code")
        amount = check_amount(request.amount.amount_micros, field="amount.amount_micros")
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY_LENGTH)
        reason = check_text(request.reason, "reason", shortest=0, longest=_MAX_REASON_LENGTH)
        terms = _terms(request)

        async def grant() -> tuple[movements.Posted, movements.Collected]:
            async with self._writer.hot() as connection:
                posted = await movements.grant_credits(
                    connection,
                    customer_id=customer_id,
                    currency_code=currency,
                    amount=amount,
                    terms=terms,
                    reason=reason,
                    actor_api_key_id=actor,
                    key=key,
                    # Fields that are not set leave no trace in it: a request from before there were terms
                    # is the same one today.
                    request_hash=content_hash(request),
                )
                if posted.duplicate:
                    return posted, movements.Collected(0, False)
                # In the same transaction: no charge comes between the money and the oldest debts.
                return posted, await movements.collect(
                    connection, customer_id, currency, movements.COLLECT_LIMIT, actor
                )

        posted, collected = await retry_transaction(grant, idempotent=True)
        total = await self._collect_rest(customer_id, currency, actor, collected)
        return pb.GrantCreditsResponse(
            transaction_id=posted.transaction_id,
            collected=money_pb2.Money(currency_code=currency, amount_micros=total),
            balance=customer_balance_to_proto(await self._customer_balance(PLATFORM, customer_id, currency)),
        )


def _terms(request: pb.GrantCreditsRequest) -> GrantTerms:
    if request.source not in _TYPES:
        raise InvalidArgument.of("source", "must be a known source")
    funder_id = PLATFORM_OWNER
    if request.source == pb.CREDIT_SOURCE_ORGANIZATION_PROMOTION:
        funder_id = ids.check_id(
            request.funder_organization_id, ids.ORGANIZATION, field="funder_organization_id"
        )
    elif request.funder_organization_id:
        raise InvalidArgument.of("funder_organization_id", "is for an organization's promotion only")
    priority = request.priority if request.HasField("priority") else DEFAULT_PRIORITY
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidArgument.of("priority", f"must be from 0 to {MAX_PRIORITY}")
    return GrantTerms(
        type=_TYPES[request.source],
        funder_id=funder_id,
        priority=priority,
        # That it is in the future is asked only of a request that comes for the first time.
        expire_time=optional_time_from_proto(request, "expire_time"),
    )
