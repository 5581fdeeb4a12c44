"""The RPCs of LedgerProofService: checkpoints, and proofs that are checked against them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc

from services.kit import ids, log
from services.kit.auth import current_principal
from services.kit.db import Database
from services.kit.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from services.kit.tenancy import PLATFORM, scope, scope_hot, tenants_of
from services.kit.times import timestamp
from services.ledger.domain.accounts import AccountKind, AccountRef, EarningsBucket, Entry, TransactionType
from services.ledger.domain.seal_tree import hash_of_range, perfect_nodes, stored_nodes
from services.ledger.rpc import convert
from services.ledger.store import seal, transactions
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.ledger.v1.proof_service_pb2_grpc import LedgerProofServiceServicer
from tallystick.seal import merkle
from tallystick.seal.canonical import SALT_SIZE, SealedHeader, leaf

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_LOG_ID = 64
_MAX_SIZE = 2**62
_ERASED = bytes(SALT_SIZE)
# As long as the seal is behind at most.
_SEALED_SOON = timedelta(seconds=0.5)
_log = log.get_logger()


class LedgerProofService(LedgerProofServiceServicer):
    """Answers from what the sealer stored. It signs nothing itself."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        min_size = _size(request.min_size, "min_size")
        async with self._reader.hot() as connection:
            # A checkpoint says nothing of anybody.
            await scope_hot(connection, PLATFORM)
            found = await _checkpoint(connection, await _log_of(connection, request.log_id), min_size)
        return pb.GetCheckpointResponse(checkpoint=found.note)

    async def GetConsistencyProof(
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.GetConsistencyProofResponse:
        from_size = _size(request.from_size, "from_size", least=1)
        to_size = _size(request.to_size, "to_size")
        if to_size and to_size < from_size:
            raise InvalidArgument.of("to_size", "must not be below from_size")
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            of = await _log_of(connection, request.log_id)
            newest = await _checkpoint(connection, of)
            to_size = to_size or newest.size
            _check_covered(of, newest, max(from_size, to_size))
            (path,) = await _paths(connection, of, merkle.consistency_ranges(from_size, to_size))
            found = await seal.checkpoint(connection, of.log_id, to_size)
        return pb.GetConsistencyProofResponse(
            proof=pb.ConsistencyProof(log_id=of.log_id, from_size=from_size, to_size=to_size, path=path),
            checkpoint=found.note if found is not None and found.size == to_size else "",
        )

    async def GetTransactionProof(
        self, request: pb.GetTransactionProofRequest, context: Context
    ) -> pb.GetTransactionProofResponse:
        transaction_id = ids.check_id(request.transaction_id, ids.TRANSACTION, field="transaction_id")
        since = _size(request.since_size, "since_size")
        principal = current_principal()
        async with self._reader.begin() as plain:
            await scope(plain, tenants_of(principal))
            # What the caller sees nothing of is not there, sealed or not.
            await transactions.get_transaction(plain, transaction_id)
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            of = await _log_of(connection, request.log_id)
            newest = await _checkpoint(connection, of)
            if since:
                _check_covered(of, newest, since)
            # From here on only what the caller may see, but for hashes of subtrees, which show nothing.
            await scope_hot(connection, tenants_of(principal))
            sealed = await seal.sealed_transaction(connection, of.log_id, transaction_id)
            await scope_hot(connection, PLATFORM)
            if sealed is None or sealed[0].position > newest.size:
                raise Unavailable(
                    f"transaction {transaction_id} is not sealed yet",
                    reason="TRANSACTION_NOT_SEALED",
                    metadata={"transaction_id": transaction_id},
                    retry_after=_SEALED_SOON,
                )
            row, entries = sealed
            inclusion, consistency = await _paths(
                connection,
                of,
                merkle.inclusion_ranges(row.position - 1, newest.size),
                merkle.consistency_ranges(since, newest.size) if since else [],
            )
        proof = _proof(of.log_id, transaction_id, row, entries)
        proof.inclusion_path.extend(inclusion)
        proof.checkpoint = newest.note
        if since:
            proof.consistency.CopyFrom(
                pb.ConsistencyProof(log_id=of.log_id, from_size=since, to_size=newest.size, path=consistency)
            )
        return pb.GetTransactionProofResponse(proof=proof)


async def _log_of(connection: seal.Connection, log_id: str) -> seal.Log:
    """The log that is asked for: the newest one if none is named."""
    if not log_id:
        return await seal.newest_log(connection)
    if len(log_id) > _MAX_LOG_ID or not log_id.isascii() or not log_id.isprintable():
        raise InvalidArgument.of("log_id", 'must be "log_…"')
    found = await seal.find_log(connection, log_id)
    if found is None:
        raise NotFound(f"log {log_id} does not exist", reason="LOG_NOT_FOUND", metadata={"log_id": log_id})
    return found


async def _checkpoint(connection: seal.Connection, of: seal.Log, min_size: int = 0) -> seal.StoredCheckpoint:
    found = await seal.checkpoint(connection, of.log_id, min_size)
    if found is not None:
        return found
    if not of.sealed_size:
        raise FailedPrecondition(
            f"log {of.log_id} has no checkpoint: nothing was posted to it, or none is signed yet",
            reason="LOG_NOT_SEALED",
            metadata={"log_id": of.log_id},
        )
    raise _too_short(of.log_id, min_size, of.sealed_size)


def _check_covered(of: seal.Log, newest: seal.StoredCheckpoint, size: int) -> None:
    if size > newest.size:
        raise _too_short(of.log_id, size, newest.size)


def _too_short(log_id: str, size: int, sealed_size: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"log {log_id} is sealed up to {sealed_size}: there is no checkpoint of {size}",
        reason="LOG_TOO_SHORT",
        metadata={"log_id": log_id, "size": str(size), "sealed_size": str(sealed_size)},
    )


async def _paths(
    connection: seal.Connection, of: seal.Log, *proofs: Sequence[merkle.Range]
) -> list[list[bytes]]:
    """The hashes that these proofs consist of. What they are computed from is read once."""
    wanted = [node for ranges in proofs for low, high in ranges for node in perfect_nodes(low, high)]
    stored = await seal.nodes(connection, of.log_id, stored_nodes(wanted))
    return [merkle.path(ranges, lambda low, high: hash_of_range(low, high, stored)) for ranges in proofs]


def _size(size: int, field: str, *, least: int = 0) -> int:
    if not least <= size <= _MAX_SIZE:
        raise InvalidArgument.of(field, f"must be at least {least}")
    return size


def _proof(
    log_id: str, transaction_id: str, row: seal.SealedRow, entries: Sequence[seal.SealedEntryRow]
) -> pb.TransactionProof:
    """The transaction as it was sealed; raises Internal if what is stored of it is no longer that."""
    header = SealedHeader(
        log_id=log_id,
        position=row.position,
        transaction_id=transaction_id,
        partition_id=row.partition_id,
        type=row.type,
        charge_id=row.charge_id,
        payout_id=row.payout_id,
        external_id=row.external_id,
        correction_id=row.correction_id,
        occur_time=row.occur_time,
        create_time=row.create_time,
        entry_count=len(entries),
    )
    data = leaf(
        header,
        [entry.commitment for entry in entries],
        row.actor_commitment,
        row.reason_commitment,
        row.evidence_commitment,
    )
    if merkle.hash_leaf(data) != row.leaf_hash:
        # A proof of it would fail, and this is where it can be told.
        _log.error("seal.broken", transaction_id=transaction_id, log_id=log_id, position=row.position)
        raise Internal(f"transaction {transaction_id} is not as it was sealed: run the audit")
    proof = pb.TransactionProof(
        log_id=log_id,
        position=row.position,
        transaction_id=transaction_id,
        partition_id=row.partition_id,
        type=convert.TYPE_TO_PROTO[TransactionType(row.type)],
        charge_id=row.charge_id,
        payout_id=row.payout_id,
        external_id=row.external_id,
        correction_id=row.correction_id,
        occur_time=timestamp(row.occur_time),
        create_time=timestamp(row.create_time),
        entry_count=len(entries),
        entries=[_entry(entry) for entry in entries],
        actor=_text(row.actor_commitment, row.actor_salt, row.actor),
    )
    if row.reason_commitment is not None:
        proof.reason.CopyFrom(_text(row.reason_commitment, row.reason_salt, row.reason))
    if row.evidence_commitment is not None:
        proof.evidence.commitment = row.evidence_commitment
        if row.evidence_salt and row.evidence_salt != _ERASED:
            proof.evidence.salt = row.evidence_salt
            proof.evidence.hash = row.evidence_hash or b""
    return proof


def _text(commitment: bytes, salt: bytes | None, text: str | None) -> pb.ProvenText:
    proven = pb.ProvenText(commitment=commitment)
    if salt and salt != _ERASED:
        proven.salt = salt
        proven.text = text or ""
    return proven


# A commitment can be opened if the caller may see what it is of, which gives it the salt, and if that was not
# erased.
def _entry(row: seal.SealedEntryRow) -> pb.ProvenEntry:
    proven = pb.ProvenEntry(entry_number=row.entry_number, commitment=row.commitment)
    if not row.salt or row.salt == _ERASED:
        return proven
    if row.owner_id is None or row.kind is None or row.currency_code is None or row.amount is None:
        return proven
    proven.salt = row.salt
    bucket = None
    if row.collected is not None and row.earned_on is not None and row.available_on is not None:
        bucket = EarningsBucket(row.collected, row.earned_on, row.available_on)
    entry = Entry(
        entry_number=row.entry_number,
        account=AccountRef(row.owner_id, AccountKind(row.kind), row.currency_code),
        amount=row.amount,
        bucket=bucket,
        account_version=row.account_version,
    )
    proven.entry.CopyFrom(convert.entry_to_proto(entry))
    return proven
