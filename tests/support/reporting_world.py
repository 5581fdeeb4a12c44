"""What a ledger and a metering do, in miniature: it writes both feeds, and knows what must come of them.

Small and obviously right: facts are noted when they happen, and sums are made of all facts together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from services.kit.model_costs import Catalogue
from services.kit.runs import ChargeKind, kind_of
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2, correction_pb2, ledger_service_pb2, transaction_pb2
from tallystick.metering.v1 import charge_line_pb2, outcome_pb2, usage_feed_service_pb2, usage_pb2
from tallystick.reporting.v1 import charge_report_pb2
from tests.support.correction_oracle import correct, largest_remainder, minus, split

# Days and months change while it works, and a quarter of an hour passes now and then.
START = datetime(2026, 10, 31, 22, 50, tzinfo=UTC)
FEES = (1500, 290)
CATALOGUE = Catalogue("tests", {"openai/gpt-x": [{"input": "2.50", "output": "10"}]})
PRICE_VERSION = "pv_01m7xj2ex96zkkhb2kskg39v87"

# Owner, kind of account, amount, and of earnings the bucket.
EntryLine = tuple[str, str, int, tuple[bool, date] | None]
# Sums of facts: what they are told apart by, and the numbers.
Sums = dict[tuple[Any, ...], tuple[Any, ...]]


@dataclass
class ModelCharge:
    """A charge, its legs in three parts: unearned, uncollected, collected."""

    charge_id: str
    customer_id: str
    workflow_id: str
    ordinal: int
    currency_code: str
    gross: int
    payees: Sequence[tuple[str, str]]
    shares: list[int]
    parts: list[list[int]]
    corrected: int = 0
    written_off: int = 0

    @property
    def left(self) -> int:
        return self.gross - self.corrected - self.written_off


@dataclass
class ModelEvent:
    """An event, as it stands."""

    customer_id: str
    workflow_id: str
    ordinal: int
    organization_id: str
    agent_id: str
    agent_version: str
    action_type: str
    model: str
    tokens: tuple[int, int]
    outcome: str
    price: int
    occur_time: datetime
    bonus: int = 0

    @property
    def cost(self) -> Decimal | None:
        return CATALOGUE.cost(self.model, *self.tokens, self.occur_time)


@dataclass
class FeedWorld:
    """Both feeds, and the facts in them."""

    now: datetime = START
    journal: list[ledger_service_pb2.SequencedTransaction] = field(default_factory=list)
    usage: list[usage_feed_service_pb2.SequencedUsage] = field(default_factory=list)
    charges: list[ModelCharge] = field(default_factory=list)
    events: list[ModelEvent] = field(default_factory=list)
    # (position, organization, type, charge, correction, agent, currency, billed, fees, net, count, times)
    revenue: list[dict[str, Any]] = field(default_factory=list)
    movements: list[dict[str, Any]] = field(default_factory=list)
    buckets: defaultdict[tuple[Any, ...], int] = field(default_factory=lambda: defaultdict(int))

    # What happens.

    def charge(
        self,
        customer_id: str,
        workflow_id: str,
        ordinal: int,
        gross: int,
        payees: Sequence[tuple[str, str]],
        *,
        paid: int,
        owed: int,
        component: str = "base",
        currency_code: str = "USD",
        late: timedelta = timedelta(0),
    ) -> ModelCharge:
        """A charge of which so many eighths are paid and owed, and the rest is unpaid; the work was done
        `late` before.
        """
        number = len(self.charges)
        weights = list(range(1, len(payees) + 1))
        legs = split(gross, weights, [FEES] * len(payees))
        collected = largest_remainder(gross * paid // 8, legs)
        uncollected = largest_remainder(
            min(gross * owed // 8, gross - sum(collected)), minus(legs, collected)
        )
        parts = [minus(minus(legs, collected), uncollected), uncollected, collected]
        shares = [sum(legs[start : start + 3]) for start in range(0, len(legs), 3)]
        charge = ModelCharge(
            f"ch_{number:04d}", customer_id, workflow_id, ordinal, currency_code, gross, payees, shares, parts
        )
        self.charges.append(charge)
        posted = charge_pb2.Charge(
            charge_id=charge.charge_id,
            customer_id=customer_id,
            workflow_id=workflow_id,
            component=charge_pb2.ChargeComponent.Value(f"CHARGE_COMPONENT_{component.upper()}"),
            ordinal=ordinal,
            gross=_money(gross, currency_code),
            earnings=[
                charge_pb2.Earning(
                    organization_id=organization_id,
                    agent_id=agent_id,
                    gross=_money(share, currency_code),
                    net=_money(legs[3 * payee], currency_code),
                    platform_fee=_money(legs[3 * payee + 1], currency_code),
                    processing_fee=_money(legs[3 * payee + 2], currency_code),
                )
                for payee, ((organization_id, agent_id), share) in enumerate(zip(payees, shares, strict=True))
            ],
            price_version_id=PRICE_VERSION,
        )
        entries = [
            (customer_id, "customer_credits", -sum(collected), None),
            (customer_id, "customer_receivable", -sum(uncollected), None),
            (customer_id, "customer_unpaid", -sum(parts[0]), None),
            (customer_id, "unpaid_offset", sum(parts[0]), None),
            *self._legs(charge, collected, collected_bucket=True),
            *self._legs(charge, uncollected, collected_bucket=False),
        ]
        sequenced = self._post(
            "charge", entries, currency_code, charge_id=charge.charge_id, occur_time=self.now - late
        )
        posted.occur_time.CopyFrom(sequenced.transaction.occur_time)
        posted.create_time.CopyFrom(sequenced.transaction.create_time)
        posted.transaction_id = sequenced.transaction.transaction_id
        sequenced.charge.CopyFrom(posted)
        earned = minus(collected, [-leg for leg in uncollected])
        self._earn(sequenced, charge, "charge", shares, earned, count=1)
        return charge

    def collect(self, charge: ModelCharge, part: int, eighths: int) -> None:
        """The customer pays of what is unearned (0) or uncollected (1)."""
        amount = -(-sum(charge.parts[part]) * eighths // 8)
        if amount == 0:
            return
        moved = largest_remainder(amount, charge.parts[part])
        charge.parts[part] = minus(charge.parts[part], moved)
        charge.parts[2] = minus(charge.parts[2], [-leg for leg in moved])
        customer_id = charge.customer_id
        entries: list[EntryLine] = [(customer_id, "customer_credits", -amount, None)]
        if part == 1:
            entries += [(customer_id, "customer_receivable", amount, None)]
            net = [leg if number % 3 == 0 else 0 for number, leg in enumerate(moved)]
            entries += self._legs(charge, [-leg for leg in net], collected_bucket=False)
            entries += self._legs(charge, net, collected_bucket=True)
        else:
            entries += [
                (customer_id, "customer_unpaid", amount, None),
                (customer_id, "unpaid_offset", -amount, None),
            ]
            entries += self._legs(charge, moved, collected_bucket=True)
        sequenced = self._post("collection", entries, charge.currency_code, charge_id=charge.charge_id)
        if part == 0:
            self._earn(sequenced, charge, "collection", [0] * len(charge.payees), moved)

    def write_off(self, charge: ModelCharge, part: int, eighths: int) -> None:
        """So much of what is unearned (0) or uncollected (1) will not be paid."""
        amount = -(-sum(charge.parts[part]) * eighths // 8)
        if amount == 0:
            return
        lost = largest_remainder(amount, charge.parts[part])
        charge.parts[part] = minus(charge.parts[part], lost)
        charge.written_off += amount
        customer_id = charge.customer_id
        entries: list[EntryLine] = [(customer_id, "customer_receivable", amount, None)]
        if part == 1:
            entries += self._legs(charge, [-leg for leg in lost], collected_bucket=False)
        else:
            entries = [
                (customer_id, "customer_unpaid", amount, None),
                (customer_id, "unpaid_offset", -amount, None),
            ]
        sequenced = self._post(
            "write_off", entries, charge.currency_code, charge_id=charge.charge_id, reason="gone"
        )
        if part == 1:
            self._earn(sequenced, charge, "write_off", [0] * len(charge.payees), [-leg for leg in lost])

    def correct(self, charge: ModelCharge, amount: int) -> None:
        """So much of a charge is taken back."""
        amount = min(amount, charge.left)
        if amount == 0:
            return
        charge.corrected += amount
        target = split(charge.left, charge.shares, [FEES] * len(charge.payees))
        unearned, uncollected, collected = correct(amount, charge.parts, target)
        charge.parts = [
            minus(part, taken)
            for part, taken in zip(charge.parts, (unearned, uncollected, collected), strict=True)
        ]
        customer_id, currency_code = charge.customer_id, charge.currency_code
        correction_id = f"cor-{len(self.journal)}"
        entries = [
            (customer_id, "customer_credits", sum(collected), None),
            (customer_id, "customer_receivable", sum(uncollected), None),
            (customer_id, "customer_unpaid", sum(unearned), None),
            (customer_id, "unpaid_offset", -sum(unearned), None),
            *self._legs(charge, [-leg for leg in collected], collected_bucket=True),
            *self._legs(charge, [-leg for leg in uncollected], collected_bucket=False),
        ]
        sequenced = self._post(
            "correction",
            entries,
            currency_code,
            charge_id=charge.charge_id,
            correction_id=correction_id,
            reason='it was "wrong"\\',
        )
        taken = [sum(leg) for leg in zip(unearned, uncollected, collected, strict=True)]
        of_payees = [sum(taken[start : start + 3]) for start in range(0, len(taken), 3)]
        sequenced.correction.CopyFrom(
            correction_pb2.Correction(
                charge_id=charge.charge_id,
                correction_id=correction_id,
                transaction_id=sequenced.transaction.transaction_id,
                amount=_money(amount, currency_code),
                earnings=[
                    correction_pb2.CorrectedEarning(
                        organization_id=organization_id, gross=_money(gross, currency_code)
                    )
                    for (organization_id, _), gross in zip(charge.payees, of_payees, strict=True)
                ],
            )
        )
        lost = [-(a + b) for a, b in zip(uncollected, collected, strict=True)]
        self._earn(sequenced, charge, "correction", [-gross for gross in of_payees], lost)

    def grant(self, customer_id: str, amount: int) -> None:
        self._post(
            "purchase",
            [(customer_id, "customer_credits", amount, None), ("platform", "stripe_clearing", -amount, None)],
            "USD",
        )

    def adjust(self, customer_id: str, amount: int) -> None:
        self._post(
            "adjustment",
            [(customer_id, "customer_credits", amount, None), ("platform", "adjustments", -amount, None)],
            "USD",
            reason="a gift",
        )

    def pay_out(self, organization_id: str, end: str) -> None:
        """All that was collected goes to the bank, or comes back."""
        payout_id = f"po_{len(self.journal)}"
        taken = [
            (organization_id, "organization_payable", -amount, (collected, available_on))
            for (owner_id, currency_code, collected, available_on), amount in sorted(self.buckets.items())
            if owner_id == organization_id and currency_code == "USD" and collected and amount > 0
        ]
        amount = -sum(entry[2] for entry in taken)
        if amount == 0:
            return
        transit = (organization_id, "payouts_in_transit", -amount, None)
        self._post(
            "payout",
            [*taken, (organization_id, "payouts_in_transit", amount, None)],
            "USD",
            payout_id=payout_id,
        )
        if end == "payout_completion":
            self._post(
                end, [transit, ("platform", "stripe_clearing", amount, None)], "USD", payout_id=payout_id
            )
        elif end == "payout_return":
            back = [(owner, kind, -part, bucket) for owner, kind, part, bucket in taken]
            self._post(end, [transit, *back], "USD", payout_id=payout_id, reason="it did not leave")

    def record(self, event: ModelEvent) -> None:
        self.events.append(event)
        message = usage_pb2.UsageEvent(
            customer_id=event.customer_id,
            workflow_id=event.workflow_id,
            ordinal=event.ordinal,
            agent_id=event.agent_id,
            agent_version=event.agent_version,
            action_type=event.action_type,
            usage=usage_pb2.Usage(
                model=event.model, input_tokens=event.tokens[0], output_tokens=event.tokens[1]
            ),
            outcome=usage_pb2.Outcome.Value(f"OUTCOME_{event.outcome.upper()}"),
        )
        message.occur_time.FromDatetime(event.occur_time)
        sequenced = self._sequence_usage()
        sequenced.recorded.CopyFrom(
            usage_feed_service_pb2.RecordedUsage(
                event=message,
                organization_id=event.organization_id,
                price=_money(event.price),
                lines=lines(event.price),
            )
        )
        sequenced.recorded.create_time.FromDatetime(self.now)

    def decide(self, event: ModelEvent, outcome: str, bonus: int) -> None:
        event.outcome, event.bonus = outcome, bonus
        sequenced = self._sequence_usage()
        sequenced.decided.CopyFrom(
            usage_feed_service_pb2.DecidedOutcome(
                outcome=outcome_pb2.DeferredOutcome(
                    customer_id=event.customer_id,
                    workflow_id=event.workflow_id,
                    ordinal=event.ordinal,
                    agent_id=event.agent_id,
                    outcome=usage_pb2.Outcome.Value(f"OUTCOME_{outcome.upper()}"),
                    bonus=_money(bonus),
                ),
                organization_id=event.organization_id,
                lines=lines(bonus) if bonus else (),
            )
        )
        sequenced.decided.outcome.resolve_time.FromDatetime(self.now)

    # What must come of it.

    def expected(self) -> dict[str, Any]:
        """The content of every table, as `content` reads it."""
        return {
            "charge": {
                (
                    charge.charge_id,
                    charge.customer_id,
                    charge.workflow_id,
                    charge.ordinal,
                    charge.gross,
                ): charge.corrected
                for charge in self.charges
            },
            "revenue": sorted(
                tuple(row[name] for name in REVENUE) for row in (self._named(one) for one in self.revenue)
            ),
            "movement": sorted(tuple(row[name] for name in MOVEMENT) for row in self.movements),
            "movement_day": _sums(
                self.movements,
                lambda row: (row["owner_id"], row["currency_code"], row["kind"], row["create_time"].date()),
                ("amount_micros",),
            ),
            "payable_bucket": {key: (amount,) for key, amount in self.buckets.items() if amount},
            "revenue_rollup": self._revenue_rollup(),
            "revenue_sum": {
                **self._revenue_sums("all", GRAINS, None),
                **self._revenue_sums("agent", GRAINS, "agent_id"),
                **self._revenue_sums("customer", ("day", "month"), "customer_id"),
                **self._kind_sums(),
            },
            "usage": sorted(
                (
                    *(
                        event.customer_id,
                        event.workflow_id,
                        event.ordinal,
                        event.organization_id,
                        event.agent_id,
                    ),
                    *(event.agent_version, event.action_type, event.model, *event.tokens, event.outcome),
                    *(event.price, event.bonus, lines_bytes(event.price)),
                    lines_bytes(event.bonus) if event.bonus else b"",
                    *(event.cost, event.occur_time),
                )
                for event in self.events
            ),
            "usage_rollup": self._usage_rollup(),
        }

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of revenue with what the event says, if there is one."""
        event = next(
            (
                event
                for event in self.events
                if (event.customer_id, event.workflow_id, event.ordinal, event.agent_id)
                == (row["customer_id"], row["workflow_id"], row["ordinal"], row["agent_id"])
            ),
            None,
        )
        return row | {
            "agent_version": event.agent_version if event else "",
            "action_type": event.action_type if event else NOT_WORK[kind_of(row["workflow_id"])],
        }

    def _revenue_rollup(self) -> Sums:
        found: Sums = {}
        rows = [row | {"revenue_count": 1} for row in (self._named(one) for one in self.revenue)]
        for grain in GRAINS:
            found |= _sums(
                rows,
                lambda row, grain=grain: (  # type: ignore[misc]
                    *(
                        row["organization_id"],
                        row["currency_code"],
                        grain,
                        start_of(row["occur_time"], grain),
                    ),
                    *(row["customer_id"], row["agent_id"], row["agent_version"], row["action_type"]),
                ),
                REVENUE_SUMS,
            )
        return found

    def _revenue_sums(self, dimension: str, grains: Sequence[str], name: str | None) -> Sums:
        """The sums that tell one thing apart, or nothing."""
        found: Sums = {}
        for grain in grains:
            found |= _sums(
                self.revenue,
                lambda row, grain=grain: (  # type: ignore[misc]
                    *(row["organization_id"], row["currency_code"], dimension, grain),
                    start_of(row["occur_time"], grain),
                    "" if name is None else row[name],
                ),
                REVENUE_SUMS[:-1],
            )
        return found

    def _kind_sums(self) -> Sums:
        """The sums of what is no work, by its name."""
        found: Sums = {}
        for grain in GRAINS:
            found |= _sums(
                [row for row in (self._named(one) for one in self.revenue) if " " in row["action_type"]],
                lambda row, grain=grain: (  # type: ignore[misc]
                    *(row["organization_id"], row["currency_code"], "kind", grain),
                    *(start_of(row["occur_time"], grain), row["action_type"]),
                ),
                REVENUE_SUMS[:-1],
            )
        return found

    def _usage_rollup(self) -> Sums:
        rows = []
        for event in self.events:
            charged = event.price + event.bonus
            rows.append(
                {
                    "event": event,
                    "execution_count": 1,
                    "input_tokens": event.tokens[0],
                    "output_tokens": event.tokens[1],
                    "cost_micros": charged,
                    **{f"{name}_count": int(event.outcome == name) for name in OUTCOMES},
                    "priced_count": int(event.cost is not None),
                    "priced_cost_micros": charged if event.cost is not None else 0,
                    "model_cost_usd": event.cost or Decimal(0),
                }
            )
        found: Sums = {}
        for grain in GRAINS:
            found |= _sums(
                rows,
                lambda row, grain=grain: (  # type: ignore[misc]
                    *(row["event"].organization_id, "USD", grain, start_of(row["event"].occur_time, grain)),
                    *(row["event"].customer_id, row["event"].agent_id, row["event"].agent_version),
                    *(row["event"].action_type, row["event"].model),
                ),
                USAGE_SUMS,
            )
        return found

    # How it is written down.

    def _legs(self, charge: ModelCharge, legs: Sequence[int], *, collected_bucket: bool) -> list[EntryLine]:
        available_on = START.date() + timedelta(days=7)
        kinds = ("organization_payable", "platform_fees", "processing_fees")
        return [
            (
                charge.payees[number // 3][0],
                kinds[number % 3],
                leg,
                (collected_bucket, available_on) if number % 3 == 0 else None,
            )
            for number, leg in enumerate(legs)
        ]

    def _post(
        self,
        type: str,
        entries: Iterable[EntryLine],
        currency_code: str,
        *,
        occur_time: datetime | None = None,
        charge_id: str = "",
        correction_id: str = "",
        payout_id: str = "",
        reason: str = "",
    ) -> ledger_service_pb2.SequencedTransaction:
        position = len(self.journal) + 1
        lines_of = [entry for entry in entries if entry[2]]
        assert sum(amount for _, _, amount, _ in lines_of) == 0
        transaction = transaction_pb2.Transaction(
            transaction_id=f"txn_{position:04d}",
            type=transaction_pb2.TransactionType.Value(f"TRANSACTION_TYPE_{type.upper()}"),
            charge_id=charge_id,
            correction_id=correction_id,
            payout_id=payout_id,
            reason=reason,
            entries=[
                transaction_pb2.Entry(
                    entry_number=number,
                    account=account_pb2.AccountRef(
                        owner_id=owner_id,
                        kind=account_pb2.AccountKind.Value(f"ACCOUNT_KIND_{kind.upper()}"),
                        currency_code=currency_code,
                    ),
                    amount=_money(amount, currency_code),
                    bucket=transaction_pb2.EarningsBucket(
                        collected=bucket[0], earned_on="2026-10-31", available_on=bucket[1].isoformat()
                    )
                    if bucket
                    else None,
                )
                for number, (owner_id, kind, amount, bucket) in enumerate(lines_of, start=1)
            ],
        )
        occur_time = occur_time or self.now
        transaction.occur_time.FromDatetime(occur_time)
        transaction.create_time.FromDatetime(self.now)
        for number, (owner_id, kind, amount, bucket) in enumerate(lines_of, start=1):
            if owner_id == "platform" or kind.endswith("_fees"):
                continue
            self.movements.append(
                {
                    "owner_id": owner_id,
                    "currency_code": currency_code,
                    "kind": kind,
                    "position": position,
                    "entry_number": number,
                    "transaction_id": transaction.transaction_id,
                    "type": type,
                    "amount_micros": amount,
                    "charge_id": charge_id,
                    "correction_id": correction_id,
                    "payout_id": payout_id,
                    "reason": reason,
                    "occur_time": occur_time,
                    "create_time": self.now,
                }
            )
            if bucket:
                self.buckets[(owner_id, currency_code, *bucket)] += amount
        sequenced = ledger_service_pb2.SequencedTransaction(position=position, transaction=transaction)
        self.journal.append(sequenced)
        return sequenced

    def _earn(
        self,
        sequenced: ledger_service_pb2.SequencedTransaction,
        charge: ModelCharge,
        type: str,
        billed: Sequence[int],
        legs: Sequence[int],
        count: int = 0,
    ) -> None:
        for number, (organization_id, agent_id) in enumerate(charge.payees):
            net, platform_fee, processing_fee = legs[3 * number : 3 * number + 3]
            if not count and not any((billed[number], net, platform_fee, processing_fee)):
                continue
            self.revenue.append(
                {
                    "position": sequenced.position,
                    "organization_id": organization_id,
                    "type": type,
                    "charge_id": charge.charge_id,
                    "correction_id": sequenced.transaction.correction_id,
                    "agent_id": agent_id,
                    "customer_id": charge.customer_id,
                    "workflow_id": charge.workflow_id,
                    "ordinal": charge.ordinal,
                    "currency_code": charge.currency_code,
                    "billed_micros": billed[number],
                    "platform_fee_micros": platform_fee,
                    "processing_fee_micros": processing_fee,
                    "net_micros": net,
                    "charge_count": count,
                    "occur_time": sequenced.transaction.occur_time.ToDatetime(tzinfo=UTC),
                    "create_time": self.now,
                }
            )

    def _sequence_usage(self) -> usage_feed_service_pb2.SequencedUsage:
        sequenced = usage_feed_service_pb2.SequencedUsage(position=len(self.usage) + 1)
        self.usage.append(sequenced)
        return sequenced


NOT_WORK = {
    ChargeKind.USAGE: "",
    ChargeKind.SUBSCRIPTION: "subscription fee",
    ChargeKind.PERIOD_CLOSE: "period close",
}
GRAINS = ("quarter", "day", "month")
OUTCOMES = ("success", "failure", "partial", "unknown", "pending")
REVENUE = (
    *("position", "organization_id", "type", "charge_id", "correction_id", "agent_id", "customer_id"),
    *("agent_version", "action_type", "currency_code", "billed_micros", "platform_fee_micros"),
    *("processing_fee_micros", "net_micros", "charge_count", "occur_time", "create_time"),
)
MOVEMENT = (
    *(
        "owner_id",
        "currency_code",
        "kind",
        "position",
        "entry_number",
        "transaction_id",
        "type",
        "amount_micros",
    ),
    *("charge_id", "correction_id", "payout_id", "reason", "occur_time", "create_time"),
)
REVENUE_SUMS = ("platform_fee_micros", "processing_fee_micros", "net_micros", "charge_count", "revenue_count")
USAGE_SUMS = (
    *("execution_count", "input_tokens", "output_tokens", "cost_micros"),
    *(f"{name}_count" for name in OUTCOMES),
    *("priced_count", "priced_cost_micros", "model_cost_usd"),
)
USAGE = (
    *("customer_id", "workflow_id", "ordinal", "organization_id", "agent_id", "agent_version", "action_type"),
    *("model", "input_tokens", "output_tokens", "outcome", "price_micros", "bonus_micros", "price_lines"),
    *("bonus_lines", "model_cost_usd", "occur_time"),
)
ROLLED = ("organization_id", "currency_code", "grain", "start_time", "customer_id", "agent_id")
# The columns of a key, and of what is under it.
SUMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "charge": (("charge_id", "customer_id", "workflow_id", "ordinal", "gross_micros"), ("corrected_micros",)),
    "movement_day": (("owner_id", "currency_code", "kind", "day"), ("amount_micros",)),
    "payable_bucket": (("organization_id", "currency_code", "collected", "available_on"), ("amount_micros",)),
    "revenue_rollup": (
        (*ROLLED, "agent_version", "action_type"),
        REVENUE_SUMS,
    ),
    "revenue_sum": (
        ("organization_id", "currency_code", "dimension", "grain", "start_time", "key"),
        REVENUE_SUMS[:-1],
    ),
    "usage_rollup": (
        (*ROLLED, "agent_version", "action_type", "model"),
        USAGE_SUMS,
    ),
}
LISTS = {"revenue": REVENUE, "movement": MOVEMENT, "usage": USAGE}


