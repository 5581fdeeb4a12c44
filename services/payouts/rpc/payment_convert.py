"""Purchases, payment methods and auto-recharge between the contract and the domain."""

from datetime import datetime
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.money import Money
from services.kit.times import timestamp
from services.payouts.domain.auto_recharge import AutoRecharge, month_of
from services.payouts.domain.payer import PaymentMethod
from services.payouts.domain.purchase import Origin, Purchase, PurchaseState
from services.payouts.rpc.ledger import to_proto
from tallystick.payouts.v1 import purchase_pb2

# People have the credits with SUCCEEDED, so what is paid and not yet granted is still PROCESSING.
_STATE_TO_PROTO: Final[dict[PurchaseState, purchase_pb2.PurchaseState.ValueType]] = {
    **{
        state: purchase_pb2.PurchaseState.Value(f"PURCHASE_STATE_{state.name}")
        for state in PurchaseState
        if state is not PurchaseState.PAID
    },
    PurchaseState.PAID: purchase_pb2.PURCHASE_STATE_PROCESSING,
}
_ORIGIN_TO_PROTO: Final = {
    origin: purchase_pb2.PurchaseOrigin.Value(f"PURCHASE_ORIGIN_{origin.name}") for origin in Origin
}


def states_from_proto(state: int) -> tuple[PurchaseState, ...]:
    """The states that a filter means; none for all. Raises InvalidArgument for one that is not known."""
    if state == purchase_pb2.PURCHASE_STATE_UNSPECIFIED:
        return ()
    found = tuple(known for known, number in _STATE_TO_PROTO.items() if number == state)
    if not found:
        raise InvalidArgument.of("state", "must be a known state")
    return found


def purchase_to_proto(purchase: Purchase) -> purchase_pb2.Purchase:
    """A purchase as it travels."""
    failed = purchase.state is PurchaseState.FAILED

    def money(micros: int) -> Money:
        return Money(purchase.money.currency_code, micros)

    return purchase_pb2.Purchase(
        purchase_id=purchase.purchase_id,
        customer_id=purchase.customer_id,
        amount=to_proto(purchase.money),
        state=_STATE_TO_PROTO[purchase.state],
        origin=_ORIGIN_TO_PROTO[purchase.origin],
        failure_code=purchase.failure_code if failed else "",
        failure_reason=purchase.failure_reason if failed else "",
        refunded=to_proto(money(purchase.refunded_micros)),
        disputed=to_proto(money(purchase.disputed_micros)),
        processor_fee=to_proto(money(purchase.fee_micros or 0)),
        payment_method_id=purchase.payment_method_id,
        payment_intent_id=purchase.payment_intent_id or "",
        transaction_id=purchase.transaction_id or "",
        create_time=timestamp(purchase.create_time),
        update_time=timestamp(purchase.update_time),
    )


def method_to_proto(method: PaymentMethod) -> purchase_pb2.PaymentMethod:
    """A payment method as it travels."""
    return purchase_pb2.PaymentMethod(
        payment_method_id=method.payment_method_id,
        customer_id=method.customer_id,
        type=method.type,
        brand=method.brand,
        last4=method.last4,
        expire_month=method.expire_month,
        is_default=method.is_default,
    )


def auto_recharge_to_proto(setting: AutoRecharge, now: datetime) -> purchase_pb2.AutoRecharge:
    """What is set as it travels."""

    def money(micros: int) -> Money:
        return Money(setting.currency_code, micros)

    return purchase_pb2.AutoRecharge(
        customer_id=setting.customer_id,
        enabled=setting.enabled,
        threshold=to_proto(money(setting.threshold_micros)),
        amount=to_proto(money(setting.amount_micros)),
        monthly_ceiling=to_proto(money(setting.ceiling_micros)),
        cool_off_seconds=setting.cool_off_seconds,
        payment_method_id=setting.payment_method_id,
        bought_this_month=to_proto(money(setting.bought_in(month_of(now)))),
        stopped_reason=setting.why_not(now),
        update_time=timestamp(setting.update_time),
    )


def auto_recharge_unset(customer_id: str, currency_code: str) -> purchase_pb2.AutoRecharge:
    """What travels where nothing was ever set."""
    nothing = to_proto(Money(currency_code, 0))
    return purchase_pb2.AutoRecharge(
        customer_id=customer_id,
        threshold=nothing,
        amount=nothing,
        monthly_ceiling=nothing,
        bought_this_month=nothing,
    )
