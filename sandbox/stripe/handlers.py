"""Every operation that the stand-in implements: importing a module registers its own."""

from sandbox.stripe import (
    accounts,
    charges,
    customers,
    external_accounts,
    payments,
    payouts,
    reading,
    transfers,
)
from sandbox.stripe.world import OPERATIONS

__all__ = [
    "OPERATIONS",
    "accounts",
    "charges",
    "customers",
    "external_accounts",
    "payments",
    "payouts",
    "reading",
    "transfers",
]
