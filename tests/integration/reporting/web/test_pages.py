"""Every page, for everybody: what they see, what they do not, and how pages look when something is away."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

from services.kit.errors import NotFound, Unavailable
from services.reporting.web.headers import CONTENT_SECURITY_POLICY
from tallystick.metering.v1 import charge_line_pb2
from tallystick.payouts.v1 import connected_account_pb2
from tests.integration.reporting.web.conftest import Browser
from tests.support.dashboard_agreements import ADJUSTMENT, FEE, SUBSCRIPTION
from tests.support.dashboard_server import Served
from tests.support.dashboard_world import ACME, AZURE, GLOBEX, PRINCIPALS, SIERRA, reported
from tests.support.reach import Reach, RecordProperty

CHARGE = reported(0, ACME, "agt_researcher").charge_id
NAMES = [name for name in PRINCIPALS if name not in ("host", "service")]
# Page, and who sees it. Others are answered 403 for a role, 404 for an id: never more than that.
PAGES: dict[str, set[str]] = {
    f"/organizations/{SIERRA}": {"owner", "billing", "member", "operator"},
    f"/organizations/{SIERRA}/payouts": {"owner", "billing", "operator"},
    f"/organizations/{SIERRA}/charges": {"owner", "billing", "operator"},
    f"/organizations/{SIERRA}/prices": {"owner", "billing", "member", "operator"},
    f"/organizations/{SIERRA}/prices?version=4": {"owner", "billing", "member", "operator"},
    f"/organizations/{SIERRA}/prices?version=9": set(),
    f"/organizations/{SIERRA}/simulator": {"owner", "billing", "operator"},
    f"/organizations/{SIERRA}/simulator?version=2&runs=nonsense": {"owner", "billing", "operator"},
    f"/organizations/{AZURE}/simulator?base=0.05": {"stranger", "operator"},
    f"/organizations/{AZURE}": {"stranger", "operator"},
    f"/organizations/{AZURE}/prices": {"stranger", "operator"},
    f"/organizations/{AZURE}/payouts": {"stranger", "operator"},
    f"/organizations/{AZURE}/charges": {"stranger", "operator"},
    f"/customers/{ACME}": {"customer", "operator"},
    f"/customers/{ACME}/charges": {"customer", "operator"},
    f"/customers/{ACME}/credits": {"customer", "operator"},
    f"/customers/{GLOBEX}": {"other", "operator"},
    f"/charges/{CHARGE}": {"owner", "billing", "customer", "operator"},
    f"/charges/{FEE}": {"owner", "billing", "customer", "operator"},
    f"/charges/{ADJUSTMENT}": {"owner", "billing", "customer", "operator"},
    "/operator": {"operator"},
    "/operator/charges": {"operator"},
    "/operator/prices": {"operator"},
    "/organizations/org_nobody": set(),
    "/customers/cus_nobody/credits": set(),
    "/charges/ch_nothing": set(),
    "/organizations/%2e%2e": set(),
    "/organizations/a%00b%0d%0a": set(),
    "/nowhere": set(),
}
# What only those may read who see a page of it.
SECRETS = {
    SIERRA: (
        "Sierra Research",
        "Agents of Sierra",
        "Ticket Resolver",
        "acct_1QxSierraResearch",
        "po_01m7xj2ex96zkkhb2kskg00007",
    ),
    ACME: ("team, 4 seats", "4242", "pur_01m7xj2ex96zkkhb2kskg00003", "78.51"),
}
READERS = {
    SIERRA: {"owner", "billing", "member", "operator"},
    ACME: {"customer", "operator"},
}


class Checker(HTMLParser):
    """Finds what a strict policy would refuse, and what a reader of screens would miss."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.landmarks: list[str] = []
        self.labels: set[str] = set()
        self.fields: list[str] = []
        self.ids: list[str] = []
        self._open_table = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "script" and "src" not in found:
            self.problems.append("a script within the page")
        if tag == "style" or "style" in found:
            self.problems.append(f"style within the page: {tag}")
        self.problems += [f"{name} on {tag}" for name in found if name.startswith("on")]
        for name in ("src", "href", "action"):
            address = found.get(name) or ""
            if re.match(r"(?i)\s*(javascript|data):", address):
                self.problems.append(f"{name}={address}")
            if tag in ("script", "link", "img") and name in found and not address.startswith("/static/"):
                self.problems.append(f"loads {address}")
        if tag in ("header", "main", "footer", "h1"):
            self.landmarks.append(tag)
        if tag == "label" and "for" in found:
            self.labels.add(found["for"] or "")
        if tag in ("input", "select") and found.get("type") != "hidden":
            self.fields.append(found.get("id") or "")
        if tag == "th" and "scope" not in found:
            self.problems.append("a heading of a table without a scope")
        if self._open_table and tag != "caption":
            self.problems.append("a table without a caption")
        self._open_table = tag == "table"
        if "id" in found:
            self.ids.append(found["id"] or "")


