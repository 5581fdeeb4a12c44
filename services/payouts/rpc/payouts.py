"""PayoutService: what organizations, and operators, ask of payouts."""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.kit.money import Money
from services.kit.pages import Page
from services.kit.tenancy import scope, tenants_of
from services.kit.text import check_text
from services.kit.times import optional_time_from_proto, time_from_page_key
from services.payouts.domain import payout as rules
from services.payouts.domain.account import AccountState, ConnectedAccount
from services.payouts.domain.minimums import check_minimum
from services.payouts.domain.payout import Change, Origin, Owed, Payout, PayoutState, Step
from services.payouts.domain.units import Operation
from services.payouts.executor import Executor
from services.payouts.processor.errors import ProcessorError, Refused
from services.payouts.processor.transfers import Transfer, Transfers
from services.payouts.rpc.access import check_organization, filtered_organization
from services.payouts.rpc.amounts import read_amount
from services.payouts.rpc.payout_convert import (
    payout_to_proto,
    reversal_to_proto,
    states_from_proto,
    transition_to_proto,
)
from services.payouts.rpc.payout_csv import csv_pieces
from services.payouts.store import accounts, payouts
from services.payouts.store.payouts import PayoutFilter
from tallystick.payouts.v1 import payout_service_pb2 as pb
from tallystick.payouts.v1 import payout_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_KEY_LENGTH: Final = 128
_MAX_REASON_LENGTH: Final = 500
_SHORTEST_DECISION: Final = 10
# Until the worker takes over a request whose caller's process was killed.
_OPENING_PAUSE: Final = timedelta(seconds=10)


