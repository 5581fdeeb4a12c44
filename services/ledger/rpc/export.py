"""ExportJournal: the journal as text for programs that others wrote.

Each piece is one short transaction. What is posted never changes, so together they are as one snapshot of the
moment when the end was fixed.
"""

from collections.abc import AsyncIterator
from typing import Final

from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.feeds import in_turns
from services.kit.tenancy import PLATFORM, scope_hot
from services.ledger.domain.journal_text import JournalFormat, JournalText, TextTransaction, journal_text
from services.ledger.rpc.ledger_base import Context
from services.ledger.store.journal_export import (
    find_end,
    list_accounts,
    list_currencies,
    read_transactions,
)
from tallystick.ledger.v1 import audit_service_pb2 as pb

# Transactions, or accounts, in a piece: some hundred kilobytes.
_PIECE: Final = 500
_FORMATS: Final = {
    pb.JOURNAL_FORMAT_HLEDGER: JournalFormat.HLEDGER,
    pb.JOURNAL_FORMAT_BEANCOUNT: JournalFormat.BEANCOUNT,
}


class ExportRpcs:
    """The journal as text."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def ExportJournal(
        self, request: pb.ExportJournalRequest, context: Context
    ) -> AsyncIterator[pb.ExportJournalResponse]:
        text, after, until = _asked(request)
        log_id, end = await self._end(request.log_id)
        if max(after, until) > end:
            field = "until_position" if until > end else "after_position"
            raise InvalidArgument.of(field, f"is behind the end, {end}")
        # Fixed here: what comes in from now on is for the next time.
        until = until or end
        yield pb.ExportJournalResponse(
            text=text.head(log_id, after, until), log_id=log_id, last_position=after, until_position=until
        )
        async for declared in self._declarations(text):
            yield pb.ExportJournalResponse(
                text=declared, log_id=log_id, last_position=after, until_position=until
            )
        while after < until:
            through = min(after + _PIECE, until)
            found = await self._read(log_id, after, through)
            after = through
            yield pb.ExportJournalResponse(
                text=await _written(text, found), log_id=log_id, last_position=after, until_position=until
            )

    async def _end(self, log_id: str) -> tuple[str, int]:
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            return await find_end(connection, log_id)

    async def _read(self, log_id: str, after: int, until: int) -> list[TextTransaction]:
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            return await read_transactions(connection, log_id, after, until)

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


async def _written(text: JournalText, found: list[TextTransaction]) -> str:
    parts: list[str] = []
    async for some in in_turns(found):
        parts += [text.transaction(one) for one in some]
    return "".join(parts)