def check(html: str) -> None:
    """A whole page is as it should be."""
    checker = Checker()
    checker.feed(html)
    assert checker.problems == []
    assert checker.landmarks == ["header", "main", "h1", "footer"]
    assert set(checker.fields) <= checker.labels
    assert len(checker.ids) == len(set(checker.ids))
    assert '<html lang="en">' in html


async def test_everybody_sees_their_own_pages_and_nothing_of_others(
    browser: Browser, record_property: RecordProperty
) -> None:
    seen = 0
    reach = Reach()
    for name in NAMES:
        await browser.sign_in(name)
        for page, readers in PAGES.items():
            answer = await browser.get(page)
            reach.count(name, page, answered=answer.status_code == 200)
            if name in readers:
                assert answer.status_code == 200, (name, page)
                seen += 1
            else:
                assert answer.status_code in (403, 404), (name, page, answer.status_code)
                assert CHARGE not in answer.text
            for owner, secrets in SECRETS.items():
                if name not in READERS[owner]:
                    assert not [secret for secret in secrets if secret in answer.text], (name, page, owner)
            if not page.startswith("/operator/"):
                check(answer.text)
            assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert answer.headers["cache-control"] == "no-store"
    assert seen == sum(len(readers) for readers in PAGES.values())
    # None of the above leaked.
    reach.record(record_property, "pages")


async def test_ids_of_others_are_answered_like_ids_of_nobody(browser: Browser) -> None:
    for name, page, other in (
        ("owner", f"/organizations/{AZURE}", "/organizations/org_nobody"),
        ("stranger", f"/organizations/{SIERRA}/payouts", "/organizations/org_nobody/payouts"),
        ("customer", f"/customers/{GLOBEX}", "/customers/cus_nobody"),
        ("other", f"/charges/{CHARGE}", "/charges/ch_nothing"),
    ):
        await browser.sign_in(name)
        theirs, nobodys = await browser.get(page), await browser.get(other)
        assert theirs.status_code == nobodys.status_code == 404
        hidden = re.compile(r'value="[^"]*"')
        assert hidden.sub("", theirs.text) == hidden.sub("", nobodys.text)


async def test_every_question_is_asked_with_the_key_of_who_looks(served: Served, browser: Browser) -> None:
    for name in NAMES:
        await browser.sign_in(name)
        served.world.asked.clear()
        for page in PAGES:
            await browser.get(page)
        assert {principal for _, principal, _ in served.world.asked} <= {PRINCIPALS[name]}


async def test_a_member_learns_that_money_is_not_theirs_to_see(browser: Browser) -> None:
    await browser.sign_in("member")
    page = (await browser.get(f"/organizations/{SIERRA}")).text
    assert "No access to money" in page
    assert "Ticket Resolver" in page
    assert 'class="money' not in page
    assert "/payouts" not in page


