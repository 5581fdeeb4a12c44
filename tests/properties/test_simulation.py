"""Simulations and re-ratings, against summing by hand what rate() says of each run."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.metering.domain.compiled_price import (
    NO_COMPILED_TERMS,
    NO_TERMS,
    ContractTerms,
    Execution,
    compile_price_list,
    compile_terms,
)
from services.metering.domain.outcome import Decision, decide, prospects
from services.metering.domain.price_book import (
    Allowance,
    BaseFee,
    Component,
    Discount,
    MeterRate,
    OutcomeBonus,
    OutcomeFactor,
    Plan,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    Tier,
    TierMode,
    TierScope,
    TokenKind,
    TokenRate,
    UnitPrice,
    VolumeDiscountStep,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.price_counter import Counted
from services.metering.domain.rating import close_period, counter_names, rate, rate_outcome
from services.metering.domain.rerating import PostedOutcome, PostedRun, Rerating
from services.metering.domain.shadow import CounterKey, Happened, Shadowing
from services.metering.domain.simulation import Book, Spread, Work, periods, simulate, spread
from services.metering.domain.usage_event import EventKey, Outcome, Usage
from services.metering.domain.workload import (
    ALL_BASIS_POINTS,
    Distribution,
    Drawn,
    OutcomeRates,
    Workload,
    check_workload,
    draw,
)
from services.metering.store.outcome_format import lines_to_json, stored_text, to_lines

START = datetime(2026, 11, 20, tzinfo=UTC)
NOW = START + timedelta(days=3)


def million(amount: str) -> UnitPrice:
    return UnitPrice(amount, 1_000_000)


tier_modes = st.sampled_from([TierMode.GRADUATED, TierMode.VOLUME])
meter_rates = st.builds(
    MeterRate,
    st.sampled_from(["input_tokens", "uncached_input_tokens", "output_tokens", "tool_calls", "pages"]),
    st.just((Tier(5_000, million("700.5"), UnitPrice("0.01")), Tier(None, million("333.333")))),
    tier_modes,
    st.sampled_from(TierScope),
)
packages = st.builds(
    MeterRate,
    st.just("tool_calls"),
    st.just((Tier(None, UnitPrice("0.03", 7)),)),
    st.just(TierMode.PACKAGE),
    st.sampled_from(TierScope),
)
components = st.one_of(
    st.just(BaseFee(UnitPrice("0.0050005"))),
    st.builds(TokenRate, st.sampled_from(TokenKind), st.just(million("0.61"))),
    st.builds(OutcomeBonus, st.just(Outcome.SUCCESS), st.just(UnitPrice("0.2"))),
    meter_rates,
    packages,
)
discounts = st.lists(
    st.sampled_from(
        [
            Discount("promotion", basis_points=1_500, end_time=START + timedelta(days=5)),
            Discount("rebate", amount=UnitPrice("0.002")),
            Discount("volume", volume=(VolumeDiscountStep(UnitPrice("0.5"), 2_500),)),
        ]
    ),
    unique=True,
    max_size=3,
)
limits = st.one_of(st.none(), st.just(UnitPrice("0.05")))
period_limits = st.one_of(st.none(), st.just(UnitPrice("1.5")))
conditions = st.sampled_from(["", "", "result.resolved == true", "usage.tool_calls > 3"])


def price_of(
    parts: Sequence[Component],
    condition: str,
    found: Sequence[Discount],
    factor: int,
    minimum: UnitPrice | None,
    period_minimum: UnitPrice | None,
    period_maximum: UnitPrice | None,
) -> Price:
    named = [PriceComponent(f"part-{number}", part) for number, part in enumerate(parts)]
    # Volume tiers of a period are settled at its end, whatever an outcome was.
    last = named[-1].component
    if not isinstance(last, MeterRate) or last.tier_scope is TierScope.EXECUTION:
        named[-1] = PriceComponent(named[-1].name, last, condition)
    # Nor is it known then which part of them an outcome owes.
    settled = any(
        isinstance(part, MeterRate)
        and (part.tier_mode, part.tier_scope) == (TierMode.VOLUME, TierScope.BILLING_PERIOD)
        for part in parts
    )
    owed = (OutcomeFactor(Outcome.FAILURE, factor),) if factor < ALL_BASIS_POINTS else ()
    factors = () if settled else owed
    return Price(
        "price",
        PriceSelector(),
        tuple(named),
        outcome_factors=factors,
        # By volume first: that counts what is spent without discounts.
        discounts=tuple(sorted(found, key=lambda one: not one.volume)),
        minimum=minimum,
        period_minimum=period_minimum,
        period_maximum=None if period_maximum is None else UnitPrice("20"),
    )


prices = st.builds(
    price_of,
    st.lists(components, min_size=1, max_size=4),
    conditions,
    discounts,
    st.sampled_from([0, 3_333, ALL_BASIS_POINTS]),
    limits,
    period_limits,
    period_limits,
)
plans = st.one_of(
    st.none(),
    st.just(Plan("team", UnitPrice("9.99"), UnitPrice("1.005"), (Allowance("input_tokens", 20_000, 1_000),))),
)
quantiles = st.lists(st.integers(0, 30_000), min_size=2, max_size=5).map(sorted)


@st.composite
def distributions(draw_: st.DrawFn) -> tuple[Distribution, ...]:
    found = []
    for meter in ("input_tokens", "cached_input_tokens", "output_tokens", "tool_calls", "pages"):
        if draw_(st.booleans()):
            values = draw_(quantiles)
            cuts = sorted(
                draw_(st.sets(st.integers(1, 9_999), min_size=len(values) - 2, max_size=len(values) - 2))
            )
            points = tuple(zip([0, *cuts, ALL_BASIS_POINTS], values, strict=True))
            found.append(Distribution(meter, points))
    return tuple(found)


workloads = st.builds(
    Workload,
    run_count=st.integers(1, 30),
    start_time=st.just(START),
    end_time=st.sampled_from([START + timedelta(days=2), START + timedelta(days=45)]),
    recorded=st.sampled_from(["agent_runs", "chat_requests", "code_requests"]),
    distributions=distributions(),
    outcome_rates=st.sampled_from([None, OutcomeRates(6_000, 1_000, 500)]),
    customer_count=st.integers(1, 6),
    customer_skew=st.integers(0, 3_000),
    seed=st.integers(0, 2**64 - 1),
)
works = st.sampled_from([Work(), Work(result={"resolved": True}, tool_name="search")])


def check(price: Price) -> PriceList:
    listed = PriceList((price,))
    check_price_list(listed)
    return listed


@settings(deadline=None, max_examples=40)
@given(prices, plans, workloads, works)
def test_a_simulation_is_the_sum_of_its_runs(
    price: Price, plan: Plan | None, workload: Workload, work: Work
) -> None:
    check_workload(workload)
    seats = 3
    drawn = draw(workload)
    revenue = simulate(Book(check(price), plan, seats), workload, work, drawn)

    allowances = {"input_tokens": 23_000} if plan else {}
    terms = compile_terms(ContractTerms(allowances=allowances))
    (compiled,) = compile_price_list(PriceList((price,)))
    length = workload.end_time - workload.start_time
    totals: Counter[int] = Counter()
    charges = []
    counters: defaultdict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for number, (index, customer) in enumerate(zip(drawn.runs, drawn.customers, strict=True)):
        usage, outcome = drawn.profiles[index]
        moment = workload.start_time + length * number / workload.run_count
        opening = counters[customer, moment.month]
        execution = Execution(usage, outcome, moment, work.result, work.action_type, tool_name=work.tool_name)
        rated = rate(compiled, execution, terms, opening)
        opening.update(rated.closing)
        charges.append(rated.total_micros)
        totals[customer] += rated.total_micros
    for (customer, _), found in counters.items():
        totals[customer] += close_period(compiled, terms, found).total_micros
    if plan:
        # 9.99 + 3 × 1.005 for each of the months that it touches.
        months = len({START.month, (workload.end_time - timedelta(seconds=1)).month}) + (
            workload.end_time > datetime(2027, 1, 1, tzinfo=UTC)
        )
        for customer in range(workload.customer_count):
            totals[customer] += months * (9_990_000 + 3_015_000)

    assert revenue.total_micros == totals.total()
    assert revenue.runs == spread(Counter(charges))
    assert revenue.customers == spread(Counter(totals[one] for one in range(workload.customer_count)))
    assert sum(line.amount_micros for line in revenue.lines.values()) == revenue.total_micros
    assert sum(one.charge_micros for one in revenue.outcomes) == sum(charges)
    assert revenue.total_micros == sum(charges) + revenue.period_micros


@settings(deadline=None, max_examples=25)
@given(workloads)
def test_the_same_seed_draws_the_same(workload: Workload) -> None:
    drawn = draw(workload)
    assert draw(workload) == drawn
    assert len(drawn.runs) == len(drawn.customers) == workload.run_count
    assert sum(drawn.counts()) == workload.run_count
    assert all(0 <= one < workload.customer_count for one in drawn.customers)


@settings(deadline=None)
@given(quantiles)
def test_a_distribution_has_the_quantiles_that_it_was_given(values: list[int]) -> None:
    step = ALL_BASIS_POINTS // (len(values) - 1)
    points = [(step * number, value) for number, value in enumerate(values)]
    points[-1] = (ALL_BASIS_POINTS, values[-1])
    drawn = Distribution("input_tokens", tuple(points)).values()
    assert len(drawn) == ALL_BASIS_POINTS
    assert all(one <= other for one, other in pairwise(drawn))
    for basis_points, value in points[1:-1]:
        assert drawn[basis_points - 1] <= value <= drawn[basis_points]


@given(st.lists(st.integers(-5, 50), min_size=1, max_size=60))
def test_percentiles_are_amounts_that_so_many_are_not_above(amounts: list[int]) -> None:
    found: Spread = spread(Counter(amounts))
    for percent, value in ((5, found.p5), (25, found.p25), (50, found.p50), (95, found.p95), (99, found.p99)):
        assert value in amounts
        assert 100 * sum(one <= value for one in amounts) >= percent * len(amounts)
        assert 100 * sum(one < value for one in amounts) < percent * len(amounts)
    assert (found.least, found.most) == (min(amounts), max(amounts))


def test_periods_tile_a_span() -> None:
    end = datetime(2027, 1, 5, tzinfo=UTC)
    months = periods(START, end, Plan("p").period_unit)
    assert [start.month for start, _ in months] == [11, 12, 1]
    assert (months[0][0], months[-1][1]) == (START, end)
    assert all(one[1] == other[0] for one, other in pairwise(months))


usages = st.builds(
    Usage,
    model=st.just("gpt-4o"),
    input_tokens=st.integers(5_000, 9_000),
    output_tokens=st.integers(0, 9_000),
    cached_input_tokens=st.integers(0, 5_000),
    tool_calls=st.integers(0, 9),
    meters=st.sampled_from([{}, {"pages": 4}]),
)
reports = st.lists(
    st.tuples(
        usages,
        st.sampled_from(Outcome),
        # How it is decided, and behind how many other reports; None for not at all.
        st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, None]),
        st.integers(0, 4),
        st.sampled_from(["cus_1", "cus_2"]),
        st.integers(0, 10),
    ),
    min_size=1,
    max_size=12,
)
agreements = st.sampled_from(
    [
        NO_TERMS,
        ContractTerms(discounts=(Discount("loyal", basis_points=1_000, end_time=START + timedelta(days=4)),)),
        ContractTerms(discounts=(Discount("much", volume=(VolumeDiscountStep(UnitPrice("1"), 500),)),)),
        ContractTerms(allowances={"input_tokens": 20_000, "pages": 5}, period_maximum_micros=900_000),
    ]
)
Report = tuple[Usage, Outcome, Outcome | None, int, str, int]


class Charged:
    """What is charged for runs, one after the other, by the functions that charge, and what is kept of it."""

    def __init__(self, price: Price, reported: Sequence[Report], terms: ContractTerms = NO_TERMS) -> None:
        (self.price,) = compile_price_list(PriceList((price,)), "pb_1")
        self.terms = NO_COMPILED_TERMS if terms is NO_TERMS else compile_terms(terms)
        self.names = counter_names(self.price, self.terms)
        self.counters: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(self.names, 0))
        self.runs: list[PostedRun] = []
        self.happened: list[Happened] = []
        due: list[tuple[int, int, Outcome]] = []
        for number, (_, outcome, later, delay, _, _) in enumerate(reported):
            self.report(number, reported[number])
            if outcome is Outcome.PENDING and later is not None:
                due.append((number + delay, number, later))
            for when, decided, final in list(due):
                if when <= number:
                    self.decide(decided, final)
                    due.remove((when, decided, final))

    def report(self, number: int, reported: Report) -> None:
        usage, outcome, _, _, customer_id, day = reported
        moment = START + timedelta(days=day) if day < 10 else START
        execution = Execution(usage, outcome, moment, {"resolved": True}, "run", "agt_a")
        opening = dict(self.counters[customer_id])
        rated = rate(self.price, execution, self.terms, opening)
        self.counters[customer_id].update(rated.closing)
        run = PostedRun(
            customer_id,
            f"wf-{number}",
            0,
            "org_a",
            "USD",
            "pv_1",
            moment,
            (usage[:10], tuple(usage.meters), outcome),
            lambda: execution,
            rated.total_micros,
            lines_to_json(rated.lines),
            opening if self.names else None,
            None,
            self.terms,
            START if self.names else None,
        )
        self.runs.append(run)
        self.happened.append(self.happen(run, execution, rated.total_micros, rated.closing))

    def decide(self, number: int, final: Outcome) -> None:
        run = self.runs[number]
        execution, opening = run.execution(), run.opening or {}
        closing = rate(self.price, execution, self.terms, opening).closing
        decided = execution._replace(outcome=final)
        if prospects(self.price, execution, self.terms, opening).bonuses is not None:
            decision = Decision(rate_outcome(self.price, decided, self.terms, opening), None)
        else:
            counted = Counted(START, opening, closing) if self.names else None
            decision = decide(self.price, decided, self.terms, counted, self.counters[run.customer_id])
        counted = decision.counted
        if counted is not None:
            self.counters[run.customer_id].update(counted.closing)
        bonus = decision.bonus
        self.runs[number] = run._replace(
            outcome=PostedOutcome(
                decided,
                bonus.total_micros,
                lines_to_json(bonus.lines) if bonus.total_micros else "",
                None if counted is None else counted.opening,
            )
        )
        self.happened.append(
            self.happen(run, decided, bonus.total_micros, closing)._replace(
                is_decision=True,
                decided_opening=None if counted is None else counted.opening,
                decided_closing={} if counted is None else counted.closing,
            )
        )

    def happen(
        self, run: PostedRun, execution: Execution, micros: int, closing: Mapping[str, int]
    ) -> Happened:
        key, opening = EventKey(run.customer_id, run.workflow_id, 0), run.opening or {}
        return Happened(key, "org_a", execution, micros, False, START, self.terms, opening, closing)


def posted(price: Price, reported: Sequence[Report], terms: ContractTerms = NO_TERMS) -> list[PostedRun]:
    """What is charged for these runs."""
    return Charged(price, reported, terms).runs


def rerated(
    runs: Sequence[PostedRun], applied: Price, other: Price | None, price_book_id: str = "pb_1"
) -> Rerating:
    rerating = Rerating(
        {"pv_1": compile_price_list(PriceList((applied,)), "pb_1")},
        None if other is None else compile_price_list(PriceList((other,)), price_book_id),
        lambda text: to_lines(json.loads(text)),
        stored_text,
        period_start=lambda *about: START,
    )
    for run in runs:
        rerating.add(run)
    rerating.close()
    return rerating


@settings(deadline=None, max_examples=40)
@given(prices, reports, agreements, st.integers(0, 3))
def test_the_applied_version_reproduces_every_charge(
    price: Price, reported: list[Report], terms: ContractTerms, skipped: int
) -> None:
    check(price)
    runs = posted(price, reported, terms)
    # However little of the period is looked at, and in whichever order the runs of a batch come.
    rerating = rerated(sorted(runs[skipped:], key=lambda run: run.workflow_id), price, price)
    runs = runs[skipped:]
    charges = len(runs) + sum(run.outcome is not None for run in runs)
    assert rerating.mismatched_charge_count == 0
    assert rerating.reproduced_charge_count == charges
    for difference in rerating.customers.values():
        assert difference.charged_micros == difference.rerated_micros
    for charged, by_other in rerating.lines().values():
        assert charged == by_other


@settings(deadline=None, max_examples=40)
@given(prices, prices, reports)
def test_differences_are_exact_by_customer_and_by_line(
    price: Price, other: Price, reported: list[Report]
) -> None:
    runs = posted(price, reported)
    rerating = rerated(runs, price, other)
    charged = sum(run.amount_micros + (run.outcome.amount_micros if run.outcome else 0) for run in runs)
    assert sum(one.charged_micros for one in rerating.customers.values()) == charged
    lines = rerating.lines().values()
    assert sum(line[0] for line in lines) == charged
    assert sum(line[1] for line in lines) == sum(one.rerated_micros for one in rerating.customers.values())
    # By hand, where nothing depends on the runs before.
    (compiled,) = compile_price_list(PriceList((other,)), "pb_1")
    if not counter_names(compiled):
        assert sum(one.rerated_micros for one in rerating.customers.values()) == sum(
            rate(compiled, run.execution()).total_micros
            + (rate_outcome(compiled, run.outcome.execution).total_micros if run.outcome else 0)
            for run in runs
        )


@settings(deadline=None, max_examples=40)
@given(prices, reports, st.integers(1, 100))
def test_one_wrong_micro_is_found(price: Price, reported: list[Report], picked: int) -> None:
    runs = posted(price, reported)
    index = picked % len(runs)
    runs[index] = runs[index]._replace(amount_micros=runs[index].amount_micros + 1)
    assert rerated(runs, price, None).mismatched_charge_count == 1


@settings(deadline=None, max_examples=40)
@given(prices, reports, agreements)
def test_prices_of_another_book_count_for_themselves(
    price: Price, reported: list[Report], terms: ContractTerms
) -> None:
    """Equal prices whose counters have other names come to the same, as their own counters add up."""
    check(price)
    charged = Charged(price, [one for one in reported if one[1] is not Outcome.PENDING], terms)
    rerating = rerated(charged.runs, price, price, "pb_2")
    for difference in rerating.customers.values():
        assert difference.charged_micros == difference.rerated_micros


@settings(deadline=None, max_examples=60)
@given(prices, reports, agreements, st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_a_shadow_of_what_is_charged_sees_no_difference(
    price: Price,
    reported: list[Report],
    terms: ContractTerms,
    slice_length: int,
    skipped: int,
    reverse: bool,
) -> None:
    """However late it starts, and in whichever order the feed has the events of a batch."""
    check(price)
    charged = Charged(price, reported, terms)
    things = charged.happened[skipped:]
    if reverse and not any(one.is_decision for one in things):
        things.reverse()
    seen = {one.key for one in things if not one.is_decision}
    things = [one for one in things if one.key in seen]
    shifts: dict[CounterKey, dict[str, int]] = {}
    openings: dict[EventKey, Mapping[str, int]] = {}
    for start in range(0, len(things), slice_length):
        shadowing = Shadowing([charged.price], shifts, openings)
        for thing in things[start : start + slice_length]:
            shadowing.add(thing)
        assert not sum(one.differing_charge_count for one in shadowing.divergences.values())
    assert not any(off for one in shifts.values() for off in one.values())


def test_a_shadow_counts_no_more_than_can_be_stored() -> None:
    """What charging would refuse has no price, and leaves the shadow able to go on."""
    rate_of_all = MeterRate("pages", (Tier(None, UnitPrice("0")),), tier_scope=TierScope.BILLING_PERIOD)
    (compiled,) = compile_price_list(
        PriceList((Price("price", PriceSelector(), (PriceComponent("pages", rate_of_all),)),)), "pb_1"
    )
    shadowing = Shadowing([compiled], {}, {})
    for number, pages in enumerate((5, 2**63, 7)):
        execution = Execution(Usage("gpt", 0, 0, meters={"pages": pages}), Outcome.SUCCESS, START)
        shadowing.add(Happened(EventKey("cus_1", f"wf-{number}", 0), "org_a", execution, 0, False, START))
    (found,) = shadowing.divergences.values()
    assert (found.charge_count, found.unpriced_charge_count) == (3, 1)
    assert shadowing.shifts == {CounterKey("cus_1", "org_a", START): {"pb_1/price/pages": 12}}


def test_a_drawn_workload_keeps_its_shares() -> None:
    workload = Workload(20_000, START, NOW, customer_count=10, customer_skew=1_000, seed=3)
    drawn: Drawn = draw(workload)
    counts = Counter(drawn.customers)
    # Zipf's law: the first has twice what the second has.
    assert counts[0] > 1.7 * counts[1] > 1.7 * 1.3 * counts[3]
