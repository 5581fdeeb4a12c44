"""What tests do with credit lots: grants on terms, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.ledger.v1 import account_pb2, credit_pb2
from tallystick.ledger.v1 import credit_service_pb2 as credit
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import usd
from tests.support.ledger_server import Caller

PURCHASE = pb.CREDIT_SOURCE_PURCHASE
PLATFORM = pb.CREDIT_SOURCE_PLATFORM_PROMOTION
ORGANIZATION = pb.CREDIT_SOURCE_ORGANIZATION_PROMOTION
# As only somebody with the whole machine can: the time of these lots was over a second ago.
OVER = """
WITH ended AS (
    UPDATE ledger.credit_grant SET expire_time = now() - interval '1 second'
    WHERE expire_time IS NOT NULL AND (%(lot_ids)s::text[] IS NULL OR transaction_id = ANY (%(lot_ids)s))
    RETURNING *
)
UPDATE ledger.credit_lot l SET expire_time = e.expire_time, check_time = e.expire_time
FROM ended e WHERE e.customer_id = l.customer_id AND e.transaction_id = l.lot_id
"""


class Lot(NamedTuple):
    """A lot, in short."""

    amount: int
    remaining: int
    expired: int
    state: str


@dataclass
class Lots(Corrections):
    """Grants to cus_a, and what its lots have left."""

    async def give(
        self,
        amount: int,
        key: str,
        *,
        funder: str = "",
        source: pb.CreditSource.ValueType | None = None,
        expires: timedelta | None = None,
        priority: int | None = None,
        customer: str = "cus_a",
    ) -> str:
        """The lot: bought, unless somebody funds it ('platform' or an organization)."""
        if source is None:
            source = PURCHASE if not funder else PLATFORM if funder == "platform" else ORGANIZATION
        request = pb.GrantCreditsRequest(
            customer_id=customer,
            amount=usd(amount),
            source=source,
            idempotency_key=key,
            funder_organization_id="" if funder == "platform" else funder,
            priority=priority,
            expire_time=None if expires is None else _after(expires),
        )
        return (await self.server.operator.ledger.GrantCredits(request)).transaction_id

    async def listed_lots(
        self, customer: str = "cus_a", caller: Caller | None = None
    ) -> dict[str, credit_pb2.CreditLot]:
        answer = await (caller or self.server.operator).credits.ListCreditLots(
            credit.ListCreditLotsRequest(customer_id=customer, page_size=1000)
        )
        return {lot.lot_id: lot for lot in answer.lots}

    async def lot(self, lot_id: str, customer: str = "cus_a") -> Lot:
        found = (await self.listed_lots(customer))[lot_id]
        return Lot(
            found.amount.amount_micros,
            found.remaining.amount_micros,
            found.expired.amount_micros,
            credit_pb2.CreditLotState.Name(found.state).removeprefix("CREDIT_LOT_STATE_").lower(),
        )

    async def left(self, *lot_ids: str, customer: str = "cus_a") -> list[int]:
        """What these lots have left."""
        lots = await self.listed_lots(customer)
        return [lots[lot_id].remaining.amount_micros for lot_id in lot_ids]

    async def end_time(self, *lot_ids: str, customer: str = "cus_a") -> None:
        """Of these lots, or of all whose time ends at all."""
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as superuser:
            await superuser.execute("SELECT ledger.refresh_lots(%s, 100000)", [customer])
            await superuser.execute("SET LOCAL session_replication_role = replica")
            await superuser.execute(OVER.encode(), {"lot_ids": list(lot_ids) or None})

    async def expire(self, customer: str = "cus_a") -> int:
        """Expire all whose time is over; how much."""
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as owner:
            await owner.execute("SELECT ledger.refresh_lots(%s, 100000)", [customer])
            await owner.commit()
            rows = await owner.execute("SELECT credits FROM ledger.expire_lots(1000)")
            return sum([row[0] async for row in rows])

    async def settle(self, customer: str = "cus_a") -> None:
        """Allocate all that was posted, and settle what organizations have to pay."""
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as owner:
            await owner.execute("SELECT ledger.refresh_lots(%s, 100000)", [customer])
            await owner.commit()
            await owner.execute("SELECT ledger.settle_promotions(1000)")

    async def balances_of(self, owner_id: str) -> dict[str, int]:
        """The balances of an owner's accounts, deltas and all, that are not zero."""
        answer = await self.server.operator.ledger.ListAccounts(
            pb.ListAccountsRequest(owner_id=owner_id, page_size=100)
        )
        return {
            account_pb2.AccountKind.Name(account.account.kind)
            .removeprefix("ACCOUNT_KIND_")
            .lower(): account.balance.amount_micros
            for account in answer.accounts
            if account.balance.amount_micros
        }


def _after(duration: timedelta) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + duration)
    return moment
