"""The journal as text for hledger and beancount (docs/journal-export.md).

Both know an amount as positive if it is a debit; ours are positive if they are credits. So every sign turns,
and a balance there is the negative of the ledger's own.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final

from services.kit.money import MICROS_PER_UNIT
from services.ledger.domain.accounts import PLATFORM_OWNER, AccountKind

# Before everything that could be posted.
_OPENED: Final = "1970-01-01"
_KIND_OF_OWNER: Final = {"cus": "Customers", "org": "Organizations", PLATFORM_OWNER: "Platform"}
# Where an account stands in their charts. What is only a memorandum is in neither assets nor liabilities.
ROOTS: Final = {
    AccountKind.CUSTOMER_CREDITS: "Liabilities",
    AccountKind.CUSTOMER_RECEIVABLE: "Assets",
    AccountKind.CUSTOMER_CHARGEBACKS: "Assets",
    AccountKind.CUSTOMER_UNPAID: "Equity",
    AccountKind.UNPAID_OFFSET: "Equity",
    AccountKind.ORGANIZATION_PAYABLE: "Liabilities",
    AccountKind.PAYOUTS_IN_TRANSIT: "Liabilities",
    AccountKind.PLATFORM_FEES: "Income",
    AccountKind.PROCESSING_FEES: "Income",
    AccountKind.STRIPE_CLEARING: "Assets",
    AccountKind.STRIPE_FEES: "Expenses",
    AccountKind.PROMOTIONS: "Expenses",
    AccountKind.ADJUSTMENTS: "Equity",
    AccountKind.WRITE_OFFS: "Expenses",
    AccountKind.CLAWBACK_LOSSES: "Expenses",
    AccountKind.EXPIRED_CREDITS: "Income",
}


class JournalFormat(StrEnum):
    """The program that shall read it."""

    HLEDGER = "hledger"
    BEANCOUNT = "beancount"


@dataclass(frozen=True, slots=True)
class TextEntry:
    """An entry as it is written: `bucket` is (collected, earned on, available on), if it has one."""

    owner_id: str
    kind: str
    currency_code: str
    amount: int
    bucket: tuple[bool, date, date] | None = None


@dataclass(frozen=True, slots=True)
class TextTransaction:
    """A transaction as it is written. `facts` are what else is known of it, as (name, value)."""

    position: int
    transaction_id: str
    type: str
    create_time: datetime
    facts: Sequence[tuple[str, str]]
    entries: Sequence[TextEntry]


# Charges of a day name the same accounts again and again.
@lru_cache(maxsize=10_000)
def account_name(owner_id: str, kind: str) -> str:
    """The name of an account in both programs: Liabilities:Customers:Cus-ada:CustomerCredits."""
    # Of the owner and not of the kind: promotions are the platform's or an organization's.
    kind_of_owner = _KIND_OF_OWNER[owner_id.partition("_")[0]]
    last = "".join(part.capitalize() for part in kind.split("_"))
    parts = [ROOTS[AccountKind(kind)], kind_of_owner]
    if owner_id != PLATFORM_OWNER:
        parts.append(_owner_name(owner_id))
    return ":".join([*parts, last])


def account_of(name: str) -> tuple[str, AccountKind]:
    """The owner and kind that an account's name stands for. Raises ValueError for others."""
    _, kind_of_owner, *owner, last = name.split(":")
    kind = AccountKind("_".join(re.findall("[A-Z][a-z]*", last)).lower())
    if kind_of_owner == _KIND_OF_OWNER[PLATFORM_OWNER]:
        return PLATFORM_OWNER, kind
    return _owner_of(*owner), kind


# Their names may have letters, digits and hyphens. A hyphen begins the sign for what an id may have beyond.
_SIGNS: Final = {"-": "--", "_": "-u", ".": "-d"}
_CHARACTERS: Final = {sign: character for character, sign in _SIGNS.items()}


def _owner_name(owner_id: str) -> str:
    # The first letter of a part is a capital: those of the prefixes are the only ones that change.
    prefix, _, suffix = owner_id.partition("_")
    return f"{prefix.capitalize()}-{re.sub('[-_.]', lambda found: _SIGNS[found[0]], suffix)}"


