"""The RPCs of LedgerService about corrections of charges."""

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.db import retry_transaction
from services.kit.errors import InvalidArgument
from services.kit.money import check_amount
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope, tenants_of
from services.kit.text import check_text
from services.kit.times import timestamp
from services.ledger.domain.corrections import (
    MAX_CORRECTION_ID_LENGTH,
    MAX_REASON_LENGTH,
    MIN_REASON_LENGTH,
    Correction,
)
from services.ledger.rpc.convert import charge_to_proto
from services.ledger.rpc.credits_convert import customer_balance_to_proto
from services.ledger.rpc.ledger_base import Context, LedgerBase, content_hash
from services.ledger.store import charges, corrections, movements
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import correction_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb


class CorrectionRpcs(LedgerBase):
    """Taking back parts of charges, and listing what was taken back."""

    async def CorrectCharge(
        self, request: pb.CorrectChargeRequest, context: Context
    ) -> pb.CorrectChargeResponse:
        actor = current_principal().api_key_id
        charge_id = ids.check_id(request.charge_id, ids.CHARGE, field="charge_id")
        correction_id = check_text(
            request.correction_id, "correction_id", shortest=1, longest=MAX_CORRECTION_ID_LENGTH
        )
        amount = check_amount(request.amount.amount_micros, field="amount.amount_micros")
        reason = check_text(request.reason, "reason", shortest=MIN_REASON_LENGTH, longest=MAX_REASON_LENGTH)
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            known = await charges.get_charge(connection, charge_id)
        currency = known.currency_code
        if request.amount.currency_code != currency:
            raise InvalidArgument.of("amount.currency_code", f"must be the charge's, {currency}")

        async def correct() -> tuple[corrections.Corrected, movements.Collected]:
            async with self._writer.hot() as connection:
                corrected = await corrections.correct_charge(
                    connection,
                    charge_id=charge_id,
                    correction_id=correction_id,
                    currency_code=currency,
                    amount=amount,
                    reason=reason,
                    actor_api_key_id=actor,
                    request_hash=content_hash(request),
                )
                if corrected.duplicate:
                    return corrected, movements.Collected(0, False)
                # In the same transaction, as with a grant: no charge comes between the credits and the debts.
                return corrected, await movements.collect(
                    connection, known.customer_id, currency, movements.COLLECT_LIMIT, actor
                )

        corrected, collected = await retry_transaction(correct, idempotent=True)
        await self._collect_rest(known.customer_id, currency, actor, collected)
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            correction = await corrections.get_correction(connection, charge_id, corrected.number)
            charge = await charges.get_charge(connection, charge_id)
        balance = await self._customer_balance(PLATFORM, known.customer_id, currency)
        return pb.CorrectChargeResponse(
            correction=correction_to_proto(correction, currency),
            charge=charge_to_proto(charge),
            balance=customer_balance_to_proto(balance),
            duplicate=corrected.duplicate,
        )

    async def ListCorrections(
        self, request: pb.ListCorrectionsRequest, context: Context
    ) -> pb.ListCorrectionsResponse:
        charge_id = ids.check_id(request.charge_id, ids.CHARGE, field="charge_id")
        page = Page.parse(
            request.page_size, request.page_token, key_types=(int,), filter={"charge_id": charge_id}
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            # What the caller sees nothing of is not there, with corrections or without.
            charge = await charges.get_charge(connection, charge_id)
            found = await corrections.list_corrections(connection, charge_id, page)
        shown, next_page_token = page.cut(found, lambda one: (one.number,))
        return pb.ListCorrectionsResponse(
            corrections=[correction_to_proto(one, charge.currency_code) for one in shown],
            next_page_token=next_page_token,
        )


def correction_to_proto(correction: Correction, currency: str) -> correction_pb2.Correction:
    """A correction as it travels."""

    def money(amount: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=currency, amount_micros=amount)

    return correction_pb2.Correction(
        charge_id=correction.charge_id,
        correction_id=correction.correction_id,
        amount=money(correction.amount),
        refund=None
        if correction.refund is None
        else correction_pb2.CorrectionRefund(
            unpaid=money(correction.refund.unpaid),
            receivable=money(correction.refund.receivable),
            credits=money(correction.refund.credits),
        ),
        earnings=[
            correction_pb2.CorrectedEarning(
                organization_id=one.organization_id,
                gross=money(one.gross),
                platform_fee=money(one.platform_fee),
                processing_fee=money(one.processing_fee),
                net=money(one.net),
            )
            for one in correction.earnings
        ],
        reason=correction.reason,
        transaction_id=correction.transaction_id,
        create_time=timestamp(correction.create_time),
    )
