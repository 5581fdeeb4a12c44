"""The journal as text: hledger and beancount accept it, and their balances are ours to the micro.

Where a program is not installed, its tests skip and say so.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.descriptor import EnumDescriptor

from services.ledger.domain.accounts import AccountKind
from services.ledger.domain.journal_text import ROOTS, account_name, account_of
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.ledger.v1 import audit_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_credits import Credits, intent
from tests.support.ledger_everything import CUSTOMERS, GIFTED, ORGANIZATIONS, play_everything, settled
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import refusal

TYPES: EnumDescriptor = transaction_pb2.TransactionType.DESCRIPTOR
HLEDGER, BEANCOUNT = pb.JOURNAL_FORMAT_HLEDGER, pb.JOURNAL_FORMAT_BEANCOUNT
needs_hledger = pytest.mark.skipif(shutil.which("hledger") is None, reason="hledger is not installed")
needs_beancount = pytest.mark.skipif(
    importlib.util.find_spec("beancount") is None, reason="beancount is not installed"
)
Balances = dict[tuple[str, str, str], int]


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        await play_everything(running)
        yield running


async def pieces(server: LedgerServer, **request: Any) -> list[pb.ExportJournalResponse]:
    return [one async for one in server.operator.audits.ExportJournal(pb.ExportJournalRequest(**request))]


async def export(server: LedgerServer, **request: Any) -> str:
    return "".join(piece.text for piece in await pieces(server, **request))


async def balances(server: LedgerServer) -> Balances:
    """Ours, by (owner, kind, currency), without those that are zero."""
    found: Balances = {}
    for owner_id in ("platform", *CUSTOMERS, GIFTED, *ORGANIZATIONS):
        request = ledger.ListAccountsRequest(owner_id=owner_id, page_size=1000)
        for one in (await server.operator.ledger.ListAccounts(request)).accounts:
            kind = account_pb2.AccountKind.Name(one.account.kind).removeprefix("ACCOUNT_KIND_").lower()
            if one.balance.amount_micros:
                found[owner_id, kind, one.account.currency_code] = one.balance.amount_micros
    return found


def ours(lines: Sequence[tuple[str, Decimal, str]]) -> Balances:
    """Balances as another program says them, (account, number, currency), with our names and signs."""
    found: Balances = {}
    for name, number, currency in lines:
        micros = -number * 1_000_000
        assert micros == int(micros)
        owner_id, kind = account_of(name)
        if micros:
            found[owner_id, str(kind), currency] = int(micros)
    return found


@dataclass(frozen=True)
class Program:
    """A run of another program."""

    status: int
    out: str
    err: str


def run(*argv: str) -> Program:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    return Program(done.returncode, done.stdout, done.stderr)


def hledger_balances(file: Path) -> Balances:
    shown = run(
        "hledger", "-f", str(file), "balance", "--flat", "--no-total", "--empty", "--layout=bare", "-O", "csv"
    )
    assert shown.status == 0, shown.err
    lines = [line.strip('"').split('","') for line in shown.out.splitlines()[1:]]
    return ours([(name, Decimal(number), currency) for name, currency, number in lines if currency])


# Summed by beancount itself, in a process of its own: what it loads stays there.
SUM = """
import sys
from beancount import loader
from beancount.core import data, inventory
entries, errors, _ = loader.load_file(sys.argv[1])
assert not errors, errors
totals = {}
for one in data.filter_txns(entries):
    for posting in one.postings:
        totals.setdefault(posting.account, inventory.Inventory()).add_position(posting)
for account, total in totals.items():
    for position in total:
        print(account, position.units.number, position.units.currency)
