"""Conditions of prices: expressions in CEL (https://cel.dev), checked when a price is drafted.

Evaluation is bounded: strings and results have limits, and the library stops an expression that iterates too
often. It reads no clock and knows no functions but CEL's own, so that an expression always answers the same.
What that limit does not bound is left out of the language: `map`, since sixty of them in a row double a text
to more than any memory holds; `filter` and `matches`, which can take a second on what hosts may report.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cel_expr_python import cel

MAX_LENGTH: Final = 1_000

# What a condition may ask for.
VARIABLES: Final = {
    "outcome": cel.Type.STRING,
    "result": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
    "usage": cel.Type.Map(cel.Type.STRING, cel.Type.INT),
    "action_type": cel.Type.STRING,
    "agent_id": cel.Type.STRING,
    "agent_version": cel.Type.STRING,
    "tool_name": cel.Type.STRING,
    "outcome_candidate": cel.Type.STRING,
}
_LANGUAGE: Final = """
stdlib:
  exclude_macros:
    - map
    - filter
  exclude_functions:
    - name: matches
"""
_ENVIRONMENT: Final = cel.NewEnv(config=cel.NewEnvConfigFromYaml(_LANGUAGE), variables=VARIABLES)
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# How the library begins each of its findings.
_FINDING: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
# What it frames a message with.
_FRAME: Final = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")


class ConditionError(Exception):
    """A condition that is none, and where: lines and columns count from 1."""

    def __init__(self, description: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {description}")
        self.description = description
        self.line = line
        self.column = column


class Condition(NamedTuple):
    """A condition, compiled. `variables` are those that it may ask for: nobody needs to provide others."""

    holds: Callable[[Mapping[str, Any]], bool]
    variables: frozenset[str]


def compile_condition(source: str) -> Condition:
    """The condition in an expression. Raises ConditionError unless it is one that answers true or false."""
    if len(source) > MAX_LENGTH:
        raise ConditionError(f"is longer than {MAX_LENGTH} characters", 1, MAX_LENGTH + 1)
    try:
        expression = _ENVIRONMENT.compile(source)
    except RuntimeError as error:
        raise _found(str(error)) from None
    if expression.return_type() != cel.Type.BOOL:
        kind = expression.return_type().name().lower()
        raise ConditionError(f"is {kind}, not bool: compare it, as in result.resolved == true", 1, 1)
    evaluate = expression.eval

    def holds(values: Mapping[str, Any]) -> bool:
        """Whether it is true of these values of its variables; what cannot be evaluated is not."""
        try:
            # Errors are values too: of a field that the result does not have, or of another type.
            return evaluate(data=values).value() is True
        except (RuntimeError, TypeError, ValueError, OverflowError):
            # Too many iterations, or a number that CEL has no room for.
            return False

    # Words in strings count as well: one variable too many does no harm.
    return Condition(holds, frozenset(_WORD.findall(source)) & VARIABLES.keys())


def _found(message: str) -> ConditionError:
    """The first finding in a message of the library."""
    finding = _FINDING.search(message)
    if finding is None:
        return ConditionError(_FRAME.sub("", message.splitlines()[0]), 1, 1)
    line, column, description = finding.groups()
    # The container that names are looked up in is of no use to the reader: there is none. What is wrong with
    # the whole expression has no place.
    description = description.removesuffix(" (in container '')")
    return ConditionError(description, max(1, int(line)), max(1, int(column)))
