"""The RPCs of LedgerService about adjustments: one operator proposes, another approves."""

from collections.abc import Sequence
from typing import Final

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.db import retry_transaction
from services.kit.errors import FailedPrecondition, InvalidArgument
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope
from services.kit.text import check_text
from services.kit.times import optional_timestamp, timestamp
from services.ledger.domain import adjustments as rules
from services.ledger.domain.accounts import PLATFORM_OWNER, AccountRef
from services.ledger.domain.adjustments import Adjustment, AdjustmentState
from services.ledger.rpc import convert
from services.ledger.rpc.ledger_base import Context, LedgerBase, check_owner, content_hash
from services.ledger.store import adjustments, balances, credits
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb

_MAX_REASON_LENGTH: Final = 500
_MAX_KEY_LENGTH: Final = 128
_STATE_TO_PROTO: Final = {
    state: pb.AdjustmentState.Value(f"ADJUSTMENT_STATE_{state.name}") for state in AdjustmentState
}
_STATE_FROM_PROTO: Final[dict[int, AdjustmentState]] = {
    number: state for state, number in _STATE_TO_PROTO.items()
}

_Postings = Sequence[tuple[AccountRef, int]]


class AdjustmentRpcs(LedgerBase):
    """Proposing, approving, rejecting and listing adjustments."""

    _adjustments_need_approval: bool

    async def AdjustBalances(
        self, request: pb.AdjustBalancesRequest, context: Context
    ) -> pb.AdjustBalancesResponse:
        principal = current_principal()
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY_LENGTH)
        reason = check_text(
            request.reason, "reason", shortest=rules.MIN_REASON_LENGTH, longest=_MAX_REASON_LENGTH
        )
        postings = _postings(request)
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            for owner_id in sorted({account.owner_id for account, _ in postings} - {PLATFORM_OWNER}):
                await balances.check_owner(connection, owner_id)

        async def propose() -> adjustments.Proposed:
            async with self._writer.hot() as connection:
                proposed = await adjustments.propose(
                    connection,
                    postings=postings,
                    reason=reason,
                    actor_api_key_id=principal.api_key_id,
                    key=key,
                    request_hash=content_hash(request),
                    lasts=rules.PROPOSAL_LASTS,
                    needs_approval=self._adjustments_need_approval,
                )
                if proposed.transaction_id and not proposed.duplicate:
                    await adjustments.collect_credited(connection, postings, principal.api_key_id)
                return proposed

        try:
            proposed = await retry_transaction(propose, idempotent=True)
        except FailedPrecondition as refused:
            await self._recall(refused)
            raise
        response = pb.AdjustBalancesResponse()
        if proposed.transaction_id:
            response.transaction.CopyFrom(await self._transaction(proposed.transaction_id, principal))
        if proposed.adjustment_id:
            response.adjustment.CopyFrom(_to_proto(await self._adjustment(proposed.adjustment_id)))
        return response

    async def ApproveAdjustment(
        self, request: pb.ApproveAdjustmentRequest, context: Context
    ) -> pb.ApproveAdjustmentResponse:
        principal = current_principal()
        adjustment_id = ids.check_id(request.adjustment_id, ids.ADJUSTMENT, field="adjustment_id")
        # What it moves never changes.
        postings = (await self._adjustment(adjustment_id)).postings

        async def approve() -> adjustments.Approved:
            async with self._writer.hot() as connection:
                approved = await adjustments.approve(connection, adjustment_id, principal.api_key_id)
                if approved.posted_now:
                    await adjustments.collect_credited(connection, postings, principal.api_key_id)
                return approved

        try:
            approved = await retry_transaction(approve, idempotent=True)
        except FailedPrecondition as refused:
            await self._recall(refused)
            raise
        return pb.ApproveAdjustmentResponse(
            adjustment=_to_proto(await self._adjustment(adjustment_id)),
            transaction=await self._transaction(approved.transaction_id, principal),
            duplicate=not approved.posted_now,
        )

    async def RejectAdjustment(
        self, request: pb.RejectAdjustmentRequest, context: Context
    ) -> pb.RejectAdjustmentResponse:
        actor = current_principal().api_key_id
        adjustment_id = ids.check_id(request.adjustment_id, ids.ADJUSTMENT, field="adjustment_id")
        reason = check_text(request.reason, "reason", shortest=1, longest=_MAX_REASON_LENGTH)

        async def reject() -> None:
            async with self._writer.hot() as connection:
                await adjustments.reject(connection, adjustment_id, actor, reason)

        await retry_transaction(reject, idempotent=True)
        return pb.RejectAdjustmentResponse(adjustment=_to_proto(await self._adjustment(adjustment_id)))

    async def ListAdjustments(
        self, request: pb.ListAdjustmentsRequest, context: Context
    ) -> pb.ListAdjustmentsResponse:
        if request.state and request.state not in _STATE_FROM_PROTO:
            raise InvalidArgument.of("state", "must be a known state")
        state = _STATE_FROM_PROTO.get(request.state)
        page = Page.parse(request.page_size, request.page_token, key_types=(str,), filter={"state": state})
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            found = await adjustments.list_adjustments(connection, state, page)
        shown, next_page_token = page.cut(found, lambda one: (one.adjustment_id,))
        return pb.ListAdjustmentsResponse(
            adjustments=[_to_proto(one) for one in shown], next_page_token=next_page_token
        )

    async def _adjustment(self, adjustment_id: str) -> Adjustment:
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            return await adjustments.get_adjustment(connection, adjustment_id)

    async def _recall(self, refused: FailedPrecondition) -> None:
        """Ask for what a lease keeps, if that is what was missing.

        In a transaction of its own, since that of the refusal is undone.
        """
        if "recall" not in refused.metadata:
            return

        async def recall() -> None:
            async with self._writer.hot() as connection:
                await credits.recall_lease(
                    connection, refused.metadata["owner_id"], refused.metadata["currency_code"]
                )

        await retry_transaction(recall, idempotent=True)


