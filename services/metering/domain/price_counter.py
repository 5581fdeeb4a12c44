"""What a customer used before in a billing period, as far as prices depend on it."""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

# What PostgreSQL's bigint holds.
MAX_COUNTER = 2**63 - 1


class CounterPeriod(NamedTuple):
    """Whose counters, and in which billing period: names are unique in it.

    `organization_id` is the one that earns.
    """

    customer_id: str
    organization_id: str
    currency_code: str
    start: datetime


class PriceCounterKey(NamedTuple):
    """A counter, by its name in domain/rating.py."""

    period: CounterPeriod
    name: str

    @property
    def counter_id(self) -> bytes:
        """What it is stored by: a hash of 16 bytes of all that says which counter it is."""
        return _counter_id(self.period, self.name)


# Every event that is rated by a counter asks twice for its id, and the same counters come again all the time.
@lru_cache(maxsize=16_384)
def _counter_id(period: CounterPeriod, name: str) -> bytes:
    customer_id, organization_id, currency_code, start = period
    # No part of it holds a line break.
    text = f"{customer_id}\n{organization_id}\n{currency_code}\n{start.timestamp()}\n{name}"
    return blake2b(text.encode(), digest_size=16).digest()


def counts_charges(name: str) -> bool:
    """Whether a counter counts what was charged, in micros: what a maximum of the period compares with."""
    return name.endswith(":charged")


class Counted(NamedTuple):
    """What something was rated with: the counters as it found them, and those that it moved, as it left them.

    Whoever rates it again with the same `opening` gets the same charge.
    """

    period_start: datetime
    opening: Mapping[str, int]
    closing: Mapping[str, int]
