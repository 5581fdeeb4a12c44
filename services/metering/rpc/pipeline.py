"""The life of a batch of usage events: priced, recorded, charged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple, Self

import grpc
from prometheus_client import Counter

from services.kit import log
from services.kit.auth import Principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import AlreadyExists, TallystickError
from services.metering.domain.budget import Alert, CounterKey
from services.metering.domain.usage_event import EventKey, UsageEvent
from services.metering.domain.usage_record import (
    ChargeKey,
    Component,
    IntendedCharge,
    KnownUsage,
    UsageRecord,
)
from services.metering.rpc.budget_alerts import announce_alerts
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.convert import metered_to_proto, same_content
from services.metering.rpc.ledger import Ledger, PostVerdict, charge_pending, is_passing
from services.metering.rpc.priced import CounterChain, Unrated, counters_of, price_report
from services.metering.rpc.report import Report
from services.metering.rpc.spending import spends
from services.metering.rpc.terms import TermsFinder, Work
from services.metering.store import budgets, price_counters, usage_events
from services.metering.store.budgets import CountedSpend, Spend
from services.metering.store.price_counters import MissingCounters
from tallystick.ledger.v1.ledger_service_pb2 import PostedCharge
from tallystick.metering.v1.metering_service_pb2 import MeteredEvent

_VERDICTS = Counter("tallystick_metered_events", "Usage events by what became of them.", ["verdict"])
# To look these up for each event takes longer than to count it.
_REFUSED, _PENDING, _DUPLICATE, _RECORDED = (
    _VERDICTS.labels(verdict) for verdict in ("refused", "pending", "duplicate", "recorded")
)
_log = log.get_logger()


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


class _Recorded(NamedTuple):
    """What is on record of events now, or why they were refused; those that were known before; and what the
    counters of the budgets that count each of them say.
    """

    records: Mapping[EventKey, UsageRecord | TallystickError]
    known: Mapping[EventKey, KnownUsage]
    spent: Mapping[EventKey, Mapping[CounterKey, int]]

    @classmethod
    def of(
        cls,
        records: Sequence[UsageRecord],
        known: Mapping[EventKey, KnownUsage],
        spending: Mapping[EventKey, Sequence[Spend]],
        counted: CountedSpend,
    ) -> Self:
        keys = [record.charge.key for record in records]
        return cls(
            {
                key: known[key].record if key in known else record
                for key, record in zip(keys, records, strict=True)
            },
            known,
            {key: _spent(some, counted.spent) for key, some in spending.items()},
        )


class _KnownBefore(Exception):
    """Events that are rated by counters had been recorded before."""

    def __init__(self, known: Mapping[EventKey, KnownUsage]) -> None:
        super().__init__(f"{len(known)} events were recorded before")
        self.known = known


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
        # The first report of each event; the same event may come again within the batch.
        first: dict[EventKey, UsageRecord | Unrated] = {}
        api_keys: dict[EventKey, str] = {}
        for one, report in zip(priced, reports, strict=True):
            key = report.event.key
            if not isinstance(one, TallystickError) and key not in first:
                first[key] = one
                api_keys[key] = report.principal.api_key_id
        recorded = await self._record(first, api_keys)
        known, records = recorded.known, recorded.records
        judged = [
            one if isinstance(one, TallystickError) else _judge(report.event, records[report.event.key])
            for one, report in zip(priced, reports, strict=True)
        ]
        # In the order of the reports, because credits pay for charges in the order they are posted in.
        accepted = {one.charge.key: one for one in judged if isinstance(one, UsageRecord)}
        posted = await self._post([one.charge for one in accepted.values()])
        self._confirmations.add(_confirmed(posted, known))
        fresh = first.keys() - known.keys()
        return [
            self._answer(one, report, posted, fresh, recorded.spent)
            for one, report in zip(judged, reports, strict=True)
        ]

    async def _price(self, reports: Sequence[Report]) -> list[UsageRecord | Unrated | TallystickError]:
        """What to record of each report, as far as that can be said yet; nothing is stored."""
        now = self._clock.now()
        terms = await self._terms.find([_work(report) for report in reports], now)
        found: list[UsageRecord | Unrated | TallystickError] = []
        for report, one in zip(reports, terms, strict=True):
            try:
                found.append(one if isinstance(one, TallystickError) else price_report(report, one, now))
            except TallystickError as error:
                found.append(error)
        return found

    async def _record(
        self, first: Mapping[EventKey, UsageRecord | Unrated], api_keys: Mapping[EventKey, str]
    ) -> _Recorded:
        """Record new events with their intended charges, count what these spend, and move the counters that
        their prices depend on, in one transaction.
        """
        if not first:
            return _Recorded({}, {}, {})
        index = await self._budgets.index()

        def spending(records: Iterable[UsageRecord]) -> dict[EventKey, Sequence[Spend]]:
            return {
                record.charge.key: spends(index, record.charge, api_keys[record.charge.key])
                for record in records
            }

        counted_before: dict[EventKey, KnownUsage] = {}

        async def record() -> tuple[_Recorded, Sequence[Alert]]:
            rated = {key: one for key, one in first.items() if isinstance(one, UsageRecord)}
            if len(rated) == len(first):
                return await self._record_rated(list(rated.values()), spending(rated.values()))
            while True:
                try:
                    return await self._record_counted(first, counted_before, spending)
                except _KnownBefore as error:
                    counted_before.update(error.known)
                except MissingCounters as error:
                    async with self._writer.call() as connection:
                        await price_counters.make(connection, error.keys)

        # Idempotent by key: if the connection broke at the commit, the second run finds what the first one
        # recorded.
        recorded, alerts = await retry_transaction(record, idempotent=True)
        announce_alerts(alerts)
        return recorded

    async def _record_rated(
        self, records: list[UsageRecord], spending: Mapping[EventKey, Sequence[Spend]]
    ) -> tuple[_Recorded, Sequence[Alert]]:
        """Record events whose prices depend on no counters: without budgets it is one statement."""
        begin = self._writer.hot if any(spending.values()) else self._writer.call
        async with begin() as connection:
            known = await usage_events.record(connection, records, self._recovery_delay)
            counted = await budgets.count_spend(connection, _added(spending, known))
        return _Recorded.of(records, known, spending, counted), counted.alerts

    async def _record_counted(
        self,
        first: Mapping[EventKey, UsageRecord | Unrated],
        known_before: Mapping[EventKey, KnownUsage],
        spending: Callable[[Iterable[UsageRecord]], dict[EventKey, Sequence[Spend]]],
    ) -> tuple[_Recorded, Sequence[Alert]]:
        """Record events of which some are rated by counters, in their order.

        Locks are taken in one order, which metering.lock_price_counters states: the counters of all events,
        then the events, then the counters of budgets. Raises _KnownBefore, and leaves nothing behind, if
        counters would move for an event that was recorded before: others were rated as if they came after it.
        """
        refused: dict[EventKey, TallystickError] = {}
        records: list[UsageRecord] = []
        unrated = [one for one in first.values() if isinstance(one, Unrated) and one.key not in known_before]
        async with self._writer.hot() as connection:
            chain = CounterChain(await price_counters.lock(connection, counters_of(unrated)))
            for key, one in first.items():
                if isinstance(one, UsageRecord):
                    records.append(one)
                elif key not in known_before:
                    try:
                        records.append(chain.rate(one))
                    except TallystickError as error:
                        refused[key] = error
            known = await usage_events.record(connection, records, self._recovery_delay) if records else {}
            overtaken = {key: one for key, one in known.items() if isinstance(first[key], Unrated)}
            if overtaken:
                raise _KnownBefore(overtaken)
            await price_counters.move(connection, chain.moved)
            known = {**known, **known_before}
            records += [one.record for one in known_before.values()]
            added = spending(records)
            counted = await budgets.count_spend(connection, _added(added, known))
        recorded = _Recorded.of(records, known, added, counted)
        return recorded._replace(records={**recorded.records, **refused}), counted.alerts

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


def _added(spending: Mapping[EventKey, Sequence[Spend]], known: Mapping[EventKey, KnownUsage]) -> list[Spend]:
    """What to add to counters of budgets: only what is new, so that a rolled back or repeated event is not
    counted twice. What is repeated adds nothing, and yet hears what the counters say: whoever counted it may
    have been cut off before Redis was told.
    """
    return [
        spend._replace(amount_micros=0) if key in known else spend
        for key, some in spending.items()
        for spend in some
    ]


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


def _judge(event: UsageEvent, recorded: UsageRecord | TallystickError) -> UsageRecord | TallystickError:
    """What is on record of the event, unless that has other content, or it was refused."""
    if isinstance(recorded, TallystickError) or same_content(event.content, recorded.content):
        return recorded
    key = event.key
    return AlreadyExists(
        f"event {key.ordinal} of workflow {key.workflow_id} was recorded before with other content",
        reason="IDEMPOTENCY_KEY_REUSED",
        metadata={"key": f"{key.customer_id}/{key.workflow_id}/{key.ordinal}"},
    )


def _confirmed(
    posted: Mapping[EventKey, PostVerdict], known: Mapping[EventKey, KnownUsage]
) -> list[ChargeKey]:
    """The charges that the ledger has confirmed and which are still in the queue."""
    return [
        ChargeKey(*key, Component.BASE)
        for key, verdict in posted.items()
        if not isinstance(verdict, TallystickError) and (key not in known or known[key].pending)
    ]