async def test_a_price_is_told_in_words(browser: Browser) -> None:
    await browser.sign_in("member")
    page = await browser.get(f"/organizations/{SIERRA}/prices")
    text = " ".join(re.sub(r"<[^>]*>", " ", page.text).split())
    for told in (
        "Version 2 USD In force",
        "tickets ticket.resolve by agt_resolver",
        "run each execution 0.005",
        "input input tokens 0.60 per 1,000,000",
        "success when it ends as success only if result.reopened == false 0.20",
        "units compute units over a billing period, each unit at the price of its tier",
        "1 to 1,000 0.02",
        "from 1,001 on 0.01, and 5.00 once",
        "reasoning reasoning tokens of gpt-* 4 per 1,000,000",
        "outcome of it, when it ends as partial 50",
        "launch discount until 2026-12-24 00:00 UTC \u221212.5",
        "volume discount by what was spent in the billing period",
        "beyond 1000 \u221210",
        "minimum the least that an execution costs 0.01",
        "maximum the most in a billing period 5000",
        "anything all other work",
        "fee each month 99.00",
        "included 5,000 compute units, and 250 for each seat",
        "compute_units 1 × cpu milliseconds per 1,000 + 2.5 × inference calls",
    ):
        assert told in text, told


async def test_versions_say_where_they_are_in_their_life(browser: Browser) -> None:
    await browser.sign_in("owner")
    for number, state in (("1", "Replaced"), ("2", "In force"), ("3", "To come"), ("4", "Draft")):
        page = (await browser.get(f"/organizations/{SIERRA}/prices?version={number}")).text
        assert re.search(
            rf'Version {number} <span class="code">USD</span></p>\s*<p><span class="badge[^>]*>{state}<', page
        )
    assert (await browser.get(f"/organizations/{SIERRA}/prices?currency=EUR")).status_code == 404


async def test_an_organization_without_a_book_is_told_which_applies(browser: Browser) -> None:
    await browser.sign_in("stranger")
    assert "priced by the platform" in (await browser.get(f"/organizations/{AZURE}/prices")).text


async def test_what_is_shown_is_exact_to_the_micro(browser: Browser) -> None:
    await browser.sign_in("owner")
    page = (await browser.get(f"/organizations/{SIERRA}")).text
    assert '<data class="money" value="1482.377184">1,482.37<span class="micro">7184</span></data>' in page
    assert "proxy" in page
    assert "for the direction, not for the books" in page


async def test_the_figures_of_every_chart_stand_beside_it(browser: Browser) -> None:
    await browser.sign_in("owner")
    for period, steps in (("24h", 24), ("7d", 7), ("30d", 30), ("12m", 12), ("nonsense", 30)):
        page = (await browser.get(f"/organizations/{SIERRA}?period={period}")).text
        earned = page.split('id="earned"')[1].split("</figure>")[0]
        assert len(re.findall(r'<tr data-at="\d+" data-value="\d+">', earned)) == steps
        assert len(re.findall(r"<rect ", earned)) <= steps


async def test_hostile_texts_stay_texts(served: Served, browser: Browser) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
    world = served.world
    world.organizations[SIERRA].display_name = hostile
    world.organizations[SIERRA].payouts_frozen = True
    world.organizations[SIERRA].payouts_freeze_reason = hostile
    world.agents[0].display_name = hostile
    world.customers[ACME].frozen = True
    world.customers[ACME].freeze_reason = hostile
    world.corrections[0].reason = hostile
    world.methods[0].brand = hostile
    world.purchases[1].failure_reason = hostile
    world.account.explanation = hostile
    world.account.requirements.add(name="x", description=hostile, problem=hostile)
    for version in world.price_versions:
        version.publisher_api_key_id = hostile
        for price in version.prices:
            price.name = price.components[0].name = price.components[0].condition = hostile
            price.components[0].base_fee.price.amount = hostile
            price.selector.action_types[:] = [hostile]
    for charge in world.charges:
        charge.workflow_id = charge.action_type = charge.model = charge.agent_version = hostile
        for line in charge.lines:
            line.component_name = hostile
    for record in world.payouts:
        record.payout.failure_reason = record.transitions[0].reason = record.payout.transfer_id = hostile
    shown = 0
    for name in ("owner", "customer", "member", "operator"):
        await browser.sign_in(name)
        for page in (page for page, readers in PAGES.items() if name in readers):
            html = (await browser.get(page)).text
            assert "<script>alert" not in html
            assert "<img" not in html
            assert "{{7*7}}" in html or "&lt;script&gt;" not in html
            shown += html.count("&lt;script&gt;alert(1)&lt;/script&gt;")
            if not page.startswith("/operator/"):
                check(html)
    assert shown > 30


