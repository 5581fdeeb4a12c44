"""No money appears or vanishes: whatever is called in whatever order, balances are sums of their bookings."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any
from urllib.parse import urlencode

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sandbox.stripe.charges import DISPUTE_FEE, fee_on
from sandbox.stripe.clock import Clock
from sandbox.stripe.commands.registry import perform
from sandbox.stripe.control import COMMANDS
from sandbox.stripe.errors import StripeError
from sandbox.stripe.gateway import Gateway, Incoming
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.world import ApiKey, World
from tests.unit.sandbox.stripe.driving import START

# Few different ones, so that they often meet exactly what there is.
amounts = st.sampled_from([1, 299, 300, 700, 1_000, 1_001])
CARDS = ["visa", "bypassPending", "createDispute", "refundFail", "pendingRefund", "chargeDeclined"]
# Of a card payment the least is 50.
payments = st.integers(50, 5_000)


class Conservation(RuleBasedStateMachine):
    """Random calls and commands, on a stand-in without a server around it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Clock(START, frozen=True), "conservation", "http://127.0.0.1:1")
        self.world.keys["sk"] = ApiKey("sk")
        self.gateway = Gateway(self.world)
        self.calls = 0
        self.funded = 0
        self.accounts: list[str] = []

    def call(self, method: str, path: str, account: str = "", **params: object) -> tuple[int, Any]:
        self.calls += 1
        headers = {"authorization": "Bearer sk", "idempotency-key": f"k{self.calls}"}
        headers |= {"stripe-account": account} if account else {}
        form = urlencode({name: value for name, value in params.items() if value is not None})
        query, body = ("", form) if method == "POST" else (form, "")
        incoming = Incoming(method, path, query, headers, body.encode())
        answer = asyncio.run(self.gateway.answer(incoming))
        return answer.status, json.loads(answer.body)

    def command(self, words: str, **arguments: object) -> None:
        # What is refused is as good a step as any.
        with contextlib.suppress(StripeError):
            asyncio.run(perform(self.world, COMMANDS[words.replace(" ", "/")], arguments))

    def refuses_cleanly(self, method: str, path: str, account: str = "", **params: object) -> None:
        """What is refused leaves every balance as it was; a declined card books nothing either."""
        before = self.balances()
        status, _ = self.call(method, path, account, **params)
        assert status < 500
        if status != 200:
            assert self.balances() == before

    def balances(self) -> dict[str, Any]:
        return {owner: self.world.balances.view(owner) for owner in [PLATFORM, *self.accounts]}

    def pick(self, data: st.DataObject, kind: str) -> tuple[str, Any] | None:
        """Any object of a kind, and its owner."""
        found = self.world.store.everywhere(kind)
        if not found:
            return None
        picked = found[data.draw(st.integers(0, len(found) - 1))]
        return self.world.store.owner(picked["id"]), picked

    @initialize()
    def begin(self) -> None:
        for _ in range(3):
            _, made = self.call(
                "POST", "/v1/accounts", type="express", **{"capabilities[transfers][requested]": "true"}
            )
            self.command("account onboard", account=made["id"])
            self.accounts.append(made["id"])
        # Enough for most calls to succeed.
        for account in ["", *self.accounts]:
            self.command("balance fund", amount=3_000, account=account)
            self.funded += 3_000

    @rule(amount=st.integers(-500, 5_000), who=st.integers(0, 5))
    def fund(self, amount: int, who: int) -> None:
        self.command("balance fund", amount=amount, account=(["", "", "", *self.accounts])[who])
        self.funded += amount

    @rule(amount=amounts, who=st.integers(0, 2))
    def transfer(self, amount: int, who: int) -> None:
        to = self.accounts[who]
        self.refuses_cleanly("POST", "/v1/transfers", amount=amount, currency="usd", destination=to)

    @rule(data=st.data(), amount=amounts, who=st.integers(0, 2))
    def transfer_of_a_charge(self, data: st.DataObject, amount: int, who: int) -> None:
        if (found := self.pick(data, "charge")) is not None:
            self.refuses_cleanly(
                "POST",
                "/v1/transfers",
                amount=amount,
                currency="usd",
                destination=self.accounts[who],
                source_transaction=found[1]["id"],
            )

    @rule(data=st.data(), amount=st.none() | amounts)
    def reverse(self, data: st.DataObject, amount: int | None) -> None:
        if (found := self.pick(data, "transfer")) is not None:
            self.refuses_cleanly("POST", f"/v1/transfers/{found[1]['id']}/reversals", amount=amount)

    @rule(who=st.integers(0, 2), off=st.booleans())
    def reserves(self, who: int, off: bool) -> None:
        self.command("account reserves", account=self.accounts[who], off=off)

    @rule(amount=amounts, who=st.integers(0, 3))
    def payout(self, amount: int, who: int) -> None:
        account = ["", *self.accounts][who]
        self.refuses_cleanly("POST", "/v1/payouts", account, amount=amount, currency="usd")

    @rule(data=st.data(), what=st.sampled_from(["submit", "arrive", "fail", "cancel"]))
    def payout_goes_on(self, data: st.DataObject, what: str) -> None:
        if (found := self.pick(data, "payout")) is None:
            return
        owner, payout = found
        if what == "cancel":
            account = "" if owner == PLATFORM else owner
            self.refuses_cleanly("POST", f"/v1/payouts/{payout['id']}/cancel", account)
        else:
            self.command(f"payout {what}", payout=payout["id"])

    @rule(amount=payments, card=st.sampled_from(CARDS))
    def pay(self, amount: int, card: str) -> None:
        method = f"pm_card_{card}"
        self.refuses_cleanly(
            "POST",
            "/v1/payment_intents",
            amount=amount,
            currency="usd",
            confirm="true",
            payment_method=method,
        )

    @rule(data=st.data(), amount=st.none() | amounts)
    def refund(self, data: st.DataObject, amount: int | None) -> None:
        if (found := self.pick(data, "charge")) is not None:
            account = "" if found[0] == PLATFORM else found[0]
            self.refuses_cleanly("POST", "/v1/refunds", account, charge=found[1]["id"], amount=amount)

    @rule(data=st.data())
    def refund_fails(self, data: st.DataObject) -> None:
        if (found := self.pick(data, "refund")) is not None:
            self.command("refund fail", refund=found[1]["id"])

    @rule(data=st.data())
    def dispute(self, data: st.DataObject) -> None:
        if (found := self.pick(data, "charge")) is not None:
            self.command("charge dispute", charge=found[1]["id"])

    @rule(data=st.data(), won=st.booleans())
    def decide(self, data: st.DataObject, won: bool) -> None:
        if (found := self.pick(data, "dispute")) is not None:
            self.command("dispute decide", dispute=found[1]["id"], won=won)

    @rule(seconds=st.sampled_from([1, 3_600, 86_400, 300_000]))
    def time_passes(self, seconds: int) -> None:
        self.command("clock advance", seconds=seconds)

    @rule(who=st.integers(0, 3))
    def settle(self, who: int) -> None:
        self.command("balance settle", account=["", *self.accounts][who])

    @invariant()
    def balances_are_sums_of_transactions(self) -> None:
        owed = 0
        for owner, shown in self.balances().items():
            booked = self.world.store.all("balance_transaction", owner)
            available, pending = shown["available"][0]["amount"], shown["pending"][0]["amount"]
            assert pending == sum(item["net"] for item in booked if item["status"] == "pending")
            settled = sum(item["net"] for item in booked if item["status"] == "available")
            if owner == PLATFORM:
                reserved = shown["connect_reserved"][0]["amount"]
                assert settled == available + reserved
            else:
                assert settled == available
                owed += max(0, -available)
        if self.accounts:
            assert owed == self.world.balances.reserved("usd")

    @invariant()
    def the_whole_is_what_came_and_went(self) -> None:
        everywhere = self.world.store.everywhere
        came = self.funded
        for charge in everywhere("charge"):
            if charge["status"] == "succeeded" and charge["source_transfer"] is None:
                came += charge["amount"] - fee_on(charge["amount"])
        for refund in everywhere("refund"):
            # Those of a transfer's payment stay among ourselves.
            if refund["status"] != "failed" and refund["charge"].startswith("ch_"):
                came -= refund["amount"]
        came -= sum(
            dispute["amount"] + DISPUTE_FEE for dispute in everywhere("dispute") if dispute["status"] != "won"
        )
        came -= sum(
            payout["amount"]
            for payout in everywhere("payout")
            if payout["status"] not in ("failed", "canceled")
        )
        assert came == sum(item["net"] for item in everywhere("balance_transaction"))

    @invariant()
    def each_account_has_what_was_transferred(self) -> None:
        for account in self.accounts:
            transfers = [
                item for item in self.world.store.everywhere("transfer") if item["destination"] == account
            ]
            booked = self.world.store.all("balance_transaction", account)
            net = sum(item["net"] for item in booked if item["type"] in ("payment", "payment_refund"))
            assert net == sum(item["amount"] - item["amount_reversed"] for item in transfers)

    @invariant()
    def nothing_is_reversed_or_refunded_beyond_the_whole(self) -> None:
        for transfer in self.world.store.everywhere("transfer"):
            assert 0 <= transfer["amount_reversed"] <= transfer["amount"]
        for charge in self.world.store.everywhere("charge"):
            assert 0 <= charge["amount_refunded"] <= charge["amount"]

    @invariant()
    def every_answer_and_event_is_valid(self) -> None:
        assert list(self.world.record.violations) == []


TestConservation = Conservation.TestCase
TestConservation.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
