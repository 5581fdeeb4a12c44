"""The RPCs of FundingService about what is given up."""

from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.db import retry_transaction
from services.kit.errors import InvalidArgument
from services.kit.money import check_amount, check_currency
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope
from services.kit.text import check_text
from services.kit.times import timestamp
from services.ledger.domain.accounts import DEFAULT_CURRENCY
from services.ledger.domain.write_offs import MAX_REASON_LENGTH, MIN_REASON_LENGTH, WriteOff, WriteOffKind
from services.ledger.rpc.ledger_base import LedgerBase, check_owner, content_hash
from services.ledger.store import charges, movements, write_offs
from services.ledger.store.write_offs import Request, Written
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import funding_service_pb2 as pb
from tallystick.ledger.v1 import write_off_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_KEY_LENGTH: Final = 128
_KIND_TO_PROTO: Final = {
    kind: write_off_pb2.WriteOffKind.Value(f"WRITE_OFF_KIND_{kind.name}") for kind in WriteOffKind
}
_KIND_FROM_PROTO: Final[dict[int, WriteOffKind]] = {number: kind for kind, number in _KIND_TO_PROTO.items()}


class WriteOffRpcs(LedgerBase):
    """Writing off, and listing what was written off."""

    async def WriteOff(self, request: pb.WriteOffRequest, context: Context) -> pb.WriteOffResponse:
        kind = _KIND_FROM_PROTO.get(request.kind)
        if kind is None:
            raise InvalidArgument.of("kind", "must be a known kind")
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY_LENGTH)
        reason = check_text(request.reason, "reason", shortest=MIN_REASON_LENGTH, longest=MAX_REASON_LENGTH)
        amount = (
            check_amount(request.amount.amount_micros, field="amount.amount_micros")
            if request.HasField("amount")
            else None
        )
        asked = Request(
            amount,
            reason,
            current_principal().api_key_id,
            write_offs.request_key(key),
            content_hash(request),
        )
        written = await (
            self._of_charge(request, kind, asked)
            if kind.is_of_charge
            else self._of_owner(request, kind, asked)
        )
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            known = await write_offs.get_write_off(connection, written.transaction_id)
        return pb.WriteOffResponse(write_off=_to_proto(known), duplicate=written.duplicate)

    async def _of_charge(self, request: pb.WriteOffRequest, kind: WriteOffKind, asked: Request) -> Written:
        charge_id = ids.check_id(request.charge_id, ids.CHARGE, field="charge_id")
        if request.owner_id:
            raise InvalidArgument.of("owner_id", "must be empty: the charge knows who pays")
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            charge = await charges.get_charge(connection, charge_id)
        if asked.amount is not None and request.amount.currency_code != charge.currency_code:
            raise InvalidArgument.of("amount.currency_code", f"must be the charge's, {charge.currency_code}")
        await self._collect_first(charge.customer_id, charge.currency_code, asked.actor_api_key_id)

        async def write_off() -> Written:
            async with self._writer.hot() as connection:
                return await write_offs.write_off_charge(connection, charge_id, kind, asked)

        return await retry_transaction(write_off, idempotent=True)

    async def _of_owner(self, request: pb.WriteOffRequest, kind: WriteOffKind, asked: Request) -> Written:
        if request.charge_id:
            raise InvalidArgument.of("charge_id", "must be empty: this is not of a charge")
        named = request.currency_code or (request.amount.currency_code if asked.amount is not None else "")
        currency = check_currency(named or DEFAULT_CURRENCY, field="currency_code")
        if asked.amount is not None and request.amount.currency_code != currency:
            raise InvalidArgument.of("amount.currency_code", "must be the same as currency_code")
        chargebacks = kind is WriteOffKind.CHARGEBACKS
        prefix = ids.CUSTOMER if chargebacks else ids.ORGANIZATION
        owner_id = ids.check_id(request.owner_id, prefix, field="owner_id")
        if chargebacks:
            await self._collect_first(owner_id, currency, asked.actor_api_key_id)
        post = write_offs.write_off_chargebacks if chargebacks else write_offs.write_off_clawback

        async def write_off() -> Written:
            async with self._writer.hot() as connection:
                return await post(connection, owner_id, currency, asked)

        return await retry_transaction(write_off, idempotent=True)

    async def _collect_first(self, customer_id: str, currency: str, actor: str) -> None:
        """What credits could pay is not given up. Before it, since a write-off takes its locks in order."""
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            has_currency = await write_offs.uses_currency(connection, customer_id, currency)
        if has_currency:
            await self._collect_rest(customer_id, currency, actor, movements.Collected(0, True))

    async def ListWriteOffs(
        self, request: pb.ListWriteOffsRequest, context: Context
    ) -> pb.ListWriteOffsResponse:
        owner_id = check_owner(request.owner_id, "owner_id") if request.owner_id else ""
        charge_id = (
            ids.check_id(request.charge_id, ids.CHARGE, field="charge_id") if request.charge_id else ""
        )
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str,),
            filter={"owner_id": owner_id, "charge_id": charge_id},
        )
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            found = await write_offs.list_write_offs(connection, owner_id, charge_id, page)
        shown, next_page_token = page.cut(found, lambda one: (one.transaction_id,))
        return pb.ListWriteOffsResponse(
            write_offs=[_to_proto(one) for one in shown], next_page_token=next_page_token
        )


def _to_proto(write_off: WriteOff) -> write_off_pb2.WriteOff:
    return write_off_pb2.WriteOff(
        transaction_id=write_off.transaction_id,
        kind=_KIND_TO_PROTO[write_off.kind],
        owner_id=write_off.owner_id,
        charge_id=write_off.charge_id,
        amount=money_pb2.Money(currency_code=write_off.currency_code, amount_micros=write_off.amount),
        reason=write_off.reason,
        actor_api_key_id=write_off.actor_api_key_id,
        create_time=timestamp(write_off.create_time),
    )
