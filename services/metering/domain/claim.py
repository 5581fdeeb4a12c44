"""What is set aside for a charge: the reservation of the run, and what its outcome may add."""

from datetime import datetime
from typing import NamedTuple


class Claim(NamedTuple):
    """A reservation that a report brings along, as the token of the reservation says.

    `lease_epoch` is the lease in which it was allocated; 0 for a hold. The price version and the currency
    were chosen when the run was authorized; the run is priced by them and no others.
    """

    reservation_id: str
    lease_epoch: int
    amount_micros: int
    currency_code: str
    expire_time: datetime
    price_version_id: str


class OutcomeHold(NamedTuple):
    """What to hold for an outcome that is not decided: the most that it may add."""

    hold_id: str
    amount_micros: int
    expire_time: datetime
