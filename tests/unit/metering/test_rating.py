"""Rating: what usage costs, to the micro."""

from datetime import UTC, datetime

import pytest

from services.kit.errors import InvalidArgument
from services.metering.domain.compiled_price import Execution, compile_price
from services.metering.domain.price_book import (
    BaseFee,
    Component,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceSelector,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.rating import Rated, RatedLine, rate, select
from services.metering.domain.usage_event import MAX_TOKENS, Outcome, Usage

PER_MILLION = 1_000_000
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def price(*components: Component, selector: PriceSelector | None = None) -> Price:
    return Price(
        name="price",
        selector=selector or PriceSelector(),
        components=tuple(
            PriceComponent(f"{number}", component) for number, component in enumerate(components)
        ),
    )


def fee(amount: str) -> BaseFee:
    return BaseFee(UnitPrice(amount))


def rate_of(kind: TokenKind, amount: str, per_units: int = PER_MILLION) -> TokenRate:
    return TokenRate(kind, UnitPrice(amount, per_units))


AGENT_RUN = price(
    fee("0.005"),
    rate_of(TokenKind.INPUT, "0.60"),
    rate_of(TokenKind.OUTPUT, "2.40"),
    OutcomeBonus(Outcome.SUCCESS, UnitPrice("0.20")),
)


def rated(of: Price, usage: Usage, outcome: Outcome = Outcome.UNKNOWN) -> Rated:
    return rate(compile_price(of), Execution(usage, outcome, NOW))


def amounts(of: Rated) -> list[int]:
    return [line.amount_micros for line in of.lines]


def test_a_successful_run_pays_fee_tokens_and_bonus() -> None:
    result = rated(AGENT_RUN, Usage("gpt", 1_000, 500), Outcome.SUCCESS)

    assert result.total_micros == 5_000 + 600 + 1_200 + 200_000
    assert result.lines == (
        RatedLine("0", 1, UnitPrice("0.005"), 5_000),
        RatedLine("1", 1_000, UnitPrice("0.60", PER_MILLION), 600),
        RatedLine("2", 500, UnitPrice("2.40", PER_MILLION), 1_200),
        RatedLine("3", 1, UnitPrice("0.20"), 200_000),
    )


@pytest.mark.parametrize("outcome", [Outcome.FAILURE, Outcome.PARTIAL, Outcome.UNKNOWN])
def test_a_bonus_that_was_not_earned_leaves_no_line(outcome: Outcome) -> None:
    result = rated(AGENT_RUN, Usage("gpt", 1_000, 500), outcome)

    assert [line.component_name for line in result.lines] == ["0", "1", "2"]


def test_unknown_counts_are_free_but_the_fee_is_due() -> None:
    assert rated(AGENT_RUN, Usage()).lines == (RatedLine("0", 1, UnitPrice("0.005"), 5_000),)


def test_a_free_price_is_a_price() -> None:
    assert rated(price(fee("0")), Usage()) == Rated((RatedLine("0", 1, UnitPrice("0"), 0),), 0)


def test_tokens_alone_may_leave_nothing_to_charge() -> None:
    assert rated(price(rate_of(TokenKind.INPUT, "0.5")), Usage()) == Rated((), 0)


@pytest.mark.parametrize(("tokens", "micros"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4), (1_000_001, 500_000)])
def test_half_a_micro_rounds_to_even(tokens: int, micros: int) -> None:
    # 0.5 micros a token: 1 token is 0.5 and rounds to 0, 3 are 1.5 and round to 2.
    assert rated(price(rate_of(TokenKind.INPUT, "0.50")), Usage("", tokens)).total_micros == micros


def test_the_sum_is_rounded_and_not_the_lines() -> None:
    # 0.4 + 0.4 + 0.4 micros are 1.2: rounding each line would give 0.
    third = fee("0.0000004")
    result = rated(price(third, third, third), Usage())

    assert result.total_micros == 1
    assert amounts(result) == [1, 0, 0]


def test_the_largest_remainder_gets_the_micro() -> None:
    result = rated(price(fee("0.0000013"), fee("0.0000019"), fee("0.0000018")), Usage())

    assert result.total_micros == 5
    assert amounts(result) == [1, 2, 2]


def test_of_equal_remainders_the_earlier_line_gets_the_micro() -> None:
    half = fee("0.0000005")

    assert amounts(rated(price(half, half), Usage())) == [1, 0]


def test_rounding_down_takes_nothing_from_any_line() -> None:
    result = rated(price(fee("0.0000012"), fee("0.0000012")), Usage())

    assert result.total_micros == 2
    assert amounts(result) == [1, 1]


def test_units_that_divide_nothing_evenly_stay_exact() -> None:
    # A third of a micro a token: 3 tokens are exactly one.
    thirds = price(rate_of(TokenKind.INPUT, "0.000001", 3), rate_of(TokenKind.OUTPUT, "0.000001", 7))

    assert rated(thirds, Usage("", 3, 7)).total_micros == 2
    assert rated(thirds, Usage("", 1, 1)).total_micros == 0  # 10/21
    assert rated(thirds, Usage("", 1, 2)).total_micros == 1  # 13/21


def test_a_total_beyond_any_amount_is_refused_naming_usage() -> None:
    with pytest.raises(InvalidArgument) as refused:
        rated(price(rate_of(TokenKind.INPUT, "999999999999", 1)), Usage("", MAX_TOKENS))

    assert [violation.field for violation in refused.value.field_violations] == ["usage"]


def test_the_largest_amount_is_accepted() -> None:
    assert rated(price(fee("100000000")), Usage()).total_micros == 10**14


def test_the_first_price_whose_selector_matches_applies() -> None:
    special = price(fee("1"), selector=PriceSelector(frozenset({"ticket.resolve"}), frozenset({"agt_a"})))
    by_action = price(fee("2"), selector=PriceSelector(action_types=frozenset({"ticket.resolve"})))
    by_agent = price(fee("3"), selector=PriceSelector(agent_ids=frozenset({"agt_a"})))
    anything = price(fee("4"))
    compiled = [compile_price(one) for one in (special, by_action, by_agent, anything)]

    def chosen(action_type: str, agent_id: str) -> int:
        found = select(compiled, action_type, agent_id)
        assert found is not None
        return compiled.index(found)

    assert chosen("ticket.resolve", "agt_a") == 0
    assert chosen("ticket.resolve", "agt_b") == 1
    assert chosen("search", "agt_a") == 2
    assert chosen("search", "agt_b") == 3
    assert select(compiled[:3], "search", "agt_b") is None
