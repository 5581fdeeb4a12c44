"""The life of a batch of usage events: priced, recorded, charged."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import grpc
from prometheus_client import Counter

from services.kit import log
from services.kit.auth import Principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import AlreadyExists, TallystickError
from services.metering.domain.budget import CounterKey
from services.metering.domain.claim import Claim
from services.metering.domain.outcome import DeferredOutcome, bonuses
from services.metering.domain.rating import Execution, rate
from services.metering.domain.usage_event import EventKey, Outcome, UsageEvent
from services.metering.domain.usage_record import (
    ChargeKey,
    IntendedCharge,
    KnownUsage,
    UsageRecord,
    charge_id,
    outcome_id,
)
from services.metering.rpc.budget_alerts import announce_alerts
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.convert import metered_to_proto, same_content
from services.metering.rpc.ledger import Ledger, PostVerdict, charge_pending, is_passing
from services.metering.rpc.spending import spends
from services.metering.rpc.terms import Terms, TermsFinder, Work
from services.metering.store import budgets, usage_events
from services.metering.store.budgets import CountedSpend, Spend
from tallystick.ledger.v1.ledger_service_pb2 import PostedCharge
from tallystick.metering.v1.metering_service_pb2 import MeteredEvent

_VERDICTS = Counter("tallystick_metered_events", "Usage events by what became of them.", ["verdict"])
# To look these up for each event takes longer than to count it.
_REFUSED, _PENDING, _DUPLICATE, _RECORDED = (
    _VERDICTS.labels(verdict) for verdict in ("refused", "pending", "duplicate", "recorded")
)
_log = log.get_logger()


class Report(NamedTuple):
    """A well-formed event, who reports it, and what was reserved for it."""

    event: UsageEvent
    principal: Principal
    claim: Claim | None = None


class Metered(NamedTuple):
    """What became of a report.

    `event` is the answer to who reported it, and `posted` what the ledger said. Of a duplicate `record` is
    what was recorded first: the claim in it stands, and not that of the report (`record.is_settled_with`
    tells which). `spent` is what the counters of the budgets that count the event say now.
    """

    event: MeteredEvent
    posted: PostedCharge
    record: UsageRecord
    spent: Mapping[CounterKey, int]


Verdict = Metered | TallystickError


class Pipeline:
    """Prices, records and charges usage events, up to 1,000 at a time.

    `recovery_delay` is how long recovery leaves the charge of a new event to us.
    """

    def __init__(
        self,
        *,
        writer: Database,
        terms: TermsFinder,
        budgets: BudgetCatalog,
        ledger: Ledger,
        confirmations: Confirmations,
        clock: Clock,
        recovery_delay: timedelta,
    ) -> None:
        self._writer = writer
        self._terms = terms
        self._budgets = budgets
        self._ledger = ledger
        self._confirmations = confirmations
        self._clock = clock
        self._recovery_delay = recovery_delay

    async def run(self, reports: Sequence[Report]) -> list[Verdict]:
        """A verdict for each report, in order. One that is refused leaves nothing behind, and no trace on the
        others.
        """
        priced = await self._price(reports)
        index = await self._budgets.index()
        # The first report of each event; the same event may come again within the batch.
        first: dict[EventKey, UsageRecord] = {}
        spending: dict[EventKey, Sequence[Spend]] = {}
        for one, report in zip(priced, reports, strict=True):
            if isinstance(one, UsageRecord) and one.charge.key not in first:
                first[one.charge.key] = one
                spending[one.charge.key] = spends(index, one.charge, report.principal.api_key_id)
        known, counted = await self._record(list(first.values()), spending)
        records = {key: known[key].record if key in known else record for key, record in first.items()}
        judged = [
            one if isinstance(one, TallystickError) else _compare(report.event, records[report.event.key])
            for one, report in zip(priced, reports, strict=True)
        ]
        # In the order of the reports, because credits pay for charges in the order they are posted in.
        accepted = dict.fromkeys(one.charge.key for one in judged if isinstance(one, UsageRecord))
        posted = await self._post([records[key].charge for key in accepted])
        self._confirmations.add(_confirmed(posted, known, records))
        fresh = first.keys() - known.keys()
        spent = {key: _spent(some, counted) for key, some in spending.items()}
        return [
            self._answer(one, report, posted, fresh, spent)
            for one, report in zip(judged, reports, strict=True)
        ]

    async def _price(self, reports: Sequence[Report]) -> list[UsageRecord | TallystickError]:
        """What to record of each report; nothing is stored yet."""
        now = self._clock.now()
        terms = await self._terms.find([_work(report) for report in reports], now)
        found: list[UsageRecord | TallystickError] = []
        for report, one in zip(reports, terms, strict=True):
            try:
                found.append(one if isinstance(one, TallystickError) else _price(report, one, now))
            except TallystickError as error:
                found.append(error)
        return found

    async def _record(
        self, records: list[UsageRecord], spending: Mapping[EventKey, Sequence[Spend]]
    ) -> tuple[Mapping[EventKey, KnownUsage], Mapping[CounterKey, int]]:
        """Record new events with their intended charges and count what these spend, in one transaction.

        Answers the events that were known before, and what the counters say now.
        """
        if not records:
            return {}, {}

        async def record() -> tuple[Mapping[EventKey, KnownUsage], CountedSpend]:
            # Without budgets it is one statement.
            begin = self._writer.hot if any(spending.values()) else self._writer.call
            async with begin() as connection:
                known = await usage_events.record(connection, records, self._recovery_delay)
                # Only what is new: a rolled back or repeated event is not counted twice. What is repeated
                # adds nothing, and yet hears what the counters say: whoever counted it may have been cut off
                # before Redis was told.
                added = [
                    spend._replace(amount_micros=0) if key in known else spend
                    for key, some in spending.items()
                    for spend in some
                ]
                return known, await budgets.count_spend(connection, added)

        # Idempotent by key: if the connection broke at the commit, the second run finds what the first one
        # recorded.
        known, counted = await retry_transaction(record, idempotent=True)
        announce_alerts(counted.alerts)
        return known, counted.spent

    async def _post(self, charges: list[IntendedCharge]) -> dict[EventKey, PostVerdict]:
        """Post charges; if the ledger is away, the verdict of each is CHARGE_PENDING.

        From here on nothing may fail for the caller: the events are recorded, and will be charged.
        """
        if not charges:
            return {}
        verdicts: Sequence[PostVerdict]
        try:
            verdicts = await self._ledger.post_charges(charges)
        except grpc.aio.AioRpcError as error:
            _log.warning(
                "charges.pending", count=len(charges), code=error.code().name, detail=error.details()
            )
            return {charge.key: charge_pending(charge.charge_key) for charge in charges}
        posted: dict[EventKey, PostVerdict] = {}
        for charge, verdict in zip(charges, verdicts, strict=True):
            if isinstance(verdict, TallystickError):
                key = charge.charge_key
                _log.warning("charge.not_posted", charge_id=key.charge_id, reason=verdict.reason)
                posted[charge.key] = charge_pending(key) if is_passing(verdict) else verdict
            else:
                posted[charge.key] = verdict
        return posted

    def _answer(
        self,
        judged: UsageRecord | TallystickError,
        report: Report,
        posted: Mapping[EventKey, PostVerdict],
        fresh: set[EventKey],
        spent: Mapping[EventKey, Mapping[CounterKey, int]],
    ) -> Verdict:
        """The verdict on one report. Takes the event from `fresh`: what reports it again is a duplicate."""
        if isinstance(judged, TallystickError):
            _REFUSED.inc()
            return judged
        verdict = posted[judged.charge.key]
        if isinstance(verdict, TallystickError):
            _PENDING.inc()
            return verdict
        duplicate = judged.charge.key not in fresh
        fresh.discard(judged.charge.key)
        (_DUPLICATE if duplicate else _RECORDED).inc()
        event = metered_to_proto(
            judged,
            verdict.charge,
            verdict.balance.available if may_see_balance(report.principal) else None,
            duplicate=duplicate,
            evidence_differs=judged.evidence_differs(report.event),
        )
        return Metered(event, verdict, judged, spent[judged.charge.key])


def _spent(spending: Sequence[Spend], counted: Mapping[CounterKey, int]) -> Mapping[CounterKey, int]:
    # A budget that was deleted meanwhile is not among the counted.
    return {spend.key: counted[spend.key] for spend in spending if spend.key in counted}


def may_see_balance(principal: Principal) -> bool:
    """Whether the caller may know what a customer has left: an organization may not, since the customer
    spends with others too.
    """
    return principal.organization_id is None


def _work(report: Report) -> Work:
    event, claim = report.event, report.claim
    return Work(
        customer_id=event.key.customer_id,
        agent_id=event.agent_id,
        agent_version=event.agent_version,
        action_type=event.action_type,
        # What was pinned when the run was authorized holds, whatever was published since.
        currency_code=event.currency_code if claim is None else claim.currency_code,
        time=event.occur_time,
        principal=report.principal,
        price_version_id="" if claim is None else claim.price_version_id,
    )


def _price(report: Report, terms: Terms, now: datetime) -> UsageRecord:
    """What to record of a report."""
    event = report.event
    execution = Execution.of(event, _occur_time(event, now))
    rated = rate(terms.price, execution)
    deferred = _deferred(report, terms, execution, now) if execution.outcome is Outcome.PENDING else None
    return UsageRecord(
        charge=IntendedCharge(
            key=event.key,
            organization_id=terms.organization_id,
            agent_id=event.agent_id,
            occur_time=execution.occur_time,
            currency_code=terms.currency_code,
            amount_micros=rated.total_micros,
            price_version_id=terms.price_version_id,
            evidence_hash=event.evidence_hash,
            claim=report.claim,
            outcome_hold=None if deferred is None else deferred.hold,
        ),
        content=event.content,
        evidence_ref=event.evidence_ref,
        lines=rated.lines,
        deferred=deferred,
    )


def _deferred(report: Report, terms: Terms, execution: Execution, now: datetime) -> DeferredOutcome:
    """The outcome of an event that is reported as pending."""
    event, deferral = report.event, terms.price.deferral
    return DeferredOutcome(
        outcome_id=outcome_id(charge_id(event.key)),
        key=event.key,
        agent_id=event.agent_id,
        currency_code=terms.currency_code,
        api_key_id=report.principal.api_key_id,
        expired_outcome=deferral.expired_outcome,
        expire_time=event.outcome_expire_time or now + deferral.expire_after,
        bonuses=bonuses(terms.price, execution),
    )


def _occur_time(event: UsageEvent, now: datetime) -> datetime:
    # A host's clock may be a little ahead; money is never posted for the future.
    return now if event.occur_time is None else min(event.occur_time, now)


def _compare(event: UsageEvent, record: UsageRecord) -> UsageRecord | TallystickError:
    """What is on record of the event, unless that has other content."""
    if same_content(event.content, record.content):
        return record
    key = event.key
    return AlreadyExists(
        f"event {key.ordinal} of workflow {key.workflow_id} was recorded before with other content",
        reason="IDEMPOTENCY_KEY_REUSED",
        metadata={"key": f"{key.customer_id}/{key.workflow_id}/{key.ordinal}"},
    )


def _confirmed(
    posted: Mapping[EventKey, PostVerdict],
    known: Mapping[EventKey, KnownUsage],
    records: Mapping[EventKey, UsageRecord],
) -> list[ChargeKey]:
    """The charges that the ledger has confirmed and which are still in the queue."""
    return [
        records[key].charge.charge_key
        for key, verdict in posted.items()
        if not isinstance(verdict, TallystickError) and (key not in known or known[key].pending)
    ]
