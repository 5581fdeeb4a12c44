"""Price books: which prices are accepted, and when they may apply."""

from datetime import UTC, datetime, timedelta

import pytest

from services.kit.errors import InvalidArgument
from services.metering.domain.price_book import (
    BaseFee,
    Component,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    TokenKind,
    TokenRate,
    UnitPrice,
    check_effective_time,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.price_index import PriceIndex, PublishedVersion
from services.metering.domain.usage_event import Outcome
from services.metering.store import price_format

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def price(*components: Component, name: str = "run", selector: PriceSelector | None = None) -> Price:
    named = tuple(PriceComponent(f"part-{number}", component) for number, component in enumerate(components))
    return Price(name, selector or PriceSelector(), named)


def fee(amount: str, per_units: int = 1) -> BaseFee:
    return BaseFee(UnitPrice(amount, per_units))


def violated(*prices: Price) -> list[str]:
    with pytest.raises(InvalidArgument) as refused:
        check_price_list(PriceList(prices))
    return [violation.field for violation in refused.value.field_violations]


@pytest.mark.parametrize("amount", ["0", "0.60", "12", "999999999999.999999999999", "0.000000000001"])
def test_decimal_amounts_are_accepted(amount: str) -> None:
    check_price_list(PriceList((price(fee(amount)),)))


@pytest.mark.parametrize(
    "amount",
    [
        "",
        "-1",
        "+1",
        "1e3",
        "1E-9",
        "inf",
        "NaN",
        ".5",
        "5.",
        "1,5",
        "0x1",
        " 1",
        "1 ",
        "1\n",
        "00.5",
        "1_000",
        "1000000000000",
        "0.0000000000001",
        "１",
    ],
)
def test_anything_but_a_plain_decimal_is_refused(amount: str) -> None:
    assert violated(price(fee(amount))) == ["prices[0].components[0].base_fee.price.amount"]


def test_every_mistake_is_named_at_once() -> None:
    bad = price(
        fee("1", per_units=2),
        TokenRate(TokenKind.INPUT, UnitPrice("x", 10**12 + 1)),
        OutcomeBonus(Outcome.UNKNOWN, UnitPrice("1")),
        name="a b",
        selector=PriceSelector(frozenset({"bad action"}), frozenset({"org_x"})),
    )

    assert violated(bad) == [
        "prices[0].name",
        "prices[0].selector.action_types",
        "prices[0].selector.agent_ids",
        "prices[0].components[0].base_fee.price.per_units",
        "prices[0].components[1].token_rate.price.amount",
        "prices[0].components[1].token_rate.price.per_units",
        "prices[0].components[2].outcome_bonus.outcome",
    ]


def test_a_version_needs_prices_and_a_price_components() -> None:
    assert violated() == ["prices"]
    assert violated(price()) == ["prices[0].components"]
    assert violated(*[price(fee("1"), name=f"p{number}") for number in range(1_001)]) == ["prices"]
    assert violated(price(*[fee("1")] * 101)) == ["prices[0].components"]


def test_names_are_used_once() -> None:
    twins = Price("run", PriceSelector(), (PriceComponent("a", fee("1")), PriceComponent("a", fee("1"))))

    assert violated(twins, twins) == [
        "prices[1].name",
        "prices[0].components[1].name",
        "prices[1].components[1].name",
    ]


def test_prices_survive_storage() -> None:
    prices = (
        price(
            fee("0.005"),
            TokenRate(TokenKind.OUTPUT, UnitPrice("2.40", 1_000_000)),
            OutcomeBonus(Outcome.PARTIAL, UnitPrice("0.20")),
            selector=PriceSelector(frozenset({"run", "search"}), frozenset({"agt_a"})),
        ),
    )

    assert price_format.from_json(price_format.to_json(prices)) == prices


def test_the_first_version_may_apply_to_the_past() -> None:
    check_effective_time(NOW - 1000 * HOUR, previous=None, now=NOW)


def test_a_later_version_applies_from_now_on_and_after_the_one_before() -> None:
    check_effective_time(NOW, previous=NOW - HOUR, now=NOW)
    for effective_time, previous in ((NOW - HOUR / 60, NOW - HOUR), (NOW + HOUR, NOW + HOUR)):
        with pytest.raises(InvalidArgument, match="effective_time"):
            check_effective_time(effective_time, previous=previous, now=NOW)


class TestPriceIndex:
    index = PriceIndex(
        [
            PublishedVersion("platform", "USD", NOW - 10 * HOUR, "pv_platform"),
            PublishedVersion("platform", "EUR", NOW - 10 * HOUR, "pv_platform_eur"),
            PublishedVersion("org_a", "EUR", NOW, "pv_a2"),
            PublishedVersion("org_a", "EUR", NOW - 5 * HOUR, "pv_a1"),
            PublishedVersion("org_b", "EUR", NOW, "pv_b"),
            PublishedVersion("org_b", "JPY", NOW, "pv_b_jpy"),
        ]
    )

    def test_the_organizations_book_comes_before_the_platforms(self) -> None:
        assert self.index.in_force("org_a", "EUR", NOW - HOUR) == ["pv_a1", "pv_platform_eur"]

    def test_a_version_applies_from_its_effective_time_on(self) -> None:
        assert self.index.in_force("org_a", "EUR", NOW)[0] == "pv_a2"
        assert self.index.in_force("org_a", "EUR", NOW - timedelta(microseconds=1))[0] == "pv_a1"

    def test_before_its_first_version_a_book_prices_nothing(self) -> None:
        assert self.index.in_force("org_a", "EUR", NOW - 6 * HOUR) == ["pv_platform_eur"]
        assert self.index.in_force("org_a", "EUR", NOW - 11 * HOUR) == []

    def test_without_a_book_in_the_currency_there_is_only_the_platforms(self) -> None:
        assert self.index.in_force("org_a", "USD", NOW) == ["pv_platform"]
        assert self.index.in_force("org_a", "GBP", NOW) == []

    @pytest.mark.parametrize(
        ("organization", "currency"), [("org_a", "EUR"), ("org_b", "USD"), ("org_c", "USD")]
    )
    def test_an_event_without_currency_takes_that_of_an_only_book_or_usd(
        self, organization: str, currency: str
    ) -> None:
        assert self.index.currency_of(organization) == currency

    def test_it_knows_how_many_versions_it_holds(self) -> None:
        assert len(self.index) == 6
        assert len(PriceIndex()) == 0
