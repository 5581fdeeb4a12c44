"""What models cost by list price."""

import gzip
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.model_costs import Catalogue

CATALOGUE = Catalogue.load()
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
RUNS = Path(__file__).parents[3] / "sandbox" / "data" / "runs.jsonl.gz"
TICK = timedelta(microseconds=1)


def cost(model: str, input_tokens: int, output_tokens: int = 0, moment: datetime = NOON) -> Decimal:
    found = CATALOGUE.cost(model, input_tokens, output_tokens, moment)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("model", "usd_per_input_token", "usd_per_output_token"),
    [
        # Read from the list by hand, in its own unit.
        ("claude-haiku-5-5", "0.0000001", "0.0000005"),
        ("claude-opus-5-5", "0.000004", "0.00002"),
        ("dashscope/qwen-turbo", "0.00000005", "0.0000002"),
        ("dashscope/qwen3.8-flash", "0.00000015", "0.00000047"),
        ("deepseek-v4-pro", "0.00000132", "0.00000396"),
        ("deepseek/deepseek-v3.2", "0.00000028", "0.0000004"),
        ("ft:gpt-4.1-2025-04-14", "0.000003", "0.000012"),
        ("azure/gpt-4.1", "0.000002", "0.000008"),
        ("gemini/gemini-3.6-flash", "0.00000075", "0.00000375"),
        ("gpt-4", "0.00003", "0.00006"),
        ("gpt-3.5-turbo", "0.0000005", "0.0000015"),
        ("zai/glm-5.3-flash", "0.00000015", "0.0000005"),
    ],
)
def test_prices_are_those_of_the_list(
    model: str, usd_per_input_token: str, usd_per_output_token: str
) -> None:
    assert cost(model, 1) == Decimal(usd_per_input_token)
    assert cost(model, 0, 1) == Decimal(usd_per_output_token)
    assert cost(model, 3_000, 7) == 3_000 * Decimal(usd_per_input_token) + 7 * Decimal(usd_per_output_token)


@pytest.mark.parametrize(
    ("model", "limit", "prices"),
    [
        # Per million: input and output up to the limit, and above it.
        ("claude-sonnet-4-5", 200_000, "3 15 6 22.5"),
        ("gemini-1.5-flash", 128_000, "0.075 0.3 0.15 0.6"),
        ("gemini-1.5-pro", 128_000, "1.25 5 2.5 10"),
        ("gemini-2.5-pro", 200_000, "1.25 10 2.5 15"),
        ("gemini-3-pro-preview", 200_000, "2 12 4 18"),
        ("gemini-3.1-pro-preview", 200_000, "2 12 4 18"),
        ("gemini-flash-1.5", 128_000, "0.075 0.3 0.15 0.6"),
        ("gemini-flash-1.5-8b", 128_000, "0.0375 0.15 0.075 0.3"),
        ("gemini-pro-1.5", 128_000, "1.25 5 2.5 10"),
        ("gpt-5.4", 272_000, "2.5 15 5 22.5"),
        ("gpt-5.4-pro", 272_000, "30 180 60 270"),
        ("gpt-5.6-luna", 272_000, "1 6 2 9"),
        ("gpt-5.6-sol", 272_000, "5 30 10 45"),
        ("gpt-5.6-terra", 272_000, "2.5 15 5 22.5"),
        ("vertex_ai/claude-opus-4-6", 200_000, "5 25 10 37.5"),
        ("xai/grok-4.20", 200_000, "1.25 2.5 2.5 5"),
        ("xai/grok-4.7", 200_000, "2 6 4 12"),
        ("xai/grok-code-fast-1", 200_000, "1 2 2 4"),
    ],
)
def test_a_request_above_the_limit_has_the_higher_price_as_a_whole(
    model: str, limit: int, prices: str
) -> None:
    base_input, base_output, tier_input, tier_output = (Decimal(price) for price in prices.split())
    million = 1_000_000
    assert cost(model, limit, 1_000) == (limit * base_input + 1_000 * base_output) / million
    assert cost(model, limit + 1, 1_000) == ((limit + 1) * tier_input + 1_000 * tier_output) / million


@pytest.mark.parametrize(
    ("model", "day", "before", "after"),
    [
        ("o3", (2025, 6, 10), "10", "2"),
        ("claude-sonnet-5", (2026, 9, 1), "2", "3"),
        # Since then it does not depend on the size of the prompt any more.
        ("claude-opus-4-6", (2026, 3, 13), "10", "5"),
        ("claude-sonnet-4-6", (2026, 3, 13), "6", "3"),
    ],
)
def test_a_price_holds_from_its_first_day_in_utc(
    model: str, day: tuple[int, int, int], before: str, after: str
) -> None:
    begin = datetime(*day, tzinfo=UTC)
    assert cost(model, 1_000_000, moment=begin - TICK) == Decimal(before)
    assert cost(model, 1_000_000, moment=begin) == Decimal(after)
    # The same moment, by another clock.
    east = begin.astimezone(timezone(timedelta(hours=9)))
    assert cost(model, 1_000_000, moment=east) == Decimal(after)


