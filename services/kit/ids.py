"""Prefixed string ids.

An id is `<prefix>_<suffix>`. The caller may choose the suffix where the resource is the caller's own
(organizations, customers, agents, price books, contracts); otherwise the server makes one of 26 characters
that sort by time (the layout of a ULID, in lower case), or derives one from a business key, so that the same
event has the same id, always.
"""

import hashlib
import os
import re
from datetime import datetime
from functools import cache
from json.encoder import encode_basestring_ascii as quote

from services.kit.clock import Clock, SystemClock
from services.kit.errors import InvalidArgument

ORGANIZATION = "org"
CUSTOMER = "cus"
AGENT = "agt"
MEMBER = "mem"
API_KEY = "key"
CHARGE = "ch"
TRANSACTION = "txn"
ADJUSTMENT = "adj"
PRICE_BOOK = "pb"
PRICE_VERSION = "pv"
OUTCOME = "out"
RESERVATION = "rsv"
BUDGET = "bud"
CONTRACT = "con"
SUBSCRIPTION = "sub"
PAYOUT = "po"
PURCHASE = "pur"
AUDIT = "aud"
SHADOW = "shd"
PERIOD_CLOSING = "pcl"

_SUFFIX = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,58}"
_WORKFLOW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_DERIVED_DIGITS = 32
_SYSTEM_CLOCK = SystemClock()


def new_id(prefix: str, *, clock: Clock = _SYSTEM_CLOCK) -> str:
    """A fresh id: 48 bits of milliseconds, then 80 random bits. Later ids sort after earlier ones."""
    return f"{prefix}_{_ulid(clock.now(), os.urandom(10))}"


def is_id(value: str, prefix: str) -> bool:
    """Whether `value` is a well-formed id of this prefix."""
    return _pattern(prefix).fullmatch(value) is not None


def check_id(value: str, prefix: str, *, field: str) -> str:
    """`value`, if it is a well-formed id of this prefix; raises InvalidArgument naming `field` otherwise."""
    if not is_id(value, prefix):
        raise InvalidArgument.of(
            field,
            f"must be {prefix}_ followed by 1 to 59 letters, digits, '_', '.' or '-', "
            "the first a letter or digit",
        )
    return value


@cache
def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(f"{prefix}_{_SUFFIX}")


def check_workflow_id(value: str, *, field: str = "workflow_id") -> str:
    """`value`, if it is a well-formed id of a host's workflow; raises InvalidArgument otherwise."""
    if not _WORKFLOW_ID.fullmatch(value):
        raise InvalidArgument.of(
            field,
            "must be 1 to 128 letters, digits, '_', '.', ':', '/' or '-', the first a letter or digit",
        )
    return value


def derive_id(prefix: str, *key: str | int) -> str:
    """The id of whatever has this business key: the same key, the same id, always.

    128 bits of a SHA-256 over the JSON array of the parts, which no two different keys share.
    """
    # What json.dumps writes without spaces, in half of its time.
    canonical = ",".join([quote(part) if isinstance(part, str) else str(part) for part in key])
    return f"{prefix}_{hashlib.sha256(f'[{canonical}]'.encode()).hexdigest()[:_DERIVED_DIGITS]}"


def charge_id(customer_id: str, workflow_id: str, component: str, ordinal: int) -> str:
    """The id of the charge for one component of one business event."""
    return derive_id(CHARGE, customer_id, workflow_id, component, ordinal)


def _ulid(moment: datetime, randomness: bytes) -> str:
    milliseconds = int(moment.timestamp() * 1000)
    value = milliseconds << 80 | int.from_bytes(randomness)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
