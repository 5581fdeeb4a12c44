"""Who may ask what of PaymentService, and whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc
import pytest
from google.protobuf.message import Message

from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tallystick.payouts.v1 import purchase_pb2
from tests.integration.payouts.buyers import Buyers, usd
from tests.support.payouts_server import Caller
from tests.support.rpc_errors import taken_apart

OWNERS: Final = frozenset({"customer", "operator"})
# Method, a request about what is cus_ada's (her purchase and her card), who may ask it of her.
CASES: Final[tuple[tuple[str, Callable[[str, str], Message], frozenset[str]], ...]] = (
    (
        "AddPaymentMethod",
        lambda _, card: pb.AddPaymentMethodRequest(customer_id="cus_ada", payment_method_id=card),
        OWNERS,
    ),
    ("ListPaymentMethods", lambda *_: pb.ListPaymentMethodsRequest(customer_id="cus_ada"), OWNERS),
    (
        "RemovePaymentMethod",
        lambda *_: pb.RemovePaymentMethodRequest(customer_id="cus_ada", payment_method_id="pm_none"),
        OWNERS,
    ),
    (
        "PurchaseCredits",
        lambda *_: pb.PurchaseCreditsRequest(customer_id="cus_ada", amount=usd(20), idempotency_key="first"),
        OWNERS,
    ),
    ("GetPurchase", lambda purchase, _: pb.GetPurchaseRequest(purchase_id=purchase), OWNERS),
    ("ListPurchases", lambda *_: pb.ListPurchasesRequest(customer_id="cus_ada"), OWNERS),
    ("CancelPurchase", lambda purchase, _: pb.CancelPurchaseRequest(purchase_id=purchase), OWNERS),
    (
        "RefundPurchase",
        lambda purchase, _: pb.RefundPurchaseRequest(
            purchase_id=purchase, amount=usd(1), idempotency_key="refund"
        ),
        frozenset({"operator"}),
    ),
    ("GetAutoRecharge", lambda *_: pb.GetAutoRechargeRequest(customer_id="cus_ada"), OWNERS),
    (
        "SetAutoRecharge",
        lambda *_: pb.SetAutoRechargeRequest(auto_recharge=purchase_pb2.AutoRecharge(customer_id="cus_ada")),
        OWNERS,
    ),
    (
        "RechargeCredits",
        lambda *_: pb.RechargeCreditsRequest(customer_id="cus_ada", currency_code="USD"),
        frozenset({"service"}),
    ),
)
METHODS = {method.name for method in pb.DESCRIPTOR.services_by_name["PaymentService"].methods}


def test_every_method_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == METHODS


async def _callers(buyers: Buyers) -> dict[str, Caller]:
    ledger = buyers.payouts.ledger
    await buyers.customer("cus_bob")
    await ledger.create_organization("org_lark")
    keys = {
        "customer": buyers.keys["cus_ada"],
        "other customer": buyers.keys["cus_bob"],
        "operator": ledger.operator.key,
        "service": ledger.service.key,
        "host": (await ledger.create_caller(access_pb2.ROLE_HOST, "host")).key,
        "owner": (await ledger.create_caller(access_pb2.ROLE_OWNER, "owner", organization_id="org_lark")).key,
    }
    return {who: buyers.payouts.caller(key) for who, key in keys.items()}


async def test_everybody_reaches_what_is_theirs_and_nothing_else(buyers: Buyers) -> None:
    bought = (await buyers.buy(20)).purchase
    callers = await _callers(buyers)
    for name, request, may in CASES:
        for who, caller in callers.items():
            try:
                await getattr(caller.payments, name)(request(bought.purchase_id, bought.payment_method_id))
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code, reason = error.code(), taken_apart(error).reason
                assert code is not grpc.StatusCode.INTERNAL, (name, who)
                if name == "CancelPurchase" and reason == "PURCHASE_STATE_CONFLICT":
                    code = grpc.StatusCode.OK
            if who == "other customer" and "customer" in may:
                assert code is grpc.StatusCode.NOT_FOUND, (name, who, code)
            else:
                expected = grpc.StatusCode.OK if who in may else grpc.StatusCode.PERMISSION_DENIED
                assert code is expected, (name, who, code)
    await buyers.check()


@pytest.mark.parametrize("token", ["x", "eyJrIjpbIm5vIHRpbWUiLCJwdXJfMSJdLCJmIjoiIn0"])
async def test_a_forged_page_token_is_refused(buyers: Buyers, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await buyers.caller().payments.ListPurchases(pb.ListPurchasesRequest(page_token=token))
    assert taken_apart(caught.value).reason == "INVALID_PAGE_TOKEN"
