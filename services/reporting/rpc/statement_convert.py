"""Between the contract and the domain: statements."""

from typing import Final

from services.kit.times import timestamp
from services.reporting.domain.owner import Owner
from services.reporting.domain.statement import Movement, StatementAccount
from services.reporting.rpc.charge_convert import KINDS
from services.reporting.rpc.convert import money
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.reporting.v1 import charge_report_pb2, statement_pb2

_KIND_PREFIX: Final = "ACCOUNT_KIND_"
_TYPE_PREFIX: Final = "TRANSACTION_TYPE_"


def account_to_proto(
    account: StatementAccount, owner: Owner, currency: str
) -> statement_pb2.StatementAccount:
    return statement_pb2.StatementAccount(
        account=_ref(owner, account.kind, currency),
        opening=money(currency, account.opening),
        closing=money(currency, account.closing),
        totals=[
            statement_pb2.StatementTotal(
                type=_type(total.type),
                amount=money(currency, total.amount),
                movement_count=total.movement_count,
            )
            for total in account.totals
        ],
    )


def movement_to_proto(
    movement: Movement, balance: int, owner: Owner, currency: str
) -> statement_pb2.Movement:
    """A movement, with the balance of its account after it."""
    service = movement.service
    return statement_pb2.Movement(
        position=movement.position,
        transaction_id=movement.transaction_id,
        entry_number=movement.entry_number,
        type=_type(movement.type),
        account=_ref(owner, movement.kind, currency),
        amount=money(currency, movement.amount),
        balance=money(currency, balance),
        create_time=timestamp(movement.create_time),
        occur_time=timestamp(movement.occur_time),
        charge_id=movement.charge_id,
        correction_id=movement.correction_id,
        payout_id=movement.payout_id,
        reason=movement.reason,
        charge_kind=_kind(movement),
        service_start_time=None if service is None else timestamp(service.start),
        service_end_time=None if service is None else timestamp(service.end),
    )


def _ref(owner: Owner, kind: str, currency: str) -> account_pb2.AccountRef:
    return account_pb2.AccountRef(
        owner_id=owner.id,
        kind=account_pb2.AccountKind.Value(_KIND_PREFIX + kind.upper()),
        currency_code=currency,
    )


def _kind(movement: Movement) -> charge_report_pb2.ChargeKind.ValueType:
    if movement.charge_kind is None:
        return charge_report_pb2.CHARGE_KIND_UNSPECIFIED
    return KINDS[movement.charge_kind]


def _type(name: str) -> transaction_pb2.TransactionType.ValueType:
    return transaction_pb2.TransactionType.Value(_TYPE_PREFIX + name.upper())
