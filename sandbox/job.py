"""The main job, step by step, against a stack that is up."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sandbox.books import Books, Funds, Journal, Standing
from sandbox.calls import in_flight
from sandbox.host import AgentHost
from sandbox.payday import Paid, Payday
from sandbox.register import ONE_DOLLAR, Operator
from sandbox.replay import (
    CAPPED_CUSTOMER,
    CUSTOMERS,
    ONE_DOLLAR_CUSTOMER,
    BadLine,
    Party,
    Recording,
    ReplayError,
    Shift,
    Survey,
    Work,
)
from sandbox.replies import REFUSALS, Answer, Replies
from sandbox.report import OrganizationRow, Steps
from sandbox.reports import Reports
from sandbox.runs import RunHost
from sandbox.second_act import SecondAct, Stage, decided
from sandbox.shop import MOST_MICROS, Shop, chargeable
from sandbox.stack import ROOT, Stack
from services.kit.client import connect
from tallystick.ledger.v1.ledger_service_pb2 import GetChargeRequest
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.metering.v1.budget_service_pb2 import GetBudgetResponse
from tallystick.metering.v1.metering_service_pb2 import GetOutcomeRequest
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.metering.v1.outcome_pb2 import (
    DEFERRED_OUTCOME_STATE_EXPIRED,
    DEFERRED_OUTCOME_STATE_PENDING,
    DeferredOutcome,
)

if TYPE_CHECKING:
    from tallystick.ledger.v1.charge_pb2 import Charge

# Charges that are also asked for one by one.
SAMPLE = 50
_SECOND_US = 1_000_000
# Long after its time an outcome is still pending only if outcomes do not expire at all.
_EXPIRY_SECONDS = 60.0
_POLL_SECONDS = 0.2
_OUTCOMES_IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class Traffic:
    """A recording, what it holds, and how its times become ours."""

    recording: Recording
    survey: Survey
    shift: Shift

    @property
    def good_lines(self) -> int:
        return self.survey.lines - self.survey.bad_lines


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the books and the replies stand."""

    standing: Standing
    newest: dict[str, str]
    position: int
    charges: int
    refused: list[str]
    bad_lines: int
    answers: int
    # How each payout ended.
    payouts: list[bytes]


