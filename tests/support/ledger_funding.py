"""Calls of FundingService and of freezes, in short, all in one currency."""

from __future__ import annotations

from tallystick.ledger.v1 import account_pb2, directory_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import funding_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1.purchase_reversal_pb2 import (
    PURCHASE_REVERSAL_KIND_CHARGEBACK as CHARGEBACK,
)
from tallystick.ledger.v1.purchase_reversal_pb2 import (
    PURCHASE_REVERSAL_KIND_REFUND as REFUND,
)
from tallystick.ledger.v1.purchase_reversal_pb2 import PurchaseReversalKind
from tests.support.ledger_credits import Credits, usd

__all__ = ["CHARGEBACK", "REFUND", "Funding"]


class Funding(Credits):
    """What happens to the purchases of cus_a, unless another customer is named."""

    async def reverse(
        self,
        reversal_id: str,
        amount: int,
        kind: PurchaseReversalKind.ValueType = REFUND,
        *,
        purchase: str = "first",
        customer: str = "cus_a",
        reason: str = "",
    ) -> pb.ReversePurchaseResponse:
        return await self.service.funding.ReversePurchase(
            pb.ReversePurchaseRequest(
                customer_id=customer,
                purchase_key=purchase,
                reversal_id=reversal_id,
                amount=usd(amount),
                kind=kind,
                reason=reason,
            )
        )

    async def reinstate(
        self, reversal_id: str, reinstatement_id: str, amount: int | None = None, *, customer: str = "cus_a"
    ) -> pb.ReinstatePurchaseResponse:
        return await self.service.funding.ReinstatePurchase(
            pb.ReinstatePurchaseRequest(
                customer_id=customer,
                reversal_id=reversal_id,
                reinstatement_id=reinstatement_id,
                amount=None if amount is None else usd(amount),
            )
        )

    async def fee(self, fee_id: str, amount: int) -> pb.RecordProcessorFeeResponse:
        return await self.service.funding.RecordProcessorFee(
            pb.RecordProcessorFeeRequest(fee_id=fee_id, amount=usd(amount), reason="processing")
        )

    async def freeze(self, customer: str = "cus_a", reason: str = "suspicious") -> directory_pb2.Customer:
        answer = await self.server.operator.directory.FreezeCustomer(
            directory.FreezeCustomerRequest(customer_id=customer, reason=reason)
        )
        return answer.customer

    async def unfreeze(self, customer: str = "cus_a", reason: str = "cleared") -> directory_pb2.Customer:
        answer = await self.server.operator.directory.UnfreezeCustomer(
            directory.UnfreezeCustomerRequest(customer_id=customer, reason=reason)
        )
        return answer.customer

    async def balance(self, customer: str = "cus_a") -> account_pb2.CustomerBalance:
        answer = await self.server.operator.ledger.GetCustomerBalance(
            ledger.GetCustomerBalanceRequest(customer_id=customer)
        )
        return answer.balance

    async def standing(self, customer: str = "cus_a") -> tuple[int, int, int, int]:
        """(available, chargebacks, receivable, unpaid) in micros."""
        balance = await self.balance(customer)
        return (
            balance.available.amount_micros,
            balance.chargebacks.amount_micros,
            balance.receivable.amount_micros,
            balance.unpaid.amount_micros,
        )

    async def accounts(self, owner_id: str) -> dict[str, int]:
        """The balance of each account of an owner, by kind, in micros."""
        answer = await self.server.operator.ledger.ListAccounts(ledger.ListAccountsRequest(owner_id=owner_id))
        return {
            account_pb2.AccountKind.Name(one.account.kind)
            .removeprefix("ACCOUNT_KIND_")
            .lower(): one.balance.amount_micros
            for one in answer.accounts
        }
