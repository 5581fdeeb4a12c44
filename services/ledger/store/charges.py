"""Posting and reading charges."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.kit.errors import AlreadyExists, FailedPrecondition, NotFound, TallystickError
from services.kit.ids import AGENT, CUSTOMER
from services.ledger.domain.charges import (
    Charge,
    ChargeComponent,
    ChargeIntent,
    ChargePayment,
    Earning,
    PostedCharge,
)
from services.ledger.domain.credits import (
    NO_LEASE,
    EndedReservation,
    Hold,
    HoldPurpose,
    HoldState,
    ReservationClaim,
    ReservationState,
)
from services.ledger.store import credit_rows

# Parameters travel in binary form (%b): times and bytes are written in a fraction of the time.
_POST_CHARGES = """
SELECT * FROM ledger.post_charges(
    %b::text[], %b::text[], %b::text[], %b::smallint[], %b::integer[], %b::text[], %b::bigint[],
    %b::timestamptz[], %b::text[], %b::bytea[], %b::bytea[],
    %b::integer[], %b::text[], %b::text[], %b::bigint[], %b,
    %b::text[], %b::bigint[], %b::bigint[], %b::timestamptz[], %b::text[], %b::bigint[], %b::timestamptz[]
)
"""


class TotalOutOfRange(Exception):
    """A total would leave 64 bits. Nothing was done; which charge it was, PostgreSQL does not say."""


async def post_charges(
    connection: AsyncConnection[TupleRow], intents: Sequence[ChargeIntent], actor_api_key_id: str
) -> list[PostedCharge | TallystickError]:
    """Post charges in the order given, with a verdict for each. Their charge ids must be distinct.

    One statement: see ledger.post_charges for its locks and its order of steps. Raises TotalOutOfRange.
    """
    payees = [(number, payee) for number, intent in enumerate(intents, 1) for payee in intent.payees]
    cursor = connection.cursor(row_factory=namedtuple_row)
    try:
        await cursor.execute(
            _POST_CHARGES,
            (
                [intent.charge_id for intent in intents],
                [intent.customer_id for intent in intents],
                [intent.workflow_id for intent in intents],
                [int(intent.component) for intent in intents],
                [intent.ordinal for intent in intents],
                [intent.currency_code for intent in intents],
                [intent.gross for intent in intents],
                [intent.occur_time for intent in intents],
                [intent.price_version_id for intent in intents],
                [intent.evidence_hash for intent in intents],
                [intent.content_hash for intent in intents],
                [number for number, _ in payees],
                [payee.organization_id for _, payee in payees],
                [payee.agent_id for _, payee in payees],
                [payee.weight for _, payee in payees],
                actor_api_key_id,
                *_claims(intents),
                *_outcome_holds(intents),
            ),
        )
    except psycopg.errors.NumericValueOutOfRange:
        raise TotalOutOfRange from None
    return [_verdict(intent, row) for intent, row in zip(intents, await cursor.fetchall(), strict=True)]


# NULLs instead of arrays say that no charge of the batch has any.
_Columns = tuple[list[Any] | None, ...]


def _claims(intents: Sequence[ChargeIntent]) -> _Columns:
    """The claims on reservations: ids, epochs, amounts, times."""
    if not any(intent.reservation for intent in intents):
        return (None, None, None, None)
    claims = [intent.reservation or ReservationClaim("", NO_LEASE) for intent in intents]
    return (
        [claim.reservation_id for claim in claims],
        [claim.lease_epoch for claim in claims],
        [claim.amount for claim in claims],
        # Without a time in the claim it does not matter.
        [claim.expire_time or intent.occur_time for claim, intent in zip(claims, intents, strict=True)],
    )


def _outcome_holds(intents: Sequence[ChargeIntent]) -> _Columns:
    """The holds for outcomes: ids, amounts, times."""
    if not any(intent.outcome_hold for intent in intents):
        return (None, None, None)
    asked = [(intent.outcome_hold, intent.occur_time) for intent in intents]
    return (
        [hold.hold_id if hold else "" for hold, _ in asked],
        [hold.amount if hold else 0 for hold, _ in asked],
        [hold.expire_time if hold else time for hold, time in asked],
    )


def _verdict(intent: ChargeIntent, row: Any) -> PostedCharge | TallystickError:
    if row.status == "unknown":
        return unknown_party(row.unknown_id)
    if row.status == "reused":
        return key_reused(intent.charge_id)
    shares = [
        row.payee_gross,
        row.platform_fees,
        row.processing_fees,
        row.platform_fee_bps,
        row.processing_fee_bps,
    ]
    corrected = 0
    if row.corrected_legs is not None:
        # By leg: net, platform fee and processing fee of each payee.
        shares += [row.corrected_legs[0::3], row.corrected_legs[1::3], row.corrected_legs[2::3]]
        corrected = sum(row.corrected_legs)
    charge = Charge(
        charge_id=intent.charge_id,
        customer_id=intent.customer_id,
        workflow_id=intent.workflow_id,
        component=intent.component,
        ordinal=intent.ordinal,
        currency_code=intent.currency_code,
        gross=intent.gross,
        earnings=tuple(
            [
                Earning(payee.organization_id, payee.agent_id, *amounts)
                for payee, amounts in zip(intent.payees, zip(*shares, strict=True), strict=True)
            ]
        ),
        payment=ChargePayment(
            from_credits=intent.gross - corrected - row.written_off - row.receivable - row.unpaid,
            receivable=row.receivable,
            unpaid=row.unpaid,
        ),
        occur_time=intent.occur_time,
        create_time=row.create_time,
        price_version_id=intent.price_version_id,
        evidence_hash=row.evidence_hash,
        transaction_id=row.transaction_id,
        reservation_id=row.reservation_id,
        captured=row.captured_credits + row.captured_receivable,
        corrected=corrected,
        written_off=row.written_off,
    )
    return PostedCharge(
        charge=charge,
        balance=credit_rows.balance(row, intent.customer_id, intent.currency_code),
        duplicate=row.status == "duplicate",
        evidence_differs=row.evidence_hash != intent.evidence_hash,
        reservation=_reservation(intent, row),
        outcome_hold=_outcome_hold(intent, row),
    )


def _reservation(intent: ChargeIntent, row: Any) -> EndedReservation | None:
    if intent.reservation is None or row.reservation_state is None:
        return None
    # The charge may have been paid from another one.
    own = intent.reservation.reservation_id == row.reservation_id
    return EndedReservation(
        state=ReservationState(row.reservation_state),
        currency_code=intent.currency_code,
        captured_credits=row.captured_credits if own else 0,
        captured_receivable=row.captured_receivable if own else 0,
        lease=credit_rows.current_lease(row, intent.customer_id, intent.currency_code),
    )


def _outcome_hold(intent: ChargeIntent, row: Any) -> Hold | None:
    if intent.outcome_hold is None or row.hold_state is None:
        return None
    return Hold(
        customer_id=intent.customer_id,
        hold_id=intent.outcome_hold.hold_id,
        currency_code=intent.currency_code,
        purpose=HoldPurpose(row.hold_purpose),
        state=HoldState(row.hold_state),
        credits=row.hold_credits,
        receivable=row.hold_receivable,
        captured=row.hold_captured_credits + row.hold_captured_receivable,
        charge_id=row.hold_charge_id,
        expire_time=row.hold_expire_time,
        create_time=row.hold_create_time,
        end_time=row.hold_end_time,
    )


def key_reused(charge_id: str) -> AlreadyExists:
    """The error for an intent whose charge was posted with other content."""
    return AlreadyExists(
        "this charge was posted before with other content",
        reason="IDEMPOTENCY_KEY_REUSED",
        metadata={"key": charge_id},
    )


def out_of_range(intent: ChargeIntent) -> FailedPrecondition:
    """The error for a charge that a customer's or an organization's total has no room for."""
    return FailedPrecondition(
        "a total of this charge's customer or payees would leave 64 bits",
        reason="BALANCE_OUT_OF_RANGE",
        metadata={"customer_id": intent.customer_id, "charge_id": intent.charge_id},
    )


def unknown_party(party_id: str) -> NotFound:
    """The error for a customer, organization or agent that does not exist."""
    kind = {CUSTOMER: "customer", AGENT: "agent"}.get(party_id.partition("_")[0], "organization")
    return NotFound(
        f"{kind} {party_id} does not exist",
        reason=f"{kind.upper()}_NOT_FOUND",
        metadata={f"{kind}_id": party_id},
    )


def unknown_charge(charge_id: str) -> NotFound:
    """The error for a charge that is not there, or none of the reader's business."""
    return NotFound(
        f"charge {charge_id} does not exist", reason="CHARGE_NOT_FOUND", metadata={"charge_id": charge_id}
    )


