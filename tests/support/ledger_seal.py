"""A ledger that seals, and what tests ask it for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import Any, Final

import grpc
import psycopg

from services.kit.db import Database
from services.ledger.sealer import Sealer
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.seal import canonical, checkpoints, merkle, proofs, wire
from tallystick.seal.canonical import SealedEntry, SealedHeader
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import SignerKey
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_server import Caller, LedgerServer, running_ledger
from tests.support.waiting import eventually

KEY: Final = SignerKey.generate("ledger.test")
OTHER_KEY: Final = SignerKey.generate("ledger.test")


@asynccontextmanager
async def sealing_ledger(database_url: str, **settings: Any) -> AsyncIterator[LedgerServer]:
    """A ledger with a key, which seals every few milliseconds."""
    settings = {"seal_key": KEY.secret, "seal_interval": timedelta(milliseconds=20), **settings}
    async with running_ledger(database_url, **settings) as server:
        yield server


async def seal_once(database_url: str) -> None:
    """Seal everything that has a position, and nothing more."""
    writer = Database(database_url, role="ledger_writer", schema="ledger")
    reader = Database(database_url, role="ledger_reader", schema="ledger")
    await writer.open()
    await reader.open()
    try:
        sealer = Sealer(writer, reader, [KEY], None)
        while await sealer.step():
            pass
    finally:
        await writer.close()
        await reader.close()


async def checkpoint_of(server: LedgerServer, log_id: str = "", min_size: int = 0) -> Checkpoint:
    """A checkpoint, whose signature is right."""
    answer = await server.operator.proofs.GetCheckpoint(
        pb.GetCheckpointRequest(log_id=log_id, min_size=min_size)
    )
    return checkpoints.opened(answer.checkpoint, [KEY.verifier])


async def sealed(server: LedgerServer, size: int, log_id: str = "") -> Checkpoint:
    """The newest checkpoint, once it covers so many transactions."""
    found: list[Checkpoint] = []

    async def covered() -> bool:
        try:
            found[:] = [await checkpoint_of(server, log_id)]
        except grpc.aio.AioRpcError as error:
            if "no checkpoint" not in str(error.details()):
                raise
            return False
        return found[0].size >= size

    await eventually(covered)
    return found[0]


async def proof_of(caller: Caller, transaction_id: str, **request: Any) -> dict[str, Any]:
    """The proof of a transaction as it is written down, once there is one."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        try:
            answer = await caller.proofs.GetTransactionProof(
                pb.GetTransactionProofRequest(transaction_id=transaction_id, **request)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION):
                raise
            return False
        found[:] = [wire.written(answer.proof)]
        return True

    await eventually(there)
    return found[0]


def verified(proof: dict[str, Any], earlier: str | None = None) -> proofs.Verified:
    """What the proof proves under the ledger's key."""
    return proofs.verify(proof, [KEY.verifier], earlier=earlier)


async def journal(server: LedgerServer, size: int) -> list[ledger.SequencedTransaction]:
    """Everything the feed has, once that is so many transactions."""
    found: list[ledger.SequencedTransaction] = []

    async def complete() -> bool:
        feed = server.operator.ledger.ReadJournal(ledger.ReadJournalRequest(include_charges=True))
        found[:] = [one async for batch in feed for one in batch.transactions]
        return len(found) >= size

    await eventually(complete)
    return found


