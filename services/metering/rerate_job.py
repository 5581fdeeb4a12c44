"""The process of a re-rating: reads what was charged, rates it again, and answers what that found."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Final

from services.kit.db import Database
from services.kit.messages import set_money
from services.kit.tenancy import PLATFORM, Tenants, scope
from services.metering.domain.compiled_price import (
    NO_COMPILED_TERMS,
    CompiledPrice,
    CompiledTerms,
    Execution,
    compile_price_list,
    compile_terms,
)
from services.metering.domain.rating import RatedLine
from services.metering.domain.rerating import (
    Difference,
    LineName,
    Mismatch,
    PostedOutcome,
    PostedRun,
    Rerating,
    start_of_month,
)
from services.metering.domain.usage_event import Outcome
from services.metering.domain.usage_record import ChargeKey
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.convert import (
    LINE_KINDS_TO_PROTO,
    decided_result,
    execution_from_proto,
)
from services.metering.rpc.prices import price_list_from_proto
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.terms import period_start_of
from services.metering.store import counted_format, outcome_format, posted_runs, price_books
from services.metering.store.posted_runs import Row, Selection
from tallystick.metering.v1 import rating_service_pb2 as pb
from tallystick.metering.v1 import usage_pb2

# Runs between two messages of progress.
_PROGRESS_EVERY: Final = 20_000
_MAX_MISMATCHES: Final = 1_000

Answer = Callable[[bytes], None]


async def run_rerate(job: Mapping[str, Any], content: bytes, answer: Answer) -> None:
    """Re-rate what `job` selects, by the price list in `content` if there is one, and answer responses."""
    selection = Selection(
        tenants=Tenants(tuple(job["tenants"]), job["platform"]),
        start_time=datetime.fromisoformat(job["start_time"]),
        end_time=datetime.fromisoformat(job["end_time"]),
        organization_id=job["organization_id"],
        customer_id=job["customer_id"],
        currency_code=job["currency_code"],
    )
    other = None
    if content:
        listed = price_list_from_proto(pb.PriceList.FromString(content))
        other = compile_price_list(listed, job["price_book_id"])
    database = Database(job["database_url"], role="metering_reader", schema="metering", pool_size=1)
    await database.open()
    try:
        async with database.hot() as connection:
            await posted_runs.begin(connection, selection)
            applied = await posted_runs.applied(connection, selection)
            contracts = await ContractCatalog(database).index()
            subscriptions = await SubscriptionCatalog(database).index()
            rerating = Rerating(
                await _load(database, applied.versions),
                other,
                _parse_lines,
                outcome_format.stored_text,
                # Most customers have neither, and most platforms few.
                period_start=partial(period_start_of, contracts, subscriptions)
                if contracts.has_any or subscriptions.has_any
                else start_of_month,
            )
            teller = _Teller(answer)
            # Contracts may have counters where prices have none. A proof needs only those that are stored.
            in_order = other is not None and (rerating.needs_order or applied.has_terms)
            rows = posted_runs.read(connection, selection, in_order=in_order)
            async for some in rows:
                for row in some:
                    if mismatches := rerating.add(to_posted_run(row)):
                        teller.tell_mismatches(mismatches)
                teller.tell_progress(len(some))
    finally:
        await database.close()
    rerating.close()
    teller.tell_all(rerating, is_compared=other is not None)


def to_posted_run(row: Row) -> PostedRun:
    """The run in a row of store.posted_runs."""
    (content, organization_id, occur_time, price_version_id, currency_code, amount_micros, lines, *rest) = row
    event = usage_pb2.UsageEvent.FromString(content)
    outcome, bonus, bonus_lines, terms, period_start, opening, decided_opening, result = rest
    execution = partial(execution_from_proto, event, occur_time)
    return PostedRun(
        event.customer_id,
        event.workflow_id,
        event.ordinal,
        organization_id,
        currency_code,
        price_version_id,
        occur_time,
        (
            event.usage.SerializeToString(deterministic=True),
            event.outcome,
            event.action_type,
            event.agent_id,
            event.agent_version,
            event.tool_name,
            event.outcome_candidate,
            event.result.SerializeToString(deterministic=True) if event.HasField("result") else b"",
            terms,
        ),
        execution,
        amount_micros,
        lines,
        None if opening is None else json.loads(opening),
        None
        if outcome is None
        else PostedOutcome(
            _decided(execution(), Outcome(outcome), result),
            int(bonus or 0),
            bonus_lines or "",
            None if decided_opening is None else json.loads(decided_opening),
        ),
        NO_COMPILED_TERMS if terms is None else _to_terms(terms),
        period_start,
    )


async def _load(database: Database, versions: Sequence[str]) -> dict[str, Sequence[CompiledPrice]]:
    """The prices that were applied, whoever they belong to: the caller sees what they came to in any case."""
    async with database.begin() as connection:
        await scope(connection, PLATFORM)
        loaded = await price_books.load_versions(connection, versions)
    return {
        id_: compile_price_list(version.price_list, version.price_book_id) for id_, version in loaded.items()
    }


def _decided(execution: Execution, outcome: Outcome, result: bytes | None) -> Execution:
    """The execution with the outcome that was decided, and the result that came with it."""
    if result is not None:
        execution = execution._replace(result=decided_result(result))
    return execution._replace(outcome=outcome)


@lru_cache(maxsize=10_000)
def _to_terms(text: str) -> CompiledTerms:
    return compile_terms(counted_format.to_terms(json.loads(text)))


def _parse_lines(text: str) -> Sequence[RatedLine]:
    return outcome_format.to_lines(json.loads(text))


class _Teller:
    """Says what was found."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._runs = 0
        self._told = 0
        self._mismatches = 0

    def tell_progress(self, count: int) -> None:
        self._runs += count
        if self._runs - self._told >= _PROGRESS_EVERY:
            self._told = self._runs
            self._say(pb.RerateResponse(progress=pb.RerateProgress(run_count=self._runs)))

    def tell_mismatches(self, mismatches: Sequence[Mismatch]) -> None:
        for one in mismatches:
            self._mismatches += 1
            if self._mismatches > _MAX_MISMATCHES:
                return
            run, response = one.run, pb.RerateResponse()
            key = ChargeKey(run.customer_id, run.workflow_id, run.ordinal, one.component)
            response.mismatch.charge_id = key.charge_id
            response.mismatch.customer_id = run.customer_id
            response.mismatch.price_version_id = run.price_version_id
            set_money(response.mismatch.charged, run.currency_code, one.charged_micros)
            if one.rerated_micros is not None:
                set_money(response.mismatch.rerated, run.currency_code, one.rerated_micros)
            self._say(response)

    def tell_all(self, rerating: Rerating, *, is_compared: bool) -> None:
        """The differences, and the summary as the last message."""
        customers = sorted(rerating.customers.items())
        if is_compared:
            for (customer_id, currency_code), one in customers:
                self._say(pb.RerateResponse(customer=_difference(customer_id, currency_code, one)))
            for line in _lines(rerating.lines()):
                self._say(pb.RerateResponse(line=line))
        summary = pb.RerateSummary(
            reproduced_charge_count=rerating.reproduced_charge_count,
            mismatched_charge_count=rerating.mismatched_charge_count,
            run_count=self._runs,
            unpriced_run_count=sum(one.unpriced_run_count for _, one in customers),
        )
        charged: dict[str, int] = {}
        rerated: dict[str, int] = {}
        for (_, currency_code), one in customers:
            charged[currency_code] = charged.get(currency_code, 0) + one.charged_micros
            rerated[currency_code] = rerated.get(currency_code, 0) + one.rerated_micros
            if is_compared and one.rerated_micros != one.charged_micros:
                summary.differing_customer_count += 1
        for currency_code in sorted(charged):
            set_money(summary.charged.add(), currency_code, charged[currency_code])
            if is_compared:
                set_money(summary.rerated.add(), currency_code, rerated[currency_code])
        self._say(pb.RerateResponse(summary=summary))

    def _say(self, response: pb.RerateResponse) -> None:
        self._answer(response.SerializeToString())


def _difference(customer_id: str, currency_code: str, one: Difference) -> pb.RerateDifference:
    message = pb.RerateDifference(
        customer_id=customer_id, run_count=one.run_count, unpriced_run_count=one.unpriced_run_count
    )
    set_money(message.charged, currency_code, one.charged_micros)
    set_money(message.rerated, currency_code, one.rerated_micros)
    set_money(message.difference, currency_code, one.rerated_micros - one.charged_micros)
    set_money(message.closing, currency_code, one.closing_micros)
    return message


def _lines(lines: Mapping[LineName, tuple[int, int]]) -> Iterator[pb.RerateLineDifference]:
    for name, (charged, rerated) in sorted(lines.items()):
        message = pb.RerateLineDifference(
            component_name=name.component_name, kind=LINE_KINDS_TO_PROTO[name.kind]
        )
        set_money(message.charged, name.currency_code, charged)
        set_money(message.rerated, name.currency_code, rerated)
        set_money(message.difference, name.currency_code, rerated - charged)
        yield message
