"""How often an address may fail to sign in. Keys cannot be guessed; this spares the ledger the guesses."""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.kit.clock import Clock

MAX_FAILURES: Final = 10
WINDOW: Final = timedelta(minutes=15)
_MAX_ADDRESSES: Final = 10_000
# One subscriber has a whole /64 of IPv6.
_V6_PREFIX: Final = 64


@dataclass(slots=True)
class _Failures:
    count: int
    until: datetime


class FailedAttempts:
    """Counts failures by address, for `WINDOW` from the first one. Knows so many addresses, and forgets the
    one that has not failed for longest first.

    An attempt is counted before it is decided, and excused if it did not fail: of many at once no more are
    let through than of as many one after the other.
    """

    def __init__(self, clock: Clock, max_addresses: int = _MAX_ADDRESSES) -> None:
        self._clock = clock
        self._max_addresses = max_addresses
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait(self, address: str) -> timedelta | None:
        """How long the address must wait before it may try again; None if it may try now."""
        failures = self._failures.get(_network(address))
        if failures is None or failures.count < MAX_FAILURES:
            return None
        left = failures.until - self._clock.now()
        return left if left > timedelta(0) else None

    def fail(self, address: str) -> None:
        """Count a failure."""
        now, network = self._clock.now(), _network(address)
        failures = self._failures.get(network)
        if failures is None or failures.until <= now:
            failures = self._failures[network] = _Failures(0, now + WINDOW)
        failures.count += 1
        self._failures.move_to_end(network)
        if len(self._failures) > self._max_addresses:
            self._failures.popitem(last=False)

    def excuse(self, address: str) -> None:
        """Take back the count of an attempt that did not fail, or that nobody could decide."""
        network = _network(address)
        failures = self._failures.get(network)
        # Others' failures may have pushed it out meanwhile.
        if failures is not None:
            failures.count -= 1
            if failures.count <= 0:
                del self._failures[network]


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        # As a socket that listens on [::] names who comes by IPv4: all of them in one /64.
        return str(parsed.ipv4_mapped)
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _V6_PREFIX), strict=False))
