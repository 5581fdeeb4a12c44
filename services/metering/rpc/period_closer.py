"""Closes billing periods that are over, and posts what that charges to the ledger, however often it takes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge

from services.kit import ids, log
from services.kit.clock import Clock
from services.kit.db import Connection, Database, retry_transaction
from services.kit.errors import FailedPrecondition, PreconditionViolation, TallystickError
from services.kit.money import MAX_AMOUNT_MICROS
from services.kit.tenancy import PLATFORM, scope
from services.kit.times import timestamp
from services.kit.worker import PeriodicWorker
from services.metering.domain.billing_period import Period
from services.metering.domain.compiled_price import CompiledPrice, CompiledTerms
from services.metering.domain.contract import Contract, ContractIndex, ContractKey
from services.metering.domain.period_closing import (
    ClosedPrice,
    Offer,
    PricedAtClose,
    close_prices,
    counted_prices,
    find_prices,
    found_in,
    last_instant,
    prorate_minimum,
    settle,
    to_find,
    workflow_id_of,
)
from services.metering.domain.price_counter import CounterPeriod
from services.metering.domain.price_index import PriceIndex
from services.metering.domain.rating import select
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import IntendedCharge
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.convert import line_to_proto, money_to_proto
from services.metering.rpc.ledger import Ledger, is_passing
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.terms import (
    agreed_in,
    candidates,
    contracts_in_force,
    moments_of,
    period_of,
    whole_period_of,
)
from services.metering.store import periods, price_counters
from services.metering.store.periods import LatestWork, StoredClosing, StoredPeriod
from tallystick.metering.v1 import period_closing_pb2 as pb

_CLOSED_AT_ONCE: Final = 20
_POSTED_AT_ONCE: Final = 200
_LONGEST_DELAY: Final = timedelta(minutes=2)
# Until the ledger is asked again for what it refused: it takes a person to mend the cause.
_REFUSED_DELAY: Final = timedelta(hours=1)
# When somebody else looks at a period that this process took and did not finish; when to look for the first
# event of one whose counters were just made.
_RETRY_AFTER: Final = timedelta(minutes=1)
_POSTED = Counter("tallystick_period_closings", "Closings of billing periods that were posted to the ledger.")
_FAILED = Counter("tallystick_failed_period_closings", "Attempts to close a billing period that failed.")
_REFUSED = Gauge(
    "tallystick_refused_period_closings", "Closings whose charge the ledger refuses: it is asked again."
)
_INSTANT: Final = timedelta(microseconds=1)
_log = log.get_logger()


class CloseTimes(NamedTuple):
    """When periods are closed: `delay` after their end; again every `interval` until `window` after it."""

    delay: timedelta = timedelta(days=2)
    window: timedelta = timedelta(days=35)
    interval: timedelta = timedelta(hours=6)


class Tally(NamedTuple):
    """What was counted in a period, and its latest work, if there is any."""

    counters: Mapping[str, int]
    work: LatestWork | None


class Drafted(NamedTuple):
    """What closing a period comes to, as things are."""

    period: Period
    # That of the latest work; "" if nothing was done.
    agent_id: str
    prices: list[ClosedPrice]
    counters: Mapping[str, int]
    contract: Contract | None

    @property
    def total_micros(self) -> int:
        return sum(one.rated.total_micros for one in self.prices)


class PeriodCloser:
    """Closes periods and posts their charges. Any number of replicas do it at once.

    A closing is one transaction, under the lock of its period. Its charge is posted afterwards: the run and
    the ordinal name it, so that the ledger posts it once, whoever asks how often.
    """

    def __init__(
        self,
        *,
        writer: Database,
        catalog: PriceCatalog,
        contracts: ContractCatalog,
        subscriptions: SubscriptionCatalog,
        ledger: Ledger,
        clock: Clock,
        delay: timedelta,
        times: CloseTimes,
    ) -> None:
        self._writer = writer
        self._catalog = catalog
        self._contracts = contracts
        self._subscriptions = subscriptions
        self._ledger = ledger
        self._clock = clock
        self._delay = delay
        self.times = times

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("period_closer", interval, self.step)

    async def step(self) -> bool:
        """Close some periods, post some charges; whether more may wait. Raises if the ledger is away."""
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            due = await periods.take_due(connection, now, _CLOSED_AT_ONCE, _RETRY_AFTER)
        for key in due:
            try:
                await self.close(key)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is logged
                # One that cannot be closed keeps nobody else's from it.
                _FAILED.inc()
                _log.error(
                    "period_closing.not_made",
                    customer_id=key.customer_id,
                    organization_id=key.organization_id,
                    period_start=key.start.isoformat(),
                    exc_info=error,
                )
        posted = await self.post()
        return len(due) == _CLOSED_AT_ONCE or posted == _POSTED_AT_ONCE

    async def draft(self, key: CounterPeriod, tally: Tally) -> Drafted:
        """What closing a period comes to. It may read what was published, by connections of its own: whoever
        holds one of the same pool meanwhile might wait for ever.
        """
        counters, work = tally
        contracts, subscriptions = await self._contracts.index(), await self._subscriptions.index()
        about = ContractKey(key.customer_id, key.organization_id, key.currency_code)
        period = Period(key.start, period_of(contracts, subscriptions, about, key.start).end)
        whole = whole_period_of(contracts, subscriptions, about, key.start)
        index = await self._catalog.index()
        at = last_instant(period)
        if work is not None:
            # What was agreed or published after all of its work is not about it.
            at = min(at, work.occur_time)
        offers = list(_offers(contracts, index, about, period.start, at))
        terms = _terms_at(contracts, about, at)
        for book in dict.fromkeys(one.partition("/")[0] for one in counted_prices(counters)):
            offers += [Offer(version, terms) for version in index.versions_until(book, at)]
        first: dict[str, Offer] = {}
        for one in offers:
            first.setdefault(one.price_version_id, one)
        offers = list(first.values())
        found = find_prices(counters, offers, await self._compiled(offers, counters))
        prorated: list[PricedAtClose] = []
        for priced in found:
            applied = await self._applied(priced.price, about, period, contracts, index)
            prorated.append(priced._replace(price=prorate_minimum(priced.price, applied, whole.length)))
        prices = close_prices(prorated, counters)
        total = sum(one.rated.total_micros for one in prices)
        if total > MAX_AMOUNT_MICROS:
            raise _out_of_range(key, total)
        contract = contracts_in_force(contracts, about, at).binding
        return Drafted(period, "" if work is None else work.agent_id, prices, counters, contract)

    async def _applied(
        self,
        price: CompiledPrice,
        about: ContractKey,
        period: Period,
        contracts: ContractIndex,
        index: PriceIndex,
    ) -> timedelta:
        """For how long of a period a price applied and had a minimum, if it has one at the end."""
        if price.period_minimum is None:
            return timedelta(0)
        samples = _samples(price)
        moments = [*index.effective_times(price.key.partition("/")[0]), *moments_of(contracts, about)]
        begins = sorted({period.start, *(moment for moment in moments if period.contains(moment))})
        applied = timedelta(0)
        for begin, end in pairwise([*begins, period.end]):
            known = contracts_in_force(contracts, about, begin)
            versions = [
                one.price_version_id for one in candidates(index, about, known, begin) if one.price_version_id
            ]
            compiled = await self._catalog.compiled(versions)
            lists = [compiled.get(version, ()) for version in versions]
            chosen = (_first(lists, action_type, agent_id) for action_type, agent_id in samples)
            if any(one and one.key == price.key and one.period_minimum is not None for one in chosen):
                applied += end - begin
        return applied

    async def close(self, key: CounterPeriod, *, early: bool = False) -> StoredClosing | None:
        """Close a period, if it is time (or, if `early`, over); what that made, None for nothing."""
        return await retry_transaction(lambda: self._close(key, early=early), idempotent=True)

    async def _close(self, key: CounterPeriod, *, early: bool) -> StoredClosing | None:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            stored = await periods.lock(connection, key)
            # Once it is locked: who waited for another closing comes after it.
            now = self._clock.now()
            drafted = await self.draft(key, await tally_of(connection, key))
            end = drafted.period.end
            window_end = end + self.times.window
            opens = end if early else end + self.times.delay
            if not early and stored.create_time > window_end:
                # All of its work came too late.
                await periods.check_next(connection, key, None)
                return None
            if not drafted.agent_id:
                # The counters are made before the first event is recorded, which may be refused.
                is_new = now - stored.create_time < self.times.interval
                later = now + (_RETRY_AFTER if is_new else self.times.interval)
                await periods.check_next(connection, key, None if now >= window_end else later)
                return None
            if now < opens:
                await periods.check_next(connection, key, end + self.times.delay)
                return None
            following = None if now >= window_end else min(now + self.times.interval, window_end)
            await periods.check_next(connection, key, following)
            if drafted.total_micros == stored.closed_micros:
                return None
            credit = await periods.lock_credit(connection, key)
            new = self.closing(
                stored, drafted, credit, now, ids.new_id(ids.PERIOD_CLOSING, clock=self._clock)
            )
            await periods.add_closing(connection, new, total_micros=drafted.total_micros)
        _log.info(
            "period.closed",
            customer_id=key.customer_id,
            organization_id=key.organization_id,
            period_start=key.start.isoformat(),
            amount_micros=new.amount_micros,
            from_credit_micros=new.from_credit_micros,
        )
        return new

    def closing(
        self, stored: StoredPeriod, drafted: Drafted, credit_micros: int, now: datetime, closing_id: str
    ) -> StoredClosing:
        """The closing that is made of a draft."""
        key, currency_code = stored.key, stored.key.currency_code
        total = drafted.total_micros
        amount, from_credit = settle(total - stored.closed_micros, credit_micros)
        workflow_id, ordinal = workflow_id_of(key), stored.closing_count
        charge_id = ids.charge_id(key.customer_id, workflow_id, "BASE", ordinal) if amount else ""
        now = now.astimezone(UTC)
        content = pb.PeriodClosing(
            period_closing_id=closing_id,
            customer_id=key.customer_id,
            organization_id=key.organization_id,
            agent_id=drafted.agent_id,
            workflow_id=workflow_id,
            ordinal=ordinal,
            charge_id=charge_id,
            prices=[_price_to_proto(one, currency_code) for one in drafted.prices],
            total=money_to_proto(currency_code, total),
            closed_before=money_to_proto(currency_code, stored.closed_micros),
            from_credit=money_to_proto(currency_code, from_credit),
            amount=money_to_proto(currency_code, amount),
            period_start_time=timestamp(key.start),
            period_end_time=timestamp(drafted.period.end),
            create_time=timestamp(now),
            counters=dict(drafted.counters),
            contract_id="" if drafted.contract is None else drafted.contract.contract_id,
            contract_version_number=0 if drafted.contract is None else drafted.contract.version_number,
        )
        return StoredClosing(
            period_closing_id=closing_id,
            customer_id=key.customer_id,
            organization_id=key.organization_id,
            currency_code=currency_code,
            period_start=key.start,
            agent_id=drafted.agent_id,
            # A charge has one: of several prices it is the first one's. The closing names all.
            price_version_id=drafted.prices[0].price_version_id if drafted.prices else "",
            workflow_id=workflow_id,
            ordinal=ordinal,
            occur_time=last_instant(drafted.period),
            from_credit_micros=from_credit,
            amount_micros=amount,
            content=content.SerializeToString(),
            create_time=now,
        )

    async def post(self) -> int:
        """Post some of the charges that are due; how many it tried."""
        # Taken in a transaction of its own, because none stays open during a call over the network.
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            taken = await periods.take_closings(
                connection,
                _POSTED_AT_ONCE,
                first_delay=max(self._delay, timedelta(seconds=1)),
                longest_delay=_LONGEST_DELAY,
            )
            _REFUSED.set(await periods.count_refused(connection))
        if not taken:
            return 0
        verdicts = await self._ledger.post_charges([_charge(closing) for closing in taken])
        posted: list[StoredClosing] = []
        failed: dict[StoredClosing, tuple[str, bool]] = {}
        for closing, verdict in zip(taken, verdicts, strict=True):
            if isinstance(verdict, TallystickError):
                failed[closing] = (f"{verdict.reason}: {verdict.message}", not is_passing(verdict))
            else:
                posted.append(closing)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await periods.note_posted(connection, posted)
            await periods.note_failed(connection, failed, refused_delay=_REFUSED_DELAY)
        _POSTED.inc(len(posted))
        for closing, (error, refused) in failed.items():
            _log.error(
                "period_closing.failed",
                period_closing_id=closing.period_closing_id,
                error=error,
                refused=refused,
            )
        return len(taken)

    async def _compiled(
        self, offers: Iterable[Offer], counters: Mapping[str, int]
    ) -> Mapping[str, list[CompiledPrice]]:
        """Versions, until every price is found: of a book that has many, most often its last one will do."""
        found: dict[str, list[CompiledPrice]] = {}
        missing = to_find(counters)
        for version, _ in offers:
            if not missing:
                break
            found[version] = list((await self._catalog.compiled([version])).get(version, ()))
            missing -= found_in(found[version])
        return found


async def tally_of(connection: Connection, key: CounterPeriod) -> Tally:
    """What was counted in a period, as the connection's tenants see it."""
    # The counters first: each event is there as soon as it has moved them.
    counters = await price_counters.values_of(connection, key)
    return Tally(counters, await periods.latest_work(connection, key))


