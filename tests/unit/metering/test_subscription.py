"""The life of a subscription, against an oracle that adds up seconds."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.money import round_half_even
from services.metering.domain import subscription as domain
from services.metering.domain.billing_period import BillingPeriod, Period
from services.metering.domain.price_book import Allowance, Plan, UnitPrice
from services.metering.domain.rating import LineKind
from services.metering.domain.subscription import ChangeTiming, Fee, Segment, Subscription

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LENGTH = 60


class Minutes(BillingPeriod):
    """Periods of a minute: short enough to count their seconds."""

    def period_containing(self, moment: datetime) -> Period:
        begin = EPOCH + (moment - EPOCH) // timedelta(seconds=LENGTH) * timedelta(seconds=LENGTH)
        return Period(begin, begin + timedelta(seconds=LENGTH))


def at(second: int) -> datetime:
    return EPOCH + timedelta(seconds=second)


def segment(fee: int, seats: int = 0, seat_fee: int = 0, *, second: int = 0, name: str = "") -> Segment:
    return Segment(at(second), name or f"plan-{fee}-{seat_fee}", seats, fee, seat_fee, (), "pv_1")


def subscribed(first: Segment, billing_period: BillingPeriod | None = None) -> Subscription:
    billing_period = billing_period or Minutes()
    return Subscription(
        subscription_id="sub_1",
        customer_id="cus_1",
        organization_id="org_a",
        agent_id="agt_a",
        currency_code="USD",
        price_book_id="pb_1",
        billing_period=billing_period,
        start_time=first.start,
        period=billing_period.period_containing(first.start),
        segments=(first,),
    )


FEES = st.integers(0, 10**9) | st.just(0)
SEATS = st.integers(0, 7)


@dataclass
class Life:
    """A subscription that is lived through, and the oracle beside it: the period's fee at each second."""

    subscription: Subscription
    fees: list[Fee]
    by_second: dict[int, int]
    last: Segment
    waiting: Segment | None = None
    ends: bool = False

    def renew_until(self, second: int) -> None:
        while self.subscription.is_active and self.subscription.period.end <= at(second):
            begin = int((self.subscription.period.end - EPOCH).total_seconds())
            following = self.last
            if self.waiting is not None:
                following = self.waiting
            name, seats = self.subscription.next_plan
            assert (name, seats) == (following.plan_name, following.seats)
            step = domain.renew(self.subscription, following)
            self.subscription = step.subscription
            if self.ends:
                assert step.fee is None
                assert not self.subscription.is_active
                assert self.subscription.end_time == at(begin)
                return
            self.last, self.waiting = following, None
            self.pay(begin, following)
            assert step.fee is not None
            self.fees.append(step.fee)

    def pay(self, second: int, wanted: Segment) -> None:
        """The oracle: from this second to the end of the period it costs that."""
        for one in range(second, (second // LENGTH + 1) * LENGTH):
            self.by_second[one] = wanted.fee_micros + wanted.seats * wanted.seat_fee_micros

    def total(self) -> int:
        periods: dict[int, int] = {}
        for second, fee in self.by_second.items():
            periods[second // LENGTH] = periods.get(second // LENGTH, 0) + fee
        exact = {number: Fraction(fees, LENGTH) for number, fees in periods.items()}
        return sum(round_half_even(one.numerator, one.denominator) for one in exact.values())


@settings(max_examples=300)
@given(st.data())
def test_the_fees_of_a_life_are_what_its_seconds_cost(data: st.DataObject) -> None:
    second = data.draw(st.integers(0, LENGTH - 1))
    first = segment(data.draw(FEES), data.draw(SEATS), data.draw(FEES), second=second, name="first")
    step = domain.start(subscribed(first))
    assert step.fee is not None
    life = Life(step.subscription, [step.fee], {}, first)
    life.pay(second, first)
    for number in range(data.draw(st.integers(0, 12))):
        second += data.draw(st.integers(0, 3 * LENGTH // 2))
        life.renew_until(second)
        if not life.subscription.is_active:
            break
        match data.draw(st.sampled_from(("change", "cancel", "resume", "end", "wait", "change", "change"))):
            case "change":
                wanted = segment(
                    data.draw(FEES), data.draw(SEATS), data.draw(FEES), second=second, name=f"plan-{number}"
                )
                timing = data.draw(st.sampled_from(ChangeTiming))
                preview = domain.change(life.subscription, wanted, timing)
                step = domain.change(life.subscription, wanted, timing)
                assert step == preview
                falls = wanted.period_fee_micros < life.last.period_fee_micros
                life.waiting = None
                if timing is ChangeTiming.PERIOD_END or (timing is ChangeTiming.BY_FEE and falls):
                    assert step.fee is None
                    life.waiting = wanted
                else:
                    assert step.fee is not None
                    life.fees.append(step.fee)
                    life.pay(second, wanted)
                    life.last = wanted
                life.subscription = step.subscription
            case "cancel":
                life.subscription = domain.cancel(life.subscription, at(second), at_once=False)
                life.ends = True
            case "resume":
                life.subscription = domain.resume(life.subscription)
                life.ends = False
            case "end":
                life.subscription = domain.cancel(life.subscription, at(second), at_once=True)
                assert life.subscription.end_time == at(second)
                break

    fees = life.fees
    assert sum(fee.amount_micros for fee in fees) == life.total() + life.subscription.credit_micros
    assert life.subscription.credit_micros == -sum(fee.from_credit_micros for fee in fees)
    assert life.subscription.credit_micros >= 0
    for fee in fees:
        assert fee.amount_micros >= 0
        assert sum(line.amount_micros for line in fee.lines) == fee.amount_micros + fee.from_credit_micros
    # No two of them are the same charge.
    assert len({(fee.workflow_id, fee.ordinal) for fee in fees}) == len(fees)


@given(FEES, st.lists(st.tuples(st.integers(0, LENGTH - 1), FEES), max_size=6))
def test_changing_back_at_once_leaves_the_period_as_it_was(fee: int, changes: list[tuple[int, int]]) -> None:
    """However often: each pair of changes in the same second costs nothing together."""
    subscription = domain.start(subscribed(segment(fee, name="first"))).subscription
    for second, other in sorted(changes):
        for wanted in (
            segment(other, second=second, name="other"),
            segment(fee, second=second, name="first"),
        ):
            subscription = domain.change(subscription, wanted, ChangeTiming.NOW).subscription
    assert subscription.fees_micros == fee


class TestExamples:
    plan = Plan("team", UnitPrice("100"), UnitPrice("10"), (Allowance("input_tokens", 1_000, 50),))

    def test_a_period_is_charged_in_advance(self) -> None:
        billing = BillingPeriod(anchor=datetime(2026, 1, 31, tzinfo=UTC))
        begin = datetime(2026, 1, 31, tzinfo=UTC)
        first = domain.segment_of(self.plan, 3, "pv_1", begin)
        step = domain.start(subscribed(first, billing))
        assert step.fee is not None
        assert step.fee.amount_micros == 130_000_000
        assert step.fee.service == Period(begin, datetime(2026, 2, 28, tzinfo=UTC))
        assert [(line.component_name, line.quantity, line.amount_micros) for line in step.fee.lines] == [
            ("team", 1, 100_000_000),
            ("seats", 3, 30_000_000),
        ]
        assert first.included() == {"input_tokens": 1_150}
        following = domain.renew(step.subscription, first)
        assert following.fee is not None
        assert following.fee.amount_micros == 130_000_000
        assert following.fee.workflow_id == "sub_1/2026-02-28T00:00:00Z/2026-03-31T00:00:00Z"
        assert following.subscription.period.end == datetime(2026, 3, 31, tzinfo=UTC)

    def test_an_upgrade_in_the_middle_charges_half_of_the_difference(self) -> None:
        subscription = domain.start(subscribed(segment(10_000_000))).subscription
        step = domain.change(subscription, segment(30_000_000, second=30), ChangeTiming.BY_FEE)
        assert step.fee is not None
        assert step.fee.amount_micros == 10_000_000
        assert [(line.kind, line.amount_micros) for line in step.fee.lines] == [
            (LineKind.SUBSCRIPTION, 15_000_000),
            (LineKind.PRORATION, -5_000_000),
        ]
        assert step.fee.charge_id.startswith("ch_")
        assert step.fee.service == Period(at(30), at(60))

    def test_a_downgrade_waits_or_becomes_credit(self) -> None:
        subscription = domain.start(subscribed(segment(30_000_000))).subscription
        lower = segment(10_000_000, second=30)
        later = domain.change(subscription, lower, ChangeTiming.BY_FEE)
        assert later.fee is None
        assert later.subscription.next_plan == (lower.plan_name, 0)
        now = domain.change(later.subscription, lower, ChangeTiming.NOW)
        assert now.fee is not None
        assert (now.fee.amount_micros, now.fee.from_credit_micros) == (0, -10_000_000)
        assert now.fee.charge_id == ""
        assert now.subscription.credit_micros == 10_000_000
        assert now.subscription.pending_plan_name == ""
        renewed = domain.renew(now.subscription, lower)
        assert renewed.fee is not None
        assert (renewed.fee.amount_micros, renewed.fee.from_credit_micros) == (0, 10_000_000)
        assert renewed.subscription.credit_micros == 0

    def test_asking_for_what_there_is_undoes_what_waits(self) -> None:
        subscription = domain.start(subscribed(segment(30))).subscription
        waiting = domain.change(subscription, segment(10), ChangeTiming.PERIOD_END).subscription
        assert domain.change(waiting, segment(30), ChangeTiming.NOW) == domain.Step(subscription)

    @pytest.mark.parametrize("is_last", [True, False])
    def test_the_end_comes_with_the_period_unless_resumed(self, is_last: bool) -> None:
        subscription = domain.start(subscribed(segment(30))).subscription
        ending = domain.cancel(subscription, at(20), at_once=False)
        assert domain.resume(ending) == subscription
        step = domain.renew(ending if is_last else domain.resume(ending), segment(30))
        assert step.subscription.is_active is not is_last
        assert step.subscription.end_time == (at(60) if is_last else None)

    def test_a_first_period_by_the_calendar_is_prorated(self) -> None:
        begin = datetime(2026, 4, 16, tzinfo=UTC)
        first = replace(segment(30_000_000), start=begin)
        step = domain.start(subscribed(first, BillingPeriod()))
        assert step.fee is not None
        assert step.fee.amount_micros == 15_000_000
        assert step.subscription.period.start == datetime(2026, 4, 1, tzinfo=UTC)
