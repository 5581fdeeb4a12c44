"""Connected accounts: made once whatever happens, finished by their owners, and gone by as they are."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import product
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from starlette.applications import Starlette

from sandbox.stripe.calling import call
from sandbox.stripe.server import StripeStandIn
from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import connect_service_pb2 as pb
from tallystick.payouts.v1 import connected_account_pb2, payout_pb2
from tallystick.payouts.v1.connected_account_pb2 import ConnectedAccount
from tests.integration.payouts.world import USD, World
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import Caller, MovedClock, running_payouts
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

ONBOARDING = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING
RESTRICTED = connected_account_pb2.CONNECTED_ACCOUNT_STATE_RESTRICTED
ACTIVE = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ACTIVE
DISCONNECTED = connected_account_pb2.CONNECTED_ACCOUNT_STATE_DISCONNECTED

OWNER = access_pb2.ROLE_OWNER
ADMIN = access_pb2.ROLE_BILLING_ADMIN
OPERATOR = access_pb2.ROLE_OPERATOR

ORG = "org_lark"
DAY = timedelta(hours=25)


@pytest.fixture
async def owner(still_world: World) -> Caller:
    """The owner of an organization that has no account yet."""
    return await still_world.organization(ORG, 100, connected=False)


@pytest.fixture
async def browser(still_world: World) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who opens our pages."""
    app = Starlette(routes=list(still_world.payouts.app.routes))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8053"
    ) as client:
        yield client


async def link(
    caller: Caller, country_code: str = "", organization_id: str = ORG
) -> pb.CreateOnboardingLinkResponse:
    return await caller.connect.CreateOnboardingLink(
        pb.CreateOnboardingLinkRequest(organization_id=organization_id, country_code=country_code)
    )


async def known(caller: Caller, organization_id: str = ORG) -> ConnectedAccount:
    response = await caller.connect.GetConnectedAccount(
        pb.GetConnectedAccountRequest(organization_id=organization_id)
    )
    return response.account


async def visit(url: str, **form: str) -> tuple[int, str]:
    """Status and Location of a page of Stripe's."""
    async with httpx.AsyncClient() as client:
        answer = await (client.post(url, data=form) if form else client.get(url))
    return answer.status_code, answer.headers.get("Location", "")


async def leave(url: str) -> str:
    """Open a link and leave it again; where that leads."""
    assert (await visit(url))[0] == 200
    return (await visit(url, outcome="leave"))[1]


def accounts_made(stripe: StripeStandIn) -> list[str]:
    address = stripe.url.removeprefix("http://")
    _, listed = call(address, "GET", "/v1/accounts", [("limit", "100")], key=stripe.api_key)
    return [account["id"] for account in listed["data"]]


def path(url: str) -> str:
    return urlsplit(url).path


# From nothing to paid.


