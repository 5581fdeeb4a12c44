"""Leases, holds and the end of reservations. Each change is one call of a database function."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.kit.errors import AlreadyExists, FailedPrecondition, TallystickError
from services.kit.pages import Page
from services.ledger.domain.credits import (
    NO_LEASE,
    CreditLease,
    EndedReservation,
    GrantedLease,
    Hold,
    HoldPurpose,
    HoldRequest,
    HoldState,
    LeaseRenewal,
    PlacedHold,
    ReleasedReservation,
    ReservationClaim,
    ReservationRelease,
    ReservationState,
)
from services.ledger.store import credit_rows
from services.ledger.store.charges import unknown_party
from services.ledger.store.movements import COLLECT_LIMIT
from services.ledger.store.refusals import refusals


async def open_lease(
    connection: AsyncConnection[TupleRow],
    *,
    customer_id: str,
    currency_code: str,
    seen_epoch: int,
    wanted: int,
    duration: timedelta,
    drain: timedelta,
) -> tuple[GrantedLease, bool]:
    """The newest lease of a customer, and whether it was opened by this call."""
    with refusals():
        (row,) = await _rows(
            connection,
            "SELECT * FROM ledger.open_lease(%s, %s, %s, %s, %s, %s)",
            (customer_id, currency_code, seen_epoch, wanted, duration, drain),
        )
    return _granted(row, customer_id, currency_code), row.opened


async def renew_leases(
    connection: AsyncConnection[TupleRow],
    renewals: Sequence[LeaseRenewal],
    duration: timedelta,
) -> list[GrantedLease | TallystickError | None]:
    """Prolong leases, with a verdict for each, or None if there is no news of the version that is known. Each
    customer and currency comes once.
    """
    rows = await _rows(
        connection,
        "SELECT * FROM ledger.renew_leases("
        "%b::text[], %b::text[], %b::bigint[], %b::bigint[], %b, %b::bigint[], %b::bigint[])",
        (
            [one.customer_id for one in renewals],
            [one.currency_code for one in renewals],
            [one.epoch for one in renewals],
            [one.wanted for one in renewals],
            duration,
            [one.known_version for one in renewals],
            [one.known_available for one in renewals],
        ),
    )
    verdicts: list[GrantedLease | TallystickError | None] = [None] * len(renewals)
    for row in rows:
        verdicts[row.number - 1] = _renewed(renewals[row.number - 1], row)
    return verdicts


def _renewed(renewal: LeaseRenewal, row: Any) -> GrantedLease | TallystickError:
    if row.status == "unknown":
        return unknown_party(renewal.customer_id)
    if row.status == "superseded":
        return _superseded(renewal.customer_id, renewal.currency_code, renewal.epoch)
    return _granted(row, renewal.customer_id, renewal.currency_code)


async def return_lease(
    connection: AsyncConnection[TupleRow],
    *,
    customer_id: str,
    currency_code: str,
    epoch: int,
    return_number: int,
    amount: int,
    actor_api_key_id: str,
) -> GrantedLease:
    """Take back a part of a lease, once per return number, and collect debts from it.

    Raises LEASE_SUPERSEDED if the lease is over.
    """
    with refusals():
        (row,) = await _rows(
            connection,
            "SELECT * FROM ledger.return_lease(%s, %s, %s, %s, %s, %s, %s)",
            (customer_id, currency_code, epoch, return_number, amount, COLLECT_LIMIT, actor_api_key_id),
        )
    if row.status == "superseded":
        raise _superseded(customer_id, currency_code, epoch)
    return _granted(row, customer_id, currency_code)


async def recall_lease(connection: AsyncConnection[TupleRow], customer_id: str, currency_code: str) -> None:
    """Ask for the return of what a customer's lease does not need."""
    await connection.execute("SELECT ledger.recall_lease(%s, %s)", (customer_id, currency_code))


