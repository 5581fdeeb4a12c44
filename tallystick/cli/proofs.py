"""`proof`, `checkpoint` and `verify`: proofs, fetched from the ledger and checked without it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tallystick.cli.failures import Misuse
from tallystick.cli.output import Answer, Facts, Part, Table, amount, count, moment
from tallystick.cli.session import Session
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.ledger.v1.proof_service_pb2_grpc import LedgerProofServiceStub
from tallystick.money import Money
from tallystick.seal import checkpoints, proofs, wire
from tallystick.seal.canonical import SealedEntry
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import NoteError, VerifierKey

# More than any proof has.
_MAX_FILE = 10_000_000


def proof(
    session: Session,
    id: Annotated[str, typer.Argument(metavar="ID", help='The transaction, "txn_…", or the charge, "ch_…".')],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write the proof to.")],
    since: Annotated[
        Path | None,
        typer.Option(help="A checkpoint that was kept: prove also that nothing before it was changed."),
    ] = None,
    log: Annotated[str, typer.Option(help="An earlier log, from before a restore.")] = "",
) -> Answer:
    """Fetch the proof that a transaction is in the ledger's log; `tallystick verify` checks it."""
    kept = None if since is None else _checkpoint(_read(since), str(since))
    transaction_id = _transaction_of(session, id)
    request = pb.GetTransactionProofRequest(
        transaction_id=transaction_id,
        log_id=log or (kept.log_id if kept else ""),
        since_size=kept.size if kept else 0,
    )
    stub = LedgerProofServiceStub(session.channel("ledger"))
    found = session.call(stub.GetTransactionProof, request).proof
    _write(out, json.dumps(wire.written(found), indent=2, ensure_ascii=False) + "\n")
    sealed = checkpoints.unverified(found.checkpoint)
    opened = sum(one.HasField("entry") for one in found.entries)
    data = {
        "transaction_id": found.transaction_id,
        "log_id": found.log_id,
        "position": found.position,
        "entries": found.entry_count,
        "open_entries": opened,
        "checkpoint_size": sealed.size,
        "file": str(out),
    }
    rows = [
        ("transaction", found.transaction_id),
        ("log", found.log_id),
        ("position", f"{count(found.position)} of {count(sealed.size)}"),
        ("entries", f"{found.entry_count}, of which {opened} are open"),
        ("file", str(out)),
    ]
    return Answer(data, [Facts("Proof", rows), f"Check it with: tallystick verify {out} --key KEY"])


def _transaction_of(session: Session, id: str) -> str:
    """The transaction itself, or the one that posted a charge."""
    if not id.startswith("ch_"):
        return id
    stub = LedgerServiceStub(session.channel("ledger"))
    request = ledger_service_pb2.GetChargeRequest(charge_id=id)
    return session.call(stub.GetCharge, request).charge.transaction_id


def checkpoint(
    session: Session,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write it to this file, and do not show it.")
    ] = None,
    log: Annotated[str, typer.Option(help="An earlier log, from before a restore.")] = "",
    first: Annotated[
        bool,
        typer.Option("--first", help="The first one instead: it names the log that this one continues."),
    ] = False,
) -> Answer:
    """Fetch the newest checkpoint of the ledger's log. Keep it: it shows later if history was changed."""
    stub = LedgerProofServiceStub(session.channel("ledger"))
    request = pb.GetCheckpointRequest(log_id=log, min_size=1 if first else 0)
    note = session.call(stub.GetCheckpoint, request).checkpoint
    found = _checkpoint(note, "the answer")
    if out is not None:
        _write(out, note)
    data = {**_described(found), "checkpoint": note, "file": "" if out is None else str(out)}
    rows = [("log", found.origin), ("size", count(found.size)), ("root", _described(found)["root"])]
    rows += [("says", extension) for extension in found.extensions]
    if out is not None:
        return Answer(data, [Facts("Checkpoint", [*rows, ("file", str(out))])])
    return Answer(data, [note.rstrip("\n")])


