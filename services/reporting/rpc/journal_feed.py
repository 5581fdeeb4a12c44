"""The ledger's journal as rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import grpc

from services.reporting.domain.facts import JournalBatch, Movement, PostedCharge, PostedTransaction, Revenue
from services.reporting.domain.projection import Feed, FeedGap
from services.reporting.rpc.feeds import FeedReader
from tallystick.journal import filled
from tallystick.ledger.v1 import account_pb2 as account
from tallystick.ledger.v1 import charge_pb2, correction_pb2, ledger_service_pb2_grpc
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.ledger.v1 import transaction_pb2 as posted
from tallystick.ledger.v1.journal_columns_pb2 import ChargeColumns, EntryColumns, JournalColumns

_TYPES: Final = {
    number: name.removeprefix("TRANSACTION_TYPE_").lower() for name, number in posted.TransactionType.items()
}
_KINDS: Final = {
    number: name.removeprefix("ACCOUNT_KIND_").lower() for name, number in account.AccountKind.items()
}
_COMPONENTS: Final = {
    number: name.removeprefix("CHARGE_COMPONENT_").lower()
    for name, number in charge_pb2.ChargeComponent.items()
}
# Whose accounts are on no statement: the platform's, and what it keeps of organizations' earnings.
_PLATFORM: Final = "platform"
_PAYABLE: Final = 2
# Where an organization's leg is within (platform fee, processing fee, net).
_LEGS: Final = {
    account.ACCOUNT_KIND_PLATFORM_FEES: 0,
    account.ACCOUNT_KIND_PROCESSING_FEES: 1,
    account.ACCOUNT_KIND_ORGANIZATION_PAYABLE: _PAYABLE,
}
_NOTHING: Final = (0, 0, 0)
_NO_BUCKET: Final = (None, None)
# What changes what was earned by a charge, without changing what was billed.
_OF_A_CHARGE: Final = frozenset(
    {
        posted.TRANSACTION_TYPE_COLLECTION,
        posted.TRANSACTION_TYPE_WRITE_OFF,
        posted.TRANSACTION_TYPE_PROMOTION_SETTLEMENT,
    }
)
# Owner, currency, kind and leg of the account; amount; whether it is collected, and when it is available.
_Line = tuple[tuple[str, str, str, int | None], int, tuple[bool | None, str | None]]
_Charge = tuple[tuple[str, str, str, int, str, int, str], Sequence[tuple[str, str, int]]]


class JournalReader(FeedReader[JournalBatch]):
    """Reads the ledger's journal."""

    feed = Feed.JOURNAL

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)

    def _begin(self, log_id: str, after: int) -> JournalBatch:
        return JournalBatch(log_id, after, after)

    def _call(self, log_id: str, after: int, size: int) -> Any:
        return self._ledger.ReadJournal(
            pb.ReadJournalRequest(
                after_position=after,
                log_id=log_id,
                batch_size=size,
                include_charges=True,
                form=pb.JOURNAL_FORM_COLUMNS,
            )
        )

    def _add(self, batch: JournalBatch, response: pb.ReadJournalResponse) -> None:
        columns = response.columns
        if response.transactions:
            raise FeedGap("journal: not served as columns: upgrade the ledger, which is older than this")
        for position in columns.positions:
            batch.follow(position)
        if columns.positions:
            batch.apply_time = columns.create_times_micros[-1]
            try:
                _add_transactions(batch, columns)
                _add_entries(batch, columns)
            except KeyError as error:
                # Of a kind that only a newer release knows. To go on would be to leave it out for ever.
                last = columns.positions[-1]
                raise FeedGap(f"journal: what is up to position {last} is not known here: {error}") from error


def _add_transactions(batch: JournalBatch, columns: JournalColumns) -> None:
    size = len(columns.positions)
    batch.transactions += map(
        PostedTransaction._make,
        zip(
            columns.positions,
            columns.transaction_ids,
            map(_TYPES.__getitem__, columns.types),
            filled(columns.charge_ids, size, ""),
            filled(columns.correction_ids, size, ""),
            filled(columns.payout_ids, size, ""),
            filled(columns.reasons, size, ""),
            columns.occur_times_micros,
            columns.create_times_micros,
            strict=True,
        ),
    )


