"""ReadJournal: the feed that read models are made from."""

from collections.abc import AsyncIterator

from services.kit.auth import current_principal
from services.kit.errors import InvalidArgument
from services.kit.feeds import FeedSlice, read_feed
from services.kit.tenancy import scope_hot, tenants_of
from services.ledger.rpc import convert
from services.ledger.rpc.journal_columns import fill_columns
from services.ledger.rpc.journal_rows import fill_transactions
from services.ledger.rpc.ledger_base import Context, LedgerBase, check_owner
from services.ledger.store.feed import FeedFilter, JournalRows, read_journal
from services.ledger.store.feed_columns import PackedColumns, read_journal_columns
from tallystick.ledger.v1 import ledger_service_pb2 as pb

_MAX_OWNERS = 100


class JournalRpcs(LedgerBase):
    """Reading the journal in the order of its positions."""

    async def ReadJournal(
        self, request: pb.ReadJournalRequest, context: Context
    ) -> AsyncIterator[pb.ReadJournalResponse]:
        principal = current_principal()
        tenants, show_actor = tenants_of(principal), principal.is_platform
        filter, as_columns = _filter(request), _as_columns(request)

        async def read_rows(log_id: str, after: int, size: int) -> FeedSlice[JournalRows]:
            async with self._reader.hot() as connection:
                await scope_hot(connection, tenants)
                return await read_journal(
                    connection, log_id, after, size, filter, include_charges=request.include_charges
                )

        async def read_columns(log_id: str, after: int, size: int) -> FeedSlice[PackedColumns]:
            async with self._reader.hot() as connection:
                await scope_hot(connection, tenants)
                return await read_journal_columns(
                    connection, log_id, after, size, filter, include_charges=request.include_charges
                )

        if as_columns:
            async for columns in read_feed(request, read_columns):
                response = _response(columns)
                await fill_columns(response.columns, columns.records.unpack(), show_actor=show_actor)
                yield response
        else:
            async for rows in read_feed(request, read_rows):
                response = _response(rows)
                await fill_transactions(response, rows.records, show_actor=show_actor)
                yield response


def _filter(request: pb.ReadJournalRequest) -> FeedFilter:
    if len(request.owner_ids) > _MAX_OWNERS:
        raise InvalidArgument.of("owner_ids", f"must be at most {_MAX_OWNERS}")
    return FeedFilter(
        types=frozenset(convert.type_from_proto(type, "types") for type in request.types),
        owner_ids=frozenset(
            check_owner(owner_id, f"owner_ids[{number}]") for number, owner_id in enumerate(request.owner_ids)
        ),
    )


def _as_columns(request: pb.ReadJournalRequest) -> bool:
    if request.form not in pb.JournalForm.values():
        raise InvalidArgument.of("form", "must be a known form")
    return request.form == pb.JOURNAL_FORM_COLUMNS


def _response(found: FeedSlice[JournalRows] | FeedSlice[PackedColumns]) -> pb.ReadJournalResponse:
    return pb.ReadJournalResponse(
        log_id=found.log_id, last_position=found.last_position, head_position=found.head_position
    )
