"""Price lists in files: each mistake is told where it stands, and all of them at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tallystick.metering.v1 import price_book_pb2 as pb
from tallystick.metering.v1 import usage_pb2
from tallystick.prices import differences, document
from tallystick.prices.file import PriceFileError, parse, read
from tallystick.prices.nodes import MAX_FILE_BYTES
from tallystick.prices.text import to_yaml

GOOD = """\
book: pb_lark
currency: USD
prices:
  - name: run
    components:
      - name: run
        fee: 1
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(PriceFileError) as raised:
        parse(text)
    return [line.removeprefix("book.yaml:") for line in raised.value.lines()]


def component(says: str) -> str:
    """A book whose one component says this; its first key is in line 7, column 9."""
    return GOOD.replace("fee: 1", says.replace("\n", "\n        "))


def price(says: str) -> str:
    """A book whose one price says this besides; its first key is in line 8, column 5."""
    return GOOD + "    " + says.replace("\n", "\n    ") + "\n"


def amount(text: str, per_units: int = 0) -> pb.UnitPrice:
    return pb.UnitPrice(amount=text, per_units=per_units)


def test_what_a_file_says() -> None:
    found = parse(
        """\
book: pb_lark
organization: org_lark
currency: USD
name: Lark
meters:
  - name: compute_units
    terms: {cpu_milliseconds: 1 per 1000, inference_calls: 0.5}
    round: half_even
prices:
  - name: ticket
    actions: ticket.resolve
    agents: [agt_a, agt_b]
    components:
      - name: calls
        meter: inference_calls
        models: [gpt-*]
        graduated:
          - {up_to: 1_000, price: 0.10}
          - {price: 1_000 per 1_000_000, entry_fee: "2"}
        scope: billing_period
        when: result.ok == true
      - name: done
        bonus: 1
        when: outcome != "failure"
    outcomes: {failure: 0%, partial: 12.5 %}
    discounts:
      - name: loyal
        volume: [{above: 100, percent: 5%}]
        from: 2026-12-01
        until: 2026-12-02T01:00:00+01:00
    period_maximum: 20
    pending: {expire_after: 36h, becomes: failure}
plans:
  - name: team
    fee: 49
    seat_fee: 5
    period: quarter
    includes: {compute_units: 100, tool_calls: {quantity: 1, per_seat: 2}}
"""
    )
    assert (found.price_book_id, found.organization_id) == ("pb_lark", "org_lark")
    assert (found.currency_code, found.display_name) == ("USD", "Lark")
    assert found.meters == [
        pb.MeterFormula(
            meter="compute_units",
            terms=[
                pb.MeterTerm(meter="cpu_milliseconds", units="1", per_units=1_000),
                pb.MeterTerm(meter="inference_calls", units="0.5"),
            ],
            rounding=pb.METER_ROUNDING_HALF_EVEN,
        )
    ]
    (ticket,) = found.prices
    calls, done = ticket.components
    assert ticket.selector == pb.PriceSelector(action_types=["ticket.resolve"], agent_ids=["agt_a", "agt_b"])
    assert calls == pb.PriceComponent(
        name="calls",
        meter_rate=pb.MeterRate(
            meter="inference_calls",
            models=["gpt-*"],
            tier_mode=pb.TIER_MODE_GRADUATED,
            tiers=[
                pb.Tier(up_to=1_000, price=amount("0.10")),
                pb.Tier(price=amount("1000", 1_000_000), fee=amount("2")),
            ],
            tier_scope=pb.TIER_SCOPE_BILLING_PERIOD,
        ),
        condition="result.ok == true",
    )
    assert done.outcome_bonus == pb.OutcomeBonus(price=amount("1"))
    assert list(ticket.outcome_factors) == [
        pb.OutcomeFactor(outcome=usage_pb2.OUTCOME_FAILURE),
        pb.OutcomeFactor(outcome=usage_pb2.OUTCOME_PARTIAL, basis_points=1_250),
    ]
    (loyal,) = ticket.discounts
    assert list(loyal.volume.steps) == [pb.VolumeDiscountStep(from_amount=amount("100"), basis_points=500)]
    assert loyal.end_time.seconds - loyal.start_time.seconds == 86_400
    assert (ticket.period_maximum, ticket.HasField("maximum")) == (amount("20"), False)
    assert ticket.deferral.expire_after.seconds == 36 * 3_600
    assert ticket.deferral.expired_outcome == usage_pb2.OUTCOME_FAILURE
    assert found.plans == [
        pb.Plan(
            name="team",
            fee=amount("49"),
            seat_fee=amount("5"),
            period_unit=pb.PERIOD_UNIT_QUARTER,
            allowances=[
                pb.Allowance(meter="compute_units", quantity=100),
                pb.Allowance(meter="tool_calls", quantity=1, quantity_per_seat=2),
            ],
        )
    ]