async def place_holds(
    connection: AsyncConnection[TupleRow], requests: Sequence[HoldRequest]
) -> list[PlacedHold | TallystickError]:
    """Place, raise or prolong holds in the order given, with a verdict for each."""
    claims = [one.from_lease or ReservationClaim("", NO_LEASE) for one in requests]
    rows = await _rows(
        connection,
        "SELECT * FROM ledger.place_holds(%b::text[], %b::text[], %b::ledger.hold_purpose[], %b::text[],"
        " %b::bigint[], %b::timestamptz[], %b::bytea[], %b::text[],"
        " %b::bigint[], %b::bigint[], %b::timestamptz[])",
        (
            [one.customer_id for one in requests],
            [one.hold_id for one in requests],
            [str(one.purpose) for one in requests],
            [one.currency_code for one in requests],
            [one.amount for one in requests],
            [one.expire_time for one in requests],
            [one.content_hash for one in requests],
            [one.price_version_id for one in requests],
            [claim.lease_epoch for claim in claims],
            [claim.amount for claim in claims],
            [claim.expire_time for claim in claims],
        ),
    )
    return [_placed(request, row) for request, row in zip(requests, rows, strict=True)]


def _placed(request: HoldRequest, row: Any) -> PlacedHold | TallystickError:
    match row.status:
        case "unknown":
            return unknown_party(request.customer_id)
        case "reused":
            return AlreadyExists(
                "this hold was asked for before with other content",
                reason="IDEMPOTENCY_KEY_REUSED",
                metadata={"key": request.hold_id},
            )
        case "settled" | "released" | "expired":
            return FailedPrecondition(
                "the reservation has ended",
                reason="RESERVATION_ENDED",
                metadata={"reservation_id": request.hold_id, "state": row.status},
            )
        case "frozen":
            return FailedPrecondition(
                "the customer is frozen",
                reason="CUSTOMER_FROZEN",
                metadata={"customer_id": request.customer_id},
            )
        case "insufficient":
            return FailedPrecondition(
                "neither the credits nor the credit limit leave that much",
                reason="INSUFFICIENT_CREDITS",
                metadata={
                    "customer_id": request.customer_id,
                    "currency_code": request.currency_code,
                    "requested_micros": str(request.amount),
                    "available_micros": str(row.spendable),
                },
            )
    return PlacedHold(
        hold=_hold(row, request.customer_id, request.hold_id, request.currency_code),
        balance=credit_rows.balance(row, request.customer_id, request.currency_code),
        duplicate=row.duplicate,
        lease=credit_rows.current_lease(row, request.customer_id, request.currency_code),
    )


async def release_reservations(
    connection: AsyncConnection[TupleRow], releases: Sequence[ReservationRelease]
) -> list[ReleasedReservation | TallystickError]:
    """End reservations for which no charge comes; how each ended, now or before."""
    rows = await _rows(
        connection,
        "SELECT * FROM ledger.release_reservations(%s::text[], %s::text[], %s::text[], %s::bigint[],"
        " %s::timestamptz[])",
        (
            [one.customer_id for one in releases],
            [one.currency_code for one in releases],
            [one.reservation_id for one in releases],
            [one.lease_epoch for one in releases],
            [one.expire_time for one in releases],
        ),
    )
    return [_released(release, row) for release, row in zip(releases, rows, strict=True)]


def _released(release: ReservationRelease, row: Any) -> ReleasedReservation | TallystickError:
    customer_id, currency_code = release.customer_id, release.currency_code
    if row.state is None:
        return unknown_party(customer_id)
    return ReleasedReservation(
        ended=EndedReservation(
            state=ReservationState(row.state),
            currency_code=currency_code,
            captured_credits=row.captured_credits,
            captured_receivable=row.captured_receivable,
            lease=credit_rows.current_lease(row, customer_id, currency_code),
        ),
        balance=credit_rows.balance(row, customer_id, currency_code),
    )


# Lists. Only what holds money, or stands: the rest is kept for its id alone.