def _offers(
    contracts: ContractIndex, index: PriceIndex, about: ContractKey, start: datetime, at: datetime
) -> Iterator[Offer]:
    """The versions that may price such work at that time, and those that contracts had before, in a period
    that began at `start`, with the terms of then: work that was done by what a contract said is closed by it.
    """
    terms = _terms_at(contracts, about, at)
    for one in candidates(index, about, contracts_in_force(contracts, about, at), at):
        if one.price_version_id:
            yield Offer(one.price_version_id, terms)
    moments = {moment for moment in moments_of(contracts, about) if start < moment <= at}
    for moment in sorted(moments, reverse=True):
        before = moment - _INSTANT
        known, terms = contracts_in_force(contracts, about, before), _terms_at(contracts, about, before)
        for one in candidates(index, about, known, before):
            if one.price_version_id and one.contract is not None:
                yield Offer(one.price_version_id, terms)


def _terms_at(contracts: ContractIndex, about: ContractKey, at: datetime) -> CompiledTerms:
    # What subscriptions include is used up when work is reported.
    return agreed_in(contracts_in_force(contracts, about, at).binding, None).compiled


def _out_of_range(key: CounterPeriod, total_micros: int) -> FailedPrecondition:
    charge_id = ids.charge_id(key.customer_id, workflow_id_of(key), "BASE", 0)
    why = f"it comes to {total_micros} micros, more than a charge may"
    return FailedPrecondition(
        f"the period of {key.customer_id} that began {key.start.isoformat()} cannot be closed: {why}",
        reason="BALANCE_OUT_OF_RANGE",
        metadata={"customer_id": key.customer_id, "charge_id": charge_id},
        precondition_violations=[PreconditionViolation("BALANCE_OUT_OF_RANGE", charge_id, why)],
    )