@pytest.mark.parametrize(
    "number", ["0.1", "0.10", "0.000000000001", "999999999999", "3.14159265358979"[:14], "'0.3'"]
)
def test_decimals_are_taken_as_they_stand(number: str) -> None:
    (found,) = parse(component(f"fee: {number}")).prices
    assert found.components[0].base_fee.price.amount == number.strip("'")


@pytest.mark.parametrize(
    "number",
    [
        "1e3",
        ".5",
        "5.",
        "0x10",
        "01",
        "1_00",
        "1,000",
        "+1",
        "NaN",
        ".inf",
        "yes",
        "null",
        "",
        "[1]",
        "1 EUR",
    ],
)
def test_what_is_no_decimal_is_no_price(number: str) -> None:
    (told,) = mistakes(component(f"fee: {number}"))
    assert told.startswith(
        f"7:{14 if number else 13}: must be a decimal number such as 0.60, with at most 12 "
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["1:1: is empty"]),
        ("a: [", ["1:5: is not YAML: expected the node content, but found '<stream end>'"]),
        ("a: 1\nb: 2\n---\nc: 3\n", ["3:1: is not YAML: but found another document"]),
        ("prices", ["1:1: must be a price book: a mapping of keys to values"]),
        ("a: \x07", ["1:4: holds a character that may not stand here"]),
        (
            GOOD + "extra: 1\n",
            ["8:1: 'extra' is no key of a price book; it has book, organization, currency,"],
        ),
        (GOOD + "book: pb_x\n", ["8:1: 'book' stands in line 1 already"]),
        (GOOD.replace("pb_lark", "lark"), ['1:7: must be an id such as "pb_acme"']),
        (
            GOOD.replace("fee: 1", "fee: &one 1"),
            ["7:14: anchors and aliases are not read here: write it out"],
        ),
        (
            GOOD.replace("fee: 1", "fee: !!python/name:os.system 1"),
            ["7:14: must be a decimal number such as"],
        ),
        ("book: pb_a\n", ["1:1: a price book needs 'currency'", "1:1: a price book needs 'prices'"]),
        (component("fee: -1"), ["7:14: must not be negative"]),
        (component("fees: 1"), ["6:9: a component needs 'fee', 'tokens', 'meter' or 'bonus'"]),
        (
            component("fee: 1\nmeter: a"),
            ["8:9: a component has one of 'fee', 'tokens', 'meter' or 'bonus', and"],
        ),
        (component("fee: 1 per 10"), ["7:14: is an amount of money, not one per units"]),
        (component("tokens: input\nprice: 1 per 0"), ["8:16: must be per 1 to 1_000_000_000_000 units"]),
        (component("tokens: cached\nprice: 1"), ["7:17: must be input or output"]),
        (component("bonus: 1"), ["6:9: a bonus needs 'outcome' or 'when': what it is paid for"]),
        (component("bonus: 1\noutcome: unknown"), ["8:18: must be success, failure or partial"]),
        (
            component("meter: Pages\nprice: 1"),
            ["7:16: must be a meter: 1 to 64 lowercase letters, digits and '_'"],
        ),
        (component("meter: pages\ngraduated: 1"), ["8:20: must be a list of tiers"]),
        (component("meter: pages\nvolume: []"), ["8:17: needs at least one tier"]),
        (
            component(
                "meter: pages\ngraduated:\n- {up_to: 5, price: 1}\n- {up_to: 5, price: 1}\n- {price: 1}"
            ),
            ["10:19: overlaps the tier before it, which goes up to 5"],
        ),
        (
            component("meter: pages\nvolume:\n- {price: 1}\n- {up_to: 5, price: 1}"),
            ["10:11: is never reached: the tier before it has no 'up_to'"],
        ),
        (
            component("meter: pages\nvolume:\n- {up_to: 5, price: 1}"),
            ["9:19: the last tier has no 'up_to': it goes on for ever"],
        ),
        (component("meter: pages\nvolume:\n- {up_to: 0, price: 1}"), ["9:19: must be at least 1"]),
        (
            component("meter: pages\nvolume: [{price: 1}]\nentry_fee: 1"),
            ["9:9: belongs to a tier here, below its"],
        ),
        (price("minimum: 0.0000001"), ["8:14: must have at most 8 digits before and 6 after the point"]),
        (
            price("outcomes: {pending: 5 %}"),
            ["8:16: 'pending' is no key of outcomes; it has success, failure,"],
        ),
        (
            price("outcomes: {failure: 101 %}"),
            ["8:25: must be 0 to 100 %, such as 12.5 %, in steps of 0.01 %"],
        ),
        (price("outcomes: {failure: 5}"), ["8:25: must be 0 to 100 %, such as 12.5 %, in steps of 0.01 %"]),
        (
            price("discounts: [{name: a, percent: 0 %}]"),
            ["8:36: must be more than 0 to 100 %, such as 12.5 %,"],
        ),
        (
            price("discounts: [{name: a, percent: 1 %}, {name: a, amount: 1}]"),
            ["8:49: 'a' is the name in line 8 already"],
        ),
        (
            price("discounts:\n- name: a\n  volume: [{above: 5, percent: 1 %}, {above: 5, percent: 2 %}]"),
            ["10:50: must be more than in line 10"],
        ),
        (
            price("discounts: [{name: a, percent: 1 %, from: 2026-12-02, until: 2026-12-02}]"),
            ["8:66: must be after 'from'"],
        ),
        (
            price("discounts: [{name: a, percent: 1 %, from: soon}]"),
            ["8:47: must be a date or a time, such as"],
        ),
        (price("pending: {expire_after: 91d}"), ["8:29: must be 1s to 90d, such as 7d, 12h, 30m or 45s"]),
        (price("actions: {a: b}"), ["8:14: must be a list of actions"]),
        (price('actions: ["\\ud800"]'), ["8:15: must be a text"]),
        (GOOD + "plans: [{fee: 1}]\n", ["8:9: a plan needs 'name'"]),
        (
            GOOD + "plans: [{name: a, fee: 1, includes: {pages: x}}]\n",
            ["8:45: must be a whole number, such as"],
        ),
        (GOOD + "meters: [{name: units, terms: {}}]\n", ["8:31: needs at least one term"]),
    ],
)
def test_mistakes_are_told_where_they_stand(text: str, told: list[str]) -> None:
    found = mistakes(text)
    assert [line[: len(start)] for line, start in zip(found, told, strict=False)] == told
    assert len(found) <= len(told) + 1


