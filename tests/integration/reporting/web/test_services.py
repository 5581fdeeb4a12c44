"""Pages before the services themselves: what they show is what the ledger says, to the micro."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from sandbox.stripe.server import StripeStandIn
from services.kit.auth import CachedAuthenticator
from services.kit.client import connect
from services.kit.keys import LedgerKeys
from services.reporting.web.app import make_dashboard
from services.reporting.web.backend import Channels
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import audit_service_pb2, directory_service_pb2, ledger_service_pb2
from tests.integration.metering.world import World, run
from tests.integration.reporting.web.conftest import Browser
from tests.support.dashboard_world import PUBLIC_URL, SESSION_SECRET
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.payouts_server import PayoutsServer, running_payouts, running_stripe
from tests.support.reporting_server import ReportingServer, running_reporting
from tests.support.waiting import eventually

PAGES = {
    "owner": ("/organizations/org_x", "/organizations/org_x/payouts", "/organizations/org_x/charges"),
    "customer": ("/customers/cus_a", "/customers/cus_a/charges", "/customers/cus_a/credits"),
    "operator": ("/operator", "/organizations/org_x", "/organizations/org_y/payouts", "/customers/cus_b"),
    "member": ("/organizations/org_x",),
}


@dataclass
class Suite:
    """All services, the dashboard before them, and a browser."""

    ledger: LedgerServer
    payouts: PayoutsServer
    reporting: ReportingServer
    browser: Browser
    keys: dict[str, str]

    async def sign_in(self, name: str) -> None:
        answer = await self.browser.post("/sign-in", {"api_key": self.keys[name]})
        assert answer.status_code == 303


@pytest.fixture
async def suite(database_url: str) -> AsyncIterator[Suite]:
    async with AsyncExitStack() as running:
        standin: StripeStandIn = running.enter_context(running_stripe())
        ledger = await running.enter_async_context(running_ledger(database_url))
        for organization_id in ("org_x", "org_y"):
            await ledger.create_organization(organization_id)
        for customer_id in ("cus_a", "cus_b"):
            await ledger.create_customer(customer_id)
        role = access_pb2.Role
        keys = {
            "owner": (await ledger.create_caller(role.ROLE_OWNER, "owner", organization_id="org_x")).key,
            "member": (await ledger.create_caller(role.ROLE_MEMBER, "member", organization_id="org_x")).key,
            "customer": (await ledger.create_caller(role.ROLE_CUSTOMER, "customer", customer_id="cus_a")).key,
            "operator": ledger.operator.key,
        }
        host = await ledger.create_caller(role.ROLE_HOST, "host")
        metering = await running.enter_async_context(running_metering(database_url, ledger))
        payouts = await running.enter_async_context(running_payouts(database_url, ledger, standin))
        reporting = await running.enter_async_context(
            running_reporting(
                database_url,
                ledger,
                metering_address=metering.address,
                payouts_address=payouts.address,
                workers=False,
            )
        )
        await metering.publish(AGENT_RUN)
        world = World(metering, metering.caller(host.key))
        books = Corrections(ledger)
        await books.grant(2_000_000)
        await world.meter_batch(*(run(f"run-{n}", "cus_a", agent_id="agt_x") for n in range(3)))
        channels = {
            name: await running.enter_async_context(connect(server.address, None))
            for name, server in (
                ("ledger", ledger),
                ("metering", metering),
                ("payouts", payouts),
                ("reporting", reporting),
            )
        }
        service = await running.enter_async_context(connect(ledger.address, ledger.service.key))
        app = make_dashboard(
            channels=Channels(**channels),
            authenticator=CachedAuthenticator(LedgerKeys(service)),
            session_secrets=[SESSION_SECRET],
            public_url=PUBLIC_URL,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = await running.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url=PUBLIC_URL)
        )
        yield Suite(ledger, payouts, reporting, Browser(client), keys)


async def test_pages_show_what_the_ledger_says(suite: Suite) -> None:
    async def known() -> bool:
        await suite.reporting.catch_up()
        return suite.reporting.query(
            "SELECT (SELECT count(*) FROM ledger.transaction) = position FROM reporting.feed"
            " WHERE feed = 'journal'"
        ) == [(True,)]

    await eventually(known)
    for name, pages in PAGES.items():
        await suite.sign_in(name)
        for page in pages:
            answer = await suite.browser.get(page)
            assert answer.status_code == 200, (name, page, answer.text)
            assert "did not answer" not in answer.text, (name, page)
    balance = (
        await suite.ledger.operator.ledger.GetEarningsBalance(
            ledger_service_pb2.GetEarningsBalanceRequest(organization_id="org_x")
        )
    ).balance
    units, micros = divmod(balance.available.amount_micros, 1_000_000)
    available = f"{units}.{micros:06d}"
    assert balance.available.amount_micros > 0
    await suite.sign_in("owner")
    for page in PAGES["owner"][:2]:
        assert f'value="{available}"' in (await suite.browser.get(page)).text
    charges = (await suite.browser.get("/organizations/org_x/charges")).text
    found = re.findall(r'href="(/charges/ch_[^"]+)"', charges)
    assert len(found) == 3
    await suite.sign_in("operator")
    platform = (await suite.browser.get("/operator")).text
    for name in ("owner", "customer", "operator"):
        await suite.sign_in(name)
        for page in found:
            assert page in platform
            shown = await suite.browser.get(page)
            assert shown.status_code == 200
            assert "How the price came about" in shown.text
            assert "did not answer" not in shown.text
    await suite.sign_in("owner")
    assert (await suite.browser.get("/organizations/org_y")).status_code == 404
    assert (await suite.browser.get("/customers/cus_a")).status_code in (403, 404)


async def test_onboarding_and_refusals_come_through(suite: Suite) -> None:
    await suite.sign_in("owner")
    page = "/organizations/org_x/payouts"
    refused = await suite.browser.submit(page, page, amount="0.50")
    assert refused.status_code == 409
    assert "Finish onboarding first" in refused.text
    answer = await suite.browser.submit(page, "/organizations/org_x/onboarding")
    assert answer.status_code == 200
    assert suite.payouts.stripe.url in answer.text
    await suite.sign_in("customer")
    page = "/customers/cus_a/credits"
    assert "None yet" in (await suite.browser.get(page)).text
    await suite.sign_in("operator")
    compared = await suite.browser.submit("/operator", "/operator/reconciliation")
    assert "differences" in compared.text.lower()


async def test_an_operator_audits_the_ledger(suite: Suite) -> None:
    await suite.sign_in("operator")
    assert "Not audited yet" in (await suite.browser.get("/operator")).text
    begun = await suite.browser.submit("/operator", "/operator/audit")
    assert begun.headers["location"] == "/operator#audit"

    async def audited() -> bool:
        return ">Sound<" in (await suite.browser.get("/operator")).text

    await eventually(audited)
    found = await suite.ledger.operator.audits.GetLatestAudit(audit_service_pb2.GetLatestAuditRequest())
    # Whoever pressed the button did it, with a key of their own.
    keys = await suite.ledger.operator.directory.ListApiKeys(directory_service_pb2.ListApiKeysRequest())
    mine = {one.api_key_id for one in keys.api_keys if one.role == access_pb2.ROLE_OPERATOR}
    assert found.audit.actor_api_key_id in mine


async def test_a_revoked_key_ends_its_session_everywhere(suite: Suite) -> None:
    await suite.sign_in("owner")
    keys = await suite.ledger.operator.directory.ListApiKeys(directory_service_pb2.ListApiKeysRequest())
    (mine,) = [one for one in keys.api_keys if one.role == access_pb2.ROLE_OWNER]
    await suite.ledger.operator.directory.RevokeApiKey(
        directory_service_pb2.RevokeApiKeyRequest(api_key_id=mine.api_key_id)
    )

    async def ended() -> bool:
        return (await suite.browser.get("/organizations/org_x/payouts")).status_code == 303

    await eventually(ended)