async def post_everything(server: LedgerServer) -> list[str]:
    """At least one transaction of each type, between org_x, org_y and cus_a; the ids of all."""
    books, funding, payouts = Corrections(server), Funding(server), server.service.earnings
    await books.grant(10_000)
    await server.operator.ledger.GrantCredits(
        ledger.GrantCreditsRequest(
            customer_id="cus_a",
            amount=usd(50),
            source=ledger.CREDIT_SOURCE_PLATFORM_PROMOTION,
            reason="ein Geschenk, schön",
            idempotency_key="gift",
        )
    )
    evident = intent("run-1", 9_000)
    evident.evidence_hash = b"e" * 32
    evident.payees.add(organization_id="org_y", agent_id="agt_y", weight=2)
    (posted,) = await funding.post(evident)
    # Nobody can pay all of this one until the next purchase collects it.
    await books.charge(2_000, "run-2")
    await books.grant(3_000, "second")
    await books.correct("rf_1", 700, charge_id=posted.charge.charge_id)
    await funding.reverse("re_1", 100)
    await funding.reverse("re_2", 200, CHARGEBACK)
    await funding.reinstate("re_2", "adj_1")
    await funding.fee("fee_1", 30)
    await books.available()
    for payout_id in ("po_1", "po_2"):
        await books.debit(payout_id, 100)
    await payouts.CompletePayout(earnings.CompletePayoutRequest(organization_id="org_x", payout_id="po_1"))
    await payouts.ReversePayout(
        earnings.ReversePayoutRequest(
            organization_id="org_x", payout_id="po_1", reversal_id="trr_1", amount=usd(40)
        )
    )
    await payouts.ReturnPayout(
        earnings.ReturnPayoutRequest(organization_id="org_x", payout_id="po_2", reason="transfer failed")
    )
    await server.operator.ledger.AdjustBalances(
        ledger.AdjustBalancesRequest(
            postings=[
                ledger.Posting(
                    account=account_pb2.AccountRef(owner_id=owner, kind=kind, currency_code="USD"),
                    amount=usd(amount),
                )
                for owner, kind, amount in (
                    ("cus_a", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, 5),
                    ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -5),
                )
            ],
            reason="made up for an outage",
            idempotency_key="adjust-1",
        )
    )
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        found = await superuser.execute("SELECT transaction_id FROM ledger.transaction ORDER BY 1")
        return [transaction_id for (transaction_id,) in await found.fetchall()]


@dataclass(frozen=True)
class StoredLeaf:
    """A leaf, and the salts of its transaction: of the actor, the reason, the evidence, and the entries."""

    hash: bytes
    salts: list[bytes]


async def stored_leaves(database_url: str, log_id: str) -> list[StoredLeaf]:
    """The leaves of a log as they are in the database."""
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        found = await superuser.execute(
            "SELECT leaf_hashes, salts"
            " FROM ledger.seal_block JOIN ledger.seal_salt USING (log_id, first_position)"
            " WHERE log_id = %s ORDER BY first_position",
            [log_id],
        )
        return [
            StoredLeaf(
                hashes[32 * number :][:32], [one[start : start + 16] for start in range(0, len(one), 16)]
            )
            for hashes, salts in await found.fetchall()
            for number, one in enumerate(salts)
        ]


def recomputed(log_id: str, sequenced: ledger.SequencedTransaction, salts: list[bytes]) -> bytes:
    """The leaf of a transaction, from what the feed says of it and the salts, with nothing of the SQL."""
    transaction = sequenced.transaction
    evidence = sequenced.charge.evidence_hash if sequenced.HasField("charge") else b""
    header = SealedHeader(
        log_id=log_id,
        position=sequenced.position,
        transaction_id=transaction.transaction_id,
        partition_id=transaction.partition_id,
        type=transaction_pb2.TransactionType.Name(transaction.type).removeprefix("TRANSACTION_TYPE_").lower(),
        charge_id=transaction.charge_id,
        payout_id=transaction.payout_id,
        external_id=transaction.external_id,
        correction_id=transaction.correction_id,
        occur_time=transaction.occur_time.ToDatetime(UTC),
        create_time=transaction.create_time.ToDatetime(UTC),
        entry_count=len(transaction.entries),
    )
    actor, reason, proof, *of_entries = salts
    return merkle.hash_leaf(
        canonical.leaf(
            header,
            [
                canonical.entry_commitment(salt, _entry(entry))
                for salt, entry in zip(of_entries, transaction.entries, strict=True)
            ],
            canonical.detail_commitment(actor, "actor", transaction.actor_api_key_id.encode()),
            canonical.detail_commitment(reason, "reason", transaction.reason.encode())
            if transaction.reason
            else None,
            canonical.detail_commitment(proof, "evidence", evidence) if evidence else None,
        )
    )


def _entry(entry: transaction_pb2.Entry) -> SealedEntry:
    bucket = entry.bucket if entry.HasField("bucket") else None
    return SealedEntry(
        number=entry.entry_number,
        owner_id=entry.account.owner_id,
        kind=account_pb2.AccountKind.Name(entry.account.kind).removeprefix("ACCOUNT_KIND_").lower(),
        currency_code=entry.amount.currency_code,
        amount_micros=entry.amount.amount_micros,
        collected=bucket.collected if bucket else None,
        earned_on=date.fromisoformat(bucket.earned_on) if bucket else None,
        available_on=date.fromisoformat(bucket.available_on) if bucket else None,
        account_version=entry.account_version,
    )
