"""PaymentService: what customers, and operators, ask about payments, and what metering asks."""

import hashlib
from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.kit.money import Money, check_amount, check_currency
from services.kit.pages import Page
from services.kit.tenancy import scope, tenants_of
from services.kit.text import check_text
from services.kit.times import time_from_page_key
from services.payouts.domain import purchase as rules
from services.payouts.domain.auto_recharge import (
    DEFAULT_COOL_OFF_SECONDS,
    LONGEST_COOL_OFF_SECONDS,
    SHORTEST_COOL_OFF_SECONDS,
    AutoRecharge,
)
from services.payouts.domain.charges import check_chargeable
from services.payouts.domain.payer import method_not_found
from services.payouts.domain.payout import Step
from services.payouts.domain.purchase import Change, Origin, Purchase, PurchaseState
from services.payouts.domain.refund import RefundRequest, RefundState, check_refundable, refund_call
from services.payouts.domain.units import Operation
from services.payouts.payers import Payers
from services.payouts.processor.errors import ProcessorError, Refused
from services.payouts.processor.payments import Payments
from services.payouts.purchaser import LEASE, Purchaser
from services.payouts.recharger import Recharger
from services.payouts.rpc.access import check_customer
from services.payouts.rpc.amounts import read_amount
from services.payouts.rpc.ledger import Ledger, to_proto
from services.payouts.rpc.payment_convert import (
    auto_recharge_to_proto,
    auto_recharge_unset,
    method_to_proto,
    purchase_to_proto,
    states_from_proto,
)
from services.payouts.store import auto_recharges, payers, purchases
from services.payouts.store.purchases import PurchaseFilter
from tallystick.common.v1 import money_pb2
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tallystick.payouts.v1 import payment_service_pb2_grpc, purchase_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_CURRENCY: Final = "USD"
_MAX_KEY_LENGTH: Final = 128
_MAX_REASON_LENGTH: Final = 500
_MAX_METHOD_LENGTH: Final = 128


