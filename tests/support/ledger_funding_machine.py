"""The machine of the ledger, and in between purchases come back, fees are taken, and somebody is frozen."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import funding_service_pb2 as funding
from tests.support.ledger_credits import usd
from tests.support.ledger_funding import CHARGEBACK, REFUND
from tests.support.ledger_machine import LedgerMachine

KINDS = {"refund": REFUND, "chargeback": CHARGEBACK}
REFUSALS = {
    "unknown": "PURCHASE_NOT_FOUND",
    "reused": "IDEMPOTENCY_KEY_REUSED",
    "too much": "REVERSAL_EXCEEDS_PURCHASE",
    "again": "PURCHASE_ALREADY_REINSTATED",
}


class FundingMachine(LedgerMachine):
    """Every purchase is a grant of the machine, under its key."""

    @rule(
        data=st.data(),
        key=st.integers(0, 5).map(str),
        number=st.integers(0, 4),
        kind=st.sampled_from(["refund", "refund", "chargeback"]),
        share=st.integers(1, 5),
    )
    def reverse_purchase(self, data: st.DataObject, key: str, number: int, kind: str, share: int) -> None:
        """Quarters of what was paid: also all of it, and more."""
        customer, reversal_id = self.a_customer(data), f"re_{number}"
        amount = max(1, self.oracle.grants.get((customer, key), 100) * share // 4)
        expected = self.oracle.reverse_purchase(customer, key, reversal_id, kind, amount)
        call = self.running.server.service.funding.ReversePurchase(
            funding.ReversePurchaseRequest(
                customer_id=customer,
                purchase_key=key,
                reversal_id=reversal_id,
                amount=usd(amount),
                kind=KINDS[kind],
            )
        )
        if expected in REFUSALS:
            assert self._refused(call) == REFUSALS[expected]
        else:
            self._check_reversal(customer, self.run(call), duplicate=expected == "duplicate")

    @rule(data=st.data(), number=st.integers(0, 4), to=st.integers(0, 2), share=st.integers(1, 5))
    def reinstate_purchase(self, data: st.DataObject, number: int, to: int, share: int) -> None:
        customer, reversal_id = self.a_customer(data), f"re_{number}"
        reversal = self.oracle.reversals.get((customer, reversal_id))
        amount = max(1, (reversal.amount if reversal else 100) * share // 4)
        expected = self.oracle.reinstate_purchase(customer, reversal_id, f"adj_{to}", amount)
        call = self.running.server.service.funding.ReinstatePurchase(
            funding.ReinstatePurchaseRequest(
                customer_id=customer,
                reversal_id=reversal_id,
                reinstatement_id=f"adj_{to}",
                amount=usd(amount),
            )
        )
        if expected == "too much":
            assert self._refused(call) == "INVALID_FIELD"
        elif expected in REFUSALS:
            assert self._refused(call) == REFUSALS[expected]
        else:
            self._check_reversal(customer, self.run(call), duplicate=expected == "duplicate")

    @rule(number=st.integers(0, 3), amount=st.sampled_from([-700, -1, 1, 320]))
    def record_fee(self, number: int, amount: int) -> None:
        fee_id = f"{self.customers[0]}-{number}"
        expected = self.oracle.record_fee(fee_id, amount)
        call = self.running.server.service.funding.RecordProcessorFee(
            funding.RecordProcessorFeeRequest(fee_id=fee_id, amount=usd(amount))
        )
        if expected == "reused":
            assert self._refused(call) == "IDEMPOTENCY_KEY_REUSED"
        else:
            assert self.run(call).duplicate == (expected == "duplicate")

    # Twice as often as a customer is frozen: else little would happen.
    @rule(data=st.data(), frozen=st.sampled_from([False, False, True]))
    def freeze_customer(self, data: st.DataObject, frozen: bool) -> None:
        customer, service = self.a_customer(data), self.running.server.operator.directory
        self.oracle.freeze(customer, frozen)
        call: Any = (
            service.FreezeCustomer(directory.FreezeCustomerRequest(customer_id=customer, reason="why"))
            if frozen
            else service.UnfreezeCustomer(
                directory.UnfreezeCustomerRequest(customer_id=customer, reason="why not")
            )
        )
        assert self.run(call).customer.frozen == frozen

    @rule(data=st.data(), frozen=st.sampled_from([False, False, True]))
    def freeze_payouts(self, data: st.DataObject, frozen: bool) -> None:
        organization = data.draw(st.sampled_from(self.organizations))
        service = self.running.server.operator.directory
        self.oracle.freeze(organization, frozen)
        call: Any = (
            service.FreezePayouts(directory.FreezePayoutsRequest(organization_id=organization, reason="why"))
            if frozen
            else service.UnfreezePayouts(
                directory.UnfreezePayoutsRequest(organization_id=organization, reason="why not")
            )
        )
        assert self.run(call).organization.payouts_frozen == frozen

    def _check_reversal(
        self,
        customer: str,
        answer: funding.ReversePurchaseResponse | funding.ReinstatePurchaseResponse,
        *,
        duplicate: bool,
    ) -> None:
        said = answer.reversal
        known = self.oracle.reversals[customer, said.reversal_id]
        assert answer.duplicate == duplicate
        assert (said.purchase_key, said.kind) == (known.purchase, KINDS[known.kind])
        assert (said.amount, said.from_credits) == (usd(known.amount), usd(known.from_credits))
        assert (said.reinstated, said.reinstatement_id) == (usd(known.reinstated), known.reinstatement)
        assert answer.balance.chargebacks == usd(self.oracle.chargebacks[customer])
