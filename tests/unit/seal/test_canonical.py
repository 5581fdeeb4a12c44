"""The canonical form: golden vectors, which never change. Others write programs that make the same bytes."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.domain.accounts import AccountKind, TransactionType
from services.ledger.rpc.convert import KIND_TO_PROTO, TYPE_TO_PROTO
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.seal.canonical import (
    SealedEntry,
    SealedHeader,
    detail_commitment,
    entry_commitment,
    leaf,
)
from tallystick.seal.merkle import hash_leaf

SALT = bytes(range(16))
ENTRY = SealedEntry(
    number=2,
    owner_id="org_lark",
    kind="organization_payable",
    currency_code="USD",
    amount_micros=176_505,
    collected=True,
    earned_on=date(2026, 1, 1),
    available_on=date(2026, 1, 8),
)
HEADER = SealedHeader(
    log_id="log_1",
    position=7,
    transaction_id="txn_1",
    partition_id="cus_ada",
    type="charge",
    charge_id="ch_1",
    payout_id="",
    external_id="",
    correction_id="",
    occur_time=datetime(2026, 1, 1, 12, 30, tzinfo=UTC),
    create_time=datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC),
    entry_count=1,
)

# Made by PostgreSQL: sha256(salt || record_send(ROW(…))).
GOLDEN_ENTRY = "e959b4a66d9b09739ae9ab896326936ad834aa86afd72ea2d47d6c7396b5e899"
GOLDEN_DETAIL = "0cd81070a8d371ba90d47aab156313ff213844af4e099e87a3e359813a6c89f0"
GOLDEN_LEAF = (
    "00000011000000190000001974616c6c79737469636b2f7472616e73616374696f6e2f763100000019000000056c6f67"
    "5f3100000014000000080000000000000007000000190000000574786e5f3100000019000000076375735f6164610000"
    "001900000006636861726765000000190000000463685f31000000190000000000000019000000000000001900000000"
    "000004a0000000080002ea51851de200000004a0000000080002ea51851fc44000000014000000080000000000000001"
    "0000001100000020e959b4a66d9b09739ae9ab896326936ad834aa86afd72ea2d47d6c7396b5e8990000001100000020"
    "000000000000000000000000000000000000000000000000000000000000000000000011ffffffff0000001100000020"
    "0cd81070a8d371ba90d47aab156313ff213844af4e099e87a3e359813a6c89f0"
)
GOLDEN_LEAF_HASH = "c8c975e793d461ba4f8bf43b7cad523bfecc2a9338c1799d134033c89362e9c9"


def test_golden_entry() -> None:
    assert entry_commitment(SALT, ENTRY).hex() == GOLDEN_ENTRY


def test_golden_detail() -> None:
    assert detail_commitment(SALT, "reason", "Grund: schön".encode()).hex() == GOLDEN_DETAIL


def test_golden_leaf() -> None:
    data = leaf(HEADER, [bytes.fromhex(GOLDEN_ENTRY)], bytes(32), None, bytes.fromhex(GOLDEN_DETAIL))

    assert data.hex() == GOLDEN_LEAF
    assert hash_leaf(data).hex() == GOLDEN_LEAF_HASH


def test_a_salt_of_another_length_is_refused() -> None:
    # Otherwise its last bytes could be taken for the first of what follows.
    for salt in (b"", SALT[:15], SALT + b"x"):
        with pytest.raises(ValueError, match="16 bytes"):
            entry_commitment(salt, ENTRY)


TEXTS = st.text(max_size=8)


@given(first=st.lists(TEXTS, min_size=7, max_size=7), second=st.lists(TEXTS, min_size=7, max_size=7))
def test_what_differs_in_any_field_is_written_differently(first: list[str], second: list[str]) -> None:
    def written(texts: list[str]) -> bytes:
        log, transaction, partition, charge, payout, external, correction = texts
        header = SealedHeader(
            log, 1, transaction, partition, "charge", charge, payout, external, correction,
            HEADER.occur_time, HEADER.create_time, 0,
        )  # fmt: skip
        return leaf(header, [], bytes(32), None, None)

    assert (written(first) == written(second)) == (first == second)


def test_kinds_and_types_are_called_in_the_contract_as_they_are_sealed() -> None:
    # A verifier derives one name from the other.
    for kind in AccountKind:
        assert account_pb2.AccountKind.Name(KIND_TO_PROTO[kind]) == f"ACCOUNT_KIND_{kind.value.upper()}"
    for type in TransactionType:
        name = transaction_pb2.TransactionType.Name(TYPE_TO_PROTO[type])
        assert name == f"TRANSACTION_TYPE_{type.value.upper()}"
