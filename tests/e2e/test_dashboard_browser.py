"""The dashboard in a browser: Chromium, without a window. A machine that has none skips this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from services.kit.web import WebServer
from tallystick.payouts.v1 import connected_account_pb2
from tests.support.browser import Page, browser, find_chromium
from tests.support.dashboard_agreements import agreed
from tests.support.dashboard_server import Served, dashboard
from tests.support.dashboard_world import ACME, AZURE, SIERRA, key_of, reported

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

ORGANIZATION, CUSTOMER = f"/organizations/{SIERRA}", f"/customers/{ACME}"
CHARGE = f"/charges/{agreed().charges[0].charge_id}"
PAGES = {
    "owner": (ORGANIZATION, f"{ORGANIZATION}/payouts", f"{ORGANIZATION}/charges", CHARGE),
    "stranger": (f"/organizations/{AZURE}",),
    "customer": (CUSTOMER, f"{CUSTOMER}/charges", f"{CUSTOMER}/credits", CHARGE),
    "operator": ("/operator",),
    "member": (ORGANIZATION,),
}
Use = Callable[[Callable[[Page, str], Any]], Any]

# WCAG 2.2, 1.4.3: 4.5 for every text on the page against what is painted behind it. Answers those with less.
POOR_CONTRAST = r"""
(() => {
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const shine = (colour) => colour.slice(0, 3).map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || element.closest("svg")) continue;
    const both = [shine(parse(getComputedStyle(element).color)), shine(behind(element))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < 4.5) poor.push(`${element.className} ${element.textContent.trim().slice(0, 20)} ${ratio}`);
  }
  return [...new Set(poor)];
})()
"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A browser for all of these tests, since to start one takes long."""
    assert CHROMIUM is not None
    with browser(CHROMIUM) as found:
        yield found


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with dashboard(agreed()) as found:
        yield found


@pytest.fixture
async def use(served: Served, page: Page) -> AsyncIterator[Use]:
    """Runs a function with a browser and the address of the dashboard, beside the servers."""
    web = WebServer(served.app, "127.0.0.1:0")
    web.start()

    def work(what: Callable[[Page, str], Any]) -> Any:
        page.look(width=1280)
        page.call("Network.clearBrowserCookies")
        return what(page, f"http://{web.address}")

    yield lambda what: asyncio.to_thread(work, what)
    await web.stop(timedelta(seconds=1))
    web.close()


def sign_in(page: Page, base: str, name: str) -> None:
    page.open(f"{base}/sign-in")
    page.fill("#api_key", key_of(name))
    page.click("form.stack button")


async def test_every_page_fits_a_phone_and_asks_nobody_else_and_is_legible_by_day_and_night(
    served: Served, use: Use
) -> None:
    def look(page: Page, base: str) -> None:
        page.look(width=360)
        drawn = 0
        for name, paths in PAGES.items():
            page.call("Network.clearBrowserCookies")
            sign_in(page, base, name)
            for path in paths:
                page.open(base + path)
                charts = page.run("document.querySelectorAll('[data-chart]').length")
                page.wait_until(f"document.querySelectorAll('[data-chart] canvas').length == {charts}")
                drawn += charts
                assert page.run("document.documentElement.scrollWidth") <= 360, path
                assert {url for url in page.requested() if not url.startswith(base)} == set()
                # A script, style or request that the policy refuses would be among them.
                assert page.complaints() == [], path
                for dark in (False, True):
                    page.look(width=360, dark=dark)
                    assert page.run(POOR_CONTRAST) == [], (path, dark)
        assert drawn >= 4
        page.run("document.body.setAttribute('style', 'color: red')")
        assert "Content Security Policy" in page.complaints()[0]

    await use(look)


async def test_a_payout_is_requested_by_keyboard_and_pressed_twice_pays_once(
    served: Served, use: Use
) -> None:
    def pay(page: Page, base: str) -> None:
        page.open(f"{base}{ORGANIZATION}/payouts")
        # The way in leads back here, and the field of the key has the focus.
        page.wait_until("document.activeElement.id == 'api_key'")
        page.call("Input.insertText", text=key_of("owner"))
        page.press("Enter")
        page.wait_until("location.pathname.endsWith('/payouts')")
        page.run("document.querySelector('#amount').focus(), document.querySelector('#amount').select()")
        page.call("Input.insertText", text="12.34")
        twice = "const go = document.querySelector('form.inline button'); go.click(); go.click();"
        page.run(twice, wait=False)
        page.wait_until("location.search.includes('requested=po_new0')")
        assert "The payout is requested" in page.run("document.body.innerText")

    await use(pay)
    ((payout,),) = [[one.payout for one in served.world.payouts if one.payout.payout_id.startswith("po_new")]]
    assert payout.amount.amount_micros == 12_340_000