def _add_entries(batch: JournalBatch, columns: JournalColumns) -> None:
    """Movements, and what was earned by what posts or changes a charge."""
    lines = _lines(columns.entries)
    charges = dict(zip(columns.charges.transaction_indexes, _charges(columns.charges), strict=True))
    corrections = {one.transaction_id: one for one in columns.corrections}
    size = len(columns.positions)
    for index, position, transaction_id, type, charge_id, entry_count in zip(
        range(size),
        columns.positions,
        columns.transaction_ids,
        columns.types,
        filled(columns.charge_ids, size, ""),
        filled(columns.entry_counts, size, 0),
        strict=True,
    ):
        # What each organization got or gave, by leg.
        earned: dict[str, list[int]] = {}
        currency_code = ""
        for entry_number, line in enumerate(islice(lines, entry_count), 1):
            (owner_id, currency_code, kind, leg), amount, (collected, available_on) = line
            if leg is not None:
                legs = earned.get(owner_id)
                if legs is None:
                    legs = earned[owner_id] = [0, 0, 0]
                legs[leg] += amount
                if leg != _PAYABLE:
                    continue
            if owner_id == _PLATFORM:
                continue
            batch.movements.append(
                Movement(
                    position,
                    entry_number,
                    owner_id,
                    currency_code,
                    kind,
                    amount,
                    collected,
                    available_on,
                )
            )
        if type == posted.TRANSACTION_TYPE_CHARGE:
            charge = charges.get(index)
            if charge is None:
                raise FeedGap(f"journal: the charge of position {position} is missing")
            _add_charge(batch, position, charge, earned)
        elif type in _OF_A_CHARGE and charge_id:
            # Of what was owed a collection moves earnings between buckets; what was unpaid is earned now. A
            # write-off of what was owed takes them back, though it stays billed, and so does a settlement of
            # what an organization's own promotion paid. (What is given up of earnings below zero, and what a
            # promotion pays for others, names no charge, and is no revenue.)
            batch.revenue += [
                Revenue(position, organization_id, "", currency_code, 0, *legs)
                for organization_id, legs in earned.items()
                if any(legs)
            ]
        elif type == posted.TRANSACTION_TYPE_CORRECTION:
            correction = corrections.get(transaction_id)
            if correction is None:
                raise FeedGap(f"journal: the correction of position {position} is missing")
            _add_correction(batch, position, correction, earned)


def _lines(entries: EntryColumns) -> Iterator[_Line]:
    """Each entry: its account, its amount, and of its bucket what movements say."""
    accounts = [
        (owner_id, currency_code, _KINDS[kind], _LEGS.get(kind))
        for owner_id, kind, currency_code in zip(
            entries.owner_ids, entries.kinds, entries.currency_codes, strict=True
        )
    ]
    buckets = [_NO_BUCKET, *((bucket.collected, bucket.available_on) for bucket in entries.buckets)]
    return zip(
        map(accounts.__getitem__, entries.account_indexes),
        entries.amounts_micros,
        map(buckets.__getitem__, filled(entries.bucket_numbers, len(entries.account_indexes), 0)),
        strict=True,
    )


def _charges(columns: ChargeColumns) -> Iterator[_Charge]:
    """Each charge but for its position, as PostedCharge has it; its payees: organization, agent, gross."""
    count = len(columns.components)
    organizations = columns.organization_ids
    payees = zip(
        organizations,
        columns.agent_ids,
        filled(columns.payee_gross_micros, len(organizations), 0),
        strict=True,
    )
    facts = zip(
        columns.customer_ids,
        columns.workflow_ids,
        map(_COMPONENTS.__getitem__, columns.components),
        filled(columns.ordinals, count, 0),
        columns.currency_codes,
        filled(columns.gross_micros, count, 0),
        columns.price_version_ids,
        strict=True,
    )
    for fact, payee_count in zip(facts, columns.payee_counts, strict=True):
        yield fact, [*islice(payees, payee_count)]


def _add_charge(
    batch: JournalBatch, position: int, charge: _Charge, earned: Mapping[str, Sequence[int]]
) -> None:
    facts, payees = charge
    posted_charge = PostedCharge(position, *facts)
    batch.charges.append(posted_charge)
    batch.revenue += [
        Revenue(
            position,
            organization_id,
            agent_id,
            posted_charge.currency_code,
            gross,
            *earned.get(organization_id, _NOTHING),
        )
        for organization_id, agent_id, gross in payees
    ]


def _add_correction(
    batch: JournalBatch,
    position: int,
    correction: correction_pb2.Correction,
    earned: Mapping[str, Sequence[int]],
) -> None:
    charge_id, amount = correction.charge_id, correction.amount
    batch.corrected[charge_id] = batch.corrected.get(charge_id, 0) + amount.amount_micros
    for earning in correction.earnings:
        billed, legs = earning.gross.amount_micros, earned.get(earning.organization_id, _NOTHING)
        if billed or any(legs):
            batch.revenue.append(
                Revenue(position, earning.organization_id, "", amount.currency_code, -billed, *legs)
            )
