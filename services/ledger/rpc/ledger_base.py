"""What the RPCs of the ledger share: the two pools, and what each movement of credits ends with."""

import hashlib
from typing import Any

import grpc
from google.protobuf.message import Message

from services.kit import ids
from services.kit.auth import Principal
from services.kit.db import Database, retry_transaction
from services.kit.errors import InvalidArgument
from services.kit.tenancy import Tenants, scope, tenants_of
from services.ledger.domain.accounts import PLATFORM_OWNER, CustomerBalance
from services.ledger.rpc import convert
from services.ledger.store import balances, movements, transactions
from tallystick.ledger.v1 import transaction_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class LedgerBase:
    """Holds the pools of the writer's database role and of the reader's."""

    def __init__(self, writer: Database, reader: Database) -> None:
        self._writer = writer
        self._reader = reader

    async def _collect_rest(
        self, customer_id: str, currency: str, actor: str, collected: movements.Collected
    ) -> int:
        """Collect what the transaction that added credits has left; answers how much was collected in all.

        Long debts are collected in several short transactions; the collecting worker finishes what a crash
        leaves.
        """
        total = collected.amount

        async def collect() -> movements.Collected:
            async with self._writer.hot() as connection:
                return await movements.collect(
                    connection, customer_id, currency, movements.COLLECT_LIMIT, actor
                )

        while collected.more:
            # Not counted twice if repeated: what was collected is no longer open.
            collected = await retry_transaction(collect, idempotent=True)
            total += collected.amount
        return total

    async def _customer_balance(self, tenants: Tenants, customer_id: str, currency: str) -> CustomerBalance:
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            return await balances.customer_balance(connection, customer_id, currency)

    async def _transaction(self, transaction_id: str, principal: Principal) -> transaction_pb2.Transaction:
        """A transaction as this caller may see it."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            transaction = await transactions.get_transaction(connection, transaction_id)
        return convert.transaction_to_proto(transaction, show_actor=principal.is_platform)


def content_hash(request: Message) -> bytes:
    """What must be equal for a request with the same idempotency key to be the same one."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def check_owner(owner_id: str, field: str) -> str:
    """`owner_id`, if it is one of an owner of accounts; raises InvalidArgument naming `field` otherwise."""
    if owner_id == PLATFORM_OWNER:
        return owner_id
    prefix = ids.CUSTOMER if owner_id.startswith(f"{ids.CUSTOMER}_") else ids.ORGANIZATION
    try:
        return ids.check_id(owner_id, prefix, field=field)
    except InvalidArgument:
        raise InvalidArgument.of(field, 'must be "cus_…", "org_…" or "platform"') from None