def test_all_mistakes_are_told_at_once_in_their_order() -> None:
    found = mistakes(price("maximum: x\nmnimum: 1").replace("USD", "usd").replace("fee: 1", "fee: -1"))
    assert [re.match(r"\d+:\d+", line)[0] for line in found] == ["2:11", "7:14", "8:14", "9:5"]  # type: ignore[index]
    assert "did you mean 'minimum'?" in found[-1]


@pytest.mark.parametrize(
    ("says", "line", "column"),
    [
        ("when: outcome = 1", 8, 23),
        ("when: 'outcome = 1'", 8, 24),
        ("when: |\n  true &&\n  outcome = 1", 10, 19),
        # Folded into one line, it cannot be told where.
        ("when: >\n  true &&\n  outcome = 1", 8, 15),
    ],
)
def test_what_the_service_finds_in_a_condition_is_told_where_it_stands(
    says: str, line: int, column: int
) -> None:
    found = parse(component(f"fee: 1\n{says}"))
    condition = found.prices[0].components[0].condition
    lines = condition[: condition.index("=")].split("\n")
    place, reason = found.problem(
        "prices[0].components[0].condition", f"line {len(lines)}, column {len(lines[-1]) + 1}: mismatched"
    )
    assert place == (line, column)
    assert "mismatched" in reason