def _owner_of(name: str) -> str:
    prefix, _, suffix = name.partition("-")
    return f"{prefix.lower()}_{re.sub('-[-ud]', lambda found: _CHARACTERS[found[0]], suffix)}"


def amount_text(micros: int) -> str:
    """A number of micros as a decimal with all six digits, its sign turned."""
    sign = "-" if micros > 0 else ""
    units, fraction = divmod(abs(micros), MICROS_PER_UNIT)
    return f"{sign}{units}.{fraction:06d}"


@dataclass(frozen=True, slots=True)
class JournalText:
    """What makes the text of one format."""

    head: Callable[[str, int, int], str]
    # Of accounts as (owner, kind), and of currencies.
    declarations: Callable[[Sequence[tuple[str, str]], Sequence[str]], str]
    transaction: Callable[[TextTransaction], str]


def journal_text(format: JournalFormat) -> JournalText:
    """What makes the text of this format."""
    return _TEXTS[format]


def _head(log_id: str, after: int, until: int) -> str:
    part = f"positions {after + 1} to {until}" if until > after else "no transaction"
    return (
        f"; The journal of Tallystick, log {log_id}, {part}. Debits are positive: balances are the negatives"
        " of the ledger's.\n\n"
    )


def _declare_to_hledger(accounts: Sequence[tuple[str, str]], currencies: Sequence[str]) -> str:
    return "".join(
        [
            *(f"commodity 1000.000000 {currency}\n" for currency in currencies),
            *(f"account {account_name(owner_id, kind)}\n" for owner_id, kind in accounts),
        ]
    )


def _declare_to_beancount(accounts: Sequence[tuple[str, str]], currencies: Sequence[str]) -> str:
    return "".join(
        [
            *(f"{_OPENED} commodity {currency}\n" for currency in currencies),
            *(f"{_OPENED} open {account_name(owner_id, kind)}\n" for owner_id, kind in accounts),
        ]
    )


def _to_hledger(one: TextTransaction) -> str:
    lines = [f"{one.create_time:%Y-%m-%d} * ({one.transaction_id}) {one.type}"]
    facts = [("position", str(one.position)), ("create-time", one.create_time.isoformat()), *one.facts]
    # A comma ends the value of a tag.
    lines += [f"    ; {name}: {_plain(value).replace(',', ';')}" for name, value in facts]
    for entry in one.entries:
        line = f"    {account_name(entry.owner_id, entry.kind)}  {_amount(entry)}"
        lines.append(f"{line}  ; bucket: {_bucket(entry.bucket)}" if entry.bucket else line)
    return "\n".join(lines) + "\n\n"


def _to_beancount(one: TextTransaction) -> str:
    lines = [f'{one.create_time:%Y-%m-%d} * "{one.type}" ^{one.transaction_id}']
    facts = [
        ("transaction-id", one.transaction_id),
        ("position", str(one.position)),
        ("create-time", one.create_time.isoformat()),
        *one.facts,
    ]
    lines += [f"  {name}: {_quoted(value)}" for name, value in facts]
    for entry in one.entries:
        lines.append(f"  {account_name(entry.owner_id, entry.kind)}  {_amount(entry)}")
        if entry.bucket:
            lines.append(f"    bucket: {_quoted(_bucket(entry.bucket))}")
    return "\n".join(lines) + "\n\n"


def _amount(entry: TextEntry) -> str:
    return f"{amount_text(entry.amount)} {entry.currency_code}"


def _bucket(bucket: tuple[bool, date, date]) -> str:
    collected, earned_on, available_on = bucket
    return f"{'collected' if collected else 'uncollected'} earned {earned_on} available {available_on}"


def _plain(value: str) -> str:
    """A text that people wrote, on one line."""
    return " ".join("".join(char if char.isprintable() else " " for char in value).split())


def _quoted(value: str) -> str:
    escaped = _plain(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_TEXTS: Final = {
    JournalFormat.HLEDGER: JournalText(_head, _declare_to_hledger, _to_hledger),
    JournalFormat.BEANCOUNT: JournalText(_head, _declare_to_beancount, _to_beancount),
}
