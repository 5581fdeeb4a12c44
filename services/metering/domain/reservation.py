"""Reservations: money that is kept for one run, from its start to its end."""

import hashlib
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from services.kit import ids
from services.metering.domain.budget import CounterKey

DEFAULT_TTL: Final = timedelta(minutes=5)
MIN_TTL: Final = timedelta(seconds=1)
# A reservation for longer is a durable hold: what is allocated in Redis must end before its lease does.
MAX_LEASED_TTL: Final = timedelta(minutes=15)
MAX_TTL: Final = timedelta(hours=24)
MAX_KEY_LENGTH: Final = 128

# The lease epoch of a reservation that is a hold in the ledger.
DURABLE: Final = 0


class Reservation(NamedTuple):
    """What was reserved, for what, and until when: all that its token says."""

    reservation_id: str
    customer_id: str
    workflow_id: str
    ordinal: int
    organization_id: str
    agent_id: str
    agent_version: str
    action_type: str
    currency_code: str
    amount_micros: int
    # The lease that it is allocated in, or DURABLE.
    lease_epoch: int
    expire_time: datetime
    price_version_id: str
    # The counters of budgets that it is counted in until it ends.
    counters: tuple[CounterKey, ...]

    @property
    def is_durable(self) -> bool:
        """Whether it is a hold in the ledger, and not an allocation in Redis."""
        return self.lease_epoch == DURABLE


def reservation_id(customer_id: str, workflow_id: str, ordinal: int, idempotency_key: str) -> str:
    """The id of one attempt to reserve for one event: the same attempt, the same id, always."""
    return ids.derive_id(ids.RESERVATION, customer_id, workflow_id, ordinal, idempotency_key)


def content_hash(content: bytes) -> bytes:
    """SHA-256 of what an attempt asked for, which a repeated one must equal."""
    return hashlib.sha256(content).digest()
