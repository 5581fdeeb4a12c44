"""For every RPC, requests that touch what is bravo's, and who gets it.

An RPC without a case fails the test of the matrix.
"""

from tests.integration.security import ledger_cases, metering_cases
from tests.integration.security.case import CASES

__all__ = ["CASES", "ledger_cases", "metering_cases"]
