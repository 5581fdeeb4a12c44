"""What an account's codes say to people, and the rules of making one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
import stripe

from services.kit.errors import AlreadyExists
from services.payouts.domain import account as rules
from services.payouts.domain.account import AccountState, ConnectedAccount, Requirement
from services.payouts.domain.account_words import REASONS, describe, describe_all, explain, explain_reason
from services.payouts.processor.accounts import ProcessorAccounts
from services.payouts.processor.api import StripeApi
from services.payouts.processor.errors import KeyRefused, Refused
from services.payouts.processor.pace import Pace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEW = ConnectedAccount("org_lark", "US", create_attempt_time=NOW, create_time=NOW)
MADE = replace(NEW, stripe_account_id="acct_1")
ACTIVE = replace(MADE, transfers_status="active", bank_payouts_enabled=True, details_submitted=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("external_account", "A bank account or debit card to be paid to"),
        ("business_profile.url", "The website of the business"),
        ("tos_acceptance.date", "Acceptance of the payment processor's terms of service"),
        (
            "individual.tos_acceptance.ip",
            "Acceptance of the payment processor's terms of service by the person",
        ),
        (
            "individual.verification.document",
            "A document that proves the identity of the person",
        ),
        ("individual.dob.day", "The date of birth of the person"),
        ("individual.ssn_last_4", "The last four digits of the social security number of the person"),
        ("representative.address.line1", "The address of the representative"),
        ("representative.relationship.title", "The job title of the representative"),
        ("owners.first_name", "The first name of each owner"),
        ("owners", "The owners of the company"),
        ("company.tax_id", "The tax number of the company"),
        ("company.owners_provided", "Confirmation that all owners are named"),
        ("person_1Nv0FGQ9RKHgCVdK.last_name", "The last name of a person of the company"),
        ("person_8UayFKIMRJklog.shoe_size", "Shoe size of a person of the company"),
        ("documents.proof_of_registration.files", "Documents: proof of registration, files"),
        ("interv_cnJlcXVlc3Q1.identity_resolution.support", "Identity resolution: support"),
        ("brand_new_thing", "Brand new thing"),
        ("company.brand_new.part", "Brand new: part of the company"),
        ("", "Something that the payment processor asks for"),
    ],
)
def test_requirements_are_readable(name: str, words: str) -> None:
    assert describe(name) == words


def test_what_is_one_thing_to_people_is_said_once() -> None:
    names = ("individual.dob.day", "individual.dob.month", "individual.dob.year", "individual.email")
    assert describe_all(Requirement(name, past_due=False) for name in names) == [
        "The date of birth of the person",
        "The email address of the person",
    ]
    wrong = Requirement("company.tax_id", past_due=True, problem="It is not known there.")
    assert describe_all([wrong, wrong]) == ["The tax number of the company (It is not known there.)"]


def _documented_reasons() -> list[str]:
    """Every reason that Stripe's library knows an account to be stopped for."""
    (reasons, _) = get_args(stripe.Account.Requirements.__annotations__["disabled_reason"])
    return list(get_args(reasons))


def test_every_documented_reason_has_words_of_its_own() -> None:
    documented = _documented_reasons()
    assert len(documented) >= 15
    assert len({explain_reason(code) for code in documented}) == len(documented)
    assert set(documented) == set(REASONS)


@pytest.mark.parametrize("code", [*_documented_reasons(), "rejected.never_heard_of", "never.heard_of"])
def test_reasons_say_what_happened_and_what_to_do(code: str) -> None:
    words = explain_reason(code)
    assert words.count(". ") >= 1
    assert "_" not in words
    assert words.endswith(".")