class PayoutService(payout_service_pb2_grpc.PayoutServiceServicer):
    """Serves PayoutService."""

    def __init__(
        self,
        *,
        writer: Database,
        reader: Database,
        executor: Executor,
        transfers: Transfers,
        minimums: Mapping[str, int],
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._executor = executor
        self._transfers = transfers
        self._minimums = minimums
        self._clock = clock

    async def RequestPayout(
        self, request: pb.RequestPayoutRequest, context: Context
    ) -> pb.RequestPayoutResponse:
        organization_id = check_organization(request.organization_id)
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY_LENGTH)
        money = check_minimum(read_amount(request.amount, Operation.PAYOUT), self._minimums)
        payout_id = ids.derive_id(ids.PAYOUT, organization_id, key)
        content = f"{money.currency_code}:{money.amount_micros}".encode()
        request_hash = hashlib.sha256(content).digest()

        payout = await self._find(payout_id)
        duplicate = payout is not None
        if payout is None:
            await self._check_account(organization_id)
            payout = await self._create(payout_id, organization_id, money, request_hash)
        if payout.request_hash != request_hash:
            raise AlreadyExists(
                "the idempotency key was used for another amount",
                reason="IDEMPOTENCY_KEY_REUSED",
                metadata={"key": key},
            )
        if payout.owed is Owed.DEBIT:
            payout = await self._executor.open(payout)
        if payout.state is PayoutState.OPENING:
            raise Unavailable("the ledger did not answer whether the earnings cover the payout")
        if payout.refusal is not None:
            raise FailedPrecondition(
                payout.refusal["message"],
                reason=payout.refusal["reason"],
                metadata=payout.refusal["metadata"],
            )
        self._executor.wake()
        return pb.RequestPayoutResponse(payout=payout_to_proto(payout), duplicate=duplicate)

    async def CancelPayout(
        self, request: pb.CancelPayoutRequest, context: Context
    ) -> pb.CancelPayoutResponse:
        reason = check_text(request.reason, "reason", shortest=0, longest=_MAX_REASON_LENGTH)
        actor = current_principal().api_key_id

        def cancel(payout: Payout, now: datetime) -> Change | None:
            if payout.state is PayoutState.CANCELLED:
                return None
            return rules.cancelled(payout, actor, reason, now)

        cancelled = await self._change(request.payout_id, cancel)
        # The caller need not wait for the worker to have the money back.
        return pb.CancelPayoutResponse(payout=payout_to_proto(await self._executor.take_further(cancelled)))

    async def GetPayout(self, request: pb.GetPayoutRequest, context: Context) -> pb.GetPayoutResponse:
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            payout = await payouts.find_seen(connection, _payout_id(request.payout_id))
            if payout is None:
                raise _not_found(request.payout_id)
            transitions = await payouts.list_transitions(connection, payout.payout_id)
            reversals = await payouts.list_reversals(connection, payout.payout_id)
        return pb.GetPayoutResponse(
            payout=payout_to_proto(payout),
            transitions=map(transition_to_proto, transitions),
            reversals=[reversal_to_proto(one, payout.money.currency_code) for one in reversals],
        )

    async def ListPayouts(self, request: pb.ListPayoutsRequest, context: Context) -> pb.ListPayoutsResponse:
        wanted = PayoutFilter(
            organization_id=filtered_organization(request.organization_id),
            states=states_from_proto(request.states),
            start_time=optional_time_from_proto(request, "start_time"),
            end_time=optional_time_from_proto(request, "end_time"),
            currency_code=request.currency_code,
            held=request.held,
        )
        page = Page.parse(
            request.page_size, request.page_token, key_types=(str, str), filter={"wanted": repr(wanted)}
        )
        after = None if page.after is None else (time_from_page_key(page.after[0]), str(page.after[1]))
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await payouts.list_newest(connection, wanted, after, page.limit)
        shown, token = page.cut(found, lambda one: (one.create_time.isoformat(), one.payout_id))
        return pb.ListPayoutsResponse(payouts=map(payout_to_proto, shown), next_page_token=token)

    async def ExportPayouts(
        self, request: pb.ExportPayoutsRequest, context: Context
    ) -> AsyncIterator[pb.ExportPayoutsResponse]:
        wanted = PayoutFilter(
            organization_id=filtered_organization(request.organization_id),
            start_time=optional_time_from_proto(request, "start_time"),
            end_time=optional_time_from_proto(request, "end_time"),
        )
        tenants = tenants_of(current_principal())
        async for piece in csv_pieces(self._reader, tenants, wanted):
            yield pb.ExportPayoutsResponse(csv=piece)

    async def RetryBankPayout(
        self, request: pb.RetryBankPayoutRequest, context: Context
    ) -> pb.RetryBankPayoutResponse:
        actor = current_principal().api_key_id
        payout = await self._change(request.payout_id, lambda found, now: rules.bank_again(found, actor, now))
        return pb.RetryBankPayoutResponse(payout=payout_to_proto(payout))

    async def ResolvePayout(
        self, request: pb.ResolvePayoutRequest, context: Context
    ) -> pb.ResolvePayoutResponse:
        reason = check_text(request.reason, "reason", shortest=_SHORTEST_DECISION, longest=_MAX_REASON_LENGTH)
        actor = current_principal().api_key_id
        payout = await self._seen(request.payout_id)
        rules.check_undecided(payout)
        # Read there before anything is decided, so that the decision is about what is, not what is believed.
        try:
            if request.resolution == pb.PAYOUT_RESOLUTION_ADOPT_TRANSFER:
                transfer = await self._transfers.get(_transfer_id(request.transfer_id))
                _check_adoptable(payout, transfer)
            elif request.resolution in (pb.PAYOUT_RESOLUTION_FAIL, pb.PAYOUT_RESOLUTION_SEND_AGAIN):
                found = await self._transfers.find(payout.payout_id)
                if found is not None:
                    raise _transfer_conflict(payout, found.transfer_id, "it has a transfer: adopt that")
            else:
                raise InvalidArgument.of("resolution", "must be a known resolution")
        except Refused as error:
            raise _transfer_conflict(payout, request.transfer_id, error.message) from error
        except ProcessorError as error:
            raise Unavailable(f"the payment processor did not say what there is: {error.message}") from error

        def resolve(found: Payout, now: datetime) -> Change:
            rules.check_undecided(found)
            step = Step(actor, "ResolvePayout", reason, request.transfer_id)
            if request.resolution == pb.PAYOUT_RESOLUTION_ADOPT_TRANSFER:
                return rules.transferred(found, request.transfer_id, step, now)
            if request.resolution == pb.PAYOUT_RESOLUTION_FAIL:
                return rules.transfer_refused(found, "operator", reason, step, now)
            return rules.sent_again(found, actor, reason, now)

        return pb.ResolvePayoutResponse(payout=payout_to_proto(await self._change(payout.payout_id, resolve)))

    async def _check_account(self, organization_id: str) -> None:
        """Refuse what could not be sent, before anything is asked of anybody."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            account = await accounts.find(connection, organization_id)
        if account is None or not account.can_be_paid:
            raise _not_enabled(organization_id, account)

    async def _create(
        self, payout_id: str, organization_id: str, money: Money, request_hash: bytes
    ) -> Payout:
        """Write the request down before the ledger is asked, so that it is finished whatever happens here."""
        now = self._clock.now()
        new = Payout(
            payout_id=payout_id,
            organization_id=organization_id,
            money=money,
            state=PayoutState.OPENING,
            owed=Owed.DEBIT,
            origin=Origin.REQUEST,
            request_hash=request_hash,
            requester=current_principal().api_key_id,
            next_attempt_time=now + _OPENING_PAUSE,
            create_time=now,
            update_time=now,
        )
        async with self._writer.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await payouts.create(connection, new, now)
            # Ours, or that of a call with the same key that was faster.
            found = await payouts.find(connection, payout_id)
        if found is None:
            raise LookupError(f"payout {payout_id} was just created, and is not there")
        return found

    async def _find(self, payout_id: str) -> Payout | None:
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            return await payouts.find(connection, payout_id)

    async def _seen(self, payout_id: str) -> Payout:
        """A payout that the caller may see. Raises NotFound."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await payouts.find_seen(connection, _payout_id(payout_id))
        if found is None:
            raise _not_found(payout_id)
        return found

    async def _change(self, payout_id: str, change: Callable[[Payout, datetime], Change | None]) -> Payout:
        """Change a payout that the caller may see, judged by what it is then; None leaves it as it is."""
        while True:
            before = await self._seen(payout_id)
            now = self._clock.now()
            wanted = change(before, now)
            if wanted is None:
                return before
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(current_principal()))
                after = await payouts.save(connection, before, wanted, now)
            # Otherwise somebody else was first: judge again.
            if after is not None:
                self._executor.wake()
                return after


