"""Between the contract and the domain."""

from collections.abc import Mapping

from services.kit.errors import InvalidArgument
from services.kit.messages import set_money
from services.kit.times import set_timestamp, time_from_proto, timestamp
from services.ledger.domain.accounts import (
    Account,
    AccountKind,
    AccountRef,
    EarningsBalance,
    Entry,
    PostedEntry,
    Transaction,
    TransactionType,
)
from services.ledger.domain.charges import (
    MAX_PAYEES,
    Charge,
    ChargeComponent,
    ChargeIntent,
    Earning,
    Payee,
    PostedCharge,
)
from services.ledger.rpc import credits_convert
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2, ledger_service_pb2, transaction_pb2

KIND_TO_PROTO = {kind: account_pb2.AccountKind.Value(f"ACCOUNT_KIND_{kind.name}") for kind in AccountKind}
_KIND_FROM_PROTO: Mapping[int, AccountKind] = {number: kind for kind, number in KIND_TO_PROTO.items()}
TYPE_TO_PROTO = {
    type: transaction_pb2.TransactionType.Value(f"TRANSACTION_TYPE_{type.name}") for type in TransactionType
}
_TYPE_FROM_PROTO: Mapping[int, TransactionType] = {number: type for type, number in TYPE_TO_PROTO.items()}


COMPONENT_TO_PROTO = {
    component: charge_pb2.ChargeComponent.Value(f"CHARGE_COMPONENT_{component.name}")
    for component in ChargeComponent
}
_COMPONENT_FROM_PROTO: Mapping[int, ChargeComponent] = {
    number: component for component, number in COMPONENT_TO_PROTO.items()
}


def kind_from_proto(number: int, field: str) -> AccountKind:
    """Raises InvalidArgument naming the field for a number that is no account kind."""
    if number not in _KIND_FROM_PROTO:
        raise InvalidArgument.of(field, "must be a known account kind")
    return _KIND_FROM_PROTO[number]


def type_from_proto(number: int, field: str) -> TransactionType:
    """Raises InvalidArgument naming the field for a number that is no transaction type."""
    if number not in _TYPE_FROM_PROTO:
        raise InvalidArgument.of(field, "must be a known transaction type")
    return _TYPE_FROM_PROTO[number]


def type_to_proto(type: TransactionType) -> transaction_pb2.TransactionType.ValueType:
    """A type as it travels."""
    return TYPE_TO_PROTO[type]


def intent_from_proto(message: charge_pb2.ChargeIntent) -> ChargeIntent:
    """An intent as it was sent; domain.charges.check judges what needs no contract to be judged."""
    component = _COMPONENT_FROM_PROTO.get(message.component)
    if component is None:
        raise InvalidArgument.of("component", "must be a known component")
    if len(message.payees) > MAX_PAYEES:
        # Before they are taken apart: there may be a hundred thousand.
        raise InvalidArgument.of("payees", f"must be one to {MAX_PAYEES}")
    if not message.HasField("gross"):
        raise InvalidArgument.of("gross", "is required")
    gross = message.gross
    return ChargeIntent(
        customer_id=message.customer_id,
        workflow_id=message.workflow_id,
        component=component,
        ordinal=message.ordinal,
        currency_code=gross.currency_code,
        gross=gross.amount_micros,
        payees=tuple(
            [Payee(payee.organization_id, payee.agent_id, payee.weight) for payee in message.payees]
        ),
        occur_time=time_from_proto(message, "occur_time"),
        price_version_id=message.price_version_id,
        evidence_hash=message.evidence_hash,
        reservation=credits_convert.claim_from_proto(message.reservation)
        if message.HasField("reservation")
        else None,
        outcome_hold=credits_convert.outcome_hold_from_proto(message.outcome_hold)
        if message.HasField("outcome_hold")
        else None,
    )


def charge_to_proto(charge: Charge) -> charge_pb2.Charge:
    message = charge_pb2.Charge()
    fill_charge(message, charge)
    return message


def fill_charge(message: charge_pb2.Charge, charge: Charge) -> None:
    """Say a charge in a new message: see services.kit.messages."""
    currency = charge.currency_code
    message.charge_id = charge.charge_id
    message.customer_id = charge.customer_id
    message.workflow_id = charge.workflow_id
    message.component = COMPONENT_TO_PROTO[charge.component]
    message.ordinal = charge.ordinal
    set_money(message.gross, currency, charge.gross)
    for earning in charge.earnings:
        _fill_earning(message.earnings.add(), currency, earning)
    if charge.payment is not None:
        payment = message.payment
        set_money(payment.from_credits, currency, charge.payment.from_credits)
        set_money(payment.from_receivable, currency, charge.payment.receivable)
        set_money(payment.unpaid, currency, charge.payment.unpaid)
    set_timestamp(message.occur_time, charge.occur_time)
    set_timestamp(message.create_time, charge.create_time)
    message.price_version_id = charge.price_version_id
    message.evidence_hash = charge.evidence_hash
    message.transaction_id = charge.transaction_id
    if charge.reservation_id:
        message.reservation_id = charge.reservation_id
        set_money(message.captured, currency, charge.captured)
    set_money(message.corrected, currency, charge.corrected)
    if charge.payment is not None:
        set_money(message.written_off, currency, charge.written_off)