def test_each_state_says_what_to_do_next() -> None:
    told = {
        "nothing": explain(None),
        "asked for": explain(NEW),
        "made": explain(MADE),
        "checked": explain(replace(MADE, details_submitted=True, transfers_status="pending")),
        "wanted": explain(
            replace(MADE, details_submitted=True, requirements=(Requirement("owners", past_due=True),))
        ),
        "unsaid": explain(replace(MADE, details_submitted=True)),
        "stopped": explain(replace(MADE, details_submitted=True, disabled_reason="under_review")),
        "active": explain(ACTIVE),
        "no bank": explain(replace(ACTIVE, bank_payouts_enabled=False)),
        "active, wanted": explain(replace(ACTIVE, requirements=(Requirement("owners", past_due=False),))),
        "rejected": explain(replace(MADE, disabled_reason="rejected.fraud")),
        "disconnected": explain(rules.gone(ACTIVE, NOW)),
    }
    assert told["nothing"] == "Onboarding has not begun: open an onboarding link."
    assert told["asked for"] == told["made"]
    assert "go on where it was left" in told["made"]
    assert told["checked"].endswith("There is nothing to do but wait.")
    assert told["wanted"].endswith("Go on with onboarding, and give what is listed.")
    assert "does not say why" in told["unsaid"]
    assert "reviews the account" in told["stopped"]
    assert told["active"] == "The account can be paid."
    assert "whether the bank account has to be replaced" in told["no bank"]
    assert "wants more to keep it so" in told["active, wanted"]
    assert "suspects fraud" in told["rejected"]
    assert "no longer connected" in told["disconnected"]


def test_only_the_transfers_capability_decides_whether_it_can_be_paid() -> None:
    assert replace(ACTIVE, bank_payouts_enabled=False, details_submitted=False).can_be_paid
    assert not replace(ACTIVE, transfers_status="pending").can_be_paid
    assert replace(ACTIVE, disabled_reason="rejected.other").state is AccountState.DISCONNECTED
    assert replace(ACTIVE, disabled_reason="listed").can_be_paid
    assert not rules.gone(ACTIVE, NOW).can_be_paid


def test_a_reading_takes_back_that_it_was_gone() -> None:
    facts = rules.AccountFacts("acct_1", "US", "active", True, True, "", ())
    back = rules.read(rules.gone(ACTIVE, NOW), facts, NOW)
    assert back.can_be_paid
    assert rules.can_do_more(rules.gone(ACTIVE, NOW), back)
    assert not rules.can_do_more(back, back)
    assert rules.can_do_more(replace(back, bank_payouts_enabled=False), back)


def test_a_key_is_never_that_of_another_organization() -> None:
    # An id may end as a number of an attempt does.
    tricky = replace(NEW, organization_id="org_lark-2")
    assert rules.not_made(NEW).create_key == "tallystick-account-org_lark-2"
    assert tricky.create_key == "tallystick-account-org_lark-2-1"


def test_a_key_is_used_while_it_is_good_and_the_country_stays() -> None:
    assert rules.key_end(NEW, NOW) == NOW + timedelta(hours=23)
    assert not rules.is_settled(NEW, NOW, NOW + timedelta(hours=23))
    assert rules.is_settled(NEW, NOW, NOW + timedelta(hours=24))
    spent = rules.key_spent(NEW, NOW)
    assert rules.key_end(spent, NOW) == NOW
    assert not rules.is_settled(spent, NOW, NOW + timedelta(minutes=4))
    assert rules.is_settled(spent, NOW, NOW + timedelta(minutes=5))
    with pytest.raises(AlreadyExists):
        rules.check_same_country(NEW, "GB")
    for country in ("", "US"):
        rules.check_same_country(NEW, country)
    refused = rules.not_made(NEW)
    rules.check_same_country(refused, "GB")
    assert rules.asked_again(refused, "GB", NOW).country_code == "GB"
    assert rules.asked_again(refused, "", NOW).country_code == "US"


@pytest.mark.parametrize(("code", "gone"), [("account_invalid", True), ("", False)])
async def test_an_account_that_is_gone_is_told_from_a_key_that_is_not_accepted(code: str, gone: bool) -> None:
    """Stripe answers 403 to both."""
    body = {"error": {"type": "invalid_request_error", "code": code, "message": "no"}}

    async def refuse(*_: object, **__: object) -> None:
        raise stripe.PermissionError("no", http_status=403, json_body=body, code=code)

    api = StripeApi("sk_test_1", base_url=None, pace=Pace(1000))
    api.client.v1.accounts.retrieve_async = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(Refused if gone else KeyRefused) as caught:
        await ProcessorAccounts(api).get("acct_1")
    assert not isinstance(caught.value, Refused) or caught.value.is_missing
    await api.close()
