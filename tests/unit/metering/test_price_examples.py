"""Each file of examples/prices, with executions whose price can be checked by hand.

What each execution comes to is in tests/unit/metering/price_examples/*.txt, line by line. Every step names
the arithmetic that leads to its total; it is calculated here by itself, exactly, and must give the same.
After a change that is meant, write the files anew and read the difference:

    .venv/bin/python -m tests.unit.metering.test_price_examples
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from services.kit.money import MICROS_PER_UNIT, round_half_even
from services.metering.domain.compiled_price import (
    NO_TERMS,
    CompiledPrice,
    ContractTerms,
    Execution,
    compile_price_list,
    compile_terms,
)
from services.metering.domain.price_book import UnitPrice
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.rating import (
    LineKind,
    Rated,
    RatedLine,
    close_period,
    rate,
    rate_outcome,
    select,
)
from services.metering.domain.usage_event import ModelUsage, Outcome, Usage
from services.metering.rpc.prices import price_list_from_proto
from tallystick.metering.v1 import pricing_service_pb2
from tallystick.prices.file import PriceFile, read

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "examples/prices").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "price_examples"
NOTHING = Usage()
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Step:
    """An execution: what it was, the arithmetic of its price, and what it consumed."""

    told: str
    arithmetic: str
    usage: Usage = NOTHING
    outcome: Outcome = Outcome.SUCCESS
    result: Mapping[str, Any] = field(default_factory=dict)
    action: str = "run"
    at: datetime = NOON

    @property
    def execution(self) -> Execution:
        return Execution(self.usage, self.outcome, self.at, self.result, action_type=self.action)


@dataclass(frozen=True)
class Resolved:
    """The outcome of the execution before, which was pending."""

    told: str
    arithmetic: str
    outcome: Outcome


@dataclass(frozen=True)
class Closed:
    """The end of the billing period, for the price of an action."""

    told: str
    arithmetic: str
    action: str = "run"


@dataclass(frozen=True)
class Example:
    """What one customer does in one billing period, in this order."""

    steps: tuple[Step | Resolved | Closed, ...]
    terms: ContractTerms = NO_TERMS


def example(*steps: Step | Resolved | Closed, **allowances: int) -> Example:
    return Example(steps, ContractTerms(allowances=allowances) if allowances else NO_TERMS)


def tools(number: int) -> Usage:
    return Usage(tool_calls=number)


COMPUTE = Usage(
    cpu_milliseconds=2_500, memory_megabyte_seconds=10_000, network_bytes=4_000_000, inference_calls=2
)
EXAMPLES = {
    "seat-based": example(Step("a run, which the seats pay for", "0")),
    "usage-based": example(
        Step(
            "10,000 tokens in, 4,000 of them cached, 2,000 out, 3 calls of tools",
            "0.002 + 6_000 × 0.15 ÷ 1_000_000 + 4_000 × 0.075 ÷ 1_000_000 + 2_000 × 0.60 ÷ 1_000_000"
            " + 3 × 0.001",
            Usage("gpt-4o-mini-2024-07-18", 10_000, 2_000, cached_input_tokens=4_000, tool_calls=3),
            Outcome.FAILURE,
        ),
        Step(
            "two models: 1,000 in and 500 out of one, 200 in and 300 out of the other, 100 of them reasoning",
            "0.002 + 1_000 × 0.15 ÷ 1_000_000 + 500 × 0.60 ÷ 1_000_000 + 200 × 3 ÷ 1_000_000"
            " + 200 × 15 ÷ 1_000_000 + 100 × 12 ÷ 1_000_000",
            Usage(
                input_tokens=1_200,
                output_tokens=800,
                reasoning_tokens=100,
                models=(
                    ModelUsage("gpt-4o-mini", 1_000, 500),
                    ModelUsage("claude-sonnet-4", 200, 300, reasoning_tokens=100),
                ),
            ),
        ),
    ),
    "outcome-based": example(
        Step("a case that is resolved", "1.50", action="ticket.resolve"),
        Step("a case that is not", "0", outcome=Outcome.FAILURE, action="ticket.resolve"),
        Step("a meeting that is booked", "0", outcome=Outcome.PENDING, action="meeting.book"),
        Resolved("the guest comes", "40", Outcome.SUCCESS),
        Step("a task that is approved", "0.25", action="invoice.approve"),
    ),
    "hybrid": example(
        Step(
            "a ticket: 18,042 tokens in, 911 out",
            "0.005 + 18_042 × 0.60 ÷ 1_000_000 + 911 × 2.40 ÷ 1_000_000 + 0.20",
            Usage("gpt-4o-mini", 18_042, 911),
        ),
        Step(
            "the same without success",
            "0.005 + 18_042 × 0.60 ÷ 1_000_000 + 911 × 2.40 ÷ 1_000_000",
            Usage("gpt-4o-mini", 18_042, 911),
            Outcome.FAILURE,
        ),
        Step(
            "the same, and nobody knows yet",
            "0.005 + 18_042 × 0.60 ÷ 1_000_000 + 911 × 2.40 ÷ 1_000_000",
            Usage("gpt-4o-mini", 18_042, 911),
            Outcome.PENDING,
        ),
        Resolved("it was a success", "0.20", Outcome.SUCCESS),
    ),
    "risk-capped-outcome": example(
        Step(
            "a failure: 0.10 + 0.05, raised to the minimum",
            "0.25",
            Usage(output_tokens=5_000),
            Outcome.FAILURE,
            action="invoice.recover",
        ),
        Step(
            "a success: 0.10 + 0.20 + 4, cut at the maximum",
            "4.20",
            Usage(output_tokens=20_000),
            action="invoice.recover",
        ),
        Step("another one", "4.20", Usage(output_tokens=20_000), action="invoice.recover"),
        Step(
            "and another, cut at what the month leaves: 10 − 0.25 − 4.20 − 4.20",
            "10 − 0.25 − 4.20 − 4.20",
            Usage(output_tokens=20_000),
            action="invoice.recover",
        ),
        Closed("the month is over, and its minimum exceeded", "0", "invoice.recover"),
    ),
    "flat-fee": example(Step("a run", "0.05"), Step("a run that fails", "0.05", outcome=Outcome.FAILURE)),
    "subscription": example(
        Step("8,000 compute units, all included", "0", Usage(cpu_milliseconds=8_000_000)),
        Step("3,000 more, of which 2,000 are included", "1_000 × 0.005", Usage(cpu_milliseconds=3_000_000)),
        Step("10 more, none of them", "10 × 0.005", Usage(inference_calls=2)),
        compute_units=10_000,
    ),
    "custom-agreement": example(
        Step(
            "a run with 30,000 tokens: 0.04 + 0.06, less 5 %",
            "0.10 × 0.95",
            Usage(output_tokens=30_000),
        ),
        Step(
            "a batch of 599.94 + 0.06, up to 600.10 in this month",
            "600 × 0.95",
            Usage(output_tokens=299_980_000),
        ),
        Step(
            "another one: 399.90 up to the threshold, 200.10 beyond it, of which 10 % are off",
            "399.90 × 0.95 + 200.10 × 0.90 × 0.95",
            Usage(output_tokens=299_980_000),
        ),
    ),
    "package": example(
        Step("30 pages begin a package", "2.50", Usage(meters={"pages": 30}), action="scan"),
        Step("70 more fill it", "0", Usage(meters={"pages": 70}), action="scan"),
        Step("101 more begin two", "2 × 2.50", Usage(meters={"pages": 101}), action="scan"),
    ),
    "graduated": example(
        Step("1,200 calls cross a threshold", "1_000 × 0.01 + 200 × 0.008", tools(1_200)),
        Step("100 more are in the second tier", "100 × 0.008", tools(100)),
        Step(
            "9,000 more: 8,700, then 300 and the fee of the last tier",
            "8_700 × 0.008 + 5 + 300 × 0.005",
            tools(9_000),
        ),
    ),
    "volume": example(
        Step("800 calls of a chat: charged when the month is over", "0", tools(800), action="chat.answer"),
        Step("and 400 more", "0", tools(400), action="chat.answer"),
        Closed("1,200 calls, all at the price of the last", "1_200 × 0.006", "chat.answer"),
        Step("a batch of 100 calls", "100 × 0.02", tools(100)),
        Step("a batch of 101 calls", "101 × 0.015", tools(101)),
    ),
    "partial-success": example(
        Step("a success: 0.50 + 0.12 + 1", "0.50 + 0.12 + 1", Usage(output_tokens=10_000)),
        Step("a part: half of it, and no bonus", "0.62 × 0.5", Usage(output_tokens=10_000), Outcome.PARTIAL),
        Step("a failure", "0", Usage(output_tokens=10_000), Outcome.FAILURE),
        Step("nobody knows yet: what any outcome owes", "0", Usage(output_tokens=10_000), Outcome.PENDING),
        Resolved("it turns out a success", "0.50 + 0.12 + 1", Outcome.SUCCESS),
        Step("nobody ever knows", "0.62 × 0.25", Usage(output_tokens=10_000), Outcome.UNKNOWN),
    ),
    "compute-units": example(
        Step("2.5 + 2.5 + 0.4 + 10 compute units are 15.4, which count as 16", "16 × 0.005", COMPUTE)
    ),
    "promotional-period": example(
        Step("in the last moment of November", "1", at=datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)),
        Step(
            "in the first of December: 20 % off, then 0.10",
            "1 × 0.8 − 0.10",
            at=datetime(2026, 12, 1, tzinfo=UTC),
        ),
        Step("a week later", "1 × 0.8", at=datetime(2026, 12, 8, tzinfo=UTC)),
        Step("in the new year", "1", at=datetime(2027, 1, 1, tzinfo=UTC)),
    ),
    "period-limits": example(
        Step("a run", "3"),
        Closed("if the month ended here, 2 would be missing", "2"),
        *(Step("a run", "3") for _ in range(5)),
        Step("the seventh run: 20 less what was charged", "20 − 18"),
        Step("all others are free", "0"),
        Closed("the month is over", "0"),
    ),
    "condition": example(
        Step(
            "a large case, resolved: 0.10 + 0.40 + 0.90",
            "0.10 + 0.40 + 0.90",
            tools(10),
            result={"amount": 1_000, "escalated": False},
            action="refund.decide",
        ),
        Step(
            "a small one, escalated, with 11 calls of tools",
            "0.10 + 11 × 0.01",
            tools(11),
            result={"amount": 20, "escalated": True},
            action="refund.decide",
        ),
        Step("one of which the host says nothing", "0.10", tools(1), action="refund.decide"),
    ),
}


def calculated(arithmetic: str) -> int:
    """The micros of sums of products: "1_000 × 0.01 + 200 × 0.008", rounded once, half to even."""
    sum_ = Fraction(0)
    for sign, product in re.findall(r"(?:^|([+−]) )([^+−]+)", arithmetic):
        value = Fraction(1)
        for operator, number in re.findall(r"(?:([×÷]) )?([\d_.]+)", product):
            factor = Fraction(Decimal(number.replace("_", "")))
            value = value / factor if operator == "÷" else value * factor
        sum_ += -value if sign == "−" else value
    exact = sum_ * MICROS_PER_UNIT
    return round_half_even(exact.numerator, exact.denominator)


def compiled(file: PriceFile) -> tuple[CompiledPrice, ...]:
    """The prices of a file, as the service takes them."""
    request = pricing_service_pb2.CreatePriceVersionRequest(
        prices=file.prices, meters=file.meters, plans=file.plans
    )
    price_list = price_list_from_proto(request)
    check_price_list(price_list)
    return compile_price_list(price_list, file.price_book_id)


def price_of(prices: tuple[CompiledPrice, ...], action: str) -> CompiledPrice:
    found = select(prices, action, "agt_helper")
    assert found is not None, action
    return found


def worked(path: Path) -> tuple[str, list[tuple[str, int, int]]]:
    """What the golden file says, and of each step (what it was, total, total by its arithmetic)."""
    example_ = EXAMPLES[path.stem]
    prices, terms = compiled(read(path)), compile_terms(example_.terms)
    counters: dict[str, int] = {}
    opening = dict(counters)
    lines: list[str] = []
    totals = []
    price, execution = prices[0], Step("", "").execution
    for step in example_.steps:
        match step:
            case Step():
                price, execution, opening = price_of(prices, step.action), step.execution, dict(counters)
                rated = rate(price, execution, terms, opening)
                counters |= rated.closing
            case Resolved():
                rated = rate_outcome(price, execution._replace(outcome=step.outcome), terms, opening)
                counters |= rated.closing
            case Closed():
                price = price_of(prices, step.action)
                rated = close_period(price, terms, counters)
        assert sum(line.amount_micros for line in rated.lines) == rated.total_micros
        totals.append((step.told, rated.total_micros, calculated(step.arithmetic)))
        lines += _printed(step, rated)
    return "\n".join(lines) + "\n", totals


def _printed(step: Step | Resolved | Closed, rated: Rated) -> list[str]:
    says = [step.told, f"  {step.arithmetic}"]
    says += [_line(one) for one in rated.lines]
    says.append(f"  {'':47} = {_amount(rated.total_micros)}")
    says += [f"  {name} is now {value:,}" for name, value in rated.closing.items()]
    return [*says, ""]


def _line(one: RatedLine) -> str:
    notes = [one.kind.value] if one.kind is not LineKind.COMPONENT else []
    notes += [f"tier {one.tier}"] if one.tier else []
    units = f"{one.quantity:>11,} × {_price(one.unit_price):18}"
    told = f"  {one.component_name:18}{units}{_amount(one.amount_micros)}"
    return f"{told:66}{', '.join(notes)}".rstrip()


def _price(price: UnitPrice) -> str:
    return price.amount if price.per_units == 1 else f"{price.amount} / {price.per_units:,}"


def _amount(micros: int) -> str:
    return f"{Decimal(micros).scaleb(-6):11,.6f}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_costs_what_its_arithmetic_says(path: Path) -> None:
    printed, totals = worked(path)
    for told, total, expected in totals:
        assert total == expected, told
    assert printed == (GOLDEN / f"{path.stem}.txt").read_text()


def test_every_example_is_worked_and_every_kind_of_line_occurs() -> None:
    assert [path.stem for path in FILES] == sorted(EXAMPLES)
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(EXAMPLES)
    all_of_them = "".join(path.read_text() for path in GOLDEN.glob("*.txt"))
    for kind in ("allowance", "outcome_factor", "discount", "minimum", "maximum", "tier 3"):
        assert kind in all_of_them


if __name__ == "__main__":
    for file in FILES:
        golden, checked = worked(file)
        (GOLDEN / f"{file.stem}.txt").write_text(golden)
        for what, got, by_hand in checked:
            if got != by_hand:
                sys.stderr.write(f"{file.stem}: {what}: {got}, by its arithmetic {by_hand}\n")
