"""What tests do with charges that are corrected or written off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from tallystick.ledger.v1 import account_pb2, charge_pb2, correction_pb2, write_off_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import funding_service_pb2 as funding
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_server import Caller, LedgerServer
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

# As only somebody with the whole machine can: everything that has been posted was posted a day earlier.
# Locked first, in the order in which movements take them: totals that are folded while the dates change would
# go to buckets of the day that was.
YESTERDAY = """
LOCK TABLE ledger.charge, ledger.transaction, ledger.entry, ledger.balance_delta, ledger.earnings_bucket
    IN EXCLUSIVE MODE;
SET session_replication_role = replica;
UPDATE ledger.charge SET create_time = create_time - interval '1 day';
UPDATE ledger.transaction SET create_time = create_time - interval '1 day';
UPDATE ledger.entry SET available_on = available_on - 1 WHERE available_on IS NOT NULL;
UPDATE ledger.earnings_bucket SET available_on = available_on - 1;
UPDATE ledger.balance_delta SET available_on = available_on - 1 WHERE available_on IS NOT NULL;
"""


@dataclass
class Corrections:
    """What a test does with charges of cus_a. org_x pays 15 % and 2.9 %, org_y 10 % and nothing."""

    server: LedgerServer
    charge_id: str = ""
    payer: str = "cus_a"
    payee: str = "org_x"

    async def grant(
        self,
        amount: int,
        key: str = "first",
        customer: str = "",
        source: pb.CreditSource.ValueType = pb.CREDIT_SOURCE_PURCHASE,
    ) -> None:
        await self.server.operator.ledger.GrantCredits(
            pb.GrantCreditsRequest(
                customer_id=customer or self.payer,
                amount=usd(amount),
                source=source,
                idempotency_key=key,
            )
        )

    async def limit(self, amount: int) -> None:
        await self.server.operator.directory.SetCreditLimit(
            directory.SetCreditLimitRequest(customer_id=self.payer, credit_limit=usd(amount))
        )

    async def charge(
        self,
        gross: int,
        workflow: str = "run-1",
        customer: str = "",
        *organizations: str,
        now: bool = False,
    ) -> str:
        """The id of the charge, which is the one that is corrected from now on."""
        message = intent(workflow, gross, customer=customer or self.payer, organization=self.payee)
        if now:
            message.occur_time.GetCurrentTime()
        for organization in organizations:
            message.payees.add(
                organization_id=organization, agent_id=organization.replace("org_", "agt_"), weight=1
            )
        answer = await self.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=message))
        self.charge_id = answer.posted.charge.charge_id
        return self.charge_id

    async def correct(
        self, correction_id: str, amount: int, *, charge_id: str = "", reason: str = "a wrong answer"
    ) -> pb.CorrectChargeResponse:
        return await self.server.operator.ledger.CorrectCharge(
            pb.CorrectChargeRequest(
                charge_id=charge_id or self.charge_id,
                correction_id=correction_id,
                amount=usd(amount),
                reason=reason,
            )
        )

    async def write_off(
        self,
        kind: write_off_pb2.WriteOffKind.ValueType,
        amount: int | None = None,
        key: str = "given up",
        *,
        owner: str = "",
        charge_id: str = "",
    ) -> funding.WriteOffResponse:
        """Of the charge, unless an owner is named; all that is owed unless an amount is."""
        return await self.server.operator.funding.WriteOff(
            funding.WriteOffRequest(
                kind=kind,
                charge_id="" if owner else charge_id or self.charge_id,
                owner_id=owner,
                amount=None if amount is None else usd(amount),
                reason="will not be paid any more",
                idempotency_key=key,
            )
        )

    async def get(self, caller: Caller | None = None, charge_id: str = "") -> charge_pb2.Charge:
        ledger = (caller or self.server.operator).ledger
        return (await ledger.GetCharge(pb.GetChargeRequest(charge_id=charge_id or self.charge_id))).charge

    async def listed(self, caller: Caller | None = None) -> list[correction_pb2.Correction]:
        ledger = (caller or self.server.operator).ledger
        return list(
            (await ledger.ListCorrections(pb.ListCorrectionsRequest(charge_id=self.charge_id))).corrections
        )

    async def customer(self, customer_id: str = "") -> tuple[int, int, int]:
        """(available, receivable, unpaid)."""
        answer = await self.server.operator.ledger.GetCustomerBalance(
            pb.GetCustomerBalanceRequest(customer_id=customer_id or self.payer)
        )
        balance = answer.balance
        return (
            balance.available.amount_micros,
            balance.receivable.amount_micros,
            balance.unpaid.amount_micros,
        )

    async def earned(self, organization_id: str = "") -> account_pb2.EarningsBalance:
        answer = await self.server.operator.ledger.GetEarningsBalance(
            pb.GetEarningsBalanceRequest(organization_id=organization_id or self.payee)
        )
        return answer.balance

    async def legs(self, organization_id: str = "") -> tuple[int, int, int]:
        """What an organization has earned, and both fees on it, folded or not."""
        balance = await self.earned(organization_id)
        return (
            balance.available.amount_micros + balance.pending.amount_micros,
            balance.platform_fees.amount_micros,
            balance.processing_fees.amount_micros,
        )

    async def entries(self, transaction_id: str) -> list[tuple[str, str, int]]:
        answer = await self.server.operator.ledger.GetTransaction(
            pb.GetTransactionRequest(transaction_id=transaction_id)
        )
        return [
            (
                entry.account.owner_id,
                account_pb2.AccountKind.Name(entry.account.kind).removeprefix("ACCOUNT_KIND_").lower(),
                entry.amount.amount_micros,
            )
            for entry in answer.transaction.entries
        ]

    async def debit(self, payout_id: str, amount: int, organization_id: str = "") -> Any:
        return await self.server.service.earnings.DebitPayout(
            earnings.DebitPayoutRequest(
                organization_id=organization_id or self.payee, payout_id=payout_id, amount=usd(amount)
            )
        )

    async def refused_debit(self, payout_id: str, amount: int) -> None:
        """Asks for more than is available."""
        assert (await refusal(self.debit(payout_id, amount))).reason == "INSUFFICIENT_EARNINGS"

    async def available(self) -> int:
        """What the payee may be paid, once it is folded."""
        async with await psycopg.AsyncConnection.connect(
            self.server.database_url, autocommit=True
        ) as superuser:

            async def folded() -> bool:
                waiting = await superuser.execute(
                    "SELECT FROM ledger.balance_delta WHERE owner_id = %s", (self.payee,)
                )
                return await waiting.fetchone() is None

            await eventually(folded)
        return (await self.earned()).available.amount_micros

    async def let_a_day_pass(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as superuser:
            await superuser.execute(YESTERDAY.encode())
