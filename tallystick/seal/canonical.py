"""The canonical form of what is sealed: the same bytes from everybody who has the same facts.

docs/seal.md specifies it. A record is the number of its fields, and for each field the number of its type,
the length of its content, and the content; all numbers big-endian. The ledger writes the same bytes in
PostgreSQL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Final, TypeAlias

SALT_SIZE: Final = 16

_BOOLEAN, _BYTES, _INTEGER, _TEXT, _DATE, _TIME = 16, 17, 20, 25, 1082, 1184
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_ABSENT: Final = b"\xff\xff\xff\xff"
_MICROSECOND: Final = timedelta(microseconds=1)

_Field: TypeAlias = tuple[int, bytes | None]


@dataclass(frozen=True, slots=True)
class SealedEntry:
    """One entry of a transaction, with all that is sealed of it. The bucket is None where there is none."""

    number: int
    owner_id: str
    kind: str
    currency_code: str
    amount_micros: int
    collected: bool | None = None
    earned_on: date | None = None
    available_on: date | None = None
    account_version: int = 0


@dataclass(frozen=True, slots=True)
class SealedHeader:
    """What everybody may know of a transaction who is a party to it. Texts that do not apply are empty."""

    log_id: str
    position: int
    transaction_id: str
    partition_id: str
    type: str
    charge_id: str
    payout_id: str
    external_id: str
    correction_id: str
    occur_time: datetime
    create_time: datetime
    entry_count: int


def entry_commitment(salt: bytes, entry: SealedEntry) -> bytes:
    """What stands for an entry in its transaction."""
    return _commitment(
        salt,
        _text("tallystick/entry/v1"),
        _integer(entry.number),
        _text(entry.owner_id),
        _text(entry.kind),
        _text(entry.currency_code),
        _integer(entry.amount_micros),
        (_BOOLEAN, None if entry.collected is None else bytes([entry.collected])),
        _date(entry.earned_on),
        _date(entry.available_on),
        _integer(entry.account_version),
    )


def detail_commitment(salt: bytes, name: str, content: bytes) -> bytes:
    """What stands for another detail of a transaction: its actor, its reason, or its evidence."""
    return _commitment(salt, _text("tallystick/detail/v1"), _text(name), (_BYTES, content))


def leaf(
    header: SealedHeader,
    entries: Sequence[bytes],
    actor: bytes,
    reason: bytes | None,
    evidence: bytes | None,
) -> bytes:
    """The leaf of a transaction: its header, and the commitments of its entries and details."""
    return _record(
        _text("tallystick/transaction/v1"),
        _text(header.log_id),
        _integer(header.position),
        _text(header.transaction_id),
        _text(header.partition_id),
        _text(header.type),
        _text(header.charge_id),
        _text(header.payout_id),
        _text(header.external_id),
        _text(header.correction_id),
        _time(header.occur_time),
        _time(header.create_time),
        _integer(header.entry_count),
        (_BYTES, b"".join(entries)),
        (_BYTES, actor),
        (_BYTES, reason),
        (_BYTES, evidence),
    )


def _commitment(salt: bytes, *fields: _Field) -> bytes:
    if len(salt) != SALT_SIZE:
        # Its length is not part of what is hashed.
        raise ValueError(f"a salt has {SALT_SIZE} bytes")
    return sha256(salt + _record(*fields)).digest()


def _record(*fields: _Field) -> bytes:
    return len(fields).to_bytes(4) + b"".join(_field(kind, content) for kind, content in fields)


def _field(kind: int, content: bytes | None) -> bytes:
    if content is None:
        return kind.to_bytes(4) + _ABSENT
    return kind.to_bytes(4) + len(content).to_bytes(4) + content


def _text(text: str) -> _Field:
    return _TEXT, text.encode()


def _integer(number: int) -> _Field:
    return _INTEGER, number.to_bytes(8, signed=True)


def _date(day: date | None) -> _Field:
    return _DATE, None if day is None else (day - _EPOCH.date()).days.to_bytes(4, signed=True)


def _time(time: datetime) -> _Field:
    return _TIME, ((time - _EPOCH) // _MICROSECOND).to_bytes(8, signed=True)