_CUSTOMER_CHARGE = text("SELECT * FROM ledger.customer_charge WHERE charge_id = :charge_id")
_EARNINGS = text("SELECT * FROM ledger.earning WHERE charge_id = :charge_id ORDER BY payee_number")


async def get_charge(connection: Connection, charge_id: str) -> Charge:
    """A charge as the connection's tenants may see it; raises NotFound if they see nothing of it.

    The payer sees what it costs and how it is paid, a payee its own earning, and the platform both.
    """
    paid = (await connection.execute(_CUSTOMER_CHARGE, {"charge_id": charge_id})).mappings().one_or_none()
    earned = (await connection.execute(_EARNINGS, {"charge_id": charge_id})).mappings().all()
    if paid is None and not earned:
        raise unknown_charge(charge_id)
    header = paid if paid is not None else earned[0]
    occur_time: datetime = header["occur_time"]
    earnings = tuple(
        Earning(
            organization_id=row["organization_id"],
            agent_id=row["agent_id"],
            gross=row["gross"],
            platform_fee=row["platform_fee"],
            processing_fee=row["processing_fee"],
            platform_fee_bps=row["platform_fee_bps"],
            processing_fee_bps=row["processing_fee_bps"],
            corrected_net=row["corrected_net"],
            corrected_platform_fee=row["corrected_platform_fee"],
            corrected_processing_fee=row["corrected_processing_fee"],
        )
        for row in earned
    )
    return Charge(
        charge_id=charge_id,
        customer_id=header["customer_id"],
        workflow_id=header["workflow_id"],
        component=ChargeComponent(header["component"]),
        ordinal=header["ordinal"],
        currency_code=header["currency_code"],
        gross=paid["gross"] if paid is not None else sum(row["gross"] for row in earned),
        earnings=earnings,
        payment=None
        if paid is None
        else ChargePayment(
            from_credits=paid["gross"]
            - paid["corrected"]
            - paid["written_off"]
            - paid["receivable"]
            - paid["unpaid"],
            receivable=paid["receivable"],
            unpaid=paid["unpaid"],
        ),
        occur_time=occur_time,
        create_time=header["create_time"],
        price_version_id=header["price_version_id"],
        evidence_hash=b"" if paid is None else paid["evidence_hash"],
        transaction_id=header["transaction_id"],
        reservation_id="" if paid is None else paid["reservation_id"],
        captured=0 if paid is None else paid["captured_credits"] + paid["captured_receivable"],
        corrected=sum(one.corrected for one in earnings) if paid is None else paid["corrected"],
        written_off=0 if paid is None else paid["written_off"],
    )
