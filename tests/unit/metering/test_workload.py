"""What simulations draw from, and what models cost them."""

from datetime import UTC, datetime

import pytest

from scripts.make_workloads import OUT, make
from services.kit.errors import InvalidArgument
from services.kit.model_costs import Catalogue
from services.metering.domain.price_book import PeriodUnit
from services.metering.domain.simulation import ModelCost, model_cost, next_period
from services.metering.domain.usage_event import Outcome, Usage
from services.metering.domain.workload import (
    Distribution,
    Drawn,
    OutcomeRates,
    Profile,
    Workload,
    check_workload,
    draw,
    recorded_names,
)

START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
CATALOGUE = Catalogue(
    "test",
    {
        "openai/plain": [{"input": "2", "output": "8"}],
        "openai/tiered": [
            {"input": "2", "output": "8", "tiers": [{"above": 1_000, "input": "4", "output": "8"}]}
        ],
    },
)


def cost_of(*profiles: Profile) -> ModelCost:
    """What one run of each costs."""
    drawn = Drawn(profiles, list(range(len(profiles))), [0] * len(profiles))
    return model_cost(CATALOGUE, Workload(len(profiles), START, END), drawn)


def test_the_packaged_workloads_are_made_of_what_was_recorded() -> None:
    assert OUT.read_text() == make()
    assert recorded_names() == ("agent_runs", "chat_requests", "code_requests")


def test_every_recorded_workload_can_be_drawn() -> None:
    for name in recorded_names():
        drawn = draw(Workload(3_000, START, END, recorded=name))
        assert all(usage.cached_input_tokens <= usage.input_tokens for usage, _ in drawn.profiles)
    outcomes = {outcome for _, outcome in draw(Workload(3_000, START, END)).profiles}
    assert outcomes == {Outcome.SUCCESS, Outcome.FAILURE}


def test_another_number_of_customers_draws_the_same_runs() -> None:
    few = draw(Workload(500, START, END, customer_count=3))
    many = draw(Workload(500, START, END, customer_count=300))
    assert (few.profiles, few.runs) == (many.profiles, many.runs)


def test_averages_are_those_of_the_distribution() -> None:
    values = Distribution("input_tokens", ((0, 0), (10_000, 10_000))).values()
    # In the middle of each basis point, halves to even.
    assert sum(values) == 50_000_000
    assert Distribution.fixed("tool_calls", 7).values() == [7] * 10_000


def test_parts_are_at_most_the_whole() -> None:
    spread = Distribution("cached_input_tokens", ((0, 0), (10_000, 100)))
    workload = Workload(500, START, END, distributions=(Distribution.fixed("input_tokens", 50), spread))
    assert max(usage.cached_input_tokens for usage, _ in draw(workload).profiles) == 50


def test_meters_of_ones_own_are_drawn() -> None:
    workload = Workload(10, START, END, distributions=(Distribution.fixed("pages", 3),))
    assert draw(workload).profiles == [Profile(Usage(meters={"pages": 3}), Outcome.SUCCESS)]


@pytest.mark.parametrize(
    ("workload", "field"),
    [
        (Workload(0, START, END), "workload.run_count"),
        (Workload(1, END, START), "workload.end_time"),
        (Workload(1, START, datetime(2028, 1, 1, tzinfo=UTC)), "workload.end_time"),
        (Workload(1, START, END, recorded="none"), "workload.recorded"),
        (Workload(1, START, END, customer_count=100_001), "workload.customer_count"),
        (Workload(1, START, END, customer_skew=5_001), "workload.customer_skew"),
        (Workload(1, START, END, outcome_rates=OutcomeRates(5_000, 5_000, 1)), "workload.outcome_rates"),
        (
            Workload(1, START, END, distributions=(Distribution("a", ((0, 2), (10_000, 1))),)),
            "workload.distributions[0]",
        ),
        (
            Workload(1, START, END, distributions=(Distribution("a", ((1, 2), (10_000, 3))),)),
            "workload.distributions[0]",
        ),
        (
            Workload(1, START, END, distributions=(Distribution.fixed("a", -1),)),
            "workload.distributions[0]",
        ),
        (
            Workload(1, START, END, distributions=(Distribution.fixed("a", 1), Distribution.fixed("a", 1))),
            "workload.distributions[1].meter",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(workload: Workload, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_workload(workload)
    assert [one.field for one in raised.value.field_violations] == [field]


def test_models_cost_their_list_price() -> None:
    run = Profile(Usage("openai/plain", 1_000, 500), Outcome.SUCCESS)
    assert cost_of(run) == ModelCost(2_000 + 4_000, 0)
    unknown = Profile(Usage("nobody/knows", 1_000, 500), Outcome.SUCCESS)
    assert cost_of(run, unknown) == ModelCost(6_000, 1)


def test_the_size_of_a_request_decides_and_not_that_of_the_run() -> None:
    # 3,001 tokens in three requests: one of 1,001, which costs twice as much, and two of 1,000.
    run = Profile(Usage("openai/tiered", 3_001, 0, inference_calls=3), Outcome.SUCCESS)
    assert cost_of(run) == ModelCost(1_001 * 4 + 2_000 * 2, 0)
    alone = Profile(Usage("openai/tiered", 3_001, 2), Outcome.SUCCESS)
    assert cost_of(alone) == ModelCost(3_001 * 4 + 16, 0)


def test_periods_follow_the_calendar() -> None:
    moment = datetime(2026, 11, 20, 7, tzinfo=UTC)
    assert next_period(moment, PeriodUnit.MONTH) == datetime(2026, 12, 1, tzinfo=UTC)
    assert next_period(moment, PeriodUnit.QUARTER) == datetime(2027, 1, 1, tzinfo=UTC)
    assert next_period(datetime(2027, 1, 1, tzinfo=UTC), PeriodUnit.YEAR) == datetime(2028, 1, 1, tzinfo=UTC)
