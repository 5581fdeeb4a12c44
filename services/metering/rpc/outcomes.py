"""Deferred outcomes: resolving them, and looking one up."""

from datetime import datetime, timedelta

import grpc
from prometheus_client import Counter

from services.kit import ids, log
from services.kit.auth import current_principal
from services.kit.db import Database, retry_transaction
from services.kit.errors import (
    FailedPrecondition,
    FieldViolation,
    NotFound,
    PreconditionViolation,
    TallystickError,
)
from services.kit.tenancy import scope, tenants_of
from services.metering.domain.budget import BudgetIndex
from services.metering.domain.outcome import DeferredOutcome, OutcomeState
from services.metering.domain.usage_event import FINAL_OUTCOMES, EventKey, Outcome, evidence_violations
from services.metering.domain.usage_record import IntendedCharge, KnownUsage, outcome_charge
from services.metering.rpc.budget_alerts import announce_alerts
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budget_gate import BudgetGate
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.convert import (
    OUTCOMES_FROM_PROTO,
    deferred_to_proto,
    malformed_fields,
    money_to_proto,
    result_from_proto,
    time_to_proto,
)
from services.metering.rpc.credits import Credits
from services.metering.rpc.ledger import Ledger, charge_pending, is_passing
from services.metering.rpc.pipeline import may_see_balance
from services.metering.rpc.spending import spends
from services.metering.store import budgets, outcomes, usage_events
from services.metering.store.budgets import CountedSpend
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2
from tallystick.metering.v1 import metering_service_pb2

DECIDED = Counter("tallystick_decided_outcomes", "Deferred outcomes by how they were decided.", ["state"])
_log = log.get_logger()


