"""Rating by itself: no service, no store, one process.

Time is the CPU time of this process, so that a rate is what one core does, whatever else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Final

from cel_expr_python import cel

from bench.contestants import UnexpectedAnswerError
from bench.results import RATE_CEL, RATE_PURE, Result, rounded
from bench.summary import median, median_ratio
from services.metering.domain.compiled_price import CompiledPrice, Execution, compile_price_list
from services.metering.domain.price_book import (
    BaseFee,
    MeterRate,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    Tier,
    TierMode,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.rating import rate
from services.metering.domain.usage_event import Outcome, Usage

# How many different executions are rated, in turns.
_EXECUTIONS: Final = 1_000
_SEED: Final = 7
_NOW: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
_PER_MILLION: Final = 1_000_000
_CONDITION: Final = "result.resolved == true && result.score >= 4.0"
# What `_by_hand` counts in: 20 of them are a micro.
_PARTS: Final = 20
_FEE, _INPUT, _MORE_INPUT, _OUTPUT, _BONUS = 100_000, 12, 9, 48, 4_000_000
_FIRST_TIER: Final = 10_000

Work = Callable[[Execution], object]


def rating_benchmarks(
    chosen: Sequence[str], rounds: int, seconds: float, conditions: Mapping[str, object]
) -> list[Result]:
    """The results of those that are chosen. Raises UnexpectedAnswerError if both sides differ."""
    executions = _executions()
    found = []
    if RATE_PURE in chosen:
        price = _price("")
        for execution in executions:
            if rate(price, execution).total_micros != _by_hand(execution)[1]:
                raise UnexpectedAnswerError(f"rating differs from the same sums by hand: {execution}")
        found.append(_compare(RATE_PURE, (_rating(price), _by_hand), executions, rounds, seconds, conditions))
    if RATE_CEL in chosen:
        sides = (_rating(_price(_CONDITION)), _evaluation())
        found.append(_compare(RATE_CEL, sides, executions, rounds, seconds, conditions))
    return found


def _compare(
    name: str,
    sides: tuple[Work, Work],
    executions: Sequence[Execution],
    rounds: int,
    seconds: float,
    conditions: Mapping[str, object],
) -> Result:
    """Both sides in turns; values are operations per second of CPU."""
    for work in sides:
        _run(work, executions)
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        # Another one begins each time.
        for side in (0, 1) if number % 2 else (1, 0):
            count, spent = 0, 0.0
            while spent < seconds / 2:
                spent += _run(sides[side], executions)
                count += len(executions)
            taken[side].append(count / spent)
    values, floors = taken
    return Result(
        name=name,
        value=rounded(median(values)),
        unit="ratings/s",
        floor=rounded(median(floors)),
        ratio=rounded(median_ratio(values, floors)),
        p50_ms=None,
        p99_ms=None,
        conditions={
            "cpu_us_per_operation": {"client": rounded(1e6 / median(values))},
            "value_by_round": [rounded(value) for value in values],
            "floor_by_round": [rounded(value) for value in floors],
            **conditions,
        },
    )


def _run(work: Work, executions: Sequence[Execution]) -> float:
    """Seconds of CPU."""
    began = time.process_time()
    for execution in executions:
        work(execution)
    return time.process_time() - began


def _executions() -> list[Execution]:
    """Half of them successes, most within the first tier, some beyond it."""
    random = Random(_SEED)  # noqa: S311 - no secret
    return [
        Execution(
            usage=Usage("gpt", random.randrange(500, 20_000), random.randrange(50, 2_000)),
            outcome=random.choice((Outcome.SUCCESS, Outcome.FAILURE)),
            occur_time=_NOW,
            result={"resolved": random.random() < 0.8, "score": random.randrange(1, 6), "steps": ["a", "b"]},
            action_type="ticket.resolve",
            agent_id="agt_bench",
        )
        for _ in range(_EXECUTIONS)
    ]


def _price(condition: str) -> CompiledPrice:
    """A fee, tokens in tiers, tokens at one price, and a bonus."""
    tiers = (
        Tier(_FIRST_TIER, UnitPrice("0.60", _PER_MILLION)),
        Tier(None, UnitPrice("0.45", _PER_MILLION)),
    )
    components = (
        PriceComponent("fee", BaseFee(UnitPrice("0.005"))),
        PriceComponent("input", MeterRate("input_tokens", tiers, TierMode.GRADUATED)),
        PriceComponent("output", TokenRate(TokenKind.OUTPUT, UnitPrice("2.40", _PER_MILLION))),
        PriceComponent("solved", OutcomeBonus(Outcome.SUCCESS, UnitPrice("0.20")), condition),
    )
    (price,) = compile_price_list(PriceList((Price("run", PriceSelector(), components),)))
    return price


def _rating(price: CompiledPrice) -> Work:
    return lambda execution: rate(price, execution)


def _by_hand(execution: Execution) -> tuple[list[tuple[str, int, int]], int]:
    """The floor of rating: the same sums written for this price alone, without whom to tell the unit prices,
    and with lines that are not rounded.
    """
    usage = execution.usage
    tokens = usage.input_tokens
    lines = [("fee", 1, _FEE)]
    if tokens <= _FIRST_TIER:
        lines.append(("input", tokens, tokens * _INPUT))
    else:
        lines.append(("input", _FIRST_TIER, _FIRST_TIER * _INPUT))
        lines.append(("input", tokens - _FIRST_TIER, (tokens - _FIRST_TIER) * _MORE_INPUT))
    lines.append(("output", usage.output_tokens, usage.output_tokens * _OUTPUT))
    if execution.outcome is Outcome.SUCCESS:
        lines.append(("solved", 1, _BONUS))
    total, rest = divmod(sum(parts for _, _, parts in lines), _PARTS)
    if rest * 2 > _PARTS or (rest * 2 == _PARTS and total % 2):
        total += 1
    return lines, total


def _evaluation() -> Work:
    """The floor of rating with a condition: the library's evaluation of it, wherever rating asks it."""
    variables = {"result": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)}
    evaluate = cel.NewEnv(variables=variables).compile(_CONDITION).eval

    def work(execution: Execution) -> object:
        if execution.outcome is not Outcome.SUCCESS:
            return False
        return evaluate(data={"result": execution.result}).value()

    return work