def _postings(request: pb.AdjustBalancesRequest) -> _Postings:
    """What a request moves; raises InvalidArgument with what is wrong with it."""
    if not 2 <= len(request.postings) <= rules.MAX_POSTINGS:
        raise InvalidArgument.of("postings", f"must be two to {rules.MAX_POSTINGS}")
    postings = [
        (
            AccountRef(
                check_owner(posting.account.owner_id, f"postings[{number}].account.owner_id"),
                convert.kind_from_proto(posting.account.kind, f"postings[{number}].account.kind"),
                posting.account.currency_code,
            ),
            posting.amount.amount_micros,
        )
        for number, posting in enumerate(request.postings)
    ]
    for number, posting in enumerate(request.postings):
        if posting.amount.currency_code != posting.account.currency_code:
            raise InvalidArgument.of(
                f"postings[{number}].amount.currency_code", "must be the account's currency"
            )
    rules.check(postings)
    return postings


def _to_proto(adjustment: Adjustment) -> pb.Adjustment:
    return pb.Adjustment(
        adjustment_id=adjustment.adjustment_id,
        state=_STATE_TO_PROTO[adjustment.state],
        postings=[
            pb.Posting(
                account=convert.account_ref_to_proto(account),
                amount=money_pb2.Money(currency_code=account.currency_code, amount_micros=amount),
            )
            for account, amount in adjustment.postings
        ],
        reason=adjustment.reason,
        proposer_api_key_id=adjustment.proposer_api_key_id,
        create_time=timestamp(adjustment.create_time),
        expire_time=timestamp(adjustment.expire_time),
        decider_api_key_id=adjustment.decider_api_key_id,
        decide_time=optional_timestamp(adjustment.decide_time),
        decision_reason=adjustment.decision_reason,
        transaction_id=adjustment.transaction_id,
    )
