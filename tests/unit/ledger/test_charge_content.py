"""What is stored of a charge's content for ever has one form, whatever is in it."""

import hashlib
import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from services.ledger.domain.charges import ChargeComponent, ChargeIntent, Payee

PAYEES = st.builds(Payee, st.text(), st.text(), st.integers(-(2**63), 2**63))


@given(
    st.text(),
    st.text(),
    st.sampled_from(ChargeComponent),
    st.integers(),
    st.text(),
    st.integers(),
    st.lists(PAYEES, max_size=3),
    st.datetimes(timezones=st.just(UTC)),
    st.text(),
)
def test_the_content_of_a_charge_is_hashed_as_a_json_array(
    customer_id: str,
    workflow_id: str,
    component: ChargeComponent,
    ordinal: int,
    currency_code: str,
    gross: int,
    payees: list[Payee],
    occur_time: datetime,
    price_version_id: str,
) -> None:
    intent = ChargeIntent(
        customer_id=customer_id,
        workflow_id=workflow_id,
        component=component,
        ordinal=ordinal,
        currency_code=currency_code,
        gross=gross,
        payees=tuple(payees),
        occur_time=occur_time,
        price_version_id=price_version_id,
        evidence_hash=b"",
    )
    content = [
        "charge/1",
        customer_id,
        workflow_id,
        int(component),
        ordinal,
        currency_code,
        gross,
        [list(payee) for payee in payees],
        occur_time.isoformat(),
        price_version_id,
    ]
    expected = json.dumps(content, separators=(",", ":"))
    assert intent.content_hash == hashlib.sha256(expected.encode()).digest()
