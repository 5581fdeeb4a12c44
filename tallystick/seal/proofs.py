"""Proofs of transactions, as `tallystick proof` writes them: JSON, read here with nothing but the standard
library.

Everything that a proof says is computed anew from what is open in it. Nothing in it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tallystick.seal import checkpoints, fields, merkle
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

# All that may stand in a proof. A field that the ledger learns later is for another form.
_IDS: Final = ("transaction_id", "partition_id", "charge_id", "payout_id", "external_id", "correction_id")
_PROOF: Final = frozenset(
    {"format", "log_id", "position", *_IDS, "type", "occur_time", "create_time", "entry_count", "entries"}
    | {"actor", "reason", "evidence", "inclusion_path", "checkpoint", "consistency"}
)
_PROVEN_ENTRY: Final = frozenset({"entry_number", "commitment", "salt", "entry"})
_ENTRY: Final = frozenset({"entry_number", "account", "amount", "bucket", "account_version"})
_ACCOUNT: Final = frozenset({"owner_id", "kind", "currency_code"})
_AMOUNT: Final = frozenset({"currency_code", "amount_micros"})
_BUCKET: Final = frozenset({"collected", "earned_on", "available_on"})
_CONSISTENCY: Final = frozenset({"log_id", "from_size", "to_size", "path"})
# Of the entries that are missing, so many are named.
_NAMED: Final = 10


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
        # Parts of it may come from whoever made the proof: they shall not write on a terminal as they like.
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in message))
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


def read(text: str) -> dict[str, Any]:
    """The proof that a file holds. Raises ProofError for what is no JSON object, or says a thing twice."""
    try:
        found = fields.load(text)
    except ValueError as error:
        raise ProofError(Wrong.MALFORMED, f"the proof is malformed: {error}") from None
    if not isinstance(found, dict):
        raise ProofError(Wrong.MALFORMED, "the proof is malformed: it is no JSON object")
    return found


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
    fields.only(proof, _PROOF, "it")
    checkpoint = _opened(fields.text(proof, "checkpoint"), keys, "the proof's checkpoint")
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
    _check_inclusion(header, leaf_hash, fields.hashes(proof, "inclusion_path"), checkpoint)
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
    if not isinstance(given, list):
        raise TypeError("entries is no list")
    numbers = [fields.integer(one, "entry_number") for one in given]
    if len(given) != count or numbers != list(range(1, count + 1)):
        # No more than are named: the count may be anything.
        expected = range(1, min(count, len(given) + _NAMED) + 1)
        missing = [str(number) for number in expected if number not in numbers][:_NAMED]
        raise ProofError(
            Wrong.MISSING_ENTRY,
            f"the transaction has {count} entries, the proof {len(given)}"
            + (f": number {', '.join(missing)} is missing" if missing else ""),
        )
    opened, commitments = [], []
    for number, one in enumerate(given, 1):
        fields.only(one, _PROVEN_ENTRY, f"entry {number}")
        commitment = fields.hash_(one, "commitment")
        commitments.append(commitment)
        if "entry" not in one:
            if one.get("salt"):
                raise ValueError(f"entry {number} is closed, and has a salt")
            continue
        entry = _entry(number, one["entry"])
        if entry_commitment(_salt(one), entry) != commitment:
            raise ProofError(
                Wrong.ALTERED_ENTRY, f"entry {number} was altered: it is not the one that was sealed"
            )
        opened.append(entry)
    return opened, commitments


def _entry(number: int, given: Mapping[str, Any]) -> SealedEntry:
    account, amount, bucket = given["account"], given["amount"], given.get("bucket")
    fields.only(given, _ENTRY, f"entry {number}")
    fields.only(account, _ACCOUNT, f"the account of entry {number}")
    fields.only(amount, _AMOUNT, f"the amount of entry {number}")
    if bucket is not None:
        fields.only(bucket, _BUCKET, f"the bucket of entry {number}")
    if fields.integer(given, "entry_number") != number:
        raise ProofError(Wrong.ALTERED_ENTRY, f"entry {number} was altered: it says another number")
    currency_code = fields.text(account, "currency_code")
    if currency_code != fields.text(amount, "currency_code"):
        raise ProofError(Wrong.ALTERED_ENTRY, f"entry {number} was altered: it has two currencies")
    return SealedEntry(
        number=number,
        owner_id=fields.text(account, "owner_id"),
        kind=_enum(fields.text(account, "kind"), "ACCOUNT_KIND_"),
        currency_code=currency_code,
        amount_micros=fields.integer(amount, "amount_micros"),
        collected=None if bucket is None else fields.truth(bucket, "collected"),
        earned_on=None if bucket is None else fields.day(bucket, "earned_on"),
        available_on=None if bucket is None else fields.day(bucket, "available_on"),
        account_version=fields.integer(given, "account_version"),
    )


def _detail(proof: Mapping[str, Any], name: str, field: str) -> tuple[bytes | None, bytes | None]:
    """The content of a detail if it is open, and its commitment if the transaction has it."""
    given = proof.get(name)
    if given is None:
        return None, None
    fields.only(given, frozenset({"commitment", "salt", field}), f"the {name}")
    commitment = fields.hash_(given, "commitment")
    if not given.get("salt"):
        if given.get(field):
            # Whoever reads the file would take it for proven.
            raise ProofError(Wrong.ALTERED_DETAIL, f"the {name} stands there without the salt that proves it")
        return None, commitment
    content = fields.text(given, field).encode() if field == "text" else fields.content(given, field)
    if detail_commitment(_salt(given), name, content) != commitment:
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
        given = proof.get("consistency") or {}
        fields.only(given, _CONSISTENCY, "the consistency proof")
        sizes = (fields.integer(given, "from_size"), fields.integer(given, "to_size"))
        if (fields.text(given, "log_id"), *sizes) != (checkpoint.log_id, kept.size, checkpoint.size):
            raise ProofError(
                Wrong.NO_CONSISTENCY,
                f"the proof does not show that its log continues that of {kept.size}: fetch it with --since",
            )
        path = fields.hashes(given, "path")
    try:
        merkle.check_consistency(kept.size, checkpoint.size, kept.root, checkpoint.root, path)
    except merkle.MerkleError as error:
        raise ProofError(Wrong.REWRITTEN_HISTORY, f"history was rewritten: {error}") from None
    return kept


def _header(proof: Mapping[str, Any]) -> SealedHeader:
    return SealedHeader(
        log_id=fields.text(proof, "log_id"),
        position=fields.integer(proof, "position"),
        transaction_id=fields.text(proof, "transaction_id"),
        partition_id=fields.text(proof, "partition_id"),
        type=_enum(fields.text(proof, "type"), "TRANSACTION_TYPE_"),
        charge_id=fields.text(proof, "charge_id"),
        payout_id=fields.text(proof, "payout_id"),
        external_id=fields.text(proof, "external_id"),
        correction_id=fields.text(proof, "correction_id"),
        occur_time=fields.moment(proof, "occur_time"),
        create_time=fields.moment(proof, "create_time"),
        entry_count=fields.integer(proof, "entry_count"),
    )


def _enum(name: str, prefix: str) -> str:
    """A value of the contract as the ledger writes it: ACCOUNT_KIND_PLATFORM_FEES is platform_fees."""
    # Some letters beyond ASCII are upper case, and become ASCII when they are lowered.
    if not name.startswith(prefix) or name != name.upper() or not name.isascii():
        raise ValueError(f"{name} is no {prefix}…")
    return name.removeprefix(prefix).lower()


def _salt(given: Mapping[str, Any]) -> bytes:
    salt = fields.content(given, "salt")
    if len(salt) != SALT_SIZE:
        raise ValueError("a salt has another length")
    return salt
