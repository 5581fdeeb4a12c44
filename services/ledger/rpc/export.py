"""ExportJournal: the journal as text for programs that others wrote.

Each piece is one short transaction. What is posted never changes, so together they are as one snapshot of the
moment when the end was fixed.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.feeds import FeedSlice, in_turns
from services.kit.tenancy import PLATFORM, scope_hot
from services.ledger.domain.journal_text import (
    JournalFormat,
    JournalText,
    TextEntry,
    TextTransaction,
    journal_text,
)
from services.ledger.rpc.ledger_base import Context
from services.ledger.store.feed import FeedFilter, JournalRows, read_journal
from services.ledger.store.journal_accounts import list_accounts, list_currencies
from tallystick.ledger.v1 import audit_service_pb2 as pb

# Transactions, or accounts, in a piece: some hundred kilobytes.
_PIECE: Final = 500
_FORMATS: Final = {
    pb.JOURNAL_FORMAT_HLEDGER: JournalFormat.HLEDGER,
    pb.JOURNAL_FORMAT_BEANCOUNT: JournalFormat.BEANCOUNT,
}
_NO_FILTER: Final = FeedFilter()


class ExportRpcs:
    """The journal as text."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def ExportJournal(
        self, request: pb.ExportJournalRequest, context: Context
    ) -> AsyncIterator[pb.ExportJournalResponse]:
        text, after, until = _asked(request)
        # Without a transaction: only where the journal ends.
        start = await self._read(request.log_id, after, 0)
        log_id = start.log_id
        if until > start.head_position:
            raise InvalidArgument.of("until_position", f"is behind the end, {start.head_position}")
        until = until or max(after, start.head_position)
        yield pb.ExportJournalResponse(
            text=text.head(log_id, after, until), log_id=log_id, last_position=after, until_position=until
        )
        async for declared in self._declarations(text):
            yield pb.ExportJournalResponse(
                text=declared, log_id=log_id, last_position=after, until_position=until
            )
        while after < until:
            found = await self._read(log_id, after, min(_PIECE, until - after))
            after = found.last_position
            yield pb.ExportJournalResponse(
                text=await _written(text, found), log_id=log_id, last_position=after, until_position=until
            )

    async def _read(self, log_id: str, after: int, size: int) -> FeedSlice[JournalRows]:
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            return await read_journal(connection, log_id, after, size, _NO_FILTER, include_charges=False)

    async def _declarations(self, text: JournalText) -> AsyncIterator[str]:
        """Accounts and currencies, of which there are at least those that the journal has so far."""
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            currencies = await list_currencies(connection)
        yield text.declarations((), currencies)
        last = ("", "")
        while True:
            async with self._reader.hot() as connection:
                await scope_hot(connection, PLATFORM)
                accounts = await list_accounts(connection, last, _PIECE)
            if not accounts:
                break
            last = accounts[-1]
            yield text.declarations(accounts, ())
        yield "\n"


def _asked(request: pb.ExportJournalRequest) -> tuple[JournalText, int, int]:
    """The format, and the positions to begin behind and to end with."""
    format = _FORMATS.get(request.format)
    if format is None:
        raise InvalidArgument.of("format", "must be HLEDGER or BEANCOUNT")
    after, until = request.after_position, request.until_position
    if after < 0:
        raise InvalidArgument.of("after_position", "must not be negative")
    if until < 0 or 0 < until < after:
        raise InvalidArgument.of("until_position", "must not be negative, or before after_position")
    if (after or until) and not request.log_id:
        raise InvalidArgument.of("log_id", "is required with a position")
    return journal_text(format), after, until


async def _written(text: JournalText, found: FeedSlice[JournalRows]) -> str:
    parts: list[str] = []
    async for rows in in_turns(found.records.transactions):
        parts += [
            text.transaction(_transaction(row, found.records.entries[row.transaction_id])) for row in rows
        ]
    return "".join(parts)


def _transaction(row: Any, entries: Sequence[Any]) -> TextTransaction:
    facts = (
        ("charge-id", row.charge_id),
        ("correction-id", row.correction_id),
        ("payout-id", row.payout_id),
        ("external-id", row.external_id),
        ("reason", row.reason),
    )
    return TextTransaction(
        position=row.position,
        transaction_id=row.transaction_id,
        type=row.type,
        create_time=row.create_time,
        facts=[fact for fact in facts if fact[1]],
        entries=[_entry(entry) for entry in entries],
    )


def _entry(row: Sequence[Any]) -> TextEntry:
    _, owner_id, kind, currency, amount, collected, earned_on, available_on, _, _ = row
    bucket = None if collected is None else (collected, earned_on, available_on)
    return TextEntry(owner_id, kind, currency, amount, bucket)
