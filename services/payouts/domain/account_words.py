"""What the payment processor's codes about an account mean, and what to do about them.

Codes that are not known here, since the payment processor adds some, are made readable by rule.
"""

import re
from collections.abc import Iterable
from typing import Final

from services.payouts.domain.account import AccountState, ConnectedAccount, Requirement

# Names of requirements whose words do not follow from their parts.
_WHOLE: Final = {
    "external_account": "A bank account or debit card to be paid to",
    "business_type": "Whether the organization is a person or a company",
    "business_profile.mcc": "What kind of business it is",
    "business_profile.name": "The name of the business",
    "business_profile.product_description": "A description of what the business sells",
    "business_profile.support_email": "An email address for the business's customers",
    "business_profile.support_phone": "A phone number for the business's customers",
    "business_profile.url": "The website of the business",
    "company.directors_provided": "Confirmation that all directors are named",
    "company.executives_provided": "Confirmation that all executives are named",
    "company.owners_provided": "Confirmation that all owners are named",
    "directors": "The directors of the company",
    "executives": "The executives of the company",
    "owners": "The owners of the company",
    "representative": "A person who may speak for the company",
    "settings.payments.statement_descriptor": "The name that statements show",
}
# The first part of a name that is not the last: whom or what it is about.
_SUBJECTS: Final = {
    "authorizer": "the person who authorizes",
    "company": "the company",
    "directors": "each director",
    "executives": "each executive",
    "individual": "the person",
    "legal_guardian": "the legal guardian",
    "owners": "each owner",
    "representative": "the representative",
}
# A person or a form that the payment processor has given an id.
_PERSON: Final = re.compile(r"person_\w+")
_IDENTIFIER: Final = re.compile(r"[a-z]+_\w*\d\w*")
# How the rest begins: what is wanted of the subject. The longest that fits counts.
_PARTS: Final = {
    "address": "the address",
    "additional_tos_acceptances": "the acceptance of further terms",
    "dob": "the date of birth",
    "email": "the email address",
    "first_name": "the first name",
    "full_name_aliases": "other names",
    "id_number": "the tax or identity number",
    "last_name": "the last name",
    "name": "the name",
    "nationality": "the nationality",
    "ownership_declaration": "the declaration of the ownership",
    "phone": "the phone number",
    "political_exposure": "the public offices, now or before,",
    "registered_address": "the registered address",
    "registration_number": "the registration number",
    "relationship": "the role in the company",
    "relationship.percent_ownership": "the share in the company",
    "relationship.title": "the job title",
    "ssn_last_4": "the last four digits of the social security number",
    "structure": "the legal form",
    "tax_id": "the tax number",
    "vat_id": "the VAT number",
    "verification.additional_document": "a second document, which proves the address",
    "verification.document": "a document that proves the identity",
    "verification.proof_of_liveness": "a picture of the face",
}
_TERMS: Final = "Acceptance of the payment processor's terms of service"

# Why an account was stopped, and what to do.
_GO_ON: Final = "Go on with onboarding, and give what is listed."
_WAIT: Final = "There is nothing to do but wait."
_ASK_PLATFORM: Final = "Ask the operator of this platform."
_ASK_PROCESSOR: Final = "Ask the operator of this platform, who can ask the payment processor why."
REASONS: Final = {
    "action_required.requested_capabilities": (
        "The payment processor has not been asked to let this account be paid.",
        _ASK_PLATFORM,
    ),
    "listed": (
        "The payment processor compares the account with lists of those that may not be paid.",
        _WAIT,
    ),
    "other": ("The payment processor has stopped the account, and does not say why.", _ASK_PROCESSOR),
    "platform_paused": ("The platform has paused the account.", _ASK_PLATFORM),
    "rejected.fraud": ("The payment processor rejected the account: it suspects fraud.", _ASK_PROCESSOR),
    "rejected.incomplete_verification": (
        "The payment processor rejected the account: what it wanted was not given in time.",
        _ASK_PROCESSOR,
    ),
    "rejected.listed": (
        "The payment processor rejected the account: it is on a list of those that may not be paid.",
        _ASK_PROCESSOR,
    ),
    "rejected.other": ("The payment processor rejected the account.", _ASK_PROCESSOR),
    "rejected.platform_fraud": ("The platform rejected the account: it suspects fraud.", _ASK_PLATFORM),
    "rejected.platform_other": ("The platform rejected the account.", _ASK_PLATFORM),
    "rejected.platform_terms_of_service": (
        "The platform rejected the account: it is against its terms of service.",
        _ASK_PLATFORM,
    ),
    "rejected.terms_of_service": (
        "The payment processor rejected the account: it is against its terms of service.",
        _ASK_PROCESSOR,
    ),
    "requirements.past_due": ("The payment processor waits for what is past due.", _GO_ON),
    "requirements.pending_verification": ("The payment processor checks what was given.", _WAIT),
    "under_review": ("The payment processor reviews the account.", _WAIT),
}