async def test_onboarding_by_link_lets_an_organization_be_paid(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    world, stripe = still_world, still_world.payouts.stripe
    before = await known(owner)
    assert (before.state, before.stripe_account_id) == (ONBOARDING, "")
    assert not before.HasField("create_time")

    made = await link(owner)
    assert made.account.stripe_account_id.startswith("acct_")
    assert (made.account.state, made.account.country_code) == (ONBOARDING, "US")
    assert made.account.requirements[0].name == "external_account"
    assert made.account.requirements[0].description == "A bank account or debit card to be paid to"
    assert made.expire_time.ToDatetime() > world.payouts.clock.now().replace(tzinfo=None)

    seen = len(stripe.control.requests())
    refused = await refusal(world.request(ORG, 40))
    assert refused.reason == "PAYOUTS_NOT_ENABLED"
    assert refused.metadata["account_state"] == "onboarding"
    assert len(stripe.control.requests()) == seen, "Stripe was asked for nothing"

    assert (await visit(made.url))[0] == 200
    status, location = await visit(made.url, outcome="complete", code="000-000")
    assert status == 303
    page = await browser.get(path(location))
    assert page.status_code == 200
    assert "All done" in page.text
    assert "The account can be paid." in page.text
    assert "href" not in page.text
    assert ((await known(owner)).state, (await known(owner)).bank_payouts_enabled) == (ACTIVE, True)

    payout = (await world.request(ORG, 40)).payout
    assert payout.state == payout_pb2.PAYOUT_STATE_REQUESTED
    assert await world.available(ORG) == 60 * USD
    assert stripe.control.complaints == []


async def test_what_is_asked_for_makes_the_platform_answer_for_the_account(
    still_world: World, owner: Caller
) -> None:
    made = await link(owner, "GB")
    (asked,) = still_world.payouts.stripe.control.requests("accounts.create")
    assert asked["params"] == {
        "country": "GB",
        "controller": {
            "stripe_dashboard": {"type": "express"},
            "fees": {"payer": "application"},
            "losses": {"payments": "application"},
            "requirement_collection": "stripe",
        },
        "capabilities": {"transfers": {"requested": True}},
        "settings": {"payouts": {"schedule": {"interval": "manual"}}},
        "metadata": {"organization_id": ORG},
    }
    assert made.account.country_code == "GB"


async def test_neither_link_nor_secret_is_stored_or_logged(
    still_world: World, owner: Caller, browser: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]
) -> None:
    made = await link(owner)
    location = await leave(made.url)
    again = await browser.get(path(location).replace("return", "refresh"))
    secret = location.rpartition("/")[2]
    logged = "".join(capfd.readouterr())
    for word in (secret, made.url, again.headers["Location"]):
        assert word not in logged
        for table in ("connected_account", "onboarding_session"):
            rows = still_world.payouts.query(f"SELECT to_jsonb(found)::text FROM payouts.{table} found")
            assert rows
            assert all(word not in str(row) for row in rows)


# The way back.


