"""What forms do: once, with the member's own key, and only when a page of the site sent them."""

from __future__ import annotations

import pytest

from services.kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TallystickError,
    Unavailable,
)
from services.reporting.web.headers import CONTENT_SECURITY_POLICY
from tallystick.payouts.v1 import connected_account_pb2, purchase_pb2
from tests.integration.reporting.web.conftest import Browser, browser_of, hidden_fields
from tests.support.dashboard_server import Served
from tests.support.dashboard_world import ACME, GLOBEX, PUBLIC_URL, SIERRA, audit_of

PAYOUTS = f"/organizations/{SIERRA}/payouts"
ONBOARDING = f"/organizations/{SIERRA}/onboarding"
CREDITS = f"/customers/{ACME}/credits"


async def test_a_payout_is_requested_with_the_members_own_key(served: Served, browser: Browser) -> None:
    await browser.sign_in("billing")
    answer = await browser.submit(PAYOUTS, PAYOUTS, amount="12.50")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{PAYOUTS}?requested=po_new0&currency=USD"
    ((caller, request),) = served.world.told("RequestPayout")
    assert caller.api_key_id == "key_billing"
    assert request.organization_id == SIERRA
    assert (request.amount.currency_code, request.amount.amount_micros) == ("USD", 12_500_000)
    assert "The payout is requested" in (await browser.get(answer.headers["location"])).text


async def test_a_form_that_is_sent_twice_pays_once(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    fields = hidden_fields((await browser.get(PAYOUTS)).text, PAYOUTS) | {"amount": "5"}
    first, second = await browser.post(PAYOUTS, fields), await browser.post(PAYOUTS, fields)
    assert first.headers["location"] == second.headers["location"]
    (one, other) = served.world.told("RequestPayout")
    assert one[1].idempotency_key == other[1].idempotency_key
    assert (
        len([record for record in served.world.payouts if record.payout.payout_id.startswith("po_new")]) == 1
    )
    # Another form is another payout.
    again = hidden_fields((await browser.get(PAYOUTS)).text, PAYOUTS)
    assert again["request"] != fields["request"]


FORGED: list[tuple[dict[str, str], str, int]] = [
    ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, "ours", 403),
    ({"origin": "https://evil.example"}, "ours", 403),
    ({"origin": "null"}, "ours", 403),
    ({"origin": PUBLIC_URL, "sec-fetch-site": "same-site"}, "ours", 403),
    ({}, "ours", 403),
    ({"origin": PUBLIC_URL}, "", 403),
    ({"origin": PUBLIC_URL}, "guessed", 403),
    ({"origin": PUBLIC_URL}, "another session's", 403),
    ({"origin": PUBLIC_URL, "content-type": "text/plain"}, "ours", 400),
    ({"origin": PUBLIC_URL, "content-type": "application/json"}, "ours", 400),
]


@pytest.mark.parametrize("action", [PAYOUTS, ONBOARDING, "/sign-out"])
async def test_a_form_of_another_site_does_nothing(served: Served, browser: Browser, action: str) -> None:
    served.world.account.state = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING
    other = browser_of(served)
    await other.sign_in("owner")
    await browser.sign_in("owner")
    fields = hidden_fields((await browser.get(PAYOUTS)).text, action) | {"amount": "5"}
    tokens = {
        "ours": fields["csrf"],
        "another session's": hidden_fields((await other.get(PAYOUTS)).text, action)["csrf"],
    }
    served.world.asked.clear()
    for headers, token, status in FORGED:
        sent = fields | {"csrf": tokens.get(token, token)}
        answer = await browser.client.post(action, data=sent, headers=headers)
        assert answer.status_code == status, (headers, token)
    assert served.world.asked == []
    # Whoever it was is still signed in.
    assert (await browser.get(PAYOUTS)).status_code == 200


