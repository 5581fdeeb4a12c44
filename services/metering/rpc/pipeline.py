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
from services.kit.errors import AlreadyExists, NotFound, TallystickError, Unavailable
from services.metering.domain.price_index import PriceIndex
from services.metering.domain.rating import CompiledPrice, rate, select
from services.metering.domain.usage_event import EventKey, Outcome, UsageEvent
from services.metering.domain.usage_record import IntendedCharge, KnownUsage, UsageRecord, charge_id
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.convert import metered_to_proto, same_content
from services.metering.rpc.ledger import Ledger, PostVerdict, is_passing
from services.metering.rpc.parties import Directory, Parties
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.store import usage_events
from tallystick.metering.v1.metering_service_pb2 import MeteredEvent

_VERDICTS = Counter("tallystick_metered_events", "Usage events by what became of them.", ["verdict"])
_log = log.get_logger()

Verdict = MeteredEvent | TallystickError


class Report(NamedTuple):
    """A well-formed event, and who reports it."""

    event: UsageEvent
    principal: Principal


class _Prices(NamedTuple):
    """The published versions, and the compiled prices of those that a batch needs."""

    published: PriceIndex
    compiled: Mapping[str, Sequence[CompiledPrice]]


class Pipeline:
    """Prices, records and charges usage events, up to 1,000 at a time.

    `recovery_delay` is how long recovery leaves the charge of a new event to us.
    """

    def __init__(
        self,
        *,
        writer: Database,
        directory: Directory,
        catalog: PriceCatalog,
        ledger: Ledger,
        confirmations: Confirmations,
        clock: Clock,
        recovery_delay: timedelta,
    ) -> None:
        self._writer = writer
        self._directory = directory
        self._catalog = catalog
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
        first: dict[EventKey, UsageRecord] = {}
        for one in priced:
            if isinstance(one, UsageRecord):
                first.setdefault(one.charge.key, one)
        known = await self._record(list(first.values()))
        records = {key: known[key].record if key in known else record for key, record in first.items()}
        judged = [
            one if isinstance(one, TallystickError) else _compare(report.event, records[report.event.key])
            for one, report in zip(priced, reports, strict=True)
        ]
        # In the order of the reports, because credits pay for charges in the order they are posted in.
        accepted = dict.fromkeys(one.charge.key for one in judged if isinstance(one, UsageRecord))
        posted = await self._post([records[key].charge for key in accepted])
        self._confirmations.add(_confirmed(posted, known))
        fresh = first.keys() - known.keys()
        return [self._answer(one, report, posted, fresh) for one, report in zip(judged, reports, strict=True)]

    async def _price(self, reports: Sequence[Report]) -> list[UsageRecord | TallystickError]:
        """What to record of each report; nothing is stored yet."""
        now = self._clock.now()
        parties = await self._directory.find(
            {report.event.key.customer_id for report in reports},
            {(report.event.agent_id, report.event.agent_version) for report in reports},
        )
        index = await self._catalog.index()
        versions = {
            version
            for report in reports
            if (agent := parties.agents.get(report.event.agent_id)) is not None
            for version in _in_force(index, agent.organization_id, report.event, now)
        }
        prices = _Prices(index, await self._catalog.compiled(versions))
        found: list[UsageRecord | TallystickError] = []
        for report in reports:
            try:
                found.append(_price(report, parties, prices, now))
            except TallystickError as error:
                found.append(error)
        return found

    async def _record(self, records: list[UsageRecord]) -> Mapping[EventKey, KnownUsage]:
        """Record new events with their intended charges, in one transaction; answers those known before."""
        if not records:
            return {}

        async def record() -> Mapping[EventKey, KnownUsage]:
            async with self._writer.hot() as connection:
                return await usage_events.record(connection, records, self._recovery_delay)

        # Idempotent by key: if the connection broke at the commit, the second run finds what the first one
        # recorded.
        return await retry_transaction(record, idempotent=True)

    async def _post(self, charges: list[IntendedCharge]) -> dict[EventKey, PostVerdict]:
        """Post charges; if the ledger is away, the verdict of each is CHARGE_PENDING.

        From here on nothing may fail for the caller: the events are recorded, and will be charged.
        """
        if not charges:
            return {}
        keys = [charge.key for charge in charges]
        verdicts: Sequence[PostVerdict]
        try:
            verdicts = await self._ledger.post_charges(charges)
        except grpc.aio.AioRpcError as error:
            _log.warning("charges.pending", count=len(keys), code=error.code().name, detail=error.details())
            return {key: _pending(key) for key in keys}
        posted: dict[EventKey, PostVerdict] = {}
        for key, verdict in zip(keys, verdicts, strict=True):
            if isinstance(verdict, TallystickError):
                _log.warning("charge.not_posted", charge_id=charge_id(key), reason=verdict.reason)
                posted[key] = _pending(key) if is_passing(verdict) else verdict
            else:
                posted[key] = verdict
        return posted

    def _answer(
        self,
        judged: UsageRecord | TallystickError,
        report: Report,
        posted: Mapping[EventKey, PostVerdict],
        fresh: set[EventKey],
    ) -> Verdict:
        """The verdict on one report. Takes the event from `fresh`: what reports it again is a duplicate."""
        if isinstance(judged, TallystickError):
            _VERDICTS.labels("refused").inc()
            return judged
        verdict = posted[judged.charge.key]
        if isinstance(verdict, TallystickError):
            _VERDICTS.labels("pending").inc()
            return verdict
        duplicate = judged.charge.key not in fresh
        fresh.discard(judged.charge.key)
        _VERDICTS.labels("duplicate" if duplicate else "recorded").inc()
        return metered_to_proto(
            judged,
            verdict.charge,
            verdict.balance.available if may_see_balance(report.principal) else None,
            duplicate=duplicate,
            evidence_differs=judged.evidence_differs(report.event),
        )


