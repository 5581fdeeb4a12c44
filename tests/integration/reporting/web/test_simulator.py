"""The page that tries prices: what it asks of metering, and what it says of what was typed."""

from __future__ import annotations

import re

import pytest

from services.kit.errors import InvalidArgument
from tallystick.metering.v1 import price_book_pb2, usage_pb2
from tests.integration.reporting.web.conftest import Browser
from tests.support.dashboard_server import Served
from tests.support.dashboard_world import SIERRA

PAGE = f"/organizations/{SIERRA}/simulator"


async def test_at_first_it_shows_the_version_in_force(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    page = (await browser.get(PAGE)).text
    [(_, asked)] = served.world.told("Simulate")
    assert [one.price_version_id for one in asked.books] == ["pv_sierra-2"]
    assert asked.workload.run_count == 10_000
    assert asked.workload.recorded == "agent_runs"
    assert not asked.workload.HasField("outcome_rates")
    assert 'value="2143.100000">2,143.10</data>' in page


async def test_versions_are_compared_with_a_price_made_up_on_the_page(
    served: Served, browser: Browser
) -> None:
    await browser.sign_in("owner")
    page = await browser.client.get(
        PAGE,
        params={
            "version": ["1", "3", "3", "nonsense"],
            "runs": "2,500",
            "customers": "7",
            "success": "81.5",
            "partial": "3",
            "workload": "code_requests",
            "base": "0.05",
            "input": "3",
            "output": "15.25",
            "bonus": "0.2",
        },
    )
    [(_, asked)] = served.world.told("Simulate")
    assert [one.label for one in asked.books] == ["Version 1", "Version 3", "Trial"]
    workload = asked.workload
    assert (workload.run_count, workload.customer_count, workload.recorded) == (2_500, 7, "code_requests")
    assert workload.outcome_rates.success_basis_points == 8_150
    assert workload.outcome_rates.partial_basis_points == 300
    assert asked.books[2].price_list.currency_code == "USD"
    (price,) = asked.books[2].price_list.prices
    base, given, made, bonus = price.components
    assert base.base_fee.price == price_book_pb2.UnitPrice(amount="0.05", per_units=1)
    assert given.token_rate.token_kind == price_book_pb2.TOKEN_KIND_INPUT
    assert given.token_rate.price == price_book_pb2.UnitPrice(amount="3", per_units=1_000_000)
    assert made.token_rate.token_kind == price_book_pb2.TOKEN_KIND_OUTPUT
    assert made.token_rate.price.amount == "15.25"
    assert bonus.outcome_bonus.outcome == usage_pb2.OUTCOME_SUCCESS
    told = " ".join(re.sub(r"<[^>]*>", " ", page.text).split())
    # Two versions with a margin, and a trial whose margin nobody knows.
    assert re.search(r"Version 1 535\.77 5 USD 357\.18 3333 0\.21 431", told)
    assert re.search(r"Trial 620\.77 5 USD unknown", told)
    assert "2,500 runs of 7 customers" in told
    assert "2,037 success, 463 failure" in told


async def test_nothing_is_asked_for_nothing(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    page = (await browser.get(f"{PAGE}?runs=100")).text
    assert "Choose a version, or write a trial price." in page
    assert served.world.told("Simulate") == []


@pytest.mark.parametrize(
    ("name", "typed", "told"),
    [
        ("runs", "0", "a whole number from 1 to 200,000"),
        ("runs", "200001", "a whole number from 1 to 200,000"),
        ("customers", "many", "a whole number from 1 to 100,000"),
        ("success", "101", "a percentage from 0 to 100"),
        ("partial", "1e1", "a percentage from 0 to 100"),
        ("base", "-1", "a price as a plain number"),
        ("output", "0.0000000000001", "a price as a plain number"),
        ("workload", "everything", "one of the recorded workloads"),
    ],
)
async def test_what_cannot_be_is_said_beside_the_form(
    served: Served, browser: Browser, name: str, typed: str, told: str
) -> None:
    await browser.sign_in("owner")
    page = await browser.client.get(PAGE, params={"version": "2", name: typed})
    assert page.status_code == 200
    assert told in page.text
    if name != "workload":
        assert re.search(rf'name="{name}"[^>]*value="{re.escape(typed)}"[^>]*aria-invalid', page.text)
    assert served.world.told("Simulate") == []


async def test_rates_of_more_than_everything_are_refused(browser: Browser) -> None:
    await browser.sign_in("owner")
    page = await browser.client.get(PAGE, params={"version": "2", "success": "60", "partial": "60"})
    assert "more than 100 % together" in page.text


async def test_what_metering_refuses_is_told_in_its_words(served: Served, browser: Browser) -> None:
    served.world.failing["Simulate"] = InvalidArgument.of("books[0]", "has no price that applies")
    await browser.sign_in("owner")
    page = await browser.get(PAGE)
    assert page.status_code == 200
    assert "Has no price that applies." in page.text