def verify(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `tallystick proof` wrote.")],
    key: Annotated[
        list[str],
        typer.Option(help='The verifier key of the ledger, "name+0a1b2c3d+AQ…", or a file; may be repeated.'),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint that was kept: nothing before it may have been changed."),
    ] = None,
) -> Answer:
    """Check a proof, with no server and no network. Exits with 1 if it proves nothing."""
    keys = [_key(one) for one in key]
    try:
        found = proofs.verify(
            proofs.read(_read(file)), keys, earlier=None if checkpoint is None else _read(checkpoint)
        )
    except proofs.ProofError as error:
        data = {"verified": False, "wrong": error.wrong, "message": str(error)}
        return Answer(data, [f"NOT VERIFIED: {error}"], exit_status=1)
    return _verified(found)


def _verified(found: proofs.Verified) -> Answer:
    header = found.header
    hidden = header.entry_count - len(found.entries)
    data: dict[str, Any] = {
        "verified": True,
        "transaction": header,
        "entries": found.entries,
        "hidden_entries": hidden,
        "actor": found.actor,
        "reason": found.reason,
        "evidence_hash": None if found.evidence_hash is None else found.evidence_hash.hex(),
        "checkpoint": _described(found.checkpoint),
        "since": None if found.since is None else _described(found.since),
    }
    ids = [
        (name.removesuffix("_id").replace("_", " "), value)
        for name in ("charge_id", "payout_id", "external_id", "correction_id")
        if (value := getattr(header, name))
    ]
    facts: list[tuple[str, str]] = [
        ("transaction", header.transaction_id),
        ("what", header.type.replace("_", " ")),
        *ids,
        ("posted", moment(header.create_time)),
        *([("reason", found.reason)] if found.reason else ()),
        *([("asked for by", found.actor)] if found.actor else ()),
        *([("evidence", found.evidence_hash.hex())] if found.evidence_hash else ()),
        ("log", found.checkpoint.origin),
        ("position", f"{count(header.position)} of {count(found.checkpoint.size)}"),
    ]
    rows = [
        (
            str(entry.number),
            entry.owner_id,
            entry.kind.replace("_", " "),
            amount(Money(entry.currency_code, entry.amount_micros)),
            entry.currency_code,
            _bucket(entry),
        )
        for entry in found.entries
    ]
    parts: list[Part] = [
        "VERIFIED: the log holds this transaction, as it stands here.",
        Facts("Transaction", facts),
        Table(
            "Entries that are open", (">entry", "owner", "account", ">amount", "currency", "earnings"), rows
        ),
    ]
    if hidden:
        # Whose they are, a verifier cannot know: whoever made the file may have closed one of its reader's.
        parts.append(
            f"{hidden} more of its entries {'is' if hidden == 1 else 'are'} closed: in the log too, but this"
            " proof shows neither whose nor what."
        )
    if found.since is not None:
        parts.append(f"The first {count(found.since.size)} transactions of the log are what they were then.")
    else:
        parts.append(
            "Without --checkpoint, one that you kept, nothing is said about changes of the log before it."
        )
    return Answer(data, parts)


def _bucket(entry: SealedEntry) -> str:
    """Of earnings, whether the money is there, and from when on it may be paid out."""
    if entry.available_on is None:
        return ""
    return f"{'collected' if entry.collected else 'not collected'}, payable from {entry.available_on}"


def _described(found: Checkpoint) -> dict[str, Any]:
    return {
        "origin": found.origin,
        "size": found.size,
        "root": base64.b64encode(found.root).decode(),
        "extensions": list(found.extensions),
    }


def _key(text: str) -> VerifierKey:
    """A verifier key, or the one that a file holds. Raises Misuse."""
    try:
        # The name of a file may have a plus too.
        is_file = "+" not in text or Path(text).is_file()
        return VerifierKey.parse(_read(Path(text)) if is_file else text)
    except NoteError as error:
        raise Misuse(f"--key: {error}; do: give the key that the ledger's operator publishes") from None


def _checkpoint(note: str, what: str) -> Checkpoint:
    try:
        return checkpoints.unverified(note)
    except NoteError as error:
        raise Misuse(f"{what} holds no checkpoint: {error}") from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise Misuse(f"{path} is too large")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Misuse(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Misuse(f"{path} is no text") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Misuse(f"cannot write {path}: {error.strerror}") from None