@pytest.mark.parametrize(
    ("model", "day_price"), [("deepseek-chat", "1.1"), ("deepseek/deepseek-reasoner", "2.19")]
)
def test_a_price_may_depend_on_the_time_of_day(model: str, day_price: str) -> None:
    begin, end = datetime(2025, 5, 1, 0, 30, tzinfo=UTC), datetime(2025, 5, 1, 16, 30, tzinfo=UTC)
    moments = [begin - TICK, begin, end - TICK, end]
    night, day = Decimal("0.55"), Decimal(day_price)
    assert [cost(model, 0, 1_000_000, moment) for moment in moments] == [night, day, day, night]


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        (" GPT-4o ", "openai/gpt-4o"),
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai:gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("gpt-5-chat-latest", "openai/gpt-5-chat"),
        ("azure/gpt-4o-2024-11-20", "azure/gpt-4o"),
        ("openrouter/anthropic/claude-opus-4-6", "anthropic/claude-opus-4-6"),
        ("claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4-5"),
        ("vertex_ai/claude-opus-4-6@20260205", "google/claude-opus-4-6"),
        ("models/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("google-gla:gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("ft:gpt-4.1-2025-04-14:acme::BzrYdMNm", "openai/ft:gpt-4.1-2025-04-14"),
        ("groq/openai/gpt-oss-120b", "groq/openai/gpt-oss-120b"),
        ("x-ai/grok-4.5", "xai/grok-4.5"),
    ],
)
def test_a_model_is_known_by_the_names_that_hosts_send(model: str, key: str) -> None:
    assert CATALOGUE.key(model) == key


@pytest.mark.parametrize(
    "model",
    [
        "mixed",
        "gpt-99",
        "openai/",
        "/",
        "xai/grok-3",
        # Open weights cost what the host asks.
        "openai/gpt-oss-120b",
        "gpt-oss-120b",
        "ollama_chat/qwen2.5:7b",
        "together_ai/deepseek-r1",
        # Sold by others, at prices of their own.
        "azure/gpt-5",
        "bedrock/anthropic.claude-opus-4-6-v1:0",
        # Fine-tuned is not what it is made of.
        "ft:gpt-4o:acme::1",
        # It has cost twice as much as what is called gpt-4o today.
        "gpt-4o-2024-05-13",
    ],
)
def test_what_is_not_known_is_said_and_never_zero(model: str) -> None:
    assert CATALOGUE.cost(model, 1_000, 1_000, NOON) is None


def test_no_tokens_of_no_model_cost_nothing_and_half_an_answer_is_none() -> None:
    assert CATALOGUE.cost("", 0, 0, NOON) == 0
    assert CATALOGUE.cost("", 1, 0, NOON) is None
    assert CATALOGUE.cost("gpt-4o", 0, 0, NOON) is None


@given(st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_no_number_of_tokens_is_rounded(input_tokens: int, output_tokens: int) -> None:
    exact = Fraction(2 * input_tokens + 8 * output_tokens, 10**6)
    assert Fraction(cost("o3", input_tokens, output_tokens)) == exact


def test_a_price_that_never_applied_yet_is_not_known() -> None:
    later = Catalogue("", {"openai/new": [{"from": "2027-01-01", "input": "1", "output": "2"}]})
    assert later.cost("new", 1, 1, NOON) is None
    with pytest.raises(ValueError, match="no part of a day"):
        Catalogue("", {"openai/new": [{"window": ["16:30", "00:30"], "input": "1", "output": "2"}]})


def test_every_model_of_the_recorded_runs_is_priced_or_known_to_have_no_price() -> None:
    names = set()
    for line in gzip.decompress(RUNS.read_bytes()).splitlines():
        run = json.loads(line)
        names |= {run["model"], *(step["name"] for step in run["steps"] if step["kind"] == "llm")}
    assert {name for name in names if CATALOGUE.key(name) is None} == {
        "mixed",
        "ollama_chat/qwen2.5:7b",
        "openai/gpt-oss-120b",
        "xai/grok-3",
    }


def test_the_catalogue_says_which_it_is_and_has_a_price_in_every_entry() -> None:
    assert "2026-11-29" in CATALOGUE.name
    document = json.loads((Path(__file__).parents[3] / "services/kit/data/model_prices.json").read_text())
    for key in document["models"]:
        # By its own name, each is found, and costs something.
        assert CATALOGUE.key(key) == key
        assert cost(key, 1) > 0
