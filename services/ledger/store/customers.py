"""Customers and their credit limits. The connection's tenants bound what is found."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import RowMapping, Select, func, select, text

from services.kit.money import Money
from services.ledger.domain.directory import Customer, Freeze, active_limits, not_found
from services.ledger.store.directory_rows import Connection, insert_or_find, read_page
from services.ledger.store.directory_tables import credit_limit, customer

_SET_CREDIT_LIMIT = text("SELECT ledger.set_credit_limit(:customer_id, :currency_code, :limit_micros)")
_FREEZE = text("SELECT ledger.freeze_customer(:customer_id, :frozen, :reason, :actor_api_key_id)")

# The limits come in the same statement, so that they are of the same moment.
_CUSTOMER: Select[Any] = select(
    customer.c.customer_id,
    customer.c.create_time,
    customer.c.freeze_reason,
    customer.c.freeze_time,
    select(func.jsonb_object_agg(credit_limit.c.currency_code, credit_limit.c.limit_micros))
    .where(credit_limit.c.customer_id == customer.c.customer_id)
    .scalar_subquery()
    .label("credit_limits"),
)


async def create_customer(connection: Connection, new: Customer, request_hash: bytes) -> Customer:
    """Create a customer with its credit limits, or find the one that the same request created."""
    existing = await insert_or_find(
        connection,
        customer,
        {"customer_id": new.customer_id, "request_hash": request_hash, "create_time": new.create_time},
    )
    if existing is not None:
        return await get_customer(connection, new.customer_id)
    for limit in new.credit_limits:
        await _set_credit_limit(connection, new.customer_id, limit)
    return new


async def set_credit_limit(connection: Connection, customer_id: str, limit: Money) -> Customer:
    """Set what a customer may owe in one currency, and answer the customer. Raises NotFound."""
    # Customers never go away: what is seen here still holds when the limit is set.
    await get_customer(connection, customer_id)
    await _set_credit_limit(connection, customer_id, limit)
    return await get_customer(connection, customer_id)


async def freeze(
    connection: Connection, customer_id: str, *, frozen: bool, reason: str, actor_api_key_id: str
) -> Customer:
    """Freeze a customer or let it run again, unless that is so already. Raises NotFound."""
    await get_customer(connection, customer_id)
    await connection.execute(
        _FREEZE,
        {
            "customer_id": customer_id,
            "frozen": frozen,
            "reason": reason,
            "actor_api_key_id": actor_api_key_id,
        },
    )
    return await get_customer(connection, customer_id)


async def _set_credit_limit(connection: Connection, customer_id: str, limit: Money) -> None:
    await connection.execute(
        _SET_CREDIT_LIMIT,
        {
            "customer_id": customer_id,
            "currency_code": limit.currency_code,
            "limit_micros": limit.amount_micros,
        },
    )


async def get_customer(connection: Connection, customer_id: str) -> Customer:
    """Raises NotFound."""
    found = await connection.execute(_CUSTOMER.where(customer.c.customer_id == customer_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise not_found("customer", customer_id)
    return _customer(row)


async def list_customers(
    connection: Connection, *, only: str | None, after: str, limit: int
) -> list[Customer]:
    """By id. `only` one customer where no other is visible, which spares reading the others."""
    query = _CUSTOMER if only is None else _CUSTOMER.where(customer.c.customer_id == only)
    return await read_page(connection, query, customer.c.customer_id, after, limit, _customer)


async def require_customers(connection: Connection, customer_ids: Sequence[str]) -> None:
    """Raises NotFound for the first of these customers that does not exist."""
    found = await connection.scalars(
        select(customer.c.customer_id).where(customer.c.customer_id.in_(customer_ids))
    )
    for missing in sorted(set(customer_ids).difference(found)):
        raise not_found("customer", missing)


def _customer(row: RowMapping) -> Customer:
    return Customer(
        customer_id=row["customer_id"],
        create_time=row["create_time"],
        credit_limits=active_limits(list((row["credit_limits"] or {}).items())),
        freeze=None if row["freeze_time"] is None else Freeze(row["freeze_reason"], row["freeze_time"]),
    )