def content(query: Callable[[str], list[tuple[Any, ...]]], projection_id: int) -> dict[str, Any]:
    """What is in the tables of a projection."""
    found: dict[str, Any] = {}
    for table, columns in LISTS.items():
        found[table] = sorted(
            query(f"SELECT {', '.join(columns)} FROM reporting.{table} WHERE projection_id = {projection_id}")
        )
    for table, (key, values) in SUMS.items():
        rows = query(
            f"SELECT {', '.join(key + values)} FROM reporting.{table} WHERE projection_id = {projection_id}"
        )
        found[table] = {row[: len(key)]: row[len(key) :] for row in rows}
    found["charge"] = {key: corrected for key, (corrected,) in found["charge"].items()}
    return found


def start_of(moment: datetime, grain: str) -> datetime:
    hour = moment.replace(minute=0, second=0, microsecond=0)
    if grain == "quarter":
        return hour + timedelta(minutes=15 * (moment.minute // 15))
    return hour.replace(hour=0, day=1 if grain == "month" else moment.day)


def lines(amount: int) -> list[charge_line_pb2.ChargeLine]:
    """What a tier came to, and what a discount took off it."""
    return [
        charge_line_pb2.ChargeLine(component_name="run", quantity=1, amount=_money(amount + 7), tier=2),
        charge_line_pb2.ChargeLine(
            component_name="loyal",
            quantity=1,
            amount=_money(-7),
            kind=charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT,
        ),
    ]


def lines_bytes(amount: int) -> bytes:
    return charge_report_pb2.ReportedCharge(lines=lines(amount)).SerializeToString()


def _sums(
    rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], tuple[Any, ...]], names: Sequence[str]
) -> Sums:
    found: Sums = {}
    for row in rows:
        so_far = found.get(key(row), (0,) * len(names))
        found[key(row)] = tuple(sum_ + row[name] for sum_, name in zip(so_far, names, strict=True))
    return found


def _money(amount: int, currency_code: str = "USD") -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount)
