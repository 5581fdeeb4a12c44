"""Random operations on one ledger, over gRPC, each answer compared with the oracle's."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.kit import ids
from services.kit.db import Database
from services.kit.money import MAX_AMOUNT_MICROS
from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import CHECKS, run_checks
from tallystick.common.v1 import error_reason_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2, correction_pb2, credit_pb2, payout_debit_pb2
from tallystick.ledger.v1 import credit_service_pb2 as credit
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support import ledger_credits
from tests.support.ledger_credits import OUTCOME, RUN, hold_request, reason_of, release_of, state_of, usd
from tests.support.ledger_oracle import AskedHold, Charge, Claim, Ended, Item, LedgerOracle
from tests.support.ledger_server import LedgerServer
from tests.support.rpc_errors import refusal

numbers = itertools.count()

AMOUNTS = st.one_of(st.integers(0, 30), st.integers(0, 10_000), st.just(10**14))
RESERVED = st.one_of(st.integers(1, 30), st.integers(1, 10_000))
BASIS_POINTS = st.sampled_from([(0, 0), (1500, 290), (3333, 6667), (10_000, 0), (1, 1)])
PURPOSES = {"run": RUN, "outcome": OUTCOME}
PAYOUT_REFUSALS = {
    "refused": "INSUFFICIENT_EARNINGS",
    "frozen": "PAYOUTS_FROZEN",
    "reused": "IDEMPOTENCY_KEY_REUSED",
}
HOLD_REFUSALS = {
    "INSUFFICIENT_CREDITS": "insufficient",
    "CUSTOMER_FROZEN": "frozen",
    "IDEMPOTENCY_KEY_REUSED": "reused",
}
REVERSAL_REFUSALS = {
    "unknown": "PAYOUT_NOT_FOUND",
    "reused": "IDEMPOTENCY_KEY_REUSED",
    "too much": "REVERSAL_EXCEEDS_PAYOUT",
}
CORRECTION_REFUSALS = {"reused": "IDEMPOTENCY_KEY_REUSED", "too much": "CORRECTION_EXCEEDS_CHARGE"}
EARLY, LATE = ledger_credits.in_future(30 * 86_400), Timestamp(seconds=1)


class Invariants:
    """The checks of the audit that are queries, as one prepared statement on one connection.

    An audit connects, and plans each check anew: too much to do after every step.
    """

    def __init__(self, database_url: str) -> None:
        self._connection = psycopg.connect(database_url, autocommit=True)
        self._connection.execute("SET jit = off")
        self._statement = " UNION ALL ".join(
            f"SELECT '{check.name}' WHERE EXISTS ({check.query})" for check in CHECKS if check.query
        ).encode()

    def broken(self) -> list[str]:
        """The names of those that find a difference now, all in one snapshot."""
        return [name for (name,) in self._connection.execute(self._statement, prepare=True)]

    def close(self) -> None:
        self._connection.close()


@dataclass
class Running:
    """A ledger that serves in the background of synchronous tests."""

    runner: asyncio.Runner
    server: LedgerServer

    @cached_property
    def invariants(self) -> Invariants:
        """Of its database. Whoever made this closes it."""
        return Invariants(self.server.database_url)


def intent(item: Item) -> charge_pb2.ChargeIntent:
    """What is sent for an item."""
    message = ledger_credits.intent(
        item.workflow,
        item.gross,
        None if item.claim is None else claim(item.claim),
        None if item.outcome is None else ledger_credits.outcome_hold(*item.outcome, EARLY),
        customer=item.customer,
    )
    del message.payees[:]
    for organization, weight in item.payees:
        message.payees.add(
            organization_id=organization, agent_id=organization.replace("org_", "agt_"), weight=weight
        )
    return message


def claim(claimed: Claim) -> charge_pb2.ReservationClaim:
    if claimed.epoch == 0:
        return ledger_credits.of_hold(claimed.reservation_id)
    expires = LATE if claimed.too_late else EARLY
    return ledger_credits.allocation(claimed.reservation_id, claimed.epoch, claimed.amount, expires)


def asked_hold(customer: str, asked: AskedHold) -> credit.HoldRequest:
    """What is sent for a hold that is asked for."""
    return hold_request(
        asked.hold_id,
        asked.amount,
        PURPOSES[asked.purpose],
        customer=customer,
        expires=LATE if asked.too_late else EARLY,
        content=asked.content or None,
        of=None if asked.of is None else claim(asked.of),
    )


def ended(answer: credit_pb2.EndedReservation) -> Ended:
    return Ended(
        state_of(answer), answer.captured_credits.amount_micros, answer.captured_receivable.amount_micros
    )


def said(verdict: ledger.ChargeVerdict) -> tuple[str, Ended | None]:
    if verdict.HasField("error"):
        assert reason_of(verdict.error) == "IDEMPOTENCY_KEY_REUSED"
        return "reused", None
    posted = verdict.posted
    how = ended(posted.reservation) if posted.HasField("reservation") else None
    return ("duplicate" if posted.duplicate else "posted"), how


async def audit(database_url: str) -> None:
    database = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
    try:
        async with database.begin() as connection:
            await scope(connection, PLATFORM)
            findings = [finding async for finding in run_checks(connection) if finding.count]
        assert findings == []
    finally:
        await database.close()


class LedgerMachine(RuleBasedStateMachine):
    """Each machine has customers and organizations of its own."""

    running: Running

    @initialize(shares=st.lists(BASIS_POINTS, min_size=3, max_size=3))
    def begin(self, shares: list[tuple[int, int]]) -> None:
        number = next(numbers)
        self.customers = [f"cus_{number}-{name}" for name in "ab"]
        self.organizations = [f"org_{number}-{name}" for name in "xyz"]
        self.oracle = LedgerOracle(dict(zip(self.organizations, shares, strict=True)))
        # Of each lease, the remaining amount that came with each version.
        self.versions: dict[tuple[str, int, int], int] = {}

        async def create() -> None:
            for organization, (platform, processing) in zip(self.organizations, shares, strict=True):
                await self.running.server.create_organization(organization, platform, processing)
            for customer in self.customers:
                await self.running.server.create_customer(customer)

        self.run(create())

    def run(self, call: Any) -> Any:
        async def wait() -> Any:
            return await call

        return self.running.runner.run(wait())

    # What may be asked for.

    def a_customer(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.customers))

    def an_epoch(self, data: st.DataObject, customer: str) -> int:
        """Mostly the newest, but also one before and one that is not there yet."""
        newest = self.oracle.newest(customer)
        return max(1, newest - data.draw(st.sampled_from([0, 0, 0, 1, -1])))

    def a_claim(self, data: st.DataObject, customer: str, workflow: str) -> Claim:
        if data.draw(st.booleans()):
            return Claim(
                data.draw(
                    st.sampled_from(["hold-0", "hold-1", "hold-2", "out-0", "out-1", f"rsv-{workflow}-0"])
                )
            )
        # Also that of another workflow: a reservation is captured once, whoever claims it.
        of = data.draw(st.sampled_from([workflow, workflow, "run-0", "run-1"]))
        name = data.draw(st.sampled_from([f"rsv-{of}-0", f"rsv-{of}-1", "out-2"]))
        return self.an_allocation(data, customer, name)

    def an_allocation(self, data: st.DataObject, customer: str, reservation_id: str) -> Claim:
        return Claim(
            reservation_id,
            self.an_epoch(data, customer),
            data.draw(RESERVED),
            too_late=data.draw(st.sampled_from([False, False, False, True])),
        )

    # Charges, grants and limits.

    @rule(data=st.data())
    def post_batch(self, data: st.DataObject) -> None:
        workflows = st.integers(0, 12).map("run-{}".format)
        payees = st.lists(
            st.tuples(st.sampled_from(self.organizations), st.integers(1, 5)),
            min_size=1,
            max_size=3,
            unique_by=lambda payee: payee[0],
        ).map(tuple)
        drawn = data.draw(
            st.lists(
                st.tuples(st.sampled_from(self.customers), workflows, AMOUNTS, payees), min_size=1, max_size=8
            )
        )
        claims: dict[tuple[str, str], tuple[Claim | None, tuple[str, int] | None]] = {}
        for customer, workflow, _, _ in drawn:
            if (customer, workflow) not in claims:
                claims[customer, workflow] = (
                    self.a_claim(data, customer, workflow) if data.draw(st.booleans()) else None,
                    (f"out-{data.draw(st.integers(0, 3))}", data.draw(RESERVED))
                    if data.draw(st.integers(0, 3)) == 0
                    else None,
                )
        self._post([Item(*one, *claims[one[0], one[1]]) for one in drawn])

    def _post(self, items: list[Item]) -> None:
        request = ledger.PostChargesRequest(intents=[intent(item) for item in items])
        response = self.run(self.running.server.service.ledger.PostCharges(request))
        assert [said(verdict) for verdict in response.verdicts] == self.oracle.post(items)
        for item, verdict in zip(items, response.verdicts, strict=True):
            if verdict.HasField("posted"):
                self._check_posted(item, verdict.posted)

    def _check_posted(self, item: Item, posted: ledger.PostedCharge) -> None:
        charge, known = posted.charge, self.oracle.charges[item.customer, item.workflow]
        payment = charge.payment
        assert payment.from_receivable.amount_micros == sum(known.uncollected)
        assert payment.unpaid.amount_micros == sum(known.unearned)
        assert payment.from_credits.amount_micros == known.paid
        assert charge.reservation_id == known.reservation_id
        assert charge.captured.amount_micros == known.captured_credits + known.captured_room
        for earning in charge.earnings:
            assert earning.gross.amount_micros == (
                earning.net.amount_micros
                + earning.platform_fee.amount_micros
                + earning.processing_fee.amount_micros
            )
        if posted.reservation.HasField("lease"):
            assert posted.reservation.lease.epoch == self.oracle.newest(item.customer)
        hold = None if item.outcome is None else self.oracle.holds.get((item.customer, item.outcome[0]))
        assert posted.HasField("outcome_hold") == (hold is not None)
        assert posted.balance.held.amount_micros == self.oracle.held(item.customer)

    @rule(
        data=st.data(),
        amount=st.one_of(st.integers(1, 50), st.integers(1, 100_000), st.integers(1, 10_000_000)),
        key=st.integers(0, 5),
    )
    def grant(self, data: st.DataObject, amount: int, key: int) -> None:
        customer = self.a_customer(data)
        request = ledger.GrantCreditsRequest(
            customer_id=customer,
            amount=usd(amount),
            source=ledger.CREDIT_SOURCE_PURCHASE,
            idempotency_key=str(key),
        )
        if self.oracle.grant(customer, str(key), amount) == "reused":
            assert self._refused(self.running.server.operator.ledger.GrantCredits(request)) == (
                "IDEMPOTENCY_KEY_REUSED"
            )
            return
        granted = self.run(self.running.server.operator.ledger.GrantCredits(request))
        assert granted.balance.available.amount_micros == self.oracle.credits[customer]

    @rule(data=st.data(), limit=st.sampled_from([0, 7, 1000, 50_000]))
    def limit(self, data: st.DataObject, limit: int) -> None:
        customer = self.a_customer(data)
        self.oracle.credit_limit[customer] = limit
        request = directory.SetCreditLimitRequest(customer_id=customer, credit_limit=usd(limit))
        self.run(self.running.server.operator.directory.SetCreditLimit(request))

    # Leases.

    @rule(data=st.data(), wanted=st.one_of(st.just(0), RESERVED), stale=st.sampled_from([0, 0, 1]))
    def open_lease(self, data: st.DataObject, wanted: int, stale: int) -> None:
        customer = self.a_customer(data)
        seen = max(0, self.oracle.newest(customer) - stale)
        opened = self.oracle.open_lease(customer, seen, wanted)
        request = credit.OpenLeaseRequest(
            customer_id=customer, currency_code="USD", seen_epoch=seen, wanted_micros=wanted
        )
        answer = self.run(self.running.server.service.credits.OpenLease(request))
        assert answer.opened == opened
        self._check_granted(customer, self.oracle.newest(customer), answer.granted)

    @rule(data=st.data(), wanted=st.one_of(st.just(0), RESERVED))
    def renew_leases(self, data: st.DataObject, wanted: int) -> None:
        renewals = [(customer, self.an_epoch(data, customer)) for customer in self.customers]
        request = credit.RenewLeasesRequest(
            renewals=[
                credit.LeaseRenewal(
                    customer_id=customer, currency_code="USD", epoch=epoch, wanted_micros=wanted
                )
                for customer, epoch in renewals
            ]
        )
        answer = self.run(self.running.server.service.credits.RenewLeases(request))
        for (customer, epoch), verdict in zip(renewals, answer.verdicts, strict=True):
            if self.oracle.renew_lease(customer, epoch, wanted) == "superseded":
                assert reason_of(verdict.error) == "LEASE_SUPERSEDED"
            else:
                # Renewals ask for the return of what is free as long as the customer owes anything, or is
                # frozen.
                wanted_back = customer in self.oracle.frozen or self.oracle.owed(customer) > 0
                self._check_granted(customer, epoch, verdict.granted, wanted_back=wanted_back)
                self._check_news(customer, verdict.granted)

    def _check_news(self, customer: str, told: credit.GrantedLease) -> None:
        """Whoever knows what was told is told only what it must act on."""
        renewal = credit.LeaseRenewal(
            customer_id=customer,
            currency_code="USD",
            epoch=told.lease.epoch,
            known_version=told.lease.version,
            known_available_micros=told.available.amount_micros,
        )
        request = credit.RenewLeasesRequest(renewals=[renewal])
        (verdict,) = self.run(self.running.server.service.credits.RenewLeases(request)).verdicts
        assert not verdict.HasField("error")
        assert verdict.HasField("granted") == (told.lease.recall or told.customer_frozen)

    @rule(data=st.data(), return_number=st.integers(1, 5), amount=st.one_of(st.just(0), RESERVED))
    def return_lease(self, data: st.DataObject, return_number: int, amount: int) -> None:
        customer = self.a_customer(data)
        epoch = self.an_epoch(data, customer)
        call = self.running.server.service.credits.ReturnLease(
            credit.ReturnLeaseRequest(
                customer_id=customer,
                currency_code="USD",
                epoch=epoch,
                return_number=return_number,
                amount_micros=amount,
            )
        )
        if self.oracle.return_lease(customer, epoch, return_number, amount) == "superseded":
            assert self._refused(call) == "LEASE_SUPERSEDED"
        else:
            self._check_granted(customer, epoch, self.run(call).granted)

    def _check_granted(
        self, customer: str, epoch: int, granted: credit.GrantedLease, *, wanted_back: bool = False
    ) -> None:
        lease = self.oracle.leases[customer, epoch]
        assert granted.lease.epoch == epoch
        assert granted.lease.remaining.amount_micros == lease.remaining
        assert granted.lease.recall == (lease.recall or (wanted_back and lease.remaining > 0))
        assert granted.customer_frozen == (customer in self.oracle.frozen)
        assert granted.available.amount_micros == self.oracle.credits[customer]
        assert granted.credit_room.amount_micros == self.oracle.room(customer)

    # Holds and releases.

    @rule(data=st.data())
    def place_holds(self, data: st.DataObject) -> None:
        drawn = data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from(self.customers),
                    st.sampled_from(["hold-0", "hold-1", "hold-2", "out-0", "run-0", "run-1", "run-2"]),
                    RESERVED,
                    st.sampled_from(["", "1", "1", "2"]),
                ),
                min_size=1,
                max_size=6,
                unique_by=lambda one: one[:2],
            )
        )
        self._place([(one[0], self._asked_hold(data, *one)) for one in drawn])

    def _place(self, asked: list[tuple[str, AskedHold]]) -> None:
        wanted = [self.oracle.place_hold(customer, one) for customer, one in asked]
        answer = self.run(
            self.running.server.service.credits.PlaceHolds(
                credit.PlaceHoldsRequest(holds=[asked_hold(customer, one) for customer, one in asked])
            )
        )
        assert [self._placed(verdict) for verdict in answer.verdicts] == wanted
        for (customer, one), verdict in zip(asked, answer.verdicts, strict=True):
            if verdict.placed.HasField("lease"):
                assert one.of is not None
                lease = self.oracle.leases[customer, one.of.epoch]
                assert verdict.placed.lease.epoch == one.of.epoch == self.oracle.newest(customer)
                assert verdict.placed.lease.remaining.amount_micros == lease.remaining

    def _asked_hold(
        self, data: st.DataObject, customer: str, name: str, amount: int, content: str
    ) -> AskedHold:
        late = not name.startswith("out") and data.draw(st.integers(0, 9)) == 0
        if not name.startswith("run"):
            purpose = "outcome" if name.startswith("out") else "run"
            return AskedHold(name, purpose, amount, content, too_late=late)
        # What charges may claim in a lease at the same time.
        reservation_id = f"rsv-{name}-0"
        of = self.an_allocation(data, customer, reservation_id) if content else None
        return AskedHold(reservation_id, "run", amount, content, late, of)

    def _placed(self, verdict: credit.HoldVerdict) -> str:
        if not verdict.HasField("error"):
            return "duplicate" if verdict.placed.duplicate else "placed"
        reason = reason_of(verdict.error)
        if reason == "RESERVATION_ENDED":
            return verdict.error.metadata["state"]
        return HOLD_REFUSALS[reason]

    @rule(data=st.data(), workflow=st.integers(0, 12).map("run-{}".format))
    def release(self, data: st.DataObject, workflow: str) -> None:
        self._release([(one, self.a_claim(data, one, workflow)) for one in self.customers])

    @rule(data=st.data(), number=st.integers(0, 3), amount=RESERVED, gross=AMOUNTS)
    def convert_and_end(self, data: st.DataObject, number: int, amount: int, gross: int) -> None:
        """An allocation becomes a hold, and then its tokens, old and new, come in any order."""
        customer, workflow = self.a_customer(data), f"turn-{number}"
        self._fund(customer, f"for {workflow}")
        old = Claim(f"rsv-{workflow}", self.an_epoch(data, customer), data.draw(RESERVED))
        steps = ["convert", "convert", "settle old", "settle new", "release old", "release new"]
        for step in data.draw(st.lists(st.sampled_from(steps), min_size=1, max_size=4)):
            claimed = old if step.endswith("old") else Claim(old.reservation_id)
            if step == "convert":
                self._place([(customer, AskedHold(old.reservation_id, "run", amount, "1", of=old))])
            elif step.startswith("settle"):
                outcome = (f"out-{number}", amount) if data.draw(st.booleans()) else None
                payees = ((self.organizations[0], 1),)
                self._post([Item(customer, workflow, gross, payees, claimed, outcome)])
            else:
                self._release([(customer, claimed)])

    def _fund(self, customer: str, key: str) -> None:
        """A lease with something in it: without, there is little to convert."""
        granted = ledger.GrantCreditsRequest(
            customer_id=customer,
            amount=usd(1_000_000),
            source=ledger.CREDIT_SOURCE_PURCHASE,
            idempotency_key=key,
        )
        self.oracle.grant(customer, key, 1_000_000)
        self.run(self.running.server.operator.ledger.GrantCredits(granted))
        seen = self.oracle.newest(customer)
        lease = self.oracle.leases.get((customer, seen))
        if lease is None or not lease.remaining:
            opened = self.oracle.open_lease(customer, seen, 5000)
            request = credit.OpenLeaseRequest(
                customer_id=customer, currency_code="USD", seen_epoch=seen, wanted_micros=5000
            )
            assert self.run(self.running.server.service.credits.OpenLease(request)).opened == opened

    def _release(self, claims: list[tuple[str, Claim]]) -> None:
        releases = []
        for customer, claimed in claims:
            releases.append((customer, claimed, release_of(claim(claimed), customer=customer)))
        answer = self.run(
            self.running.server.service.credits.ReleaseReservations(
                credit.ReleaseReservationsRequest(releases=[request for _, _, request in releases])
            )
        )
        assert [ended(verdict.released.ended) for verdict in answer.verdicts] == [
            self.oracle.release(customer, claimed) for customer, claimed, _ in releases
        ]

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """Something expires, and the reaper comes by."""
        standing: list[tuple[str, int | str]] = [
            *(key for key, lease in self.oracle.leases.items() if not lease.over),
            *(key for key, hold in self.oracle.holds.items() if hold.state == "held"),
        ]
        if not standing:
            return
        customer, what = data.draw(st.sampled_from(standing))
        with psycopg.connect(self.running.server.database_url, autocommit=True) as superuser:
            if isinstance(what, int):
                self.oracle.expire_lease(customer, what)
                superuser.execute(
                    "UPDATE ledger.credit_lease SET expire_time = now()"
                    " WHERE customer_id = %s AND epoch = %s",
                    (customer, what),
                )
            else:
                self.oracle.end_hold(customer, what, "expired")
                superuser.execute(
                    "UPDATE ledger.hold SET expire_time = now() - interval '1 day'"
                    " WHERE customer_id = %s AND hold_id = %s",
                    (customer, what),
                )
            superuser.execute("SELECT ledger.reap_leases(10), ledger.reap_holds(10)")

    # Payouts.

    @rule(data=st.data(), number=st.integers(0, 4), share=st.sampled_from([0, 1, 2, 3, 4, 5]))
    def debit_payout(self, data: st.DataObject, number: int, share: int) -> None:
        """Quarters of what there is: also all of it, and more."""
        organization = data.draw(st.sampled_from(self.organizations))
        amount = max(1, self.oracle.collected[organization] * share // 4)
        call = self.running.server.service.earnings.DebitPayout(
            earnings.DebitPayoutRequest(
                organization_id=organization, payout_id=f"po_{number}", amount=usd(amount)
            )
        )
        expected = self.oracle.debit_payout(organization, f"po_{number}", amount)
        if expected in PAYOUT_REFUSALS:
            assert self._refused(call) == PAYOUT_REFUSALS[expected]
        else:
            self._check_debit(organization, expected, self.run(call).debit)

    @rule(data=st.data(), number=st.integers(0, 4), state=st.sampled_from(["completed", "returned"]))
    def end_payout(self, data: st.DataObject, number: int, state: str) -> None:
        organization = data.draw(st.sampled_from(self.organizations))
        service, names = self.running.server.service.earnings, (organization, f"po_{number}")
        call: Any = (
            service.CompletePayout(
                earnings.CompletePayoutRequest(organization_id=names[0], payout_id=names[1])
            )
            if state == "completed"
            else service.ReturnPayout(
                earnings.ReturnPayoutRequest(organization_id=names[0], payout_id=names[1])
            )
        )
        expected = self.oracle.end_payout(*names, state)
        if expected == "unknown":
            assert self._refused(call) == "PAYOUT_NOT_FOUND"
        elif expected != state:
            assert self._refused(call) == "PAYOUT_STATE_CONFLICT"
        else:
            self._check_debit(organization, expected, self.run(call).debit)

    @rule(data=st.data(), number=st.integers(0, 4), key=st.integers(0, 2), share=st.integers(1, 4))
    def reverse_payout(self, data: st.DataObject, number: int, key: int, share: int) -> None:
        organization = data.draw(st.sampled_from(self.organizations))
        known = self.oracle.payouts.get((organization, f"po_{number}"))
        amount = max(1, (known.amount if known else 100) * share // 4)
        call = self.running.server.service.earnings.ReversePayout(
            earnings.ReversePayoutRequest(
                organization_id=organization,
                payout_id=f"po_{number}",
                reversal_id=f"trr_{key}",
                amount=usd(amount),
            )
        )
        expected = self.oracle.reverse_payout(organization, f"po_{number}", f"trr_{key}", amount)
        if expected in ("reversed", "duplicate"):
            answer = self.run(call)
            assert answer.duplicate == (expected == "duplicate")
            self._check_debit(organization, "completed", answer.debit)
        else:
            assert self._refused(call) == REVERSAL_REFUSALS.get(expected, "PAYOUT_STATE_CONFLICT")

    def _check_debit(self, organization: str, state: str, debit: payout_debit_pb2.PayoutDebit) -> None:
        known = self.oracle.payouts[organization, debit.payout_id]
        said = payout_debit_pb2.PayoutDebitState.Name(debit.state).removeprefix("PAYOUT_DEBIT_STATE_").lower()
        assert known.state == state
        assert said == ("refused" if state in PAYOUT_REFUSALS else state)
        assert debit.refuse_reason == (
            error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{PAYOUT_REFUSALS[state]}")
            if state in PAYOUT_REFUSALS
            else error_reason_pb2.ERROR_REASON_UNSPECIFIED
        )
        assert debit.amount.amount_micros == known.amount
        assert debit.reversed.amount_micros == known.reversed

    # Corrections.

    @rule(
        data=st.data(),
        correction=st.sampled_from("abc"),
        amount=st.one_of(st.integers(1, 3), st.sampled_from(["third", "all", "too much"])),
        reason=st.sampled_from(["wrong", "wrong", "wrong", "late"]),
    )
    def correct_charge(self, data: st.DataObject, correction: str, amount: int | str, reason: str) -> None:
        """A few micros, a third of what is left of a charge, all of it, or more."""
        correctable = [key for key, charge in self.oracle.charges.items() if charge.item.gross]
        if not correctable:
            return
        key = data.draw(st.sampled_from(correctable))
        charge = self.oracle.charges[key]
        left = charge.item.gross - charge.corrected - charge.written_off
        if not isinstance(amount, int):
            amount = max(1, {"third": left // 3, "all": left, "too much": left + 1}[amount])
            amount = min(amount, MAX_AMOUNT_MICROS)
        call = self.running.server.operator.ledger.CorrectCharge(
            ledger.CorrectChargeRequest(
                charge_id=ids.charge_id(*key, "BASE", 0),
                correction_id=correction,
                amount=usd(amount),
                reason=reason,
            )
        )
        expected = self.oracle.correct_charge(key, correction, amount, reason)
        if expected in CORRECTION_REFUSALS:
            assert self._refused(call) == CORRECTION_REFUSALS[expected]
        else:
            answer = self.run(call)
            assert answer.duplicate == (expected == "duplicate")
            self._check_correction(charge, answer.correction)
            self._check_corrected(charge, answer.charge)
            assert answer.balance.available.amount_micros == self.oracle.credits[key[0]]

    def _check_correction(self, charge: Charge, answer: correction_pb2.Correction) -> None:
        amount, reason, legs = charge.corrections[answer.correction_id]
        assert (answer.amount.amount_micros, answer.reason) == (amount, reason)
        refund = answer.refund.unpaid, answer.refund.receivable, answer.refund.credits
        assert sum(part.amount_micros for part in refund) == amount
        assert [
            part.amount_micros
            for one in answer.earnings
            for part in (one.net, one.platform_fee, one.processing_fee)
        ] == legs

    def _check_corrected(self, charge: Charge, answer: charge_pb2.Charge) -> None:
        assert answer.corrected.amount_micros == charge.corrected
        assert answer.payment.from_credits.amount_micros == charge.paid
        assert answer.payment.from_receivable.amount_micros == sum(charge.uncollected)
        assert answer.payment.unpaid.amount_micros == sum(charge.unearned)
        assert answer.written_off.amount_micros == charge.written_off
        # What is left of each leg, paid or not, or was given up.
        parts = [charge.collected, charge.uncollected, charge.unearned]
        if charge.given_up:
            parts.append(charge.given_up)
        left = [sum(leg) for leg in zip(*parts, strict=True)]
        assert [one.net.amount_micros - one.corrected_net.amount_micros for one in answer.earnings] == left[
            ::3
        ]
        assert sum(left) == charge.item.gross - charge.corrected

    def _refused(self, call: Any) -> str:
        return self.running.runner.run(refusal(call)).reason

    # After every step.

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "oracle"):
            self.run(self._compare())

    async def _compare(self) -> None:
        for customer in self.customers:
            await self._compare_customer(customer)
        for organization in self.organizations:
            await self._compare_organization(organization)

    async def _compare_customer(self, customer: str) -> None:
        oracle, operator = self.oracle, self.running.server.operator
        answer = await operator.ledger.GetCustomerBalance(
            ledger.GetCustomerBalanceRequest(customer_id=customer)
        )
        balance = answer.balance
        assert balance.available.amount_micros == oracle.credits[customer]
        assert balance.receivable.amount_micros == oracle.receivable(customer)
        assert balance.unpaid.amount_micros == oracle.unpaid(customer)
        assert balance.credit_limit.amount_micros == oracle.credit_limit[customer]
        assert balance.held.amount_micros == oracle.held(customer)
        assert balance.chargebacks.amount_micros == oracle.chargebacks[customer]
        assert balance.frozen == (customer in oracle.frozen)
        # Nothing is lost, and nothing comes from nowhere: what went back was paid for, or is owed.
        free, held = balance.available.amount_micros, balance.held.amount_micros
        funded = oracle.granted(customer) - oracle.gone(customer) + oracle.chargebacks[customer]
        assert funded + oracle.lost[customer] == oracle.spent(customer) + held + free
        self._compare_held(customer, balance)
        leases = await operator.credits.ListLeases(credit.ListLeasesRequest(customer_id=customer))
        newest = oracle.newest(customer)
        assert {
            one.epoch: (one.remaining.amount_micros, one.recall and not one.draining, one.draining)
            for one in leases.leases
        } == {
            epoch: (lease.remaining, lease.recall and epoch == newest, epoch != newest)
            for (owner, epoch), lease in oracle.leases.items()
            if owner == customer and lease.remaining
        }
        for one in leases.leases:
            # Of two answers with one version none is newer: they say the same.
            remaining = one.remaining.amount_micros
            assert self.versions.setdefault((customer, one.epoch, one.version), remaining) == remaining
        holds = await operator.credits.ListHolds(credit.ListHoldsRequest(customer_id=customer))
        assert {
            one.hold_id: (one.from_credits.amount_micros, one.from_receivable.amount_micros)
            for one in holds.holds
        } == {
            hold_id: (hold.credits, hold.room)
            for (owner, hold_id), hold in oracle.holds.items()
            if owner == customer and hold.state == "held"
        }

    def _compare_held(self, customer: str, balance: account_pb2.CustomerBalance) -> None:
        parts, holds = balance.held_credits, self.oracle.holds_of(customer)
        current = self.oracle.leases.get((customer, self.oracle.newest(customer)))
        leased = current.remaining if current else 0
        assert parts.leased.amount_micros == leased
        assert parts.lease_epoch == (self.oracle.newest(customer) if current and not current.over else 0)
        assert parts.draining.amount_micros == self.oracle.leased(customer) - leased
        for amount, purpose in ((parts.runs, "run"), (parts.outcomes, "outcome")):
            assert amount.amount_micros == sum(hold.credits for hold in holds if hold.purpose == purpose)
        assert balance.held_receivable.amount_micros == sum(hold.room for hold in holds)

    async def _compare_organization(self, organization: str) -> None:
        oracle = self.oracle
        reply = await self.running.server.operator.ledger.GetEarningsBalance(
            ledger.GetEarningsBalanceRequest(organization_id=organization)
        )
        earned = reply.balance
        total = earned.available.amount_micros + earned.pending.amount_micros
        assert total == oracle.collected[organization] + oracle.uncollected[organization]
        assert earned.clawed_back.amount_micros == max(0, -earned.available.amount_micros)
        assert earned.uncollected.amount_micros == oracle.uncollected[organization]
        assert earned.platform_fees.amount_micros == oracle.platform_fees[organization]
        assert earned.processing_fees.amount_micros == oracle.processing_fees[organization]
        listed = await self.running.server.operator.earnings.ListPayoutDebits(
            earnings.ListPayoutDebitsRequest(organization_id=organization)
        )
        known = {payout_id for owner, payout_id in oracle.payouts if owner == organization}
        assert {debit.payout_id for debit in listed.debits} == known
        for debit in listed.debits:
            self._check_debit(organization, oracle.payouts[organization, debit.payout_id].state, debit)

    def teardown(self) -> None:
        if hasattr(self, "oracle"):
            self.run(audit(self.running.server.database_url))