async def test_a_used_link_leads_to_a_new_one(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    first = (await link(owner)).url
    assert (await visit(first))[0] == 200
    # As a preview in a chat would have done before the person came.
    status, location = await visit(first)
    assert status == 302
    fresh = await browser.get(path(location))
    assert fresh.status_code == 303
    assert fresh.headers["Location"] not in ("", first)
    assert fresh.headers["Referrer-Policy"] == "no-referrer"
    assert fresh.headers["Cache-Control"] == "no-store"
    assert (await visit(fresh.headers["Location"]))[0] == 200
    assert accounts_made(still_world.payouts.stripe) == [(await known(owner)).stripe_account_id]


async def test_an_expired_link_leads_to_a_new_one(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    first = (await link(owner)).url
    still_world.payouts.advance(timedelta(minutes=6))
    status, location = await visit(first)
    assert status == 302
    fresh = (await browser.get(path(location))).headers["Location"]
    assert (await visit(fresh))[0] == 200


async def test_the_page_says_what_is_still_wanted_and_leads_on(
    owner: Caller, browser: httpx.AsyncClient
) -> None:
    location = await leave((await link(owner)).url)
    page = await browser.get(path(location))
    assert page.status_code == 200
    assert "Onboarding is not finished" in page.text
    assert "A bank account or debit card to be paid to" in page.text
    assert page.text.count("terms of service") == 1, "its date and its address are one thing to a person"
    for name in ("Content-Security-Policy", "Referrer-Policy", "Cache-Control", "X-Content-Type-Options"):
        assert page.headers[name]
    assert "http" not in page.text, "nothing is loaded from anywhere"
    found = re.search(r'href="([^"]+)"', page.text)
    assert found is not None
    further = await browser.get(str(page.url.join(found[1])))
    assert further.status_code == 303
    fresh = further.headers["Location"]
    assert (await visit(fresh))[0] == 200
    _, location = await visit(fresh, outcome="complete", code="000-000")
    assert "All done" in (await browser.get(path(location))).text


async def test_a_preview_uses_nothing_up(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    location = await leave((await link(owner)).url)
    seen = len(still_world.payouts.stripe.control.requests())
    for name in ("return", "refresh"):
        answer = await browser.head(path(location).replace("return", name))
        assert (answer.status_code, answer.content) == (200, b"")
        assert (await browser.post(path(location).replace("return", name))).status_code == 405
    assert len(still_world.payouts.stripe.control.requests()) == seen
    assert still_world.payouts.query("SELECT use_count FROM payouts.onboarding_session") == [(0,)]


async def test_a_way_back_ends(still_world: World, owner: Caller, browser: httpx.AsyncClient) -> None:
    payouts = still_world.payouts
    location = path(await leave((await link(owner)).url))
    refresh = location.replace("return", "refresh")
    for unknown in ("A" * 43, "short", "%00" * 43):
        assert (await browser.get(f"/connect/refresh/{unknown}")).status_code == 404
        assert (await browser.get(f"/connect/return/{unknown}")).status_code == 404

    payouts.query_write("UPDATE payouts.onboarding_session SET use_count = 49")
    assert (await browser.get(refresh)).status_code == 303
    assert (await browser.get(refresh)).status_code == 410

    payouts.query_write("UPDATE payouts.onboarding_session SET use_count = 0")
    payouts.advance(timedelta(hours=4))
    seen = len(payouts.stripe.control.requests())
    for ended in (location, refresh):
        page = await browser.get(ended)
        assert page.status_code == 410
        assert "not lost" in page.text
    assert len(payouts.stripe.control.requests()) == seen


async def test_the_way_back_stands_when_stripe_is_away(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    location = path(await leave((await link(owner)).url))
    still_world.payouts.stripe.control.fault("rate_limit", "account*", count=10)
    page = await browser.get(location)
    assert page.status_code == 200
    assert "did not answer" in page.text
    assert (await browser.get(location.replace("return", "refresh"))).status_code == 503


# One account, whatever happens.


async def test_calls_at_once_make_one_account(still_world: World, owner: Caller) -> None:
    stripe = still_world.payouts.stripe
    stripe.control.fault("slow", "accounts.create", ms=300)
    links = await asyncio.gather(*(link(owner) for _ in range(5)))
    assert len({one.url for one in links}) == 5
    assert {one.account.stripe_account_id for one in links} == set(accounts_made(stripe))
    assert len(accounts_made(stripe)) == 1
    assert 409 in [seen["status"] for seen in stripe.control.requests("accounts.create")]


@pytest.mark.parametrize("fault", ["lost_answer", "cut"])
async def test_an_answer_that_was_lost_is_asked_for_again(
    still_world: World, owner: Caller, fault: str
) -> None:
    stripe = still_world.payouts.stripe
    stripe.control.fault(fault, "accounts.create")
    refused = await refusal(link(owner))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert (await known(owner)).stripe_account_id == ""
    made = await link(owner)
    assert accounts_made(stripe) == [made.account.stripe_account_id]


@pytest.mark.parametrize(("pause", "posts"), [(timedelta(0), 2), (DAY, 1)])
async def test_an_account_that_was_not_written_down_is_found_again(
    still_world: World, owner: Caller, pause: timedelta, posts: int
) -> None:
    """By its key while that is good, by its name when the key is too old."""
    payouts = still_world.payouts
    made = (await link(owner)).account.stripe_account_id
    # As if the process had been killed before it wrote the answer down.
    payouts.query_write(
        "UPDATE payouts.connected_account SET stripe_account_id = NULL, version = 0, refresh_time = NULL"
    )
    payouts.advance(pause)
    assert (await link(owner)).account.stripe_account_id == made
    assert accounts_made(payouts.stripe) == [made]
    assert len(payouts.stripe.control.requests("accounts.create")) == posts


async def test_what_was_never_made_is_made_under_a_new_key(still_world: World, owner: Caller) -> None:
    payouts = still_world.payouts
    payouts.stripe.control.fault("cut", "accounts.create")
    await refusal(link(owner))
    payouts.advance(DAY)
    made = await link(owner)
    assert accounts_made(payouts.stripe) == [made.account.stripe_account_id]
    keys = [seen["idempotency_key"] for seen in payouts.stripe.control.requests("accounts.create")]
    assert keys == [f"tallystick-account-{ORG}-1", f"tallystick-account-{ORG}-2"]


@pytest.mark.parametrize("effect", [True, False])
async def test_a_server_error_that_its_key_keeps_does_not_block_for_a_day(
    still_world: World, owner: Caller, effect: bool
) -> None:
    payouts = still_world.payouts
    payouts.stripe.control.fault("server_error", "accounts.create", effect=effect)
    if not effect:
        for _ in range(2):
            assert (await refusal(link(owner))).code is grpc.StatusCode.UNAVAILABLE
        # Meanwhile it was only looked for: another request could be late, and make a second one.
        assert len(payouts.stripe.control.requests("accounts.create")) == 1
        payouts.advance(timedelta(minutes=6))
    made = await link(owner)
    assert accounts_made(payouts.stripe) == [made.account.stripe_account_id]


async def test_a_key_that_went_with_something_else_is_given_up(still_world: World, owner: Caller) -> None:
    payouts = still_world.payouts
    call(
        payouts.stripe.url.removeprefix("http://"),
        "POST",
        "/v1/customers",
        [("name", "A")],
        key=payouts.stripe.api_key,
        idempotency_key=f"tallystick-account-{ORG}-1",
    )
    assert (await refusal(link(owner))).code is grpc.StatusCode.UNAVAILABLE
    payouts.advance(timedelta(minutes=6))
    made = await link(owner)
    assert accounts_made(payouts.stripe) == [made.account.stripe_account_id]


async def test_a_refusal_is_told_and_another_country_may_follow(still_world: World, owner: Caller) -> None:
    stripe = still_world.payouts.stripe
    stripe.control.fault("refused", "accounts.create", code="country_unsupported")
    refused = await refusal(link(owner, "AQ"))
    assert refused.reason == "PROCESSOR_REFUSED"
    assert refused.metadata["processor_code"] == "country_unsupported"
    assert (await link(owner, "GB")).account.country_code == "GB"
    assert (await link(owner)).account.country_code == "GB"
    assert (await refusal(link(owner, "US"))).reason == "RESOURCE_ALREADY_EXISTS"
    assert len(accounts_made(stripe)) == 1


@pytest.mark.parametrize("country_code", ["us", "USA", "U", "U1", "ÄÖ"])
async def test_a_country_must_look_like_one(owner: Caller, country_code: str) -> None:
    assert (await refusal(link(owner, country_code))).fields == ["country_code"]


# What becomes of it later.


async def test_a_lost_capability_stops_payouts_until_it_is_back(still_world: World, owner: Caller) -> None:
    world, control = still_world, still_world.payouts.stripe.control
    account_id = await world.connect(ORG)
    control.run("account capability", account=account_id, reason="requirements.fields_needed")
    account = await world.refresh(ORG)
    assert account.state == RESTRICTED
    assert account.explanation.startswith("The account cannot be paid now.")
    assert (await refusal(world.request(ORG, 10))).metadata["account_state"] == "restricted"
    control.onboard(account_id)
    assert (await world.refresh(ORG)).state == ACTIVE
    await world.request(ORG, 10)


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("under_review", RESTRICTED, "The payment processor reviews the account."),
        ("platform_paused", RESTRICTED, "The platform has paused the account."),
        ("rejected.fraud", DISCONNECTED, "it suspects fraud"),
    ],
)
async def test_a_stopped_account_says_why(
    still_world: World,
    owner: Caller,
    reason: str,
    state: connected_account_pb2.ConnectedAccountState.ValueType,
    words: str,
) -> None:
    account_id = await still_world.connect(ORG)
    still_world.payouts.stripe.control.run("account disable", account=account_id, reason=reason)
    account = await still_world.refresh(ORG)
    assert (account.state, account.disabled_reason) == (state, reason)
    assert words in account.explanation
    assert (await refusal(still_world.request(ORG, 10))).metadata["disabled_reason"] == reason


async def test_an_account_without_a_bank_can_be_paid_and_says_what_is_missing(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    made = await link(owner)
    location = path(await leave(made.url))
    still_world.payouts.stripe.control.run(
        "account onboard", account=made.account.stripe_account_id, no_bank=True
    )
    account = await still_world.refresh(ORG)
    assert (account.state, account.bank_payouts_enabled) == (ACTIVE, False)
    assert [one.name for one in account.requirements] == ["external_account"]
    assert "not sent on to a bank" in account.explanation
    page = await browser.get(location)
    assert "Something is still wanted" in page.text
    assert "Go on with onboarding" in page.text


async def test_who_disconnects_is_not_asked_for_any_more(
    still_world: World, owner: Caller, browser: httpx.AsyncClient
) -> None:
    location = path(await leave((await link(owner)).url))
    account_id = await still_world.connect(ORG)
    still_world.payouts.stripe.control.run("account deauthorize", account=account_id)
    assert (await refusal(link(owner))).reason == "PROCESSOR_REFUSED"
    page = await browser.get(location.replace("return", "refresh"))
    assert (page.status_code, "cannot be paid" in page.text, "href" in page.text) == (200, True, False)
    account = await known(owner)
    assert (account.state, account.bank_payouts_enabled) == (DISCONNECTED, False)
    assert (await still_world.refresh(ORG)).state == DISCONNECTED
    assert (await refusal(still_world.request(ORG, 10))).metadata["account_state"] == "disconnected"


async def test_a_refused_key_of_ours_says_nothing_of_the_account(still_world: World, owner: Caller) -> None:
    await still_world.connect(ORG)
    still_world.payouts.stripe.control.run("keys revoke", key=still_world.payouts.stripe.api_key)
    assert (await refusal(still_world.refresh(ORG))).code is grpc.StatusCode.UNAVAILABLE
    assert (await refusal(link(owner))).code is grpc.StatusCode.UNAVAILABLE
    assert (await known(owner)).state == ACTIVE


async def test_readings_at_once_end_with_what_is(still_world: World, owner: Caller) -> None:
    account_id = await still_world.connect(ORG)
    still_world.payouts.stripe.control.run("account disable", account=account_id, reason="under_review")
    read = await asyncio.gather(*(still_world.refresh(ORG) for _ in range(8)))
    assert {account.state for account in read} == {RESTRICTED}
    ((version,),) = still_world.payouts.query("SELECT version FROM payouts.connected_account")
    assert version == 10, "each reading was written once: made, onboarded, and these eight"


async def test_a_payout_that_waited_for_the_account_goes_on_at_once(world: World) -> None:
    await world.organization(ORG, 100)
    account_id = (await known(world.owners[ORG])).stripe_account_id
    control = world.payouts.stripe.control
    control.run("account pause-payouts", account=account_id)
    assert not (await world.refresh(ORG)).bank_payouts_enabled
    requested = (await world.request(ORG, 40)).payout
    await world.until(
        requested.payout_id, lambda payout: payout.hold == payout_pb2.PAYOUT_HOLD_ACCOUNT_NOT_READY
    )
    control.run("account pause-payouts", account=account_id, resume=True)
    await world.refresh(ORG)
    # Well within its pause, since time stands almost still.
    await world.until(
        requested.payout_id, lambda payout: payout.bank_status == payout_pb2.BANK_STATUS_PENDING
    )


async def test_accounts_that_nobody_speaks_of_are_read_once_a_day(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    clock = MovedClock()
    async with running_payouts(database_url, ledger, stripe, clock=clock, workers=False) as payouts:
        world = World(payouts)
        for organization_id in (ORG, "org_wren"):
            await world.organization(organization_id)
        lost = (await known(world.owners[ORG])).stripe_account_id
        stripe.control.run("account capability", account=lost)
        gone = (await known(world.owners["org_wren"], "org_wren")).stripe_account_id
        stripe.control.run("account deauthorize", account=gone)
        payouts.advance(timedelta(days=3))
    async with running_payouts(database_url, ledger, stripe, clock=clock) as payouts:
        operator = payouts.operator

        async def all_read() -> bool:
            states = [(await known(operator, each)).state for each in (ORG, "org_wren")]
            return states == [RESTRICTED, DISCONNECTED]

        await eventually(all_read)
        assert payouts.query("SELECT count(*) FROM payouts.onboarding_session") == [(0,)]


# Who may.


async def test_another_organization_is_as_if_there_were_none(still_world: World, owner: Caller) -> None:
    stranger = await still_world.organization("org_wren", connected=False)
    await link(owner)
    for attempt in (
        link(stranger),
        known(stranger),
        stranger.connect.RefreshConnectedAccount(pb.RefreshConnectedAccountRequest(organization_id=ORG)),
    ):
        refused = await refusal(attempt)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "ORGANIZATION_NOT_FOUND")
    assert (await known(stranger, "org_wren")).stripe_account_id == ""


# RPC, its request, and the roles that may call it.
CALLS = (
    ("CreateOnboardingLink", pb.CreateOnboardingLinkRequest(organization_id=ORG), {OWNER, ADMIN}),
    ("GetConnectedAccount", pb.GetConnectedAccountRequest(organization_id=ORG), {OWNER, ADMIN, OPERATOR}),
    (
        "RefreshConnectedAccount",
        pb.RefreshConnectedAccountRequest(organization_id=ORG),
        {OWNER, ADMIN, OPERATOR},
    ),
    ("ListConnectedAccounts", pb.ListConnectedAccountsRequest(), {OPERATOR}),
)


async def test_each_role_may_do_what_its_contract_says(still_world: World, owner: Caller) -> None:
    payouts = still_world.payouts
    callers = {OWNER: owner, OPERATOR: payouts.operator}
    callers[access_pb2.ROLE_SERVICE] = payouts.caller(payouts.ledger.service.key)
    for role in (ADMIN, access_pb2.ROLE_MEMBER, access_pb2.ROLE_HOST):
        created = await payouts.ledger.create_caller(role, f"role-{role}", organization_id=ORG)
        callers[role] = payouts.caller(created.key)
    for name, request, allowed in CALLS:
        for role, caller in callers.items():
            answer = getattr(caller.connect, name)(request)
            if role in allowed:
                await answer
            else:
                assert (await refusal(answer)).reason == "ROLE_NOT_ALLOWED", (name, role)


async def test_no_account_is_made_for_who_is_not_in_the_directory(still_world: World, owner: Caller) -> None:
    payouts = still_world.payouts
    # Past its foreign keys: no RPC takes an organization away.
    payouts.query_write(
        "SET session_replication_role = replica;"
        f" DELETE FROM ledger.organization WHERE organization_id = '{ORG}'"
    )
    assert (await refusal(link(owner))).reason == "ORGANIZATION_NOT_FOUND"
    assert payouts.stripe.control.requests("accounts.create") == []
    assert payouts.query("SELECT count(*) FROM payouts.connected_account") == [(0,)]


async def test_accounts_are_listed_by_state(still_world: World) -> None:
    payouts = still_world.payouts
    numbers = []
    for number, (status, submitted, reason, gone) in enumerate(
        product(
            ("active", "pending", "inactive"),
            ("true", "false"),
            ("", "listed", "rejected.other"),
            ("true", "false"),
        )
    ):
        numbers.append(number)
        payouts.query_write(
            "INSERT INTO payouts.connected_account (organization_id, country_code, transfers_status,"
            " details_submitted, disabled_reason, deauthorized, create_time)"
            f" VALUES ('org_{number:02}', 'US', '{status}', {submitted}, '{reason}', {gone}, now())"
        )
    listing = payouts.operator.connect.ListConnectedAccounts
    everything = (await listing(pb.ListConnectedAccountsRequest())).accounts
    assert [account.organization_id for account in everything] == [f"org_{number:02}" for number in numbers]
    for state in (ONBOARDING, RESTRICTED, ACTIVE, DISCONNECTED):
        expected = [account for account in everything if account.state == state]
        assert expected
        request = pb.ListConnectedAccountsRequest(page_size=3, state=state)
        found: list[ConnectedAccount] = []
        while True:
            page = await listing(request)
            found += page.accounts
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert found == expected
    unknown = pb.ListConnectedAccountsRequest()
    unknown.state = 99  # type: ignore[assignment]
    assert (await refusal(listing(unknown))).fields == ["state"]