async def test_what_is_no_form_of_these_pages_is_refused(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    headers = {"origin": PUBLIC_URL, "content-type": "application/x-www-form-urlencoded"}
    for body in (b"csrf=" + b"x" * 20_000, b"csrf=a&csrf=b", b"csrf=%ff", b"a=1&" * 40, "csrf=ä".encode()):
        answer = await browser.client.post(PAYOUTS, content=body, headers=headers)
        assert answer.status_code in (400, 403)
    assert served.world.told("RequestPayout") == []


async def test_an_amount_that_cannot_be_paid_is_explained(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    fields = hidden_fields((await browser.get(PAYOUTS)).text, PAYOUTS)
    for typed, said in (
        ("1,50", "plain number"),
        ("0.00", "more than zero"),
        ("1.005", "at most 2 digits"),
        ('"><script>alert(1)</script>', "plain number"),
    ):
        answer = await browser.post(PAYOUTS, fields | {"amount": typed})
        assert answer.status_code == 400
        assert said in answer.text
        assert "<script>alert" not in answer.text
    assert served.world.told("RequestPayout") == []


REFUSALS: list[tuple[TallystickError, str]] = [
    (
        FailedPrecondition(
            "refused",
            reason="INSUFFICIENT_EARNINGS",
            metadata={"currency_code": "USD", "available_micros": "1250000"},
        ),
        "more than is available, 1.25 USD",
    ),
    (
        FailedPrecondition("refused", reason="PAYOUTS_FROZEN", metadata={"freeze_reason": "A <b>check</b>"}),
        "A &lt;b&gt;check&lt;/b&gt;",
    ),
    (FailedPrecondition("refused", reason="PAYOUTS_NOT_ENABLED"), "Finish onboarding first"),
    (InvalidArgument.of("amount", "is below the minimum of 1.00 USD"), "Is below the minimum of 1.00 USD."),
]


async def test_a_refusal_is_told_in_words_and_the_next_attempt_has_a_new_key(
    served: Served, browser: Browser
) -> None:
    await browser.sign_in("owner")
    fields = hidden_fields((await browser.get(PAYOUTS)).text, PAYOUTS) | {"amount": "5.00"}
    for error, said in REFUSALS:
        served.world.failing["RequestPayout"] = error
        answer = await browser.post(PAYOUTS, fields)
        assert answer.status_code == 409
        assert said in answer.text
        shown = hidden_fields(answer.text, PAYOUTS)
        assert shown["request"] not in (fields["request"], "")
        assert shown["amount"] == "5.00"


async def test_while_nobody_knows_what_became_of_it_the_form_keeps_its_key(
    served: Served, browser: Browser
) -> None:
    await browser.sign_in("owner")
    served.world.failing["RequestPayout"] = Unavailable("payouts is away")
    answer = await browser.submit(PAYOUTS, PAYOUTS, amount="5")
    assert answer.status_code == 503
    assert "it is done once" in answer.text
    ((_, request),) = served.world.told("RequestPayout")
    fields = hidden_fields(answer.text, PAYOUTS)
    assert fields["request"] == request.idempotency_key
    served.world.failing.clear()
    assert (await browser.post(PAYOUTS, fields | {"amount": "5"})).status_code == 303


@pytest.mark.parametrize("name", ["operator", "member"])
async def test_only_owners_and_billing_admins_are_offered_and_given_payouts(
    served: Served, browser: Browser, name: str
) -> None:
    await browser.sign_in(name)
    page = await browser.get(f"/organizations/{SIERRA}")
    assert "Request a payout" not in page.text
    token = hidden_fields(page.text, "/sign-out")["csrf"]
    fields = {"csrf": token, "amount": "5", "currency": "USD", "request": "by hand"}
    assert (await browser.post(PAYOUTS, fields)).status_code == 403
    assert (await browser.post(ONBOARDING, fields)).status_code == 403
    assert served.world.told("RequestPayout") == []
    assert served.world.told("CreateOnboardingLink") == []


async def test_onboarding_leads_to_the_payment_processor(served: Served, browser: Browser) -> None:
    served.world.account.state = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING
    await browser.sign_in("owner")
    answer = await browser.submit(PAYOUTS, ONBOARDING)
    # A page, not a redirect: what a form may lead to is this site alone, redirects included.
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert f'content="1;url={served.world.onboarding_url}"' in answer.text
    ((caller, request),) = served.world.told("CreateOnboardingLink")
    assert (caller.api_key_id, request.organization_id) == ("key_owner", SIERRA)
    assert (await browser.get(ONBOARDING)).headers["location"] == PAYOUTS


async def test_onboarding_leads_to_no_script(served: Served, browser: Browser) -> None:
    served.world.account.state = connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING
    await browser.sign_in("owner")
    served.world.onboarding_url = "javascript:alert(1)"
    answer = await browser.submit(PAYOUTS, ONBOARDING)
    assert answer.status_code == 500
    assert "alert" not in answer.text


async def test_credits_are_bought_with_the_customers_own_key_once(served: Served, browser: Browser) -> None:
    await browser.sign_in("customer")
    fields = hidden_fields((await browser.get(CREDITS)).text, CREDITS)
    fields |= {"amount": "25", "payment_method": "pm_1QxMastercard"}
    first, second = await browser.post(CREDITS, fields), await browser.post(CREDITS, fields)
    assert (
        first.headers["location"] == second.headers["location"] == f"{CREDITS}?bought=pur_new0&currency=USD"
    )
    caller, request = served.world.told("PurchaseCredits")[0]
    assert caller.api_key_id == "key_customer"
    assert request.customer_id == ACME
    assert request.payment_method_id == "pm_1QxMastercard"
    assert request.amount.amount_micros == 25_000_000
    assert "The credits are yours." in (await browser.get(first.headers["location"])).text


async def test_a_purchase_that_the_bank_wants_confirmed_leads_there(served: Served, browser: Browser) -> None:
    served.world.purchase_state = purchase_pb2.PURCHASE_STATE_REQUIRES_ACTION
    served.world.action_url = "https://hooks.stripe.example/redirect?a=1&b=2"
    await browser.sign_in("customer")
    answer = await browser.submit(CREDITS, CREDITS, amount="25", payment_method="pm_1QxVisa")
    assert answer.status_code == 200
    assert 'href="https://hooks.stripe.example/redirect?a=1&amp;b=2"' in answer.text
    assert "Nothing is paid yet" in answer.text
    served.world.action_url = ""
    answer = await browser.submit(CREDITS, CREDITS, amount="30", payment_method="pm_1QxVisa")
    assert "Waits for your confirmation" in (await browser.get(answer.headers["location"])).text


async def test_what_keeps_a_purchase_from_being_made_is_told(served: Served, browser: Browser) -> None:
    await browser.sign_in("customer")
    for error, said in (
        (NotFound("no such method", reason="PAYMENT_METHOD_NOT_FOUND"), "no such saved payment method"),
        (
            FailedPrecondition("no", reason="PROCESSOR_REFUSED", metadata={"decline_code": "lost_card"}),
            "(lost card)",
        ),
    ):
        served.world.failing["PurchaseCredits"] = error
        answer = await browser.submit(CREDITS, CREDITS, amount="25", payment_method="pm_gone")
        assert answer.status_code == 409
        assert said in answer.text
    served.world.failing.clear()
    assert (await browser.submit(CREDITS, CREDITS, amount="1.234")).status_code == 400


async def test_nobody_buys_for_another_customer(served: Served, browser: Browser) -> None:
    await browser.sign_in("other")
    fields = hidden_fields((await browser.get(f"/customers/{GLOBEX}")).text, "/sign-out")
    fields |= {"amount": "25", "currency": "USD", "request": "by hand"}
    assert (await browser.post(CREDITS, fields)).status_code == 404
    await browser.sign_in("operator")
    fields["csrf"] = hidden_fields((await browser.get(CREDITS)).text, "/sign-out")["csrf"]
    assert (await browser.post(CREDITS, fields)).status_code == 403
    assert not [one for one in served.world.purchases if one.purchase_id.startswith("pur_new")]


async def test_the_operator_compares_the_books(served: Served, browser: Browser) -> None:
    await browser.sign_in("operator")
    answer = await browser.submit("/operator", "/operator/reconciliation")
    assert answer.status_code == 200
    assert "No differences" in answer.text
    served.world.failing["Reconcile"] = Unavailable("the payment processor is away")
    answer = await browser.submit("/operator", "/operator/reconciliation")
    assert "could not be compared" in answer.text
    assert (await browser.get("/operator/reconciliation")).headers["location"] == "/operator"


async def test_the_operator_audits_the_ledger(served: Served, browser: Browser) -> None:
    await browser.sign_in("operator")
    page = (await browser.get("/operator")).text
    assert ">Sound<" in page
    assert "29,812" in page
    assert 'hx-get="/operator/audit"' not in page
    begun = await browser.submit("/operator", "/operator/audit")
    assert (begun.status_code, begun.headers["location"]) == (303, "/operator#audit")
    assert served.world.asked[-1][0] == "StartAudit"
    # Pressed again by somebody else: what runs is shown.
    fields = hidden_fields(page, "/operator/audit")
    assert (await browser.post("/operator/audit", fields)).headers["location"] == "/operator#audit"
    page = (await browser.get("/operator")).text
    assert "19 of 38 checks are done" in page
    assert 'hx-get="/operator/audit"' in page
    ended = await browser.client.get("/operator/audit", headers={"HX-Request": "true"})
    assert "<html" not in ended.text
    assert ">Sound<" in ended.text
    assert "30,067" in ended.text
    assert "hx-get" not in ended.text
    assert (await browser.get("/operator/audit")).headers["location"] == "/operator"


async def test_differences_of_an_audit_are_shown(served: Served, browser: Browser) -> None:
    await browser.sign_in("operator")
    served.world.audit = audit_of("aud_bad", 30_000, accounts_match_entries=2, forged=1)
    served.world.audit.checks[-1].differences[:] = ['{"reason": "<script>alert(1)</script>"}']
    page = (await browser.get("/operator")).text
    assert "2 of 5 checks found differences" in page
    assert "<strong>accounts_match_entries</strong>: 2 differences" in page
    assert "&#34;off_by&#34;: 1" in page
    assert "<script>alert" not in page
    served.world.audit = None
    assert "Not audited yet" in (await browser.get("/operator")).text
    served.world.failing["GetLatestAudit"] = Unavailable("the ledger is busy")
    assert "did not answer" in (await browser.get("/operator")).text
    polled = await browser.client.get("/operator/audit", headers={"HX-Request": "true"})
    assert polled.status_code == 503


async def test_an_audit_that_cannot_begin_says_why(served: Served, browser: Browser) -> None:
    await browser.sign_in("operator")
    served.world.failing["StartAudit"] = ResourceExhausted("an audit runs", reason="AUDIT_IN_PROGRESS")
    answer = await browser.submit("/operator", "/operator/audit")
    assert answer.headers["location"] == "/operator#audit"
    served.world.failing["StartAudit"] = Unavailable("the ledger is away")
    answer = await browser.submit("/operator", "/operator/audit")
    assert "No audit was begun" in answer.text


async def test_only_operators_audit_and_only_from_here(served: Served, browser: Browser) -> None:
    await browser.sign_in("owner")
    token = hidden_fields((await browser.get(f"/organizations/{SIERRA}")).text, "/sign-out")["csrf"]
    assert (await browser.post("/operator/audit", {"csrf": token})).status_code == 403
    assert (await browser.get("/operator/audit")).status_code == 403
    await browser.sign_in("operator")
    assert (await browser.post("/operator/audit", {"csrf": "forged"})).status_code in (400, 403)
    assert "StartAudit" not in [name for name, *_ in served.world.asked]