def _fill_earning(message: charge_pb2.Earning, currency: str, earning: Earning) -> None:
    message.organization_id = earning.organization_id
    message.agent_id = earning.agent_id
    set_money(message.gross, currency, earning.gross)
    set_money(message.platform_fee, currency, earning.platform_fee)
    set_money(message.processing_fee, currency, earning.processing_fee)
    set_money(message.net, currency, earning.net)
    message.platform_fee_bps = earning.platform_fee_bps
    message.processing_fee_bps = earning.processing_fee_bps
    set_money(message.corrected, currency, earning.corrected)
    set_money(message.corrected_net, currency, earning.corrected_net)


def fill_posted(message: ledger_service_pb2.PostedCharge, posted: PostedCharge) -> None:
    """Say what became of an intent in a new message."""
    fill_charge(message.charge, posted.charge)
    credits_convert.fill_customer_balance(message.balance, posted.balance)
    message.duplicate = posted.duplicate
    message.evidence_differs = posted.evidence_differs
    if posted.reservation is not None:
        message.reservation.CopyFrom(credits_convert.ended_to_proto(posted.reservation))
    if posted.outcome_hold is not None:
        message.outcome_hold.CopyFrom(credits_convert.hold_to_proto(posted.outcome_hold))


def earnings_balance_to_proto(balance: EarningsBalance) -> account_pb2.EarningsBalance:
    def money(amount: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=balance.currency_code, amount_micros=amount)

    return account_pb2.EarningsBalance(
        organization_id=balance.organization_id,
        available=money(balance.available),
        pending=money(balance.pending),
        uncollected=money(balance.uncollected),
        platform_fees=money(balance.platform_fees),
        processing_fees=money(balance.processing_fees),
        clawed_back=money(balance.clawed_back),
    )


def account_ref_to_proto(ref: AccountRef) -> account_pb2.AccountRef:
    return account_pb2.AccountRef(
        owner_id=ref.owner_id, kind=KIND_TO_PROTO[ref.kind], currency_code=ref.currency_code
    )


def account_to_proto(account: Account) -> ledger_service_pb2.Account:
    def money(amount: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code=account.ref.currency_code, amount_micros=amount)

    return ledger_service_pb2.Account(
        account=account_ref_to_proto(account.ref),
        credits=money(account.credits),
        debits=money(account.debits),
        balance=money(account.credits - account.debits),
    )


def entry_to_proto(entry: Entry) -> transaction_pb2.Entry:
    return transaction_pb2.Entry(
        entry_number=entry.entry_number,
        account=account_ref_to_proto(entry.account),
        amount=money_pb2.Money(currency_code=entry.account.currency_code, amount_micros=entry.amount),
        bucket=None
        if entry.bucket is None
        else transaction_pb2.EarningsBucket(
            collected=entry.bucket.collected,
            earned_on=entry.bucket.earned_on.isoformat(),
            available_on=entry.bucket.available_on.isoformat(),
        ),
        account_version=entry.account_version or 0,
    )


def transaction_to_proto(transaction: Transaction, *, show_actor: bool) -> transaction_pb2.Transaction:
    """`show_actor`: whether the reader may know which API key asked for it (the platform's readers may)."""
    return transaction_pb2.Transaction(
        transaction_id=transaction.transaction_id,
        type=TYPE_TO_PROTO[transaction.type],
        charge_id=transaction.charge_id,
        payout_id=transaction.payout_id,
        external_id=transaction.external_id,
        correction_id=transaction.correction_id,
        partition_id=transaction.partition_id,
        entries=[entry_to_proto(entry) for entry in transaction.entries],
        occur_time=timestamp(transaction.occur_time),
        create_time=timestamp(transaction.create_time),
        reason=transaction.reason,
        actor_api_key_id=transaction.actor_api_key_id if show_actor else "",
    )


def posted_entry_to_proto(posted: PostedEntry) -> ledger_service_pb2.PostedEntry:
    return ledger_service_pb2.PostedEntry(
        transaction_id=posted.transaction_id,
        type=TYPE_TO_PROTO[posted.type],
        charge_id=posted.charge_id,
        payout_id=posted.payout_id,
        correction_id=posted.correction_id,
        create_time=timestamp(posted.create_time),
        entry=entry_to_proto(posted.entry),
    )