def describe(requirement: str) -> str:
    """A requirement of the payment processor in words, such as "The date of birth of each owner"."""
    if requirement in _WHOLE:
        return _WHOLE[requirement]
    first, _, rest = requirement.partition(".")
    if first == "tos_acceptance":
        return _TERMS
    subject = _subject(first)
    if subject is None or not rest:
        return _readable(requirement)
    if rest.startswith("tos_acceptance"):
        return f"{_TERMS} by {subject}"
    wanted = _part(rest) or _readable(rest).lower()
    return f"{wanted[0].upper()}{wanted[1:]} of {subject}"


def describe_all(requirements: Iterable[Requirement]) -> list[str]:
    """Requirements in words, with what was wrong, each once: a date of birth is three of them."""
    return list(
        dict.fromkeys(
            f"{describe(one.name)} ({one.problem})" if one.problem else describe(one.name)
            for one in requirements
        )
    )


def explain(account: ConnectedAccount | None) -> str:
    """How an account stands, and what to do next."""
    if account is None:
        return "Onboarding has not begun: open an onboarding link."
    match account.state:
        case AccountState.DISCONNECTED:
            return _disconnected(account)
        case AccountState.ACTIVE:
            return _active(account)
        case AccountState.RESTRICTED:
            return f"The account cannot be paid now. {_restricted(account)}"
    return "The account cannot be paid before onboarding is finished: go on where it was left."


def explain_reason(code: str) -> str:
    """Why the payment processor stopped an account, and what to do."""
    if code in REASONS:
        return " ".join(REASONS[code])
    if code.startswith("rejected."):
        said = _readable(code.removeprefix("rejected."))
        return f"The payment processor rejected the account: {said.lower()}. {_ASK_PROCESSOR}"
    return f"The payment processor has stopped the account: {_readable(code).lower()}. {_ASK_PROCESSOR}"


def _disconnected(account: ConnectedAccount) -> str:
    if account.deauthorized:
        return (
            "The account is no longer connected with this platform: its owner disconnected it, or it was"
            f" closed. {_ASK_PLATFORM}"
        )
    return explain_reason(account.disabled_reason)


def _active(account: ConnectedAccount) -> str:
    said = "The account can be paid."
    if not account.bank_payouts_enabled:
        said += " What arrives on it is not sent on to a bank now."
    if account.disabled_reason:
        return f"{said} {explain_reason(account.disabled_reason)}"
    if account.requirements:
        return f"{said} The payment processor wants more to keep it so. {_GO_ON}"
    if not account.bank_payouts_enabled:
        return f"{said} Go on with onboarding to see whether the bank account has to be replaced."
    return said


def _restricted(account: ConnectedAccount) -> str:
    if account.disabled_reason:
        return explain_reason(account.disabled_reason)
    if account.requirements:
        return f"The payment processor wants more. {_GO_ON}"
    if account.transfers_status == "pending":
        return explain_reason("requirements.pending_verification")
    return "The payment processor does not say why. Go on with onboarding to see what it wants."


def _subject(first: str) -> str | None:
    if _PERSON.fullmatch(first):
        return "a person of the company"
    return _SUBJECTS.get(first)


def _part(rest: str) -> str | None:
    """The words for the longest beginning of `rest` that has some."""
    parts = rest.split(".")
    for length in range(len(parts), 0, -1):
        if (words := _PARTS.get(".".join(parts[:length]))) is not None:
            return words
    return None


def _readable(code: str) -> str:
    """A code without its signs and without ids, such as "Documents: proof of registration, files"."""
    parts = [part.replace("_", " ") for part in code.split(".") if not _IDENTIFIER.fullmatch(part)]
    if not any(parts):
        return "Something that the payment processor asks for"
    first, *others = parts
    text = f"{first}: {', '.join(others)}" if others else first
    return f"{text[:1].upper()}{text[1:]}"
