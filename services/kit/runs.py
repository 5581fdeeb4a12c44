"""Runs that are no host's: those of a subscription's fees, and of what closing a billing period charges.

Their charges are in the ledger like any other. What they are for is in the name of their run: so whoever
reads the journal knows it, and for which service period, and asks nobody. Hosts may not name their runs so.
"""

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple


class ChargeKind(StrEnum):
    """What a charge is for."""

    # Work that a host reported.
    USAGE = "usage"
    # The fee of a subscription.
    SUBSCRIPTION = "subscription"
    # What is only known when a billing period is over.
    PERIOD_CLOSE = "period_close"


class ServicePeriod(NamedTuple):
    """From `start` until `end`, exclusive; both in UTC."""

    start: datetime
    end: datetime


# What the run of a closing begins with.
PERIOD_RUN: Final = "period/"
_PREFIXES: Final = ("sub_", PERIOD_RUN)
_TIME: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_SUBSCRIPTION: Final = re.compile(rf"sub_[A-Za-z0-9_.-]+/{_TIME}/({_TIME})", re.ASCII)
_PERIOD: Final = re.compile(rf"period/[^/]+/[^/]+/({_TIME})", re.ASCII)
# A charge that closes a period happened at its last instant.
_INSTANT: Final = timedelta(microseconds=1)


def subscription_run(subscription_id: str, start: datetime, end: datetime) -> str:
    """The run of the fees of one billing period, from `start` to `end`, of a subscription."""
    return f"{subscription_id}/{_text(start)}/{_text(end)}"


def period_run(organization_id: str, currency_code: str, start: datetime) -> str:
    """The run of the charges that close a customer's billing period that began at `start`."""
    # Two ways to cut periods may begin some on the same day.
    return f"{PERIOD_RUN}{organization_id}/{currency_code}/{_text(start)}"


def kind_of(workflow_id: str) -> ChargeKind:
    """What the charges of a run are for. reporting.charge_kind says the same in SQL."""
    # Exports ask this of a million rows.
    if not workflow_id.startswith(_PREFIXES):
        return ChargeKind.USAGE
    if workflow_id.startswith(PERIOD_RUN):
        return ChargeKind.PERIOD_CLOSE
    return ChargeKind.SUBSCRIPTION if _SUBSCRIPTION.fullmatch(workflow_id) else ChargeKind.USAGE


def service_period(workflow_id: str, occur_time: datetime) -> ServicePeriod | None:
    """The service period of a charge that happened at `occur_time`; None for work, which has only that time.

    A fee is for the rest of its billing period: from when it was subscribed to, which is its `occur_time`.
    """
    if not workflow_id.startswith(_PREFIXES):
        return None
    if found := _SUBSCRIPTION.fullmatch(workflow_id):
        return ServicePeriod(occur_time, _time(found[1]))
    if found := _PERIOD.fullmatch(workflow_id):
        return ServicePeriod(_time(found[1]), occur_time + _INSTANT)
    return None


def subscription_of(workflow_id: str) -> str:
    """The subscription whose fee a run of kind SUBSCRIPTION is."""
    return workflow_id.partition("/")[0]


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