async def test_hostile_ids_stay_within_their_addresses(served: Served, browser: Browser) -> None:
    hostile = 'ch_"><script>/../../x?a=1#b'
    served.world.charges[0].charge_id = hostile
    await browser.sign_in("customer")
    page = (await browser.get(f"/customers/{ACME}/charges")).text
    assert 'href="/charges/ch_%22%3E%3Cscript%3E%2F..%2F..%2Fx%3Fa%3D1%23b"' in page
    for wanted in ("page", "period", "currency", "requested", "bought"):
        answer = await browser.client.get(f"/customers/{ACME}", params={wanted: '"><script>alert(1)'})
        assert "<script>alert" not in answer.text


async def test_a_service_that_is_away_takes_its_part_of_the_page_with_it_and_no_more(
    served: Served, browser: Browser
) -> None:
    for name in ("owner", "customer", "operator"):
        await browser.sign_in(name)
        for service in ("metering", "payouts", "reporting"):
            served.world.away = {service}
            told = 0
            for page in (page for page, readers in PAGES.items() if name in readers):
                answer = await browser.get(page)
                # This one has nothing but prices.
                missing = service == "metering" and page == "/operator/prices"
                assert answer.status_code == (503 if missing else 200), (name, page)
                told += answer.text.count("did not answer")
                assert "None" not in answer.text
            assert told


async def test_a_service_that_stopped_is_told_like_one_that_refuses(served: Served, browser: Browser) -> None:
    await browser.sign_in("operator")
    assert (await browser.get("/operator")).text.count(">Serving<") >= 4
    await served.stop("reporting")
    page = (await browser.get("/operator")).text
    assert ">Away<" in page
    assert "<strong>Reporting did not answer.</strong>" in page
    await browser.sign_in("owner")
    assert "did not answer" in (await browser.get(f"/organizations/{SIERRA}")).text