def _samples(price: CompiledPrice) -> list[tuple[str, str]]:
    """Work that a price is for: action types and agents, "" for one that no price names."""
    selector = price.selector
    return list(product(selector.action_types or ("",), selector.agent_ids or ("",)))


def _first(lists: Iterable[Sequence[CompiledPrice]], action_type: str, agent_id: str) -> CompiledPrice | None:
    """The price of such work: of the first version that has one."""
    for prices in lists:
        price = select(prices, action_type, agent_id)
        if price is not None:
            return price
    return None


def _price_to_proto(closed: ClosedPrice, currency_code: str) -> pb.ClosedPrice:
    return pb.ClosedPrice(
        price_name=closed.price_name,
        price_version_id=closed.price_version_id,
        lines=[line_to_proto(line, currency_code) for line in closed.rated.lines],
        amount=money_to_proto(currency_code, closed.rated.total_micros),
    )


def _charge(closing: StoredClosing) -> IntendedCharge:
    return IntendedCharge(
        key=EventKey(closing.customer_id, closing.workflow_id, closing.ordinal),
        organization_id=closing.organization_id,
        agent_id=closing.agent_id,
        occur_time=closing.occur_time,
        currency_code=closing.currency_code,
        amount_micros=closing.amount_micros,
        price_version_id=closing.price_version_id,
        evidence_hash=b"",
    )
