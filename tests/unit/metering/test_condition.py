"""Conditions of prices: what is accepted, where a mistake is, and what an expression answers."""

from typing import Any

import pytest

from services.metering.domain.condition import ConditionError, compile_condition


@pytest.mark.parametrize(
    ("source", "line", "column", "words"),
    [
        ("outcom == 'success'", 1, 1, "undeclared reference to 'outcom'"),
        ("outcome == 'success' &&\n  score > 3", 2, 3, "undeclared reference to 'score'"),
        ("outcome == 3", 1, 9, "no matching overload"),
        ("usage.input_tokens > 'many'", 1, 20, "no matching overload"),
        ("outcome ==", 1, 11, "Syntax error"),
        ("result.resolved", 1, 1, "dyn, not bool"),
        ("1 + 1", 1, 1, "int, not bool"),
        ("now() > 1", 1, 4, "undeclared reference to 'now'"),
        # Both could take seconds, or all memory.
        ("outcome.matches('(a?){9}')", 1, 16, "undeclared reference to 'matches'"),
        ("[outcome].map(one, one + one).size() > 0", 1, 15, "undeclared reference to 'one'"),
        ("[1].filter(one, one > 1).size() > 0", 1, 12, "undeclared reference to 'one'"),
        ("[outcome].map//\n(one, one + one).size() > 0", 2, 2, "undeclared reference to 'one'"),
        ("(" * 200 + "true" + ")" * 200, 1, 1, "Expression recursion limit exceeded"),
        ("1" + " + 1" * 200 + " == 1", 1, 1, "Exceeded max recursion depth"),
        ("true" + " " * 997, 1, 1_001, "longer than 1000"),
    ],
)
def test_a_mistake_is_found_before_anything_is_priced(
    source: str, line: int, column: int, words: str
) -> None:
    with pytest.raises(ConditionError) as found:
        compile_condition(source)

    assert (found.value.line, found.value.column) == (line, column)
    assert words in found.value.description
    assert str(found.value) == f"line {line}, column {column}: {found.value.description}"


@pytest.mark.parametrize(
    ("source", "values", "expected"),
    [
        ("true", {}, True),
        ("outcome == 'success'", {"outcome": "success"}, True),
        ("outcome == 'success'", {"outcome": "failure"}, False),
        ("result.score >= 4", {"result": {"score": 4}}, True),
        ("result.score >= 4", {"result": {"score": 3.5}}, False),
        ("result.ticket.state == 'closed'", {"result": {"ticket": {"state": "closed"}}}, True),
        ("has(result.score) && result.score > 1", {"result": {}}, False),
        ("'vip' in result.tags", {"result": {"tags": ["vip", "eu"]}}, True),
        ("result.tags.exists(tag, tag.startsWith('e'))", {"result": {"tags": ["vip", "eu"]}}, True),
        ("usage.input_tokens + usage.pages > 10", {"usage": {"input_tokens": 9, "pages": 2}}, True),
        ("result.resolved == true", {"result": {"resolved": True}}, True),
        ("result.resolved == true", {"result": {"resolved": "true"}}, False),
    ],
)
def test_a_condition_answers(source: str, values: dict[str, Any], expected: bool) -> None:
    assert compile_condition(source).holds(values) is expected


@pytest.mark.parametrize(
    "values",
    [
        # No such field, another type, a number beyond 64 bits, nothing at all.
        {"result": {}},
        {"result": {"score": "high"}},
        {"result": {"score": {"a": 1}}},
        {"result": {"score": 10**300}},
        {},
    ],
)
def test_what_cannot_be_evaluated_is_not_true(values: dict[str, Any]) -> None:
    assert not compile_condition("result.score >= 4").holds(values)
    assert not compile_condition("!(result.score >= 4)").holds(values)


def test_an_expression_that_goes_on_and_on_is_stopped_and_not_true() -> None:
    source = "result.l.all(x, result.l.all(y, result.l.all(z, x + y + z >= 0.0)))"

    assert compile_condition(source).holds({"result": {"l": [1.0]}})
    assert not compile_condition(source).holds({"result": {"l": [1.0] * 2_000}})


def test_it_says_what_it_asks_for() -> None:
    assert compile_condition("outcome == 'usage' && result.a == 1").variables >= {"outcome", "result"}
    assert compile_condition("true").variables == frozenset()
    assert compile_condition("agent_id == 'agt_a'").variables == {"agent_id"}