async def test_while_the_ledger_is_away_pages_say_so(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    served.world.away.add("ledger")
    answer = await browser.get(f"/organizations/{SIERRA}")
    assert answer.status_code == 503
    assert "Not answering just now" in answer.text
    check(answer.text)


async def test_who_has_nothing_yet_is_told_what_comes(browser: Browser) -> None:
    await browser.sign_in("stranger")
    page = (await browser.get(f"/organizations/{AZURE}")).text
    assert "Nothing earned in this time" in page
    assert "No payouts yet" in page
    assert "No charges yet" in (await browser.get(f"/organizations/{AZURE}/charges")).text
    await browser.sign_in("other")
    assert "Nothing used in this time" in (await browser.get(f"/customers/{GLOBEX}")).text


async def test_an_account_that_is_not_ready_says_what_is_wanted(served: Served, browser: Browser) -> None:
    account = served.world.account
    account.state = connected_account_pb2.CONNECTED_ACCOUNT_STATE_RESTRICTED
    account.requirements.add(name="external_account", description="A bank account", past_due=True)
    await browser.sign_in("owner")
    page = (await browser.get(f"/organizations/{SIERRA}/payouts")).text
    assert "A bank account" in page
    assert "Go on with onboarding" in page


async def test_a_charge_that_reporting_has_not_read_is_shown_from_the_books(
    served: Served, browser: Browser
) -> None:
    await browser.sign_in("customer")
    page = (await browser.get(f"/charges/{CHARGE}")).text
    assert "ticket.resolve" in page
    assert page.count("<tbody>") == 2

    served.world.refusing["reporting"] = NotFound("not yet", reason="CHARGE_NOT_FOUND")
    page = (await browser.get(f"/charges/{CHARGE}")).text
    assert "Not read yet" in page
    assert "Paid from credits" in page


async def test_lines_of_a_charge_say_what_they_are_for(served: Served, browser: Browser) -> None:
    (charge,) = [one for one in served.world.charges if one.charge_id == CHARGE]
    charge.lines[0].tier = 3
    line = charge.lines.add(
        component_name="loyal", quantity=1, kind=charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT
    )
    line.unit_price.amount = "0"
    line.amount.currency_code, line.amount.amount_micros = "USD", -1_500_000
    await browser.sign_in("customer")

    page = (await browser.get(f"/charges/{CHARGE}")).text

    assert '<span class="faint">tier 3</span>' in page
    assert 'loyal <span class="faint">discount</span>' in page
    assert '<td data-label="Price" class="number">–</td>' in page
    assert '<data class="money negative" value="-1.500000">−1.50' in page


async def test_a_fee_is_said_to_be_one_with_both_its_dates(served: Served, browser: Browser) -> None:
    for name in ("customer", "owner", "operator"):
        await browser.sign_in(name)
        page = _plain((await browser.get(f"/charges/{FEE}")).text)
        assert "What for Subscription fee" in page
        assert "Service period 14 Nov 2026, 09:30 to 14 Dec 2026, 09:30" in page
        assert "Accounting date when it was posted 14 Nov 2026, 09:30" in page
        assert "team subscription 1 99.00 99.000000 seats subscription 4 12.00 48.000000" in page
        assert "Paid from credit \u221213.000000 Charged 134.000000" in page
        assert "Not known" not in page
        assert "Outcome" not in page
    await browser.sign_in("customer")
    for address in (f"/customers/{ACME}", f"/customers/{ACME}/charges"):
        page = _plain((await browser.get(address)).text)
        if address.endswith("charges"):
            assert "to 14 Dec 2026, 09:30" in page
            assert "Subscription fee — 134.000000 USD" in page
        else:
            assert f"team, 4 seats {SUBSCRIPTION}" in page
            assert "Changes with its period to small, 1 seat" in page


async def test_a_closing_is_said_to_be_one_with_what_was_closed_before(
    served: Served, browser: Browser
) -> None:
    await browser.sign_in("customer")
    page = _plain((await browser.get(f"/charges/{ADJUSTMENT}")).text)
    assert "What for Adjustment of a period close" in page
    assert "Service period 1 Oct 2026, 00:00 to 1 Nov 2026, 00:00" in page
    assert "Accounting date when it was posted 10 Nov 2026, 00:00" in page
    assert "resolved tickets, tier 2 1,250 0.01 12.500000" in page
    assert "Charged by earlier closings of this period \u22129.750000 Charged 2.750000" in page


async def test_a_fee_stands_when_metering_is_away_and_when_reporting_has_not_read_it(
    served: Served, browser: Browser
) -> None:
    await browser.sign_in("customer")
    served.world.refusing["reporting"] = NotFound("not yet", reason="CHARGE_NOT_FOUND")
    page = _plain((await browser.get(f"/charges/{FEE}")).text)
    assert "What for Subscription fee" in page
    assert "Charged 134.000000" in page
    served.world.away.add("metering")
    page = _plain((await browser.get(f"/charges/{FEE}")).text)
    assert "Metering did not answer." in page
    assert "Paid from credits 134.00" in page
    served.world.refusing.clear()
    page = _plain((await browser.get(f"/customers/{ACME}")).text)
    assert "Subscriptions Metering did not answer." in page
    # A list of fees that does not have it says so.
    served.world.away.clear()
    served.world.failing["ListSubscriptionFees"] = NotFound("none", reason="SUBSCRIPTION_NOT_FOUND")
    assert "Metering does not know how it came about." in (await browser.get(f"/charges/{FEE}")).text


def _plain(page: str) -> str:
    """The text of a page, words one space apart, amounts in one."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.replace('<span class="micro">', ""))).split())


async def test_live_charges_come_when_there_are_any(served: Served, browser: Browser) -> None:
    await browser.sign_in("operator")
    page = (await browser.get("/operator")).text
    assert f'name="after" value="{served.world.position}"' in page
    nothing_new = await browser.get(f"/operator/charges?after={served.world.position}")
    assert nothing_new.status_code == 204
    served.world.position += 1
    served.world.charges.insert(0, reported(99))
    news = await browser.get(f"/operator/charges?after={served.world.position - 1}")
    assert news.status_code == 200
    assert reported(99).charge_id in news.text
    assert "30,068" in news.text
    served.world.failing["ReadJournal"] = Unavailable("away")
    assert (await browser.get("/operator/charges")).status_code == 503


async def test_an_empty_journal_has_no_charges(served: Served, browser: Browser) -> None:
    served.world.charges, served.world.position = [], 0
    await browser.sign_in("operator")
    assert "No charges lately" in (await browser.get("/operator")).text


async def test_long_lists_are_paged(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    served.world.next_page_token = "a/b+c="
    page = f"/organizations/{SIERRA}/charges"
    assert f'href="{page}?page=a%2Fb%2Bc%3D"' in (await browser.get(page)).text
    served.world.next_page_token = ""
    older = await browser.get(f"{page}?page=a%2Fb%2Bc%3D")
    assert served.world.told("ListCharges")[-1][1].page_token == "a/b+c="
    assert f'href="{page}">Newest</a>' in older.text
    assert "Older" not in older.text


async def test_an_id_leads_to_its_page(browser: Browser) -> None:
    await browser.sign_in("operator")
    for wanted, page in (
        (SIERRA, f"/organizations/{SIERRA}"),
        (f" {ACME} ", f"/customers/{ACME}"),
        (CHARGE, f"/charges/{CHARGE}"),
    ):
        answer = await browser.client.get("/operator/go", params={"id": wanted})
        assert answer.headers["location"] == page
    answer = await browser.client.get("/operator/go", params={"id": "//evil.example"})
    assert answer.status_code == 404
    assert "begin with org_" in answer.text


async def test_other_currencies_are_offered_and_asked_for(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    page = (await browser.get(f"/organizations/{SIERRA}?currency=EUR")).text
    assert f"/organizations/{SIERRA}?currency=USD" in page
    assert {request.currency_code for _, request in served.world.told("GetRevenueSummary")} == {"EUR"}
    assert (await browser.get(f"/organizations/{SIERRA}?currency=XXX")).status_code == 404


async def test_a_defect_shows_nothing_of_what_is_inside(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    served.world.onboarding_url = "gopher://secret"
    served.world.account.state = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING
    payouts = f"/organizations/{SIERRA}/payouts"
    answer = await browser.submit(payouts, f"/organizations/{SIERRA}/onboarding")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Reference" in answer.text
    assert "Traceback" not in answer.text
    check(answer.text)


async def test_every_answer_is_secured(browser: Browser) -> None:
    for method, path, status in (
        ("GET", "/healthz", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/sign-in", 405),
        ("POST", "/operator", 405),
        ("GET", "/static/0000/dashboard.css", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/sign-in", 200),
    ):
        answer = await browser.client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"


async def test_files_are_kept_for_ever_under_the_name_of_their_content(browser: Browser) -> None:
    page = (await browser.get("/sign-in")).text
    files = re.findall(r'"(/static/[^"]+)"', page)
    assert len(files) >= 3
    for file in files:
        answer = await browser.client.get(file, headers={"accept-encoding": "gzip"})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        plain = await browser.client.get(file, headers={"accept-encoding": "identity"})
        assert plain.content == answer.content
