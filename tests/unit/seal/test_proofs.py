"""Proofs as files: what one proves, and everything that somebody may have done to it, by name."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest

from services.kit.times import timestamp
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.ledger.v1 import proof_service_pb2 as pb
from tallystick.seal import merkle, wire
from tallystick.seal.canonical import (
    SealedEntry,
    SealedHeader,
    detail_commitment,
    entry_commitment,
    leaf,
)
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import SignerKey
from tallystick.seal.proofs import ProofError, Verified, Wrong, _enum, read, verify

KEY = SignerKey.generate("ledger.test")
SALTS = [bytes([number]) * 16 for number in range(1, 6)]
POSTED = datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
DAY = date(2026, 1, 1)
ENTRIES = (
    SealedEntry(1, "cus_ada", "customer_credits", "USD", -1_000, account_version=7),
    SealedEntry(2, "org_lark", "organization_payable", "USD", 900, False, DAY, date(2026, 1, 8)),
    SealedEntry(3, "org_lark", "platform_fees", "USD", 100),
)
HEADER = SealedHeader(
    "log_1", 5, "txn_1", "cus_ada", "charge", "ch_1", "", "", "", datetime(2026, 1, 1, tzinfo=UTC), POSTED, 3
)
ACTOR = detail_commitment(SALTS[3], "actor", b"key_1")
EVIDENCE = detail_commitment(SALTS[4], "evidence", b"e" * 32)


class Log:
    """A log of ten, of which the fifth is the transaction."""

    def __init__(self, origin: str = "ledger.test/log_1", *, others: bytes = b"x") -> None:
        self.origin = origin
        commitments = [entry_commitment(SALTS[entry.number - 1], entry) for entry in ENTRIES]
        self.commitments = commitments
        self.hashes = [merkle.hash_leaf(others + bytes([number])) for number in range(10)]
        self.hashes[4] = merkle.hash_leaf(leaf(HEADER, commitments, ACTOR, None, EVIDENCE))

    def checkpoint(self, size: int, key: SignerKey = KEY) -> str:
        return Checkpoint(self.origin, size, merkle.root_of(self.hashes[:size])).signed([key])

    def path(self, ranges: list[merkle.Range]) -> list[bytes]:
        return merkle.path(ranges, lambda low, high: merkle.root_of(self.hashes[low:high]))

    def proof(self, size: int = 10, since: int = 0, *, opened: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
        """As the ledger answers it, written down."""
        proof = pb.TransactionProof(
            log_id="log_1",
            position=5,
            transaction_id="txn_1",
            partition_id="cus_ada",
            type=transaction_pb2.TRANSACTION_TYPE_CHARGE,
            charge_id="ch_1",
            occur_time=timestamp(HEADER.occur_time),
            create_time=timestamp(POSTED),
            entry_count=3,
            actor=pb.ProvenText(commitment=ACTOR, salt=SALTS[3], text="key_1"),
            evidence=pb.ProvenHash(commitment=EVIDENCE, salt=SALTS[4], hash=b"e" * 32),
            inclusion_path=self.path(merkle.inclusion_ranges(4, size)),
            checkpoint=self.checkpoint(size),
        )
        for entry, commitment in zip(ENTRIES, self.commitments, strict=True):
            proven = proof.entries.add(entry_number=entry.number, commitment=commitment)
            if entry.number in opened:
                proven.salt = SALTS[entry.number - 1]
                proven.entry.CopyFrom(as_message(entry))
        if since:
            proof.consistency.CopyFrom(
                pb.ConsistencyProof(
                    log_id="log_1",
                    from_size=since,
                    to_size=size,
                    path=self.path(merkle.consistency_ranges(since, size)),
                )
            )
        written: dict[str, Any] = json.loads(json.dumps(wire.written(proof)))
        return written


def as_message(entry: SealedEntry) -> transaction_pb2.Entry:
    message = transaction_pb2.Entry(
        entry_number=entry.number,
        account=account_pb2.AccountRef(
            owner_id=entry.owner_id,
            kind=account_pb2.AccountKind.Value(f"ACCOUNT_KIND_{entry.kind.upper()}"),
            currency_code=entry.currency_code,
        ),
        amount=money_pb2.Money(currency_code=entry.currency_code, amount_micros=entry.amount_micros),
        account_version=entry.account_version,
    )
    if entry.earned_on is not None and entry.available_on is not None:
        message.bucket.collected = bool(entry.collected)
        message.bucket.earned_on = entry.earned_on.isoformat()
        message.bucket.available_on = entry.available_on.isoformat()
    return message


LOG = Log()


def check(proof: dict[str, Any], earlier: str | None = None, key: SignerKey = KEY) -> Verified:
    return verify(proof, [key.verifier], earlier=earlier)


def test_a_whole_proof_says_everything() -> None:
    found = check(LOG.proof())

    assert found.header == HEADER
    assert found.entries == ENTRIES
    assert (found.actor, found.reason, found.evidence_hash) == ("key_1", None, b"e" * 32)
    assert (found.checkpoint.size, found.since) == (10, None)


def test_a_party_opens_its_own_entries_and_proves_the_transaction() -> None:
    proof = LOG.proof(opened=(2, 3))
    for closed in ("actor", "evidence"):
        proof[closed] = {"commitment": proof[closed]["commitment"]}

    found = check(proof)

    assert found.entries == ENTRIES[1:]
    assert found.header.entry_count == 3
    assert (found.actor, found.evidence_hash) == (None, None)
    assert "cus_ada" not in json.dumps(proof["entries"])


def test_a_log_that_grew_continues_the_one_that_was_kept() -> None:
    for size in range(5, 11):
        for since in range(1, size + 1):
            found = check(LOG.proof(size, since), LOG.checkpoint(since))
            assert found.since is not None
            assert found.since.size == since


def entry(number: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    """Changes an open entry; a dot leads into what it consists of."""

    def change(proof: dict[str, Any]) -> None:
        for path, value in fields.items():
            at = proof["entries"][number - 1]["entry"]
            *parents, name = path.split("__")
            for parent in parents:
                at = at[parent]
            assert at.get(name) != value, "the test would change nothing"
            at[name] = value

    return change


def removed(
    number: int, *, count: bool = False, renumbered: bool = False
) -> Callable[[dict[str, Any]], None]:
    def change(proof: dict[str, Any]) -> None:
        del proof["entries"][number - 1]
        if count:
            proof["entry_count"] -= 1
        if renumbered:
            for place, one in enumerate(proof["entries"], 1):
                one["entry_number"] = one["entry"]["entry_number"] = place

    return change


def forged(number: int, amount: int) -> Callable[[dict[str, Any]], None]:
    """Another amount, with the commitment that goes with it."""

    def change(proof: dict[str, Any]) -> None:
        one = proof["entries"][number - 1]
        one["entry"]["amount"]["amount_micros"] = str(amount)
        sealed = SealedEntry(1, "cus_ada", "customer_credits", "USD", amount, account_version=7)
        one["commitment"] = base64(entry_commitment(SALTS[0], sealed))

    return change


def header(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(proof: dict[str, Any]) -> None:
        assert all(proof.get(name) != value for name, value in fields.items())
        proof.update(fields)

    return change


def base64(content: bytes) -> str:
    from base64 import b64encode

    return b64encode(content).decode()


def swapped(proof: dict[str, Any]) -> None:
    first, second = proof["entries"][1:]
    proof["entries"][1:] = [second, first]


def other_evidence(proof: dict[str, Any]) -> None:
    proof["evidence"]["hash"] = base64(b"f" * 32)


def no_evidence(proof: dict[str, Any]) -> None:
    del proof["evidence"]


def added_reason(proof: dict[str, Any]) -> None:
    proof["reason"] = proof["actor"] | {
        "commitment": base64(detail_commitment(SALTS[0], "reason", b"because"))
    }
    proof["reason"] |= {"salt": base64(SALTS[0]), "text": "because"}


CHANGES: list[tuple[Wrong, Callable[[dict[str, Any]], None]]] = [
    (Wrong.ALTERED_ENTRY, entry(1, amount__amount_micros="-1001")),
    (Wrong.ALTERED_ENTRY, entry(1, account__owner_id="cus_eve")),
    (Wrong.ALTERED_ENTRY, entry(1, account__kind="ACCOUNT_KIND_CUSTOMER_UNPAID")),
    (Wrong.ALTERED_ENTRY, entry(1, account__currency_code="EUR", amount__currency_code="EUR")),
    (Wrong.ALTERED_ENTRY, entry(1, amount__currency_code="EUR")),
    (Wrong.ALTERED_ENTRY, entry(1, account_version="8")),
    (Wrong.ALTERED_ENTRY, entry(2, bucket__collected=True)),
    (Wrong.ALTERED_ENTRY, entry(2, bucket__earned_on="2026-01-02")),
    (Wrong.ALTERED_ENTRY, entry(2, bucket__available_on="2026-01-01")),
    (Wrong.ALTERED_ENTRY, entry(3, bucket={"earned_on": "2026-01-01", "available_on": "2026-01-01"})),
    (Wrong.ALTERED_ENTRY, entry(3, entry_number=2)),
    (Wrong.NOT_IN_LOG, forged(1, -1)),
    (Wrong.MISSING_ENTRY, removed(1)),
    (Wrong.MISSING_ENTRY, removed(3)),
    (Wrong.NOT_IN_LOG, removed(3, count=True)),
    (Wrong.MISSING_ENTRY, removed(1, count=True)),
    # What was the second entry is not the first.
    (Wrong.ALTERED_ENTRY, removed(1, count=True, renumbered=True)),
    (Wrong.MISSING_ENTRY, swapped),
    (Wrong.ALTERED_DETAIL, other_evidence),
    (Wrong.NOT_IN_LOG, no_evidence),
    (Wrong.NOT_IN_LOG, added_reason),
    (Wrong.NOT_IN_LOG, header(position="6")),
    (Wrong.NOT_IN_LOG, header(position="11")),
    (Wrong.NOT_IN_LOG, header(position="0")),
    (Wrong.NOT_IN_LOG, header(transaction_id="txn_2")),
    (Wrong.NOT_IN_LOG, header(partition_id="cus_eve")),
    (Wrong.NOT_IN_LOG, header(type="TRANSACTION_TYPE_CORRECTION")),
    (Wrong.NOT_IN_LOG, header(charge_id="ch_2")),
    (Wrong.NOT_IN_LOG, header(payout_id="po_1")),
    (Wrong.NOT_IN_LOG, header(external_id="pi_1")),
    (Wrong.NOT_IN_LOG, header(correction_id="rf_1")),
    (Wrong.NOT_IN_LOG, header(occur_time="2026-01-02T00:00:00Z")),
    (Wrong.NOT_IN_LOG, header(create_time="2026-01-01T12:30:00.123457Z")),
    (Wrong.OTHER_LOG, header(log_id="log_2")),
    (Wrong.NOT_IN_LOG, header(inclusion_path=[])),
    (Wrong.MALFORMED, header(inclusion_path=["AAAA"])),
    (Wrong.MALFORMED, header(format="tallystick/transaction-proof/v2")),
    (Wrong.MALFORMED, header(checkpoint="nothing")),
    (Wrong.MALFORMED, header(actor=None)),
    (Wrong.MALFORMED, header(occur_time="yesterday")),
    (Wrong.MALFORMED, header(entries=[7])),
    (Wrong.MALFORMED, header(position=None)),
]


@pytest.mark.parametrize(("wrong", "change"), CHANGES)
def test_whatever_is_altered_is_named(wrong: Wrong, change: Callable[[dict[str, Any]], None]) -> None:
    proof = copy.deepcopy(LOG.proof())
    change(proof)

    with pytest.raises(ProofError) as refused:
        check(proof)
    assert refused.value.wrong == wrong, refused.value


# What a lenient reader takes for what was sealed, though the file shows something else.
OTHERWISE: list[Callable[[dict[str, Any]], None]] = [
    entry(1, amount__amount_micros=-1000.9),
    entry(1, amount__amount_micros=-1e3),
    entry(1, amount__amount_micros="-1_000"),
    entry(1, amount__amount_micros=" -1000"),
    entry(1, amount__amount_micros="-01000"),
    entry(1, amount__amount_micros="-１０００"),
    entry(1, amount__amount_micros="-" + "1" * 30),
    entry(1, account_version="7 "),
    entry(1, account__owner_id=["cus_ada"]),
    entry(1, account__display_name="Eve"),
    entry(1, amount__amount_minor="5"),
    entry(1, refunded=True),
    entry(2, bucket__collected="false"),
    entry(2, bucket__collected=0),
    entry(2, bucket__earned_on="20260101"),
    entry(2, bucket__earned_on="2026-W01-4"),
    entry(2, bucket__paid_out=True),
    entry(3, entry_number=3.5),
    header(position=5.0),
    header(position=True),
    header(position="٥"),
    header(position=5.5),
    header(entry_count=True),
    header(entry_count=3.5),
    header(entry_count=10**30),
    header(settled=True),
    header(type="TRANSACTION_TYPE_charge"),
    header(occur_time="2026-01-01T01:00:00+01:00"),
    header(occur_time="2026-01-01"),
    header(create_time="2026-01-01T12:30:00.123456789Z"),
    header(charge_id=7),
    header(actor={"commitment": base64(ACTOR), "salt": base64(SALTS[3]), "text": "key_1", "name": "Eve"}),
    header(actor={"commitment": base64(ACTOR)[:-2] + "Z=", "salt": base64(SALTS[3]), "text": "key_1"}),
    header(inclusion_path="x"),
    header(entries={}),
    header(reason={"commitment": "", "text": "because"}),
]


@pytest.mark.parametrize("change", OTHERWISE)
def test_what_is_written_otherwise_is_malformed(change: Callable[[dict[str, Any]], None]) -> None:
    proof = copy.deepcopy(LOG.proof())
    change(proof)

    with pytest.raises(ProofError) as refused:
        check(proof)
    assert refused.value.wrong == Wrong.MALFORMED, refused.value


def test_names_of_the_contract_are_ascii() -> None:
    # The sign for Kelvin is upper case, and its lower case is a plain k.
    with pytest.raises(ValueError, match="is no TRANSACTION_TYPE_"):
        _enum("TRANSACTION_TYPE_PURCHASE_CHARGEBAC\u212a", "TRANSACTION_TYPE_")


def test_a_detail_that_stands_there_without_its_salt_is_not_proven() -> None:
    """Whoever closes a detail could otherwise write over it what they like."""
    proof = LOG.proof()
    del proof["actor"]["salt"]
    assert proof["actor"]["text"] == "key_1"

    with pytest.raises(ProofError, match="the actor stands there without the salt") as refused:
        check(proof)
    assert refused.value.wrong == Wrong.ALTERED_DETAIL


def test_a_closed_entry_has_no_salt() -> None:
    proof = LOG.proof()
    del proof["entries"][0]["entry"]

    with pytest.raises(ProofError, match="entry 1 is closed, and has a salt"):
        check(proof)


def test_a_count_of_entries_that_nobody_could_have_is_refused_at_once() -> None:
    proof = LOG.proof() | {"entry_count": 2**62}

    with pytest.raises(
        ProofError, match=r"has 4611686018427387904 entries, the proof 3: number 4, 5,"
    ) as refused:
        check(proof)
    assert refused.value.wrong == Wrong.MISSING_ENTRY
    assert len(str(refused.value)) < 200


def test_what_a_proof_says_does_not_steer_a_terminal() -> None:
    with pytest.raises(ProofError) as refused:
        check(LOG.proof() | {"log_id": "x\x1b[2K\rVERIFIED: all is well\n\u202e"})

    assert str(refused.value).isprintable()
    assert "x\\x1b[2K\\rVERIFIED" in str(refused.value)


def test_a_consistency_proof_is_between_these_two_checkpoints() -> None:
    for change in ({"log_id": "log_2"}, {"to_size": "9"}, {"from_size": "5"}):
        proof = LOG.proof(since=4)
        proof["consistency"] |= change
        assert refused_with(proof, LOG.checkpoint(4))[0] == Wrong.NO_CONSISTENCY


def test_a_file_is_read_strictly() -> None:
    assert read(json.dumps(LOG.proof())) == LOG.proof()
    for text in (
        '{"a": 1, "a": 1}',
        '{"b": [{"a": 1, "a": 2}]}',
        "[]",
        "",
        "[" * 200_000,
        '{"a": ' + "9" * 5_000 + "}",
    ):
        with pytest.raises(ProofError, match="the proof is malformed") as refused:
            read(text)
        assert refused.value.wrong == Wrong.MALFORMED


def test_another_key_is_not_to_be_trusted() -> None:
    with pytest.raises(ProofError, match=r"it is signed by ledger\.test") as refused:
        check(LOG.proof(), key=SignerKey.generate("ledger.test"))
    assert refused.value.wrong == Wrong.UNTRUSTED_KEY


def test_a_checkpoint_that_was_altered_is_told() -> None:
    proof = LOG.proof()
    other = Log(others=b"y")
    # The signature of one checkpoint under the text of another.
    proof["checkpoint"] = (
        other.checkpoint(10).partition("\n\n")[0] + "\n\n" + proof["checkpoint"].partition("\n\n")[2]
    )

    with pytest.raises(ProofError, match="altered, or forged") as refused:
        check(proof)
    assert refused.value.wrong == Wrong.FORGED_CHECKPOINT


def refused_with(proof: dict[str, Any], earlier: str) -> tuple[Wrong, str]:
    with pytest.raises(ProofError) as refused:
        check(proof, earlier)
    return refused.value.wrong, str(refused.value)


def test_a_rewritten_history_is_told_by_a_checkpoint_that_was_kept() -> None:
    rewritten = Log(others=b"y")

    # Of the same size, signed with the same key: each of both holds the transaction.
    assert check(rewritten.proof()).header == HEADER
    wrong, said = refused_with(rewritten.proof(), LOG.checkpoint(10))
    assert (wrong, said) == (Wrong.REWRITTEN_HISTORY, "history was rewritten: there are two logs of size 10")
    # Grown, with a proof of its own growth, or that of the true log.
    for size in range(1, 10):
        assert refused_with(rewritten.proof(10, size), LOG.checkpoint(size))[0] == Wrong.REWRITTEN_HISTORY
        mixed = rewritten.proof(10, size) | {"consistency": LOG.proof(10, size)["consistency"]}
        assert refused_with(mixed, LOG.checkpoint(size))[0] == Wrong.REWRITTEN_HISTORY


def test_a_log_that_was_cut_off_is_told() -> None:
    wrong, said = refused_with(LOG.proof(7), LOG.checkpoint(9))

    assert wrong == Wrong.TRUNCATED_LOG
    assert "the earlier checkpoint has 9, the proof's only 7" in said


def test_another_log_is_told() -> None:
    wrong, said = refused_with(LOG.proof(), Log("ledger.test/log_0").checkpoint(3))

    assert wrong == Wrong.OTHER_LOG
    assert "restored from a backup" in said


def test_without_a_consistency_proof_nothing_is_said_of_history() -> None:
    for proof in (LOG.proof(), LOG.proof(since=4)):
        wrong, said = refused_with(proof, LOG.checkpoint(3))
        assert wrong == Wrong.NO_CONSISTENCY
        assert "--since" in said


def test_the_earlier_checkpoint_must_be_signed_too() -> None:
    forged = LOG.checkpoint(4, SignerKey.generate("ledger.test"))

    assert refused_with(LOG.proof(since=4), forged)[0] == Wrong.UNTRUSTED_KEY
    assert refused_with(LOG.proof(since=4), "nothing")[0] == Wrong.MALFORMED
