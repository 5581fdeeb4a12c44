"""Meters: what can be counted of a usage."""

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from math import lcm
from operator import attrgetter
from typing import Final

from services.kit.money import round_half_even
from services.metering.domain.price_book import MeterFormula, MeterRounding
from services.metering.domain.usage_event import ModelUsage, Usage

# How many units of a meter a usage has.
Measure = Callable[[Usage], int]

# Those that say which model consumed them.
MODEL_METERS: Final[Mapping[str, Callable[[Usage | ModelUsage], int]]] = {
    "input_tokens": attrgetter("input_tokens"),
    "uncached_input_tokens": lambda usage: usage.input_tokens - usage.cached_input_tokens,
    "cached_input_tokens": attrgetter("cached_input_tokens"),
    "output_tokens": attrgetter("output_tokens"),
    "text_output_tokens": lambda usage: usage.output_tokens - usage.reasoning_tokens,
    "reasoning_tokens": attrgetter("reasoning_tokens"),
    "inference_calls": attrgetter("inference_calls"),
}
BUILT_IN_METERS: Final[Mapping[str, Measure]] = {
    **MODEL_METERS,
    "tool_calls": attrgetter("tool_calls"),
    "cpu_milliseconds": attrgetter("cpu_milliseconds"),
    "memory_megabyte_seconds": attrgetter("memory_megabyte_seconds"),
    "network_bytes": attrgetter("network_bytes"),
}


def measure_of(meter: str, formulas: Mapping[str, Measure]) -> Measure:
    """How to count a meter: one of ours, one of a formula, or else one of the host's own."""
    found = BUILT_IN_METERS.get(meter) or formulas.get(meter)
    return found or (lambda usage: usage.meters.get(meter, 0))


def compile_formulas(formulas: Iterable[MeterFormula]) -> dict[str, Measure]:
    """How to count the meters of formulas."""
    return {formula.meter: _compile(formula) for formula in formulas}


def matcher(models: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a model is one of those named; "*" ends a beginning of names."""
    names = frozenset(one for one in models if not one.endswith("*"))
    beginnings = tuple(one[:-1] for one in models if one.endswith("*"))
    return lambda model: bool(model) and (model in names or model.startswith(beginnings))


def of_models(meter: str, models: tuple[str, ...]) -> Callable[[Usage, int], int]:
    """How to count what these models consumed of a meter, beyond units that are covered already.

    What is covered is covered in the order in which the usage names its models.
    """
    measure, matches = MODEL_METERS[meter], matcher(models)

    def count(usage: Usage, covered: int) -> int:
        if not usage.models:
            return measure(usage) - covered if matches(usage.model) else 0
        rest = 0
        for part in usage.models:
            quantity = measure(part)
            free = min(quantity, covered)
            covered -= free
            if matches(part.model):
                rest += quantity - free
        return rest

    return count


def quantities(usage: Usage, formulas: Mapping[str, Measure]) -> dict[str, int]:
    """The quantity of every meter: of ours, of the formulas, and of those that the host reported."""
    return {
        **usage.meters,
        **{name: measure(usage) for name, measure in BUILT_IN_METERS.items()},
        **{name: measure(usage) for name, measure in formulas.items()},
    }


def _compile(formula: MeterFormula) -> Measure:
    weights = [Fraction(Decimal(term.units)) / term.per_units for term in formula.terms]
    denominator = lcm(*(weight.denominator for weight in weights))
    terms = [
        (measure_of(term.meter, {}), weight.numerator * (denominator // weight.denominator))
        for term, weight in zip(formula.terms, weights, strict=True)
    ]
    rounding = formula.rounding

    def measure(usage: Usage) -> int:
        total = sum(count(usage) * weight for count, weight in terms)
        match rounding:
            case MeterRounding.UP:
                return -(-total // denominator)
            case MeterRounding.HALF_EVEN:
                return round_half_even(total, denominator)
            case MeterRounding.DOWN:
                return total // denominator

    return measure