class Outcomes:
    """Resolves deferred outcomes, and charges what they add."""

    def __init__(
        self,
        *,
        writer: Database,
        reader: Database,
        ledger: Ledger,
        confirmations: Confirmations,
        budgets: BudgetCatalog,
        credits: Credits,
        gate: BudgetGate,
        recovery_delay: timedelta,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._credits = credits
        self._gate = gate
        self._ledger = ledger
        self._confirmations = confirmations
        self._budgets = budgets
        self._recovery_delay = recovery_delay

    async def get(
        self, request: metering_service_pb2.GetOutcomeRequest
    ) -> metering_service_pb2.GetOutcomeResponse:
        """Answer GetOutcome."""
        known = await self._find(request.outcome_id)
        return metering_service_pb2.GetOutcomeResponse(outcome=deferred_to_proto(_deferred(known)))

    async def resolve(
        self, request: metering_service_pb2.ResolveOutcomeRequest
    ) -> metering_service_pb2.ResolveOutcomeResponse:
        """Answer ResolveOutcome.

        What is decided is decided: if the ledger is away, the resolution stands, and recovery charges or
        releases what follows from it.
        """
        outcome = _check(request)
        # Found as the caller sees it, which is less than all: an organization sees no queue of its customers.
        found = await self._find(request.outcome_id)
        known, decided = await self._decide(found.record.charge.key, outcome, request)
        deferred = _deferred(known)
        if deferred.state is not OutcomeState.RESOLVED:
            # Pending too: then its time has passed, and it is about to expire.
            raise _expired(deferred)
        if deferred.outcome is not outcome:
            raise _already_resolved(deferred)
        balance = await self._settle(known) if known.outcome_pending else None
        return metering_service_pb2.ResolveOutcomeResponse(
            outcome=deferred_to_proto(deferred),
            available_balance=await self._available(known.record.charge, balance),
            duplicate=not decided,
        )

    async def _find(self, outcome_id: str) -> KnownUsage:
        """The event of an outcome, if the caller may know it."""
        ids.check_id(outcome_id, ids.OUTCOME, field="outcome_id")
        principal = current_principal()
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            known = await usage_events.find_by_outcome(connection, outcome_id)
        if (
            known is None
            or not principal.may_use_agent(known.record.charge.agent_id)
            or not principal.may_use_customer(known.record.charge.key.customer_id)
        ):
            raise NotFound(
                f"outcome {outcome_id} does not exist, or was known at once",
                reason="OUTCOME_NOT_FOUND",
                metadata={"outcome_id": outcome_id},
            )
        return known

    async def _decide(
        self, key: EventKey, outcome: Outcome, request: metering_service_pb2.ResolveOutcomeRequest
    ) -> tuple[KnownUsage, bool]:
        """Decide the outcome of an event, unless somebody else or its time did before.

        Answers the event as it is then, and whether this call decided.
        """
        index = await self._budgets.index()

        async def decide() -> tuple[KnownUsage, bool, CountedSpend]:
            async with self._writer.hot() as connection:
                decided = await outcomes.resolve(
                    connection,
                    request.outcome_id,
                    outcome,
                    request.evidence_ref,
                    request.evidence_hash,
                    self._recovery_delay,
                )
                (now_known,) = await usage_events.look_up(connection, [key])
                added = outcome_spends(index, now_known) if decided else []
                return now_known, decided, await budgets.count_spend(connection, added)

        # If the connection broke at the commit, the second run finds what the first one decided.
        known, decided, counted = await retry_transaction(decide, idempotent=True)
        announce_alerts(counted.alerts)
        await self._gate.spent(counted.spent)
        if decided:
            DECIDED.labels(OutcomeState.RESOLVED.value).inc()
        return known, decided

    async def _settle(self, known: KnownUsage) -> account_pb2.CustomerBalance | None:
        """Charge what a decided outcome adds, or release what is held for it: the balance that leaves.

        Raises what the ledger says of the charge, or CHARGE_PENDING if it says nothing. A release is nobody's
        concern but ours: None if that has to wait.
        """
        charge = outcome_charge(known.record)
        # In this order: the base charge places the hold that the outcome is paid from.
        steps = [known.record.charge, charge] if known.pending else [charge]
        balance = None
        for step in steps:
            try:
                (verdict,) = await self._ledger.settle_charges([step])
            except grpc.aio.AioRpcError as error:
                code, detail = error.code().name, error.details()
                _log.warning("outcome.pending", charge_id=step.charge_key.charge_id, code=code, detail=detail)
                _leave_to_recovery(charge)
                return None
            if isinstance(verdict, TallystickError):
                _log.warning(
                    "outcome.not_settled", charge_id=step.charge_key.charge_id, reason=verdict.reason
                )
                if is_passing(verdict) or charge.is_release:
                    _leave_to_recovery(charge)
                    return None
                raise verdict
            self._confirmations.add([step.charge_key])
            balance = verdict.balance
        return balance

    async def _available(
        self, charge: IntendedCharge, balance: account_pb2.CustomerBalance | None
    ) -> money_pb2.Money | None:
        """What the customer has left, for callers who may know; None too if the ledger is away."""
        if not may_see_balance(current_principal()):
            return None
        if balance is None:
            try:
                balance = await self._ledger.get_balance(charge.key.customer_id, charge.currency_code)
            except grpc.aio.AioRpcError as error:
                code, detail = error.code().name, error.details()
                _log.warning("outcome.balance_unknown", code=code, detail=detail)
                return None
        (available,) = await self._credits.spendable([balance])
        return money_to_proto(charge.currency_code, available)


def outcome_spends(index: BudgetIndex, known: KnownUsage) -> list[budgets.Spend]:
    """What a decided outcome adds to budgets."""
    charge = outcome_charge(known.record)
    return list(spends(index, charge, _deferred(known).api_key_id))


def _check(request: metering_service_pb2.ResolveOutcomeRequest) -> Outcome:
    """The outcome in a request. Raises InvalidArgument with everything that is malformed."""
    outcome = OUTCOMES_FROM_PROTO.get(request.outcome)
    malformed: list[FieldViolation] = []
    if outcome not in FINAL_OUTCOMES:
        malformed.append(FieldViolation("outcome", "must be success, failure, partial or unknown"))
    malformed += evidence_violations(request.evidence_ref, request.evidence_hash)
    result_from_proto(request, malformed)
    if outcome is None or malformed:
        raise malformed_fields(malformed)
    return outcome


def _deferred(known: KnownUsage) -> DeferredOutcome:
    deferred = known.record.deferred
    if deferred is None:
        raise ValueError(f"{known.record.charge.key} was not found by its outcome")
    return deferred


def _leave_to_recovery(charge: IntendedCharge) -> None:
    """Raise CHARGE_PENDING, unless there is nothing to charge."""
    if not charge.is_release:
        raise charge_pending(charge.charge_key)


def _already_resolved(deferred: DeferredOutcome) -> FailedPrecondition:
    return _refusal(
        deferred.outcome_id,
        "OUTCOME_ALREADY_RESOLVED",
        f"the outcome was resolved before, as {deferred.outcome.value}",
        outcome=deferred.outcome.value,
        resolve_time=_text(deferred.resolve_time),
    )


def _expired(deferred: DeferredOutcome) -> FailedPrecondition:
    return _refusal(
        deferred.outcome_id,
        "OUTCOME_EXPIRED",
        f"the outcome has fallen to {deferred.expired_outcome.value}: its time is over",
        outcome=deferred.expired_outcome.value,
        expire_time=_text(deferred.expire_time),
    )


def _refusal(outcome_id: str, reason: str, description: str, **metadata: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{outcome_id}: {description}",
        reason=reason,
        metadata={"outcome_id": outcome_id, **metadata},
        precondition_violations=[PreconditionViolation(reason, outcome_id, description)],
    )


def _text(moment: datetime | None) -> str:
    return "" if moment is None else time_to_proto(moment).ToJsonString()