"""


def beancount_balances(file: Path) -> Balances:
    shown = run(sys.executable, "-c", SUM, str(file))
    assert shown.status == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    return ours([(name, Decimal(number), currency) for name, number, currency in lines])


def bean_check(file: Path) -> Program:
    return run(sys.executable, "-m", "beancount.scripts.check", str(file))


async def test_the_export_holds_every_type_and_every_kind(server: LedgerServer) -> None:
    text = await export(server, format=HLEDGER)
    types = {value.name.removeprefix("TRANSACTION_TYPE_").lower() for value in TYPES.values}
    assert set(re.findall(r"^\d{4}-\d\d-\d\d \* \(txn_\w+\) (\w+)$", text, flags=re.MULTILINE)) == types - {
        "unspecified"
    }
    kinds = {kind for _, kind, _ in await balances(server)}
    # Those that ended with nothing are there too.
    assert kinds <= {str(account_of(name)[1]) for name in re.findall(r"^account (\S+)$", text, flags=re.M)}
    assert {str(kind) for kind in AccountKind} == {
        str(account_of(name)[1]) for name in re.findall(r"^account (\S+)$", text, flags=re.M)
    }


@needs_hledger
async def test_hledger_accepts_it_and_has_our_balances(server: LedgerServer, tmp_path: Path) -> None:
    file = tmp_path / "books.journal"
    file.write_text(await export(server, format=HLEDGER))
    checked = run("hledger", "-f", str(file), "check", "--strict")
    assert checked.status == 0, checked.err
    expected = await balances(server)
    assert len({currency for *_, currency in expected}) == 2
    assert hledger_balances(file) == expected


@needs_beancount
async def test_beancount_accepts_it_and_has_our_balances(server: LedgerServer, tmp_path: Path) -> None:
    file = tmp_path / "books.beancount"
    file.write_text(await export(server, format=BEANCOUNT))
    checked = bean_check(file)
    assert (checked.status, checked.out, checked.err) == (0, "", "")
    assert beancount_balances(file) == await balances(server)


@needs_hledger
async def test_hledger_finds_what_somebody_changed(server: LedgerServer, tmp_path: Path) -> None:
    file = tmp_path / "books.journal"
    text = await export(server, format=HLEDGER)
    file.write_text(text.replace("0.030000 USD", "0.030001 USD", 1))
    assert run("hledger", "-f", str(file), "check", "--strict").status != 0
    file.write_text(re.sub(r"^account .*StripeFees\n", "", text, flags=re.MULTILINE))
    assert run("hledger", "-f", str(file), "check", "--strict").status != 0


@needs_beancount
async def test_beancount_finds_what_somebody_changed(server: LedgerServer, tmp_path: Path) -> None:
    file = tmp_path / "books.beancount"
    text = await export(server, format=BEANCOUNT)
    # A micro, which is below what beancount would infer as its tolerance from fewer digits.
    file.write_text(text.replace("0.030000 USD", "0.030001 USD", 1))
    assert bean_check(file).status != 0


async def test_each_transaction_carries_its_id_and_what_is_known_of_it(server: LedgerServer) -> None:
    for format in (HLEDGER, BEANCOUNT):
        text = await export(server, format=format)
        ids = Counter(re.findall(r"(?:\(|\^)(txn_\w+)", text))
        assert set(ids.values()) == {1}
        listed = set()
        async for batch in server.operator.ledger.ReadJournal(ledger.ReadJournalRequest()):
            listed |= {one.transaction.transaction_id for one in batch.transactions}
        assert set(ids) == listed
        assert len(ids) == (await pieces(server, format=format))[-1].until_position
        assert "po_back" in text
        assert "outage" in text


async def test_parts_by_position_add_up_to_the_whole(server: LedgerServer) -> None:
    whole = await pieces(server, format=HLEDGER)
    log_id, end = whole[0].log_id, whole[-1].until_position
    assert whole[-1].last_position == end
    cut = end // 2
    parts = [
        await export(server, format=HLEDGER, log_id=log_id, until_position=cut),
        await export(server, format=HLEDGER, log_id=log_id, after_position=cut),
    ]
    transactions = [_transactions(text) for text in parts]
    assert [len(one) for one in transactions] == [cut, end - cut]
    assert transactions[0] + transactions[1] == _transactions("".join(piece.text for piece in whole))
    empty = await export(server, format=BEANCOUNT, log_id=log_id, after_position=end)
    assert _transactions(empty) == []
    assert " open " in empty


def _transactions(text: str) -> list[str]:
    return [block for block in text.split("\n\n") if re.match(r"\d{4}-\d\d-\d\d \*", block)]


@needs_hledger
async def test_what_comes_in_meanwhile_is_for_the_next_time(server: LedgerServer, tmp_path: Path) -> None:
    stream = aiter(server.operator.audits.ExportJournal(pb.ExportJournalRequest(format=HLEDGER)))
    first = await anext(stream)
    before = await balances(server)
    await server.create_customer("cus_late")
    await Credits(server).post(intent("late", 5), intent("late", 6, customer="cus_late"))
    await settled(server)
    rest = [piece async for piece in stream]
    assert {piece.until_position for piece in rest} == {first.until_position}
    file = tmp_path / "books.journal"
    file.write_text(first.text + "".join(piece.text for piece in rest))
    assert run("hledger", "-f", str(file), "check", "--strict").status == 0
    assert hledger_balances(file) == before


async def test_requests_that_mean_nothing_are_refused(server: LedgerServer) -> None:
    log_id = (await pieces(server, format=HLEDGER))[0].log_id
    for field, request in (
        ("format", {}),
        ("after_position", {"format": HLEDGER, "after_position": -1}),
        ("until_position", {"format": HLEDGER, "until_position": -1}),
        ("until_position", {"format": HLEDGER, "log_id": log_id, "after_position": 5, "until_position": 3}),
        ("until_position", {"format": HLEDGER, "log_id": log_id, "until_position": 10**9}),
        ("after_position", {"format": HLEDGER, "log_id": log_id, "after_position": 10**9}),
        ("log_id", {"format": HLEDGER, "after_position": 1}),
        ("log_id", {"format": HLEDGER, "log_id": "log_other", "after_position": 1}),
    ):
        assert (await refusal(pieces(server, **request))).fields == [field]


@pytest.mark.parametrize("hour", ["00:00:00", "23:59:59.999999"])
@needs_hledger
async def test_the_day_is_the_one_in_utc(server: LedgerServer, tmp_path: Path, hour: str) -> None:
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        await superuser.execute("SET session_replication_role = replica")
        await superuser.execute(
            f"UPDATE ledger.transaction SET create_time = '2026-02-28 {hour}+00'".encode()
        )
    text = await export(server, format=HLEDGER)
    assert set(re.findall(r"^(\d{4}-\d\d-\d\d) \*", text, flags=re.MULTILINE)) == {"2026-02-28"}
    file = tmp_path / "books.journal"
    file.write_text(text)
    assert run("hledger", "-f", str(file), "check", "--strict").status == 0


def test_every_kind_of_account_has_its_place() -> None:
    assert set(ROOTS) == set(AccountKind)


@pytest.mark.parametrize("owner", [*CUSTOMERS, "cus_--u", "cus_a-d", "cus_0._-", "cus_" + "x-" * 29 + "_"])
def test_names_of_accounts_are_reversible(owner: str) -> None:
    for kind in AccountKind:
        if not str(kind).startswith(("customer", "unpaid")):
            continue
        name = account_name(owner, kind)
        assert account_of(name) == (owner, kind)
        root, *parts = name.split(":")
        assert root in {"Assets", "Liabilities", "Equity", "Income", "Expenses"}
        assert all(re.fullmatch("[A-Z0-9][A-Za-z0-9-]*", part) for part in parts)


def test_no_two_owners_share_a_name() -> None:
    owners = [
        "cus_a_b",
        "cus_a-ub",
        "cus_a-b",
        "cus_a--b",
        "cus_a.b",
        "cus_a-db",
        "cus_A_b",
        "cus_a-_b",
        "cus_a_-b",
    ]
    names = {account_name(owner, AccountKind.CUSTOMER_CREDITS) for owner in owners}
    assert len(names) == len(owners)
