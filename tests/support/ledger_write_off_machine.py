"""The machine of the ledger, and in between what will not be paid is given up."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from services.kit import ids
from services.kit.money import MAX_AMOUNT_MICROS
from tallystick.ledger.v1 import funding_service_pb2 as pb
from tallystick.ledger.v1 import write_off_pb2
from tests.support.ledger_credits import usd
from tests.support.ledger_funding_machine import FundingMachine

REFUSALS = {"reused": "IDEMPOTENCY_KEY_REUSED", "too much": "WRITE_OFF_EXCEEDS_DEBT"}
# All of it, quarters of it, and more than there is.
SHARES = st.sampled_from([None, None, 1, 2, 3, 4, 5])
KEYS = st.integers(0, 5).map("key-{}".format)


class WriteOffMachine(FundingMachine):
    """What is open of charges, chargebacks, and earnings below zero."""

    @rule(data=st.data(), part=st.sampled_from(["unpaid", "receivable"]), share=SHARES, key=KEYS)
    def write_off_charge(self, data: st.DataObject, part: str, share: int | None, key: str) -> None:
        charges = self.oracle.charges
        owing = [one for one, charge in charges.items() if sum(charge.unearned) + sum(charge.uncollected)]
        # Mostly where something is open.
        candidates = owing or list(charges)
        if not candidates:
            return
        of = data.draw(st.sampled_from(candidates))
        legs = charges[of].unearned if part == "unpaid" else charges[of].uncollected
        amount = _share(sum(legs), share)
        expected = self.oracle.write_off_charge(of, part, amount, key)
        answer = self._write_off(expected, part, amount, key, charge_id=ids.charge_id(*of, "BASE", 0))
        if answer is not None:
            assert answer.write_off.owner_id == of[0]

    @rule(data=st.data(), share=SHARES, key=KEYS)
    def write_off_chargebacks(self, data: st.DataObject, share: int | None, key: str) -> None:
        customer = self.a_customer(data)
        amount = _share(self.oracle.chargebacks[customer], share)
        expected = self.oracle.write_off_chargebacks(customer, amount, key)
        self._write_off(expected, "chargebacks", amount, key, owner_id=customer)

    @rule(data=st.data(), share=SHARES, key=KEYS)
    def write_off_clawback(self, data: st.DataObject, share: int | None, key: str) -> None:
        below = [one for one in self.organizations if self.oracle.collected[one] < 0]
        organization = data.draw(st.sampled_from(below or self.organizations))
        amount = _share(max(0, -self.oracle.collected[organization]), share)
        expected = self.oracle.write_off_clawback(organization, amount, key)
        self._write_off(expected, "clawback", amount, key, owner_id=organization)

    def _write_off(
        self, expected: str, kind: str, amount: int | None, key: str, **of: str
    ) -> pb.WriteOffResponse | None:
        call: Any = self.running.server.operator.funding.WriteOff(
            pb.WriteOffRequest(
                kind=write_off_pb2.WriteOffKind.Value(f"WRITE_OFF_KIND_{kind.upper()}"),
                amount=None if amount is None else usd(amount),
                reason="will not be paid any more",
                idempotency_key=key,
                **of,
            )
        )
        if expected in REFUSALS:
            assert self._refused(call) == REFUSALS[expected]
            return None
        answer: pb.WriteOffResponse = self.run(call)
        assert answer.duplicate == (expected == "duplicate")
        assert amount is None or answer.write_off.amount == usd(amount)
        return answer


def _share(owed: int, quarters: int | None) -> int | None:
    # No request may name more, whatever is owed.
    return None if quarters is None else min(max(1, owed * quarters // 4), MAX_AMOUNT_MICROS)