def may_see_balance(principal: Principal) -> bool:
    """Whether the caller may know what a customer has left: an organization may not, since the customer
    spends with others too.
    """
    return principal.organization_id is None


def _price(report: Report, parties: Parties, prices: _Prices, now: datetime) -> UsageRecord:
    """What to record of a report. Raises NotFound naming the party or price that is missing."""
    event, principal = report
    customer_id = event.key.customer_id
    if customer_id not in parties.customers or not principal.may_use_customer(customer_id):
        raise NotFound(
            f"customer {customer_id} does not exist",
            reason="CUSTOMER_NOT_FOUND",
            metadata={"customer_id": customer_id},
        )
    organization_id = _organization_of(event, principal, parties)
    price_version_id, currency_code, price = _find_price(event, organization_id, prices, now)
    # Never None: an outcome that is unknown to us was refused as malformed.
    rated = rate(price, event.usage, event.outcome or Outcome.UNKNOWN)
    return UsageRecord(
        charge=IntendedCharge(
            key=event.key,
            organization_id=organization_id,
            agent_id=event.agent_id,
            occur_time=_occur_time(event, now),
            currency_code=currency_code,
            amount_micros=rated.total_micros,
            price_version_id=price_version_id,
            evidence_hash=event.evidence_hash,
        ),
        content=event.content,
        evidence_ref=event.evidence_ref,
        lines=rated.lines,
    )


def _organization_of(event: UsageEvent, principal: Principal, parties: Parties) -> str:
    """Who earns from the event, if this caller may report it."""
    agent = parties.agents.get(event.agent_id)
    if (
        agent is None
        # Another organization's agent answers as one that does not exist.
        or principal.organization_id not in (None, agent.organization_id)
        or not principal.may_use_agent(event.agent_id)
    ):
        raise NotFound(
            f"agent {event.agent_id} does not exist",
            reason="AGENT_NOT_FOUND",
            metadata={"agent_id": event.agent_id},
        )
    if not agent.has_version(event.agent_version):
        raise NotFound(
            f"agent {event.agent_id} has no version {event.agent_version}",
            reason="AGENT_VERSION_NOT_FOUND",
            metadata={"agent_id": event.agent_id, "agent_version": event.agent_version},
        )
    return agent.organization_id


def _find_price(
    event: UsageEvent, organization_id: str, prices: _Prices, now: datetime
) -> tuple[str, str, CompiledPrice]:
    """(price version id, currency, price) of an event."""
    currency_code = _currency(prices.published, organization_id, event)
    for version in _in_force(prices.published, organization_id, event, now):
        price = select(prices.compiled[version], event.action_type, event.agent_id)
        if price is not None:
            return version, currency_code, price
    raise NotFound(
        f"no price in {currency_code} applies to {event.action_type} of agent {event.agent_id}",
        reason="PRICE_NOT_FOUND",
        metadata={
            "agent_id": event.agent_id,
            "action_type": event.action_type,
            "currency_code": currency_code,
            "organization_id": organization_id,
        },
    )


def _in_force(index: PriceIndex, organization_id: str, event: UsageEvent, now: datetime) -> list[str]:
    currency_code = _currency(index, organization_id, event)
    return index.in_force(organization_id, currency_code, _occur_time(event, now))


def _currency(index: PriceIndex, organization_id: str, event: UsageEvent) -> str:
    return event.currency_code or index.currency_of(organization_id)


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
    posted: Mapping[EventKey, PostVerdict], known: Mapping[EventKey, KnownUsage]
) -> list[EventKey]:
    """The events whose charge the ledger has confirmed and which are still in the queue."""
    return [
        key
        for key, verdict in posted.items()
        if not isinstance(verdict, TallystickError) and (key not in known or known[key].pending)
    ]


def _pending(key: EventKey) -> Unavailable:
    return Unavailable(
        "the usage is recorded and will be charged; the ledger did not answer in time",
        reason="CHARGE_PENDING",
        metadata={"charge_id": charge_id(key)},
    )