class PaymentService(payment_service_pb2_grpc.PaymentServiceServicer):
    """Serves PaymentService."""

    def __init__(
        self,
        *,
        writer: Database,
        reader: Database,
        ledger: Ledger,
        payments: Payments,
        payers: Payers,
        purchaser: Purchaser,
        recharger: Recharger,
        return_url: str,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._ledger = ledger
        self._payments = payments
        self._payers = payers
        self._purchaser = purchaser
        self._recharger = recharger
        self._return_url = return_url
        self._clock = clock

    # Payment methods.

    async def AddPaymentMethod(
        self, request: pb.AddPaymentMethodRequest, context: Context
    ) -> pb.AddPaymentMethodResponse:
        customer_id = check_customer(request.customer_id)
        payment_method_id = _method_id(request.payment_method_id)
        # Whoever pays has to be somebody whom the ledger can credit.
        await self._ledger.get_customer_balance(customer_id, _DEFAULT_CURRENCY)
        try:
            saved = await self._payers.add(customer_id, payment_method_id, make_default=request.make_default)
        except ProcessorError as error:
            raise _of_processor(error) from error
        return pb.AddPaymentMethodResponse(payment_method=method_to_proto(saved))

    async def ListPaymentMethods(
        self, request: pb.ListPaymentMethodsRequest, context: Context
    ) -> pb.ListPaymentMethodsResponse:
        customer_id = check_customer(request.customer_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await payers.list_methods(connection, customer_id)
        return pb.ListPaymentMethodsResponse(payment_methods=map(method_to_proto, found))

    async def RemovePaymentMethod(
        self, request: pb.RemovePaymentMethodRequest, context: Context
    ) -> pb.RemovePaymentMethodResponse:
        customer_id = check_customer(request.customer_id)
        try:
            await self._payers.remove(customer_id, _method_id(request.payment_method_id))
        except ProcessorError as error:
            raise _of_processor(error) from error
        return pb.RemovePaymentMethodResponse()

    # Purchases.

    async def PurchaseCredits(
        self, request: pb.PurchaseCreditsRequest, context: Context
    ) -> pb.PurchaseCreditsResponse:
        customer_id = check_customer(request.customer_id or current_principal().customer_id or "")
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY_LENGTH)
        money = check_chargeable(read_amount(request.amount, Operation.CHARGE))
        method_id = _method_id(request.payment_method_id) if request.payment_method_id else ""
        purchase_id = ids.derive_id(ids.PURCHASE, customer_id, key)
        content = f"{money.currency_code}:{money.amount_micros}:{method_id}".encode()
        request_hash = hashlib.sha256(content).digest()

        purchase = await self._find(purchase_id)
        if purchase is None:
            new = await self._new(purchase_id, customer_id, money, method_id, request_hash)
            purchase, is_ours = await self._create(new)
            if is_ours:
                purchase = await self._purchaser.begin(purchase)
        if purchase.request_hash != request_hash:
            raise AlreadyExists(
                "the idempotency key was used for another purchase",
                reason="IDEMPOTENCY_KEY_REUSED",
                metadata={"key": key},
            )
        return await self._answer(purchase)

    async def CancelPurchase(
        self, request: pb.CancelPurchaseRequest, context: Context
    ) -> pb.CancelPurchaseResponse:
        actor = current_principal().api_key_id
        seen = await self._seen(request.purchase_id)
        changed = await self._purchaser.change(
            seen, lambda found: rules.cancelling(found, actor, self._clock.now())
        )
        # The caller need not wait for the worker.
        purchase = await self._purchaser.take_further(changed)
        if purchase.state is PurchaseState.PAID or purchase.state is PurchaseState.SUCCEEDED:
            raise rules.state_conflict(purchase, "it was paid before it could be cancelled")
        return pb.CancelPurchaseResponse(purchase=purchase_to_proto(purchase))

    async def RefundPurchase(
        self, request: pb.RefundPurchaseRequest, context: Context
    ) -> pb.RefundPurchaseResponse:
        reason = check_text(request.reason, "reason", shortest=0, longest=_MAX_REASON_LENGTH)
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY_LENGTH)
        money = read_amount(request.amount, Operation.CHARGE)
        purchase = await self._seen(request.purchase_id)
        if money.currency_code != purchase.money.currency_code:
            raise InvalidArgument.of("amount.currency_code", f"must be {purchase.money.currency_code}")
        refund_request_id = ids.derive_id("rfr", purchase.purchase_id, key)
        known = await self._find_refund(refund_request_id)
        if known is None:
            purchase = await self._ask_refund(purchase, refund_request_id, money, reason)
            purchase = await self._purchaser.take_further(purchase)
            known = await self._find_refund(refund_request_id)
        if known is not None and (known.amount_micros, known.reason) != (money.amount_micros, reason):
            raise AlreadyExists(
                "the idempotency key was used for another refund",
                reason="IDEMPOTENCY_KEY_REUSED",
                metadata={"key": key},
            )
        if known is not None and known.state is RefundState.REFUSED:
            raise FailedPrecondition(
                known.failure_reason,
                reason="PROCESSOR_REFUSED",
                metadata={"processor_code": known.failure_code},
            )
        return pb.RefundPurchaseResponse(purchase=purchase_to_proto(purchase))

    async def GetPurchase(self, request: pb.GetPurchaseRequest, context: Context) -> pb.GetPurchaseResponse:
        return pb.GetPurchaseResponse(purchase=purchase_to_proto(await self._seen(request.purchase_id)))

    async def ListPurchases(
        self, request: pb.ListPurchasesRequest, context: Context
    ) -> pb.ListPurchasesResponse:
        own = current_principal().customer_id or ""
        wanted = PurchaseFilter(
            customer_id=check_customer(request.customer_id) if request.customer_id else own,
            states=states_from_proto(request.state),
        )
        page = Page.parse(
            request.page_size, request.page_token, key_types=(str, str), filter={"wanted": repr(wanted)}
        )
        after = None if page.after is None else (time_from_page_key(page.after[0]), str(page.after[1]))
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await purchases.list_newest(connection, wanted, after, page.limit)
        shown, token = page.cut(found, lambda one: (one.create_time.isoformat(), one.purchase_id))
        return pb.ListPurchasesResponse(purchases=map(purchase_to_proto, shown), next_page_token=token)

    # Auto-recharge.

    async def GetAutoRecharge(
        self, request: pb.GetAutoRechargeRequest, context: Context
    ) -> pb.GetAutoRechargeResponse:
        customer_id = check_customer(request.customer_id)
        currency_code = check_currency(request.currency_code or _DEFAULT_CURRENCY)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await auto_recharges.find(connection, customer_id, currency_code)
        return pb.GetAutoRechargeResponse(
            auto_recharge=(
                auto_recharge_unset(customer_id, currency_code)
                if found is None
                else auto_recharge_to_proto(found, self._clock.now())
            )
        )

    async def SetAutoRecharge(
        self, request: pb.SetAutoRechargeRequest, context: Context
    ) -> pb.SetAutoRechargeResponse:
        customer_id = check_customer(request.auto_recharge.customer_id, field="auto_recharge.customer_id")
        now = self._clock.now()
        wanted = _wanted(request.auto_recharge, customer_id)
        new = AutoRecharge(**wanted, next_time=now, update_time=now)
        async with self._writer.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            if new.enabled:
                method = await payers.find_method(connection, customer_id, new.payment_method_id)
                if method is None:
                    raise method_not_found(customer_id, new.payment_method_id)
            saved = await auto_recharges.set_up(connection, new)
        return pb.SetAutoRechargeResponse(auto_recharge=auto_recharge_to_proto(saved, now))

    async def RechargeCredits(
        self, request: pb.RechargeCreditsRequest, context: Context
    ) -> pb.RechargeCreditsResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        currency_code = check_currency(request.currency_code)
        free = request.lease_free
        if request.HasField("lease_free") and free.currency_code != currency_code:
            raise InvalidArgument.of("lease_free.currency_code", f"must be {currency_code}")
        setting, purchase = await self._recharger.recharge(customer_id, currency_code, free.amount_micros)
        enabled = setting is not None and setting.enabled and not setting.stopped_reason
        return pb.RechargeCreditsResponse(
            purchase=None if purchase is None else purchase_to_proto(purchase),
            enabled=enabled,
            threshold=(
                to_proto(Money(currency_code, setting.threshold_micros))
                if setting is not None and enabled
                else None
            ),
        )

    async def _new(
        self, purchase_id: str, customer_id: str, money: Money, method_id: str, request_hash: bytes
    ) -> Purchase:
        """What will be written down before anything is asked. Raises NotFound without a payment method."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            method = await payers.find_method(connection, customer_id, method_id)
            stripe_customer_id = await payers.stripe_id(connection, customer_id)
        if method is None or stripe_customer_id is None:
            raise method_not_found(customer_id, method_id)
        now = self._clock.now()
        return Purchase(
            purchase_id=purchase_id,
            customer_id=customer_id,
            money=money,
            origin=Origin.REQUEST,
            request_hash=request_hash,
            requester=current_principal().api_key_id,
            payment_method_id=method.payment_method_id,
            intent=rules.payment_call(
                purchase_id,
                customer_id,
                money,
                stripe_customer_id=stripe_customer_id,
                payment_method_id=method.payment_method_id,
                off_session=False,
                return_url=self._return_url,
                now=now,
            ),
            # Until the worker takes over a purchase whose caller's process was killed.
            next_attempt_time=now + LEASE,
            create_time=now,
            update_time=now,
        )

    async def _create(self, new: Purchase) -> tuple[Purchase, bool]:
        """The purchase, and whether it is ours, or that of a call with the same key that was faster."""
        async with self._writer.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            is_ours = await purchases.create(connection, new, Step(new.requester, "PurchaseCredits"))
            found = await purchases.find(connection, new.purchase_id)
        if found is None:
            raise LookupError(f"purchase {new.purchase_id} was just created, and is not there")
        return found, is_ours

    async def _answer(self, purchase: Purchase) -> pb.PurchaseCreditsResponse:
        """The purchase, and what its customer needs to confirm it, which is kept nowhere."""
        response = pb.PurchaseCreditsResponse(purchase=purchase_to_proto(purchase))
        if purchase.state is PurchaseState.REQUIRES_ACTION and purchase.payment_intent_id is not None:
            try:
                intent = await self._payments.get(purchase.payment_intent_id)
            except ProcessorError as error:
                raise _of_processor(error) from error
            response.client_secret = intent.client_secret
            response.action_url = intent.action_url
        return response

    async def _ask_refund(
        self, purchase: Purchase, refund_request_id: str, money: Money, reason: str
    ) -> Purchase:
        """Write a refund down, if so much is left of the purchase, for the purchaser to ask for."""
        while True:
            now = self._clock.now()
            new = RefundRequest(
                refund_request_id=refund_request_id,
                purchase_id=purchase.purchase_id,
                customer_id=purchase.customer_id,
                amount_micros=money.amount_micros,
                reason=reason,
                requester=current_principal().api_key_id,
                refund=refund_call(refund_request_id, purchase, money, now),
            )
            step = Step(new.requester, "RefundPurchase", reason)
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(current_principal()))
                change = Change(rules.woken(purchase, now).purchase, step)
                saved = await purchases.save(connection, purchase, change, now)
                if saved is not None:
                    # The row is locked by its update: no other refund is written down after this sum.
                    asked = await purchases.sum_refunds_under_way(connection, purchase.purchase_id)
                    check_refundable(purchase, money.amount_micros, asked)
                    await purchases.add_refund(connection, new)
                    return saved
            # Somebody else changed it: judge again, unless that was the same request.
            purchase = await self._seen(purchase.purchase_id)
            if await self._find_refund(refund_request_id) is not None:
                return purchase

    async def _find(self, purchase_id: str) -> Purchase | None:
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            return await purchases.find(connection, purchase_id)

    async def _find_refund(self, refund_request_id: str) -> RefundRequest | None:
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            return await purchases.find_refund(connection, refund_request_id)

    async def _seen(self, purchase_id: str) -> Purchase:
        """A purchase that the caller may see. Raises NotFound."""
        found = await self._find(ids.check_id(purchase_id, ids.PURCHASE, field="purchase_id"))
        if found is None:
            raise NotFound(
                "there is no such purchase",
                reason="CREDIT_PURCHASE_NOT_FOUND",
                metadata={"purchase_id": purchase_id},
            )
        return found


def _method_id(payment_method_id: str) -> str:
    text = check_text(payment_method_id, "payment_method_id", shortest=4, longest=_MAX_METHOD_LENGTH)
    # It becomes a part of a path at the processor.
    if not text.replace("_", "").isalnum() or not text.isascii():
        raise InvalidArgument.of("payment_method_id", "must be letters, digits and '_'")
    return text


def _of_processor(error: ProcessorError) -> FailedPrecondition | Unavailable:
    """What a caller is told of a call to the processor that was refused, or whose outcome is unknown."""
    if not isinstance(error, Refused):
        return Unavailable("the payment processor did not answer")
    metadata = {"processor_code": error.code}
    if error.decline_code:
        metadata["decline_code"] = error.decline_code
    return FailedPrecondition(error.message, reason="PROCESSOR_REFUSED", metadata=metadata)


def _wanted(setting: purchase_pb2.AutoRecharge, customer_id: str) -> dict[str, Any]:
    """The fields of an auto-recharge that its owner sets. Raises InvalidArgument."""
    currency = check_currency(
        setting.threshold.currency_code or _DEFAULT_CURRENCY,
        field="auto_recharge.threshold.currency_code",
    )
    seconds = setting.cool_off_seconds or DEFAULT_COOL_OFF_SECONDS
    if not SHORTEST_COOL_OFF_SECONDS <= seconds <= LONGEST_COOL_OFF_SECONDS:
        raise InvalidArgument.of(
            "auto_recharge.cool_off_seconds",
            f"must be {SHORTEST_COOL_OFF_SECONDS} to {LONGEST_COOL_OFF_SECONDS}",
        )
    least = int(setting.enabled)
    amounts = {
        name: _micros(getattr(setting, name), currency, f"auto_recharge.{name}", least)
        for name in ("threshold", "amount", "monthly_ceiling")
    }
    if setting.enabled:
        check_chargeable(Money(currency, amounts["amount"]), field="auto_recharge.amount")
        if amounts["monthly_ceiling"] < amounts["amount"]:
            raise InvalidArgument.of(
                "auto_recharge.monthly_ceiling.amount_micros", "must not be less than the amount"
            )
    return {
        "customer_id": customer_id,
        "currency_code": currency,
        "enabled": setting.enabled,
        "threshold_micros": amounts["threshold"],
        "amount_micros": amounts["amount"],
        "ceiling_micros": amounts["monthly_ceiling"],
        "cool_off_seconds": seconds,
        "payment_method_id": (_method_id(setting.payment_method_id) if setting.payment_method_id else ""),
    }


def _micros(amount: money_pb2.Money, currency: str, field: str, least: int) -> int:
    if amount.currency_code not in (currency, "") or (least and not amount.currency_code):
        raise InvalidArgument.of(f"{field}.currency_code", f"must be {currency}")
    return check_amount(amount.amount_micros, field=f"{field}.amount_micros", minimum=least)