def _payout_id(payout_id: str) -> str:
    return ids.check_id(payout_id, ids.PAYOUT, field="payout_id")


def _transfer_id(transfer_id: str) -> str:
    text = check_text(transfer_id, "transfer_id", shortest=4, longest=128)
    if not text.startswith("tr_"):
        raise InvalidArgument.of("transfer_id", "must begin with tr_")
    return text


def _not_found(payout_id: str) -> NotFound:
    return NotFound("there is no such payout", reason="PAYOUT_NOT_FOUND", metadata={"payout_id": payout_id})


def _not_enabled(organization_id: str, account: ConnectedAccount | None) -> FailedPrecondition:
    state = AccountState.ONBOARDING if account is None else account.state
    metadata = {"organization_id": organization_id, "account_state": state}
    if account is not None and account.disabled_reason:
        metadata["disabled_reason"] = account.disabled_reason
    return FailedPrecondition(
        "the connected account cannot receive transfers now: GetConnectedAccount says why",
        reason="PAYOUTS_NOT_ENABLED",
        metadata=metadata,
    )


def _check_adoptable(payout: Payout, transfer: Transfer) -> None:
    ours = transfer.payout_id in ("", payout.payout_id)
    same = (transfer.amount, transfer.stripe_account_id) == (payout.money, payout.stripe_account_id)
    if not (ours and same):
        raise _transfer_conflict(payout, transfer.transfer_id, "that transfer is not this payout's")


def _transfer_conflict(payout: Payout, transfer_id: str, message: str) -> FailedPrecondition:
    return FailedPrecondition(
        message,
        reason="TRANSFER_CONFLICT",
        metadata={"payout_id": payout.payout_id, "transfer_id": transfer_id},
    )
