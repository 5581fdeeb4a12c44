"""New objects, made from Stripe's own samples with everything accidental taken out."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from sandbox.stripe.spec import DATA
from sandbox.stripe.values import Json

_ADDRESS = {"city": None, "country": None, "line1": None, "line2": None, "postal_code": None, "state": None}
# What a sample holds by accident; REMOVE is for fields that may be left out but not be null.
REMOVE = ...
_BLANK: dict[str, dict[str, object]] = {
    "account": {"email": None},
    "charge": {
        "billing_details": {"address": _ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None},
        "description": None,
        "payment_method_details": None,
        "payment_method": None,
        "receipt_url": None,
        "refunds": REMOVE,
        "shipping": None,
        "source": None,
        "transfer_data": None,
        "balance_transaction": None,
        "captured": True,
        "outcome": None,
    },
    "customer": {
        "address": None,
        "currency": None,
        "discount": None,
        "invoice_prefix": None,
        "shipping": None,
    },
    "dispute": {"enhanced_eligibility_types": []},
    "payment_intent": {
        "amount_details": REMOVE,
        "canceled_at": None,
        "last_payment_error": None,
        "managed_payments": REMOVE,
        "next_action": None,
        "payment_method_configuration_details": None,
        "processing": None,
        "shipping": None,
        "transfer_data": None,
    },
    "payment_method": {
        "billing_details": {"address": _ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None},
        "metadata": {},
    },
    "payout": {
        "automatic": False,
        "trace_id": None,
        "description": None,
        "reconciliation_status": "not_applicable",
    },
    "refund": {"destination_details": {"card": {"type": "refund"}, "type": "card"}},
    "webhook_endpoint": {"description": None},
}


@cache
def _samples() -> Json:
    samples: Json = json.loads((DATA / "fixtures.connect.json").read_text())["resources"]
    return samples


@cache
def _template(kind: str) -> Json:
    made = _samples()[kind] | _BLANK.get(kind, {})
    if "livemode" in made:
        made["livemode"] = False
    return {name: value for name, value in made.items() if value is not REMOVE}


def sample(kind: str) -> Json:
    """Stripe's own sample of an object, untouched."""
    found: Json = _copied(_samples()[kind])
    return found


def new(kind: str, **fields: object) -> Json:
    """A fresh object: the sample without its accidents, not live, and with `fields`."""
    made: Json = _copied(_template(kind))
    return made | fields


def _copied(value: Any) -> Any:
    # Cheaper than copy.deepcopy, and unlike a way through text it shares the names of the fields.
    if isinstance(value, dict):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
