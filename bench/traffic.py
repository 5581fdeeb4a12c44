"""Who takes part in a run, and the requests that it sends. Every request is for work not charged before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count, cycle
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1.charge_pb2 import CHARGE_COMPONENT_BASE, ChargeIntent, Payee
from tallystick.metering.v1.metering_service_pb2 import AuthorizeRequest
from tallystick.metering.v1.usage_pb2 import OUTCOME_SUCCESS, Usage, UsageEvent

CURRENCY: Final = "USD"
ACTION: Final = "agent.run"
# Priced like it, but by what the customer used before in the billing period.
COUNTED_ACTION: Final = "agent.counted"
CUSTOMERS: Final = tuple(f"cus_{number:04}" for number in range(2000))
ORGANIZATIONS: Final = tuple(f"org_{number:03}" for number in range(100))
# Those whose runs are authorized before they start.
RESERVING_CUSTOMERS: Final = CUSTOMERS[:1000]
COUNTED_CUSTOMERS: Final = CUSTOMERS[:1000]
HOT_CUSTOMER: Final = "cus_hot"
HOT_ORGANIZATION: Final = "org_hot"


def agent_of(organization_id: str) -> str:
    """The one agent of an organization."""
    return organization_id.replace("org_", "agt_")


class Traffic:
    """Requests without end: payers and payees take turns, unless one is named.

    So calls in flight at the same time have different payers, also when each is a batch of 500.
    """

    def __init__(self, price_version_id: str) -> None:
        self.price_version_id = price_version_id
        self._numbers = count()
        self._customers = cycle(CUSTOMERS)
        self._organizations = cycle(ORGANIZATIONS)
        self._reserving = cycle(RESERVING_CUSTOMERS)
        self._counted = cycle(COUNTED_CUSTOMERS)

    def intents(self, *, customer_id: str = "", organization_id: str = "") -> Iterator[ChargeIntent]:
        """Charges of a cent or so to one payee: four entries each, as the payer has credits."""
        occur_time = _now()
        while True:
            number = next(self._numbers)
            payee = organization_id or next(self._organizations)
            yield ChargeIntent(
                customer_id=customer_id or next(self._customers),
                workflow_id=f"bench/{number}",
                component=CHARGE_COMPONENT_BASE,
                gross=Money(currency_code=CURRENCY, amount_micros=10_000 + number % 1000),
                payees=[Payee(organization_id=payee, agent_id=agent_of(payee), weight=1)],
                occur_time=occur_time,
                price_version_id=self.price_version_id,
            )

    def events(self) -> Iterator[UsageEvent]:
        """Successful runs, each with tokens and an outcome to price: four lines."""
        return self._events(self._customers, ACTION)

    def counted_events(self) -> Iterator[UsageEvent]:
        """The same runs of fewer customers, each of which moves a counter of its customer."""
        return self._events(self._counted, COUNTED_ACTION)

    def _events(self, customers: Iterator[str], action_type: str) -> Iterator[UsageEvent]:
        occur_time = _now()
        while True:
            number = next(self._numbers)
            yield UsageEvent(
                customer_id=next(customers),
                workflow_id=f"bench/{number}",
                agent_id=agent_of(next(self._organizations)),
                action_type=action_type,
                usage=Usage(
                    model="large", input_tokens=1000 + number % 9000, output_tokens=200 + number % 500
                ),
                outcome=OUTCOME_SUCCESS,
                occur_time=occur_time,
            )

    def attempts(self, *, customer_id: str = "") -> Iterator[AuthorizeRequest]:
        """Runs to authorize, each for a little more than what completed() says of it costs."""
        while True:
            yield AuthorizeRequest(
                customer_id=customer_id or next(self._reserving),
                workflow_id=f"bench/{next(self._numbers)}",
                agent_id=agent_of(next(self._organizations)),
                action_type=ACTION,
                max_cost=Money(currency_code=CURRENCY, amount_micros=250_000),
            )

    def completed(self) -> Iterator[UsageEvent]:
        """What authorized runs did; whose they are, their reservations say."""
        for number in count():
            yield UsageEvent(
                usage=Usage(
                    model="large", input_tokens=1000 + number % 9000, output_tokens=200 + number % 500
                ),
                outcome=OUTCOME_SUCCESS,
                occur_time=_now(),
            )


def _now() -> Timestamp:
    # Whole seconds, and a moment ago: never in the future of a service.
    return Timestamp(seconds=int(time.time()) - 1)
