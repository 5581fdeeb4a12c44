"""What is reported: finished work, by whom, and what was reserved for it."""

from typing import NamedTuple

from services.kit.auth import Principal
from services.metering.domain.claim import Claim
from services.metering.domain.usage_event import UsageEvent


class Report(NamedTuple):
    """A well-formed event, who reports it, and what was reserved for it."""

    event: UsageEvent
    principal: Principal
    claim: Claim | None = None