class Job:
    """Everything the demo does over gRPC, as the operator and as an agent host. Used as a context manager."""

    def __init__(self, stack: Stack, traffic: Sequence[Traffic], report: Callable[[BadLine], None]) -> None:
        self._stack = stack
        self._traffic = traffic
        self._report = report
        self.host_key = stack.operator_key.path.with_name("host.key")
        self.replies = Replies()
        self.unpaid_before_top_up = 0
        self.unpaid = 0
        # What the customer who runs short could spend at first, in micros.
        self.short_credits = 0
        self.funds: dict[str, Funds] = {}
        self.budget = GetBudgetResponse()
        self.paid = Paid()
        # API keys of the organizations' owners.
        self._owners: dict[str, str] = {}
        # Outcomes that fell to their default.
        self.expired = 0
        # Good lines reported so far, repeats included.
        self._sent = 0
        self._invariants: dict[str, bool] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            key = self._stack.operator_key.read()
            ledger = await opened.enter_async_context(connect(self._stack.endpoints.ledger, key))
            metering = await opened.enter_async_context(connect(self._stack.endpoints.metering, key))
            payouts = await opened.enter_async_context(connect(self._stack.endpoints.payouts, key))
            reporting = await opened.enter_async_context(connect(self._stack.endpoints.reporting, key))
            self._ledger = LedgerServiceStub(ledger)
            self._metering = MeteringServiceStub(metering)
            self._operator = Operator(ledger, metering)
            self._books = Books(
                self._ledger,
                self._metering,
                customer_ids=CUSTOMERS,
                organization_ids={party.organization_id for party in self._parties()},
            )
            self._reports = Reports(reporting)
            self._channels = metering, reporting
            self._shop = Shop(payouts)
            self._payday = Payday(
                payouts, self._stack.endpoints.payouts, self._stack.endpoints.stripe or "", self._books
            )
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    @property
    def journal(self) -> Journal:
        return self._books.journal

    async def set_up(self) -> None:
        """Register everybody, sell the customers their credits, publish the prices, and make the host's key.

        Raises:
            ReplayError: the ledger was used before, so that what is read back would not be of this replay.
        """
        await self.journal.read(self._ledger)
        if self.journal.last_position > 0:
            raise ReplayError("this ledger was used before: give the demo an empty database")
        await self._operator.register(self._parties())
        # As much as a card can be charged at once, far more than such files come to: nobody else is short at
        # the start of a run.
        await self._shop.open(
            (customer_id, ONE_DOLLAR if customer_id == ONE_DOLLAR_CUSTOMER else MOST_MICROS)
            for customer_id in CUSTOMERS
        )
        await self._operator.create_budget()
        self.short_credits = (await self._books.funds())[ONE_DOLLAR_CUSTOMER].available
        # A moment before the first event: a price applies from its effective time on.
        firsts = [
            one.shift.reported(one.survey.first_us)
            for one in self._traffic
            if one.survey.first_us is not None
        ]
        if firsts:
            await self._operator.publish_prices(min(firsts) - _SECOND_US)
        secret = await self._operator.create_host_key()
        with os.fdopen(os.open(self.host_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secret)

    async def replay(self, traffic: Traffic, step: Steps) -> None:
        """Act out one recording as its agent host; `step` is told of every line answered."""

        def answered(work: Work, answer: Answer) -> None:
            bad_line = self.replies.hear(work, answer)
            if bad_line is not None:
                self._report(bad_line)
            step()

        self._sent += traffic.good_lines
        async with connect(self._stack.endpoints.metering, self.host_key.read_text()) as channel:
            metering = MeteringServiceStub(channel)
            host = RunHost(metering) if traffic.recording.authorized else AgentHost(metering)
            await host.replay(traffic.recording.work(), traffic.shift, answered)

    async def let_outcomes_expire(self) -> None:
        """Wait until nobody waits for an outcome any more, and all that was held is back."""
        bonus = self.expired = 0

        async def look(outcome_id: str) -> None:
            nonlocal bonus
            outcome = await self._decided(outcome_id)
            self.expired += outcome.state == DEFERRED_OUTCOME_STATE_EXPIRED
            bonus += outcome.bonus.amount_micros

        await in_flight(_OUTCOMES_IN_FLIGHT, sorted(self.replies.deferred), look)
        self._invariants["outcomes_expired_without_bonus"] = (
            self.expired == len(self.replies.deferred) and bonus == 0
        )
        self.funds = await self._books.at_rest()

    async def snapshot(self) -> Snapshot:
        """All that a second replay must leave as it is."""
        await self._catch_up()
        return Snapshot(
            standing=await self._books.standing(),
            # Beside the position, because what was posted a moment ago has none yet.
            newest=await self._books.newest_transactions(),
            position=self.journal.last_position,
            charges=len(self.replies.prices),
            refused=self.replies.refused_runs(*REFUSALS),
            bad_lines=len(self.replies.bad_lines),
            answers=self.replies.answers,
            payouts=[one.SerializeToString(deterministic=True) for one in await self._payday.list_payouts()],
        )

    async def ask_again(self) -> None:
        """Purchases and onboarding a second time, with the same keys: each is answered with what there is."""
        self._invariants["second_purchases_are_the_first"] = await self._shop.buy_again()
        self._invariants["second_onboarding_is_the_first"] = await self._payday.onboard_again(self._owners)

    async def compare(self, before: Snapshot) -> None:
        """See that everything was replayed a second time since `before`, and that nothing happened."""
        after = await self.snapshot()
        good_lines = sum(one.good_lines for one in self._traffic)
        self._invariants["second_replay_all_duplicates"] = (
            after.answers - before.answers == good_lines
            and after.charges == before.charges
            and after.refused == before.refused
            and after.bad_lines == before.bad_lines
        )
        self._invariants["second_replay_changes_nothing"] = (
            after.standing == before.standing
            and after.newest == before.newest
            and after.position == before.position
            and after.payouts == before.payouts
        )

    async def top_up(self) -> None:
        """Every customer with unpaid charges buys credits: first half of what is missing, then the rest."""
        before = await self._books.standing()
        self.unpaid_before_top_up = before.unpaid
        collects = True
        for customer_id, standing in before.customers.items():
            unpaid, number = standing.unpaid, 0
            # The first purchase is too small on purpose, unless a card is charged no less: it pays the oldest
            # charges, one of them in part.
            amount = chargeable(-(-unpaid // 2))
            while unpaid > 0 and collects:
                number += 1
                await self._shop.buy(customer_id, amount, f"top-up-{number}")
                now = await self._books.customer(customer_id)
                collects = (now.unpaid, now.credits) == (max(0, unpaid - amount), max(0, amount - unpaid))
                unpaid = now.unpaid
                amount = chargeable(unpaid)
        self._invariants["top_ups_are_collected_in_full"] = collects

    async def pay_organizations(self) -> None:
        """Onboard every organization, and let the weekly schedule pay it, mishaps included."""
        for organization_id in self._books.organization_ids:
            self._owners[organization_id] = await self._operator.create_owner_key(organization_id)
        await self._payday.onboard(self._owners)
        self.paid = await self._payday.pay()

    async def verify(self) -> dict[str, bool]:
        """Read everything back; answers what must hold, and whether it does."""
        # First: what is given back may pay something, and that is in the journal afterwards.
        self.funds = await self._books.at_rest()
        await self._catch_up()
        journal, replies = self.journal, self.replies
        told, followed = await self._books.standing(), self._books.of_journal()
        self.unpaid = told.unpaid
        self.budget = await self._operator.budget()
        return {
            "journal_sums_to_zero": journal.balanced,
            "positions_gap_free": journal.gap_free,
            "customer_balances_match_entries": told.customers == followed.customers,
            "earnings_match_entries": told.organizations == followed.organizations,
            "gross_is_net_plus_fees": journal.gross
            == journal.net + journal.platform_fee + journal.processing,
            "replies_match_journal": replies.consistent and replies.prices == journal.charges,
            "each_charge_posted_once": journal.charge_count == len(journal.charges),
            "every_good_line_answered": self._sent == replies.answers,
            "settlements_add_up": replies.settlements_add_up,
            "nothing_reserved_or_held": all(
                funds.reserved == funds.held == 0 for funds in self.funds.values()
            ),
            "granted_is_spent_and_held_and_free": all(
                journal.granted[owner] == journal.spent[owner] + funds.reserved + funds.held + funds.available
                for owner, funds in self.funds.items()
            ),
            "budget_counts_every_charge": self.budget.status.spent.amount_micros
            == journal.charged[CAPPED_CUSTOMER]
            and self.budget.status.reserved.amount_micros == 0,
            "sampled_charges_match": await self._sample_matches(),
            "collected_oldest_first": journal.collected_oldest_first,
            "nothing_unpaid": told.unpaid == 0,
            "payouts_match_transfers": self.paid.transferred == self.paid.paid_out == journal.paid_out,
            "no_payout_under_way": journal.in_transit == 0 and self.paid.counts()["unfinished"] == 0,
            "each_organization_paid_once_in_whole_cents": self.paid.as_intended,
            "earned_is_paid_out_and_payable": all(
                journal.earned[owner] == self.paid.paid_out_to(owner) + earnings.payable
                for owner, earnings in told.organizations.items()
            ),
            "stripe_reconciles": self.paid.differences == 0,
            "reports_match_ledger": await self._reports_agree(told),
            "audit_clean": await self._audit(),
            **self._invariants,
        }

    async def second_act(self) -> SecondAct:
        """Prices, tried on what was recorded: behind `verify`, since it meters a few runs more."""
        shifts = [one.shift for one in self._traffic]
        firsts = [
            one.shift.reported(one.survey.first_us)
            for one in self._traffic
            if one.survey.first_us is not None
        ]
        now_us = max((shift.now_us for shift in shifts), default=0)
        runs = [
            work
            for one in self._traffic
            if one.recording.authorized
            # Of customers who can pay for more of them.
            for work in decided(
                piece
                for piece in one.recording.work()
                if piece.customer_id not in (ONE_DOLLAR_CUSTOMER, CAPPED_CUSTOMER)
            )
        ]
        async with connect(self._stack.endpoints.metering, self.host_key.read_text()) as host:
            metering, reporting = self._channels
            return await Stage(metering, reporting, host).play(
                # A moment more than the work of the first act, outcomes that fell to their default included.
                min(firsts, default=now_us) - _SECOND_US,
                now_us + 60 * _SECOND_US,
                runs,
                sorted(self._books.organization_ids),
            )

    def organizations(self) -> list[OrganizationRow]:
        """What every organization earned, as reporting answers it."""
        return self._reports.rows()

    async def sign_in_keys(self) -> dict[str, str]:
        """API keys for the dashboard by whose they are: who worked most, who paid most, the operator."""
        charged = self.journal.charged
        customer_id = max(CUSTOMERS, key=lambda owner: charged[owner])
        keys = {
            f"customer {customer_id}": await self._operator.create_customer_key(customer_id),
            "operator": self._stack.operator_key.read(),
        }
        # Nobody worked, if nothing was recorded.
        if self._owners:
            busiest = max(self.organizations(), key=lambda row: row.charges)
            organization_id = busiest.organization_id
            keys = {f"owner of {organization_id}": self._owners[organization_id], **keys}
        return keys

    async def _reports_agree(self, told: Standing) -> bool:
        """Whether everything that reporting answers agrees with the books."""
        events = len(self.replies.prices) + len(self.replies.deferred)
        caught_up = await self._reports.catch_up(self.journal.last_position, events)
        await self._reports.read(sorted(told.organizations))
        agrees = await self._reports.agree(
            told, self.journal.earned, self.journal.charged, self.replies.charges_of
        )
        return caught_up and agrees

    async def _catch_up(self) -> None:
        told = await self._books.standing()
        await self._books.catch_up(
            lambda journal: (
                len(journal.charges) >= len(self.replies.prices) and self._books.of_journal() == told
            )
        )

    async def _decided(self, outcome_id: str) -> DeferredOutcome:
        """An outcome when it is decided, or as it is if that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _EXPIRY_SECONDS
        while True:
            found = await self._metering.GetOutcome(GetOutcomeRequest(outcome_id=outcome_id))
            if found.outcome.state != DEFERRED_OUTCOME_STATE_PENDING or loop.time() > deadline:
                return found.outcome
            await asyncio.sleep(_POLL_SECONDS)

    async def _sample_matches(self) -> bool:
        """Whether charges asked for one by one are what the journal has, and their parts add up."""
        charge_ids = sorted(self.journal.charges)
        # Every so manieth: at most SAMPLE of them, from all over.
        for charge_id in charge_ids[:: max(1, -(-len(charge_ids) // SAMPLE))]:
            charge = (await self._ledger.GetCharge(GetChargeRequest(charge_id=charge_id))).charge
            if charge.gross.amount_micros != self.journal.charges[charge_id] or not _adds_up(charge):
                return False
        return True

    async def _audit(self) -> bool:
        """Whether the ledger's own audit finds no difference; what it finds goes to stderr."""
        audit = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.ledger", "audit"),
            env={**os.environ, "DATABASE_URL": self._stack.endpoints.database_url},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await audit.communicate()
        if audit.returncode != 0:
            print(output.decode(errors="replace"), file=sys.stderr)
        return audit.returncode == 0

    def _parties(self) -> frozenset[Party]:
        return frozenset().union(*(one.survey.parties for one in self._traffic))


def _adds_up(charge: Charge) -> bool:
    gross, payment = charge.gross.amount_micros, charge.payment
    paid = payment.from_credits, payment.from_receivable, payment.unpaid
    return (
        sum(amount.amount_micros for amount in paid) == gross
        and sum(earning.gross.amount_micros for earning in charge.earnings) == gross
        and all(
            earning.gross.amount_micros
            == earning.net.amount_micros
            + earning.platform_fee.amount_micros
            + earning.processing_fee.amount_micros
            for earning in charge.earnings
        )
    )