_LEASES = text("""
    SELECT customer_id, currency_code, epoch, remaining, version, expire_time, recall, draining, create_time
    FROM ledger.credit_lease
    WHERE remaining > 0
      AND (CAST(:customer_id AS text) = '' OR customer_id = :customer_id)
      AND (CAST(:after_customer AS text) IS NULL
           OR (customer_id, currency_code, epoch) > (:after_customer, :after_currency, :after_epoch))
    ORDER BY customer_id, currency_code, epoch
    LIMIT :limit
""")


async def list_leases(connection: Connection, customer_id: str, page: Page) -> list[CreditLease]:
    """Leases that hold money, by (customer, currency, epoch), up to `page.limit`; of all customers for ""."""
    customer, currency, epoch = page.after or (None, None, None)
    rows = await connection.execute(
        _LEASES,
        {
            "customer_id": customer_id,
            "after_customer": customer,
            "after_currency": currency,
            "after_epoch": epoch,
            "limit": page.limit,
        },
    )
    return [CreditLease(**row) for row in rows.mappings()]


_HOLDS = text("""
    SELECT hold_id, customer_id, currency_code, purpose::text AS purpose, state::text AS state, credits,
           receivable, captured_credits, captured_receivable, charge_id, price_version_id,
           expire_time, create_time, end_time
    FROM ledger.hold
    WHERE state = 'held'
      AND (CAST(:customer_id AS text) = '' OR customer_id = :customer_id)
      AND (CAST(:purpose AS text) IS NULL OR purpose = CAST(:purpose AS ledger.hold_purpose))
      AND (CAST(:after_customer AS text) IS NULL
           OR (customer_id, hold_id) > (:after_customer, :after_hold))
    ORDER BY customer_id, hold_id
    LIMIT :limit
""")


async def list_holds(
    connection: Connection, customer_id: str, purpose: HoldPurpose | None, page: Page
) -> list[Hold]:
    """Holds that stand, by (customer, hold), up to `page.limit`; of all customers for ""."""
    customer, hold = page.after or (None, None)
    rows = await connection.execute(
        _HOLDS,
        {
            "customer_id": customer_id,
            "purpose": purpose,
            "after_customer": customer,
            "after_hold": hold,
            "limit": page.limit,
        },
    )
    return [_hold(row, row.customer_id, row.hold_id, row.currency_code) for row in rows]


async def _rows(
    connection: AsyncConnection[TupleRow], statement: LiteralString, parameters: Sequence[object]
) -> list[Any]:
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(statement, parameters)
    return await cursor.fetchall()


def _granted(row: Any, customer_id: str, currency_code: str) -> GrantedLease:
    return GrantedLease(
        lease=CreditLease(
            customer_id=customer_id,
            currency_code=currency_code,
            epoch=row.epoch,
            remaining=row.remaining,
            version=row.version,
            expire_time=row.expire_time,
            recall=row.recall,
            draining=row.draining,
            create_time=row.create_time,
        ),
        available=row.available,
        credit_room=row.credit_room,
        frozen=row.frozen,
    )


def _hold(row: Any, customer_id: str, hold_id: str, currency_code: str) -> Hold:
    return Hold(
        customer_id=customer_id,
        hold_id=hold_id,
        currency_code=currency_code,
        purpose=HoldPurpose(row.purpose),
        state=HoldState(row.state),
        credits=row.credits,
        receivable=row.receivable,
        captured=row.captured_credits + row.captured_receivable,
        charge_id=row.charge_id,
        expire_time=row.expire_time,
        create_time=row.create_time,
        end_time=row.end_time,
        price_version_id=row.price_version_id,
    )


def _superseded(customer_id: str, currency_code: str, epoch: int) -> FailedPrecondition:
    return FailedPrecondition(
        "another lease is current, or this one is over",
        reason="LEASE_SUPERSEDED",
        metadata={"customer_id": customer_id, "currency_code": currency_code, "epoch": str(epoch)},
    )
