"""What a customer has, and whether it may run an agent."""

import asyncio
from typing import Final, NamedTuple

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.errors import FailedPrecondition, InvalidArgument, NotFound
from services.kit.money import check_amount, check_currency
from services.kit.status import to_item_error
from services.metering.domain.budget import budget_exceeded
from services.metering.domain.price_index import DEFAULT_CURRENCY
from services.metering.rpc.budget_gate import BudgetGate, Gate, may_see_amounts
from services.metering.rpc.convert import money_to_proto
from services.metering.rpc.credits import Credits
from services.metering.rpc.kept import customer_frozen, insufficient_credits
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.pipeline import may_see_balance
from services.metering.rpc.terms import Terms, TermsFinder, Work
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2
from tallystick.metering.v1 import metering_service_pb2, reservation_pb2

# What is asked for when a caller does not say what the run may cost: anything at all.
_SMALLEST: Final = 1


class _Bound(NamedTuple):
    """How much a run could reserve, and the error for more."""

    up_to: int
    refusal: FailedPrecondition


class Balances:
    """GetBalance and CheckAccess."""

    def __init__(
        self, *, ledger: Ledger, credits: Credits, gate: BudgetGate, terms: TermsFinder, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._credits = credits
        self._gate = gate
        self._terms = terms
        self._clock = clock

    async def get(
        self, request: metering_service_pb2.GetBalanceRequest
    ) -> metering_service_pb2.GetBalanceResponse:
        """The balance of a customer, as the ledger has it, and Redis what of the lease is allocated."""
        principal = current_principal()
        customer_id = ids.check_id(
            request.customer_id or principal.customer_id or "", ids.CUSTOMER, field="customer_id"
        )
        _check_visible(customer_id, principal)
        currency_code = check_currency(request.currency_code or DEFAULT_CURRENCY)
        balance = await self._ledger.get_balance(customer_id, currency_code)
        allocated = await self._credits.allocated(balance)
        return metering_service_pb2.GetBalanceResponse(balance=balance_to_proto(balance, allocated))

    async def check_access(
        self, request: metering_service_pb2.CheckAccessRequest
    ) -> metering_service_pb2.CheckAccessResponse:
        """Whether Authorize would succeed now, and up to what amount."""
        principal, now = current_principal(), self._clock.now()
        terms = await self._find_terms(request, principal)
        cost = _cost(request, terms.currency_code)
        gates = await self._gate.find(
            customer_id=request.customer_id,
            agent_id=request.agent_id,
            api_key_id=principal.api_key_id,
            currency_code=terms.currency_code,
            workflow_id=request.workflow_id,
            at=now,
        )
        # Budgets first, as with Authorize; the first that is too small says no.
        rooms, of_credits = await asyncio.gather(
            self._gate.rooms([gate.key for gate in gates]),
            self._credit_bound(request.customer_id, terms.currency_code, cost, principal),
        )
        bounds = [
            *(_budget_bound(gate, *room, cost, principal) for gate, room in zip(gates, rooms, strict=True)),
            of_credits,
        ]
        refusal = next((bound.refusal for bound in bounds if bound.up_to < cost), None)
        return metering_service_pb2.CheckAccessResponse(
            allowed=refusal is None,
            up_to=(
                money_to_proto(terms.currency_code, min(bound.up_to for bound in bounds))
                if may_see_balance(principal)
                else None
            ),
            refusal=None if refusal is None else to_item_error(refusal),
            price_version_id=terms.price_version_id,
        )

    async def _find_terms(
        self, request: metering_service_pb2.CheckAccessRequest, principal: Principal
    ) -> Terms:
        ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        ids.check_id(request.agent_id, ids.AGENT, field="agent_id")
        ids.check_workflow_id(request.action_type, field="action_type")
        if request.workflow_id:
            ids.check_workflow_id(request.workflow_id)
        work = Work(
            customer_id=request.customer_id,
            agent_id=request.agent_id,
            agent_version="",
            action_type=request.action_type,
            currency_code=request.cost.currency_code and check_currency(request.cost.currency_code),
            time=None,
            principal=principal,
        )
        (terms,) = await self._terms.find([work], self._clock.now())
        if not isinstance(terms, Terms):
            raise terms
        return terms

    async def _credit_bound(
        self, customer_id: str, currency_code: str, cost: int, principal: Principal
    ) -> _Bound:
        balance = await self._ledger.get_balance(customer_id, currency_code)
        if balance.frozen:
            return _Bound(0, customer_frozen(customer_id))
        unallocated = balance.held_credits.leased.amount_micros - await self._credits.allocated(balance)
        available = balance.available.amount_micros + unallocated
        return _Bound(
            available + credit_room(balance),
            insufficient_credits(
                customer_id,
                currency_code,
                cost,
                available if may_see_balance(principal) else None,
            ),
        )


def _budget_bound(gate: Gate, spent: int, reserved: int, cost: int, principal: Principal) -> _Bound:
    return _Bound(
        max(gate.budget.limit_micros - spent - reserved, 0),
        budget_exceeded(
            gate.budget, gate.period, spent, reserved, cost, may_see_amounts(gate.budget, principal)
        ),
    )


def credit_room(balance: account_pb2.CustomerBalance) -> int:
    """What the credit limit leaves, in micros."""
    owed = balance.receivable.amount_micros + balance.held_receivable.amount_micros
    return max(balance.credit_limit.amount_micros - owed, 0)


def balance_to_proto(balance: account_pb2.CustomerBalance, allocated: int) -> reservation_pb2.Balance:
    """The balance as customers see it, where so much of the current lease is allocated."""
    held = balance.held_credits
    unallocated = held.leased.amount_micros - allocated
    reserved = allocated + held.draining.amount_micros + held.runs.amount_micros

    def money(amount: int) -> money_pb2.Money:
        return money_to_proto(balance.available.currency_code, amount)

    return reservation_pb2.Balance(
        customer_id=balance.customer_id,
        credits=money(balance.available.amount_micros + balance.held.amount_micros),
        available=money(balance.available.amount_micros + unallocated),
        reserved=money(reserved),
        held=held.outcomes,
        receivable=balance.receivable,
        unpaid=balance.unpaid,
        credit_limit=balance.credit_limit,
        credit_room=money(credit_room(balance)),
        chargebacks=balance.chargebacks,
    )


def _check_visible(customer_id: str, principal: Principal) -> None:
    """An organization may not know what a customer has, since the customer spends with others too."""
    if (
        principal.organization_id is None
        and principal.customer_id in (None, customer_id)
        and principal.may_use_customer(customer_id)
    ):
        return
    raise NotFound(
        f"customer {customer_id} does not exist",
        reason="CUSTOMER_NOT_FOUND",
        metadata={"customer_id": customer_id},
    )


def _cost(request: metering_service_pb2.CheckAccessRequest, currency_code: str) -> int:
    if not request.HasField("cost"):
        return _SMALLEST
    if request.cost.currency_code not in ("", currency_code):
        raise InvalidArgument.of("cost.currency_code", f"must be {currency_code}")
    return check_amount(request.cost.amount_micros, field="cost.amount_micros")
