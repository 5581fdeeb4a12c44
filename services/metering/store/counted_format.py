"""The stored form of what charges were rated with: counters, and what contracts add to prices."""

import json
from collections.abc import Mapping
from typing import Any

from services.metering.domain.compiled_price import NO_TERMS, ContractTerms
from services.metering.store.price_format import discounts_from_json, discounts_to_json


def counters_to_json(counters: Mapping[str, int]) -> str:
    """Counters by name."""
    # Put together by hand, as charge lines are: names hold nothing that JSON would escape.
    inner = ",".join(f'"{name}":{value}' for name, value in counters.items())
    return f"{{{inner}}}"


def terms_to_json(terms: ContractTerms) -> str | None:
    """What a contract adds; None for nothing."""
    if terms == NO_TERMS:
        return None
    stored: dict[str, Any] = {}
    if terms.discounts:
        stored["discounts"] = discounts_to_json(terms.discounts)
    if terms.allowances:
        stored["allowances"] = dict(terms.allowances)
    if terms.period_maximum_micros is not None:
        stored["period_maximum_micros"] = terms.period_maximum_micros
    return json.dumps(stored)


def to_terms(stored: dict[str, Any] | None) -> ContractTerms:
    """What `terms_to_json` stored."""
    if stored is None:
        return NO_TERMS
    return ContractTerms(
        discounts_from_json(stored.get("discounts", ())),
        stored.get("allowances", {}),
        stored.get("period_maximum_micros"),
    )