def test_what_the_service_finds_is_told_at_what_is_next_to_it() -> None:
    found = parse(price("minimum: 1"))
    assert found.problem("prices[0].minimum.amount", "no") == ((8, 14), "no")
    assert found.problem("prices[0].components[0].base_fee.price", "no") == ((7, 14), "no")
    assert found.problem("prices[0].maximum", "no") == ((4, 5), "no")
    assert found.problem("idempotency_key", "no") == ((1, 1), "idempotency_key: no")


def test_files_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "book.yaml"
    file.write_text(GOOD + "#" * MAX_FILE_BYTES)
    with pytest.raises(PriceFileError, match="1:1: is larger than 2097152 bytes"):
        read(file)
    file.write_bytes(GOOD.encode() + b"name: \xff\n")
    with pytest.raises(PriceFileError, match="8:7: is not UTF-8"):
        read(file)
    file.write_text("[" * 1_000)
    with pytest.raises(PriceFileError, match=r"nested too deeply|is not YAML"):
        read(file)


def test_differences_are_lines() -> None:
    before = parse(component("meter: pages\ngraduated: [{up_to: 5, price: 1}, {price: 0.5}]")).document
    after = parse(component("meter: pages\ngraduated: [{up_to: 6, price: 1.0}, {price: 0.50}]")).document
    assert differences(before, before) == []
    assert differences(before, after) == [("prices[run].components[run].graduated[1].up_to", "5", "6")]
    assert differences({}, after)[0] == ("prices[run].components[run].meter", "", "pages")
    assert differences(after, {})[-1] == ("prices[run].components[run].graduated[2].price", "0.50", "")


def test_the_order_of_prices_is_a_difference() -> None:
    one, two = (pb.Price(name=name, components=parse(GOOD).prices[0].components) for name in ("one", "two"))
    three = pb.Price(name="three", minimum=amount("1"))
    assert differences(document([one, two]), document([three, two, one])) == [
        ("prices", "one, two", "two, one"),
        ("prices[three].minimum", "", "1"),
    ]


def test_what_this_release_does_not_know_is_shown_by_its_number() -> None:
    unknown = pb.Price(name="a", outcome_factors=[pb.OutcomeFactor(outcome=99, basis_points=5)])  # type: ignore[arg-type]
    assert document([unknown])["prices"][0]["outcomes"] == {"99": "0.05 %"}


def test_an_export_says_whose_book_it_is() -> None:
    book = pb.PriceBook(price_book_id="pb_a", currency_code="USD", display_name='Lark: "prices" # all\n')
    found = parse(to_yaml(book, pb.PriceVersion(prices=parse(GOOD).prices)))
    assert (found.price_book_id, found.organization_id, found.currency_code) == ("pb_a", "", "USD")
    assert found.display_name == book.display_name
