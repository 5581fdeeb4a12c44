"""What the end of a billing period charges, as a pure function."""

from datetime import UTC, datetime

import pytest

from services.metering.domain.billing_period import Period
from services.metering.domain.compiled_price import (
    NO_COMPILED_TERMS,
    CompiledTerms,
    ContractTerms,
    compile_price_list,
    compile_terms,
)
from services.metering.domain.period_closing import (
    Offer,
    Settlement,
    close_prices,
    counted_prices,
    find_prices,
    last_instant,
    settle,
    workflow_id_of,
)
from services.metering.domain.price_book import (
    BaseFee,
    MeterRate,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    Tier,
    TierMode,
    TierScope,
    UnitPrice,
)
from services.metering.domain.price_counter import CounterPeriod
from services.metering.domain.price_index import PriceIndex, PublishedVersion
from services.metering.domain.usage_event import IDENTIFIER

START, END = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)


def tiered(name: str, amount: str = "0.00001", mode: TierMode = TierMode.VOLUME, least: str = "") -> Price:
    rate = MeterRate(
        meter="input_tokens",
        tiers=(Tier(None, UnitPrice(amount)),),
        tier_mode=mode,
        tier_scope=TierScope.BILLING_PERIOD,
    )
    return Price(
        name=name,
        selector=PriceSelector(),
        components=(PriceComponent("input", rate),),
        period_minimum=UnitPrice(least) if least else None,
    )


PLAIN = Price(
    name="plain", selector=PriceSelector(), components=(PriceComponent("fee", BaseFee(UnitPrice("1"))),)
)


def offers(*versions: str, terms: CompiledTerms = NO_COMPILED_TERMS) -> list[Offer]:
    return [Offer(version, terms) for version in versions]


def test_counters_name_their_prices() -> None:
    names = [
        "pb_a/run/input",
        "pb_a/run/input:uncharged",
        "pb_a/run:charged",
        "pb_a/run:gross",
        "pb_b/other:charged",
        "allowance:input_tokens",
        "allowance:custom/meter",
        "contract:charged",
    ]
    assert counted_prices(names) == ["pb_a/run", "pb_b/other"]


def test_each_price_is_that_of_the_first_version_that_has_it() -> None:
    compiled = {
        "new": compile_price_list(PriceList((tiered("run", "0.00002"),)), "pb_a"),
        "old": compile_price_list(PriceList((tiered("run"), tiered("gone"))), "pb_a"),
        "elsewhere": compile_price_list(PriceList((tiered("run", "5"),)), "pb_b"),
    }
    counters = dict.fromkeys(("pb_a/gone:charged", "pb_a/never:charged", "pb_a/run:charged"), 1)
    found = find_prices(counters, offers("elsewhere", "new", "old"), compiled)
    assert [(one.price_version_id, one.price.key) for one in found] == [
        ("old", "pb_a/gone"),
        ("new", "pb_a/run"),
    ]


def test_the_maximum_of_a_contract_holds_over_all_prices() -> None:
    prices = PriceList((tiered("first"), PLAIN, tiered("second")))
    compiled = {"v": compile_price_list(prices, "pb_a")}
    counters = {
        "pb_a/first/input:uncharged": 100,
        "pb_a/plain:charged": 1,
        "pb_a/second/input:uncharged": 300,
    }
    counters["contract:charged"] = 500
    found = find_prices(
        counters, offers("v", terms=compile_terms(ContractTerms(period_maximum_micros=3_000))), compiled
    )
    closed = close_prices(found, counters)
    assert [(one.price_name, one.rated.total_micros) for one in closed] == [
        ("first", 1_000),
        ("second", 1_500),
    ]
    # Nothing moved: it comes to the same again.
    assert close_prices(found, counters) == closed


@pytest.mark.parametrize("least", ["", "0.005"])
def test_what_an_earlier_version_left_to_the_end_is_charged_by_it(least: str) -> None:
    """It was volume tiers, then graduated ones, which charge what is reported when it is reported."""
    compiled = {
        "new": compile_price_list(PriceList((tiered("run", "0.5", TierMode.GRADUATED, least),)), "pb_a"),
        "old": compile_price_list(PriceList((tiered("run", "0.00002"),)), "pb_a"),
        "oldest": compile_price_list(PriceList((tiered("run", "5"),)), "pb_a"),
    }
    counters = {"pb_a/run/input:uncharged": 100, "pb_a/run/input": 7, "pb_a/run:charged": 0}
    found = find_prices(counters, offers("new", "old", "oldest"), compiled)
    closed = close_prices(found, counters)
    # The minimum counts what the tiers came to.
    assert [(one.price_version_id, one.rated.total_micros) for one in closed] == [
        ("old", 2_000),
        *[("new", 3_000)] * bool(least),
    ]


def test_what_was_charged_when_it_was_reported_is_not_charged_again_at_the_end() -> None:
    """It was graduated tiers, then volume tiers of the same name."""
    compiled = {
        "new": compile_price_list(PriceList((tiered("run", "0.00002"),)), "pb_a"),
        "old": compile_price_list(PriceList((tiered("run", "0.5", TierMode.GRADUATED),)), "pb_a"),
    }
    graduated, volume = compiled["old"][0].components[0].counter, compiled["new"][0].components[0].counter
    counters = {graduated: 1_000, volume: 10}
    closed = close_prices(find_prices(counters, offers("new", "old"), compiled), counters)
    assert [(one.price_version_id, one.rated.total_micros) for one in closed] == [("new", 200)]


@pytest.mark.parametrize(
    ("difference", "credit", "amount", "from_credit"),
    [(5, 0, 5, 0), (5, 3, 2, 3), (5, 9, 0, 5), (-5, 0, 0, -5), (-5, 3, 0, -5), (0, 3, 0, 0)],
)
def test_credit_pays_first(difference: int, credit: int, amount: int, from_credit: int) -> None:
    assert settle(difference, credit) == Settlement(amount, from_credit)


def test_the_run_of_a_period_is_one_of_a_charge() -> None:
    longest = "org_" + "o" * 59
    names = {
        workflow_id_of(CounterPeriod("cus_1", organization_id, "USD", start))
        for organization_id in (longest, "org_a")
        for start in (START, START.replace(hour=10))
    }
    assert len(names) == 4
    assert all(IDENTIFIER.fullmatch(name) for name in names)
    assert f"period/{longest}/USD/2026-10-01T00:00:00Z" in names
    assert last_instant(Period(START, END)).isoformat() == "2026-10-31T23:59:59.999999+00:00"


def test_versions_of_a_book_until_a_time() -> None:
    index = PriceIndex(
        PublishedVersion("org_a", "USD", START.replace(day=day), f"pv_{day}", "pb_a") for day in (3, 1, 2)
    )
    assert index.versions_until("pb_a", START.replace(day=2)) == ["pv_2", "pv_1"]
    assert index.versions_until("pb_a", END) == ["pv_3", "pv_2", "pv_1"]
    assert index.versions_until("pb_b", END) == []
