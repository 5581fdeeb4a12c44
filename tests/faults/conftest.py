"""The payouts, ledger and stand-in of the integration tests, for what goes wrong between them."""

from tests.integration.payouts.conftest import ledger, still_world, stripe, world

__all__ = ["ledger", "still_world", "stripe", "world"]
