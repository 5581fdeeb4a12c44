"""Rating reproduces what the calls of recorded agent runs cost, to the last digit that their source states.

Runs are those of sandbox/data, whose notices are in the LICENSES.md beside them. Left out are steps that
prove nothing or cannot match: of which the cached tokens were themselves computed from the cost, of
`azure-gpt4o-airline`, which was priced by an older list, and of models that the list does not have.
"""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from services.kit.money import MICROS_PER_UNIT
from services.metering.domain.compiled_price import CompiledPrice, Execution, compile_price_list
from services.metering.domain.price_book import (
    MeterRate,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    Tier,
    UnitPrice,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.rating import rate
from services.metering.domain.usage_event import ModelUsage, Outcome, Usage

RUNS = Path(__file__).parents[3] / "sandbox" / "data" / "runs.jsonl.gz"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
# List prices in USD per million tokens: input, input that was cached, output. From LiteLLM 1.109.1
# (BerriAI/litellm, MIT, Copyright (c) 2023 Berri AI; its notice is in services/reporting/data/README.md).
PRICES = {
    "claude-opus-4-6": ("5", "0.5", "25"),
    "claude-sonnet-4-6": ("3", "0.3", "15"),
    "claude-sonnet-4-5-*": ("3", "0.3", "15"),
    "deepseek-chat": ("0.28", "0.028", "0.42"),
}
METERS = ("uncached_input_tokens", "cached_input_tokens", "output_tokens")
KNOWN = ("claude-opus-4-6", "claude-sonnet-4-6", "claude-sonnet-4-5-20250929", "deepseek-chat")


def price(per_units: int) -> CompiledPrice:
    """The list as one price, for so many tokens."""
    components = tuple(
        PriceComponent(
            f"{model.strip('-*')}.{meter}",
            MeterRate(meter, (Tier(None, UnitPrice(amount, per_units)),), models=(model,)),
        )
        for model, amounts in PRICES.items()
        for meter, amount in zip(METERS, amounts, strict=True)
    )
    price_list = PriceList((Price("models", PriceSelector(), components),))
    check_price_list(price_list)
    (compiled,) = compile_price_list(price_list)
    return compiled


def runs() -> Iterator[dict[str, Any]]:
    with gzip.open(RUNS, "rt") as lines:
        yield from map(json.loads, lines)


def proving(step: dict[str, Any]) -> bool:
    return (
        step["kind"] == "llm"
        and step["cost_usd"] is not None
        and step["tokens_input"] is not None
        and step["tokens_cached_from"] != "cost"
        and step["name"] in KNOWN
    )


def usage(step: dict[str, Any]) -> Usage:
    return Usage(
        step["name"],
        step["tokens_input"],
        step["tokens_output"],
        step["tokens_cached"] or 0,
        inference_calls=1,
    )


def test_every_step_costs_what_was_recorded() -> None:
    # For a token and not for a million: a micro of that price is a millionth of a millionth of a dollar.
    to_the_digit, in_micros = price(1), price(1_000_000)
    steps = [step for run in runs() for step in run["steps"] if proving(step)]

    assert len(steps) == 1_844
    for step in steps:
        execution = Execution(usage(step), Outcome.SUCCESS, NOW)
        cost = Decimal(step["cost_usd"])
        assert Decimal(rate(to_the_digit, execution).total_micros).scaleb(-12) == cost
        assert rate(in_micros, execution).total_micros == round(cost * MICROS_PER_UNIT)


def test_a_run_costs_what_its_calls_do_and_so_do_all_of_them_by_model() -> None:
    to_the_digit = price(1)
    everything: dict[str, ModelUsage] = {}
    recorded, count = Decimal(0), 0
    for run in runs():
        steps = [step for step in run["steps"] if step["kind"] == "llm"]
        if not steps or not all(map(proving, steps)) or run["cost_usd"] is None:
            continue
        parts: dict[str, ModelUsage] = {}
        for step in steps:
            for sums in (parts, everything):
                add(sums, usage(step))

        assert cost_of(to_the_digit, parts) == Decimal(run["cost_usd"])
        recorded, count = recorded + Decimal(run["cost_usd"]), count + 1
    assert (count, sorted(everything)) == (188, sorted(KNOWN))
    assert cost_of(to_the_digit, everything) == recorded


def add(sums: dict[str, ModelUsage], one: Usage) -> None:
    before = sums.get(one.model, ModelUsage(one.model))
    sums[one.model] = ModelUsage(
        one.model,
        before.input_tokens + one.input_tokens,
        before.output_tokens + one.output_tokens,
        before.cached_input_tokens + one.cached_input_tokens,
    )


def cost_of(to_the_digit: CompiledPrice, parts: dict[str, ModelUsage]) -> Decimal:
    """What several models consumed, in USD."""
    whole = Usage(
        input_tokens=sum(part.input_tokens for part in parts.values()),
        output_tokens=sum(part.output_tokens for part in parts.values()),
        cached_input_tokens=sum(part.cached_input_tokens for part in parts.values()),
        models=tuple(parts.values()),
    )
    rated = rate(to_the_digit, Execution(whole, Outcome.SUCCESS, NOW))
    return Decimal(rated.total_micros).scaleb(-12)