async def test_onboarding_leaves_for_the_payment_processor(served: Served, use: Use) -> None:
    served.world.account.state = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING

    def leave(page: Page, base: str) -> str:
        # On this machine, as the stand-in is: another origin all the same.
        served.world.onboarding_url = f"{base.replace('127.0.0.1', 'localhost')}/healthz"
        sign_in(page, base, "owner")
        page.open(f"{base}{ORGANIZATION}/payouts")
        page.click("form[action$=onboarding] button")
        page.wait_until("location.pathname == '/healthz'")
        return str(page.run("location.host"))

    assert (await use(leave)).startswith("localhost:")


# Whether the list would ask for news now.
ASKS = """
(() => {
  const elt = document.querySelector("#live-charges");
  const event = { bubbles: true, cancelable: true, detail: { elt } };
  return elt.dispatchEvent(new CustomEvent("htmx:beforeRequest", event));
})()
"""


async def test_charges_come_as_they_happen_until_they_are_paused(served: Served, use: Use) -> None:
    def post(number: int) -> None:
        served.world.charges.insert(0, reported(number))
        served.world.position += 1

    def watch(page: Page, base: str) -> None:
        sign_in(page, base, "operator")
        page.open(f"{base}/operator")
        post(99)
        page.wait_until(
            f"document.querySelector('#live-charges').innerText.includes('{reported(99).charge_id}')"
        )
        assert "30,068" in page.run("document.querySelector('#live-status').innerText")
        page.click("[data-pause]", leads_away=False)
        post(98)
        assert page.run(ASKS) is False
        page.click("[data-pause]", leads_away=False)
        page.run("document.activeElement.blur()")
        assert page.run(ASKS) is True
        page.wait_until(
            f"document.querySelector('#live-charges').innerText.includes('{reported(98).charge_id}')"
        )
        assert page.complaints() == []

    await use(watch)


async def test_an_audit_shows_how_far_it_is_and_then_what_it_found(served: Served, use: Use) -> None:
    def audit(page: Page, base: str) -> None:
        sign_in(page, base, "operator")
        page.open(f"{base}/operator")
        assert "29,812" in page.run("document.querySelector('#audit-result').innerText")
        # Some seconds of it.
        served.world.checks_per_look = 10
        page.click("form[action='/operator/audit'] button")
        page.wait_until("document.querySelector('#audit-result progress') !== null")
        page.wait_until("document.querySelector('#audit-result progress')?.value > 10")
        page.wait_until("document.querySelector('#audit-result progress') === null")
        assert "30,067" in page.run("document.querySelector('#audit-result').innerText")
        assert page.complaints() == []

    await use(audit)


async def test_a_chart_tells_the_exact_figure_that_is_pointed_at(served: Served, use: Use) -> None:
    def point(page: Page, base: str) -> None:
        sign_in(page, base, "owner")
        page.open(f"{base}{ORGANIZATION}")
        page.wait_until("document.querySelectorAll('[data-chart] canvas').length == 2")
        told = page.run(
            """
            (() => {
              const chart = document.querySelectorAll("[data-chart]")[1];
              const over = chart.querySelector(".u-over");
              const { left, top, width, height } = over.getBoundingClientRect();
              const at = { clientX: left + width * 0.55, clientY: top + height / 2, bubbles: true };
              over.dispatchEvent(new MouseEvent("mouseenter", at));
              over.dispatchEvent(new MouseEvent("mousemove", at));
              const text = (selector) => chart.querySelector(selector).textContent;
              const tell = () => [text(".readout"), text("tr[data-at]:nth-child(17)")];
              const soon = requestAnimationFrame;
              return new Promise((done) => soon(() => soon(() => done(tell()))));
            })()
            """
        )
        shown, figure = ("".join(text.split()) for text in told)
        assert shown == figure
        assert "16Nov" in shown

    await use(point)


async def test_without_scripts_everything_can_be_read(served: Served, use: Use) -> None:
    def read(page: Page, base: str) -> None:
        page.look(width=1280, scripts=False)
        page.open(f"{base}/sign-in")
        page.fill("#api_key", key_of("owner"))
        page.click("form.stack button")
        page.open(f"{base}{ORGANIZATION}")
        assert page.run("document.querySelectorAll('[data-chart] canvas').length") == 0
        assert page.run("document.querySelectorAll('[data-chart] .plot svg rect').length") > 30
        page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        told = page.run("document.body.innerText")
        assert "Times are in UTC" in told
        assert "Available to pay out" in told

    await use(read)
