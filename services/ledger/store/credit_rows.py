"""From rows of the credit functions to the domain: what several of them answer in the same columns."""

from typing import Any

from services.ledger.domain.accounts import CustomerBalance
from services.ledger.domain.credits import CreditLease


def balance(row: Any, customer_id: str, currency_code: str) -> CustomerBalance:
    """The balance in a row's columns balance_*."""
    return CustomerBalance(
        customer_id=customer_id,
        currency_code=currency_code,
        available=row.balance_available,
        held=row.balance_held,
        receivable=row.balance_receivable,
        unpaid=row.balance_unpaid,
        credit_limit=row.balance_credit_limit,
        held_receivable=row.balance_held_receivable,
        chargebacks=row.balance_chargebacks,
    )


def current_lease(row: Any, customer_id: str, currency_code: str) -> CreditLease | None:
    """The lease in a row's columns lease_*, which only ever are of a current one."""
    if row.lease_epoch is None:
        return None
    return CreditLease(
        customer_id=customer_id,
        currency_code=currency_code,
        epoch=row.lease_epoch,
        remaining=row.lease_remaining,
        version=row.lease_version,
        expire_time=row.lease_expire_time,
        recall=row.lease_recall,
        draining=False,
        create_time=row.lease_create_time,
    )
