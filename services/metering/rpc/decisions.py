"""Deciding outcomes of which nobody could say before what they add."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from services.kit.db import HotConnection
from services.metering.domain.compiled_price import CompiledPrice, Execution
from services.metering.domain.outcome import Decision, DeferredOutcome, decide
from services.metering.domain.price_counter import Counted, CounterPeriod, PriceCounterKey
from services.metering.domain.rating import select
from services.metering.domain.usage_event import Outcome
from services.metering.domain.usage_record import KnownUsage, UsageRecord
from services.metering.rpc.convert import decided_execution_of
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.priced import CounterChain
from services.metering.rpc.terms import AgreedTerms
from services.metering.store import price_counters


class Decided(NamedTuple):
    """How work ended; `result` is a serialized google.protobuf.Struct, None where the event's counts."""

    outcome: Outcome
    result: bytes | None = None


def deferred_of(known: KnownUsage) -> DeferredOutcome:
    """The outcome of an event that has a deferred one."""
    deferred = known.record.deferred
    if deferred is None:
        raise ValueError(f"{known.record.charge.key} was not found by its outcome")
    return deferred


async def rate_decisions(
    connection: HotConnection,
    catalog: PriceCatalog,
    taken: Sequence[KnownUsage],
    final: Callable[[DeferredOutcome], Decided],
) -> Mapping[str, tuple[Outcome, Decision]]:
    """What outcomes add that this transaction has taken, by their ids, one after the other; moves the
    counters that their prices depend on.
    """
    compiled = await catalog.compiled({known.record.charge.price_version_id for known in taken})
    # All at once: see metering.lock_price_counters for the order of locks.
    keys = dict.fromkeys(key for known in taken for key in _counters_of(known.record))
    chain = CounterChain(await price_counters.lock(connection, keys))
    decisions: dict[str, tuple[Outcome, Decision]] = {}
    for known in taken:
        deferred = deferred_of(known)
        outcome, result = final(deferred)
        execution = decided_execution_of(known.record, outcome, result)
        prices = compiled[known.record.charge.price_version_id]
        decision = _decide(known.record, _select(prices, execution), execution, chain)
        decisions[deferred.outcome_id] = outcome, decision
    await price_counters.move(connection, chain.moved)
    return decisions


def _decide(record: UsageRecord, price: CompiledPrice, execution: Execution, chain: CounterChain) -> Decision:
    terms, counted = AgreedTerms.of(record.contract_terms).compiled, record.counted
    if counted is None:
        return decide(price, execution, terms, None, {})
    period = _period_of(record, counted)
    decision = decide(price, execution, terms, counted, chain.opening(period, counted.opening))
    if decision.counted is not None:
        chain.move(period, decision.counted.closing)
    return decision


def _counters_of(record: UsageRecord) -> list[PriceCounterKey]:
    """The counters that the price of an event depends on."""
    if record.counted is None:
        return []
    period = _period_of(record, record.counted)
    return [PriceCounterKey(period, name) for name in record.counted.opening]


def _period_of(record: UsageRecord, counted: Counted) -> CounterPeriod:
    charge = record.charge
    return CounterPeriod(
        charge.key.customer_id, charge.organization_id, charge.currency_code, counted.period_start
    )


def _select(prices: Sequence[CompiledPrice], execution: Execution) -> CompiledPrice:
    """The price that an event was charged by."""
    price = select(prices, execution.action_type, execution.agent_id)
    if price is None:
        raise ValueError(f"no price applies to {execution.action_type} of {execution.agent_id} any more")
    return price
