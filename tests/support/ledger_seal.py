"""A ledger that seals, and what tests ask it for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import grpc

from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.seal import checkpoints, proofs, wire
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import SignerKey
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
