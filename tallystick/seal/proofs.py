"""Proofs of transactions, as `tallystick proof` writes them: JSON, read here with nothing but the standard
library.

Everything that a proof says is computed anew from what is open in it. Nothing in it is believed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Final

from tallystick.seal import checkpoints, merkle
from tallystick.seal.canonical import (
    SALT_SIZE,
    SealedEntry,
    SealedHeader,
    detail_commitment,
    entry_commitment,
    leaf,
)
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import ForgedNote, NoteError, UntrustedNote, VerifierKey

FORMAT: Final = "tallystick/transaction-proof/v1"


class Wrong(StrEnum):
    """What can be wrong with a proof."""

    MALFORMED = "malformed"
    UNTRUSTED_KEY = "untrusted_key"
    FORGED_CHECKPOINT = "forged_checkpoint"
    OTHER_LOG = "other_log"
    ALTERED_ENTRY = "altered_entry"
    ALTERED_DETAIL = "altered_detail"
    MISSING_ENTRY = "missing_entry"
    NOT_IN_LOG = "not_in_log"
    REWRITTEN_HISTORY = "rewritten_history"
    TRUNCATED_LOG = "truncated_log"
    NO_CONSISTENCY = "no_consistency"


class ProofError(Exception):
    """A proof does not prove what it says; `wrong` and the message tell why."""

    def __init__(self, wrong: Wrong, message: str) -> None:
        super().__init__(message)
        self.wrong = wrong


@dataclass(frozen=True, slots=True)
class Verified:
    """What a proof has proven: that the log of the checkpoint holds this transaction with these entries.

    `entries` are the open ones; the header says how many there are in all. `since` is the earlier checkpoint
    that nothing was changed after, if one was given.
    """

    header: SealedHeader
    entries: tuple[SealedEntry, ...]
    actor: str | None
    reason: str | None
    evidence_hash: bytes | None
    checkpoint: Checkpoint
    since: Checkpoint | None


def verify(proof: Mapping[str, Any], keys: Sequence[VerifierKey], *, earlier: str | None = None) -> Verified:
    """Check a proof against the keys that are trusted and, if there is one, a checkpoint that was kept.

    Raises ProofError.
    """
    if proof.get("format") != FORMAT:
        raise ProofError(Wrong.MALFORMED, f"this is no proof of the form {FORMAT}")
    try:
        return _verify(proof, keys, earlier)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ProofError(Wrong.MALFORMED, f"the proof is malformed: {error}") from None


def _verify(proof: Mapping[str, Any], keys: Sequence[VerifierKey], earlier: str | None) -> Verified:
    checkpoint = _opened(_text(proof, "checkpoint"), keys, "the proof's checkpoint")
    header = _header(proof)
    if checkpoint.log_id != header.log_id:
        raise ProofError(
            Wrong.OTHER_LOG,
            f"the transaction is of the log {header.log_id}, the checkpoint of another, {checkpoint.origin}",
        )
    entries, commitments = _entries(proof, header.entry_count)
    actor, actor_commitment = _detail(proof, "actor", "text")
    reason, reason_commitment = _detail(proof, "reason", "text")
    evidence, evidence_commitment = _detail(proof, "evidence", "hash")
    if actor_commitment is None:
        raise ProofError(Wrong.MALFORMED, "the proof is malformed: it has no actor")
    leaf_hash = merkle.hash_leaf(
        leaf(header, commitments, actor_commitment, reason_commitment, evidence_commitment)
    )
    _check_inclusion(header, leaf_hash, _hashes(proof, "inclusion_path"), checkpoint)
    since = None if earlier is None else _check_history(proof, keys, earlier, checkpoint)
    return Verified(
        header=header,
        entries=tuple(entries),
        actor=None if actor is None else actor.decode(),
        reason=None if reason is None else reason.decode(),
        evidence_hash=evidence,
        checkpoint=checkpoint,
        since=since,
    )


def _opened(note: str, keys: Sequence[VerifierKey], what: str) -> Checkpoint:
    try:
        checkpoint = checkpoints.opened(note, keys)
    except UntrustedNote as error:
        raise ProofError(Wrong.UNTRUSTED_KEY, f"{what} is not to be trusted: {error}") from None
    except ForgedNote as error:
        raise ProofError(Wrong.FORGED_CHECKPOINT, f"{what} is not to be trusted: {error}") from None
    except NoteError as error:
        raise ProofError(Wrong.MALFORMED, f"{what} is malformed: {error}") from None
    return checkpoint


def _entries(proof: Mapping[str, Any], count: int) -> tuple[list[SealedEntry], list[bytes]]:
    given = proof.get("entries", [])
    numbers = [int(one.get("entry_number", 0)) for one in given]
    missing = sorted(set(range(1, count + 1)) - set(numbers))
    if missing or numbers != list(range(1, count + 1)):
        raise ProofError(
            Wrong.MISSING_ENTRY,
            f"the transaction has {count} entries, the proof {len(given)}"
            + (f": number {', '.join(map(str, missing))} is missing" if missing else ""),
        )
    opened, commitments = [], []
    for number, one in enumerate(given, 1):
        commitment = _hash(one, "commitment")
        commitments.append(commitment)
        if "entry" not in one:
            continue
        entry = _entry(number, one["entry"])
        if entry_commitment(_bytes(one, "salt"), entry) != commitment:
            raise ProofError(
                Wrong.ALTERED_ENTRY, f"entry {number} was altered: it is not the one that was sealed"
            )
        opened.append(entry)
    return opened, commitments


def _entry(number: int, given: Mapping[str, Any]) -> SealedEntry:
    account, amount, bucket = given["account"], given["amount"], given.get("bucket")
    if given.get("entry_number") != number:
        raise ProofError(Wrong.ALTERED_ENTRY, f"entry {number} was altered: it says another number")
    if account["currency_code"] != amount["currency_code"]:
        raise ProofError(Wrong.ALTERED_ENTRY, f"entry {number} was altered: it has two currencies")
    return SealedEntry(
        number=number,
        owner_id=account["owner_id"],
        kind=_enum(account["kind"], "ACCOUNT_KIND_"),
        currency_code=amount["currency_code"],
        amount_micros=int(amount["amount_micros"]),
        collected=None if bucket is None else bool(bucket.get("collected", False)),
        earned_on=None if bucket is None else date.fromisoformat(bucket["earned_on"]),
        available_on=None if bucket is None else date.fromisoformat(bucket["available_on"]),
        account_version=int(given.get("account_version", 0)),
    )


def _detail(proof: Mapping[str, Any], name: str, field: str) -> tuple[bytes | None, bytes | None]:
    """The content of a detail if it is open, and its commitment if the transaction has it."""
    given = proof.get(name)
    if given is None:
        return None, None
    commitment = _hash(given, "commitment")
    if not given.get("salt"):
        return None, commitment
    content = _text(given, field).encode() if field == "text" else _bytes(given, field)
    if detail_commitment(_bytes(given, "salt"), name, content) != commitment:
        raise ProofError(Wrong.ALTERED_DETAIL, f"the {name} was altered: it is not the one that was sealed")
    return content, commitment


def _check_inclusion(
    header: SealedHeader, leaf_hash: bytes, path: Sequence[bytes], checkpoint: Checkpoint
) -> None:
    try:
        root = merkle.root_of_inclusion(header.position - 1, checkpoint.size, leaf_hash, path)
    except merkle.MerkleError as error:
        raise ProofError(
            Wrong.NOT_IN_LOG, f"the log does not hold this at position {header.position}: {error}"
        ) from None
    if root != checkpoint.root:
        raise ProofError(
            Wrong.NOT_IN_LOG,
            f"the log does not hold this at position {header.position}: what the proof says of the"
            " transaction, its entries and its position was altered, or never was in this log",
        )


def _check_history(
    proof: Mapping[str, Any], keys: Sequence[VerifierKey], earlier: str, checkpoint: Checkpoint
) -> Checkpoint:
    kept = _opened(earlier, keys, "the earlier checkpoint")
    if kept.origin != checkpoint.origin:
        raise ProofError(
            Wrong.OTHER_LOG,
            f"the earlier checkpoint is of the log {kept.origin}, the proof of another, {checkpoint.origin}:"
            " the ledger has begun a new log, as it does when it is restored from a backup",
        )
    if kept.size > checkpoint.size:
        raise ProofError(
            Wrong.TRUNCATED_LOG,
            f"the log was longer: the earlier checkpoint has {kept.size}, the proof's only {checkpoint.size}."
            " Either the proof is older than that checkpoint, or the end of the log was cut off",
        )
    if kept.size == checkpoint.size:
        path: list[bytes] = []
    else:
        given = proof.get("consistency")
        if given is None or int(given.get("from_size", 0)) != kept.size:
            raise ProofError(
                Wrong.NO_CONSISTENCY,
                f"the proof does not show that its log continues that of {kept.size}: fetch it with --since",
            )
        path = _hashes(given, "path")
    try:
        merkle.check_consistency(kept.size, checkpoint.size, kept.root, checkpoint.root, path)
    except merkle.MerkleError as error:
        raise ProofError(Wrong.REWRITTEN_HISTORY, f"history was rewritten: {error}") from None
    return kept


def _header(proof: Mapping[str, Any]) -> SealedHeader:
    return SealedHeader(
        log_id=_text(proof, "log_id"),
        position=int(proof["position"]),
        transaction_id=_text(proof, "transaction_id"),
        partition_id=_text(proof, "partition_id"),
        type=_enum(_text(proof, "type"), "TRANSACTION_TYPE_"),
        charge_id=_text(proof, "charge_id"),
        payout_id=_text(proof, "payout_id"),
        external_id=_text(proof, "external_id"),
        correction_id=_text(proof, "correction_id"),
        occur_time=_time(proof["occur_time"]),
        create_time=_time(proof["create_time"]),
        entry_count=int(proof.get("entry_count", 0)),
    )


def _enum(name: str, prefix: str) -> str:
    """A value of the contract as the ledger writes it: ACCOUNT_KIND_PLATFORM_FEES is platform_fees."""
    if not name.startswith(prefix) or name != name.upper():
        raise ValueError(f"{name} is no {prefix}…")
    return name.removeprefix(prefix).lower()


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} is in no time zone")
    return time.astimezone(UTC)


def _bytes(given: Mapping[str, Any], name: str) -> bytes:
    try:
        content = base64.b64decode(_text(given, name), validate=True)
    except binascii.Error:
        raise ValueError(f"{name} is not base64") from None
    if name == "salt" and len(content) != SALT_SIZE:
        raise ValueError("a salt has another length")
    return content


def _hash(given: Mapping[str, Any], name: str) -> bytes:
    return _checked(_bytes(given, name), name)


def _hashes(given: Mapping[str, Any], name: str) -> list[bytes]:
    return [_checked(base64.b64decode(one, validate=True), name) for one in given.get(name, [])]


def _checked(content: bytes, name: str) -> bytes:
    if len(content) != merkle.HASH_SIZE:
        raise ValueError(f"{name} is no hash")
    return content
